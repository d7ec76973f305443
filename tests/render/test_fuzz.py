"""Values nobody thought of: what the schema accepts renders and is valid, what it refuses helm refuses too.

`FUZZ_EXAMPLES` sets the number of renderings of each test (12 by default). The values are the same in every
run, unless `FUZZ_SEED` names another seed, 0 for a random one.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jsonschema
from chart_harness import Chart, HelmError, Manifests, Renderer, Scenario, SchemaStore
from chart_harness.objects import load_yaml
from ci import paths
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from scenarios import merged

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "12"))
SEED = int(os.environ.get("FUZZ_SEED", "20261121"))

fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    # No shrinking: every step would be a rendering, and the values of one example are few enough to read.
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much,
                           HealthCheck.function_scoped_fixture],
)  # fmt: skip

CHARTS = ("mlflow", "rabbitmq", "training-api", "training-worker", "ray-serve")

KUBERNETES_OBJECTS: Mapping[str, list[Any]] = {
    "objects": [[], [{"podSelector": {"matchLabels": {"app": "a"}}}], [{"ipBlock": {"cidr": "10.0.0.0/8"}}]],
    "volumes": [[], [{"name": "a", "emptyDir": {}}], [{"name": "b", "secret": {"secretName": "c"}}]],
    "topologySpreadConstraints": [
        [],
        [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}],
    ],
    "affinity": [{}, {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}}],
}
"""Definitions whose content Kubernetes defines, not the chart: a few valid examples in place of any object."""

RULES: Mapping[str, list[Any]] = {
    "extraIngress": [[], [{"from": [{"podSelector": {}}], "ports": [{"port": 1}]}]],
    "extraEgress": [[], [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]],
}
"""The same for keys."""


def folder_of(chart: str) -> Path:
    """The folder of a part, or of the umbrella (empty name)."""
    return paths.REPOSITORY / "charts" / chart if chart else paths.REPOSITORY


@functools.cache
def schema_of(chart: str) -> dict[str, Any]:
    """The schema of a chart's values."""
    schema: dict[str, Any] = json.loads((folder_of(chart) / "values.schema.json").read_text())
    return schema


@functools.cache
def defaults_of(chart: str) -> dict[str, Any]:
    """A chart's values."""
    values: dict[str, Any] = load_yaml((folder_of(chart) / "values.yaml").read_text())
    return values


def values_of(schema: Mapping[str, Any], definitions: Mapping[str, Any], key: str = "") -> SearchStrategy[Any]:
    """Values that a schema accepts; of an object's keys some, so that the chart's defaults stay for the others."""
    if key in RULES:
        return st.sampled_from(RULES[key])
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/$defs/")
        if name in KUBERNETES_OBJECTS:
            return st.sampled_from(KUBERNETES_OBJECTS[name])
        return values_of(definitions[name], definitions, key)
    if "allOf" in schema:
        return values_of(schema["allOf"][0], definitions, key).filter(_accepts(schema, definitions))
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return st.one_of([_of_kind(kind, schema, definitions) for kind in kinds])


