"""What others rely on stays as it is: names, ports, addresses, variables, paths and rights.

`interfaces.yaml` says it for the defaults and, for the other scenarios, where they differ. Sizes, counts and times are
not in it: they are the operator's. A change that is meant is written down with

    UPDATE_INTERFACES=1 python -m pytest tests/render/test_interfaces.py -k written

and reviewed in the diff.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart_harness import Container, Manifest, Manifests
from chart_harness.objects import load_yaml

FILE = Path(__file__).with_name("interfaces.yaml")
HEADER = "# Made by UPDATE_INTERFACES=1 python -m pytest tests/render/test_interfaces.py -k written\n"
BASE = "defaults"
LABELS = ("app", "app.kubernetes.io/name", "app.kubernetes.io/component")
KINDS_OF_VOLUMES = ("configMap", "secret", "emptyDir", "persistentVolumeClaim", "projected")


def interface(container: Container) -> dict[str, Any]:
    """What a container runs and is told, where it listens, what it sees."""
    spec = container.spec
    repository = re.sub(r"@.*$|:[^:/]*$", "", str(spec["image"]))
    found: dict[str, Any] = {
        "image": repository,
        "command": [*(spec.get("command") or []), *(spec.get("args") or [])],
        "variables": {name: source(variable) for name, variable in container.env.items()},
        "variables from": [str(source) for source in spec.get("envFrom") or []],
        "ports": container.ports,
        "mounts": {mount["mountPath"]: mounted(mount) for mount in spec.get("volumeMounts") or []},
        "probes": {kind: handler(spec[kind]) for kind in spec if kind.endswith("Probe")},
        "before it stops": list((spec.get("lifecycle") or {}).get("preStop", {})),
    }
    return {name: value for name, value in found.items() if value}


def source(variable: Mapping[str, Any]) -> str:
    """Value of a variable, or where it comes from."""
    origin = variable.get("valueFrom")
    if origin is None:
        return str(variable.get("value", ""))
    kind, reference = next(iter(origin.items()))
    return f"{kind} {reference.get('name', '')}/{reference.get('key') or reference.get('fieldPath')}"


def mounted(mount: Mapping[str, Any]) -> str:
    """Volume, folder in it, and whether it can be written."""
    folder = f"/{mount['subPath']}" if "subPath" in mount else ""
    return f"{mount['name']}{folder}{' read-only' if mount.get('readOnly') else ''}"


def handler(probe: Mapping[str, Any]) -> str:
    """What a probe does, without its times."""
    kind = next(kind for kind in ("httpGet", "tcpSocket", "exec", "grpc") if kind in probe)
    return f"{kind} {' '.join(str(part) for part in probe[kind].values())}"


def volume(spec: Mapping[str, Any]) -> Any:
    """Kind and origin of a volume."""
    kind = next(kind for kind in spec if kind != "name")
    if kind == "projected":
        return spec[kind]
    if kind == "volumeClaimTemplate":
        return f"claim {spec[kind]['spec']['accessModes']}"
    return f"{kind} {spec[kind].get('name') or spec[kind].get('secretName') or spec[kind].get('medium', '')}".strip()


def described(manifest: Manifest) -> dict[str, Any]:
    """The interface of an object; empty for one that has none."""
    found: dict[str, Any] = {"labels": [manifest.labels.get(name) for name in LABELS]}
    if manifest.kind == "Service":
        found["ports"] = {
            port["name"]: f"{port['port']} to {port.get('targetPort')}" for port in manifest["spec"]["ports"]
        }
        found["selects"] = manifest.at("spec.selector")
        found["headless"] = manifest.at("spec.clusterIP") == "None"
        found["before ready"] = manifest.at("spec.publishNotReadyAddresses", False)
    if manifest.kind == "ConfigMap":
        found["keys"] = sorted(manifest.at("data", {}))
    if manifest.kind in ("Role", "ClusterRole"):
        found["rules"] = manifest["rules"]
    if manifest.kind.endswith("Binding"):
        found |= {
            "role": manifest["roleRef"]["name"],
            "subjects": [subject["name"] for subject in manifest["subjects"]],
        }
    if manifest.kind in ("PodDisruptionBudget", "NetworkPolicy"):
        found["selects"] = manifest.at("spec.selector.matchLabels") or manifest.at("spec.podSelector.matchLabels")
    if manifest.kind == "PodDisruptionBudget":
        found["never ready"] = manifest.at("spec.unhealthyPodEvictionPolicy")
    if manifest.kind == "NetworkPolicy":
        found["flows"] = {
            way: manifest.at(f"spec.{way}") for way in ("ingress", "egress") if manifest.at(f"spec.{way}")
        }
        found["directions"] = manifest.at("spec.policyTypes")
    if manifest.kind == "HorizontalPodAutoscaler":
        found["scales"] = manifest.at("spec.scaleTargetRef.name")
        found["by"] = [metric.get("resource", {}).get("name") for metric in manifest.at("spec.metrics", [])]
    if manifest.hooks:
        found["hook"] = {name: value for name, value in manifest.annotations.items() if name.startswith("helm.sh/")}
    if manifest.kind == "StatefulSet":
        found["claims"] = [claim["metadata"] for claim in manifest.at("spec.volumeClaimTemplates", [])]
        found["kept"] = manifest.at("spec.persistentVolumeClaimRetentionPolicy")
        found["service"] = manifest.at("spec.serviceName")
        found["starts"] = manifest.at("spec.podManagementPolicy", "OrderedReady")
    for pod in manifest.pods:
        found[f"pod {pod.path}".strip()] = {
            "labels": dict(pod.labels),
            "checksums": sorted(
                name for name in (pod.template["metadata"].get("annotations") or {}) if "checksum" in name
            ),
            "restart": pod.spec.get("restartPolicy", "Always"),
            "volumes": {name: volume(spec) for name, spec in pod.volumes.items()},
            "containers": {container.name: interface(container) for container in pod.containers},
        }
    return found


def interfaces(manifests: Manifests) -> dict[str, Any]:
    """The interfaces of a rendering; a Job's name ends with a hash of its content, which is left out."""
    found = {}
    for manifest in manifests:
        name = manifest.id.rpartition("-")[0] if manifest.kind == "Job" and not manifest.hooks else manifest.id
        found[name] = described(manifest)
    return found


