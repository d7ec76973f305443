"""How many mistakes in templates and values a test suite notices.

Every mutant (see `mutation_operators.py`) is one edit of one file. It is killed when the chart no longer renders where
it did, or when a test of the suite fails. One whose text is the same in every scenario and refusal has no effect, and
counts neither way. The score is killed / (killed + survived). A survivor needs a reason, which
does not raise the score.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import os
import random
import selectors
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chart_harness.coverage import chosen_setup, scenarios_by_line, templates
from chart_harness.engine import Engine, build
from chart_harness.mutation_operators import Mutant, mutants
from chart_harness.render import Chart, HelmError, Setup, cache_folder

REQUIRED_SCORE = 95.0
"""Percent."""

_SEED = 1  # a sample is the same in every run


@dataclass(frozen=True)
class Result:
    """What became of a mutant.

    Attributes:
        mutant: the mistake.
        status: `killed`, `survived` or `no effect`.
        by: the test or the message that killed it.
        seconds: how long that took.
    """

    mutant: Mutant
    status: str
    by: str
    seconds: float


def sources(setup: Setup, root: Path) -> list[str]:
    """Files that mutants are made of: templates, the charts' values, and the values files of the scenarios.

    `NOTES.txt` is left out: `helm template` does not print it, so that nothing here could notice.
    """
    chart = Chart(setup.chart)
    prefix = chart.path.relative_to(root)
    files = [prefix / file for file in templates(chart) if file.name != "NOTES.txt"]
    files += [prefix / file for file in chart.files if file.name == "values.yaml"]
    for scenario in setup.scenarios:
        files += [file.resolve().relative_to(root) for file in scenario.values]
    return list(dict.fromkeys(file.as_posix() for file in files))


def all_mutants(files: Iterable[str], root: Path) -> Iterator[Mutant]:
    """Every mutant of these files."""
    for file in files:
        yield from mutants(file, (root / file).read_text())


class Trial:
    """A repository's suite, ready to try mutants in copies of the repository.

    Args:
        root: the repository; a git checkout.
        suite: the tests, relative to it.
        setup: what they render.
        folder: where copies and the state go.
    """

    def __init__(self, root: Path, suite: Path, setup: Setup, folder: Path) -> None:
        self.root = root
        self.suite = suite
        self.setup = setup
        self.folder = folder
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            cwd=root, capture_output=True, text=True, check=True,
        )  # fmt: skip
        self.files = sorted({name for name in listed.stdout.split("\0") if name and (root / name).is_file()})

    def digest(self) -> str:
        """A hash of everything that can change a verdict: results are kept for the same one."""
        hasher = hashlib.sha256(str(self.suite).encode())
        for name in self.files:
            if not name.endswith(".md"):
                hasher.update(f"{name}\0".encode() + (self.root / name).read_bytes())
        return hasher.hexdigest()[:16]

    def copy(self, number: int) -> Path:
        """A fresh copy of the repository."""
        tree = self.folder / f"tree-{number}"
        shutil.rmtree(tree, ignore_errors=True)
        for name in self.files:
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.root / name, tree / name)
            shutil.copymode(self.root / name, tree / name)
        return tree

    def likely(self, engine: Engine) -> Callable[[Mutant], list[str]]:
        """Which scenarios and refusals to render for a mutant, in this order.

        For a line of a template those that take the branch it stands in, for a values file those that read it.
        """
        by_line = scenarios_by_line(self.setup, engine)
        names = [scenario.name for scenario in [*self.setup.scenarios, *self.setup.refusals]]
        readers: dict[str, list[str]] = {}
        for scenario in self.setup.scenarios:
            for file in scenario.values:
                readers.setdefault(file.resolve().relative_to(self.root).as_posix(), []).append(scenario.name)
        prefix = self.setup.chart.resolve().relative_to(self.root)

        def scenarios(mutant: Mutant) -> list[str]:
            if mutant.file in readers:
                return readers[mutant.file]
            file = Path(mutant.file).relative_to(prefix).as_posix()
            return by_line.get((file, mutant.line), names)

        return scenarios

    def plain(self, mutant: Mutant | None, tree: Path) -> str | None:
        """The verdict of the whole suite, run by pytest and nothing else: the first test that fails, or None."""
        file = tree / mutant.file if mutant else None
        source = file.read_text() if file else ""
        if file and mutant:
            file.write_text(mutant.apply(source))
        try:
            done = subprocess.run(
                [sys.executable, "-m", "pytest", str(self.suite), "-x", "-q", "--tb=no", "-p", "no:cacheprovider",
                 "-m", "not sources"],
                cwd=tree, env=_environment(tree), capture_output=True, text=True, check=False,
            )  # fmt: skip
        finally:
            if file:
                file.write_text(source)
        if done.returncode not in (0, 1, 2):
            raise HelmError(f"pytest ends with {done.returncode}:\n{done.stdout}{done.stderr}")
        failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return (failed or ["the collection"])[0] if done.returncode else None


def _environment(tree: Path) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(tree / "tests"), str(tree), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


class _Process:
    """A worker in its copy of the repository."""

    def __init__(self, trial: Trial, number: int) -> None:
        self.tree = trial.copy(number)
        questions, asking = os.pipe()
        answering, answers = os.pipe()
        self.log = (trial.folder / f"worker-{number}.log").open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pytest", str(trial.suite), "-q", "-p", "no:cacheprovider", "-p", "no:xdist",
             "--assert=plain", "--tb=native", "-p", "chart_harness.mutation_worker"],
            cwd=self.tree,
            env={**_environment(self.tree), "CHART_HARNESS_MUTATION": f"{questions},{answers}"},
            pass_fds=(questions, answers), stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        os.close(questions)
        os.close(answers)
        self.asking = os.fdopen(asking, "w")
        self.answering = os.fdopen(answering, "r")
        self.mutant: Mutant | None = None

    def ask(self, mutant: Mutant, scenarios: Sequence[str]) -> None:
        self.mutant = mutant
        question = {"mutant": asdict(mutant), "scenarios": list(scenarios)}
        self.asking.write(json.dumps(question) + "\n")
        self.asking.flush()

    def answer(self) -> dict[str, Any]:
        line = self.answering.readline()
        if not line:
            raise HelmError(f"a worker ended; it said\n{Path(self.log.name).read_text()[-4000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        self.asking.close()
        self.answering.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


def try_mutants(trial: Trial, todo: Sequence[Mutant], *, workers: int, say: Callable[[str], None]) -> Iterator[Result]:
    """Try mutants in parallel; the results come as they are known.

    Args:
        trial: the suite.
        todo: the mutants.
        workers: processes.
        say: takes a line about the progress.

    Raises:
        HelmError: the suite fails without a mutant, or a worker ended.
    """
    if not todo:
        return
    waiting = list(reversed(todo))
    engine = Engine(build(cache_folder()))
    processes = [_Process(trial, number) for number in range(min(workers, len(todo)))]
    try:
        likely = trial.likely(engine)  # while the workers run the suite for the first time
        engine.stop()
        with selectors.DefaultSelector() as selector:
            for process in processes:
                failure = process.answer()["failure"]
                if failure:
                    raise HelmError(f"the suite fails without a mutant: {failure}")
                selector.register(process.answering, selectors.EVENT_READ, process)
            say("the suite passes without a mutant")
            busy = 0
            for process in processes:
                if waiting:
                    mutant = waiting.pop()
                    process.ask(mutant, likely(mutant))
                    busy += 1
            while busy:
                for key, _ in selector.select():
                    process = key.data
                    answer = process.answer()
                    assert process.mutant is not None
                    yield Result(process.mutant, answer["status"], answer["by"], answer["seconds"])
                    if waiting:
                        mutant = waiting.pop()
                        process.ask(mutant, likely(mutant))
                    else:
                        busy -= 1
    finally:
        engine.stop()
        for process in processes:
            process.stop()


@dataclass(frozen=True)
class Summary:
    """The outcome of a run.

    Attributes:
        results: one for each mutant.
        excused: id of a mutant -> why nothing can or need notice it.
    """

    results: Sequence[Result]
    excused: Mapping[str, str]

    def of(self, status: str) -> list[Result]:
        """The results with a status, in the order of files and lines."""
        chosen = [result for result in self.results if result.status == status]
        return sorted(chosen, key=lambda result: (result.mutant.file, result.mutant.start, result.mutant.id))

    @property
    def survivors(self) -> list[Result]:
        """Survivors without an excuse."""
        return [result for result in self.of("survived") if result.mutant.id not in self.excused]

    @property
    def needless(self) -> list[str]:
        """Excuses of mutants that were tried and did not survive."""
        tried = {result.mutant.id: result.status for result in self.results}
        return sorted(name for name in self.excused if tried.get(name, "survived") != "survived")

    @property
    def score(self) -> float:
        """Percent of the mutants with an effect that were killed. Excuses do not raise it."""
        killed, survived = len(self.of("killed")), len(self.of("survived"))
        return 100.0 * killed / max(killed + survived, 1)


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `mutate` to a command line."""
    parser = commands.add_parser("mutate", help="how many mistakes in templates and values the tests notice")
    parser.add_argument("--suite", type=Path, default=Path("tests/render"), help="the tests (default: %(default)s)")
    parser.add_argument("--exemptions", type=Path, help="YAML file; default: template_exemptions.yaml of the suite")
    parser.add_argument("--file", action="append", default=[], help="only files that match this pattern")
    parser.add_argument("--changed", metavar="REVISION", help="only files that differ from a git revision")
    parser.add_argument("--sample", type=int, metavar="N", help="only N mutants, the same in every run")
    parser.add_argument("--id", action="append", default=[], help="only this mutant")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--fresh", action="store_true", help="forget results of an earlier run of the same sources")
    parser.add_argument("--list", action="store_true", help="list the mutants and try none")
    parser.add_argument("--no-effect", action="store_true", help="list the mutants without effect too")
    parser.add_argument(
        "--plain", action="store_true", help="by the whole suite in a process of its own: slow, to compare"
    )
    parser.set_defaults(run=run, chart=None, values=[])


