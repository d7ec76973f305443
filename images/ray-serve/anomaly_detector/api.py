"""The routes of the inference service, independent of what serves them."""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from operator import itemgetter
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request, Response

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
from anomaly_detection.series import FLOAT32_MAX, read_points
from anomaly_detection.settings import BrokerSettings, MlflowSettings, ObjectStoreSettings
from anomaly_detector import open_inference
from anomaly_detector.breaker import CircuitBreaker
from anomaly_detector.cache import ModelCache
from anomaly_detector.disk import ModelDisk
from anomaly_detector.drift import HALF_LIFE_POINTS, MAJOR, MINIMUM_POINTS, MODERATE, state_of
from anomaly_detector.events import CompletionEvents
from anomaly_detector.loader import LoadedModel, ModelLoader
from anomaly_detector.metrics import Metrics
from anomaly_detector.plot import score_page, score_plot, series_page, series_plot
from anomaly_detector.predictor import Predictor, check_series_id, parse_version
from anomaly_detector.registry import NAME as REGISTRY
from anomaly_detector.registry import Registry
from anomaly_detector.schemas import (
    BatchPrediction,
    BatchRequest,
    Drift,
    Drifts,
    ManyPredictions,
    ManyRequest,
    PointRequest,
    Prediction,
    WarmRequest,
)
from anomaly_detector.settings import InferenceSettings
from anomaly_detector.warm import WarmPredictionMiddleware
from anomaly_detector.web import json_answer, json_body, only_member, read_json, service_of

PlotFormat = Literal["svg", "html"]
"""What a plot can be drawn as."""

_PLOT_TYPES: dict[PlotFormat, str] = {"svg": "image/svg+xml", "html": "text/html; charset=utf-8"}
_DRIFTS_SHOWN = 1000
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
    disk = None
    if settings.model_disk_max_bytes:
        disk = ModelDisk(settings.model_disk_directory, settings.model_disk_max_bytes)
    loader = ModelLoader(registry, registry_breaker, store, store_breaker, disk)
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
    app.add_middleware(RequestMiddleware, observe=metrics.observe, render=open_inference.render_error)
    app.add_middleware(WarmPredictionMiddleware, predictor=lambda: app.state.service.predictor, observe=metrics.observe)
    install_error_handlers(app, open_inference.render_error)
    _add_prediction_routes(app)
    open_inference.add_routes(app)
    _add_plot_routes(app)
    _add_drift_routes(app)
    _add_cache_routes(app)
    _add_health_routes(app, metrics)
    return app


def _add_prediction_routes(app: FastAPI) -> None:
    # The routes read their bodies themselves: validation by Pydantic would take longer than the scoring. The models of
    # `schemas` document what they read and answer.
    @app.post(
        "/predict/{series_id}", response_model=Prediction, openapi_extra=json_body(PointRequest), tags=["predict"]
    )
    async def predict_one(series_id: str, request: Request, version: str | None = None) -> Response:
        """Score one point of a series."""
        check_series_id(series_id)
        service = service_of(request)
        point = await read_json(request)
        return json_answer(await service.predictor.predict_one(series_id, parse_version(version), point))

    @app.post(
        "/predict/{series_id}/batch",
        response_model=BatchPrediction,
        openapi_extra=json_body(BatchRequest),
        tags=["predict"],
    )
    async def predict_batch(series_id: str, request: Request, version: str | None = None) -> Response:
        """Score points of a series, with increasing timestamps; the answer has their order."""
        check_series_id(series_id)
        service = service_of(request)
        data = only_member("data", await read_json(request))
        return json_answer(await service.predictor.predict_batch(series_id, parse_version(version), data))

    @app.post("/predict", response_model=ManyPredictions, openapi_extra=json_body(ManyRequest), tags=["predict"])
    async def predict_many(request: Request) -> Response:
        """Score points of many series; a series that cannot be scored has an `error` in its place."""
        service = service_of(request)
        bodies = only_member("series", await read_json(request))
        return json_answer({"results": await service.predictor.predict_many(bodies)})


