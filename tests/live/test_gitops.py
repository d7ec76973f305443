"""The chart under a controller that applies it again and again, as Argo CD does: nothing ever differs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from chart_harness import Manifests
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


class TestGitOps:
    """Nobody else writes what the chart writes, and the API server keeps it in the form the chart has."""

    @pytest.fixture
    def empty(self, home: Installation) -> Iterator[Namespace]:
        """A namespace in which controllers work and pods are not made; empty again afterwards."""
        home.namespace.kubectl("create", "quota", "no-pods", "--hard=pods=0")
        yield home.namespace
        home.namespace.kubectl("delete", "quota", "no-pods")

    def test_applied_twice_there_is_no_difference(
        self, rendered_for: Callable[[Namespace], Manifests], empty: Namespace
    ) -> None:
        rendered = rendered_for(empty)
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
