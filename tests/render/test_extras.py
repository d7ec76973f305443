"""What a user of the chart adds reaches every object that it is meant for, and only when it is added."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from chart_harness import Chart, Container, Manifest, Manifests, Pod
from chart_harness.objects import load_yaml
from scenarios import DIGEST, MIRROR, NUMBER, OWN_CHOICES, POD_EXTRAS, RAY_WORKERS, RULE

HOOKED = ("secrets", "object-store-setup", "smoke-test")
"""Pods of the tools image, which no Service leads to."""


def of(renderings: list[Manifests], scenario: str) -> Manifests:
    """The objects of a scenario."""
    return next(manifests for manifests in renderings if manifests.scenario == scenario)


def mains(manifests: Manifests) -> list[Container]:
    """Every container that is no init container."""
    return [container for container in manifests.containers() if not container.init]


def tools(pod: Pod) -> bool:
    """Whether a pod is one of the tools image."""
    return any("/tools" in container.spec["image"] for container in pod.containers)


def test_every_pod_runs_where_the_user_wants_it(renderings: list[Manifests]) -> None:
    for pod in of(renderings, "extras").pods():
        for field in ("priorityClassName", "nodeSelector", "tolerations", "affinity"):
            assert pod.spec[field] == POD_EXTRAS[field], f"{pod.id}: {field}"
    for pod in of(renderings, "defaults").pods():
        unasked = {"priorityClassName", "nodeSelector", "tolerations", "affinity", "imagePullSecrets"} & pod.spec.keys()
        assert not unasked, f"{pod.id}: {unasked}"


def test_every_pod_carries_the_users_labels_and_annotations(renderings: list[Manifests]) -> None:
    for pod in of(renderings, "extras").pods():
        assert POD_EXTRAS["podLabels"].items() <= pod.labels.items(), pod.id
        annotations = pod.template["metadata"]["annotations"]
        assert POD_EXTRAS["podAnnotations"].items() <= annotations.items(), pod.id
    accounts = of(renderings, "extras").by_kind("ServiceAccount")
    assert accounts
    for account in accounts:
        assert POD_EXTRAS["serviceAccount"]["annotations"].items() <= account.annotations.items(), account


def test_every_main_container_gets_the_users_variables_and_files(renderings: list[Manifests]) -> None:
    for container in mains(of(renderings, "extras")):
        (variable,) = POD_EXTRAS["extraEnv"]
        # The last of a name wins, so that the user's value does.
        assert container.spec["env"][-1] == variable, container.id
        assert container.spec["envFrom"] == POD_EXTRAS["extraEnvFrom"], container.id
        assert POD_EXTRAS["extraVolumeMounts"][0] in container.spec["volumeMounts"], container.id
        assert POD_EXTRAS["extraVolumes"][0] in container.pod.spec["volumes"], container.id
    for container in mains(of(renderings, "defaults")):
        assert "envFrom" not in container.spec, container.id


@pytest.mark.parametrize(("scenario", "names"), [("mirror", ["pull"]), ("pull-secrets", ["first", "second"])])
def test_every_pod_pulls_with_the_users_secrets(scenario: str, names: list[str], renderings: list[Manifests]) -> None:
    for pod in of(renderings, scenario).pods():
        assert [entry["name"] for entry in pod.spec["imagePullSecrets"]] == names, pod.id


def test_images_come_from_where_and_when_the_user_says(renderings: list[Manifests]) -> None:
    for container in of(renderings, "mirror").containers():
        assert container.spec["imagePullPolicy"] == MIRROR["imagePullPolicy"], container.id
        assert container.spec["image"].startswith(f"{MIRROR['imageRegistry']}/"), container.id
    for container in of(renderings, "defaults").containers():
        assert container.spec["imagePullPolicy"] == "IfNotPresent", container.id


def test_a_digest_wins_over_a_tag(renderings: list[Manifests]) -> None:
    for container in of(renderings, "digests").containers():
        assert container.spec["image"].endswith(f"@{DIGEST}"), container.id
        assert ":" not in container.spec["image"].partition("@")[0].rpartition("/")[2], container.id


def test_own_images_have_the_version_of_the_chart(manifests: Manifests, chart: Chart) -> None:
    """Code and chart are released together: a tag that is not given is the chart's."""
    version = load_yaml(chart.read("Chart.yaml"))["appVersion"]
    for container in manifests.containers():
        _, _, name = container.spec["image"].rpartition("ads/")
        if "ads/" in container.spec["image"] and "@" not in name:
            assert name.partition(":")[2] == version, container.id


def test_own_constraints_replace_the_charts(renderings: list[Manifests]) -> None:
    for pod in of(renderings, "own-choices").pods():
        if not tools(pod):
            spread = pod.spec["topologySpreadConstraints"]
            assert spread == OWN_CHOICES["topologySpreadConstraints"], pod.id


