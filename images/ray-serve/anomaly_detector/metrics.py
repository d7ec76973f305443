"""Metrics of the replicas. Labels are routes, methods and states, never series: there are 300,000 of those."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from anomaly_detector.breaker import BreakerState, CircuitBreaker
from anomaly_detector.cache import ModelCache
from anomaly_detector.drift import DriftState
from anomaly_detector.predictor import Answers

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.03, 0.05, 0.1, 0.25, 0.5, 1, 2, 5)  # 10, 30 and 50 ms are promised


class Metrics:
    """Requests are counted as they happen; cache and breakers are read when they are asked for."""

    MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "http_requests", "Requests answered.", ("method", "route", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "http_request_duration_seconds",
            "Time to answer a request.",
            ("method", "route"),
            buckets=_SECONDS,
            registry=self._registry,
        )
        # Looking up a child by its labels takes longer than counting; routes, methods and codes are few.
        self._requests_of = functools.cache(self._requests.labels)
        self._seconds_of = functools.cache(self._seconds.labels)

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request; for `anomaly_detection.http.RequestMiddleware`."""
        self._requests_of(method, route, status).inc()
        self._seconds_of(method, route).observe(seconds)

    def render(self, replica: str, cache: ModelCache, answers: Answers, breakers: Iterable[CircuitBreaker]) -> bytes:
        """All metrics of this replica in Prometheus' text format, with its name as a label."""
        labelled = CollectorRegistry()
        labelled.register(_Labelled(replica, (self._registry, _State(cache, answers, breakers))))
        return generate_latest(labelled)


def merged(texts: Iterable[bytes]) -> bytes:
    """One text out of those of several replicas: what belongs to a metric stands together, described once."""
    described: dict[bytes, bytes] = {}
    samples: dict[bytes, list[bytes]] = {}
    for text in texts:
        for block in re.split(rb"^(?=# HELP )", text, flags=re.MULTILINE)[1:]:
            head, end, body = re.split(rb"(# TYPE .*\n)", block, maxsplit=1)
            described.setdefault(head, head + end)
            samples.setdefault(head, []).append(body)
    return b"".join(described[head] + b"".join(bodies) for head, bodies in samples.items())


class _Labelled(Collector):
    """Collector of what others collect, with the name of the replica as a label more."""

    def __init__(self, replica: str, collectors: Iterable[Collector]) -> None:
        self._label = {"replica": replica}
        self._collectors = collectors

    def collect(self) -> Iterable[Metric]:
        for collector in self._collectors:
            for metric in collector.collect():
                metric.samples = [each._replace(labels={**each.labels, **self._label}) for each in metric.samples]
                yield metric


class _State(Collector):
    """Collector of what the parts count themselves."""

    def __init__(self, cache: ModelCache, answers: Answers, breakers: Iterable[CircuitBreaker]) -> None:
        self._cache = cache
        self._answers = answers
        self._breakers = breakers

    def collect(self) -> Iterable[Metric]:
        counts = self._cache.statistics
        yield GaugeMetricFamily("model_cache_models", "Models in memory.", len(self._cache))
        yield GaugeMetricFamily("model_cache_bytes", "Memory of the models.", self._cache.nbytes)
        yield GaugeMetricFamily("model_cache_max_bytes", "Memory the models may take.", self._cache.max_bytes)
        yield CounterMetricFamily("model_cache_hits", "Requests answered from memory.", counts.hits)
        yield CounterMetricFamily("model_cache_misses", "Requests that had to wait for a model.", counts.misses)
        yield CounterMetricFamily("model_cache_evictions", "Models dropped for lack of memory.", counts.evictions)
        yield CounterMetricFamily(
            "model_cache_stale_answers",
            "Requests answered by models that may be outdated, because a dependency was away.",
            counts.stale_answers,
        )
        yield GaugeMetricFamily(
            "model_cache_stale_models", "Models in memory that may be outdated.", self._cache.stale_models
        )
        yield from self._disk()
        yield from self._drift()
        yield CounterMetricFamily("model_loads", "Models loaded or found unchanged.", counts.loads)
        yield CounterMetricFamily("model_load_failures", "Loads that failed for a dependency.", counts.load_failures)
        yield CounterMetricFamily("model_load_seconds", "Time spent loading models.", counts.load_seconds)
        points = CounterMetricFamily("points_scored", "Points scored.", labels=("source",))
        points.add_metric(("model",), self._answers.model)
        points.add_metric(("fallback",), self._answers.fallback)
        yield points
        circuits = GaugeMetricFamily(
            "circuit_state", "1 for the state a breaker is in.", labels=("dependency", "state")
        )
        for breaker in self._breakers:
            for state in BreakerState:
                circuits.add_metric((breaker.dependency, state), float(breaker.state is state))
        yield circuits

    def _disk(self) -> Iterable[Metric]:
        disk = self._cache.loader.disk
        if disk is None:
            return
        counts = disk.statistics
        yield GaugeMetricFamily("model_disk_models", "Models on the local disk.", disk.models)
        yield GaugeMetricFamily("model_disk_bytes", "What they take.", disk.nbytes)
        yield GaugeMetricFamily("model_disk_max_bytes", "What they may take.", disk.max_bytes)
        yield CounterMetricFamily("model_disk_hits", "Models found on the local disk.", counts.hits)
        yield CounterMetricFamily("model_disk_misses", "Models not found there.", counts.misses)
        yield CounterMetricFamily("model_disk_writes", "Models written there.", counts.writes)
        yield CounterMetricFamily("model_disk_evictions", "Models removed for lack of room.", counts.evictions)
        yield CounterMetricFamily("model_disk_failures", "Operations that the disk refused.", counts.failures)

    def _drift(self) -> Iterable[Metric]:
        ranking = self._cache.ranking
        models = GaugeMetricFamily(
            "model_drift_models", "Models in production in memory by their drift.", labels=("state",)
        )
        for state in DriftState:
            models.add_metric((state,), ranking.states[state])
        yield models
        yield GaugeMetricFamily(
            "model_drift_psi_max",
            "Largest population stability index of a model.",
            max((index for index, _ in ranking.largest(1)), default=0.0),
        )