def _accepts(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Callable[[Any], bool]:
    validator = jsonschema.Draft7Validator({**schema, "$defs": definitions})
    accepts: Callable[[Any], bool] = validator.is_valid
    return accepts


def _of_kind(kind: str, schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> SearchStrategy[Any]:
    match kind:
        case "null":
            return st.none()
        case "boolean":
            return st.booleans()
        case "integer":
            low, high = schema.get("minimum", -(10**6)), schema.get("maximum", 2**40)
            return st.one_of(st.integers(low, high), st.sampled_from([low, high]))
        case "number":
            least, most = schema.get("minimum", 0), schema.get("maximum", 1000)
            return st.one_of(
                st.integers(math.ceil(least), math.floor(most)),
                st.floats(least, most, allow_nan=False).map(lambda number: round(number, 3)),
            ).filter(_accepts(schema, definitions))
        case "string":
            return _texts(schema)
        case "array":
            return st.lists(values_of(schema["items"], definitions), max_size=2, unique_by=json.dumps)
        case _:
            return _objects(schema, definitions)


def _texts(schema: Mapping[str, Any]) -> SearchStrategy[str]:
    """Texts of a pattern, and among them those that YAML reads as something else when they are not quoted."""
    treacherous = st.sampled_from(
        ["true", "null", "1e3", "0x10", "1", "007", "no", "~", "a: b", "- a", "#", "{{ . }}", ""]
    )
    if "pattern" in schema:
        # Short repetitions only: a name of 250 letters shows nothing that one of five does not, and takes long to draw.
        short = re.sub(r"\{(\d+),(\d+)\}", lambda m: f"{{{m[1]},{min(int(m[2]), int(m[1]) + 3)}}}", schema["pattern"])
        anything = st.from_regex(short.replace("$", r"\Z"), fullmatch=True, alphabet=st.characters(codec="ascii"))
        printable = anything.filter(lambda text: text.isprintable() and len(text) < 300)
        accepted = treacherous.filter(_accepts({"type": "string", **schema}, {}))
        return st.one_of(printable, accepted)
    any_text = st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=12)
    return st.one_of(any_text, treacherous).filter(_accepts(schema, {}))


def _objects(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> SearchStrategy[dict[str, Any]]:
    properties = schema.get("properties")
    if properties is None:
        if not isinstance(schema.get("additionalProperties"), dict):
            return st.just({})
        names = st.from_regex(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
        return st.dictionaries(names, values_of(schema["additionalProperties"], definitions), max_size=2)
    required = schema.get("required", [])
    fields = {name: values_of(part, definitions, name) for name, part in properties.items() if name != "global"}
    optional = sorted(fields.keys() - set(required))
    most = schema.get("maxProperties", 6)
    least = min(schema.get("minProperties", 0), len(optional))
    some = st.lists(st.sampled_from(optional), unique=True, min_size=least, max_size=most) if optional else st.just([])
    return some.flatmap(lambda names: st.fixed_dictionaries({name: fields[name] for name in [*required, *names]}))


@functools.cache
def parts() -> SearchStrategy[dict[str, Any]]:
    """Values of the whole chart: some of the umbrella's keys, and some of every part's."""
    umbrella = schema_of("")
    own = {name: part for name, part in umbrella["properties"].items() if name in ("global", "tools")}
    strategies = {name: values_of(part, umbrella["$defs"]) for name, part in own.items()}
    for chart in CHARTS:
        schema = schema_of(chart)
        strategies[chart] = values_of(schema, schema["$defs"])
    return st.fixed_dictionaries(strategies)


def consistent(values: dict[str, Any]) -> dict[str, Any]:
    """The same values without what contradicts itself by chance, so that most examples come to be rendered."""
    result: dict[str, Any] = {k: consistent(v) if isinstance(v, dict) else v for k, v in values.items()}
    for low, high in (("minReplicas", "maxReplicas"), ("minPoints", "maxPoints")):
        if low in result or high in result:
            numbers = [result[key] for key in (low, high) if key in result]
            result |= {low: min(numbers), high: max(numbers)}
    if "resources" in result:
        limits = result["resources"].get("limits", {})
        result["resources"] = {"requests": {"cpu": "1m", "memory": "1"}, "limits": limits}
    if result.get("type") == "Recreate":
        result["rollingUpdate"] = None
    return result


def rendered(renderer: Renderer, chart: Chart, values: Mapping[str, Any]) -> tuple[str, str]:
    """What helm makes of values, and what it says when it refuses."""
    try:
        return renderer.text(chart, Scenario("fuzz", overrides=values)), ""
    except HelmError as error:
        return "", str(error)


def seeded(test: Callable[..., None]) -> Callable[..., None]:
    """The same examples in every run, unless asked for others."""
    return fuzzed(seed(SEED)(test) if SEED else test)


CONTRADICTION = "the values contradict each other"
"""How templates/_validation.tpl begins: what no schema can refuse."""


@seeded
@given(values=parts().map(consistent))
def test_what_the_schema_accepts_renders_and_is_valid(
    values: dict[str, Any], chart: Chart, renderer: Renderer, schemas_by_version: Mapping[str, SchemaStore]
) -> None:
    text, error = rendered(renderer, chart, values)
    assert not error or CONTRADICTION in error, error
    for manifest in Manifests.parse(text, "fuzz"):
        for version, schemas in schemas_by_version.items():
            problems = schemas.problems(manifest)
            assert not problems, f"Kubernetes {version}: {manifest}: {'; '.join(map(str, problems))}"


WRONG = [-5, 7, 2.5, True, "two words", "", [1], ["a"], {}, {"unknownKey": "a"}]
"""Values put in place of another; some places take some of them."""


@st.composite
def damaged(draw: st.DrawFn) -> dict[str, Any]:
    """Values that the schema accepts, of which one is replaced by something that may be wrong."""
    values = consistent(draw(parts()))
    node: Any = values
    while True:
        key = draw(st.sampled_from(sorted(node)))
        if isinstance(node[key], dict) and node[key] and draw(st.booleans()):
            node = node[key]
            continue
        node[key] = draw(st.sampled_from(WRONG))
        return values


def accepted(values: Mapping[str, Any]) -> bool:
    """Whether the schemas accept values on top of the defaults; helm does not ask the schema of a part that is off."""
    whole = merged(defaults_of(""), values)
    if not jsonschema.Draft7Validator(schema_of("")).is_valid(whole):
        return False
    for chart in CHARTS:
        own = merged(defaults_of(chart), whole[chart])
        off = own.get("enabled") is False
        if not off and not jsonschema.Draft7Validator(schema_of(chart)).is_valid(own):
            return False
    return True


@seeded
@given(values=damaged())
def test_what_the_schema_refuses_helm_refuses(values: dict[str, Any], chart: Chart, renderer: Renderer) -> None:
    _, error = rendered(renderer, chart, values)
    # The second: what is no map cannot be a part's values, which helm says before it asks a schema.
    refused = "values don't meet the specifications of the schema" in error or "type mismatch on" in error
    assert refused or not error or CONTRADICTION in error, error
    assert refused is not accepted(values), "helm refuses what the schema accepts, or accepts what it refuses"
