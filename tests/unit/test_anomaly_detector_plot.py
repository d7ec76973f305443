"""Plots: valid SVG that shows what there is, and nothing that could run or be fetched."""

from __future__ import annotations

import struct
from typing import Any
from xml.etree import ElementTree

import httpx
import numpy as np
import pytest
from unit.inference_world import World, code

from anomaly_detection.scoring import ScoringModel
from anomaly_detector.picture import SCALE, png

SVG = "{http://www.w3.org/2000/svg}"
DATA = [{"timestamp": 1_700_000_000 + 300 * i, "value": 50.0 if i == 7 else i / 20} for i in range(20)]


def svg(answer: httpx.Response) -> ElementTree.Element:
    """The picture in an answer, whose every coordinate is a number within it."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/svg+xml"
    assert "script" not in answer.text
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    root = ElementTree.fromstring(answer.content)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for element in root.iter():
        for names, end in ((("x", "x1", "x2", "cx"), width), (("y", "y1", "y2", "cy"), height)):
            for name in names:
                if name in element.attrib:
                    assert 0 <= float(element.attrib[name]) <= end, ElementTree.tostring(element)
    for x, y in line(root):
        assert 0 <= x <= width
        assert 0 <= y <= height
    return root


def line(root: ElementTree.Element) -> list[tuple[float, float]]:
    """The points of all lines."""
    return [
        (float(point.split(",")[0]), float(point.split(",")[1]))
        for each in root.iter(f"{SVG}polyline")
        for point in each.attrib["points"].split()
    ]


def texts(root: ElementTree.Element) -> str:
    """Everything that is written."""
    return " ".join(root.itertext())


async def test_the_score_of_each_value(world: World, blobs: list[bytes]) -> None:
    world.publish("a", blobs[1])
    model = ScoringModel.from_bytes(blobs[1])
    root = svg(await world.client.get("/plot/a"))
    assert "a, version 1" in texts(root)
    assert f"threshold {model.threshold:.4g}" in texts(root)
    assert f"mean: {model.mean:.6g}" in texts(root)
    heights = [y for _, y in line(root)]
    top, bottom = 48, 268
    drawn = [(bottom - y) / (bottom - top) for y in (max(heights), min(heights))]
    assert drawn == pytest.approx([float(model.scores.min()), float(model.scores.max())], abs=0.001)
    shaded = [each for each in root.iter(f"{SVG}rect") if each.attrib.get("class") == "anomalous"]
    assert len(shaded) >= 2, "both sides of the training values are anomalies"


async def test_a_part_of_the_values(world: World, blobs: list[bytes]) -> None:
    world.publish("a", blobs[1])
    for query in ("from=100&to=101", "from=1000", "to=-1000", "from=-3e38&to=3e38", "from=100&to=100.00000000000001"):
        svg(await world.client.get(f"/plot/a?{query}"))
    whole, part = [svg(await world.client.get(f"/plot/a?{query}")) for query in ("", "from=99&to=101")]
    assert line(whole) != line(part)


async def test_points_of_a_series(world: World, blobs: list[bytes]) -> None:
    world.publish("a", blobs[0])
    root = svg(await world.client.post("/plot/a", json={"data": DATA}))
    expected = (await world.client.post("/predict/a/batch", json={"data": DATA})).json()["predictions"]
    anomalies = sum(point["is_anomaly"] for point in expected)
    assert f"{anomalies} anomalies in 20 points" in texts(root)
    marks = list(root.iter(f"{SVG}circle"))
    assert len(marks) == 2 * anomalies
    assert f"2023-11-14 22:48:20: value 50, score {expected[7]['anomaly_score']:.4g}" in texts(root)
    assert len(line(root)) == 2 * len(DATA)


async def test_nothing_that_stands_out_is_left_out_of_many_points(
    world: World, blobs: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.publish("a", blobs[0])
    monkeypatch.setattr(world.service.predictor, "max_points", 40_000)
    monkeypatch.setattr("anomaly_detector.plot.MARKED_ANOMALIES", 10)
    # The body is larger than the tests' limit: what is drawn is asked of the parts that draw it.
    values = np.random.default_rng(6).normal(size=32_768)
    values[20_000] = 900.0
    from anomaly_detection.series import Series
    from anomaly_detector.plot import series_plot

    found = await world.service.predictor.predict_values("a", None, values)
    drawn = series_plot("a", Series(np.arange(32_768.0), values), found)
    root = ElementTree.fromstring(drawn)
    assert len(drawn) < 100_000
    assert "the 10 with the highest scores are marked" in texts(root)
    assert min(y for _, y in line(root)) == pytest.approx(54.0), "the one high value reaches the top of its panel"


@pytest.mark.parametrize(
    "data",
    [
        DATA[:1],
        [{"timestamp": 1, "value": 2}, {"timestamp": 2, "value": 2}],
        [{"timestamp": 0, "value": -3e38}, {"timestamp": 253_402_300_799, "value": 3e38}],
        [{"timestamp": 1_700_000_000, "value": 1e-320}, {"timestamp": 1_700_000_000.001, "value": 0}],
    ],
    ids=["one point", "equal values", "all there can be", "next to nothing"],
)
async def test_odd_series(world: World, blobs: list[bytes], data: list[dict[str, float]]) -> None:
    world.publish("a", blobs[0])
    svg(await world.client.post("/plot/a", json={"data": data}))


async def test_pages(world: World, blobs: list[bytes]) -> None:
    world.publish("a", blobs[0])
    model = await world.client.get("/plot/a?format=html")
    series = await world.client.post("/plot/a?format=html&version=1", json={"data": DATA})
    for page in (model, series):
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert page.text.count("<svg") == 1
        assert "<script" not in page.text
        assert "http" not in page.text.replace("http://www.w3.org/2000/svg", "")
    assert "standard deviation" in model.text
    assert "<td>50</td>" in series.text, "the anomaly is listed"


async def test_the_fallback_is_named(world: World, blobs: list[bytes]) -> None:
    world.publish("a", blobs[0], mean="0.0", std="1.0")
    world.store.away = True
    assert "answered by the fallback" in texts(svg(await world.client.post("/plot/a", json={"data": DATA})))
    assert code(await world.client.get("/plot/a")) == (503, "SERVICE_UNAVAILABLE")


async def test_bad_requests(world: World, blobs: list[bytes]) -> None:
    world.publish("a", blobs[0])
    for query in ("format=gif", "from=2&to=1", "from=nan", "to=inf", "from=x"):
        assert code(await world.client.get(f"/plot/a?{query}")) == (422, "INVALID_INPUT")
    assert code(await world.client.get("/plot/unknown")) == (404, "MODEL_NOT_FOUND")
    assert code(await world.client.get("/plot/not-a-series")) == (422, "INVALID_INPUT")
    assert code(await world.client.post("/plot/a", json={"data": []})) == (422, "INSUFFICIENT_DATA")
    assert code(await world.client.post("/plot/a", json=DATA)) == (422, "INVALID_INPUT")


async def test_plots_are_pictures_too(world: World, blobs: list[bytes]) -> None:
    world.publish("a", blobs[0])
    data = [{"timestamp": 1_700_000_000 + i, "value": i / 10} for i in range(50)]
    for method, body in (("GET", None), ("POST", {"data": data})):
        drawn = await world.client.request(method, "/plot/a", json=body)
        picture = await world.client.request(method, "/plot/a?format=png", json=body)
        assert (picture.status_code, picture.headers["content-type"]) == (200, "image/png")
        root = ElementTree.fromstring(drawn.content)
        assert picture.content.startswith(b"\x89PNG\r\n\x1a\n")
        size = struct.unpack(">II", picture.content[16:24])
        assert size == (SCALE * int(root.attrib["width"]), SCALE * int(root.attrib["height"]))


async def test_a_picture_has_its_text() -> None:
    """Without a font a renderer leaves text out and says nothing."""
    svg = '<svg xmlns="http://www.w3.org/2000/svg" width="200" height="40">{}</svg>'
    text = '<text x="5" y="25" style="font: 12px system-ui, sans-serif">value ± 3 std</text>'
    assert len(await png(svg.format(text))) > 2 * len(await png(svg.format("")))


async def test_what_cannot_be_rendered_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"cannot be rendered: .+"):
        await png("no picture")


async def test_an_error_of_the_renderer_has_the_form_of_all(world: World, blobs: list[bytes], monkeypatch: Any) -> None:
    world.publish("a", blobs[0])
    monkeypatch.setattr("anomaly_detector.api.score_plot", lambda *_: "no picture")
    assert code(await world.client.get("/plot/a?format=png")) == (500, "INTERNAL_ERROR")
