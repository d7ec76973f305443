"""What the whole suite shares: the chart and its scenarios."""

from __future__ import annotations

from pathlib import Path

import pytest
from chart_harness import Scenario, Setup
from ci import paths
from template_scenarios import REFUSALS, TEMPLATE_SCENARIOS

pytest_plugins = ("chart_harness.plugin",)

RELEASE = "ads"
NAMESPACE = "ml-dev"


def scenarios() -> list[Scenario]:
    """The chart's own defaults, and every values file of `values/`."""
    files: list[tuple[str, tuple[Path, ...]]] = [("defaults", ())]
    files += [(file.stem, (file,)) for file in sorted((paths.REPOSITORY / "values").glob("*.yaml"))]
    return [Scenario(name, values, release=RELEASE, namespace=NAMESPACE) for name, values in files]


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker of the live tests known."""
    config.addinivalue_line("markers", "live: needs the cluster that `make up` starts")


def pytest_chart_harness(config: pytest.Config) -> Setup:
    """Render the umbrella chart, with the helm that `make up` and `make test` install."""
    covering = [
        Scenario(name, overrides=values, release=RELEASE, namespace=NAMESPACE)
        for name, values in TEMPLATE_SCENARIOS.items()
    ]
    refusals = [
        (Scenario(name, overrides=values, release=RELEASE, namespace=NAMESPACE), message)
        for name, (values, message) in REFUSALS.items()
    ]
    return Setup(
        chart=paths.REPOSITORY,
        scenarios=[*scenarios(), *covering],
        helm=[paths.BIN / "helm"],
        refusals=refusals,
    )
