"""The worker: what becomes of a message in every case, and the process that trains."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from unit.jobs_in_memory import JobsInMemory, LockedSeries

from anomaly_detection.contracts import (
    DELIVERY_LIMIT,
    DetectorParameters,
    Job,
    JobError,
    JobStatus,
    Priority,
    TrainingCompleted,
    TrainingJob,
)
from anomaly_detection.errors import DependencyUnavailableError
from anomaly_detection.object_store import ObjectNotFoundError
from training_worker.__main__ import main
from training_worker.health import health_app
from training_worker.metrics import Metrics
from training_worker.process import ProcessDiedError, TrainingProcess
from training_worker.requeue import requeue
from training_worker.results import Fitted, Registered, RegistryUnavailableError, UntrainableError
from training_worker.worker import Worker


def job_message(**fields: Any) -> TrainingJob:
    return TrainingJob(
        **{
            "job_id": uuid4(),
            "series_id": "s1",
            "sequence": 3,
            "data_key": "series/s1/x.npz",
            "data_sha256": "x",
            "points": 100,
            "parameters": DetectorParameters(),
            "request_id": "request-1",
            "created_at": datetime.now(UTC),
        }
        | fields
    )


class FakeDelivery:
    """A message that remembers how it was answered."""

    def __init__(self, message: TrainingJob | bytes, deliveries: int = 0) -> None:
        self.body = message if isinstance(message, bytes) else message.model_dump_json().encode()
        self.headers: dict[str, Any] = {"x-delivery-count": deliveries} if deliveries else {}
        self.redelivered: bool | None = deliveries > 0
        self.answer = ""

    async def ack(self) -> None:
        self.answer = "ack"

    async def nack(self, *, requeue: bool = True) -> None:
        self.answer = "requeue" if requeue else "dead-letter"


class Backend(JobsInMemory):
    """Everything the worker calls; `failures` are raised by the call they are named for, one after the other.

    It knows one job, that of `message`, unless it is told that there is none.
    """

    def __init__(self, status: JobStatus | None = JobStatus.QUEUED, attempts: int = 0) -> None:
        super().__init__()
        self.message = job_message()
        if status is not None:
            self.add(self.message, status, attempts)
        self.registered_before: Registered | None = None
        self.calls: list[str] = []
        self.events: list[tuple[str, TrainingCompleted]] = []
        self.failures: dict[str, list[Exception]] = {}
        self.hold = asyncio.Event()
        self.hold.set()
        self.start_seconds = 0.0

    @property
    def job(self) -> Job:
        """The job as it is now."""
        (job,) = self.jobs
        return job

    def called(self, method: str) -> None:
        self.calls.append(method)
        if self.failures.get(method):
            raise self.failures[method].pop(0)

    @asynccontextmanager
    async def locked(self, series_id: str) -> AsyncIterator[LockedSeries]:
        async with super().locked(series_id) as locked:
            yield locked
        self.calls.append("unlocked")

    async def read(self, key: str) -> bytes:
        self.called("read")
        return b"points"

    async def publish(
        self, routing_key: str, body: bytes, *, message_id: str, headers: dict[str, str] | None = None
    ) -> None:
        self.called("publish")
        self.events.append((routing_key, TrainingCompleted.model_validate_json(body)))

    async def start(self) -> None:
        await asyncio.sleep(self.start_seconds)

    async def call(self, method: str, *arguments: Any, request_id: str = "") -> Any:
        assert request_id == "request-1"
        self.called(method)
        await self.hold.wait()
        if method == "fit":
            return Fitted(load_s=0.01, fit_s=0.02)
        return {"register": Registered(7, "run-1", 0.03), "registered_before": self.registered_before}.get(method, 0)

    def kill(self) -> None:
        self.calls.append("kill")


class Points:
    """The store of the backend: its `get` is not that of jobs."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def get(self, key: str) -> bytes:
        return await self._backend.read(key)