def chosen(arguments: argparse.Namespace, setup: Setup, root: Path) -> list[Mutant]:
    """The mutants that the options ask for."""
    files = sources(setup, root)
    if arguments.file:
        files = [file for file in files if any(fnmatch.fnmatch(file, pattern) for pattern in arguments.file)]
    if arguments.changed:
        differing = subprocess.run(
            ["git", "diff", "--name-only", "--relative", arguments.changed],
            cwd=root, capture_output=True, text=True, check=True,
        )  # fmt: skip
        files = [file for file in files if file in differing.stdout.splitlines()]
    found = [m for m in all_mutants(files, root) if not arguments.id or m.id in arguments.id]
    if arguments.sample is not None and arguments.sample < len(found):
        sample = random.Random(_SEED).sample(range(len(found)), arguments.sample)
        found = [found[index] for index in sorted(sample)]
    return found


def run(arguments: argparse.Namespace) -> int:
    """Try mutants and report; 1 when the score is too low, a survivor is not excused or an excuse is needless."""
    root = Path.cwd()
    setup, exemptions = chosen_setup(arguments)
    todo = chosen(arguments, setup, root)
    if arguments.list:
        for mutant in todo:
            print(f"{mutant.file}:{mutant.line}: {mutant.id}\n{mutant.diff((root / mutant.file).read_text())}")
        return 0
    trial = Trial(root, arguments.suite, setup, root / "build" / "mutants")
    trial.folder.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    results = _plain_results(trial, todo) if arguments.plain else _fast_results(trial, todo, arguments)
    summary = Summary(results, exemptions.get("mutants", {}))
    _report(summary, root, time.monotonic() - begun, arguments.no_effect)
    return 1 if summary.score < REQUIRED_SCORE or summary.survivors or summary.needless else 0


