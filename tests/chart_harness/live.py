"""A release in a cluster: waiting on conditions, and what to keep when a test failed. Needs kubectl, and no chart."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from chart_harness.objects import Manifests

T = TypeVar("T")

_TELLING = re.compile(r"\b(error|fatal|critical|panic|traceback|\w+(error|exception))\b", re.IGNORECASE)
"""What a line of a log has in it that is printed after a failure."""

_HARMLESS = re.compile(r'"level": ?"(debug|info|warning)"|\b(DEBUG|INFO|WARNING)\b', re.IGNORECASE)
"""What a structured log says of a line that only mentions an error."""


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
        """Write events, descriptions and logs of the namespace to a folder.

        Args:
            folder: made when missing.
            since_seconds: how far back logs are read.

        Returns:
            The lines that probably say why something failed.
        """
        folder.mkdir(parents=True, exist_ok=True)
        telling: list[str] = []
        for name, words in {
            "pods": ("get", "pods", "--output", "wide"),
            "describe": ("describe", "all"),
            "events": ("get", "events", "--sort-by", ".lastTimestamp"),
        }.items():
            text = self.kubectl(*words, check=False)
            (folder / f"{name}.txt").write_text(text.stdout + text.stderr)
        oldest = datetime.now(UTC) - timedelta(seconds=since_seconds)
        for event in self.get("events"):
            at = event.get("lastTimestamp") or event.get("eventTime") or event["metadata"]["creationTimestamp"]
            if event["type"] == "Warning" and datetime.fromisoformat(at) >= oldest:
                about = f"{event['involvedObject']['kind']}/{event['involvedObject']['name']}"
                telling.append(f"{at} {about}: {event['reason']}: {event.get('message', '')}")
        telling += [
            line
            for line in (folder / "pods.txt").read_text().splitlines()
            if not any(state in line for state in (" Running ", " Completed ", "READY"))
        ]
        for pod in self.kubectl("get", "pods", "--output", "name", check=False).stdout.split():
            for previous in (False, True):
                options = ["--previous"] if previous else []
                words = ("logs", pod, "--all-containers", "--prefix", f"--since={since_seconds}s", *options)
                done = self.kubectl(*words, check=False)
                if done.returncode == 0 and done.stdout:
                    name = pod.partition("/")[2] + (".previous" if previous else "")
                    (folder / f"{name}.log").write_text(done.stdout)
                    lines = done.stdout.splitlines()
                    telling += [line for line in lines if _TELLING.search(line) and not _HARMLESS.search(line)][-5:]
        return [line[:300] for line in telling]
