"""What the whole suite shares: the chart and its scenarios."""

from __future__ import annotations

import pytest
from chart_harness import Setup
from ci import paths
from scenarios import refusals, scenarios

pytest_plugins = ("chart_harness.plugin",)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a test that compares a document with the chart write it instead."""
    parser.addoption(
        "--write-docs", action="store_true", help="write the tables of docs/network.md and docs/environments.md anew"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker of the live tests known."""
    config.addinivalue_line("markers", "live: needs the cluster that `make up` starts")


def pytest_chart_harness(config: pytest.Config) -> Setup:
    """Render the umbrella chart, with the helm that `make up` and `make test` install."""
    return Setup(
        chart=paths.REPOSITORY,
        scenarios=scenarios(),
        helm=[paths.BIN / "helm"],
        refusals=refusals(),
    )
