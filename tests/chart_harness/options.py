"""What the commands have in common: which chart to render, how, and from which revision."""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from chart_harness.objects import Manifests
from chart_harness.render import Chart, Renderer, Scenario, cache_folder, find_helm


class UsageError(Exception):
    """What a command was told cannot be done; the message says why."""


@dataclass(frozen=True)
class Side:
    """One thing to render.

    Attributes:
        chart: the chart.
        scenario: how.
        renderer: with what.
    """

    chart: Chart
    scenario: Scenario
    renderer: Renderer

    def render(self) -> Manifests:
        """Its objects; raises `HelmError`."""
        return self.renderer.render(self.chart, self.scenario)


def add_render_options(parser: argparse.ArgumentParser) -> None:
    """Options that say what to render."""
    parser.add_argument("--chart", type=Path, default=Path(), metavar="FOLDER", help="the chart (default: this folder)")
    parser.add_argument(
        "-f",
        "--values",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a values file; the last one wins",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="one value: a.b=1, a.b=text, a.b={x,y}, a.b=null",
    )
    parser.add_argument(
        "--release", default="release", metavar="NAME", help="name of the release (default: %(default)s)"
    )
    parser.add_argument("-n", "--namespace", default="default", metavar="NAME", help="(default: %(default)s)")
    parser.add_argument(
        "--kube-version", default=Scenario("").kube_version, metavar="VERSION", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--api-version", action="append", default=[], metavar="GROUP/VERSION", help="one that the cluster has besides"
    )
    parser.add_argument("--upgrade", action="store_true", help="render as `helm upgrade` does")
    parser.add_argument(
        "--helm", type=Path, metavar="PROGRAM", help="(default: $CHART_HARNESS_HELM, else helm on the PATH)"
    )


def side(arguments: argparse.Namespace) -> Side:
    """What the options of `add_render_options` name.

    Raises:
        UsageError: a file or folder does not exist, or an override cannot be read.
        HelmError: there is no chart or no helm.
    """
    for file in arguments.values:
        if not file.is_file():
            raise UsageError(f"there is no values file {file}")
    scenario = Scenario(
        name=" ".join(file.stem for file in arguments.values) or "defaults",
        values=tuple(file.resolve() for file in arguments.values),
        overrides=overrides(arguments.set),
        release=arguments.release,
        namespace=arguments.namespace,
        kube_version=arguments.kube_version,
        api_versions=tuple(arguments.api_version),
        upgrade=arguments.upgrade,
    )
    renderer = Renderer(find_helm([arguments.helm] if arguments.helm else ()), cache_folder())
    return Side(Chart(arguments.chart), scenario, renderer)


def overrides(words: Sequence[str]) -> dict[str, Any]:
    """The values that `KEY=VALUE` words set, as helm's --set reads them (without positions in lists).

    Raises:
        UsageError: a word cannot be read.
    """
    found: dict[str, Any] = {}
    for word in words:
        for part in _split(word, ","):
            key, equals, text = part.partition("=")
            if not equals or not key:
                raise UsageError(f"--set takes KEY=VALUE, not {part!r}")
            if "[" in key:
                raise UsageError(
                    f"--set {key}: a list is set as a whole ({key.partition('[')[0]}={{x,y}}) or in a file"
                )
            *parents, last = (name.replace("\\.", ".") for name in _split(key, "."))
            node = found
            for parent in parents:
                node = node.setdefault(parent, {})
                if not isinstance(node, dict):
                    raise UsageError(f"--set {key}: {parent} is set to a value already")
            node[last] = _value(text)
    return found


def _split(text: str, separator: str) -> list[str]:
    """Parts of a text; a separator after a backslash, or between braces, is not one."""
    parts, depth, start = [], 0, 0
    for index, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if character == separator and depth == 0 and text[index - 1 : index] != "\\":
            parts.append(text[start:index])
            start = index + 1
    return [*parts, text[start:]]


def _value(text: str) -> Any:
    if text.startswith("{") and text.endswith("}"):
        return [_value(part) for part in _split(text[1:-1], ",") if part]
    if text in ("true", "false", "null"):
        return {"true": True, "false": False, "null": None}[text]
    plain = text.lstrip("-")
    # As in helm, a number with a leading zero is a text.
    if plain.isascii() and plain.isdigit() and (plain == "0" or not plain.startswith("0")):
        return int(text)
    return text.replace("\\,", ",")


@contextmanager
def at_revision(chosen: Side, revision: str | None) -> Iterator[Side]:
    """The same chart as a git revision has it; values files of the same repository are those of the revision too.

    Raises:
        UsageError: it is no git repository, or the revision has no such chart.
    """
    if revision is None:
        yield chosen
        return
    chart = chosen.chart.path
    root = Path(_git(chart, "rev-parse", "--show-toplevel").decode().strip())
    archive = _git(root, "archive", "--format=tar", revision)
    with tempfile.TemporaryDirectory(prefix="chart-harness-") as folder:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            # Under the repository's own name, which is that of a chart at its root.
            old_root = Path(folder) / root.name
            tar.extractall(old_root, filter="data")
        there = old_root / chart.relative_to(root)
        if not (there / "Chart.yaml").is_file():
            raise UsageError(f"{revision} has no chart in {os.path.relpath(chart, root)}")
        files = []
        for file in chosen.scenario.values:
            old = old_root / file.relative_to(root) if file.is_relative_to(root) else file
            files.append(old if old.is_file() else file)
        yield replace(chosen, chart=Chart(there), scenario=replace(chosen.scenario, values=tuple(files)))


def _git(folder: Path, *words: str) -> bytes:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, check=False)
    if done.returncode:
        raise UsageError(f"git {words[0]}: {done.stderr.decode().strip()}")
    return done.stdout


def plain(manifests: Sequence[Mapping[str, Any]]) -> str:
    """Objects as a YAML text, keys in their own order."""
    return "".join(
        "---\n" + yaml.dump(dict(manifest), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
        for manifest in manifests
    )


class _Dumper(yaml.CSafeDumper):
    """Writes texts of several lines as blocks."""


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
