"""`helm upgrade` from the release before changes no immutable field, and says which pods restart.

What that release fixed is in `released.json`; `docs/testing.md` says how a release makes the next one.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from chart_harness import Manifests, immutable_changes, restarts
from chart_harness.upgrade import read_baseline

RELEASED = Path(__file__).with_name("released.json")


@pytest.fixture(scope="session")
def released() -> tuple[str, dict[str, Manifests]]:
    """Version and objects of the release before, by scenario."""
    return read_baseline(RELEASED)


def test_an_upgrade_is_not_refused(manifests: Manifests, released: tuple[str, dict[str, Manifests]]) -> None:
    """Helm would stop half-way, with the objects before the refused one already changed."""
    version, scenarios = released
    if manifests.scenario not in scenarios:
        pytest.skip(f"{version} had no values for {manifests.scenario}")
    before = scenarios[manifests.scenario]
    for restart in restarts(before, manifests):
        print(f"an upgrade from {version} restarts {restart}")
    refused = [str(change) for change in immutable_changes(before, manifests)]
    assert refused == [], f"an upgrade from {version} would be refused"


def test_the_release_before_is_told_in_full(released: tuple[str, dict[str, Manifests]]) -> None:
    version, scenarios = released
    assert version
    for name, manifests in scenarios.items():
        kinds = {manifest.kind for manifest in manifests}
        assert {"Deployment", "StatefulSet", "Service", "RayService"} <= kinds, name
        assert restarts(manifests, manifests) == []
