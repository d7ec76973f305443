"""The worker as a running service: connections, consumption, health, and an orderly end."""

from __future__ import annotations

import asyncio
import logging
import signal
from contextlib import suppress

from anomaly_detection import broker, database, object_store
from anomaly_detection.contracts import JOBS_QUEUE, PRIORITY_QUEUE
from anomaly_detection.errors import DependencyUnavailableError
from anomaly_detection.jobs import JobStore
from anomaly_detection.logging import configure_logging
from anomaly_detection.settings import BrokerSettings, DatabaseSettings, ObjectStoreSettings
from training_worker.health import HealthServer, health_app
from training_worker.metrics import Metrics
from training_worker.process import TrainingProcess
from training_worker.settings import WorkerMlflowSettings, WorkerSettings
from training_worker.worker import Worker

_RETRY_SECONDS = 2.0

logger = logging.getLogger(__name__)


async def serve() -> None:
    """Run the worker until SIGTERM or SIGINT."""
    settings = WorkerSettings()
    configure_logging("training-worker", settings.log_level)
    mlflow = WorkerMlflowSettings()
    database_ = database.Database(DatabaseSettings(), max_connections=3)
    broker_ = broker.Broker(BrokerSettings(), "training-worker")
    store = object_store.ObjectStore(ObjectStoreSettings())
    metrics = Metrics()
    training = TrainingProcess(
        "training_worker.trainer:Trainer",
        {
            "tracking_uri": mlflow.tracking_uri,
            "experiment_name": mlflow.experiment_name,
            "sklearn_flavor": settings.sklearn_flavor,
        },
        settings.log_level,
    )
    worker = Worker(
        jobs=JobStore(database_),
        store=store,
        publisher=broker_,
        training=training,
        metrics=metrics,
        versions_kept=settings.model_versions_kept,
        fit_timeout_seconds=settings.fit_timeout_seconds,
        outage_patience_seconds=settings.outage_patience_seconds,
    )
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)

    consuming = False

    async def work() -> None:
        """Connect everything, then take jobs."""
        nonlocal consuming
        await database_.open()
        while True:
            try:
                await database_.migrate()
                break
            except DependencyUnavailableError:
                logger.warning("the database does not answer, trying again")
                await asyncio.sleep(_RETRY_SECONDS)
        await asyncio.gather(broker_.connect(), training.start())
        consuming = True
        logger.info("taking jobs")
        await worker.run(lambda: broker_.take(PRIORITY_QUEUE, JOBS_QUEUE))

    checks = {database.NAME: database_.check, broker.NAME: broker_.check, object_store.NAME: store.check}
    health = HealthServer(health_app(lambda: consuming, checks, metrics.registry))
    working = asyncio.create_task(work())
    serving = asyncio.create_task(health.serve())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({working, serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    logger.info("stopping")
    await worker.stop(settings.shutdown_grace_seconds)
    working.cancel()
    training.kill()
    await broker_.close()
    await database_.close()
    health.should_exit = True
    await serving
    stopping.cancel()
    with suppress(asyncio.CancelledError):
        await working  # raises what kept the worker from starting
    logger.info("stopped")
