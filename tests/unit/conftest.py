"""What the unit tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from unit.inference_world import SETTINGS, Mlflow, Store, World, replica

from anomaly_detection.contracts import DetectorParameters
from anomaly_detection.scoring import fit_isolation_forest
from anomaly_detector.settings import InferenceSettings


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The services run on asyncio alone."""
    return "asyncio"


@pytest.fixture
def points() -> list[dict[str, float]]:
    """200 points that every check lets pass."""
    values = np.random.default_rng(7).normal(size=200)
    return [{"timestamp": 1_700_000_000 + 300 * i, "value": float(value)} for i, value in enumerate(values)]


@pytest.fixture(scope="session")
def blobs() -> list[bytes]:
    """Models fitted around 0, 100 and 200."""
    generator = np.random.default_rng(5)
    parameters = DetectorParameters(n_estimators=10, contamination=0.02)
    return [fit_isolation_forest(generator.normal(100 * i, 1, 500), parameters)[1].to_bytes() for i in range(3)]


@pytest.fixture
def own_settings(tmp_path: Path) -> InferenceSettings:
    """Settings with a disk of the test's own."""
    return SETTINGS.model_copy(update={"model_disk_directory": tmp_path / "models"})


@pytest.fixture
async def world(own_settings: InferenceSettings) -> AsyncIterator[World]:
    async with replica(Mlflow(), Store(), own_settings) as started:
        yield started
