"""The plugin turns a fixture's name into one test per subject, in every process alike."""

from __future__ import annotations

import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from chart_harness import find_helm
from chart_harness.plugin import session_of

pytest_plugins = ("pytester",)

GUIDE = Path(__file__).parents[3] / "docs" / "testing.md"

CONFTEST = """
from pathlib import Path
from chart_harness import Scenario, Setup

pytest_plugins = ("chart_harness.plugin",)

def pytest_chart_harness(config):
    return Setup(
        chart=Path({chart!r}),
        scenarios=[Scenario("one"), Scenario("two", overrides={{"replicas": {replicas}}})],
        helm=[Path(name) for name in {helm!r}],
    )
"""

SWEEPS = """
import pytest

def test_scenario(scenario): ...
def test_manifests(manifests): assert len(manifests) == 3
def test_manifest(manifest): ...
@pytest.mark.kinds("Service")
def test_kinds(manifest, manifests_of): assert len(manifests_of(manifest)) == 3
def test_pod(pod): ...
def test_container(container): ...
def test_render(render): assert render(replicas=3).one("Deployment", "web").at("spec.replicas") == 3
"""


@pytest.fixture
def suite(pytester: pytest.Pytester, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A test suite of its own for the fixture chart."""
    monkeypatch.setenv("CHART_HARNESS_CACHE", str(pytester.path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(test_sweeps=SWEEPS)
    _write_conftest(pytester, pytestconfig, replicas=2)
    return pytester


def _write_conftest(pytester: pytest.Pytester, config: pytest.Config, *, replicas: int) -> None:
    chart = str(Path(__file__).parent / "fixture_chart")
    helm = [str(path) for path in session_of(config).setup.helm]
    pytester.makeconftest(CONFTEST.format(chart=chart, helm=helm, replicas=replicas))


def test_names_sweep(suite: pytest.Pytester) -> None:
    result = suite.runpytest_subprocess("-v", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=17)
    result.stdout.fnmatch_lines_random(
        [
            "*test_scenario?one? PASSED*",
            "*test_manifests?two? PASSED*",
            "*test_manifest?one-Deployment/web? PASSED*",
            "*test_kinds?two-Service/web? PASSED*",
            "*test_container?one-Deployment/web/prepare? PASSED*",
            "*test_manifest?two-Deployment/web? PASSED*",
        ]
    )
    # The same Service in both: once is enough for a test that sees nothing else, not for one that does.
    result.stdout.no_fnmatch_line("*test_manifest?two-Service/web?*")


def test_parallel_and_serial_runs_have_the_same_outcomes(suite: pytest.Pytester) -> None:
    """Test by test, those that fail included, whether the renderings are made by the run or found."""
    suite.makepyfile(
        test_mixed="""
import pytest

def test_object(manifest):
    assert manifest.kind != "Service", str(manifest.locate("spec.ports"))

def test_skipped(scenario):
    pytest.skip(scenario.name)
"""
    )

    def outcomes(*words: str) -> dict[tuple[str | None, str | None], str]:
        suite.runpytest_subprocess("-q", "-p", "no:cacheprovider", "--junit-xml", "report.xml", *words)
        found = {}
        for case in ET.parse(suite.path / "report.xml").iter("testcase"):
            problem = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
            found[case.get("classname"), case.get("name")] = (
                "passed" if problem is None else f"{problem.tag}: {problem.get('message')}"
            )
        return found

    parallel = outcomes("-p", "xdist", "-n", "2")
    serial = outcomes()
    assert parallel == serial
    assert len(serial) == 17 + 4 + 2
    assert sum("templates/web.yaml:38" in outcome for outcome in serial.values()) == 1


def test_a_scenario_that_does_not_render_fails_its_tests_with_helms_message(
    suite: pytest.Pytester, pytestconfig: pytest.Config
) -> None:
    _write_conftest(suite, pytestconfig, replicas=-1)
    result = suite.runpytest_subprocess("-k", "test_manifest or test_container", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=6, errors=3)
    result.stdout.fnmatch_lines(["*helm does not render fixture_chart for «two»*", "*replicas must not be negative*"])
    result.stdout.no_fnmatch_line("*Traceback*")


def test_a_failure_names_the_template_lines(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        test_fails="""
import pytest

@pytest.mark.kinds("Deployment")
def test_object(manifest):
    assert manifest.at("spec.replicas") == 7, manifest

def test_container(container):
    assert not container.spec["image"], "securityContext.capabilities: too many"
"""
    )
    result = suite.runpytest_subprocess("test_fails.py", "-p", "no:cacheprovider")
    result.stdout.fnmatch_lines(
        [
            "*- template lines -*",
            "Deployment/web: templates/web.yaml:2",
            "spec.replicas: templates/web.yaml:7",
            "Deployment/web/prepare: templates/web.yaml:19",
            "*Containers?prepare?.securityContext.capabilities: templates/web.yaml:21",
        ]
    )


def test_the_lines_of_the_guide_test_any_chart(
    pytester: pytest.Pytester, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What docs/testing.md says to write for another chart, written: a chart, its values and properties, no fixture."""
    monkeypatch.setenv("CHART_HARNESS_CACHE", str(pytester.path / "cache"))
    monkeypatch.setenv("CHART_HARNESS_HELM", str(find_helm(session_of(pytestconfig).setup.helm)))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    files = dict(re.findall(r"```python\n# (conftest\.py|test_my_chart\.py)\n(.*?)```", GUIDE.read_text(), re.DOTALL))
    assert files.keys() == {"conftest.py", "test_my_chart.py"}
    for name, text in files.items():
        (pytester.path / name).write_text(text)
    chart = Path(shutil.copytree(Path(__file__).parent / "fixture_chart", pytester.path / "my-chart"))
    (pytester.path / "ha.yaml").write_text("replicas: 3\n")
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=9)
    # A template more, with a mistake in it: the properties find it, and say where it is made.
    (chart / "templates" / "more.yaml").write_text(
        "apiVersion: v1\nkind: Service\nmetadata: {name: more}\nspec:\n  selector: {app: wbe}\n  ports: [{port: 80}]\n"
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*templates/more.yaml:5*"])
