"""The command line: `python -m chart_harness COMMAND`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from chart_harness import coverage, diff, graph, mutation, options, speed, upgrade
from chart_harness.render import HelmError

COMMANDS = (diff, graph, coverage, mutation, upgrade, speed)
"""Modules with a command each, beside `render`."""

_RENDER_EXAMPLES = """\
examples:
  python -m chart_harness render -f values/production.yaml
  python -m chart_harness render --kind Service --kind Ingress --set ingress.enabled=true
  python -m chart_harness render --name web -o json | jq '.items[].spec'
"""


def _add_render(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "render",
        help="print rendered objects",
        description="Render a chart, hooks and definitions included, and print all objects or some of them.",
        epilog=_RENDER_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_render_options(parser)
    parser.add_argument("--kind", action="append", default=[], help="only objects of this kind; may be repeated")
    parser.add_argument("--name", action="append", default=[], help="only objects of this name; may be repeated")
    parser.add_argument("-o", "--output", choices=("yaml", "json"), default="yaml", help="(default: %(default)s)")
    parser.set_defaults(run=_render)


def _render(arguments: argparse.Namespace) -> int:
    manifests = options.side(arguments).render()
    chosen = manifests.where(
        lambda manifest: (
            (not arguments.kind or manifest.kind.lower() in [kind.lower() for kind in arguments.kind])
            and (not arguments.name or manifest.name in arguments.name)
        )
    )
    if not chosen and (arguments.kind or arguments.name):
        wanted = " ".join([*arguments.kind, *arguments.name])
        raise options.UsageError(f"no object is {wanted}; there are {', '.join(manifest.id for manifest in manifests)}")
    if arguments.output == "json":
        print(
            json.dumps({"apiVersion": "v1", "kind": "List", "items": [dict(manifest) for manifest in chosen]}, indent=2)
        )
    else:
        print(options.plain(chosen), end="")
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        Its exit code; 2 when it could not be carried out, with the reason on standard error.
    """
    parser = argparse.ArgumentParser(
        prog="python -m chart_harness",
        description="Look at a Helm chart as the API server and its tests see it.",
        epilog="`python -m chart_harness COMMAND --help` shows the options and examples of a command.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_render(commands)
    for module in COMMANDS:
        module.add_command(commands)
    arguments = parser.parse_args(words)
    try:
        return int(arguments.run(arguments))
    except (HelmError, options.UsageError) as error:
        print(f"chart_harness: {error}", file=sys.stderr)
        return 2
