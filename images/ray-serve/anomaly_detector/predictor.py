"""From points to predictions: the model where there is one, the fallback where only its statistics are known."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from anomaly_detection.contracts import is_series_id
from anomaly_detection.errors import AppError, DependencyUnavailableError, ErrorCode
from anomaly_detection.scoring import FALLBACK_THRESHOLD, fallback_score
from anomaly_detection.series import FLOAT32_MAX, LATEST_TIMESTAMP, read_points
from anomaly_detector.cache import ModelCache
from anomaly_detector.drift_events import DriftEvents
from anomaly_detector.loader import LoadedModel, ModelLoader, Statistics

SOURCE_MODEL = "model"
SOURCE_FALLBACK = "fallback"

_NUMBERS = (int, float)
_POINTS_AT_ONCE = 2048  # of a batch, about 1 ms; between them the event loop does what else there is


@dataclass(slots=True)
class Answers:
    """How many points each source has answered since the start."""

    model: int = 0
    fallback: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Scores of values of one series, in their order.

    Attributes:
        scores: shape (n,), higher is more anomalous.
        is_anomaly: shape (n,), whether each is greater than the threshold.
        threshold: of the model, or of the fallback.
        version: of the model.
        source: `SOURCE_MODEL` or `SOURCE_FALLBACK`.
    """

    scores: NDArray[np.floating[Any]]
    is_anomaly: NDArray[np.bool_]
    threshold: float
    version: int
    source: str


class Predictor:
    """Scores points of series.

    Args:
        cache: models in memory.
        loader: asked for statistics when a model cannot be loaded.
        drift: told of models whose drift was measured.
        max_points: points that one request may have.
    """

    def __init__(self, cache: ModelCache, loader: ModelLoader, drift: DriftEvents, max_points: int) -> None:
        self._cache = cache
        self._loader = loader
        self._drift = drift
        self.max_points = max_points
        self.answers = Answers()

    async def predict_one(self, series_id: str, version: int | None, point: Any) -> dict[str, Any]:
        """The prediction for one point.

        Args:
            series_id: the series.
            version: of its model; None for the one in production.
            point: as a JSON parser returned it.

        Raises:
            AppError: INVALID_INPUT, INVALID_TIMESTAMP, MODEL_NOT_FOUND, INVALID_VERSION, SERVICE_UNAVAILABLE.
        """
        if not _is_point(point):
            read_points([point], min_points=1, max_points=1)  # says what is wrong with it
        scorer = self._cache.peek(series_id, version) or await self._scorer(series_id, version)
        return self._predict_one(series_id, version, scorer, point)

    def predict_warm(self, series_id: str, point: Any) -> dict[str, Any] | None:
        """The prediction for one point by the model in production that is in memory; None where there is none.

        Args:
            series_id: the series.
            point: as a JSON parser returned it; None comes back for what is no point, too.
        """
        if not _is_point(point):
            return None
        loaded = self._cache.peek(series_id, None)
        return None if loaded is None else self._predict_one(series_id, None, loaded, point)

    def _predict_one(
        self, series_id: str, version: int | None, scorer: LoadedModel | Statistics, point: dict[str, Any]
    ) -> dict[str, Any]:
        value = point["value"]
        if isinstance(scorer, LoadedModel):
            self.answers.model += 1
            model = scorer.model
            score = model.score_one(value)
            if scorer.recent and scorer.recent.add(score) and version is None:
                self._drift.notice(series_id, scorer)
            threshold, is_anomaly, source = model.threshold, score > model.threshold, SOURCE_MODEL
        else:
            self.answers.fallback += 1
            scores, flags = fallback_score([value], scorer.mean, scorer.std)
            score, threshold, is_anomaly, source = float(scores[0]), FALLBACK_THRESHOLD, bool(flags[0]), SOURCE_FALLBACK
        return {
            "series_id": series_id,
            "timestamp": point["timestamp"],
            "value": value,
            "anomaly_score": score,
            "threshold": threshold,
            "is_anomaly": is_anomaly,
            "model_version": scorer.version,
            "source": source,
        }

    async def predict_batch(self, series_id: str, version: int | None, data: Any) -> dict[str, Any]:
        """The predictions for the points of one series, in their order.

        Args:
            series_id: the series.
            version: of its model; None for the one in production.
            data: list of points as a JSON parser returned it.

        Raises:
            AppError: as `predict_one`.
        """
        values = read_points(data, min_points=1, max_points=self.max_points).values
        found = await self.predict_values(series_id, version, values)
        return _batch_head(series_id, found) | {"predictions": _scored(data, found, 0, len(data))}

    async def predict_batch_json(self, series_id: str, version: int | None, data: Any) -> bytes:
        """What `predict_batch` returns, as JSON; other requests are answered in between.

        Args:
            series_id: the series.
            version: of its model; None for the one in production.
            data: list of points as a JSON parser returned it.

        Raises:
            AppError: as `predict_one`.
        """
        # A full batch takes 40 ms, which no single prediction is to wait. A thread would not help: nearly all of it
        # holds the interpreter's lock.
        await asyncio.sleep(0)
        values = read_points(data, min_points=1, max_points=self.max_points).values
        await asyncio.sleep(0)
        found = await self.predict_values(series_id, version, values)
        parts = []
        for start in range(0, len(data), _POINTS_AT_ONCE):
            await asyncio.sleep(0)
            parts.append(orjson.dumps(_scored(data, found, start, start + _POINTS_AT_ONCE))[1:-1])
        head = orjson.dumps(_batch_head(series_id, found))
        return b"".join((head[:-1], b',"predictions":[', b",".join(parts), b"]}"))

    async def predict_values(
        self, series_id: str, version: int | None, values: NDArray[np.float64], *, recent: bool = True
    ) -> Scores:
        """The predictions for values of one series, in their order.

        Args:
            series_id: the series.
            version: of its model; None for the one in production.
            values: shape (n,), finite and within single precision.
            recent: whether these are new measurements, which count as predictions and for the drift of the model.

        Raises:
            AppError: MODEL_NOT_FOUND, INVALID_VERSION, SERVICE_UNAVAILABLE.
        """
        scorer = self._cache.peek(series_id, version) or await self._scorer(series_id, version)
        if isinstance(scorer, LoadedModel):
            scores = scorer.model.score(values)
            if recent:
                self.answers.model += len(values)
                if scorer.recent and scorer.recent.add_many(scores) and version is None:
                    self._drift.notice(series_id, scorer)
            flags = scorer.model.is_anomaly(scores)
            return Scores(scores, flags, scorer.model.threshold, scorer.version, SOURCE_MODEL)
        if recent:
            self.answers.fallback += len(values)
        distances, flags = fallback_score(values, scorer.mean, scorer.std)
        return Scores(distances, flags, FALLBACK_THRESHOLD, scorer.version, SOURCE_FALLBACK)

    async def predict_many(self, bodies: Any) -> dict[str, Any]:
        """The predictions for several series; what is wrong with one of them is told in its place.

        Args:
            bodies: by series, the body of `predict_one` or `{"data": …}` of `predict_batch`.

        Raises:
            AppError: INVALID_INPUT where `bodies` is no such mapping or all of it has too many points.
        """
        if not isinstance(bodies, dict) or not bodies:
            raise AppError(
                ErrorCode.INVALID_INPUT,
                "`series` must be an object with at least one series",
                [{"field": "series", "reason": "not an object with at least one member"}],
            )
        points = sum(len(body["data"]) if _is_batch(body) else 1 for body in bodies.values())
        if points > self.max_points:
            raise AppError(
                ErrorCode.INVALID_INPUT,
                f"{points} points are more than the {self.max_points} allowed in one request",
                [{"field": "series", "reason": f"at most {self.max_points} points in all"}],
            )
        results = await asyncio.gather(*(self._predict_member(series_id, body) for series_id, body in bodies.items()))
        return dict(zip(bodies, results, strict=True))

    async def _predict_member(self, series_id: str, body: Any) -> dict[str, Any]:
        try:
            check_series_id(series_id)
            if isinstance(body, dict) and body.keys() == {"data"}:
                return await self.predict_batch(series_id, None, body["data"])
            return await self.predict_one(series_id, None, body)
        except AppError as error:
            return {"error": {"code": error.code, "message": error.message, "details": error.details}}

    async def _scorer(self, series_id: str, version: int | None) -> LoadedModel | Statistics:
        """What is not in memory: the model, loaded now, or else what is known of it."""
        try:
            return await self._cache.get(series_id, version)
        except DependencyUnavailableError:
            if statistics := self._loader.statistics(series_id, version):
                return statistics
            raise


