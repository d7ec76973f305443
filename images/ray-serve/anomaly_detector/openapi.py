"""What the routes' OpenAPI descriptions share."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Path, Query
from pydantic import BaseModel

from anomaly_detection.contracts import SERIES_ID_PATTERN
from anomaly_detection.errors import ErrorEnvelope

VERSION_PATTERN = r"^[1-9][0-9]{0,8}$"
"""A version as it stands in a path or a query."""

_SERIES_ID: dict[str, Any] = {"description": "letters, digits and `_`, 1 to 128", "example": "sensor_17_x"}
_VERSION: dict[str, Any] = {"description": "number of a version", "example": "1"}

# The patterns are not checked by the framework: the service does, and says what is wrong in its own words.
SeriesIdPath = Annotated[
    str,
    Path(
        description=_SERIES_ID["description"],
        json_schema_extra={"pattern": SERIES_ID_PATTERN},
        openapi_examples={"x": {"value": _SERIES_ID["example"]}},
    ),
]

VersionQuery = Annotated[
    str | None,
    Query(
        description="number of a version; without it the one in production answers",
        json_schema_extra={"pattern": VERSION_PATTERN},
    ),
]

LimitQuery = Annotated[int, Query(description="how many models to list; of more than 1,000 so many are")]

_MEANINGS = {
    400: "The input is not acceptable; `error` says why.",
    404: "The series has no model in production, or there is no such version.",
    413: "The body is too large.",
    422: "The input is not acceptable; `code` and `details` say why.",
    500: "An unexpected error.",
    503: "The model is not in memory and cannot be loaded now. `Retry-After` says when to come back.",
}


def errors(*codes: int, model: type[BaseModel] = ErrorEnvelope) -> dict[int | str, dict[str, Any]]:
    """Descriptions of the error answers of a route, the unexpected one included."""
    return {code: {"model": model, "description": _MEANINGS[code]} for code in (*codes, 500)}


def path_parameters(path: str) -> list[dict[str, Any]]:
    """Descriptions of the parameters in a path, for routes that read them by themselves."""
    known = {"series_id": (SERIES_ID_PATTERN, _SERIES_ID), "version": (VERSION_PATTERN, _VERSION)}
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": about["description"],
            "schema": {"type": "string", "pattern": pattern},
            "examples": {"x": {"value": about["example"]}},
        }
        for name, (pattern, about) in known.items()
        if f"{{{name}}}" in path
    ]
