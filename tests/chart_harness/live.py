"""A release in a cluster: waiting on conditions, and what to keep when a test failed. Needs kubectl, and no chart."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest

from chart_harness.objects import Manifests

T = TypeVar("T")

_TELLING = re.compile(r"\b(error|fatal|critical|panic|traceback|\w+(error|exception))\b", re.IGNORECASE)
"""What a line of a log has in it that is printed after a failure."""

_HARMLESS = re.compile(r'"level": ?"(debug|info|warning)"|\b(DEBUG|INFO|WARNING)\b', re.IGNORECASE)
"""What a structured log says of a line that only mentions an error."""

LOG_LINES = 5000
"""At most this many lines are kept of each container's log: its last ones."""

FILE_BYTES = 2 * 1024**2
"""At most this much is kept of anything else: its end."""

TELLING_LINES = 60
"""At most this many lines are printed below a failure."""


def wait_for(probe: Callable[[], T | bool | None], what: str, seconds: float, *, every: float = 0.25) -> T:
    """The first answer of `probe` that is neither None nor False.

    Args:
        probe: asked again and again; an AssertionError it raises counts as "not yet" and is shown at the end.
        what: what is waited for, to follow «waited 60 s for».
        seconds: how long at most.
        every: pause between two questions, in seconds.

    Raises:
        AssertionError: it did not happen in time.
    """
    deadline = time.monotonic() + seconds
    while True:
        reason = ""
        try:
            answer = probe()
        except AssertionError as error:
            answer, reason = None, f": {error}"
        if answer is not None and answer is not False:
            return answer  # type: ignore[return-value]
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:.0f} s in vain for {what}{reason}")
        time.sleep(every)


class Namespace:
    """One namespace of a cluster, through kubectl.

    Args:
        kubectl: the command line of kubectl with its kubeconfig.
        name: the namespace.
    """

    def __init__(self, kubectl: Sequence[str], name: str) -> None:
        self._command = [*map(str, kubectl), "--namespace", name]
        self.name = name

    def kubectl(self, *words: str, stdin: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run kubectl in the namespace.

        Raises:
            AssertionError: it failed and `check` is set; the message is kubectl's own.
        """
        done = subprocess.run([*self._command, *words], input=stdin, capture_output=True, text=True, check=False)
        if check:
            assert done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}"
        return done

    def apply(self, manifests: Manifests, *, dry_run: bool = False) -> subprocess.CompletedProcess[str]:
        """Apply objects, or ask the API server whether it would take them.

        Raises:
            AssertionError: it refuses one of them.
        """
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": [dict(manifest) for manifest in manifests]})
        options = ["--dry-run=server"] if dry_run else []
        return self.kubectl("apply", "--server-side", *options, "--filename", "-", stdin=text)

    def get(self, kinds: str, selector: str = "") -> list[dict[str, Any]]:
        """Objects of these kinds (comma-separated), all or those a label selector chooses."""
        words = ["get", kinds, "--output", "json", *(["--selector", selector] if selector else [])]
        items: list[dict[str, Any]] = json.loads(self.kubectl(*words).stdout)["items"]
        return items

    def one(self, kind: str, name: str) -> dict[str, Any]:
        """An object by its name."""
        found: dict[str, Any] = json.loads(self.kubectl("get", kind, name, "--output", "json").stdout)
        return found

    def running_pods(self, selector: str = "") -> list[dict[str, Any]]:
        """Pods that have not ended and are not about to."""
        return [
            pod
            for pod in self.get("pods", selector)
            if pod["status"]["phase"] not in ("Succeeded", "Failed") and "deletionTimestamp" not in pod["metadata"]
        ]

    def collect(self, folder: Path, since_seconds: int) -> list[str]:
        """Write events, descriptions and logs of the namespace to a folder, whatever is left of it.

        Args:
            folder: made anew.
            since_seconds: how far back events and logs are read.

        Returns:
            The lines that probably say why something failed, at most `TELLING_LINES`.
        """
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, words in {
            "pods": ("get", "pods", "--output", "wide"),
            "describe": ("describe", "all"),
            "events": ("get", "events", "--sort-by", ".lastTimestamp"),
        }.items():
            text = self.kubectl(*words, check=False)
            (folder / f"{name}.txt").write_text((text.stdout + text.stderr)[-FILE_BYTES:])
        telling = self._warnings(since_seconds)
        telling += [
            line
            for line in (folder / "pods.txt").read_text().splitlines()
            if not any(state in line for state in (" Running ", " Completed ", "READY"))
        ]
        for pod in self.kubectl("get", "pods", "--output", "name", check=False).stdout.split():
            for previous in (False, True):
                options = ["--previous"] if previous else [f"--since={since_seconds}s"]
                words = ("logs", pod, "--all-containers", "--prefix", f"--tail={LOG_LINES}", *options)
                done = self.kubectl(*words, check=False)
                # Of a pod with several containers some may have a log although kubectl fails for the others.
                if done.stdout:
                    name = pod.partition("/")[2] + (".previous" if previous else "")
                    (folder / f"{name}.log").write_text(done.stdout)
                    lines = done.stdout.splitlines()
                    telling += [line for line in lines if _TELLING.search(line) and not _HARMLESS.search(line)][-5:]
        return [line[:300] for line in telling[:TELLING_LINES]]

    def _warnings(self, since_seconds: int) -> list[str]:
        """The namespace's warnings, oldest first, each once: of those that repeat, the last."""
        oldest = datetime.now(UTC) - timedelta(seconds=since_seconds)
        found: dict[str, str] = {}
        for event in json.loads(self.kubectl("get", "events", "--output", "json", check=False).stdout or "{}").get(
            "items", []
        ):
            at = event.get("lastTimestamp") or event.get("eventTime") or event["metadata"]["creationTimestamp"]
            if event["type"] == "Warning" and datetime.fromisoformat(at) >= oldest:
                about = f"{event['involvedObject']['kind']}/{event['involvedObject']['name']}"
                what = f"{about}: {event['reason']}: {event.get('message', '')}"
                found[what] = max(at, found.get(what, ""))
        return [f"{at} {what}" for what, at in sorted(found.items(), key=lambda item: item[1])]


class Evidence:
    """What the cluster knows of a test that failed.

    A fixture that brings a namespace says so with `watch` before it puts anything there; the hook
    `pytest_runtest_makereport` calls `keep`. It then works for what fails in the fixture itself, too.

    Args:
        folder: below it every failed test gets a folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._watched: list[tuple[pytest.Item | pytest.Collector, str | None, Namespace]] = []

    def watch(self, request: pytest.FixtureRequest, namespace: Namespace) -> None:
        """Collect from the namespace when a test of the fixture's scope fails that uses the fixture."""
        entry = (request.node, request.fixturename, namespace)
        self._watched.append(entry)
        request.addfinalizer(lambda: self._watched.remove(entry))

    def keep(self, item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport) -> None:
        """Keep what the namespaces of a failed test know, and add the lines that matter to its report."""
        if not report.failed:
            return
        # With its file and class: two tests may have one name.
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{item.path.name}::{item.nodeid.partition('::')[2]}")
        fixtures = getattr(item, "fixturenames", ())
        for node, fixture, namespace in self._watched:
            if node in item.listchain() and fixture in fixtures:
                folder = self._folder / name / namespace.name
                lines = namespace.collect(folder, since_seconds=int(time.time() - call.start) + 30)
                report.sections.append((f"Namespace {namespace.name} (all of it in {folder})", "\n".join(lines)))
