"""The Open Inference Protocol, version 2, by its routes."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from unit.inference_world import World

from anomaly_detection.scoring import ScoringModel


def tensor(data: list[Any], /, **changes: Any) -> dict[str, Any]:
    """The body of an inference with one input tensor."""
    return {"inputs": [{"name": "value", "shape": [len(data)], "datatype": "FP64", "data": data} | changes]}


def outputs(answer: httpx.Response) -> dict[str, dict[str, Any]]:
    """The output tensors by name."""
    assert answer.status_code == 200, answer.text
    return {each["name"]: each for each in answer.json()["outputs"]}


def refused(answer: httpx.Response, status: int) -> str:
    """The message of an error, which has the protocol's form."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.json().keys() == {"error"}
    message = answer.json()["error"]
    assert isinstance(message, str)
    return message


async def test_server(world: World) -> None:
    assert (await world.client.get("/v2")).json() == {
        "name": "anomaly-detection-system",
        "version": "1",
        "extensions": [],
    }
    assert (await world.client.get("/v2/health/live")).json() == {"live": True}
    world.mlflow.away = world.store.away = True
    assert (await world.client.get("/v2/health/ready")).json() == {"ready": True}


async def test_model(world: World, blobs: list[bytes]) -> None:
    for blob in blobs[:2]:
        world.publish("a", blob)
    metadata = (await world.client.get("/v2/models/a")).json()
    assert (metadata["name"], metadata["versions"]) == ("a", ["2"])
    assert metadata["inputs"] == [{"name": "value", "datatype": "FP64", "shape": [-1]}]
    assert {each["name"]: (each["datatype"], each["shape"]) for each in metadata["outputs"]} == {
        "anomaly_score": ("FP64", [-1]),
        "is_anomaly": ("BOOL", [-1]),
        "threshold": ("FP64", [1]),
    }
    assert (await world.client.get("/v2/models/a/versions/1")).json()["versions"] == ["1"]
    assert (await world.client.get("/v2/models/a/ready")).json() == {"name": "a", "ready": True}
    assert (await world.client.get("/v2/models/a/versions/1/ready")).json() == {"name": "a", "ready": True}


async def test_inference_agrees_with_the_other_routes(world: World, blobs: list[bytes]) -> None:
    world.publish("a", blobs[0])
    model = ScoringModel.from_bytes(blobs[0])
    values = [0.1, 50.0, -3]
    answer = await world.client.post("/v2/models/a/infer", json={"id": "mine", "parameters": {}, **tensor(values)})
    body = answer.json()
    assert (body["model_name"], body["model_version"], body["id"]) == ("a", "1", "mine")
    assert body["parameters"] == {"source": "model"}
    singles = [(await world.predict("a", value)).json() for value in values]
    assert outputs(answer) == {
        "anomaly_score": {
            "name": "anomaly_score",
            "datatype": "FP64",
            "shape": [3],
            "data": [single["anomaly_score"] for single in singles],
        },
        "is_anomaly": {
            "name": "is_anomaly",
            "datatype": "BOOL",
            "shape": [3],
            "data": [single["is_anomaly"] for single in singles],
        },
        "threshold": {"name": "threshold", "datatype": "FP64", "shape": [1], "data": [model.threshold]},
    }
    assert world.service.predictor.answers.model == 6


@pytest.mark.parametrize(
    "body",
    [
        tensor([0.1, 50.0], datatype="FP32"),
        tensor([0.1, 50.0], shape=[2, 1]),
        tensor([[0.1], [50.0]], shape=[2, 1]),
        tensor([0.1, 50.0]) | {"outputs": []},
    ],
)
async def test_forms_of_the_input(world: World, blobs: list[bytes], body: dict[str, Any]) -> None:
    world.publish("a", blobs[0])
    answer = await world.client.post("/v2/models/a/infer", json=body)
    assert outputs(answer)["is_anomaly"]["data"] == [False, True]
    assert "id" not in answer.json()


async def test_only_the_outputs_asked_for(world: World, blobs: list[bytes]) -> None:
    world.publish("a", blobs[0])
    body = tensor([50.0]) | {"outputs": [{"name": "is_anomaly"}, {"name": "threshold", "parameters": {}}]}
    assert list(outputs(await world.client.post("/v2/models/a/infer", json=body))) == ["is_anomaly", "threshold"]


async def test_a_version_is_asked_for(world: World, blobs: list[bytes]) -> None:
    for blob in blobs[:2]:
        world.publish("a", blob)
    answer = await world.client.post("/v2/models/a/versions/1/infer", json=tensor([100.0]))
    assert answer.json()["model_version"] == "1"
    assert outputs(answer)["is_anomaly"]["data"] == [True]


