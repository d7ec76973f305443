"""What the worker measures."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector


class Metrics:
    """Metrics of one worker.

    Attributes:
        registry: what `/metrics` shows.
        jobs: messages handled, by outcome.
        seconds: time spent, by stage.
        waits: pauses for a dependency that was away.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.jobs = Counter("training_jobs", "Messages handled by outcome", ["outcome"], registry=self.registry)
        self.seconds = Histogram(
            "training_stage_seconds",
            "Time spent on jobs by stage",
            ["stage"],
            registry=self.registry,
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
        )
        self.waits = Counter(
            "training_dependency_waits", "Pauses for a dependency that was away", ["dependency"], registry=self.registry
        )
