"""What an upgrade does to a release: which fields change, which pods restart, and what the API server would refuse."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from chart_harness import options
from chart_harness.objects import Manifest, Manifests

_ABSENT = object()

_IDENTITIES = ("name", "mountPath", "key", "containerPort", "port", "topologyKey", "host", "path")
"""Fields that can tell the items of a list apart, whatever their order."""

_MUTABLE: Mapping[str, frozenset[str]] = {
    "StatefulSet": frozenset(
        {
            "minReadySeconds",
            "ordinals",
            "persistentVolumeClaimRetentionPolicy",
            "replicas",
            "revisionHistoryLimit",
            "template",
            "updateStrategy",
        }
    ),
    "Job": frozenset(
        {"activeDeadlineSeconds", "backoffLimit", "parallelism", "suspend", "ttlSecondsAfterFinished"},
    ),
    "PersistentVolumeClaim": frozenset({"resources", "volumeAttributesClassName"}),
}
"""Kinds of whose spec only these fields may change."""

_IMMUTABLE: Mapping[str, tuple[str, ...]] = {
    "ClusterRoleBinding": ("roleRef",),
    "CustomResourceDefinition": ("spec.group", "spec.scope", "spec.names.kind", "spec.names.plural"),
    "DaemonSet": ("spec.selector",),
    "Deployment": ("spec.selector",),
    "EndpointSlice": ("addressType",),
    "IngressClass": ("spec.controller",),
    "PriorityClass": ("value", "preemptionPolicy"),
    "ReplicaSet": ("spec.selector",),
    "RoleBinding": ("roleRef",),
    "RuntimeClass": ("handler",),
    "Secret": ("type",),
    "StorageClass": ("provisioner", "parameters", "reclaimPolicy", "volumeBindingMode"),
}
"""Kinds with fields that never change."""

_SUFFIXES = {suffix: Decimal(1024) ** power for power, suffix in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)}
_SUFFIXES |= {suffix: Decimal(1000) ** power for power, suffix in enumerate(("k", "M", "G", "T", "P", "E"), 1)}
_SUFFIXES |= {"m": Decimal(1) / 1000}


@dataclass(frozen=True)
class Change:
    """One field that differs between two renderings.

    Attributes:
        subject: the object, as `Kind/name`.
        path: the field, as dotted keys with list positions or names.
        before: its value, None where it is not set.
        after: the same.
        reason: why it matters; empty when nothing is to be said.
    """

    subject: str
    path: str
    before: Any
    after: Any
    reason: str = ""

    def __str__(self) -> str:
        text = f"{self.subject} {self.path}: {short(self.before)} → {short(self.after)}"
        return f"{text} ({self.reason})" if self.reason else text


@dataclass(frozen=True)
class Restart:
    """Pods that an upgrade replaces.

    Attributes:
        subject: the object whose pods they are, as `Kind/name`.
        paths: the fields of its pod template that differ.
        operator: whether an operator decides how, the object being a custom resource.
    """

    subject: str
    paths: tuple[str, ...]
    operator: bool

    def __str__(self) -> str:
        more = f" and {len(self.paths) - 3} more" if len(self.paths) > 3 else ""
        by = " (its operator decides how)" if self.operator else ""
        return f"{self.subject}{by}: {', '.join(self.paths[:3])}{more}"


def short(value: Any, limit: int = 80) -> str:
    """A value on one line."""
    if value is None:
        return "nothing"
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def identity(manifest: Manifest) -> tuple[str, str, str, str]:
    """What makes two objects the same one for the API server: group, kind, namespace and name."""
    group = manifest.api_version.rpartition("/")[0]
    return group, manifest.kind, manifest.namespace or "", manifest.name


def pairs(before: Manifests, after: Manifests) -> Iterator[tuple[Manifest | None, Manifest | None]]:
    """Objects of two renderings that are the same one, those of one side alone with None; in the order of `after`."""
    old = {identity(manifest): manifest for manifest in before}
    for manifest in after:
        yield old.pop(identity(manifest), None), manifest
    for manifest in old.values():
        yield manifest, None


def differences(before: Any, after: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Fields that differ between two values: path, old and new value; None stands for a field that is not set.

    The order of a list does not count where a field (`name`, `mountPath`, …) tells its items apart. A field that is
    null is one that is not set.
    """
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in (*before, *(key for key in after if key not in before)):
            yield from differences(before.get(key), after.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(before, list) and isinstance(after, list):
        key = _identity(before, after)
        if key is not None:
            old, new = ({item[key]: item for item in side} for side in (before, after))
            for name in (*old, *(name for name in new if name not in old)):
                yield from differences(old.get(name), new.get(name), f"{path}[{name}]")
        elif len(before) == len(after) and any(isinstance(item, Mapping) for item in before):
            for index, (one, other) in enumerate(zip(before, after, strict=True)):
                yield from differences(one, other, f"{path}[{index}]")
        elif before != after:
            yield path, before, after
    elif before != after:
        yield path, before, after


def _identity(before: Sequence[Any], after: Sequence[Any]) -> str | None:
    """The field that tells the items of both lists apart, if there is one."""
    for key in _IDENTITIES:
        if all(
            side
            and all(isinstance(item, Mapping) and isinstance(item.get(key), str | int) for item in side)
            and len({item[key] for item in side}) == len(side)
            for side in (before, after)
        ):
            return key
    return None


def immutable_changes(before: Manifests, after: Manifests) -> list[Change]:
    """Changes that the API server would refuse, so that `helm upgrade` fails.

    Objects of one side alone are no change, nor are hooks: helm removes the old one first. What the rules of a custom
    resource's definition forbid is not known here.
    """
    found = []
    for old, new in pairs(before, after):
        if old is None or new is None or new.hooks:
            continue
        for path, one, other, reason in _refused(old, new):
            found.append(Change(new.id, path, one, other, reason))
    return found


def _refused(old: Manifest, new: Manifest) -> Iterator[tuple[str, Any, Any, str]]:
    kind = new.kind
    for field in _IMMUTABLE.get(kind, ()):
        for path, one, other in differences(old.at(field), new.at(field), field):
            yield path, one, other, "immutable"
    if kind in _MUTABLE:
        for path, one, other in differences(old.at("spec"), new.at("spec"), "spec"):
            if path.split(".")[1].partition("[")[0] not in _MUTABLE[kind]:
                yield path, one, other, f"immutable in a {kind}"
    if kind == "PersistentVolumeClaim":
        sizes = [manifest.at("spec.resources.requests.storage") for manifest in (old, new)]
        if None not in sizes and quantity(sizes[1]) < quantity(sizes[0]):
            yield "spec.resources.requests.storage", *sizes, "a volume cannot shrink"
    if kind == "Service" and "ExternalName" not in (old.at("spec.type"), new.at("spec.type")):
        for path, one, other in differences(old.at("spec.clusterIP"), new.at("spec.clusterIP"), "spec.clusterIP"):
            yield path, one, other, "immutable"
    if kind in ("Secret", "ConfigMap") and old.get("immutable"):
        for field in ("immutable", "data", "stringData", "binaryData"):
            for path, one, other in differences(old.get(field), new.get(field), field):
                yield path, one, other, "the object is immutable"
    if kind == "Pod":
        for path, one, other in differences(old.at("spec"), new.at("spec"), "spec"):
            if not path.endswith((".image", ".activeDeadlineSeconds")) and not path.startswith("spec.tolerations"):
                yield path, one, other, "immutable in a Pod"


def quantity(text: Any) -> Decimal:
    """The number that a Kubernetes quantity stands for (`1.5Gi`, `100m`)."""
    word = str(text)
    suffix = next((suffix for suffix in _SUFFIXES if word.endswith(suffix)), "")
    return Decimal(word.removesuffix(suffix)) * _SUFFIXES.get(suffix, Decimal(1))


def restarts(before: Manifests, after: Manifests) -> list[Restart]:
    """The workloads whose pods an upgrade replaces, since their template differs.

    Jobs and hooks run anew and replace nothing; a CronJob's next run is another pod anyway; and where the strategy is
    `OnDelete`, pods stay until someone deletes them.
    """
    found = []
    for old, new in pairs(before, after):
        if old is None or new is None or new.hooks or new.kind in ("Job", "CronJob", "Pod"):
            continue
        if new.at("spec.updateStrategy.type") == "OnDelete":
            continue
        templates = {pod.path: pod.template for pod in old.pods}
        paths = [
            path
            for pod in new.pods
            if pod.path in templates
            for path, _, _ in differences(templates[pod.path], pod.template, pod.path)
        ]
        if paths:
            found.append(Restart(new.id, tuple(paths), operator=new.api_version not in ("v1", "apps/v1")))
    return found


# What a release leaves behind for the next one.


def lasting(manifest: Manifest) -> dict[str, Any]:
    """The part of an object that `immutable_changes` and `restarts` look at, for a baseline that stays small."""
    kind = manifest.kind
    kept: dict[str, Any] = {"apiVersion": manifest.api_version, "kind": kind, "metadata": {"name": manifest.name}}
    if manifest.namespace:
        kept["metadata"]["namespace"] = manifest.namespace
    if hook := manifest.annotations.get("helm.sh/hook"):
        kept["metadata"]["annotations"] = {"helm.sh/hook": hook}
        return kept
    paths = [*_IMMUTABLE.get(kind, ()), *(pod.path for pod in manifest.pods if pod.path and "[" not in pod.path)]
    if kind in _MUTABLE or kind == "Pod" or any("[" in pod.path for pod in manifest.pods):
        paths = ["spec"]
    if kind == "Service":
        paths = ["spec.clusterIP", "spec.type"]
    if kind in ("Secret", "ConfigMap") and manifest.get("immutable"):
        paths += ["immutable", "data", "stringData", "binaryData"]
    for path in paths:
        value = manifest.at(path)
        if value is not None:
            *parents, last = path.split(".")
            node = kept
            for key in parents:
                node = node.setdefault(key, {})
            node[last] = value
    return kept


def write_baseline(file: Path, version: str, renderings: Sequence[Manifests]) -> None:
    """Keep what a release's objects may not change, one object a line.

    Args:
        file: written anew.
        version: of the release.
        renderings: its objects, one rendering for each scenario.
    """
    lines: dict[str, int] = {}
    scenarios = {}
    for manifests in renderings:
        texts = [json.dumps(lasting(manifest), sort_keys=True) for manifest in manifests]
        scenarios[manifests.scenario] = [lines.setdefault(text, len(lines)) for text in texts]
    objects = ",\n".join(lines)
    head = f'"version": {json.dumps(version)},\n"scenarios": {json.dumps(scenarios)}'
    file.write_text(f'{{\n{head},\n"objects": [\n{objects}\n]\n}}\n')


def read_baseline(file: Path) -> tuple[str, dict[str, Manifests]]:
    """The version of a baseline, and its objects by scenario."""
    content = json.loads(file.read_text())
    return content["version"], {
        name: Manifests([Manifest(content["objects"][number], "", name) for number in numbers], "", name)
        for name, numbers in content["scenarios"].items()
    }


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `baseline`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "baseline",
        help="keep what the next release must not change",
        description="Write the immutable fields and pod templates of a release to a file, for its defaults and for "
        "each values file by itself. Tests compare the next release with it.",
        epilog="example:\n  python -m chart_harness baseline -f values/production.yaml --output released.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_render_options(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the file to write")
    parser.set_defaults(run=_baseline)


def _baseline(arguments: argparse.Namespace) -> int:
    side = options.side(arguments)
    base = side.scenario
    scenarios: list[tuple[str, tuple[Path, ...]]] = [("defaults", ()), *((file.stem, (file,)) for file in base.values)]
    renderings = [side.renderer.render(side.chart, replace(base, name=name, values=files)) for name, files in scenarios]
    write_baseline(arguments.output, side.chart.version, renderings)
    print(f"{arguments.output}: {len(scenarios)} scenarios of {side.chart.version}")
    return 0
