"""Events of the training: a series has a new model in production."""

from __future__ import annotations

import asyncio
import logging
from typing import Any
from uuid import uuid4

import aio_pika
from aio_pika.exceptions import AMQPError
from pydantic import ValidationError

from anomaly_detection.broker import NAME
from anomaly_detection.contracts import COMPLETED_ROUTING_PATTERN, EVENTS_EXCHANGE, TrainingCompleted
from anomaly_detection.errors import DependencyUnavailableError
from anomaly_detection.settings import BrokerSettings
from anomaly_detector.cache import ModelCache
from anomaly_detector.drift_events import DriftEvents

_RECONNECT_SECONDS = 2.0
_HEARTBEAT_SECONDS = 20

logger = logging.getLogger(__name__)


class CompletionEvents:
    """Refreshes a cache with every `training.completed.*`, through a queue that only this replica has.

    The queue goes with its connection. Events of the time in between are lost, so after each reconnection the whole
    cache asks the registry again. While the broker is away the cache's TTL bounds how old a served model can be.

    Args:
        settings: where the broker is.
        cache: what is refreshed.
        drift: events of our own, which go out over the same connection.
    """

    def __init__(self, settings: BrokerSettings, cache: ModelCache, drift: DriftEvents) -> None:
        self._settings = settings
        self._cache = cache
        self._drift = drift
        self._connected = False

    async def check(self) -> None:
        """Return if events arrive.

        Raises:
            DependencyUnavailableError: there is no connection to the broker.
        """
        if not self._connected:
            raise DependencyUnavailableError(NAME)

    async def run(self) -> None:
        """Receive events until cancelled, connecting again and again."""
        while True:
            try:
                await self._receive()
            # Any reason is a reason to try again: aio-pika and the sockets below it raise a wide choice of them.
            except (TimeoutError, AMQPError, OSError, RuntimeError) as error:
                logger.warning("no events from the broker, trying again", extra={"reason": repr(error)})
            await asyncio.sleep(_RECONNECT_SECONDS)

    async def _receive(self) -> None:
        """Receive events until the connection ends."""
        connection = await aio_pika.connect(
            host=self._settings.host,
            port=self._settings.port,
            virtualhost=self._settings.vhost,
            login=self._settings.user,
            password=self._settings.password.get_secret_value(),
            heartbeat=_HEARTBEAT_SECONDS,
            client_properties={"connection_name": "anomaly-detector"},
            timeout=10,
        )
        # `connection.closed()` waits for our own closing only, not for a connection that is lost.
        lost = asyncio.Event()
        connection.close_callbacks.add(lambda *_: lost.set())
        async with connection:
            channel = await connection.channel(publisher_confirms=False)
            channel.close_callbacks.add(lambda *_: lost.set())
            queue = await channel.declare_queue(f"serving-{uuid4()}", exclusive=True, auto_delete=True, timeout=10)
            await queue.bind(EVENTS_EXCHANGE, COMPLETED_ROUTING_PATTERN, timeout=10)
            self._cache.expire_all()
            self._connected = True
            logger.info("events of the broker arrive")
            publishing = asyncio.create_task(self._drift.publish(connection), name="drift events")
            try:
                await queue.consume(self._on_event, no_ack=True)
                await lost.wait()
            finally:
                self._connected = False
                publishing.cancel()
                await asyncio.gather(publishing, return_exceptions=True)
        raise ConnectionError("the connection to the broker is lost")

    async def _on_event(self, message: aio_pika.abc.AbstractIncomingMessage) -> None:
        self.apply(message.body)

    def apply(self, body: bytes) -> None:
        """Act on the body of one event; one that cannot be read is logged and left out."""
        try:
            event = TrainingCompleted.model_validate_json(body)
        except ValidationError as error:
            summary: list[Any] = error.errors(include_url=False, include_input=False)
            logger.warning("an event cannot be read", extra={"reason": summary})
            return
        self._cache.refresh(event.series_id)
