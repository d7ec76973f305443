"""Models in memory: least recently used out first, bounded by bytes, loaded once however many ask."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from anomaly_detection.errors import AppError, DependencyUnavailableError
from anomaly_detector.drift import DriftRanking
from anomaly_detector.loader import LoadedModel, ModelLoader

_ABSENT_KEPT = 10_000
_LOADS_AT_ONCE = 16  # a cold start must not open a connection per series
_PATIENCE_SECONDS = 0.25  # how long a request waits to replace a model that it could be answered by already

Key = tuple[str, int | None]
"""A series and a version of it; None stands for the version in production, which may change."""

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class CacheStatistics:
    """What happened since the start."""

    hits: int = 0
    misses: int = 0
    loads: int = 0
    load_failures: int = 0
    load_seconds: float = 0.0
    evictions: int = 0
    stale_answers: int = 0


@dataclass(slots=True)
class _Entry:
    loaded: LoadedModel
    expires: float
    uses: float = 0.0  # each weighted by its time
    stale: bool = False  # it may be outdated: registry or store did not answer when it was time to ask


@dataclass(slots=True)
class _Load:
    task: asyncio.Task[_Entry]
    outdated: bool = False  # the version in production changed while it was being read


@dataclass(slots=True)
class ModelCache:
    """Cache of models within one event loop, without locks: loads of different models do not wait for each other.

    A model in production is asked for again after its TTL, or when `refresh` says that it changed. While its registry
    or store is away it goes on being served, from the disk where memory does not have it. A pinned version never
    changes and only leaves when memory is needed.

    Attributes:
        loader: where models come from.
        max_bytes: memory the models may take.
        ttl_seconds: how long a model in production is served before the registry is asked again.
        ttl_jitter: fraction of the TTL by which each model's own varies, up or down.
        negative_seconds: how long it is remembered that there is no such model.
        retry_seconds: how long a model that may be outdated is served before a failed load is tried again.
        clock: seconds, monotonic.
        statistics: what happened.
        nbytes: memory that the models take.
        stale_models: how many models in memory may be outdated.
        ranking: the models in production in memory by their drift.
        use_weight: what a use counts now; it grows, so that earlier ones count less.
    """

    loader: ModelLoader
    max_bytes: int
    ttl_seconds: float
    ttl_jitter: float
    negative_seconds: float
    retry_seconds: float
    clock: Callable[[], float] = time.monotonic
    statistics: CacheStatistics = field(default_factory=CacheStatistics)
    nbytes: int = 0
    stale_models: int = 0
    ranking: DriftRanking = field(default_factory=DriftRanking)
    use_weight: float = 1.0
    _entries: OrderedDict[Key, _Entry] = field(default_factory=OrderedDict)
    _loads: dict[Key, _Load] = field(default_factory=dict)
    _absent: OrderedDict[Key, tuple[float, AppError]] = field(default_factory=OrderedDict)
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_LOADS_AT_ONCE))

    def __len__(self) -> int:
        return len(self._entries)

    def peek(self, series_id: str, version: int | None) -> LoadedModel | None:
        """The model if it is in memory and fresh; the whole way of a warm request."""
        key = (series_id, version)
        entry = self._entries.get(key)
        if entry is None or entry.expires <= self.clock():
            return None
        self._entries.move_to_end(key)
        self.statistics.hits += 1
        entry.uses += self.use_weight
        if entry.stale:
            self.statistics.stale_answers += 1
        return entry.loaded

    async def get(self, series_id: str, version: int | None) -> LoadedModel:
        """The model, loaded if need be.

        Raises:
            AppError: MODEL_NOT_FOUND or INVALID_VERSION.
            DependencyUnavailableError: it is not in memory and cannot be loaded now.
        """
        if loaded := self.peek(series_id, version):
            return loaded
        key = (series_id, version)
        self.statistics.misses += 1
        if absent := self._absent.get(key):
            expires, error = absent
            if expires > self.clock():
                # A new one each time: an exception that is raised again and again collects tracebacks.
                raise AppError(error.code, error.message, error.details)
            del self._absent[key]
        entry = await self._current(key)
        entry.uses += self.use_weight
        if entry.stale:
            self.statistics.stale_answers += 1
        return entry.loaded

    def refresh(self, series_id: str) -> None:
        """The version in production may have changed: ask again now if the model is in memory, else at its next use."""
        key = (series_id, None)
        self._absent.pop(key, None)
        if load := self._loads.get(key):
            load.outdated = True
        elif key in self._entries:
            self._start(key)

    def expire_all(self) -> None:
        """Changes may have been missed: ask the registry again at the next use of each model in production."""
        self._absent.clear()
        now = self.clock()
        for (_, version), entry in self._entries.items():
            if version is None:
                entry.expires = now
        for load in self._loads.values():
            load.outdated = True

    async def evict(self, series_id: str) -> int:
        """Drop all versions of a series from memory and disk; returns how many were in memory."""
        keys = [key for key in self._entries if key[0] == series_id]
        for key in keys:
            self._drop(key)
        if self.loader.disk:
            await asyncio.to_thread(self.loader.disk.evict, series_id)
        return len(keys)

    def state(self, limit: int) -> list[tuple[str, int | None, LoadedModel]]:
        """Series, version asked for and model of what is in memory, most recently used first, so many at most."""
        latest = itertools.islice(reversed(self._entries.items()), limit)
        return [(series_id, version, entry.loaded) for (series_id, version), entry in latest]

    def uses(self) -> Iterator[tuple[float, str]]:
        """Uses, weighted as of now, and series of the models in production in memory; may be read in another thread."""
        entries, weight = list(self._entries.items()), self.use_weight
        return ((entry.uses / weight, series_id) for (series_id, version), entry in entries if version is None)

    def in_production(self, series_id: str) -> LoadedModel | None:
        """The model in production if it is in memory, be it fresh or not; this is no use of it."""
        entry = self._entries.get((series_id, None))
        return entry.loaded if entry else None

    def rank(self, series_id: str, loaded: LoadedModel) -> None:
        """The drift of a model in production was measured; nothing happens if it is in memory no more."""
        if self.in_production(series_id) is loaded:
            self.ranking.put(series_id, loaded.recent)

    async def close(self) -> None:
        """Abandon the loads under way."""
        tasks = [load.task for load in self._loads.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _current(self, key: Key) -> _Entry:
        """The model asked for again or loaded. One in memory answers if that takes long: dependencies may hang."""
        expired = self._entries.get(key)
        if expired is None:
            return await self._join(key)
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                return await self._join(key)
        except TimeoutError:
            # The load goes on, and puts another entry in its place or says when to try again.
            self._mark(expired, key[1] is None)
            expired.expires = self.clock() + _PATIENCE_SECONDS
            return expired

    async def _join(self, key: Key) -> _Entry:
        """Wait for the load under way, or start one. A request that goes away does not take others' load with it."""
        load = self._loads.get(key) or self._start(key)
        return await asyncio.shield(load.task)

    def _start(self, key: Key) -> _Load:
        load = _Load(asyncio.create_task(self._load(key), name=f"load {key[0]}"))
        # Retrieves the exception: nobody may be waiting any more.
        load.task.add_done_callback(lambda task: task.cancelled() or task.exception())
        self._loads[key] = load
        return load

    async def _load(self, key: Key) -> _Entry:
        series_id, version = key
        start = time.perf_counter()
        try:
            async with self._slots:
                while True:
                    self._loads[key].outdated = False
                    entry = self._entries.get(key)
                    loaded = await self.loader.load(series_id, version, entry.loaded if entry else None)
                    if not self._loads[key].outdated:
                        break
        except DependencyUnavailableError:
            self.statistics.load_failures += 1
            entry = self._entries.get(key)
            if entry is None:
                kept = await self.loader.load_kept(series_id, version)
                if kept is None:
                    raise
                entry = self._store(key, kept)
            self._mark(entry, version is None)  # a version never changes, which of them is in production does
            entry.expires = self.clock() + self.retry_seconds
            return entry
        except AppError as error:
            self._drop(key)
            await self.loader.forget(series_id, version)
            self._absent[key] = (self.clock() + self.negative_seconds, error)
            if len(self._absent) > _ABSENT_KEPT:
                self._absent.popitem(last=False)
            raise
        except Exception:
            self.statistics.load_failures += 1
            logger.exception("unexpected error while loading", extra={"series_id": series_id, "version": version})
            raise
        else:
            self.statistics.loads += 1
            self.statistics.load_seconds += time.perf_counter() - start
            return self._store(key, loaded)
        finally:
            del self._loads[key]

    def _store(self, key: Key, loaded: LoadedModel) -> _Entry:
        before = self._entries.get(key)
        self._drop(key)
        lifetime = self.ttl_seconds * (1 + random.uniform(-self.ttl_jitter, self.ttl_jitter))  # noqa: S311 - spreads load, no secret
        self._entries[key] = entry = _Entry(loaded, self.clock() + lifetime, before.uses if before else 0.0)
        self.nbytes += loaded.model.nbytes
        if key[1] is None:
            self.ranking.put(key[0], loaded.recent)
        while self.nbytes > self.max_bytes:
            self._drop(next(iter(self._entries)))
            self.statistics.evictions += 1
        return entry

    def _drop(self, key: Key) -> None:
        if entry := self._entries.pop(key, None):
            self.nbytes -= entry.loaded.model.nbytes
            self._mark(entry, False)
            if key[1] is None:
                self.ranking.remove(key[0])

    def _mark(self, entry: _Entry, stale: bool) -> None:
        """Say of an entry whether it may be outdated."""
        self.stale_models += stale - entry.stale
        entry.stale = stale
