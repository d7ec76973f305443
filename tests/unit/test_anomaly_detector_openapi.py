"""The OpenAPI document of inference: its examples run, and what it says of errors is so."""

from __future__ import annotations

import re

import pytest
from unit.inference_world import World
from unit.test_training_api import documented_requests

pytestmark = pytest.mark.anyio


async def test_every_documented_example_runs(world: World, blobs: list[bytes]) -> None:
    document = (await world.client.get("/openapi.json")).json()
    requests = documented_requests(document)
    operations = sum(len(methods) for methods in document["paths"].values())
    assert len({(method, path) for method, path, *_ in requests}) == operations == 24
    assert sum(bool(body) for _, _, body, _, _ in requests) == 9  # two of either route to infer, one of each other
    for series_id in ("sensor_17_x", "sensor_17_x_2"):
        world.publish(series_id, blobs[0])
    for method, path, body, media_type, good in requests:
        answer = await world.client.request(method, path, content=body, headers={"Content-Type": media_type})
        expected = good if path != "/health" else good | {503}  # nothing of it is connected here
        assert answer.status_code in expected, (method, path, answer.text)
        assert "error" not in answer.text or path in ("/metrics", "/cache"), (method, path, answer.text)


async def test_errors_are_documented_by_their_codes(world: World) -> None:
    document = (await world.client.get("/openapi.json")).json()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            where = f"{method} {path}"
            codes = set(operation["responses"])
            assert all(re.fullmatch("[0-9]{3}", code) for code in codes), where
            assert "500" in codes, where
            form = "ProtocolError" if path.startswith("/v2") else "ErrorEnvelope"
            for code in codes - {"200", "503"}:
                schema = operation["responses"][code]["content"]["application/json"]["schema"]
                assert schema["$ref"].endswith(f"/{form}"), where
            refused = "400" if path.startswith("/v2") else "422"
            assert (refused in codes) == bool(operation.get("parameters") or "requestBody" in operation), where
            assert ("413" in codes) == ("requestBody" in operation), where
            for parameter in operation.get("parameters", ()):
                if parameter["name"] in ("series_id", "version"):
                    assert "pattern" in parameter["schema"], where


@pytest.mark.parametrize("away", [False, True])
async def test_errors_have_documented_codes(world: World, blobs: list[bytes], away: bool) -> None:
    """Each operation with series and versions that are none or unknown, without a body and with a large one."""
    world.publish("sensor_17_x", blobs[0])
    document = (await world.client.get("/openapi.json")).json()
    world.mlflow.away = away
    seen = set()
    for method, path, body, media_type, _ in documented_requests(document):
        template = next(
            each
            for each in sorted(document["paths"], key=lambda each: each.count("{"))
            if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", each), path) and method.lower() in document["paths"][each]
        )
        documented = set(document["paths"][template][method.lower()]["responses"])
        large = b" " * (world.service.settings.max_body_bytes + 1)
        for url, content in (
            (path.replace("sensor_17_x", "not-one"), body),
            (path.replace("sensor_17_x", "unknown"), body),
            (path.replace("versions/1", "versions/01"), body),
            (f"{path}?version=none&limit=none", body),
            (path, b"{"),
            (path, large if body else None),
        ):
            answer = await world.client.request(method, url, content=content, headers={"Content-Type": media_type})
            assert str(answer.status_code) in documented, (method, url, answer.status_code, documented)
            seen.add(answer.status_code)
    assert seen >= {200, 400, 413, 422, 503 if away else 404}
