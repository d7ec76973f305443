"""Waiting for a condition, with an end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from ads_tools.console import Failure, say

T = TypeVar("T")


class NotYetError(Exception):
    """The condition is not met yet; the message says why."""


def wait_until(what: str, condition: Callable[[], T], *, seconds: float, interval: float = 1.0) -> T:
    """Call `condition` until it no longer raises NotYetError, and return what it returns.

    Args:
        what: what is waited for, for the messages.
        condition: returns when it is met, raises NotYetError when not yet.
        seconds: how long to wait at most.
        interval: seconds between two calls.

    Raises:
        Failure: the time is over; it names the last reason.
    """
    deadline = time.monotonic() + seconds
    told = ""
    while True:
        try:
            return condition()
        except NotYetError as reason:
            if time.monotonic() >= deadline:
                raise Failure(f"{what}: not within {seconds:.0f} s; at the end: {reason}") from reason
            if str(reason) != told:
                say(f"waiting for {what}: {reason}")
                told = str(reason)
        time.sleep(interval)
