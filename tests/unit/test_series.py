"""Series: what is accepted, what is refused and why, and the stored form."""

from __future__ import annotations

import contextlib
import io
import time
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomaly_detection.errors import DETAILS_SHOWN, AppError, ErrorCode
from anomaly_detection.series import Series, check_variation, read_points, read_values


def read(data: Any, fewest: int = 2, most: int = 100_000) -> Series:
    return read_points(data, min_points=fewest, max_points=most)


def point(timestamp: Any = 1, value: Any = 0.5) -> dict[str, Any]:
    return {"timestamp": timestamp, "value": value}


@pytest.mark.parametrize(
    ("data", "code", "details"),
    [
        ({}, ErrorCode.INVALID_INPUT, [{"field": "data", "reason": "not a list"}]),
        ([point(1), 5], ErrorCode.INVALID_INPUT, [{"index": 1, "reason": "not an object"}]),
        ([point(1), {"timestamp": 2}], ErrorCode.INVALID_INPUT, [{"index": 1, "reason": "`value` is missing"}]),
        ([point(1), {"value": 2}], ErrorCode.INVALID_INPUT, [{"index": 1, "reason": "`timestamp` is missing"}]),
        ([point(1) | {"unit": "g"}], ErrorCode.INVALID_INPUT, [{"index": 0, "reason": "unknown field `unit`"}]),
        ([point(1), point(2, "3")], ErrorCode.INVALID_INPUT, [{"index": 1, "reason": "str, not a number"}]),
        ([point(1), point(2, None)], ErrorCode.INVALID_INPUT, [{"index": 1, "reason": "null, not a number"}]),
        ([point(1), point(2, True)], ErrorCode.INVALID_INPUT, [{"index": 1, "reason": "bool, not a number"}]),
        ([point(1), point(2, 1e39)], ErrorCode.INVALID_INPUT, [{"index": 1, "reason": "1e+39 is not"}]),
        ([point(1), point("2")], ErrorCode.INVALID_TIMESTAMP, [{"index": 1, "reason": "str, not a number"}]),
        (
            [point(1), point(1)],
            ErrorCode.INVALID_TIMESTAMP,
            [{"index": 1, "reason": "1 repeats the timestamp before it"}],
        ),
        (
            [point(5), point(3)],
            ErrorCode.INVALID_TIMESTAMP,
            [{"index": 1, "reason": "3 is before the one before it"}],
        ),
        (
            [point(-1), point(3)],
            ErrorCode.INVALID_TIMESTAMP,
            [{"index": 0, "reason": "-1 is outside 0 … 253402300799 (seconds, not milliseconds)"}],
        ),
        ([point(1)], ErrorCode.INSUFFICIENT_DATA, [{"field": "data", "reason": "at least 2 points"}]),
        ([], ErrorCode.INSUFFICIENT_DATA, [{"field": "data", "reason": "at least 2 points"}]),
    ],
)
def test_bad_points_are_named_with_their_reason(data: Any, code: ErrorCode, details: list[Any]) -> None:
    with pytest.raises(AppError) as caught:
        read(data)
    assert caught.value.code == code
    assert caught.value.details == details


def test_milliseconds_are_refused() -> None:
    with pytest.raises(AppError) as caught:
        read([point(1_700_000_000_000), point(1_700_000_000_300)])
    assert caught.value.code == ErrorCode.INVALID_TIMESTAMP


def test_too_many_points() -> None:
    with pytest.raises(AppError, match="3 points are more than the 2 allowed"):
        read([point(1), point(2), point(3)], most=2)


def test_only_the_first_bad_points_are_listed() -> None:
    with pytest.raises(AppError) as caught:
        read([point(i, "x") for i in range(1000)])
    assert [detail["index"] for detail in caught.value.details] == list(range(DETAILS_SHOWN))


def test_an_integer_beyond_a_double_is_refused() -> None:
    with pytest.raises(AppError):
        read([point(1), point(2, 10**400)])


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["timestamp", "value", "x"]), inner),
    )
)
def test_whatever_comes_is_read_or_refused(data: Any) -> None:
    with contextlib.suppress(AppError):
        read(data)


@pytest.mark.parametrize("values", [[1.0] * 5, [1e-9, 2e-9, 0, 1e-9, 0], [1e9, 1e9 + 1, 1e9, 1e9, 1e9 + 2]])
def test_constant_series_are_refused(values: list[float]) -> None:
    with pytest.raises(AppError) as caught:
        check_variation(Series(np.arange(5.0), np.array(values)))
    assert caught.value.code == ErrorCode.CONSTANT_SERIES


def test_a_varied_series_passes(points: list[dict[str, float]]) -> None:
    check_variation(read(points))


def test_stored_form_round_trip(points: list[dict[str, float]]) -> None:
    series = read(points)
    again = Series.from_bytes(series.to_bytes())
    assert again.sha256() == series.sha256()
    np.testing.assert_array_equal(again.timestamps, series.timestamps)
    np.testing.assert_array_equal(again.values, series.values)


def test_the_digest_is_of_the_numbers() -> None:
    assert read([point(1, 1), point(2, 0.0)]).sha256() == read([point(1.0, 1.0), point(2, -0.0)]).sha256()
    assert read([point(1, 1), point(2, 0)]).sha256() != read([point(1, 1), point(2, 1)]).sha256()


@pytest.mark.parametrize("blob", [b"", b"nonsense", b"PK\x03\x04 cut off", orjson.dumps([1])])
def test_damaged_bytes_are_refused(blob: bytes) -> None:
    with pytest.raises(ValueError, match="not a stored series"):
        Series.from_bytes(blob)


def test_no_pickle_is_read() -> None:
    stream = io.BytesIO()
    np.savez(stream, timestamps=np.array([object()]), values=np.array([1.0]))
    with pytest.raises(ValueError, match="not a stored series"):
        Series.from_bytes(stream.getvalue())


def test_100_000_points_take_a_fraction_of_a_second() -> None:
    body = orjson.dumps([point(i, i * 0.1) for i in range(100_000)])
    start = time.process_time()
    series = read(orjson.loads(body))
    assert len(series) == 100_000
    assert time.process_time() - start < 1.0  # measured 0.08 s


def test_values_without_timestamps() -> None:
    assert read_values([1, 2.5, -3]).tolist() == [1.0, 2.5, -3.0]
    for bad in ("1", None, True, [1.0], float("nan"), float("inf"), 1e39, 10**400):
        with pytest.raises(AppError) as error:
            read_values([1.0, bad])
        assert error.value.code == "INVALID_INPUT"
