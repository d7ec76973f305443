"""Who may talk to whom, on which ports: NetworkPolicies evaluated as a cluster's network does.

    network = Network(manifests, outside=[Endpoint("internet", address="203.0.113.1")])
    network.permitted(api, database)     # (Ports("TCP", 5432, 5432),)
    network.matrix()                     # {("api", "database"): (Ports(...),), ...}

A connection is permitted when the policies of its source permit it as egress and those of its target as ingress. A pod
that no policy selects for a direction may do anything in that direction. What policies cannot forbid is not modelled:
the kubelet's probes, a pod's connections to itself, and traffic of pods on the host's network.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from chart_harness.objects import Container, Manifest, Manifests, Pod

NAME_OF_NAMESPACE = "kubernetes.io/metadata.name"
"""Label by which every namespace carries its own name."""


class Ports(NamedTuple):
    """Consecutive ports of one protocol.

    Attributes:
        protocol: TCP, UDP or SCTP.
        first: the lowest port.
        last: the highest port, included.
    """

    protocol: str
    first: int
    last: int

    def __str__(self) -> str:
        number = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        return number if self.protocol == "TCP" else f"{number}/{self.protocol}"


EVERY_PORT = tuple(Ports(protocol, 1, 65535) for protocol in ("SCTP", "TCP", "UDP"))


def written(ports: Sequence[Ports]) -> str:
    """Ports in words: `5432`, `53, 53/UDP`, `any`; empty for none."""
    return "any" if tuple(ports) == EVERY_PORT else ", ".join(map(str, sorted(ports, key=lambda p: (p.first, p))))


class Address(NamedTuple):
    """What a container is told to connect to.

    Attributes:
        variable: environment variable that says so.
        host: host name or IP address.
        port: port, None when neither the variable nor the scheme says it.
    """

    variable: str
    host: str
    port: int | None


_SCHEME_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "amqp": 5672, "amqps": 5671, "redis": 6379}


_LOOPBACK = re.compile(r"localhost|127\..*|::1")


def addresses(container: Container) -> list[Address]:
    """Addresses in a container's environment: `X_HOST` with `X_PORT`, and URLs (but `s3:`, which names a bucket).

    The pod itself is left out: no policy stands between it and its loopback address.
    """
    values = {name: str(entry["value"]) for name, entry in container.env.items() if "value" in entry}
    found: list[Address] = []
    for name, value in values.items():
        if name.endswith("_HOST") and value:
            port = values.get(name.removesuffix("_HOST") + "_PORT", "")
            found.append(Address(name, value, int(port) if port.isdigit() else None))
        elif "://" in value and not value.startswith("s3:"):
            url = urlsplit(value)
            if url.hostname and not url.hostname.startswith("$"):
                found.append(Address(name, url.hostname, url.port or _SCHEME_PORTS.get(url.scheme.partition("+")[0])))
    return [address for address in found if not _LOOPBACK.fullmatch(address.host)]


@dataclass(frozen=True)
class Endpoint:
    """What a connection starts or ends at.

    Attributes:
        name: unique name in the matrix; pods of one name have to be treated alike.
        namespace: labels of its namespace; None for what is not a pod.
        labels: labels of the pod.
        address: IP address of what is not a pod, for `ipBlock`. A pod's address is not known before it runs, so an
            `ipBlock` is taken not to match it.
        ports: named ports -> numbers.
    """

    name: str
    namespace: Mapping[str, str] | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    address: str = ""
    ports: Mapping[str, int] = field(default_factory=dict)


class Network:
    """The pods of a rendering, what is around them, and the policies between them.

    Args:
        manifests: objects of one release, NetworkPolicies among them; all in one namespace.
        outside: endpoints beside the pods of the release.
        name: name of a pod's endpoint; the object that owns the pod by default.
        labels: labels that operators add to a pod.

    Attributes:
        pods: endpoints of the release, each name once.
        outside: endpoints beside them.
        policies: the NetworkPolicies.
    """

    def __init__(
        self,
        manifests: Manifests,
        outside: Sequence[Endpoint] = (),
        *,
        name: Callable[[Pod], str] = lambda pod: pod.owner.name,
        labels: Callable[[Pod], Mapping[str, str]] = lambda pod: {},
    ) -> None:
        self.policies = manifests.by_kind("NetworkPolicy")
        self.outside = tuple(outside)
        found = [_endpoint(pod, name(pod), labels(pod)) for pod in manifests.pods()]
        self._alike: dict[str, list[Endpoint]] = {}
        for endpoint in (*found, *self.outside):
            self._alike.setdefault(endpoint.name, []).append(endpoint)
        self.pods = tuple({endpoint.name: endpoint for endpoint in reversed(found)}.values())[::-1]
        self._governing: dict[tuple[int, str], list[Manifest]] = {}

    def matrix(self) -> dict[tuple[str, str], tuple[Ports, ...]]:
        """(source, target) -> the ports permitted between them; a pair without any is left out.

        Between two endpoints outside the release nothing is said.

        Raises:
            ValueError: pods of one name are treated differently.
        """
        cells: dict[tuple[str, str], tuple[Ports, ...]] = {}
        release = {endpoint.name for endpoint in self.pods}
        for source, sources in self._alike.items():
            for target, targets in self._alike.items():
                if not {source, target} & release:
                    continue
                different = {self.permitted(one, other) for one in sources for other in targets}
                if len(different) > 1:
                    raise ValueError(f"the pods called {source} and {target} do not have the same permissions")
                if ports := different.pop():
                    cells[source, target] = ports
        return cells

    def permitted(self, source: Endpoint, target: Endpoint) -> tuple[Ports, ...]:
        """The ports of the target that the source may connect to."""
        out = self._one_way("Egress", source, target, target)
        into = self._one_way("Ingress", target, source, target)
        return _merged(
            Ports(one.protocol, max(one.first, other.first), min(one.last, other.last))
            for one in out
            for other in into
            if one.protocol == other.protocol and max(one.first, other.first) <= min(one.last, other.last)
        )

    def _one_way(self, direction: str, subject: Endpoint, peer: Endpoint, target: Endpoint) -> tuple[Ports, ...]:
        """Ports that the policies of `subject` permit to or from `peer`; named ports are those of `target`."""
        if subject.namespace is None:
            return EVERY_PORT  # no policy of the cluster governs what is outside of it
        # By identity: an endpoint has labels, which have no hash, and every pair of endpoints asks.
        key = (id(subject), direction)
        if key not in self._governing:
            self._governing[key] = [policy for policy in self.policies if _governs(policy, direction, subject)]
        policies = self._governing[key]
        if not policies:
            return EVERY_PORT
        found: list[Ports] = []
        for policy in policies:
            for rule in policy.at(f"spec.{direction.lower()}") or []:
                peers = rule.get("from" if direction == "Ingress" else "to")
                if not peers or any(_matches(entry, peer, policy) for entry in peers):
                    found += _ports(rule.get("ports"), target)
        return _merged(found)


def _endpoint(pod: Pod, name: str, labels: Mapping[str, str]) -> Endpoint:
    ports = {name: number for container in pod.containers for name, number in container.ports.items()}
    return Endpoint(name, {NAME_OF_NAMESPACE: pod.owner.namespace or ""}, {**pod.labels, **labels}, ports=ports)


def _governs(policy: Manifest, direction: str, endpoint: Endpoint) -> bool:
    types = policy.at("spec.policyTypes") or ["Ingress", *(["Egress"] if policy.at("spec.egress") else [])]
    same_namespace = (endpoint.namespace or {}).get(NAME_OF_NAMESPACE) == (policy.namespace or "")
    return direction in types and same_namespace and selects(policy.at("spec.podSelector", {}), endpoint.labels)


def _matches(peer: Mapping[str, Any], endpoint: Endpoint, policy: Manifest) -> bool:
    """Whether an entry of `from` or `to` means an endpoint."""
    if "ipBlock" in peer:
        block = peer["ipBlock"]
        if endpoint.namespace is not None or not endpoint.address:
            return False
        address = ip_address(endpoint.address)
        return address in ip_network(block["cidr"]) and not any(
            address in ip_network(part) for part in block.get("except") or []
        )
    if endpoint.namespace is None:
        return False
    if "namespaceSelector" in peer:
        near = selects(peer["namespaceSelector"] or {}, endpoint.namespace)
    else:
        near = endpoint.namespace.get(NAME_OF_NAMESPACE) == (policy.namespace or "")
    return near and selects(peer.get("podSelector") or {}, endpoint.labels)


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a label selector (`matchLabels`, `matchExpressions`) selects an object with these labels."""
    for name, value in (selector.get("matchLabels") or {}).items():
        if labels.get(name) != value:
            return False
    for expression in selector.get("matchExpressions") or []:
        value, values = labels.get(expression["key"]), expression.get("values") or []
        fits = {
            "In": value in values,
            "NotIn": value not in values,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }
        if not fits[expression["operator"]]:
            return False
    return True


def _ports(entries: Sequence[Mapping[str, Any]] | None, target: Endpoint) -> Iterator[Ports]:
    if not entries:
        yield from EVERY_PORT
    for entry in entries or []:
        protocol, port = entry.get("protocol", "TCP"), entry.get("port")
        if isinstance(port, str):
            port = target.ports.get(port, 0)
            if not port:
                continue  # a target without a port of that name has nothing that could be meant
        yield Ports(protocol, port or 1, entry.get("endPort") or port or 65535)


def _merged(ports: Iterable[Ports]) -> tuple[Ports, ...]:
    """The same ports in order, what overlaps or touches made one."""
    result: list[Ports] = []
    for entry in sorted(set(ports)):
        last = result[-1] if result else None
        if last and last.protocol == entry.protocol and entry.first <= last.last + 1:
            result[-1] = Ports(last.protocol, last.first, max(last.last, entry.last))
        else:
            result.append(entry)
    return tuple(result)
