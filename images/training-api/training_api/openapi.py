"""What the routes' OpenAPI descriptions share."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import Path

from anomaly_detection.contracts import SERIES_ID_PATTERN, FitOptions
from anomaly_detection.errors import ErrorEnvelope

SeriesIdPath = Annotated[
    str,
    Path(
        pattern=SERIES_ID_PATTERN,
        description="letters, digits and `_`, 1 to 128",
        openapi_examples={"x": {"value": "sensor_17_x"}},
    ),
]

JobIdPath = Annotated[
    UUID,
    Path(
        description="as `POST /fit/{series_id}` answered it",
        openapi_examples={"x": {"value": "6f1c0f43-7d0a-4c51-9d0e-2f3a5b8c7d10"}},
    ),
]

_MEANINGS = {
    400: "The body cannot be read.",
    404: "There is no such thing.",
    409: "Not in the present state; `code` says why.",
    413: "The body is too large.",
    415: "The body has an encoding that is not known here.",
    422: "The input is not acceptable; `code` and `details` say why.",
    429: "Too many fits of this series; `Retry-After` says when to come back.",
    500: "An unexpected error.",
    503: "A service this one needs is away; nothing was changed. `Retry-After` says when to come back.",
}


def errors(*codes: int) -> dict[int | str, dict[str, Any]]:
    """Descriptions of the error answers of a route, the unexpected one included."""
    return {code: {"model": ErrorEnvelope, "description": _MEANINGS[code]} for code in (*codes, 500)}


def fit_query_parameters() -> list[dict[str, Any]]:
    """Descriptions of the options of a fit as query parameters: `detector`, `priority` and the detector's own."""
    schema = FitOptions.model_json_schema()
    definitions = schema["$defs"]
    options = {
        "detector": schema["properties"]["detector"],
        "priority": {
            **definitions["Priority"],
            "default": schema["properties"]["priority"]["default"],
            "description": "which queue the job waits in; `high` is served first",
        },
        **definitions["DetectorParameters"]["properties"],
    }
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": option.pop("description"),
            "schema": option,
        }
        for name, option in options.items()
    ]
