"""Versions of models: what the API shows of them, and who is in production."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from unit.training_backend import Backend

from anomaly_detection.contracts import (
    DetectorParameters,
    Job,
    JobDurations,
    JobStatus,
    Priority,
    PromoteRequest,
    RollbackRequest,
)
from anomaly_detection.errors import DependencyUnavailableError
from anomaly_detection.settings import MlflowSettings
from anomaly_detection.stability import population_stability_index
from training_api.models import kolmogorov_smirnov
from training_api.registry import Registry


@pytest.fixture
def backend() -> Backend:
    """A series with three versions, the last one in production."""
    backend = Backend()
    backend.register("s1", [], ["previous"], ["production"])
    return backend


@pytest.fixture
async def client(backend: Backend) -> AsyncIterator[httpx.AsyncClient]:
    async with backend.client() as client:
        yield client


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def job(status: JobStatus, job_id: UUID | None = None) -> Job:
    return Job(
        job_id=job_id or uuid4(),
        series_id="s1",
        status=status,
        created_at=datetime.now(UTC),
        points=100,
        parameters=DetectorParameters(),
        priority=Priority.STANDARD,
        attempts=0,
        durations=JobDurations(),
        links={},
    )


async def test_models_are_listed_page_by_page(client: httpx.AsyncClient, backend: Backend) -> None:
    for name in ("s3", "S2"):
        backend.register(name, ["production"])
    first = (await client.get("/models", params={"limit": 2})).json()
    assert [model["series_id"] for model in first["models"]] == ["S2", "s1"]
    rest = (await client.get("/models", params={"limit": 2, "cursor": first["next_cursor"]})).json()
    assert ([model["series_id"] for model in rest["models"]], rest["next_cursor"]) == (["s3"], None)


async def test_versions_are_listed_newest_first(client: httpx.AsyncClient) -> None:
    body = (await client.get("/models/s1/versions")).json()
    assert body["model_name"] == "model_od_s1"
    assert [(item["version"], item["aliases"]) for item in body["versions"]] == [
        (3, ["production"]),
        (2, ["previous"]),
        (1, []),
    ]


async def test_a_version_tells_what_it_is_made_of(client: httpx.AsyncClient, backend: Backend) -> None:
    backend.register("s1", ["production"], data_sha256="abc", data_key="series/s1/abc.npz", score_histogram="[0,90,10]")
    backend.runs["run-1"] = (
        {"n_estimators": "100"},
        {"points": 100.0, "training_anomalies": 2.0, "threshold": 0.6, "score_p99": 0.7},
    )
    body = (await client.get("/models/s1/versions/1")).json()
    assert (body["version"], body["data_sha256"], body["data_key"]) == (1, "abc", "series/s1/abc.npz")
    assert body["parameters"] == {"n_estimators": "100"}
    assert body["scores"] == {
        "threshold": 0.6,
        "anomalies": 0.02,
        "quantiles": {"p99": 0.7},
        "histogram": [0, 90, 10],
    }


async def test_two_versions_are_compared(client: httpx.AsyncClient, backend: Backend) -> None:
    backend.register("s1", ["previous"], ["production"], data_sha256="same")
    for version, histogram in zip(backend.registered["s1"], ("[50,50]", "[0,100]"), strict=True):
        version.tags["score_histogram"] = histogram
    backend.runs = {
        "run-1": ({"n_estimators": "100", "random_state": "1"}, {"threshold": 0.5, "mean": 1.0}),
        "run-2": ({"n_estimators": "200", "random_state": "1"}, {"threshold": 0.75}),
    }
    body = (await client.get("/models/s1/compare", params={"a": 1, "b": 2})).json()
    assert (body["a"]["version"], body["b"]["version"]) == (1, 2)
    assert (body["same_data"], body["same_parameters"]) == (True, False)
    assert body["parameters"] == {"n_estimators": {"a": "100", "b": "200"}}
    assert body["metrics"]["threshold"] == {"a": 0.5, "b": 0.75, "difference": 0.25}
    assert body["metrics"]["mean"] == {"a": 1.0, "b": None, "difference": None}
    assert body["scores"]["kolmogorov_smirnov"] == 0.5
    assert body["scores"]["population_stability_index"] > 0.25


async def test_versions_without_a_histogram_are_compared_without_one(client: httpx.AsyncClient) -> None:
    scores = (await client.get("/models/s1/compare", params={"a": 1, "b": 3})).json()["scores"]
    assert (scores["kolmogorov_smirnov"], scores["population_stability_index"]) == (None, None)


@pytest.mark.parametrize("distance", [kolmogorov_smirnov, population_stability_index])
def test_a_distance_is_zero_for_equal_shares_and_grows(distance: Callable[[list[int], list[int]], float]) -> None:
    assert distance([10, 20, 70], [10, 20, 70]) == pytest.approx(0.0)
    near, far = distance([10, 20, 70], [15, 20, 65]), distance([10, 20, 70], [70, 20, 10])
    assert 0 < near < far
    assert distance([10, 20, 70], [70, 20, 10]) == pytest.approx(distance([70, 20, 10], [10, 20, 70]))
    assert kolmogorov_smirnov([100, 0], [0, 7]) == 1.0


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("GET", "/models/nobody/versions", None, (404, "MODEL_NOT_FOUND")),
        ("GET", "/models/nobody/versions/1", None, (404, "MODEL_NOT_FOUND")),
        ("GET", "/models/nobody/compare?a=1&b=2", None, (404, "MODEL_NOT_FOUND")),
        ("POST", "/models/nobody/promote", {"version": 1}, (404, "MODEL_NOT_FOUND")),
        ("POST", "/models/nobody/rollback", None, (404, "MODEL_NOT_FOUND")),
        ("DELETE", "/models/nobody", None, (404, "MODEL_NOT_FOUND")),
        ("DELETE", "/models/nobody/versions/1", None, (404, "MODEL_NOT_FOUND")),
        ("GET", "/models/s1/versions/9", None, (404, "INVALID_VERSION")),
        ("GET", "/models/s1/compare?a=1&b=9", None, (404, "INVALID_VERSION")),
        ("POST", "/models/s1/promote", {"version": 9}, (404, "INVALID_VERSION")),
        ("DELETE", "/models/s1/versions/9", None, (404, "INVALID_VERSION")),
        ("DELETE", "/models/s1/versions/0", None, (422, "INVALID_VERSION")),
        ("GET", "/models/s1/compare?a=1&b=2147483648", None, (422, "INVALID_VERSION")),
        ("POST", "/models/s1/promote", {"version": "newest"}, (422, "INVALID_VERSION")),
        ("GET", "/models/s-1/versions/newest", None, (422, "INVALID_INPUT")),
        ("GET", "/models/s1/versions/latest", None, (422, "INVALID_VERSION")),
        ("GET", "/models/s1/versions/0", None, (422, "INVALID_VERSION")),
        ("GET", "/models/s1/versions/99999999999", None, (422, "INVALID_VERSION")),
        ("GET", "/models/s1/compare?a=1", None, (422, "INVALID_INPUT")),
        ("POST", "/models/s1/promote", {}, (422, "INVALID_INPUT")),
        ("POST", "/models/s1/promote", {"version": 1, "alias": "x"}, (422, "INVALID_INPUT")),
        ("POST", "/models/s1/rollback", {"version": 1}, (422, "INVALID_INPUT")),
        ("GET", "/models/s-1/versions", None, (422, "INVALID_INPUT")),
        ("DELETE", "/models/s-1", None, (422, "INVALID_INPUT")),
        ("GET", "/models?limit=0", None, (422, "INVALID_INPUT")),
        ("GET", "/models?cursor=a-b", None, (422, "INVALID_INPUT")),
    ],
)
async def test_bad_requests_change_nothing(
    client: httpx.AsyncClient, backend: Backend, method: str, path: str, body: Any, expected: tuple[int, str]
) -> None:
    assert code(await client.request(method, path, json=body)) == expected
    assert (backend.production, backend.events, backend.deleted) == ({}, [], [])
    assert backend.aliases("s1") == {"production": 3, "previous": 2}


async def test_a_promotion_moves_the_aliases_and_tells_serving(client: httpx.AsyncClient, backend: Backend) -> None:
    answer = await client.post("/models/s1/promote", json={"version": 1}, headers={"X-Request-ID": "me"})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["model_version"], body["previous_version"]) == (1, 3)
    assert backend.aliases("s1") == {"production": 1, "previous": 3}
    (event,) = backend.events
    assert (event.series_id, event.model_version, event.change, event.request_id) == ("s1", 1, "promoted", "me")
    assert str(event.job_id) == backend.registered["s1"][0].job_id
    assert event.sequence == body["sequence"]
    assert backend.pending == []


async def test_a_promotion_again_is_harmless(client: httpx.AsyncClient, backend: Backend) -> None:
    for _ in range(2):
        body = (await client.post("/models/s1/promote", json={"version": 1})).json()
        assert (body["model_version"], body["previous_version"]) == (1, 3)
    assert backend.aliases("s1") == {"production": 1, "previous": 3}


async def test_a_decision_is_numbered_after_all_jobs_before_it(client: httpx.AsyncClient, backend: Backend) -> None:
    numbers = [(await client.post("/models/s1/promote", json={"version": v})).json()["sequence"] for v in (1, 2)]
    assert 100 < numbers[0] < numbers[1] == backend.production["s1"].sequence


async def test_a_version_that_cannot_be_served_is_not_promoted(client: httpx.AsyncClient, backend: Backend) -> None:
    del backend.registered["s1"][0].tags["blob_key"]
    assert code(await client.post("/models/s1/promote", json={"version": 1})) == (409, "INVALID_STAGE_TRANSITION")
    assert backend.aliases("s1") == {"production": 3, "previous": 2}


async def test_a_rollback_and_a_second_one(client: httpx.AsyncClient, backend: Backend) -> None:
    body = (await client.post("/models/s1/rollback")).json()
    assert (body["model_version"], body["previous_version"]) == (2, 3)
    assert backend.aliases("s1") == {"production": 2, "previous": 3}
    assert (await client.post("/models/s1/rollback")).json()["model_version"] == 3
    assert [(event.model_version, event.change) for event in backend.events] == [
        (2, "rolled_back"),
        (3, "rolled_back"),
    ]


async def test_a_rollback_from_a_version_happens_once(client: httpx.AsyncClient, backend: Backend) -> None:
    assert (await client.post("/models/s1/rollback", json={"from_version": 3})).status_code == 200
    again = await client.post("/models/s1/rollback", json={"from_version": 3})
    assert code(again) == (409, "INVALID_STAGE_TRANSITION")
    assert again.json()["error"]["details"] == [{"production": 2}]
    assert backend.aliases("s1")["production"] == 2


async def test_without_a_version_before_there_is_no_rollback(client: httpx.AsyncClient, backend: Backend) -> None:
    backend.register("s2", ["production"])
    assert code(await client.post("/models/s2/rollback")) == (409, "INVALID_STAGE_TRANSITION")


async def test_an_event_the_broker_does_not_take_is_kept(client: httpx.AsyncClient, backend: Backend) -> None:
    backend.away.add("broker")
    assert (await client.post("/models/s1/rollback")).status_code == 200
    assert backend.aliases("s1")["production"] == 2
    assert [event.model_version for event in backend.pending] == [2]


@pytest.mark.parametrize("away", ["database", "registry", "aliases"])
@pytest.mark.parametrize(("path", "body"), [("promote", {"version": 1}), ("rollback", None)])
async def test_a_decision_that_cannot_be_carried_out_changes_nothing(
    client: httpx.AsyncClient, backend: Backend, path: str, body: Any, away: str
) -> None:
    backend.away.add(away)
    assert code(await client.post(f"/models/s1/{path}", json=body)) == (503, "SERVICE_UNAVAILABLE")
    assert (backend.production, backend.pending, backend.events) == ({}, [], [])
    assert backend.aliases("s1") == {"production": 3, "previous": 2}


async def test_a_version_is_deleted(client: httpx.AsyncClient, backend: Backend) -> None:
    answer = await client.delete("/models/s1/versions/2")
    assert answer.json() == {"series_id": "s1", "deleted_versions": [2]}
    assert [item.version for item in backend.registered["s1"]] == [1, 3]
    assert backend.deleted == [2]
    assert code(await client.delete("/models/s1/versions/2")) == (404, "INVALID_VERSION")


async def test_the_version_in_production_is_not_deleted(client: httpx.AsyncClient, backend: Backend) -> None:
    assert code(await client.delete("/models/s1/versions/3")) == (409, "INVALID_STAGE_TRANSITION")
    assert len(backend.registered["s1"]) == 3


async def test_a_version_that_its_job_is_about_to_promote_is_not_deleted(
    client: httpx.AsyncClient, backend: Backend
) -> None:
    backend.jobs = [job(JobStatus.RUNNING, UUID(backend.registered["s1"][0].job_id))]
    assert code(await client.delete("/models/s1/versions/1")) == (409, "TRAINING_IN_PROGRESS")
    assert (await client.delete("/models/s1/versions/2")).status_code == 200


async def test_a_model_is_deleted_and_serving_told(client: httpx.AsyncClient, backend: Backend) -> None:
    backend.jobs = [job(JobStatus.SUCCEEDED)]
    answer = await client.delete("/models/s1")
    assert answer.json() == {"series_id": "s1", "deleted_versions": [1, 2, 3]}
    assert backend.deleted == [None]
    (event,) = backend.events
    assert (event.series_id, event.model_version, event.job_id, event.change) == ("s1", None, None, "deleted")
    assert code(await client.delete("/models/s1")) == (404, "MODEL_NOT_FOUND")


@pytest.mark.parametrize("status", [JobStatus.QUEUED, JobStatus.RUNNING])
async def test_a_model_in_training_is_not_deleted(
    client: httpx.AsyncClient, backend: Backend, status: JobStatus
) -> None:
    backend.jobs = [job(status)]
    answer = await client.delete("/models/s1")
    assert code(answer) == (409, "TRAINING_IN_PROGRESS")
    assert answer.json()["error"]["details"] == [{"job_id": str(backend.jobs[0].job_id)}]
    assert len(backend.registered["s1"]) == 3


async def test_an_interrupted_deletion_leaves_production_and_is_finished_by_another(
    client: httpx.AsyncClient, backend: Backend
) -> None:
    backend.deletions_left = 2
    answer = await client.delete("/models/s1")
    assert code(answer) == (503, "SERVICE_UNAVAILABLE")
    assert "has begun" in answer.json()["error"]["message"]
    assert answer.headers["retry-after"]
    assert backend.aliases("s1") == {"production": 3}
    assert (backend.production, backend.deleted, backend.events) == ({}, [], [])
    backend.deletions_left = 1
    assert (await client.delete("/models/s1")).json()["deleted_versions"] == [3]


async def test_every_route_is_documented_with_what_it_answers(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    for path, method, codes in (
        ("/models", "get", {"200", "422", "500", "503"}),
        ("/models/{series_id}/versions/{version}", "get", {"200", "404", "422", "500", "503"}),
        ("/models/{series_id}/versions/{version}", "delete", {"200", "404", "409", "422", "500", "503"}),
        ("/models/{series_id}/compare", "get", {"200", "404", "422", "500", "503"}),
        ("/models/{series_id}/promote", "post", {"200", "400", "404", "409", "422", "500", "503"}),
        ("/models/{series_id}/rollback", "post", {"200", "400", "404", "409", "422", "500", "503"}),
        ("/models/{series_id}", "delete", {"200", "404", "409", "422", "500", "503"}),
    ):
        assert set(paths[path][method]["responses"]) == codes, path


@pytest.mark.parametrize(("path", "model"), [("promote", PromoteRequest), ("rollback", RollbackRequest)])
async def test_documented_examples_run(
    client: httpx.AsyncClient, backend: Backend, path: str, model: type[PromoteRequest | RollbackRequest]
) -> None:
    document = (await client.get("/openapi.json")).json()
    fields = document["components"]["schemas"][model.__name__]["properties"]
    body = {name: field["examples"][0] for name, field in fields.items()}
    backend.register("s1", ["previous"], ["production"])
    assert (await client.post(f"/models/s1/{path}", json=body)).status_code == 200


class Mlflow:
    """Answers of the registry by method and path, and the requests it got."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.requests: list[tuple[str, str, Any]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path.removeprefix("/api/2.0/")
        self.requests.append((request.method, path, json.loads(request.content or b"null")))
        answer = self.answers.get(path.rsplit("/", 1)[-1], {})
        return answer if isinstance(answer, httpx.Response) else httpx.Response(200, json=answer)

    def registry(self) -> Registry:
        return Registry(MlflowSettings(tracking_uri="http://mlflow"), httpx.MockTransport(self))


