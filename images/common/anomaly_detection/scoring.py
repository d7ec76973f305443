"""The model format: an isolation forest over one value, stored as the step function that it is.

With a single feature every split of every tree asks `value <= threshold`. A tree is therefore a step function of the
value, and so is the sum of the trees' path lengths. `ScoringModel` keeps the sorted breakpoints of that sum and one
anomaly score per interval: scoring is a binary search, about 1 µs for a value, and needs neither the trees nor
scikit-learn. `docs/model-format.md` gives the layout of the blob in bytes.

scikit-learn is imported by `fit_isolation_forest` alone: serving does not have it.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anomaly_detection.contracts import SCORE_HISTOGRAM_BINS, DetectorParameters

if TYPE_CHECKING:
    from sklearn.ensemble import IsolationForest

MODEL_FILE_NAME = "model.ads"
"""Name of the blob inside the MLflow model artifact."""

FALLBACK_SIGMAS = 3.0
"""Without its model a value is an anomaly when it is further than this many standard deviations from the mean."""

FALLBACK_THRESHOLD = 0.5
"""The fallback's score at exactly `FALLBACK_SIGMAS` standard deviations."""

BASELINE_QUANTILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Where the bins of a model's baseline end: tenths, finer where the anomalies are."""

_MAGIC = b"\x89ADSM\r\n\x1a"  # a byte above 127 and both line endings: a transfer in text mode damages it visibly
_FORMAT_VERSION = 1
_PREFIX = struct.Struct("<8s32sHHI")  # magic, SHA-256 of all that follows it, format version, reserved, header bytes
_CHECKED_FROM = 8 + 32
_ALIGNMENT = 8
_FLOAT32 = np.dtype("<f4")


class ModelFormatError(ValueError):
    """The bytes are no model blob that can be read: damaged, truncated, of another kind or of a newer format."""


@dataclass(frozen=True, slots=True)
class ScoreHistogram:
    """How the scores of the training points are distributed: what later scores are compared with.

    Attributes:
        edges: strictly increasing; bin i holds the scores s with `edges[i-1] <= s < edges[i]`.
        counts: training points in each bin; one more than edges.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, scores: NDArray[np.float32]) -> ScoreHistogram:
        """The histogram of scores, shape (n,), with bins that end at their quantiles; equal quantiles are one edge."""
        edges = np.unique(np.quantile(scores, BASELINE_QUANTILES, method="inverted_cdf"))
        counts = np.bincount(edges.searchsorted(scores, side="right"), minlength=len(edges) + 1)
        return cls(tuple(edges.tolist()), tuple(counts.tolist()))

    @classmethod
    def from_header(cls, header: Mapping[str, Any]) -> ScoreHistogram:
        """The histogram as a blob's header holds it.

        Raises:
            ValueError: it is none; also KeyError or TypeError.
        """
        found = cls(tuple(map(float, header["edges"])), tuple(map(int, header["counts"])))
        increasing = all(low < high for low, high in pairwise(found.edges))
        if len(found.counts) != len(found.edges) + 1 or min(found.counts) < 0 or not increasing:
            raise ValueError("the baseline is no histogram")
        return found


@dataclass(frozen=True, slots=True, eq=False)
class ScoringModel:
    """Anomaly scores as a step function of the value.

    Attributes:
        threshold: a value is an anomaly when its score is greater than this.
        breakpoints: shape (n,), float32, strictly increasing. Interval i holds the values v with
            `breakpoints[i-1] < v <= breakpoints[i]`, compared in single precision as scikit-learn does.
        scores: shape (n + 1,), float32, the score of each interval, in (0, 1], higher is more anomalous.
        mean: mean of the training values, in the unit of the values.
        std: their standard deviation, in the same unit.
        training: what else is worth knowing about the training (JSON types only).
        baseline: distribution of the training points' scores; None in blobs that were written before there was one.
    """

    threshold: float
    breakpoints: NDArray[np.float32]
    scores: NDArray[np.float32]
    mean: float
    std: float
    training: Mapping[str, Any] = field(default_factory=dict)
    baseline: ScoreHistogram | None = None

    def score(self, values: ArrayLike) -> NDArray[np.float32]:
        """Anomaly scores of finite values, shape (n,) for shape (n,): in (0, 1], higher is more anomalous."""
        return self.scores[self.breakpoints.searchsorted(_to_float32(values), side="left")]

    def score_one(self, value: float) -> float:
        """Anomaly score of one value within the range of single precision; the hot path of single predictions."""
        # A Python number would have NumPy convert all breakpoints to float64 for the search.
        return float(self.scores[self.breakpoints.searchsorted(np.float32(value), side="left")])

    def is_anomaly(self, scores: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Whether each of these scores, as `score` returned them, marks an anomaly; same shape."""
        # In double precision: the threshold is not rounded to the scores' type.
        return scores.astype(np.float64) > self.threshold

    @property
    def nbytes(self) -> int:
        """Memory this model takes in bytes, with an allowance for the Python objects around the arrays."""
        return self.breakpoints.nbytes + self.scores.nbytes + _OBJECT_BYTES

    def to_bytes(self) -> bytes:
        """The model as a blob; the same model always gives the same bytes."""
        header = json.dumps(
            {
                "breakpoints": len(self.breakpoints),
                "mean": self.mean,
                "std": self.std,
                "threshold": self.threshold,
                "training": dict(self.training),
                **({"baseline": asdict(self.baseline)} if self.baseline else {}),
            },
            allow_nan=False,
            separators=(",", ":"),
            sort_keys=True,
        ).encode()
        header += b" " * (-(_PREFIX.size + len(header)) % _ALIGNMENT)  # arrays start aligned, so they need no copy
        body = b"".join(
            (header, self.breakpoints.astype(_FLOAT32).tobytes(), self.scores.astype(_FLOAT32).tobytes()),
        )
        fixed = _PREFIX.pack(_MAGIC, bytes(32), _FORMAT_VERSION, 0, len(header))[_CHECKED_FROM:]
        return _MAGIC + hashlib.sha256(fixed + body).digest() + fixed + body

    @classmethod
    def from_bytes(cls, blob: bytes) -> ScoringModel:
        """Read a blob. The arrays are views of `blob`, which stays in memory with the model.

        Raises:
            ModelFormatError: not a blob, damaged, truncated, or written by a newer version of this format.
        """
        if len(blob) < _PREFIX.size:
            raise ModelFormatError(f"a model blob has at least {_PREFIX.size} bytes, this one has {len(blob)}")
        magic, digest, version, _, header_size = _PREFIX.unpack_from(blob)
        if magic != _MAGIC:
            raise ModelFormatError("these bytes do not start like a model blob")
        if hashlib.sha256(memoryview(blob)[_CHECKED_FROM:]).digest() != digest:
            raise ModelFormatError("the model blob is damaged or truncated: its checksum does not match")
        if version != _FORMAT_VERSION:
            raise ModelFormatError(
                f"model format {version} is not known here, only {_FORMAT_VERSION}: upgrade the reader"
            )
        # Past the checksum the bytes are what a writer wrote; what follows guards against a writer that is wrong.
        try:
            header = json.loads(blob[_PREFIX.size : _PREFIX.size + header_size])
            count = int(header["breakpoints"])
            start = _PREFIX.size + header_size
            if count < 0 or len(blob) != start + _FLOAT32.itemsize * (2 * count + 1):
                raise ModelFormatError(f"a model of {count} breakpoints does not fit a blob of {len(blob)} bytes")
            return cls(
                threshold=float(header["threshold"]),
                breakpoints=np.frombuffer(blob, _FLOAT32, count, start),
                scores=np.frombuffer(blob, _FLOAT32, count + 1, start + _FLOAT32.itemsize * count),
                mean=float(header["mean"]),
                std=float(header["std"]),
                training=header["training"],
                baseline=ScoreHistogram.from_header(header["baseline"]) if "baseline" in header else None,
            )
        except ModelFormatError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFormatError(f"the header of the model blob cannot be read: {error!r}") from error


