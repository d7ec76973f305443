"""Make the schemas of this folder from the Go modules that define them.

    python3 tests/schemas/vendor.py [--check]

Reads the module cache (and lets `go` fill it when a module is missing), so that a schema is always that of an exact
released version. `--check` writes nothing and fails when a file of this folder is not what the script makes.

Each file is called `PRODUCT-VERSION.json`. Of Kubernetes there is one for each minor version the chart supports: the
first of `KUBERNETES_VERSIONS` is whole, every other names it as its `base` and holds what differs, null for what is
not there. To add a custom resource, add a line to `CUSTOM_RESOURCES`.

What is changed on the way, and why:

- Strict: an object with properties refuses any other one. The API server drops an unknown field with a warning at best,
  which is how a misspelt field goes unnoticed.
- Trimmed: descriptions, status and kinds that no chart of ours uses are left out; equal parts of a custom resource
  definition are written once. What is left is small enough to review and quick to compile.
- Exact where the published document is loose: `apiVersion` and `kind` are constants, `metadata.name` is required,
  strings with a closed set of values have an `enum` (from the `+enum` types of `k8s.io/api`), 32-bit integers have
  bounds, quantities a pattern, and a required property with a default is optional (the API server fills it in first).

Standard library only, but for PyYAML to read the custom resource definitions.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

KUBERNETES_VERSIONS = ("1.34.2", "1.32.13", "1.33.13", "1.35.4", "1.36.3")
"""Versions of Kubernetes the chart supports, the newest release of each minor; first the one that `make up` runs."""


@dataclass(frozen=True)
class CustomResources:
    """Custom resource definitions of one operator.

    Attributes:
        product: first part of the file's name.
        module: Go module that holds the definitions, and its version.
        folder: their folder in the module.
        files: file in that folder -> version of the resource to take.
    """

    product: str
    module: tuple[str, str]
    folder: str
    files: Mapping[str, str]


CUSTOM_RESOURCES = (
    CustomResources(
        product="kuberay",
        module=("github.com/ray-project/kuberay/ray-operator", "v1.5.1"),
        folder="config/crd/bases",
        files={"ray.io_rayservices.yaml": "v1", "ray.io_rayclusters.yaml": "v1"},
    ),
    CustomResources(
        product="keda",
        module=("github.com/kedacore/keda/v2", "v2.19.0"),
        folder="config/crd/bases",
        files={"keda.sh_scaledobjects.yaml": "v1alpha1", "keda.sh_triggerauthentications.yaml": "v1alpha1"},
    ),
)

KINDS = {
    "v1": ["ConfigMap", "Namespace", "PersistentVolumeClaim", "Pod", "Secret", "Service", "ServiceAccount"],
    "apps/v1": ["DaemonSet", "Deployment", "StatefulSet"],
    "autoscaling/v2": ["HorizontalPodAutoscaler"],
    "batch/v1": ["CronJob", "Job"],
    "networking.k8s.io/v1": ["Ingress", "NetworkPolicy"],
    "policy/v1": ["PodDisruptionBudget"],
    "rbac.authorization.k8s.io/v1": ["ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"],
}
"""Kinds of Kubernetes that the chart may use; any other kind fails the tests until it is added here."""

CLOSED_TYPES = frozenset(
    {
        "ContainerRestartPolicy",
        "HPAScalingPolicyType",
        "MetricSourceType",
        "MetricTargetType",
        "OSName",
        "PersistentVolumeClaimRetentionPolicyType",
        "RecursiveReadOnlyMode",
        "ResourceResizeRestartPolicy",
        "ScalingPolicySelect",
    }
)
"""Types of strings that the API server accepts no other value of, though their source lacks `+enum`."""

INT32 = {"minimum": -(2**31), "maximum": 2**31 - 1}
INT_OR_STRING = {"anyOf": [{"type": "integer", **INT32}, {"type": "string"}]}
QUANTITY = {
    "anyOf": [
        {"type": "number"},
        {"type": "string", "pattern": r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$"},
    ]
}
TYPE_META = {"apiVersion", "kind"}
PREFIX = "#/definitions/"
OBJECT_META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
SERVER_SIDE_METADATA = {
    "creationTimestamp", "deletionGracePeriodSeconds", "deletionTimestamp", "generation", "managedFields",
    "ownerReferences", "resourceVersion", "selfLink", "uid",
}  # fmt: skip
"""Fields that only a running cluster knows: a manifest that sets them is wrong."""


def module_directory(module: tuple[str, str]) -> Path:
    """The folder of a Go module in the module cache, downloaded when it is not there."""
    name, version = module
    done = subprocess.run(
        ["go", "mod", "download", "-json", f"{name}@{version}"], cwd="/", capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"go cannot provide {name}@{version}:\n{done.stdout}{done.stderr}")
    return Path(json.loads(done.stdout)["Dir"])


def go_enums(source: str) -> tuple[dict[str, list[str]], dict[tuple[str, str], str]]:
    """Closed sets of strings in a Go file of API types.

    Returns:
        The values of each `+enum` type, and the type of each field as (struct, JSON name) -> type.
    """
    marked = re.findall(r"^// \+enum\n(?:^//.*\n)*^type (\w+) string", source, re.MULTILINE)
    types = CLOSED_TYPES.union(marked)
    values: dict[str, list[str]] = {}
    for name, value in re.findall(r'^\s+\w+\s+(\w+)\s+=\s+"([^"]*)"', source, re.MULTILINE):
        if name in types:
            values.setdefault(name, []).append(value)
    fields: dict[tuple[str, str], str] = {}
    for struct, body in re.findall(r"^type (\w+) struct \{\n(.*?)^\}", source, re.MULTILINE | re.DOTALL):
        for kind, name in re.findall(r'^\s+\w+\s+(?:\[\])?\*?(\w+)\s+`json:"(\w+)', body, re.MULTILINE):
            if kind in types:
                fields[struct, name] = kind
    return values, fields


def strict_object(schema: dict[str, Any]) -> dict[str, Any]:
    """Close an object, and leave a required property that has a default to the API server."""
    if "properties" in schema:
        schema.setdefault("additionalProperties", False)
        # The published document gives Go's zero values as defaults ("", 0); the server does not fill those in.
        required = [n for n in schema.get("required", []) if not schema["properties"].get(n, {}).get("default")]
        schema.pop("required", None)
        if required:
            schema["required"] = required
    return schema


def without_defaults(node: Any, *, named: bool = False) -> Any:
    """A schema without its `default` keywords; in a map of property names (`named`) `default` is just a name."""
    if isinstance(node, list):
        return [without_defaults(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        key: without_defaults(value, named=key in ("properties", "definitions") and not named)
        for key, value in node.items()
        if named or key != "default"
    }


def kubernetes_schema(node: Any) -> Any:
    """One schema of the OpenAPI document as a strict JSON schema; defaults are kept until all are read."""
    if isinstance(node, list):
        return [kubernetes_schema(item) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        target = {"$ref": PREFIX + node["$ref"].removeprefix("#/components/schemas/")}
        return {**target, **({"default": node["default"]} if "default" in node else {})}
    if len(node.get("allOf", [])) == 1:
        # OpenAPI 3.0 wraps a reference that has a description or a default. An empty default says nothing: the referred
        # object is checked all the same.
        return {**kubernetes_schema(node["allOf"][0]), **({"default": node["default"]} if node.get("default") else {})}
    if node.get("format") == "int-or-string":
        return dict(INT_OR_STRING)
    result: dict[str, Any] = {}
    for key, value in node.items():
        if key == "properties":
            result[key] = {name: kubernetes_schema(item) for name, item in value.items()}
        elif key in ("items", "additionalProperties", "oneOf", "anyOf"):
            result[key] = kubernetes_schema(value)
        elif key in ("type", "required", "enum", "pattern", "default"):
            result[key] = value
    if node.get("format") == "int32":
        result |= INT32
    return strict_object(result)


def referred(node: Any) -> set[str]:
    """Names of the definitions that a schema refers to."""
    if isinstance(node, dict):
        own = {node["$ref"].removeprefix(PREFIX)} if isinstance(node.get("$ref"), str) else set()
        return own.union(*(referred(value) for value in node.values()))
    if isinstance(node, list):
        return set().union(*(referred(value) for value in node))
    return set()


def top_level(schema: dict[str, Any], api_version: str, kind: str) -> dict[str, Any]:
    """The schema of a whole object of a manifest: its own type, a name, a spec where it has one, no status."""
    properties = {name: value for name, value in schema["properties"].items() if name != "status"}
    properties["apiVersion"] = {"const": api_version}
    properties["kind"] = {"const": kind}
    properties["metadata"] = {"allOf": [{"$ref": PREFIX + OBJECT_META}, {"required": ["name"]}]}
    required = {"apiVersion", "kind", "metadata", *schema.get("required", [])}
    if "spec" in properties and kind != "Namespace":
        required.add("spec")
    return {**schema, "properties": properties, "required": sorted(required), "additionalProperties": False}


def kubernetes_definitions(release: str) -> dict[str, Any]:
    """Definitions of every listed kind of a Kubernetes release (named `apiVersion/kind`) and of what they refer to."""
    documents = module_directory(("k8s.io/kubernetes", f"v{release}")) / "api/openapi-spec/v3"
    found: dict[str, Any] = {}
    kinds: dict[str, str] = {}
    for api_version, names in KINDS.items():
        group, _, version = api_version.rpartition("/")
        file = f"apis__{group}__{version}_openapi.json" if group else f"api__{version}_openapi.json"
        schemas = json.loads((documents / file).read_text())["components"]["schemas"]
        for name, schema in schemas.items():
            types = {(t["group"], t["version"], t["kind"]) for t in schema.get("x-kubernetes-group-version-kind", [])}
            wanted = [kind for kind in names if (group, version, kind) in types]
            if wanted:
                kinds[f"{api_version}/{wanted[0]}"] = name
            found.setdefault(name, kubernetes_schema(schema))
        missing = [kind for kind in names if f"{api_version}/{kind}" not in kinds]
        if missing:
            sys.exit(f"{file} has no {', '.join(missing)}")
    found["io.k8s.apimachinery.pkg.api.resource.Quantity"] = QUANTITY
    found["io.k8s.apimachinery.pkg.apis.meta.v1.Time"] = {"type": "string", "format": "date-time"}
    for name in SERVER_SIDE_METADATA:
        found[OBJECT_META]["properties"].pop(name, None)
    types_folder = module_directory(("k8s.io/api", f"v0.{release.partition('.')[2]}"))
    packages = {tuple(name.split(".")[3:5]) for name in found if name.startswith("io.k8s.api.")}
    for group, version in sorted(packages):
        values, fields = go_enums((types_folder / group / version / "types.go").read_text())
        for (struct, field), kind in fields.items():
            schema = found.get(f"io.k8s.api.{group}.{version}.{struct}", {})
            prop = schema.get("properties", {}).get(field)
            if prop and kind in values:
                target = prop["items"] if prop.get("type") == "array" else prop
                target["enum"] = sorted(values[kind])
    # A definition of its own, since a kind may also stand inside another (a volume claim inside a StatefulSet).
    for key, name in kinds.items():
        api_version, _, kind = key.rpartition("/")
        found[key] = top_level(found[name], api_version, kind)
    for definition in found.values():
        if {"spec", "status"} <= definition.get("properties", {}).keys():
            del definition["properties"]["status"]
    reachable: set[str] = set()
    queue = [*kinds]
    while queue:
        name = queue.pop()
        if name not in reachable:
            reachable.add(name)
            queue.extend(referred(found[name]))
    return {name: without_defaults(found[name]) for name in sorted(reachable)}


def structural_schema(node: dict[str, Any]) -> dict[str, Any]:
    """One structural schema of a custom resource definition as a strict JSON schema."""
    if node.get("x-kubernetes-int-or-string"):
        quantity = "pattern" in node
        return dict(QUANTITY if quantity else INT_OR_STRING)
    open_ended = node.get("x-kubernetes-preserve-unknown-fields", False)
    result: dict[str, Any] = {}
    for key, value in node.items():
        if key == "properties":
            result[key] = {name: structural_schema(item) for name, item in value.items()}
        elif key == "items" or (key == "additionalProperties" and isinstance(value, dict)):
            result[key] = structural_schema(value)
        elif key in ("allOf", "anyOf", "oneOf"):
            result[key] = [structural_schema(item) for item in value]
        elif not key.startswith("x-kubernetes-") and key not in ("description", "format", "nullable"):
            result[key] = value
    if node.get("format") == "int32":
        result = {**INT32, **result}
    if open_ended:
        result["additionalProperties"] = True
    elif node.get("type") == "object" and "properties" not in node and "additionalProperties" not in node:
        result["additionalProperties"] = False
    if node.get("nullable"):
        result["type"] = [node["type"], "null"]
    return strict_object(result)


def shared_parts(schemas: dict[str, Any], *, minimum: int = 200) -> tuple[dict[str, Any], dict[str, Any]]:
    """Move parts that occur more than once (of at least `minimum` characters) to definitions named by their content."""
    texts: Counter[str] = Counter()

    def count(node: Any) -> None:
        if isinstance(node, dict):
            if "type" in node and isinstance(node["type"], str):
                texts[json.dumps(node, sort_keys=True)] += 1
            for value in node.values():
                count(value)
        elif isinstance(node, list):
            for value in node:
                count(value)

    count(schemas)
    definitions: dict[str, Any] = {}

    def share(node: Any) -> Any:
        if isinstance(node, list):
            return [share(value) for value in node]
        if not isinstance(node, dict):
            return node
        if "type" in node and isinstance(node["type"], str):
            text = json.dumps(node, sort_keys=True)
            if texts[text] > 1 and len(text) >= minimum:
                name = "shared." + hashlib.sha256(text.encode()).hexdigest()[:12]
                if name not in definitions:
                    definitions[name] = {}
                    definitions[name] = {key: share(value) for key, value in node.items()}
                return {"$ref": PREFIX + name}
        return {key: share(value) for key, value in node.items()}

    return {name: share(schema) for name, schema in schemas.items()}, definitions


def custom_definitions(resources: CustomResources, object_meta: dict[str, Any]) -> dict[str, Any]:
    """Definitions of an operator's custom resources (named `apiVersion/kind`) and of their shared parts."""
    import yaml

    folder = module_directory(resources.module) / resources.folder
    schemas: dict[str, Any] = {}
    for file, version in resources.files.items():
        crd = yaml.load((folder / file).read_text(), Loader=yaml.CSafeLoader)
        kind, group = crd["spec"]["names"]["kind"], crd["spec"]["group"]
        schema = next(v["schema"]["openAPIV3Schema"] for v in crd["spec"]["versions"] if v["name"] == version)
        name = f"{group}/{version}/{kind}"
        schemas[name] = top_level(structural_schema(schema), f"{group}/{version}", kind)
    schemas, definitions = shared_parts(without_defaults({"definitions": schemas})["definitions"])
    return {**definitions, **schemas, OBJECT_META: object_meta}


