"""The pytest side of mutation testing: one process that collected a suite once, and forks for every mutant.

It runs in a copy of the repository, whose files it changes. Rendering goes through the engine. The parent renders the
mutated chart, scenario by scenario; for those that changed, a forked child collects what can notice and runs it up to
the first failure:

- a test of one object (`manifest`, `pod`, `container`) that asks for nothing else of the rendering, for the objects
  that changed;
- any other swept test, for the scenarios that changed;
- a test that sweeps nothing, always, and last.

Tests marked `sources` judge the sources and not what they render; no mutant counts as killed by them.

It is loaded with `-p chart_harness.mutation_worker` and spoken to in lines of JSON over the file descriptors that the
variable `CHART_HARNESS_MUTATION` names: reading, writing.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TextIO

import pytest

from chart_harness.engine import Engine, EngineRenderer, build
from chart_harness.objects import Manifests
from chart_harness.plugin import SWEPT, WHOLE, Session, looks_at_its_object_alone, session_of
from chart_harness.render import Chart, HelmError, Scenario, cache_folder, find_helm

_PATIENCE = 120
"""Seconds of processor time that the tests of one mutant may take; a mutant that makes them hang is killed."""

_VALUE_DEPENDENT = ("drop-quote",)
"""Operators whose mistake shows for some values only, which the tests that sweep nothing may try."""


class Worker:
    """Tries the mutants it is told of; see the module's description."""

    def __init__(self, reading: TextIO, writing: TextIO) -> None:
        self.reading = reading
        self.writing = writing
        self.kills: Counter[str] = Counter()
        self.focus: Sequence[Scenario] | None = None
        self.with_unswept = True
        self.known: dict[str, set[int]] = {}
        self.failure: str | None = None
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
            return harness.renderer.render(harness.chart, scenario).where(lambda manifest: id(manifest) not in known)

        return render

    @pytest.hookimpl(tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> None:
        """Note what is made, and from what."""
        self.made.append(fixturedef)
        self.asked.setdefault(fixturedef.argname, set()).update(fixturedef.argnames)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave out what cannot notice, and begin with what noticed most so far."""
        chosen = []
        for item in items:
            swept = _swept(item)
            if item.get_closest_marker("sources") is None and (swept or self.with_unswept):
                chosen.append(((-self.kills[_function(item.nodeid)], not swept), item))
        items[:] = [item for _, item in sorted(chosen, key=lambda pair: pair[0])]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the first failure."""
        if report.failed and self.failure is None:
            self.failure = report.nodeid

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Try mutants until there are no more."""
        harness = session_of(session.config)
        setup = harness.setup
        for scenario in [*setup.scenarios, *setup.refusals]:
            self.base[scenario.name] = self._render(harness.chart, scenario)
        for scenario in setup.scenarios:
            rendered = harness.render(scenario)
            self.known[scenario.name] = {id(manifest) for manifest in rendered}
            self.objects[scenario.name] = [manifest.raw for manifest in rendered]
        # Fills caches and makes the fixtures of the session once, for all children: the last test is told that the
        # session follows, so that everything but the session's fixtures is torn down.
        first = [item for item in session.items if f"[{setup.scenarios[0].name}" in item.nodeid]
        for item, following in zip(first, [*first[1:], session], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        # Collected again for every mutant: what they are parametrized with is what changes.
        self.modules = list(
            dict.fromkeys(module for item in session.items if (module := item.getparent(pytest.Module)))
        )
        self.made = [fixture for fixture in dict.fromkeys(self.made) if fixture.cached_result is not None]
        self._say({"ready": True, "failure": self.failure})
        for line in self.reading:
            question = json.loads(line)
            if question["mutant"] is None:
                verdict = self._whole_suite(session)
            else:
                verdict = self._try(session, question["mutant"], question["scenarios"])
            self._say(verdict)
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

    def _whole_suite(self, session: pytest.Session) -> dict[str, Any]:
        """Whether the suite passes without a mutant."""
        known, self.known = self.known, {}
        killer = self._in_child(session, session_of(session.config).setup.scenarios, True, 3600)
        self.known = known
        return {"status": "killed" if killer else "passed", "by": killer or ""}

    def _try(self, session: pytest.Session, mutant: dict[str, Any], likely: list[str]) -> dict[str, Any]:
        file = session.config.rootpath / mutant["file"]
        source = file.read_text()
        begun = time.monotonic()
        file.write_text(source[: mutant["start"]] + mutant["replacement"] + source[mutant["end"] :])
        harness = session_of(session.config)
        known = dict(self.renderer._answers), dict(self.renderer._parsed), dict(self.renderer._documents)
        try:
            _forget(harness.chart)
            verdict = self._verdict(session, harness, likely, mutant["operator"])
        finally:
            file.write_text(source)
            _forget(harness.chart)
            self.renderer._answers, self.renderer._parsed, self.renderer._documents = known
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
            if len(changed) == 1 and (killer := self._in_child(session, changed, False, _PATIENCE)):
                return {"status": "killed", "by": killer}
        refused = any(self._render(harness.chart, scenario) != self.base[scenario.name] for scenario in setup.refusals)
        if not changed and not refused and not (other_text and operator in _VALUE_DEPENDENT):
            return {"status": "no effect", "by": ""}
        killer = self._in_child(session, changed[1:], True, _PATIENCE)
        return {"status": "killed" if killer else "survived", "by": killer or ""}

    def _in_child(
        self, session: pytest.Session, scenarios: Sequence[Scenario], with_unswept: bool, patience: int
    ) -> str | None:
        """The first test that fails in a forked process, or None."""
        reading, writing = os.pipe()
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.close(reading)
                # Processor time, so that a busy machine kills no mutant.
                resource.setrlimit(resource.RLIMIT_CPU, (patience, patience))
                killer = self._run(session, scenarios, with_unswept)
                os.write(writing, (killer or "").encode()[:4000])
                code = 0
            except BaseException as error:  # whatever it is, the parent has to hear of it
                os.write(writing, f"not run: {error!r}".encode()[:4000])
            finally:
                os._exit(code)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            killer = pipe.read().decode(errors="replace")
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            self.engine.stop()  # it may be in the middle of an answer
            if os.WTERMSIG(status) not in (signal.SIGXCPU, signal.SIGKILL):
                raise HelmError(f"a process that ran tests was ended by signal {os.WTERMSIG(status)}")
            return f"no answer in {patience} s"
        if killer.startswith("not run:"):
            raise HelmError(killer)
        return killer or None

    def _forget_fixtures(self, request: pytest.FixtureRequest) -> None:
        """Let fixtures that saw the rendering be made again; others are taken not to read it."""

        def saw(name: str) -> bool:
            return name in WHOLE or any(saw(asked) for asked in self.asked.get(name, ()) if asked != name)

        for fixture in self.made:
            if fixture.argname not in ("chart", "renderer", "pytestconfig") and saw(fixture.argname):
                fixture.finish(request)  # type: ignore[arg-type]  # of the request it needs the node alone

    def _run(self, session: pytest.Session, scenarios: Sequence[Scenario], with_unswept: bool) -> str | None:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        self.focus, self.with_unswept, self.failure = scenarios, with_unswept, None
        try:
            items = [item for module in self.modules for item in _items(module)]
        except Exception as error:  # as pytest does: what cannot be collected is an error, and so a failure
            return f"the collection: {error!r}"
        for item in items:
            if item.nodeid.endswith("[NOTSET]") and not _swept(item):
                return f"{item.nodeid}: what it is parametrized with is used up by the first collection: make it a list"
        self._forget_fixtures(next(item._request for item in items if isinstance(item, pytest.Function)))
        session.config.hook.pytest_collection_modifyitems(session=session, config=session.config, items=items)
        for index, item in enumerate(items):
            following = items[index + 1] if index + 1 < len(items) else None
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.failure:
                break
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


def _swept(item: pytest.Item) -> bool:
    names = getattr(item, "fixturenames", ())
    return any(name in names for name in SWEPT)


def _function(nodeid: str) -> str:
    return nodeid.partition("[")[0]


def pytest_configure(config: pytest.Config) -> None:
    """Take the place of pytest's own loop, where the coordinator asks for it."""
    if channel := os.environ.pop("CHART_HARNESS_MUTATION", ""):
        reading, writing = (int(number) for number in channel.split(","))
        worker = Worker(os.fdopen(reading, "r"), os.fdopen(writing, "w"))
        config.pluginmanager.register(worker, "chart-harness-mutation-worker")
