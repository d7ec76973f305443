"""`speed`: the same assertions by this harness, by helm-unittest, and with one `helm template` for each."""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from chart_harness import options
from chart_harness.objects import Manifests

_CONFTEST = """\
from pathlib import Path
from chart_harness import Scenario, Setup

pytest_plugins = ("chart_harness.plugin",)

def pytest_chart_harness(config):
    values = tuple(Path(name) for name in {values!r})
    scenario = Scenario("speed", values=values, release={release!r}, namespace={namespace!r})
    return Setup(chart=Path({chart!r}), scenarios=[scenario], helm=[Path({helm!r})])
"""

_HARNESS = """\
import pytest
ASSERTIONS = {assertions!r}

@pytest.mark.parametrize(("kind", "name", "path", "value"), ASSERTIONS)
def test_field(kind, name, path, value, renderings):
    assert renderings[0].one(kind, name).at(path) == value
"""

_SUBPROCESSES = """\
import subprocess
import pytest
import yaml
ASSERTIONS = {assertions!r}

@pytest.mark.parametrize(("kind", "name", "path", "value"), ASSERTIONS)
def test_field(kind, name, path, value):
    text = subprocess.run({command!r}, check=True, capture_output=True, text=True).stdout
    objects = [found for found in yaml.load_all(text, Loader=yaml.CSafeLoader) if found]
    (node,) = [found for found in objects if (found["kind"], found["metadata"]["name"]) == (kind, name)]
    for key in path.split("."):
        node = node[key]
    assert node == value
"""


@dataclass(frozen=True)
class Assertion:
    """That a field has a value.

    Attributes:
        kind: of the object.
        name: of the object.
        path: dotted keys without positions.
        value: what it is.
        source: the template, relative to the chart.
    """

    kind: str
    name: str
    path: str
    value: Any
    source: str


