"""Every kind of bad input gets its own error code, in the same envelope, and changes nothing."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from live.system import System, points, unique

GOOD = points(120)


def changed(index: int, **fields: Any) -> dict[str, Any]:
    """A good fit with fields of one point replaced."""
    data: list[dict[str, Any]] = [dict(point) for point in GOOD]
    data[index] |= fields
    return {"data": data}


def check(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The `error` part of an answer that has to be an error in the documented envelope."""
    assert answer.status_code == status, f"{answer.status_code} {answer.text}"
    body = answer.json()
    assert body["status"] == "error"
    assert body["error"]["code"] == code, body
    assert body["error"]["message"]
    assert isinstance(body["error"]["details"], list)
    assert body["metadata"]["request_id"] == answer.headers["X-Request-ID"]
    assert body["metadata"]["timestamp"]
    error: dict[str, Any] = body["error"]
    return error


FITS = {
    "too few points": ({"data": GOOD[:99]}, 422, "INSUFFICIENT_DATA"),
    "no points": ({"data": []}, 422, "INSUFFICIENT_DATA"),
    "constant": ({"data": [{**p, "value": 1.5} for p in GOOD]}, 422, "CONSTANT_SERIES"),
    "almost constant": (
        {"data": [{**p, "value": 1 + i % 2 * 1e-7} for i, p in enumerate(GOOD)]},
        422,
        "CONSTANT_SERIES",
    ),
    "time stands still": (changed(7, timestamp=GOOD[6]["timestamp"]), 422, "INVALID_TIMESTAMP"),
    "time goes back": ({"data": GOOD[::-1]}, 422, "INVALID_TIMESTAMP"),
    "time in milliseconds": (
        {"data": [{**p, "timestamp": p["timestamp"] * 1000} for p in GOOD]},
        422,
        "INVALID_TIMESTAMP",
    ),
    "time as text": (changed(3, timestamp="2026-01-01T00:00:00Z"), 422, "INVALID_TIMESTAMP"),
    "value as text": (changed(3, value="0.5"), 422, "INVALID_INPUT"),
    "value missing": (changed(3, value=None), 422, "INVALID_INPUT"),
    "unknown field of a point": (changed(3, unit="g"), 422, "INVALID_INPUT"),
    "value beyond single precision": (changed(3, value=1e300), 422, "INVALID_INPUT"),
    "no data": ({"points": GOOD}, 422, "INVALID_INPUT"),
    "unknown field": ({"data": GOOD, "prio": "high"}, 422, "INVALID_INPUT"),
    "parameter out of range": ({"data": GOOD, "parameters": {"contamination": 0.9}}, 422, "INVALID_INPUT"),
    "unknown parameter": ({"data": GOOD, "parameters": {"trees": 10}}, 422, "INVALID_INPUT"),
    "too many points": ({"data": [{"timestamp": i, "value": i % 7} for i in range(100_001)]}, 422, "INVALID_INPUT"),
}


@pytest.mark.parametrize(("body", "status", "code"), FITS.values(), ids=FITS.keys())
def test_a_bad_fit_is_refused(system: System, series: str, body: Any, status: int, code: str) -> None:
    check(system.training.request("POST", f"/fit/{series}", json=body), status, code)
    jobs = system.training.request("GET", f"/jobs?series_id={series}").json()["jobs"]
    assert jobs == [], "a refused fit must leave no job"


@pytest.mark.parametrize("text", ["{", "", "NaN", '{"data": [{"timestamp": 1, "value": NaN}]}'])
def test_a_body_that_is_not_json_is_refused(system: System, series: str, text: str) -> None:
    check(system.training.request("POST", f"/fit/{series}", content=text), 400, "INVALID_INPUT")


@pytest.mark.parametrize("name", ["with-dash", "with%20space", "a" * 129, "ümlaut", "a%0A"])
def test_a_bad_series_name_is_refused(system: System, name: str) -> None:
    check(system.training.request("POST", f"/fit/{name}", json={"data": GOOD}), 422, "INVALID_INPUT")
    check(system.inference.request("POST", f"/predict/{name}", json=GOOD[0]), 422, "INVALID_INPUT")


