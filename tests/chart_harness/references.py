"""What a manifest refers to, and whether the rendering (or its surroundings) provides it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from chart_harness.objects import Container, Manifest, Manifests, Pod


@dataclass(frozen=True)
class Given:
    """What exists without being rendered.

    Attributes:
        secrets: Secret name -> its keys, or None when its keys are not known.
        config_maps: the same for ConfigMaps.
        service_accounts: names of ServiceAccounts.
        operator_labels: labels that an operator adds to a pod; None stands for a value known only in a cluster.
        operator_services: Services that operators make, name -> port numbers.
    """

    secrets: Mapping[str, Collection[str] | None] = field(default_factory=dict)
    config_maps: Mapping[str, Collection[str] | None] = field(
        default_factory=lambda: {"kube-root-ca.crt": ("ca.crt",)},
    )
    service_accounts: Collection[str] = ("default",)
    operator_labels: Callable[[Pod], Mapping[str, str | None]] = lambda pod: {}
    operator_services: Mapping[str, Collection[int]] = field(default_factory=dict)


def unresolved(manifest: Manifest, manifests: Manifests, given: Given) -> list[str]:
    """Every reference of an object that nothing provides, as sentences with the path of the reference."""
    return [*_of_pods(manifest, manifests, given), *_of_object(manifest, manifests, given)]


def selected(selector: Mapping[str, str], manifests: Manifests, given: Given | None = None) -> list[Pod]:
    """The pod templates whose labels match, with the labels that operators add."""

    def matches(pod: Pod) -> bool:
        labels: Mapping[str, str | None] = {**pod.labels, **(given.operator_labels(pod) if given else {})}
        return all(name in labels and labels[name] in (value, None) for name, value in selector.items())

    return [pod for pod in manifests.pods() if matches(pod)]


def _of_pods(manifest: Manifest, manifests: Manifests, given: Given) -> Iterator[str]:
    for pod in manifest.pods:
        account = pod.spec.get("serviceAccountName", "default")
        if account not in given.service_accounts and not manifests.find("ServiceAccount", account):
            yield f"{pod.path}.spec.serviceAccountName: there is no ServiceAccount {account}"
        for name, volume in pod.volumes.items():
            for path, reference in _volume_references(volume):
                yield from _missing(f"{pod.path}.spec.volumes[{name}].{path}", *reference, manifests, given)
        mounted = {mount["name"] for container in pod.containers for mount in container.spec.get("volumeMounts") or []}
        for name in sorted(mounted - pod.volumes.keys()):
            yield f"{pod.path}: a container mounts the volume {name}, which the pod does not have"
        for name in sorted(pod.volumes.keys() - mounted):
            yield f"{pod.path}: no container mounts the volume {name}"
        for container in pod.containers:
            yield from _of_container(container, manifests, given)


_Reference = tuple[str, str, list[str]]
"""Kind, name, and the keys asked for."""


def _volume_references(volume: Mapping[str, Any]) -> Iterator[tuple[str, _Reference]]:
    if "secret" in volume and not volume["secret"].get("optional"):
        source = volume["secret"]
        yield "secret", ("Secret", source["secretName"], [item["key"] for item in source.get("items") or []])
    if "configMap" in volume and not volume["configMap"].get("optional"):
        source = volume["configMap"]
        yield "configMap", ("ConfigMap", source["name"], [item["key"] for item in source.get("items") or []])
    if "persistentVolumeClaim" in volume:
        yield "persistentVolumeClaim", ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"], [])
    for index, source in enumerate((volume.get("projected") or {}).get("sources") or []):
        for key, kind in (("secret", "Secret"), ("configMap", "ConfigMap")):
            if key in source and not source[key].get("optional"):
                keys = [item["key"] for item in source[key].get("items") or []]
                yield f"projected.sources[{index}].{key}", (kind, source[key]["name"], keys)


def _of_container(container: Container, manifests: Manifests, given: Given) -> Iterator[str]:
    path = f"{container.pod.path}: container {container.name}"
    for name, variable in container.env.items():
        source = variable.get("valueFrom") or {}
        for key, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
            if key in source and not source[key].get("optional"):
                reference = (kind, source[key]["name"], [source[key]["key"]])
                yield from _missing(f"{path}, env {name}", *reference, manifests, given)
    for source in container.spec.get("envFrom") or []:
        for key, kind in (("secretRef", "Secret"), ("configMapRef", "ConfigMap")):
            if key in source and not source[key].get("optional"):
                yield from _missing(f"{path}, envFrom", kind, source[key]["name"], [], manifests, given)
    handlers = {name: container.spec.get(name) for name in ("livenessProbe", "readinessProbe", "startupProbe")}
    lifecycle = container.spec.get("lifecycle") or {}
    handlers |= {name: lifecycle.get(name) for name in ("preStop", "postStart")}
    for name, handler in handlers.items():
        for kind in ("httpGet", "tcpSocket"):
            port = ((handler or {}).get(kind) or {}).get("port")
            if isinstance(port, str) and port not in container.ports:
                yield f"{path}, {name}: it has no port named {port} (it has {_list(container.ports)})"


def _missing(
    path: str, kind: str, name: str, keys: Collection[str], manifests: Manifests, given: Given
) -> Iterator[str]:
    """Sentences about an object, or keys of it, that do not exist."""
    outside = {"Secret": given.secrets, "ConfigMap": given.config_maps}.get(kind, {})
    found = manifests.find(kind, name)
    if found is not None:
        known: Collection[str] | None = {
            key for name in ("data", "stringData", "binaryData") for key in found.at(name) or {}
        }
    elif name in outside:
        known = outside[name]
    else:
        yield f"{path}: there is no {kind} {name}"
        return
    if known is not None:
        for key in keys:
            if key not in known:
                yield f"{path}: the {kind} {name} has no key {key} (it has {_list(known)})"


def _of_object(manifest: Manifest, manifests: Manifests, given: Given) -> Iterator[str]:
    match manifest.kind:
        case "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet":
            selector = manifest.at("spec.selector.matchLabels", {})
            labels = manifest.pods[0].labels
            for name, value in selector.items():
                if labels.get(name) != value:
                    yield f"spec.selector: its own pods do not carry {name}={value}"
            service = manifest.at("spec.serviceName")
            if manifest.kind == "StatefulSet" and not manifests.find("Service", service or ""):
                yield f"spec.serviceName: there is no Service {service}"
        case "Service":
            yield from _of_service(manifest, manifests, given)
        case "HorizontalPodAutoscaler":
            target = manifest.at("spec.scaleTargetRef", {})
            if not manifests.find(target.get("kind", ""), target.get("name", "")):
                yield f"spec.scaleTargetRef: there is no {target.get('kind')} {target.get('name')}"
        case "PodDisruptionBudget" | "NetworkPolicy":
            field_name = "selector" if manifest.kind == "PodDisruptionBudget" else "podSelector"
            selector = manifest.at(f"spec.{field_name}.matchLabels", {})
            if selector and not selected(selector, manifests, given):
                yield f"spec.{field_name}: no pod carries {_labels(selector)}"
        case "RoleBinding" | "ClusterRoleBinding":
            role = manifest["roleRef"]
            if not manifests.find(role["kind"], role["name"]):
                yield f"roleRef: there is no {role['kind']} {role['name']}"
            for subject in manifest.at("subjects", []):
                account = subject["name"] if subject["kind"] == "ServiceAccount" else "default"
                if account not in given.service_accounts and not manifests.find("ServiceAccount", account):
                    yield f"subjects: there is no ServiceAccount {account}"
        case "Ingress":
            for rule in manifest.at("spec.rules", []):
                for entry in (rule.get("http") or {}).get("paths") or []:
                    yield from _backend(entry["backend"]["service"], manifests, given)


def _of_service(manifest: Manifest, manifests: Manifests, given: Given) -> Iterator[str]:
    selector = manifest.at("spec.selector", {})
    if not selector:
        return
    pods = selected(selector, manifests, given)
    if not pods:
        yield f"spec.selector: no pod carries {_labels(selector)}"
    for owner in {pod.owner.id for pod in pods if pod.owner.kind in ("Job", "CronJob")}:
        yield f"spec.selector: it also selects the pods of {owner}"
    for port in manifest.at("spec.ports", []):
        target = port.get("targetPort", port["port"])
        for pod in pods:
            named = {name: number for container in pod.containers for name, number in container.ports.items()}
            if isinstance(target, str) and target not in named:
                yield f"spec.ports[{port.get('name')}]: {pod.id} has no port named {target} (it has {_list(named)})"
            elif isinstance(target, int) and named and target not in named.values():
                yield f"spec.ports[{port.get('name')}]: {pod.id} does not declare the port {target}"


def _backend(backend: Mapping[str, Any], manifests: Manifests, given: Given) -> Iterator[str]:
    name, port = backend["name"], backend.get("port") or {}
    service = manifests.find("Service", name)
    if service is None:
        if name not in given.operator_services:
            yield f"spec.rules: there is no Service {name}"
        return
    ports = service.at("spec.ports", [])
    wanted = port.get("name", port.get("number"))
    if wanted not in {value for entry in ports for value in (entry.get("name"), entry["port"])}:
        yield f"spec.rules: the Service {name} has no port {wanted}"


def _list(names: Collection[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _labels(selector: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(selector.items()))
