"""Policies mean what a cluster's network makes of them."""

from __future__ import annotations

import json

import pytest
from chart_harness.network import EVERY_PORT, Address, Endpoint, Network, Ports, addresses, selects, written
from chart_harness.objects import Manifests, load_yaml

NAMESPACE = {"kubernetes.io/metadata.name": "shop"}
MONITORING = Endpoint("monitoring", namespace={"kubernetes.io/metadata.name": "monitoring"}, labels={"app": "web"})
INTERNET = Endpoint("internet", address="203.0.113.7")
PODS = """
{kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}}, spec: {containers: [{name: web}]}}
---
{kind: Pod, metadata: {name: db, namespace: shop, labels: {app: db}},
 spec: {containers: [{name: db, ports: [{name: sql, containerPort: 5432}]}]}}
"""


def cells(*policies: str) -> dict[tuple[str, str], str]:
    """The matrix of two pods under policies, each given as its spec."""
    objects = [
        json.dumps(
            {"kind": "NetworkPolicy", "metadata": {"name": str(n), "namespace": "shop"}, "spec": load_yaml(spec)}
        )
        for n, spec in enumerate(policies)
    ]
    network = Network(Manifests.parse("\n---\n".join([PODS, *objects])), [MONITORING, INTERNET])
    return {pair: written(ports) for pair, ports in network.matrix().items()}


def test_without_a_policy_everything_is_permitted() -> None:
    found = cells()
    assert set(found.values()) == {"any"}
    assert ("internet", "db") in found
    assert ("internet", "monitoring") not in found, "two endpoints that are not of the release"


def test_a_policy_without_rules_denies_the_directions_it_names() -> None:
    found = cells("{podSelector: {}, policyTypes: [Ingress]}")
    assert not [pair for pair in found if pair[1] in ("web", "db")]
    assert found["web", "internet"] == "any"
    assert cells("{podSelector: {}, policyTypes: [Ingress, Egress]}") == {}


def test_policy_types_follow_from_the_rules() -> None:
    found = cells("{podSelector: {matchLabels: {app: web}}, egress: [{ports: [{port: 443}]}]}")
    assert found["web", "internet"] == "443"
    assert ("internet", "web") not in found, "Ingress is always a type"


def test_both_ends_have_to_permit() -> None:
    deny = "{podSelector: {}, policyTypes: [Ingress, Egress]}"
    into = """
        podSelector: {matchLabels: {app: db}}
        ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: sql}]}]
    """
    out = """
        podSelector: {matchLabels: {app: web}}
        policyTypes: [Egress]
        egress: [{to: [{podSelector: {}}], ports: [{port: 5000, endPort: 6000}]}]
    """
    assert cells(deny, into) == {}
    assert cells(deny, out) == {}
    assert cells(deny, into, out) == {("web", "db"): "5432"}


def test_a_pod_selector_alone_stays_in_its_namespace() -> None:
    rule = "{{podSelector: {{matchLabels: {{app: db}}}}, ingress: [{{from: [{}]}}]}}"
    near = cells(rule.format("{podSelector: {matchLabels: {app: web}}}"))
    assert ("web", "db") in near
    assert ("monitoring", "db") not in near
    both = cells(rule.format("{namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}"))
    assert {("web", "db"), ("monitoring", "db")} <= both.keys()
    elsewhere = "{matchExpressions: [{key: kubernetes.io/metadata.name, operator: NotIn, values: [shop]}]}"
    far = cells(rule.format(f"{{namespaceSelector: {elsewhere}}}"))
    assert ("web", "db") not in far
    assert ("monitoring", "db") in far


@pytest.mark.parametrize(
    ("block", "permitted"),
    [
        ("{cidr: 203.0.113.0/24}", True),
        ("{cidr: 203.0.113.0/24, except: [203.0.113.7/32]}", False),
        ("{cidr: 10.0.0.0/8}", False),
        ("{cidr: '2001:db8::/32'}", False),
    ],
)
def test_a_block_means_addresses_outside(block: str, permitted: bool) -> None:
    found = cells(f"{{podSelector: {{}}, policyTypes: [Egress], egress: [{{to: [{{ipBlock: {block}}}]}}]}}")
    assert (("web", "internet") in found) is permitted
    assert ("web", "db") not in found


def test_a_policy_of_another_namespace_does_not_count() -> None:
    policy = json.dumps(
        {"kind": "NetworkPolicy", "metadata": {"name": "deny", "namespace": "b"}, "spec": {"podSelector": {}}}
    )
    matrix = Network(Manifests.parse(f"{PODS}\n---\n{policy}")).matrix()
    assert matrix["web", "db"] == EVERY_PORT


def test_pods_of_one_name_have_to_be_alike() -> None:
    policy = "{podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress]}"
    objects = json.dumps(
        {"kind": "NetworkPolicy", "metadata": {"name": "a", "namespace": "shop"}, "spec": load_yaml(policy)}
    )
    network = Network(Manifests.parse(f"{PODS}\n---\n{objects}"), name=lambda pod: "pod")
    with pytest.raises(ValueError, match="do not have the same permissions"):
        network.matrix()


@pytest.mark.parametrize(
    ("selector", "selected"),
    [
        ({}, True),
        ({"matchLabels": {"a": "1"}}, True),
        ({"matchLabels": {"a": "2"}}, False),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}, True),
        ({"matchExpressions": [{"key": "b", "operator": "In", "values": ["1"]}]}, False),
        ({"matchExpressions": [{"key": "b", "operator": "NotIn", "values": ["1"]}]}, True),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}]}, True),
        ({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}, False),
        ({"matchLabels": {"a": "1"}, "matchExpressions": [{"key": "b", "operator": "Exists"}]}, False),
    ],
)
def test_selectors(selector: dict[str, object], selected: bool) -> None:
    assert selects(selector, {"a": "1"}) is selected


def test_ports_are_written_shortly() -> None:
    assert written([Ports("UDP", 53, 53), Ports("TCP", 53, 53), Ports("TCP", 8000, 8010)]) == "53, 53/UDP, 8000-8010"
    assert written([]) == ""


def test_addresses_of_an_environment() -> None:
    text = """
    {kind: Pod, metadata: {name: a}, spec: {containers: [{name: a, env: [
      {name: DB_HOST, value: db}, {name: DB_PORT, value: "5432"}, {name: URL, value: "https://api.example.com/v1"},
      {name: DSN, value: "postgresql+psycopg://user:$(PASSWORD)@db:6432/x"}, {name: BUCKET, value: "s3://bucket/key"},
      {name: EMPTY_HOST, value: ""}, {name: SECRET, valueFrom: {}}]}]}}
    """
    (container,) = Manifests.parse(text).containers()
    assert addresses(container) == [
        Address("DB_HOST", "db", 5432),
        Address("URL", "api.example.com", 443),
        Address("DSN", "db", 6432),
    ]
