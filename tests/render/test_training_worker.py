"""What scales the training workers: the HorizontalPodAutoscaler or KEDA, never both."""

from __future__ import annotations

from typing import Any

import pytest
from chart_harness import Manifests

from anomaly_detection.contracts import JOBS_QUEUE, PRIORITY_QUEUE


def scaling(**autoscaling: Any) -> dict[str, Any]:
    return {"training-worker": {"autoscaling": autoscaling}}


def scalers(manifests: Manifests) -> list[str]:
    """Kinds of the objects that scale the worker."""
    kinds = ("HorizontalPodAutoscaler", "ScaledObject")
    return [kind for kind in kinds for item in manifests.by_kind(kind) if item.name == "training-worker"]


@pytest.mark.parametrize(
    ("autoscaling", "expected"),
    [
        ({"type": "hpa"}, ["HorizontalPodAutoscaler"]),
        ({"type": "keda"}, ["ScaledObject"]),
        ({"type": "keda", "enabled": False}, []),
    ],
)
def test_one_thing_at_most_scales_the_workers(render: Any, autoscaling: dict[str, Any], expected: list[str]) -> None:
    manifests = render(**scaling(**autoscaling))
    assert scalers(manifests) == expected
    deployment = manifests.one("Deployment", "training-worker")
    assert ("replicas" in deployment.at("spec")) is not bool(expected)


def test_the_autoscaler_does_what_the_values_say(render: Any) -> None:
    manifests = render(
        **scaling(minReplicas=3, maxReplicas=11, targetCpuUtilization=61, scaleDownStabilizationSeconds=123)
    )
    spec = manifests.one("HorizontalPodAutoscaler", "training-worker")["spec"]
    assert (spec["minReplicas"], spec["maxReplicas"]) == (3, 11)
    assert [metric["resource"]["target"]["averageUtilization"] for metric in spec["metrics"]] == [61]
    assert spec["behavior"]["scaleDown"] == {"stabilizationWindowSeconds": 123}


def test_keda_watches_both_queues_of_jobs(render: Any) -> None:
    manifests = render(**scaling(type="keda", maxReplicas=7, keda={"jobsPerWorker": 3}))
    scaled = manifests.one("ScaledObject", "training-worker")
    assert {trigger["metadata"]["queueName"] for trigger in scaled.at("spec.triggers")} == {JOBS_QUEUE, PRIORITY_QUEUE}
    assert {trigger["metadata"]["value"] for trigger in scaled.at("spec.triggers")} == {"3"}
    assert (scaled.at("spec.minReplicaCount"), scaled.at("spec.maxReplicaCount")) == (2, 7)
    assert manifests.one("NetworkPolicy", "training-worker-keda")


def test_keda_needs_no_policy_for_a_broker_elsewhere(render: Any) -> None:
    secret = {"broker": {"existingSecret": "own-broker"}}
    broker = {"global": {"broker": {"host": "mq.example.org"}, "secrets": secret}, "rabbitmq": {"enabled": False}}
    manifests = render(**scaling(type="keda"), **broker)
    assert not [item for item in manifests.by_kind("NetworkPolicy") if item.name == "training-worker-keda"]
    hosts = {
        trigger["metadata"]["host"] for trigger in manifests.one("ScaledObject", "training-worker").at("spec.triggers")
    }
    assert hosts == {"amqp://mq.example.org:5672/"}
    password = manifests.one("TriggerAuthentication", "training-worker").at("spec.secretTargetRef")
    assert [item["name"] for item in password] == ["own-broker"]


def test_keda_reads_the_queues_as_the_worker_does(manifests: Manifests) -> None:
    """With the worker's own user, password, host and virtual host, and only jobs that wait."""
    scaled = manifests.find("ScaledObject", "training-worker")
    if scaled is None:
        return
    target = manifests.one("Deployment", scaled.at("spec.scaleTargetRef.name"))
    (container,) = target.pods[0].containers
    environment = container.env
    host, port = environment["RABBITMQ_HOST"]["value"], environment["RABBITMQ_PORT"]["value"]
    # KEDA's operator asks from another namespace.
    host = host if "." in host else f"{host}.{scaled.namespace}"
    assert {trigger["name"] for trigger in scaled.at("spec.triggers")} == {JOBS_QUEUE, PRIORITY_QUEUE}
    for trigger in scaled.at("spec.triggers"):
        assert trigger["type"] == "rabbitmq"
        about = trigger["metadata"]
        assert about["protocol"] == "amqp", "over HTTP jobs in a worker's hands would count too"
        assert about["mode"] == "QueueLength"
        assert about["host"] == f"amqp://{host}:{port}/"
        assert about["vhostName"] == environment["RABBITMQ_VHOST"]["value"]
        assert about["queueName"] == trigger["name"]
        access = manifests.one("TriggerAuthentication", trigger["authenticationRef"]["name"])
        given = {entry["parameter"]: entry for entry in [*access.at("spec.env"), *access.at("spec.secretTargetRef")]}
        assert given.keys() == {"username", "password"}
        assert given["username"]["containerName"] == container.name
        assert given["username"]["name"] == "RABBITMQ_USER"
        secret = environment["RABBITMQ_PASSWORD"]["valueFrom"]["secretKeyRef"]
        assert (given["password"]["name"], given["password"]["key"]) == (secret["name"], secret["key"])


def test_kedas_policy_leads_from_its_operator_to_the_broker(render: Any) -> None:
    manifests = render(**scaling(type="keda", keda={"namespace": "operators"}))
    policy = manifests.one("NetworkPolicy", "training-worker-keda")
    (broker,) = manifests.one("StatefulSet", "rabbitmq").pods
    assert policy.at("spec.podSelector.matchLabels").items() <= broker.labels.items()
    assert policy.at("spec.policyTypes") == ["Ingress"]
    (rule,) = policy.at("spec.ingress")
    assert rule["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "operators"}}}]
    assert rule["ports"] == [{"protocol": "TCP", "port": 5672}]
