"""Who may talk to whom: what the services need, what `docs/network.md` says, and nothing more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from chart_harness import Given, Manifest, Manifests
from chart_harness.network import EVERY_PORT, NAME_OF_NAMESPACE, Endpoint, Network, Ports, addresses, written
from chart_harness.objects import load_yaml
from ci import paths

FLOWS = Path(__file__).with_name("flows.yaml")
DOCUMENT = paths.REPOSITORY / "docs" / "network.md"
DOCUMENTED = ("defaults", "production")
INTERNET = "host outside the cluster"


def pod_of(name: str, namespace: str, **labels: str) -> Endpoint:
    """A pod that is not of the release."""
    return Endpoint(name, {NAME_OF_NAMESPACE: namespace}, labels)


OUTSIDE = (
    pod_of("other pod", "elsewhere"),
    pod_of("gateway", "istio-system", app="istio-ingressgateway"),
    pod_of("Prometheus", "monitoring", app="prometheus"),
    pod_of("KubeRay operator", "ray-operator", **{"app.kubernetes.io/name": "kuberay-operator"}),
    pod_of("cluster DNS", "kube-system", **{"k8s-app": "kube-dns"}),
    Endpoint("DNS cache of the node", address="169.254.20.10"),
    Endpoint(INTERNET, address="203.0.113.1"),
)
"""Who is around a release."""

OUTSIDE_NAMES = frozenset(endpoint.name for endpoint in OUTSIDE)

Cell = tuple[str, str, str]
"""Source, target, port."""
GivenTo = Callable[[Manifest], Given]


def network_of(manifests: Manifests) -> Network:
    """The network of a rendering, pods called by their label `app`."""
    return Network(manifests, OUTSIDE, name=lambda pod: pod.labels["app"])


def single(ports: tuple[Ports, ...]) -> Iterator[str]:
    """Ports one by one, as a flow names them."""
    if ports == EVERY_PORT:
        yield "any"
        return
    for entry in ports:
        for number in range(entry.first, entry.last + 1):
            yield str(Ports(entry.protocol, number, number))


def permitted(manifests: Manifests) -> set[Cell]:
    """Every permitted flow of a rendering."""
    return {
        (source, target, port)
        for (source, target), ports in network_of(manifests).matrix().items()
        for port in single(ports)
    }


def needed(manifests: Manifests, given: Given) -> dict[Cell, str]:
    """Flows that environment variables name -> the first variable that does."""
    flows: dict[Cell, str] = {}
    for container in manifests.containers():
        source = container.pod.labels["app"]
        for variable, host, port in addresses(container):
            for target, number in targets(manifests, given, host, port):
                flows.setdefault((source, target, str(number)), f"{container.id}: {variable}={host}")
    return flows


def targets(manifests: Manifests, given: Given, host: str, port: int | None) -> Iterator[tuple[str, int]]:
    """Where a connection to a host and port ends: pods behind a Service with the port they listen on."""
    if "." in host:
        assert port, f"no port is known for {host}"
        yield INTERNET, port
        return
    if host in given.operator_services:
        owner = manifests.one("RayService", host.removesuffix("-serve-svc"))
        yield from {(pod.labels["app"], number) for pod in owner.pods for number in given.operator_services[host]}
        return
    service = manifests.one("Service", host)
    for entry in service.at("spec.ports"):
        if entry["port"] != port:
            continue
        for pod in manifests.pods():
            if service.at("spec.selector", {}).items() <= {**pod.labels, **given.operator_labels(pod)}.items():
                named = {name: number for container in pod.containers for name, number in container.ports.items()}
                target = entry.get("targetPort", port)
                yield pod.labels["app"], named[target] if isinstance(target, str) else target


@pytest.fixture(scope="module")
def listed() -> dict[Cell, str]:
    """Flows of flows.yaml -> why they are permitted."""
    flows: dict[Cell, str] = {}
    for entry in load_yaml(FLOWS.read_text()):
        for source in expanded(entry["from"]):
            for target in expanded(entry["to"]):
                flows |= {(source, target, str(port)): entry["why"] for port in entry["ports"]}
    return flows


def expanded(names: list[str]) -> list[str]:
    """Names of endpoints, `outside` replaced by all of them."""
    return [name for entry in names for name in (sorted(OUTSIDE_NAMES) if entry == "outside" else [entry])]


def asked_ports(values: Any) -> Iterator[str]:
    """Ports of the rules that values add."""
    if isinstance(values, dict):
        for key, value in values.items():
            if key in ("extraIngress", "extraEgress"):
                ports = (port for rule in value for port in rule["ports"])
                yield from (str(Ports(port["protocol"], port["port"], port["port"])) for port in ports)
            else:
                yield from asked_ports(value)


def policies_are_on(manifests: Manifests, scenario_values: Callable[[str], dict[str, Any]]) -> bool:
    """Whether the values ask for policies; the rendering has to agree."""
    values = scenario_values(manifests.scenario)
    on: bool = values.get("global", {}).get("networkPolicy", {}).get("enabled", True)
    assert bool(manifests.by_kind("NetworkPolicy")) is on
    return on


def test_every_pod_is_confined(manifests: Manifests, scenario_values: Callable[[str], dict[str, Any]]) -> None:
    """A pod that no policy selected could reach, and be reached by, whoever tries."""
    if policies_are_on(manifests, scenario_values):
        for (source, target), ports in network_of(manifests).matrix().items():
            assert ports != EVERY_PORT or (source, target) == ("ray-serve", "ray-serve"), f"{source} --> {target}: any"


def test_what_is_needed_is_permitted(
    manifests: Manifests, given: GivenTo, scenario_values: Callable[[str], dict[str, Any]]
) -> None:
    """Each address that a variable names is permitted by the policies of both ends."""
    policies_are_on(manifests, scenario_values)
    network = network_of(manifests).matrix()
    denied = [
        f"{source} --> {target}:{port} is denied ({why})"
        for (source, target, port), why in needed(manifests, given(manifests[0])).items()
        if not any(
            entry.protocol == "TCP" and entry.first <= int(port) <= entry.last
            for entry in network.get((source, target), ())
        )
    ]
    assert not denied, "\n".join(denied)


def test_nothing_more_is_permitted(
    manifests: Manifests,
    given: GivenTo,
    listed: Mapping[Cell, str],
    scenario_values: Callable[[str], dict[str, Any]],
) -> None:
    """Each permitted flow is named by a variable, or by flows.yaml with its reason."""
    if not policies_are_on(manifests, scenario_values):
        return
    used = set(needed(manifests, given(manifests[0])))
    # The address of a host outside is not known to a policy: its port is open towards whatever is not of the release.
    used |= {(source, name, port) for source, target, port in used if target == INTERNET for name in OUTSIDE_NAMES}
    asked = set(asked_ports(scenario_values(manifests.scenario)))
    more = {cell for cell in permitted(manifests) - used - listed.keys() if cell[2] not in asked}
    assert not more, "permitted, but neither named by a variable nor listed in flows.yaml:\n" + "\n".join(
        f"  {source} --> {target}: {port}" for source, target, port in sorted(more)
    )


def test_every_listed_flow_is_permitted_somewhere(renderings: list[Manifests], listed: Mapping[Cell, str]) -> None:
    confined = [manifests for manifests in renderings if manifests.by_kind("NetworkPolicy")]
    seen = set().union(*(permitted(manifests) for manifests in confined))
    # `outside` is a short form of many names, of which clients match some.
    stale = {cell for cell in listed.keys() - seen if not {cell[0], cell[1]} & OUTSIDE_NAMES}
    assert not stale, f"flows.yaml lists what no scenario permits: {sorted(stale)}"


def tables(manifests: Manifests) -> str:
    """The matrix of a rendering as Markdown: inside the release, into it, and out of it."""
    network = network_of(manifests)
    inside = [endpoint.name for endpoint in network.pods]
    outside = [endpoint.name for endpoint in network.outside]
    matrix = network.matrix()
    parts = []
    for rows, columns in ((inside, inside), (outside, inside), (inside, outside)):
        used_rows = [row for row in rows if any((row, column) in matrix for column in columns)]
        used_columns = [column for column in columns if any((row, column) in matrix for row in rows)]
        lines = [f"| from \\ to | {' | '.join(used_columns)} |", "| --- |" + " --- |" * len(used_columns)]
        for row in used_rows:
            cells = [written(matrix.get((row, column), ())) for column in used_columns]
            lines.append(f"| **{row}** | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def cells_of(text: str) -> dict[tuple[int, str, str], str]:
    """Cells of the tables of a Markdown text: (table, row, column) -> content."""
    cells: dict[tuple[int, str, str], str] = {}
    number, columns = 0, [""]
    for line in text.splitlines():
        values = [value.strip().strip("*") for value in line.strip("|").split("|")]
        if line.startswith("| from"):
            number, columns = number + 1, values
        elif line.startswith("| **"):
            cells |= {(number, values[0], column): value for column, value in zip(columns[1:], values[1:], strict=True)}
    return {key: value for key, value in cells.items() if value}


@pytest.mark.parametrize("scenario_name", ["dev", "local", "minikube", "staging", "versitygw"])
def test_what_has_the_same_parts_has_the_same_matrix(renderings: list[Manifests], scenario_name: str) -> None:
    """So that the document need not show it twice."""
    first, *others = renderings
    (manifests,) = [entry for entry in others if entry.scenario == scenario_name]
    assert cells_of(tables(manifests)) == cells_of(tables(first))


@pytest.mark.parametrize("scenario_name", DOCUMENTED)
def test_the_documented_matrix_is_the_rendered_one(
    renderings: list[Manifests], scenario_name: str, documented: Callable[[Path, str, str], str]
) -> None:
    """`pytest tests/render/test_network.py --write-docs` writes the tables anew."""
    (manifests,) = [entry for entry in renderings if entry.scenario == scenario_name]
    rendered = tables(manifests)
    known = documented(DOCUMENT, scenario_name, rendered)
    before, now = cells_of(known), cells_of(rendered)
    changed = [
        f"  {row} --> {column}: {before.get((table, row, column)) or 'nothing'} is documented, "
        f"{now.get((table, row, column)) or 'nothing'} is permitted"
        for table, row, column in sorted(before.keys() | now.keys())
        if before.get((table, row, column)) != now.get((table, row, column))
    ]
    assert not changed, "docs/network.md is not what the policies permit:\n" + "\n".join(changed)
    assert known == rendered, "docs/network.md: order or form of the tables; write it anew with --write-docs"
