"""Schemas and value tables of the charts, out of the comments in their `values.yaml`: one source of each.

    python -m ci.docs          writes values.schema.json beside each values.yaml and the tables in README.md and docs/
    python -m ci.docs --check  writes nothing; ends with code 1 and names the files that would change

In a `values.yaml` every key carries a comment:

    # -- What the key means, in one or more lines.
    # @schema {"minimum": 1}
    replicas: 2

The type follows from the default. `# @schema` adds constraints as JSON, or says what a default cannot (the items of an
empty list, the shape of an empty map). `{"$ref": "#/$defs/NAME"}` takes a definition of
`charts/common/values.definitions.json`; a schema gets a copy of the definitions it uses, because helm reads each schema
alone. A map without `@schema` allows exactly the keys it has.

Runs in the test environment: it needs PyYAML.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import yaml

from ci import paths
from ci.console import Failure, main_guard, say

DEFINITIONS = paths.REPOSITORY / "charts" / "common" / "values.definitions.json"
BEGIN = "<!-- values: begin (written by `python -m ci.docs`) -->"
END = "<!-- values: end -->"
REFERENCE = "#/$defs/"

GLOBAL = {
    "type": "object",
    "description": "Values shared by every chart of the system; the umbrella chart describes and checks them.",
}
"""Helm hands `global` to every chart, so every strict schema has to know it."""

LARGEST = 999_999
"""Largest integer where a schema gives no `maximum`, unless the default is larger (an amount of bytes): templates print
1,000,000 as 1e+06, unless they convert it first."""

Schema = dict[str, Any]


@dataclass(frozen=True)
class Value:
    """One documented key of a values file.

    Attributes:
        path: the key and its parents, outermost first.
        default: what the file says.
        description: the comment, on one line.
        schema: the schema of the key itself.
        leaf: whether the table shows it; a map whose keys are documented one by one is not shown.
    """

    path: tuple[str, ...]
    default: Any
    description: str
    schema: Schema
    leaf: bool


class Values:
    """A `values.yaml` with its comments.

    Raises:
        Failure: when a key has no comment, or its type cannot be told.
    """

    def __init__(self, path: Path, definitions: Mapping[str, Schema]) -> None:
        self.path = path
        self.definitions = definitions
        text = path.read_text(encoding="utf-8")
        self.lines = text.splitlines()
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if not isinstance(root, yaml.MappingNode):
            raise Failure(f"{self._name} is not a map", "write values as keys")
        self.values: list[Value] = []
        self.schema = self._map(root, ())

    @property
    def _name(self) -> str:
        return self.path.relative_to(paths.REPOSITORY).as_posix()

    def _comment(self, line: int, column: int, key: str) -> tuple[str, Schema]:
        """The description and the `@schema` above a key that starts at `line` (from 0) and `column`."""
        prefix = " " * column + "#"
        first = line
        while first > 0 and self.lines[first - 1].startswith(prefix):
            first -= 1
        words: list[str] = []
        schema: Schema = {}
        for text in (entry.strip().removeprefix("#").strip() for entry in self.lines[first:line]):
            if text.startswith("-- "):
                words = [text.removeprefix("-- ")]
            elif text.startswith("@schema "):
                try:
                    schema = json.loads(text.removeprefix("@schema "))
                except json.JSONDecodeError as error:
                    raise Failure(
                        f"{self._name}:{line + 1}: @schema of `{key}` is not JSON: {error}", "correct it"
                    ) from error
            elif words:
                words.append(text)
        if not words:
            raise Failure(f"{self._name}:{line + 1}: `{key}` has no comment", "write `# -- what it means` above it")
        return " ".join(words), schema

    def _map(self, node: yaml.MappingNode, parents: tuple[str, ...]) -> Schema:
        properties: Schema = {}
        for key_node, value_node in node.value:
            path = (*parents, str(key_node.value))
            mark = key_node.start_mark
            description, given = self._comment(mark.line, mark.column, ".".join(path))
            default = _construct(value_node)
            described = (
                isinstance(value_node, yaml.MappingNode)
                and value_node.value
                and "$ref" not in given
                and "type" not in given
            )
            place = len(self.values)
            if described:
                schema = {**self._map(value_node, path), **given}
            else:
                schema = self._leaf(default, given, mark.line, ".".join(path))
            schema = {"description": description, **schema}
            self.values.insert(place, Value(path, default, description, schema, leaf=not described))
            properties[path[-1]] = schema
        return {"type": "object", "additionalProperties": False, "properties": properties}

    def _leaf(self, default: Any, given: Schema, line: int, key: str) -> Schema:
        reference = given.get("$ref")
        if reference is not None:
            if reference.removeprefix(REFERENCE) not in self.definitions:
                raise Failure(
                    f"{self._name}:{line + 1}: `{key}` names an unknown definition: {reference}", f"see {DEFINITIONS}"
                )
            return given
        if "type" in given or "enum" in given:
            return given
        for kind, name in ((bool, "boolean"), (int, "integer"), (float, "number"), (str, "string")):
            if isinstance(default, kind):
                bound = {"maximum": LARGEST} if name == "integer" and int(default) <= LARGEST else {}
                return {"type": name, **bound, **given}
        raise Failure(
            f"{self._name}:{line + 1}: the type of `{key}` does not follow from its default", "add a `# @schema`"
        )


def _construct(node: yaml.Node) -> Any:
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node, deep=True)
    finally:
        loader.dispose()


def _references(schema: Any) -> Iterator[str]:
    """Names of the definitions a schema refers to, itself, not by way of others."""
    if isinstance(schema, dict):
        reference = schema.get("$ref")
        if isinstance(reference, str):
            yield reference.removeprefix(REFERENCE)
        for value in schema.values():
            yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)


ALIASES = {
    "annotations": "podAnnotations",
    "env": "extraEnv",
    "envFrom": "extraEnvFrom",
    "labels": "podLabels",
    "logLevel": "global.logLevel",
    "pdb": "podDisruptionBudget",
    "pullPolicy": "global.imagePullPolicy",
    "replicaCount": "replicas",
    "storageClass": "storageClassName",
    "volumeMounts": "extraVolumeMounts",
    "volumes": "extraVolumes",
}
"""Names that other charts give to what is called otherwise here."""


def like(name: str, others: Iterable[str]) -> str:
    """A pattern of what a name is misspelt as.

    One letter too many, missing, wrong or in the wrong place leaves the first or the second half of a name as it is,
    and its length within one. That is short, and sharp enough but for a name beside one that is much like it
    (`minReplicas`, `maxReplicas`), whose pattern tries every letter.

    Args:
        name: the right name.
        others: the names that may stand beside it.
    """
    half = (len(name) + 1) // 2
    head, tail = re.escape(name[:half]), re.escape(name[half:])
    if any(SequenceMatcher(None, name, other).ratio() > 0.75 for other in others if other != name):
        letters = [re.escape(letter) for letter in name]
        wrong = [f".{''.join(letters)}"]
        for index, letter in enumerate(letters):
            wrong.append("".join([*letters[:index], f"{letter}?.?", *letters[index + 1 :]]))
    else:
        wrong = [f"{head}.{{{len(name) - half - 1},{len(name) - half + 1}}}", f".{{{half - 1},{half + 1}}}{tail}"]
    # Other separators and capitals: `training_api` and `trainingApi` for `training-api`.
    humps = re.findall(r"[A-Za-z][a-z0-9]*", name)
    return f"^(?:{'|'.join([*wrong, '[-_]?'.join(f'[{h[0].upper()}{h[0].lower()}]{h[1:]}' for h in humps)])})$"


def with_known_names(schema: Any, mentioned: set[str]) -> Any:
    """A schema whose closed objects say which name an unknown one was probably meant to be, and else which there are.

    `additionalProperties: false` alone makes helm say that a key is not allowed, and no more. Helm can neither measure
    how near two names are nor print a message of ours; but of a chain of conditions it prints the one that decided:

        - at '': invalid propertyName 'replica'
          - at '': value must be 'replicas'

    Args:
        schema: the schema.
        mentioned: takes the names that need a definition `like-NAME`.
    """
    if isinstance(schema, list):
        return [with_known_names(value, mentioned) for value in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: with_known_names(value, mentioned) for key, value in schema.items()}
    if schema.get("additionalProperties") is False and isinstance(schema.get("properties"), dict):
        known = sorted(schema["properties"])
        names: Schema = {"enum": known}
        for alias, meant in ALIASES.items():
            if alias not in known and (meant in known or meant.startswith("global.")):
                names = {"if": {"const": alias}, "then": {"const": meant}, "else": names}
        for name in reversed(known):
            names = {"if": {"$ref": f"{REFERENCE}like-{name}"}, "then": {"const": name}, "else": names}
        mentioned.update(known)
        # A right name may be like another one: `limit` beside `limits`.
        result["propertyNames"] = {"if": {"enum": known}, "else": names}
    return result


def written(schema: Schema) -> str:
    """A schema as text: indented, but for the conditions on names, which stand deep inside each other."""
    lines: list[str] = []

    def short(node: Any) -> Any:
        if isinstance(node, list):
            return [short(value) for value in node]
        if not isinstance(node, dict):
            return node
        result = {key: short(value) for key, value in node.items()}
        if "propertyNames" in result:
            lines.append(json.dumps(node["propertyNames"], separators=(",", ":"), ensure_ascii=False))
            result["propertyNames"] = f"<line {len(lines) - 1}>"
        return result

    text = json.dumps(short(schema), indent=1, ensure_ascii=False) + "\n"
    return re.sub(r'"<line (\d+)>"', lambda match: lines[int(match[1])], text)


def complete(schema: Schema, title: str, definitions: Mapping[str, Schema]) -> Schema:
    """A schema that stands alone: with its dialect and title, `global`, and every definition it refers to."""
    used: Schema = {}
    pending = list(_references(schema))
    while pending:
        name = pending.pop()
        if name not in used:
            used[name] = definitions[name]
            pending.extend(_references(definitions[name]))
    properties = {"global": GLOBAL, **schema["properties"]}
    whole: Schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": title,
        **schema,
        "properties": properties,
    }
    if used:
        whole["$defs"] = used
    names: set[str] = set()
    known: Schema = with_known_names(whole, names)
    patterns = {f"like-{name}": {"pattern": like(name, names)} for name in names}
    known["$defs"] = dict(sorted((known.get("$defs", {}) | patterns).items()))
    return known


def _type(value: Value, definitions: Mapping[str, Schema]) -> str:
    schema = value.schema
    if "$ref" in schema:
        schema = definitions[schema["$ref"].removeprefix(REFERENCE)]
    if "enum" in schema:
        return "enum"
    kind = schema.get("type", "")
    return " or ".join(kind) if isinstance(kind, list) else str(kind)


def table(values: Values) -> str:
    """The Markdown table of every value, in the file's order."""
    rows = ["| Key | Type | Default | Meaning |", "| --- | --- | --- | --- |"]
    for value in values.values:
        if value.leaf:
            default = json.dumps(value.default, separators=(", ", ": ")).replace("|", "\\|")
            meaning = value.description.replace("|", "\\|")
            rows.append(f"| `{'.'.join(value.path)}` | {_type(value, values.definitions)} | `{default}` | {meaning} |")
    return "\n".join(rows)


