"""What a person sees: stages with their progress and time, commands with their log, failures with what to do."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ci import paths


class Failure(Exception):
    """Something the user has to know and can do something about.

    Args:
        problem: what is wrong, in one sentence.
        remedy: what to do about it.
    """

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}\n  What to do: {remedy}")
        self.problem = problem
        self.remedy = remedy


@dataclass
class Timings:
    """The stages of this run and how long each took, in seconds, in the order they ended."""

    stages: list[tuple[str, float]] = field(default_factory=list)

    def table(self, total: float) -> str:
        """The stages as an aligned table that ends with `total`, the seconds of the whole run."""
        width = max((len(name) for name, _ in self.stages), default=5)
        rows = [f"  {name:<{width}}  {seconds:7.1f} s" for name, seconds in self.stages]
        return "\n".join([*rows, f"  {'total':<{width}}  {total:7.1f} s"])

    def write(self, path: Path) -> None:
        """Write the stages to `path` as JSON: a list of `{"stage", "seconds"}`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps([{"stage": name, "seconds": round(s, 1)} for name, s in self.stages], indent=1) + "\n"
        )


timings = Timings()
_depth = threading.local()


def say(message: str) -> None:
    """Print one line at once, so that a log shows progress as it happens."""
    print(message, flush=True)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Announce a stage, and its time when it ends; only outermost stages count in the table of times."""
    depth = getattr(_depth, "value", 0)
    _depth.value = depth + 1
    indent = "  " * depth
    say(f"{indent}{'==>' if depth == 0 else '->'} {name}")
    start = time.monotonic()
    try:
        yield
    except BaseException:
        say(f"{indent}    failed after {time.monotonic() - start:.1f} s: {name}")
        raise
    finally:
        _depth.value = depth
    seconds = time.monotonic() - start
    if depth == 0:
        timings.stages.append((name, seconds))
    say(f"{indent}    {seconds:.1f} s")


def log_path(name: str) -> Path:
    """The file under `build/logs` that collects the output of the commands called `name`."""
    path = paths.BUILD / "logs" / f"{name}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def run(
    command: Sequence[str | Path],
    *,
    log: str,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    input: str | None = None,
    remedy: str = "read the log named above; run the same command again when its cause is gone",
) -> None:
    """Run a command with its output in a log; on failure show the log's last lines.

    Args:
        command: program and arguments.
        log: name of the log under `build/logs`.
        env: variables added to the environment.
        cwd: working directory; the repository by default.
        input: text for standard input.
        remedy: what a user should do when it fails.

    Raises:
        Failure: when the command is missing or ends with another code than 0.
    """
    path = log_path(log)
    text = " ".join(str(word) for word in command)
    with path.open("a", encoding="utf-8") as stream:
        stream.write(f"$ {text}\n")
        stream.flush()
        try:
            done = subprocess.run(
                [str(word) for word in command],
                stdout=stream,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL if input is None else None,
                input=input,
                text=True,
                cwd=cwd or paths.REPOSITORY,
                env={**os.environ, **(env or {})},
                check=False,
            )
        except FileNotFoundError as error:
            raise Failure(f"command not found: {command[0]}", remedy) from error
    if done.returncode != 0:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-25:]
        tail = "\n".join(f"    | {line}" for line in lines)
        shown = os.path.relpath(path, paths.REPOSITORY)
        raise Failure(f"`{text[:200]}` ended with code {done.returncode} (log: {shown})\n{tail}", remedy)


def output(command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """The standard output of a command that must succeed.

    Raises:
        Failure: when the command is missing or fails; its message carries what the command wrote to standard error.
    """
    try:
        done = subprocess.run(
            [str(word) for word in command],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            cwd=cwd or paths.REPOSITORY,
            env={**os.environ, **(env or {})},
            check=False,
        )
    except FileNotFoundError as error:
        raise Failure(f"command not found: {command[0]}", "install it, or run `make up`, which does") from error
    if done.returncode != 0:
        text = " ".join(str(word) for word in command)
        raise Failure(
            f"`{text[:200]}` ended with code {done.returncode}: {done.stderr.strip()[-2000:]}", "see the message"
        )
    return done.stdout


@contextmanager
def exclusive() -> Iterator[None]:
    """Let one command at a time change the cluster or the cache.

    Raises:
        Failure: when another is at work.
    """
    paths.CACHE.mkdir(parents=True, exist_ok=True)
    with (paths.CACHE / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Failure("another `make` is at work on the cluster", "wait for its end, or interrupt it") from error
        yield


def main_guard(function: object, *arguments: object) -> int:
    """Call `function`; turn a Failure into its message and code 1, an interrupt into code 130."""
    assert callable(function)
    try:
        result = function(*arguments)
    except Failure as failure:
        print(f"\nerror: {failure}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted: nothing is lost, run the same command again to go on", file=sys.stderr, flush=True)
        return 130
    return int(result or 0)
