"""What is between Ray Serve and the application."""

from __future__ import annotations

import asyncio

import pytest

from anomaly_detection.http import Event, Receive, Scope, Send
from anomaly_detector.ingress import ReplicaMiddleware, UnwatchedMiddleware

pytestmark = pytest.mark.anyio

SCOPE = {"type": "http", "headers": [(b"x-request-id", b"mine")]}


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """Waits for nothing, as a prediction by a model in memory."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-request-id", b"1"), (b"a", b"b")]})
    await send({"type": "http.response.body", "body": b""})


async def nothing() -> Event:
    raise AssertionError("nobody receives")


async def test_requests_that_wait_their_turn_are_ongoing() -> None:
    """Ray Serve counts a request when it hands it on and when that returns; its autoscaler looks in between."""
    ongoing, seen = 0, []

    async def counted() -> None:
        nonlocal ongoing
        ongoing += 1
        await ReplicaMiddleware(answer, "one")({**SCOPE}, nothing, sent)
        ongoing -= 1

    async def sent(event: Event) -> None:
        pass

    async def look() -> None:
        for _ in range(4):
            seen.append(ongoing)
            await asyncio.sleep(0)

    await asyncio.gather(*(counted() for _ in range(50)), look())
    assert max(seen) == 50


async def test_an_answer_names_the_replica_and_leaves_the_identity_to_ray() -> None:
    events: list[Event] = []

    async def sent(event: Event) -> None:
        events.append(event)

    await ReplicaMiddleware(answer, "one")({**SCOPE}, nothing, sent)
    assert events[0]["headers"] == [(b"a", b"b"), (b"x-replica", b"one")]


async def test_ray_is_asked_not_to_watch() -> None:
    scopes: list[Scope] = []

    async def note(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)

    async def sent(event: Event) -> None:
        pass

    for kind in ("http", "websocket"):
        await UnwatchedMiddleware(note)({**SCOPE, "type": kind}, nothing, sent)
    assert [len(scope["headers"]) for scope in scopes] == [2, 1]
