"""Time series: from a request's points to checked NumPy arrays, and from these to the bytes that are stored.

100,000 points are read column by column with whole-list operations; only when one of these finds something wrong are
the points looked at one by one, to say which and why.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly_detection.errors import DETAILS_SHOWN, AppError, ErrorCode

MINIMUM_STD = 1e-6
"""A series whose standard deviation is not greater has nothing to learn from."""

LATEST_TIMESTAMP = 253_402_300_799
"""9999-12-31T23:59:59Z; a greater number is almost always a time in milliseconds."""

FLOAT32_MAX = float(np.finfo(np.float32).max)
"""The largest value: isolation forests compare in single precision."""

_NUMBERS = {int, float}
COLUMNS = ["timestamp", "value"]
"""What a point has."""


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """A checked series.

    Attributes:
        timestamps: shape (n,), float64, Unix seconds, strictly increasing.
        values: shape (n,), float64, finite.
    """

    timestamps: NDArray[np.float64]
    values: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.values)

    def sha256(self) -> str:
        """Hex digest of the points, the same for the same points however they were written."""
        digest = hashlib.sha256()
        for column in (self.timestamps, self.values):
            # + 0.0 turns -0.0 into 0.0: equal numbers have equal bytes.
            digest.update((column + 0.0).astype("<f8").tobytes())
        return digest.hexdigest()

    def to_bytes(self) -> bytes:
        """The series as an uncompressed NumPy archive without pickles."""
        stream = io.BytesIO()
        np.savez(stream, timestamps=self.timestamps, values=self.values)
        return stream.getvalue()

    @classmethod
    def from_bytes(cls, blob: bytes) -> Series:
        """Read what `to_bytes` wrote.

        Raises:
            ValueError: the bytes are not such an archive.
        """
        try:
            with np.load(io.BytesIO(blob), allow_pickle=False) as archive:
                series = cls(timestamps=archive["timestamps"], values=archive["values"])
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"these bytes are not a stored series: {error}") from error
        if series.timestamps.ndim != 1 or series.timestamps.shape != series.values.shape:
            raise ValueError(f"shapes {series.timestamps.shape} and {series.values.shape} are not those of a series")
        return series


def read_values(values: list[Any]) -> NDArray[np.float64]:
    """Check values that come without timestamps; shape (n,), finite.

    Args:
        values: as a JSON parser returned them.

    Raises:
        AppError: INVALID_INPUT, with the index of and the reason for each of the first bad values.
    """
    if not set(map(type, values)) <= _NUMBERS:
        raise _bad_points(values, _not_a_number, ErrorCode.INVALID_INPUT, "values must be finite numbers")
    try:
        array = np.array(values, dtype=np.float64)
    except OverflowError as error:  # an integer beyond float64
        raise AppError(ErrorCode.INVALID_INPUT, "a number is too large") from error
    _check_values(array)
    return array


def read_points(data: Any, *, min_points: int, max_points: int) -> Series:
    """Check the `data` of a request: a list of `{"timestamp": Unix seconds, "value": finite number}` in order of time.

    Args:
        data: as a JSON parser returned it.
        min_points: fewest points allowed.
        max_points: most points allowed.

    Raises:
        AppError: INVALID_INPUT, INVALID_TIMESTAMP or INSUFFICIENT_DATA, with the index of and the reason for
            each of the first bad points.
    """
    if not isinstance(data, list):
        raise AppError(
            ErrorCode.INVALID_INPUT, "`data` must be a list of points", [{"field": "data", "reason": "not a list"}]
        )
    if len(data) > max_points:
        raise _too_many(len(data), max_points)
    try:
        timestamps = list(map(itemgetter("timestamp"), data))
        values = list(map(itemgetter("value"), data))
        well_formed = set(map(type, data)) <= {dict} and set(map(len, data)) <= {2}
    except (TypeError, KeyError, IndexError):
        well_formed = False
    if not well_formed:
        raise _bad_points(data, _form, ErrorCode.INVALID_INPUT, "points must have exactly a `timestamp` and a `value`")
    if not set(map(type, timestamps)) <= _NUMBERS:
        raise _bad_points(timestamps, _not_a_number, ErrorCode.INVALID_TIMESTAMP, "timestamps must be numbers")
    if not set(map(type, values)) <= _NUMBERS:
        raise _bad_points(values, _not_a_number, ErrorCode.INVALID_INPUT, "values must be finite numbers")
    try:
        columns = np.array(timestamps, dtype=np.float64), np.array(values, dtype=np.float64)
    except OverflowError as error:  # an integer beyond float64
        raise AppError(ErrorCode.INVALID_INPUT, "a number is too large") from error
    return checked_series(*columns, min_points=min_points, max_points=max_points)


def checked_series(
    timestamps: NDArray[np.float64], values: NDArray[np.float64], *, min_points: int, max_points: int
) -> Series:
    """A series of points that came as columns, shape (n,) each.

    Raises:
        AppError: as `read_points` does.
    """
    if len(values) > max_points:
        raise _too_many(len(values), max_points)
    if len(values) < min_points:
        raise AppError(
            ErrorCode.INSUFFICIENT_DATA,
            f"{len(values)} points are fewer than the {min_points} needed",
            [{"field": "data", "reason": f"at least {min_points} points"}],
        )
    _check_timestamps(timestamps)
    _check_values(values)
    return Series(timestamps, values)


def read_csv(body: bytes, *, min_points: int, max_points: int) -> Series:
    """Check a body of lines `timestamp,value` below a line with these names: what `read_points` is for JSON.

    Args:
        body: UTF-8 text; empty lines are skipped.
        min_points: fewest points allowed.
        max_points: most points allowed.

    Raises:
        AppError: as `read_points` does, and INVALID_INPUT with status 400 for a body that is not CSV.
    """
    points: list[dict[str, Any]] = []
    try:
        rows = csv.reader(io.StringIO(body.decode("utf-8-sig"), newline=""), strict=True)
        header = next((row for row in rows if row), [])
        if [name.strip() for name in header] != COLUMNS:
            raise AppError(
                ErrorCode.INVALID_INPUT,
                "the first line of the body must be `timestamp,value`",
                [{"field": "header", "reason": f"it is {','.join(header)[:100]!r}"}],
            )
        for row in rows:
            if not row:
                continue
            if len(points) == max_points:
                # Counted, not kept: 10 MB hold far more short lines than points are allowed.
                raise _too_many(max_points + 1 + sum(1 for more in rows if more), max_points)
            # Too few fields or too many become the errors they are in JSON.
            point = {name: _number(text) for name, text in zip(COLUMNS, row, strict=False)}
            if len(row) > len(COLUMNS):
                point["column 3"] = None
            points.append(point)
    except (UnicodeDecodeError, csv.Error) as error:
        raise AppError(ErrorCode.INVALID_INPUT, "the body is not CSV", [{"reason": str(error)}], status=400) from error
    return read_points(points, min_points=min_points, max_points=max_points)


def check_variation(series: Series) -> None:
    """Refuse a series that no detector can learn from.

    Raises:
        AppError: CONSTANT_SERIES when the standard deviation is not greater than `MINIMUM_STD`, or all values are equal
            in single precision, in which isolation forests compare.
    """
    std = float(series.values.std())
    if not std > MINIMUM_STD:
        raise AppError(
            ErrorCode.CONSTANT_SERIES,
            f"the standard deviation {std:.3g} is not greater than {MINIMUM_STD:g}: there is nothing to learn",
            [{"field": "data", "reason": "constant values"}],
        )
    single = series.values.astype(np.float32)
    if single.min() == single.max():
        raise AppError(
            ErrorCode.CONSTANT_SERIES,
            "all values are equal in single precision (about 7 digits): subtract their common offset first",
            [{"field": "data", "reason": "constant values in single precision"}],
        )


def _check_timestamps(timestamps: NDArray[np.float64]) -> None:
    """Raise INVALID_TIMESTAMP unless all are Unix seconds in strictly increasing order."""
    bad = ~((timestamps >= 0) & (timestamps <= LATEST_TIMESTAMP))
    if bad.any():
        raise AppError(
            ErrorCode.INVALID_TIMESTAMP,
            "timestamps must be Unix times in seconds",
            [
                {
                    "index": int(i),
                    "reason": f"{timestamps[i]:.17g} is outside 0 … {LATEST_TIMESTAMP} (seconds, not milliseconds)",
                }
                for i in np.flatnonzero(bad)[:DETAILS_SHOWN]
            ],
        )
    late = np.flatnonzero(np.diff(timestamps) <= 0)[:DETAILS_SHOWN] + 1
    if len(late):
        raise AppError(
            ErrorCode.INVALID_TIMESTAMP,
            "timestamps must increase strictly",
            [
                {
                    "index": int(i),
                    "reason": f"{timestamps[i]:.17g} "
                    + (
                        "repeats the timestamp before it"
                        if timestamps[i] == timestamps[i - 1]
                        else "is before the one before it"
                    ),
                }
                for i in late
            ],
        )


def _check_values(values: NDArray[np.float64]) -> None:
    """Raise INVALID_INPUT unless all are finite in single precision."""
    bad = ~(np.abs(values) <= FLOAT32_MAX)
    if bad.any():
        raise AppError(
            ErrorCode.INVALID_INPUT,
            f"values must be finite and within ±{FLOAT32_MAX:.4g}",
            [{"index": int(i), "reason": f"{values[i]} is not"} for i in np.flatnonzero(bad)[:DETAILS_SHOWN]],
        )


def _number(text: str) -> float | str | None:
    """The number that a CSV field is, null for an empty one, and the text itself when it is neither."""
    text = text.strip()
    try:
        # Python's own notations, 1_000 and ١, are no numbers for anybody else.
        return float(text) if "_" not in text and text.isascii() else text
    except ValueError:
        return text or None


def _too_many(points: int, max_points: int) -> AppError:
    """The error for more points than are allowed, counted."""
    return more_than(max_points, f"{points} points are more than the {max_points} allowed")


def more_than(max_points: int, message: str = "") -> AppError:
    """The error for more points than are allowed, by default without their number."""
    return AppError(
        ErrorCode.INVALID_INPUT,
        message or f"there are more than the {max_points} points allowed",
        [{"field": "data", "reason": f"at most {max_points} points"}],
    )


def _form(point: Any) -> str | None:
    """Why `point` is not an object with just a timestamp and a value, or None."""
    if not isinstance(point, dict):
        return "not an object"
    for name in ("timestamp", "value"):
        if name not in point:
            return f"`{name}` is missing"
    unknown = [name for name in point if name not in ("timestamp", "value")]
    return f"unknown field `{str(unknown[0])[:50]}`" if unknown else None


def _not_a_number(item: Any) -> str | None:
    """Why `item` is not a number, or None; JSON's true and false are no numbers."""
    if type(item) in _NUMBERS:
        return None if math.isfinite(item) else "not finite"
    return "null, not a number" if item is None else f"{type(item).__name__}, not a number"


def _bad_points(items: list[Any], reason: Callable[[Any], str | None], code: ErrorCode, message: str) -> AppError:
    """The error that names the first items for which `reason` finds one."""
    details = []
    for index, item in enumerate(items):
        if found := reason(item):
            details.append({"index": index, "reason": found})
            if len(details) == DETAILS_SHOWN:
                break
    return AppError(code, message, details)
