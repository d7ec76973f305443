"""Helm's renderer as one long process, for whoever renders hundreds of variants: no start, no disk, no network.

`engine/` is a Go program of helm's own packages, built on first use and kept by a hash of its sources. It answers what
`helm template` answers; the coverage compares the two for every scenario that it measures.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chart_harness.render import Chart, HelmError, Renderer, Scenario, readable_error

SOURCES = Path(__file__).with_name("engine")
_ENVIRONMENT = {"CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false -trimpath", "GOTOOLCHAIN": "local"}


class Engine:
    """A running engine: one rendering at a time.

    Args:
        program: the built program, see `build`.
    """

    def __init__(self, program: Path) -> None:
        self.program = program
        self._process: subprocess.Popen[str] | None = None

    def render(self, chart: Path, scenario: Scenario) -> tuple[str, str, list[str]]:
        """What `helm template --include-crds` prints, its error, and the marks that were passed, in order.

        Raises:
            HelmError: the engine ended.
        """
        question = {
            "chart": str(chart),
            "values": [str(file) for file in scenario.values],
            "release": scenario.release,
            "namespace": scenario.namespace,
            "kube_version": scenario.kube_version,
            "api_versions": list(scenario.api_versions),
            "upgrade": scenario.upgrade,
        }
        if scenario.overrides:
            question["overrides"] = scenario.overrides
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(question, ensure_ascii=False) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.stop()
            raise HelmError(f"the engine ended while it rendered {chart} for «{scenario.name}»")
        answer: dict[str, Any] = json.loads(line)
        return answer["output"], readable_error(answer["error"]), answer["marks"]

    def _start(self) -> subprocess.Popen[str]:
        # The collector runs less often: a rendering's garbage is small beside the memory of a machine that runs tests.
        environment = {**os.environ, "GOGC": "400", "GOMAXPROCS": "1"}
        self._process = subprocess.Popen(
            [self.program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", env=environment
        )
        return self._process

    def stop(self) -> None:
        """End the process; the next rendering starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


class EngineRenderer(Renderer):
    """A renderer that asks an engine and keeps its answers in memory alone; it does not look for template lines.

    Args:
        helm: the helm program, for tests that call it for something else than `template`.
        engine: the engine.
    """

    def __init__(self, helm: Path, engine: Engine) -> None:
        super().__init__(helm, helm.parent)
        self.engine = engine

    def text(self, chart: Chart, scenario: Scenario, *, fresh: bool = False) -> str:
        """What `helm template` prints; raises `HelmError`."""
        key = self.key(chart, scenario)
        if fresh or key not in self._answers:
            output, error, _ = self.engine.render(chart.path, scenario)
            self._answers[key] = output, error
        output, error = self._answers[key]
        if error:
            raise self.refusal(chart, scenario, error)
        return output

    def _origins(self, chart: Chart, scenario: Scenario) -> None:
        """None: a marked rendering for every mutant that is killed would take longer than all the rest."""

    def prune(self) -> None:
        """Nothing is kept on disk."""


def build(cache: Path) -> Path:
    """The engine's program, built with the installed Go where the cache does not hold it.

    Args:
        cache: folder for built programs, one for each state of the sources.

    Raises:
        HelmError: Go is missing, or does not build it.
    """
    if named := os.environ.get("CHART_HARNESS_ENGINE"):
        return Path(named)
    digest = hashlib.sha256()
    for file in sorted(SOURCES.iterdir()):
        digest.update(f"{file.name}\0".encode() + file.read_bytes())
    program = cache / "engine" / digest.hexdigest()[:16]
    if program.exists():
        return program
    if not shutil.which("go"):
        raise HelmError(
            "the engine is built with Go, which is not on PATH; or name a built one in CHART_HARNESS_ENGINE"
        )
    program.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=program.parent) as scratch:
        _go(["build", "-ldflags", f"-s -w -X helm.sh/helm/v3/internal/version.version={version()}", "-o", scratch, "."])
        os.replace(Path(scratch) / "engine", program)
    return program


def version() -> str:
    """The version of helm that the engine is made of, such as v3.19.2."""
    words = (SOURCES / "go.mod").read_text().split()
    return words[words.index("helm.sh/helm/v3") + 1]


def _go(arguments: Sequence[str]) -> None:
    done = subprocess.run(
        ["go", *arguments], cwd=SOURCES, env={**os.environ, **_ENVIRONMENT}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise HelmError(f"go {arguments[0]} of the engine fails:\n{done.stderr}")
