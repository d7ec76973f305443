"""Which key was probably meant, in helm's message about one that a schema does not know."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from chart_harness.render import Chart

_REFUSED_PART = re.compile(r"(?P<chart>[\w.-]+):")
_UNKNOWN_KEYS = re.compile(r"\s*- at '(?P<path>[^']*)': additional properties (?P<names>'.+') not allowed")


def suggestion(name: str, known: Iterable[str]) -> str:
    """`; did you mean NAME?`, or nothing where no known name is near."""
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def with_suggestions(message: str, chart: Chart) -> str:
    """Helm's message about values, with the nearest known key behind each unknown one.

    Args:
        message: what helm says; under the name of each chart that refuses, a line for each fault.
        chart: the chart whose values they are, with its subcharts as folders.
    """
    if "not allowed" not in message:
        return message
    schemas = _schemas(chart, chart.digest)
    refusing = ""
    lines = []
    for line in message.splitlines():
        if part := _REFUSED_PART.fullmatch(line):
            refusing = part["chart"]
        added = ""
        if unknown := _UNKNOWN_KEYS.fullmatch(line):
            known = _known(schemas.get(refusing, {}), unknown["path"])
            added = "".join(suggestion(name, known) for name in re.findall(r"'([^']*)'", unknown["names"]))
        lines.append(line + added)
    return "\n".join(lines)


@lru_cache(maxsize=8)
def _schemas(chart: Chart, digest: str) -> dict[str, Mapping[str, Any]]:
    """Name of each chart -> its schema, in the state of the chart that the digest stands for."""
    found = {}
    for file in chart.files:
        if file.name == "values.schema.json":
            about = yaml.safe_load(chart.read(Path(file).with_name("Chart.yaml")))
            found[str(about["name"])] = json.loads(chart.read(file))
    return found


def _known(schema: Mapping[str, Any], path: str) -> list[str]:
    """The keys that a schema knows at a place (`/serve/autoscaling`)."""
    node: Any = schema
    for key in [*filter(None, path.split("/")), None]:
        while isinstance(node, Mapping) and str(node.get("$ref", "")).startswith("#/"):
            target: Any = schema
            for step in node["$ref"].removeprefix("#/").split("/"):
                target = target.get(step, {}) if isinstance(target, Mapping) else {}
            node = target
        if not isinstance(node, Mapping):
            return []
        if key is not None:
            node = node.get("properties", {}).get(key) or node.get("items") or node.get("additionalProperties") or {}
    return list(node.get("properties", {}))
