"""What stands between a replica's HTTP server, Ray Serve and the application.

`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` names `middlewares`. Warm predictions are answered here: what Ray Serve does
for a request takes longer than the prediction itself.
"""

from __future__ import annotations

from starlette.middleware import Middleware

from anomaly_detection.http import Application, Event, Receive, Scope, Send
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


class ReplicaMiddleware:
    """What is between Ray Serve and the application.

    It names the replica in every answer, as `X-Replica`, and leaves `X-Request-ID` to Ray Serve, which adds the one it
    gave or passed to the application.

    Args:
        app: the application it wraps.
        replica: the name of this replica.
    """

    def __init__(self, app: Application, replica: str) -> None:
        self._app = app
        self._replica = (b"x-replica", replica.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""

        async def send_with_replica(event: Event) -> None:
            if event["type"] == "http.response.start":
                headers = [header for header in event["headers"] if header[0] != b"x-request-id"]
                event["headers"] = [*headers, self._replica]
            await send(event)

        await self._app(scope, receive, send_with_replica)


def middlewares() -> list[Middleware]:
    """What Ray Serve wraps itself in, the innermost first."""
    return [Middleware(UnwatchedMiddleware), Middleware(WarmPredictionMiddleware, replica=REPLICA)]
