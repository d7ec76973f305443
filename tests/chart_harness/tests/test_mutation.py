"""A mutant's fast verdict is that of the whole suite, and the list of mutants is always the same."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from chart_harness import Scenario, Setup
from chart_harness.mutation import Result, Summary, Trial, all_mutants, sources, try_mutants
from chart_harness.mutation_operators import Mutant, mutants
from chart_harness.plugin import session_of

FIXTURE_CHART = Path(__file__).parent / "fixture_chart"

CONFTEST = """
from pathlib import Path
from chart_harness import Scenario, Setup

pytest_plugins = ("chart_harness.plugin",)

def pytest_chart_harness(config):
    chart = Path(__file__).parent.parent / "chart"
    return Setup(
        chart=chart,
        scenarios=[Scenario("one"), Scenario("two", overrides={{"replicas": 2}})],
        helm=[Path(name) for name in {helm!r}],
        refusals=[Scenario("negative", overrides={{"replicas": -1}})],
    )
"""

# Tests of every kind: of one object, of a scenario, through other objects, and without a sweep.
SUITE = """
import pytest
from chart_harness import HelmError, restricted
from chart_harness.plugin import session_of

def test_pods(pod):
    assert not restricted(pod)

@pytest.mark.kinds("Service")
def test_services(manifest, manifests_of):
    selector = manifest["spec"]["selector"]
    assert any(selector.items() <= pod.labels.items() for pod in manifests_of(manifest).pods())

def test_upgrade(scenario, chart, renderer):
    assert len(renderer.render(chart, scenario)) == 3

def test_all(renderings):
    assert [m.one("Deployment", "web").at("spec.replicas") for m in renderings] == [1, 2]

def test_overrides(render):
    assert render(image="example.org/x:1").containers()[1].spec["image"] == "example.org/x:1"

def test_files(chart):
    assert "image: example.org/web:1.0" in (chart.path / "values.yaml").read_text()

def test_refusals(pytestconfig, chart, renderer):
    for scenario in session_of(pytestconfig).setup.refusals:
        with pytest.raises(HelmError, match="must not be negative"):
            renderer.text(chart, scenario)
"""


@pytest.fixture
def trial(tmp_path: Path, pytestconfig: pytest.Config) -> Trial:
    """A repository with the fixture chart and a suite for it."""
    root = tmp_path / "repository"
    shutil.copytree(FIXTURE_CHART, root / "chart")
    harness = Path(__file__).parents[1]
    shutil.copytree(harness, root / "tests" / "chart_harness", ignore=shutil.ignore_patterns("tests", "__pycache__"))
    helm = [str(path) for path in session_of(pytestconfig).setup.helm]
    (root / "suite").mkdir()
    (root / "suite" / "conftest.py").write_text(CONFTEST.format(helm=helm))
    (root / "suite" / "test_chart.py").write_text(SUITE)
    (root / "pytest.ini").write_text("[pytest]\n")
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)
    scenarios = [Scenario("one"), Scenario("two", overrides={"replicas": 2})]
    setup = Setup(root / "chart", scenarios, refusals=[Scenario("negative", overrides={"replicas": -1})])
    folder = tmp_path / "work"
    folder.mkdir()
    return Trial(root, Path("suite"), setup, folder)


def test_the_verdict_is_that_of_the_whole_suite(trial: Trial) -> None:
    every = list(all_mutants(sources(trial.setup, trial.root), trial.root))
    sample = every[::6]
    results = {result.mutant: result for result in try_mutants(trial, sample, workers=2, say=print)}
    assert results.keys() == set(sample)
    assert {result.status for result in results.values()} >= {"killed", "survived"}
    tree = trial.copy(0)
    assert trial.plain(None, tree) is None
    differing = [
        f"{mutant.id}: {result.status} by {result.by}"
        for mutant, result in results.items()
        if (trial.plain(mutant, tree) is not None) != (result.status == "killed")
    ]
    assert not differing, "\n".join(differing)


def test_mutants_have_the_same_ids_when_lines_are_added() -> None:
    source = (FIXTURE_CHART / "templates" / "web.yaml").read_text()
    before = mutants("chart/templates/web.yaml", source)
    after = mutants("chart/templates/web.yaml", "# a line\n\n" + source)
    assert [mutant.id for mutant in before] == [mutant.id for mutant in after]
    assert len({mutant.id for mutant in before}) == len(before) > 50


def test_every_mutant_changes_the_file_and_no_comment() -> None:
    source = "# name: a\n{{/* name: b */}}\nname: a\nother:\n  name: b # why\n  on: true\n"
    for file in ("templates/a.yaml", "values.yaml"):
        found = mutants(file, source)
        assert found
        for mutant in found:
            changed = mutant.apply(source)
            assert changed != source
            assert changed.startswith("# name: a\n{{/* name: b */}}\n")


def test_an_excuse_does_not_raise_the_score() -> None:
    results = [Result(Mutant(str(number), "f", "o", 1, 0, 0, ""), "killed", "a test", 0.1) for number in range(3)]
    results.append(Result(Mutant("left", "f", "o", 1, 0, 0, ""), "survived", "", 0.1))
    summary = Summary(results, {"left": "nothing can notice it", "0": "needless here", "gone": "not tried this time"})
    assert summary.score == 75
    assert summary.survivors == []
    assert summary.needless == ["0"]
