"""The chart sets what the images read, and nothing else: both sides of every environment variable."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from chart_harness import Container, Manifests
from ci import paths
from pydantic_settings import BaseSettings

SERVICES = {
    "Deployment/training-api": ("training-api", "training_api"),
    "Deployment/training-worker": ("training-worker", "training_worker"),
    "RayService/anomaly-detector": ("ray-serve", "anomaly_detector"),
}
"""Owner of the pods -> folder of the image and its package."""

READ_BY_LIBRARIES = {
    "HOME": "programs that keep files in the home directory; the image's own is read-only",
    "MALLOC_ARENA_MAX": "glibc",
    "PGSSLMODE": "libpq",
    "PYTHONDONTWRITEBYTECODE": "Python",
}
"""Variables that a service's own code does not read, and who does. `RAY_*` is Ray's."""


def settings_of(image: str, package: str) -> set[str]:
    """Names of the variables a service reads: the fields of every settings class its code mentions."""
    sources = [ast.parse(file.read_text()) for file in (paths.REPOSITORY / "images" / image / package).rglob("*.py")]
    mentioned = {
        node.id if isinstance(node, ast.Name) else node.name
        for source in sources
        for node in ast.walk(source)
        if isinstance(node, ast.Name | ast.ClassDef)
    }
    found: set[str] = set()
    for module in modules(image, package):
        for name, settings in vars(importlib.import_module(module)).items():
            if name in mentioned and isinstance(settings, type) and issubclass(settings, BaseSettings):
                prefix = settings.model_config.get("env_prefix", "")
                found |= {f"{prefix}{field}".upper() for field in settings.model_fields}
    return found


def modules(image: str, package: str) -> Iterator[str]:
    """Modules that may define settings."""
    yield "anomaly_detection.settings"
    if (paths.REPOSITORY / "images" / image / package / "settings.py").exists():
        yield f"{package}.settings"


@pytest.fixture(scope="module", autouse=True)
def image_code() -> Iterator[None]:
    """Make the images' packages importable."""
    with pytest.MonkeyPatch.context() as patch:
        for folder in ("common", *(image for image, _ in SERVICES.values())):
            patch.syspath_prepend(str(paths.REPOSITORY / "images" / folder))
        yield


def main_containers(manifests: Manifests, owner: str) -> list[Container]:
    """The containers that run a service; none where it is switched off."""
    kind, _, name = owner.partition("/")
    found = manifests.find(kind, name)
    return [c for pod in found.pods for c in pod.containers if not c.init] if found else []


def extra_variables(values: Any) -> set[str]:
    """Variables that the user of the values adds; they are the user's business."""
    if not isinstance(values, dict):
        return set()
    own = {variable["name"] for variable in values.get("extraEnv", [])}
    return own.union(*(extra_variables(value) for value in values.values()))


@pytest.mark.parametrize("owner", SERVICES)
def test_what_is_set_is_read(
    renderings: list[Manifests], owner: str, scenario_values: Callable[[str], dict[str, Any]]
) -> None:
    read = settings_of(*SERVICES[owner])
    assert read, f"no settings found for {owner}"
    assert any(main_containers(manifests, owner) for manifests in renderings), f"no scenario has {owner}"
    for manifests in renderings:
        extra = extra_variables(scenario_values(manifests.scenario))
        for container in main_containers(manifests, owner):
            unread = {
                name
                for name in container.env.keys() - read - READ_BY_LIBRARIES.keys() - extra
                if not (name.startswith("RAY_") and owner.startswith("RayService"))
            }
            assert not unread, f"{manifests.scenario}: {container.id}: set, but not read: {sorted(unread)}"


@pytest.mark.parametrize("owner", SERVICES)
def test_what_is_read_is_set(renderings: list[Manifests], owner: str) -> None:
    """Defaults in the code are for tests; in a cluster every setting is visible in the pod."""
    read = settings_of(*SERVICES[owner])
    for manifests in renderings:
        for container in main_containers(manifests, owner):
            unset = read - container.env.keys()
            assert not unset, f"{manifests.scenario}: {container.id}: read, but not set: {sorted(unset)}"
