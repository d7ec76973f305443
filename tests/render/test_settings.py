"""The chart sets what the images read, and nothing else: both sides of every environment variable of every image."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chart_harness import Container, Manifests
from ci import paths
from pydantic_core import PydanticUndefined
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
    return {
        variable(settings, field) for settings in settings_classes(image, package) for field in settings.model_fields
    }


def variable(settings: type[BaseSettings], field: str) -> str:
    """The variable that a field is read from."""
    return f"{settings.model_config.get('env_prefix', '')}{field}".upper()


@functools.cache
def settings_classes(image: str, package: str) -> list[type[BaseSettings]]:
    """Every settings class that a service's code mentions."""
    sources = [ast.parse(file.read_text()) for file in (paths.REPOSITORY / "images" / image / package).rglob("*.py")]
    mentioned = {
        node.id if isinstance(node, ast.Name) else node.name
        for source in sources
        for node in ast.walk(source)
        if isinstance(node, ast.Name | ast.ClassDef)
    }
    return [
        settings
        for module in modules(image, package)
        for name, settings in vars(importlib.import_module(module)).items()
        if name in mentioned and isinstance(settings, type) and issubclass(settings, BaseSettings)
    ]


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


@pytest.mark.parametrize("owner", SERVICES)
def test_what_is_set_is_accepted(renderings: list[Manifests], owner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service checks its settings when it starts; here they are checked before."""
    for manifests in renderings:
        for container in main_containers(manifests, owner):
            for name, entry in container.env.items():
                monkeypatch.setenv(name, str(entry.get("value", "from a Secret")))
            for settings in settings_classes(*SERVICES[owner]):
                settings()


@pytest.mark.parametrize("owner", SERVICES)
def test_defaults_are_those_of_the_code(
    renderings: list[Manifests], owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number stands in the code, where unit tests try it, and in the values, where it is changed: one number."""
    (container,) = main_containers(next(m for m in renderings if m.scenario == "defaults"), owner)
    for name, entry in container.env.items():
        monkeypatch.setenv(name, str(entry.get("value", "from a Secret")))
    for settings in settings_classes(*SERVICES[owner]):
        chosen = settings()
        for field, about in settings.model_fields.items():
            if about.default is not PydanticUndefined and not isinstance(about.default, Path):
                assert getattr(chosen, field) == about.default, (
                    f"{variable(settings, field)} in the values and the code"
                )


def read_by_tool(command: str) -> set[str]:
    """Variables that a command of the tools image reads: what its module passes to `setting`."""
    source = (paths.REPOSITORY / "images" / "tools" / "ads_tools" / f"{command.replace('-', '_')}.py").read_text()
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setting":
            if isinstance(node.args[0], ast.Constant):
                found.add(str(node.args[0].value))
            else:
                # `setting(f"{prefix}_ACCESS_KEY_ID")`, with the prefixes in the tuples that it loops over.
                suffix = re.sub(r"^f.\{\w+\}|.$", "", ast.unparse(node.args[0]))
                found |= {prefix + suffix for prefix in re.findall(r'^\s*\("([A-Z]+)", ', source, re.MULTILINE)}
    return found


SET_BY_KUBERNETES = {"KUBERNETES_SERVICE_HOST": "in every container, also without service links"}
"""Variables that no manifest has to set, and where they are set."""


@pytest.mark.parametrize("command", ["secrets", "object-store", "smoke"])
def test_tools_are_told_what_they_read(
    renderings: list[Manifests], command: str, scenario_values: Callable[[str], dict[str, Any]]
) -> None:
    read = read_by_tool(command)
    assert read, f"{command} reads nothing?"
    tools = [
        (manifests, container)
        for manifests in renderings
        for container in manifests.containers()
        if (container.spec.get("command") or [])[-2:] == ["ads_tools", command]
    ]
    assert tools, f"no scenario runs {command}"
    for manifests, container in tools:
        unread = container.env.keys() - read - extra_variables(scenario_values(manifests.scenario))
        assert not unread, f"{manifests.scenario}: {container.id}: set, but not read: {sorted(unread)}"
        unset = read - container.env.keys() - SET_BY_KUBERNETES.keys()
        assert not unset, f"{manifests.scenario}: {container.id}: read, but not set: {sorted(unset)}"


READ_BY_MLFLOWS_LIBRARIES = {
    "AWS_ACCESS_KEY_ID": "boto3",
    "AWS_DEFAULT_REGION": "boto3",
    "AWS_SECRET_ACCESS_KEY": "boto3",
    "PGPASSWORD": "libpq",
}
"""What MLflow's code does not read, and who does."""


def test_mlflow_reads_what_it_is_told(
    renderings: list[Manifests], scenario_values: Callable[[str], dict[str, Any]]
) -> None:
    """The image has no code of ours; its variables are those of MLflow's options and settings, in the version it runs.

    Everything it could be told besides has a default of MLflow's, so that there is no other side.
    """
    (folder,) = importlib.util.find_spec("mlflow").submodule_search_locations  # type: ignore[union-attr,misc]
    files = ["environment_variables.py", "utils/cli_args.py", "cli/__init__.py"]
    texts = "".join((Path(folder) / file).read_text() for file in files)
    read = set(re.findall(r"[\"'](MLFLOW_[A-Z0-9_]+)[\"']", texts))
    for manifests in renderings:
        extra = extra_variables(scenario_values(manifests.scenario))
        deployment = manifests.find("Deployment", "mlflow-server")
        for container in deployment.pods[0].containers if deployment else ():
            known = read | READ_BY_LIBRARIES.keys() | READ_BY_MLFLOWS_LIBRARIES.keys() | extra
            assert not container.env.keys() - known, f"{container.id}: {sorted(container.env.keys() - known)}"
            assert container.env["MLFLOW_BACKEND_STORE_URI"]["value"].startswith("postgresql+psycopg://")


def test_every_image_of_ours_has_a_test_here() -> None:
    ours = {folder.parent.name for folder in (paths.REPOSITORY / "images").glob("*/Dockerfile")}
    assert ours == {image for image, _ in SERVICES.values()} | {"tools", "mlflow"}
