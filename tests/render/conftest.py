"""What the chart is given by its surroundings, and who may break which property."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chart_harness import Container, Exemptions, Given, Manifest, Manifests, Pod, SchemaStore
from chart_harness.objects import load_yaml
from ci import paths
from scenarios import merged

EXEMPTIONS = Path(__file__).with_name("exemptions.yaml")


def kuberay_labels(pod: Pod) -> dict[str, str | None]:
    """Labels that KubeRay adds to a pod of a RayService."""
    if pod.owner.kind != "RayService":
        return {}
    return {
        "ray.io/is-ray-node": "yes",
        "ray.io/node-type": "head" if "headGroupSpec" in pod.path else "worker",
        **dict.fromkeys(("ray.io/cluster", "ray.io/group", "ray.io/identifier", "ray.io/serve")),
        "ray.io/originated-from-cr-name": pod.owner.name,
    }


@pytest.fixture(scope="session")
def schemas() -> SchemaStore:
    """The vendored schemas of Kubernetes and KubeRay."""
    return SchemaStore(paths.REPOSITORY / "tests" / "schemas")


@pytest.fixture(scope="session")
def schemas_by_version(schemas: SchemaStore) -> dict[str, SchemaStore]:
    """The same for each Kubernetes the chart supports, by its version."""
    return {version: schemas.at(kubernetes=version) for version in schemas.versions("kubernetes")}


@pytest.fixture(scope="session")
def exemptions() -> Exemptions:
    """Who may break a property, and why."""
    return Exemptions(load_yaml(EXEMPTIONS.read_text()) or {})


def _made_secrets(manifests: Manifests) -> dict[str, set[str]]:
    made: dict[str, set[str]] = {}
    for config_map in manifests.by_kind("ConfigMap"):
        for text in config_map.at("data", {}).values():
            try:
                entries = json.loads(text)
            except ValueError:
                continue
            if isinstance(entries, list) and all(isinstance(entry, dict) and "keys" in entry for entry in entries):
                made |= {entry["name"]: set(entry["keys"]) for entry in entries}
    return made


@pytest.fixture(scope="session")
def made_secrets() -> Callable[[Manifests], dict[str, set[str]]]:
    """Secret name -> keys, of the Secrets that the hook Job makes: it is told by a JSON list in a ConfigMap."""
    return _made_secrets


def own_secrets(values: Any) -> set[str]:
    """Names of Secrets that the user has made: to use, to pull images with, of extra volumes and sources."""
    if isinstance(values, list):
        return set().union(*(own_secrets(value) for value in values))
    if not isinstance(values, dict):
        return set()
    named = {values[key] for key in ("existingSecret", "secretName") if values.get(key)}
    named.update(values.get("imagePullSecrets", ()))
    if "secretRef" in values:
        named.add(values["secretRef"]["name"])
    return named.union(*(own_secrets(value) for value in values.values()))


def storage_classes(values: Any) -> set[str]:
    """Names of StorageClasses that values ask for."""
    if not isinstance(values, dict):
        return set()
    named = {values["storageClassName"]} if values.get("storageClassName") else set()
    return named.union(*(storage_classes(value) for value in values.values()))


@pytest.fixture(scope="session")
def given_with(
    scenario_values: Callable[[str], dict[str, Any]], render: Callable[..., Manifests]
) -> Callable[[Manifests], Given]:
    """What exists beside the objects of a rendering; found out once for all tests of one."""

    @functools.cache
    def found(manifests: Manifests) -> Given:
        values = scenario_values(manifests.scenario)
        services = {f"{m.name}-serve-svc": (8000,) for m in manifests.by_kind("RayService")}
        return Given(
            secrets={**dict.fromkeys(own_secrets(values)), **_made_secrets(manifests)},
            operator_labels=kuberay_labels,
            operator_services=services,
            objects={f"StorageClass/{name}" for name in storage_classes(values)},
            # A policy names who may come; that a values file switches it off does not make the name wrong.
            pods=[pod.labels for pod in render().pods()],
        )

    return found


@pytest.fixture
def given(
    manifests_of: Callable[[Manifest | Pod | Container], Manifests], given_with: Callable[[Manifests], Given]
) -> Callable[[Manifest | Pod | Container], Given]:
    """What exists beside the objects that were rendered together with a given one."""
    return lambda subject: given_with(manifests_of(subject))


@pytest.fixture(scope="session")
def scenario_values(pytestconfig: pytest.Config) -> Callable[[str], dict[str, Any]]:
    """What a scenario says on top of the chart's defaults: its values files and its overrides."""
    setup = pytestconfig.hook.pytest_chart_harness(config=pytestconfig)
    scenarios = {scenario.name: scenario for scenario in setup.scenarios}

    @functools.cache
    def content(name: str) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for file in scenarios[name].values:
            values = merged(values, load_yaml(file.read_text()))
        return merged(values, scenarios[name].overrides)

    return content


@pytest.fixture
def documented(pytestconfig: pytest.Config) -> Callable[[Path, str, str], str]:
    """What a document says at `<!-- NAME: begin -->`; with `--write-docs` it is made to say what is rendered."""

    def content(document: Path, name: str, rendered: str) -> str:
        text = document.read_text()
        place = re.search(f"<!-- {name}: begin .*?-->\n(.*?)\n<!-- {name}: end -->", text, re.DOTALL)
        assert place, f"{document.name} has no place for {name}"
        if pytestconfig.getoption("--write-docs"):
            document.write_text(text[: place.start(1)] + rendered + text[place.end(1) :])
            return rendered
        return place[1]

    return content
