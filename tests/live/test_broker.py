"""The services' broker client against RabbitMQ itself, on queues of the tests' own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress

import pytest
from aio_pika.exceptions import AMQPError, ChannelInvalidStateError
from live.system import System, unique
from live.training import Broker, broker_of

from anomaly_detection import broker as client
from anomaly_detection.errors import DependencyUnavailableError
from anomaly_detection.settings import BrokerSettings

SECONDS = 20.0
"""How long a test waits for a message that has to come."""


@pytest.fixture
def broker(system: System) -> Iterator[Broker]:
    with broker_of(system) as found:
        yield found


@pytest.fixture
def queues(broker: Broker) -> Iterator[tuple[str, str]]:
    """An urgent queue and a common one, both empty."""
    name = unique("broker")
    with broker.queue(f"{name}_urgent") as urgent, broker.queue(f"{name}_common") as common:
        yield urgent, common


@asynccontextmanager
async def connected(settings: BrokerSettings, name: str) -> AsyncIterator[client.Broker]:
    """A client with a connection of its own."""
    found = client.Broker(settings, name)
    await asyncio.wait_for(found.connect(), SECONDS)
    try:
        yield found
    finally:
        await found.close()


def put(broker: Broker, queue: str, *texts: str) -> None:
    """Publish messages to a queue, one after the other."""
    for text in texts:
        broker.publish(queue, text, exchange="amq.default")


async def take(worker: client.Broker, queues: tuple[str, str]) -> str:
    """The next message, acknowledged; its text."""
    message = await asyncio.wait_for(worker.take(*queues), SECONDS)
    await message.ack()
    return message.body.decode()


async def patiently(worker: client.Broker, queues: tuple[str, str]) -> str:
    """The next message, as the worker takes it: it asks again after an error."""
    async with asyncio.timeout(SECONDS):
        while True:
            try:
                return await take(worker, queues)
            # Away, or gone before the message was acknowledged.
            except (DependencyUnavailableError, ChannelInvalidStateError, AMQPError):
                await asyncio.sleep(0.2)


def test_the_urgent_queue_comes_first_and_each_keeps_its_order(broker: Broker, queues: tuple[str, str]) -> None:
    urgent, common = queues
    put(broker, common, "common 1", "common 2")
    put(broker, urgent, "urgent 1", "urgent 2")

    async def scenario() -> list[str]:
        async with connected(broker.settings(), "one") as worker:
            return [await take(worker, queues) for _ in range(4)]

    assert asyncio.run(scenario()) == ["urgent 1", "urgent 2", "common 1", "common 2"]


def test_a_busy_client_holds_one_message_and_no_other(broker: Broker, queues: tuple[str, str]) -> None:
    put(broker, queues[1], "1", "2", "3")

    async def scenario() -> list[str]:
        async with connected(broker.settings(), "busy") as busy, connected(broker.settings(), "free") as free:
            held = await asyncio.wait_for(busy.take(*queues), SECONDS)
            others = [await take(free, queues) for _ in range(2)]
            await held.ack()
            return [held.body.decode(), *others]

    assert asyncio.run(scenario()) == ["1", "2", "3"]


def test_what_comes_while_a_client_waits_is_taken_once(broker: Broker, queues: tuple[str, str]) -> None:
    """Into both queues at the same time: the one that the client did not want yet is there for it, or for others."""
    urgent, common = queues
    rounds = 8

    async def scenario() -> list[str]:
        async with connected(broker.settings(), "one") as one, connected(broker.settings(), "other") as other:
            taken = []
            for number in range(rounds):
                waiting = [asyncio.create_task(take(worker, queues)) for worker in (one, other)]
                await asyncio.sleep(0.2)
                assert not any(task.done() for task in waiting), "something came out of empty queues"
                await asyncio.gather(
                    asyncio.to_thread(put, broker, urgent, f"urgent {number}"),
                    asyncio.to_thread(put, broker, common, f"common {number}"),
                )
                taken += await asyncio.gather(*waiting)
            return taken

    assert sorted(asyncio.run(scenario())) == sorted(
        f"{kind} {n}" for kind in ("common", "urgent") for n in range(rounds)
    )


def test_a_message_whose_client_is_gone_is_delivered_again_and_says_so(broker: Broker, queues: tuple[str, str]) -> None:
    put(broker, queues[1], "once")

    async def scenario() -> None:
        async with connected(broker.settings(), "dying") as dying:
            first = await asyncio.wait_for(dying.take(*queues), SECONDS)
            assert (first.redelivered, first.headers.get(client.DELIVERY_COUNT)) == (False, None)
        async with connected(broker.settings(), "heir") as heir:
            again = await asyncio.wait_for(heir.take(*queues), SECONDS)
            assert (again.body, again.redelivered, again.headers[client.DELIVERY_COUNT]) == (b"once", True, 1)
            await again.ack()

    asyncio.run(scenario())


def test_a_connection_that_breaks_comes_back_by_itself(broker: Broker, queues: tuple[str, str]) -> None:
    name = unique("broken")

    async def scenario() -> list[str]:
        async with connected(broker.settings(), name) as worker:
            waiting = asyncio.create_task(patiently(worker, queues))
            dropped = 0
            async with asyncio.timeout(SECONDS):
                # The broker lists a connection a few seconds after it was made.
                while not dropped:
                    dropped = await asyncio.to_thread(broker.drop, name)
                    await asyncio.sleep(0.2)
            await asyncio.to_thread(put, broker, queues[1], "after", "and on")
            return [await waiting, await patiently(worker, queues)]

    assert asyncio.run(scenario()) == ["after", "and on"]


@asynccontextmanager
async def breaking(settings: BrokerSettings, frames: int) -> AsyncIterator[BrokerSettings]:
    """The way to a broker whose first connection breaks after so many frames of the broker's; a second one holds."""
    connections = 0

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def forward_frames(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            for _ in range(frames):
                head = await reader.readexactly(7)  # type, channel and size; behind the content stands one byte more
                writer.write(head + await reader.readexactly(int.from_bytes(head[3:]) + 1))
                await writer.drain()
        writer.transport.abort()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        back = forward_frames if connections == 1 else forward
        broker_reader, broker_writer = await asyncio.open_connection(settings.host, settings.port)
        await asyncio.gather(forward(reader, broker_writer), back(broker_reader, writer))

    server = await asyncio.start_server(connect, "127.0.0.1", 0)
    async with server:
        yield settings.model_copy(update={"host": "127.0.0.1", "port": server.sockets[0].getsockname()[1]})


def test_a_connection_may_break_at_any_step_of_its_beginning(broker: Broker, queues: tuple[str, str]) -> None:
    """While it is made, its channels are opened, the exchange and the queues are asked for, and consumers are added."""
    steps = range(1, 20)
    # What was acknowledged while the connection broke is delivered again: more messages than clients.
    put(broker, queues[1], *map(str, range(2 * len(steps))))

    async def one(frames: int) -> str:
        async with breaking(broker.settings(), frames) as settings, connected(settings, f"step {frames}") as worker:
            return await patiently(worker, queues)

    async def scenario() -> list[str | BaseException]:
        return await asyncio.gather(*map(one, steps), return_exceptions=True)

    taken = dict(zip(steps, asyncio.run(scenario()), strict=True))
    lost = {frames: repr(result) for frames, result in taken.items() if not isinstance(result, str)}
    assert not lost, f"after so many frames it does not come back: {lost}"
