"""The Open Inference Protocol, version 2, over HTTP and JSON: the same models and scores for clients that speak it.

A model is named by its series; its versions are the registry's. The one input is the tensor `value`; binary tensors are
not supported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import orjson
from fastapi import FastAPI, Request, Response
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from anomaly_detection.errors import AppError, ErrorCode, in_envelope
from anomaly_detector.openapi import errors, path_parameters
from anomaly_detector.predictor import Predictor, Scores, check_series_id, parse_version
from anomaly_detector.turns import Turns
from anomaly_detector.web import json_answer, json_body, read_json, service_of

_PREFIX = "/v2"
_TYPES = ("FP64", "FP32")
_MEMBERS = {"id", "parameters", "inputs", "outputs"}
_PLATFORM = "anomaly-detection-system_step-function"

_OUTPUTS: dict[str, tuple[str, Callable[[Scores], NDArray[Any]]]] = {
    "anomaly_score": ("FP64", lambda found: found.scores.astype(np.float64)),
    "is_anomaly": ("BOOL", lambda found: found.is_anomaly),
    "threshold": ("FP64", lambda found: np.array([found.threshold])),
}
"""By name of an output, its type and what is in it."""

_EXAMPLES: dict[str, dict[str, Any]] = {
    "two values": {"inputs": [{"name": "value", "shape": [2], "datatype": "FP64", "data": [0.12, 9.5]}]},
    "one output, as a column": {
        "id": "42",
        "inputs": [{"name": "value", "shape": [2, 1], "datatype": "FP32", "data": [[0.12], [9.5]]}],
        "outputs": [{"name": "is_anomaly"}],
    },
}


class ProtocolError(BaseModel):
    """Every answer under `/v2` that is not a success."""

    error: str = Field(examples=["MODEL_NOT_FOUND: series sensor_1_x has no model in production: fit it first"])


class ServerMetadata(BaseModel):
    """Who answers."""

    name: str = Field(examples=["anomaly-detection-system"])
    version: str = Field(examples=["1"])
    extensions: list[str] = Field(examples=[[]])


class ServerLive(BaseModel):
    """The server answers."""

    live: bool


class ServerReady(BaseModel):
    """The server takes requests."""

    ready: bool


class TensorMetadata(BaseModel):
    """A tensor that a model takes or gives; -1 stands for any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """What a model takes and gives."""

    name: str = Field(examples=["sensor_1_x"])
    versions: list[str] = Field(description="the version that answers", examples=[["3"]])
    platform: str = Field(examples=[_PLATFORM])
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelReady(BaseModel):
    """The model is in memory now."""

    name: str = Field(examples=["sensor_1_x"])
    ready: bool


class InferRequest(BaseModel):
    """Values of one series, 32,768 at most."""

    id: str | None = Field(default=None, description="comes back in the answer")
    parameters: dict[str, Any] | None = Field(default=None, description="not used")
    inputs: list[dict[str, Any]] = Field(
        min_length=1,
        max_length=1,
        description="the tensor `value`: `name`, `datatype` FP64 or FP32, `shape` [n] or [n, 1], `data`",
        examples=[_EXAMPLES["two values"]["inputs"]],
    )
    outputs: list[dict[str, Any]] | None = Field(
        default=None,
        description="which of `anomaly_score`, `is_anomaly` and `threshold` to answer; all without it",
        examples=[[{"name": "anomaly_score"}, {"name": "is_anomaly"}]],
    )


class OutputTensor(BaseModel):
    """A tensor of the answer."""

    name: str = Field(examples=["anomaly_score"])
    datatype: str = Field(examples=["FP64"])
    shape: list[int] = Field(examples=[[2]])
    data: list[Any] = Field(examples=[[0.41, 0.789]])


class InferParameters(BaseModel):
    """Who answered."""

    source: str = Field(examples=["model"], description="`model`, or `fallback` while the model cannot be read")


class InferAnswer(BaseModel):
    """Scores of the values, in their order."""

    model_name: str = Field(examples=["sensor_1_x"])
    model_version: str = Field(examples=["3"])
    id: str | None = Field(default=None, description="of the request; absent where it has none")
    parameters: InferParameters
    outputs: list[OutputTensor]


