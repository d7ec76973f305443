"""Where the points come from: two series of the PyPI package `aeon`, or any CSV of the user's."""

from __future__ import annotations

import csv
import importlib.util
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ci.console import Failure

MIN_TRAINING_POINTS = 100
"""The training API refuses fewer (INSUFFICIENT_DATA)."""

MAX_TRAINING_POINTS = 100_000
"""The training API refuses more."""

_LABEL_NAMES = ("is_anomaly", "label", "anomaly")
_TRUE = {"1", "1.0", "true", "yes", "anomaly"}
_FALSE = {"0", "0.0", "false", "no", "normal", ""}
# Later than the year 5000 in seconds, so certainly milliseconds or finer.
_LARGEST_SECONDS = 1e11


@dataclass(frozen=True)
class Series:
    """One time series, ready to be sent.

    Attributes:
        series_id: its name in the system (letters, digits, `_`).
        source: where it came from, for people.
        timestamps: float64, shape (n,), Unix seconds, strictly increasing.
        values: float64, shape (n,), finite.
        labels: bool, shape (n,), true where the source says anomaly; None where the source has no labels.
        notes: what a reader of the result must know about this input.
    """

    series_id: str
    source: str
    timestamps: NDArray[np.float64]
    values: NDArray[np.float64]
    labels: NDArray[np.bool_] | None
    notes: tuple[str, ...] = ()

    def split(self) -> int:
        """How many points at the start are the normal part to fit on.

        The part before the first labelled anomaly, but at most the first half, so that something is left to predict,
        and at most `MAX_TRAINING_POINTS`.

        Raises:
            Failure: when fewer than `MIN_TRAINING_POINTS` points are left to fit on.
        """
        points = len(self.values)
        end = min(points // 2, MAX_TRAINING_POINTS)
        if self.labels is not None and self.labels.any():
            end = min(end, int(np.argmax(self.labels)))
        if end < MIN_TRAINING_POINTS:
            raise Failure(
                f"{self.source}: only {end} of its {points} points are a normal part to fit on (those before the first "
                f"labelled anomaly, at most the first half); {MIN_TRAINING_POINTS} are needed",
                f"give {2 * MIN_TRAINING_POINTS} points or more, of which the first {MIN_TRAINING_POINTS} are normal",
            )
        return end


@dataclass(frozen=True)
class _BuiltIn:
    file: str
    column: str
    title: str
    note: str
    shocks: int = 0


BUILT_IN: dict[str, _BuiltIn] = {
    "Daphnet_S06R02E0": _BuiltIn(
        file="Daphnet_S06R02E0/S06R02E0.csv",
        column="ankle_horiz_fwd",
        title="ankle accelerometer of a walking patient, 64 Hz, milli-g",
        note="this excerpt holds no labelled episode, so by its labels every anomaly found is a false alarm",
    ),
    "Daphnet_S06R02E0_shocks": _BuiltIn(
        file="Daphnet_S06R02E0/S06R02E0.csv",
        column="ankle_horiz_fwd",
        title="the same with 12 shocks added to the predicted part, labelled",
        note="the shocks are made up, the signal under them is real; near its zero crossings a shock looks normal",
        shocks=12,
    ),
    "KDD-TSAD_135": _BuiltIn(
        file="KDD-TSAD_135/135_UCR_Anomaly_InternalBleeding16_TEST.csv",
        column="value",
        title="a vital sign of a patient, one labelled anomaly, points counted instead of timed",
        note="its anomaly is an unusual shape of usual values, which a detector of single values can miss",
    ),
}
"""The series that come with the package `aeon`, by name."""


def built_in(name: str, aeon: Path | None = None) -> Series:
    """A series of the package `aeon`.

    Args:
        name: a key of `BUILT_IN`.
        aeon: the package's folder, or the folder it is installed in; by default the installed package is located, not
            imported (its imports need numba, which nothing here uses).

    Raises:
        Failure: when the name is unknown, or the package or its data file is not there.
    """
    if name not in BUILT_IN:
        raise Failure(f"unknown series {name!r}", f"choose one of {', '.join(BUILT_IN)}, or give a CSV with --data")
    entry = BUILT_IN[name]
    folder = _aeon_folder(aeon)
    path = folder / "datasets" / "data" / entry.file
    if not path.is_file():
        raise Failure(
            f"the package aeon in {folder} has no {entry.file}",
            "install the version that pyproject.toml pins (group `data`)",
        )
    series = replace(
        read_csv(path, column=entry.column),
        series_id=_series_id(f"{name}_{entry.column}" if entry.column != "value" else name),
        source=f"{name} ({entry.title}; package aeon)",
        notes=(entry.note,),
    )
    return with_shocks(series, entry.shocks) if entry.shocks else series


SHOCK_POINTS = 16
"""Points of one shock: a quarter of a second at 64 Hz."""


def with_shocks(series: Series, count: int) -> Series:
    """The series with `count` labelled shocks spread over the part that is not fitted on.

    A shock is a decaying oscillation, as an impact leaves in an accelerometer, that starts at twice to three times the
    largest value of the fitted part. The same series gets the same shocks each time.

    Args:
        series: without labelled anomalies.
        count: how many; each needs room for `SHOCK_POINTS` points.
    """
    generator = np.random.default_rng(count)
    start = series.split()
    step = (len(series.values) - start) // count
    values, labels = series.values.copy(), np.zeros(len(series.values), dtype=np.bool_)
    time = np.arange(SHOCK_POINTS)
    peak = np.abs(series.values[:start]).max()
    for number in range(count):
        first = start + number * step + int(generator.integers(0, step - SHOCK_POINTS))
        shock = generator.uniform(2, 3) * peak * np.exp(-time / 12) * np.cos(np.pi * time / 3)
        values[first : first + SHOCK_POINTS] += shock
        labels[first : first + SHOCK_POINTS] = True
    return replace(series, values=values, labels=labels)


def _aeon_folder(aeon: Path | None) -> Path:
    if aeon is not None:
        for folder in (aeon, aeon / "aeon"):
            if (folder / "datasets" / "data").is_dir():
                return folder
        raise Failure(
            f"{aeon} is not the package aeon: it has no datasets/data", "give the folder of the unpacked package"
        )
    spec = importlib.util.find_spec("aeon")
    if spec is None or not spec.submodule_search_locations:
        raise Failure(
            "the package aeon is not installed, so the built-in series are not there",
            "run `make up`, which installs it, name its folder with --aeon, or give your own file with --data",
        )
    return Path(spec.submodule_search_locations[0])


def read_csv(path: Path, *, column: str | None = None, series_id: str | None = None) -> Series:
    """Read a CSV with the columns timestamp, value and, if there are labels, `is_anomaly`, `label` or `anomaly`.

    Without a first line that names the columns they are timestamp, value and, if there is a third, label. Timestamps
    are Unix seconds or ISO 8601 (UTC where no zone is given) and increase strictly.

    Args:
        path: the file, UTF-8.
        column: name of the value column; needed where the file has several.
        series_id: name in the system; made from the file's name by default.

    Raises:
        Failure: names the file, the line and what is wrong there.
    """
    if series_id is not None and not re.fullmatch(r"[A-Za-z0-9_]{1,128}", series_id):
        raise Failure(f"{series_id!r} cannot name a series", "use 1 to 128 letters, digits and underscores")
    rows = _rows(path)
    first_line, first = next(rows, (0, []))
    if not first:
        raise Failure(f"{path} is empty", "give a CSV with the columns timestamp,value")
    named = _parse_seconds(first[0]) is None and not (len(first) > 1 and _is_number(first[1]))
    header = [name.strip() for name in first] if named else ["timestamp", "value", "label"][: len(first)]
    value_at, label_at = _columns(path, header, len(first), column)
    timestamps: list[float] = []
    values: list[float] = []
    labels: list[bool] = []
    for line, row in rows if named else itertools.chain([(first_line, first)], rows):
        where = f"{path}, line {line}"
        if len(row) != len(first):
            raise Failure(f"{where}: {len(row)} columns where the first line has {len(first)}", "correct that line")
        moment = _seconds(where, row[0])
        if timestamps and moment <= timestamps[-1]:
            raise Failure(
                f"{where}: the timestamp {row[0].strip()!r} is not later than the one before",
                "sort the file by time, each moment once",
            )
        timestamps.append(moment)
        values.append(_value(where, row[value_at]))
        if label_at is not None:
            labels.append(_label(where, row[label_at]))
    if len(values) < 2 * MIN_TRAINING_POINTS:
        raise Failure(
            f"{path} has {len(values)} points; {2 * MIN_TRAINING_POINTS} are needed, half to fit and half to predict",
            "give a longer series",
        )
    return Series(
        series_id=series_id or _series_id(path.stem),
        source=str(path),
        timestamps=np.array(timestamps),
        values=np.array(values),
        labels=np.array(labels, dtype=np.bool_) if label_at is not None else None,
    )


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The lines that are not empty, each with its number."""
    try:
        # utf-8-sig: spreadsheets put a byte order mark in front.
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream)
            for row in reader:
                if any(field.strip() for field in row):
                    yield reader.line_num, row
    except OSError as error:
        raise Failure(f"cannot read {path}: {error.strerror}", "name a CSV file that exists and is readable") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise Failure(
            f"{path} is not a CSV in UTF-8: {error}", "save the file as CSV, UTF-8, columns timestamp,value"
        ) from error


def _columns(path: Path, header: Sequence[str], width: int, column: str | None) -> tuple[int, int | None]:
    """Positions of the value and of the label (None: no labels)."""
    if width < 2:
        raise Failure(
            f"{path}, line 1: one column where timestamp,value was expected", "separate the columns with commas"
        )
    if len(header) < width:
        raise Failure(f"{path}, line 1: {width} columns without names", "put a line with the columns' names first")
    label_at = next((at for at in range(2, width) if header[at].lower() in _LABEL_NAMES), None)
    candidates = [at for at in range(1, width) if at != label_at]
    if column is not None:
        at = next((at for at in candidates if header[at] == column), None)
        if at is None:
            raise Failure(
                f"{path} has no column {column!r}",
                f"choose one of {', '.join(header[at] for at in candidates)} with --column",
            )
        return at, label_at
    if len(candidates) > 1:
        raise Failure(
            f"{path} has {len(candidates)} value columns; one series has one value per timestamp",
            f"choose one of {', '.join(header[at] for at in candidates)} with --column",
        )
    return candidates[0], label_at


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _parse_seconds(text: str) -> float | None:
    """Unix seconds of a number or an ISO 8601 time; None where the text is neither."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _seconds(where: str, text: str) -> float:
    seconds = _parse_seconds(text)
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        raise Failure(
            f"{where}: {text.strip()!r} is no timestamp",
            "use Unix seconds (1700000000) or ISO 8601 (2023-11-14T22:13:20Z), from 1970 on",
        )
    if seconds > _LARGEST_SECONDS:
        raise Failure(f"{where}: {text.strip()!r} is not in seconds", "divide the timestamps down to Unix seconds")
    return seconds


def _value(where: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise Failure(f"{where}: the value {text.strip()!r} is not a number", "correct or remove that line") from None
    if not math.isfinite(value):
        raise Failure(f"{where}: the value {text.strip()!r} is not finite", "correct or remove that line")
    return value


def _label(where: str, text: str) -> bool:
    word = text.strip().lower()
    if word not in _TRUE | _FALSE:
        raise Failure(
            f"{where}: the label {text.strip()!r} is neither 0 nor 1", "label each point 1 (anomaly) or 0 (normal)"
        )
    return word in _TRUE


def _series_id(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_").lower()[:128] or "series"
