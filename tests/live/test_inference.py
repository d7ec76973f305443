"""What inference offers beside predictions, and that it goes on answering when it is left alone."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any
from xml.etree import ElementTree

import pytest
from chart_harness.live import wait_for
from live.system import COMPONENTS, PROBE, System, points, unique


@pytest.fixture(scope="module")
def known(system: System) -> str:
    """A series with a model."""
    series = unique("inference")
    system.model(series, seed=20)
    return series


def test_the_open_inference_protocol_gives_the_same_scores(system: System, known: str) -> None:
    data = points(100, seed=21, spikes=4)
    batch = system.inference.request("POST", f"/predict/{known}/batch", json={"data": data}).json()
    values = [point["value"] for point in data]
    body = {"id": "7", "inputs": [{"name": "value", "shape": [100], "datatype": "FP64", "data": values}]}
    answer = system.inference.request("POST", f"/v2/models/{known}/infer", json=body)
    assert answer.status_code == 200, answer.text
    outputs = {each["name"]: each["data"] for each in answer.json()["outputs"]}
    assert outputs["anomaly_score"] == [point["anomaly_score"] for point in batch["predictions"]]
    assert outputs["is_anomaly"] == [point["is_anomaly"] for point in batch["predictions"]]
    assert outputs["threshold"] == [batch["threshold"]]
    assert answer.json()["id"] == "7"
    assert answer.json()["parameters"] == {"source": "model"}
    assert system.inference.request("GET", f"/v2/models/{known}").json()["versions"] == ["1"]
    for path, member in (("health/live", "live"), ("health/ready", "ready"), (f"models/{known}/ready", "ready")):
        assert system.inference.request("GET", f"/v2/{path}").json()[member] is True


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v2/models/{unknown}", None, 404),
        ("GET", "/v2/models/{known}/versions/99", None, 404),
        ("GET", "/v2/nothing", None, 404),
        ("DELETE", "/v2/models/{known}", None, 405),
        ("POST", "/v2/models/{known}/infer", {"inputs": []}, 400),
        ("POST", "/v2/models/{known}/infer", {"inputs": [{"name": "value", "shape": [1], "datatype": "BYTES"}]}, 400),
    ],
)
def test_its_errors_have_its_form(
    system: System, known: str, method: str, path: str, body: dict[str, Any] | None, status: int
) -> None:
    path = path.format(known=known, unknown=unique("nobody"))
    answer = system.inference.request(method, path, json=body)
    assert answer.status_code == status, answer.text
    assert answer.json().keys() == {"error"}
    assert isinstance(answer.json()["error"], str)
    assert answer.headers["X-Request-ID"]


def test_models_and_series_are_plotted(system: System, known: str) -> None:
    data = points(2000, seed=22, spikes=4)
    for method, body in (("GET", None), ("POST", {"data": data})):
        picture = system.inference.request(method, f"/plot/{known}", json=body)
        assert picture.status_code == 200, picture.text
        assert picture.headers["content-type"] == "image/svg+xml"
        root = ElementTree.fromstring(picture.content)
        assert known in "".join(root.itertext())
        page = system.inference.request(method, f"/plot/{known}?format=html", json=body)
        assert page.headers["content-type"].startswith("text/html")
        assert "<svg" in page.text
        pixels = system.inference.request(method, f"/plot/{known}?format=png", json=body)
        assert pixels.headers["content-type"] == "image/png"
        assert pixels.content.startswith(b"\x89PNG")
        print(f"{method} as PNG: {pixels.elapsed.total_seconds():.2f} s")
    assert "anomalies in 2000 points" in picture.text


def test_the_documentation_comes_from_the_service_alone(system: System) -> None:
    for endpoint in (system.inference, system.training):
        page = endpoint.request("GET", "/docs").text
        for path in re.findall(r'(?:src|href)="([^"]+)"', page):
            assert path.startswith("/")
            assert endpoint.request("GET", path).status_code == 200, path


def drift_events(system: System) -> int:
    """How many drift events wait for somebody to consume them."""
    words = (
        "rabbitmqctl",
        "--quiet",
        "list_queues",
        "--vhost",
        "ml-training",
        "name",
        "messages",
        "--formatter",
        "json",
    )
    listed = system.namespace.kubectl("exec", "rabbitmq-0", "--container", "rabbitmq", "--", *words).stdout
    return int({queue["name"]: queue["messages"] for queue in json.loads(listed)}["drift-detected"])


def test_drift_is_seen(system: System, series: str) -> None:
    system.model(series, seed=23)
    events = drift_events(system)

    def drift_after(data: list[dict[str, float]], state: str) -> None:
        """Replicas keep count each for itself: ask until one has seen enough."""

        def seen() -> bool:
            answer = system.inference.request("POST", f"/predict/{series}/batch", json={"data": data})
            assert answer.status_code == 200, answer.text
            found = system.inference.request("GET", f"/drift/{series}").json()
            assert found["state"] == state, found
            return True

        wait_for(seen, f"drift of {series} to be {state}", 60)

    drift_after(points(1000, seed=24), "stable")
    drift_after([{**point, "value": point["value"] * 3 + 2} for point in points(3000, seed=25)], "major")

    def told() -> bool:
        assert drift_events(system) > events
        return True

    wait_for(told, "the event of the drift", 30)
    largest = system.inference.request("GET", "/drift?limit=1000").json()["largest"]
    assert series in {each["series_id"] for each in largest}
    metrics = system.inference.request("GET", "/metrics").text
    assert re.search(r'model_drift_models\{.*state="major"} [1-9]', metrics)
    assert series not in metrics


def test_models_answer_when_everything_they_came_from_is_away(system: System, series: str) -> None:
    """Those in memory, and after the end of the replica those on its disk."""
    system.model(series, seed=26)
    before = system.predict(series, PROBE).json()
    away = {
        "mlflow-server": "deployment/mlflow-server",
        "minio-mlflow": "statefulset/minio-mlflow",
        "postgresql-mlflow": "statefulset/postgresql-mlflow",
    }
    try:
        for component, owner in away.items():
            system.namespace.kubectl("scale", owner, "--replicas=0")
            wait_for(
                lambda component=component: not system.namespace.running_pods(COMPONENTS[component]),  # type: ignore[misc]
                f"{component} to end",
                120,
            )
        assert system.predict(series, PROBE).json() == before
        system.end_replicas()

        def from_disk() -> bool:
            answer = system.predict(series, PROBE)
            assert answer.status_code == 200, f"{answer.status_code} {answer.text}"
            assert answer.json() == before
            cache = system.inference.request("GET", "/cache").json()
            assert cache["disk"]["hits"] > 0, "the old replica has answered"
            assert cache["stale_answers"] > 0, "nobody sees that the model may be outdated"
            return True

        wait_for(from_disk, f"the model of {series} to answer from the disk", 120)
        unknown = system.inference.request("POST", f"/predict/{unique('nobody')}", json=PROBE)
        assert unknown.status_code == 503
        assert unknown.headers["Retry-After"]
    finally:
        for owner in reversed(away.values()):
            system.namespace.kubectl("scale", owner, "--replicas=1")
        for component in reversed(away):
            system.pod(component)
    # And on it goes, without a restart.
    system.model(unique("after"))


def test_a_new_version_answers_soon_after_its_event(system: System, series: str) -> None:
    system.model(series, seed=60)
    job = system.succeeded(system.fit(series, points(1000, seed=61)))
    system.served(series, job["model_version"])
    done = datetime.now(UTC)
    seconds = (done - datetime.fromisoformat(job["finished_at"])).total_seconds()
    print(f"version 2 was seen to answer {seconds:.2f} s after the end of its job")
    health = system.inference.request("GET", "/health").json()
    assert health["dependencies"].keys() == {"mlflow", "object-store", "broker"}
    for dependency in health["dependencies"].values():
        assert dependency["status"] == "up"
        assert dependency["latency_ms"] >= 0
