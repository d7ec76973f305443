"""What an operator does: upgrade, test, try before applying; and what the namespace refuses."""

from __future__ import annotations

import base64
from collections.abc import Callable

import pytest
from chart_harness import Manifests
from chart_harness.live import Namespace, wait_for
from ci import release
from live.system import RESTRICTED, Endpoint, System, forbidden_pod
from pytest_helm_charts.clusters import Cluster
from pytest_helm_charts.k8s.fixtures import NamespaceFactoryFunc


def test_every_workload_is_ready(kube_cluster: Cluster) -> None:
    for kind in ("deployments", "statefulsets"):
        found = kube_cluster.kubectl(f"get {kind}", namespace=release.NAMESPACE)
        assert found, f"there are no {kind}"
        for item in found:
            assert item["status"].get("readyReplicas", 0) == item["spec"]["replicas"], item["metadata"]["name"]


@pytest.mark.parametrize("name", release.SERVICES)
def test_every_printed_address_answers(system: System, name: str) -> None:
    """What `make up` and `make status` print opens in a browser."""
    service, port, path = release.SERVICES[name]
    endpoint = Endpoint(system.cluster, service, port)
    answer = endpoint.request("GET", path, patience=30, follow_redirects=True)
    endpoint.close()
    assert answer.status_code == 200, f"{answer.status_code} {answer.text[:200]}"
    assert "text/html" in answer.headers["content-type"]


def test_no_container_ends_by_itself(system: System) -> None:
    """Not since these tests began, the largest inputs included; a limit or a probe would be wrong."""
    again = {where: count for where, count in system.restarts().items() if count > system.restarts_before.get(where, 0)}
    assert not again, f"restarted: {again}"
    for pod in system.namespace.running_pods():
        for status in pod["status"].get("containerStatuses", []):
            reason = status.get("lastState", {}).get("terminated", {}).get("reason")
            assert reason != "OOMKilled", f"{pod['metadata']['name']}/{status['name']} ran out of memory"


def test_an_upgrade_without_a_change_restarts_nothing(system: System) -> None:
    values = system.values()
    # What was installed may be an older state of the chart; from here on it is this one.
    system.upgrade(values)
    wait_for(lambda: len(system.namespace.get("rayclusters.ray.io")) == 1, "the last Ray cluster to go", 180)
    before, secrets = system.footprint(), system.secrets()
    system.upgrade(values)
    assert system.footprint() == before
    assert system.secrets() == secrets


def test_helm_test_passes(system: System) -> None:
    """Twice, as the pod of the first is still there, with its log."""
    for _ in range(2):
        done = system.helm("test", release.RELEASE, "--timeout", "4m", "--logs")
        assert "Succeeded" in done.stdout
        assert "POD LOGS: smoke-test" in done.stdout


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
    rendered_for: Callable[[Namespace], Manifests], restricted_namespace: Namespace
) -> None:
    """Of every scenario, with server-side dry run: defaulting, validation and admission, and nothing is made."""
    manifests = rendered_for(restricted_namespace)
    # A bare pod is admitted only when its account exists, so that these are made for real.
    restricted_namespace.apply(manifests.by_kind("ServiceAccount"))
    done = restricted_namespace.apply(manifests, dry_run=True)
    assert "would violate PodSecurity" not in done.stderr, done.stderr
    assert "unknown field" not in done.stderr, done.stderr
    assert len(done.stdout.splitlines()) == len(manifests)
