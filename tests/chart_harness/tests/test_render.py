"""A rendering is made once, is remembered under everything that can change it, and fails readably."""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chart_harness import Chart, HelmError, Renderer, Scenario
from chart_harness.render import readable_error
from chart_harness.suggestions import with_suggestions

BASE = Scenario("base", namespace="space")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every helm process started during the test."""
    started: list[Any] = []
    run = subprocess.run

    def counted(*args: Any, **kwargs: Any) -> Any:
        started.append(args[0])
        return run(*args, **kwargs)

    monkeypatch.setattr(subprocess, "run", counted)
    return started


def test_the_same_input_runs_helm_once(empty_renderer: Renderer, fixture_chart: Path, runs: list[Any]) -> None:
    first = empty_renderer.render(Chart(fixture_chart), BASE)
    second = empty_renderer.render(Chart(fixture_chart), BASE)
    assert len(runs) == 1
    assert second is first


def test_another_process_takes_it_from_disk(empty_renderer: Renderer, fixture_chart: Path, runs: list[Any]) -> None:
    text = empty_renderer.text(Chart(fixture_chart), BASE)
    other = Renderer(empty_renderer.helm, empty_renderer.cache)
    assert other.text(Chart(fixture_chart), BASE) == text
    assert len(runs) == 1


def test_two_at_once_run_helm_once(empty_renderer: Renderer, fixture_chart: Path, runs: list[Any]) -> None:
    renderers = [Renderer(empty_renderer.helm, empty_renderer.cache) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        texts = set(pool.map(lambda renderer: renderer.text(Chart(fixture_chart), BASE), renderers))
    assert len(texts) == 1
    assert len(runs) == 1


@pytest.mark.parametrize(
    "changed",
    [
        replace(BASE, release="other"),
        replace(BASE, namespace="other"),
        replace(BASE, kube_version="1.33.0"),
        replace(BASE, api_versions=("example.org/v1",)),
        replace(BASE, overrides={"replicas": 2}),
        replace(BASE, upgrade=True),
    ],
    ids=["release", "namespace", "kube-version", "api-versions", "overrides", "upgrade"],
)
def test_the_key_differs_with_every_input(changed: Scenario, empty_renderer: Renderer, fixture_files: Chart) -> None:
    assert empty_renderer.key(fixture_files, changed) != empty_renderer.key(fixture_files, BASE)


def test_the_key_differs_with_a_values_files_content(
    empty_renderer: Renderer, fixture_files: Chart, tmp_path: Path
) -> None:
    file = tmp_path / "values.yaml"
    scenario = replace(BASE, values=(file,))
    file.write_text("replicas: 2\n")
    before = empty_renderer.key(fixture_files, scenario)
    file.write_text("replicas: 3\n")
    assert empty_renderer.key(fixture_files, scenario) != before


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("templates/web.yaml", True),
        ("values.yaml", True),
        ("files/extra.txt", True),
        ("note.bak", False),
        ("scratch/note.txt", False),
        ("templates/.hidden", False),
    ],
)
def test_the_key_differs_with_the_files_helm_reads(name: str, counts: bool, fixture_chart: Path) -> None:
    before = Chart(fixture_chart).digest
    file = fixture_chart / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(file.read_text() + "\n" if file.exists() else "new\n")
    assert (Chart(fixture_chart).digest != before) is counts


def test_every_setting_reaches_helm(empty_renderer: Renderer, fixture_files: Chart) -> None:
    scenario = replace(BASE, overrides={"image": "example.org/other:2"}, kube_version="1.33.1")
    deployment = empty_renderer.render(fixture_files, scenario).one("Deployment", "web")
    (container,) = (c for c in deployment.pods[0].containers if not c.init)
    assert container.spec["image"] == "example.org/other:2"
    assert container.env["KUBERNETES"]["value"] == "v1.33.1"
    colour = empty_renderer.render(fixture_files, scenario).one("ConfigMap", "web").at("data.colour")
    assert colour == "space"


def test_the_callers_helm_settings_do_not_count(
    empty_renderer: Renderer, fixture_files: Chart, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HELM_NAMESPACE", "from-the-environment")
    monkeypatch.setenv("KUBECONFIG", "/does/not/exist")
    assert empty_renderer.render(fixture_files, BASE).one("ConfigMap", "web").at("data.colour") == "space"


def test_a_template_error_is_helms_message(empty_renderer: Renderer, fixture_files: Chart) -> None:
    with pytest.raises(HelmError, match="replicas must not be negative") as error:
        empty_renderer.render(fixture_files, replace(BASE, overrides={"replicas": -1}))
    assert "«base»" in str(error.value)
    assert "--debug" not in str(error.value)
    assert "templates/web.yaml:1" in str(error.value)


def test_a_refused_value_names_its_key_and_the_nearest(empty_renderer: Renderer, fixture_files: Chart) -> None:
    with pytest.raises(HelmError, match=r"'replicaz' not allowed; did you mean replicas\?"):
        empty_renderer.render(fixture_files, replace(BASE, overrides={"replicaz": 1}))
    with pytest.raises(HelmError, match=r"'colour' not allowed$"):
        empty_renderer.render(fixture_files, replace(BASE, overrides={"colour": 1}))


@pytest.mark.parametrize(
    ("path", "name", "meant"),
    [
        ("", "imag", "image"),
        ("/image", "taq", "tag"),
        ("/pods/0/limits", "memry", "memory"),
        ("/anything/deep", "taq", None),
        ("/image/tag", "x", None),
    ],
)
def test_the_nearest_key_is_looked_for_where_the_unknown_one_stands(
    path: str, name: str, meant: str | None, fixture_chart: Path
) -> None:
    schema = {
        "properties": {
            "image": {"$ref": "#/$defs/image"},
            "pods": {"items": {"properties": {"limits": {"properties": {"memory": {}}}}}},
        },
        "$defs": {"image": {"properties": {"tag": {"type": "string"}}}},
    }
    (fixture_chart / "values.schema.json").write_text(json.dumps(schema))
    line = f"  - at '{path}': additional properties '{name}' not allowed"
    told = with_suggestions(f"values don't meet:\nfixture:\n{line}", Chart(fixture_chart)).splitlines()[-1]
    assert told == (f"{line}; did you mean {meant}?" if meant else line)


def test_every_character_of_an_override_reaches_helm(empty_renderer: Renderer, fixture_files: Chart) -> None:
    image = "é\N{CJK UNIFIED IDEOGRAPH-6F22}\N{GRINNING FACE}"
    objects = empty_renderer.render(fixture_files, replace(BASE, overrides={"image": image}))
    assert {container.spec["image"] for container in objects.containers()} >= {image}


def test_a_failure_is_remembered_too(empty_renderer: Renderer, fixture_files: Chart, runs: list[Any]) -> None:
    for _ in range(2):
        with pytest.raises(HelmError):
            empty_renderer.render(fixture_files, replace(BASE, overrides={"replicas": -1}))
    assert len(runs) == 1


def test_a_nested_template_error_stands_on_lines_of_its_own() -> None:
    text = (
        'Error: template: a/b.yaml:3:4: executing "b" at <include "c" .>: '
        "error calling include: template: a/_c.tpl:1:2: x\n\n"
        "Use --debug flag to render out invalid YAML\n"
    )
    assert readable_error(text).splitlines() == [
        'template: a/b.yaml:3:4: executing "b" at <include "c" .>:',
        "  from include: template: a/_c.tpl:1:2: x",
    ]
