"""How many replicas there should be: as many as use the CPU that each of them is meant to.

Ray Serve's own measure, requests under way, does not see warm predictions: each is answered before the next is read,
and what waits does so in the kernel's buffers. CPU is what runs out.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

CPU = "cpu"
"""Name of the measure: CPUs that a replica uses."""


class CpuMeter:
    """CPUs that this process uses."""

    def __init__(self) -> None:
        self._last = (time.monotonic(), time.process_time())

    def used(self) -> float:
        """CPUs used on average since the last call; 1 is one core all the time."""
        (before, worked), self._last = self._last, (time.monotonic(), time.process_time())
        return (self._last[1] - worked) / max(self._last[0] - before, 1e-3)


class CpuPolicy:
    """An autoscaling policy of Ray Serve, which bounds the number and waits before it follows it.

    Args:
        target: CPUs that a replica should use, above 0.
    """

    def __init__(self, target: float) -> None:
        self._target = target

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        """The number of replicas, and no state. While no replica has said what it uses, their number stays."""
        used = list(((context.aggregated_metrics or {}).get(CPU) or {}).values())
        if not used:
            return context.target_num_replicas, {}
        return context.current_num_replicas * sum(used) / len(used) / self._target, {}
