"""The routes of the inference service, independent of what serves them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response

from anomaly_detection.broker import NAME as BROKER
from anomaly_detection.errors import (
    AppError,
    DependencyUnavailableError,
    ErrorCode,
    ErrorEnvelope,
    install_error_handlers,
)
from anomaly_detection.http import RequestMiddleware
from anomaly_detection.object_store import NAME as OBJECT_STORE
from anomaly_detection.object_store import ObjectStore
from anomaly_detection.settings import BrokerSettings, MlflowSettings, ObjectStoreSettings
from anomaly_detector.breaker import CircuitBreaker
from anomaly_detector.cache import ModelCache
from anomaly_detector.events import CompletionEvents
from anomaly_detector.loader import ModelLoader
from anomaly_detector.metrics import Metrics
from anomaly_detector.predictor import Predictor, check_series_id, parse_version
from anomaly_detector.registry import NAME as REGISTRY
from anomaly_detector.registry import Registry
from anomaly_detector.schemas import (
    BatchPrediction,
    BatchRequest,
    ManyPredictions,
    ManyRequest,
    PointRequest,
    Prediction,
    WarmRequest,
)
from anomaly_detector.settings import InferenceSettings

_JSON = "application/json"
_HEALTH_SECONDS = 1.0  # answers of dependencies are shared by the probes that come within this time


@dataclass(frozen=True)
class Service:
    """The parts of a running service.

    Attributes:
        settings: of the service.
        cache: models in memory.
        predictor: scores points.
        breakers: of the dependencies that requests wait for.
        checks: by dependency, what returns if it answers and else raises DependencyUnavailableError.
    """

    settings: InferenceSettings
    cache: ModelCache
    predictor: Predictor
    breakers: tuple[CircuitBreaker, ...]
    checks: dict[str, Callable[[], Awaitable[None]]]


def build_service(
    settings: InferenceSettings,
    registry: Registry,
    store: ObjectStore,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> Service:
    """Put the parts together; `clock` gives monotonic seconds."""
    registry_breaker, store_breaker = (
        CircuitBreaker(
            name,
            failures=settings.circuit_breaker_failures,
            retry_seconds=settings.circuit_breaker_retry_seconds,
            clock=clock,
        )
        for name in (REGISTRY, OBJECT_STORE)
    )
    loader = ModelLoader(registry, registry_breaker, store, store_breaker)
    cache = ModelCache(
        loader=loader,
        max_bytes=settings.model_cache_max_bytes,
        ttl_seconds=settings.model_cache_ttl_seconds,
        ttl_jitter=settings.model_cache_ttl_jitter,
        negative_seconds=settings.model_cache_negative_seconds,
        retry_seconds=settings.circuit_breaker_retry_seconds,
        clock=clock,
    )
    return Service(
        settings=settings,
        cache=cache,
        predictor=Predictor(cache, loader, settings.batch_max_points),
        breakers=(registry_breaker, store_breaker),
        checks={REGISTRY: registry.check, OBJECT_STORE: store.check},
    )


@asynccontextmanager
async def connected_service() -> AsyncIterator[Service]:
    """A service with its real dependencies, as the environment names them. It starts without any of them."""
    registry = Registry(MlflowSettings())
    service = build_service(InferenceSettings(), registry, ObjectStore(ObjectStoreSettings()))
    events = CompletionEvents(BrokerSettings(), service.cache)
    service.checks[BROKER] = events.check
    receiving = asyncio.create_task(events.run(), name="events")
    try:
        yield service
    finally:
        receiving.cancel()
        with suppress(asyncio.CancelledError):
            await receiving
        await service.cache.close()
        await registry.close()


def create_app(
    open_service: Callable[[], Any] = connected_service,
) -> FastAPI:
    """The application.

    Args:
        open_service: gives an asynchronous context manager of the `Service` that the application runs on.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_service() as service:
            app.state.service = service
            yield

    metrics = Metrics()
    app = FastAPI(
        title="Anomaly detection: inference",
        version="1",
        description="Scores lie in (0, 1]; higher is more anomalous. `is_anomaly` means `anomaly_score > threshold`.",
        lifespan=lifespan,
        responses={"4XX": {"model": ErrorEnvelope}, "5XX": {"model": ErrorEnvelope}},
    )
    app.add_middleware(RequestMiddleware, observe=metrics.observe)
    install_error_handlers(app)
    _add_prediction_routes(app)
    _add_cache_routes(app)
    _add_health_routes(app, metrics)
    return app


