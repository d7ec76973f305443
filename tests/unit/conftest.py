"""What the unit tests share."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The services run on asyncio alone."""
    return "asyncio"


@pytest.fixture
def points() -> list[dict[str, float]]:
    """200 points that every check lets pass."""
    values = np.random.default_rng(7).normal(size=200)
    return [{"timestamp": 1_700_000_000 + 300 * i, "value": float(value)} for i, value in enumerate(values)]