ABSENT = httpx.Response(404, json={"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no"})


async def test_the_registry_points_previous_before_production() -> None:
    mlflow = Mlflow()
    await mlflow.registry().set_production("s1", 1, 3)
    path = "mlflow/registered-models/alias"
    assert mlflow.requests == [
        ("POST", path, {"name": "model_od_s1", "alias": "previous", "version": "3"}),
        ("POST", path, {"name": "model_od_s1", "alias": "production", "version": "1"}),
    ]


async def test_the_registry_deletes_artifacts_and_run_before_the_version() -> None:
    source = "mlflow-artifacts:/1/models/m-1/artifacts"
    mlflow = Mlflow(get={"model_version": {"version": "2", "source": source, "run_id": "r-1"}})
    await mlflow.registry().delete_version("s1", 2)
    assert [request for request in mlflow.requests if request[0] != "GET"] == [
        ("DELETE", "mlflow-artifacts/artifacts/1/models/m-1/artifacts", None),
        ("DELETE", "mlflow/logged-models/m-1", None),
        ("POST", "mlflow/runs/delete", {"run_id": "r-1"}),
        ("DELETE", "mlflow/model-versions/delete", {"name": "model_od_s1", "version": "2"}),
    ]


async def test_what_the_registry_does_not_have_is_deleted_already() -> None:
    mlflow = Mlflow(get=ABSENT, delete=ABSENT)
    await mlflow.registry().delete_version("s1", 2)


async def test_an_alias_for_a_version_that_is_gone_is_an_error() -> None:
    with pytest.raises(DependencyUnavailableError):
        await Mlflow(alias=ABSENT).registry().set_production("s1", 1, None)


@pytest.mark.parametrize(
    "answer", [httpx.Response(404, text="<html>"), httpx.Response(500, json={}), httpx.Response(200, text="[]x")]
)
async def test_an_answer_that_is_not_the_registrys_is_no_answer(answer: httpx.Response) -> None:
    with pytest.raises(DependencyUnavailableError):
        await Mlflow(search=answer).registry().versions("s1")


async def test_the_registry_reads_parameters_and_metrics() -> None:
    data = {"params": [{"key": "n", "value": "1"}], "metrics": [{"key": "m", "value": 0.5}]}
    assert await Mlflow(get={"run": {"data": data}}).registry().run("r") == ({"n": "1"}, {"m": 0.5})
    assert await Mlflow(get=ABSENT).registry().run("r") == ({}, {})
