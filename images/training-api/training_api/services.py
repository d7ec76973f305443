"""The services behind the API, as interfaces, and their life: connecting in the background, health, closing."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from typing import Literal, Protocol
from uuid import UUID

from pydantic import BaseModel

from anomaly_detection import broker, database, object_store
from anomaly_detection.contracts import (
    Job,
    JobStatus,
    ModelSummary,
    ModelVersion,
    ProductionChange,
    TrainingCompleted,
    TrainingJob,
)
from anomaly_detection.errors import DependencyUnavailableError
from anomaly_detection.jobs import JobStore, NewJob, Publisher, Rejection, publish_completed, publish_job
from anomaly_detection.settings import BrokerSettings, DatabaseSettings, MlflowSettings, ObjectStoreSettings
from training_api import registry

_RETRY_SECONDS = 2.0
_REPUBLISH_EVERY_SECONDS = 15.0

logger = logging.getLogger(__name__)


class LockedSeries(Protocol):
    """What the API needs of `anomaly_detection.jobs.LockedSeries`."""

    async def unfinished_jobs(self) -> list[UUID]: ...
    async def set_production(
        self, change: ProductionChange, version: int | None, job_id: UUID | None, request_id: str
    ) -> TrainingCompleted: ...
    async def note_deleted(self, version: int | None) -> None: ...


class Jobs(Protocol):
    """What the API needs of `anomaly_detection.jobs.JobStore`."""

    async def accept(self, series_id: str, limit: int, window_seconds: int) -> Rejection | None: ...
    async def find_same(self, new: NewJob) -> Job | None: ...
    async def replay(self, new: NewJob) -> Job | None: ...
    async def create(self, new: NewJob) -> tuple[Job, TrainingJob | None]: ...
    async def mark_published(self, message: TrainingJob) -> None: ...
    async def unpublished(self) -> list[TrainingJob]: ...
    async def get(self, job_id: UUID) -> Job | None: ...
    async def page(
        self, series_id: str | None, status: JobStatus | None, before: int | None, limit: int
    ) -> tuple[list[Job], int | None]: ...
    async def cancel(self, job_id: UUID) -> tuple[Job | None, bool]: ...
    async def fail(self, job_id: UUID, attempt: int | None, code: str, text: str) -> bool: ...
    def locked(self, series_id: str) -> AbstractAsyncContextManager[LockedSeries]: ...
    async def mark_announced(self, event: TrainingCompleted) -> None: ...
    async def unannounced(self) -> list[TrainingCompleted]: ...
    async def models(self, after: str | None, limit: int) -> tuple[list[ModelSummary], str | None]: ...


class Store(Protocol):
    """What the API needs of `anomaly_detection.object_store.ObjectStore`."""

    async def put(self, key: str, blob: bytes) -> None: ...


class Models(Protocol):
    """What the API needs of `training_api.registry.Registry`."""

    async def versions(self, series_id: str) -> list[ModelVersion]: ...
    async def run(self, run_id: str) -> tuple[dict[str, str], dict[str, float]]: ...
    async def set_production(self, series_id: str, version: int, previous: int | None) -> None: ...
    async def delete_version(self, series_id: str, version: int) -> None: ...


class DependencyState(BaseModel):
    """How a dependency does."""

    status: Literal["up", "down"]
    latency_ms: float


@dataclass(frozen=True)
class Services:
    """The dependencies of the API.

    Attributes:
        checks: by name, a call that returns when the dependency answers and raises DependencyUnavailableError when not.
        start: connects in the background and returns at once.
        stop: closes all connections.
        started: whether everything needed was reached once, the schema included.
    """

    jobs: Jobs
    publisher: Publisher
    store: Store
    models: Models
    checks: dict[str, Callable[[], Awaitable[None]]]
    start: Callable[[], Awaitable[None]]
    stop: Callable[[], Awaitable[None]]
    started: Callable[[], bool]

    async def states(self) -> dict[str, DependencyState]:
        """The state of every dependency, asked at the same time."""

        async def state(check: Callable[[], Awaitable[None]]) -> DependencyState:
            start = time.perf_counter()
            try:
                await check()
                status: Literal["up", "down"] = "up"
            except DependencyUnavailableError:
                status = "down"
            return DependencyState(status=status, latency_ms=round(1000 * (time.perf_counter() - start), 2))

        return dict(zip(self.checks, await asyncio.gather(*map(state, self.checks.values())), strict=True))


async def announce(publisher: Publisher, jobs: Jobs, event: TrainingCompleted) -> None:
    """Publish the event of a decision and, once the broker has it, say so.

    Raises:
        DependencyUnavailableError: it is published later.
    """
    await publish_completed(publisher, event)
    await jobs.mark_announced(event)


def connect_services() -> Services:
    """The real services, from the environment."""
    database_ = database.Database(DatabaseSettings())
    broker_ = broker.Broker(BrokerSettings(), "training-api")
    store = object_store.ObjectStore(ObjectStoreSettings())
    models = registry.Registry(MlflowSettings())
    jobs = JobStore(database_)
    tasks: list[asyncio.Task[None]] = []
    reached: set[str] = set()

    async def migrate() -> None:
        while True:
            try:
                await database_.migrate()
            except DependencyUnavailableError:
                logger.warning("the database does not answer, trying again")
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                reached.add(database.NAME)
                return

    async def connect() -> None:
        await broker_.connect()
        reached.add(broker.NAME)

    async def republish() -> None:
        """Publish what is written but not confirmed: the API process died in between, or the broker was away."""
        while True:
            await asyncio.sleep(_REPUBLISH_EVERY_SECONDS)
            with suppress(DependencyUnavailableError):
                for message in await jobs.unpublished():
                    logger.warning("publishing a job again", extra={"job_id": str(message.job_id)})
                    await publish_job(broker_, jobs, message)
                for event in await jobs.unannounced():
                    logger.warning("publishing an event again", extra={"series_id": event.series_id})
                    await announce(broker_, jobs, event)

    async def start() -> None:
        await database_.open()
        tasks.extend(asyncio.create_task(task()) for task in (migrate, connect, republish))

    async def stop() -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await broker_.close()
        await models.close()
        await database_.close()

    return Services(
        jobs=jobs,
        publisher=broker_,
        store=store,
        models=models,
        checks={
            database.NAME: database_.check,
            broker.NAME: broker_.check,
            object_store.NAME: store.check,
            registry.NAME: models.check,
        },
        start=start,
        stop=stop,
        started=lambda: {database.NAME, broker.NAME} <= reached,
    )