def _add_plot_routes(app: FastAPI) -> None:
    # Predictions are not stored: what can be shown is the model itself, and points that the caller has.
    options: dict[str, Any] = {
        "tags": ["plot"],
        "response_class": Response,
        "responses": {200: {"content": {media_type: {} for media_type in _PLOT_TYPES.values()}}},
    }

    @app.get("/plot/{series_id}", **options)
    async def plot_model(
        series_id: str,
        request: Request,
        version: str | None = None,
        format: PlotFormat = "svg",  # noqa: A002 - the name of the parameter in the query
        low: Annotated[float | None, Query(alias="from", description="smallest value to show")] = None,
        high: Annotated[float | None, Query(alias="to", description="largest value to show")] = None,
    ) -> Response:
        """The score that the model gives each value, with its threshold and what it was trained on."""
        check_series_id(series_id)
        within = all(end is None or abs(end) <= FLOAT32_MAX for end in (low, high))
        if not within or (low is not None and high is not None and low >= high):
            raise AppError(
                ErrorCode.INVALID_INPUT, "`from` and `to` are finite values, the first smaller than the second"
            )
        loaded = await service_of(request).cache.get(series_id, parse_version(version))

        def draw() -> str:
            svg = score_plot(series_id, loaded, low, high)
            return svg if format == "svg" else score_page(series_id, loaded, svg)

        return await _drawn(draw, format)

    @app.post("/plot/{series_id}", openapi_extra=json_body(BatchRequest), **options)
    async def plot_series(
        series_id: str,
        request: Request,
        version: str | None = None,
        format: PlotFormat = "svg",  # noqa: A002
    ) -> Response:
        """Points of a series over time, their scores, and the anomalies among them."""
        check_series_id(series_id)
        number = parse_version(version)
        predictor = service_of(request).predictor
        data = only_member("data", await read_json(request))
        series = read_points(data, min_points=1, max_points=predictor.max_points)
        found = await predictor.predict_values(series_id, number, series.values, recent=False)

        def draw() -> str:
            svg = series_plot(series_id, series, found)
            return svg if format == "svg" else series_page(series_id, series, found, svg)

        return await _drawn(draw, format)


async def _drawn(draw: Callable[[], str], form: PlotFormat) -> Response:
    """A plot, drawn beside the event loop: with many points it takes milliseconds."""
    return Response(
        await asyncio.to_thread(draw),
        media_type=_PLOT_TYPES[form],
        headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"},
    )


def _add_drift_routes(app: FastAPI) -> None:
    # Of the replica that answers, like the cache: recent scores are kept with the models in its memory.
    @app.get("/drift/{series_id}", response_model=Drift, tags=["drift"])
    async def drift(series_id: str, request: Request, version: str | None = None) -> Response:
        """How far the recent scores of a model are from those of its training points."""
        check_series_id(series_id)
        loaded = await service_of(request).cache.get(series_id, parse_version(version))
        return json_answer(_drift(series_id, loaded))

    @app.get("/drift", response_model=Drifts, tags=["drift"])
    async def drifts(request: Request, limit: int = 10) -> Response:
        """The models in production in memory that have drifted most."""
        known = [
            (loaded.recent.index, series_id, loaded)
            for series_id, version, loaded in service_of(request).cache.state()
            if version is None and loaded.recent and not math.isnan(loaded.recent.index)
        ]
        largest = heapq.nlargest(min(max(limit, 0), _DRIFTS_SHOWN), known, key=itemgetter(0))
        return json_answer(
            {"measured_models": len(known), "largest": [_drift(series_id, loaded) for _, series_id, loaded in largest]}
        )


