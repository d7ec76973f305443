"""Test of an installation: from a series to the prediction of its model, through the services as a user sees them."""

from __future__ import annotations

import functools
import math
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from ads_tools.console import Failure, say, setting
from ads_tools.waiting import NotYetError, wait_until

SERIES_ID = "smoke_test"
"""The series of every run: each makes a new version of one model, and old versions are removed as for any series."""

POINTS = 1_000
ORDINARY, OUTLIER = 0.0, 50.0
CONTAMINATION = 0.01

_HEALTH_SECONDS = 180.0
_TRAINING_SECONDS = 180.0
_SERVED_SECONDS = 60.0
_FINAL = {"succeeded", "failed", "cancelled", "superseded"}


@dataclass(frozen=True)
class Smoke:
    """The services under test.

    Attributes:
        api: client of the training API.
        inference: client of the inference service.
        mlflow: client of the MLflow server.
        interval: seconds between two looks at something that is waited for.
    """

    api: httpx.Client
    inference: httpx.Client
    mlflow: httpx.Client
    interval: float = 0.5

    def run(self) -> None:
        """Test everything.

        Raises:
            Failure: something does not work; the message says what.
        """
        for name, client, path in (
            ("training API", self.api, "/health/ready"),
            ("MLflow", self.mlflow, "/health"),
            ("inference", self.inference, "/health/ready"),
        ):
            self._step(f"{name} is ready", _HEALTH_SECONDS, functools.partial(_get, client, path))

        version = self._train()

        outlier = self._step(
            f"version {version} is served", _SERVED_SECONDS, lambda: self._predict_with(version, OUTLIER)
        )
        ordinary = self._predict_with(version, ORDINARY)
        for value, expected, prediction in ((OUTLIER, True, outlier), (ORDINARY, False, ordinary)):
            told = f"value {value:g}: score {prediction['anomaly_score']:.3f}, threshold {prediction['threshold']:.3f}"
            if prediction["is_anomaly"] is not expected:
                raise Failure(
                    f"{told}: this {'is' if expected else 'is not'} an anomaly, but the service says otherwise"
                )
            say(f"ok    {told}, {'an anomaly' if expected else 'ordinary'}")
        self._predict_batch()

    def _train(self) -> int:
        """Fit the series; returns the version of the model."""
        body = {"data": series(int(time.time())), "parameters": {"contamination": CONTAMINATION}}
        answer = self._step(
            "a series is accepted for training", _HEALTH_SECONDS, lambda: _post(self.api, f"/fit/{SERIES_ID}", body)
        )
        job_id = answer["job_id"]

        def finished() -> dict[str, Any]:
            job: dict[str, Any] = _get(self.api, f"/jobs/{job_id}")
            if job["status"] not in _FINAL:
                raise NotYetError(f"job {job_id} is {job['status']}")
            return job

        job = self._step("the training has ended", _TRAINING_SECONDS, finished)
        if job["status"] != "succeeded":
            raise Failure(f"job {job_id} has {job['status']}: {job.get('error')}")
        version = int(job["model_version"])
        say(f"ok    job {job_id} made version {version}: {_durations(job.get('durations') or {})}")
        return version

    def _predict_with(self, version: int, value: float) -> dict[str, Any]:
        point = {"timestamp": int(time.time()), "value": value}
        prediction: dict[str, Any] = _post(self.inference, f"/predict/{SERIES_ID}", point)
        if prediction["model_version"] < version or prediction["source"] != "model":
            raise NotYetError(f"version {prediction['model_version']} answered, from the {prediction['source']}")
        return prediction

    def _predict_batch(self) -> None:
        """Half ordinary values, half outliers: the batch route must tell them apart."""
        start = int(time.time())
        values = [ORDINARY, OUTLIER] * 50
        data = [{"timestamp": start + i, "value": value} for i, value in enumerate(values)]
        found = _post(self.inference, f"/predict/{SERIES_ID}/batch", {"data": data})["predictions"]
        flags = [prediction["is_anomaly"] for prediction in found]
        if flags != [value == OUTLIER for value in values]:
            raise Failure(f"a batch of {len(values)} points with 50 outliers has {sum(flags)} anomalies")
        say(f"ok    a batch of {len(values)} points: {sum(flags)} anomalies, as made")

    def _step(self, what: str, seconds: float, operation: Any) -> Any:
        start = time.monotonic()
        result = wait_until(what, operation, seconds=seconds, interval=self.interval)
        say(f"ok    {what} ({time.monotonic() - start:.1f} s)")
        return result


def series(end: int) -> list[dict[str, float]]:
    """A slow wave with noise around `ORDINARY`, a point every 5 minutes until `end`; another for another `end`."""
    noise = random.Random(end)  # noqa: S311 - test data
    return [
        {"timestamp": end - 300 * (POINTS - i), "value": round(math.sin(i / 20) + noise.gauss(0, 0.3), 6)}
        for i in range(POINTS)
    ]


def _durations(durations: Mapping[str, float | None]) -> str:
    return ", ".join(
        f"{name.removesuffix('_s')} {seconds:.2f} s" for name, seconds in durations.items() if seconds is not None
    )


def _get(client: httpx.Client, path: str) -> Any:
    return _answer(client, "GET", path, None)


def _post(client: httpx.Client, path: str, body: Any) -> Any:
    return _answer(client, "POST", path, body)


def _answer(client: httpx.Client, method: str, path: str, body: Any) -> Any:
    """An answer; what may pass by itself raises NotYetError.

    Raises:
        Failure: a refusal that will not pass.
    """
    try:
        response = client.request(method, path, json=body)
    except httpx.TransportError as error:
        raise NotYetError(f"{client.base_url} does not answer ({error!r})") from error
    # 404 passes too: behind an ingress a service has no routes yet, and a new model is not registered yet.
    if response.status_code in (404, 429) or response.status_code >= 500:
        raise NotYetError(f"{method} {path} answers {response.status_code} {response.text[:300]}")
    if response.is_error:
        raise Failure(f"{method} {client.base_url}{path} answers {response.status_code} {response.text[:300]}")
    return response.json() if "json" in response.headers.get("content-type", "") else response.text


def main() -> None:
    """Test the installation that the environment names.

    Raises:
        Failure: something does not work.
    """
    with (
        httpx.Client(base_url=setting("TRAINING_API_URL"), timeout=15, trust_env=False) as api,
        httpx.Client(base_url=setting("INFERENCE_URL"), timeout=15, trust_env=False) as inference,
        httpx.Client(base_url=setting("MLFLOW_URL"), timeout=15, trust_env=False) as mlflow,
    ):
        Smoke(api, inference, mlflow).run()
    say("all tests passed")
