"""The measured figures, carried on to the fleet: `python -m load_tests.benchmark.capacity` makes `docs/capacity.md` anew."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

from ci import console, paths
from load_tests.benchmark import results


@dataclass(frozen=True)
class Assumptions:
    """What is not measured. Prices are assumptions to be replaced by those of one's own provider."""

    series: int = 300_000
    predictions_per_second: float = 30_000
    points_per_prediction: float = 1
    headroom: float = 0.5  # share of the measured rate that is planned with
    spare_replicas: int = 2
    cores_measured: float = 2
    replica_memory_gb: float = 3
    fits_per_second: float = 2.35
    fit_points: int = 15_360
    versions_kept: int = 10
    artifact_mb: float = 1.4
    point_bytes: float = 16
    training_data_kept: int = 10
    core_month: float = 25.0
    gb_memory_month: float = 3.5
    gb_storage_month: float = 0.10
    gb_object_month: float = 0.023


@dataclass(frozen=True)
class Plan:
    """What the fleet needs; memory and storage in GB, prices in US dollars a month."""

    replicas_for_rate: int
    replicas_for_memory: int
    replicas: int
    cores: float
    memory_gb: float
    workers: int
    objects_gb: float
    database_gb: float
    cost_month: float


def plan(single_rate: float, model_kb: float, replica_mb: float, fit_seconds: float, given: Assumptions) -> Plan:
    """Replicas, workers, storage and cost.

    Args:
        single_rate: single predictions a second that the measured machine answers.
        model_kb: memory of a cached model.
        replica_mb: memory of a replica without models.
        fit_seconds: of a fit, from sending to served.
        given: the rest.
    """
    by_rate = math.ceil(given.predictions_per_second / (single_rate * given.headroom))
    room_gb = given.replica_memory_gb - replica_mb / 1000
    by_memory = math.ceil(given.series * model_kb / 1e6 / room_gb)
    replicas = max(by_rate, by_memory) + given.spare_replicas
    workers = math.ceil(given.fits_per_second * fit_seconds / given.headroom)
    cores = replicas * given.cores_measured + workers
    memory = replicas * given.replica_memory_gb + workers * 0.9
    models = given.series * given.versions_kept * given.artifact_mb / 1000
    data = given.series * given.training_data_kept * given.fit_points * given.point_bytes / 1e9
    database = given.series * given.versions_kept * 6e-6  # about 6 KB of rows for a version
    cost = (
        cores * given.core_month
        + memory * given.gb_memory_month
        + (models + data) * given.gb_object_month
        + database * given.gb_storage_month
    )
    return Plan(by_rate, by_memory, replicas, cores, memory, workers, models + data, database, cost)


def write(figures: Path, folder: Path) -> None:
    """Write `capacity.md` from the measurements of a run."""
    found = results.read(figures)
    single = found["single predictions, closed loop, 32 connections"]["ours"]
    model = found["memory per cached model"]["ours"]
    replica = found["growth, 0 models, memory of the replica"]["ours"]
    fit = found["fit of 1,000 points to served, P50"]["ours"]
    given = Assumptions()
    needed = plan(single, model, replica, fit, given)
    lines = [
        "# Capacity",
        "",
        f"From the figures of [the benchmark](benchmarks.md) to {given.series:,} series and {given.predictions_per_second:,.0f} "
        "predictions a second. A calculation on paper, not a measurement: it takes the rate of the whole measured machine, load "
        f"generator included, for that of one pod with {given.cores_measured:g} cores, and growth with the number of nodes to be "
        "linear. Written by `make bench`; `load_tests/benchmark/capacity.py` holds assumptions and formulas.",
        "",
        "| measured | |",
        "| --- | ---: |",
        f"| single predictions a second, *r* | {single:,.0f} |",
        f"| memory of a cached model, *m* | {model:,.1f} KB |",
        f"| memory of a replica without models, *b* | {replica:,.0f} MB |",
        f"| a fit, from sending to served, median, *f* | {fit:.2f} s |",
        "",
        "| assumed | |",
        "| --- | ---: |",
        *(f"| `{name}` | {value:,g} |" for name, value in vars(given).items()),
        "",
        "| needed | formula | |",
        "| --- | --- | ---: |",
        f"| replicas for the rate | predictions_per_second / (*r* · headroom), rounded up | {needed.replicas_for_rate:,} |",
        f"| replicas for the memory | series · *m* / (replica_memory_gb − *b*), rounded up | {needed.replicas_for_memory:,} |",
        f"| **replicas** | the larger of the two + spare_replicas | **{needed.replicas:,}** |",
        f"| **workers** | fits_per_second · *f* / headroom, rounded up | **{needed.workers:,}** |",
        f"| **cores** | replicas · cores_measured + workers | **{needed.cores:,.0f}** |",
        f"| **memory** | replicas · replica_memory_gb + workers · 0.9 GB | **{needed.memory_gb:,.0f} GB** |",
        "| **object storage** | series · (versions_kept · artifact_mb + training_data_kept · fit_points · point_bytes) "
        f"| **{needed.objects_gb:,.0f} GB** |",
        f"| **database** | series · versions_kept · 6 KB | **{needed.database_gb:,.0f} GB** |",
        f"| **a month** | cores, memory and storage, each times its price | **${needed.cost_month:,.0f}** |",
        "",
        "Affinity sends a series to one replica, so that replicas share the models among them instead of each holding all. Without "
        "it each replica needs the memory of all models that it is asked for.",
    ]
    (folder / "capacity.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> int:
    """Write `docs/capacity.md` from `build/bench.json`."""
    write(paths.BUILD / "bench.json", paths.REPOSITORY / "docs")
    return 0


if __name__ == "__main__":
    sys.exit(console.main_guard(main))
