"""The scenarios render the templates whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from chart_harness import Renderer
from chart_harness.coverage import Report, measure
from chart_harness.engine import Engine, build
from chart_harness.objects import load_yaml
from chart_harness.plugin import session_of
from chart_harness.render import cache_folder

EXEMPTIONS = Path(__file__).with_name("template_exemptions.yaml")


@pytest.fixture(scope="module")
def report(pytestconfig: pytest.Config, renderer: Renderer) -> Report:
    """The branches of the templates, with the scenarios that take them."""
    exempt: Mapping[str, str] = load_yaml(EXEMPTIONS.read_text())["coverage"]
    engine = Engine(build(cache_folder()))
    try:
        return measure(session_of(pytestconfig).setup, renderer, engine, exempt)
    finally:
        engine.stop()


@pytest.mark.sources
def test_every_branch_is_taken_by_a_scenario(report: Report) -> None:
    assert not report.uncovered, "no scenario takes\n" + "\n".join(f"  - {branch}" for branch in report.uncovered)


@pytest.mark.sources
def test_no_branch_is_exempt_without_need(report: Report) -> None:
    assert not report.stale, "exempt, but taken or not there:\n" + "\n".join(f"  - {name}" for name in report.stale)
