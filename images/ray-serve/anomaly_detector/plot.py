"""Plots as SVG, alone or in an HTML page that needs nothing from elsewhere.

They are written here: a plotting library would add 30 MB to the image and half a second to the start of a replica. What
has more points than the plot has columns is drawn as the range from smallest to largest in each column, so that nothing
that stands out is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape

import numpy as np
from numpy.typing import NDArray

from anomaly_detection.scoring import FALLBACK_SIGMAS
from anomaly_detection.series import Series
from anomaly_detector.loader import LoadedModel
from anomaly_detector.predictor import Scores

MARKED_ANOMALIES = 1000
"""At most so many anomalies are marked one by one: those with the highest scores."""

_LISTED_ANOMALIES = 50
_WIDTH = 960
_LEFT, _RIGHT = 64, 914
_TOP = 48
_PANEL = 220
_GAP = 48
_COLUMNS = _RIGHT - _LEFT
_PLOT_STYLE = """
svg { font: 12px system-ui, sans-serif; background: #fff; }
.title { font-size: 15px; font-weight: 600; fill: #1f2937; }
.label { fill: #4b5563; }
.frame { fill: none; stroke: #9ca3af; }
.grid { stroke: #e5e7eb; }
.line { fill: none; stroke: #1d4ed8; stroke-width: 1.3; stroke-linejoin: round; }
.threshold { stroke: #b45309; stroke-dasharray: 6 4; }
.mean { stroke: #6b7280; }
.limit { stroke: #6b7280; stroke-dasharray: 2 3; }
.anomalous { fill: #fee2e2; }
.training { fill: #d1fae5; }
.anomaly { fill: #dc2626; }
"""
_PAGE_STYLE = """
body { font: 14px system-ui, sans-serif; color: #1f2937; max-width: 976px; margin: 16px auto; padding: 0 8px; }
svg { width: 100%; height: auto; }
table { border-collapse: collapse; margin: 16px 0; }
th, td { text-align: left; padding: 3px 16px 3px 0; border-bottom: 1px solid #e5e7eb; font-weight: 400; }
th { color: #4b5563; }
"""


class _Scale:
    """From numbers to pixels, with the numbers to write beside them."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        if high - low <= 1e-14 * max(abs(low), abs(high), 1e-30):  # equal, or only just told apart
            margin = 0.05 * abs(low) if abs(low) > 1e-30 else 0.5
            low, high = low - margin, high + margin
        self.low, self.high = low, high
        self._start, self._end = start, end

    def __call__(self, number: float) -> float:
        return round(float(self.of(np.array([number]))[0]), 1)

    def of(self, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        """Pixels of numbers, same shape."""
        return self._start + (numbers - self.low) / (self.high - self.low) * (self._end - self._start)

    def ticks(self, wanted: int) -> list[float]:
        """About so many round numbers."""
        rough = (self.high - self.low) / wanted
        power = 10.0 ** math.floor(math.log10(rough))
        step = next((factor * power for factor in (1, 2, 5) if factor * power >= rough), 10 * power)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [index * step for index in range(first, last + 1)]


def score_plot(series_id: str, loaded: LoadedModel, low: float | None, high: float | None) -> str:
    """The score that a model gives each value, as SVG.

    Args:
        series_id: the series.
        loaded: its model.
        low: smallest value to show; by default three standard deviations below the training values.
        high: largest value to show; by default three standard deviations above them.
    """
    model = loaded.model
    minimum = float(model.training.get("minimum", model.mean - model.std))
    maximum = float(model.training.get("maximum", model.mean + model.std))
    reach = FALLBACK_SIGMAS * model.std
    if low is None:
        low = minimum - reach if high is None else min(minimum - reach, high - 2 * reach)
    if high is None:
        high = max(maximum + reach, low + 2 * reach)
    x = _Scale(low, high, _LEFT, _RIGHT)
    y = _Scale(0.0, 1.0, _TOP + _PANEL, _TOP)
    edges = np.linspace(x.low, x.high, _COLUMNS + 1)
    first = model.breakpoints.searchsorted(edges[:-1], side="left")
    last = model.breakpoints.searchsorted(edges[1:], side="left")
    ranges = [model.scores[start : end + 1] for start, end in zip(first.tolist(), last.tolist(), strict=True)]
    lowest = np.array([float(each.min()) for each in ranges])
    highest = np.array([float(each.max()) for each in ranges])
    columns = np.arange(_LEFT, _RIGHT) + np.float64(0.5)

    parts = [_band("training", x, minimum, maximum, "values of the training")]
    parts += [
        f'<rect class="anomalous" x="{_LEFT + start}" y="{_TOP}" width="{end - start}" height="{_PANEL}"/>'
        for start, end in _runs(highest > model.threshold)
    ]
    parts += _axes(x, y, _numbers(x.ticks(8)), _numbers(y.ticks(5)), "anomaly score")
    for name, number, style in (
        ("mean", model.mean, "mean"),
        ("mean − 3 std", model.mean - reach, "limit"),
        ("mean + 3 std", model.mean + reach, "limit"),
    ):
        if x.low <= number <= x.high:
            parts.append(
                f'<line class="{style}" x1="{x(number)}" x2="{x(number)}" y1="{_TOP}" y2="{_TOP + _PANEL}">'
                f"<title>{name}: {number:.6g}</title></line>"
            )
    parts.append(_path(columns, y.of(lowest), y.of(highest)))
    parts.append(_threshold(y, model.threshold))
    parts.append(
        f'<text class="label" x="{_LEFT}" y="{_TOP + _PANEL + 36}">value (green: range of the training; red: anomalies;'
        " grey: mean and mean ± 3 std)</text>"
    )
    title = f"{series_id}, version {loaded.version}: anomaly score by value"
    return _svg(title, _TOP + _PANEL + _GAP, parts)


def series_plot(series_id: str, series: Series, found: Scores) -> str:
    """Values of a series over time, their scores below, anomalies marked in both, as SVG."""
    times, values = series.timestamps, series.values
    scores = found.scores.astype(np.float64)
    margin = 1800.0 if len(times) == 1 else 0.0
    x = _Scale(float(times[0]) - margin, float(times[-1]) + margin, _LEFT, _RIGHT)
    y_values = _Scale(float(values.min()), float(values.max()), _TOP + _PANEL - 6, _TOP + 6)
    bottom = 2 * _PANEL + _TOP + _GAP
    y_scores = _Scale(0.0, 1.0, bottom, bottom - _PANEL)
    moments = np.linspace(x.low, x.high, 7).tolist()
    anomalies = np.flatnonzero(found.is_anomaly)
    marked = _highest(anomalies, scores, MARKED_ANOMALIES)
    parts: list[str] = []
    for y, numbers, name in ((y_values, values, "value"), (y_scores, scores, "anomaly score")):
        time_ticks = [(moment, _time(moment, x.high - x.low)) for moment in moments]
        parts += _axes(x, y, time_ticks, _numbers(y.ticks(5)), name)
        parts.append(_line(x.of(times), y.of(numbers)))
        parts += [
            f'<circle class="anomaly" cx="{x(times[i])}" cy="{y(numbers[i])}" r="2.5"><title>'
            f"{_instant(times[i])}: value {values[i]:.6g}, score {scores[i]:.4g}</title></circle>"
            for i in marked
        ]
    parts.append(_threshold(y_scores, found.threshold))
    note = f"{len(anomalies)} anomalies in {len(values)} points"
    if len(marked) < len(anomalies):
        note += f"; the {len(marked)} with the highest scores are marked"
    parts.append(f'<text class="label" x="{_LEFT}" y="{bottom + 36}">time (UTC); {note}</text>')
    title = f"{series_id}, version {found.version}: answered by the {found.source}"
    return _svg(title, bottom + _GAP, parts)


def score_page(series_id: str, loaded: LoadedModel, svg: str) -> str:
    """An HTML page with the plot of `score_plot` and the numbers of the model."""
    model = loaded.model
    rows = [
        ("version", str(loaded.version)),
        ("threshold", f"{model.threshold:.6g}"),
        ("mean", f"{model.mean:.6g}"),
        ("standard deviation", f"{model.std:.6g}"),
        *((name, str(value)) for name, value in model.training.items() if isinstance(value, int | float)),
    ]
    return _page(f"{series_id}: model", svg, _table(("model", ""), rows))


def series_page(series_id: str, series: Series, found: Scores, svg: str) -> str:
    """An HTML page with the plot of `series_plot` and the anomalies with the highest scores."""
    listed = _highest(np.flatnonzero(found.is_anomaly), found.scores.astype(np.float64), _LISTED_ANOMALIES)
    rows = [(_instant(series.timestamps[i]), f"{series.values[i]:.6g}", f"{found.scores[i]:.6g}") for i in listed]
    facts = [
        ("version", str(found.version)),
        ("answered by", found.source),
        ("threshold", f"{found.threshold:.6g}"),
        ("points", str(len(series))),
        ("anomalies", str(int(found.is_anomaly.sum()))),
    ]
    tables = _table(("model", ""), facts)
    if rows:
        tables += _table(("time (UTC)", "value", "anomaly score"), rows)
    return _page(f"{series_id}: anomalies", svg, tables)


def _highest(indices: NDArray[np.intp], scores: NDArray[np.float64], count: int) -> list[int]:
    """The indices with the highest scores, so many at most, in their order."""
    if len(indices) <= count:
        return [int(i) for i in indices]
    chosen: list[int] = np.sort(indices[np.argsort(-scores[indices], kind="stable")[:count]]).tolist()
    return chosen


def _runs(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Start and end of each stretch of True."""
    changes = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    return [(int(start), int(end)) for start, end in changes.reshape(-1, 2)]


def _line(x: NDArray[np.float64], y: NDArray[np.float64]) -> str:
    """A line through points in the order of x; through their range in each column where they are many."""
    if len(x) <= 2 * _COLUMNS:
        return _path(x, y, y)
    column = np.floor(x)
    starts = np.flatnonzero(np.diff(column, prepend=-1.0))
    return _path(column[starts], np.maximum.reduceat(y, starts), np.minimum.reduceat(y, starts))


def _path(x: NDArray[np.float64], y_from: NDArray[np.float64], y_to: NDArray[np.float64]) -> str:
    """A line that runs from one y to another in each column."""
    points: list[str] = []
    for at, start, end in zip(x.tolist(), y_from.tolist(), y_to.tolist(), strict=True):
        points.append(f"{at:.1f},{start:.1f}")
        if abs(end - start) >= 0.1:
            points.append(f"{at:.1f},{end:.1f}")
    return f'<polyline class="line" points="{" ".join(points)}"/>'


def _band(style: str, x: _Scale, low: float, high: float, title: str) -> str:
    """A strip under the panel, over a range of the x axis."""
    if high < x.low or low > x.high:
        return ""
    start, end = x(max(low, x.low)), x(min(high, x.high))
    return (
        f'<rect class="{style}" x="{start}" y="{_TOP + _PANEL}" width="{end - start:.1f}" height="5">'
        f"<title>{title}: {low:.6g} … {high:.6g}</title></rect>"
    )


def _axes(
    x: _Scale, y: _Scale, x_ticks: Iterable[tuple[float, str]], y_ticks: Iterable[tuple[float, str]], name: str
) -> list[str]:
    """Frame, grid and numbers of a panel."""
    top, bottom = sorted((y(y.low), y(y.high)))
    parts = [f'<rect class="frame" x="{_LEFT}" y="{top}" width="{_COLUMNS}" height="{bottom - top}"/>']
    parts.append(f'<text class="label" x="{_LEFT}" y="{top - 6}">{name}</text>')
    for number, text in y_ticks:
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{y(number)}" y2="{y(number)}"/>')
        parts.append(f'<text class="label" x="{_LEFT - 6}" y="{y(number) + 4}" text-anchor="end">{text}</text>')
    for number, text in x_ticks:
        parts.append(f'<line class="grid" x1="{x(number)}" x2="{x(number)}" y1="{top}" y2="{bottom}"/>')
        parts.append(f'<text class="label" x="{x(number)}" y="{bottom + 19}" text-anchor="middle">{text}</text>')
    return parts


def _threshold(y: _Scale, threshold: float) -> str:
    return (
        f'<line class="threshold" x1="{_LEFT}" x2="{_RIGHT}" y1="{y(threshold)}" y2="{y(threshold)}"/>'
        f'<text class="label" x="{_RIGHT - 4}" y="{y(threshold) + 14}" text-anchor="end">'
        f"threshold {threshold:.4g}</text>"
    )


def _numbers(ticks: Sequence[float]) -> list[tuple[float, str]]:
    return [(number, f"{number:.6g}") for number in ticks]


def _time(seconds: float, span: float) -> str:
    """A moment, as exactly as the span of a plot asks for."""
    form = "%H:%M:%S" if span < 2 * 3600 else "%m-%d %H:%M" if span < 14 * 86400 else "%Y-%m-%d"
    return _moment(seconds).strftime(form)


def _instant(seconds: float) -> str:
    return _moment(seconds).isoformat(sep=" ", timespec="seconds").removesuffix("+00:00")


def _moment(seconds: float) -> datetime:
    # The margin around a single point may reach beyond the years that there are.
    return datetime.fromtimestamp(min(max(float(seconds), 0.0), 253_402_300_799.0), UTC)


def _svg(title: str, height: int, parts: Iterable[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
        f' role="img"><style>{_PLOT_STYLE}</style><text class="title" x="{_LEFT}" y="22">{escape(title)}</text>'
        f"{''.join(parts)}</svg>\n"
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows]
    return f"<table>{''.join(lines)}</table>"


def _page(title: str, svg: str, tables: str) -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_PAGE_STYLE}</style></head>'
        f"<body>{svg}{tables}</body></html>\n"
    )
