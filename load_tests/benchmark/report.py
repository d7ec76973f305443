"""The figures as a table for people, and the growth as curves."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from load_tests.benchmark import results

CLOSED = "single predictions, closed loop, 32 connections"
OPEN = "single predictions, open loop, 2,000/s"

Figures = dict[str, dict[str, Any]]


def _at_most(limit: float) -> tuple[str, Callable[[float], bool]]:
    return f"≤ {limit:,g}", lambda figure: figure <= limit


def _at_least(limit: float) -> tuple[str, Callable[[float], bool]]:
    return f"≥ {limit:,g}", lambda figure: figure >= limit


TARGETS = {
    CLOSED: _at_least(2000),
    f"{CLOSED}, P50": _at_most(10),
    f"{CLOSED}, P95": _at_most(30),
    f"{CLOSED}, P99": _at_most(50),
    f"{OPEN}, P50": _at_most(10),
    f"{OPEN}, P95": _at_most(30),
    f"{OPEN}, P99": _at_most(50),
    "points through batches of 32,768": _at_least(100_000),
    "points through 512 series of 64": _at_least(100_000),
    "cold load, P99": _at_most(100),
    "memory per cached model": _at_most(110),
    "growth, 25,000 models, memory of the replica": _at_most(3000),
    "fit of 1,000 points to served, P99": _at_most(2),
    "fit of 100,000 points to served, P99": _at_most(10),
    "memory idle, training API": _at_most(150),
    "memory idle, training worker": _at_most(350),
    "memory idle, Ray replica": _at_most(500),
}
"""By measurement: what must be reached, in its unit."""
RATIO = 20
"""How many times the baseline's single predictions must be reached."""


def _number(figure: float) -> str:
    return f"{figure:,.0f}" if abs(figure) >= 100 else f"{figure:,.1f}" if abs(figure) >= 10 else f"{figure:,.2f}"


def _spread(runs: list[float]) -> str:
    return f"{_number(min(runs))} to {_number(max(runs))}" if len(runs) > 1 else ""


def _row(entry: dict[str, Any]) -> list[str]:
    name, ours = entry["name"], entry["ours"]
    target, met = "", ""
    if name in TARGETS:
        target, reached = TARGETS[name]
        met = "yes" if reached(ours) else "**no**"
    ratio = entry["ratio"]
    factor = ""
    if ratio:
        factor = f"{ratio['median']:.3g} ({ratio['min']:.3g} to {ratio['max']:.3g})"
    if name == CLOSED and ratio:
        target += f"; {RATIO} times"
        met = "yes" if met == "yes" and ratio["median"] >= RATIO else "**no**"
    theirs = "" if entry["baseline"] is None else _number(entry["baseline"])
    return [name, entry["unit"], _number(ours), _spread(entry["runs"]["ours"]), theirs, factor, target, met]


def _table(entries: list[dict[str, Any]]) -> str:
    head = ["measurement", "unit", "median", "spread", "baseline", "ratio", "target", "met"]
    rows = [head, ["---", "---", *["---:"] * 4, "---", "---"], *map(_row, entries)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def summary(figures: Path) -> str:
    """The figures that have a target, as text."""
    found = results.read(figures)
    lines = []
    for name in TARGETS:
        if name in found:
            _, unit, ours, spread, _, ratio, target, met = _row(found[name])
            lines.append(f"  {name:<58} {ours:>9} {unit:<9} {target:<20} {met.strip('*'):<4} {spread} {ratio}")
    return "\n".join(lines)


def write(figures: Path, folder: Path, *, quick: bool, seconds: float) -> None:
    """Write `benchmarks.md` and `benchmarks.svg`.

    Args:
        figures: the JSON list of `Results`.
        folder: where to.
        quick: whether it was a short run.
        seconds: how long it took.
    """
    found = results.read(figures)
    folder.mkdir(parents=True, exist_ok=True)
    draw(found, folder / "benchmarks.svg")
    memory = next(
        int(line.split()[1]) / 2**20
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("MemTotal")
    )
    command = "BENCH=quick make bench" if quick else "make bench"
    parts = [
        "# Benchmarks",
        f"Written by `{command}` on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, in {seconds / 60:.0f} minutes, on {os.cpu_count()} cores"
        f" ({_processor()}) with {memory:.0f} GiB of memory, Linux {platform.release()}."
        " Load generator, baseline, cluster and everything else share these cores. Do not edit: the next run writes it anew.",
        "- **Closed loop**: 32 connections of `wrk`, each sending its next request when it has the answer to the last. It shows the"
        " most that is answered a second; latencies are those at saturation, 32 divided by the rate on average.\n"
        "- **Open loop**: `vegeta` sends at the stated rate whether or not the requests before are answered. It shows the"
        " latency at that rate; 333/s is the peak that the design names.\n"
        "- **Baseline** ([`load_tests/baseline`](../load_tests/baseline/app.py)): scikit-learn's `decision_function` for each request,"
        " the model unpickled through MLflow, Ray Serve as installed. Its runs alternate with ours; the ratio is that of the"
        " pairs: median (smallest to largest).\n"
        "- **Growth**: models registered by copying the registry's rows of fitted models in its database, loaded by replicas over"
        " MLflow and the object store; every series is asked for as often as any other. Memory is the replica's proportional set size.\n"
        "- **Idle** memory is that of the container without file pages that the kernel can drop; of the Ray replica that of its process.",
        "![growth](benchmarks.svg)",
    ]
    groups = {
        "Single predictions": r"single predictions",
        "Points": r"points through",
        "Models": r"cold load|memory per",
        "Training": r"fit of",
        "Memory, idle": r"memory idle",
        "Growth": r"growth",
    }
    for title, pattern in groups.items():
        entries = [entry for name, entry in found.items() if re.match(pattern, name)]
        if entries:
            parts += [f"## {title}", _table(entries)]
    (folder / "benchmarks.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _series(found: Figures, pattern: str) -> tuple[list[float], list[float]]:
    """Numbers in the names that match, and their figures."""
    pairs = [
        (float(match[1].replace(",", "")), entry["ours"])
        for name, entry in found.items()
        if (match := re.fullmatch(pattern, name))
    ]
    return [number for number, _ in pairs], [figure for _, figure in pairs]


def draw(found: Figures, path: Path) -> None:
    """Rate, latency and memory by models in one replica, and rate by replicas, as SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "benchmarks"  # equal figures give an equal file
    from matplotlib import pyplot as plt

    models = r"growth, ([\d,]+) models, "
    panels = (
        ("single predictions/s, closed loop", "models in one replica", f"{models}single predictions"),
        ("P99 in ms, closed loop", "models in one replica", f"{models}P99"),
        ("memory of the replica, MB", "models in one replica", f"{models}memory of the replica"),
        ("single predictions/s, closed loop", "replicas", r"growth, (\d+) replicas, single predictions"),
    )
    figure, axes = plt.subplots(1, len(panels), figsize=(15, 3.6), layout="constrained")
    for axis, (title, label, pattern) in zip(axes, panels, strict=True):
        numbers, values = _series(found, pattern)
        axis.plot(numbers, values, marker="o")
        axis.set(title=title, xlabel=label)
        axis.set_ylim(bottom=0)
        if label != "replicas":
            axis.set_xscale("symlog", linthresh=10)
        axis.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
