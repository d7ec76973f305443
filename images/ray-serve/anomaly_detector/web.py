"""What the routes share: reading bodies, writing answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import orjson
from fastapi import Request, Response

from anomaly_detection.errors import AppError, ErrorCode

if TYPE_CHECKING:
    from anomaly_detector.api import Service

_JSON = "application/json"


def service_of(request: Request) -> Service:
    """The service that the application of a request runs on."""
    service: Service = request.app.state.service
    return service


def json_body(model: type[Any], examples: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAPI description of a body that the route reads by itself.

    Args:
        model: Pydantic model of the body.
        examples: by name, bodies to try.
    """
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    shown = {name: {"value": value} for name, value in examples.items()}
    return {"requestBody": {"required": True, "content": {_JSON: {"schema": schema, "examples": shown}}}}


def json_answer(content: Any, status: int = 200) -> Response:
    """An answer in JSON."""
    return Response(orjson.dumps(content), status, media_type=_JSON)


async def read_json(request: Request) -> Any:
    """The body, parsed.

    Raises:
        AppError: PAYLOAD_TOO_LARGE, or INVALID_INPUT where it is not JSON.
    """
    max_bytes = service_of(request).settings.max_body_bytes
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise AppError(ErrorCode.PAYLOAD_TOO_LARGE, f"the body is larger than the {max_bytes} bytes allowed")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise AppError(
            ErrorCode.INVALID_INPUT, "the body is not JSON", [{"field": "body", "reason": str(error)}]
        ) from error


def only_member(name: str, body: Any) -> Any:
    """The member of a body that has this one only.

    Raises:
        AppError: INVALID_INPUT.
    """
    if not isinstance(body, dict) or body.keys() != {name}:
        raise AppError(
            ErrorCode.INVALID_INPUT,
            f"the body must be an object with exactly one member, `{name}`",
            [{"field": "body", "reason": f"not an object with only `{name}`"}],
        )
    return body[name]
