"""Training jobs in PostgreSQL: the one place that knows their table, their states and the order of models.

The API creates jobs and a worker takes them. `sequence` orders the jobs of a series and what people decide about its
model: promotions, rollbacks and deletions take their numbers from the same source, and whatever has the higher one
stands. `attempts` is the fencing number of the worker that holds a job: whoever took it last owns it, and what an
earlier owner still does has no effect.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString, NamedTuple, Protocol
from uuid import UUID

import orjson
from psycopg import sql
from psycopg.types.json import Jsonb

from anomaly_detection.contracts import (
    DetectorParameters,
    Job,
    JobDurations,
    JobError,
    JobStatus,
    ModelSummary,
    Priority,
    ProductionChange,
    TrainingCompleted,
    TrainingJob,
    completed_routing_key,
    model_name,
)
from anomaly_detection.database import Connection, Database
from anomaly_detection.errors import AppError, ErrorCode

REPUBLISH_AFTER_SECONDS = 30
"""A queued job whose message is not confirmed after this time is published again: the API died in between."""

IDEMPOTENCY_KEY_SECONDS = 24 * 3600
"""How long an `Idempotency-Key` stands for its job."""

_ANNOUNCE_AFTER_SECONDS = 5


class Rejection(NamedTuple):
    """The rate limit is reached; a request is accepted again after this many seconds."""

    retry_after: float


@dataclass(frozen=True, slots=True)
class NewJob:
    """What a job is created from; see `TrainingJob` for the fields, and `JobStore.replay` for the key."""

    series_id: str
    data_key: str
    data_sha256: str
    points: int
    parameters: DetectorParameters
    priority: Priority
    request_id: str
    idempotency_key: str | None = None

    @property
    def fingerprint(self) -> str:
        """Digest of points and parameters: equal ones make the same model."""
        text = self.data_sha256.encode() + orjson.dumps(
            self.parameters.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS
        )
        return hashlib.sha256(text).hexdigest()


@dataclass(frozen=True, slots=True)
class Claim:
    """A worker's attempt to take a job.

    Attributes:
        status: state of the job after it; None when there is no such job.
        attempt: this attempt's fencing number, or None when the job was not taken.
        job: the job as it is now; None when there is none.
    """

    status: JobStatus | None
    attempt: int | None
    job: Job | None


def job_of_row(row: dict[str, Any]) -> Job:
    """A row of `training_jobs` as the API shows it."""
    job_id = row["job_id"]
    links = {"self": f"/jobs/{job_id}", "versions": f"/models/{row['series_id']}/versions"}
    error = JobError(code=row["error_code"], message=row["error_message"] or "") if row["error_code"] else None
    return Job(
        **{name: row[name] for name in Job.model_fields if name in row and name not in ("durations", "parameters")},
        parameters=DetectorParameters.model_validate(row["parameters"]),
        durations=JobDurations.model_validate(row["durations"]),
        error=error,
        links=links,
    )


def message_of_row(row: dict[str, Any]) -> TrainingJob:
    """The message that asks a worker for this job."""
    return TrainingJob.model_validate({name: row[name] for name in TrainingJob.model_fields})


class Publisher(Protocol):
    """What publishing needs of `anomaly_detection.broker.Broker`."""

    async def publish(
        self, routing_key: str, body: bytes, *, message_id: str, headers: dict[str, str] | None = None
    ) -> None: ...


class Published(Protocol):
    """What `publish_job` needs of `JobStore`."""

    async def mark_published(self, message: TrainingJob) -> None: ...


async def publish_job(publisher: Publisher, jobs: Published, message: TrainingJob) -> None:
    """Ask for a training: publish its message and, once the broker has it, say so in the job.

    Raises:
        DependencyUnavailableError: the broker did not take the message, or the database is away.
    """
    await publisher.publish(
        message.priority.routing_key,
        message.model_dump_json().encode(),
        message_id=str(message.job_id),
        headers={"x-request-id": message.request_id},
    )
    await jobs.mark_published(message)


async def publish_completed(publisher: Publisher, event: TrainingCompleted) -> None:
    """Tell everybody who serves a series that another version is in production.

    Raises:
        DependencyUnavailableError: the broker did not take the event.
    """
    await publisher.publish(
        completed_routing_key(event.series_id),
        event.model_dump_json().encode(),
        message_id=f"{event.series_id}-{event.sequence}",
        headers={"x-request-id": event.request_id},
    )


class LockedSeries:
    """A series whose model nobody else changes meanwhile; see `JobStore.locked`."""

    def __init__(self, connection: Connection, series_id: str) -> None:
        self._connection = connection
        self._series_id = series_id

    async def unfinished_jobs(self) -> list[UUID]:
        """The jobs of the series that wait or run."""
        cursor = await self._connection.execute(
            "SELECT job_id FROM training_jobs WHERE series_id = %s AND status IN ('queued', 'running')",
            (self._series_id,),
        )
        return [row["job_id"] for row in await cursor.fetchall()]

    async def set_production(
        self, change: ProductionChange, version: int | None, job_id: UUID | None, request_id: str
    ) -> TrainingCompleted:
        """Note which version a person put into production, None for no version any more.

        It gets a number of its own, higher than that of every job accepted before: none of these replaces it.

        Returns:
            The event to publish, which is kept until `JobStore.mark_announced`.
        """
        cursor = await self._connection.execute(
            "SELECT nextval(pg_get_serial_sequence('training_jobs', 'sequence')) AS sequence"
        )
        row = await cursor.fetchone()
        assert row is not None
        event = TrainingCompleted(
            job_id=job_id,
            series_id=self._series_id,
            model_version=version,
            sequence=row["sequence"],
            change=change,
            request_id=request_id,
            finished_at=datetime.now(UTC),
        )
        await self._connection.execute(
            "UPDATE series_models SET sequence = %s, model_version = %s, pending_event = %s, updated_at = now()"
            " WHERE series_id = %s",
            (event.sequence, version, Jsonb(event.model_dump(mode="json")), self._series_id),
        )
        return event

    async def note_deleted(self, version: int | None) -> None:
        """Note in the jobs of the series that the version they made, or each of them for None, is gone."""
        await self._connection.execute(
            """
            UPDATE training_jobs SET model_deleted_at = now()
            WHERE series_id = %(series)s AND model_deleted_at IS NULL AND model_version IS NOT NULL
              AND (%(version)s::integer IS NULL OR model_version = %(version)s::integer)
            """,
            {"series": self._series_id, "version": version},
        )


class JobStore:
    """Jobs, models in production and the rate limit.

    Every method raises DependencyUnavailableError when the database does not answer; what it was about to change is
    then unchanged.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def accept(self, series_id: str, limit: int, window_seconds: int) -> Rejection | None:
        """Count a fit request of a series against its limit, in a sliding window shared by all replicas.

        Returns:
            None when the request is within the limit, else how long to wait; a refused request is not counted.
        """
        async with self._database.transaction() as connection:
            cursor = await connection.execute(
                """
                INSERT INTO fit_requests AS counted (series_id, accepted_at)
                VALUES (%(series)s, ARRAY[clock_timestamp()])
                ON CONFLICT (series_id) DO UPDATE SET accepted_at = array_append(
                    ARRAY(SELECT at FROM unnest(counted.accepted_at) AS at
                          WHERE at > clock_timestamp() - %(window)s ORDER BY at),
                    clock_timestamp())
                WHERE (SELECT count(*) FROM unnest(counted.accepted_at) AS at
                       WHERE at > clock_timestamp() - %(window)s) < %(limit)s
                RETURNING 1
                """,
                {"series": series_id, "window": _seconds(window_seconds), "limit": limit},
            )
            if await cursor.fetchone():
                return None
            cursor = await connection.execute(
                """
                SELECT extract(epoch FROM
                    accepted_at[cardinality(accepted_at) - %(limit)s + 1] + %(window)s - clock_timestamp()) AS seconds
                FROM fit_requests WHERE series_id = %(series)s
                """,
                {"series": series_id, "window": _seconds(window_seconds), "limit": limit},
            )
            row = await cursor.fetchone()
            return Rejection(
                max(0.0, float(row["seconds"])) if row and row["seconds"] is not None else float(window_seconds)
            )

    async def find_same(self, new: NewJob) -> Job | None:
        """The series' latest job that did not fail, if it is about the same points and parameters and has its model."""
        async with self._database.transaction() as connection:
            return await _find_same(connection, new)

    async def replay(self, new: NewJob) -> Job | None:
        """The job that the request's idempotency key stands for, however it ended; None for a new key or none.

        Raises:
            AppError: INVALID_INPUT when the key came with other points or parameters before.
        """
        if new.idempotency_key is None:
            return None
        async with self._database.transaction() as connection:
            return await _find_keyed(connection, new)

    async def create(self, new: NewJob) -> tuple[Job, TrainingJob | None]:
        """Create a job in state `queued`, or find the one that does the same.

        Returns:
            The job, and the message to publish; no message when the job was there before.

        Raises:
            AppError: as `replay` does.
        """
        async with self._database.transaction() as connection:
            # Two equal requests at the same moment: the second one waits here and finds the job of the first.
            await _lock(connection, new.series_id)
            if new.idempotency_key is not None and (keyed := await _find_keyed(connection, new)):
                return keyed, None
            if same := await _find_same(connection, new):
                await _keep_key(connection, new, same.job_id)
                return same, None
            cursor = await connection.execute(
                """
                INSERT INTO training_jobs
                    (job_id, series_id, status, priority, data_key, data_sha256, points, parameters, fingerprint,
                     request_id)
                VALUES (%s, %s, 'queued', %s, %s, %s, %s, %s, %s, %s) RETURNING *
                """,
                (
                    uuid.uuid4(),
                    new.series_id,
                    new.priority,
                    new.data_key,
                    new.data_sha256,
                    new.points,
                    Jsonb(new.parameters.model_dump(mode="json")),
                    new.fingerprint,
                    new.request_id,
                ),
            )
            row = await cursor.fetchone()
            assert row is not None
            await _keep_key(connection, new, row["job_id"])
            return job_of_row(row), message_of_row(row)

    async def mark_published(self, message: TrainingJob) -> None:
        """Note that the broker has the message, and supersede the older jobs of the series that still wait."""
        async with self._database.transaction() as connection:
            await connection.execute(
                "UPDATE training_jobs SET published_at = now() WHERE job_id = %s", (message.job_id,)
            )
            await connection.execute(
                """
                UPDATE training_jobs SET status = 'superseded', finished_at = now()
                WHERE series_id = %s AND status = 'queued' AND sequence < %s
                """,
                (message.series_id, message.sequence),
            )

    async def unpublished(self) -> list[TrainingJob]:
        """Messages of queued jobs that should have been confirmed long ago."""
        async with self._database.transaction() as connection:
            cursor = await connection.execute(
                "SELECT * FROM training_jobs WHERE status = 'queued' AND published_at IS NULL"
                " AND created_at < now() - %s ORDER BY created_at LIMIT 100",
                (_seconds(REPUBLISH_AFTER_SECONDS),),
            )
            return [message_of_row(row) for row in await cursor.fetchall()]

    async def get(self, job_id: UUID) -> Job | None:
        """A job, or None."""
        async with self._database.transaction() as connection:
            cursor = await connection.execute("SELECT * FROM training_jobs WHERE job_id = %s", (job_id,))
            row = await cursor.fetchone()
            return job_of_row(row) if row else None

    async def page(
        self, series_id: str | None, status: JobStatus | None, before: int | None, limit: int
    ) -> tuple[list[Job], int | None]:
        """Jobs newest first.

        Args:
            series_id: only jobs of this series.
            status: only jobs in this state.
            before: only jobs with a lower sequence.
            limit: most jobs on the page.

        Returns:
            The jobs, and the sequence to continue before; None when there are no more.
        """
        conditions = [sql.SQL("true")]
        values: list[Any] = []
        filters: tuple[tuple[LiteralString, Any], ...] = (
            ("series_id = %s", series_id),
            ("status = %s", status),
            ("sequence < %s", before),
        )
        for condition, value in filters:
            if value is not None:
                conditions.append(sql.SQL(condition))
                values.append(value)
        query = sql.SQL("SELECT * FROM training_jobs WHERE {} ORDER BY sequence DESC LIMIT %s").format(
            sql.SQL(" AND ").join(conditions)
        )
        async with self._database.transaction() as connection:
            rows = await (await connection.execute(query, (*values, limit + 1))).fetchall()
        more = rows[limit - 1]["sequence"] if len(rows) > limit else None
        return [job_of_row(row) for row in rows[:limit]], more

    async def cancel(self, job_id: UUID) -> tuple[Job | None, bool]:
        """Cancel a queued job.

        Returns:
            The job as it is now, None when there is none, and whether it was cancelled by this call.
        """
        async with self._database.transaction() as connection:
            cursor = await connection.execute(
                "UPDATE training_jobs SET status = 'cancelled', finished_at = now()"
                " WHERE job_id = %s AND status = 'queued' RETURNING *",
                (job_id,),
            )
            if row := await cursor.fetchone():
                return job_of_row(row), True
            row = await (
                await connection.execute("SELECT * FROM training_jobs WHERE job_id = %s", (job_id,))
            ).fetchone()
            return (job_of_row(row) if row else None), False

    async def claim(self, message: TrainingJob, redelivered: bool) -> Claim:
        """Take a job for training.

        A queued job is free. A running one is taken over only when the broker delivers its message again, which it does
        after the worker that had it is gone. A job that is older than the model in production is superseded instead.
        """
        async with self._database.transaction() as connection:
            cursor = await connection.execute(
                """
                UPDATE training_jobs SET
                    status = CASE WHEN outdated THEN 'superseded' ELSE 'running' END,
                    started_at = CASE WHEN outdated THEN started_at ELSE now() END,
                    finished_at = CASE WHEN outdated THEN now() END,
                    attempts = attempts + CASE WHEN outdated THEN 0 ELSE 1 END
                FROM (SELECT EXISTS (
                          SELECT 1 FROM series_models WHERE series_id = %(series)s AND sequence > %(sequence)s
                      ) AS outdated) AS production
                WHERE job_id = %(job)s AND (status = 'queued' OR (status = 'running' AND %(redelivered)s))
                RETURNING training_jobs.*
                """,
                {
                    "job": message.job_id,
                    "series": message.series_id,
                    "sequence": message.sequence,
                    "redelivered": redelivered,
                },
            )
            if row := await cursor.fetchone():
                status = JobStatus(row["status"])
                return Claim(status, row["attempts"] if status is JobStatus.RUNNING else None, job_of_row(row))
            row = await (
                await connection.execute("SELECT * FROM training_jobs WHERE job_id = %s", (message.job_id,))
            ).fetchone()
            return Claim(JobStatus(row["status"]), None, job_of_row(row)) if row else Claim(None, None, None)

    async def succeed(
        self,
        message: TrainingJob,
        attempt: int,
        model_version: int,
        run_id: str,
        durations: JobDurations,
        promote: Callable[[], Awaitable[None]],
    ) -> Job | None:
        """Put a job's model into production and note its success, as one step.

        `promote` moves the registry's aliases. It runs while the series is locked here, and only when no newer job's
        model is in production; otherwise the job ends as `superseded`.

        Returns:
            The job as it ended; None when this attempt no longer owns it, and nothing was changed.
        """
        async with self._database.transaction() as connection:
            owned = await connection.execute(
                "SELECT 1 FROM training_jobs WHERE job_id = %s AND attempts = %s AND status = 'running' FOR UPDATE",
                (message.job_id, attempt),
            )
            if not await owned.fetchone():
                return None
            cursor = await connection.execute(
                """
                INSERT INTO series_models AS production (series_id, sequence, model_version) VALUES (%s, %s, %s)
                ON CONFLICT (series_id) DO UPDATE
                SET sequence = excluded.sequence, model_version = excluded.model_version, updated_at = now(),
                    pending_event = NULL
                WHERE production.sequence <= excluded.sequence RETURNING 1
                """,
                (message.series_id, message.sequence, model_version),
            )
            newest = await cursor.fetchone() is not None
            if newest:
                await promote()
            cursor = await connection.execute(
                """
                UPDATE training_jobs SET status = %s, model_version = %s, mlflow_run_id = %s,
                    finished_at = clock_timestamp(), error_code = NULL, error_message = NULL,
                    durations = %s || jsonb_build_object('total_s',
                        round(extract(epoch FROM clock_timestamp() - created_at), 4))
                WHERE job_id = %s RETURNING *
                """,
                (
                    JobStatus.SUCCEEDED if newest else JobStatus.SUPERSEDED,
                    model_version,
                    run_id,
                    Jsonb(durations.model_dump(exclude_none=True)),
                    message.job_id,
                ),
            )
            row = await cursor.fetchone()
            assert row is not None
            return job_of_row(row)

    async def fail(self, job_id: UUID, attempt: int | None, code: str, text: str) -> bool:
        """Note that a job failed for good.

        Args:
            job_id: of the job.
            attempt: the attempt that failed, or None for a job that nobody took.
            code: its error code.
            text: why, for people.

        Returns:
            Whether the job is failed now; False when somebody else owns or ended it.
        """
        async with self._database.transaction() as connection:
            cursor = await connection.execute(
                """
                UPDATE training_jobs
                SET status = 'failed', finished_at = now(), error_code = %(code)s, error_message = %(text)s
                WHERE job_id = %(job)s
                  AND ((%(attempt)s::integer IS NULL AND status IN ('queued', 'running'))
                       OR (status = 'running' AND attempts = %(attempt)s::integer))
                RETURNING 1
                """,
                {"job": job_id, "attempt": attempt, "code": code, "text": text[:2000]},
            )
            return await cursor.fetchone() is not None

    async def give_back(self, job_id: UUID, attempt: int) -> None:
        """Return a job that was taken to the queue's state, so that the next delivery finds it free."""
        async with self._database.transaction() as connection:
            await connection.execute(
                "UPDATE training_jobs SET status = 'queued', started_at = NULL"
                " WHERE job_id = %s AND status = 'running' AND attempts = %s",
                (job_id, attempt),
            )

    async def reopen(self, message: TrainingJob) -> tuple[TrainingJob | None, Job | None]:
        """Let a job wait again whose message was given up.

        A job that ended in another way than by failing stays as it is. `attempts` goes on counting: a worker that still
        believes to own the job does not.

        Returns:
            The message to publish, None when the job stays as it is; and the job as it is now, None when there is none.
        """
        async with self._database.transaction() as connection:
            await _lock(connection, message.series_id)
            cursor = await connection.execute(
                """
                UPDATE training_jobs SET status = 'queued', published_at = NULL, started_at = NULL, finished_at = NULL,
                    error_code = NULL, error_message = NULL
                WHERE job_id = %s AND status IN ('queued', 'running', 'failed') RETURNING *
                """,
                (message.job_id,),
            )
            if row := await cursor.fetchone():
                return message_of_row(row), job_of_row(row)
            row = await (
                await connection.execute("SELECT * FROM training_jobs WHERE job_id = %s", (message.job_id,))
            ).fetchone()
            return None, (job_of_row(row) if row else None)

    @asynccontextmanager
    async def locked(self, series_id: str) -> AsyncIterator[LockedSeries]:
        """Keep everybody else from changing the model of a series: workers, other requests, new jobs of the series.

        What is changed through the object inside takes effect at the end, or not at all when an exception is raised.
        """
        async with self._database.transaction() as connection:
            await _lock(connection, series_id)
            # Workers wait for the row, so there has to be one; number 0 stands back behind every job.
            await connection.execute(
                "INSERT INTO series_models (series_id, sequence, model_version) VALUES (%s, 0, NULL)"
                " ON CONFLICT (series_id) DO NOTHING",
                (series_id,),
            )
            await connection.execute("SELECT 1 FROM series_models WHERE series_id = %s FOR UPDATE", (series_id,))
            yield LockedSeries(connection, series_id)

    async def mark_announced(self, event: TrainingCompleted) -> None:
        """Note that the broker has the event of a decision."""
        async with self._database.transaction() as connection:
            await connection.execute(
                "UPDATE series_models SET pending_event = NULL WHERE series_id = %s AND sequence = %s",
                (event.series_id, event.sequence),
            )

    async def unannounced(self) -> list[TrainingCompleted]:
        """Events of decisions that the broker should have had by now."""
        async with self._database.transaction() as connection:
            cursor = await connection.execute(
                "SELECT pending_event FROM series_models WHERE pending_event IS NOT NULL"
                " AND updated_at < now() - %s ORDER BY updated_at LIMIT 100",
                (_seconds(_ANNOUNCE_AFTER_SECONDS),),
            )
            return [TrainingCompleted.model_validate(row["pending_event"]) for row in await cursor.fetchall()]

    async def models(self, after: str | None, limit: int) -> tuple[list[ModelSummary], str | None]:
        """Series with a model in production, in their order.

        Args:
            after: only series behind this one.
            limit: most models on the page.

        Returns:
            The models, and the series to continue behind; None when there are no more.
        """
        async with self._database.transaction() as connection:
            cursor = await connection.execute(
                "SELECT series_id, model_version, updated_at FROM series_models"
                " WHERE model_version IS NOT NULL AND series_id > %s ORDER BY series_id LIMIT %s",
                (after or "", limit + 1),
            )
            rows = await cursor.fetchall()
        models = [
            ModelSummary(
                **row,
                model_name=model_name(row["series_id"]),
                links={"versions": f"/models/{row['series_id']}/versions"},
            )
            for row in rows[:limit]
        ]
        return models, models[-1].series_id if len(rows) > limit else None


