"""The model format: its scores are scikit-learn's, and no damage goes unnoticed."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.ensemble import IsolationForest

from anomaly_detection.contracts import DetectorParameters
from anomaly_detection.scoring import (
    FALLBACK_THRESHOLD,
    ModelFormatError,
    ScoringModel,
    fallback_score,
    fit_isolation_forest,
    score_histogram,
)

FLOAT32_MAX = float(np.finfo(np.float32).max)


def scikit_learn(values: NDArray[np.float64], parameters: DetectorParameters) -> IsolationForest:
    """The forest as scikit-learn alone fits it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # max_samples above the number of samples
        return IsolationForest(**parameters.model_dump()).fit(values.reshape(-1, 1))


def probes(values: NDArray[np.float64], model: ScoringModel) -> NDArray[np.float64]:
    """Values worth asking for: the training's, far ones, and both sides of every breakpoint."""
    above = np.nextafter(model.breakpoints, np.float32(np.inf))
    return np.concatenate(
        [
            values,
            [0.0, -1e30, 1e30, FLOAT32_MAX, -FLOAT32_MAX],
            model.breakpoints.astype(np.float64),
            above.astype(np.float64),
        ]
    )


@st.composite
def series(draw: st.DrawFn) -> NDArray[np.float64]:
    """Series of the kinds sensors send: noise, steps, waves, repeated values, heavy tails; any offset and scale."""
    size = draw(st.integers(2, 400))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["normal", "steps", "wave", "rounded", "heavy"]))
    makers: dict[str, Callable[[], NDArray[np.float64]]] = {
        "normal": lambda: generator.normal(size=size),
        "steps": lambda: generator.integers(0, 4, size).astype(float),
        "wave": lambda: np.sin(np.arange(size) / 7),
        "rounded": lambda: np.round(generator.normal(size=size), 1),
        "heavy": lambda: generator.standard_cauchy(size),
    }
    shape = makers[kind]()
    scale = 10.0 ** draw(st.integers(-6, 6))
    offset = draw(st.sampled_from([0.0, 1.0, -1e3, 1e6])) * scale
    values: NDArray[np.float64] = shape * scale + offset
    values[0] += scale  # never constant
    return values


