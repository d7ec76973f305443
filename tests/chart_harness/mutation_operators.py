"""Mistakes that people make in charts, as small edits of templates and values files.

The list of a file's mutants is the same in every run. A mutant's id is made of the file, the operator and the text that
it changes, so that lines added elsewhere do not rename it.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import unified_diff
from itertools import pairwise
from pathlib import Path

from chart_harness.coverage import actions

Edit = tuple[int, int, str]
"""Offsets of the text that is replaced, and what replaces it."""


@dataclass(frozen=True)
class Mutant:
    """One mistake in one file.

    Attributes:
        id: `file:operator:hash`.
        file: relative to the repository.
        operator: the kind of mistake.
        line: where it begins, from 1.
        start, end, replacement: the edit, as offsets into the file's text.
    """

    id: str
    file: str
    operator: str
    line: int
    start: int
    end: int
    replacement: str

    def apply(self, source: str) -> str:
        """The file's text with the mistake in it."""
        return source[: self.start] + self.replacement + source[self.end :]

    def diff(self, source: str) -> str:
        """What it changes, as a unified diff without context."""
        lines = unified_diff(source.splitlines(), self.apply(source).splitlines(), n=0, lineterm="")
        return "\n".join(list(lines)[2:])


_COMMENT = re.compile(r"^[ \t]*#[^\n]*$|\{\{-?\s*/\*.*?\*/\s*-?\}\}", re.MULTILINE | re.DOTALL)
_CONTROL = re.compile(r"^\s*\{\{-?\s*(?:if|else|end|with|range|define|block|\$\w+(?:\s*,\s*\$\w+)?\s*:=)")
_OPERAND = r"\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)|[^\s()]+"
_OPERANDS = re.compile(rf"(?:and|or) (?P<first>{_OPERAND}) (?P<second>{_OPERAND})")
_REFERENCE = re.compile(r"(?P<parent>(?:\$\w*|\$)?(?:\.\w+)+)\.(?P<key>\w+)\b")
_ARGUMENT = re.compile(r'"(?P<key>key|name|credential|path|port|app|part|user|bucket|command)" "(?P<value>[^"]+)"')
_FIELD = re.compile(r"^[ \t]*(?:- )?(?P<key>[\w./-]+): (?P<value>[A-Za-z/][\w./:@-]*)[ \t]*$", re.MULTILINE)
_NUMBER_FIELD = re.compile(r"^[ \t]*(?:- )?(?P<key>[\w.-]+): \"?(?P<value>\d+)\"?[ \t]*$", re.MULTILINE)
_BOOLEAN = re.compile(r": (?P<quote>\"?)(?P<value>true|false)(?P=quote)[ \t]*$", re.MULTILINE)
_LOOSER = (
    (re.compile(r"drop: \[ALL\]"), "drop: []"),
    (re.compile(r"type: RuntimeDefault"), "type: Unconfined"),
    (re.compile(r"policyTypes: \[Ingress, Egress\]"), "policyTypes: [Ingress]"),
    (re.compile(r"policyTypes: \[Ingress, Egress\]"), "policyTypes: [Egress]"),
    (re.compile(r"(?<=verbs: )\[[^\]\n]*\]"), '["*"]'),
    (re.compile(r"(?<=resources: )\[secrets\]"), '["*"]'),
    (re.compile(r"protocol: TCP"), "protocol: UDP"),
    (re.compile(r"protocol: UDP"), "protocol: TCP"),
)
_LEAF = re.compile(r"^(?P<indent> *)(?P<key>[\w.-]+|\"[^\"]+\"): (?P<value>[^#\n]*?)[ \t]*$", re.MULTILINE)
_QUANTITY = re.compile(r"(?<![\w.-])(\d+)([KMGT]i?B?|m)(?![\w.-])")


def mutants(file: str, source: str) -> list[Mutant]:
    """Every mutant of a file, in the order of its lines.

    Args:
        file: its path; a file below a `templates` folder is a template, any other a values file.
        source: its text.
    """
    operators = _TEMPLATE if "templates" in Path(file).parts[:-1] else _VALUES
    comments = [match.span() for match in _COMMENT.finditer(source)]
    counts: Counter[str] = Counter()
    found = []
    for name, operator in operators.items():
        for start, end, replacement in operator(source):
            if any(first <= start < last for first, last in comments) or source[start:end] == replacement:
                continue
            line = source.count("\n", 0, start) + 1
            text = f"{name}\0{source.splitlines()[line - 1].strip()}\0{source[start:end].strip()}\0{replacement}"
            counts[text] += 1
            digest = hashlib.sha256(f"{text}\0{counts[text]}".encode()).hexdigest()[:8]
            found.append(Mutant(f"{file}:{name}:{digest}", file, name, line, start, end, replacement))
    return sorted(found, key=lambda mutant: (mutant.start, mutant.operator, mutant.end, mutant.replacement))


