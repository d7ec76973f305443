"""The compared design: MLflow unpickles the scikit-learn model, `decision_function` scores each request.

Ray Serve serves it as it is installed: Python proxy, one replica, no settings. Run as
`python -m load_tests.baseline.app PORT` with `MLFLOW_TRACKING_URI` set; SIGTERM ends it.
"""

from __future__ import annotations

import signal
import sys
from typing import Any

import mlflow.sklearn
import ray
from ray import serve
from starlette.requests import Request


class Baseline:
    """POST /predict/{series_id} with `{"timestamp", "value"}`; models stay in memory once loaded."""

    def __init__(self) -> None:
        self._models: dict[str, Any] = {}

    async def __call__(self, request: Request) -> dict[str, Any]:
        """Score one point."""
        series_id = request.url.path.rsplit("/", 1)[-1]
        point = await request.json()
        if series_id not in self._models:
            self._models[series_id] = mlflow.sklearn.load_model(f"models:/model_od_{series_id}@production")
        decision = float(self._models[series_id].decision_function([[point["value"]]])[0])
        return {"series_id": series_id, **point, "anomaly_score": -decision, "is_anomaly": decision < 0}


def main() -> None:
    """Serve on the port that the command line names until a signal comes."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 1024**2)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(serve.deployment(Baseline, max_ongoing_requests=100).bind(), name="baseline", route_prefix="/")
    print("ready", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        signal.pause()
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
