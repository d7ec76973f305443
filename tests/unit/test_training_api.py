"""The training API's routes, with its dependencies replaced at their interfaces."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from anomaly_detection.contracts import (
    FitRequest,
    Job,
    JobDurations,
    JobStatus,
    ModelVersion,
    TrainingJob,
)
from anomaly_detection.errors import DependencyUnavailableError
from anomaly_detection.jobs import NewJob, Rejection
from anomaly_detection.series import Series
from training_api.app import FIT_EXAMPLE, create_app
from training_api.services import Services
from training_api.settings import TrainingApiSettings

Points = list[dict[str, float]]


class Backend:
    """Jobs, broker, store and registry in memory; what is named in `away` does not answer."""

    def __init__(self) -> None:
        self.away: set[str] = set()
        self.jobs: list[Job] = []
        self.fingerprints: dict[UUID, str] = {}
        self.accepted = 0
        self.published: list[tuple[str, TrainingJob, dict[str, str]]] = []
        self.confirmed: list[UUID] = []
        self.objects: dict[str, bytes] = {}
        self.models: dict[str, list[ModelVersion]] = {}
        self.is_started = True

    def need(self, name: str) -> None:
        if name in self.away:
            raise DependencyUnavailableError(name)

    def services(self) -> Services:
        def check(name: str) -> Any:
            async def call() -> None:
                self.need(name)

            return call

        async def nothing() -> None:
            return None

        return Services(
            jobs=self,
            publisher=self,
            store=self,
            models=self,
            checks={name: check(name) for name in ("database", "broker", "object-store", "registry")},
            start=nothing,
            stop=nothing,
            started=lambda: self.is_started,
        )

    async def accept(self, series_id: str, limit: int, window_seconds: int) -> Rejection | None:
        self.need("database")
        self.accepted += 1
        return Rejection(12.3) if self.accepted > limit else None

    async def find_same(self, new: NewJob) -> Job | None:
        self.need("database")
        return next((job for job in self.jobs if self.fingerprints[job.job_id] == new.fingerprint), None)

    async def create(self, new: NewJob) -> tuple[Job, TrainingJob | None]:
        self.need("database")
        job = Job(
            job_id=uuid4(),
            series_id=new.series_id,
            status=JobStatus.QUEUED,
            created_at=datetime.now(UTC),
            points=new.points,
            parameters=new.parameters,
            priority=new.priority,
            attempts=0,
            durations=JobDurations(),
            links={"self": "/jobs/1"},
        )
        self.jobs.append(job)
        self.fingerprints[job.job_id] = new.fingerprint
        message = TrainingJob(
            job_id=job.job_id,
            series_id=new.series_id,
            sequence=len(self.jobs),
            data_key=new.data_key,
            data_sha256=new.data_sha256,
            points=new.points,
            parameters=new.parameters,
            priority=new.priority,
            request_id=new.request_id,
            created_at=job.created_at,
        )
        return job, message

    async def mark_published(self, message: TrainingJob) -> None:
        self.confirmed.append(message.job_id)

    async def unpublished(self) -> list[TrainingJob]:
        return []

    async def get(self, job_id: UUID) -> Job | None:
        self.need("database")
        return next((job for job in self.jobs if job.job_id == job_id), None)

    async def page(
        self, series_id: str | None, status: JobStatus | None, before: int | None, limit: int
    ) -> tuple[list[Job], int | None]:
        found = [
            (number, job)
            for number, job in reversed(list(enumerate(self.jobs, 1)))
            if series_id in (None, job.series_id)
            and status in (None, job.status)
            and (before is None or number < before)
        ]
        return [job for _, job in found[:limit]], found[limit - 1][0] if len(found) > limit else None

    async def cancel(self, job_id: UUID) -> tuple[Job | None, bool]:
        for index, job in enumerate(self.jobs):
            if job.job_id == job_id:
                if job.status is not JobStatus.QUEUED:
                    return job, False
                self.jobs[index] = job.model_copy(update={"status": JobStatus.CANCELLED})
                return self.jobs[index], True
        return None, False

    async def fail(self, job_id: UUID, attempt: int | None, code: str, text: str) -> bool:
        index = next(i for i, job in enumerate(self.jobs) if job.job_id == job_id)
        self.jobs[index] = self.jobs[index].model_copy(update={"status": JobStatus.FAILED})
        return True

    async def publish(
        self, routing_key: str, body: bytes, *, message_id: str, headers: dict[str, str] | None = None
    ) -> None:
        self.need("broker")
        self.published.append((routing_key, TrainingJob.model_validate_json(body), headers or {}))

    async def put(self, key: str, blob: bytes) -> None:
        self.need("object-store")
        self.objects[key] = blob

    async def versions(self, series_id: str) -> list[ModelVersion]:
        self.need("registry")
        return self.models.get(series_id, [])


@pytest.fixture
def backend() -> Backend:
    return Backend()


@pytest.fixture
async def client(backend: Backend) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(backend.services(), TrainingApiSettings(max_body_bytes=100_000, min_points=100, max_points=1000))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://api") as client:
        yield client


async def test_fit_stores_the_points_then_the_job_then_publishes(
    client: httpx.AsyncClient, backend: Backend, points: Points
) -> None:
    answer = await client.post("/fit/s1", json={"data": points}, headers={"X-Request-ID": "me"})
    assert answer.status_code == 202, answer.text
    body = answer.json()
    assert (body["series_id"], body["status"]) == ("s1", "queued")
    assert answer.headers["location"] == body["links"]["self"]
    (routing_key, message, headers), *others = backend.published
    assert not others
    assert (routing_key, message.request_id, headers) == ("training.job.standard", "me", {"x-request-id": "me"})
    assert str(message.job_id) == body["job_id"]
    assert backend.confirmed == [message.job_id]
    stored = Series.from_bytes(backend.objects[message.data_key])
    assert stored.sha256() == message.data_sha256
    assert stored.values.tolist() == [point["value"] for point in points]


async def test_priority_and_parameters_reach_the_worker(
    client: httpx.AsyncClient, backend: Backend, points: Points
) -> None:
    body = {"data": points, "priority": "high", "parameters": {"max_samples": 1.0}}
    assert (await client.post("/fit/s1", json=body)).status_code == 202
    routing_key, message, _ = backend.published[0]
    assert routing_key == "training.job.priority"
    assert isinstance(message.parameters.max_samples, float)


async def test_the_same_again_is_the_same_job(client: httpx.AsyncClient, backend: Backend, points: Points) -> None:
    first, second = [(await client.post("/fit/s1", json={"data": points})).json()["job_id"] for _ in range(2)]
    assert first == second
    assert len(backend.published) == 1
    other = await client.post("/fit/s1", json={"data": points, "parameters": {"random_state": 1}})
    assert other.json()["job_id"] != first


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/fit/s1", b"not json", 400, "INVALID_INPUT"),
        ("/fit/s1", b'{"data":[{"timestamp":1,"value":NaN}]}', 400, "INVALID_INPUT"),
        ("/fit/s1", b"[]", 422, "INVALID_INPUT"),
        ("/fit/s1", b"{}", 422, "INVALID_INPUT"),
        ("/fit/s1", b'{"data":[]}', 422, "INSUFFICIENT_DATA"),
        ("/fit/s1", b'{"data":[],"unknown":1}', 422, "INVALID_INPUT"),
        ("/fit/s1", b'{"data":[],"priority":"now"}', 422, "INVALID_INPUT"),
        ("/fit/s1", b'{"data":[],"parameters":{"n_estimators":0}}', 422, "INVALID_INPUT"),
        ("/fit/s1", b" " * 100_001, 413, "PAYLOAD_TOO_LARGE"),
        ("/fit/s-1", b"{}", 422, "INVALID_INPUT"),
        ("/fit/" + "s" * 129, b"{}", 422, "INVALID_INPUT"),
    ],
)
async def test_bad_fits_are_refused_and_leave_nothing(
    client: httpx.AsyncClient, backend: Backend, path: str, body: bytes, status: int, code: str
) -> None:
    answer = await client.post(path, content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert not backend.jobs
    assert not backend.objects
    assert not backend.accepted


async def test_a_constant_series_is_refused(client: httpx.AsyncClient) -> None:
    data = [{"timestamp": i, "value": 3} for i in range(100)]
    assert (await client.post("/fit/s1", json={"data": data})).json()["error"]["code"] == "CONSTANT_SERIES"


async def test_a_body_without_a_declared_length_is_measured_while_it_is_read(client: httpx.AsyncClient) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 10_000
            yield b" " * 10_000

    answer = await client.post("/fit/s1", content=endless())
    assert answer.status_code == 413
    assert sent <= 120_000


async def test_the_rate_limit_says_when_to_come_back(
    client: httpx.AsyncClient, backend: Backend, points: Points
) -> None:
    backend.accepted = 5
    answer = await client.post("/fit/s1", json={"data": points})
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "RATE_LIMIT_EXCEEDED")
    assert answer.headers["retry-after"] == "13"


@pytest.mark.parametrize("name", ["database", "object-store", "broker"])
async def test_a_dependency_away_leaves_nothing_half_written(
    client: httpx.AsyncClient, backend: Backend, points: Points, name: str
) -> None:
    backend.away.add(name)
    answer = await client.post("/fit/s1", json={"data": points})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "SERVICE_UNAVAILABLE")
    assert answer.json()["error"]["details"] == [{"dependency": name}]
    assert int(answer.headers["retry-after"]) > 0
    assert not backend.published
    assert all(job.status is JobStatus.FAILED for job in backend.jobs)


async def test_jobs_are_found_and_paged(client: httpx.AsyncClient, backend: Backend, points: Points) -> None:
    backend.accepted = -10
    for seed in range(5):
        await client.post(f"/fit/s{seed % 2}", json={"data": points, "parameters": {"random_state": seed}})
    job = backend.jobs[0]
    assert (await client.get(f"/jobs/{job.job_id}")).json()["job_id"] == str(job.job_id)
    first = (await client.get("/jobs", params={"limit": 2, "series_id": "s0"})).json()
    assert len(first["jobs"]) == 2
    rest = (await client.get("/jobs", params={"limit": 2, "series_id": "s0", "cursor": first["next_cursor"]})).json()
    assert [item["job_id"] for item in rest["jobs"]] == [str(job.job_id)]
    assert rest["next_cursor"] is None
    assert (await client.get("/jobs", params={"status": "failed"})).json()["jobs"] == []


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/jobs/00000000-0000-4000-8000-000000000000", 404),
        ("/jobs/17", 422),
        ("/jobs?status=lost", 422),
        ("/jobs?limit=0", 422),
        ("/jobs?cursor=x", 422),
        ("/jobs?cursor=9223372036854775808", 422),
        ("/jobs?series_id=a-b", 422),
        ("/models/s1/versions", 404),
    ],
)
async def test_bad_questions(client: httpx.AsyncClient, path: str, status: int) -> None:
    answer = await client.get(path)
    assert answer.status_code == status
    assert answer.json()["status"] == "error"


async def test_only_a_queued_job_is_cancelled(client: httpx.AsyncClient, backend: Backend, points: Points) -> None:
    path = (await client.post("/fit/s1", json={"data": points})).json()["job_id"]
    for _ in range(2):  # again is harmless
        answer = await client.delete(f"/jobs/{path}")
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    backend.jobs[0] = backend.jobs[0].model_copy(update={"status": JobStatus.RUNNING})
    answer = await client.delete(f"/jobs/{path}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "CANNOT_CANCEL")
    assert (await client.delete(f"/jobs/{uuid4()}")).status_code == 404


async def test_versions(client: httpx.AsyncClient, backend: Backend) -> None:
    backend.models["s1"] = [
        ModelVersion(
            version=2, aliases=["production"], created_at=datetime.now(UTC), run_id="r", job_id="j", sequence=4, tags={}
        )
    ]
    body = (await client.get("/models/s1/versions")).json()
    assert (body["model_name"], body["versions"][0]["aliases"]) == ("model_od_s1", ["production"])


@pytest.mark.parametrize(
    ("started", "away", "ready", "health"),
    [(True, set(), 200, 200), (True, {"broker"}, 200, 503), (False, {"database"}, 503, 503)],
)
async def test_health(
    client: httpx.AsyncClient, backend: Backend, started: bool, away: set[str], ready: int, health: int
) -> None:
    backend.is_started, backend.away = started, away
    assert (await client.get("/health/live")).status_code == 200
    assert (await client.get("/health/ready")).status_code == ready
    answer = await client.get("/health")
    assert answer.status_code == health
    states = {name: state["status"] for name, state in answer.json()["dependencies"].items()}
    assert {name for name, state in states.items() if state == "down"} == away


async def test_metrics_have_a_label_per_route_not_per_series(client: httpx.AsyncClient, points: Points) -> None:
    await client.post("/fit/s1", json={"data": points})
    text = (await client.get("/metrics")).text
    assert 'route="/fit/{series_id}",status="202"' in text
    assert 'training_fit_requests_total{outcome="accepted"} 1.0' in text
    assert "s1" not in text


async def test_the_documented_example_is_accepted(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    content = document["paths"]["/fit/{series_id}"]["post"]["requestBody"]["content"]["application/json"]
    assert content["schema"] == {"$ref": "#/components/schemas/FitRequest"}
    for reference in ("FitRequest", "Point", "DetectorParameters", "ErrorEnvelope"):
        assert reference in document["components"]["schemas"]
    FitRequest.model_validate_json(httpx.Request("POST", "http://x", json=FIT_EXAMPLE).content)
    assert (await client.post("/fit/s1", json=FIT_EXAMPLE)).status_code == 202
    assert (await client.get("/docs")).status_code == 200
