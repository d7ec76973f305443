"""The life of a training job: taken from the broker, trained in another process, registered, announced, acknowledged.

What ends how:

- the job cannot succeed (its points are damaged, no model fits them, the fit takes too long): job `failed`, message
  acknowledged;
- a dependency is away: the job waits for it, message in hand, for `outage_patience_seconds`, then goes back to the
  queue;
- anything else (the training process died, an error nobody expected): back to the queue; after the last delivery the
  job is `failed` and the message goes to the dead-letter queue;
- the worker is told to stop: the job is finished if that takes no longer than the grace period, else it goes back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

from aio_pika.exceptions import AMQPError, ChannelInvalidStateError
from pydantic import ValidationError

from anomaly_detection.broker import DELIVERY_COUNT
from anomaly_detection.contracts import (
    DELIVERY_LIMIT,
    Job,
    JobDurations,
    JobStatus,
    TrainingCompleted,
    TrainingJob,
)
from anomaly_detection.errors import DependencyUnavailableError, ErrorCode
from anomaly_detection.jobs import Claim, Publisher, publish_completed
from anomaly_detection.logging import set_request_id
from anomaly_detection.object_store import ObjectNotFoundError
from training_worker.metrics import Metrics
from training_worker.results import Fitted, Registered, RegistryUnavailableError, UntrainableError

logger = logging.getLogger(__name__)

_LONGEST_RETRY_SECONDS = 15.0

T = TypeVar("T")


class Delivery(Protocol):
    """What the worker needs of a message of the broker."""

    body: bytes
    headers: dict[str, Any]
    redelivered: bool | None

    async def ack(self) -> None: ...
    async def nack(self, *, requeue: bool = True) -> None: ...


class Jobs(Protocol):
    """What the worker needs of `anomaly_detection.jobs.JobStore`."""

    async def claim(self, message: TrainingJob, redelivered: bool) -> Claim: ...
    async def succeed(
        self,
        message: TrainingJob,
        attempt: int,
        model_version: int,
        run_id: str,
        durations: JobDurations,
        promote: Callable[[], Awaitable[None]],
    ) -> Job | None: ...
    async def fail(self, job_id: Any, attempt: int | None, code: str, text: str) -> bool: ...
    async def give_back(self, job_id: Any, attempt: int) -> None: ...
    def locked(self, series_id: str) -> AbstractAsyncContextManager[Any]: ...


class Store(Protocol):
    """What the worker needs of `anomaly_detection.object_store.ObjectStore`."""

    async def get(self, key: str) -> bytes: ...


class Training(Protocol):
    """What the worker needs of `training_worker.process.TrainingProcess`."""

    async def start(self) -> None: ...
    async def call(self, method: str, *arguments: Any, request_id: str = "") -> Any: ...
    def kill(self) -> None: ...


class JobFailedError(Exception):
    """The job cannot succeed, however often it is tried."""


class DeliveryLimitError(Exception):
    """The broker has delivered the job as often as it may, and nobody could finish it."""


class OwnershipLostError(Exception):
    """Another worker has the job by now."""


class Worker:
    """Trains one job at a time.

    Args:
        jobs: the jobs' states.
        store: the jobs' points.
        publisher: for the events.
        training: the training process.
        metrics: of this worker.
        versions_kept: versions of a model that stay in the registry.
        fit_timeout_seconds: how long a fit may take.
        outage_patience_seconds: how long a job waits for a dependency.
        retry_seconds: the first pause before something is tried again; it doubles from there.
    """

    def __init__(
        self,
        *,
        jobs: Jobs,
        store: Store,
        publisher: Publisher,
        training: Training,
        metrics: Metrics,
        versions_kept: int,
        fit_timeout_seconds: float,
        outage_patience_seconds: float,
        retry_seconds: float = 1.0,
    ) -> None:
        self._jobs = jobs
        self._store = store
        self._publisher = publisher
        self._training = training
        self._metrics = metrics
        self._versions_kept = versions_kept
        self._fit_seconds = fit_timeout_seconds
        self._patience = outage_patience_seconds
        self._retry_seconds = retry_seconds
        self._running: asyncio.Task[None] | None = None
        self._busy = False
        self._stopping = False

    async def run(self, take: Callable[[], Awaitable[Delivery]]) -> None:
        """Take one message after the other and work on it, until `stop`.

        Args:
            take: waits for the next message; nothing else is delivered to this worker meanwhile.
        """
        self._running = asyncio.ensure_future(self._one_after_the_other(take))
        with suppress(asyncio.CancelledError):
            await asyncio.shield(self._running)

    async def _one_after_the_other(self, take: Callable[[], Awaitable[Delivery]]) -> None:
        """See `run`."""
        while not self._stopping:
            try:
                delivery = await take()
            except DependencyUnavailableError as error:
                logger.warning("the broker does not answer, trying again", extra={"reason": repr(error.__cause__)})
                await asyncio.sleep(self._retry_seconds)
                continue
            self._busy = True
            try:
                await self.handle(delivery)
            finally:
                self._busy = False

    async def stop(self, grace_seconds: float) -> None:
        """Take nothing more, and finish the job in hand within the grace period, or return it to the queue."""
        self._stopping = True
        if self._running is None:
            return
        if self._busy:
            logger.info("finishing the job in hand", extra={"grace_seconds": grace_seconds})
            await asyncio.wait({self._running}, timeout=grace_seconds)
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)

    async def handle(self, delivery: Delivery) -> None:
        """Work on one message to its end: acknowledged, returned or dead-lettered; never raises but when cancelled."""
        try:
            message = TrainingJob.model_validate_json(delivery.body)
        except ValidationError:
            # Nobody's job: it cannot be failed, only kept for a look.
            logger.exception("a message that is no training job goes to the dead-letter queue")
            self._metrics.jobs.labels("unreadable").inc()
            await _settle(delivery.nack(requeue=False))
            return
        set_request_id(message.request_id)
        attempt: int | None = None
        start = time.perf_counter()
        outcome = "returned"
        try:
            if _deliveries(delivery) >= DELIVERY_LIMIT:
                # Once more and, should this worker die of it as well, nobody could say so in the job.
                raise DeliveryLimitError(f"came back {DELIVERY_LIMIT} times, its worker having died with it in hand")
            claim = await self._patiently(lambda: self._jobs.claim(message, bool(delivery.redelivered)))
            attempt = claim.attempt
            if claim.attempt is not None:
                outcome = await self._train(message, claim)
            else:
                outcome = await self._settled_before(message, claim)
            await _settle(delivery.ack())
        except JobFailedError as error:
            outcome = "failed"
            logger.warning("job failed", extra=_about(message, reason=str(error)))
            await self._fail(message, attempt, str(error))
            await _settle(delivery.ack())
        except OwnershipLostError:
            outcome = "lost"
            logger.warning("another worker has the job by now", extra=_about(message))
            await _settle(delivery.ack())
        except asyncio.CancelledError:
            logger.info("job returned to the queue", extra=_about(message))
            self._training.kill()
            await self._return(delivery, message, attempt)
            raise
        except Exception as error:
            outcome = await self._retry_or_bury(delivery, message, attempt, error)
        finally:
            self._metrics.jobs.labels(outcome).inc()
            self._metrics.seconds.labels("all").observe(time.perf_counter() - start)
            set_request_id("")

    async def _train(self, message: TrainingJob, claim: Claim) -> str:
        """Train a job that was taken; returns the outcome for the metrics."""
        attempt = claim.attempt
        assert attempt is not None
        started = datetime.now(UTC)
        logger.info("job started", extra=_about(message, attempt=attempt, points=message.points))
        clock = time.perf_counter()
        try:
            blob = await self._patiently(lambda: self._store.get(message.data_key))
        except ObjectNotFoundError as error:
            raise JobFailedError(f"the points are not in the object store: {error}") from error
        fetched = time.perf_counter() - clock
        fitted: Fitted | None = None
        registered: Registered | None = None
        if attempt > 1:
            # An earlier attempt may have registered the model.
            registered = await self._patiently(lambda: self._call("registered_before", message, message))
        if registered is None:
            fitted = await self._fit(message, blob)
            registered = await self._patiently(lambda: self._call("register", message, message))
        assert registered is not None
        version, run_id, register_s = registered.version, registered.run_id, registered.register_s
        clock = time.perf_counter()
        load_s = fetched + (fitted.load_s if fitted else 0.0)

        async def promote() -> None:
            await self._call("promote", message, message.series_id, version)

        durations = JobDurations(
            queued_s=round((started - message.created_at).total_seconds(), 4),
            load_s=round(load_s, 4),
            fit_s=round(fitted.fit_s, 4) if fitted else None,
            register_s=round(register_s, 4),
        )
        job = await self._patiently(lambda: self._jobs.succeed(message, attempt, version, run_id, durations, promote))
        if job is None:
            raise OwnershipLostError
        self._metrics.seconds.labels("load").observe(load_s)
        if fitted:
            self._metrics.seconds.labels("fit").observe(fitted.fit_s)
        self._metrics.seconds.labels("register").observe(register_s + time.perf_counter() - clock)
        if job.status is not JobStatus.SUCCEEDED:
            logger.info(
                "a newer model is in production already", extra=_about(message, model_version=job.model_version)
            )
            return "superseded"
        await self._announce(message, job)
        logger.info(
            "job succeeded",
            extra=_about(
                message, model_version=job.model_version, durations=job.durations.model_dump(exclude_none=True)
            ),
        )
        await self._prune(message)
        return "succeeded"

    async def _fit(self, message: TrainingJob, blob: bytes) -> Fitted:
        """Fit the model of a job, which the training process then has in hand.

        Raises:
            JobFailedError: it cannot be fitted, or takes longer than it may; the process is ended then.
        """
        # After a fit that took too long it has to come up again, which is not this one's time.
        await self._training.start()
        try:
            async with asyncio.timeout(self._fit_seconds):
                fitted: Fitted = await self._call("fit", message, message, blob)
                return fitted
        except TimeoutError as error:
            raise JobFailedError(
                f"the fit took longer than the {self._fit_seconds:g} s allowed: take fewer trees, points per tree or "
                "points"
            ) from error

    async def _settled_before(self, message: TrainingJob, claim: Claim) -> str:
        """Deal with a message whose job is not there to be taken; returns the outcome for the metrics."""
        logger.info("nothing to train", extra=_about(message, status=claim.status))
        if claim.status is JobStatus.SUCCEEDED and claim.job is not None:
            # The worker that trained it may have died before the event went out.
            await self._announce(message, claim.job)
        return "skipped"

    async def _announce(self, message: TrainingJob, job: Job) -> None:
        """Publish the event that the series has a new model."""
        event = TrainingCompleted(
            job_id=message.job_id,
            series_id=message.series_id,
            model_version=job.model_version,
            sequence=message.sequence,
            request_id=message.request_id,
            finished_at=job.finished_at or datetime.now(UTC),
        )
        await self._patiently(lambda: publish_completed(self._publisher, event))

    async def _prune(self, message: TrainingJob) -> None:
        """Delete versions beyond those kept; what fails now is deleted after the next job of the series."""
        try:
            # A version that somebody puts into production in this moment must not be among those deleted.
            async with self._jobs.locked(message.series_id):
                deleted = await self._call("prune", message, message.series_id, self._versions_kept)
        except (DependencyUnavailableError, JobFailedError):
            logger.warning("old versions stay for now", extra=_about(message))
        else:
            if deleted:
                logger.info("old versions deleted", extra=_about(message, deleted=deleted))

    async def _call(self, method: str, message: TrainingJob, *arguments: Any) -> Any:
        """Call the training process, with its errors as this module knows them."""
        try:
            return await self._training.call(method, *arguments, request_id=message.request_id)
        except RegistryUnavailableError as error:
            logger.warning("the registry does not answer", extra=_about(message, reason=str(error)))
            raise DependencyUnavailableError("registry") from error
        except UntrainableError as error:
            raise JobFailedError(str(error)) from error

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """Call until the dependency it needs answers, or patience ends.

        Raises:
            DependencyUnavailableError: the dependency stayed away.
        """
        deadline = time.monotonic() + self._patience
        pause = self._retry_seconds
        while True:
            try:
                return await call()
            except DependencyUnavailableError as error:
                if time.monotonic() + pause > deadline:
                    raise
                logger.warning("waiting for a dependency", extra={"dependency": error.dependency, "seconds": pause})
                self._metrics.waits.labels(error.dependency).inc()
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_RETRY_SECONDS)

    async def _retry_or_bury(
        self, delivery: Delivery, message: TrainingJob, attempt: int | None, error: Exception
    ) -> str:
        """Return a message to the queue or, after its last delivery, to the dead-letter queue; returns the outcome."""
        deliveries = _deliveries(delivery) + 1
        if deliveries < DELIVERY_LIMIT:
            logger.exception("job returned to the queue", extra=_about(message, deliveries=deliveries))
            await asyncio.sleep(min(2.0 ** (deliveries - 1), _LONGEST_RETRY_SECONDS) * self._retry_seconds)
            await self._return(delivery, message, attempt)
            return "returned"
        logger.exception("job given up: its message goes to the dead-letter queue", extra=_about(message))
        await self._fail(message, attempt, f"given up after {deliveries} deliveries: {type(error).__name__}: {error}")
        await _settle(delivery.nack(requeue=False))
        return "dead_lettered"

    async def _fail(self, message: TrainingJob, attempt: int | None, reason: str) -> None:
        """Say in the job that it failed."""
        with suppress(DependencyUnavailableError):
            await self._jobs.fail(message.job_id, attempt, ErrorCode.TRAINING_FAILED, reason)

    async def _return(self, delivery: Delivery, message: TrainingJob, attempt: int | None) -> None:
        """Give job and message back."""
        if attempt is not None:
            # Without it the redelivered message would do as well; with it the job's state tells the truth meanwhile.
            with suppress(DependencyUnavailableError):
                await self._jobs.give_back(message.job_id, attempt)
        await _settle(delivery.nack(requeue=True))


def _deliveries(delivery: Delivery) -> int:
    """How often a message was delivered before."""
    return int(delivery.headers.get(DELIVERY_COUNT) or 0)


async def _settle(answer: Awaitable[None]) -> None:
    """Answer a message; when its channel is gone the broker has given it to somebody else already."""
    with suppress(AMQPError, ChannelInvalidStateError, OSError):
        await answer


def _about(message: TrainingJob, **fields: Any) -> dict[str, Any]:
    """Fields of a log line about a job."""
    return {"job_id": str(message.job_id), "series_id": message.series_id, **fields}
