"""The two HTTP interfaces as the demonstration uses them, with their errors made readable."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np

from ci.console import Failure

# What a gateway or a starting replica answers: the same request may succeed in a moment.
_PASSING = frozenset({502, 503, 504})


class Refusal(Failure):
    """A service refused a request.

    Attributes:
        code: the error code of its answer.
    """

    def __init__(self, code: str, problem: str) -> None:
        super().__init__(problem, "docs/troubleshooting.md explains the error codes")
        self.code = code


@dataclass(frozen=True)
class LatencySummary:
    """Round trips of single requests over one open connection, as the caller saw them, in milliseconds."""

    requests: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> LatencySummary:
        """Summarise at least one round trip given in seconds."""
        millis = np.asarray(seconds) * 1000.0
        p50, p95, p99 = np.percentile(millis, [50, 95, 99])
        return cls(
            len(millis), round(float(p50), 3), round(float(p95), 3), round(float(p99), 3), round(float(millis.max()), 3)
        )


class Client:
    """Training API and inference of one installation.

    Args:
        training_api: base URL of the training API.
        inference: base URL of the inference service.
        patience_s: how long a connection that is refused, or an answer that asks to come again, is tried again.
        say: receives a line for a person when the client waits.
    """

    def __init__(
        self, training_api: str, inference: str, *, patience_s: float = 75.0, say: Callable[[str], None] = print
    ) -> None:
        self.training_api = training_api.rstrip("/")
        self.inference = inference.rstrip("/")
        self._patience_s = patience_s
        self._say = say
        # The addresses are given and local: a proxy from the environment would only be in the way.
        self._http = httpx.Client(timeout=httpx.Timeout(30.0, connect=5.0), trust_env=False)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def fit(self, series_id: str, points: Sequence[dict[str, float]], parameters: dict[str, Any]) -> dict[str, Any]:
        """Submit points for training; the answer holds `job_id`, `status` and `links`."""
        body = {"data": points, "parameters": parameters}
        return self._call("POST", f"{self.training_api}/fit/{quote(series_id)}", body)

    def job(self, job_id: str) -> dict[str, Any]:
        """State of a training job."""
        return self._call("GET", f"{self.training_api}/jobs/{quote(job_id)}")

    def predict(self, series_id: str, point: dict[str, float]) -> dict[str, Any]:
        """Score one point."""
        return self._call("POST", f"{self.inference}/predict/{quote(series_id)}", point)

    def predict_if_served(self, series_id: str, point: dict[str, float]) -> dict[str, Any] | None:
        """Score one point; None while the series has no model that is served."""
        try:
            return self.predict(series_id, point)
        except Refusal as refusal:
            if refusal.code == "MODEL_NOT_FOUND":
                return None
            raise

    def predict_batch(self, series_id: str, points: Sequence[dict[str, float]]) -> dict[str, Any]:
        """Score up to 32,768 points."""
        return self._call("POST", f"{self.inference}/predict/{quote(series_id)}/batch", {"data": points})

    def _call(self, method: str, url: str, body: Any = None) -> dict[str, Any]:
        """Send one request and return its JSON body.

        Raises:
            Refusal: when the service refuses the request.
            Failure: when the service cannot be reached or stays unavailable for `patience_s`, or answers no JSON.
        """
        deadline = time.monotonic() + self._patience_s
        told = False
        while True:
            try:
                answer = self._http.request(method, url, json=body)
            except httpx.TransportError as error:
                reason, pause = f"no answer from {url}: {error or type(error).__name__}", 1.0
            else:
                if answer.is_success:
                    return _json(answer)
                code, message, request_id = _refusal(answer)
                reason = f"{method} {url} answered {answer.status_code} {code}: {message} (request id {request_id})"
                if answer.status_code not in _PASSING | {429}:
                    raise Refusal(code, reason)
                pause = _retry_after(answer, otherwise=1.0)
            if time.monotonic() + pause > deadline:
                raise Failure(
                    reason, "`make status` shows what runs; docs/troubleshooting.md says how to mend what does not"
                )
            if not told:
                self._say(f"    waiting: {reason}")
                told = True
            time.sleep(pause)


def _json(answer: httpx.Response) -> dict[str, Any]:
    try:
        payload: dict[str, Any] = answer.json()
    except ValueError as error:
        raise Failure(
            f"{answer.url} answered {answer.status_code} without JSON", "check that the URL is the service's own"
        ) from error
    return payload


def _refusal(answer: httpx.Response) -> tuple[str, str, str]:
    """Error code, message and request id of an answer that is not a success."""
    request_id = answer.headers.get("X-Request-ID", "none")
    try:
        payload = answer.json()
        return payload["error"]["code"], payload["error"]["message"], payload["metadata"]["request_id"]
    except (ValueError, KeyError, TypeError):
        return "(no error code)", answer.text[:200].strip(), request_id


def _retry_after(answer: httpx.Response, otherwise: float) -> float:
    try:
        return max(0.1, float(answer.headers["Retry-After"]))
    except (KeyError, ValueError):
        return otherwise
