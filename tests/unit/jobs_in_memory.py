"""The jobs' table in memory: the one double of `anomaly_detection.jobs.JobStore`, for the tests of API and worker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from copy import deepcopy
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from anomaly_detection.contracts import (
    Job,
    JobDurations,
    JobError,
    JobStatus,
    ModelSummary,
    ProductionChange,
    TrainingCompleted,
    TrainingJob,
)
from anomaly_detection.errors import AppError, DependencyUnavailableError, ErrorCode
from anomaly_detection.jobs import Claim, NewJob, Rejection


class JobsInMemory:
    """Jobs, models in production and the rate limit, as the real store has them; `away` says that it does not answer.

    Attributes:
        jobs: in the order of their creation.
        messages: of the jobs, by id.
        accepted: requests that the rate limit has counted.
        confirmed: jobs whose message the broker has.
        production: by series, what people decided last about its model.
        numbers: by series with a model, the sequence of what is in production.
        pending: events that wait to be published.
        deleted: versions noted as deleted; None for all of a series.
    """

    def __init__(self) -> None:
        self.away: set[str] = set()
        self.jobs: list[Job] = []
        self.messages: dict[UUID, TrainingJob] = {}
        self.fingerprints: dict[UUID, str] = {}
        self.keys: dict[str, tuple[str, UUID]] = {}
        self.accepted = 0
        self.confirmed: list[UUID] = []
        self.production: dict[str, TrainingCompleted] = {}
        self.numbers: dict[str, int] = {}
        self.pending: list[TrainingCompleted] = []
        self.deleted: list[int | None] = []
        self.sequence = 100

    def need(self, name: str) -> None:
        """Raise if a dependency is away."""
        if name in self.away:
            raise DependencyUnavailableError(name)

    def called(self, method: str) -> None:
        """Every method comes here first."""
        self.need("database")

    def add(self, message: TrainingJob, status: JobStatus = JobStatus.QUEUED, attempts: int = 0) -> Job:
        """Know the job of a message."""
        job = Job(
            job_id=message.job_id,
            series_id=message.series_id,
            status=status,
            created_at=message.created_at,
            points=message.points,
            parameters=message.parameters,
            priority=message.priority,
            attempts=attempts,
            durations=JobDurations(),
            links={"self": f"/jobs/{message.job_id}"},
        )
        self.jobs.append(job)
        self.messages[job.job_id] = message
        return job

    def find(self, job_id: UUID) -> Job | None:
        """A job, or None."""
        return next((job for job in self.jobs if job.job_id == job_id), None)

    def change(self, job_id: UUID, **fields: Any) -> Job:
        """Change a job that is there; the job as it is now."""
        index = next(index for index, job in enumerate(self.jobs) if job.job_id == job_id)
        self.jobs[index] = self.jobs[index].model_copy(update=fields)
        return self.jobs[index]

    async def accept(self, series_id: str, limit: int, window_seconds: int) -> Rejection | None:
        self.called("accept")
        self.accepted += 1
        return Rejection(12.3) if self.accepted > limit else None

    async def find_same(self, new: NewJob) -> Job | None:
        self.called("find_same")
        found = (JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.SUCCEEDED)
        latest = [job for job in self.jobs if job.series_id == new.series_id and job.status in found][-1:]
        return next((job for job in latest if self.fingerprints.get(job.job_id) == new.fingerprint), None)

    async def replay(self, new: NewJob) -> Job | None:
        self.called("replay")
        if new.idempotency_key not in self.keys:
            return None
        fingerprint, job_id = self.keys[new.idempotency_key]
        if job_id not in self.confirmed:
            return None
        if fingerprint != new.fingerprint:
            raise AppError(ErrorCode.INVALID_INPUT, "another request", [{"field": "Idempotency-Key"}])
        return self.find(job_id)

    async def create(self, new: NewJob) -> tuple[Job, TrainingJob | None]:
        self.called("create")
        self.sequence += 1
        message = TrainingJob(
            job_id=uuid4(),
            series_id=new.series_id,
            sequence=self.sequence,
            data_key=new.data_key,
            data_sha256=new.data_sha256,
            points=new.points,
            parameters=new.parameters,
            priority=new.priority,
            request_id=new.request_id,
            created_at=datetime.now(UTC),
        )
        self.fingerprints[message.job_id] = new.fingerprint
        if new.idempotency_key:
            self.keys[new.idempotency_key] = new.fingerprint, message.job_id
        return self.add(message), message

    async def mark_published(self, message: TrainingJob) -> None:
        self.called("mark_published")
        self.confirmed.append(message.job_id)

    async def unpublished(self) -> list[TrainingJob]:
        self.called("unpublished")
        queued = [job.job_id for job in self.jobs if job.status is JobStatus.QUEUED]
        return [self.messages[job_id] for job_id in queued if job_id not in self.confirmed]

    async def get(self, job_id: UUID) -> Job | None:
        self.called("get")
        return self.find(job_id)

    async def page(
        self, series_id: str | None, status: JobStatus | None, before: int | None, limit: int
    ) -> tuple[list[Job], int | None]:
        self.called("page")
        found = [
            (number, job)
            for number, job in reversed(list(enumerate(self.jobs, 1)))
            if series_id in (None, job.series_id)
            and status in (None, job.status)
            and (before is None or number < before)
        ]
        return [job for _, job in found[:limit]], found[limit - 1][0] if len(found) > limit else None

    async def cancel(self, job_id: UUID) -> tuple[Job | None, bool]:
        self.called("cancel")
        job = self.find(job_id)
        if job is None or job.status is not JobStatus.QUEUED:
            return job, False
        return self.change(job_id, status=JobStatus.CANCELLED), True

    async def claim(self, message: TrainingJob, redelivered: bool) -> Claim:
        self.called("claim")
        job = self.find(message.job_id)
        if job is None:
            return Claim(None, None, None)
        if not (job.status is JobStatus.QUEUED or (job.status is JobStatus.RUNNING and redelivered)):
            return Claim(job.status, None, job)
        if self.numbers.get(message.series_id, 0) > message.sequence:
            return Claim(JobStatus.SUPERSEDED, None, self.change(job.job_id, status=JobStatus.SUPERSEDED))
        job = self.change(job.job_id, status=JobStatus.RUNNING, attempts=job.attempts + 1)
        return Claim(job.status, job.attempts, job)

    async def succeed(
        self,
        message: TrainingJob,
        attempt: int,
        model_version: int,
        run_id: str,
        durations: JobDurations,
        promote: Callable[[], Awaitable[None]],
    ) -> Job | None:
        self.called("succeed")
        job = self.find(message.job_id)
        if job is None or (job.status, job.attempts) != (JobStatus.RUNNING, attempt):
            return None
        newest = self.numbers.get(message.series_id, 0) <= message.sequence
        if newest:
            await promote()
            self.numbers[message.series_id] = message.sequence
        return self.change(
            message.job_id,
            status=JobStatus.SUCCEEDED if newest else JobStatus.SUPERSEDED,
            model_version=model_version,
            mlflow_run_id=run_id,
            durations=durations,
            finished_at=datetime.now(UTC),
        )

    async def fail(self, job_id: UUID, attempt: int | None, code: str, text: str) -> bool:
        self.called("fail")
        job = self.find(job_id)
        if job is None or job.status.is_final or attempt not in (None, job.attempts):
            return False
        self.change(job_id, status=JobStatus.FAILED, error=JobError(code=code, message=text))
        return True

    async def give_back(self, job_id: UUID, attempt: int) -> None:
        self.called("give_back")
        job = self.find(job_id)
        if job is not None and (job.status, job.attempts) == (JobStatus.RUNNING, attempt):
            self.change(job_id, status=JobStatus.QUEUED)

    async def reopen(self, message: TrainingJob) -> tuple[TrainingJob | None, Job | None]:
        self.called("reopen")
        job = self.find(message.job_id)
        if job is None or job.status not in (JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.FAILED):
            return None, job
        return self.messages[job.job_id], self.change(job.job_id, status=JobStatus.QUEUED, error=None)

    @asynccontextmanager
    async def locked(self, series_id: str) -> AsyncIterator[LockedSeries]:
        self.called("locked")
        before = deepcopy((self.production, self.numbers, self.pending, self.deleted))
        try:
            yield LockedSeries(self, series_id)
        except BaseException:
            self.production, self.numbers, self.pending, self.deleted = before
            raise

    async def mark_announced(self, event: TrainingCompleted) -> None:
        self.called("mark_announced")
        self.pending.remove(event)

    async def unannounced(self) -> list[TrainingCompleted]:
        self.called("unannounced")
        return self.pending

    async def models(self, after: str | None, limit: int) -> tuple[list[ModelSummary], str | None]:
        self.called("models")
        found = [
            ModelSummary(
                series_id=name, model_name=f"model_od_{name}", model_version=1, updated_at=datetime.now(UTC), links={}
            )
            for name in sorted(self.numbers)
            if name > (after or "")
        ]
        return found[:limit], found[limit - 1].series_id if len(found) > limit else None


class LockedSeries:
    """A series while it is locked."""

    def __init__(self, jobs: JobsInMemory, series_id: str) -> None:
        self.jobs, self.series_id = jobs, series_id

    async def unfinished_jobs(self) -> list[UUID]:
        return [job.job_id for job in self.jobs.jobs if not job.status.is_final and job.series_id == self.series_id]

    async def set_production(
        self, change: ProductionChange, version: int | None, job_id: UUID | None, request_id: str
    ) -> TrainingCompleted:
        self.jobs.sequence += 1
        event = TrainingCompleted(
            job_id=job_id,
            series_id=self.series_id,
            model_version=version,
            sequence=self.jobs.sequence,
            change=change,
            request_id=request_id,
            finished_at=datetime.now(UTC),
        )
        self.jobs.production[self.series_id] = event
        self.jobs.numbers[self.series_id] = event.sequence
        self.jobs.pending.append(event)
        return event

    async def note_deleted(self, version: int | None) -> None:
        self.jobs.deleted.append(version)
