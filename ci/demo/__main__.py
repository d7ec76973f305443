"""Command line of the main job; see `--help`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ci import paths
from ci.console import Failure, main_guard, say, stage
from ci.demo import report
from ci.demo.job import DEFAULT_CONTAMINATION, DemoResult, run
from ci.demo.picture import draw
from ci.demo.series import BUILT_IN, Series, built_in, read_csv


def _contamination(text: str) -> float:
    value = float(text)
    if not 0 < value <= 0.5:
        raise argparse.ArgumentTypeError("must be above 0 and at most 0.5")
    return value


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m ci.demo", description="Find anomalies in real sensor data with the running system."
    )
    parser.add_argument("--training-api", required=True, metavar="URL", help="base URL of the training API")
    parser.add_argument("--inference", required=True, metavar="URL", help="base URL of the inference service")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--series",
        action="append",
        choices=list(BUILT_IN),
        help="a series of the package aeon; may be repeated (default: all)",
    )
    what.add_argument(
        "--data", type=Path, metavar="FILE", help="a CSV of your own: timestamp,value and optionally a label"
    )
    parser.add_argument("--column", help="the value column of --data, where it has several")
    parser.add_argument("--series-id", help="name of --data in the system (default: from the file's name)")
    parser.add_argument(
        "--aeon", type=Path, metavar="DIR", help="folder of the package aeon (default: where it is installed)"
    )
    parser.add_argument(
        "--contamination",
        type=_contamination,
        default=DEFAULT_CONTAMINATION,
        help="share of the fitted part above the threshold (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=paths.BUILD,
        metavar="DIR",
        help="where demo.png and demo.json go (default: build)",
    )
    arguments = parser.parse_args(words)
    if arguments.data is None and (arguments.column or arguments.series_id):
        parser.error("--column and --series-id belong to --data")
    return arguments


def _series(arguments: argparse.Namespace) -> list[Series]:
    if arguments.data is not None:
        return [read_csv(arguments.data, column=arguments.column, series_id=arguments.series_id)]
    return [built_in(name, arguments.aeon) for name in arguments.series or BUILT_IN]


def main(words: Sequence[str] | None = None) -> int:
    """Run the job on each series asked for, then write and print what came of it."""
    arguments = _arguments(words)
    results: list[DemoResult] = []
    for series in _series(arguments):
        with stage(f"Series {series.series_id}"):
            results.append(
                run(series, arguments.training_api, arguments.inference, contamination=arguments.contamination)
            )
    picture, figures = arguments.output / "demo.png", arguments.output / "demo.json"
    try:
        draw(results, picture)
        report.write_json(results, figures)
    except OSError as error:
        raise Failure(
            f"cannot write to {arguments.output}: {error.strerror}", "name a writable folder with --output"
        ) from error
    for result in results:
        say(f"\n{report.summary(result)}")
    say(f"\n  picture  {_shown(picture)}\n  figures  {_shown(figures)}")
    return 0


def _shown(path: Path) -> str:
    absolute = path.resolve()
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute)


if __name__ == "__main__":
    sys.exit(main_guard(main))
