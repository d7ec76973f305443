"""The topology RabbitMQ imports is the one the services speak to."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from chart_harness import Manifests

QUEUES = {
    "training-jobs": "training.job.standard",
    "training-priority-high": "training.job.priority",
    "training-completion": "training.completed.*",
}
DRIFT = "drift-detected"
DEAD_LETTERS = "training-jobs-dlq"


@pytest.fixture
def definitions(manifests: Manifests) -> Any:
    """The definitions file, before passwords are put in."""
    if not manifests.find("StatefulSet", "rabbitmq"):
        pytest.skip("the broker is outside of the release")
    texts = [t for m in manifests.by_kind("ConfigMap") for n, t in m.at("data", {}).items() if n == "definitions.json"]
    assert len(texts) == 1, "one ConfigMap holds definitions.json"
    return json.loads(texts[0])


def test_queues_survive_a_node_and_bound_redelivery(definitions: Any) -> None:
    queues = {queue["name"]: queue for queue in definitions["queues"]}
    assert queues.keys() == {*QUEUES, DRIFT, DEAD_LETTERS}
    for name, queue in queues.items():
        assert queue["durable"], name
        assert queue["arguments"]["x-queue-type"] == "quorum", name
    for name in ("training-jobs", "training-priority-high"):
        arguments = queues[name]["arguments"]
        assert 0 < arguments["x-delivery-limit"] <= 20, name
        assert arguments["x-dead-letter-exchange"] == "training-dlx", name


def test_every_key_leads_to_its_queue(definitions: Any) -> None:
    bindings = {(b["source"], b["routing_key"]): b["destination"] for b in definitions["bindings"]}
    for queue, key in QUEUES.items():
        assert bindings["training-events", key] == queue
    assert bindings["drift-events", "drift.detected.*"] == DRIFT


def test_every_dead_letter_has_a_queue(definitions: Any) -> None:
    """A dead letter keeps its routing key unless the queue replaces it."""
    bindings = {(b["source"], b["routing_key"]): b["destination"] for b in definitions["bindings"]}
    for queue in definitions["queues"]:
        arguments = queue["arguments"]
        if exchange := arguments.get("x-dead-letter-exchange"):
            key = arguments.get("x-dead-letter-routing-key", QUEUES[queue["name"]])
            assert bindings.get((exchange, key)) == DEAD_LETTERS, queue["name"]


def test_whatever_is_bound_exists(definitions: Any) -> None:
    exchanges = {(e["vhost"], e["name"]) for e in definitions["exchanges"]}
    queues = {(q["vhost"], q["name"]) for q in definitions["queues"]}
    vhosts = {vhost["name"] for vhost in definitions["vhosts"]}
    for binding in definitions["bindings"]:
        assert (binding["vhost"], binding["source"]) in exchanges, binding
        assert (binding["vhost"], binding["destination"]) in queues, binding
    assert {vhost for vhost, _ in exchanges | queues} <= vhosts


def test_users_may_do_what_they_need_and_no_more(definitions: Any) -> None:
    rights = {entry["user"]: entry for entry in definitions["permissions"]}
    tags = {user["name"]: user["tags"] for user in definitions["users"]}
    assert [name for name, own in tags.items() if own] == ["admin"]
    training, serving = rights["training"], rights["serving"]
    assert not re.match(training["configure"], "training-jobs")
    assert re.match(training["write"], "training-events")
    for queue in (*QUEUES, DEAD_LETTERS):
        assert re.match(training["read"], queue), queue
        assert not re.match(serving["read"], queue), queue
        assert not re.match(serving["configure"], queue), queue
    assert re.match(serving["configure"], "serving-1")
    assert not re.match(serving["write"], "training-events")
    assert re.match(serving["write"], "drift-events")
    for refused in ("configure", "read"):
        assert not re.match(serving[refused], "drift-events")
        assert not re.match(serving[refused], DRIFT)
    (topics,) = definitions["topic_permissions"]
    assert (topics["user"], topics["exchange"]) == ("serving", "drift-events")
    assert re.search(topics["write"], "drift.detected.sensor_1_x")
    for key in ("training.completed.sensor_1_x", "drift.detected.", "drift.detected.a.b"):
        assert not re.search(topics["write"], key)


def test_no_password_stands_in_it(definitions: Any) -> None:
    for user in definitions["users"]:
        assert "password" not in user
        assert re.fullmatch(r"@[a-z-]+@", user["password_hash"]), "filled in inside the pod"
