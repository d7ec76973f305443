"""The pytest side of mutation testing: one process that collected a suite once, and forks for every mutant.

It runs in a copy of the repository, whose files it changes. Rendering goes through the engine. The parent runs the
suite once, which must pass and which fills the caches that every child inherits. For a mutant it renders the chart,
scenario by scenario; for those that changed, a forked child collects what can notice and runs it up to the first
failure, beginning with what noticed most for its time so far:

- a test of one object (`manifest`, `pod`, `container`) that asks for nothing else of the rendering, for the objects
  that changed;
- any other swept test, for the scenarios that changed;
- a test that sweeps nothing, or asks for all renderings, when the first changed scenario did not tell.

Tests marked `sources` judge the sources and not what they render; no mutant counts as killed by them.

It is loaded with `-p chart_harness.mutation_worker` and spoken to in lines of JSON over the file descriptors that the
variable `CHART_HARNESS_MUTATION` names: reading, writing.
"""

from __future__ import annotations

import gc
import inspect
import json
import os
import resource
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TextIO

import pytest

from chart_harness.engine import Engine, EngineRenderer, build
from chart_harness.objects import Container, Manifest, Manifests, Pod
from chart_harness.plugin import SWEPT, WHOLE, Session, looks_at_its_object_alone, session_of
from chart_harness.render import Chart, HelmError, Scenario, cache_folder, find_helm

_PATIENCE = 120
"""Seconds of processor time that the tests of one mutant may take; a mutant that makes them hang is killed."""

_BEST = 12
"""Tests that are collected and run before any other: those that killed most. To collect all takes longer."""

_VALUE_DEPENDENT = ("drop-quote",)
"""Operators whose mistake shows for some values only, which the tests that sweep nothing may try."""


