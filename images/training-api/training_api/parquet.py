"""Parquet bodies: read in a process of its own, which costs memory only while it runs and cannot take more than it may.

Parquet is compressed inside and says itself how large it becomes. What a body claims is not believed: the process may
neither use more memory nor more time than a series within the limits needs, and ends when a body makes it try.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from anomaly_detection.errors import DETAILS_SHOWN, AppError, ErrorCode
from anomaly_detection.series import COLUMNS, Series, checked_series, more_than

PARQUET = "application/vnd.apache.parquet"
"""Media type of a body in Parquet."""

_READER = Path(__file__).with_name("parquet_reader.py")
_SECONDS = 15
_CODES = {"timestamp": ErrorCode.INVALID_TIMESTAMP, "value": ErrorCode.INVALID_INPUT}


def read_parquet(body: bytes, *, min_points: int, max_points: int) -> Series:
    """Check a body in Parquet with the columns `timestamp` and `value`: what `series.read_points` is for JSON.

    Blocks for the 0.1 s that the reading process takes.

    Args:
        body: the file.
        min_points: fewest points allowed.
        max_points: most points allowed.

    Raises:
        AppError: as `series.read_points` does, INVALID_INPUT with status 400 for a body that is not Parquet, and
            PAYLOAD_TOO_LARGE for one that takes more memory or time than a series of that many points does.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-I", str(_READER), str(max_points)],
            input=body,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _too_large() from error
    if done.returncode:
        raise _too_large()
    head, _, columns = done.stdout.partition(b"\n")
    found: dict[str, Any] = json.loads(head)
    if "unreadable" in found:
        raise AppError(
            ErrorCode.INVALID_INPUT, "the body is not Parquet", [{"reason": found["unreadable"]}], status=400
        )
    types: dict[str, str] = found["types"]
    if sorted(types) != COLUMNS:
        raise AppError(
            ErrorCode.INVALID_INPUT,
            "the columns must be exactly `timestamp` and `value`",
            [{"field": "columns", "reason": f"they are {', '.join(types)[:100]!r}"}],
        )
    for name, kind in found.get("unusable", {}).items():
        raise AppError(
            _CODES[name],
            f"the column `{name}` must hold " + ("Unix seconds as numbers" if name == "timestamp" else "numbers"),
            [{"field": name, "reason": f"{kind[:100]}, not a number"}],
        )
    if found["more"]:
        raise more_than(max_points)
    for name, nulls in found["nulls"].items():
        if nulls:
            raise AppError(
                _CODES[name],
                "timestamps must be numbers" if name == "timestamp" else "values must be finite numbers",
                [{"index": index, "reason": "null, not a number"} for index in nulls[:DETAILS_SHOWN]],
            )
    timestamps, values = np.frombuffer(columns, dtype=np.float64).reshape(2, -1)
    return checked_series(timestamps, values, min_points=min_points, max_points=max_points)


def _too_large() -> AppError:
    """The error for a body whose reading was ended."""
    return AppError(
        ErrorCode.PAYLOAD_TOO_LARGE,
        "reading the body takes more memory or time than a series of the most points allowed does",
        [{"reason": "its pages are far larger than its rows, or it is damaged"}],
    )