# Object, two array headers, the blob's own header, a small `training` mapping and the baseline with what is counted
# against it: measured 3.2 KB, rounded up.
_OBJECT_BYTES = 4096


def fallback_score(values: ArrayLike, mean: float, std: float) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scores from the training mean and standard deviation alone, for when the model cannot be read.

    With z = |value - mean| / std the score is `1 - 3 / (z + 3)`: 0 at the mean, 0.5 at three standard deviations,
    towards 1 far away. It has the range and direction of the model's score but not its meaning: do not compare the two.

    Args:
        values: shape (n,), finite.
        mean: mean of the training values.
        std: their standard deviation, greater than 0.

    Returns:
        The scores in [0, 1], shape (n,), and whether each is an anomaly: |value - mean| > 3 std.
    """
    with np.errstate(over="ignore"):  # a distance beyond float64 is infinite, its score 1
        distance = np.abs(np.asarray(values, dtype=np.float64) - mean)
        return 1.0 - FALLBACK_SIGMAS / (distance / std + FALLBACK_SIGMAS), distance > FALLBACK_SIGMAS * std


def score_histogram(scores: ArrayLike) -> list[int]:
    """How many of these scores, shape (n,), lie in each of `SCORE_HISTOGRAM_BINS` bins of equal width from 0 to 1."""
    counts, _ = np.histogram(scores, bins=SCORE_HISTOGRAM_BINS, range=(0.0, 1.0))
    return [int(count) for count in counts]


def fit_isolation_forest(values: ArrayLike, parameters: DetectorParameters) -> tuple[IsolationForest, ScoringModel]:
    """Fit an isolation forest to one series and turn it into its step function.

    The estimator equals `IsolationForest(**parameters).fit(...)`. Only the `contamination` quantile is computed from
    the step function instead of the trees, because scoring 100,000 points through 100 trees takes longer than the fit.

    Args:
        values: shape (n,), as `series.read_points` and `series.check_variation` let them pass: finite and not
            constant in single precision.
        parameters: of the detector.

    Returns:
        The fitted scikit-learn estimator and the model, whose scores equal `-estimator.score_samples` to 1e-6.

    """
    from sklearn.ensemble import IsolationForest

    exact = np.asarray(values, dtype=np.float64)
    single = _to_float32(exact)
    estimator = IsolationForest(
        n_estimators=parameters.n_estimators,
        # A number, because scikit-learn warns of a series that is shorter than what is asked for.
        max_samples="auto" if parameters.max_samples == "auto" else parameters.points_per_tree(len(single)),
        contamination="auto",
        bootstrap=parameters.bootstrap,
        random_state=parameters.random_state,
    ).fit(single.reshape(-1, 1))
    breakpoints, scores = _step_function(estimator)

    if parameters.contamination != "auto":
        of_training = scores[breakpoints.searchsorted(single, side="left")]
        estimator.set_params(contamination=parameters.contamination)
        # scikit-learn's own expression (`IsolationForest.fit`), on negated scores as there.
        estimator.offset_ = np.percentile(-of_training, 100.0 * parameters.contamination)
    threshold = -float(estimator.offset_)

    steps = _compact(breakpoints, scores, threshold)
    model = ScoringModel(
        threshold=threshold,
        **steps,
        mean=float(exact.mean()),
        std=float(exact.std()),
        training={
            "maximum": float(exact.max()),
            "minimum": float(exact.min()),
            "parameters": parameters.model_dump(mode="json"),
            "points": len(exact),
        },
        baseline=ScoreHistogram.of(steps["scores"][steps["breakpoints"].searchsorted(single, side="left")]),
    )
    return estimator, model


def _to_float32(values: ArrayLike) -> NDArray[np.float32]:
    """Values as scikit-learn compares them; beyond the range of single precision they become infinite."""
    with np.errstate(over="ignore"):
        return np.asarray(values).astype(np.float32)


def _average_path_length(samples: NDArray[np.int64]) -> NDArray[np.float64]:
    """Expected path length c(n) in an isolation tree over `samples` points, shape (n,) for shape (n,)."""
    n = np.maximum(samples, 2).astype(np.float64)
    estimate = 2.0 * (np.log(n - 1.0) + np.euler_gamma) - 2.0 * (n - 1.0) / n
    return np.where(samples <= 1, 0.0, np.where(samples == 2, 1.0, estimate))


def _step_function(estimator: IsolationForest) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Distinct breakpoints, shape (n,), and scores, shape (n + 1,), of a forest fitted to one feature."""
    thresholds = []
    changes = []
    leftmost = 0.0
    for fitted in estimator.estimators_:
        tree = fitted.tree_
        is_leaf = tree.children_left == -1
        # scikit-learn numbers nodes depth first, left before right: leaves come in the order of their intervals, and
        # sorted thresholds are the boundaries between them.
        lengths = (tree.compute_node_depths() - 1.0 + _average_path_length(tree.n_node_samples))[is_leaf]
        leftmost += lengths[0]
        thresholds.append(np.sort(tree.threshold[~is_leaf]))
        changes.append(np.diff(lengths))
    exact = np.concatenate(thresholds)
    order = exact.argsort(kind="stable")
    exact = exact[order]
    total = leftmost + np.concatenate(([0.0], np.concatenate(changes)[order].cumsum()))

    # A tree compares float32(value) <= float64(threshold): the same as <= the largest float32 not above it.
    breakpoints = exact.astype(np.float32)
    too_high = breakpoints > exact
    breakpoints[too_high] = np.nextafter(breakpoints[too_high], np.float32(-np.inf))
    last_of_equal = np.append(breakpoints[1:] != breakpoints[:-1], True)[: len(breakpoints)]
    total = total[np.concatenate(([True], last_of_equal))]

    per_tree = _average_path_length(np.array([estimator.max_samples_]))[0]
    # Subsamples of one point have no path at all; scikit-learn then takes the exponent to be -1.
    exponent = total / (len(estimator.estimators_) * per_tree) if per_tree else np.ones_like(total)
    return breakpoints[last_of_equal], 2.0**-exponent


def _compact(
    breakpoints: NDArray[np.float32], scores: NDArray[np.float64], threshold: float
) -> dict[str, NDArray[np.float32]]:
    """Scores in single precision, off by 1.2e-7 of themselves at most, and neighbours that became equal merged.

    Rounding never moves a score across the threshold, so that `is_anomaly` stays exact: where rounding to nearest
    would, the neighbouring float32 on the right side is taken.
    """
    rounded = scores.astype(np.float32)
    anomalous = scores > threshold
    too_low = anomalous & (rounded.astype(np.float64) <= threshold)
    too_high = ~anomalous & (rounded.astype(np.float64) > threshold)
    rounded[too_low] = np.nextafter(rounded[too_low], np.float32(np.inf))
    rounded[too_high] = np.nextafter(rounded[too_high], np.float32(-np.inf))
    steps = rounded[1:] != rounded[:-1]
    return {"breakpoints": breakpoints[steps], "scores": rounded[np.concatenate(([True], steps))]}
