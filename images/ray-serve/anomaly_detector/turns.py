"""Large requests in small pieces: the event loop is one for all requests of a replica."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

ITEMS_AT_ONCE = 1024
"""Points of a large request that are handled in one go, in less than a millisecond."""

_TURN_SECONDS = 0.001

Item = TypeVar("Item")


class Turns:
    """Lets others on whenever a request has had the event loop for a millisecond."""

    def __init__(self) -> None:
        self._since = time.perf_counter()

    async def give_way(self) -> None:
        """Let others on if it is time."""
        if time.perf_counter() - self._since >= _TURN_SECONDS:
            await asyncio.sleep(0)
            self._since = time.perf_counter()

    async def parts(self, items: Sequence[Item]) -> AsyncIterator[Sequence[Item]]:
        """A long sequence in parts, between which others are let on."""
        for start in range(0, len(items), ITEMS_AT_ONCE):
            await self.give_way()
            yield items[start : start + ITEMS_AT_ONCE]
