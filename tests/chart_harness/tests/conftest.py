"""The fixture chart and a renderer with an empty cache."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from chart_harness import Chart, Renderer, find_helm
from chart_harness.plugin import session_of

FIXTURE_CHART = Path(__file__).parent / "fixture_chart"


@pytest.fixture
def fixture_chart(tmp_path: Path) -> Path:
    """A copy of the fixture chart, to change at will."""
    return Path(shutil.copytree(FIXTURE_CHART, tmp_path / "chart"))


@pytest.fixture
def empty_renderer(tmp_path: Path, pytestconfig: pytest.Config) -> Renderer:
    """A renderer that has seen nothing."""
    return Renderer(find_helm(session_of(pytestconfig).setup.helm), tmp_path / "cache")


@pytest.fixture
def fixture_files() -> Chart:
    """The fixture chart in place."""
    return Chart(FIXTURE_CHART)