def test_a_body_of_more_than_10_mb_is_refused(system: System, series: str) -> None:
    body = json.dumps({"data": GOOD}).encode().ljust(10 * 1024 * 1024 + 1)
    check(system.training.request("POST", f"/fit/{series}", content=body), 413, "PAYLOAD_TOO_LARGE")
    check(system.inference.request("POST", f"/predict/{series}/batch", content=body), 413, "PAYLOAD_TOO_LARGE")


def test_the_sixth_fit_in_a_minute_is_refused(system: System, series: str) -> None:
    for seed in range(5):
        system.fit(series, points(120, seed=seed))
    answer = system.training.request("POST", f"/fit/{series}", json={"data": points(120, seed=5)})
    check(answer, 429, "RATE_LIMIT_EXCEEDED")
    assert 0 < int(answer.headers["Retry-After"]) <= 60
    # Another series is not held up by it.
    system.fit(unique("other"), points(120))


def test_a_job_that_does_not_exist_is_not_found(system: System) -> None:
    nobody = "00000000-0000-4000-8000-000000000000"
    check(system.training.request("GET", f"/jobs/{nobody}"), 404, "NOT_FOUND")
    check(system.training.request("DELETE", f"/jobs/{nobody}"), 404, "NOT_FOUND")
    check(system.training.request("GET", "/jobs/not-an-id"), 422, "INVALID_INPUT")


def test_a_finished_job_cannot_be_cancelled(system: System, series: str) -> None:
    job = system.succeeded(system.fit(series, points(300)))
    check(system.training.request("DELETE", f"/jobs/{job['job_id']}"), 409, "CANNOT_CANCEL")
    assert system.job(job["job_id"])["status"] == "succeeded"


def test_a_series_without_a_model_is_not_found(system: System, series: str) -> None:
    check(system.inference.request("POST", f"/predict/{series}", json=GOOD[0]), 404, "MODEL_NOT_FOUND")
    check(system.inference.request("POST", f"/predict/{series}/batch", json={"data": GOOD}), 404, "MODEL_NOT_FOUND")
    check(system.training.request("GET", f"/models/{series}/versions"), 404, "MODEL_NOT_FOUND")


@pytest.mark.parametrize("service", ["training", "inference"])
def test_unknown_routes_and_methods_answer_in_the_envelope(system: System, service: str) -> None:
    endpoint = getattr(system, service)
    check(endpoint.request("GET", "/nothing/here"), 404, "NOT_FOUND")
    check(endpoint.request("PUT", "/health"), 405, "METHOD_NOT_ALLOWED")


@pytest.fixture(scope="module")
def known(system: System) -> str:
    """A series that has a model."""
    series = unique("known")
    system.model(series)
    return series


PREDICTIONS = {
    "value as text": ("", {"timestamp": 1, "value": "x"}, 422, "INVALID_INPUT"),
    "value missing": ("", {"timestamp": 1}, 422, "INVALID_INPUT"),
    "unknown field": ("", {"timestamp": 1, "value": 1, "unit": "g"}, 422, "INVALID_INPUT"),
    "a list": ("", [1, 2], 422, "INVALID_INPUT"),
    "unknown version": ("?version=99", {"timestamp": 1, "value": 1}, 404, "INVALID_VERSION"),
    "version as text": ("?version=newest", {"timestamp": 1, "value": 1}, 422, "INVALID_VERSION"),
    "an empty batch": ("/batch", {"data": []}, 422, "INSUFFICIENT_DATA"),
    "a batch in disorder": ("/batch", {"data": GOOD[::-1]}, 422, "INVALID_TIMESTAMP"),
    "too long a batch": (
        "/batch",
        {"data": [{"timestamp": i, "value": 0} for i in range(32_769)]},
        422,
        "INVALID_INPUT",
    ),
}


@pytest.mark.parametrize(("path", "body", "status", "code"), PREDICTIONS.values(), ids=PREDICTIONS.keys())
def test_a_bad_prediction_is_refused(system: System, known: str, path: str, body: Any, status: int, code: str) -> None:
    check(system.inference.request("POST", f"/predict/{known}{path}", json=body), status, code)