def test_the_charts_constraints_bind_nobody_to_a_number_of_nodes(renderings: list[Manifests]) -> None:
    """Over zones first, then nodes, and softly: on a single node everything still starts."""
    for pod in of(renderings, "defaults").pods():
        spread = pod.spec["topologySpreadConstraints"]
        assert [constraint["topologyKey"] for constraint in spread] == [
            "topology.kubernetes.io/zone",
            "kubernetes.io/hostname",
        ], pod.id
        assert {constraint["whenUnsatisfiable"] for constraint in spread} == {"ScheduleAnyway"}, pod.id
        assert {constraint["maxSkew"] for constraint in spread} == {1}, pod.id


def test_own_limits_are_kept_beside_the_charts(renderings: list[Manifests]) -> None:
    for container in of(renderings, "own-choices").containers():
        if not tools(container.pod):
            limits = container.spec["resources"]["limits"]
            assert OWN_CHOICES["resources"]["limits"].items() <= limits.items(), container.id
            assert "memory" in limits, container.id


def test_own_rules_stand_beside_the_charts(renderings: list[Manifests]) -> None:
    """In each direction, in the policy of every service."""
    defaults = of(renderings, "defaults")
    for policy in of(renderings, "own-choices").by_kind("NetworkPolicy"):
        if policy.name in (*HOOKED, "default-deny") or policy.name.endswith("-keda"):
            continue
        usual = defaults.one("NetworkPolicy", policy.name)
        for way in ("ingress", "egress"):
            assert policy.at(f"spec.{way}") == [*usual.at(f"spec.{way}", []), RULE], f"{policy}: {way}"


def test_budgets_and_policies_can_be_switched_off(renderings: list[Manifests]) -> None:
    assert not of(renderings, "own-choices").by_kind("PodDisruptionBudget")
    assert not of(renderings, "no-policies").by_kind("NetworkPolicy")
    services = {budget.name for budget in of(renderings, "staging").by_kind("PodDisruptionBudget")}
    assert services == {
        "training-api", "training-worker", "ray-serve", "rabbitmq", "mlflow-server", "postgresql-mlflow", "minio-mlflow"
    }  # fmt: skip


@pytest.mark.kinds("StatefulSet")
def test_no_storage_class_is_named_unasked(manifest: Manifest) -> None:
    """Then the cluster's own is taken; an empty name would be a volume that somebody makes by hand."""
    for claim in manifest["spec"]["volumeClaimTemplates"]:
        assert claim["spec"].get("storageClassName", NUMBER) == NUMBER, manifest


@pytest.mark.parametrize(
    ("scenario", "name", "expected"),
    [
        ("digests", "minio-mlflow", NUMBER),
        ("digests", "postgresql-mlflow", NUMBER),
        ("pull-secrets", "rabbitmq", NUMBER),
        ("defaults", "minio-mlflow", None),
        ("defaults", "postgresql-mlflow", None),
        ("defaults", "rabbitmq", None),
    ],
)
def test_the_storage_class_is_the_users(
    scenario: str, name: str, expected: str | None, renderings: list[Manifests]
) -> None:
    (claim,) = of(renderings, scenario).one("StatefulSet", name)["spec"]["volumeClaimTemplates"]
    assert claim["spec"].get("storageClassName") == expected


def test_a_group_of_ray_takes_what_is_its_own(renderings: list[Manifests]) -> None:
    """What is set for the workers is theirs; the rest is that of both groups."""
    service = of(renderings, "ray-workers").one("RayService", "anomaly-detector")
    head, workers = service.pods
    assert workers.spec["nodeSelector"] == RAY_WORKERS["nodeSelector"]
    assert "nodeSelector" not in head.spec
    assert RAY_WORKERS["podLabels"].items() <= workers.labels.items()
    assert not RAY_WORKERS["podLabels"].items() <= head.labels.items()
    assert workers.containers[0].spec["resources"] == RAY_WORKERS["resources"]
    assert head.containers[0].spec["resources"] != RAY_WORKERS["resources"]
    (group,) = service.at("spec.rayClusterConfig.workerGroupSpecs")
    assert group["replicas"] == RAY_WORKERS["replicas"]
    assert group["rayStartParams"]["num-cpus"] == RAY_WORKERS["rayStartParams"]["num-cpus"]
    assert service.at("spec.rayClusterConfig.headGroupSpec.rayStartParams")["num-cpus"] == "0"
    assert workers.containers[0].env == head.containers[0].env, "one image, one configuration"


def test_a_changed_configuration_restarts_its_pods(render: Callable[..., Manifests]) -> None:
    """And nothing else does: the checksum follows the text, not the chart's version."""
    changes: list[tuple[dict[str, Any], str]] = [
        ({"rabbitmq": {"configuration": {"heartbeat": "31"}}}, "StatefulSet/rabbitmq"),
        ({"mlflow": {"postgresql": {"configuration": {"work_mem": "8MB"}}}}, "StatefulSet/postgresql-mlflow"),
    ]
    before = {pod.id: pod.template for pod in render().pods()}
    for values, restarted in changes:
        after = {pod.id: pod.template for pod in render(**values).pods()}
        assert {name for name in before if before[name] != after[name]} == {restarted}
