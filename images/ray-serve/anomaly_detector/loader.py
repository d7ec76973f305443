"""From a series to its model: ask the registry, read the blob, verify it."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Protocol

from anomaly_detection.errors import DependencyUnavailableError
from anomaly_detection.object_store import NAME as OBJECT_STORE
from anomaly_detection.object_store import ObjectNotFoundError
from anomaly_detection.scoring import ModelFormatError, ScoringModel
from anomaly_detector.breaker import CircuitBreaker
from anomaly_detector.registry import ModelRecord

_STATISTICS_KEPT = 50_000  # about 15 MB

logger = logging.getLogger(__name__)


class Records(Protocol):
    """The registry, as the loader needs it."""

    def find(self, series_id: str, version: int | None) -> Awaitable[ModelRecord]:
        """The record of a version, or of the one in production for None."""


class Blobs(Protocol):
    """The object store, as the loader needs it."""

    def get(self, key: str) -> Awaitable[bytes]:
        """The object under a key."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A version of a series' model, ready to score.

    Attributes:
        version: its number in the registry.
        sha256: hex digest of its blob.
        model: the scoring model.
    """

    version: int
    sha256: str
    model: ScoringModel


@dataclass(frozen=True, slots=True)
class Statistics:
    """What the fallback needs of a version: mean and standard deviation of its training values."""

    version: int
    mean: float
    std: float


class UnreadableModelError(DependencyUnavailableError):
    """The store answers but what it holds is not the model the registry promised."""


class ModelLoader:
    """Loads models and remembers the statistics of those it has seen, for when they cannot be loaded again.

    Args:
        registry: which versions there are.
        registry_breaker: guards it.
        store: where the blobs are.
        store_breaker: guards it.
    """

    def __init__(
        self, registry: Records, registry_breaker: CircuitBreaker, store: Blobs, store_breaker: CircuitBreaker
    ) -> None:
        self._registry = registry
        self._registry_breaker = registry_breaker
        self._store = store
        self._store_breaker = store_breaker
        self._statistics: OrderedDict[tuple[str, int | None], Statistics] = OrderedDict()

    async def load(self, series_id: str, version: int | None, current: LoadedModel | None = None) -> LoadedModel:
        """The model of a version, or of the one in production.

        Args:
            series_id: the series.
            version: number of the version; None for the one in production.
            current: what is loaded already: given back if it is still the version asked for, without reading its blob.

        Raises:
            AppError: MODEL_NOT_FOUND or INVALID_VERSION.
            DependencyUnavailableError: the registry or the store is away.
            UnreadableModelError: the blob is not the model's.
        """
        start = time.perf_counter()
        record = await self._registry_breaker.call(lambda: self._registry.find(series_id, version))
        if record.mean is not None and record.std is not None:
            self._remember(series_id, version, Statistics(record.version, record.mean, record.std))
        if current and (current.version, current.sha256) == (record.version, record.blob_sha256):
            return current
        try:
            blob = await self._store_breaker.call(lambda: self._store.get(record.blob_key))
            if hashlib.sha256(blob).hexdigest() != record.blob_sha256:
                raise ModelFormatError("its digest is not the one in the registry")
            model = ScoringModel.from_bytes(blob)
        except (ObjectNotFoundError, ModelFormatError) as error:
            logger.error(
                "a model cannot be read",
                extra={
                    "series_id": series_id,
                    "version": record.version,
                    "key": record.blob_key,
                    "reason": repr(error),
                },
            )
            raise UnreadableModelError(OBJECT_STORE) from error
        self._remember(series_id, version, Statistics(record.version, model.mean, model.std))
        logger.info(
            "model loaded",
            extra={
                "series_id": series_id,
                "version": record.version,
                "bytes": len(blob),
                "milliseconds": round(1000 * (time.perf_counter() - start), 1),
            },
        )
        return LoadedModel(record.version, record.blob_sha256, model)

    def statistics(self, series_id: str, version: int | None) -> Statistics | None:
        """What is known of the version asked for last under these names; None if it was never seen."""
        return self._statistics.get((series_id, version))

    def _remember(self, series_id: str, version: int | None, statistics: Statistics) -> None:
        key = (series_id, version)
        self._statistics[key] = statistics
        self._statistics.move_to_end(key)
        if len(self._statistics) > _STATISTICS_KEPT:
            self._statistics.popitem(last=False)
