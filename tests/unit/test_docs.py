"""The documentation pages of both services, in a network without internet."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from anomaly_detector.api import create_app as create_inference
from training_api.app import create_app as create_training
from training_api.settings import TrainingApiSettings

pytestmark = pytest.mark.anyio


def unused(*_: Any) -> Any:
    """What an application runs on, of which its documentation needs nothing."""
    raise AssertionError("the documentation asks for a service")


def training(tmp_path: Path) -> FastAPI:
    return create_training(unused, TrainingApiSettings())  # type: ignore[arg-type]


def inference(tmp_path: Path) -> FastAPI:
    return create_inference(unused)


@pytest.mark.parametrize("create", [training, inference])
async def test_the_page_needs_no_other_host(create: Callable[[Path], FastAPI], tmp_path: Path) -> None:
    app = create(tmp_path)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        page = await client.get("/docs")
        assert page.status_code == 200
        assert "//" not in re.sub(r"^\s*// .*$|<!--.*?-->", "", page.text, flags=re.MULTILINE), "it names a host"
        fetched = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert len(fetched) == 3
        for path in fetched:
            asset = await client.get(path)
            assert asset.status_code == 200, path
            assert len(asset.content) > 1000
        assert "validatorUrl" in page.text
        url = re.search(r"url: '([^']+)'", page.text)
        assert url
        assert (await client.get(url[1])).json()["openapi"].startswith("3.")
        assert (await client.get("/redoc")).status_code == 404
    assert not any(path.startswith("/docs") for path in app.openapi()["paths"])
