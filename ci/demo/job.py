"""Fit, follow, predict, compare with the labels."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ci.console import Failure, say
from ci.demo.client import Client, LatencySummary
from ci.demo.series import Series

DEFAULT_CONTAMINATION = 0.01
"""Share of the normal part that lies above the threshold: about one false alarm in a hundred points is accepted."""

BATCH_POINTS = 32_768
"""The most points one batch request may hold."""

_POLL_S = 0.1
_REPORT_S = 10.0
_WARM_UP_REQUESTS = 5


@dataclass(frozen=True)
class Training:
    """What became of the training job.

    Attributes:
        job_id: the job.
        reused: true when the service answered with the finished job of an earlier run on the same data.
        model_version: version that the job registered.
        servable_s: seconds from sending the fit to the first answer by that version; None when `reused`.
        durations_s: seconds of each stage as the service measured them: queued_s, load_s, fit_s, register_s, total_s.
    """

    job_id: str
    reused: bool
    model_version: int
    servable_s: float | None
    durations_s: dict[str, float]


@dataclass(frozen=True)
class Detection:
    """Found anomalies against the labels, over the predicted part.

    A labelled event is an unbroken run of labelled points, hit when at least one of its points was found. Where the
    predicted part has no labels, or none that says anomaly, precision, recall and F1 are None: they are not defined.
    """

    points: int
    found: int
    threshold: float
    labelled: int | None
    true_positives: int | None
    false_positives: int | None
    precision: float | None
    recall: float | None
    f1: float | None
    events: int | None
    events_hit: int | None

    @classmethod
    def compare(cls, found: NDArray[np.bool_], labels: NDArray[np.bool_] | None, threshold: float) -> Detection:
        """Compare point by point.

        Args:
            found: shape (n,), true where the model says anomaly.
            labels: shape (n,), true where the label says anomaly; None without labels.
            threshold: score above which a point is found.
        """
        if labels is None:
            return cls(len(found), int(found.sum()), threshold, None, None, None, None, None, None, None, None)
        hits = int((found & labels).sum())
        alarms, labelled = int(found.sum()), int(labels.sum())
        precision = recall = f1 = None
        if labelled:
            recall = hits / labelled
            precision = hits / alarms if alarms else None
            f1 = 2 * hits / (alarms + labelled)
        runs = events(labels)
        hit = sum(bool(found[start:end].any()) for start, end in runs)
        return cls(len(found), alarms, threshold, labelled, hits, alarms - hits, precision, recall, f1, len(runs), hit)


def events(labels: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """The unbroken runs of true in shape (n,), as half-open index ranges."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], labels, [False])).astype(np.int8)))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


@dataclass(frozen=True)
class DemoResult:
    """Everything one run of the main job measured.

    Attributes:
        series: what was sent.
        training_points: how many points at the start were fitted on; the rest was predicted.
        training: the job.
        detection: what was found.
        latency: single predictions.
        batch_requests: requests it took to predict the rest.
        batch_s: seconds those requests took together.
        answered_by: how many single and batch predictions the model or the fallback answered, by `source`.
        scores: float64, shape (predicted,), anomaly score of each predicted point.
        found: bool, shape (predicted,), whether it is an anomaly.
        started_at: when the run started, UTC.
        finished_at: when it ended, UTC.
    """

    series: Series
    training_points: int
    training: Training
    detection: Detection
    latency: LatencySummary
    batch_requests: int
    batch_s: float
    answered_by: dict[str, int]
    started_at: datetime
    finished_at: datetime
    scores: NDArray[np.float64] = field(repr=False)
    found: NDArray[np.bool_] = field(repr=False)


def run(
    series: Series,
    training_api: str,
    inference: str,
    *,
    contamination: float = DEFAULT_CONTAMINATION,
    singles: int = 200,
    timeout_s: float = 300.0,
    say: Callable[[str], None] = say,
) -> DemoResult:
    """Run the main job on one series against running services.

    Args:
        series: what to fit and predict.
        training_api: base URL of the training API.
        inference: base URL of the inference service.
        contamination: parameter of the detector, in (0, 0.5].
        singles: how many points to predict one by one, spread evenly over the predicted part.
        timeout_s: how long the training job and then its model may take.
        say: receives each line of progress.

    Raises:
        Failure: when the series cannot be split, a service refuses or stays away, the job does not succeed in time, or
            an answer contradicts another one.
    """
    started_at = datetime.now(UTC)
    split = series.split()
    points: list[dict[str, float]] = [
        {"timestamp": timestamp, "value": value}
        for timestamp, value in zip(series.timestamps.tolist(), series.values.tolist(), strict=True)
    ]
    with Client(training_api, inference, say=say) as client:
        training = _train(client, series.series_id, points[:split], points[split], contamination, timeout_s, say)
        rest = points[split:]
        say(f"    predicting {len(rest):,} points in batches")
        scores, found, batch_sources, batch_s, requests = _predict_batches(
            client, series.series_id, rest, training.model_version
        )
        picked = np.unique(np.linspace(0, len(rest) - 1, singles).astype(int))
        say(f"    predicting {len(picked)} of them one by one")
        threshold, latency, single_sources = _predict_singles(client, series.series_id, rest, picked, scores, found)
    return DemoResult(
        series=series,
        training_points=split,
        training=training,
        detection=Detection.compare(found, None if series.labels is None else series.labels[split:], threshold),
        latency=latency,
        batch_requests=requests,
        batch_s=round(batch_s, 4),
        answered_by={
            source: batch_sources.get(source, 0) + single_sources.get(source, 0)
            for source in batch_sources | single_sources
        },
        started_at=started_at,
        finished_at=datetime.now(UTC),
        scores=scores,
        found=found,
    )