@dataclass(frozen=True, slots=True, eq=False)
class _Inference:
    """A request, checked: values of shape (n,), and which outputs to answer."""

    identity: str | None
    values: NDArray[np.float64]
    outputs: list[str]


def render_error(path: str, error: AppError) -> tuple[int, bytes]:
    """Status and body of an error: in the protocol's form on its own routes, else in the envelope."""
    if path != _PREFIX and not path.startswith(f"{_PREFIX}/"):
        return in_envelope(path, error)
    reasons = "; ".join(
        " ".join(f"{name} {item}" if name == "index" else str(item) for name, item in detail.items())
        for detail in error.details
        if isinstance(detail, dict)
    )
    # The protocol calls every request that cannot be understood a bad one.
    status = 400 if error.status == 422 else error.status
    return status, orjson.dumps({"error": f"{error}{f' ({reasons})' if reasons else ''}"})


def add_routes(app: FastAPI) -> None:
    """Add the protocol's routes."""
    tags: list[str | Enum] = ["open inference protocol"]
    model, of_version = "/v2/models/{series_id}", "/v2/models/{series_id}/versions/{version}"

    def about_model(path: str, answer: type[BaseModel]) -> dict[str, Any]:
        """Options of a route about a model. It reads the parameters itself: the framework would call errors 422."""
        return {
            "path": path,
            "response_model": answer,
            "tags": tags,
            "responses": errors(400, 404, 503, model=ProtocolError),
            "openapi_extra": {"parameters": path_parameters(path)},
        }

    unexpected = errors(model=ProtocolError)

    @app.get("/v2", response_model=ServerMetadata, tags=tags, responses=unexpected)
    async def server_metadata() -> Response:
        """Name and version of the server."""
        return json_answer({"name": "anomaly-detection-system", "version": app.version, "extensions": []})

    @app.get("/v2/health/live", response_model=ServerLive, tags=tags, responses=unexpected)
    async def server_live() -> Response:
        """The process answers."""
        return json_answer({"live": True})

    @app.get("/v2/health/ready", response_model=ServerReady, tags=tags, responses=unexpected)
    async def server_ready() -> Response:
        """The replica takes requests, also while a dependency is away: see `/health/ready`."""
        return json_answer({"ready": True})

    @app.get(**about_model(model, ModelMetadata))
    @app.get(**about_model(of_version, ModelMetadata))
    async def model_metadata(request: Request) -> Response:
        """What the model of a series takes and gives; it is loaded if need be."""
        series_id, version = _asked_for(request)
        loaded = await service_of(request).cache.get(series_id, version)
        return json_answer(
            {
                "name": series_id,
                "versions": [str(loaded.version)],
                "platform": _PLATFORM,
                "inputs": [{"name": "value", "datatype": "FP64", "shape": [-1]}],
                "outputs": [
                    {"name": name, "datatype": datatype, "shape": [1 if name == "threshold" else -1]}
                    for name, (datatype, _) in _OUTPUTS.items()
                ],
            }
        )

    @app.get(**about_model(f"{model}/ready", ModelReady))
    @app.get(**about_model(f"{of_version}/ready", ModelReady))
    async def model_ready(request: Request) -> Response:
        """The model of a series can answer; it is loaded if need be."""
        series_id, version = _asked_for(request)
        await service_of(request).cache.get(series_id, version)
        return json_answer({"name": series_id, "ready": True})

    def about_inference(path: str) -> dict[str, Any]:
        options = about_model(path, InferAnswer)
        return {
            **options,
            "response_model_exclude_none": True,
            "responses": errors(400, 404, 413, 503, model=ProtocolError),
            "openapi_extra": {**options["openapi_extra"], **json_body(InferRequest, _EXAMPLES)},
        }

    @app.post(**about_inference(f"{model}/infer"))
    @app.post(**about_inference(f"{of_version}/infer"))
    async def infer(request: Request) -> Response:
        """Score values of a series."""
        series_id, version = _asked_for(request)
        predictor = service_of(request).predictor
        inference = await _read(await read_json(request), predictor)
        found = await predictor.predict_values(series_id, version, inference.values)
        return Response(await _answer(series_id, inference, found), media_type="application/json")


