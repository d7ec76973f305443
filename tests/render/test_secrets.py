"""No password stands in git, in a values file or in a rendered object."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from chart_harness import Chart, Container, Manifest, Manifests
from chart_harness.objects import load_yaml
from ci import paths

MadeSecrets = Callable[[Manifests], dict[str, set[str]]]

SECRET_NAME = re.compile(r"PASSWORD|PASSWD|SECRET|TOKEN|COOKIE|ACCESS_KEY|CREDENTIAL|PRIVATE_KEY", re.IGNORECASE)
NOT_SECRET = re.compile(r"(_FILE|_PATH|_NAME|_SPEC)$")
ASSIGNED = re.compile(
    r"(?i)\b(?P<name>[a-z0-9_.-]*(?:password|passwd|secret[_-]?key|cookie)[a-z0-9_.-]*)\"?\s*[:=]\s*\"?(?P<value>[^\s\",;}]+)"
)
PLACEHOLDER = re.compile(r"^[$@<{(\[%|]|^(true|false|null|none)$|^/|^rabbit_password_hashing|^scram", re.IGNORECASE)
HARMLESS = re.compile(r"^\s*(#|--).*$|:'\w+'", re.MULTILINE)
"""Comments, and variables of psql."""
URL_PASSWORD = re.compile(r"://[^/\s:@]+:(?P<password>[^@/\s]+)@")


def test_no_secret_is_rendered(manifest: Manifest) -> None:
    """Secrets are made in the cluster, or exist: a rendered one would stand in every release's history."""
    assert manifest.kind != "Secret", f"{manifest.id} would put its data into the release: {manifest.source}"


def test_secrets_reach_containers_by_reference(container: Container) -> None:
    for name, variable in container.env.items():
        if SECRET_NAME.search(name) and not NOT_SECRET.search(name) and variable.get("value"):
            assert PLACEHOLDER.match(str(variable["value"])), f"{container.id}: {name} has a plain value"


def test_no_text_holds_a_password(manifest: Manifest) -> None:
    for path, value in manifest.walk():
        if not isinstance(value, str):
            continue
        found = URL_PASSWORD.search(value)
        assert not found or PLACEHOLDER.match(found["password"]), f"{manifest.id}.{path}: a URL with a password"
        if manifest.kind == "ConfigMap":
            for match in ASSIGNED.finditer(HARMLESS.sub("", value)):
                assert PLACEHOLDER.match(match["value"]), f"{manifest.id}.{path}: {match[0]}"


@pytest.mark.parametrize("file", sorted(paths.REPOSITORY.glob("values/*.yaml")), ids=lambda file: file.stem)
def test_no_values_file_holds_a_password(file: Any) -> None:
    for path, value in leaves(load_yaml(file.read_text())):
        key = path.rpartition(".")[2]
        if SECRET_NAME.search(key) and not key.startswith("existing"):
            assert not isinstance(value, str) or not value, f"{file.name}: {path}"


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every scalar of a values file with its dotted path."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, node


def test_the_hook_makes_every_secret_that_is_used(manifests: Manifests, made_secrets: MadeSecrets) -> None:
    """And makes none that nothing uses."""
    made = made_secrets(manifests)
    used: dict[str, set[str]] = {}
    for container in manifests.containers():
        for variable in container.env.values():
            reference = (variable.get("valueFrom") or {}).get("secretKeyRef")
            if reference:
                used.setdefault(reference["name"], set()).add(reference["key"])
    for pod in manifests.pods():
        for volume in pod.volumes.values():
            if "secret" in volume:
                used.setdefault(volume["secret"]["secretName"], set())
    unused = {name for name in made if name not in used}
    assert not unused, f"made by the hook and used by nothing: {', '.join(sorted(unused))}"


def test_an_existing_secret_is_used_and_not_made(
    render: Callable[..., Manifests], chart: Chart, made_secrets: MadeSecrets
) -> None:
    values = load_yaml((chart.path / "values.yaml").read_text())
    credentials = values["global"]["secrets"]
    own = {name: {"existingSecret": f"own-{number}"} for number, name in enumerate(sorted(credentials))}
    objects = render(**{"global": {"secrets": own}})
    assert made_secrets(objects) == {}
    used = {
        (variable.get("valueFrom") or {}).get("secretKeyRef", {}).get("name")
        for container in objects.containers()
        for variable in container.env.values()
    }
    assert used - {None} <= {f"own-{number}" for number in range(len(own))}


def test_made_passwords_are_long_and_belong_to_the_release(manifests: Manifests) -> None:
    """192 bits at least, of letters and digits; found again, and not taken for somebody else's, by their labels."""
    found = manifests.find("ConfigMap", "secrets")
    if found is None:
        return
    for secret in json.loads(found.at("data")["secrets.json"]):
        assert secret["labels"] == {
            "app.kubernetes.io/part-of": "anomaly-detection-system",
            "app.kubernetes.io/instance": "ads",
            "app.kubernetes.io/component": "credentials",
        }, secret["name"]
        for key, about in secret["keys"].items():
            # A name is no secret: whoever looks for a user finds it in the policies of the store.
            named = key in ("root-user", "access-key-id")
            assert about.keys() == ({"value"} if named else {"length"}), f"{secret['name']}: {key}"
            assert named or 32 <= about["length"] <= 64, f"{secret['name']}: {key}"
