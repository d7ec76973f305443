"""What a manifest refers to, and whether the rendering (or its surroundings) provides it."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chart_harness.objects import Container, Manifest, Manifests, Pod
from chart_harness.problems import Problem

_EVERYWHERE = frozenset(
    {
        *(f"ClusterRole/{name}" for name in ("admin", "cluster-admin", "edit", "view", "system:auth-delegator")),
        *(f"PriorityClass/system-{name}-critical" for name in ("cluster", "node")),
        "Role/extension-apiserver-authentication-reader",
        "Service/kubernetes",
    }
)
"""What every cluster has."""

_ROUTES = ("HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute", "UDPRoute")
_CERTIFICATE_KEYS = frozenset({"ca.crt", "tls.crt", "tls.key"})
_VARIABLE = re.compile(r"(?<!\$)\$\(([A-Z_][A-Z0-9_]*)\)")


@dataclass(frozen=True)
class Given:
    """What exists without being rendered.

    Attributes:
        secrets: Secret name -> its keys, or None when its keys are not known.
        config_maps: the same for ConfigMaps.
        service_accounts: names of ServiceAccounts.
        operator_labels: labels that an operator adds to a pod; None stands for a value known only in a cluster.
        operator_services: Services that operators make, name -> port numbers.
        objects: any other object, as `Kind/name`: `StorageClass/fast`, `PriorityClass/high`, `Gateway/public`.
        pods: labels of pods of other releases, such as those of an ingress gateway.
    """

    secrets: Mapping[str, Collection[str] | None] = field(default_factory=dict)
    config_maps: Mapping[str, Collection[str] | None] = field(
        default_factory=lambda: {"kube-root-ca.crt": ("ca.crt",)},
    )
    service_accounts: Collection[str] = ("default",)
    operator_labels: Callable[[Pod], Mapping[str, str | None]] = lambda pod: {}
    operator_services: Mapping[str, Collection[int]] = field(default_factory=dict)
    objects: Collection[str] = ()
    pods: Collection[Mapping[str, str]] = ()


@dataclass(frozen=True)
class Reference:
    """One place of an object that names others.

    Attributes:
        source: the object.
        path: the place, as dotted keys with list positions or names.
        targets: what is named or selected, as `Kind/name`; whether it exists or not.
        problem: what is wrong with it; empty when it leads somewhere.
    """

    source: Manifest
    path: str
    targets: tuple[str, ...]
    problem: str = ""


def unresolved(manifest: Manifest, manifests: Manifests, given: Given | None = None) -> list[str]:
    """Every reference of an object that nothing provides, as sentences with path and, where known, template line.

    Args:
        manifest: the object.
        manifests: what was rendered together with it.
        given: what exists beside that; nothing by default.
    """
    return [
        str(Problem(reference.path, reference.problem, manifest))
        for reference in references(manifest, manifests, given or Given())
        if reference.problem
    ]


def references(manifest: Manifest, manifests: Manifests, given: Given) -> Iterator[Reference]:
    """Every reference of an object, those that lead nowhere included. A reference marked `optional` is left out."""
    search = _Search(manifest, manifests, given)
    for pod in manifest.pods:
        yield from search.pod(pod)
    yield from search.object()


def selected(selector: Mapping[str, str], manifests: Manifests, given: Given | None = None) -> list[Pod]:
    """The pod templates whose labels match, with the labels that operators add."""
    return selected_by({"matchLabels": selector}, manifests, given)


def selected_by(selector: Mapping[str, Any], manifests: Manifests, given: Given | None = None) -> list[Pod]:
    """The pod templates that a label selector (`matchLabels`, `matchExpressions`) chooses; an empty one chooses all."""
    return [
        pod
        for pod in manifests.pods()
        if _matches(selector, {**pod.labels, **(given.operator_labels(pod) if given else {})})
    ]


def _matches(selector: Mapping[str, Any], labels: Mapping[str, str | None]) -> bool:
    """Whether labels match; a label whose value only the cluster knows (None) matches every value."""
    for name, value in (selector.get("matchLabels") or {}).items():
        if name not in labels or labels[name] not in (value, None):
            return False
    for expression in selector.get("matchExpressions") or []:
        name, values = expression["key"], expression.get("values") or []
        there = name in labels
        known = labels.get(name)
        match expression["operator"]:
            case "In":
                holds = there and (known is None or known in values)
            case "NotIn":
                holds = not there or known is None or known not in values
            case "Exists":
                holds = there
            case _:
                holds = not there
        if not holds:
            return False
    return True


class _Search:
    """The references of one object.

    Args:
        manifest: the object.
        manifests: what it was rendered with.
        given: what else exists.
    """

    def __init__(self, manifest: Manifest, manifests: Manifests, given: Given) -> None:
        self.manifest = manifest
        self.manifests = manifests
        self.given = given

    def _reference(self, path: str, targets: Sequence[str], problem: str = "") -> Reference:
        return Reference(self.manifest, path, tuple(dict.fromkeys(targets)), problem)

    def _named(self, path: str, kind: str, name: str, keys: Collection[str] = ()) -> Iterator[Reference]:
        """One named object, and keys of it: a reference for the object and one more for each key that it lacks."""
        target = f"{kind}/{name}"
        known = self._keys(kind, name)
        if known is _ABSENT:
            yield self._reference(path, [target], f"there is no {kind} {name}")
            return
        yield self._reference(path, [target])
        if known is not None:
            for key in keys:
                if key not in known:
                    yield self._reference(path, [target], f"the {kind} {name} has no key {key} (it has {_list(known)})")

    def _keys(self, kind: str, name: str) -> Collection[str] | None:
        """Keys of a Secret or ConfigMap, None where they are not known (or the kind has none), `_ABSENT` without it."""
        found = self.manifests.find(kind, name)
        if found is not None:
            if kind not in ("Secret", "ConfigMap"):
                return None
            return {key for part in ("data", "stringData", "binaryData") for key in found.at(part) or {}}
        outside = {"Secret": self.given.secrets, "ConfigMap": self.given.config_maps}.get(kind, {})
        if name in outside:
            return outside[name]
        if kind == "Secret" and any(
            certificate.at("spec.secretName") == name for certificate in self.manifests.by_kind("Certificate")
        ):
            return _CERTIFICATE_KEYS
        exists = (
            f"{kind}/{name}" in self.given.objects
            or f"{kind}/{name}" in _EVERYWHERE
            or (kind == "ServiceAccount" and name in self.given.service_accounts)
            or (kind == "Service" and name in self.given.operator_services)
        )
        return None if exists else _ABSENT

    def _selecting(self, path: str, selector: Mapping[str, Any]) -> Iterator[Reference]:
        """Pods that a label selector has to choose; an empty selector chooses all, and is not followed."""
        if not selector.get("matchLabels") and not selector.get("matchExpressions"):
            return
        pods = selected_by(selector, self.manifests, self.given)
        if not pods and not any(_matches(selector, labels) for labels in self.given.pods):
            yield self._reference(path, [], f"no pod carries {_selector(selector)}")
        else:
            yield self._reference(path, [pod.owner.id for pod in pods])

    def _service(self, path: str, name: str, port: int | str | None = None) -> Iterator[Reference]:
        """A Service and, by number or name, a port of it."""
        target = f"Service/{name}"
        service = self.manifests.find("Service", name)
        if service is None:
            yield from self._named(path, "Service", name)
            numbers = self.given.operator_services.get(name)
            if isinstance(port, int) and numbers is not None and port not in numbers:
                yield self._reference(path, [target], f"the Service {name} has no port {port}")
            return
        yield self._reference(path, [target])
        ports = service.at("spec.ports") or []
        known = {value for entry in ports for value in (entry.get("name"), entry["port"])} - {None}
        if port is not None and port not in known:
            has = _list({str(value) for value in known})
            yield self._reference(path, [target], f"the Service {name} has no port {port} (it has {has})")

    def _host(self, path: str, host: str, port: int | str | None = None) -> Iterator[Reference]:
        """A Service by its DNS name; one of another namespace, or of no cluster, is not for this chart to know."""
        name, _, rest = host.partition(".")
        namespace = rest.partition(".svc")[0] if rest else ""
        if host.startswith("*") or (rest and (".svc" not in f".{rest}" or self._elsewhere(namespace))):
            return
        yield from self._service(path, name, port)

    def _elsewhere(self, namespace: str | None) -> bool:
        """Whether a namespace is another than the object's own; an object that names none may be in any."""
        own = self.manifest.namespace
        return bool(namespace) and own is not None and namespace != own

    # Pods and containers.

    def pod(self, pod: Pod) -> Iterator[Reference]:
        path = f"{pod.path}.spec" if pod.path else "spec"
        spec = pod.spec
        yield from self._named(
            f"{path}.serviceAccountName", "ServiceAccount", spec.get("serviceAccountName") or "default"
        )
        for index, secret in enumerate(spec.get("imagePullSecrets") or []):
            yield from self._named(f"{path}.imagePullSecrets[{index}]", "Secret", secret["name"])
        for key, kind in (("priorityClassName", "PriorityClass"), ("runtimeClassName", "RuntimeClass")):
            if spec.get(key):
                yield from self._named(f"{path}.{key}", kind, spec[key])
        for index, claim in enumerate(spec.get("resourceClaims") or []):
            if claim.get("resourceClaimName"):
                yield from self._named(f"{path}.resourceClaims[{index}]", "ResourceClaim", claim["resourceClaimName"])
        for volume in spec.get("volumes") or []:
            for part, kind, name, keys in _volume_references(volume):
                yield from self._named(f"{path}.volumes[{volume['name']}].{part}", kind, name, keys)
        mounted = set()
        for container in pod.containers:
            mounts = container.spec.get("volumeMounts") or []
            devices = container.spec.get("volumeDevices") or []
            mounted |= {mount["name"] for mount in (*mounts, *devices)}
            yield from self._container(container, f"{path}.{container.path}")
        for name in sorted(pod.volumes.keys() - mounted):
            claim_template = "volumeClaimTemplate" in pod.volumes[name]
            where = "spec.volumeClaimTemplates" if claim_template else f"{path}.volumes[{name}]"
            yield self._reference(where, [], f"no container mounts the volume {name}")

    def _container(self, container: Container, path: str) -> Iterator[Reference]:
        spec = container.spec
        for mount in (*(spec.get("volumeMounts") or []), *(spec.get("volumeDevices") or [])):
            volume = container.pod.volumes.get(mount["name"])
            where = f"{path}.{'volumeMounts' if 'mountPath' in mount else 'volumeDevices'}[{mount['name']}]"
            if volume is None:
                problem = f"it mounts the volume {mount['name']}, which the pod does not have"
                yield self._reference(where, [], problem)
            elif mount.get("subPath"):
                yield from self._sub_path(where, volume, mount["subPath"])
        before: set[str] = set()
        for name, variable in container.env.items():
            source = variable.get("valueFrom") or {}
            for key, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
                if key in source and not source[key].get("optional"):
                    where = f"{path}.env[{name}].valueFrom.{key}"
                    yield from self._named(where, kind, source[key]["name"], [source[key]["key"]])
            if not spec.get("envFrom"):
                for used in _VARIABLE.findall(str(variable.get("value", ""))):
                    if used not in before:
                        problem = f"it uses $({used}), which is not set before it"
                        yield self._reference(f"{path}.env[{name}].value", [], problem)
            before.add(name)
        for index, source in enumerate(spec.get("envFrom") or []):
            for key, kind in (("secretRef", "Secret"), ("configMapRef", "ConfigMap")):
                if key in source and not source[key].get("optional"):
                    yield from self._named(f"{path}.envFrom[{index}].{key}", kind, source[key]["name"])
        lifecycle = spec.get("lifecycle") or {}
        handlers = {key: spec.get(key) for key in ("livenessProbe", "readinessProbe", "startupProbe")}
        handlers |= {f"lifecycle.{key}": lifecycle.get(key) for key in ("preStop", "postStart")}
        for key, handler in handlers.items():
            for kind in ("httpGet", "tcpSocket"):
                port = ((handler or {}).get(kind) or {}).get("port")
                if isinstance(port, str) and port not in container.ports:
                    problem = f"it has no port named {port} (it has {_list(container.ports)})"
                    yield self._reference(f"{path}.{key}.{kind}.port", [], problem)

    def _sub_path(self, path: str, volume: Mapping[str, Any], sub_path: str) -> Iterator[Reference]:
        """A file of a mounted Secret or ConfigMap; an absent one is mounted as an empty folder."""
        for key, kind, name_key in (("secret", "Secret", "secretName"), ("configMap", "ConfigMap", "name")):
            source = volume.get(key)
            if not source or source.get("optional"):
                continue
            name = source[name_key]
            if source.get("items"):
                if sub_path not in {item["path"] for item in source["items"]}:
                    problem = f"the volume's items have no path {sub_path}"
                    yield self._reference(f"{path}.subPath", [f"{kind}/{name}"], problem)
            elif self._keys(kind, name) is not _ABSENT:
                yield from self._named(f"{path}.subPath", kind, name, [sub_path])

    # Objects.

    def object(self) -> Iterator[Reference]:
        manifest = self.manifest
        kind = manifest.kind
        if kind in ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet"):
            yield from self._workload()
        elif kind == "PersistentVolumeClaim":
            yield from self._claim("spec", manifest.at("spec") or {})
        elif kind == "ServiceAccount":
            for key in ("imagePullSecrets", "secrets"):
                for index, secret in enumerate(manifest.get(key) or []):
                    yield from self._named(f"{key}[{index}]", "Secret", secret["name"])
        elif kind == "Service":
            yield from self._of_service()
        elif kind == "HorizontalPodAutoscaler":
            yield from self._target("spec.scaleTargetRef", "", "v1")
        elif kind == "ScaledObject":
            yield from self._target("spec.scaleTargetRef", "Deployment", "apps/v1")
            for index, trigger in enumerate(manifest.at("spec.triggers") or []):
                if named := trigger.get("authenticationRef"):
                    yield from self._named(
                        f"spec.triggers[{index}].authenticationRef",
                        named.get("kind", "TriggerAuthentication"),
                        named["name"],
                    )
        elif kind in ("TriggerAuthentication", "ClusterTriggerAuthentication"):
            for index, source in enumerate(manifest.at("spec.secretTargetRef") or []):
                yield from self._named(f"spec.secretTargetRef[{index}]", "Secret", source["name"], [source["key"]])
        elif kind == "PodDisruptionBudget":
            yield from self._selecting("spec.selector", manifest.at("spec.selector") or {})
        elif kind == "NetworkPolicy":
            yield from self._network_policy()
        elif kind in ("RoleBinding", "ClusterRoleBinding"):
            yield from self._binding()
        elif kind == "Ingress":
            yield from self._ingress()
        elif kind in _ROUTES:
            yield from self._route()
        elif kind == "ServiceMonitor":
            yield from self._service_monitor()
        elif kind == "PodMonitor":
            yield from self._pod_monitor()
        elif kind == "VirtualService":
            yield from self._virtual_service()
        elif kind == "DestinationRule":
            yield from self._destination_rule()
        elif kind == "Gateway":
            yield from self._gateway()
        elif kind == "Certificate":
            issuer = manifest.at("spec.issuerRef") or {}
            yield from self._named("spec.issuerRef", issuer.get("kind", "Issuer"), issuer["name"])
        elif kind in ("ValidatingWebhookConfiguration", "MutatingWebhookConfiguration"):
            for index, webhook in enumerate(manifest.get("webhooks") or []):
                service = (webhook.get("clientConfig") or {}).get("service")
                if service and not self._elsewhere(service.get("namespace")):
                    where = f"webhooks[{index}].clientConfig.service"
                    yield from self._service(where, service["name"], service.get("port", 443))

    def _workload(self) -> Iterator[Reference]:
        manifest = self.manifest
        labels = manifest.pods[0].labels
        for name, value in (manifest.at("spec.selector.matchLabels") or {}).items():
            if labels.get(name) != value:
                yield self._reference("spec.selector", [], f"its own pods do not carry {name}={value}")
        if manifest.kind != "StatefulSet":
            return
        if service := manifest.at("spec.serviceName"):
            yield from self._service("spec.serviceName", service)
        for index, claim in enumerate(manifest.at("spec.volumeClaimTemplates") or []):
            yield from self._claim(f"spec.volumeClaimTemplates[{index}].spec", claim.get("spec") or {})

    def _claim(self, path: str, spec: Mapping[str, Any]) -> Iterator[Reference]:
        # An empty name asks for a volume without a class.
        if spec.get("storageClassName"):
            yield from self._named(f"{path}.storageClassName", "StorageClass", spec["storageClassName"])

    def _of_service(self) -> Iterator[Reference]:
        selector = self.manifest.at("spec.selector") or {}
        if not selector:
            return
        yield from self._selecting("spec.selector", {"matchLabels": selector})
        pods = selected(selector, self.manifests, self.given)
        for owner in sorted({pod.owner.id for pod in pods if pod.owner.kind in ("Job", "CronJob")}):
            yield self._reference("spec.selector", [owner], f"it also selects the pods of {owner}")
        for index, port in enumerate(self.manifest.at("spec.ports") or []):
            target = port.get("targetPort", port["port"])
            where = f"spec.ports[{port.get('name', index)}]"
            for pod in pods:
                named = _ports(pod)
                if isinstance(target, str) and target not in named:
                    problem = f"{pod.id} has no port named {target} (it has {_list(named)})"
                    yield self._reference(where, [pod.owner.id], problem)
                elif isinstance(target, int) and named and target not in named.values():
                    yield self._reference(where, [pod.owner.id], f"{pod.id} does not declare the port {target}")

    def _target(self, path: str, kind: str, version: str) -> Iterator[Reference]:
        """What is scaled: an object with pods, by its API version; `kind` and `version` where none is named."""
        target = self.manifest.at(path) or {}
        kind, name, version = target.get("kind", kind), target.get("name", ""), target.get("apiVersion", version)
        found = self.manifests.find(kind, name)
        if found is not None and not found.pods:
            yield self._reference(path, [], f"the {kind} {name} has no pods")
        elif found is not None and version != found.api_version:
            yield self._reference(f"{path}.apiVersion", [], f"the {kind} {name} is of {found.api_version}")
        else:
            yield from self._named(path, kind, name)

    def _network_policy(self) -> Iterator[Reference]:
        policy = self.manifest
        yield from self._selecting("spec.podSelector", policy.at("spec.podSelector") or {})
        own = selected_by(policy.at("spec.podSelector") or {}, self.manifests, self.given)
        for direction, side in (("ingress", "from"), ("egress", "to")):
            for index, rule in enumerate(policy.at(f"spec.{direction}") or []):
                path = f"spec.{direction}[{index}]"
                peers = rule.get(side) or []
                far: list[Pod] = []
                for number, peer in enumerate(peers):
                    # With a namespaceSelector the pods are those of other releases too.
                    if "podSelector" in peer and "namespaceSelector" not in peer:
                        yield from self._selecting(f"{path}.{side}[{number}].podSelector", peer["podSelector"])
                        far += selected_by(peer["podSelector"], self.manifests, self.given)
                for number, port in enumerate(rule.get("ports") or []):
                    name = port.get("port")
                    pods = own if direction == "ingress" else far
                    if isinstance(name, str) and pods and not any(name in _ports(pod) for pod in pods):
                        problem = f"none of the pods it is about has a port named {name}"
                        yield self._reference(f"{path}.ports[{number}]", [], problem)

    def _binding(self) -> Iterator[Reference]:
        role = self.manifest["roleRef"]
        group = "rbac.authorization.k8s.io"
        if role["kind"] not in ("Role", "ClusterRole"):
            yield self._reference("roleRef.kind", [], f"a {role['kind']} is no role")
        elif role.get("apiGroup", group) != group:
            yield self._reference("roleRef.apiGroup", [], f"roles are of {group}")
        else:
            yield from self._named("roleRef", role["kind"], role["name"])
        for index, subject in enumerate(self.manifest.get("subjects") or []):
            if subject["kind"] not in ("ServiceAccount", "User", "Group"):
                problem = f"a {subject['kind']} has no rights"
                yield self._reference(f"subjects[{index}].kind", [], problem)
            elif subject["kind"] == "ServiceAccount" and not subject.get("namespace"):
                yield self._reference(f"subjects[{index}].namespace", [], "an account is of a namespace, also here")
            elif subject["kind"] == "ServiceAccount" and not self._elsewhere(subject.get("namespace")):
                yield from self._named(f"subjects[{index}]", "ServiceAccount", subject["name"])

    def _ingress(self) -> Iterator[Reference]:
        manifest = self.manifest
        backends = [("spec.defaultBackend", manifest.at("spec.defaultBackend") or {})]
        for number, rule in enumerate(manifest.at("spec.rules") or []):
            for index, entry in enumerate((rule.get("http") or {}).get("paths") or []):
                backends.append((f"spec.rules[{number}].http.paths[{index}].backend", entry["backend"]))
        for path, backend in backends:
            if service := backend.get("service"):
                port = service.get("port") or {}
                yield from self._service(f"{path}.service", service["name"], port.get("name", port.get("number")))
        for index, tls in enumerate(manifest.at("spec.tls") or []):
            if tls.get("secretName"):
                yield from self._named(f"spec.tls[{index}]", "Secret", tls["secretName"], ["tls.crt", "tls.key"])
        if manifest.at("spec.ingressClassName"):
            yield from self._named("spec.ingressClassName", "IngressClass", manifest["spec"]["ingressClassName"])

    def _route(self) -> Iterator[Reference]:
        for index, parent in enumerate(self.manifest.at("spec.parentRefs") or []):
            if not self._elsewhere(parent.get("namespace")):
                yield from self._named(f"spec.parentRefs[{index}]", parent.get("kind", "Gateway"), parent["name"])
        for number, rule in enumerate(self.manifest.at("spec.rules") or []):
            path = f"spec.rules[{number}]"
            backends = [(f"{path}.backendRefs[{i}]", ref) for i, ref in enumerate(rule.get("backendRefs") or [])]
            for index, rule_filter in enumerate(rule.get("filters") or []):
                if mirror := rule_filter.get("requestMirror"):
                    backends.append((f"{path}.filters[{index}].requestMirror.backendRef", mirror["backendRef"]))
            for where, backend in backends:
                if backend.get("kind", "Service") == "Service" and not self._elsewhere(backend.get("namespace")):
                    yield from self._service(where, backend["name"], backend.get("port"))

    def _monitored_elsewhere(self) -> bool:
        """Whether a monitor looks into other namespaces than its own."""
        selector = self.manifest.at("spec.namespaceSelector") or {}
        names = selector.get("matchNames") or []
        return bool(selector.get("any")) or (bool(names) and all(self._elsewhere(name) for name in names))

    def _service_monitor(self) -> Iterator[Reference]:
        if self._monitored_elsewhere():
            return
        selector = self.manifest.at("spec.selector") or {}
        services = self.manifests.by_kind("Service").where(lambda service: _matches(selector, service.labels))
        if not services:
            yield self._reference("spec.selector", [], f"no Service carries {_selector(selector)}")
            return
        yield self._reference("spec.selector", [service.id for service in services])
        for index, endpoint in enumerate(self.manifest.at("spec.endpoints") or []):
            name = endpoint.get("port")
            known = {port.get("name", "") for service in services for port in service.at("spec.ports") or []}
            if name is not None and name not in known:
                where = f"spec.endpoints[{index}].port"
                problem = f"no Service that it selects has a port named {name} (they have {_list(known)})"
                yield self._reference(where, [service.id for service in services], problem)

    def _pod_monitor(self) -> Iterator[Reference]:
        if self._monitored_elsewhere():
            return
        selector = self.manifest.at("spec.selector") or {}
        yield from self._selecting("spec.selector", selector)
        pods = selected_by(selector, self.manifests, self.given)
        known = {name for pod in pods for name in _ports(pod)}
        for index, endpoint in enumerate(self.manifest.at("spec.podMetricsEndpoints") or []):
            name = endpoint.get("port")
            if pods and name is not None and name not in known:
                where = f"spec.podMetricsEndpoints[{index}].port"
                problem = f"no pod that it selects has a port named {name} (they have {_list(known)})"
                yield self._reference(where, [pod.owner.id for pod in pods], problem)

    def _virtual_service(self) -> Iterator[Reference]:
        for index, gateway in enumerate(self.manifest.at("spec.gateways") or []):
            namespace, _, name = gateway.rpartition("/")
            if gateway != "mesh" and not self._elsewhere(namespace):
                yield from self._named(f"spec.gateways[{index}]", "Gateway", name)
        for protocol in ("http", "tls", "tcp"):
            for number, rule in enumerate(self.manifest.at(f"spec.{protocol}") or []):
                path = f"spec.{protocol}[{number}]"
                routes = [
                    (f"{path}.route[{index}].destination", route["destination"])
                    for index, route in enumerate(rule.get("route") or [])
                ]
                if rule.get("mirror"):
                    routes.append((f"{path}.mirror", rule["mirror"]))
                for index, mirror in enumerate(rule.get("mirrors") or []):
                    routes.append((f"{path}.mirrors[{index}].destination", mirror["destination"]))
                for where, destination in routes:
                    yield from self._destination(where, destination)

    def _destination(self, path: str, destination: Mapping[str, Any]) -> Iterator[Reference]:
        host = destination["host"]
        yield from self._host(path, host, (destination.get("port") or {}).get("number"))
        subset = destination.get("subset")
        if subset is None:
            return
        name = host.partition(".")[0]
        rules = self.manifests.by_kind("DestinationRule").where(
            lambda rule: str(rule.at("spec.host", "")).partition(".")[0] == name
        )
        known = {entry["name"] for rule in rules for entry in rule.at("spec.subsets") or []}
        problem = "" if subset in known else f"no DestinationRule of {host} has the subset {subset} ({_list(known)})"
        yield self._reference(f"{path}.subset", [rule.id for rule in rules], problem)

    def _destination_rule(self) -> Iterator[Reference]:
        host = str(self.manifest.at("spec.host", ""))
        yield from self._host("spec.host", host)
        service = self.manifests.find("Service", host.partition(".")[0])
        selector = (service.at("spec.selector") or {}) if service is not None else {}
        for index, subset in enumerate(self.manifest.at("spec.subsets") or []):
            labels = {**selector, **(subset.get("labels") or {})}
            yield from self._selecting(f"spec.subsets[{index}].labels", {"matchLabels": labels})

    def _gateway(self) -> Iterator[Reference]:
        if self.manifest.api_version.startswith("gateway.networking.k8s.io/"):
            if name := self.manifest.at("spec.gatewayClassName"):
                yield from self._named("spec.gatewayClassName", "GatewayClass", name)
            for number, listener in enumerate(self.manifest.at("spec.listeners") or []):
                for index, secret in enumerate((listener.get("tls") or {}).get("certificateRefs") or []):
                    if secret.get("kind", "Secret") == "Secret" and not self._elsewhere(secret.get("namespace")):
                        where = f"spec.listeners[{number}].tls.certificateRefs[{index}]"
                        yield from self._named(where, "Secret", secret["name"], ["tls.crt", "tls.key"])
            return
        yield from self._selecting("spec.selector", {"matchLabels": self.manifest.at("spec.selector") or {}})
        for index, server in enumerate(self.manifest.at("spec.servers") or []):
            if name := (server.get("tls") or {}).get("credentialName"):
                yield from self._named(f"spec.servers[{index}].tls.credentialName", "Secret", name)


