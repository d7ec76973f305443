"""An inference service on a registry and a store whose failures the tests decide."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs

import httpx

from anomaly_detection.errors import DependencyUnavailableError
from anomaly_detection.object_store import ObjectNotFoundError, ObjectStore
from anomaly_detection.settings import MlflowSettings
from anomaly_detector.api import Service, build_service, create_app
from anomaly_detector.peers import Peers
from anomaly_detector.registry import Registry
from anomaly_detector.settings import InferenceSettings
from anomaly_detector.warm import Replica, WarmPredictionMiddleware

SETTINGS = InferenceSettings(
    model_cache_ttl_seconds=100,
    model_cache_ttl_jitter=0,
    model_cache_negative_seconds=2,
    circuit_breaker_failures=3,
    circuit_breaker_retry_seconds=30,
    max_body_bytes=200_000,
    batch_max_points=1000,
)


@dataclass
class Store:
    """Objects in memory; counts reads, and can be away or slow."""

    objects: dict[str, bytes] = field(default_factory=dict)
    away: bool = False
    gate: asyncio.Event | None = None
    waiting: asyncio.Event = field(default_factory=asyncio.Event)
    reads: int = 0

    async def get(self, key: str) -> bytes:
        self.reads += 1
        if self.gate:
            self.waiting.set()
            await self.gate.wait()
        await self.check()
        if key not in self.objects:
            raise ObjectNotFoundError(key)
        return self.objects[key]

    async def check(self) -> None:
        if self.away:
            raise DependencyUnavailableError("object-store")


@dataclass
class Mlflow:
    """The registry's REST routes as MLflow 3 answers them."""

    versions: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    production: dict[str, int] = field(default_factory=dict)  # where it is not the latest version
    away: bool = False
    requests: int = 0

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        if self.away:
            raise httpx.ConnectError("refused", request=request)
        if request.url.path == "/health":
            return httpx.Response(200, text="OK")
        query = {name: values[0] for name, values in parse_qs(request.url.query.decode()).items()}
        versions = self.versions.get(query["name"].removeprefix("model_od_"))
        if versions is None:
            return httpx.Response(404, json={"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "not found"})
        if request.url.path.endswith("/registered-models/get"):
            return httpx.Response(200, json={"registered_model": {"name": query["name"]}})
        if "version" not in query and not versions:
            return httpx.Response(400, json={"error_code": "INVALID_PARAMETER_VALUE", "message": "alias not found"})
        latest = self.production.get(query["name"].removeprefix("model_od_"), len(versions))
        number = int(query.get("version", latest))
        if number > len(versions):
            return httpx.Response(404, json={"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "not found"})
        tags = [{"key": key, "value": value} for key, value in versions[number - 1].items()]
        return httpx.Response(200, json={"model_version": {"version": str(number), "tags": tags}})


@dataclass
class World:
    """A service and everything around it."""

    mlflow: Mlflow
    store: Store
    service: Service
    client: httpx.AsyncClient
    app: Any
    time: float = 0.0

    def publish(self, series_id: str, blob: bytes, **tags: str) -> None:
        """Register a version, in production at once."""
        versions = self.mlflow.versions.setdefault(series_id, [])
        key = f"{series_id}/{len(versions) + 1}/model.ads"
        self.store.objects[key] = blob
        versions.append({"blob_key": key, "blob_sha256": hashlib.sha256(blob).hexdigest(), **tags})

    async def predict(self, series_id: str, value: float = 0.1, version: object = None) -> httpx.Response:
        """Ask for one point."""
        query = {} if version is None else {"version": str(version)}
        return await self.client.post(
            f"/predict/{series_id}", json={"timestamp": 1700000000, "value": value}, params=query
        )

    async def settle(self) -> None:
        """Let the loads in the background end."""
        loads = [load.task for load in self.service.cache._loads.values()]
        await asyncio.gather(*loads, return_exceptions=True)


@asynccontextmanager
async def replica(
    mlflow: Mlflow, store: Store, settings: InferenceSettings, peers: Peers | None = None
) -> AsyncIterator[World]:
    """A replica that has just started; without `peers` it is alone."""
    registry = Registry(MlflowSettings(tracking_uri="http://mlflow"), httpx.MockTransport(mlflow.answer))
    found: list[World] = []
    peers = peers or Peers("alone", Path("/nonexistent/haproxy.cfg"), settings.haproxy_url)
    service = build_service(settings, registry, cast(ObjectStore, store), peers, clock=lambda: found[0].time)

    @asynccontextmanager
    async def opened() -> AsyncIterator[Service]:
        yield service

    app = create_app(opened)
    transport = httpx.ASGITransport(WarmPredictionMiddleware(app, Replica("alone", app)))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://inference") as client,
    ):
        found.append(World(mlflow, store, service, client, app))
        yield found[0]
    await peers.close()
    await registry.close()


def code(response: httpx.Response) -> tuple[int, str]:
    """Status and code of an error in the documented envelope."""
    body = response.json()
    assert body["status"] == "error"
    assert body["metadata"]["request_id"] == response.headers["x-request-id"]
    assert datetime.fromisoformat(body["metadata"]["timestamp"]).tzinfo is not None
    assert isinstance(body["error"]["details"], list)
    return response.status_code, body["error"]["code"]
