"""Which template line made a line of the output: ask helm, by rendering a copy of the chart whose lines carry marks.

Every literal line, and every action that prints, is preceded by a mark that names its file and line. What the marked
copy prints, without its marks, has to be what the chart itself printed: only then are the marks believed. Where a
template looks at its own text (`eq (include …)`, `fromJson`), marks would change it; such helpers stay unmarked, and
their lines are those of the `include` that calls them. What no marked copy reproduces is found by its keys, and said to
be `near`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import yaml

if TYPE_CHECKING:
    from chart_harness.objects import Manifest

_ACTION = re.compile(
    r"""\{\{(?:-\s)?\s*/\*.*?\*/\s*-?\}\}|\{\{(?:"(?:\\.|[^"\\\n])*"|`[^`]*`|'(?:\\.|[^'\\])*'|[^"`'}]|\}(?!\}))*\}\}""",
    re.DOTALL,
)
_CONTROL = re.compile(
    r"\{\{(?:-\s)?\s*(?:/\*|(?:if|else|end|range|with|define|block|break|continue)\b|\$\w*\s*(?:,\s*\$\w*\s*)?:?=)"
)
_DEFINE = re.compile(r"\{\{(?:-\s)?\s*(?:define|block)\s+\"([^\"]+)\"")
_OPENING = re.compile(r"\{\{(?:-\s)?\s*(?:if|range|with|define|block)\b")
_CLOSING = re.compile(r"\{\{(?:-\s)?\s*end\b")
_INCLUDE = re.compile(r"\b(?:include|template)\s+\"([^\"]+)\"")
_LOOKS_INSIDE = re.compile(
    r"^\{\{(?:-\s)?\s*(?:if|else|with|range)\b"
    r"|\b(?:from(?:Json|Yaml)\w*|eq|ne|lt|le|gt|ge|contains|has(?:Prefix|Suffix)?|regex\w+|trunc|len|int|atoi|ternary"
    r"|split\w*|semver\w*|b64dec|lookup)\b"
)
"""An action that does more with a text than print it."""

_OPEN, _CLOSE = "⟦", "⟧"
_MARK = re.compile(f"{_OPEN}(\\d+){_CLOSE}")
_KEY = re.compile(r"^\s*(?:- )*[^\s:#][^:]*:")
_SEPARATOR = re.compile(r"^---[ \t]*$", re.MULTILINE)
_SOURCE = re.compile(r"^# Source: [^/\s]+/(\S+)$", re.MULTILINE)

LEVELS = 3
"""Ways to mark a chart, from all helpers that look harmless to none."""


@dataclass(frozen=True)
class Location:
    """A line of a template.

    Attributes:
        file: the file, relative to the chart.
        line: counted from 1.
        exact: whether the line made the field; otherwise it is the nearest one that could be told.
    """

    file: str
    line: int
    exact: bool = True

    def __str__(self) -> str:
        return f"{'' if self.exact else 'near '}{self.file}:{self.line}"


@dataclass(frozen=True)
class Marked:
    """Templates with marks.

    Attributes:
        texts: file -> its text with marks.
        places: file and line of each mark, by its number.
    """

    texts: Mapping[str, str]
    places: Sequence[tuple[str, int]]


def template_files(files: Sequence[Path]) -> list[str]:
    """Those of a chart's files that helm renders, its subcharts' included; NOTES.txt is not among the objects."""
    return [
        file.as_posix()
        for file in files
        if "templates" in file.parts[:-1] and file.suffix in (".yaml", ".yml", ".tpl", ".json")
    ]


def mark(texts: Mapping[str, str], level: int) -> Marked:
    """Put marks into templates.

    Args:
        texts: file -> template.
        level: 0 marks every helper whose text is only printed, 1 leaves out what the others include as well,
            2 marks no helper.
    """
    places: list[tuple[str, int]] = []
    marked = {}
    unmarked = _unmarked_helpers(texts) if level < 2 else set()
    if level == 1:
        unmarked = _with_included(texts, unmarked)
    for file, text in texts.items():
        parts: list[str] = []
        depth = 0
        helper: int | None = None  # depth of the helper that is not to be marked
        line = 1
        fresh = True  # whether the source line has no mark yet
        for piece, is_action in _pieces(text):
            if not is_action:
                for index, part in enumerate(piece.split("\n")):
                    if index:
                        parts.append("\n")
                        line += 1
                        fresh = True
                    content = part.lstrip()
                    if content and fresh and helper is None and not content.startswith(("#", "---")):
                        places.append((file, line))
                        part = f"{part[: len(part) - len(content)]}{_OPEN}{len(places) - 1}{_CLOSE}{content}"
                        fresh = False
                    parts.append(part)
                continue
            if _CONTROL.match(piece):
                fresh = True
                if _OPENING.match(piece):
                    depth += 1
                    define = _DEFINE.match(piece)
                    if define and helper is None and (level == 2 or define[1] in unmarked):
                        helper = depth
                elif _CLOSING.match(piece):
                    if helper == depth:
                        helper = None
                    depth -= 1
            elif helper is None:
                places.append((file, line))
                trim = "-" if piece.startswith("{{-") else ""
                parts.append(f'{{{{{trim} "{_OPEN}{len(places) - 1}{_CLOSE}" }}}}')
                fresh = False
            parts.append(piece)
            line += piece.count("\n")
        marked[file] = "".join(parts)
    return Marked(marked, places)


def _pieces(text: str) -> Iterator[tuple[str, bool]]:
    """Literal texts and actions in turn; True stands for an action."""
    end = 0
    for match in _ACTION.finditer(text):
        if match.start() > end:
            yield text[end : match.start()], False
        yield match[0], True
        end = match.end()
    if end < len(text):
        yield text[end:], False


def _unmarked_helpers(texts: Mapping[str, str]) -> set[str]:
    """Helpers whose text some action does more with than print it."""
    return {
        name
        for text in texts.values()
        for piece, is_action in _pieces(text)
        if is_action and _LOOKS_INSIDE.search(piece)
        for name in _INCLUDE.findall(piece)
    }


def _with_included(texts: Mapping[str, str], names: set[str]) -> set[str]:
    """The helpers, and all that they include."""
    included: dict[str, set[str]] = {}
    for text in texts.values():
        stack: list[str | None] = []
        for piece, is_action in _pieces(text):
            if not is_action:
                continue
            if _OPENING.match(piece):
                define = _DEFINE.match(piece)
                stack.append(define[1] if define else None)
            elif _CLOSING.match(piece) and stack:
                stack.pop()
            inside = next((name for name in reversed(stack) if name), None)
            if inside:
                included.setdefault(inside, set()).update(_INCLUDE.findall(piece))
    found: set[str] = set()
    waiting = set(names)
    while waiting:
        name = waiting.pop()
        found.add(name)
        waiting |= included.get(name, set()) - found
    return found


class Files(Protocol):
    """The files of a chart, as `Chart` has them."""

    @property
    def files(self) -> Sequence[Path]:
        """Their paths in the chart."""

    def read(self, file: str | Path) -> str:
        """The text of one of them."""


class Origins:
    """Template lines of one rendering.

    Args:
        chart: the files that were rendered.
        output: what helm prints for a marked chart at a level, errors passed over; empty when it prints nothing.
    """

    def __init__(self, chart: Files, output: Callable[[Marked, int], str]) -> None:
        self._chart = chart
        self._output = output
        self._levels: dict[int, tuple[Marked, dict[str, list[list[str]]]]] = {}

    @cached_property
    def _texts(self) -> dict[str, str]:
        return {file: self._chart.read(file) for file in template_files(self._chart.files)}

    def locate(self, manifest: Manifest, path: str) -> Location | None:
        """The line that made a field of an object, or the deepest field above it that there is.

        Args:
            manifest: an object of this rendering.
            path: dotted keys with list positions or names (`spec.ports[0].name`, `spec.ports[http]`).
        """
        line, whole = line_of(manifest.document, path)
        found = self._copied(manifest, line) or self._marked(manifest, line)
        if found is None:
            return self._near(manifest, path)
        return found if whole else Location(found.file, found.line, exact=False)

    def _copied(self, manifest: Manifest, line: int) -> Location | None:
        """The line of an object that helm prints as it stands in `crds/`."""
        if "crds" not in Path(manifest.source).parts[:-1] or Path(manifest.source) not in self._chart.files:
            return None
        whole = self._chart.read(manifest.source).splitlines()
        wanted, first = _trimmed(manifest.document.splitlines())
        for start in range(len(whole) - len(wanted) + 1):
            if whole[start : start + len(wanted)] == wanted:
                return Location(manifest.source, start + line - first + 1)
        return None

    def _marked(self, manifest: Manifest, line: int) -> Location | None:
        wanted, first = _trimmed(manifest.document.splitlines())
        for level in range(LEVELS):
            marked, documents = self._level(level)
            best: list[str] = []
            best_equal = 0
            for candidate in documents.get(manifest.source, []):
                equal = _alike(wanted, candidate)
                if equal > best_equal:
                    best, best_equal = candidate, equal
            if best_equal * 2 >= len(wanted) > 0:
                number = _number(best, line - first)
                if number is not None:
                    return Location(*marked.places[number])
        return None

    def _level(self, level: int) -> tuple[Marked, dict[str, list[list[str]]]]:
        if level not in self._levels:
            marked = mark(self._texts, level)
            documents: dict[str, list[list[str]]] = {}
            source = ""
            for document in _SEPARATOR.split(self._output(marked, level)):
                named = _SOURCE.search(document)
                source = named[1] if named else source
                documents.setdefault(source, []).append(_marked_lines(document))
            self._levels[level] = marked, documents
        return self._levels[level]

    def _near(self, manifest: Manifest, path: str) -> Location | None:
        """The line of the template that has the keys of a path one below the other, as far as they are literal."""
        text = self._texts.get(manifest.source)
        if text is None:
            return None
        found, depth = 0, -1
        lines = text.splitlines()
        for key in (key for key in re.split(r"[.\[\]]+", path) if key and not key.isdigit()):
            for number in range(found, len(lines)):
                match = re.match(rf"(\s*)(?:- )?[\"']?{re.escape(key)}[\"']?\s*:", lines[number])
                if match and len(match[1]) > depth:
                    found, depth = number + 1, len(match[1])
                    break
            else:
                break
        return Location(manifest.source, max(found, 1), exact=False)


def _trimmed(lines: Sequence[str]) -> tuple[list[str], int]:
    """Lines without the `# Source:` of helm and without empty ones at both ends, and how many were left out before."""
    first, last = 0, len(lines)
    while first < last and (not lines[first].strip() or lines[first].startswith("# Source: ")):
        first += 1
    while last > first and not lines[last - 1].strip():
        last -= 1
    return list(lines[first:last]), first


def _marked_lines(document: str) -> list[str]:
    """The lines of a marked document as `_trimmed` leaves them; a mark on an empty line before goes to the first."""
    lines = document.splitlines()
    _, first = _trimmed([_MARK.sub("", line) for line in lines])
    before = _MARK.findall("".join(lines[:first]))
    kept = lines[first:]
    while kept and not _MARK.sub("", kept[-1]).strip():
        kept.pop()
    if kept and before and not re.match(rf"\s*{_MARK.pattern}", kept[0]):
        kept[0] = f"{_OPEN}{before[-1]}{_CLOSE}{kept[0]}"
    return kept


def _alike(wanted: Sequence[str], marked: Sequence[str]) -> int:
    """How many lines are equal but for their marks; 0 unless all others have at least the same key, as checksums do."""
    if len(wanted) != len(marked):
        return 0
    equal = 0
    for line, other in zip(wanted, marked, strict=True):
        plain = _MARK.sub("", other)
        if plain.rstrip() == line.rstrip():
            equal += 1
        else:
            key, other_key = _KEY.match(line), _KEY.match(plain)
            if key is None or other_key is None or key[0] != other_key[0]:
                return 0
    return equal


def _number(lines: Sequence[str], line: int) -> int | None:
    """The mark that stands for a line: its own first one, else the last one before it."""
    own = re.match(rf"\s*{_MARK.pattern}", lines[line])
    if own:
        return int(own[1])
    for earlier in range(line - 1, -1, -1):
        numbers = _MARK.findall(lines[earlier])
        if numbers:
            return int(numbers[-1])
    return None


def line_of(document: str, path: str) -> tuple[int, bool]:
    """The line of a field in a YAML document, counted from 0, and whether the field is there.

    For a field that is not there it is the line of the deepest field above it.
    """
    node: Any = yaml.compose(document, Loader=yaml.CSafeLoader)
    line = node.start_mark.line if node is not None else 0
    rest = path.lstrip(".")
    while rest:
        step = _step(node, rest)
        if step is None:
            return line, False
        line, node, rest = step
    return line, True


def _step(node: Any, rest: str) -> tuple[int, Any, str] | None:
    """Line, node and remaining path one step further down."""
    if rest.startswith("[") and isinstance(node, yaml.SequenceNode):
        index, _, rest = rest[1:].partition("]")
        for position, item in enumerate(node.value):
            named = isinstance(item, yaml.MappingNode) and any(
                key.value == "name" and value.value == index for key, value in item.value
            )
            if (index.isdigit() and int(index) == position) or named:
                return item.start_mark.line, item, rest.lstrip(".")
    elif isinstance(node, yaml.MappingNode):
        # A key may contain dots itself (`app.kubernetes.io/name`): the longest one that fits is meant.
        fitting = [
            (key, value)
            for key, value in node.value
            if rest == key.value or rest.startswith((f"{key.value}.", f"{key.value}["))
        ]
        if fitting:
            key, value = max(fitting, key=lambda pair: len(pair[0].value))
            return key.start_mark.line, value, rest[len(key.value) :].lstrip(".")
    return None
