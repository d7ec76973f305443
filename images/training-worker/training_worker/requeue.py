"""The way back from the dead-letter queue, for an operator who has mended what made the jobs fail.

Per message: the job waits again, its message is published and confirmed, and only then leaves the dead-letter queue.
Interrupted anywhere in between, nothing is lost: the message is still there, and a job that comes twice is done once.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Protocol
from uuid import UUID

from pydantic import ValidationError

from anomaly_detection import broker, database
from anomaly_detection.contracts import DEAD_LETTER_QUEUE, Job, TrainingJob
from anomaly_detection.errors import DependencyUnavailableError
from anomaly_detection.jobs import JobStore, Publisher, publish_job
from anomaly_detection.logging import configure_logging
from anomaly_detection.settings import BrokerSettings, DatabaseSettings

_CONNECT_SECONDS = 15.0


class Jobs(Protocol):
    """What requeueing needs of `anomaly_detection.jobs.JobStore`."""

    async def reopen(self, message: TrainingJob) -> tuple[TrainingJob | None, Job | None]: ...
    async def mark_published(self, message: TrainingJob) -> None: ...


class DeadLetter(Protocol):
    """What requeueing needs of a message."""

    @property
    def body(self) -> bytes: ...
    async def ack(self) -> Any: ...


async def requeue(
    messages: AsyncIterator[DeadLetter],
    publisher: Publisher,
    jobs: Jobs,
    *,
    job_id: UUID | None,
    limit: int | None,
    say: Callable[[str], None],
) -> int:
    """Requeue dead letters.

    A message whose job ended well, was cancelled or superseded meanwhile has no use and is removed. One that cannot be
    read, or whose job nobody knows, stays where it is.

    Args:
        messages: the dead letters; what is not acknowledged stays one.
        publisher: for the jobs' queues.
        jobs: the jobs' states.
        job_id: only the messages of this job, None for all.
        limit: most messages to requeue, None for no limit.
        say: told what becomes of each message.

    Returns:
        How many messages were requeued.

    Raises:
        DependencyUnavailableError: broker or database went away; what was said to be requeued is.
    """
    requeued = 0
    async for message in messages:
        try:
            asked = TrainingJob.model_validate_json(message.body)
        except ValidationError:
            if job_id is None:
                say("left: a message that is no training job")
            continue
        if job_id not in (None, asked.job_id):
            continue
        about = f"job {asked.job_id} of series {asked.series_id}"
        again, job = await jobs.reopen(asked)
        if job is None:
            say(f"left: {about}, which the database does not know")
            continue
        if again is None:
            await message.ack()
            say(f"removed: {about}, which is {job.status} already")
            continue
        await publish_job(publisher, jobs, again)
        await message.ack()
        say(f"requeued: {about}")
        requeued += 1
        if requeued == limit:
            break
    return requeued


async def run(job_id: UUID | None, limit: int | None) -> int:
    """Requeue with the real services, from the environment; the exit status of the command.

    0: done, even if there was nothing to do. 1: the job that was asked for was not requeued, or a service is away.
    """
    configure_logging("training-worker-requeue", "WARNING")
    database_ = database.Database(DatabaseSettings(), max_connections=2)
    broker_ = broker.Broker(BrokerSettings(), "training-worker-requeue")
    try:
        await database_.open()
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await broker_.connect()
        except TimeoutError as error:
            raise DependencyUnavailableError(broker.NAME) from error
        # A worker that is newer than the API may be the first to need the schema.
        await database_.migrate()
        waiting: AsyncGenerator[DeadLetter, None] = broker_.waiting(DEAD_LETTER_QUEUE)
        async with aclosing(waiting) as messages:
            requeued = await requeue(messages, broker_, JobStore(database_), job_id=job_id, limit=limit, say=print)
    except DependencyUnavailableError as error:
        print(f"{error.dependency} is not available; what was requeued stays so, run it again later", file=sys.stderr)
        return 1
    finally:
        await broker_.close()
        await database_.close()
    print(f"{requeued} requeued")
    return 1 if job_id is not None and not requeued else 0