def _lines(source: str) -> Iterator[tuple[int, int, str]]:
    """Offsets and text of each line, with its end."""
    position = 0
    for line in source.splitlines(keepends=True):
        yield position, position + len(line), line
        position += len(line)


def _drop_line(source: str) -> Iterator[Edit]:
    """A line is forgotten. Lines of control flow and of variables are not: without them nothing parses."""
    for start, end, line in _lines(source):
        if line.strip() and line.strip() != "---" and not _CONTROL.match(line) and _balanced(line):
            yield start, end, ""


def _balanced(line: str) -> bool:
    return line.count("{{") == line.count("}}")


def _drop_condition(source: str) -> Iterator[Edit]:
    """A condition, or one of its operands, is left out."""
    for action in actions(source):
        match = re.match(r"(?:else )?if (?P<condition>.*)", action.body, re.DOTALL)
        if match:
            start = source.index(match["condition"], action.start)
            yield start, start + len(match["condition"]), "true"
            operands = _OPERANDS.fullmatch(match["condition"])
            if operands:
                yield start, start + len(match["condition"]), operands["first"]
                yield start, start + len(match["condition"]), operands["second"]


def _negate_condition(source: str) -> Iterator[Edit]:
    """A condition is the wrong way round."""
    for action in actions(source):
        match = re.match(r"(?:else )?if (?P<condition>.*)", action.body, re.DOTALL)
        if match:
            start = source.index(match["condition"], action.start)
            yield start, start + len(match["condition"]), f"not ({match['condition']})"


def _change_indentation(source: str) -> Iterator[Edit]:
    """`nindent` is off by a level."""
    for match in re.finditer(r"(?<=indent )\d+", source):
        for step in (-2, 2):
            if int(match[0]) + step >= 0:
                yield match.start(), match.end(), str(int(match[0]) + step)


def _drop_default(source: str) -> Iterator[Edit]:
    """What stands in for an empty value is left out."""
    for match in re.finditer(r" \| default (?:\([^()]*(?:\([^()]*\)[^()]*)*\)|[^\s()]+)", source):
        yield match.start(), match.end(), ""


def _drop_quote(source: str) -> Iterator[Edit]:
    """A value is not quoted."""
    for match in re.finditer(r" \| quote\b", source):
        yield match.start(), match.end(), ""


def _swap(source: str, pattern: re.Pattern[str], changed: Callable[[str], str]) -> Iterator[Edit]:
    """A value is another one of the same key in the same file; where there is none, it is misspelt."""
    found = list(pattern.finditer(source))
    for match in found:
        others = sorted({other["value"] for other in found if other["key"] == match["key"]} - {match["value"]})
        later = [value for value in others if value > match["value"]]
        other = (later or others or [changed(match["value"])])[0]
        yield match.start("value"), match.end("value"), other


def _swap_field(source: str) -> Iterator[Edit]:
    """A name, a key or another word stands for another one, or is misspelt."""
    yield from (
        edit
        for edit in _swap(source, _FIELD, lambda value: f"{value}x")
        if source[edit[0] : edit[1]] not in ("true", "false")
    )


def _swap_argument(source: str) -> Iterator[Edit]:
    """The same among the arguments of a template."""
    yield from _swap(source, _ARGUMENT, lambda value: f"{value}x")


def _change_number(source: str) -> Iterator[Edit]:
    """A port or another number is another one of the same file, or one too high."""
    yield from _swap(source, _NUMBER_FIELD, lambda value: str(int(value) + 1))
    for match in re.finditer(r"(?<=\(list )\d+(?: \d+)*(?=\))", source):
        first, *rest = match[0].split()
        yield match.start(), match.end(), " ".join([str(int(first) + 1), *rest])