def _drift(series_id: str, loaded: LoadedModel) -> dict[str, Any]:
    recent = loaded.recent
    answer: dict[str, Any] = {
        "series_id": series_id,
        "model_version": loaded.version,
        "psi": None,
        "state": state_of(None),
        "recent_points": None,
        "minimum_points": MINIMUM_POINTS,
        "half_life_points": HALF_LIFE_POINTS,
        "thresholds": {"moderate": MODERATE, "major": MAJOR},
        "histogram": None,
    }
    if recent is None:
        return answer
    index, counts = recent.measure(), recent.counts()
    points, trained = sum(counts), sum(recent.baseline.counts)
    return answer | {
        "psi": None if math.isnan(index) else index,
        "state": state_of(recent),
        "recent_points": round(points, 1),
        "histogram": {
            "edges": recent.baseline.edges,
            "training": [count / trained for count in recent.baseline.counts],
            "recent": [count / points for count in counts] if points else None,
        },
    }


def _add_cache_routes(app: FastAPI) -> None:
    # They speak of the replica that answers; another replica has a cache of its own.
    @app.get("/cache", tags=["cache"])
    async def cache_state(request: Request, limit: int = 100) -> Response:
        """What this replica has in memory; the models used last come first."""
        cache = service_of(request).cache
        models = [
            {
                "series_id": series_id,
                "pinned": version is not None,
                "version": loaded.version,
                "bytes": loaded.model.nbytes,
            }
            for series_id, version, loaded in cache.state()[: max(limit, 0)]
        ]
        return json_answer({**_cache_summary(cache), "entries": models})

    @app.post("/cache/warm", openapi_extra=json_body(WarmRequest), tags=["cache"])
    async def warm(request: Request) -> Response:
        """Load the models in production of these series, and say for each which version is in memory now."""
        service = service_of(request)
        series = only_member("series", await read_json(request))
        if not isinstance(series, list) or not all(isinstance(series_id, str) for series_id in series):
            raise AppError(ErrorCode.INVALID_INPUT, "`series` must be a list of series identifiers")

        async def load(series_id: str) -> dict[str, Any]:
            try:
                check_series_id(series_id)
                return {"model_version": (await service.cache.get(series_id, None)).version}
            except AppError as error:
                return {"error": {"code": error.code, "message": error.message, "details": error.details}}

        unique = list(dict.fromkeys(series))
        return json_answer({"results": dict(zip(unique, await asyncio.gather(*map(load, unique)), strict=True))})

    @app.delete("/cache/{series_id}", tags=["cache"])
    async def evict(series_id: str, request: Request) -> Response:
        """Drop the models of a series from memory and disk; the next prediction loads what it needs."""
        check_series_id(series_id)
        return json_answer({"series_id": series_id, "evicted": await service_of(request).cache.evict(series_id)})


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
        return json_answer({"status": "alive"})

    @app.get("/health/ready", tags=["health"])
    async def ready(request: Request) -> Response:
        """The replica takes requests. `degraded`: a dependency is away; models in memory are served all the same."""
        found = await dependencies(service_of(request))
        return json_answer({"status": _status(found), "dependencies": found})

    @app.get("/health", tags=["health"])
    async def health(request: Request) -> Response:
        """Dependencies, circuit breakers, cache. 503 while a dependency is away: for monitoring, not for probes."""
        service = service_of(request)
        found = await dependencies(service)
        answers = asdict(service.predictor.answers)
        return json_answer(
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
        service = service_of(request)
        return Response(
            metrics.render(service.cache, service.predictor.answers, service.breakers), media_type=Metrics.MEDIA_TYPE
        )


def _status(dependencies: dict[str, Any]) -> str:
    return "healthy" if all(state["status"] == "up" for state in dependencies.values()) else "degraded"


def _cache_summary(cache: ModelCache) -> dict[str, Any]:
    disk = cache.loader.disk
    return {
        "models": len(cache),
        "stale_models": cache.stale_models,
        "bytes": cache.nbytes,
        "max_bytes": cache.max_bytes,
        **asdict(cache.statistics),
        "disk": disk
        and {
            "models": disk.models,
            "bytes": disk.nbytes,
            "max_bytes": disk.max_bytes,
            **asdict(disk.statistics),
        },
    }
