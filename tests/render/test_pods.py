"""Every pod is confined, watched, bounded and reproducible."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

import pytest
from chart_harness import Chart, Container, Exemptions, Manifest, Pod, quantity, restricted
from chart_harness.objects import load_yaml

IMAGE = re.compile(
    r"(?P<name>[a-z0-9.-]+(:[0-9]+)?(/[a-z0-9._-]+)+)"
    r"(:(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]*))?(@sha256:(?P<digest>[0-9a-f]{64}))?"
)


def test_pods_meet_pod_security_restricted(pod: Pod, exemptions: Exemptions) -> None:
    exemptions.check("restricted", pod.id, restricted(pod))


def test_pods_say_themselves_what_their_containers_say(pod: Pod) -> None:
    """A container that is added to a running pod (`kubectl debug`, a sidecar) gets what the pod says."""
    context = pod.spec.get("securityContext") or {}
    assert context.get("runAsNonRoot") is True, f"{pod.id}: runAsNonRoot"
    assert context.get("seccompProfile") == {"type": "RuntimeDefault"}, f"{pod.id}: seccompProfile"


def test_containers_say_themselves_what_their_pods_say(container: Container) -> None:
    """Neither may be loosened by a change of the other."""
    context = container.spec.get("securityContext") or {}
    assert context.get("runAsNonRoot") is True, f"{container.id}: runAsNonRoot"
    assert context.get("seccompProfile") == {"type": "RuntimeDefault"}, f"{container.id}: seccompProfile"


def test_volumes_are_not_walked_at_every_start(pod: Pod) -> None:
    """A disk of a million files would keep its pod from starting for minutes."""
    context = pod.spec.get("securityContext") or {}
    assert "fsGroup" not in context or context.get("fsGroupChangePolicy") == "OnRootMismatch", pod.id


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


def test_pods_get_no_service_variables(pod: Pod, exemptions: Exemptions) -> None:
    """A variable per Service slows a start in a large namespace, and MLFLOW_SERVER_PORT=tcp://… would reach MLflow."""
    problems = [] if pod.spec.get("enableServiceLinks") is False else ["enableServiceLinks is not false"]
    exemptions.check("service links", pod.id, problems)


def test_pods_get_no_token(pod: Pod, exemptions: Exemptions) -> None:
    problems = []
    if pod.spec.get("automountServiceAccountToken") is not False:
        problems.append("automountServiceAccountToken is not false")
    exemptions.check("token", pod.id, problems)


@pytest.mark.kinds("ServiceAccount")
def test_accounts_give_no_token(manifest: Manifest) -> None:
    """Not to a pod of someone else's that names the account either."""
    assert manifest.at("automountServiceAccountToken") is False, manifest


def test_pods_have_an_account_of_their_own(pod: Pod, exemptions: Exemptions) -> None:
    account = pod.spec.get("serviceAccountName", "default")
    exemptions.check("service account", pod.id, ["it runs as the default account"] if account == "default" else [])


def test_names_inside_a_pod_are_unique(pod: Pod) -> None:
    names = Counter(container.name for container in pod.containers)
    names.update(f"volume {volume['name']}" for volume in pod.spec.get("volumes") or [])
    for container in pod.containers:
        names.update(f"{container.name}: env {entry['name']}" for entry in container.spec.get("env") or [])
        names.update(f"{container.name}: mount {m['mountPath']}" for m in container.spec.get("volumeMounts") or [])
        names.update(f"{container.name}: port {p['containerPort']}" for p in container.spec.get("ports") or [])
    twice = [name for name, count in names.items() if count > 1]
    assert not twice, f"{pod.id}: twice: {', '.join(twice)}"


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


def test_replicas_spread_over_nodes(pod: Pod, exemptions: Exemptions) -> None:
    if pod.owner.kind in ("Deployment", "StatefulSet", "RayService"):
        keys = {constraint["topologyKey"] for constraint in pod.spec.get("topologySpreadConstraints") or []}
        problems = [] if "kubernetes.io/hostname" in keys else ["no topologySpreadConstraint over nodes"]
        for constraint in pod.spec.get("topologySpreadConstraints") or []:
            selector = (constraint.get("labelSelector") or {}).get("matchLabels") or {}
            if not selector.items() <= pod.labels.items():
                problems.append(f"its constraint over {constraint['topologyKey']} does not count its own pods")
        exemptions.check("spread", pod.id, problems)


def test_a_pod_has_time_to_end(pod: Pod) -> None:
    """What runs before SIGTERM must not use up all the time until SIGKILL."""
    grace = pod.spec.get("terminationGracePeriodSeconds", 30)
    for container in pod.containers:
        command = ((container.spec.get("lifecycle") or {}).get("preStop") or {}).get("exec", {}).get("command", [])
        for option, value in pairwise([*command, ""]):
            if option == "sleep" and value.isdigit():
                assert int(value) < grace, f"{container.id}: sleeps {value} s of {grace} s"


def test_selectors_are_part_of_the_labels(manifest: Manifest) -> None:
    """And contain nothing that changes from one version to the next, because a selector is immutable."""
    selector = manifest.at("spec.selector.matchLabels")
    if selector and manifest.pods:
        assert selector.items() <= manifest.pods[0].labels.items(), manifest
        assert not {"app.kubernetes.io/version", "helm.sh/chart"} & selector.keys(), manifest
