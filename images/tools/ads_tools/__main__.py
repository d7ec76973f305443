"""Command line: `python -m ads_tools secrets|object-store|smoke`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from ads_tools import object_store, secrets, smoke
from ads_tools.console import Failure, say

COMMANDS: dict[str, tuple[Callable[[], None], str]] = {
    "secrets": (secrets.main, "create the Secrets that are missing"),
    "object-store": (object_store.main, "create the buckets, users and policies of the object store"),
    "smoke": (smoke.main, "test an installation from the fit to the prediction"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="ads_tools")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (_, summary) in COMMANDS.items():
        commands.add_parser(name, help=summary)
    command, _ = COMMANDS[parser.parse_args(arguments).command]
    try:
        command()
    except Failure as failure:
        say(f"FAILED: {failure}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
