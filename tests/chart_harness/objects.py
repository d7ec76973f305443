"""Rendered objects as typed collections with selectors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, cast, overload

import yaml

from chart_harness.origins import Location, Origins

_SOURCE = re.compile(r"^# Source: (\S+)$", re.MULTILINE)
_USUAL_PATHS = ("", "spec.template", "spec.jobTemplate.spec.template")
_DOCUMENT = re.compile(r"^---[ \t]*$", re.MULTILINE)


class DuplicateKeyError(AssertionError):
    """A mapping in rendered YAML has the same key twice; parsers keep the last one and say nothing."""


class _StrictLoader(yaml.CSafeLoader):
    """The C loader, refusing duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        # Equal lengths mean that no key was lost; merge keys ("<<") have been unfolded into `node.value` by now.
        if len(mapping) != len(node.value):
            seen: set[Any] = set()
            for key_node, _ in node.value:
                key = self.construct_object(key_node, deep=True)
                if key in seen:
                    line = key_node.start_mark.line + 1
                    raise DuplicateKeyError(f"the key {key!r} stands twice in one mapping (document line {line})")
                seen.add(key)
        return mapping


def load_yaml(text: str) -> Any:
    """One YAML document, read by libyaml; raises `DuplicateKeyError` for a key that stands twice."""
    return yaml.load(text, Loader=_StrictLoader)  # a safe loader


