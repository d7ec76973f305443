"""What every HTTP request goes through.

Its identity, its log line, its measurement, and the answer to an unexpected error.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from anomaly_detection.errors import AppError, ErrorCode, Render, in_envelope
from anomaly_detection.logging import set_request_id

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Observe = Callable[[str, str, int, float], None]

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_PROBES = ("/health", "/metrics", "/replica/")

logger = logging.getLogger(__name__)


def identity_of(scope: Scope) -> str:
    """The `X-Request-ID` that a request brought if it can be taken over, else a new one."""
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    return given.decode() if _REQUEST_ID.fullmatch(given) else str(uuid.uuid4())


class RequestMiddleware:
    """Pure ASGI middleware; Starlette's `BaseHTTPMiddleware` would cost a task and a stream copy per request.

    A client's `X-Request-ID` is taken over if it is 1 to 128 letters, digits, `.`, `_` or `-`, else a new one is made;
    it goes back in the answer and into every log line. An exception that no handler took is logged and answered as
    INTERNAL_ERROR.

    Args:
        app: the application it wraps.
        observe: called after every request with method, route template (`unmatched` for none), status and seconds.
        render: the form of the answer to an unexpected error.
    """

    def __init__(self, app: Application, observe: Observe | None = None, render: Render = in_envelope) -> None:
        self._app = app
        self._observe = observe
        self._render = render

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        identity = identity_of(scope)
        set_request_id(identity)
        status = 0
        start = time.perf_counter()

        async def send_with_identity(event: Event) -> None:
            nonlocal status
            if event["type"] == "http.response.start":
                status = event["status"]
                event["headers"] = [*event.get("headers", ()), (b"x-request-id", identity.encode())]
            await send(event)

        try:
            await self._app(scope, receive, send_with_identity)
        except Exception:
            logger.exception("unexpected error")
            if status:  # the answer has begun: all that is left is to break the connection
                raise
            error = AppError(ErrorCode.INTERNAL_ERROR, "an unexpected error; its request_id finds it in the logs")
            answer_status, body = self._render(scope["path"], error)
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await send_with_identity({"type": "http.response.start", "status": answer_status, "headers": headers})
            await send({"type": "http.response.body", "body": body})
        finally:
            seconds = time.perf_counter() - start
            route = getattr(scope.get("route"), "path", "unmatched")
            if self._observe:
                self._observe(scope["method"], route, status, seconds)
            # Probes and scrapes come every few seconds and tell nothing.
            level = logging.DEBUG if scope["path"].startswith(_PROBES) and status < 400 else logging.INFO
            logger.log(
                level,
                "request",
                extra={
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status,
                    "milliseconds": round(1000 * seconds, 2),
                },
            )
