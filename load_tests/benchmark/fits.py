"""Seconds from sending a fit to the first answer of its model, one fit after the other, and where they go.

`python -m load_tests.benchmark.fits --training-api URL --inference URL [--points N] [--count N]`
"""

from __future__ import annotations

import argparse
import sys
import time
import uuid

import numpy as np
from ci import cluster, console
from load_tests.benchmark.system import System

STAGES = ("queued_s", "load_s", "fit_s", "register_s", "total_s")
"""Of a job, in the order they come in; `total_s` ends with the model in production."""


def main() -> int:
    """Fit and print percentiles."""
    parser = argparse.ArgumentParser(prog="python -m load_tests.benchmark.fits", description=__doc__)
    parser.add_argument("--training-api", required=True, metavar="URL")
    parser.add_argument("--inference", required=True, metavar="URL")
    parser.add_argument("--points", type=int, default=1_000)
    parser.add_argument("--count", type=int, default=100)
    words = parser.parse_args()
    made = cluster.current()
    if made is None:
        raise console.Failure("no cluster is up", "run `make up`")
    system = System(made, words.training_api.rstrip("/"), words.inference.rstrip("/"))
    generator = np.random.default_rng(time.time_ns())
    prefix = f"bench_fits_{uuid.uuid4().hex[:6]}_"
    served, stages = [], []
    for number in range(words.count):
        served.append(system.fit(f"{prefix}{number}", words.points, generator))
        job = system.http.get(f"{system.training_api}/jobs?series_id={prefix}{number}").json()["jobs"][0]
        stages.append([job["durations"][stage] for stage in STAGES])
    columns = [*np.transpose(stages), np.array(served)]
    console.say(f"{words.count} fits of {words.points:,} points, seconds")
    for name, seconds in zip([*STAGES, "served"], columns, strict=True):
        p50, p95, p99 = np.percentile(seconds, (50, 95, 99))
        console.say(f"  {name:<12} P50 {p50:6.3f}   P95 {p95:6.3f}   P99 {p99:6.3f}   max {seconds.max():6.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(console.main_guard(main))
