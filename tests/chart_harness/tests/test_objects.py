"""Selectors find what they name, pods are found wherever they stand, and broken YAML is refused."""

from __future__ import annotations

import pytest
from chart_harness import Manifests

TEXT = """---
# Source: chart/templates/a.yaml
apiVersion: example.org/v1
kind: Group
metadata: {name: group, annotations: {helm.sh/hook: "pre-install, pre-upgrade"}}
spec:
  head:
    template:
      metadata: {labels: {part: head}}
      spec:
        initContainers: [{name: wait}, {name: proxy, restartPolicy: Always}]
        containers: [{name: head}]
  workers:
    - template:
        spec:
          containers: [{name: worker}]
---
# Source: chart/charts/sub/templates/job.yaml
apiVersion: batch/v1
kind: CronJob
metadata: {name: nightly}
spec:
  jobTemplate:
    spec:
      template:
        spec:
          restartPolicy: Never
          containers: [{name: once}]
---
# Source: chart/templates/empty.yaml
"""


@pytest.fixture
def parsed() -> Manifests:
    """The objects of the text above."""
    return Manifests.parse(TEXT, "some")


def test_objects_know_their_template_and_scenario(parsed: Manifests) -> None:
    assert [(m.id, m.source, m.scenario) for m in parsed] == [
        ("Group/group", "templates/a.yaml", "some"),
        ("CronJob/nightly", "charts/sub/templates/job.yaml", "some"),
    ]


def test_pods_are_found_in_any_kind(parsed: Manifests) -> None:
    assert [(pod.id, pod.path) for pod in parsed.pods()] == [
        ("Group/group.head", "spec.head.template"),
        ("Group/group.workers[0]", "spec.workers[0].template"),
        ("CronJob/nightly", "spec.jobTemplate.spec.template"),
    ]


def test_containers_know_how_long_they_live(parsed: Manifests) -> None:
    assert {container.id: container.long_running for container in parsed.containers()} == {
        "Group/group.head/wait": False,
        "Group/group.head/proxy": True,
        "Group/group.head/head": True,
        "Group/group.workers[0]/worker": True,
        "CronJob/nightly/once": False,
    }


def test_hooks_are_a_set(parsed: Manifests) -> None:
    assert parsed[0].hooks == {"pre-install", "pre-upgrade"}
    assert parsed[1].hooks == frozenset()


def test_a_missing_object_fails_with_the_names_there_are(parsed: Manifests) -> None:
    with pytest.raises(AssertionError, match=r"no CronJob/daily in .*: nightly"):
        parsed.one("CronJob", "daily")


def test_a_key_that_stands_twice_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"templates/x.yaml .* 'app' stands twice"):
        Manifests.parse("---\n# Source: c/templates/x.yaml\nmetadata:\n  labels:\n    app: a\n    app: b\n")


def test_what_is_no_object_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"templates/x.yaml renders to a str"):
        Manifests.parse("---\n# Source: c/templates/x.yaml\njust text\n")
