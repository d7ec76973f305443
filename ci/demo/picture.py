"""The result as a picture: values above, scores below, one pair per series."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ci.demo.job import DemoResult, events

# Colours that people with the common colour blindnesses tell apart.
_LINE, _FOUND, _LABEL, _FITTED = "#3b5b7a", "#d55e00", "#009e73", "#e9edf2"


def draw(results: Sequence[DemoResult], path: Path) -> None:
    """Write a PNG with the series, the score, the threshold and the labels of each result."""
    figure = Figure(figsize=(13, 4.6 * len(results)), dpi=110, layout="constrained")
    axes = figure.subplots(2 * len(results), 1, squeeze=False, height_ratios=[3, 2] * len(results))[:, 0]
    for at, result in enumerate(results):
        _draw_values(axes[2 * at], result)
        _draw_scores(axes[2 * at + 1], result)
        axes[2 * at].tick_params(labelbottom=False)
    figure.align_ylabels(axes)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The layout places the axes; what stands out of it (long tick labels) widens the picture instead of being cut off.
    figure.savefig(path, bbox_inches="tight", pad_inches=0.15)


def _draw_values(axis: Axes, result: DemoResult) -> None:
    values, split = result.series.values, result.training_points
    found = split + np.flatnonzero(result.found)
    _mark(axis, result)
    axis.plot(values, color=_LINE, linewidth=0.6)
    axis.plot(
        found,
        values[found],
        linestyle="none",
        marker="o",
        markersize=3.5,
        color=_FOUND,
        label=f"found: {len(found):,} points",
    )
    axis.set_ylabel("value")
    detection = result.detection
    facts = [f"version {result.training.model_version}"]
    if detection.recall is not None:
        facts.append("precision " + ("not defined" if detection.precision is None else f"{detection.precision:.2f}"))
        facts.append(f"recall {detection.recall:.2f}")
    elif detection.labelled == 0:
        facts.append("no point is labelled an anomaly")
    axis.set_title(f"{result.series.series_id}   ({', '.join(facts)})", loc="left", fontsize=11, fontweight="bold")
    axis.legend(loc="upper right", bbox_to_anchor=(1.0, 1.14), ncols=3, frameon=False, fontsize=9)


def _draw_scores(axis: Axes, result: DemoResult) -> None:
    split, threshold = result.training_points, result.detection.threshold
    at = np.arange(split, split + len(result.scores))
    _mark(axis, result)
    axis.plot(at, result.scores, color=_LINE, linewidth=0.5)
    axis.plot(at[result.found], result.scores[result.found], linestyle="none", marker="o", markersize=2.5, color=_FOUND)
    axis.axhline(threshold, color=_FOUND, linewidth=1.0, linestyle="--")
    axis.annotate(
        f"threshold {threshold:.3f}", (split / 2, threshold), ha="center", va="bottom", color=_FOUND, fontsize=9
    )
    axis.set_ylabel("anomaly score")
    axis.set_xlabel("point")


def _mark(axis: Axes, result: DemoResult) -> None:
    """Shade the fitted part and the labelled events; frame and grid."""
    axis.set_xlim(0, len(result.series.values))
    axis.axvspan(0, result.training_points, color=_FITTED, linewidth=0, label="fitted on")
    if result.series.labels is not None:
        for index, (start, end) in enumerate(events(result.series.labels)):
            # A short event is widened to stay visible in a long series.
            margin = max(0.0, len(result.series.values) * 0.002 - (end - start) / 2)
            axis.axvspan(
                start - margin,
                end + margin,
                color=_LABEL,
                alpha=0.35,
                linewidth=0,
                label=None if index else "labelled anomaly",
            )
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#dddddd", linewidth=0.5)
    axis.set_axisbelow(True)
