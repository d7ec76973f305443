"""The services' broker client against RabbitMQ itself, on queues of the tests' own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from live.system import System, unique
from live.training import Broker, broker_of

from anomaly_detection import broker as client
from anomaly_detection.errors import DependencyUnavailableError

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
async def connected(broker: Broker, name: str) -> AsyncIterator[client.Broker]:
    """A client with a connection of its own."""
    found = client.Broker(broker.settings(), name)
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


def test_the_urgent_queue_comes_first_and_each_keeps_its_order(broker: Broker, queues: tuple[str, str]) -> None:
    urgent, common = queues
    put(broker, common, "common 1", "common 2")
    put(broker, urgent, "urgent 1", "urgent 2")

    async def scenario() -> list[str]:
        async with connected(broker, "one") as worker:
            return [await take(worker, queues) for _ in range(4)]

    assert asyncio.run(scenario()) == ["urgent 1", "urgent 2", "common 1", "common 2"]


def test_a_busy_client_holds_one_message_and_no_other(broker: Broker, queues: tuple[str, str]) -> None:
    put(broker, queues[1], "1", "2", "3")

    async def scenario() -> list[str]:
        async with connected(broker, "busy") as busy, connected(broker, "free") as free:
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
        async with connected(broker, "one") as one, connected(broker, "other") as other:
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
        async with connected(broker, "dying") as dying:
            first = await asyncio.wait_for(dying.take(*queues), SECONDS)
            assert (first.redelivered, first.headers.get(client.DELIVERY_COUNT)) == (False, None)
        async with connected(broker, "heir") as heir:
            again = await asyncio.wait_for(heir.take(*queues), SECONDS)
            assert (again.body, again.redelivered, again.headers[client.DELIVERY_COUNT]) == (b"once", True, 1)
            await again.ack()

    asyncio.run(scenario())


def test_a_connection_that_breaks_comes_back_by_itself(broker: Broker, queues: tuple[str, str]) -> None:
    name = unique("broken")

    async def patiently(worker: client.Broker) -> str:
        """As the worker does it: ask again after an error."""
        async with asyncio.timeout(SECONDS):
            while True:
                try:
                    return await take(worker, queues)
                except DependencyUnavailableError:
                    await asyncio.sleep(0.2)

    async def scenario() -> list[str]:
        async with connected(broker, name) as worker:
            waiting = asyncio.create_task(patiently(worker))
            dropped = 0
            async with asyncio.timeout(SECONDS):
                # The broker lists a connection a few seconds after it was made.
                while not dropped:
                    dropped = await asyncio.to_thread(broker.drop, name)
                    await asyncio.sleep(0.2)
            await asyncio.to_thread(put, broker, queues[1], "after", "and on")
            return [await waiting, await patiently(worker)]

    assert asyncio.run(scenario()) == ["after", "and on"]
