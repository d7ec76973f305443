"""Bodies of `POST /fit/{series_id}`: JSON, CSV or Parquet, compressed or not."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import Request
from pydantic import BaseModel, ValidationError

from anomaly_detection.contracts import MAX_TREE_POINTS, DetectorParameters, FitOptions
from anomaly_detection.errors import AppError, ErrorCode
from anomaly_detection.series import Series, read_csv, read_points
from training_api.parquet import PARQUET, read_parquet

CSV = "text/csv"
_READERS = {CSV: read_csv, PARQUET: read_parquet}

_GZIP = 16 + zlib.MAX_WBITS  # zlib's way to ask for gzip's header and checksum


async def read_body(request: Request, limit: int) -> bytes:
    """The body of a request, decompressed, read and decompressed no further than the limit.

    Raises:
        AppError: PAYLOAD_TOO_LARGE, before anything is read when the client declares a length beyond the limit;
            INVALID_INPUT when the encoding is not known or the body is not in it.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", "x-gzip"):
        raise AppError(
            ErrorCode.INVALID_INPUT,
            "the body is in an encoding that is not known here",
            [{"field": "Content-Encoding", "reason": f"{encoding[:50]!r} is neither gzip nor identity"}],
            status=415,
            headers={"Accept-Encoding": "gzip", "Connection": "close"},
        )
    too_large = AppError(
        ErrorCode.PAYLOAD_TOO_LARGE,
        f"the body is larger than {limit} bytes",
        [{"limit_bytes": limit}],
        headers={"Connection": "close"},
    )
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    if encoding == "identity":
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise too_large
        return bytes(body)
    return await _read_gzip(request, limit, too_large)


async def _read_gzip(request: Request, limit: int, too_large: AppError) -> bytes:
    """The body of a request in gzip: one member, as every compressor makes of one input.

    Of a bomb no more than the limit is ever in memory: the decompressor stops there.
    """
    decompressor = zlib.decompressobj(_GZIP)
    body = bytearray()
    received = 0
    try:
        async for chunk in request.stream():
            received += len(chunk)
            body += decompressor.decompress(chunk, limit + 1 - len(body))
            if len(body) > limit or received > limit:
                raise too_large
            if decompressor.unused_data:
                raise _not_gzip("something follows its end")
    except zlib.error as error:
        raise _not_gzip(str(error)) from error
    if not decompressor.eof:
        raise _not_gzip("it ends early")
    return bytes(body)


def _not_gzip(reason: str) -> AppError:
    """The error for a body that is not what its `Content-Encoding` says."""
    return AppError(
        ErrorCode.INVALID_INPUT,
        "the body is not gzip",
        [{"reason": reason}],
        status=400,
        headers={"Connection": "close"},
    )


def read_fit(
    body: bytes, content_type: str, query: Mapping[str, str], *, min_points: int, max_points: int
) -> tuple[Series, FitOptions]:
    """Points and options of a fit. CPU-bound: 10 MB take a few hundred milliseconds.

    Args:
        body: decompressed.
        content_type: `text/csv`, `application/vnd.apache.parquet`, or anything else for JSON.
        query: options, each under its own name; those that a JSON body gives itself are the body's.
        min_points: fewest points allowed.
        max_points: most points allowed.

    Raises:
        AppError: what is wrong with them.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    options = _options(_of_query(query))
    if media_type in _READERS:
        series = _READERS[media_type](body, min_points=min_points, max_points=max_points)
    else:
        document = _document(body)
        data = document.pop("data")
        options = _merged(options, _options(document))
        series = read_points(data, min_points=min_points, max_points=max_points)
    _check_cost(options.parameters, len(series))
    return series, options


def _document(body: bytes) -> dict[str, Any]:
    """The object with `data` that a JSON body is."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise AppError(ErrorCode.INVALID_INPUT, "the body is not JSON", [{"reason": str(error)}], status=400) from error
    if not isinstance(document, dict) or "data" not in document:
        raise AppError(
            ErrorCode.INVALID_INPUT,
            "the body must be an object with `data`",
            [{"field": "data", "reason": "missing"}],
        )
    return document


def _check_cost(parameters: DetectorParameters, points: int) -> None:
    """Refuse a forest that is too large.

    Raises:
        AppError: INVALID_INPUT.
    """
    per_tree = parameters.points_per_tree(points)
    if parameters.n_estimators * per_tree > MAX_TREE_POINTS:
        raise AppError(
            ErrorCode.INVALID_INPUT,
            f"{parameters.n_estimators} trees of {per_tree} points each are more than the {MAX_TREE_POINTS} points "
            "allowed for a forest",
            [
                {
                    "field": "parameters.max_samples",
                    "reason": f"at most {MAX_TREE_POINTS // parameters.n_estimators} with so many trees",
                },
                {
                    "field": "parameters.n_estimators",
                    "reason": f"at most {MAX_TREE_POINTS // per_tree} with so many points each",
                },
            ],
        )


def _of_query(query: Mapping[str, str]) -> dict[str, Any]:
    """The options in a query, in the form they have in JSON: the detector's parameters stand for themselves."""
    outside = {name: query[name] for name in ("detector", "priority") if name in query}
    parameters = {name: _json_or_text(text) for name, text in query.items() if name not in outside}
    return {"parameters": parameters} | outside


def _merged(outside: FitOptions, inside: FitOptions) -> FitOptions:
    """The options of a query with those that the body gives itself put over them."""
    parameters = _given(outside.parameters) | _given(inside.parameters)
    given = _given(outside) | _given(inside) | {"parameters": DetectorParameters(**parameters)}
    return FitOptions.model_construct(**given)


def _given(options: BaseModel) -> dict[str, Any]:
    """The fields that were given, not those that have their defaults."""
    return {name: getattr(options, name) for name in options.model_fields_set}


def _json_or_text(text: str) -> Any:
    """A number or truth value where the text is one, so that 1 and 1.0 differ as they do in JSON."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _options(document: dict[str, Any]) -> FitOptions:
    """The options, checked.

    Raises:
        AppError: INVALID_INPUT.
    """
    try:
        return FitOptions.model_validate(document)
    except ValidationError as error:
        details = [
            {"field": ".".join(map(str, item["loc"])), "reason": item["msg"]}
            for item in error.errors(include_url=False, include_input=False, include_context=False)
        ]
        raise AppError(ErrorCode.INVALID_INPUT, "a parameter is not acceptable", details) from error
