"""Every object is valid, named once, and labelled as ours."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from chart_harness import Chart, Exemptions, Manifest, Manifests, SchemaStore
from chart_harness.objects import load_yaml
from ci.cluster import programs

NAMESPACE = "ml-dev"
OWNER_LABELS = {"app.kubernetes.io/instance": "ads", "app.kubernetes.io/managed-by": "Helm",
                "app.kubernetes.io/part-of": "anomaly-detection-system"}  # fmt: skip


def test_objects_are_valid(manifest: Manifest, schemas_by_version: Mapping[str, SchemaStore]) -> None:
    """Against the schema of every supported Kubernetes, or of the custom resource; unknown kinds and fields fail."""
    problems: dict[str, list[str]] = {}
    for version, schemas in schemas_by_version.items():
        for problem in schemas.problems(manifest):
            problems.setdefault(str(problem), []).append(version)
    assert not problems, f"{manifest.id} ({manifest.source})\n" + "\n".join(
        f"  - {problem} (Kubernetes {', '.join(versions)})" for problem, versions in problems.items()
    )


def test_the_schemas_are_those_of_the_cluster(schemas: SchemaStore) -> None:
    """`make up` runs one of the versions that the manifests are validated against."""
    assert programs.kubernetes_version() in schemas.versions("kubernetes")
    kuberay = programs.module_version("kubernetes", "github.com/ray-project/kuberay/ray-operator")
    assert schemas.versions("kuberay") == [kuberay]


def test_there_are_schemas_of_every_supported_kubernetes(schemas: SchemaStore, chart: Chart) -> None:
    """From the version that Chart.yaml asks for on, every minor one, without a gap."""
    (oldest,) = re.findall(r">=\s*1\.(\d+)", load_yaml((chart.path / "Chart.yaml").read_text())["kubeVersion"])
    minors = [int(version.split(".")[1]) for version in schemas.versions("kubernetes")]
    assert minors == list(range(int(oldest), int(oldest) + len(minors)))


def test_no_two_objects_share_a_name(manifests: Manifests) -> None:
    counts = Counter((m.api_version, m.kind, m.namespace, m.name) for m in manifests)
    assert not [key for key, count in counts.items() if count > 1]


def test_objects_belong_to_the_release(manifest: Manifest, exemptions: Exemptions) -> None:
    problems = [f"no label {n}={v}" for n, v in OWNER_LABELS.items() if manifest.labels.get(n) != v]
    problems += [
        f"no label {name}"
        for name in ("app.kubernetes.io/name", "app.kubernetes.io/component", "helm.sh/chart")
        if not manifest.labels.get(name)
    ]
    if manifest.namespace != NAMESPACE:
        problems.append(f"its namespace is {manifest.namespace}, not the release's")
    exemptions.check("owner", manifest.id, problems)


def test_the_seeds_names_are_kept(manifests: Manifests, scenario_values: Callable[[str], dict[str, Any]]) -> None:
    """The commands that users of the seed know keep working, for every part that is not switched off."""
    values = scenario_values(manifests.scenario)

    def enabled(*path: str) -> bool:
        node: Any = values
        for key in path:
            node = node.get(key, {})
        return node.get("enabled", True) is not False

    for part, kind, name, ports in (
        (("mlflow", "server"), "Service", "mlflow-server", {5000}),
        (("rabbitmq",), "Service", "rabbitmq", {5672, 15672, 15692}),
        (("training-api",), "Service", "training-api", {8030}),
        (("training-worker",), "Deployment", "training-worker", set()),
        (("ray-serve",), "Service", "ray-serve", {8000, 8265}),
        (("ray-serve",), "RayService", "anomaly-detector", set()),
    ):
        if enabled(*part):
            found = manifests.one(kind, name)
            assert ports <= {port["port"] for port in found["spec"].get("ports", [])}, found
        else:
            assert manifests.find(kind, name) is None, f"{name} is switched off"


def test_hooks_clean_up_before_they_run_again(manifest: Manifest) -> None:
    """A hook that is left over would fail the next install or upgrade with «already exists»."""
    if manifest.hooks:
        policies = manifest.annotations.get("helm.sh/hook-delete-policy", "before-hook-creation")
        assert "before-hook-creation" in policies, manifest


def test_jobs_end(manifest: Manifest) -> None:
    """A Job without a limit keeps `helm install` waiting until its own timeout, with nothing said."""
    if manifest.kind == "Job":
        assert manifest.at("spec.activeDeadlineSeconds"), manifest
        assert manifest.at("spec.backoffLimit") is not None, manifest