_ABSENT: Collection[str] = ("",)
"""Stands for the keys of an object that does not exist; compared by identity."""


def _volume_references(volume: Mapping[str, Any]) -> Iterator[tuple[str, str, str, list[str]]]:
    """Path below the volume, kind, name, and the keys asked for."""
    if "secret" in volume and not volume["secret"].get("optional"):
        source = volume["secret"]
        yield "secret", "Secret", source["secretName"], [item["key"] for item in source.get("items") or []]
    if "configMap" in volume and not volume["configMap"].get("optional"):
        source = volume["configMap"]
        yield "configMap", "ConfigMap", source["name"], [item["key"] for item in source.get("items") or []]
    if "persistentVolumeClaim" in volume:
        yield "persistentVolumeClaim", "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"], []
    storage_class = (((volume.get("ephemeral") or {}).get("volumeClaimTemplate") or {}).get("spec") or {}).get(
        "storageClassName"
    )
    if storage_class:
        yield "ephemeral.volumeClaimTemplate.spec.storageClassName", "StorageClass", storage_class, []
    for index, source in enumerate((volume.get("projected") or {}).get("sources") or []):
        for key, kind in (("secret", "Secret"), ("configMap", "ConfigMap")):
            if key in source and not source[key].get("optional"):
                keys = [item["key"] for item in source[key].get("items") or []]
                yield f"projected.sources[{index}].{key}", kind, source[key]["name"], keys


def _ports(pod: Pod) -> dict[str, int]:
    """Named ports of a pod."""
    return {name: number for container in pod.containers for name, number in container.ports.items()}


def _list(names: Collection[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _selector(selector: Mapping[str, Any]) -> str:
    parts = [f"{name}={value}" for name, value in sorted((selector.get("matchLabels") or {}).items())]
    for expression in selector.get("matchExpressions") or []:
        values = f" ({', '.join(expression['values'])})" if expression.get("values") else ""
        parts.append(f"{expression['key']} {expression['operator']}{values}")
    return ", ".join(parts) or "anything"
