"""Logs as one JSON object per line on standard output, each with the identity of the request it belongs to."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

import orjson

_request_id: ContextVar[str] = ContextVar("request_id", default="")

_STANDARD_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


def request_id() -> str:
    """Identity of the request or job being worked on in this context; empty outside of one."""
    return _request_id.get()


def set_request_id(value: str) -> None:
    """Say which request or job this context works on from here."""
    _request_id.set(value)


class JsonFormatter(logging.Formatter):
    """A log record as a line of JSON: time, level, logger, message, service, request_id, and every `extra` field."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def line(self, created: float, logger: str, message: str, fields: Mapping[str, Any]) -> str:
        """The line for a record of level INFO that `logging` did not make, with its line end."""
        line = {
            "timestamp": datetime.fromtimestamp(created, UTC),
            "level": "INFO",
            "logger": logger,
            "message": message,
            "service": self._service,
            **fields,
        }
        return orjson.dumps(line, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE).decode()

    def format(self, record: logging.LogRecord) -> str:
        """The line for one record, without its line end."""
        line = {
            "timestamp": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "service": self._service,
        }
        if identity := request_id():
            line["request_id"] = identity
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD_ATTRIBUTES}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str, option=orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS).decode()


def configure_logging(service: str, level: str) -> None:
    """Send the logs of this process, those of libraries included, to standard output as JSON.

    Args:
        service: name of the service, written into every line.
        level: lowest level shown, such as `INFO`.
    """
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter(service))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # These write a line per request or per reconnection attempt, which the services' own lines already tell.
    for chatty in ("httpx", "httpcore", "aiormq", "aio_pika", "uvicorn.access"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    for uvicorns in ("uvicorn", "uvicorn.error"):
        logging.getLogger(uvicorns).handlers.clear()
        logging.getLogger(uvicorns).propagate = True


def write_lines(records: Iterable[tuple[float, str, str, Mapping[str, Any]]]) -> None:
    """Write records of level INFO in one go, without what `logging` does for each: for thousands of them a second.

    Args:
        records: Unix time in seconds, name of the logger, message and fields of each.
    """
    handler = next((each for each in logging.root.handlers if isinstance(each.formatter, JsonFormatter)), None)
    if not isinstance(handler, logging.StreamHandler):
        return
    assert isinstance(handler.formatter, JsonFormatter)
    text = "".join(handler.formatter.line(*record) for record in records)
    handler.acquire()
    try:
        handler.stream.write(text)
        handler.flush()
    finally:
        handler.release()
