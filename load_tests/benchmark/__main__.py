"""Command line of the benchmark; `make bench` calls it with all of its arguments."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from ci import cluster, console, paths
from ci.console import stage
from load_tests.benchmark import baseline, capacity, load, report
from load_tests.benchmark.results import Results
from load_tests.benchmark.system import System

SERIES = 20
"""Series that both sides predict for in the comparison."""

BATCH_POINTS = 32_768
MANY_SERIES, MANY_POINTS = 512, 64
FITTED, COPIED = "bench_fit_", "bench_copy_"
SIZES = (10, 100, 1_000, 10_000, 25_000)
REPLICAS = (1, 2, 4)
REPLICA_MODELS = 1_000
FIT_STAGES = ("queued_s", "load_s", "fit_s", "register_s")
"""Of a job, in the order they come in."""
OPEN_RATES = (333, 2_000)
GROWN = {
    "modelCache__maxBytes": 2_600_000_000,
    "resources__limits__memory": "8Gi",
    "head__rayStartParams__num-cpus": "2",
    "serve__replicas": 1,
}
"""Values of the chart while it holds 25,000 models."""


class Benchmark:
    """All measurements.

    Args:
        system: what is measured.
        quick: fewer and shorter runs.
        vegeta: the program.
    """

    def __init__(self, system: System, *, quick: bool, vegeta: Path) -> None:
        self._system = system
        self._vegeta = vegeta
        self._quick = quick
        self._repetitions = 2 if quick else 5
        self._seconds = 3 if quick else 6
        self._fits, self._long_fits = (SERIES, 2) if quick else (100, 20)
        self._cold = 40 if quick else 200
        self._generator = np.random.default_rng(time.time_ns())
        self.results = Results()

    def run(self, baseline_python: Path, tracking_uri: str) -> None:
        """Everything, in an order in which what comes later finds its models."""
        with stage("Memory, idle"):
            self._idle_memory()
        with stage(f"From fit to served: {self._fits} of 1,000 points, {self._long_fits} of 100,000"):
            self._fits_to_served()
        system = self._system
        system.copy_models(FITTED, self._fits, COPIED, self._cold)
        try:
            with stage(f"Cold loads: {self._cold}"):
                seconds = [system.cold_load(f"{COPIED}{number}") * 1000 for number in range(self._cold)]
                self._percentiles("cold load", "ms", seconds)
            system.warm(FITTED, range(self._fits))
            with stage("Batches and many series"):
                self._points()
            with stage("Single predictions beside the baseline"):
                self._singles(baseline_python, tracking_uri)
            with stage("Single predictions at a fixed rate"):
                self._open_loop()
            with stage("Growth"):
                self._growth()
        finally:
            with stage("Remove the copies from the registry"):
                system.remove_copies(COPIED)

    def _percentiles(self, name: str, unit: str, figures: list[float]) -> None:
        for percent in (50, 95, 99):
            self.results.add(f"{name}, P{percent}", unit, [float(np.percentile(figures, percent))])

    def _idle_memory(self) -> None:
        for name, selector in (
            ("training API", "app=training-api"),
            ("training worker", "app=training-worker"),
            ("Ray pod", "app=ray-serve"),
        ):
            self.results.add(f"memory idle, {name}", "MB", [self._system.container_megabytes(selector)])
        replicas = self._system.process_megabytes("app=ray-serve", "ray::ServeReplica")
        self.results.add("memory idle, Ray replica", "MB", replicas)

    def _fits_to_served(self) -> None:
        for points, count, prefix in ((1_000, self._fits, FITTED), (100_000, self._long_fits, "bench_long_")):
            fits = [self._system.fit(f"{prefix}{number}", points, self._generator) for number in range(count)]
            self._percentiles(f"fit of {points:,} points to served", "s", [served for served, _ in fits])
            for stage_name in FIT_STAGES:
                durations = [stages[stage_name] for _, stages in fits]
                self._percentiles(f"fit of {points:,} points, {stage_name.removesuffix('_s')}", "s", durations)

    def _points(self) -> None:
        values = self._generator.normal(size=BATCH_POINTS).tolist()
        batch = {"data": [{"timestamp": 1_700_000_000 + at, "value": value} for at, value in enumerate(values)]}
        point = {
            "data": [{"timestamp": 1_700_000_000 + at, "value": value} for at, value in enumerate(values[:MANY_POINTS])]
        }
        self._system.copy_models(FITTED, self._fits, COPIED, MANY_SERIES)
        self._system.touch_all(COPIED, MANY_SERIES)
        many = {"series": {f"{COPIED}{number}": point for number in range(MANY_SERIES)}}
        for name, path, body in (
            ("points through batches of 32,768", f"/predict/{FITTED}0/batch", batch),
            (f"points through {MANY_SERIES} series of {MANY_POINTS}", "/predict", many),
        ):
            file = paths.BUILD / "bench-body.json"
            file.write_text(json.dumps(body), encoding="utf-8")
            runs = [
                load.closed_body(self._system.inference, path, file, self._seconds) for _ in range(self._repetitions)
            ]
            _refuse_errors(name, runs)
            self.results.add(name, "points/s", [run.rate * BATCH_POINTS for run in runs])

    def _singles(self, python: Path, tracking_uri: str) -> None:
        ours, theirs = [], []
        with baseline.running(python, tracking_uri) as url:
            for each in (url, self._system.inference):
                self._system.touch_all(FITTED, SERIES, each)
                load.closed_singles(each, FITTED, SERIES, 3)
            for number in range(self._repetitions):
                theirs.append(load.closed_singles(url, FITTED, SERIES, self._seconds))
                ours.append(load.closed_singles(self._system.inference, FITTED, SERIES, self._seconds))
                console.say(f"    {number + 1}: {ours[-1].rate:,.0f}/s, baseline {theirs[-1].rate:,.0f}/s")
        _refuse_errors("single predictions", [*ours, *theirs])
        name = "single predictions, closed loop, 32 connections"
        self.results.add(name, "1/s", [run.rate for run in ours], [run.rate for run in theirs])
        for field in ("p50", "p95", "p99"):
            figures = [getattr(run, field) for run in ours], [getattr(run, field) for run in theirs]
            self.results.add(f"{name}, {field.upper()}", "ms", *figures)

    def _open_loop(self) -> None:
        for rate in OPEN_RATES:
            url = self._system.inference
            runs = [
                load.open_singles(self._vegeta, url, FITTED, SERIES, rate, self._seconds)
                for _ in range(self._repetitions)
            ]
            name = f"single predictions, open loop, {rate:,}/s"
            self.results.add(f"{name}, answered", "1/s", [run.rate for run in runs])
            self.results.add(f"{name}, failed", "requests", [float(run.errors) for run in runs])
            for field in ("p50", "p95", "p99"):
                self.results.add(f"{name}, {field.upper()}", "ms", [getattr(run, field) for run in runs])

    def _growth(self) -> None:
        system = self._system
        sizes = SIZES[:3] if self._quick else SIZES
        replicas = REPLICAS[:2] if self._quick else REPLICAS
        with stage(f"{max(sizes):,} models in the registry"):
            system.copy_models(FITTED, self._fits, COPIED, max(sizes))
        with system.values(**GROWN):
            empty = system.process_megabytes("app=ray-serve", "ray::ServeReplica")[0]
            self.results.add("growth, 0 models, memory of the replica", "MB", [empty])
            before = 0
            for size in sizes:
                with stage(f"{size:,} models in one replica"):
                    start = time.perf_counter()
                    loaded = system.warm(COPIED, range(before, size))
                    seconds = time.perf_counter() - start
                    if loaded != size - before:
                        raise console.Failure(
                            f"{loaded} of {size - before} models were loaded", "see the replica's log"
                        )
                    self._at(f"growth, {size:,} models", COPIED, size)
                    memory = system.process_megabytes("app=ray-serve", "ray::ServeReplica")[0]
                    self.results.add(f"growth, {size:,} models, memory of the replica", "MB", [memory])
                    self.results.add(f"growth, {size:,} models, loads", "models/s", [loaded / seconds])
                    before = size
            self.results.add("memory per cached model", "KB", [(memory - empty) * 1000 / before])
            for count in replicas:
                with stage(f"{count} replicas, {REPLICA_MODELS:,} models"):
                    system.set_values(serve__replicas=count)
                    for _ in range(2 * count):
                        system.touch_all(COPIED, REPLICA_MODELS)
                    self._at(f"growth, {count} replicas", COPIED, REPLICA_MODELS)

    def _at(self, name: str, prefix: str, series: int) -> None:
        """Single predictions of random ones of so many series, each as likely as any other."""
        repetitions = 1 if self._quick else 3
        runs = [load.closed_singles(self._system.inference, prefix, series, self._seconds) for _ in range(repetitions)]
        _refuse_errors(name, runs)
        self.results.add(f"{name}, single predictions", "1/s", [run.rate for run in runs])
        self.results.add(f"{name}, P99", "ms", [run.p99 for run in runs])


def _refuse_errors(name: str, runs: list[load.Load]) -> None:
    if failed := sum(run.errors + (run.rate == 0) for run in runs):
        raise console.Failure(f"{name}: {failed} requests failed", "the figures would not count; see the logs")


def main() -> int:
    """Measure, then write figures and documents."""
    parser = argparse.ArgumentParser(prog="python -m load_tests.benchmark", description=__doc__)
    parser.add_argument("--training-api", required=True, metavar="URL")
    parser.add_argument("--inference", required=True, metavar="URL")
    parser.add_argument("--mlflow", required=True, metavar="URL")
    parser.add_argument("--vegeta", required=True, type=Path)
    parser.add_argument("--baseline-python", required=True, type=Path)
    parser.add_argument("--quick", action="store_true", help="short runs; writes to build/ only")
    words = parser.parse_args()
    made = cluster.current()
    if made is None:
        raise console.Failure("no cluster is up", "run `make up`")
    system = System(made, words.training_api.rstrip("/"), words.inference.rstrip("/"))
    benchmark = Benchmark(system, quick=words.quick, vegeta=words.vegeta)
    start = time.monotonic()
    figures = paths.BUILD / "bench.json"
    try:
        benchmark.run(words.baseline_python, words.mlflow)
    finally:
        benchmark.results.write(figures)  # what there is, also of a run that failed
    folder = paths.BUILD if words.quick else paths.REPOSITORY / "docs"
    report.write(figures, folder, quick=words.quick, seconds=time.monotonic() - start)
    capacity.write(figures, folder)
    console.say(f"\n{report.summary(figures)}\n\n  figures  {figures.relative_to(paths.REPOSITORY)}")
    console.say(f"  report   {(folder / 'benchmarks.md').relative_to(paths.REPOSITORY)}")
    return 0


if __name__ == "__main__":
    sys.exit(console.main_guard(main))
