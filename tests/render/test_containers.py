"""Every container is confined, watched, bounded and reproducible."""

from __future__ import annotations

import re
from itertools import pairwise

from chart_harness import Chart, Container, Exemptions, quantity
from chart_harness.objects import load_yaml

IMAGE = re.compile(
    r"(?P<name>[a-z0-9.-]+(:[0-9]+)?(/[a-z0-9._-]+)+)"
    r"(:(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]*))?(@sha256:(?P<digest>[0-9a-f]{64}))?"
)


def test_containers_say_themselves_what_their_pods_say(container: Container) -> None:
    """Neither may be loosened by a change of the other."""
    context = container.spec.get("securityContext") or {}
    assert context.get("runAsNonRoot") is True, f"{container.id}: runAsNonRoot"
    assert context.get("seccompProfile") == {"type": "RuntimeDefault"}, f"{container.id}: seccompProfile"


def test_root_file_systems_are_read_only(container: Container, exemptions: Exemptions) -> None:
    context = container.spec.get("securityContext") or {}
    problems = [] if context.get("readOnlyRootFilesystem") else ["readOnlyRootFilesystem is not true"]
    exemptions.check("read-only root", container.id, problems)


def test_long_running_containers_have_probes(container: Container, exemptions: Exemptions) -> None:
    if not container.long_running:
        return
    problems = [f"no {kind}" for kind in ("readinessProbe", "livenessProbe") if not container.spec.get(kind)]
    exemptions.check("probes", container.id, problems)


def test_a_slow_start_is_not_killed_by_liveness(container: Container, exemptions: Exemptions) -> None:
    if container.long_running and container.spec.get("livenessProbe"):
        problems = [] if container.spec.get("startupProbe") else ["a livenessProbe without a startupProbe"]
        exemptions.check("startup probe", container.id, problems)


def test_containers_are_bounded(container: Container, exemptions: Exemptions) -> None:
    """Requests for the scheduler; a memory limit so that a leak ends its own container and no other."""
    resources = container.spec.get("resources") or {}
    wanted = [("requests", "cpu"), ("requests", "memory"), ("limits", "memory")]
    problems = [f"no resources.{kind}.{name}" for kind, name in wanted if name not in (resources.get(kind) or {})]
    exemptions.check("resources", container.id, problems)


def test_memory_is_not_overcommitted(container: Container) -> None:
    resources = container.spec.get("resources") or {}
    for name in ("cpu", "memory"):
        request = (resources.get("requests") or {}).get(name)
        limit = (resources.get("limits") or {}).get(name)
        if request is not None and limit is not None:
            assert quantity(request) <= quantity(limit), f"{container.id}: requests more {name} than its limit"


def test_images_are_pinned(container: Container) -> None:
    reference = container.spec.get("image") or ""
    match = IMAGE.fullmatch(reference)
    assert match, f"{container.id}: «{reference}» is not a full image reference (registry/name:tag)"
    assert match["digest"] or match["tag"], f"{container.id}: {reference} has no tag"
    assert match["tag"] not in ("latest", "stable", "main"), f"{container.id}: the tag of {reference} moves"


def test_images_of_ours_carry_the_charts_version_and_others_their_own(container: Container, chart: Chart) -> None:
    match = IMAGE.fullmatch(container.spec["image"])
    assert match
    ours = re.search(r"(^|/)ads/[^/]+$", match["name"]) is not None
    if match["tag"]:
        assert (match["tag"] == load_yaml(chart.read("Chart.yaml"))["appVersion"]) is ours, container.spec["image"]


def test_port_names_are_valid(container: Container) -> None:
    for port in container.spec.get("ports") or []:
        name = port.get("name")
        assert name, f"{container.id}: the port {port['containerPort']} has no name to refer to"
        assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?", name), f"{container.id}: the port name {name}"


def test_the_port_of_a_command_is_declared(container: Container) -> None:
    """A Service reaches what is declared, a client what the program was told to listen on."""
    words = [*map(str, container.spec.get("command") or []), *map(str, container.spec.get("args") or [])]
    declared = {str(port["containerPort"]) for port in container.spec.get("ports") or []}
    for option, value in pairwise([*words, ""]):
        if option in ("--port", "-p") and value.isdigit():
            assert value in declared, f"{container.id}: listens on {value}, declares {sorted(declared)}"


def test_a_variable_is_used_after_it_is_set(container: Container) -> None:
    """`$(NAME)` in a value is replaced only by a variable that stands earlier in the list."""
    names = [entry["name"] for entry in container.spec.get("env") or []]
    for index, entry in enumerate(container.spec.get("env") or []):
        for used in re.findall(r"(?<!\$)\$\(([A-Za-z0-9_]+)\)", str(entry.get("value", ""))):
            assert used in names[:index], f"{container.id}: {entry['name']} uses $({used}) before it is set"
