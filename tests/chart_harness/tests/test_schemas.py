"""Strict validation refuses each kind of mistake, and says where and what."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from chart_harness import SchemaStore
from chart_harness.objects import load_yaml

DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
        - name: web
          image: example.org/web:1
          imagePullPolicy: IfNotPresent
          ports: [{name: http, containerPort: 80}]
          resources: {requests: {cpu: 100m, memory: 1.5Gi}, limits: {cpu: 2}}
          livenessProbe: {httpGet: {path: /, port: http}}
"""

RAY_SERVICE = """
apiVersion: ray.io/v1
kind: RayService
metadata: {name: detector}
spec:
  serveConfigV2: "applications: []"
  rayClusterConfig:
    headGroupSpec:
      rayStartParams: {dashboard-host: 0.0.0.0}
      template:
        metadata: {labels: {app: ray}}
        spec: {containers: [{name: head, image: "example.org/ray:1", ports: [{name: serve, containerPort: 8000}]}]}
"""


@pytest.fixture(scope="module")
def store() -> SchemaStore:
    """The vendored schemas."""
    return SchemaStore(Path(__file__).parents[2] / "schemas")


def changed(text: str, path: str, value: Any) -> dict[str, Any]:
    """An object with one value set (or removed, for None) under a dotted path."""
    result: dict[str, Any] = copy.deepcopy(load_yaml(text))
    *parents, last = path.split(".")
    node: Any = result
    for key in parents:
        node = node[int(key)] if key.isdigit() else node.setdefault(key, {})
    if value is None:
        del node[last]
    else:
        node[last] = value
    return result


@pytest.mark.parametrize("text", [DEPLOYMENT, RAY_SERVICE], ids=["Deployment", "RayService"])
def test_a_valid_object_passes(text: str, store: SchemaStore) -> None:
    assert store.problems(load_yaml(text)) == []


CONTAINER = "spec.template.spec.containers.0"
HEAD = "spec.rayClusterConfig.headGroupSpec.template.spec.containers.0"


@pytest.mark.parametrize(
    ("text", "path", "value", "problem"),
    [
        (DEPLOYMENT, "spec.replica", 2, "spec.replica: unknown field; did you mean replicas?"),
        (DEPLOYMENT, "spec.replicas", "2", 'spec.replicas: "2" is not of type integer'),
        (DEPLOYMENT, "spec.replicas", 2**31, "spec.replicas: 2147483648 is not 2147483647 or less"),
        (DEPLOYMENT, "spec.selector", None, "spec: the field selector is missing"),
        (DEPLOYMENT, "metadata.name", None, "metadata: the field name is missing"),
        (DEPLOYMENT, "metadata.labels.version", 1, "metadata.labels.version: 1 is not of type string"),
        (DEPLOYMENT, "metadata.uid", "a", "metadata.uid: unknown field"),
        (DEPLOYMENT, "status", {}, "status: unknown field"),
        (
            DEPLOYMENT,
            f"{CONTAINER}.imagePullPolicy",
            "Sometimes",
            'spec.template.spec.containers[0].imagePullPolicy: "Sometimes" is not one of Always, IfNotPresent, Never',
        ),
        (DEPLOYMENT, f"{CONTAINER}.ports.0.containerPort", None, "the field containerPort is missing"),
        (DEPLOYMENT, f"{CONTAINER}.resources.requests.cpu", "100 m", '"100 m" is not of type number or of the form'),
        (DEPLOYMENT, f"{CONTAINER}.env", {"A": "b"}, "is not of type array"),
        (DEPLOYMENT, f"{CONTAINER}.livenessProbe.httpGet.port", True, "true is not of type integer or of type string"),
        (RAY_SERVICE, "spec.rayClusterConfig.headGroup", {}, "unknown field; did you mean headGroupSpec?"),
        (RAY_SERVICE, f"{HEAD}.enviroment", [], "unknown field"),
        (RAY_SERVICE, f"{HEAD}.image", 5, "5 is not of type string"),
        (RAY_SERVICE, "spec.rayClusterConfig.headGroupSpec.rayStartParams.num-cpus", 1, "1 is not of type string"),
    ],
    ids=lambda value: (
        value.rpartition(".")[2] if isinstance(value, str) and "\n" not in value and ": " not in value else ""
    ),
)
def test_a_mistake_is_refused(text: str, path: str, value: Any, problem: str, store: SchemaStore) -> None:
    problems = [str(found) for found in store.problems(changed(text, path, value))]
    assert any(problem in found for found in problems), problems


def test_an_unknown_kind_is_refused(store: SchemaStore) -> None:
    (problem,) = store.problems({"apiVersion": "apps/v1", "kind": "Deploymnet", "metadata": {"name": "a"}})
    assert str(problem) == "no schema for apps/v1/Deploymnet; did you mean apps/v1/Deployment?"


def test_a_name_is_required_of_every_kind(store: SchemaStore) -> None:
    for kind in store.kinds:
        api_version, _, name = kind.rpartition("/")
        problems = [str(p) for p in store.problems({"apiVersion": api_version, "kind": name, "metadata": {}})]
        assert "metadata: the field name is missing" in problems, kind


def test_versions_differ_where_kubernetes_does(store: SchemaStore) -> None:
    """A field that came with 1.34 is unknown before; what did not change is the same."""
    versions = store.versions("kubernetes")
    assert versions == sorted(versions, key=lambda version: int(version.split(".")[1]))
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "a"},
        "spec": {"hostnameOverride": "b", "containers": [{"name": "c", "image": "d"}]},
    }
    for version in versions:
        found = [str(problem) for problem in store.at(kubernetes=version).problems(pod)]
        before = int(version.split(".")[1]) < 34
        assert found == (["spec.hostnameOverride: unknown field; did you mean hostname?"] if before else []), version
        assert store.at(kubernetes=version).problems(load_yaml(DEPLOYMENT)) == []


def test_a_version_that_is_not_there_is_refused(store: SchemaStore) -> None:
    with pytest.raises(ValueError, match=r"no schemas of kubernetes 1\.2\.3; there are: 1\.32\."):
        store.at(kubernetes="1.2.3")


def test_schemas_stay_small(store: SchemaStore) -> None:
    for file in store.folder.glob("*.json"):
        assert file.stat().st_size < 500_000, file.name
