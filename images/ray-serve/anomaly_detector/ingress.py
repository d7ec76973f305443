"""What stands between a replica's HTTP server and Ray Serve; `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` names it.

Warm predictions are answered here: what Ray Serve does for a request takes longer than the prediction itself.
"""

from __future__ import annotations

from starlette.middleware import Middleware

from anomaly_detection.http import Application, Receive, Scope, Send
from anomaly_detector.warm import Replica, WarmPredictionMiddleware

_DISCONNECT_DISABLED = (b"x-request-disconnect-disabled", b"?1")

REPLICA = Replica()
"""The replica of this process; Ray Serve asks for the middlewares before it makes the application."""


class UnwatchedMiddleware:
    """Asks Ray Serve not to watch for clients that go away: two tasks and a queue less for each request.

    Requests take milliseconds; one whose client is gone is answered all the same, and its answer thrown away.

    Args:
        app: the application it wraps.
    """

    def __init__(self, app: Application) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] == "http":
            scope["headers"] = [*scope["headers"], _DISCONNECT_DISABLED]
        await self._app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """What Ray Serve wraps itself in, the innermost first."""
    return [Middleware(UnwatchedMiddleware), Middleware(WarmPredictionMiddleware, replica=REPLICA)]
