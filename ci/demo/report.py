"""The result as a summary for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ci.demo.job import DemoResult, Detection

_STAGES = {"queued_s": "queued", "load_s": "loaded", "fit_s": "fitted", "register_s": "registered"}


def summary(result: DemoResult) -> str:
    """One result as aligned lines."""
    series, training, latency = result.series, result.training, result.latency
    predicted = len(result.scores)
    rows: list[tuple[str, str]] = [
        ("series", f"{series.series_id}, from {series.source}"),
        (
            "points",
            f"{len(series.values):,}: fitted the first {result.training_points:,}, predicted the other {predicted:,}",
        ),
        ("model", f"version {training.model_version}, job {training.job_id}"),
        ("fit to served", _servable(result)),
        *_detection(result.detection),
        ("batch", f"{predicted:,} points in {result.batch_requests} request(s), {result.batch_s * 1000:.0f} ms"),
        (
            "single",
            f"{latency.requests} requests, P50 {latency.p50_ms:.1f} ms, P95 {latency.p95_ms:.1f} ms",
        ),
        ("answered by", ", ".join(f"{source} {count:,}" for source, count in sorted(result.answered_by.items()))),
        *(("note", note) for note in series.notes),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {text}" for name, text in rows)


def _servable(result: DemoResult) -> str:
    training = result.training
    stages = ", ".join(
        f"{label} {training.durations_s[key]:.2f}" for key, label in _STAGES.items() if key in training.durations_s
    )
    if training.servable_s is None:
        total = training.durations_s.get("total_s")
        told = "same data as an earlier run, so the same job and model" + (
            f"; that job took {total:.2f} s" if total is not None else ""
        )
    else:
        told = f"{training.servable_s:.2f} s"
    return told + (f" ({stages} s)" if stages else "")


def _detection(detection: Detection) -> list[tuple[str, str]]:
    share = detection.found / detection.points
    rows = [
        (
            "anomalies",
            f"{detection.found:,} of {detection.points:,} points ({share:.1%}) score above {detection.threshold:.4f}",
        )
    ]
    if detection.labelled is None:
        return [*rows, ("labels", "none in this file")]
    if not detection.labelled:
        rows.append(("labels", "no point is labelled an anomaly: precision, recall and F1 are not defined"))
        return [*rows, ("false alarms", f"{detection.false_positives:,} ({share:.1%} of the points labelled normal)")]
    precision = "not defined (nothing found)" if detection.precision is None else f"{detection.precision:.3f}"
    quality = f"precision {precision}, recall {detection.recall:.3f}, F1 {detection.f1:.3f}"
    return [
        *rows,
        (
            "labels",
            f"{detection.labelled:,} points in {detection.events} event(s); {detection.true_positives:,} points found",
        ),
        ("against them", f"{quality}; {detection.events_hit} of {detection.events} event(s) hit"),
    ]


def as_json(result: DemoResult) -> dict[str, Any]:
    """One result's figures, without its arrays."""
    return {
        "series_id": result.series.series_id,
        "source": result.series.source,
        "notes": list(result.series.notes),
        "points": len(result.series.values),
        "training_points": result.training_points,
        "predicted_points": len(result.scores),
        "training": asdict(result.training),
        "detection": asdict(result.detection),
        "single_predictions": asdict(result.latency),
        "batch": {"requests": result.batch_requests, "seconds": result.batch_s},
        "answered_by": result.answered_by,
        "started_at": result.started_at.isoformat(),
        "finished_at": result.finished_at.isoformat(),
        "seconds": round((result.finished_at - result.started_at).total_seconds(), 3),
    }


def write_json(results: Sequence[DemoResult], path: Path) -> None:
    """Write all figures: `{"runs": [...]}`, one entry per series in the order they ran."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"runs": [as_json(result) for result in results]}, indent=2) + "\n", encoding="utf-8")