async def test_the_fallback_says_that_it_answers(world: World, blobs: list[bytes]) -> None:
    world.publish("a", blobs[0], mean="10.0", std="2.0")
    world.store.away = True
    answer = await world.client.post("/v2/models/a/infer", json=tensor([10.0, 17.0]))
    assert answer.json()["parameters"] == {"source": "fallback"}
    assert outputs(answer)["is_anomaly"]["data"] == [False, True]
    assert outputs(answer)["threshold"]["data"] == [0.5]
    assert "object-store" in refused(await world.client.get("/v2/models/a/ready"), 503)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "not JSON"),
        (b"[]", "`body`"),
        (tensor([1.0]) | {"input": 1}, "`body`"),
        (tensor([1.0]) | {"id": 7}, "`id`"),
        (tensor([1.0]) | {"parameters": [None]}, "`parameters`"),
        ({"inputs": []}, "`inputs`"),
        ({"inputs": tensor([1.0])["inputs"] * 2}, "`inputs`"),
        (tensor([1.0], name="x"), "`inputs[0].name`"),
        (tensor([1], datatype="INT64"), "`inputs[0].datatype`"),
        (tensor([1.0], datatype=[]), "`inputs[0].datatype`"),
        (tensor([1.0], shape=[1, 2]), "`inputs[0].shape`"),
        (tensor([1.0], shape=[1, 1, 1]), "`inputs[0].shape`"),
        (tensor([1.0], shape=[True]), "`inputs[0].shape`"),
        (tensor([1.0], shape=[]), "`inputs[0].data`"),
        (tensor([1.0], shape=[2]), "`inputs[0].data`"),
        (tensor([1.0], data="AAAA"), "binary"),
        (tensor([]), "at least one"),
        (tensor([[1.0]]), "index 0"),
        (tensor(["1"]), "index 0"),
        (tensor([1.0, None]), "index 1"),
        (tensor([True]), "index 0"),
        (tensor([1e39]), "index 0"),
        (tensor([10**400]), "not JSON"),
        (tensor([0.5] * 1001), "more than the 1000 allowed"),
        (tensor([1.0]) | {"outputs": ["is_anomaly"]}, "`outputs`"),
        (tensor([1.0]) | {"outputs": [{"name": "loss"}]}, "`outputs`"),
        (tensor([1.0]) | {"outputs": [{"name": ["is_anomaly"]}]}, "`outputs`"),
    ],
)
async def test_bad_requests(world: World, blobs: list[bytes], body: Any, reason: str) -> None:
    world.publish("a", blobs[0])
    given = {"content": body} if isinstance(body, bytes) else {"json": body}
    assert reason in refused(await world.client.post("/v2/models/a/infer", **given), 400)


async def test_errors_have_the_form_of_the_protocol(world: World, blobs: list[bytes]) -> None:
    world.publish("a", blobs[0])
    for path, status, text in (
        ("/v2/models/unknown", 404, "MODEL_NOT_FOUND"),
        ("/v2/models/unknown/ready", 404, "MODEL_NOT_FOUND"),
        ("/v2/models/a/versions/9", 404, "INVALID_VERSION"),
        ("/v2/models/a/versions/zero", 400, "INVALID_VERSION"),
        ("/v2/models/not-a-series", 400, "INVALID_INPUT"),
        ("/v2/nothing", 404, "NOT_FOUND"),
        ("/v2/models/a/infer", 405, "METHOD_NOT_ALLOWED"),
    ):
        assert text in refused(await world.client.get(path), status)
    large = await world.client.post("/v2/models/a/infer", content=b" " * 200_001)
    assert "PAYLOAD_TOO_LARGE" in refused(large, 413)
    assert (await world.client.get("/v2nothing")).json()["status"] == "error", "the envelope elsewhere"


async def test_unexpected_errors_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(world.service.cache), "get", lambda *_: 1 / 0)
    assert "INTERNAL_ERROR" in refused(await world.client.get("/v2/models/a"), 500)
    answer = await world.client.get("/drift/a")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "INTERNAL_ERROR")


async def test_models_that_cannot_be_loaded(world: World) -> None:
    world.mlflow.away = True
    answer = await world.client.post("/v2/models/a/infer", json=tensor([1.0]))
    assert "mlflow" in refused(answer, 503)
    assert int(answer.headers["retry-after"]) > 0


async def test_examples_of_the_document_are_answered(world: World, blobs: list[bytes]) -> None:
    world.publish("a", blobs[0])
    document = (await world.client.get("/openapi.json")).json()
    route = document["paths"]["/v2/models/{series_id}/infer"]["post"]
    content = route["requestBody"]["content"]["application/json"]
    for example in content["examples"].values():
        assert (await world.client.post("/v2/models/a/infer", json=example["value"])).status_code == 200
    assert route["responses"]["400"]["content"]["application/json"]["schema"]["$ref"].endswith("/ProtocolError")
    assert "/v2/models/{series_id}/versions/{version}/infer" in document["paths"]
