"""From points to predictions: the model where there is one, the fallback where only its statistics are known."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from anomaly_detection.contracts import is_series_id
from anomaly_detection.errors import AppError, DependencyUnavailableError, ErrorCode
from anomaly_detection.scoring import FALLBACK_THRESHOLD, fallback_score
from anomaly_detection.series import FLOAT32_MAX, LATEST_TIMESTAMP, Series, checked_series, read_points, read_values
from anomaly_detector.cache import ModelCache
from anomaly_detector.drift_events import DriftEvents
from anomaly_detector.loader import LoadedModel, ModelLoader, Statistics
from anomaly_detector.openapi import VERSION_PATTERN
from anomaly_detector.turns import ITEMS_AT_ONCE, Turns

SOURCE_MODEL = "model"
SOURCE_FALLBACK = "fallback"

_NUMBERS = (int, float)
_SERIES_AT_ONCE = 64  # of a request with many: so many models are asked for together, and held until they have scored


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
                self._measured(series_id, scorer)
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

    async def predict_batch(self, series_id: str, version: int | None, data: Any) -> bytes:
        """The predictions for the points of one series, in their order, as JSON.

        A full batch takes 40 ms, which no single prediction is to wait: others are answered in between. A thread would
        not help, since nearly all of it holds the interpreter's lock.

        Args:
            series_id: the series.
            version: of its model; None for the one in production.
            data: list of points as a JSON parser returned it.

        Raises:
            AppError: as `predict_one`.
        """
        values = (await self.read_points(data)).values
        scorer = self._cache.peek(series_id, version) or await self._scorer(series_id, version)
        return await self._batch_json(series_id, version, scorer, data, values, Turns())

    async def _batch_json(
        self,
        series_id: str,
        version: int | None,
        scorer: LoadedModel | Statistics,
        data: list[dict[str, Any]],
        values: NDArray[np.float64],
        turns: Turns,
    ) -> bytes:
        """The answer for points of one series whose `values`, shape (n,), have been read and whose model is here."""
        await turns.give_way()
        found = self._score(series_id, version, scorer, values)
        parts = []
        for start in range(0, len(data), ITEMS_AT_ONCE):
            await turns.give_way()
            parts.append(orjson.dumps(_scored(data, found, start, start + ITEMS_AT_ONCE))[1:-1])
        head = orjson.dumps(_batch_head(series_id, found))
        return b"".join((head[:-1], b',"predictions":[', b",".join(parts), b"]}"))

    async def read_points(self, data: Any) -> Series:
        """What `series.read_points` gives for the points of a request, other requests being answered in between.

        Raises:
            AppError: as `series.read_points`.
        """
        if not isinstance(data, list) or not ITEMS_AT_ONCE < len(data) <= self.max_points:
            return read_points(data, min_points=1, max_points=self.max_points)
        turns = Turns()
        try:
            parts = [read_points(part, min_points=1, max_points=len(part)) async for part in turns.parts(data)]
            timestamps = np.concatenate([part.timestamps for part in parts])
            values = np.concatenate([part.values for part in parts])
            return checked_series(timestamps, values, min_points=1, max_points=self.max_points)
        except AppError:
            # Where a part is wrong, what is said of it has to count from the start of the whole.
            return await asyncio.to_thread(read_points, data, min_points=1, max_points=self.max_points)

    async def read_values(
        self, data: list[Any], values_of: Callable[[Sequence[Any]], list[Any]] = list
    ) -> NDArray[np.float64]:
        """What `series.read_values` gives for the values of a request, shape (n,); others are answered in between.

        Args:
            data: as a JSON parser returned it, not empty.
            values_of: from a part of `data` to its values.

        Raises:
            AppError: as `series.read_values`.
        """
        turns = Turns()
        try:
            return np.concatenate([read_values(values_of(part)) async for part in turns.parts(data)])
        except AppError:
            return await asyncio.to_thread(lambda: read_values(values_of(data)))

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
        return self._score(series_id, version, scorer, values, recent=recent)

    def _score(
        self,
        series_id: str,
        version: int | None,
        scorer: LoadedModel | Statistics,
        values: NDArray[np.float64],
        *,
        recent: bool = True,
    ) -> Scores:
        """As `predict_values`, by what is here."""
        if isinstance(scorer, LoadedModel):
            scores = scorer.model.score(values)
            if recent:
                self.answers.model += len(values)
                if scorer.recent and scorer.recent.add_many(scores) and version is None:
                    self._measured(series_id, scorer)
            flags = scorer.model.is_anomaly(scores)
            return Scores(scores, flags, scorer.model.threshold, scorer.version, SOURCE_MODEL)
        if recent:
            self.answers.fallback += len(values)
        distances, flags = fallback_score(values, scorer.mean, scorer.std)
        return Scores(distances, flags, FALLBACK_THRESHOLD, scorer.version, SOURCE_FALLBACK)

    def _measured(self, series_id: str, loaded: LoadedModel) -> None:
        """The drift of a model in production is known anew."""
        self._cache.rank(series_id, loaded)
        self._drift.notice(series_id, loaded)

    async def predict_many(self, bodies: Any) -> bytes:
        """The predictions for several series as JSON; what is wrong with one of them is told in its place.

        Other requests are answered in between.

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
        turns = Turns()
        members = list(bodies.items())
        points = 0
        async for part in turns.parts(members):
            points += sum(len(body["data"]) if _is_batch(body) else 1 for _, body in part)
        if points > self.max_points:
            raise AppError(
                ErrorCode.INVALID_INPUT,
                f"{points} points are more than the {self.max_points} allowed in one request",
                [{"field": "series", "reason": f"at most {self.max_points} points in all"}],
            )
        results = []
        for start in range(0, len(members), _SERIES_AT_ONCE):
            group = members[start : start + _SERIES_AT_ONCE]
            scorers = await self._scorers([series_id for series_id, _ in group])
            for series_id, body in group:
                await turns.give_way()
                answer = await self._member_json(series_id, scorers[series_id], body, turns)
                results.append(orjson.dumps(series_id) + b":" + answer)
        return b'{"results":{' + b",".join(results) + b"}}"

    async def _member_json(
        self, series_id: str, scorer: LoadedModel | Statistics | AppError, body: Any, turns: Turns
    ) -> bytes:
        """The prediction for one series of several, or its error."""
        try:
            check_series_id(series_id)
            if isinstance(body, dict) and body.keys() == {"data"}:
                values = (await self.read_points(body["data"])).values
                return await self._batch_json(series_id, None, _usable(scorer), body["data"], values, turns)
            if not _is_point(body):
                read_points([body], min_points=1, max_points=1)
            return orjson.dumps(self._predict_one(series_id, None, _usable(scorer), body))
        except AppError as error:
            return orjson.dumps({"error": {"code": error.code, "message": error.message, "details": error.details}})

    async def _scorers(self, series: list[str]) -> dict[str, LoadedModel | Statistics | AppError]:
        """By series, what scores its points, or why nothing can; what is not in memory is loaded all at once."""
        found: dict[str, LoadedModel | Statistics | AppError] = {}
        missing = []
        for series_id in series:
            if loaded := self._cache.peek(series_id, None):
                found[series_id] = loaded
            else:
                missing.append(series_id)

        async def load(series_id: str) -> LoadedModel | Statistics | AppError:
            try:
                check_series_id(series_id)
                return await self._scorer(series_id, None)
            except AppError as error:
                return error

        return found | dict(zip(missing, await asyncio.gather(*map(load, missing)), strict=True))

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
    if not re.fullmatch(VERSION_PATTERN.strip("^$"), text):
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
    return isinstance(body, dict) and isinstance(body.get("data"), list)


def _usable(scorer: LoadedModel | Statistics | AppError) -> LoadedModel | Statistics:
    """What scores points.

    Raises:
        AppError: there is nothing; a new error, since one that is raised again collects tracebacks.
    """
    if isinstance(scorer, AppError):
        raise AppError(scorer.code, scorer.message, scorer.details)
    return scorer