def _train(
    client: Client,
    series_id: str,
    points: list[dict[str, float]],
    probe: dict[str, float],
    contamination: float,
    timeout_s: float,
    say: Callable[[str], None],
) -> Training:
    """Submit the points, follow the job, and wait until its model answers for `probe`."""
    start = time.monotonic()
    accepted = client.fit(series_id, points, {"contamination": contamination})
    job_id = accepted["job_id"]
    reused = accepted["status"] == "succeeded"
    known = ", known from an earlier run: same series, data and parameters" if reused else ""
    say(f"    job {job_id}: {len(points):,} points accepted{known}")
    job = _follow(client, job_id, start, timeout_s, say)
    version = int(job["model_version"])
    while True:
        answer = client.predict_if_served(series_id, probe)
        # A later version is as good: somebody else fitted the series meanwhile.
        if answer is not None and answer["source"] == "model" and int(answer["model_version"]) >= version:
            break
        if time.monotonic() - start > timeout_s:
            state = "no model" if answer is None else f"version {answer['model_version']} by {answer['source']}"
            raise Failure(
                f"version {version} of {series_id} is not served after {timeout_s:.0f} s (served: {state})",
                "look at the inference service's log: it names the model it could not load",
            )
        time.sleep(_POLL_S)
    servable_s = time.monotonic() - start
    say(f"    version {version} answers{'' if reused else f', {servable_s:.2f} s after the fit was sent'}")
    durations = {name: float(seconds) for name, seconds in (job.get("durations") or {}).items() if seconds is not None}
    return Training(job_id, reused, version, None if reused else round(servable_s, 3), durations)


def _follow(client: Client, job_id: str, start: float, timeout_s: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Poll a job until it ends; a line per state, and one every ten seconds in between."""
    state, told = "", 0.0
    while True:
        job = client.job(job_id)
        elapsed = time.monotonic() - start
        if job["status"] != state or elapsed - told >= _REPORT_S:
            state, told = job["status"], elapsed
            say(f"    job {state} ({elapsed:.1f} s)")
        if state == "succeeded":
            return job
        if state not in ("queued", "running"):
            error = job.get("error") or {}
            detail = f": {error.get('code')}: {error.get('message')}" if error else ""
            raise Failure(
                f"job {job_id} ended as {state}{detail}",
                "docs/troubleshooting.md explains the error codes; then run it again",
            )
        if elapsed > timeout_s:
            raise Failure(
                f"job {job_id} is still {state} after {timeout_s:.0f} s",
                "see what the training worker logs: kubectl -n ml-dev logs deployment/training-worker",
            )
        time.sleep(_POLL_S)


def _predict_batches(
    client: Client, series_id: str, points: list[dict[str, float]], version: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_], dict[str, int], float, int]:
    """Scores and verdicts of all points, in order; who answered; the seconds and requests that took."""
    predictions: list[dict[str, Any]] = []
    seconds, requests = 0.0, 0
    sources: dict[str, int] = {}
    for at in range(0, len(points), BATCH_POINTS):
        chunk = points[at : at + BATCH_POINTS]
        start = time.perf_counter()
        answer = client.predict_batch(series_id, chunk)
        seconds += time.perf_counter() - start
        requests += 1
        if int(answer["model_version"]) < version:
            raise Failure(
                f"the batch was answered by version {answer['model_version']}, older than {version}",
                "report this: it is a defect",
            )
        if [item["timestamp"] for item in answer["predictions"]] != [point["timestamp"] for point in chunk]:
            raise Failure(
                "a batch's answer does not hold the points that were sent, in order", "report this: it is a defect"
            )
        predictions += answer["predictions"]
        sources[answer["source"]] = sources.get(answer["source"], 0) + len(chunk)
    scores = np.array([item["anomaly_score"] for item in predictions], dtype=np.float64)
    found = np.array([item["is_anomaly"] for item in predictions], dtype=np.bool_)
    return scores, found, sources, seconds, requests


def _predict_singles(
    client: Client,
    series_id: str,
    points: list[dict[str, float]],
    picked: NDArray[np.int_],
    scores: NDArray[np.float64],
    found: NDArray[np.bool_],
) -> tuple[float, LatencySummary, dict[str, int]]:
    """Threshold, round trips, and who answered; every answer must equal the batch's."""
    for _ in range(_WARM_UP_REQUESTS):
        client.predict(series_id, points[0])
    seconds: list[float] = []
    sources: dict[str, int] = {}
    threshold = 0.0
    for at in picked.tolist():
        start = time.perf_counter()
        answer = client.predict(series_id, points[at])
        seconds.append(time.perf_counter() - start)
        sources[answer["source"]] = sources.get(answer["source"], 0) + 1
        threshold = float(answer["threshold"])
        if abs(answer["anomaly_score"] - scores[at]) > 1e-9 or answer["is_anomaly"] != found[at]:
            raise Failure(
                f"point {points[at]} got score {answer['anomaly_score']} by itself and {scores[at]} in a batch",
                "run it again in case the model was replaced meanwhile; if it stays, it is a defect",
            )
    return threshold, LatencySummary.of(seconds), sources
