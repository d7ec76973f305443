"""The routes of the training API."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import FastAPI, Header, Query, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from pydantic import BaseModel

from anomaly_detection.contracts import (
    SERIES_ID_PATTERN,
    FitAccepted,
    FitOptions,
    FitRequest,
    Job,
    JobPage,
    JobStatus,
)
from anomaly_detection.docs import documented_app
from anomaly_detection.errors import (
    AppError,
    DependencyUnavailableError,
    ErrorCode,
    ErrorEnvelope,
    install_error_handlers,
)
from anomaly_detection.http import RequestMiddleware
from anomaly_detection.jobs import NewJob, publish_job
from anomaly_detection.logging import request_id
from anomaly_detection.series import Series, check_variation
from training_api.body import CSV, read_body, read_fit
from training_api.model_routes import model_routes
from training_api.openapi import JobIdPath, SeriesIdPath, errors, fit_query_parameters
from training_api.parquet import PARQUET
from training_api.services import DependencyState, Services
from training_api.settings import TrainingApiSettings

_PARSED_AT_A_TIME = 2  # a body of 10 MB becomes 50 MB of Python objects for the moment of its check
_NEVER_ENDING_SEQUENCE = 2**63 - 1
IDEMPOTENCY_KEY_PATTERN = r"^[!-~]{1,128}$"
"""Visible ASCII characters, as RFC 9110 lets a header's value have them, without spaces."""

logger = logging.getLogger(__name__)

FIT_EXAMPLE_POINTS = [
    {"timestamp": 1700000000 + 300 * i, "value": round(math.sin(i / 5) + 0.01 * (i * 7 % 13), 4)} for i in range(120)
]
FIT_EXAMPLE = {
    "data": FIT_EXAMPLE_POINTS,
    "parameters": {"n_estimators": 100, "contamination": 0.01, "random_state": 42},
}

FIT_EXAMPLE_CSV = "timestamp,value\n" + "".join(f"{p['timestamp']},{p['value']}\n" for p in FIT_EXAMPLE_POINTS)


class Health(BaseModel):
    """How the service does."""

    status: Literal["healthy", "degraded", "starting"]
    dependencies: dict[str, DependencyState]


class Alive(BaseModel):
    """The process answers."""

    status: Literal["alive"] = "alive"


