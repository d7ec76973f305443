"""Circuit breaker: stop asking a dependency that does not answer, and find out by itself when it does again."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import TypeVar

from anomaly_detection.errors import DependencyUnavailableError

T = TypeVar("T")


class BreakerState(StrEnum):
    """Closed: calls go through. Open: they fail at once. Half-open: one call finds out if the dependency is back."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class CircuitBreaker:
    """Guards the calls to one dependency, within one event loop.

    Only `DependencyUnavailableError` counts as a failure. Any other exception is an answer: the dependency is there.

    Args:
        dependency: its name, as in health routes and errors.
        failures: failures in a row that open the circuit.
        retry_seconds: how long it stays open before one call is let through to try.
        clock: seconds, monotonic.
    """

    def __init__(
        self, dependency: str, *, failures: int, retry_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.dependency = dependency
        self._limit = failures
        self._retry_seconds = retry_seconds
        self._clock = clock
        self._failures = 0
        self._opened_at = 0.0
        self._trying = False

    @property
    def state(self) -> BreakerState:
        """What happens to a call now."""
        if self._failures < self._limit:
            return BreakerState.CLOSED
        due = self._clock() - self._opened_at >= self._retry_seconds
        return BreakerState.HALF_OPEN if due or self._trying else BreakerState.OPEN

    async def call(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Run `operation` if the circuit lets it.

        Raises:
            DependencyUnavailableError: the circuit is open, or the operation raised it.
        """
        state = self.state
        if state is BreakerState.OPEN or (state is BreakerState.HALF_OPEN and self._trying):
            raise DependencyUnavailableError(self.dependency)
        trying = state is BreakerState.HALF_OPEN
        self._trying = self._trying or trying
        try:
            result = await operation()
        except DependencyUnavailableError:
            self._failures += 1
            self._opened_at = self._clock()
            raise
        except Exception:
            self._failures = 0
            raise
        else:
            self._failures = 0
            return result
        finally:
            # Also when the caller went away: else nobody would ever try again.
            if trying:
                self._trying = False