async def _lock(connection: Connection, series_id: str) -> None:
    """Wait until no other transaction holds the lock of a series, and hold it until the end of this one."""
    await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (series_id,))


async def _find_keyed(connection: Connection, new: NewJob) -> Job | None:
    """See `JobStore.replay`."""
    cursor = await connection.execute(
        """
        SELECT training_jobs.*, keys.fingerprint AS key_fingerprint
        FROM idempotency_keys AS keys JOIN training_jobs USING (job_id)
        WHERE keys.series_id = %s AND keys.key = %s AND keys.created_at > now() - %s
          -- The request was answered with 503, so sending it again has to mean something.
          AND NOT (training_jobs.status = 'failed' AND training_jobs.published_at IS NULL)
        """,
        (new.series_id, new.idempotency_key, _seconds(IDEMPOTENCY_KEY_SECONDS)),
    )
    row = await cursor.fetchone()
    if row is None:
        return None
    if row["key_fingerprint"] != new.fingerprint:
        raise AppError(
            ErrorCode.INVALID_INPUT,
            "this Idempotency-Key came with other points or parameters before; take a new one",
            [{"field": "Idempotency-Key", "reason": f"stands for job {row['job_id']}"}],
        )
    return job_of_row(row)


async def _keep_key(connection: Connection, new: NewJob, job_id: UUID) -> None:
    """Let the request's idempotency key, if it has one, stand for a job, and forget old keys of the series."""
    if new.idempotency_key is None:
        return
    await connection.execute(
        "DELETE FROM idempotency_keys WHERE series_id = %s AND created_at < now() - %s",
        (new.series_id, _seconds(IDEMPOTENCY_KEY_SECONDS)),
    )
    await connection.execute(
        """
        INSERT INTO idempotency_keys (series_id, key, fingerprint, job_id) VALUES (%s, %s, %s, %s)
        ON CONFLICT (series_id, key) DO UPDATE
        SET fingerprint = excluded.fingerprint, job_id = excluded.job_id, created_at = now()
        """,
        (new.series_id, new.idempotency_key, new.fingerprint, job_id),
    )


async def _find_same(connection: Connection, new: NewJob) -> Job | None:
    """See `JobStore.find_same`."""
    cursor = await connection.execute(
        """
        SELECT * FROM training_jobs WHERE series_id = %s AND status IN ('queued', 'running', 'succeeded')
        ORDER BY sequence DESC LIMIT 1
        """,
        (new.series_id,),
    )
    row = await cursor.fetchone()
    same = row is not None and row["fingerprint"] == new.fingerprint and row["model_deleted_at"] is None
    return job_of_row(row) if row and same else None


def _seconds(number: float) -> timedelta:
    """A PostgreSQL interval."""
    return timedelta(seconds=number)
