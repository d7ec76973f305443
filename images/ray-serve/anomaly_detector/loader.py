"""From a series to its model: ask the registry, read the blob from the disk or the object store, verify it."""

from __future__ import annotations

import asyncio
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
from anomaly_detector.disk import ModelDisk
from anomaly_detector.drift import RecentScores
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
        recent: its recent scores; None where the model has no baseline to compare them with.
    """

    version: int
    sha256: str
    model: ScoringModel
    recent: RecentScores | None

    @classmethod
    def from_blob(cls, version: int, blob: bytes) -> LoadedModel:
        """The model of a blob.

        Raises:
            ModelFormatError: the blob is damaged.
        """
        model = ScoringModel.from_bytes(blob)
        recent = RecentScores(model.baseline) if model.baseline else None
        return cls(version, hashlib.sha256(blob).hexdigest(), model, recent)


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
        disk: keeps what was read from the store; None for no disk.
    """

    def __init__(
        self,
        registry: Records,
        registry_breaker: CircuitBreaker,
        store: Blobs,
        store_breaker: CircuitBreaker,
        disk: ModelDisk | None,
    ) -> None:
        self._registry = registry
        self._registry_breaker = registry_breaker
        self._store = store
        self._store_breaker = store_breaker
        self.disk = disk
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
            if self.disk:
                self.disk.touch(series_id, record.version)
            return current
        loaded = await self._from_disk(series_id, record.version, record.blob_sha256)
        source = "disk"
        if loaded is None:
            loaded, source = await self._from_store(series_id, record), OBJECT_STORE
        if self.disk and version is None:
            await asyncio.to_thread(self.disk.set_production, series_id, record.version)
        self._remember(series_id, version, Statistics(record.version, loaded.model.mean, loaded.model.std))
        logger.info(
            "model loaded",
            extra={
                "series_id": series_id,
                "version": record.version,
                "from": source,
                "milliseconds": round(1000 * (time.perf_counter() - start), 1),
            },
        )
        return loaded

    async def load_kept(self, series_id: str, version: int | None) -> LoadedModel | None:
        """What the disk holds of a version, or of the one in production when the registry was asked last.

        For when registry or store do not answer.
        """
        if self.disk is None:
            return None
        if version is None:
            version = await asyncio.to_thread(self.disk.production, series_id)
        return None if version is None else await self._from_disk(series_id, version)

    async def forget(self, series_id: str, version: int | None) -> None:
        """The registry has no such version any more (None: none in production): nor has the disk."""
        if self.disk:
            await asyncio.to_thread(self.disk.forget, series_id, version)

    async def _from_disk(self, series_id: str, version: int, sha256: str | None = None) -> LoadedModel | None:
        """A version that the disk holds; with a digest only if it is the blob's."""
        if self.disk is None:
            return None
        blob = await asyncio.to_thread(self.disk.read, series_id, version)
        if blob is None:
            return None
        try:
            loaded = LoadedModel.from_blob(version, blob)
            if sha256 not in (None, loaded.sha256):
                raise ModelFormatError("its digest is not the one in the registry")
        except ModelFormatError as error:
            logger.warning(
                "a model on the disk is not used",
                extra={"series_id": series_id, "version": version, "reason": str(error)},
            )
            await self.forget(series_id, version)
            return None
        return loaded

    async def _from_store(self, series_id: str, record: ModelRecord) -> LoadedModel:
        """The model as the object store holds it, which the disk keeps from now on."""
        try:
            blob = await self._store_breaker.call(lambda: self._store.get(record.blob_key))
            loaded = LoadedModel.from_blob(record.version, blob)
            if loaded.sha256 != record.blob_sha256:
                raise ModelFormatError("its digest is not the one in the registry")
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
        if self.disk:
            await asyncio.to_thread(self.disk.write, series_id, record.version, blob)
        return loaded

    def statistics(self, series_id: str, version: int | None) -> Statistics | None:
        """What is known of the version asked for last under these names; None if it was never seen."""
        return self._statistics.get((series_id, version))

    def _remember(self, series_id: str, version: int | None, statistics: Statistics) -> None:
        key = (series_id, version)
        self._statistics[key] = statistics
        self._statistics.move_to_end(key)
        if len(self._statistics) > _STATISTICS_KEPT:
            self._statistics.popitem(last=False)
