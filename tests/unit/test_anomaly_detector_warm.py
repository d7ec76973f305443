"""The short way of single predictions answers what the long way answers, and leaves it the rest."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from unit.inference_world import SETTINGS, Mlflow, Store, World, replica

from anomaly_detection.contracts import DetectorParameters
from anomaly_detection.logging import configure_logging
from anomaly_detection.scoring import fit_isolation_forest
from anomaly_detector.predictor import Predictor

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def blob() -> bytes:
    values = np.sin(np.arange(500) / 7.0)
    return fit_isolation_forest(values, DetectorParameters(n_estimators=10))[1].to_bytes()


@pytest.fixture
async def world(blob: bytes) -> AsyncIterator[World]:
    async with replica(Mlflow(), Store(), SETTINGS) as found:
        found.publish("warm", blob)
        found.publish("cold", blob)
        assert (await found.predict("warm")).status_code == 200
        yield found


@pytest.fixture
def long_way(world: World, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The series that went the long way."""
    asked: list[str] = []
    original = Predictor.predict_one

    async def noted(self: Predictor, series_id: str, version: int | None, point: Any) -> dict[str, Any]:
        asked.append(series_id)
        return await original(self, series_id, version, point)

    monkeypatch.setattr(Predictor, "predict_one", noted)
    return asked


async def test_a_warm_model_answers_as_the_framework_does(world: World, long_way: list[str]) -> None:
    for value in (-9.5, 0.0, 0.25, 3):
        short = await world.client.post("/predict/warm", json={"timestamp": 1700000000, "value": value})
        assert not long_way
        # Any query sends a request the long way.
        long = await world.client.post("/predict/warm?x=1", json={"timestamp": 1700000000, "value": value})
        assert long_way.pop() == "warm"
        assert short.status_code == long.status_code == 200
        assert short.content == long.content
        assert short.headers["content-type"] == long.headers["content-type"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 422),
        (b"", 422),
        (b'{"timestamp": 1700000000}', 422),
        (b'{"timestamp": 1700000000, "value": "1"}', 422),
        (b'{"timestamp": 1700000000, "value": 1, "more": 1}', 422),
        (b'{"timestamp": 1700000000, "value": 1}' + b" " * 5000, 200),
        (b" " * (SETTINGS.max_body_bytes + 1), 413),
    ],
)
async def test_what_it_does_not_answer_arrives_whole(world: World, body: bytes, status: int) -> None:
    answer = await world.client.post("/predict/warm", content=body)
    assert answer.status_code == status, answer.text


async def test_cold_and_unknown_series_go_the_long_way(world: World, long_way: list[str]) -> None:
    assert (await world.predict("cold")).status_code == 200
    assert (await world.predict("unknown")).status_code == 404
    assert (await world.predict("not-one")).status_code == 422
    assert long_way == ["cold", "unknown"]


async def test_identity_metrics_and_hits_are_counted(world: World, long_way: list[str]) -> None:
    hits = world.service.cache.statistics.hits
    headers = {"X-Request-ID": "mine-1"}
    answer = await world.client.post("/predict/warm", json={"timestamp": 1, "value": 0.1}, headers=headers)
    assert not long_way
    assert answer.headers.get_list("x-request-id") == ["mine-1"]
    assert answer.headers.get_list("x-replica") == ["alone"]
    assert world.service.cache.statistics.hits == hits + 1
    metrics = (await world.client.get("/metrics")).text
    assert 'http_requests_total{method="POST",replica="alone",route="/predict/{series_id}",status="200"} 2.0' in metrics


async def test_each_request_leaves_its_line(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        configure_logging("ray-serve", "INFO")
        for number in range(3):
            body = {"timestamp": 1, "value": 0.1}
            await world.client.post("/predict/warm", json=body, headers={"X-Request-ID": f"line-{number}"})
        await asyncio.sleep(0.15)
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        mine = [line for line in lines if line.get("path") == "/predict/warm"]
        assert [line["request_id"] for line in mine] == ["line-0", "line-1", "line-2"]
        assert mine[0].keys() == {
            *("timestamp", "level", "logger", "message", "service"),
            *("request_id", "method", "path", "status", "milliseconds"),
        }
        assert (mine[0]["service"], mine[0]["level"], mine[0]["status"]) == ("ray-serve", "INFO", 200)
        configure_logging("ray-serve", "WARNING")
        await world.client.post("/predict/warm", json={"timestamp": 1, "value": 0.1})
        await asyncio.sleep(0.15)
        assert not capsys.readouterr().out
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
