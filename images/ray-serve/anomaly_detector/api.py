"""The routes of the inference service, independent of what serves them."""

from __future__ import annotations

import asyncio
import heapq
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from operator import itemgetter
from typing import Annotated, Any, Literal

import orjson
from fastapi import FastAPI, Query, Request, Response

from anomaly_detection.broker import NAME as BROKER
from anomaly_detection.docs import documented_app
from anomaly_detection.errors import (
    AppError,
    DependencyUnavailableError,
    ErrorCode,
    install_error_handlers,
)
from anomaly_detection.http import RequestMiddleware
from anomaly_detection.object_store import NAME as OBJECT_STORE
from anomaly_detection.object_store import ObjectStore
from anomaly_detection.series import FLOAT32_MAX
from anomaly_detection.settings import BrokerSettings, MlflowSettings, ObjectStoreSettings
from anomaly_detection.stability import MAJOR, MODERATE
from anomaly_detector import open_inference
from anomaly_detector.breaker import CircuitBreaker
from anomaly_detector.cache import ModelCache
from anomaly_detector.disk import DiskStatistics, ModelDisk
from anomaly_detector.drift import HALF_LIFE_POINTS, MINIMUM_POINTS, state_of
from anomaly_detector.drift_events import DriftEvents
from anomaly_detector.events import CompletionEvents
from anomaly_detector.loader import LoadedModel, ModelLoader
from anomaly_detector.metrics import Metrics, merged
from anomaly_detector.openapi import LimitQuery, SeriesIdPath, VersionQuery, errors
from anomaly_detector.peers import Peers
from anomaly_detector.picture import png
from anomaly_detector.plot import score_page, score_plot, series_page, series_plot
from anomaly_detector.predictor import Predictor, check_series_id, parse_version
from anomaly_detector.registry import NAME as REGISTRY
from anomaly_detector.registry import Registry
from anomaly_detector.schemas import (
    BatchPrediction,
    BatchRequest,
    CacheState,
    Drift,
    Drifts,
    Evicted,
    Health,
    ManyPredictions,
    ManyRequest,
    PointRequest,
    Prediction,
    WarmAnswer,
    Warmed,
    WarmRequest,
)
from anomaly_detector.settings import InferenceSettings
from anomaly_detector.usage import HALF_LIFE_SECONDS, Usage
from anomaly_detector.web import json_answer, json_body, only_member, read_json, service_of

logger = logging.getLogger(__name__)

PlotFormat = Literal["svg", "png", "html"]
"""What a plot can be drawn as."""

_PLOT_TYPES: dict[PlotFormat, str] = {
    "svg": "image/svg+xml",
    "png": "image/png",
    "html": "text/html; charset=utf-8",
}
# In the examples of the OpenAPI document.
_SERIES = "sensor_17_x"
_POINT = {"timestamp": 1700000000, "value": 0.12}
_BATCH = {"data": [_POINT, {"timestamp": 1700000300, "value": 9.5}]}

_MODELS_SHOWN = 1000
_OF_REPLICA = "/replica"  # below it a replica tells of itself alone: for the others
_WARMED_AT_ONCE = 16
_JOINING_POLLS = 120
_HEALTH_SECONDS = 1.0  # answers of dependencies are shared by the probes that come within this time


@dataclass(frozen=True)
class Service:
    """The parts of a running service.

    Attributes:
        settings: of the service.
        cache: models in memory.
        predictor: scores points.
        drift: events of models that have drifted.
        peers: the other replicas.
        breakers: of the dependencies that requests wait for.
        checks: by dependency, what returns if it answers and else raises DependencyUnavailableError.
    """

    settings: InferenceSettings
    cache: ModelCache
    predictor: Predictor
    drift: DriftEvents
    peers: Peers
    breakers: tuple[CircuitBreaker, ...]
    checks: dict[str, Callable[[], Awaitable[None]]]


