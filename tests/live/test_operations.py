"""What an operator does: upgrade, test, try before applying; and what the namespace refuses."""

from __future__ import annotations

import base64
from dataclasses import replace

import pykube
import pytest
from pytest_helm_charts.clusters import Cluster
from pytest_helm_charts.k8s.fixtures import NamespaceFactoryFunc

from chart_harness import Chart, Renderer, Scenario
from chart_harness.live import Namespace
from ci import release
from live.system import System, forbidden_pod

RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}


def test_every_workload_is_ready(kube_cluster: Cluster) -> None:
    for kind, wanted, ready in (
        (pykube.Deployment, "replicas", "readyReplicas"),
        (pykube.StatefulSet, "replicas", "readyReplicas"),
    ):
        found = list(kind.objects(kube_cluster.kube_client).filter(namespace=release.NAMESPACE))
        assert found, f"there is no {kind.kind}"
        for item in found:
            assert item.obj["status"].get(ready, 0) == item.obj["spec"][wanted], item.name


def test_no_container_ends_by_itself(system: System) -> None:
    """Not since these tests began, the largest inputs included; a limit or a probe would be wrong."""
    again = {where: count for where, count in system.restarts().items() if count > system.restarts_before.get(where, 0)}
    assert not again, f"restarted: {again}"
    for pod in system.namespace.running_pods():
        for status in pod["status"].get("containerStatuses", []):
            reason = status.get("lastState", {}).get("terminated", {}).get("reason")
            assert reason != "OOMKilled", f"{pod['metadata']['name']}/{status['name']} ran out of memory"


def test_an_upgrade_without_a_change_restarts_nothing(system: System) -> None:
    before, secrets = system.footprint(), system.secrets()
    system.upgrade(system.values())
    assert system.footprint() == before
    assert system.secrets() == secrets


def test_helm_test_passes(system: System) -> None:
    done = system.helm("test", release.RELEASE, "--logs", "--timeout", "4m")
    assert "Succeeded" in done.stdout


def test_the_namespace_refuses_a_privileged_pod(system: System) -> None:
    done = system.namespace.kubectl("create", "--filename", "-", stdin=forbidden_pod(), check=False)
    assert done.returncode != 0
    assert 'violates PodSecurity "restricted' in done.stderr


def test_no_secret_is_in_a_log_or_in_the_release(system: System) -> None:
    """Neither the services' logs nor what helm keeps may show a password."""

    shown = system.helm("get", "all", release.RELEASE).stdout
    for pod in system.namespace.running_pods():
        shown += system.namespace.kubectl("logs", pod["metadata"]["name"], "--all-containers").stdout
    for name, data in system.secrets().items():
        for key, value in (data or {}).items():
            text = base64.b64decode(value).decode(errors="replace")
            assert len(text) < 12 or text not in shown, f"{name}/{key} is shown"


@pytest.fixture(scope="module")
def restricted_namespace(namespace_factory: NamespaceFactoryFunc, system: System) -> Namespace:
    """An empty namespace that enforces Pod Security `restricted`."""
    created = namespace_factory("ads-dry-run", extra_metadata={"labels": RESTRICTED})
    return Namespace(system.cluster.kubectl(), created.name)


def test_the_api_server_accepts_every_object(
    scenario: Scenario, chart: Chart, renderer: Renderer, restricted_namespace: Namespace
) -> None:
    """Of every values file, with server-side dry run: defaulting, validation and admission, and nothing is made."""
    manifests = renderer.render(chart, replace(scenario, namespace=restricted_namespace.name))
    done = restricted_namespace.kubectl(
        "apply", "--server-side", "--dry-run=server", "--filename", "-", stdin=manifests.text
    )
    assert "would violate PodSecurity" not in done.stderr, done.stderr
    assert "unknown field" not in done.stderr, done.stderr
    assert len(done.stdout.splitlines()) == len(manifests)
