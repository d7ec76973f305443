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
