"""Errors as clients see them: one envelope, one set of codes, on every route of every service."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import BaseModel, Field

from anomaly_detection.contracts import INVALID_VERSION
from anomaly_detection.logging import request_id

if TYPE_CHECKING:
    from fastapi import FastAPI

DETAILS_SHOWN = 10
"""At most this many details are listed: a body of 100,000 bad points must not be answered with as many lines."""

RETRY_AFTER_SECONDS = 5
"""How long a client should wait for a dependency that is away; connections to it are tried again every few seconds."""


class ErrorCode(StrEnum):
    """What went wrong, for programs. The HTTP status of each is in `STATUS`."""

    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    INVALID_VERSION = "INVALID_VERSION"
    INSUFFICIENT_DATA = "INSUFFICIENT_DATA"
    CONSTANT_SERIES = "CONSTANT_SERIES"
    INVALID_TIMESTAMP = "INVALID_TIMESTAMP"
    INVALID_INPUT = "INVALID_INPUT"
    TRAINING_IN_PROGRESS = "TRAINING_IN_PROGRESS"
    TRAINING_FAILED = "TRAINING_FAILED"
    CANNOT_CANCEL = "CANNOT_CANCEL"
    INVALID_STAGE_TRANSITION = "INVALID_STAGE_TRANSITION"
    PAYLOAD_TOO_LARGE = "PAYLOAD_TOO_LARGE"
    RATE_LIMIT_EXCEEDED = "RATE_LIMIT_EXCEEDED"
    UNAUTHORIZED = "UNAUTHORIZED"
    FORBIDDEN = "FORBIDDEN"
    NOT_FOUND = "NOT_FOUND"
    METHOD_NOT_ALLOWED = "METHOD_NOT_ALLOWED"
    SERVICE_UNAVAILABLE = "SERVICE_UNAVAILABLE"
    INTERNAL_ERROR = "INTERNAL_ERROR"


STATUS: Mapping[ErrorCode, int] = {
    ErrorCode.MODEL_NOT_FOUND: 404,
    ErrorCode.INVALID_VERSION: 404,
    ErrorCode.INSUFFICIENT_DATA: 422,
    ErrorCode.CONSTANT_SERIES: 422,
    ErrorCode.INVALID_TIMESTAMP: 422,
    ErrorCode.INVALID_INPUT: 422,
    ErrorCode.TRAINING_IN_PROGRESS: 409,
    ErrorCode.TRAINING_FAILED: 500,
    ErrorCode.CANNOT_CANCEL: 409,
    ErrorCode.INVALID_STAGE_TRANSITION: 409,
    ErrorCode.PAYLOAD_TOO_LARGE: 413,
    ErrorCode.RATE_LIMIT_EXCEEDED: 429,
    ErrorCode.UNAUTHORIZED: 401,
    ErrorCode.FORBIDDEN: 403,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.METHOD_NOT_ALLOWED: 405,
    ErrorCode.SERVICE_UNAVAILABLE: 503,
    ErrorCode.INTERNAL_ERROR: 500,
}
"""The HTTP status that goes with each code unless an error names another."""


class AppError(Exception):
    """An error that a client is told.

    Args:
        code: for programs.
        message: for people; one sentence.
        details: what exactly is wrong, for example `{"index": 3, "reason": "…"}`; the first `DETAILS_SHOWN` are shown.
        status: HTTP status; by default the one that goes with the code.
        headers: added to the answer.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        details: Sequence[Any] = (),
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.details = list(details)[:DETAILS_SHOWN]
        self.status = STATUS[code] if status is None else status
        self.headers = dict(headers or {})


class DependencyUnavailableError(AppError):
    """A service this one needs does not answer; the request may be sent again later.

    Args:
        dependency: its name, as the health routes show it.
    """

    def __init__(self, dependency: str) -> None:
        super().__init__(
            ErrorCode.SERVICE_UNAVAILABLE,
            f"{dependency} is not available at the moment; nothing was changed, send the request again later",
            details=[{"dependency": dependency}],
            headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
        )
        self.dependency = dependency


class ErrorBody(BaseModel):
    """The `error` part of the envelope."""

    code: ErrorCode
    message: str
    details: list[Any] = Field(default_factory=list)


class ErrorMetadata(BaseModel):
    """The `metadata` part of the envelope."""

    request_id: str
    timestamp: datetime


class ErrorEnvelope(BaseModel):
    """Every answer that is not a success has this shape."""

    status: str = Field(default="error", examples=["error"])
    error: ErrorBody
    metadata: ErrorMetadata


def envelope(error: AppError) -> bytes:
    """The JSON body that tells a client of an error."""
    return orjson.dumps(
        {
            "status": "error",
            "error": {"code": error.code, "message": error.message, "details": error.details},
            "metadata": {"request_id": request_id(), "timestamp": datetime.now(UTC)},
        },
        option=orjson.OPT_UTC_Z | orjson.OPT_SERIALIZE_NUMPY,
        default=str,
    )


Render = Callable[[str, AppError], tuple[int, bytes]]
"""From the path of a request and its error to the status and the JSON body of the answer."""


def in_envelope(_: str, error: AppError) -> tuple[int, bytes]:
    """The `Render` of routes that answer errors in the envelope."""
    return error.status, envelope(error)


def _allowed(app: FastAPI, scope: Mapping[str, Any]) -> str:
    """`Allow` of a path: all methods its routes answer. Starlette's own names those of the first route only."""
    from starlette.routing import Match

    def answered(method: str) -> bool:
        return any(route.matches({**scope, "method": method})[0] is Match.FULL for route in app.routes)

    return ", ".join(filter(answered, ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")))


def install_error_handlers(app: FastAPI, render: Render = in_envelope) -> None:
    """Answer every error of a FastAPI application in one form, its own routing and validation errors included.

    Errors nobody expected are answered by `anomaly_detection.http.RequestMiddleware`, which sees them all.

    Args:
        app: the application.
        render: the form; by default the envelope.
    """
    from fastapi import Request, Response
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException

    def answer(request: Request, error: AppError) -> Response:
        status, body = render(request.url.path, error)
        return Response(body, status, error.headers, media_type="application/json")

    async def on_app_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, AppError)
        return answer(request, error)

    async def on_validation_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        details = [
            {"field": ".".join(str(part) for part in item["loc"]), "reason": item["msg"]} for item in error.errors()
        ]
        if all(item["type"] == INVALID_VERSION for item in error.errors()):
            return answer(request, AppError(ErrorCode.INVALID_VERSION, "that is no number of a version", details, 422))
        return answer(
            request, AppError(ErrorCode.INVALID_INPUT, "the request does not have the documented form", details)
        )

    async def on_http_exception(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code, message = {
            401: (ErrorCode.UNAUTHORIZED, error.detail),
            403: (ErrorCode.FORBIDDEN, error.detail),
            404: (ErrorCode.NOT_FOUND, f"there is no route {request.url.path}"),
            405: (ErrorCode.METHOD_NOT_ALLOWED, f"{request.method} is not possible on {request.url.path}"),
            413: (ErrorCode.PAYLOAD_TOO_LARGE, error.detail),
        }.get(
            error.status_code,
            (ErrorCode.INVALID_INPUT if error.status_code < 500 else ErrorCode.INTERNAL_ERROR, error.detail),
        )
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = _allowed(app, request.scope)
        return answer(request, AppError(code, message, status=error.status_code, headers=headers))

    app.add_exception_handler(AppError, on_app_error)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_exception_handler(HTTPException, on_http_exception)
