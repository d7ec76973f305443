"""The Ray Serve application `anomaly-detector`; the import path of serveConfigV2 is `anomaly_detector.app:app`."""

from __future__ import annotations

import gc
import sys
from contextlib import redirect_stdout

import ray
from fastapi import FastAPI
from ray import serve

from anomaly_detection.logging import configure_logging
from anomaly_detection.settings import ServiceSettings
from anomaly_detector.api import connected_service, create_app
from anomaly_detector.ingress import REPLICA, ReplicaMiddleware
from anomaly_detector.scaling import CPU, CpuMeter


def build() -> FastAPI:
    """The application of one replica. Ray calls this in the replica's process: nothing has to be pickled."""
    # Ray Serve replaces `sys.stdout` by a logger of its own that writes to a file; ours go to the container's output.
    with redirect_stdout(sys.__stdout__):
        configure_logging("ray-serve", ServiceSettings().log_level)
    replica = serve.get_replica_context().replica_id.unique_id
    node = ray.get_runtime_context().get_node_id()
    app = create_app(lambda: connected_service(replica, node))
    app.add_middleware(ReplicaMiddleware, replica=replica)
    REPLICA.name, REPLICA.application = replica, app
    # Nothing that is here now is ever garbage. Left in, the half million objects of Ray and the framework are looked at
    # in every full collection, which stops all requests for 80 ms; large requests bring these about.
    gc.collect()
    gc.freeze()
    return app


@serve.ingress(build)
class AnomalyDetector:
    """One replica: its own process, event loop and cache. Replicas, resources and limits are set in serveConfigV2."""

    def __init__(self) -> None:
        self._meter = CpuMeter()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What `scaling.CpuPolicy` goes by; Ray Serve asks for it."""
        return {CPU: self._meter.used()}


app = serve.deployment(name="AnomalyDetector")(AnomalyDetector).bind()