class Worker:
    """Tries the mutants it is told of; see the module's description."""

    def __init__(self, reading: TextIO, writing: TextIO) -> None:
        self.reading = reading
        self.writing = writing
        self.kills: Counter[str] = Counter()
        self.tries: Counter[str] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.focus: Sequence[Scenario] | None = None
        self.wanted: Callable[[pytest.Item], bool] = lambda item: True
        self.asked_for: Callable[[str], bool] = lambda function: True
        self.known: dict[str, set[str]] = {}
        self.failure: str | None = None
        self.spent: defaultdict[str, float] = defaultdict(float)
        self.base: dict[str, tuple[str, str]] = {}
        self.objects: dict[str, list[Mapping[str, Any]]] = {}
        self.modules: list[pytest.Module] = []
        self.made: list[pytest.FixtureDef[Any]] = []
        self.asked: dict[str, set[str]] = {}

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        """Render through the engine."""
        self.engine = Engine(build(cache_folder()))
        self.renderer = EngineRenderer(find_helm(session_of(config).setup.helm), self.engine)
        session_of(config)._renderer = self.renderer

    @pytest.hookimpl(tryfirst=True)
    def pytest_pycollect_makeitem(
        self, collector: pytest.Collector, name: str, obj: object
    ) -> list[pytest.Item] | None:
        """Leave out functions that are not asked for now."""
        if inspect.isfunction(obj) and not self.asked_for(f"{collector.nodeid}::{name}"):
            return []
        return None

    @pytest.hookimpl(wrapper=True)
    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> Generator[None, None, None]:
        """Sweep the scenarios in question and, for tests of one object, the objects that changed."""
        harness = session_of(metafunc.config)
        swept = next((name for name in SWEPT if name in metafunc.fixturenames), None)
        if self.focus is None or swept is None:
            return (yield)
        setup = harness.setup
        alone = looks_at_its_object_alone(metafunc.fixturenames)
        harness.setup = replace(setup, scenarios=self.focus)
        if alone:
            harness.render = self._changed(harness)  # type: ignore[method-assign]
        try:
            return (yield)
        finally:
            harness.setup = setup
            harness.__dict__.pop("render", None)

    def _changed(self, harness: Session) -> Any:
        def render(scenario: Scenario) -> Manifests:
            known = self.known.get(scenario.name, set())
            return harness.renderer.render(harness.chart, scenario).where(
                lambda manifest: manifest.document not in known
            )

        return render

    @pytest.hookimpl(tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> None:
        """Note what is made, and from what."""
        self.made.append(fixturedef)
        self.asked.setdefault(fixturedef.argname, set()).update(fixturedef.argnames)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave out what cannot notice, and begin with what noticed most so far for the time that it took."""
        chosen = [item for item in items if item.get_closest_marker("sources") is None and self.wanted(item)]
        items[:] = sorted(chosen, key=lambda item: -self._promise(_function(item.nodeid)))

    @staticmethod
    def _sees_one_scenario(item: pytest.Item) -> bool:
        """Whether a test asks for a part of one scenario, and not for the renderings of the others too."""
        return _scenario(item) is not None and "renderings" not in _fixtures(item)

    def _promise(self, function: str) -> float:
        """How many mutants a test kills in a second; of one that was not tried yet, that it is a good one."""
        tries = self.tries[function]
        return (self.kills[function] + 0.1) / (self.seconds[function] + 0.001 * (tries + 1))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the first failure, and what the tests took."""
        if report.failed and self.failure is None:
            self.failure = report.nodeid
        self.spent[_function(report.nodeid)] += report.duration

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Try mutants until there are no more."""
        harness = session_of(session.config)
        setup = harness.setup
        for scenario in [*setup.scenarios, *setup.refusals]:
            self.base[scenario.name] = self._render(harness.chart, scenario)
        for scenario in setup.scenarios:
            rendered = harness.render(scenario)
            self.known[scenario.name] = {manifest.document for manifest in rendered}
            self.objects[scenario.name] = [manifest.raw for manifest in rendered]
        for item, following in _followed(session.items, session):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        # Collected again for every mutant: what they are parametrized with is what changes.
        self.modules = list(
            dict.fromkeys(module for item in session.items if (module := item.getparent(pytest.Module)))
        )
        self.made = [fixture for fixture in dict.fromkeys(self.made) if fixture.cached_result is not None]
        self._learn(self.spent)
        # What is there by now stays; a child that looked for garbage would copy all of it.
        gc.collect()
        gc.freeze()
        self._say({"ready": True, "failure": self.failure})
        for line in self.reading:
            question = json.loads(line)
            self._say(self._try(session, question["mutant"], question["scenarios"]))
        self.engine.stop()
        return True

    def _say(self, answer: dict[str, Any]) -> None:
        self.writing.write(json.dumps(answer) + "\n")
        self.writing.flush()

    def _render(self, chart: Chart, scenario: Scenario) -> tuple[str, str]:
        try:
            return self.renderer.text(chart, scenario), ""
        except HelmError as error:
            return "", str(error)

    def _try(self, session: pytest.Session, mutant: dict[str, Any], likely: list[str]) -> dict[str, Any]:
        file = session.config.rootpath / mutant["file"]
        source = file.read_text()
        begun = time.monotonic()
        file.write_text(source[: mutant["start"]] + mutant["replacement"] + source[mutant["end"] :])
        harness = session_of(session.config)
        known = dict(self.renderer._answers), dict(self.renderer._parsed)
        try:
            _forget(harness.chart)
            verdict = self._verdict(session, harness, likely, mutant["operator"])
        finally:
            file.write_text(source)
            _forget(harness.chart)
            self.renderer._answers, self.renderer._parsed = known
        if "::" in verdict["by"]:
            self.kills[_function(verdict["by"])] += 1
        return {**verdict, "seconds": round(time.monotonic() - begun, 2)}

    def _verdict(self, session: pytest.Session, harness: Session, likely: list[str], operator: str) -> dict[str, Any]:
        setup = harness.setup
        order = {name: index for index, name in enumerate(likely)}
        changed: list[Scenario] = []
        other_text = False
        asked = [scenario for scenario in setup.scenarios if scenario.name in order]
        for scenario in sorted(asked, key=lambda scenario: order[scenario.name]):
            output, error = self._render(harness.chart, scenario)
            if error:
                return {"status": "killed", "by": f"helm, for «{scenario.name}»: {error.splitlines()[-1]}"}
            if output == self.base[scenario.name][0]:
                continue
            try:
                objects = [manifest.raw for manifest in harness.render(scenario)]
            except AssertionError as invalid:
                return {"status": "killed", "by": f"«{scenario.name}»: {str(invalid).splitlines()[0]}"}
            if objects == self.objects[scenario.name]:
                other_text = True
                continue
            changed.append(scenario)
            if len(changed) == 1 and (killer := self._in_child(session, changed, self._sees_one_scenario)):
                return {"status": "killed", "by": killer}
        refused = any(
            self._render(harness.chart, scenario) != self.base[scenario.name]
            for scenario in setup.refusals
            if scenario.name in order
        )
        if not changed and not refused and not (other_text and operator in _VALUE_DEPENDENT):
            return {"status": "no effect", "by": ""}
        tried = changed[0].name if changed else None
        killer = self._in_child(
            session, changed, lambda item: not (self._sees_one_scenario(item) and _scenario(item) == tried)
        )
        return {"status": "killed" if killer else "survived", "by": killer or ""}

    def _in_child(
        self, session: pytest.Session, scenarios: Sequence[Scenario], wanted: Callable[[pytest.Item], bool]
    ) -> str | None:
        """The first of the wanted tests that fails in a forked process, or None."""
        reading, writing = os.pipe()
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.close(reading)
                # Processor time, so that a busy machine kills no mutant.
                resource.setrlimit(resource.RLIMIT_CPU, (_PATIENCE, _PATIENCE))
                killer = self._run(session, scenarios, wanted)
                _write(writing, {"killer": killer, "seconds": self.spent})
                code = 0
            except BaseException as error:  # whatever it is, the parent has to hear of it
                _write(writing, {"error": repr(error)})
            finally:
                os._exit(code)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            text = pipe.read()
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            self.engine.stop()  # it may be in the middle of an answer
            if os.WTERMSIG(status) not in (signal.SIGXCPU, signal.SIGKILL):
                raise HelmError(f"a process that ran tests was ended by signal {os.WTERMSIG(status)}")
            return f"no answer in {_PATIENCE} s"
        said: dict[str, Any] = json.loads(text)
        if "error" in said:
            raise HelmError(f"the tests did not run: {said['error']}")
        self._learn(said["seconds"])
        failed: str | None = said["killer"]
        return failed

    def _learn(self, spent: Mapping[str, float]) -> None:
        """Note which tests ran, and how long."""
        self.tries.update(spent.keys())
        for function, seconds in spent.items():
            self.seconds[function] += seconds

    def _forget_fixtures(self, request: pytest.FixtureRequest) -> None:
        """Let fixtures that saw the rendering be made again; others are taken not to read it."""

        def saw(name: str) -> bool:
            return name in WHOLE or any(saw(asked) for asked in self.asked.get(name, ()) if asked != name)

        for fixture in self.made:
            if fixture.argname not in ("chart", "renderer", "pytestconfig") and saw(fixture.argname):
                fixture.finish(request)  # type: ignore[arg-type]  # of the request it needs the node alone

    def _run(
        self, session: pytest.Session, scenarios: Sequence[Scenario], wanted: Callable[[pytest.Item], bool]
    ) -> str | None:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        self.focus, self.wanted, self.failure = scenarios, wanted, None
        self.spent.clear()
        best = {function for function, _ in self.kills.most_common(_BEST)}
        forgotten = False
        files = {function.partition("::")[0] for function in best}
        of_best = [module for module in self.modules if module.nodeid in files]
        for modules, asked_for in (
            (of_best, best.__contains__),
            (self.modules, lambda function: function not in best),
        ):
            self.asked_for = asked_for
            try:
                items = [item for module in modules for item in _items(module)]
            except Exception as error:  # as pytest does: what cannot be collected is an error, and so a failure
                return f"the collection: {error!r}"
            for item in items:
                if item.nodeid.endswith("[NOTSET]") and not any(name in _fixtures(item) for name in SWEPT):
                    return f"{item.nodeid}: its parameters are used up by the first collection: make them a list"
            if not items:
                continue
            if not forgotten:
                forgotten = True
                self._forget_fixtures(next(item._request for item in items if isinstance(item, pytest.Function)))
            session.config.hook.pytest_collection_modifyitems(session=session, config=session.config, items=items)
            for item, following in _followed(items, session):
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                if self.failure:
                    return self.failure
        return self.failure


def _forget(chart: Chart) -> None:
    """Let a chart read its files again; it stays the same object, which fixtures hold."""
    for name in ("files", "digest"):
        chart.__dict__.pop(name, None)


def _items(collector: pytest.Collector) -> Iterator[pytest.Item]:
    for node in collector.collect():
        if isinstance(node, pytest.Collector):
            yield from _items(node)
        elif isinstance(node, pytest.Item):
            yield node


def _write(descriptor: int, answer: Mapping[str, Any]) -> None:
    with os.fdopen(descriptor, "w") as pipe:
        json.dump(answer, pipe)


def _followed(items: Sequence[pytest.Item], session: pytest.Session) -> Iterator[tuple[pytest.Item, Any]]:
    """Every test with what follows: the session after the last, so that its fixtures are kept for other tests."""
    return zip(items, [*items[1:], session], strict=False)


def _scenario(item: pytest.Item) -> str | None:
    """The scenario that a swept test is about; None for any other."""
    parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    for name in SWEPT:
        match parameters.get(name):
            case Scenario(name=scenario):
                return scenario
            case Manifests(scenario=scenario) | Manifest(scenario=scenario):
                return scenario
            case Pod(owner=owner) | Container(pod=Pod(owner=owner)):
                return owner.scenario
    return None


def _fixtures(item: pytest.Item) -> Sequence[str]:
    return getattr(item, "fixturenames", ())


def _function(nodeid: str) -> str:
    return nodeid.partition("[")[0]


def pytest_configure(config: pytest.Config) -> None:
    """Take the place of pytest's own loop, where the coordinator asks for it."""
    if channel := os.environ.pop("CHART_HARNESS_MUTATION", ""):
        reading, writing = (int(number) for number in channel.split(","))
        worker = Worker(os.fdopen(reading, "r"), os.fdopen(writing, "w"))
        config.pluginmanager.register(worker, "chart-harness-mutation-worker")
