"""`helm template`, once per distinct input: kept in the process and, across processes, on disk."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from functools import cached_property
from pathlib import Path
from typing import Any

from chart_harness.objects import Manifests, load_yaml
from chart_harness.origins import Marked, Origins
from chart_harness.suggestions import with_suggestions

_FORMAT = 1
"""Version of the cache's layout; part of every key."""

_KEEP_SECONDS = 14 * 24 * 3600
"""How long a rendering that nobody asks for stays on disk."""


class HelmError(AssertionError):
    """Helm refused; the message is helm's own, less its noise. An AssertionError, so that a test fails."""


def find_helm(candidates: Sequence[Path] = ()) -> Path:
    """The helm program: `$CHART_HARNESS_HELM`, else the first candidate that exists, else the one on PATH.

    Raises:
        HelmError: there is none.
    """
    named = os.environ.get("CHART_HARNESS_HELM")
    found = named or next((str(path) for path in candidates if path.exists()), None) or shutil.which("helm")
    if not found or not Path(found).exists():
        raise HelmError(
            "no helm program: set CHART_HARNESS_HELM, put helm on PATH"
            + (f", or provide {' or '.join(map(str, candidates))}" if candidates else "")
        )
    return Path(found).resolve()


def cache_folder() -> Path:
    """Where renderings are kept: `$CHART_HARNESS_CACHE`, else a folder of the user's cache."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("CHART_HARNESS_CACHE") or home / "chart-harness")


class Chart:
    """A chart folder, taken as it is now.

    Args:
        path: the folder with `Chart.yaml`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        if not (self.path / "Chart.yaml").is_file():
            raise HelmError(f"no chart in {self.path}: it has no Chart.yaml")

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The files helm loads, relative to the chart: all but what `.helmignore` names."""
        ignore = self.path / ".helmignore"
        rules = _ignore_rules(ignore.read_text() if ignore.exists() else "")
        found = []
        for folder, folders, names in os.walk(self.path):
            base = Path(folder).relative_to(self.path)
            folders[:] = sorted(name for name in folders if not _ignored(rules, base / name, is_folder=True))
            found += [base / name for name in sorted(names) if not _ignored(rules, base / name, is_folder=False)]
        return tuple(found)

    def read(self, file: str | Path) -> str:
        """The text of one of its files, by its path in the chart."""
        return (self.path / file).read_text()

    @property
    def version(self) -> str:
        """The version that `Chart.yaml` states."""
        return str(load_yaml(self.read("Chart.yaml")).get("version", ""))

    @cached_property
    def digest(self) -> str:
        """A hash of every file helm loads."""
        hasher = hashlib.sha256()
        for file in self.files:
            content = (self.path / file).read_bytes()
            hasher.update(f"{file}\0{len(content)}\0".encode() + content)
        return hasher.hexdigest()


@dataclass(frozen=True)
class _IgnoreRule:
    pattern: re.Pattern[str]
    negated: bool
    folders_only: bool
    whole_path: bool


def _ignore_rules(text: str) -> list[_IgnoreRule]:
    """Rules of a `.helmignore`, read as helm reads them (shell patterns; no `**`)."""
    rules = []
    for line in text.splitlines():
        rule = line.strip()
        if not rule or rule.startswith("#"):
            continue
        negated, rule = rule.startswith("!"), rule.removeprefix("!")
        folders_only, rule = rule.endswith("/"), rule.removesuffix("/")
        whole_path, rule = "/" in rule, rule.removeprefix("/")
        # As in Go's filepath.Match, a star does not cross a folder.
        pattern = re.compile(translate(rule).replace("(?s:", "(?:").replace(".*", "[^/]*"))
        rules.append(_IgnoreRule(pattern, negated, folders_only, whole_path))
    return rules


def _ignored(rules: Sequence[_IgnoreRule], path: Path, *, is_folder: bool) -> bool:
    # Helm always leaves out hidden files of templates/ ("templates/.?*").
    if path.parts[0] == "templates" and path.name.startswith(".") and len(path.parts) == 2:
        return True
    for rule in rules:
        if rule.folders_only and not is_folder:
            continue
        matches = rule.pattern.fullmatch(str(path) if rule.whole_path else path.name) is not None
        # Helm's negation is "ignore whatever does not match", unlike git's.
        if matches != rule.negated:
            return True
    return False


@dataclass(frozen=True)
class Scenario:
    """One way to render a chart: everything, beside the chart itself, that can change the output.

    Attributes:
        name: short and unique; the first part of test ids.
        values: values files, the last one wins.
        overrides: values on top of the files.
        release: release name.
        namespace: namespace of the release.
        kube_version: Kubernetes version the templates see.
        api_versions: additional `.Capabilities.APIVersions`.
        upgrade: render as `helm upgrade` would (`.Release.IsUpgrade`).
    """

    name: str
    values: tuple[Path, ...] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict)
    release: str = "release"
    namespace: str = "default"
    kube_version: str = "1.34.2"
    api_versions: tuple[str, ...] = ()
    upgrade: bool = False

    def __str__(self) -> str:
        return self.name

    def key(self) -> str:
        """A text that differs when the output can: file contents instead of file names."""
        return json.dumps(
            {
                "values": [hashlib.sha256(path.read_bytes()).hexdigest() for path in self.values],
                "overrides": self.overrides,
                "release": self.release,
                "namespace": self.namespace,
                "kube_version": self.kube_version,
                "api_versions": self.api_versions,
                "upgrade": self.upgrade,
            },
            sort_keys=True,
        )


@dataclass(frozen=True)
class Setup:
    """What a test suite renders.

    Attributes:
        chart: the chart's folder.
        scenarios: ways to render it; the first is the one `render(...)` builds on.
        refusals: scenarios that the templates must refuse.
        helm: where to look for helm before PATH.
    """

    chart: Path
    scenarios: Sequence[Scenario]
    helm: Sequence[Path] = field(default_factory=tuple)
    refusals: Sequence[Scenario] = ()


class Renderer:
    """Renders charts with one helm program and remembers every answer, failures included.

    Args:
        helm: the helm program.
        cache: folder for answers shared between processes and runs.
    """

    def __init__(self, helm: Path, cache: Path) -> None:
        self.helm = helm
        self.cache = cache
        self._answers: dict[str, tuple[str, str]] = {}
        self._parsed: dict[tuple[str, str], Manifests] = {}
        status = helm.stat()
        # Stands for the binary without running it: a new build of the same version is another binary too.
        self._program = f"{helm}\0{status.st_size}\0{status.st_mtime_ns}"

    def key(self, chart: Chart, scenario: Scenario) -> str:
        """The key under which an answer is kept."""
        parts = [str(_FORMAT), self._program, chart.digest, scenario.key()]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def render(self, chart: Chart, scenario: Scenario) -> Manifests:
        """The objects of a chart in a scenario.

        Raises:
            HelmError: helm refused to render.
        """
        key = (self.key(chart, scenario), scenario.name)
        if key not in self._parsed:
            text = self.text(chart, scenario)
            self._parsed[key] = Manifests.parse(text, scenario.name, self._origins(chart, scenario))
        return self._parsed[key]

    def text(self, chart: Chart, scenario: Scenario, *, fresh: bool = False) -> str:
        """What helm prints; `fresh` runs helm even when the answer is known.

        Raises:
            HelmError: helm refused to render.
        """
        key = self.key(chart, scenario)
        if fresh:
            output, error = self._run(chart.path, scenario)
        else:
            if key not in self._answers:
                self._answers[key] = self._shared(key, lambda: self._run(chart.path, scenario))
            output, error = self._answers[key]
        if error:
            raise self.refusal(chart, scenario, error)
        return output

    @staticmethod
    def refusal(chart: Chart, scenario: Scenario, error: str) -> HelmError:
        """What is raised for helm's message."""
        told = with_suggestions(error, chart)
        return HelmError(f"helm does not render {chart.path.name} for «{scenario.name}»:\n{told}")

    def _origins(self, chart: Chart, scenario: Scenario) -> Origins | None:
        """What knows the template lines of a rendering; reads and runs nothing until it is asked."""
        key = self.key(chart, scenario)

        def output(marked: Marked, level: int) -> str:
            marked_key = hashlib.sha256(f"{key}\0marked {level}".encode()).hexdigest()
            return self._shared(marked_key, lambda: self._run_marked(chart, scenario, marked))[0]

        return Origins(chart, output)

    def _run_marked(self, chart: Chart, scenario: Scenario, marked: Marked) -> tuple[str, str]:
        """What helm prints for a copy of the chart with marked templates; with marks it need not be valid YAML."""
        with tempfile.TemporaryDirectory(prefix="chart-harness-") as folder:
            copy = Path(folder) / chart.path.name
            for file in chart.files:
                target = copy / file
                target.parent.mkdir(parents=True, exist_ok=True)
                text = marked.texts.get(file.as_posix())
                if text is None:
                    shutil.copyfile(chart.path / file, target)
                else:
                    target.write_text(text)
            # With --debug helm prints what it rendered even where it then cannot read it.
            done = self._helm(copy, scenario, "--debug")
        return done.stdout, ""

    def _shared(self, key: str, run: Callable[[], tuple[str, str]]) -> tuple[str, str]:
        """The answer on disk, made under a lock when it is not there yet."""
        file = self.cache / key[:2] / f"{key}.json"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.with_suffix(".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not file.exists():
                    answer = run()
                    with tempfile.NamedTemporaryFile("w", dir=file.parent, suffix=".part", delete=False) as part:
                        json.dump(answer, part)
                    os.replace(part.name, file)
        else:
            os.utime(file)
        output, error = json.loads(file.read_text())
        return output, error

    def _helm(self, chart: Path, scenario: Scenario, *options: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.helm), "template", scenario.release, str(chart), "--include-crds", *options]
        command += ["--namespace", scenario.namespace, "--kube-version", scenario.kube_version]
        for file in scenario.values:
            command += ["--values", str(file)]
        for api_version in scenario.api_versions:
            command += ["--api-versions", api_version]
        if scenario.upgrade:
            command.append("--is-upgrade")
        if scenario.overrides:
            command += ["--values", "-"]
        # Neither the caller's cluster nor its helm settings may colour the result.
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("HELM_", "KUBE"))}
        done = subprocess.run(
            command,
            # As it is: an escaped character beyond 16 bits is two surrogates in JSON, which YAML does not know.
            input=json.dumps(scenario.overrides, ensure_ascii=False) if scenario.overrides else "",
            encoding="utf-8",
            env={**environment, "KUBECONFIG": os.devnull},
            capture_output=True,
            check=False,
            timeout=120,
        )
        if done.returncode < 0:  # killed; says nothing about the chart, so it must not be remembered
            raise HelmError(f"helm was ended by signal {-done.returncode}")
        return done

    def _run(self, chart: Path, scenario: Scenario) -> tuple[str, str]:
        done = self._helm(chart, scenario)
        if done.returncode == 0:
            return done.stdout, ""
        return "", readable_error(done.stderr) or f"helm ended with code {done.returncode} and said nothing"

    def prune(self) -> None:
        """Remove answers that nobody asked for lately."""
        limit = time.time() - _KEEP_SECONDS
        for file in self.cache.glob("??/*"):
            if file.stat().st_mtime < limit:
                file.unlink(missing_ok=True)


def readable_error(text: str) -> str:
    """Helm's message with one cause per line, without warnings and the hint to use --debug.

    Helm nests template errors on one line, outermost first
    (`template: a.yaml:3:4: executing "a" at <include "b" .>: error calling include: template: …`).
    """
    lines = [
        line.removeprefix("Error: ")
        for line in text.splitlines()
        if line.strip() and not line.startswith(("WARNING:", "level=", "Use --debug"))
    ]
    joined = "\n".join(lines)
    return re.sub(r": error calling (\w+): ", r":\n  from \1: ", joined)