def outputs(repository: Path = paths.REPOSITORY) -> dict[Path, str]:
    """What every generated file should contain, by its path.

    Raises:
        Failure: when a key is undocumented or a README lacks the place for its table.
    """
    definitions: Mapping[str, Schema] = json.loads(DEFINITIONS.read_text(encoding="utf-8"))
    wanted: dict[Path, str] = {}
    for path in [repository / "values.yaml", *sorted((repository / "charts").glob("*/values.yaml"))]:
        values = Values(path, definitions)
        title = yaml.safe_load((path.parent / "Chart.yaml").read_text(encoding="utf-8"))["name"]
        schema = complete(values.schema, f"Values of the chart {title}", definitions)
        wanted[path.parent / "values.schema.json"] = written(schema)
        # The repository's own README speaks to users; the umbrella's table is in the chart's documentation.
        readme = repository / "docs" / "chart.md" if path.parent == repository else path.parent / "README.md"
        text = readme.read_text(encoding="utf-8")
        pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
        place = pattern.search(text)
        if not place:
            raise Failure(
                f"{readme.relative_to(repository)} has no place for the table", f"add the lines `{BEGIN}` and `{END}`"
            )
        filled = f"{BEGIN}\n{table(values)}\n{END}"
        before, after = text[: place.start()], text[place.end() :]
        wanted[readme] = before + filled + after
    return wanted


def run(check: bool) -> int:
    """Write the generated files, or only compare them; the exit code."""
    stale = []
    for path, text in outputs().items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(path.relative_to(paths.REPOSITORY).as_posix())
            if not check:
                path.write_text(text, encoding="utf-8")
    for name in stale:
        say(f"{'differs from its values.yaml' if check else 'written'}: {name}")
    if check and stale:
        raise Failure("generated files are out of date", "run `python -m ci.docs` and commit what it writes")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m ci.docs", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail when something would change")
    sys.exit(main_guard(run, parser.parse_args().check))
