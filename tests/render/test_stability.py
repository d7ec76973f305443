"""Rendering is a function of the values: nothing restarts that did not change."""

from __future__ import annotations

from dataclasses import replace

import pytest
from chart_harness import Chart, Renderer, Scenario, SchemaStore


def test_two_renderings_are_equal_byte_by_byte(scenario: Scenario, chart: Chart, renderer: Renderer) -> None:
    """A random or time-dependent value would restart pods on every upgrade and every sync of Argo CD."""
    assert renderer.text(chart, scenario, fresh=True) == renderer.text(chart, scenario)


def test_an_upgrade_renders_what_the_install_rendered(scenario: Scenario, chart: Chart, renderer: Renderer) -> None:
    assert renderer.text(chart, replace(scenario, upgrade=True)) == renderer.text(chart, scenario)


def test_kubernetes_versions_render_alike(
    scenario: Scenario, chart: Chart, renderer: Renderer, schemas: SchemaStore
) -> None:
    for version in schemas.versions("kubernetes"):
        assert renderer.text(chart, replace(scenario, kube_version=version)) == renderer.text(chart, scenario), version


def test_an_unsupported_kubernetes_is_refused(scenario: Scenario, chart: Chart, renderer: Renderer) -> None:
    with pytest.raises(AssertionError, match="incompatible with Kubernetes"):
        renderer.text(chart, replace(scenario, kube_version="1.24.0"))


def test_names_do_not_depend_on_the_release(scenario: Scenario, chart: Chart, renderer: Renderer) -> None:
    """Clients and documented commands use fixed names, whatever the release and the namespace are called."""
    other = renderer.render(chart, replace(scenario, release="other", namespace="elsewhere"))
    known = renderer.render(chart, scenario)
    # A Job's name follows its content, since a Job cannot be changed; nobody calls it by name.
    assert [m.id for m in other if m.kind != "Job"] == [m.id for m in known if m.kind != "Job"]
    assert {m.namespace for m in other} <= {"elsewhere", None}
