"""What the whole suite shares: the chart and its scenarios."""

from __future__ import annotations

from pathlib import Path

import pytest
from chart_harness import Scenario, Setup
from ci import paths

pytest_plugins = ("chart_harness.plugin",)

RELEASE = "ads"
NAMESPACE = "ml-dev"


def scenarios() -> list[Scenario]:
    """The chart's own defaults, every values file of `values/`, and workers that KEDA scales."""
    files: list[tuple[str, tuple[Path, ...]]] = [("defaults", ())]
    files += [(file.stem, (file,)) for file in sorted((paths.REPOSITORY / "values").glob("*.yaml"))]
    found = [Scenario(name, values, release=RELEASE, namespace=NAMESPACE) for name, values in files]
    keda = {"training-worker": {"autoscaling": {"type": "keda"}}}
    return [*found, Scenario("keda", overrides=keda, release=RELEASE, namespace=NAMESPACE)]


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker of the live tests known."""
    config.addinivalue_line("markers", "live: needs the cluster that `make up` starts")


def pytest_chart_harness(config: pytest.Config) -> Setup:
    """Render the umbrella chart, with the helm that `make up` and `make test` install."""
    return Setup(chart=paths.REPOSITORY, scenarios=scenarios(), helm=[paths.BIN / "helm"])
