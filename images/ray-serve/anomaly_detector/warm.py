"""The short way for the most common request: one point of a series whose model is in memory.

Everything else goes the long way, through the framework, which answers the same to the same request. Routing,
dependencies, exception handlers and logging together take longer than the prediction itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass

import orjson
from fastapi import FastAPI

from anomaly_detection.http import Application, Event, Receive, Scope, Send, identity_of
from anomaly_detection.logging import write_lines
from anomaly_detector.predictor import Predictor

ROUTE = "/predict/{series_id}"
"""The route that this stands in for, as metrics name it."""

_PREFIX = "/predict/"
_CONTENT_TYPE = (b"content-type", b"application/json")
_LOG_SECONDS = 0.1  # lines of this time are written together

logger = logging.getLogger("anomaly_detection.http")


@dataclass
class Replica:
    """Whose predictions these are.

    Attributes:
        name: its name, for `X-Replica`.
        application: as `create_app` returns it; None until there is one.
    """

    name: str = ""
    application: FastAPI | None = None

    def predictor(self) -> Predictor | None:
        """Gives predictions, once the application has started."""
        if self.application is None or not hasattr(self.application.state, "service"):
            return None
        found: Predictor = self.application.state.service.predictor
        return found

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request that the application did not see; once it has started."""
        assert self.application
        self.application.state.metrics.observe(method, route, status, seconds)


class WarmPredictionMiddleware:
    """Answers a single prediction by the model in memory; hands on any other request untouched.

    It stands in front of Ray Serve and of `RequestMiddleware`, whose work it does for these requests: identity,
    metrics, log line.

    Args:
        app: the application it wraps.
        replica: gives predictions and is named in the answers; the same replica that the wrapped application is of.
        max_body_bytes: longer bodies are the application's to refuse.
    """

    def __init__(self, app: Application, replica: Replica, max_body_bytes: int = 4096) -> None:
        self._app = app
        self._replica = replica
        self._max_body_bytes = max_body_bytes
        self._log = RequestLog()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope["query_string"]:
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        predictor = self._replica.predictor()
        if predictor is None or not path.startswith(_PREFIX):
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        taken = [await receive()]
        content = taken[0].get("body", b"")
        while taken[-1].get("more_body") and len(content) <= self._max_body_bytes:
            taken.append(await receive())
            content += taken[-1].get("body", b"")
        body = None
        if taken[-1]["type"] == "http.request" and len(content) <= self._max_body_bytes:
            try:
                point = orjson.loads(content)
            except orjson.JSONDecodeError:
                pass  # the application says what is wrong with it
            else:
                body = predictor.predict_warm(path[len(_PREFIX) :], point)
        if body is None:
            await self._app(scope, _again(taken, receive), send)
            return
        answer = orjson.dumps(body)
        identity = identity_of(scope)
        headers = [
            _CONTENT_TYPE,
            (b"content-length", b"%d" % len(answer)),
            (b"x-request-id", identity.encode()),
            (b"x-replica", self._replica.name.encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})
        seconds = time.perf_counter() - start
        self._replica.observe("POST", ROUTE, 200, seconds)
        self._log.add(identity, path, seconds)


def _again(taken: list[Event], receive: Receive) -> Receive:
    """`receive` as it was before these events were taken from it."""
    events = iter(taken)

    async def receive_again() -> Event:
        for event in events:
            return event
        return await receive()

    return receive_again


class RequestLog:
    """Lines about answered predictions, as `RequestMiddleware` writes them, but up to a tenth of a second later.

    One write for many lines: a write for each takes as long as the prediction, here and in what collects the logs.
    """

    def __init__(self) -> None:
        self._entries: list[tuple[float, str, str, float]] = []

    def add(self, identity: str, path: str, seconds: float) -> None:
        """Note one request, unless the level of the log leaves it out."""
        if not logger.isEnabledFor(logging.INFO):
            return
        if not self._entries:
            asyncio.get_running_loop().call_later(_LOG_SECONDS, self.flush)
        self._entries.append((time.time(), identity, path, seconds))

    def flush(self) -> None:
        """Write what has been noted."""
        entries, self._entries = self._entries, []
        write_lines(
            (
                at,
                logger.name,
                "request",
                {
                    "request_id": identity,
                    "method": "POST",
                    "path": path,
                    "status": 200,
                    "milliseconds": round(1000 * seconds, 2),
                },
            )
            for at, identity, path, seconds in entries
        )