def _add_prediction_routes(app: FastAPI) -> None:
    # The routes read their bodies themselves: validation by Pydantic would take longer than the scoring. The models of
    # `schemas` document what they read and answer.
    @app.post("/predict/{series_id}", response_model=Prediction, openapi_extra=_body(PointRequest), tags=["predict"])
    async def predict_one(series_id: str, request: Request, version: str | None = None) -> Response:
        """Score one point of a series."""
        check_series_id(series_id)
        service = _service(request)
        point = await _read_json(request, service.settings.max_body_bytes)
        return _json(await service.predictor.predict_one(series_id, parse_version(version), point))

    @app.post(
        "/predict/{series_id}/batch",
        response_model=BatchPrediction,
        openapi_extra=_body(BatchRequest),
        tags=["predict"],
    )
    async def predict_batch(series_id: str, request: Request, version: str | None = None) -> Response:
        """Score points of a series, with increasing timestamps; the answer has their order."""
        check_series_id(series_id)
        service = _service(request)
        data = _only_member("data", await _read_json(request, service.settings.max_body_bytes))
        return _json(await service.predictor.predict_batch(series_id, parse_version(version), data))

    @app.post("/predict", response_model=ManyPredictions, openapi_extra=_body(ManyRequest), tags=["predict"])
    async def predict_many(request: Request) -> Response:
        """Score points of many series; a series that cannot be scored has an `error` in its place."""
        service = _service(request)
        bodies = _only_member("series", await _read_json(request, service.settings.max_body_bytes))
        return _json({"results": await service.predictor.predict_many(bodies)})


def _add_cache_routes(app: FastAPI) -> None:
    # They speak of the replica that answers; another replica has a cache of its own.
    @app.get("/cache", tags=["cache"])
    async def cache_state(request: Request, limit: int = 100) -> Response:
        """What this replica has in memory; the models used last come first."""
        cache = _service(request).cache
        models = [
            {
                "series_id": series_id,
                "pinned": version is not None,
                "version": loaded.version,
                "bytes": loaded.model.nbytes,
            }
            for series_id, version, loaded in cache.state()[: max(limit, 0)]
        ]
        return _json({**_cache_summary(cache), "entries": models})

    @app.post("/cache/warm", openapi_extra=_body(WarmRequest), tags=["cache"])
    async def warm(request: Request) -> Response:
        """Load the models in production of these series, and say for each which version is in memory now."""
        service = _service(request)
        series = _only_member("series", await _read_json(request, service.settings.max_body_bytes))
        if not isinstance(series, list) or not all(isinstance(series_id, str) for series_id in series):
            raise AppError(ErrorCode.INVALID_INPUT, "`series` must be a list of series identifiers")

        async def load(series_id: str) -> dict[str, Any]:
            try:
                check_series_id(series_id)
                return {"model_version": (await service.cache.get(series_id, None)).version}
            except AppError as error:
                return {"error": {"code": error.code, "message": error.message, "details": error.details}}

        unique = list(dict.fromkeys(series))
        return _json({"results": dict(zip(unique, await asyncio.gather(*map(load, unique)), strict=True))})

    @app.delete("/cache/{series_id}", tags=["cache"])
    async def evict(series_id: str, request: Request) -> Response:
        """Drop the models of a series from memory; the next prediction loads what it needs."""
        check_series_id(series_id)
        return _json({"series_id": series_id, "evicted": _service(request).cache.evict(series_id)})


def _add_health_routes(app: FastAPI, metrics: Metrics) -> None:
    latest: dict[str, Any] = {"until": 0.0, "dependencies": {}}

    async def dependencies(service: Service) -> dict[str, Any]:
        async def check(operation: Callable[[], Awaitable[None]]) -> dict[str, Any]:
            start = time.perf_counter()
            try:
                await operation()
                state = "up"
            except DependencyUnavailableError:
                state = "down"
            return {"status": state, "latency_ms": round(1000 * (time.perf_counter() - start), 1)}

        if time.monotonic() >= latest["until"]:
            found = await asyncio.gather(*map(check, service.checks.values()))
            latest["dependencies"] = dict(zip(service.checks, found, strict=True))
            latest["until"] = time.monotonic() + _HEALTH_SECONDS
        states: dict[str, Any] = {name: dict(state) for name, state in latest["dependencies"].items()}
        for breaker in service.breakers:
            states[breaker.dependency]["circuit"] = breaker.state
        return states

    @app.get("/health/live", tags=["health"])
    async def live() -> Response:
        """The process answers."""
        return _json({"status": "alive"})

    @app.get("/health/ready", tags=["health"])
    async def ready(request: Request) -> Response:
        """The replica takes requests. `degraded`: a dependency is away; models in memory are served all the same."""
        found = await dependencies(_service(request))
        return _json({"status": _status(found), "dependencies": found})

    @app.get("/health", tags=["health"])
    async def health(request: Request) -> Response:
        """Dependencies, circuit breakers, cache. 503 while a dependency is away: for monitoring, not for probes."""
        service = _service(request)
        found = await dependencies(service)
        answers = asdict(service.predictor.answers)
        return _json(
            {
                "status": _status(found),
                "dependencies": found,
                "cache": _cache_summary(service.cache),
                "points_answered_by": answers,
            },
            200 if _status(found) == "healthy" else 503,
        )

    @app.get("/metrics", tags=["health"], response_class=Response)
    async def prometheus(request: Request) -> Response:
        """Metrics of this replica in Prometheus' text format."""
        service = _service(request)
        return Response(
            metrics.render(service.cache, service.predictor.answers, service.breakers), media_type=Metrics.MEDIA_TYPE
        )


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _status(dependencies: dict[str, Any]) -> str:
    return "healthy" if all(state["status"] == "up" for state in dependencies.values()) else "degraded"


def _cache_summary(cache: ModelCache) -> dict[str, Any]:
    return {"models": len(cache), "bytes": cache.nbytes, "max_bytes": cache.max_bytes, **asdict(cache.statistics)}


def _body(model: type[Any]) -> dict[str, Any]:
    """OpenAPI description of a body that the route reads by itself."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    return {"requestBody": {"required": True, "content": {_JSON: {"schema": schema}}}}


def _json(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type=_JSON)


async def _read_json(request: Request, max_bytes: int) -> Any:
    """The body, parsed.

    Raises:
        AppError: PAYLOAD_TOO_LARGE, or INVALID_INPUT where it is not JSON.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise AppError(ErrorCode.PAYLOAD_TOO_LARGE, f"the body is larger than the {max_bytes} bytes allowed")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise AppError(
            ErrorCode.INVALID_INPUT, "the body is not JSON", [{"field": "body", "reason": str(error)}]
        ) from error


def _only_member(name: str, body: Any) -> Any:
    """The member of a body that has this one only.

    Raises:
        AppError: INVALID_INPUT.
    """
    if not isinstance(body, dict) or body.keys() != {name}:
        raise AppError(
            ErrorCode.INVALID_INPUT,
            f"the body must be an object with exactly one member, `{name}`",
            [{"field": "body", "reason": f"not an object with only `{name}`"}],
        )
    return body[name]
