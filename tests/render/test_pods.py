"""Every pod is confined, has an account of its own, and moves without harm."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from chart_harness import Exemptions, Manifest, Pod, restricted


def test_pods_meet_pod_security_restricted(pod: Pod, exemptions: Exemptions) -> None:
    exemptions.check("restricted", pod.id, restricted(pod))


def test_pods_say_themselves_what_their_containers_say(pod: Pod) -> None:
    """A container that is added to a running pod (`kubectl debug`, a sidecar) gets what the pod says."""
    context = pod.spec.get("securityContext") or {}
    assert context.get("runAsNonRoot") is True, f"{pod.id}: runAsNonRoot"
    assert context.get("seccompProfile") == {"type": "RuntimeDefault"}, f"{pod.id}: seccompProfile"


def test_volumes_are_not_walked_at_every_start(pod: Pod) -> None:
    """A disk of a million files would keep its pod from starting for minutes."""
    context = pod.spec.get("securityContext") or {}
    assert "fsGroup" not in context or context.get("fsGroupChangePolicy") == "OnRootMismatch", pod.id


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