_UNITS = {"": 1.0, "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15,
          "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}  # fmt: skip


def quantity(text: str | float) -> float:
    """A Kubernetes quantity (`250m`, `1.5Gi`) as a number; fails for what is none."""
    match = re.fullmatch(r"(?P<number>[0-9.]+(?:[eE][0-9]+)?)(?P<unit>[a-zA-Z]*)", str(text))
    if not match or match["unit"] not in _UNITS:
        raise AssertionError(f"{text!r} is no quantity")
    return float(match["number"]) * _UNITS[match["unit"]]


@dataclass(frozen=True)
class Container:
    """One container of a pod.

    Attributes:
        pod: the pod template it belongs to.
        spec: the container as rendered.
        init: whether it stands under `initContainers`.
    """

    pod: Pod
    spec: Mapping[str, Any]
    init: bool

    @property
    def name(self) -> str:
        """The container's name."""
        return str(self.spec.get("name", ""))

    @property
    def id(self) -> str:
        """`Kind/object/container`, the same in every scenario."""
        return f"{self.pod.id}/{self.name}"

    @property
    def path(self) -> str:
        """Where in the pod's spec: `containers[api]`."""
        return f"{'initContainers' if self.init else 'containers'}[{self.name}]"

    @property
    def sidecar(self) -> bool:
        """An init container that keeps running beside the others."""
        return self.init and self.spec.get("restartPolicy") == "Always"

    @property
    def long_running(self) -> bool:
        """Whether it is meant to run until it is stopped, so that probes mean something."""
        return self.sidecar or (not self.init and not self.pod.runs_to_completion)

    @property
    def ports(self) -> dict[str, int]:
        """Named ports."""
        return {port["name"]: port["containerPort"] for port in self.spec.get("ports", []) if "name" in port}

    @property
    def env(self) -> dict[str, Mapping[str, Any]]:
        """Environment variables by name, each as rendered (`value` or `valueFrom`)."""
        return {variable["name"]: variable for variable in self.spec.get("env") or []}


@dataclass(frozen=True)
class Pod:
    """A pod template wherever it stands: in a workload, a CronJob, or inside a custom resource.

    Attributes:
        owner: the object that contains it.
        path: where in the owner, as dotted keys (`spec.template`); empty for a bare Pod.
        template: the template as rendered (`metadata`, `spec`).
    """

    owner: Manifest
    path: str
    template: Mapping[str, Any]

    @property
    def id(self) -> str:
        """`Kind/name`; in a custom resource, which may have several, with what holds it (`.headGroupSpec`)."""
        if self.path in _USUAL_PATHS:
            return self.owner.id
        return f"{self.owner.id}.{self.path.removesuffix('.template').rpartition('.')[2]}"

    @property
    def spec(self) -> Mapping[str, Any]:
        """The pod's spec."""
        return cast("Mapping[str, Any]", self.template["spec"])

    @property
    def labels(self) -> Mapping[str, str]:
        """The labels its pods carry."""
        return (self.template.get("metadata") or {}).get("labels") or {}

    @property
    def runs_to_completion(self) -> bool:
        """Whether it ends by itself: a Job, a CronJob, or a bare pod that is not restarted."""
        return bool(self.spec.get("restartPolicy", "Always") != "Always")

    @cached_property
    def containers(self) -> tuple[Container, ...]:
        """All containers, init containers first."""
        return tuple(
            Container(pod=self, spec=spec, init=init)
            for key, init in (("initContainers", True), ("containers", False))
            for spec in self.spec.get(key) or []
        )

    @property
    def volumes(self) -> dict[str, Mapping[str, Any]]:
        """Volumes by name, with those of a StatefulSet's claim templates."""
        volumes = {volume["name"]: volume for volume in self.spec.get("volumes") or []}
        for claim in self.owner.at("spec.volumeClaimTemplates", []):
            volumes[claim["metadata"]["name"]] = {"volumeClaimTemplate": claim}
        return volumes


class Manifest(Mapping[str, Any]):
    """One rendered object; reads as a mapping, and knows where it came from.

    Attributes:
        raw: the object as rendered.
        source: the template that made it, relative to the chart (`charts/x/templates/deployment.yaml`).
        scenario: name of the scenario it was rendered for.
        document: the text it was read from, as helm printed it.
        origins: knows the template lines of its rendering; None for an object that no `Renderer` made.
    """

    def __init__(
        self,
        raw: Mapping[str, Any],
        source: str = "",
        scenario: str = "",
        document: str = "",
        origins: Origins | None = None,
    ) -> None:
        self.raw = raw
        self.source = source
        self.scenario = scenario
        self.document = document
        self.origins = origins

    def __getitem__(self, key: str) -> Any:
        return self.raw[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.raw)

    def __len__(self) -> int:
        return len(self.raw)

    def __repr__(self) -> str:
        return f"<{self.id} from {self.source or 'nowhere'}>"

    @property
    def kind(self) -> str:
        """The object's kind, or an empty string."""
        return str(self.raw.get("kind", ""))

    @property
    def api_version(self) -> str:
        """The object's apiVersion, or an empty string."""
        return str(self.raw.get("apiVersion", ""))

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The object's metadata, or an empty mapping."""
        return self.raw.get("metadata") or {}

    @property
    def name(self) -> str:
        """The object's name, or an empty string."""
        return str(self.metadata.get("name", ""))

    @property
    def namespace(self) -> str | None:
        """The namespace the manifest names, or None when it is left to the release."""
        return self.metadata.get("namespace")

    @property
    def labels(self) -> Mapping[str, str]:
        """The object's labels."""
        return self.metadata.get("labels") or {}

    @property
    def annotations(self) -> Mapping[str, str]:
        """The object's annotations."""
        return self.metadata.get("annotations") or {}

    @property
    def id(self) -> str:
        """`Kind/name`."""
        return f"{self.kind}/{self.name}"

    @property
    def hooks(self) -> frozenset[str]:
        """The Helm hooks the object belongs to; empty for an ordinary object."""
        return frozenset(hook.strip() for hook in self.annotations.get("helm.sh/hook", "").split(",") if hook.strip())

    def at(self, path: str, default: Any = None) -> Any:
        """The value under dotted keys (`spec.template.spec`), or `default` where a key is missing."""
        node: Any = self.raw
        for key in path.split("."):
            if not isinstance(node, Mapping) or key not in node:
                return default
            node = node[key]
        return node

    def locate(self, path: str = "") -> Location | None:
        """The template line that made a field (`spec.ports[0].name`); the nearest one for a field that is not there.

        The first call for a rendering runs helm again, on a marked copy of the chart.

        Returns:
            None for an object that no `Renderer` made.
        """
        return self.origins.locate(self, path) if self.origins else None

    def walk(self) -> Iterator[tuple[str, Any]]:
        """Every value of the object with its path (`spec.ports[0].name`), mappings and lists included."""
        yield from _walk(self.raw, "")

    @cached_property
    def pods(self) -> tuple[Pod, ...]:
        """Every pod template of the object, in order of appearance.

        A template is recognised by its shape (`spec.containers`), so that custom resources need no registry.
        """
        return tuple(Pod(self, path, node) for path, node in self.walk() if _is_pod(node))


def _is_pod(node: Any) -> bool:
    if not isinstance(node, Mapping) or not isinstance(node.get("spec"), Mapping):
        return False
    containers = node["spec"].get("containers")
    return isinstance(containers, list) and all(isinstance(item, Mapping) for item in containers)


def _walk(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    yield path, node
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _walk(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _walk(value, f"{path}[{index}]")


@lru_cache(maxsize=4096)
def _content(document: str) -> Any:
    """What a document says. Most are the same in many scenarios, and to parse them takes longest of all."""
    return load_yaml(document)


class Manifests(Sequence[Manifest]):
    """The objects of one rendering, in the order helm printed them.

    Attributes:
        text: what helm printed, for comparing two renderings byte by byte.
        scenario: name of the scenario.
    """

    def __init__(self, manifests: Sequence[Manifest], text: str = "", scenario: str = "") -> None:
        self._manifests = tuple(manifests)
        self.text = text
        self.scenario = scenario

    @classmethod
    def parse(cls, text: str, scenario: str = "", origins: Origins | None = None) -> Manifests:
        """Objects of a multi-document text as `helm template` prints it; documents without content are skipped.

        Args:
            text: what helm printed.
            scenario: name of the scenario.
            origins: what knows the template lines of the text.
        """
        found = []
        for document in _DOCUMENT.split(text):
            match = _SOURCE.search(document)
            source = match.group(1) if match else "the rendered text"
            try:
                raw = _content(document)
            except (yaml.YAMLError, DuplicateKeyError) as error:
                raise AssertionError(f"{source} does not render to valid YAML: {error}") from None
            if raw is None:
                continue
            if not isinstance(raw, Mapping):
                raise AssertionError(f"{source} renders to a {type(raw).__name__}, not an object")
            # Helm prefixes the source with the chart's name, which says nothing inside one chart.
            found.append(Manifest(raw, source.partition("/")[2], scenario, document, origins))
        return cls(found, text, scenario)

    @overload
    def __getitem__(self, index: int) -> Manifest: ...
    @overload
    def __getitem__(self, index: slice) -> Manifests: ...
    def __getitem__(self, index: int | slice) -> Manifest | Manifests:
        if isinstance(index, slice):
            return self._narrowed(self._manifests[index])
        return self._manifests[index]

    def __len__(self) -> int:
        return len(self._manifests)

    def __repr__(self) -> str:
        return f"<{len(self)} objects{' of ' + self.scenario if self.scenario else ''}>"

    def _narrowed(self, manifests: Sequence[Manifest]) -> Manifests:
        return Manifests(manifests, self.text, self.scenario)

    def where(self, condition: Callable[[Manifest], bool]) -> Manifests:
        """The objects that meet a condition."""
        return self._narrowed([manifest for manifest in self if condition(manifest)])

    def by_kind(self, *kinds: str) -> Manifests:
        """The objects of any of these kinds."""
        return self.where(lambda manifest: manifest.kind in kinds)

    def find(self, kind: str, name: str) -> Manifest | None:
        """The object of this kind and name, or None."""
        return next((manifest for manifest in self if manifest.kind == kind and manifest.name == name), None)

    def one(self, kind: str, name: str) -> Manifest:
        """The object of this kind and name; fails with the names there are."""
        found = self.find(kind, name)
        if found is None:
            names = ", ".join(sorted(manifest.name for manifest in self.by_kind(kind))) or "none"
            raise AssertionError(f"no {kind}/{name} in {self!r}; of that kind there are: {names}")
        return found

    def pods(self) -> list[Pod]:
        """Every pod template of every object, custom resources included."""
        return [pod for manifest in self for pod in manifest.pods]

    def containers(self) -> list[Container]:
        """Every container of every pod template, init containers included."""
        return [container for pod in self.pods() for container in pod.containers]