def difference(found: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """What of one interface is not in another, key by key; what is gone is null."""
    changed: dict[str, Any] = dict.fromkeys(sorted(base.keys() - found.keys()))
    for name, value in found.items():
        below = base.get(name)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            if inner := difference(value, below):
                changed[name] = inner
        elif value != below:
            changed[name] = value
    return changed


class Dumper(yaml.CSafeDumper):
    """Writes by libyaml, in a tenth of the time, and whole what stands in two places."""

    def ignore_aliases(self, data: Any) -> bool:
        """Never an anchor, whose number would change with what stands above it."""
        return True


def in_yaml(content: Any) -> str:
    """The text of `interfaces.yaml`."""
    return yaml.dump(content, Dumper=Dumper, width=160, allow_unicode=True)


@pytest.fixture(scope="session")
def written() -> dict[str, Any]:
    """Scenario -> its interfaces, as the file says: whole for the defaults, what differs for the others."""
    known: dict[str, Any] = load_yaml(FILE.read_text())
    return known


def test_interfaces_stay(manifests: Manifests, written: dict[str, Any]) -> None:
    own = interfaces(manifests)
    found = own if manifests.scenario == BASE else difference(own, written[BASE])
    known = written.get(manifests.scenario, {})
    if found != known:
        # A key with null (what is gone) is not the same as no key.
        names = [name for name in {**known, **found} if known.get(name, ...) != found.get(name, ...)]
        before, after = (
            in_yaml({name: content[name] for name in names if name in content}).splitlines()
            for content in (known, found)
        )
        lines = difflib.unified_diff(before, after, "interfaces.yaml", "rendered", n=2, lineterm="")
        raise AssertionError("the interfaces changed:\n" + "\n".join(list(lines)[:80]))


@pytest.mark.skipif(not os.environ.get("UPDATE_INTERFACES"), reason="writes the file when UPDATE_INTERFACES is set")
def test_interfaces_are_written(renderings: list[Manifests]) -> None:
    whole = {manifests.scenario: interfaces(manifests) for manifests in renderings}
    found = {name: own if name == BASE else difference(own, whole[BASE]) for name, own in whole.items()}
    FILE.write_text(HEADER + in_yaml(found))
