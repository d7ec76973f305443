"""The benchmark's figures, its documents, and what they are carried on to."""

from __future__ import annotations

from pathlib import Path

import pytest
from load_tests.benchmark import capacity, report, results
from load_tests.benchmark.results import Results


@pytest.fixture
def figures(tmp_path: Path) -> Path:
    found = Results()
    found.add(report.CLOSED, "1/s", [2100, 2300, 2200], [100, 100, 110])
    found.add(f"{report.CLOSED}, P50", "ms", [14.0, 15.0, 16.0], [320, 330, 340])
    for size in (0, 10, 100):
        found.add(f"growth, {size} models, memory of the replica", "MB", [200 + size])
        found.add(f"growth, {size} models, single predictions", "1/s", [2000])
    found.add("memory per cached model", "KB", [60])
    found.add("fit of 1,000 points to served, P50", "s", [0.5])
    path = tmp_path / "bench.json"
    found.write(path)
    return path


def test_a_measurement_has_median_ratio_and_runs(figures: Path) -> None:
    entry = results.read(figures)[report.CLOSED]
    assert entry.keys() == {"name", "unit", "ours", "baseline", "ratio", "runs"}
    assert (entry["ours"], entry["baseline"]) == (2200, 100)
    assert entry["ratio"] == {"median": 21, "min": 20, "max": 23}


def test_the_report_says_which_targets_are_missed(figures: Path, tmp_path: Path) -> None:
    report.write(figures, tmp_path, quick=True, seconds=60)
    lines = (tmp_path / "benchmarks.md").read_text(encoding="utf-8").splitlines()
    rate, latency = (
        next(line for line in lines if line.startswith(f"| {name} |"))
        for name in (report.CLOSED, f"{report.CLOSED}, P50")
    )
    assert "20 times | yes |" in rate
    assert "**no**" in latency
    assert (tmp_path / "benchmarks.svg").stat().st_size > 1000


def test_capacity_follows_its_formulas(figures: Path, tmp_path: Path) -> None:
    given = capacity.Assumptions(headroom=0.5, spare_replicas=2, replica_memory_gb=3)
    needed = capacity.plan(2000, 60, 200, 0.5, given)
    assert needed.replicas_for_rate == 30
    assert needed.replicas_for_memory == 7  # 18 GB of models in 2.8 GB each
    assert needed.replicas == 32
    assert needed.workers == 3
    assert needed.cores == 67
    capacity.write(figures, tmp_path)
    assert "**replicas**" in (tmp_path / "capacity.md").read_text(encoding="utf-8")
