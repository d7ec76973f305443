"""`python -m training_worker`: train jobs until SIGTERM; health and metrics on port 8040.

`python -m training_worker requeue [--job JOB_ID] [--limit N]`: let jobs that were given up be trained after all.

The training process imports this module too, under another name: what only the worker needs is imported inside `main`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from uuid import UUID


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m training_worker", description="Train jobs until SIGTERM.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    requeue = commands.add_parser(
        "requeue",
        help="let jobs that were given up be trained after all",
        description="Moves messages from the dead-letter queue back to the queue of their job, which waits again.",
    )
    requeue.add_argument("--job", metavar="JOB_ID", type=_job_id, help="only the message of this job")
    requeue.add_argument("--limit", metavar="N", type=_positive, help="at most so many messages, the oldest first")
    arguments = parser.parse_args()
    if arguments.command == "requeue":
        from training_worker.requeue import run

        sys.exit(asyncio.run(run(arguments.job, arguments.limit)))

    from training_worker.service import serve

    asyncio.run(serve())


def _job_id(text: str) -> UUID:
    """A job's identity from the command line."""
    try:
        return UUID(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no job id") from error


def _positive(text: str) -> int:
    """A number of messages from the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


if __name__ == "__main__":
    main()
