"""Health and metrics of the worker over HTTP: `/health/live`, `/health/ready`, `/health`, `/metrics` on port 8040."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager

import orjson
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from anomaly_detection.errors import AppError, DependencyUnavailableError, ErrorCode, envelope
from anomaly_detection.http import Application, Receive, RequestMiddleware, Scope, Send

PORT = 8040


def health_app(
    ready: Callable[[], bool], checks: Mapping[str, Callable[[], Awaitable[None]]], metrics: CollectorRegistry
) -> Application:
    """The application: a few routes need no framework.

    Args:
        ready: whether the worker consumes jobs.
        checks: by name, a call that raises DependencyUnavailableError when the dependency is away.
        metrics: what `/metrics` shows.
    """

    async def state(check: Callable[[], Awaitable[None]]) -> dict[str, str | float]:
        start = time.perf_counter()
        try:
            await check()
            status = "up"
        except DependencyUnavailableError:
            status = "down"
        return {"status": status, "latency_ms": round(1000 * (time.perf_counter() - start), 2)}

    async def answer(path: str) -> tuple[int, str, bytes]:
        if path == "/metrics":
            return 200, CONTENT_TYPE_LATEST, generate_latest(metrics)
        if path == "/health/live":
            return 200, "application/json", orjson.dumps({"status": "alive"})
        if path in ("/health", "/health/ready"):
            states = dict(zip(checks, await asyncio.gather(*map(state, checks.values())), strict=True))
            all_up = all(item["status"] == "up" for item in states.values())
            status = "starting" if not ready() else "healthy" if all_up else "degraded"
            # A worker that waits for a dependency is in service; monitoring wants to know all the same.
            good = status == "healthy" or (status == "degraded" and path == "/health/ready")
            return 200 if good else 503, "application/json", orjson.dumps({"status": status, "dependencies": states})
        error = AppError(ErrorCode.NOT_FOUND, f"there is no route {path}")
        return error.status, "application/json", envelope(error)

    async def app(scope: Scope, _: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        status, content_type, body = await answer(scope["path"])
        headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return RequestMiddleware(app)


class HealthServer(uvicorn.Server):
    """A uvicorn server beside the worker: signals are the worker's."""

    def __init__(self, app: Application, port: int = PORT) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host="0.0.0.0",  # noqa: S104 - a container listens on all of its addresses
                port=port,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=2,
            )
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield
