"""Which branches of a chart's templates its scenarios take, measured by helm's own renderer.

A copy of the chart gets a mark behind every `if`, `else if`, `else`, `with`, `range` and `define`, and an `else` with a
mark where there is none. A mark is `{{ if lookup "chart-harness/mark" "N" "" "" }}{{ end }}`: it prints nothing, takes
no whitespace away, and tells the engine (see `engine.py`) that it was passed. For every scenario the text rendered with
marks must equal the text that helm renders without, so that what is measured is the chart and not the marks.

Not seen: which operand decided an `and`, `or`, `default`, `ternary` or `coalesce`; text that values hand to `tpl`;
lines of one branch apart, which are rendered together.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from chart_harness.engine import Engine, build
from chart_harness.objects import load_yaml
from chart_harness.plugin import session_of
from chart_harness.render import Chart, HelmError, Renderer, Scenario, Setup, cache_folder, find_helm

_ACTION = re.compile(
    r"\{\{(?:-(?=\s))?(?P<body>\s*/\*.*?\*/\s*|(?:\"(?:\\.|[^\"\\])*\"|`[^`]*`|'(?:\\.|[^'\\])*'|[^\"`'}]|\}(?!\}))*?)"
    r"(?:(?<=\s)-)?\}\}",
    re.DOTALL,
)
_MARK = '{{{{ if lookup "chart-harness/mark" "{}" "" "" }}}}{{{{ end }}}}'
_CONSTANT_LIST = re.compile(r'range\s+(?:\$\w+(?:\s*,\s*\$\w+)?\s*:=\s*)?(?:list|dict)(?:\s+(?:"[^"]*"|-?\d+))+')


@dataclass(frozen=True)
class Action:
    """One `{{ … }}` of a template.

    Attributes:
        start, end: offsets of its delimiters in the source.
        body: what stands between them, without the trim markers and spaces around it.
        line: line of its first character, from 1.
    """

    start: int
    end: int
    body: str
    line: int

    @property
    def word(self) -> str:
        """Its first word; `else if` and `else with` are one word."""
        words = self.body.split(None, 2)
        if not words:
            return ""
        return " ".join(words[:2]) if words[0] == "else" and len(words) > 1 else words[0]


def actions(source: str) -> Iterator[Action]:
    """The actions of a template in order, comments included (their word is `/*` or begins with it)."""
    for match in _ACTION.finditer(source):
        yield Action(match.start(), match.end(), match["body"].strip(), source.count("\n", 0, match.start()) + 1)


@dataclass(frozen=True)
class Branch:
    """One way through a template that some scenario has to take.

    Attributes:
        file: template, relative to the chart.
        line: line of the action that decides.
        what: the action (`if .Values.x`).
        way: `taken`, `not taken`, `executed`, or how many elements a loop had: `none`, `one`, `several`.
    """

    file: str
    line: int
    what: str
    way: str

    @property
    def id(self) -> str:
        """How exemptions name it: by file, action and way, so that it survives lines added above."""
        return f"{self.file}: {self.what}: {self.way}"

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {{{{ {self.what} }}}}: {self.way}"


@dataclass
class Instrumented:
    """A template with marks.

    Attributes:
        source: the template with marks in it.
        branches: what it has to be seen doing.
        marks: mark -> (branch, or None for the beginning and the end of a loop; the loop's number, or None).
    """

    source: str
    branches: list[Branch] = field(default_factory=list)
    marks: dict[str, _Mark] = field(default_factory=dict)


@dataclass(frozen=True)
class _Mark:
    """What passing a mark means: a branch was taken, or a loop begins, has an element, or ends.

    Attributes:
        kind: `branch`, `begin`, `element` or `end`.
        file, line, way: where the block's part begins that the mark stands in.
        branches: the branch that was taken, or those of which a loop takes one.
    """

    kind: str
    file: str
    line: int
    way: str
    branches: tuple[Branch, ...]


def instrument(file: str, source: str) -> Instrumented:
    """Put marks into a template.

    Args:
        file: its path in the chart; part of the marks' names.
        source: its text.

    Raises:
        AssertionError: its blocks do not end where they should.
    """
    made = Instrumented("")
    open_blocks: list[tuple[Action, bool]] = []
    inserts: list[tuple[int, str]] = []

    def mark(kind: str, action: Action, *ways: str) -> str:
        found = tuple(Branch(file, action.line, " ".join(action.body.split()), way) for way in ways)
        made.branches += found
        name = f"{file}#{len(made.marks)}"
        made.marks[name] = _Mark(kind, file, action.line, "not taken" if "not taken" in ways else "taken", found)
        return _MARK.format(name)

    for action in actions(source):
        word = action.word
        if word in ("if", "with"):
            open_blocks.append((action, False))
            inserts.append(_behind(source, action, mark("branch", action, "taken")))
        elif word == "range":
            open_blocks.append((action, False))
            # A list that is written out has as many elements as it has.
            ways = () if _CONSTANT_LIST.fullmatch(action.body) else ("none", "one", "several")
            inserts.append(_before(source, action, mark("begin", action, *ways)))
            inserts.append(_behind(source, action, mark("element", action)))
        elif word in ("define", "block"):
            open_blocks.append((action, True))
            inserts.append(_behind(source, action, mark("branch", action, "executed")))
        elif word in ("else if", "else with"):
            block, _ = open_blocks.pop()
            open_blocks.append((block, False))
            inserts.append(_behind(source, action, mark("branch", action, "taken")))
        elif word == "else":
            block, _ = open_blocks.pop()
            open_blocks.append((block, True))
            if block.word != "range":
                inserts.append(_behind(source, action, mark("branch", block, "not taken")))
        elif word == "end":
            assert open_blocks, f"{file}:{action.line}: an end without a beginning"
            block, has_else = open_blocks.pop()
            if block.word == "range":
                inserts.append(_behind(source, action, mark("end", block)))
            elif not has_else:
                trim = "{{- else }}" if source.startswith("{{- ", action.start) else "{{ else }}"
                inserts.append((action.start, trim + mark("branch", block, "not taken")))
    assert not open_blocks, f"{file}:{open_blocks[-1][0].line}: it does not end"
    parts, position = [], 0
    for offset, text in inserts:
        parts += [source[position:offset], text]
        position = offset
    made.source = "".join([*parts, source[position:]])
    return made


def _before(source: str, action: Action, mark: str) -> tuple[int, str]:
    """A mark before an action, which trims what the action would trim."""
    return action.start, mark.replace("{{ if", "{{- if", 1) if source.startswith("{{-", action.start) else mark


def _behind(source: str, action: Action, mark: str) -> tuple[int, str]:
    """A mark behind an action, which trims what the action would trim."""
    return action.end, f"{mark.removesuffix('}}')}-}}}}" if source.endswith("-}}", 0, action.end) else mark


def _taken(passed: Iterable[str], marks: Mapping[str, _Mark]) -> Iterator[Branch]:
    """The branches that a rendering took, from the marks in the order it passed them."""
    loops: list[int] = []
    begun: list[tuple[Branch, ...]] = []
    for name in passed:
        mark = marks[name]
        if mark.kind == "branch":
            yield from mark.branches
        elif mark.kind == "begin":
            loops.append(0)
            begun.append(mark.branches)
        elif mark.kind == "element":
            loops[-1] += 1
        else:
            way = min(loops.pop(), 2)
            branches = begun.pop()
            if branches:
                yield branches[way]


@dataclass
class Report:
    """What the scenarios of a chart take.

    Attributes:
        taken: branch -> names of the scenarios that take it; empty for one that none takes.
        exempt: id of a branch -> why nothing needs to take it.
    """

    taken: dict[Branch, list[str]]
    exempt: Mapping[str, str]

    @property
    def uncovered(self) -> list[Branch]:
        """Branches that no scenario takes and no exemption excuses."""
        return [branch for branch, names in self.taken.items() if not names and branch.id not in self.exempt]

    @property
    def missed(self) -> int:
        """How many are not covered."""
        return len(self.uncovered)

    @property
    def stale(self) -> list[str]:
        """Exemptions that name no branch, or one that is taken."""
        untaken = {branch.id for branch, names in self.taken.items() if not names}
        return sorted(set(self.exempt) - untaken)

    def table(self) -> str:
        """A line per template: branches taken, exempt, all."""
        counts: dict[str, Counter[str]] = {}
        for branch, names in self.taken.items():
            count = counts.setdefault(branch.file, Counter())
            count["all"] += 1
            count["taken" if names else "exempt" if branch.id in self.exempt else "missed"] += 1
        width = max((len(file) for file in counts), default=0)
        lines = [
            f"{file:<{width}}  {count['taken']:>3} of {count['all']:>3}"
            + (f", {count['exempt']} exempt" if count["exempt"] else "")
            + (f", {count['missed']} MISSED" if count["missed"] else "")
            for file, count in sorted(counts.items())
        ]
        total = sum((count for count in counts.values()), Counter())
        share = 100 * (total["taken"] + total["exempt"]) / max(total["all"], 1)
        lines.append(
            f"{total['taken']} of {total['all']} branches taken, {total['exempt']} exempt, {total['missed']} missed: "
            f"{share:.1f} %"
        )
        return "\n".join(lines)


def templates(chart: Chart) -> list[Path]:
    """The templates of a chart and its subcharts, relative to it."""
    return [
        file
        for file in chart.files
        if "templates" in file.parts[:-1] and file.suffix in (".yaml", ".yml", ".tpl", ".txt", ".json")
    ]


class _Marked:
    """A copy of a chart with marks, for as long as it is open."""

    def __init__(self, chart: Chart) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.path = Path(self._folder.name) / chart.path.name
        self.marks: dict[str, _Mark] = {}
        self.branches: list[Branch] = []
        for file in chart.files:
            (self.path / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(chart.path / file, self.path / file)
        for file in templates(chart):
            made = instrument(str(file), (chart.path / file).read_text())
            (self.path / file).write_text(made.source)
            self.marks |= made.marks
            self.branches += made.branches

    def __enter__(self) -> _Marked:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()


def measure(setup: Setup, renderer: Renderer, engine: Engine, exempt: Mapping[str, str]) -> Report:
    """Render every scenario and refusal of a setup with marks.

    Raises:
        AssertionError: a scenario does not render, or renders to something else than helm's text.
    """
    chart = Chart(setup.chart)
    with _Marked(chart) as marked:
        taken: dict[Branch, list[str]] = {branch: [] for branch in marked.branches}
        for scenario in setup.scenarios:
            output, error, passed = engine.render(marked.path, scenario)
            assert not error, f"with marks, «{scenario.name}» does not render:\n{error}"
            assert output == renderer.text(chart, scenario), f"with marks, «{scenario.name}» renders something else"
            _note(taken, passed, marked.marks, scenario)
        for scenario in setup.refusals:
            _, error, passed = engine.render(marked.path, scenario)
            assert error, f"with marks, «{scenario.name}» renders, though it should be refused"
            _note(taken, passed, marked.marks, scenario)
    return Report(taken, exempt)


def scenarios_by_line(setup: Setup, engine: Engine) -> dict[tuple[str, int], list[str]]:
    """Template and line -> the scenarios and refusals that pass the line, for lines inside of a block.

    A line with the beginning or the end of a block belongs to what is around the block, since changing it can change
    whether the block is entered.
    """
    chart = Chart(setup.chart)
    passed_by: dict[tuple[str, int, str], list[str]] = {}
    with _Marked(chart) as marked:
        for scenario in [*setup.scenarios, *setup.refusals]:
            _, _, passed = engine.render(marked.path, scenario)
            # A loop's mark stands for its body; the branches of its elements are known only at its end.
            for mark in {marked.marks[name] for name in passed if marked.marks[name].kind in ("branch", "element")}:
                passed_by.setdefault((mark.file, mark.line, mark.way), []).append(scenario.name)
    found: dict[tuple[str, int], list[str]] = {}
    for file in templates(chart):
        for line, position in enclosing_blocks((chart.path / file).read_text()):
            if position is not None:
                found[str(file), line] = passed_by.get((str(file), *position), [])
    return found


def enclosing_blocks(source: str) -> Iterator[tuple[int, tuple[int, str] | None]]:
    """Each line of a template, with the line and the way of the part of a block that holds the whole of it."""
    parts: list[tuple[int, int, str]] = []  # line of the block, line of this part of it, way
    events: dict[int, list[Action]] = {}
    for action in actions(source):
        events.setdefault(action.line, []).append(action)
    for line in range(1, source.count("\n") + 2):
        outer = len(parts)
        for action in events.get(line, ()):
            word = action.word
            if word in ("if", "with", "range", "define", "block"):
                parts.append((action.line, action.line, "taken"))
            elif word.startswith("else"):
                block, _, _ = parts.pop()
                outer = min(outer, len(parts))
                parts.append((block, action.line, "taken") if word != "else" else (block, block, "not taken"))
            elif word == "end":
                parts.pop()
                outer = min(outer, len(parts))
        yield line, parts[outer - 1][1:] if outer else None


def _note(
    taken: dict[Branch, list[str]], passed: Sequence[str], marks: Mapping[str, _Mark], scenario: Scenario
) -> None:
    for branch in dict.fromkeys(_taken(passed, marks)):
        taken[branch].append(scenario.name)


class _Describe:
    """Takes the setup of a test suite and runs none of its tests."""

    setup: Setup | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self, session: pytest.Session) -> bool:
        """Take the setup in place of collecting."""
        self.setup = session_of(session.config).setup
        return True


def setup_of(suite: Path) -> Setup:
    """What a test suite renders, as its conftest.py says.

    Raises:
        HelmError: it has no `pytest_chart_harness`.
    """
    described = _Describe()
    with contextlib.redirect_stdout(io.StringIO()) as said:
        pytest.main([str(suite), "--quiet", "-p", "no:cacheprovider"], plugins=[described])
    if described.setup is None:
        raise HelmError(
            f"{suite} has no setup, which conftest.py gives in pytest_chart_harness(config)\n{said.getvalue()}"
        )
    return described.setup


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `coverage` to a command line."""
    parser = commands.add_parser("coverage", help="which branches of the templates the scenarios take")
    add_setup_arguments(parser)
    parser.add_argument("--lines", action="store_true", help="list every branch with the scenarios that take it")
    parser.set_defaults(run=run)


def add_setup_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that say what is rendered: a suite, or a chart with values files."""
    parser.add_argument("--suite", type=Path, default=Path("tests/render"), help="tests whose scenarios are rendered")
    parser.add_argument("--chart", type=Path, help="a chart in place of the suite's, rendered with its defaults")
    parser.add_argument("--values", type=Path, action="append", default=[], help="with --chart: one more scenario")
    parser.add_argument("--exemptions", type=Path, help="YAML file; default: template_exemptions.yaml of the suite")


def chosen_setup(arguments: argparse.Namespace) -> tuple[Setup, dict[str, dict[str, str]]]:
    """The setup that the options ask for, and its exemptions."""
    file = arguments.exemptions
    if arguments.chart is None:
        setup = setup_of(arguments.suite)
        file = file or arguments.suite / "template_exemptions.yaml"
    else:
        named = [Scenario(values.stem, (values.resolve(),)) for values in arguments.values]
        setup = Setup(arguments.chart, [Scenario("defaults"), *named])
    return setup, (load_yaml(file.read_text()) or {}) if file and file.exists() else {}


def run(arguments: argparse.Namespace) -> int:
    """Measure and report; 1 when a branch is not covered or an exemption is stale."""
    setup, exemptions = chosen_setup(arguments)
    engine = Engine(build(cache_folder()))
    try:
        renderer = Renderer(find_helm(setup.helm), cache_folder())
        report = measure(setup, renderer, engine, exemptions.get("coverage", {}))
    finally:
        engine.stop()
    if arguments.lines:
        for branch, names in report.taken.items():
            print(f"{branch}: {', '.join(names) or report.exempt.get(branch.id, 'NO SCENARIO')}")
    print(report.table())
    for branch in report.uncovered:
        print(f"not covered: {branch}")
    for name in report.stale:
        print(f"needless exemption: {name}")
    return 1 if report.uncovered or report.stale else 0