def create_app(services: Services, settings: TrainingApiSettings) -> FastAPI:
    """The application.

    Args:
        services: its dependencies; started and stopped with the application.
        settings: its limits.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await services.start()
        yield
        await services.stop()

    app = documented_app(
        title="Training API",
        version="1",
        description="Takes time series to learn from and tells what became of them. "
        "Every error has the same envelope; every answer carries the `X-Request-ID` it was given or got.",
        lifespan=lifespan,
        responses={500: {"model": ErrorEnvelope, "description": "An unexpected error."}},
    )
    install_error_handlers(app)
    metrics = CollectorRegistry()
    ProcessCollector(registry=metrics)
    PlatformCollector(registry=metrics)
    requests = Histogram(
        "http_request_duration_seconds",
        "Duration of HTTP requests",
        ["method", "route", "status"],
        registry=metrics,
        buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    )
    fits = Counter("training_fit_requests", "Fit requests by outcome", ["outcome"], registry=metrics)
    points = Counter("training_fit_points", "Points accepted for training", registry=metrics)
    app.add_middleware(
        RequestMiddleware,
        observe=lambda method, route, status, seconds: requests.labels(method, route, status).observe(seconds),
    )
    parsing = asyncio.Semaphore(_PARSED_AT_A_TIME)

    def read(request: Request, body: bytes) -> tuple[Series, FitOptions, str, bytes]:
        """Check a body; also the digest and the stored form of its series. CPU-bound: runs in a thread."""
        series, options = read_fit(
            body,
            request.headers.get("content-type", ""),
            request.query_params,
            min_points=settings.min_points,
            max_points=settings.max_points,
        )
        check_variation(series)
        return series, options, series.sha256(), series.to_bytes()

    async def fit(series_id: str, request: Request, key: str | None) -> tuple[Job, str]:
        """The job of a fit request, and what the metrics call the outcome."""
        body = await read_body(request, settings.max_body_bytes)
        async with parsing:
            series, options, digest, blob = await asyncio.to_thread(read, request, body)
        new = NewJob(
            series_id=series_id,
            # Named by content: the same points are stored once, and storing them again changes nothing.
            data_key=f"series/{series_id}/{digest}.npz",
            data_sha256=digest,
            points=len(series),
            parameters=options.parameters,
            priority=options.priority,
            request_id=request_id(),
            idempotency_key=key,
        )
        # A request that is sent again does not count against the limit.
        if replayed := await services.jobs.replay(new):
            return replayed, "same"
        rejection = await services.jobs.accept(series_id, settings.fit_rate_limit, settings.fit_rate_window_seconds)
        if rejection:
            raise AppError(
                ErrorCode.RATE_LIMIT_EXCEEDED,
                f"a series is fitted at most {settings.fit_rate_limit} times in {settings.fit_rate_window_seconds} s",
                headers={"Retry-After": str(math.ceil(rejection.retry_after) or 1)},
            )
        # A key has to be kept with the job it stands for, which `create` does in one step.
        if key is None and (same := await services.jobs.find_same(new)):
            return same, "same"
        await services.store.put(new.data_key, blob)
        job, message = await services.jobs.create(new)
        if message is None:
            return job, "same"
        try:
            await publish_job(services.publisher, services.jobs, message)
        except DependencyUnavailableError as error:
            # If this cannot be noted either, the job is published when both are back: the client hears 503 and, sending
            # the same points again, finds that job.
            await services.jobs.fail(message.job_id, None, error.code, error.message)
            raise
        points.inc(new.points)
        return job, "accepted"

    @app.post(
        "/fit/{series_id}",
        status_code=202,
        response_model=FitAccepted,
        tags=["training"],
        summary="Learn a series",
        description="Checks the points, stores them and queues a training. The same points and parameters again are "
        "the same job; a newer fit supersedes one that is still queued. The body is JSON or, by its `Content-Type`, "
        "CSV (lines of `timestamp,value` under this header) or Parquet (columns `timestamp` and `value`), which have "
        "their options in the query. What a JSON body says itself stands before the query. With "
        "`Content-Encoding: gzip` the body is compressed; limits are those of the body without it.",
        responses=errors(400, 413, 415, 422, 429, 503),
        openapi_extra={
            "parameters": fit_query_parameters(),
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {
                        "schema": {"$ref": "#/components/schemas/FitRequest"},
                        "examples": {"half a day of samples": {"value": FIT_EXAMPLE}},
                    },
                    CSV: {
                        "schema": {"type": "string"},
                        "examples": {"half a day of samples": {"value": FIT_EXAMPLE_CSV}},
                    },
                    PARQUET: {"schema": {"type": "string", "format": "binary"}},
                },
            },
        },
    )
    async def post_fit(
        series_id: SeriesIdPath,
        request: Request,
        response: Response,
        idempotency_key: Annotated[
            str | None,
            Header(
                pattern=IDEMPOTENCY_KEY_PATTERN,
                description="names this request: sent again within a day, it is answered with the same job and does "
                "not count against the limit",
            ),
        ] = None,
    ) -> FitAccepted:
        try:
            job, outcome = await fit(series_id, request, idempotency_key)
        except AppError as error:
            fits.labels(error.code.lower()).inc()
            raise
        fits.labels(outcome).inc()
        logger.info(
            "fit",
            extra={"series_id": series_id, "job_id": str(job.job_id), "points": job.points, "outcome": outcome},
        )
        response.headers["Location"] = job.links["self"]
        return FitAccepted(job_id=job.job_id, series_id=series_id, status=job.status, links=job.links)

    @app.get("/jobs/{job_id}", tags=["jobs"], summary="A job", responses=errors(404, 422, 503))
    async def get_job(job_id: JobIdPath) -> Job:
        job = await services.jobs.get(job_id)
        if job is None:
            raise _no_job(job_id)
        return job

    @app.get("/jobs", tags=["jobs"], summary="Jobs, newest first", responses=errors(422, 503))
    async def get_jobs(
        series_id: Annotated[
            str | None, Query(pattern=SERIES_ID_PATTERN, description="only jobs of this series")
        ] = None,
        status: Annotated[JobStatus | None, Query(description="only jobs in this state")] = None,
        cursor: Annotated[
            int | None, Query(ge=1, le=_NEVER_ENDING_SEQUENCE, description="`next_cursor` of the page before")
        ] = None,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
    ) -> JobPage:
        jobs, following = await services.jobs.page(series_id, status, cursor, limit)
        return JobPage(jobs=jobs, next_cursor=None if following is None else str(following))

    @app.delete(
        "/jobs/{job_id}",
        tags=["jobs"],
        summary="Cancel a queued job",
        description="Repeating it is harmless: a cancelled job stays cancelled.",
        responses=errors(404, 409, 422, 503),
    )
    async def delete_job(job_id: JobIdPath) -> Job:
        job, cancelled = await services.jobs.cancel(job_id)
        if job is None:
            raise _no_job(job_id)
        if not cancelled and job.status is not JobStatus.CANCELLED:
            raise AppError(
                ErrorCode.CANNOT_CANCEL,
                f"the job is {job.status}; only a queued one can be cancelled",
                [{"status": job.status}],
            )
        return job

    app.include_router(model_routes(services))

    @app.get("/health/live", tags=["health"], summary="The process answers")
    async def live() -> Alive:
        return Alive()

    @app.get(
        "/health/ready",
        tags=["health"],
        summary="The service takes requests",
        description="503 until every dependency needed was reached once. Afterwards 200, `degraded` while one is away: "
        "with all replicas out of service, clients would meet refused connections instead of clear answers.",
        responses={503: {"model": Health, "description": "Starting."}},
    )
    async def ready(response: Response) -> Health:
        health = await _health(services)
        response.status_code = 503 if health.status == "starting" else 200
        return health

    @app.get(
        "/health",
        tags=["health"],
        summary="Every dependency with its state and latency",
        description="503 while one is away: for monitoring, not for probes.",
        responses={503: {"model": Health, "description": "A dependency is away."}},
    )
    async def health(response: Response) -> Health:
        state = await _health(services)
        response.status_code = 200 if state.status == "healthy" else 503
        return state

    @app.get("/metrics", tags=["health"], summary="Metrics in the Prometheus format", response_class=Response)
    async def get_metrics() -> Response:
        return Response(generate_latest(metrics), media_type=CONTENT_TYPE_LATEST)

    _document_fit(app)
    return app


async def _health(services: Services) -> Health:
    """The state of the service and of each dependency."""
    states = await services.states()
    if not services.started():
        return Health(status="starting", dependencies=states)
    all_up = all(state.status == "up" for state in states.values())
    return Health(status="healthy" if all_up else "degraded", dependencies=states)


def _no_job(job_id: UUID) -> AppError:
    """The error for a job that does not exist."""
    return AppError(ErrorCode.NOT_FOUND, f"there is no job {job_id}")


def _document_fit(app: FastAPI) -> None:
    """Add the schema of the fit body, which the application reads itself, to the OpenAPI document."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        schemas = document["components"]["schemas"]
        if "FitRequest" not in schemas:
            schema = FitRequest.model_json_schema(ref_template="#/components/schemas/{model}")
            for name, definition in schema.pop("$defs").items():
                schemas.setdefault(name, definition)
            schemas["FitRequest"] = schema
        return document

    app.openapi = openapi  # type: ignore[method-assign]
