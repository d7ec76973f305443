"""Strict validation of objects against vendored schemas: quick to pass, and clear when it fails."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import jsonschema
import jsonschema_rs

from chart_harness.objects import Manifest
from chart_harness.problems import Problem
from chart_harness.suggestions import suggestion


class SchemaStore:
    """Schemas of a folder; a definition named `apiVersion/kind` is the schema of that kind.

    A file is called `PRODUCT-VERSION.json` and has `definitions`. A file with a `base` (another file's name) holds only
    what differs from it, null for a definition that is gone. Of a product with several files the one without a base
    counts, unless `versions` says otherwise.

    Args:
        folder: the folder of the files.
        versions: product -> version, for a product whose other version is wanted.

    Raises:
        ValueError: there is no such version.
    """

    def __init__(self, folder: Path, versions: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self._chosen = dict(versions or {})
        self._validators: dict[str, jsonschema_rs.Validator] = {}
        for product, version in self._chosen.items():
            if version not in self.versions(product):
                known = ", ".join(self.versions(product)) or "none"
                raise ValueError(f"no schemas of {product} {version}; there are: {known}")

    def versions(self, product: str) -> list[str]:
        """Versions of a product in the folder, oldest first."""
        names = (file.stem.rpartition("-") for file in self.folder.glob(f"{product}-*.json"))
        found = [version for name, _, version in names if name == product]
        return sorted(found, key=lambda version: [int(part) for part in version.split(".")])

    def at(self, **versions: str) -> SchemaStore:
        """The same schemas at other versions: `store.at(kubernetes="1.36.3")`."""
        return SchemaStore(self.folder, {**self._chosen, **versions})

    @cached_property
    def _documents(self) -> dict[str, Mapping[str, Any]]:
        """Kind -> the definitions among which its own is."""
        kinds: dict[str, Mapping[str, Any]] = {}
        for file in sorted(self.folder.glob("*.json")):
            document = json.loads(file.read_text())
            product, _, version = file.stem.rpartition("-")
            base = document.get("base")
            if version != self._chosen.get(product, version) or (base and product not in self._chosen):
                continue
            definitions = document["definitions"]
            if base:
                both = {**json.loads((self.folder / base).read_text())["definitions"], **definitions}
                definitions = {name: schema for name, schema in both.items() if schema is not None}
            kinds |= dict.fromkeys((name for name in definitions if "/" in name), definitions)
        return kinds

    @property
    def kinds(self) -> frozenset[str]:
        """Every known kind, as `apiVersion/kind`."""
        return frozenset(self._documents)

    def schema(self, kind: str) -> dict[str, Any]:
        """The whole schema of a kind (`apps/v1/Deployment`), with its definitions."""
        # A pointer writes the "/" of a name as "~1".
        pointer = "#/definitions/" + kind.replace("~", "~0").replace("/", "~1")
        return {"$ref": pointer, "definitions": self._documents[kind]}

    def problems(self, manifest: Manifest | Mapping[str, Any]) -> list[Problem]:
        """What is wrong with an object; empty when it is valid. An unknown kind is a problem."""
        raw, known = (manifest.raw, manifest) if isinstance(manifest, Manifest) else (manifest, None)
        kind = f"{raw.get('apiVersion')}/{raw.get('kind')}"
        if kind not in self._documents:
            return [Problem("", f"no schema for {kind}{suggestion(kind, self.kinds)}", known)]
        if kind not in self._validators:
            self._validators[kind] = jsonschema_rs.Draft7Validator(self.schema(kind), validate_formats=True)
        if self._validators[kind].is_valid(raw):
            return []
        return [Problem(found.path, found.message, known) for found in self._explained(kind, raw)]

    def _explained(self, kind: str, raw: Mapping[str, Any]) -> Iterator[Problem]:
        """The same refusal in words; `jsonschema` tells more, and is only asked when there is something to tell."""
        validator = jsonschema.Draft7Validator(self.schema(kind), format_checker=jsonschema.FormatChecker())
        errors = sorted(validator.iter_errors(raw), key=lambda error: [str(part) for part in error.absolute_path])
        for error in errors:
            yield from _explain(error)
        if not errors:
            first = next(iter(self._validators[kind].iter_errors(raw)))
            yield Problem(_path(first.instance_path), first.message)


def _path(parts: Any) -> str:
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _explain(error: jsonschema.ValidationError) -> Iterator[Problem]:
    path = _path(error.absolute_path)
    if error.validator == "additionalProperties" and isinstance(error.schema, Mapping):
        known = error.schema.get("properties", {})
        for name in error.instance:
            if name not in known:
                yield Problem(f"{path}.{name}".lstrip("."), f"unknown field{suggestion(name, known)}")
    elif error.validator == "required":
        for name in error.validator_value:
            if name not in error.instance:
                yield Problem(path, f"the field {name} is missing")
    elif error.validator in ("anyOf", "oneOf") and error.context:
        wanted = " or ".join(dict.fromkeys(_short(child) for child in error.context))
        yield Problem(path, f"{_value(error.instance)} is not {wanted}")
    else:
        yield Problem(path, f"{_value(error.instance)} is not {_short(error)}")


def _short(error: jsonschema.ValidationError) -> str:
    """What a failed keyword asked for, to follow «… is not»."""
    wanted = error.validator_value
    match error.validator:
        case "type":
            return f"of type {wanted if isinstance(wanted, str) else ' or '.join(wanted)}"
        case "enum":
            return f"one of {', '.join(map(str, wanted))}"
        case "const":
            return f"{wanted!r}"
        case "pattern":
            return f"of the form {wanted}"
        case "minimum":
            return f"{wanted} or more"
        case "maximum":
            return f"{wanted} or less"
        case _:
            return f"valid: {error.message}"


def _value(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
