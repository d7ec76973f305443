"""Values are described, typed and checked: a typing error is refused with the name of the key."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from chart_harness import Chart, HelmError, Manifests, Renderer, Scenario
from chart_harness.objects import load_yaml
from ci import paths
from scenarios import BAD_VALUES

CHARTS = [paths.REPOSITORY, *sorted(file.parent for file in paths.REPOSITORY.glob("charts/*/Chart.yaml"))]
CHARTS_WITH_VALUES = [chart for chart in CHARTS if (chart / "values.yaml").exists()]
PACKAGE_LIMIT = 200 * 1024


def mappings(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every mapping of a values file that has keys, with its path."""
    if isinstance(node, dict) and node:
        yield path, node
        for key, value in node.items():
            yield from mappings(value, (*path, key))


def documented_keys(file: Path) -> Iterator[tuple[str, bool]]:
    """Every key of a values file with its dotted path, and whether a comment stands above it.

    Below a key whose form is given by a schema of its own (`@schema`), keys are that schema's business.
    """
    lines = file.read_text().splitlines()

    def comment_above(line: int) -> str:
        above = []
        while line > 0 and lines[line - 1].lstrip().startswith("#"):
            line -= 1
            above.append(lines[line])
        return "\n".join(above)

    def keys(node: yaml.Node, path: str) -> Iterator[tuple[str, bool]]:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                comment = comment_above(key.start_mark.line)
                name = f"{path}.{key.value}" if path else key.value
                yield name, bool(comment)
                if "@schema" not in comment:
                    yield from keys(value, name)

    root = yaml.compose(file.read_text(), Loader=yaml.CSafeLoader)
    assert root is not None, f"{file} is empty"
    yield from keys(root, "")


@pytest.mark.parametrize(
    "chart", CHARTS_WITH_VALUES, ids=lambda path: path.name if path.parent.name == "charts" else "umbrella"
)
def test_every_key_is_described(chart: Path) -> None:
    missing = [name for name, described in documented_keys(chart / "values.yaml") if not described]
    assert not missing, f"{chart.name}/values.yaml: no comment above {', '.join(missing)}"


@pytest.mark.parametrize(
    "chart", CHARTS_WITH_VALUES, ids=lambda path: path.name if path.parent.name == "charts" else "umbrella"
)
def test_every_key_is_typed(chart: Path) -> None:
    """And the schema knows no key that the values do not have."""
    schema = json.loads((chart / "values.schema.json").read_text())
    jsonschema.validators.validator_for(schema).check_schema(schema)
    values = load_yaml((chart / "values.yaml").read_text())
    untyped = [
        ".".join((*path, key)) for path, node in mappings(values) for key in node if not typed(schema, (*path, key))
    ]
    assert not untyped, f"{chart.name}/values.schema.json: no type for {', '.join(untyped)}"


def typed(schema: dict[str, Any], path: tuple[str, ...]) -> bool:
    """Whether a schema says what may stand at a path."""
    node: Any = schema
    for key in path:
        node = resolved(schema, node)
        if key in node.get("properties", {}):
            node = node["properties"][key]
        elif isinstance(node.get("additionalProperties"), dict):
            node = node["additionalProperties"]
        else:
            # What an open object holds is not the chart's to type (a subchart's values, an affinity).
            return node.get("type") == "object" and node.get("additionalProperties") is not False
    return bool({"type", "enum", "const", "$ref", "anyOf", "oneOf"} & node.keys())


def resolved(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """A node of a schema with its local reference followed."""
    while "$ref" in node:
        target: Any = schema
        for key in node["$ref"].removeprefix("#/").split("/"):
            target = target[key]
        node = {**target, **{name: value for name, value in node.items() if name != "$ref"}}
    return node


@pytest.mark.parametrize(
    "folder", CHARTS_WITH_VALUES, ids=lambda path: path.name if path.parent.name == "charts" else "umbrella"
)
def test_an_unknown_key_is_refused_at_every_level(folder: Path, chart: Chart, renderer: Renderer) -> None:
    """One rendering with a misspelt key in every mapping: helm has to name each of them."""
    values = load_yaml((folder / "values.yaml").read_text())
    expected = []
    for number, (path, node) in enumerate(list(mappings(values))):
        # An object where a key is allowed (a node selector) still must not pass: no free key takes an object.
        name = f"unknownKey{number}x"
        node[name] = {"unknown": {"unknown": "value"}}
        expected.append((name, ".".join(path) or "the top"))
    if folder != chart.path:
        values = {folder.name: values}
    with pytest.raises(HelmError) as error:
        renderer.text(chart, Scenario("unknown keys", overrides=values))
    accepted = [where for name, where in expected if name not in str(error.value)]
    assert not accepted, f"unknown keys are accepted at {', '.join(accepted)}"


def together(values: dict[str, Any], more: dict[str, Any]) -> dict[str, Any] | None:
    """Both values in one; None where they say something of the same key."""
    result = dict(values)
    for key, value in more.items():
        if key not in result:
            result[key] = value
            continue
        both = together(result[key], value) if isinstance(result[key], dict) and isinstance(value, dict) else None
        if both is None:
            return None
        result[key] = both
    return result


def bad_values() -> Iterator[Any]:
    """Every entry of bad_values.yaml, with the values of all entries that are rendered together with it."""
    for kind, entries in BAD_VALUES.items():
        batches: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
        for entry in entries:
            for number, (values, members) in enumerate(batches):
                if (both := together(values, entry["values"])) is not None:
                    batches[number] = (both, [*members, entry])
                    break
            else:
                batches.append((entry["values"], [entry]))
        for values, members in batches:
            yield from (pytest.param(values, entry, id=f"{kind}-{json.dumps(entry['values'])}") for entry in members)


@pytest.mark.parametrize(("values", "bad"), list(bad_values()))
def test_a_bad_value_is_refused_by_name(
    values: dict[str, Any], bad: dict[str, Any], chart: Chart, renderer: Renderer
) -> None:
    with pytest.raises(HelmError) as error:
        renderer.text(chart, Scenario("bad values", overrides=values))
    unsaid = [text for text in bad["says"] if text not in str(error.value)]
    assert not unsaid, f"helm does not say {unsaid}, but:\n{error.value}"


def test_the_registry_of_every_image_is_one_value(render: Callable[..., Manifests]) -> None:
    objects = render(**{"global": {"imageRegistry": "mirror.example.org/path"}})
    for container in objects.containers():
        assert container.spec["image"].startswith("mirror.example.org/path/"), container.id


def test_the_package_is_small(chart: Chart, renderer: Renderer, tmp_path: Path) -> None:
    """A release is kept in a Secret, whose limit is 1 MB; a chart that packs its repository does not install."""
    done = subprocess.run(
        [renderer.helm, "package", chart.path, "--destination", tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (package,) = tmp_path.glob("*.tgz")
    assert package.stat().st_size < PACKAGE_LIMIT
    assert renderer.text(Chart(unpacked(package, tmp_path)), Scenario("package")) == renderer.text(
        chart, Scenario("package")
    )


def unpacked(package: Path, folder: Path) -> Path:
    """The chart folder of a package."""
    subprocess.run(["tar", "-xzf", package, "-C", folder], check=True)
    (file,) = folder.glob("*/Chart.yaml")
    return file.parent