def _plain_results(trial: Trial, todo: Sequence[Mutant]) -> list[Result]:
    tree = trial.copy(0)
    results = []
    for mutant in todo:
        begun = time.monotonic()
        killer = trial.plain(mutant, tree)
        status = "killed" if killer else "survived"
        results.append(Result(mutant, status, killer or "", time.monotonic() - begun))
        print(f"{status}: {mutant.id}", flush=True)
    return results


def _fast_results(trial: Trial, todo: Sequence[Mutant], arguments: argparse.Namespace) -> list[Result]:
    """Results of earlier runs of the same sources, and those that are lacking, written down as they come."""
    state = trial.folder / f"{trial.digest()}.jsonl"
    for old in trial.folder.glob("*.jsonl"):
        if old != state or arguments.fresh:
            old.unlink()
    known: dict[str, Mapping[str, Any]] = {}
    if state.exists():
        # The last line of a run that was interrupted may be half a line.
        lines = [line for line in state.read_text().splitlines() if line.endswith("}")]
        known = {entry["id"]: entry for entry in map(json.loads, lines)}
    results = [
        Result(mutant, known[mutant.id]["status"], known[mutant.id]["by"], known[mutant.id]["seconds"])
        for mutant in todo
        if mutant.id in known
    ]
    left = [mutant for mutant in todo if mutant.id not in known]
    print(f"{len(todo)} mutants, {len(results)} of them known from an earlier run", flush=True)
    begun = time.monotonic()
    with state.open("a") as log:
        for result in try_mutants(trial, left, workers=arguments.workers, say=print):
            results.append(result)
            entry = {"id": result.mutant.id, "status": result.status, "by": result.by, "seconds": result.seconds}
            log.write(json.dumps(entry) + "\n")
            log.flush()
            if len(results) % 100 == 0:
                print(f"  {len(results)} of {len(todo)} after {time.monotonic() - begun:.0f} s", flush=True)
    return results


def _report(summary: Summary, root: Path, seconds: float, no_effect: bool) -> None:
    shown = [("survived", summary.survivors)]
    if no_effect:
        shown.append(("no effect", summary.of("no effect")))
    for status, results in shown:
        for result in results:
            mutant = result.mutant
            print(
                f"{status}: {mutant.file}:{mutant.line}: {mutant.id}\n{mutant.diff((root / mutant.file).read_text())}"
            )
    for name in summary.needless:
        print(f"needless excuse: {name}")
    operators = sorted({result.mutant.operator for result in summary.results})
    for operator in operators:
        count = Counter(result.status for result in summary.results if result.mutant.operator == operator)
        print(
            f"  {operator:<20} {count['killed']:>5} killed {count['survived']:>4} survived"
            f" {count['no effect']:>4} without effect"
        )
    count = Counter(result.status for result in summary.results)
    print(
        f"{len(summary.results)} mutants in {seconds:.0f} s: {count['killed']} killed, {count['survived']} survived "
        f"({count['survived'] - len(summary.survivors)} excused), {count['no effect']} without effect; "
        f"score {summary.score:.1f} % (required: {REQUIRED_SCORE:.0f} %)"
    )
