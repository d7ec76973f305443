"""Errors, request identity and logs."""

from __future__ import annotations

import json
import logging
from datetime import datetime
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, HTTPException

from anomaly_detection.errors import (
    STATUS,
    AppError,
    DependencyUnavailableError,
    ErrorCode,
    ErrorEnvelope,
    install_error_handlers,
)
from anomaly_detection.http import RequestMiddleware
from anomaly_detection.logging import JsonFormatter, request_id, set_request_id


@pytest.fixture
def observed() -> list[tuple[str, str, int]]:
    return []


@pytest.fixture
def client(observed: list[tuple[str, str, int]]) -> httpx.AsyncClient:
    app = FastAPI()
    install_error_handlers(app)
    app.add_middleware(
        RequestMiddleware, observe=lambda method, route, status, _: observed.append((method, route, status))
    )

    @app.get("/items/{item}")
    async def item(item: int) -> dict[str, Any]:
        return {"item": item, "request_id": request_id()}

    @app.get("/raise/{kind}")
    async def fail(kind: str) -> None:
        raise {
            "app": AppError(ErrorCode.CANNOT_CANCEL, "no", [{"status": "running"}]),
            "away": DependencyUnavailableError("broker"),
            "http": HTTPException(403, "not yours"),
            "bug": ZeroDivisionError("secret text"),
        }[kind]

    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://api")


def test_every_code_has_a_status() -> None:
    assert set(STATUS) == set(ErrorCode)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/raise/app", 409, "CANNOT_CANCEL"),
        ("GET", "/raise/away", 503, "SERVICE_UNAVAILABLE"),
        ("GET", "/raise/http", 403, "FORBIDDEN"),
        ("GET", "/raise/bug", 500, "INTERNAL_ERROR"),
        ("GET", "/items/x", 422, "INVALID_INPUT"),
        ("GET", "/nothing", 404, "NOT_FOUND"),
        ("POST", "/items/1", 405, "METHOD_NOT_ALLOWED"),
    ],
)
async def test_every_error_is_in_the_envelope(
    client: httpx.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    answer = await client.request(method, path, headers={"X-Request-ID": "given-1"})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    envelope = ErrorEnvelope.model_validate_json(answer.content)
    assert (envelope.status, envelope.error.code) == ("error", code)
    assert envelope.metadata.request_id == answer.headers["x-request-id"] == "given-1"
    assert "secret" not in answer.text


async def test_a_client_is_told_when_to_come_back(client: httpx.AsyncClient) -> None:
    assert int((await client.get("/raise/away")).headers["retry-after"]) > 0


@pytest.mark.parametrize("given", ["", "with space", "ä".encode(), "a" * 129, "x\ty"])
async def test_an_unusable_request_id_is_replaced(client: httpx.AsyncClient, given: Any) -> None:
    answer = await client.get("/items/1", headers={"X-Request-ID": given})
    identity = answer.headers["x-request-id"]
    assert len(identity) == 36
    assert answer.json()["request_id"] == identity


async def test_requests_are_observed_by_route(client: httpx.AsyncClient, observed: list[tuple[str, str, int]]) -> None:
    for path in ("/items/1", "/items/2", "/nothing/3", "/raise/bug"):
        await client.get(path)
    assert observed == [
        ("GET", "/items/{item}", 200),
        ("GET", "/items/{item}", 200),
        ("GET", "unmatched", 404),
        ("GET", "/raise/{kind}", 500),
    ]


def test_a_log_line_is_json() -> None:
    set_request_id("r-1")
    try:
        raise ValueError("broken")
    except ValueError as error:
        record = logging.makeLogRecord(
            {
                "msg": "hello %s",
                "args": ("you",),
                "name": "n",
                "levelname": "INFO",
                "job_id": 7,
                "exc_info": (type(error), error, error.__traceback__),
            }
        )
    line = json.loads(JsonFormatter("service-1").format(record))
    set_request_id("")
    assert (line["message"], line["service"], line["request_id"], line["job_id"]) == (
        "hello you",
        "service-1",
        "r-1",
        7,
    )
    assert "ValueError: broken" in line["exception"]
    assert datetime.fromisoformat(line["timestamp"]).tzinfo is not None