def worker_on(backend: Backend, patience: float = 5.0, fit_timeout: float = 5.0) -> Worker:
    return Worker(
        jobs=backend,
        store=Points(backend),
        publisher=backend,
        training=backend,
        metrics=Metrics(),
        versions_kept=10,
        fit_timeout_seconds=fit_timeout,
        outage_patience_seconds=patience,
        retry_seconds=0.001,
    )


async def handled(backend: Backend, delivery: FakeDelivery, patience: float = 5.0) -> str:
    await worker_on(backend, patience).handle(delivery)
    return delivery.answer


async def test_a_job_is_trained_promoted_announced_and_only_then_acknowledged() -> None:
    backend = Backend()
    message = backend.message
    delivery = FakeDelivery(message)
    assert await handled(backend, delivery) == "ack"
    assert backend.calls == [
        "claim",
        "read",
        "fit",
        "register",
        "succeed",
        "promote",
        "publish",
        "locked",
        "prune",
        "unlocked",
    ]
    (routing_key, event), *_ = backend.events
    assert routing_key == "training.completed.s1"
    assert (event.job_id, event.model_version, event.sequence, event.request_id) == (message.job_id, 7, 3, "request-1")


async def test_an_unreadable_message_is_dead_lettered() -> None:
    backend = Backend()
    assert await handled(backend, FakeDelivery(b'{"job_id":1}')) == "dead-letter"
    assert not backend.calls


@pytest.mark.parametrize(
    "status", [None, JobStatus.CANCELLED, JobStatus.SUPERSEDED, JobStatus.FAILED, JobStatus.RUNNING]
)
async def test_a_job_that_is_not_to_be_done_is_skipped(status: JobStatus | None) -> None:
    backend = Backend(status)
    assert await handled(backend, FakeDelivery(backend.message)) == "ack"
    assert backend.calls == ["claim"]


async def test_the_event_of_a_finished_job_goes_out_again() -> None:
    backend = Backend(JobStatus.SUCCEEDED)
    assert await handled(backend, FakeDelivery(backend.message, deliveries=1)) == "ack"
    assert backend.calls == ["claim", "publish"]


async def test_a_running_job_whose_worker_is_gone_is_taken_over() -> None:
    backend = Backend(JobStatus.RUNNING, attempts=1)
    assert await handled(backend, FakeDelivery(backend.message, deliveries=1)) == "ack"
    assert backend.calls[2:5] == ["registered_before", "fit", "register"]
    assert backend.job.status is JobStatus.SUCCEEDED


async def test_what_the_attempt_before_registered_is_used() -> None:
    backend = Backend(JobStatus.RUNNING, attempts=1)
    backend.registered_before = Registered(7, "run-1", 0.01)
    assert await handled(backend, FakeDelivery(backend.message, deliveries=1)) == "ack"
    assert "fit" not in backend.calls
    assert backend.job.status is JobStatus.SUCCEEDED


async def test_a_fit_that_takes_too_long_fails_its_job() -> None:
    backend = Backend()
    backend.hold.clear()
    delivery = FakeDelivery(backend.message)
    await worker_on(backend, fit_timeout=0.01).handle(delivery)
    assert (delivery.answer, backend.job.status) == ("ack", JobStatus.FAILED)
    assert backend.job.error == JobError(
        code="TRAINING_FAILED",
        message="the fit took longer than the 0.01 s allowed: take fewer trees, points per tree or points",
    )


async def test_the_start_of_the_training_process_is_not_the_time_of_a_fit() -> None:
    """The one before may have been ended for a fit that took too long."""
    backend = Backend()
    backend.start_seconds = 0.2
    await worker_on(backend, fit_timeout=0.1).handle(FakeDelivery(backend.message))
    assert backend.job.status is JobStatus.SUCCEEDED


async def test_what_is_registered_again_is_not_fitted_again() -> None:
    backend = Backend()
    backend.failures["register"] = [RegistryUnavailableError("refused")]
    assert await handled(backend, FakeDelivery(backend.message)) == "ack"
    assert backend.calls.count("fit") == 1
    assert backend.calls.count("register") == 2