def build_service(
    settings: InferenceSettings,
    registry: Registry,
    store: ObjectStore,
    peers: Peers,
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
    drift = DriftEvents(peers.own)
    return Service(
        settings=settings,
        cache=cache,
        predictor=Predictor(cache, loader, drift, settings.batch_max_points),
        drift=drift,
        peers=peers,
        breakers=(registry_breaker, store_breaker),
        checks={REGISTRY: registry.check, OBJECT_STORE: store.check},
    )


@asynccontextmanager
async def connected_service(replica: str, node: str) -> AsyncIterator[Service]:
    """A service with its real dependencies, as the environment names them. It starts without any of them.

    Args:
        replica: the name of this replica among those of the deployment.
        node: the name of the Ray node that it runs on.
    """
    settings = InferenceSettings()
    registry = Registry(MlflowSettings())
    peers = Peers(replica, settings.haproxy_directory / node / "haproxy.cfg", settings.haproxy_url)
    service = build_service(settings, registry, ObjectStore(ObjectStoreSettings()), peers)
    events = CompletionEvents(BrokerSettings(), service.cache, service.drift)
    service.checks[BROKER] = events.check
    tasks = [
        asyncio.create_task(events.run(), name="events"),
        asyncio.create_task(keep_warm(service), name="most used models"),
    ]
    try:
        yield service
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await service.cache.close()
        await peers.close()
        await registry.close()


def create_app(open_service: Callable[[], AbstractAsyncContextManager[Service]]) -> FastAPI:
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
    app = documented_app(
        title="Anomaly detection: inference",
        version="1",
        description="Scores lie in (0, 1]; higher is more anomalous. `is_anomaly` means `anomaly_score > threshold`.",
        lifespan=lifespan,
    )
    app.state.metrics = metrics
    app.add_middleware(RequestMiddleware, observe=metrics.observe, render=open_inference.render_error)
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
        "/predict/{series_id}",
        response_model=Prediction,
        openapi_extra=json_body(PointRequest, {"one point": _POINT}),
        tags=["predict"],
        responses=errors(404, 413, 422, 503),
    )
    async def predict_one(series_id: SeriesIdPath, request: Request, version: VersionQuery = None) -> Response:
        """Score one point of a series."""
        check_series_id(series_id)
        service = service_of(request)
        point = await read_json(request)
        return json_answer(await service.predictor.predict_one(series_id, parse_version(version), point))

    @app.post(
        "/predict/{series_id}/batch",
        response_model=BatchPrediction,
        openapi_extra=json_body(BatchRequest, {"two points": _BATCH}),
        tags=["predict"],
        responses=errors(404, 413, 422, 503),
    )
    async def predict_batch(series_id: SeriesIdPath, request: Request, version: VersionQuery = None) -> Response:
        """Score points of a series, with increasing timestamps; the answer has their order."""
        check_series_id(series_id)
        service = service_of(request)
        data = only_member("data", await read_json(request))
        answer = await service.predictor.predict_batch(series_id, parse_version(version), data)
        return Response(answer, media_type="application/json")

    @app.post(
        "/predict",
        response_model=ManyPredictions,
        openapi_extra=json_body(
            ManyRequest, {"a point and a batch": {"series": {_SERIES: _POINT, f"{_SERIES}_2": _BATCH}}}
        ),
        tags=["predict"],
        responses=errors(413, 422),
    )
    async def predict_many(request: Request) -> Response:
        """Score points of many series; a series that cannot be scored has an `error` in its place."""
        service = service_of(request)
        bodies = only_member("series", await read_json(request))
        return Response(await service.predictor.predict_many(bodies), media_type="application/json")