def _drop_element(source: str) -> Iterator[Edit]:
    """A list lacks its first or its last element."""
    for match in re.finditer(r'(?<=\(list )(?:"[^"]*" )+"[^"]*"(?=\))|(?<=\(list )\d+ \d+(?: \d+)*(?=\))', source):
        elements = match[0].split(" ")
        yield match.start(), match.end(), " ".join(elements[1:])
        yield match.start(), match.end(), " ".join(elements[:-1])


def _flip_boolean(source: str) -> Iterator[Edit]:
    """`true` for `false`: most of them are about security."""
    for match in _BOOLEAN.finditer(source):
        yield match.start("value"), match.end("value"), "false" if match["value"] == "true" else "true"


def _loosen(source: str) -> Iterator[Edit]:
    """A restriction is less strict."""
    for pattern, looser in _LOOSER:
        for match in pattern.finditer(source):
            yield match.start(), match.end(), looser


def _swap_reference(source: str) -> Iterator[Edit]:
    """A value is read from a neighbouring key."""
    found = [
        (action.start + 2 + match.start("key"), match)
        for action in actions(source)
        for match in _REFERENCE.finditer(source[action.start + 2 : action.end])
        if not action.body.startswith("/*")
    ]
    for start, match in found:
        others = sorted({other["key"] for _, other in found if other["parent"] == match["parent"]} - {match["key"]})
        later = [key for key in others if key > match["key"]]
        if others:
            yield start, start + len(match["key"]), (later or others)[0]


def _remove_value(source: str) -> Iterator[Edit]:
    """A value is missing."""
    for start, end, line in _lines(source):
        if _LEAF.match(line.rstrip("\n")) or line.lstrip().startswith("- "):
            yield start, end, ""


def _swap_neighbours(source: str) -> Iterator[Edit]:
    """Two values that stand under each other are swapped."""
    leaves = list(_LEAF.finditer(source))
    for first, second in pairwise(leaves):
        between = source[first.end() : second.start()]
        alike = first["value"][:1].isdigit() == second["value"][:1].isdigit()
        if first["indent"] == second["indent"] and alike and not between.replace("\n", "").strip(" ").startswith("-"):
            if any(line.strip() and not line.lstrip().startswith("#") for line in between.splitlines()):
                continue
            yield (
                first.start("value"),
                second.end("value"),
                second["value"] + source[first.end("value") : second.start("value")] + first["value"],
            )


def _confuse_unit(source: str) -> Iterator[Edit]:
    """A quantity lacks its unit; a number is in thousandths."""
    for match in _QUANTITY.finditer(source):
        yield match.start(), match.end(), match[1]
    for leaf in _LEAF.finditer(source):
        if leaf["value"].isdigit() and leaf["value"] != "0":
            yield leaf.start("value"), leaf.end("value"), f"{leaf['value']}000"


def _empty_value(source: str) -> Iterator[Edit]:
    """A value is there, and empty; a number is zero."""
    for leaf in _LEAF.finditer(source):
        value = leaf["value"]
        if value.isdigit() and value != "0":
            yield leaf.start("value"), leaf.end("value"), "0"
        elif re.fullmatch(r"[A-Za-z][^{}\[\]]*", value) and value not in ("true", "false"):
            yield leaf.start("value"), leaf.end("value"), '""'


def _misspell_value(source: str) -> Iterator[Edit]:
    """A word is misspelt."""
    for leaf in _LEAF.finditer(source):
        if re.fullmatch(r"[A-Za-z][\w./:-]*", leaf["value"]) and leaf["value"] not in ("true", "false"):
            yield leaf.end("value"), leaf.end("value"), "x"


_TEMPLATE: dict[str, Callable[[str], Iterator[Edit]]] = {
    "drop-line": _drop_line,
    "drop-condition": _drop_condition,
    "negate-condition": _negate_condition,
    "change-indentation": _change_indentation,
    "drop-default": _drop_default,
    "drop-quote": _drop_quote,
    "swap-word": _swap_field,
    "swap-argument": _swap_argument,
    "change-number": _change_number,
    "drop-element": _drop_element,
    "flip-boolean": _flip_boolean,
    "loosen": _loosen,
    "swap-reference": _swap_reference,
}

_VALUES: dict[str, Callable[[str], Iterator[Edit]]] = {
    "remove-value": _remove_value,
    "swap-neighbours": _swap_neighbours,
    "flip-boolean": _flip_boolean,
    "confuse-unit": _confuse_unit,
    "empty-value": _empty_value,
    "misspell-value": _misspell_value,
}