detector_parameters = st.builds(
    DetectorParameters,
    n_estimators=st.integers(1, 20),
    max_samples=st.one_of(st.just("auto"), st.integers(1, 500), st.floats(0.05, 1.0)),
    contamination=st.one_of(st.just("auto"), st.floats(0.001, 0.5)),
    bootstrap=st.booleans(),
    random_state=st.integers(0, 2**32 - 1),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(values=series(), parameters=detector_parameters)
def test_scores_equal_scikit_learn(values: NDArray[np.float64], parameters: DetectorParameters) -> None:
    # scikit-learn refuses a fraction that leaves no sample; the service takes one instead.
    if isinstance(parameters.max_samples, float) and int(parameters.max_samples * len(values)) < 1:
        return
    estimator, fitted = fit_isolation_forest(values, parameters)
    model = ScoringModel.from_bytes(fitted.to_bytes())
    reference = scikit_learn(values, parameters)
    asked = probes(values, model)

    expected = -reference.score_samples(asked.reshape(-1, 1))
    scores = model.score(asked)
    np.testing.assert_allclose(scores, expected, rtol=1e-6, atol=0)
    np.testing.assert_allclose(-estimator.score_samples(asked.reshape(-1, 1)), expected, rtol=1e-12)
    assert model.threshold == pytest.approx(-reference.offset_, rel=1e-12)
    assert [model.score_one(value) for value in asked[:20]] == scores[:20].tolist()

    # Which values are anomalies is exact, except where a score equals the threshold but for the rounding of a sum.
    clear = np.abs(expected + reference.offset_) > 1e-12
    assert (model.is_anomaly(scores) == (reference.predict(asked.reshape(-1, 1)) == -1))[clear].all()


def test_breakpoints_decide_in_single_precision() -> None:
    """A value between two float32 numbers is scored as scikit-learn rounds it."""
    values = (1 + np.arange(50) * float(np.finfo(np.float32).eps)).astype(np.float64)
    _, model = fit_isolation_forest(values, DetectorParameters(n_estimators=10))
    between = (values[:-1] + values[1:]) / 2
    reference = scikit_learn(values, DetectorParameters(n_estimators=10))
    np.testing.assert_allclose(model.score(between), -reference.score_samples(between.reshape(-1, 1)), rtol=1e-6)


def test_rounding_never_moves_a_score_across_the_threshold() -> None:
    values = np.random.default_rng(7).normal(size=300)
    for step in range(1, 40):  # thresholds that fall on, and between, scores of training values
        parameters = DetectorParameters(n_estimators=5, contamination=step / 100)
        estimator, model = fit_isolation_forest(values, parameters)
        flagged = model.is_anomaly(model.score(values))
        exact = -estimator.score_samples(values.reshape(-1, 1))
        clear = np.abs(exact - model.threshold) > 1e-12
        assert (flagged == (exact > model.threshold))[clear].all()


@pytest.fixture(scope="module")
def model() -> ScoringModel:
    _, model = fit_isolation_forest(
        np.random.default_rng(0).normal(size=1000), DetectorParameters(n_estimators=4, contamination=0.05)
    )
    return model


def test_blob_round_trip(model: ScoringModel) -> None:
    blob = model.to_bytes()
    again = ScoringModel.from_bytes(blob)
    assert again.to_bytes() == blob
    assert (again.threshold, again.mean, again.std) == (model.threshold, model.mean, model.std)
    assert again.training == model.training
    assert again.training["points"] == 1000
    assert again.breakpoints.tolist() == model.breakpoints.tolist()
    assert again.scores.tolist() == model.scores.tolist()
    assert again.baseline == model.baseline


@pytest.mark.parametrize("kind", ["normal", "few values", "one value and one other"])
def test_baseline_is_the_distribution_of_the_training_scores(kind: str) -> None:
    generator = np.random.default_rng(8)
    values = {
        "normal": generator.normal(size=3000),
        "few values": generator.integers(0, 4, 3000).astype(float),
        "one value and one other": np.append(np.zeros(2999), 1.0),
    }[kind]
    _, model = fit_isolation_forest(values, DetectorParameters(n_estimators=10))
    scores = model.score(values)
    assert model.baseline
    edges = np.array(model.baseline.edges)
    assert (np.diff(edges) > 0).all()
    assert sum(model.baseline.counts) == 3000
    assert model.baseline.counts[0] == (scores < edges[0]).sum()
    assert list(np.cumsum(model.baseline.counts[1:-1])) == [
        ((scores >= edges[0]) & (scores < edge)).sum() for edge in edges[1:]
    ]
    if kind == "normal":  # tenths, but for values that have the same score
        assert all(200 < count < 400 for count in model.baseline.counts[:9])


def test_blob_without_baseline_is_read(model: ScoringModel) -> None:
    """As they were written before there was one: a new member of the header is no new format."""
    old = dataclasses.replace(model, baseline=None)
    again = ScoringModel.from_bytes(old.to_bytes())
    assert again.baseline is None
    assert again.score([0.5]) == model.score([0.5])


def test_blob_is_small_for_the_default_forest() -> None:
    _, model = fit_isolation_forest(np.random.default_rng(1).normal(size=15_360), DetectorParameters())
    assert len(model.to_bytes()) < 110_000
    assert model.nbytes < 110_000


def test_every_truncation_is_refused(model: ScoringModel) -> None:
    blob = model.to_bytes()
    for size in range(len(blob)):
        with pytest.raises(ModelFormatError):
            ScoringModel.from_bytes(blob[:size])
    with pytest.raises(ModelFormatError):
        ScoringModel.from_bytes(blob + b"\0")


def test_every_flipped_bit_is_refused(model: ScoringModel) -> None:
    blob = model.to_bytes()
    for position in range(len(blob)):
        damaged = bytearray(blob)
        damaged[position] ^= 1 << position % 8
        with pytest.raises(ModelFormatError):
            ScoringModel.from_bytes(bytes(damaged))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_other_bytes_are_refused(blob: bytes) -> None:
    with pytest.raises(ModelFormatError):
        ScoringModel.from_bytes(blob)


def signed(blob: bytes) -> bytes:
    """The blob with a checksum that fits what it says, as a wrong writer would make it."""
    import hashlib

    return blob[:8] + hashlib.sha256(blob[40:]).digest() + blob[40:]


def test_newer_format_is_told_apart_from_damage(model: ScoringModel) -> None:
    blob = bytearray(model.to_bytes())
    blob[40] = 2
    with pytest.raises(ModelFormatError, match="model format 2 is not known"):
        ScoringModel.from_bytes(signed(bytes(blob)))


@pytest.mark.parametrize(
    "change",
    [
        {"breakpoints": -1},
        {"breakpoints": 10**9},
        {"threshold": None},
        {"mean": "much"},
        {"baseline": None},
        {"baseline": {"edges": [0.5]}},
        {"baseline": {"edges": [0.5], "counts": [1]}},
        {"baseline": {"edges": [0.5], "counts": [1, -1]}},
        {"baseline": {"edges": [0.5, 0.5], "counts": [1, 1, 1]}},
    ],
)
def test_wrong_header_is_refused_in_spite_of_its_checksum(model: ScoringModel, change: dict[str, Any]) -> None:
    blob = model.to_bytes()
    size = int.from_bytes(blob[44:48], "little")
    header = json.dumps(json.loads(blob[48 : 48 + size]) | change).encode()
    header = header.ljust(size)
    with pytest.raises(ModelFormatError):
        ScoringModel.from_bytes(signed(blob[:44] + len(header).to_bytes(4, "little") + header + blob[48 + size :]))


def test_fallback_marks_what_is_further_than_three_standard_deviations() -> None:
    scores, flags = fallback_score([10.0, 16.0, 4.0, 16.001, 3.999, 1e308, -1e308], mean=10.0, std=2.0)
    assert flags.tolist() == [False, False, False, True, True, True, True]
    assert scores[0] == 0
    assert scores[1] == scores[2] == FALLBACK_THRESHOLD
    assert ((scores >= 0) & (scores <= 1)).all()
    assert ((scores > FALLBACK_THRESHOLD) == flags).all()


def test_scoring_does_not_import_scikit_learn() -> None:
    import subprocess
    import sys

    code = "import sys, anomaly_detection.scoring; assert not any(name.startswith('sklearn') for name in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})


def test_scores_are_counted_over_their_whole_range() -> None:
    counts = score_histogram(np.array([0.001, 0.5, 0.51, 1.0], dtype=np.float32))
    assert (len(counts), sum(counts), counts[0], counts[10], counts[-1]) == (20, 4, 1, 2, 1)
