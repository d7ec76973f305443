"""Replicas follow the CPU they use."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from anomaly_detector.scaling import CPU, CpuMeter, CpuPolicy


def wanted(used: dict[str, float] | None, *, running: int, target: int = 1) -> float:
    context = SimpleNamespace(
        aggregated_metrics=None if used is None else {CPU: used},
        current_num_replicas=running,
        target_num_replicas=target,
    )
    return CpuPolicy(target=0.4)(cast(Any, context))[0]


@pytest.mark.parametrize(
    ("used", "replicas"),
    [([0.4], 1), ([0.8], 2), ([0.6, 0.6], 3), ([0.7, 0.1], 2), ([0.1, 0.1, 0.1, 0.1], 1), ([0.0], 0)],
)
def test_as_many_replicas_as_use_what_each_is_meant_to(used: list[float], replicas: int) -> None:
    found = wanted({str(number): value for number, value in enumerate(used)}, running=len(used))
    assert found == pytest.approx(replicas)


@pytest.mark.parametrize("used", [None, {}])
def test_their_number_stays_while_none_says_what_it_uses(used: dict[str, float] | None) -> None:
    assert wanted(used, running=2, target=3) == 3


def test_the_meter_tells_work_from_waiting() -> None:
    meter = CpuMeter()
    end = time.thread_time() + 0.05
    while time.thread_time() < end:
        pass
    working = meter.used()
    time.sleep(0.3)
    assert 0 <= meter.used() < working
