"""Whatever an object names exists, on the port that is named."""

from __future__ import annotations

from collections.abc import Callable

from chart_harness import Container, Exemptions, Given, Manifest, Manifests, Pod, unresolved
from chart_harness.network import addresses

ManifestsOf = Callable[[Manifest | Pod | Container], Manifests]
GivenTo = Callable[[Manifest | Pod | Container], Given]


def test_every_reference_resolves(
    manifest: Manifest, manifests_of: ManifestsOf, given: GivenTo, exemptions: Exemptions
) -> None:
    exemptions.check("references", manifest.id, unresolved(manifest, manifests_of(manifest), given(manifest)))


def test_every_address_is_a_service(
    container: Container, manifests_of: ManifestsOf, given: GivenTo, exemptions: Exemptions
) -> None:
    """`X_HOST` with `X_PORT`, and URLs, name a Service of the release and one of its ports.

    A name with a dot is outside the release, and not for this test to know.
    """
    services = {
        m.name: {port["port"] for port in m["spec"]["ports"]} for m in manifests_of(container).by_kind("Service")
    }
    services |= {name: set(ports) for name, ports in given(container).operator_services.items()}
    problems = []
    for name, host, port in addresses(container):
        if "." in host:
            continue
        if host not in services:
            problems.append(f"{name}: there is no Service {host}")
        elif port is not None and port not in services[host]:
            problems.append(f"{name}: the Service {host} has no port {port} (it has {sorted(services[host])})")
    exemptions.check("addresses", container.id, problems)


def test_exemptions_name_what_exists(exemptions: Exemptions, renderings: list[Manifests]) -> None:
    known = {subject.id for objects in renderings for subject in (*objects, *objects.pods(), *objects.containers())}
    unknown = {name for subjects in exemptions.reasons.values() for name in subjects} - known
    assert not unknown, f"exemptions.yaml names objects that no scenario has: {', '.join(sorted(unknown))}"