async def test_an_older_result_is_not_announced() -> None:
    backend = Backend()

    async def meanwhile(key: str) -> bytes:
        backend.numbers["s1"] = backend.message.sequence + 1
        return b"points"

    backend.read = meanwhile  # type: ignore[method-assign]
    assert await handled(backend, FakeDelivery(backend.message)) == "ack"
    assert (backend.job.status, backend.events) == (JobStatus.SUPERSEDED, [])
    assert "promote" not in backend.calls


async def test_a_job_older_than_what_is_in_production_is_not_trained() -> None:
    backend = Backend()
    backend.numbers["s1"] = backend.message.sequence + 1
    assert await handled(backend, FakeDelivery(backend.message)) == "ack"
    assert (backend.job.status, backend.calls) == (JobStatus.SUPERSEDED, ["claim"])


async def test_a_job_taken_over_by_somebody_else_is_left_to_them() -> None:
    backend = Backend()

    async def stolen(key: str) -> bytes:
        backend.change(backend.message.job_id, attempts=2)
        return b""

    backend.read = stolen  # type: ignore[method-assign]
    assert await handled(backend, FakeDelivery(backend.message)) == "ack"
    assert (backend.job.status, backend.events) == (JobStatus.RUNNING, [])


@pytest.mark.parametrize(
    ("call", "error"),
    [("read", ObjectNotFoundError("series/s1/x.npz")), ("fit", UntrainableError("damaged points"))],
)
async def test_what_cannot_succeed_fails_at_once(call: str, error: Exception) -> None:
    backend = Backend()
    backend.failures[call] = [error]
    assert await handled(backend, FakeDelivery(backend.message)) == "ack"
    assert backend.job.status is JobStatus.FAILED
    assert backend.job.error is not None
    assert backend.job.error.code == "TRAINING_FAILED"


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("claim", DependencyUnavailableError("database")),
        ("read", DependencyUnavailableError("object-store")),
        ("register", RegistryUnavailableError("refused")),
        ("promote", RegistryUnavailableError("refused")),
        ("succeed", DependencyUnavailableError("database")),
        ("publish", DependencyUnavailableError("broker")),
    ],
)
async def test_a_dependency_away_is_waited_for(call: str, error: Exception) -> None:
    backend = Backend()
    backend.failures[call] = [error, error]
    assert await handled(backend, FakeDelivery(backend.message)) == "ack"
    assert backend.job.status is JobStatus.SUCCEEDED
    assert len(backend.events) == 1


async def test_patience_ends() -> None:
    backend = Backend()
    backend.failures["read"] = [DependencyUnavailableError("object-store")] * 100
    assert await handled(backend, FakeDelivery(backend.message), patience=0.01) == "requeue"
    assert backend.job.status is JobStatus.QUEUED


@pytest.mark.parametrize(
    ("call", "error"),
    [("prune", RegistryUnavailableError("refused")), ("locked", DependencyUnavailableError("database"))],
)
async def test_old_versions_that_cannot_be_deleted_are_no_failure(call: str, error: Exception) -> None:
    backend = Backend()
    backend.failures[call] = [error]
    assert await handled(backend, FakeDelivery(backend.message)) == "ack"
    assert backend.job.status is JobStatus.SUCCEEDED


async def test_a_crash_returns_the_job_and_the_last_one_buries_it() -> None:
    backend = Backend()
    message = backend.message
    backend.failures["fit"] = [ProcessDiedError("killed"), ProcessDiedError("killed")]
    assert await handled(backend, FakeDelivery(message, deliveries=DELIVERY_LIMIT - 2)) == "requeue"
    assert backend.calls[-1] == "give_back"
    assert await handled(backend, FakeDelivery(message, deliveries=DELIVERY_LIMIT - 1)) == "dead-letter"
    assert backend.job.status is JobStatus.FAILED
    assert backend.job.error == JobError(
        code="TRAINING_FAILED", message="given up after 5 deliveries: ProcessDiedError: killed"
    )


async def test_a_job_that_killed_all_its_workers_is_buried_without_another_try() -> None:
    backend = Backend(JobStatus.RUNNING)
    assert await handled(backend, FakeDelivery(backend.message, deliveries=DELIVERY_LIMIT)) == "dead-letter"
    assert backend.job.status is JobStatus.FAILED
    assert backend.calls == ["fail"]


