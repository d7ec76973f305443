"""Programs that run beyond the command that started them, each known by its process id and start time.

The start time tells a daemon from a later process that was given the same id.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ci import console


def wait_until(condition: Callable[[], bool], what: str, seconds: float, remedy: str) -> None:
    """Wait until `condition` holds.

    Raises:
        console.Failure: when it does not within `seconds`; `what` names it and `remedy` says what to do.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise console.Failure(f"{what} did not happen within {seconds:.0f} s", remedy)
        time.sleep(0.2)


def _start_time(pid: int) -> str | None:
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return None
    fields = status.rsplit(")", 1)[1].split()
    return None if fields[0] in "ZX" else fields[19]


class Daemon:
    """A program in the background.

    Args:
        name: its name, of its log and of its process-id file.
        directory: where that file is.
    """

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.pid_file = directory / f"{name}.pid"
        self.log = directory / f"{name}.log"

    def pid(self) -> int | None:
        """Its process id while it runs."""
        try:
            pid, started = self.pid_file.read_text(encoding="utf-8").split()
        except (OSError, ValueError):
            return None
        return int(pid) if _start_time(int(pid)) == started else None

    def start(self, command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> None:
        """Start it unless it runs."""
        if self.pid():
            return
        self.pid_file.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as stream:
            process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
                cwd="/",
                env={**os.environ, **(environment or {})},
            )
        self.pid_file.write_text(f"{process.pid} {_start_time(process.pid)}\n", encoding="utf-8")

    def stop(self, seconds: float = 15) -> None:
        """End it: asked first, killed when it has not ended within `seconds`."""
        pid = self.pid()
        if pid:
            for number, patience in ((signal.SIGTERM, seconds), (signal.SIGKILL, 5.0)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
                deadline = time.monotonic() + patience
                while self.pid() and time.monotonic() < deadline:
                    with contextlib.suppress(ChildProcessError):
                        os.waitpid(pid, os.WNOHANG)
                    time.sleep(0.05)
                if not self.pid():
                    break
        self.pid_file.unlink(missing_ok=True)

    def last_lines(self, count: int = 15) -> str:
        """The end of its log."""
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:]
        except OSError:
            return ""
        return "\n".join(f"    | {line}" for line in lines)
