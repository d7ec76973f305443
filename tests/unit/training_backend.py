"""The dependencies of the training API in memory, at their interfaces."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from copy import deepcopy
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import httpx

from anomaly_detection.contracts import (
    Job,
    JobDurations,
    JobStatus,
    ModelSummary,
    ModelVersion,
    ProductionChange,
    TrainingCompleted,
    TrainingJob,
)
from anomaly_detection.errors import AppError, DependencyUnavailableError, ErrorCode
from anomaly_detection.jobs import NewJob, Rejection
from training_api.app import create_app
from training_api.services import Services
from training_api.settings import TrainingApiSettings


class Backend:
    """Jobs, broker, store and registry in memory; what is named in `away` does not answer."""

    def __init__(self) -> None:
        self.away: set[str] = set()
        self.jobs: list[Job] = []
        self.fingerprints: dict[UUID, str] = {}
        self.accepted = 0
        self.published: list[tuple[str, TrainingJob, dict[str, str]]] = []
        self.confirmed: list[UUID] = []
        self.objects: dict[str, bytes] = {}
        self.keys: dict[str, tuple[str, UUID]] = {}
        self.registered: dict[str, list[ModelVersion]] = {}
        self.runs: dict[str, tuple[dict[str, str], dict[str, float]]] = {}
        self.production: dict[str, TrainingCompleted] = {}
        self.pending: list[TrainingCompleted] = []
        self.events: list[TrainingCompleted] = []
        self.deleted: list[int | None] = []
        self.deletions_left = 1000
        self.sequence = 100
        self.is_started = True

    def need(self, name: str) -> None:
        if name in self.away:
            raise DependencyUnavailableError(name)

    def services(self) -> Services:
        def check(name: str) -> Any:
            async def call() -> None:
                self.need(name)

            return call

        async def nothing() -> None:
            return None

        return Services(
            jobs=self,
            publisher=self,
            store=self,
            models=Models(self),
            checks={name: check(name) for name in ("database", "broker", "object-store", "registry")},
            start=nothing,
            stop=nothing,
            started=lambda: self.is_started,
        )

    def client(self) -> httpx.AsyncClient:
        """A client of the application on this backend."""
        settings = TrainingApiSettings(max_body_bytes=100_000, min_points=100, max_points=1000)
        transport = httpx.ASGITransport(app=create_app(self.services(), settings))
        return httpx.AsyncClient(transport=transport, base_url="http://api")

    async def accept(self, series_id: str, limit: int, window_seconds: int) -> Rejection | None:
        self.need("database")
        self.accepted += 1
        return Rejection(12.3) if self.accepted > limit else None

    async def find_same(self, new: NewJob) -> Job | None:
        self.need("database")
        found = (job for job in self.jobs if self.fingerprints[job.job_id] == new.fingerprint)
        return next((job for job in found if job.status is not JobStatus.FAILED), None)

    async def replay(self, new: NewJob) -> Job | None:
        self.need("database")
        if new.idempotency_key not in self.keys:
            return None
        fingerprint, job_id = self.keys[new.idempotency_key]
        if job_id not in self.confirmed:
            return None
        if fingerprint != new.fingerprint:
            raise AppError(ErrorCode.INVALID_INPUT, "another request", [{"field": "Idempotency-Key"}])
        return await self.get(job_id)

    async def create(self, new: NewJob) -> tuple[Job, TrainingJob | None]:
        self.need("database")
        job = Job(
            job_id=uuid4(),
            series_id=new.series_id,
            status=JobStatus.QUEUED,
            created_at=datetime.now(UTC),
            points=new.points,
            parameters=new.parameters,
            priority=new.priority,
            attempts=0,
            durations=JobDurations(),
            links={"self": "/jobs/1"},
        )
        self.jobs.append(job)
        self.fingerprints[job.job_id] = new.fingerprint
        if new.idempotency_key:
            self.keys[new.idempotency_key] = new.fingerprint, job.job_id
        message = TrainingJob(
            job_id=job.job_id,
            series_id=new.series_id,
            sequence=len(self.jobs),
            data_key=new.data_key,
            data_sha256=new.data_sha256,
            points=new.points,
            parameters=new.parameters,
            priority=new.priority,
            request_id=new.request_id,
            created_at=job.created_at,
        )
        return job, message

    async def mark_published(self, message: TrainingJob) -> None:
        self.confirmed.append(message.job_id)

    async def unpublished(self) -> list[TrainingJob]:
        return []

    async def get(self, job_id: UUID) -> Job | None:
        self.need("database")
        return next((job for job in self.jobs if job.job_id == job_id), None)

    async def page(
        self, series_id: str | None, status: JobStatus | None, before: int | None, limit: int
    ) -> tuple[list[Job], int | None]:
        found = [
            (number, job)
            for number, job in reversed(list(enumerate(self.jobs, 1)))
            if series_id in (None, job.series_id)
            and status in (None, job.status)
            and (before is None or number < before)
        ]
        return [job for _, job in found[:limit]], found[limit - 1][0] if len(found) > limit else None

    async def cancel(self, job_id: UUID) -> tuple[Job | None, bool]:
        for index, job in enumerate(self.jobs):
            if job.job_id == job_id:
                if job.status is not JobStatus.QUEUED:
                    return job, False
                self.jobs[index] = job.model_copy(update={"status": JobStatus.CANCELLED})
                return self.jobs[index], True
        return None, False

    async def fail(self, job_id: UUID, attempt: int | None, code: str, text: str) -> bool:
        index = next(i for i, job in enumerate(self.jobs) if job.job_id == job_id)
        self.jobs[index] = self.jobs[index].model_copy(update={"status": JobStatus.FAILED})
        return True

    async def publish(
        self, routing_key: str, body: bytes, *, message_id: str, headers: dict[str, str] | None = None
    ) -> None:
        self.need("broker")
        if routing_key.startswith("training.completed."):
            self.events.append(TrainingCompleted.model_validate_json(body))
            return
        self.published.append((routing_key, TrainingJob.model_validate_json(body), headers or {}))

    async def put(self, key: str, blob: bytes) -> None:
        self.need("object-store")
        self.objects[key] = blob

    @asynccontextmanager
    async def locked(self, series_id: str) -> AsyncIterator[LockedSeries]:
        self.need("database")
        before = deepcopy((self.production, self.pending, self.deleted))
        try:
            yield LockedSeries(self, series_id)
        except BaseException:
            self.production, self.pending, self.deleted = before
            raise

    async def mark_announced(self, event: TrainingCompleted) -> None:
        self.pending.remove(event)

    async def unannounced(self) -> list[TrainingCompleted]:
        return self.pending

    async def models(self, after: str | None, limit: int) -> tuple[list[ModelSummary], str | None]:
        self.need("database")
        found = [
            ModelSummary(
                series_id=name, model_name=f"model_od_{name}", model_version=1, updated_at=datetime.now(UTC), links={}
            )
            for name in sorted(self.registered)
            if name > (after or "")
        ]
        return found[:limit], found[limit - 1].series_id if len(found) > limit else None

    def register(self, series_id: str, *aliases: list[str], **tags: str) -> None:
        """Give a series versions with these aliases, the first one being version 1."""
        self.registered[series_id] = [
            ModelVersion(
                version=number,
                aliases=held,
                created_at=datetime.now(UTC),
                run_id=f"run-{number}",
                job_id=str(uuid4()),
                sequence=number,
                tags={"blob_key": f"{number}/model.ads"} | tags,
            )
            for number, held in enumerate(aliases, 1)
        ]

    def aliases(self, series_id: str) -> dict[str, int]:
        """Which version each alias of a series points at."""
        return {alias: item.version for item in self.registered[series_id] for alias in item.aliases}


class LockedSeries:
    """A series of the backend while it is locked."""

    def __init__(self, backend: Backend, series_id: str) -> None:
        self.backend, self.series_id = backend, series_id

    async def unfinished_jobs(self) -> list[UUID]:
        return [job.job_id for job in self.backend.jobs if not job.status.is_final and job.series_id == self.series_id]

    async def set_production(
        self, change: ProductionChange, version: int | None, job_id: UUID | None, request_id: str
    ) -> TrainingCompleted:
        self.backend.sequence += 1
        event = TrainingCompleted(
            job_id=job_id,
            series_id=self.series_id,
            model_version=version,
            sequence=self.backend.sequence,
            change=change,
            request_id=request_id,
            finished_at=datetime.now(UTC),
        )
        self.backend.production[self.series_id] = event
        self.backend.pending.append(event)
        return event

    async def note_deleted(self, version: int | None) -> None:
        self.backend.deleted.append(version)


class Models:
    """The registry of the backend."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    async def versions(self, series_id: str) -> list[ModelVersion]:
        self.backend.need("registry")
        return self.backend.registered.get(series_id, [])[::-1]

    async def run(self, run_id: str) -> tuple[dict[str, str], dict[str, float]]:
        self.backend.need("registry")
        return self.backend.runs.get(run_id, ({}, {}))

    async def set_production(self, series_id: str, version: int, previous: int | None) -> None:
        self.backend.need("aliases")
        pointed = {"production": version} | ({"previous": previous} if previous else {})
        for item in self.backend.registered[series_id]:
            kept = [alias for alias in item.aliases if alias not in pointed]
            item.aliases[:] = kept + [alias for alias, number in pointed.items() if number == item.version]

    async def delete_version(self, series_id: str, version: int) -> None:
        if not self.backend.deletions_left:
            raise DependencyUnavailableError("registry")
        self.backend.deletions_left -= 1
        versions = self.backend.registered[series_id]
        versions[:] = [item for item in versions if item.version != version]
