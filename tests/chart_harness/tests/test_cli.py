"""The commands, run as a person runs them: in a folder, on a chart, with exit codes and messages."""

from __future__ import annotations

import json
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest
from chart_harness import Chart, Manifests, Renderer, Scenario
from chart_harness.cli import main
from chart_harness.graph import Edge, edges, layers, svg
from chart_harness.options import overrides
from chart_harness.plugin import session_of
from chart_harness.speed import choose

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(
    fixture_chart: Path,
    empty_renderer: Renderer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """Run a command on the fixture chart: its exit code, and what it prints on both outputs."""
    monkeypatch.setenv("CHART_HARNESS_CACHE", str(empty_renderer.cache))
    monkeypatch.setenv("CHART_HARNESS_HELM", str(empty_renderer.helm))
    monkeypatch.chdir(fixture_chart)

    def _run(*words: str) -> tuple[int, str, str]:
        code = main(words)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return _run


@pytest.fixture
def repository(fixture_chart: Path) -> Path:
    """The fixture chart in a git repository, committed and tagged v1."""
    for words in (
        ("init", "-q"),
        ("add", "."),
        ("-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-q", "-m", "one"),
        ("tag", "v1"),
    ):
        subprocess.run(["git", "-C", str(fixture_chart), *words], check=True)
    return fixture_chart


def test_render_prints_the_objects_asked_for(run: Run) -> None:
    code, out, _ = run("render", "--kind", "service", "--kind", "ConfigMap", "--namespace", "space")
    assert code == 0
    assert [(m.id) for m in Manifests.parse(out)] == ["ConfigMap/web", "Service/web"]
    code, out, _ = run("render", "--kind", "ConfigMap", "-o", "json", "--namespace", "space")
    assert json.loads(out)["items"][0]["data"] == {"colour": "space"}


def test_render_takes_values_and_overrides(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "v.yaml"
    file.write_text("replicas: 4\nimage: example.org/file:1\n")
    words = ("--values", str(file), "--set", "image=example.org/set:1", "--kube-version", "1.33.0", "-o", "json")
    _, out, _ = run("render", "--kind", "Deployment", *words)
    spec = json.loads(out)["items"][0]["spec"]
    assert spec["replicas"] == 4
    container = spec["template"]["spec"]["containers"][0]
    assert (container["image"], container["env"][1]["value"]) == ("example.org/set:1", "v1.33.0")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("render", "--name", "wev"), "no object is wev; there are ConfigMap/web, Service/web, Deployment/web"),
        (("render", "--values", "absent.yaml"), "there is no values file absent.yaml"),
        (("render", "--chart", "absent"), "it has no Chart.yaml"),
        (("render", "--set", "replicas"), "--set takes KEY=VALUE, not 'replicas'"),
        (("render", "--set", "replicas=-1"), "replicas must not be negative"),
        (("render", "--set", "replicaz=1"), "additional properties 'replicaz' not allowed"),
        (("diff", "--revision", "v9"), "not a git repository"),
    ],
)
def test_what_cannot_be_done_is_said_on_one_screen(words: tuple[str, ...], message: str, run: Run) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_a_broken_values_file_is_named(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text("a: [\n")
    code, _, err = run("render", "--values", str(file))
    assert code == 2
    assert "broken.yaml" in err


@pytest.mark.parametrize("command", ["render", "diff", "graph", "baseline", "speed"])
def test_help_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"python -m chart_harness {command}" in capsys.readouterr().out


def test_overrides_are_read_as_helm_reads_them() -> None:
    assert overrides(
        ["a.b=1,a.c=x", "d={1,y}", "e=null", "f=true", r"g.h\.i=a\,b", "j=007", "k=-2", "l=a=b", "m="]
    ) == {
        "a": {"b": 1, "c": "x"},
        "d": [1, "y"],
        "e": None,
        "f": True,
        "g": {"h.i": "a,b"},
        "j": "007",
        "k": -2,
        "l": "a=b",
        "m": "",
    }


def test_diff_of_a_revision_names_fields_restarts_and_refusals(run: Run, repository: Path) -> None:
    assert run("diff", "--revision", "v1") == (0, "nothing differs\n", "")
    file = repository / "templates" / "web.yaml"
    text = file.read_text().replace("replicas: {{ .Values.replicas }}", "replicas: 5")
    text = text.replace("automountServiceAccountToken: false", "automountServiceAccountToken: true")
    file.write_text(text)
    code, out, _ = run("diff", "--revision", "v1")
    assert code == 1
    assert "    spec.replicas: 1 → 5   (templates/web.yaml:7)" in out
    assert "  Deployment/web: spec.template.spec.automountServiceAccountToken" in out
    file.write_text(text.replace("{app: web}", "{app: other}"))
    code, out, _ = run("diff", "--revision", "v1", "--set", "label=other")
    assert code == 3
    assert 'Deployment/web spec.selector.matchLabels.app: "web" → "other" (immutable)' in out


def test_diff_of_values_and_of_charts(run: Run, tmp_path: Path, fixture_chart: Path) -> None:
    file = tmp_path / "v.yaml"
    file.write_text("replicas: 4\n")
    code, out, _ = run("diff", "--to-values", str(file), "-o", "json")
    assert code == 1
    report = json.loads(out)
    assert report["changed"] == {
        "Deployment/web": [{"path": "spec.replicas", "before": 1, "after": 4, "line": "templates/web.yaml:7"}]
    }
    assert (report["restarts"], report["refused"]) == ([], [])
    other = tmp_path / "other"
    other.mkdir()
    for name in ("Chart.yaml", "values.yaml"):
        (other / name).write_text((fixture_chart / name).read_text())
    (other / "templates").mkdir()
    (other / "templates" / "new.yaml").write_text("apiVersion: v1\nkind: Secret\nmetadata: {name: new}\n")
    code, out, _ = run("diff", "--to-chart", str(other))
    assert code == 1
    assert out.splitlines()[:4] == ["+ Secret/new", "- ConfigMap/web", "- Service/web", "- Deployment/web"]


def test_graph_draws_every_object_and_reference_alike(run: Run, tmp_path: Path, fixture_files: Chart) -> None:
    assert run("graph", "--output", str(tmp_path / "one.svg"))[0] == 0
    _, out, _ = run("graph")
    assert out == (tmp_path / "one.svg").read_text()
    titles = [title.text for title in ET.fromstring(out).iter("{http://www.w3.org/2000/svg}title")]
    assert "Service/web → Deployment/web: spec.selector" in titles
    assert {"Deployment/web", "Service/web", "ConfigMap/web"} <= set(titles)


def test_graph_of_the_project_leaves_no_object_out_and_no_two_in_one_place(pytestconfig: pytest.Config) -> None:
    session = session_of(pytestconfig)
    objects = session.render(session.setup.scenarios[0])
    picture = svg(objects, "all")
    assert picture == svg(objects, "all")
    boxes = ET.fromstring(picture).findall("{http://www.w3.org/2000/svg}g/{http://www.w3.org/2000/svg}rect")
    places = [(box.get("x"), box.get("y")) for box in boxes]
    assert len(places) == len(set(places)) >= len({manifest.id for manifest in objects})


def test_layers_lead_to_the_right_and_end_in_circles_too() -> None:
    chain = [Edge("a", "b", ()), Edge("b", "c", ()), Edge("a", "c", ())]
    assert layers(["a", "b", "c", "d"], chain) == [["a"], ["b"], ["c"], ["d"]]
    circle = [Edge("a", "b", ()), Edge("b", "a", ())]
    assert sorted(node for column in layers(["a", "b"], circle) for node in column) == ["a", "b"]


def test_edges_name_their_fields(empty_renderer: Renderer, fixture_files: Chart) -> None:
    found = {
        (edge.source, edge.target): edge.paths for edge in edges(empty_renderer.render(fixture_files, Scenario("a")))
    }
    assert found == {
        ("Deployment/web", "ConfigMap/web"): (
            "spec.template.spec.containers[web].env[COLOUR].valueFrom.configMapKeyRef",
        ),
        ("Service/web", "Deployment/web"): ("spec.selector",),
    }


def test_baseline_holds_each_values_file(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "more.yaml"
    file.write_text("replicas: 4\n")
    code, out, _ = run("baseline", "--values", str(file), "--output", str(tmp_path / "released.json"))
    assert (code, out.strip().endswith("2 scenarios of 0.1.0")) == (0, True)
    assert set(json.loads((tmp_path / "released.json").read_text())["scenarios"]) == {"defaults", "more"}


def test_the_same_assertions_are_run_by_every_way(run: Run, tmp_path: Path, fixture_files: Chart) -> None:
    code, out, _ = run("speed", "--assertions", "5", "--repeat", "1", "--output", str(tmp_path / "speed.json"))
    assert code == 0, out
    figures = json.loads((tmp_path / "speed.json").read_text())
    assert figures["assertions"] == 5
    assert set(figures["seconds"]) == {"harness, first run", "harness", "one helm process a test"}
    assert figures["harness milliseconds per assertion"] < 1


def test_assertions_are_spread_over_the_objects(empty_renderer: Renderer, fixture_files: Chart) -> None:
    objects = empty_renderer.render(fixture_files, Scenario("base"))
    assertions = choose(objects, 5)
    assert len({assertion.kind for assertion in assertions}) > 1 or len(assertions) == 5
    for assertion in assertions:
        assert objects.one(assertion.kind, assertion.name).at(assertion.path) == assertion.value
