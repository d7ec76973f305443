"""`diff`: what changes between two revisions, two values files or two charts, and what an upgrade makes of it."""

from __future__ import annotations

import argparse
import copy
import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chart_harness import options
from chart_harness.objects import Manifests
from chart_harness.upgrade import differences, immutable_changes, pairs, restarts, short

EXAMPLES = """\
examples:
  python -m chart_harness diff --revision v1.2.0             what changed since that tag
  python -m chart_harness diff -f dev.yaml --to-values production.yaml
  python -m chart_harness diff --chart old --to-chart new
  python -m chart_harness diff --to-set image.tag=2          what one value changes

exit code: 0 nothing differs, 1 something does, 3 a change would be refused, 2 could not compare
"""


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `diff`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "diff",
        help="what changes between two renderings",
        description="Compare two renderings by object and field. The order of named items does not count. Says which "
        "pods restart and which changes the API server would refuse. What no --to option names is the same on both "
        "sides.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_render_options(parser)
    parser.add_argument("--revision", metavar="GIT", help="take the chart of this side from a git revision")
    parser.add_argument("--to-revision", metavar="GIT", help="… and of the other side (default: the files as they are)")
    parser.add_argument("--to-chart", type=Path, metavar="FOLDER", help="chart of the other side")
    parser.add_argument(
        "--to-values", type=Path, action="append", metavar="FILE", help="values files of the other side"
    )
    parser.add_argument("--to-set", action="append", metavar="KEY=VALUE", help="values of the other side")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text", help="(default: %(default)s)")
    parser.set_defaults(run=_diff)


def _diff(arguments: argparse.Namespace) -> int:
    other = copy.copy(arguments)
    for name in ("chart", "values", "set"):
        if getattr(arguments, f"to_{name}") is not None:
            setattr(other, name, getattr(arguments, f"to_{name}"))
    with (
        options.at_revision(options.side(arguments), arguments.revision) as one,
        options.at_revision(options.side(other), arguments.to_revision) as two,
    ):
        before, after = one.render(), two.render()
        report = compare(before, after)
        print(json.dumps(report, indent=1, default=str) if arguments.output == "json" else "\n".join(_text(report)))
    if report["refused"]:
        return 3
    return 1 if report["changed"] or report["added"] or report["removed"] else 0


def compare(before: Manifests, after: Manifests) -> dict[str, Any]:
    """What changes between two renderings.

    Returns:
        `added` and `removed` (ids), `changed` (id -> fields, each with path, before, after and template line),
        `restarts` and `refused` (sentences).
    """
    report: dict[str, Any] = {"added": [], "removed": [], "changed": {}}
    for old, new in pairs(before, after):
        if old is None and new is not None:
            report["added"].append(new.id)
        elif new is None and old is not None:
            report["removed"].append(old.id)
        elif old is not None and new is not None:
            fields = [
                {
                    "path": path,
                    "before": one,
                    "after": two,
                    "line": str((new.locate(path) if two is not None else old.locate(path)) or ""),
                }
                for path, one, two in differences(old.raw, new.raw)
            ]
            if fields:
                report["changed"][new.id] = fields
    report["restarts"] = [str(restart) for restart in restarts(before, after)]
    report["refused"] = [str(change) for change in immutable_changes(before, after)]
    return report


def _text(report: dict[str, Any]) -> Iterator[str]:
    for name, fields in report["changed"].items():
        yield f"~ {name}"
        for field in fields:
            where = f"   ({field['line']})" if field["line"] else ""
            one, two = field["before"], field["after"]
            if isinstance(one, str) and isinstance(two, str) and "\n" in one + two:
                yield f"    {field['path']}{where}"
                lines = difflib.unified_diff(one.splitlines(), two.splitlines(), lineterm="", n=1)
                yield from (f"      {line}" for line in list(lines)[2:])
            else:
                yield f"    {field['path']}: {short(one)} → {short(two)}{where}"
    yield from (f"+ {name}" for name in report["added"])
    yield from (f"- {name}" for name in report["removed"])
    if not any(report[key] for key in ("changed", "added", "removed")):
        yield "nothing differs"
        return
    yield ""
    yield "Pods that restart:" if report["restarts"] else "No pod restarts."
    yield from (f"  {line}" for line in report["restarts"])
    if report["refused"]:
        yield "The API server would refuse:"
        yield from (f"  {line}" for line in report["refused"])
