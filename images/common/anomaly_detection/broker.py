"""RabbitMQ on asyncio: one connection that comes back by itself, confirmed publishing, and messages taken one by one.

Exchanges, queues and bindings are declared by the broker's definitions, not here: the services' users may not
configure them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress

import aio_pika
from aio_pika.abc import (
    AbstractIncomingMessage,
    AbstractRobustChannel,
    AbstractRobustConnection,
    AbstractRobustExchange,
    AbstractRobustQueue,
)
from aio_pika.exceptions import DeliveryError

from anomaly_detection.contracts import EVENTS_EXCHANGE
from anomaly_detection.errors import DependencyUnavailableError
from anomaly_detection.settings import BrokerSettings

NAME = "broker"
"""Its name on the health routes and in errors."""

PUBLISH_SECONDS = 5.0
"""How long a publication may take, its confirmation included."""

DELIVERY_COUNT = "x-delivery-count"
"""Header that says how often a message was delivered before."""

_CHECK_SECONDS = 2.0
_RECONNECT_SECONDS = 2.0
_HEARTBEAT_SECONDS = 20

# A connection that breaks while it or a channel is being opened raises not only AMQPError and OSError, but RuntimeError
# and a bare Exception too: there is no narrower class for all that aio-pika may say of it.
_AWAY = Exception

logger = logging.getLogger(__name__)


class Broker:
    """A connection to one virtual host.

    Args:
        settings: where the broker is and who we are.
        service: shown as the connection's name in the broker's management.
    """

    def __init__(self, settings: BrokerSettings, service: str) -> None:
        self._settings = settings
        self._service = service
        self._connection: AbstractRobustConnection | None = None
        self._exchange: AbstractRobustExchange | None = None
        self._queues: dict[str, AbstractRobustQueue] = {}
        self._kept: list[AbstractIncomingMessage] = []

    async def connect(self) -> None:
        """Connect, trying until the broker answers; later interruptions are repaired in the background."""
        while True:
            try:
                connection = await aio_pika.connect_robust(
                    host=self._settings.host,
                    port=self._settings.port,
                    virtualhost=self._settings.vhost,
                    login=self._settings.user,
                    password=self._settings.password.get_secret_value(),
                    heartbeat=_HEARTBEAT_SECONDS,
                    reconnect_interval=_RECONNECT_SECONDS,
                    client_properties={"connection_name": self._service},
                    timeout=10,
                )
            except _AWAY as error:
                logger.warning("the broker does not answer, trying again", extra={"reason": repr(error)})
                await asyncio.sleep(_RECONNECT_SECONDS)
                continue
            try:
                channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
                self._exchange = await channel.declare_exchange(EVENTS_EXCHANGE, passive=True, timeout=10)
            except _AWAY as error:
                # The broker answers before its definitions are imported.
                logger.warning("the broker is not ready, trying again", extra={"reason": repr(error)})
                with suppress(_AWAY):
                    await connection.close()
                await asyncio.sleep(_RECONNECT_SECONDS)
                continue
            self._connection = connection
            logger.info("connected to the broker")
            return

    async def publish(
        self, routing_key: str, body: bytes, *, message_id: str, headers: Mapping[str, str] | None = None
    ) -> None:
        """Publish a persistent message to the events exchange and wait until the broker has it in a queue.

        Raises:
            DependencyUnavailableError: the broker is away, does not confirm within `PUBLISH_SECONDS`, or has no queue
            for it.
        """
        if self._exchange is None:
            raise DependencyUnavailableError(NAME)
        message = aio_pika.Message(
            body,
            content_type="application/json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            message_id=message_id,
            headers=dict(headers or {}),
        )
        try:
            async with asyncio.timeout(PUBLISH_SECONDS):
                await self._exchange.publish(message, routing_key, mandatory=True)
        except DeliveryError as error:
            logger.error("the broker refused a message", extra={"routing_key": routing_key, "reason": repr(error)})
            raise DependencyUnavailableError(NAME) from error
        except _AWAY as error:
            raise DependencyUnavailableError(NAME) from error

    async def take(self, *queue_names: str) -> AbstractIncomingMessage:
        """The next message of these queues, of the first that has one; waits until there is one.

        Nothing else is delivered until this is called again: what waits, waits in the queue, where others can take it.

        Raises:
            DependencyUnavailableError: the broker went away.
            RuntimeError: called before `connect`.
        """
        if self._connection is None:
            raise RuntimeError("connect first")
        if self._kept:
            return self._kept.pop(0)
        try:
            queues = [await self._queue(self._connection, name) for name in queue_names]
            for queue in queues:
                if (message := await queue.get(fail=False, timeout=PUBLISH_SECONDS)) is not None:
                    return message
            return await self._first_of(queues)
        except _AWAY as error:
            raise DependencyUnavailableError(NAME) from error

    async def _first_of(self, queues: list[AbstractRobustQueue]) -> AbstractIncomingMessage:
        """The first message that comes into one of these queues; consumers exist only as long as none has come."""
        first: asyncio.Future[AbstractIncomingMessage] = asyncio.get_running_loop().create_future()

        async def deliver(message: AbstractIncomingMessage) -> None:
            if not first.done():
                first.set_result(message)
            elif message.headers.get(DELIVERY_COUNT):
                # Returned once more and once more, an innocent message would reach its delivery limit.
                self._kept.append(message)
            else:
                # The other queue had one too before its consumer was cancelled.
                with suppress(_AWAY):
                    await message.nack(requeue=True)

        consumers: list[tuple[AbstractRobustQueue, str]] = []
        try:
            for queue in queues:
                consumers.append((queue, await queue.consume(deliver)))
                if first.done():
                    break
            return await first
        finally:
            first.cancel()
            for queue, tag in consumers:
                with suppress(_AWAY):
                    await queue.cancel(tag, timeout=2)

    async def _queue(self, connection: AbstractRobustConnection, name: str) -> AbstractRobustQueue:
        """A queue on a channel of its own: quorum queues know no prefetch shared by the consumers of a channel."""
        if name not in self._queues:
            channel = await connection.channel(publisher_confirms=False)
            assert isinstance(channel, AbstractRobustChannel)
            await channel.set_qos(prefetch_count=1)
            self._queues[name] = await channel.declare_queue(name, passive=True)
        return self._queues[name]

    async def waiting(self, queue_name: str) -> AsyncGenerator[AbstractIncomingMessage, None]:
        """The messages that wait in a queue now, in its order; those not acknowledged at the end stay in it.

        Raises:
            DependencyUnavailableError: the broker went away.
            RuntimeError: called before `connect`.
        """
        if self._connection is None:
            raise RuntimeError("connect first")
        try:
            # Closing its channel returns what was taken out of the queue.
            async with self._connection.channel(publisher_confirms=False) as channel:
                queue = await channel.declare_queue(queue_name, passive=True)
                for _ in range(queue.declaration_result.message_count or 0):
                    message = await queue.get(no_ack=False, fail=False, timeout=PUBLISH_SECONDS)
                    if message is None:
                        return
                    yield message
        except _AWAY as error:
            raise DependencyUnavailableError(NAME) from error

    async def check(self) -> None:
        """Return if the connection stands.

        Raises:
            DependencyUnavailableError: it does not.
        """
        if self._connection is None:
            raise DependencyUnavailableError(NAME)
        try:
            async with asyncio.timeout(_CHECK_SECONDS):
                await self._connection.ready()
        except TimeoutError as error:
            raise DependencyUnavailableError(NAME) from error

    async def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            with suppress(_AWAY):
                await self._connection.close()
