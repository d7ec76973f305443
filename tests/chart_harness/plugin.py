"""The pytest side: fixtures that name what a test is about, swept over every scenario of a chart.

A test asks for one of these and runs once for each:

- `manifests`: all objects of one scenario; id `local`.
- `manifest`: one object; id `local-Deployment/training-api`. `@pytest.mark.kinds("Service", …)` narrows it.
- `pod`: one pod template, those inside custom resources included.
- `container`: one container, init containers included; id `local-Deployment/training-api/api`.
- `scenario`: one scenario, rendered or not.

An object that is the same, letter by letter, in several scenarios is tested once, under the first of them, by a test
that can see nothing else.

A test may ask for `render` (a function of a `Scenario`, or of overrides on the first scenario), `renderings` (the
objects of every scenario), `chart`, `renderer` and `manifests_of` (the objects rendered together with a given one).

A `conftest.py` says what to render:

    def pytest_chart_harness(config):
        return Setup(chart=Path(...), scenarios=[...])
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Generator, Iterator
from typing import Any

import pytest
import yaml

from chart_harness.objects import Container, Manifest, Manifests, Pod
from chart_harness.origins import line_of
from chart_harness.render import Chart, HelmError, Renderer, Scenario, Setup, cache_folder, find_helm

SWEPT = ("scenario", "manifests", "manifest", "pod", "container")

OF_ONE_OBJECT = ("manifest", "pod", "container")

WHOLE = frozenset({"chart", "manifests_of", "pytestconfig", "render", "renderer", "renderings"})
"""Fixtures through which a test sees more than the object it is about."""


def looks_at_its_object_alone(fixtures: Collection[str]) -> bool:
    """Whether a test that uses these fixtures is about one object and cannot see another."""
    return WHOLE.isdisjoint(fixtures) and any(name in fixtures for name in OF_ONE_OBJECT)


class Hooks:
    """Hooks of this plugin."""

    @pytest.hookspec(firstresult=True)
    def pytest_chart_harness(self, config: pytest.Config) -> Setup | None:
        """The chart of this suite and the scenarios to sweep."""


class Session:
    """The chart of one pytest run, rendered when the first test that asks for it is collected."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self._chart: Chart | None = None
        self._renderer: Renderer | None = None

    @property
    def chart(self) -> Chart:
        """The chart as it was when first asked for."""
        if self._chart is None:
            self._chart = Chart(self.setup.chart)
        return self._chart

    @property
    def renderer(self) -> Renderer:
        """The one renderer of this process."""
        if self._renderer is None:
            self._renderer = Renderer(find_helm(self.setup.helm), cache_folder())
        return self._renderer

    def render(self, scenario: Scenario) -> Manifests:
        """The objects of the chart in a scenario; raises `HelmError`."""
        return self.renderer.render(self.chart, scenario)


SESSION = pytest.StashKey[Session]()


def session_of(config: pytest.Config) -> Session:
    """The session of a configuration; fails when no conftest describes a chart."""
    session = config.stash.get(SESSION, None)
    if session is None:
        setup = config.hook.pytest_chart_harness(config=config)
        if setup is None:
            raise pytest.UsageError("no conftest.py implements pytest_chart_harness(config)")
        session = config.stash[SESSION] = Session(setup)
    return session


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Make `pytest_chart_harness` known."""
    pluginmanager.add_hookspecs(Hooks)


def pytest_configure(config: pytest.Config) -> None:
    """Make the plugin's marker known."""
    config.addinivalue_line("markers", "sources: judges the chart's sources, not what they render; kills no mutants")
    config.addinivalue_line("markers", "kinds(*names): narrow the fixture `manifest` to objects of these kinds")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Forget old renderings, once per run."""
    chart = session.config.stash.get(SESSION, None)
    if chart is not None and chart._renderer is not None and not hasattr(session.config, "workerinput"):
        chart._renderer.prune()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Below a failure: the template lines of the object, pod or container it is about, and of the fields it names."""
    report = yield
    if report.when == "call" and report.failed and call.excinfo is not None:
        arguments = getattr(item, "funcargs", {})
        subject = next((arguments[name] for name in ("manifest", "pod", "container") if name in arguments), None)
        if isinstance(subject, Manifest | Pod | Container):
            try:
                # The statement that failed and its message; the rest of a traceback shows whole objects.
                shown = [line for line in report.longreprtext.splitlines() if line.startswith((">", "E"))]
                lines = template_lines(subject, "\n".join(shown))
            except (HelmError, OSError, yaml.YAMLError) as error:
                lines = [f"not known: {error}"]
            if lines:
                report.sections.append(("template lines", "\n".join(lines)))
    return report


_FIELD = re.compile(r"[A-Za-z][\w-]*(?:(?:\.[A-Za-z_][\w/-]*)|\[[\w.-]+\])+")