def choose(manifests: Manifests, count: int) -> list[Assertion]:
    """Fields to assert, spread evenly over a rendering.

    Single values at the end of plain keys, of objects that helm-unittest can tell apart by template and kind.
    """
    kinds = Counter((manifest.source, manifest.kind) for manifest in manifests)
    plain = re.compile(r"[A-Za-z]+(\.[A-Za-z]+)+")
    found = [
        Assertion(manifest.kind, manifest.name, path, value, manifest.source)
        for manifest in manifests
        if kinds[manifest.source, manifest.kind] == 1
        for path, value in manifest.walk()
        if isinstance(value, str | int | bool) and "\n" not in str(value) and plain.fullmatch(path)
    ]
    step = max(1, len(found) // count)
    return found[::step][:count]


def suite(assertions: Sequence[Assertion], side: options.Side) -> dict[str, Any]:
    """The assertions as a suite of helm-unittest."""
    version = side.scenario.kube_version.split(".")
    return {
        "suite": "speed",
        "templates": sorted({assertion.source for assertion in assertions}),
        "values": [str(file) for file in side.scenario.values],
        "release": {"name": side.scenario.release, "namespace": side.scenario.namespace},
        "capabilities": {"majorVersion": int(version[0]), "minorVersion": int(version[1])},
        "tests": [
            {
                "it": f"{assertion.kind}/{assertion.name} {assertion.path}",
                "template": assertion.source,
                "documentSelector": {"path": "kind", "value": assertion.kind},
                "asserts": [{"equal": {"path": assertion.path, "value": assertion.value}}],
            }
            for assertion in assertions
        ],
    }


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `speed`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "speed",
        help="compare the harness with helm-unittest and with one helm process a test",
        description="Run the same assertions three ways, each as its users run it, from the start of the program to "
        "its end, and print how long each takes. Nothing else should use the processors meanwhile.",
        epilog="example:\n  python -m chart_harness speed --helm-unittest ~/bin/helm-unittest --output speed.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_render_options(parser)
    parser.add_argument("--assertions", type=int, default=50, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="runs (default: %(default)s)")
    parser.add_argument("--helm-unittest", type=Path, metavar="PROGRAM", help="leave it out when it is not there")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the figures as JSON too")
    parser.set_defaults(run=_speed)


def _speed(arguments: argparse.Namespace) -> int:
    side = options.side(arguments)
    assertions = choose(side.render(), arguments.assertions)
    with tempfile.TemporaryDirectory(prefix="chart-harness-") as folder:
        seconds = _measure(Path(folder), side, assertions, arguments)
    ours = seconds["harness"]
    figures = {
        "assertions": len(assertions),
        "processors": os.cpu_count(),
        "seconds": {name: round(wall, 3) for name, (wall, _) in seconds.items()},
        "processor seconds": {name: round(used, 3) for name, (_, used) in seconds.items()},
        "ratio to harness": {name: round(wall / ours[0], 2) for name, (wall, _) in seconds.items()},
        "ratio of processor time": {name: round(used / ours[1], 2) for name, (_, used) in seconds.items()},
        "harness milliseconds per assertion": round(_overhead(side, assertions) * 1000, 4),
    }
    print(f"{'':<28}{'time':>10}{'ratio':>9}{'processor':>12}{'ratio':>9}")
    for name, (wall, used) in seconds.items():
        print(f"{name:<28}{wall:8.2f} s{wall / ours[0]:7.1f} ×{used:10.2f} s{used / ours[1]:7.1f} ×")
    print(f"{'the harness, one assertion':<28}{figures['harness milliseconds per assertion']:8.3f} ms")
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def _overhead(side: options.Side, assertions: Sequence[Assertion]) -> float:
    """Seconds that finding one field in a rendering takes, without pytest; the rendering is in memory."""
    rounds = 20
    start = time.perf_counter()
    for _ in range(rounds):
        for assertion in assertions:
            assert side.render().one(assertion.kind, assertion.name).at(assertion.path) == assertion.value
    return (time.perf_counter() - start) / rounds / len(assertions)


def _used() -> float:
    """Processor seconds of the programs that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _measure(
    folder: Path, side: options.Side, assertions: Sequence[Assertion], arguments: argparse.Namespace
) -> dict[str, tuple[float, float]]:
    """Seconds and processor seconds of each way; the latter say the same on a machine that is busy."""
    rows = [tuple(asdict(assertion).values())[:4] for assertion in assertions]
    scenario, helm = side.scenario, side.renderer.helm
    ours, others = folder / "harness", folder / "subprocesses"
    for tests in (ours, others):
        tests.mkdir()
    values = tuple(str(file) for file in scenario.values)
    (ours / "conftest.py").write_text(
        _CONFTEST.format(
            chart=str(side.chart.path),
            values=values,
            release=scenario.release,
            namespace=scenario.namespace,
            helm=str(helm),
        )
    )
    (ours / "test_speed.py").write_text(_HARNESS.format(assertions=rows))
    command = [str(helm), "template", scenario.release, str(side.chart.path), "--namespace", scenario.namespace]
    command += ["--kube-version", scenario.kube_version, *(word for file in values for word in ("--values", file))]
    (others / "test_speed.py").write_text(_SUBPROCESSES.format(assertions=rows, command=command))
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder)]
    environment = {
        **os.environ,
        "CHART_HARNESS_CACHE": str(folder / "cache"),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    ways = {
        "harness, first run": [*pytest, str(ours)],
        "harness": [*pytest, str(ours)],
        "one helm process a test": [*pytest, str(others)],
    }
    if arguments.helm_unittest:
        file = folder / "speed_test.yaml"
        file.write_text(yaml.safe_dump(suite(assertions, side)))
        ways["helm-unittest"] = [str(arguments.helm_unittest), "--with-subchart=false"]
        ways["helm-unittest"] += ["--file", str(file), str(side.chart.path)]
    seconds = {}
    for name, words in ways.items():
        times = []
        for _ in range(1 if name == "harness, first run" else arguments.repeat):
            start, used = time.perf_counter(), _used()
            done = subprocess.run(words, env=environment, cwd=folder, capture_output=True, text=True, check=False)
            times.append((time.perf_counter() - start, _used() - used))
            if done.returncode:
                raise options.UsageError(f"{name} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        walls, processors = zip(*times, strict=True)
        seconds[name] = statistics.median(walls), statistics.median(processors)
    return seconds
