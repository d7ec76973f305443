"""Coverage says which branches a template takes, and changes nothing of what it renders."""

from __future__ import annotations

from pathlib import Path

import pytest
from chart_harness import Renderer, Scenario, Setup
from chart_harness.coverage import actions, enclosing_blocks, instrument, measure
from chart_harness.engine import Engine, build
from chart_harness.render import cache_folder

TEMPLATE = """\
{{- /* a comment with {{ "braces" }} inside would end here */ -}}
{{- if .Values.enabled }}
kind: ConfigMap
apiVersion: v1
metadata: {name: {{ include "name" . }}}
data:
  {{- range .Values.items }}
  {{ . }}: "}}"
  {{- else }}
  none: ""
  {{- end }}
  {{- with .Values.extra }}
  extra: {{ . -}}
  {{ end }}
{{- else if eq .Values.mode "b" -}}
kind: Secret
{{- end }}
"""
HELPERS = '{{ define "name" }}web{{ end }}{{ define "unused" }}{{ end }}'


@pytest.fixture
def branching_chart(fixture_chart: Path) -> Path:
    """The fixture chart with a template full of branches."""
    (fixture_chart / "values.schema.json").unlink()
    (fixture_chart / "templates" / "web.yaml").unlink()
    (fixture_chart / "templates" / "branches.yaml").write_text(TEMPLATE)
    (fixture_chart / "templates" / "_helpers.tpl").write_text(HELPERS)
    (fixture_chart / "values.yaml").write_text("enabled: true\nitems: []\nextra: ''\nmode: a\n")
    return fixture_chart


def measured(chart: Path, renderer: Renderer, *scenarios: Scenario, exempt: dict[str, str] | None = None) -> set[str]:
    engine = Engine(build(cache_folder()))
    try:
        report = measure(Setup(chart, scenarios), renderer, engine, exempt or {})
    finally:
        engine.stop()
    assert len(report.taken) == 10
    assert f"{report.missed} missed" in report.table()
    return {branch.id.partition(": ")[2] for branch in report.uncovered}


def test_what_no_scenario_takes_is_named(branching_chart: Path, empty_renderer: Renderer) -> None:
    assert measured(branching_chart, empty_renderer, Scenario("defaults")) == {
        "if .Values.enabled: not taken",
        'else if eq .Values.mode "b": taken',
        "range .Values.items: one",
        "range .Values.items: several",
        "with .Values.extra: taken",
        'define "unused": executed',
    }


def test_every_branch_can_be_taken(branching_chart: Path, empty_renderer: Renderer) -> None:
    assert measured(
        branching_chart,
        empty_renderer,
        Scenario("defaults"),
        Scenario("one", overrides={"items": ["a"], "extra": "more"}),
        Scenario("several", overrides={"items": ["a", "b"]}),
        Scenario("off", overrides={"enabled": False}),
        exempt={'templates/_helpers.tpl: define "unused": executed': "nobody uses it yet"},
    ) == {'else if eq .Values.mode "b": taken'}


def test_a_comment_and_quoted_braces_do_not_end_an_action() -> None:
    found = list(actions('{{/* }} */}}{{ "}}" }}{{- `}}` -}}{{ end }}'))
    assert [action.body for action in found] == ["/* }} */", '"}}"', "`}}`", "end"]


def test_marks_keep_the_lines_of_a_template() -> None:
    assert instrument("a.yaml", TEMPLATE).source.count("\n") == TEMPLATE.count("\n")


def test_a_line_belongs_to_the_block_around_it() -> None:
    parts = dict(enclosing_blocks(TEMPLATE))
    assert parts[2] is None
    assert parts[3] == (2, "taken")
    assert parts[8] == (7, "taken")
    assert parts[10] == (7, "not taken")
    assert parts[11] == (2, "taken")
    assert parts[16] == (15, "taken")
    assert parts[17] is None
