"""The inference service through its routes, on a registry and a store whose failures the tests decide."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from aio_pika import Message
from pydantic import SecretStr
from unit.inference_world import World, code

from anomaly_detection.contracts import DriftDetected, TrainingCompleted
from anomaly_detection.errors import DependencyUnavailableError
from anomaly_detection.scoring import ScoringModel
from anomaly_detection.settings import BrokerSettings
from anomaly_detector import open_inference
from anomaly_detector.breaker import BreakerState
from anomaly_detector.events import CompletionEvents


async def test_single_prediction(world: World, blobs: list[bytes]) -> None:
    world.publish("a", blobs[0])
    model = ScoringModel.from_bytes(blobs[0])
    response = await world.client.post(
        "/predict/a", json={"timestamp": 1700000000, "value": 50}, headers={"X-Request-ID": "mine-1"}
    )
    assert response.status_code == 200
    assert response.headers["x-request-id"] == "mine-1"
    assert response.json() == {
        "series_id": "a",
        "timestamp": 1700000000,
        "value": 50,
        "anomaly_score": model.score_one(50),
        "threshold": model.threshold,
        "is_anomaly": True,
        "model_version": 1,
        "source": "model",
    }
    assert (await world.predict("a", 0.1)).json()["is_anomaly"] is False
    assert world.store.reads == 1


async def test_batch_keeps_order_and_agrees_with_single_predictions(world: World, blobs: list[bytes]) -> None:
    world.publish("a", blobs[0])
    values = [0.1, 50.0, -50.0, 1, 0.5]
    data = [{"timestamp": 1700000000 + i, "value": value} for i, value in enumerate(values)]
    body = (await world.client.post("/predict/a/batch", json={"data": data})).json()
    singles = [(await world.predict("a", value)).json() for value in values]
    assert [(p["timestamp"], p["value"]) for p in body["predictions"]] == [(p["timestamp"], p["value"]) for p in data]
    for name in ("anomaly_score", "is_anomaly"):
        assert [p[name] for p in body["predictions"]] == [single[name] for single in singles]
    assert (body["series_id"], body["model_version"], body["source"]) == ("a", 1, "model")
    assert body["threshold"] == singles[0]["threshold"]


async def test_many_series_in_one_request(world: World, blobs: list[bytes]) -> None:
    world.publish("a", blobs[0])
    world.publish("b", blobs[1])
    point = {"timestamp": 1, "value": 100}
    body = {"series": {"a": point, "b": {"data": [point]}, "unknown": point, "not an id": point, "c": {"value": 1}}}
    response = await world.client.post("/predict", json=body)
    assert response.status_code == 200
    results = response.json()["results"]
    assert list(results) == list(body["series"])
    assert results["a"]["is_anomaly"] is True
    assert results["b"]["predictions"][0]["is_anomaly"] is False
    errors = {name: result["error"]["code"] for name, result in results.items() if "error" in result}
    assert errors == {"unknown": "MODEL_NOT_FOUND", "not an id": "INVALID_INPUT", "c": "INVALID_INPUT"}


async def test_version_is_pinned(world: World, blobs: list[bytes]) -> None:
    for blob in blobs[:2]:
        world.publish("a", blob)
    assert (await world.predict("a", 100)).json()["model_version"] == 2
    pinned = (await world.predict("a", 100, version=1)).json()
    assert (pinned["model_version"], pinned["is_anomaly"]) == (1, True)
    batch = await world.client.post("/predict/a/batch?version=1", json={"data": [{"timestamp": 1, "value": 1}]})
    assert batch.json()["model_version"] == 1


@pytest.mark.parametrize(
    ("series_id", "version", "expected"),
    [
        ("unknown", None, (404, "MODEL_NOT_FOUND")),
        ("unknown", 1, (404, "MODEL_NOT_FOUND")),
        ("no_alias", None, (404, "MODEL_NOT_FOUND")),
        ("a", 7, (404, "INVALID_VERSION")),
        ("a", "latest", (422, "INVALID_VERSION")),
        ("a", "0", (422, "INVALID_VERSION")),
        ("a", "-1", (422, "INVALID_VERSION")),
        ("a", "", (422, "INVALID_VERSION")),
        ("foreign", None, (404, "MODEL_NOT_FOUND")),
        ("with-dash", None, (422, "INVALID_INPUT")),
        ("x" * 129, None, (422, "INVALID_INPUT")),
    ],
)
async def test_series_and_versions_that_are_not_there(
    world: World, blobs: list[bytes], series_id: str, version: object, expected: tuple[int, str]
) -> None:
    world.publish("a", blobs[0])
    world.mlflow.versions["no_alias"] = []
    world.mlflow.versions["foreign"] = [{"made_by": "somebody else"}]
    assert code(await world.predict(series_id, version=version)) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", "INVALID_INPUT"),
        (b"{", "INVALID_INPUT"),
        (b"[]", "INVALID_INPUT"),
        (b"null", "INVALID_INPUT"),
        (b'{"value": 1}', "INVALID_INPUT"),
        (b'{"timestamp": 1}', "INVALID_INPUT"),
        (b'{"timestamp": 1, "value": "1"}', "INVALID_INPUT"),
        (b'{"timestamp": 1, "value": true}', "INVALID_INPUT"),
        (b'{"timestamp": 1, "value": null}', "INVALID_INPUT"),
        (b'{"timestamp": 1, "value": NaN}', "INVALID_INPUT"),
        (b'{"timestamp": 1, "value": 1e39}', "INVALID_INPUT"),
        (b'{"timestamp": 1, "value": 1e400}', "INVALID_INPUT"),
        (b'{"timestamp": 1, "value": 1, "unit": "g"}', "INVALID_INPUT"),
        (b'{"timestamp": "2026-01-01", "value": 1}', "INVALID_TIMESTAMP"),
        (b'{"timestamp": -1, "value": 1}', "INVALID_TIMESTAMP"),
        (b'{"timestamp": 1700000000000, "value": 1}', "INVALID_TIMESTAMP"),
    ],
)
async def test_bad_points(world: World, blobs: list[bytes], body: bytes, expected: str) -> None:
    world.publish("a", blobs[0])
    assert code(await world.client.post("/predict/a", content=body)) == (422, expected)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"data": []}, "INSUFFICIENT_DATA"),
        ({"data": {}}, "INVALID_INPUT"),
        ({}, "INVALID_INPUT"),
        ({"data": [{"timestamp": 1, "value": 1}], "more": 1}, "INVALID_INPUT"),
        ({"data": [{"timestamp": 1, "value": 1}, {"timestamp": 2, "value": "x"}]}, "INVALID_INPUT"),
        ({"data": [{"timestamp": 2, "value": 1}, {"timestamp": 2, "value": 1}]}, "INVALID_TIMESTAMP"),
        ({"data": [{"timestamp": i, "value": 1} for i in range(1001)]}, "INVALID_INPUT"),
    ],
)
async def test_bad_batches(world: World, blobs: list[bytes], body: Any, expected: str) -> None:
    world.publish("a", blobs[0])
    assert code(await world.client.post("/predict/a/batch", json=body)) == (422, expected)


async def test_bad_requests_for_many_series(world: World) -> None:
    points = [{"timestamp": i, "value": 1} for i in range(600)]
    bodies: list[Any] = [[], {"series": {}}, {"series": []}, {"series": {"a": {"data": points}, "b": {"data": points}}}]
    for body in bodies:
        assert code(await world.client.post("/predict", json=body)) == (422, "INVALID_INPUT")


async def test_large_body_is_refused(world: World) -> None:
    assert code(await world.client.post("/predict/a/batch", content=b" " * 200_001)) == (413, "PAYLOAD_TOO_LARGE")


async def test_unknown_route_and_method(world: World) -> None:
    assert code(await world.client.get("/nothing")) == (404, "NOT_FOUND")
    assert code(await world.client.get("/predict/a")) == (405, "METHOD_NOT_ALLOWED")


async def test_one_load_however_many_ask(world: World, blobs: list[bytes]) -> None:
    world.publish("a", blobs[0])
    world.publish("b", blobs[1])
    world.store.gate = asyncio.Event()
    requests = [asyncio.create_task(world.predict("a")) for _ in range(50)]
    await world.store.waiting.wait()
    requests[0].cancel()  # the first goes away; the load is not its own
    world.store.gate.set()
    responses = await asyncio.gather(*requests[1:])
    assert {response.status_code for response in responses} == {200}
    assert world.store.reads == 1


async def test_a_slow_load_holds_up_no_other_series(world: World, blobs: list[bytes]) -> None:
    world.publish("a", blobs[0])
    world.publish("b", blobs[1])
    await world.predict("b")
    world.store.gate = asyncio.Event()
    slow = asyncio.create_task(world.predict("a"))
    await world.store.waiting.wait()
    assert (await world.predict("b")).status_code == 200
    assert not slow.done()
    world.store.gate.set()
    assert (await slow).status_code == 200


async def test_absence_is_remembered_briefly(world: World, blobs: list[bytes]) -> None:
    await world.predict("a")
    asked = world.mlflow.requests
    world.publish("a", blobs[0])
    world.time = 1.9
    assert code(await world.predict("a")) == (404, "MODEL_NOT_FOUND")
    assert world.mlflow.requests == asked
    world.time = 2.1
    assert (await world.predict("a")).status_code == 200


def completed(series_id: str) -> bytes:
    """The event of a finished training."""
    event = TrainingCompleted(
        job_id=uuid4(), series_id=series_id, model_version=1, sequence=1, request_id="r", finished_at=datetime.now(UTC)
    )
    return event.model_dump_json().encode()


@pytest.fixture
def events(world: World) -> CompletionEvents:
    broker = BrokerSettings(host="nowhere", user="serving", password=SecretStr("unused"))
    return CompletionEvents(broker, world.service.cache, world.service.drift)


async def test_event_brings_the_new_version(world: World, blobs: list[bytes], events: CompletionEvents) -> None:
    world.publish("a", blobs[0])
    await world.predict("a")
    world.publish("a", blobs[1])
    assert (await world.predict("a")).json()["model_version"] == 1
    events.apply(completed("a"))
    await world.settle()
    reads = world.store.reads
    assert (await world.predict("a")).json()["model_version"] == 2
    assert world.store.reads == reads, "the event has loaded it already"


async def test_event_of_a_roll_back_brings_the_version_that_is_in_production_now(
    world: World, blobs: list[bytes], events: CompletionEvents
) -> None:
    """Versions are not compared: what counts is where the alias points."""
    for blob in blobs[:2]:
        world.publish("a", blob)
    before = (await world.predict("a", 100)).json()
    assert (before["model_version"], before["is_anomaly"]) == (2, False)
    world.mlflow.production["a"] = 1
    events.apply(completed("a"))
    await world.settle()
    after = (await world.predict("a", 100)).json()
    assert (after["model_version"], after["is_anomaly"]) == (1, True)


async def test_event_of_a_deletion_ends_the_model_in_memory_and_on_the_disk(
    world: World, blobs: list[bytes], events: CompletionEvents
) -> None:
    world.publish("a", blobs[0])
    await world.predict("a")
    del world.mlflow.versions["a"]
    events.apply(completed("a"))
    await world.settle()
    assert not list(world.service.settings.model_disk_directory.iterdir())
    assert code(await world.predict("a")) == (404, "MODEL_NOT_FOUND")


async def test_event_while_the_registry_is_away_is_made_up_for(
    world: World, blobs: list[bytes], events: CompletionEvents
) -> None:
    """Otherwise the old version would be served until its TTL ends."""
    world.publish("a", blobs[0])
    await world.predict("a")
    world.publish("a", blobs[1])
    world.mlflow.away = True
    events.apply(completed("a"))
    await world.settle()
    assert (await world.predict("a")).json()["model_version"] == 1
    assert world.service.cache.statistics.stale_answers == 1
    world.mlflow.away = False
    world.time = 31
    assert (await world.predict("a")).json()["model_version"] == 2


async def test_event_ends_the_memory_of_absence(world: World, blobs: list[bytes], events: CompletionEvents) -> None:
    await world.predict("a")
    world.publish("a", blobs[0])
    events.apply(completed("a"))
    assert (await world.predict("a")).status_code == 200


async def test_event_during_a_load_is_not_lost(world: World, blobs: list[bytes], events: CompletionEvents) -> None:
    world.publish("a", blobs[0])
    world.store.gate = asyncio.Event()
    request = asyncio.create_task(world.predict("a"))
    await world.store.waiting.wait()
    world.publish("a", blobs[1])
    events.apply(completed("a"))
    world.store.gate.set()
    assert (await request).json()["model_version"] == 2


async def test_unreadable_and_foreign_events_are_left_out(
    world: World, blobs: list[bytes], events: CompletionEvents
) -> None:
    for body in (b"", b"{}", b'{"series_id": "../a"}'):
        events.apply(body)
    events.apply(completed("not_in_memory"))
    assert world.mlflow.requests == 0


async def test_missed_events_are_made_up_for(world: World, blobs: list[bytes]) -> None:
    """After a reconnection every model in production is asked for again; an unchanged one is not read again."""
    for series_id in ("a", "b"):
        world.publish(series_id, blobs[0])
        await world.predict(series_id)
    world.publish("a", blobs[1])
    world.service.cache.expire_all()
    assert (await world.predict("a")).json()["model_version"] == 2
    assert (await world.predict("b")).json()["model_version"] == 1
    assert world.store.reads == 3


async def test_ttl_bounds_the_age_of_a_model(world: World, blobs: list[bytes]) -> None:
    world.publish("a", blobs[0])
    await world.predict("a")
    world.publish("a", blobs[1])
    world.time = 99
    assert (await world.predict("a")).json()["model_version"] == 1
    world.time = 101
    assert (await world.predict("a")).json()["model_version"] == 2


async def test_expired_models_are_served_while_the_registry_is_away(world: World, blobs: list[bytes]) -> None:
    world.publish("a", blobs[0])
    await world.predict("a")
    world.publish("a", blobs[1])
    world.mlflow.away = True
    world.time = 101
    for _ in range(5):
        answer = (await world.predict("a")).json()
        assert (answer["model_version"], answer["source"]) == (1, "model")
    assert world.service.cache.statistics.load_failures == 1, "not tried again with every request"
    assert world.service.cache.statistics.stale_answers == 5
    assert (await world.client.get("/health")).json()["cache"]["stale_models"] == 1
    assert 'model_cache_stale_answers_total{replica="alone"} 5.0' in (await world.client.get("/metrics")).text
    world.mlflow.away = False
    world.time = 140
    assert (await world.predict("a")).json()["model_version"] == 2
    assert world.service.cache.stale_models == 0


async def test_expired_models_are_served_while_a_dependency_hangs(world: World, blobs: list[bytes]) -> None:
    """Nobody waits for an answer that may not come, and the new version is served as soon as it is there."""
    world.publish("a", blobs[0])
    await world.predict("a")
    world.publish("a", blobs[1])
    world.store.gate = asyncio.Event()
    world.time = 101
    assert [(await world.predict("a")).json()["model_version"] for _ in range(3)] == [1, 1, 1]
    assert world.service.cache.statistics.stale_answers == 3
    world.store.gate.set()
    await world.settle()
    assert (await world.predict("a")).json()["model_version"] == 2
    assert world.store.reads == 2, "one load, however often it was asked for"


async def test_fallback_answers_for_an_evicted_model(world: World, blobs: list[bytes]) -> None:
    world.publish("a", blobs[1])
    await world.predict("a")
    assert (await world.client.delete("/cache/a")).json() == {"series_id": "a", "evicted": 1, "unreachable": []}
    world.mlflow.away = world.store.away = True
    far, near = (await world.predict("a", 150)).json(), (await world.predict("a", 100)).json()
    assert (far["source"], far["is_anomaly"], far["threshold"], far["model_version"]) == ("fallback", True, 0.5, 1)
    assert (near["source"], near["is_anomaly"]) == ("fallback", False)
    assert 0 <= near["anomaly_score"] < 0.5 < far["anomaly_score"] <= 1
    batch = await world.client.post(
        "/predict/a/batch", json={"data": [{"timestamp": 1, "value": 100}, {"timestamp": 2, "value": 150}]}
    )
    assert batch.json()["source"] == "fallback"
    assert [p["is_anomaly"] for p in batch.json()["predictions"]] == [False, True]


async def test_fallback_from_the_registry_while_the_store_is_away(world: World, blobs: list[bytes]) -> None:
    world.publish("a", blobs[0], mean="10.0", std="2.0")
    world.store.away = True
    answer = (await world.predict("a", 16.5)).json()
    assert (answer["source"], answer["is_anomaly"], answer["model_version"]) == ("fallback", True, 1)


@pytest.mark.parametrize("damage", ["missing", "changed", "not a model"])
async def test_damaged_blobs_are_never_served(world: World, blobs: list[bytes], damage: str) -> None:
    world.publish("a", b"not a model" if damage == "not a model" else blobs[0])
    if damage == "missing":
        world.store.objects.clear()
    elif damage == "changed":
        world.store.objects["a/1/model.ads"] = blobs[1]
    assert code(await world.predict("a")) == (503, "SERVICE_UNAVAILABLE")
    states = {breaker.state for breaker in world.service.breakers}
    assert states == {BreakerState.CLOSED}, "the store itself is fine"


async def test_breaker_opens_and_recovers_by_itself(world: World, blobs: list[bytes]) -> None:
    world.publish("a", blobs[0])
    world.mlflow.away = True
    for _ in range(3):
        response = await world.predict("a")
        assert code(response) == (503, "SERVICE_UNAVAILABLE")
        assert int(response.headers["retry-after"]) > 0
    asked = world.mlflow.requests
    assert code(await world.predict("a")) == (503, "SERVICE_UNAVAILABLE")
    assert world.mlflow.requests == asked, "an open circuit asks nobody"
    world.mlflow.away = False
    assert (await world.predict("a")).status_code == 503
    world.time = 31
    assert (await world.predict("a")).status_code == 200
    assert world.service.breakers[0].state is BreakerState.CLOSED


async def test_half_open_breaker_lets_one_call_through(world: World, blobs: list[bytes]) -> None:
    world.publish("a", blobs[0])
    world.mlflow.away = True
    for _ in range(3):
        await world.predict("a")
    world.time = 31
    asked = world.mlflow.requests
    await asyncio.gather(*(world.predict(f"other_{i}") for i in range(10)))
    assert world.mlflow.requests == asked + 1
    assert world.service.breakers[0].state is BreakerState.OPEN


async def test_cache_is_bounded_by_bytes_least_recently_used_out_first(world: World, blobs: list[bytes]) -> None:
    size = ScoringModel.from_bytes(blobs[0]).nbytes
    world.service.cache.max_bytes = int(2.5 * size)
    for series_id in ("a", "b", "a", "c"):
        world.publish(series_id, blobs[0])
        await world.predict(series_id)
    entries = (await world.client.get("/cache")).json()["entries"]
    assert [entry["series_id"] for entry in entries] == ["c", "a"]
    assert world.service.cache.nbytes == 2 * size
    assert world.service.cache.statistics.evictions == 1


async def test_model_larger_than_the_cache_is_served(world: World, blobs: list[bytes]) -> None:
    world.service.cache.max_bytes = 10
    world.publish("a", blobs[0])
    assert (await world.predict("a")).status_code == 200
    assert (len(world.service.cache), world.service.cache.nbytes) == (0, 0)


async def test_cache_is_warmed(world: World, blobs: list[bytes]) -> None:
    world.publish("a", blobs[0])
    results = (await world.client.post("/cache/warm", json={"series": ["a", "unknown", "a"]})).json()["results"]
    assert results["a"] == {"model_version": 1, "replica": "alone"}
    assert results["unknown"]["error"]["code"] == "MODEL_NOT_FOUND"
    reads = world.store.reads
    await world.predict("a")
    assert world.store.reads == reads
    assert code(await world.client.post("/cache/warm", json={"series": [1]})) == (422, "INVALID_INPUT")


async def test_health_tells_a_broken_store_from_a_broken_server(world: World) -> None:
    assert (await world.client.get("/health/live")).json() == {"status": "alive"}
    ready = await world.client.get("/health/ready")
    assert (ready.status_code, ready.json()["status"]) == (200, "healthy")
    assert set(ready.json()["dependencies"]) == {"mlflow", "object-store"}


async def test_health_while_a_dependency_is_away(world: World) -> None:
    world.store.away = True
    ready, health = await world.client.get("/health/ready"), await world.client.get("/health")
    assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
    assert health.status_code == 503
    states = {name: state["status"] for name, state in health.json()["dependencies"].items()}
    assert states == {"mlflow": "up", "object-store": "down"}


async def test_metrics_have_no_series_in_their_labels(world: World, blobs: list[bytes]) -> None:
    world.publish("a_series", blobs[0])
    await world.predict("a_series")
    await world.client.get("/nowhere/at/all")
    text = (await world.client.get("/metrics")).text
    requests = 'http_requests_total{method="POST",replica="alone",route="/predict/{series_id}",status="200"} 1.0'
    assert requests in text
    assert 'model_cache_models{replica="alone"} 1.0' in text
    assert 'points_scored_total{replica="alone",source="model"} 1.0' in text
    assert 'circuit_state{dependency="mlflow",replica="alone",state="closed"} 1.0' in text
    assert "a_series" not in text
    assert "nowhere" not in text


async def test_document_describes_the_routes(world: World) -> None:
    document = (await world.client.get("/openapi.json")).json()
    assert {"/predict/{series_id}", "/predict/{series_id}/batch", "/predict", "/health", "/cache"} <= set(
        document["paths"]
    )
    single = document["paths"]["/predict/{series_id}"]["post"]
    assert set(single["requestBody"]["content"]["application/json"]["schema"]["required"]) == {"timestamp", "value"}


class BrokerConnection:
    """What `CompletionEvents` uses of an aio-pika connection, its channel and its queue."""

    def __init__(self) -> None:
        self.close_callbacks: set[Any] = set()
        self.consuming = asyncio.Event()
        self.published: list[tuple[str, bytes]] = []
        self.sent = asyncio.Event()

    async def __aenter__(self) -> BrokerConnection:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def channel(self, **_: object) -> BrokerConnection:
        return self

    async def declare_queue(self, *_: object, **__: object) -> BrokerConnection:
        return self

    async def bind(self, *_: object, **__: object) -> None:
        return None

    async def consume(self, *_: object, **__: object) -> None:
        self.consuming.set()

    async def get_exchange(self, *_: object, **__: object) -> BrokerConnection:
        return self

    async def publish(self, message: Message, routing_key: str, **_: object) -> None:
        self.published.append((routing_key, message.body))
        self.sent.set()


async def test_lost_connection_to_the_broker_is_noticed_and_replaced(
    world: World, blobs: list[bytes], events: CompletionEvents, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections = [BrokerConnection(), BrokerConnection()]
    remaining = iter(connections)

    async def connect(**_: object) -> BrokerConnection:
        return next(remaining)

    monkeypatch.setattr("anomaly_detector.events.aio_pika.connect", connect)
    monkeypatch.setattr("anomaly_detector.events._RECONNECT_SECONDS", 0)
    with pytest.raises(DependencyUnavailableError):
        await events.check()
    receiving = asyncio.create_task(events.run())
    await connections[0].consuming.wait()
    await events.check()
    world.publish("a", blobs[0])
    await world.predict("a")
    world.publish("a", blobs[1])  # its event gets lost with the connection
    for lost in connections[0].close_callbacks:
        lost(connections[0], ConnectionResetError())
    await connections[1].consuming.wait()
    await events.check()
    assert (await world.predict("a")).json()["model_version"] == 2
    receiving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await receiving


async def test_drift_events_go_out_over_the_connection(
    world: World, events: CompletionEvents, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = BrokerConnection()

    async def connect(**_: object) -> BrokerConnection:
        return connection

    monkeypatch.setattr("anomaly_detector.events.aio_pika.connect", connect)
    drift = world.service.drift
    drift.waiting.append(
        DriftDetected(
            series_id="a",
            model_version=1,
            population_stability_index=0.4,
            threshold=0.25,
            recent_points=600,
            replica="alone",
            detected_at=datetime.now(UTC),
        )
    )
    receiving = asyncio.create_task(events.run())
    async with asyncio.timeout(20):
        await connection.sent.wait()
    receiving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await receiving
    ((key, body),) = connection.published
    assert key == "drift.detected.a"
    assert DriftDetected.model_validate_json(body).model_version == 1


async def test_a_batch_in_parts_is_the_same_as_in_one(
    world: World, blobs: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anomaly_detector.predictor.ITEMS_AT_ONCE", 7)
    monkeypatch.setattr("anomaly_detector.turns.ITEMS_AT_ONCE", 7)
    world.publish("a", blobs[0])
    model = ScoringModel.from_bytes(blobs[0])
    for count in (1, 6, 7, 8, 20):
        data = [{"timestamp": i, "value": i / 5} for i in range(count)]
        single = (await world.client.post("/predict/a/batch", json={"data": data})).json()
        many = (await world.client.post("/predict", json={"series": {"a": {"data": data}}})).json()
        assert single == many["results"]["a"]
        assert [each["timestamp"] for each in single["predictions"]] == list(range(count))
        values = np.arange(count) / 5
        assert [each["anomaly_score"] for each in single["predictions"]] == model.score(values).tolist()
        for shape, numbers in (([count], values.tolist()), ([count, 1], values.reshape(-1, 1).tolist())):
            tensor = {"name": "value", "shape": shape, "datatype": "FP64", "data": numbers}
            inferred = (await world.client.post("/v2/models/a/infer", json={"inputs": [tensor]})).json()
            assert inferred["outputs"][0]["data"] == model.score(values).tolist()
            assert inferred["outputs"][1]["data"] == [each["is_anomaly"] for each in single["predictions"]]


@pytest.mark.parametrize(
    ("index", "point", "expected"),
    [
        (0, {"timestamp": 0, "value": "x"}, "INVALID_INPUT"),
        (13, {"timestamp": 13, "value": None}, "INVALID_INPUT"),
        (14, {"timestamp": 13, "value": 1}, "INVALID_TIMESTAMP"),  # the first of its part repeats the last of another
        (19, {"timestamp": 19}, "INVALID_INPUT"),
    ],
)
async def test_errors_of_a_batch_in_parts_count_from_its_start(
    world: World, blobs: list[bytes], monkeypatch: pytest.MonkeyPatch, index: int, point: object, expected: str
) -> None:
    monkeypatch.setattr("anomaly_detector.predictor.ITEMS_AT_ONCE", 7)
    monkeypatch.setattr("anomaly_detector.turns.ITEMS_AT_ONCE", 7)
    world.publish("a", blobs[0])
    data: list[object] = [{"timestamp": i, "value": i} for i in range(20)]
    data[index] = point
    response = await world.client.post("/predict/a/batch", json={"data": data})
    assert code(response) == (422, expected)
    assert [each["index"] for each in response.json()["error"]["details"]] == [index]
    if expected == "INVALID_INPUT":
        numbers: list[object] = list(range(20))
        numbers[index] = "x"
        tensor = {"name": "value", "shape": [20], "datatype": "FP64", "data": numbers}
        inferred = await world.client.post("/v2/models/a/infer", json={"inputs": [tensor]})
        assert inferred.status_code == 400
        assert f"index {index} " in inferred.json()["error"]


@pytest.mark.parametrize("rows", [[[1.0], 2.0], [[1.0], [2.0, 3.0]], [1.0, [2.0]], [[1.0], []]])
async def test_a_column_is_one_number_a_row(world: World, blobs: list[bytes], rows: list[object]) -> None:
    world.publish("a", blobs[0])
    tensor = {"name": "value", "shape": [len(rows), 1], "datatype": "FP64", "data": rows}
    assert (await world.client.post("/v2/models/a/infer", json={"inputs": [tensor]})).status_code == 400


@pytest.mark.parametrize("path", ["/predict/s0/batch", "/v2/models/s0/infer", "/predict", "/predict many"])
async def test_a_large_request_lets_others_on(
    world: World, blobs: list[bytes], monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """Counted in turns of the event loop, which do not depend on how busy the machine is."""
    monkeypatch.setattr("anomaly_detector.turns._TURN_SECONDS", 0.0)
    monkeypatch.setattr("anomaly_detector.turns.ITEMS_AT_ONCE", 50)
    monkeypatch.setattr("anomaly_detector.predictor.ITEMS_AT_ONCE", 50)
    for i in range(100):
        world.publish(f"s{i}", blobs[0])
        await world.service.cache.get(f"s{i}", None)
    data = [{"timestamp": i, "value": 0.5} for i in range(1000)]
    tensor = {"name": "value", "shape": [1000], "datatype": "FP64", "data": [0.5] * 1000}
    predictor = world.service.predictor
    work: dict[str, Callable[[], Awaitable[object]]] = {
        "/predict/s0/batch": lambda: predictor.predict_batch("s0", None, data),
        "/v2/models/s0/infer": lambda: open_inference._values(tensor, predictor),
        "/predict": lambda: predictor.predict_many({"s0": {"data": data}}),
        "/predict many": lambda: predictor.predict_many({f"s{i}": {"data": data[:10]} for i in range(100)}),
    }
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(others())
    await work[path]()
    counting.cancel()
    assert turns >= 1000 / 50 - 1
