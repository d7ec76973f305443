"""The engine says what the helm program says, however often it is asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chart_harness import Chart, HelmError, Renderer, Scenario
from chart_harness.engine import Engine, EngineRenderer, build
from chart_harness.render import cache_folder

OVERRIDES: tuple[dict[str, Any], ...] = (
    {},
    {"replicas": 2},
    {"replicas": -1},
    {"replicas": "two", "imagge": "a"},
    {"label": "a: b: c"},
    {"global": {"level": 1}},
)
"""Rendered in two ways, refused by a template, by the schema and by the resulting YAML, and rendered as the first."""

SUBCHART = {
    "Chart.yaml": "apiVersion: v2\nname: part\nversion: 1.0.0\n",
    "values.yaml": "size: 1\n",
    "values.schema.json": '{"properties": {"size": {"type": "integer", "maximum": 1}}}',
    "templates/part.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: part}\ndata: {a: '{{ .Values.size }}'}\n",
}


@pytest.fixture
def engine_renderer(empty_renderer: Renderer) -> Iterator[EngineRenderer]:
    """A renderer with an engine of its own."""
    engine = Engine(build(cache_folder()))
    yield EngineRenderer(empty_renderer.helm, engine)
    engine.stop()


def said(renderer: Renderer, chart: Path, overrides: dict[str, Any]) -> str:
    """The rendering, or the refusal; asked anew."""
    try:
        return renderer.text(Chart(chart), Scenario("any", overrides=overrides), fresh=True)
    except HelmError as error:
        return str(error)


def test_it_says_what_helm_says(fixture_chart: Path, empty_renderer: Renderer, engine_renderer: EngineRenderer) -> None:
    answers = {}
    for overrides in [*OVERRIDES, *reversed(OVERRIDES)]:
        answer = answers[str(overrides)] = said(engine_renderer, fixture_chart, overrides)
        assert answer == said(empty_renderer, fixture_chart, overrides)
    assert len(set(answers.values())) == len(OVERRIDES) - 1, "the last is the first"


def test_it_sees_what_changed_in_a_chart(
    fixture_chart: Path, empty_renderer: Renderer, engine_renderer: EngineRenderer
) -> None:
    """What it remembers is kept by content: a template, a schema, a subchart."""
    before = said(engine_renderer, fixture_chart, {"replicas": 2})
    template = fixture_chart / "templates" / "web.yaml"
    template.write_text(template.read_text().replace("name: web", "name: other"))
    after = said(engine_renderer, fixture_chart, {"replicas": 2})
    assert after != before
    assert after == said(empty_renderer, fixture_chart, {"replicas": 2})
    schema = fixture_chart / "values.schema.json"
    schema.write_text(schema.read_text().replace('"replicas": {', '"part": {}, "replicas": {"maximum": 1, '))
    refused = said(engine_renderer, fixture_chart, {"replicas": 2})
    assert refused == said(empty_renderer, fixture_chart, {"replicas": 2})
    assert "maximum" in refused
    for name, text in SUBCHART.items():
        file = fixture_chart / "charts" / "part" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    for size in (1, 2):
        answer = said(engine_renderer, fixture_chart, {"part": {"size": size}})
        assert answer == said(empty_renderer, fixture_chart, {"part": {"size": size}})
        assert ("maximum" in answer) is (size == 2)