def _add_plot_routes(app: FastAPI) -> None:
    # Predictions are not stored: what can be shown is the model itself, and points that the caller has.
    options: dict[str, Any] = {"tags": ["plot"], "response_class": Response}
    drawn: dict[int | str, dict[str, Any]] = {200: {"content": {media_type: {} for media_type in _PLOT_TYPES.values()}}}

    @app.get("/plot/{series_id}", **options, responses=drawn | errors(404, 422, 503))
    async def plot_model(
        series_id: SeriesIdPath,
        request: Request,
        version: VersionQuery = None,
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
            return score_page(series_id, loaded, svg) if format == "html" else svg

        return await _drawn(draw, format)

    @app.post(
        "/plot/{series_id}",
        **options,
        openapi_extra=json_body(BatchRequest, {"two points": _BATCH}),
        responses=drawn | errors(404, 413, 422, 503),
    )
    async def plot_series(
        series_id: SeriesIdPath,
        request: Request,
        version: VersionQuery = None,
        format: PlotFormat = "svg",  # noqa: A002
    ) -> Response:
        """Points of a series over time, their scores, and the anomalies among them."""
        check_series_id(series_id)
        number = parse_version(version)
        predictor = service_of(request).predictor
        data = only_member("data", await read_json(request))
        series = await predictor.read_points(data)
        found = await predictor.predict_values(series_id, number, series.values, recent=False)

        def draw() -> str:
            svg = series_plot(series_id, series, found)
            return series_page(series_id, series, found, svg) if format == "html" else svg

        return await _drawn(draw, format)


async def _drawn(draw: Callable[[], str], form: PlotFormat) -> Response:
    """A plot, drawn beside the event loop: with many points it takes milliseconds."""
    drawn = await asyncio.to_thread(draw)
    return Response(
        await png(drawn) if form == "png" else drawn,
        media_type=_PLOT_TYPES[form],
        headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"},
    )


def _add_drift_routes(app: FastAPI) -> None:
    # Recent scores are kept with the models in memory: those of a series in the replica that it belongs to.
    @app.get("/drift/{series_id}", response_model=Drift, tags=["drift"], responses=errors(404, 422, 503))
    async def drift(series_id: SeriesIdPath, request: Request, version: VersionQuery = None) -> Response:
        """How far the recent scores of a model are from those of its training points."""
        check_series_id(series_id)
        service = service_of(request)
        loaded = await service.cache.get(series_id, parse_version(version))
        return json_answer(_drift(service, series_id, loaded))

    @app.get("/drift", response_model=Drifts, tags=["drift"], responses=errors(422))
    async def drifts(request: Request, limit: LimitQuery = 10) -> Response:
        """The models in production in memory that have drifted most, of all replicas."""
        own = _drifts(service_of(request), limit)
        others = await service_of(request).peers.ask(f"{_OF_REPLICA}/drift?limit={limit}")
        found = [own, *map(orjson.loads, others.bodies.values())]
        largest = [model for each in found for model in each["largest"]]
        return json_answer(
            {
                "measured_models": sum(each["measured_models"] for each in found),
                "largest": heapq.nlargest(_shown(limit), largest, key=itemgetter("psi")),
                "unreachable": others.unreachable,
            }
        )

    @app.get(f"{_OF_REPLICA}/drift", include_in_schema=False)
    async def drifts_of_replica(request: Request, limit: LimitQuery = 10) -> Response:
        return json_answer(_drifts(service_of(request), limit))


def _shown(limit: int) -> int:
    """How many models to list where so many are asked for."""
    return min(max(limit, 0), _MODELS_SHOWN)


def _drifts(service: Service, limit: int) -> dict[str, Any]:
    """The models of this replica that have drifted most."""
    ranking = service.cache.ranking
    largest = [(series_id, service.cache.in_production(series_id)) for _, series_id in ranking.largest(_shown(limit))]
    return {
        "measured_models": len(ranking),
        "largest": [_drift(service, series_id, loaded) for series_id, loaded in largest if loaded],
    }


def _drift(service: Service, series_id: str, loaded: LoadedModel) -> dict[str, Any]:
    recent = loaded.recent
    answer: dict[str, Any] = {
        "series_id": series_id,
        "model_version": loaded.version,
        "replica": service.peers.own,
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
    service.cache.rank(series_id, loaded)
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
    @app.get("/cache", response_model=CacheState, tags=["cache"], responses=errors(422))
    async def cache_state(request: Request, limit: LimitQuery = 100) -> Response:
        """What the replicas have in memory; of each, the models used last come first."""
        service = service_of(request)
        others = await service.peers.ask(f"{_OF_REPLICA}/cache?limit={limit}")
        states = {service.peers.own: _cache(service, limit)}
        states |= {name: orjson.loads(body) for name, body in others.bodies.items()}
        entries = [{"replica": name, **entry} for name, state in states.items() for entry in state.pop("entries")]
        return json_answer(
            {
                **_total(list(states.values())),
                "replicas": states,
                "unreachable": others.unreachable,
                "entries": entries[: _shown(limit)],
            }
        )

    @app.get(f"{_OF_REPLICA}/cache", include_in_schema=False)
    async def cache_of_replica(request: Request, limit: LimitQuery = 100) -> Response:
        return json_answer(_cache(service_of(request), limit))

    @app.post(
        "/cache/warm",
        response_model=WarmAnswer,
        openapi_extra=json_body(WarmRequest, {"two series": {"series": [_SERIES, f"{_SERIES}_2"]}}),
        tags=["cache"],
        responses=errors(413, 422),
    )
    async def warm(request: Request) -> Response:
        """Load the models in production of these series, each in the replica that the series belongs to.

        Says for each which version is in memory now.
        """
        service = service_of(request)
        series = only_member("series", await read_json(request))
        if not isinstance(series, list) or not all(isinstance(series_id, str) for series_id in series):
            raise AppError(ErrorCode.INVALID_INPUT, "`series` must be a list of series identifiers")
        return json_answer({"results": await warm_models(service, list(dict.fromkeys(series)))})

    @app.put("/cache/{series_id}", response_model=Warmed, tags=["cache"], responses=errors(404, 422, 503))
    async def warm_one(series_id: SeriesIdPath, request: Request) -> Response:
        """Load the model in production of a series in the replica that it belongs to."""
        check_series_id(series_id)
        return json_answer(await _warmed(service_of(request), series_id))

    @app.delete("/cache/{series_id}", response_model=Evicted, tags=["cache"], responses=errors(422))
    async def evict(series_id: SeriesIdPath, request: Request) -> Response:
        """Drop the models of a series from memory and disk of all replicas; the next prediction loads what it needs."""
        check_series_id(series_id)
        service = service_of(request)
        evicted = await service.cache.evict(series_id)
        others = await service.peers.ask(f"{_OF_REPLICA}/cache/{series_id}", "DELETE")
        evicted += sum(orjson.loads(body)["evicted"] for body in others.bodies.values())
        return json_answer({"series_id": series_id, "evicted": evicted, "unreachable": others.unreachable})

    @app.delete(f"{_OF_REPLICA}/cache/{{series_id}}", include_in_schema=False)
    async def evict_of_replica(series_id: SeriesIdPath, request: Request) -> Response:
        check_series_id(series_id)
        return json_answer({"evicted": await service_of(request).cache.evict(series_id)})


async def warm_models(service: Service, series: list[str]) -> dict[str, dict[str, Any]]:
    """Load the models in production of these series where they belong; by series what is in memory, or its `error`."""

    async def load(series_id: str) -> dict[str, Any]:
        try:
            check_series_id(series_id)
            if answer := await service.peers.at_home(f"/cache/{series_id}", "PUT"):
                found: dict[str, Any] = orjson.loads(answer.content)
                return {"error": found["error"]} if "error" in found else found
            return await _warmed(service, series_id)
        except AppError as error:
            return {"error": {"code": error.code, "message": error.message, "details": error.details}}

    results: list[dict[str, Any]] = []
    for start in range(0, len(series), _WARMED_AT_ONCE):
        results += await asyncio.gather(*map(load, series[start : start + _WARMED_AT_ONCE]))
    return dict(zip(series, results, strict=True))


async def keep_warm(service: Service, poll_seconds: float = 1.0, write_seconds: float = 60.0) -> None:
    """Load what was used most, once this replica has its share of the series; then keep what is, until cancelled.

    Args:
        service: whose cache it is.
        poll_seconds: how often to look whether HAProxy knows this replica.
        write_seconds: how often the uses are written.
    """
    settings = service.settings
    if not settings.model_cache_warm_models or not settings.model_disk_max_bytes:
        return
    usage = Usage(settings.model_disk_directory, service.peers.own, settings.model_cache_warm_models)
    if most := await asyncio.to_thread(usage.most):
        # Before that the series would be loaded by those whose they are until then.
        for _ in range(_JOINING_POLLS):
            if service.peers.joined():
                break
            await asyncio.sleep(poll_seconds)
        start = time.perf_counter()
        loaded = await warm_models(service, most)
        logger.info(
            "models used most are loaded",
            extra={
                "models": sum("error" not in each for each in loaded.values()),
                "failed": sum("error" in each for each in loaded.values()),
                "seconds": round(time.perf_counter() - start, 2),
            },
        )
    while True:
        await asyncio.sleep(write_seconds)
        service.cache.use_weight *= 2 ** (write_seconds / HALF_LIFE_SECONDS)
        await asyncio.to_thread(usage.write, service.cache.uses())


async def _warmed(service: Service, series_id: str) -> dict[str, Any]:
    """What is in memory here once the model of a series is loaded."""
    loaded = await service.cache.get(series_id, None)
    return {"model_version": loaded.version, "replica": service.peers.own}


def _cache(service: Service, limit: int) -> dict[str, Any]:
    """What this replica has in memory; the models used last come first."""
    models = [
        {
            "series_id": series_id,
            "pinned": version is not None,
            "version": loaded.version,
            "bytes": loaded.model.nbytes,
        }
        for series_id, version, loaded in service.cache.state(_shown(limit))
    ]
    return {**_cache_summary(service.cache), "entries": models}


def _total(summaries: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums of what replicas have. What lies on a disk is not added up: replicas of a pod share it."""
    total = {name: sum(each[name] for each in summaries) for name in summaries[0] if name != "disk"}
    disks = [each["disk"] for each in summaries if each["disk"]]
    counted = DiskStatistics.__dataclass_fields__
    return total | {"disk": {name: sum(disk[name] for disk in disks) for name in counted} if disks else None}


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

    @app.get("/health/live", tags=["health"], responses=errors())
    async def live() -> Response:
        """The process answers."""
        return json_answer({"status": "alive"})

    @app.get("/health/ready", response_model=Health, tags=["health"], responses=errors())
    async def ready(request: Request) -> Response:
        """The replica takes requests. `degraded`: a dependency is away; models in memory are served all the same."""
        found = await dependencies(service_of(request))
        return json_answer({"status": _status(found), "dependencies": found})

    @app.get(
        "/health",
        response_model=Health,
        tags=["health"],
        responses=errors() | {503: {"model": Health, "description": "A dependency is away."}},
    )
    async def health(request: Request) -> Response:
        """Dependencies, circuit breakers, cache. 503 while a dependency is away: for monitoring, not for probes."""
        service = service_of(request)
        found = await dependencies(service)
        answers = asdict(service.predictor.answers)
        return json_answer(
            {
                "status": _status(found),
                "replica": service.peers.own,
                "dependencies": found,
                "cache": _cache_summary(service.cache),
                "points_answered_by": answers,
            },
            200 if _status(found) == "healthy" else 503,
        )

    @app.get(
        "/metrics",
        tags=["health"],
        response_class=Response,
        responses=errors() | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def prometheus(request: Request) -> Response:
        """Metrics of all replicas in Prometheus' text format; the label `replica` tells them apart."""
        service = service_of(request)
        others = await service.peers.ask(f"{_OF_REPLICA}/metrics")
        return Response(merged([_metrics(service), *others.bodies.values()]), media_type=Metrics.MEDIA_TYPE)

    @app.get(f"{_OF_REPLICA}/metrics", include_in_schema=False)
    async def metrics_of_replica(request: Request) -> Response:
        return Response(_metrics(service_of(request)), media_type=Metrics.MEDIA_TYPE)

    def _metrics(service: Service) -> bytes:
        return metrics.render(service.peers.own, service.cache, service.predictor.answers, service.breakers)


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