class Queue:
    """Deliveries that a worker takes one by one; an error is raised in its turn."""

    def __init__(self, *deliveries: FakeDelivery | Exception) -> None:
        self.deliveries = list(deliveries)
        self.taken = 0

    async def take(self) -> FakeDelivery:
        if not self.deliveries:
            await asyncio.Event().wait()
        self.taken += 1
        delivery = self.deliveries.pop(0)
        if isinstance(delivery, Exception):
            raise delivery
        return delivery


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds, which it has to within five seconds."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for are plain attributes
            await asyncio.sleep(0.002)


async def test_nothing_is_taken_while_a_job_is_in_hand() -> None:
    backend = Backend()
    backend.hold.clear()
    worker, queue = worker_on(backend), Queue(FakeDelivery(backend.message), FakeDelivery(backend.message))
    running = asyncio.create_task(worker.run(queue.take))
    await eventually(lambda: "fit" in backend.calls)
    assert queue.taken == 1
    backend.hold.set()
    await eventually(lambda: queue.taken == 2)
    await worker.stop(5)
    await running


async def test_a_broker_away_is_asked_again() -> None:
    backend = Backend()
    delivery = FakeDelivery(backend.message)
    worker = worker_on(backend)
    running = asyncio.create_task(worker.run(Queue(DependencyUnavailableError("broker"), delivery).take))
    await eventually(lambda: delivery.answer == "ack")
    await worker.stop(5)
    await running


async def test_stopping_finishes_the_job_in_hand_and_takes_no_other() -> None:
    backend = Backend()
    backend.hold.clear()
    worker, first, second = worker_on(backend), FakeDelivery(backend.message), FakeDelivery(backend.message)
    running = asyncio.create_task(worker.run(Queue(first, second).take))
    await eventually(lambda: "fit" in backend.calls)
    asyncio.get_running_loop().call_later(0.02, backend.hold.set)
    await worker.stop(5)
    await running
    assert (first.answer, second.answer) == ("ack", "")
    assert backend.job.status is JobStatus.SUCCEEDED


async def test_stopping_returns_a_job_that_takes_too_long() -> None:
    backend = Backend()
    backend.hold.clear()
    worker = worker_on(backend)
    delivery = FakeDelivery(backend.message)
    running = asyncio.create_task(worker.run(Queue(delivery).take))
    await eventually(lambda: "fit" in backend.calls)
    await worker.stop(0.01)
    await running
    assert (delivery.answer, backend.job.status) == ("requeue", JobStatus.QUEUED)
    assert "kill" in backend.calls


class Served:
    """What the training process serves in these tests."""

    def __init__(self, base: int) -> None:
        self.base = base

    def add(self, number: int) -> int:
        return self.base + number

    def pid(self) -> int:
        return os.getpid()

    def fail(self) -> None:
        raise UntrainableError("no")

    def die(self) -> None:
        os._exit(3)

    def sleep(self) -> None:
        time.sleep(60)


@pytest.fixture
async def process(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TrainingProcess]:
    # The process imports this module by its name, which pytest alone would know.
    monkeypatch.setattr(sys, "path", [os.path.dirname(__file__), *sys.path])
    process = TrainingProcess("test_training_worker:Served", {"base": 40}, "WARNING")
    yield process
    process.kill()


async def test_the_training_process_answers_raises_dies_and_comes_back(process: TrainingProcess) -> None:
    assert await process.call("add", 2) == 42
    first = await process.call("pid")
    assert first == process.pid != os.getpid()
    with pytest.raises(UntrainableError, match="no"):
        await process.call("fail")
    assert await process.call("pid") == first
    with pytest.raises(ProcessDiedError, match="code 3"):
        await process.call("die")
    assert await process.call("pid") != first
    sleeping = asyncio.create_task(process.call("sleep"))
    await asyncio.sleep(0.1)
    process.kill()
    with pytest.raises(ProcessDiedError):
        await sleeping


