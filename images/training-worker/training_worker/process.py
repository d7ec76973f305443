"""The process that trains.

CPU-bound work stays away from the event loop, so that heartbeats go on, and can be ended at any time.
`concurrent.futures` is not enough: its processes cannot be ended while they work, which the return of a job needs.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import multiprocessing
import os
import signal
from collections.abc import Mapping
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from anomaly_detection.logging import configure_logging, set_request_id
from training_worker.results import TrainingError

logger = logging.getLogger(__name__)

_MLFLOW_ENVIRONMENT = {
    # The worker waits for MLflow itself, and says so; the client's own eight attempts would take minutes in silence.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    # Its log lines go where ours go, and what it prints for a person at a terminal stays away.
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class ProcessDiedError(Exception):
    """The training process ended in the middle of a call, for example for lack of memory."""


class TrainingProcess:
    """An object that lives in a process of its own and is called from here, one call at a time.

    The process is spawned, not forked: a fork would share the event loop's sockets and locks.

    Args:
        target: the object's class as `module:name`, imported over there.
        arguments: of its constructor.
        log_level: of the process.
    """

    def __init__(self, target: str, arguments: Mapping[str, Any], log_level: str) -> None:
        self._target = target
        self._arguments = dict(arguments)
        self._log_level = log_level
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None
        self._turn = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """Id of the process, None when there is none."""
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Start the process, if it does not run, and wait until its object is built.

        Raises:
            ProcessDiedError: it ended before that.
        """
        if self._process is not None and self._process.is_alive():
            return
        self.kill()
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(
            target=_serve, args=(there, self._target, self._arguments, self._log_level), name="training", daemon=True
        )
        await asyncio.to_thread(process.start)
        there.close()  # so that the end of the process is the end of the pipe
        self._process, self._connection = process, here
        await self._receive()
        logger.info("training process ready", extra={"training_pid": process.pid})

    async def call(self, method: str, *arguments: Any, request_id: str = "") -> Any:
        """Call a method of the object over there.

        Args:
            method: its name.
            arguments: its arguments; they are pickled, as is what comes back.
            request_id: for the log lines over there.

        Raises:
            ProcessDiedError: the process ended before it answered; the next call starts another one.
            TrainingError: as the method raised it.
            RuntimeError: the method raised anything else.
        """
        async with self._turn:
            await self.start()
            assert self._connection is not None
            try:
                await asyncio.to_thread(self._connection.send, (method, arguments, request_id))
            except OSError as error:
                self.kill()
                raise ProcessDiedError("the training process ended") from error
            return await self._receive()

    async def _receive(self) -> Any:
        """The next answer of the process."""
        assert self._connection is not None
        try:
            succeeded, value = await asyncio.to_thread(self._connection.recv)
        except (EOFError, OSError) as error:
            code = None
            if self._process is not None:
                await asyncio.to_thread(self._process.join, 2)
                code = self._process.exitcode
            self.kill()
            raise ProcessDiedError(f"the training process ended with code {code}") from error
        except asyncio.CancelledError:
            # Its answer would be taken for that of the next call.
            self.kill()
            raise
        if succeeded:
            return value
        raise value

    def kill(self) -> None:
        """End the process at once, whatever it does."""
        if self._process is not None and self._process.is_alive():
            self._process.kill()
            self._process.join(5)
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None


def _serve(connection: Connection, target: str, arguments: dict[str, Any], log_level: str) -> None:
    """Main function of the process: build the object, then answer calls until the pipe ends."""
    # Signals are the parent's business; it ends this process when it wants to.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update({key: value for key, value in _MLFLOW_ENVIRONMENT.items() if key not in os.environ})
    configure_logging("training-worker", log_level)
    module, name = target.split(":")
    try:
        served = getattr(importlib.import_module(module), name)(**arguments)
    except Exception as error:
        logger.exception("the training process cannot start")
        connection.send((False, RuntimeError(f"{type(error).__name__}: {error}")))
        return
    connection.send((True, None))
    while True:
        try:
            method, call_arguments, request_id = connection.recv()
        except EOFError:
            return
        set_request_id(request_id)
        try:
            answer = (True, getattr(served, method)(*call_arguments))
        except TrainingError as error:
            answer = (False, error)
        except Exception as error:
            # Reading an exception of MLflow or scikit-learn would import them into the other process.
            logger.exception("unexpected error in the training process")
            answer = (False, RuntimeError(f"{type(error).__name__}: {error}"))
        connection.send(answer)
