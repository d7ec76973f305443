"""The chart under a controller that applies it again and again, as Argo CD does: nothing ever differs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
from chart_harness import Chart, Manifests, Renderer, Scenario
from chart_harness.live import Namespace, wait_for
from live.system import Installation

MANAGER = "--field-manager=argocd-controller"
FOLLOWED = "deployments,statefulsets,poddisruptionbudgets,horizontalpodautoscalers,rayservices.ray.io"
"""What a controller writes to: its status, and perhaps more."""


def observed(namespace: Namespace) -> bool:
    """Whether the controllers have seen all objects as they are now."""
    for item in namespace.get(FOLLOWED):
        name = f"{item['kind']}/{item['metadata']['name']}"
        status = item.get("status", {})
        assert status, f"{name} has no status"
        # A HorizontalPodAutoscaler has no generation.
        generation = item["metadata"].get("generation", 0)
        assert status.get("observedGeneration", generation) >= generation, f"{name} was not seen"
    return True


def custom(api_version: str, kind: str) -> dict[str, object]:
    """A definition of a custom resource that takes any field, in the place of an operator that is not installed."""
    group, _, version = api_version.partition("/")
    plural = f"{kind.lower()}s"
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    served = {"name": version, "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    names = {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {"group": group, "scope": "Namespaced", "names": names, "versions": [served]},
    }


class TestGitOps:
    """Nobody else writes what the chart writes, and the API server keeps it in the form the chart has."""

    @pytest.fixture(scope="class")
    def defined(self, home: Installation, renderings: list[Manifests]) -> Iterator[None]:
        """Every kind of every scenario is known to the API server; what is made for that goes afterwards."""
        served = home.namespace.kubectl("api-resources", "--no-headers", "--output", "wide").stdout.split()
        kinds = {(manifest["apiVersion"], manifest.kind) for manifests in renderings for manifest in manifests}
        missing = [custom(version, kind) for version, kind in sorted(kinds) if kind not in served]
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": missing})
        if missing:
            home.namespace.kubectl("create", "--filename", "-", stdin=text)
            home.namespace.kubectl(
                "wait", "--for=condition=Established", "--timeout=60s", "--filename", "-", stdin=text
            )
        yield
        if missing:
            home.namespace.kubectl("delete", "--filename", "-", stdin=text)

    @pytest.fixture
    def empty(self, home: Installation, defined: None) -> Iterator[Namespace]:
        """A namespace in which controllers work and pods are not made; empty again afterwards."""
        home.namespace.kubectl("create", "quota", "no-pods", "--hard=pods=0")
        yield home.namespace
        home.namespace.kubectl("delete", "quota", "no-pods")

    def test_applied_twice_there_is_no_difference(
        self, scenario: Scenario, chart: Chart, renderer: Renderer, empty: Namespace
    ) -> None:
        rendered = renderer.render(chart, replace(scenario, namespace=empty.name))
        # Argo CD runs hooks as Jobs of a sync and compares none of them.
        compared = Manifests([manifest for manifest in rendered if not manifest.hooks])
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": [dict(manifest) for manifest in compared]})
        words = ("--server-side", MANAGER, "--filename", "-")
        try:
            for _ in range(2):
                # Fails where another manager has taken a field over.
                empty.kubectl("apply", *words, stdin=text)
                wait_for(lambda: observed(empty), "the controllers", 60)
            difference = empty.kubectl("diff", *words, stdin=text, check=False)
            assert difference.returncode == 0, difference.stdout + difference.stderr
        finally:
            empty.kubectl("delete", "--wait=false", "--ignore-not-found", "--filename", "-", stdin=text)
            wait_for(lambda: not empty.get(FOLLOWED), "the objects to go", 60)
            empty.kubectl("delete", "persistentvolumeclaims", "--all", "--wait=false")