def template_lines(subject: Manifest | Pod | Container, text: str) -> list[str]:
    """Where an object and the fields of it that a text names were made.

    Args:
        subject: what a failed test was about.
        text: the failure; what looks like the path of a field (`spec.ports[0].name`) is looked up.

    Returns:
        One line for each, the subject's own first; none for an object that no `Renderer` made.
    """
    pod = subject.pod if isinstance(subject, Container) else subject if isinstance(subject, Pod) else None
    manifest = pod.owner if pod else subject
    assert isinstance(manifest, Manifest)
    base = pod.path if pod else ""
    if isinstance(subject, Container):
        base = f"{base}.spec.{subject.path}".lstrip(".")
    paths = {base: subject.id}
    for path in _FIELD.findall(text):
        # A test on a pod or container names fields below it.
        whole = next((p for p in (path, f"{base}.{path}".lstrip(".")) if line_of(manifest.document, p)[1]), None)
        if whole:
            paths.setdefault(whole, whole)
        elif path.startswith(("spec.", "metadata.")):
            paths.setdefault(path, f"{path} (not there)")
    found = {title: manifest.locate(path) for path, title in paths.items()}
    return [f"{title}: {location}" for title, location in found.items() if location]


class _Refused:
    """Stands for the subjects of a scenario that does not render; the test fails with helm's message."""

    def __init__(self, error: AssertionError) -> None:
        self.error = error


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Turn the names a test asks for into one test per subject."""
    given = {
        name.strip()
        for mark in metafunc.definition.iter_markers("parametrize")
        for name in (mark.args[0].split(",") if isinstance(mark.args[0], str) else mark.args[0])
    }
    asked = [name for name in SWEPT if name in metafunc.fixturenames and name not in given]
    if not asked:
        return
    if len(asked) > 1:
        raise pytest.UsageError(f"{metafunc.function.__name__} sweeps {' and '.join(asked)}; a test sweeps one thing")
    name = asked[0]
    session = session_of(metafunc.config)
    kinds = {kind for mark in metafunc.definition.iter_markers("kinds") for kind in mark.args}
    subjects: list[Any] = []
    ids: list[str] = []
    seen: set[str] | None = set() if looks_at_its_object_alone(metafunc.fixturenames) else None
    for scenario in session.setup.scenarios:
        if name == "scenario":
            subjects.append(scenario)
            ids.append(scenario.name)
            continue
        try:
            manifests = session.render(scenario)
            if seen is not None:
                manifests = manifests.where(lambda manifest: manifest.document not in seen)
                seen.update(manifest.document for manifest in manifests)
            found = list(_subjects(name, manifests, kinds))
        except AssertionError as error:
            found = [("does-not-render", _Refused(error))]
        subjects += [subject for _, subject in found]
        ids += [f"{scenario.name}-{label}" if label else scenario.name for label, _ in found]
    metafunc.parametrize(name, subjects, ids=ids, indirect=True)


def _subjects(name: str, manifests: Manifests, kinds: set[str]) -> Iterator[tuple[str, Any]]:
    chosen = manifests.by_kind(*kinds) if kinds else manifests
    if name == "manifests":
        yield "", chosen
    elif name == "manifest":
        yield from ((manifest.id, manifest) for manifest in chosen)
    elif name == "pod":
        yield from ((pod.id, pod) for pod in chosen.pods())
    else:
        yield from ((container.id, container) for container in chosen.containers())


def _subject(request: pytest.FixtureRequest) -> Any:
    if isinstance(request.param, _Refused):
        pytest.fail(str(request.param.error), pytrace=False)
    return request.param


scenario = pytest.fixture(_subject, name="scenario")
manifests = pytest.fixture(_subject, name="manifests")
manifest = pytest.fixture(_subject, name="manifest")
pod = pytest.fixture(_subject, name="pod")
container = pytest.fixture(_subject, name="container")


@pytest.fixture(scope="session")
def chart(pytestconfig: pytest.Config) -> Chart:
    """The chart under test."""
    return session_of(pytestconfig).chart


@pytest.fixture(scope="session")
def renderer(pytestconfig: pytest.Config) -> Renderer:
    """The renderer of this process."""
    return session_of(pytestconfig).renderer


@pytest.fixture(scope="session")
def renderings(pytestconfig: pytest.Config) -> list[Manifests]:
    """The objects of every scenario."""
    session = session_of(pytestconfig)
    return [session.render(scenario) for scenario in session.setup.scenarios]


@pytest.fixture(scope="session")
def render(pytestconfig: pytest.Config) -> Callable[..., Manifests]:
    """Render a scenario, or the first scenario with overrides: `render(scenario)`, `render(a={"b": 1})`."""
    session = session_of(pytestconfig)

    def _render(scenario: Scenario | None = None, **overrides: Any) -> Manifests:
        base = scenario or session.setup.scenarios[0]
        if overrides:
            base = Scenario(**{**vars(base), "overrides": {**base.overrides, **overrides}})
        return session.render(base)

    return _render


@pytest.fixture
def manifests_of(pytestconfig: pytest.Config) -> Callable[[Manifest | Pod | Container], Manifests]:
    """All objects rendered together with a given object, pod or container."""
    session = session_of(pytestconfig)
    scenarios = {scenario.name: scenario for scenario in session.setup.scenarios}

    def _manifests_of(subject: Manifest | Pod | Container) -> Manifests:
        if isinstance(subject, Container):
            subject = subject.pod
        owner = subject.owner if isinstance(subject, Pod) else subject
        return session.render(scenarios[owner.scenario])

    return _manifests_of
