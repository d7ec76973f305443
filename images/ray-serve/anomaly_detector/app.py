"""The Ray Serve application `anomaly-detector`; the import path of serveConfigV2 is `anomaly_detector.app:app`."""

from __future__ import annotations

import asyncio
import gc
import sys
from contextlib import redirect_stdout

import ray
from fastapi import FastAPI
from ray import serve

from anomaly_detection.http import Application, Event, Receive, Scope, Send
from anomaly_detection.logging import configure_logging
from anomaly_detection.settings import ServiceSettings
from anomaly_detector.api import connected_service, create_app


class ReplicaMiddleware:
    """What is between Ray Serve and the application.

    It names the replica in every answer, as `X-Replica`, and leaves `X-Request-ID` to Ray Serve, which adds the one it
    gave or passed to the application.

    It lets requests be seen: Ray Serve's autoscaler counts the ongoing ones now and then, on the event loop that also
    answers them. A prediction by a model in memory waits for nothing, so it would begin and end between two looks, and
    a replica with no time left would seem to have nothing to do. So each begins, and is then answered in its turn.

    Args:
        app: the application it wraps.
        replica: the name of this replica.
    """

    def __init__(self, app: Application, replica: str) -> None:
        self._app = app
        self._replica = (b"x-replica", replica.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        await asyncio.sleep(0)

        async def send_with_replica(event: Event) -> None:
            if event["type"] == "http.response.start":
                headers = [header for header in event["headers"] if header[0] != b"x-request-id"]
                event["headers"] = [*headers, self._replica]
            await send(event)

        await self._app(scope, receive, send_with_replica)


def build() -> FastAPI:
    """The application of one replica. Ray calls this in the replica's process: nothing has to be pickled."""
    # Ray Serve replaces `sys.stdout` by a logger of its own that writes to a file; ours go to the container's output.
    with redirect_stdout(sys.__stdout__):
        configure_logging("ray-serve", ServiceSettings().log_level)
    replica = serve.get_replica_context().replica_id.unique_id
    node = ray.get_runtime_context().get_node_id()
    app = create_app(lambda: connected_service(replica, node))
    app.add_middleware(ReplicaMiddleware, replica=replica)
    # Nothing that is here now is ever garbage. Left in, the half million objects of Ray and the framework are looked at
    # in every full collection, which stops all requests for 80 ms; large requests bring these about.
    gc.collect()
    gc.freeze()
    return app


@serve.ingress(build)
class AnomalyDetector:
    """One replica: its own process, event loop and cache. Replicas, resources and limits are set in serveConfigV2."""


app = serve.deployment(name="AnomalyDetector")(AnomalyDetector).bind()