def _asked_for(request: Request) -> tuple[str, int | None]:
    """Series and version in the path of a request; None for the version in production.

    Raises:
        AppError: INVALID_INPUT or INVALID_VERSION.
    """
    series_id: str = request.path_params["series_id"]
    check_series_id(series_id)
    return series_id, parse_version(request.path_params.get("version"))


async def _answer(series_id: str, inference: _Inference, found: Scores) -> bytes:
    """The answer as JSON; other requests are answered in between."""
    turns = Turns()
    outputs = []
    for name in inference.outputs:
        await turns.give_way()
        datatype, data_of = _OUTPUTS[name]
        data = data_of(found)
        tensor = {"name": name, "datatype": datatype, "shape": data.shape, "data": data}
        outputs.append(orjson.dumps(tensor, option=orjson.OPT_SERIALIZE_NUMPY))
    head = orjson.dumps(
        {
            "model_name": series_id,
            "model_version": str(found.version),
            **({} if inference.identity is None else {"id": inference.identity}),
            "parameters": {"source": found.source},
        }
    )
    return b"".join((head[:-1], b',"outputs":[', b",".join(outputs), b"]}"))


async def _read(body: Any, predictor: Predictor) -> _Inference:
    """Check the body of an inference.

    Raises:
        AppError: INVALID_INPUT or INSUFFICIENT_DATA.
    """
    if not isinstance(body, dict) or not body.keys() <= _MEMBERS:
        raise _bad("body", f"must be an object with no other members than {', '.join(sorted(_MEMBERS))}")
    identity, inputs = body.get("id"), body.get("inputs")
    if not isinstance(identity, str | None):
        raise _bad("id", "must be a string")
    if not isinstance(body.get("parameters"), dict | None):
        raise _bad("parameters", "must be an object")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise _bad("inputs", "must be a list of one tensor, `value`")
    wanted = _wanted(body.get("outputs"))
    return _Inference(identity, await _values(inputs[0], predictor), wanted)


async def _values(tensor: dict[str, Any], predictor: Predictor) -> NDArray[np.float64]:
    """The values in the input tensor, shape (n,)."""
    if tensor.get("name") != "value":
        raise _bad("inputs[0].name", "must be `value`")
    if tensor.get("datatype") not in _TYPES:
        raise _bad("inputs[0].datatype", f"must be {' or '.join(_TYPES)}")
    shape, data = tensor.get("shape"), tensor.get("data")
    if not isinstance(shape, list) or not all(type(size) is int for size in shape) or shape[1:] not in ([], [1]):
        raise _bad("inputs[0].shape", "must be [n] or [n, 1]")
    if not isinstance(data, list):
        raise _bad("inputs[0].data", "must be a list of numbers; binary tensors are not supported")
    if shape[:1] != [len(data)]:
        raise _bad("inputs[0].data", f"has {len(data)} values, not the {shape[:1]} of its shape")
    if not data:
        raise AppError(ErrorCode.INSUFFICIENT_DATA, "at least one value is needed")
    if len(data) > predictor.max_points:
        raise _bad("inputs[0].data", f"has {len(data)} values, more than the {predictor.max_points} allowed")
    if shape[1:] and isinstance(data[0], list):
        return await predictor.read_values(data, _only_values)
    return await predictor.read_values(data)


def _only_values(rows: Sequence[Any]) -> list[Any]:
    """The one value in each row."""
    if not all(isinstance(row, list) and len(row) == 1 for row in rows):
        raise _bad("inputs[0].data", "must be a list of numbers, or for the shape [n, 1] of lists of one number each")
    return [row[0] for row in rows]


def _wanted(outputs: Any) -> list[str]:
    """Names of the outputs to answer, in the order asked for."""
    if outputs is None or outputs == []:
        return list(_OUTPUTS)
    if not isinstance(outputs, list) or not all(isinstance(each, dict) for each in outputs):
        raise _bad("outputs", "must be a list of objects with a `name`")
    names = [each.get("name") for each in outputs]
    if not all(isinstance(name, str) and name in _OUTPUTS for name in names):
        raise _bad("outputs", f"there are {', '.join(_OUTPUTS)} to ask for")
    return list(dict.fromkeys(names))


def _bad(field: str, reason: str) -> AppError:
    return AppError(ErrorCode.INVALID_INPUT, f"`{field}` {reason}")