def difference(base: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """What turns the definitions of one version into those of another; null stands for one that is gone."""
    changed = {name: schema for name, schema in other.items() if base.get(name) != schema}
    return changed | dict.fromkeys(base.keys() - other.keys())


def document(source: tuple[str, str], definitions: dict[str, Any], base: str = "") -> str:
    """The text of a schema file: one definition per line, so that a new version shows as a readable difference."""
    head = {"source": "@".join(source), "script": "tests/schemas/vendor.py", **({"base": base} if base else {})}
    lines = [
        f"{json.dumps(name)}: {json.dumps(schema, sort_keys=True, separators=(',', ':'))}"
        for name, schema in sorted(definitions.items())
    ]
    start = json.dumps(head, indent=0).removesuffix("\n}")
    return f'{start},\n"definitions": {{\n' + ",\n".join(lines) + "\n}\n}\n"


def schema_files() -> dict[str, str]:
    """The text of every schema file by its name."""
    first, *others = KUBERNETES_VERSIONS
    definitions = kubernetes_definitions(first)
    base = f"kubernetes-{first}.json"
    files = {base: document(("k8s.io/kubernetes", f"v{first}"), definitions)}
    for release in others:
        changed = difference(definitions, kubernetes_definitions(release))
        files[f"kubernetes-{release}.json"] = document(("k8s.io/kubernetes", f"v{release}"), changed, base)
    for resources in CUSTOM_RESOURCES:
        name = f"{resources.product}-{resources.module[1].removeprefix('v')}.json"
        files[name] = document(resources.module, custom_definitions(resources, definitions[OBJECT_META]))
    return files


def main() -> int:
    """Write the schema files, or compare them under `--check`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--check", action="store_true", help="fail when a file is not what this script makes")
    check = parser.parse_args().check
    files = schema_files()
    different = [n for n, text in files.items() if not (HERE / n).exists() or (HERE / n).read_text() != text]
    stale = [file.name for file in HERE.glob("*.json") if file.name not in files]
    for name, text in files.items():
        if check:
            print(f"{name}: {'differs from what this script makes' if name in different else 'as made by this script'}")
        else:
            (HERE / name).write_text(text)
            print(f"{name}: {len(text) // 1024} KB")
    for name in stale:
        print(f"{name}: {'no version of this script' if check else 'removed'}")
        if not check:
            (HERE / name).unlink()
    return 1 if check and (different or stale) else 0


if __name__ == "__main__":
    sys.exit(main())
