"""What a Job prints, and failures that say what to do about them."""

from __future__ import annotations

import os


class Failure(Exception):
    """Something the user has to know; the message says what is wrong and what to do about it."""


def say(message: str) -> None:
    """Print one line at once."""
    print(message, flush=True)


def setting(name: str, default: str | None = None) -> str:
    """An environment variable.

    Raises:
        Failure: it is not set and has no default.
    """
    value = os.environ.get(name, default)
    if not value:
        raise Failure(f"the environment variable {name} is not set")
    return value
