"""Every object is valid, named once, and labelled as ours."""

from __future__ import annotations

from collections import Counter

from chart_harness import Exemptions, Manifest, Manifests, SchemaStore
from ci.cluster import programs

NAMESPACE = "ml-dev"
OWNER_LABELS = {"app.kubernetes.io/instance": "ads", "app.kubernetes.io/managed-by": "Helm",
                "app.kubernetes.io/part-of": "anomaly-detection-system"}  # fmt: skip


def test_objects_are_valid(manifest: Manifest, schemas: SchemaStore) -> None:
    """Against Kubernetes' own schema, or that of the custom resource definition; unknown kinds and fields fail."""
    problems = schemas.problems(manifest)
    assert not problems, f"{manifest.id} ({manifest.source})\n" + "\n".join(f"  - {problem}" for problem in problems)


def test_the_schemas_are_those_of_the_cluster(schemas: SchemaStore) -> None:
    """`make up` runs the versions that the manifests are validated against."""
    kuberay = programs.module_version("kubernetes", "github.com/ray-project/kuberay/ray-operator")
    expected = {f"kubernetes-{programs.kubernetes_version()}.json", f"kuberay-{kuberay}.json"}
    # The cluster of `make up` has no KEDA.
    assert {file.name for file in schemas.folder.glob("*.json") if not file.name.startswith("keda-")} == expected


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


def test_the_seeds_names_are_kept(manifests: Manifests) -> None:
    """The commands that users of the seed know keep working."""
    for name, ports in {
        "mlflow-server": {5000},
        "rabbitmq": {5672, 15672, 15692},
        "training-api": {8030},
        "ray-serve": {8000, 8265},
    }.items():
        service = manifests.one("Service", name)
        assert ports <= {port["port"] for port in service["spec"]["ports"]}, service
    manifests.one("RayService", "anomaly-detector")
    manifests.one("Deployment", "training-worker")


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