async def test_health_routes() -> None:
    ready = False

    async def away() -> None:
        raise DependencyUnavailableError("broker")

    metrics = Metrics()
    metrics.jobs.labels("succeeded").inc()
    app = health_app(lambda: ready, {"broker": away}, metrics.registry)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://worker") as client:
        assert (await client.get("/health/live")).status_code == 200
        assert (await client.get("/health/ready")).status_code == 503
        ready = True
        answer = await client.get("/health/ready")
        assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
        assert answer.json()["dependencies"]["broker"]["status"] == "down"
        assert answer.json()["dependencies"]["broker"]["latency_ms"] >= 0
        assert (await client.get("/health")).status_code == 503
        assert 'training_jobs_total{outcome="succeeded"} 1.0' in (await client.get("/metrics")).text
        missing = await client.get("/other")
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "NOT_FOUND")


class DeadLetters(JobsInMemory):
    """A dead-letter queue, the jobs of its messages and the broker they go back to."""

    def __init__(self, *letters: TrainingJob | bytes) -> None:
        super().__init__()
        self.letters = [FakeDelivery(letter) for letter in letters]
        self.calls: list[str] = []
        self.said: list[str] = []
        for letter in letters:
            if isinstance(letter, TrainingJob):
                # What the database has may be newer than the message.
                self.add(letter.model_copy(update={"priority": Priority.HIGH}), JobStatus.FAILED)

    def called(self, method: str) -> None:
        self.calls.append(method)

    async def waiting(self) -> AsyncIterator[FakeDelivery]:
        for letter in self.letters:
            yield letter

    async def publish(
        self, routing_key: str, body: bytes, *, message_id: str, headers: dict[str, str] | None = None
    ) -> None:
        self.need("broker")
        self.calls.append(f"publish {routing_key}")

    async def requeue(self, job_id: UUID | None = None, limit: int | None = None) -> int:
        return await requeue(self.waiting(), self, self, job_id=job_id, limit=limit, say=self.said.append)

    def answers(self) -> list[str]:
        return [letter.answer for letter in self.letters]


async def test_a_dead_letter_is_acknowledged_after_its_job_waits_again() -> None:
    message = job_message()
    dead = DeadLetters(message)
    assert await dead.requeue() == 1
    assert dead.calls == ["reopen", "publish training.job.priority", "mark_published"]
    assert dead.answers() == ["ack"]
    assert dead.jobs[0].status is JobStatus.QUEUED
    assert dead.said == [f"requeued: job {message.job_id} of series s1"]


async def test_a_dead_letter_stays_while_the_broker_is_away() -> None:
    dead = DeadLetters(job_message())
    dead.away.add("broker")
    with pytest.raises(DependencyUnavailableError):
        await dead.requeue()
    assert dead.answers() == [""]


async def test_only_so_many_dead_letters_are_requeued() -> None:
    dead = DeadLetters(*(job_message() for _ in range(4)))
    assert await dead.requeue(limit=2) == 2
    assert dead.answers() == ["ack", "ack", "", ""]


async def test_only_the_dead_letter_of_one_job_is_requeued() -> None:
    messages = [job_message() for _ in range(3)]
    dead = DeadLetters(b"not a job", *messages)
    assert await dead.requeue(job_id=messages[1].job_id) == 1
    assert dead.answers() == ["", "", "ack", ""]
    assert await dead.requeue(job_id=uuid4()) == 0


async def test_a_dead_letter_nobody_can_use_is_removed_and_one_nobody_understands_stays() -> None:
    done, unknown = job_message(), job_message()
    dead = DeadLetters(b"not a job", unknown, done)
    dead.change(done.job_id, status=JobStatus.SUCCEEDED)
    del dead.jobs[0]
    assert await dead.requeue() == 0
    assert dead.answers() == ["", "", "ack"]
    assert [text.split(":")[0] for text in dead.said] == ["left", "left", "removed"]


@pytest.mark.parametrize("arguments", [["requeue", "--limit", "0"], ["requeue", "--job", "7"], ["rerun"]])
def test_a_wrong_command_line_is_refused(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["training_worker", *arguments])
    with pytest.raises(SystemExit, match="2"):
        main()
