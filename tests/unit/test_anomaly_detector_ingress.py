"""What is between Ray Serve and the application."""

from __future__ import annotations

import pytest

from anomaly_detection.http import Application, Event, Receive, Scope, Send
from anomaly_detector.ingress import REPLICA, ReplicaMiddleware, UnwatchedMiddleware, middlewares
from anomaly_detector.warm import WarmPredictionMiddleware

pytestmark = pytest.mark.anyio

SCOPE = {"type": "http", "headers": [(b"x-request-id", b"mine")]}


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """Waits for nothing, as a prediction by a model in memory."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-request-id", b"1"), (b"a", b"b")]})
    await send({"type": "http.response.body", "body": b""})


async def nothing() -> Event:
    raise AssertionError("nobody receives")


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


async def test_warm_predictions_are_tried_before_anything_else_and_go_on_while_there_is_no_application() -> None:
    """Ray Serve wraps itself in the list from its first to its last."""
    asked = []

    async def ray(scope: Scope, receive: Receive, send: Send) -> None:
        asked.append(scope["path"])

    async def sent(event: Event) -> None:
        pass

    application: Application = ray
    for middleware in middlewares():
        application = middleware.cls(application, *middleware.args, **middleware.kwargs)
    assert isinstance(application, WarmPredictionMiddleware)
    assert REPLICA.application is None
    await application({**SCOPE, "method": "POST", "path": "/predict/a", "query_string": b""}, nothing, sent)
    assert asked == ["/predict/a"]
