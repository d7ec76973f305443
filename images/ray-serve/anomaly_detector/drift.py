"""Drift: how far the recent scores of a model are from those of the points it was trained on.

The measure is the population stability index over the bins of the model's baseline. Below 0.1 the two are taken for
equal, from 0.25 on for different.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import Counter
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from anomaly_detection.scoring import ScoreHistogram
from anomaly_detection.stability import MAJOR, MODERATE, population_stability_index

HALF_LIFE_POINTS = 10_000
"""A point counts half as much as one that came so many points later."""

MINIMUM_POINTS = 500
"""With fewer recent points the index says more of chance than of the series: its expected value is 11 / points."""

_GROWTH = 2 ** (1 / HALF_LIFE_POINTS)
_LARGEST_WEIGHT = 1e12
_MEASURED_EVERY = 64  # points: a measurement takes 5 µs, a point must not


class DriftState(StrEnum):
    """What the index means; unknown while there are too few points, or where the model has no baseline."""

    STABLE = "stable"
    MODERATE = "moderate"
    MAJOR = "major"
    UNKNOWN = "unknown"


class RecentScores:
    """Histogram of a model's recent scores over the bins of its baseline; older points count less and less.

    Instead of all counts shrinking with each point, the weight of a point grows: one addition a point.

    Args:
        baseline: the scores of the training points.

    Attributes:
        baseline: likewise.
        index: the index as of the last few points; NaN while it rests on fewer than `MINIMUM_POINTS`.
        announced: whether it has been told that the drift is major, and this has not ended since.
    """

    __slots__ = ("_counts", "_due", "_weight", "announced", "baseline", "index")

    def __init__(self, baseline: ScoreHistogram) -> None:
        self.baseline = baseline
        self.index = math.nan
        self.announced = False
        self._counts = [0.0] * len(baseline.counts)
        self._weight = 1.0
        self._due = _MEASURED_EVERY

    def add(self, score: float) -> bool:
        """Count one score, and say whether `index` was brought up to date; part of every single prediction."""
        self._weight = weight = self._weight * _GROWTH
        self._counts[bisect_right(self.baseline.edges, score)] += weight
        self._due -= 1
        if self._due > 0:
            return False
        self.measure()
        return True

    def add_many(self, scores: NDArray[np.floating]) -> bool:
        """Count the scores of a batch, shape (n,), which all count the same; returns as `add` does."""
        self._weight *= _GROWTH ** len(scores)
        bins = np.searchsorted(self.baseline.edges, scores, side="right")
        for index, count in enumerate(np.bincount(bins).tolist()):
            self._counts[index] += self._weight * count
        self._due -= len(scores)
        if self._due > 0:
            return False
        self.measure()
        return True

    def counts(self) -> list[float]:
        """Points in each bin, each weighted by its age; the latest by 1."""
        return [count / self._weight for count in self._counts]

    def measure(self) -> float:
        """Bring `index` up to date, and give it back."""
        counts = self.counts()
        self._due = _MEASURED_EVERY
        if self._weight > _LARGEST_WEIGHT:
            self._counts, self._weight = counts, 1.0
        enough = sum(counts) >= MINIMUM_POINTS
        self.index = population_stability_index(self.baseline.counts, counts) if enough else math.nan
        return self.index


def state_of(recent: RecentScores | None) -> DriftState:
    """What the index of a model means; None is a model without a baseline."""
    if recent is None or math.isnan(recent.index):
        return DriftState.UNKNOWN
    if recent.index < MODERATE:
        return DriftState.STABLE
    return DriftState.MODERATE if recent.index < MAJOR else DriftState.MAJOR


class DriftRanking:
    """Models in production by their drift, kept in order as it changes: nobody who asks has to look at all of them.

    Attributes:
        states: how many models are in each state.
    """

    def __init__(self) -> None:
        self.states: Counter[DriftState] = Counter()
        self._known: dict[str, tuple[DriftState, float]] = {}
        self._order: list[tuple[float, str]] = []  # index and series, ascending; without the models of unknown drift

    def __len__(self) -> int:
        """How many models have an index."""
        return len(self._order)

    def put(self, series_id: str, recent: RecentScores | None) -> None:
        """Take up a model, or its drift as it is now; None is a model without a baseline."""
        self.remove(series_id)
        state, index = state_of(recent), recent.index if recent else math.nan
        self.states[state] += 1
        self._known[series_id] = state, index
        if not math.isnan(index):
            insort(self._order, (index, series_id))

    def remove(self, series_id: str) -> None:
        """Leave a model out; nothing happens if it is not in here."""
        known = self._known.pop(series_id, None)
        if known is None:
            return
        state, index = known
        self.states[state] -= 1
        if not math.isnan(index):
            del self._order[bisect_left(self._order, (index, series_id))]

    def largest(self, limit: int) -> list[tuple[float, str]]:
        """Index and series of the models that have drifted most, in falling order, so many at most."""
        return self._order[-limit:][::-1] if limit > 0 else []