def check_series_id(series_id: str) -> None:
    """Refuse what is not a series identifier.

    Raises:
        AppError: INVALID_INPUT.
    """
    if not is_series_id(series_id):
        raise AppError(
            ErrorCode.INVALID_INPUT,
            "a series identifier has 1 to 128 letters, digits and `_`",
            [{"field": "series_id", "reason": f"{series_id[:150]!r} is not one"}],
        )


def parse_version(text: str | None) -> int | None:
    """The `version` of a query; None where none is given.

    Raises:
        AppError: INVALID_VERSION when it is not a positive whole number.
    """
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) > 0):
        raise AppError(
            ErrorCode.INVALID_VERSION, f"a version is a positive whole number, not {text[:50]!r}", status=422
        )
    return int(text)


def _is_point(point: Any) -> bool:
    """Whether `point` is well formed; the quick way for one point, `read_points` being made for many."""
    if type(point) is not dict or len(point) != 2:
        return False
    timestamp: Any = point.get("timestamp")
    value: Any = point.get("value")
    return (
        type(timestamp) in _NUMBERS
        and type(value) in _NUMBERS
        and 0 <= timestamp <= LATEST_TIMESTAMP
        and math.fabs(value) <= FLOAT32_MAX
    )


def _batch_head(series_id: str, found: Scores) -> dict[str, Any]:
    """The answer for a batch, less the predictions."""
    return {
        "series_id": series_id,
        "model_version": found.version,
        "source": found.source,
        "threshold": found.threshold,
    }


def _scored(data: list[dict[str, Any]], found: Scores, start: int, end: int) -> list[dict[str, Any]]:
    """Points from `start` to before `end` with their scores."""
    return [
        {"timestamp": point["timestamp"], "value": point["value"], "anomaly_score": score, "is_anomaly": flag}
        for point, score, flag in zip(
            data[start:end], found.scores[start:end].tolist(), found.is_anomaly[start:end].tolist(), strict=True
        )
    ]


def _is_batch(body: Any) -> bool:
    return isinstance(body, Mapping) and isinstance(body.get("data"), list)
