"""The Ray Serve application `anomaly-detector`; the import path of serveConfigV2 is `anomaly_detector.app:app`."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout

from fastapi import FastAPI
from ray import serve

from anomaly_detection.http import Application, Event, Receive, Scope, Send
from anomaly_detection.logging import configure_logging
from anomaly_detection.settings import ServiceSettings
from anomaly_detector.api import create_app


class SingleRequestIdMiddleware:
    """Leaves the `X-Request-ID` of an answer to Ray Serve, which adds the one it gave or passed to the application.

    Args:
        app: the application it wraps.
    """

    def __init__(self, app: Application) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""

        async def send_without_identity(event: Event) -> None:
            if event["type"] == "http.response.start":
                event["headers"] = [header for header in event["headers"] if header[0] != b"x-request-id"]
            await send(event)

        await self._app(scope, receive, send_without_identity)


def build() -> FastAPI:
    """The application of one replica. Ray calls this in the replica's process: nothing has to be pickled."""
    # Ray Serve replaces `sys.stdout` by a logger of its own that writes to a file; ours go to the container's output.
    with redirect_stdout(sys.__stdout__):
        configure_logging("ray-serve", ServiceSettings().log_level)
    app = create_app()
    app.add_middleware(SingleRequestIdMiddleware)
    return app


@serve.ingress(build)
class AnomalyDetector:
    """One replica: its own process, event loop and cache. Replicas, resources and limits are set in serveConfigV2."""


app = serve.deployment(name="AnomalyDetector")(AnomalyDetector).bind()
