"""The main job against a local HTTP server that speaks the services' contract: what it reads, measures and refuses."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from ci.console import Failure
from ci.demo import Client, DemoResult, Detection, LatencySummary, Series, built_in, read_csv, run
from ci.demo.__main__ import main
from ci.demo.client import Refusal
from ci.demo.job import events
from ci.demo.series import BUILT_IN, MAX_TRAINING_POINTS, with_shocks

THRESHOLD = 0.6


class Services(BaseHTTPRequestHandler):
    """Training API and inference in one: a value's score is 1 from 10 on, else 0.5; a job needs two polls."""

    protocol_version = "HTTP/1.1"
    # Header and body in one packet: in two, the second waits 40 ms for the first one's acknowledgement.
    wbufsize = -1
    jobs: ClassVar[dict[str, dict[str, Any]]]
    outcome: ClassVar[dict[str, Any]]
    # Answers given once each before the real one: (status, code, headers).
    hiccups: ClassVar[list[tuple[int, str, dict[str, str]]]]
    batch_offset: ClassVar[float]
    received: ClassVar[list[tuple[str, Any]]]

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""

    def _answer(self, status: int, payload: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(payload).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        envelope = {
            "status": "error",
            "error": {"code": code, "message": f"about {code}", "details": []},
            "metadata": {"request_id": "request-1", "timestamp": "2026-01-01T00:00:00Z"},
        }
        self._answer(status, envelope, headers)

    def do_GET(self) -> None:
        """GET /jobs/{id}: queued, then running, then the outcome."""
        job = self.jobs[self.path.rsplit("/", 1)[1]]
        if job["status"] == "queued":
            job["status"] = "running"
        elif job["status"] == "running":
            job.update(self.outcome)
        self._answer(200, job)

    def do_POST(self) -> None:
        """POST /fit/{id}, /predict/{id} and /predict/{id}/batch."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.received.append((self.path, body))
        if self.hiccups:
            self._refuse(*self.hiccups.pop(0))
            return
        match self.path.strip("/").split("/"):
            case ["fit", series_id]:
                job = self.jobs.setdefault(
                    f"job-{series_id}",
                    {"job_id": f"job-{series_id}", "status": "queued", "model_version": None, "durations": None},
                )
                self._answer(202, {"job_id": job["job_id"], "status": job["status"], "links": {}})
            case ["predict", series_id, *rest]:
                if self.jobs.get(f"job-{series_id}", {}).get("status") != "succeeded":
                    self._refuse(404, "MODEL_NOT_FOUND")
                elif rest:
                    items = [self._score(point, self.batch_offset) for point in body["data"]]
                    answer = {"series_id": series_id, "model_version": 7, "source": "model", "threshold": THRESHOLD}
                    self._answer(200, {**answer, "predictions": items})
                else:
                    self._answer(200, {**self._score(body, 0.0), "model_version": 7, "source": "model"})

    def _score(self, point: dict[str, float], offset: float) -> dict[str, Any]:
        score = (1.0 if point["value"] >= 10 else 0.5) + offset
        return {**point, "anomaly_score": score, "threshold": THRESHOLD, "is_anomaly": score > THRESHOLD}


@pytest.fixture
def services() -> Iterator[str]:
    """Base URL of fresh services."""
    Services.jobs, Services.hiccups, Services.received, Services.batch_offset = {}, [], [], 0.0
    Services.outcome = {
        "status": "succeeded",
        "model_version": 7,
        "durations": {"queued_s": 0.01, "load_s": 0.02, "fit_s": 0.2, "register_s": 0.3, "total_s": 0.53},
    }
    server = ThreadingHTTPServer(("127.0.0.1", 0), Services)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def a_series(**changes: Any) -> Series:
    """400 points that alternate, of which 300 to 304 stand out and 300 to 309 are labelled."""
    values = np.where(np.arange(400) % 2 == 0, 0.25, 0.75)
    values[300:305] = 50.0
    labels = np.zeros(400, dtype=bool)
    labels[300:310] = True
    return replace(Series("pump_1_x", "a test", 1.7e9 + np.arange(400) / 64, values, labels), **changes)


def quiet(_: str) -> None:
    """Drop a line of progress."""


def quick_run(series: Series, services: str, *, singles: int = 10, **changes: Any) -> DemoResult:
    """The main job with few single predictions and without its lines."""
    return run(series, services, services, singles=singles, say=quiet, **changes)


def write(path: Path, *lines: str, points: int = 0) -> Path:
    """A CSV of these lines followed by `points` good ones."""
    made = (f"{2_000_000_000 + at},{at % 7}.5" for at in range(points))
    path.write_text("\n".join([*lines, *made]) + "\n", encoding="utf-8")
    return path


class TestRun:
    """One run from the fit to the figures."""

    def test_figures(self, services: str) -> None:
        result = quick_run(a_series(), services, singles=50)
        assert result.training_points == 200
        assert result.training.job_id == "job-pump_1_x"
        assert result.training.model_version == 7
        assert result.training.durations_s["total_s"] == 0.53
        assert not result.training.reused
        assert result.training.servable_s is not None
        assert result.training.servable_s > 0
        assert result.detection == Detection(200, 5, THRESHOLD, 10, 5, 0, 1.0, 0.5, 2 / 3, 1, 1)
        assert result.latency.requests == 50
        assert result.answered_by == {"model": 250}
        assert result.found.nonzero()[0].tolist() == [100, 101, 102, 103, 104]

    def test_sends_the_points_as_they_are(self, services: str) -> None:
        series = a_series()
        quick_run(series, services, contamination=0.02)
        path, body = Services.received[0]
        assert path == "/fit/pump_1_x"
        assert body["parameters"] == {"contamination": 0.02}
        assert [point["timestamp"] for point in body["data"]] == series.timestamps[:200].tolist()
        assert [point["value"] for point in body["data"]] == series.values[:200].tolist()
        batches = [body["data"] for path, body in Services.received if path.endswith("/batch")]
        assert [point["timestamp"] for point in batches[0]] == series.timestamps[200:].tolist()

    def test_batches_hold_at_most_32768_points(self, services: str) -> None:
        points = 70_000
        series = Series("long", "a test", np.arange(points, dtype=float), np.arange(points, dtype=float), None)
        result = quick_run(series, services, singles=1)
        assert [len(body["data"]) for path, body in Services.received if path.endswith("/batch")] == [32_768, 2_232]
        assert result.batch_requests == 2
        assert len(result.scores) == 35_000

    def test_again_on_the_same_data(self, services: str) -> None:
        quick_run(a_series(), services)
        again = quick_run(a_series(), services)
        assert again.training.reused
        assert again.training.servable_s is None
        assert again.training.durations_s["total_s"] == 0.53

    def test_says_every_state_of_the_job(self, services: str) -> None:
        lines: list[str] = []
        run(a_series(), services, services, say=lines.append)
        states = [line.split("job ")[1].split(" (")[0] for line in lines if "job " in line and "accepted" not in line]
        assert states == ["running", "succeeded"]

    def test_failed_job(self, services: str) -> None:
        Services.outcome = {"status": "failed", "error": {"code": "TRAINING_FAILED", "message": "no tree grew"}}
        with pytest.raises(Failure, match="ended as failed: TRAINING_FAILED: no tree grew"):
            quick_run(a_series(), services)

    def test_superseded_job(self, services: str) -> None:
        Services.outcome = {"status": "superseded"}
        with pytest.raises(Failure, match="ended as superseded"):
            quick_run(a_series(), services)

    def test_job_that_never_ends(self, services: str) -> None:
        Services.outcome = {"status": "running"}
        with pytest.raises(Failure, match="still running after"):
            quick_run(a_series(), services, timeout_s=0.3)

    def test_a_batch_that_contradicts_single_answers(self, services: str) -> None:
        Services.batch_offset = 0.001
        with pytest.raises(Failure, match="by itself and"):
            quick_run(a_series(), services)


class TestClient:
    """Refusals and hiccups."""

    def test_refusal_carries_code_message_and_request_id(self, services: str) -> None:
        Services.hiccups = [(422, "CONSTANT_SERIES", {})]
        with Client(services, services, say=quiet) as client, pytest.raises(Refusal) as caught:
            client.fit("a", [], {})
        assert caught.value.code == "CONSTANT_SERIES"
        assert "about CONSTANT_SERIES" in str(caught.value)
        assert "request-1" in str(caught.value)

    @pytest.mark.parametrize(("status", "code"), [(429, "RATE_LIMIT_EXCEEDED"), (503, "SERVICE_UNAVAILABLE")])
    def test_comes_again_when_told_to(self, services: str, status: int, code: str) -> None:
        Services.hiccups = [(status, code, {"Retry-After": "0.1"})] * 2
        lines: list[str] = []
        with Client(services, services, say=lines.append) as client:
            assert client.fit("a", [], {})["status"] == "queued"
        assert len(lines) == 1
        assert code in lines[0]

    def test_gives_up_when_told_to_come_too_late(self, services: str) -> None:
        Services.hiccups = [(429, "RATE_LIMIT_EXCEEDED", {"Retry-After": "60"})]
        with (
            Client(services, services, patience_s=1, say=quiet) as client,
            pytest.raises(Failure, match="429 RATE_LIMIT_EXCEEDED"),
        ):
            client.fit("a", [], {})

    def test_no_model_yet(self, services: str) -> None:
        with Client(services, services, say=quiet) as client:
            assert client.predict_if_served("unknown", {"timestamp": 1.0, "value": 1.0}) is None

    def test_nobody_there(self) -> None:
        with (
            Client("http://127.0.0.1:9", "http://127.0.0.1:9", patience_s=0, say=quiet) as client,
            pytest.raises(Failure, match="no answer from"),
        ):
            client.job("x")

    def test_latency_percentiles(self) -> None:
        summary = LatencySummary.of([at / 1000 for at in range(1, 102)])
        assert summary == LatencySummary(requests=101, p50_ms=51.0, p95_ms=96.0, p99_ms=100.0, max_ms=101.0)


class TestDetection:
    """Figures against labels."""

    @staticmethod
    def flags(text: str) -> np.ndarray:
        return np.array([letter == "1" for letter in text])

    def test_counts(self) -> None:
        detection = Detection.compare(self.flags("0110100001"), self.flags("0011100110"), 0.5)
        assert (detection.found, detection.labelled, detection.true_positives, detection.false_positives) == (
            4,
            5,
            2,
            2,
        )
        assert (detection.precision, detection.recall, detection.f1) == (0.5, 0.4, 4 / 9)
        assert (detection.events, detection.events_hit) == (2, 1)

    def test_nothing_labelled(self) -> None:
        detection = Detection.compare(self.flags("0110"), self.flags("0000"), 0.5)
        assert (detection.precision, detection.recall, detection.f1) == (None, None, None)
        assert detection.false_positives == 2

    def test_nothing_found(self) -> None:
        detection = Detection.compare(self.flags("0000"), self.flags("0100"), 0.5)
        assert (detection.precision, detection.recall, detection.f1) == (None, 0.0, 0.0)

    def test_no_labels(self) -> None:
        detection = Detection.compare(self.flags("0110"), None, 0.5)
        assert (detection.found, detection.labelled, detection.precision, detection.events) == (2, None, None, None)

    def test_events_at_both_ends(self) -> None:
        assert events(self.flags("1101")) == [(0, 2), (3, 4)]


class TestSplit:
    """The normal part that is fitted."""

    def test_ends_at_the_first_half(self) -> None:
        assert a_series(labels=None).split() == 200

    def test_ends_at_the_first_labelled_anomaly(self) -> None:
        labels = np.zeros(400, dtype=bool)
        labels[150] = True
        assert a_series(labels=labels).split() == 150

    def test_ends_at_what_the_service_takes(self) -> None:
        points = 2 * MAX_TRAINING_POINTS + 10
        series = Series("long", "a test", np.arange(points, dtype=float), np.zeros(points), None)
        assert series.split() == MAX_TRAINING_POINTS

    def test_too_short(self) -> None:
        labels = np.zeros(400, dtype=bool)
        labels[99] = True
        with pytest.raises(Failure, match="only 99 of its 400 points"):
            a_series(labels=labels).split()


class TestCsv:
    """Files of the user's."""

    def test_named_columns(self, tmp_path: Path) -> None:
        series = read_csv(write(tmp_path / "Pump 1-x.csv", "time,vibration", points=200))
        assert series.series_id == "pump_1_x"
        assert series.timestamps[:2].tolist() == [2_000_000_000, 2_000_000_001]
        assert series.values[:2].tolist() == [0.5, 1.5]
        assert series.labels is None

    def test_no_names(self, tmp_path: Path) -> None:
        assert len(read_csv(write(tmp_path / "a.csv", points=200)).values) == 200

    def test_labels_blank_lines_and_byte_order_mark(self, tmp_path: Path) -> None:
        lines = [f"{at},1.0,{int(at == 150)}" for at in range(200)]
        path = write(tmp_path / "a.csv", "\ufefftimestamp,value,is_anomaly", "", *lines, "")
        labels = read_csv(path).labels
        assert labels is not None
        assert labels.nonzero()[0].tolist() == [150]

    def test_iso_timestamps_are_utc_unless_they_say_otherwise(self, tmp_path: Path) -> None:
        first = ["2023-11-14 22:13:20.250,1", "2023-11-14T22:13:21Z,2", "2023-11-15T00:13:22+02:00,3"]
        series = read_csv(write(tmp_path / "a.csv", *first, points=200))
        assert series.timestamps[:3].tolist() == [1_700_000_000.25, 1_700_000_001, 1_700_000_002]

    def test_several_value_columns(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", "t,x,y,label", *[f"{at},1,{at},0" for at in range(200)])
        with pytest.raises(Failure, match="2 value columns") as caught:
            read_csv(path)
        assert "x, y" in caught.value.remedy
        assert read_csv(path, column="y").values[3] == 3
        with pytest.raises(Failure, match="no column 'label'"):
            read_csv(path, column="label")

    @pytest.mark.parametrize(
        ("line", "complaint"),
        [
            ("yesterday,1", "line 3: 'yesterday' is no timestamp"),
            ("-5,1", "line 3: '-5' is no timestamp"),
            ("nan,1", "line 3: 'nan' is no timestamp"),
            ("1700000000000,1", "line 3: '1700000000000' is not in seconds"),
            ("1699999999,1", "line 3: the timestamp '1699999999' is not later"),
            ("1700000000,1", "line 3: the timestamp '1700000000' is not later"),
            ("1700000001,high", "line 3: the value 'high' is not a number"),
            ("1700000001,", "line 3: the value '' is not a number"),
            ("1700000001,inf", "line 3: the value 'inf' is not finite"),
            ("1700000001", "line 3: 1 columns where the first line has 2"),
            ("1700000001,1,0", "line 3: 3 columns where the first line has 2"),
        ],
    )
    def test_bad_line_is_named(self, tmp_path: Path, line: str, complaint: str) -> None:
        path = write(tmp_path / "a.csv", "timestamp,value", "1700000000,1", line, points=200)
        with pytest.raises(Failure) as caught:
            read_csv(path)
        assert complaint in caught.value.problem

    def test_bad_first_line_without_names(self, tmp_path: Path) -> None:
        with pytest.raises(Failure, match="line 1: the value 'high' is not a number"):
            read_csv(write(tmp_path / "a.csv", "1700000000,high", points=200))

    def test_bad_label(self, tmp_path: Path) -> None:
        with pytest.raises(Failure, match="line 2: the label 'maybe'"):
            read_csv(write(tmp_path / "a.csv", "timestamp,value,label", "1700000000,1,maybe"))

    def test_unusable_files(self, tmp_path: Path) -> None:
        with pytest.raises(Failure, match="cannot read"):
            read_csv(tmp_path / "missing.csv")
        with pytest.raises(Failure, match="is empty"):
            read_csv(write(tmp_path / "empty.csv", ""))
        with pytest.raises(Failure, match="one column"):
            read_csv(write(tmp_path / "one.csv", "value", "1"))
        with pytest.raises(Failure, match="199 points; 200 are needed"):
            read_csv(write(tmp_path / "short.csv", points=199))
        (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00,1\n")
        with pytest.raises(Failure, match="not a CSV in UTF-8"):
            read_csv(tmp_path / "binary.csv")

    def test_a_name_the_services_would_refuse(self, tmp_path: Path) -> None:
        with pytest.raises(Failure, match="cannot name a series"):
            read_csv(write(tmp_path / "a.csv", points=200), series_id="pump 1")


class TestBuiltIn:
    """The series of the package aeon, located without being imported."""

    @pytest.fixture
    def aeon(self, tmp_path: Path) -> Path:
        """A folder laid out like the package, with files of the real ones' columns."""
        data = tmp_path / "aeon" / "datasets" / "data"
        for entry in BUILT_IN.values():
            (data / entry.file).parent.mkdir(parents=True, exist_ok=True)
            lines = [f"{at},{at % 5},{at % 3},{int(at == 180)}" for at in range(200)]
            write(data / entry.file, f"timestamp,{entry.column},other,is_anomaly", *lines)
        return tmp_path

    def test_by_name(self, aeon: Path) -> None:
        for folder in (aeon, aeon / "aeon"):
            series = built_in("Daphnet_S06R02E0", folder)
            assert series.series_id == "daphnet_s06r02e0_ankle_horiz_fwd"
            assert len(series.values) == 200
            assert series.notes

    def test_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(Failure, match="is not the package aeon"):
            built_in("Daphnet_S06R02E0", tmp_path)
        (tmp_path / "datasets" / "data").mkdir(parents=True, exist_ok=True)
        with pytest.raises(Failure, match="has no Daphnet_S06R02E0"):
            built_in("Daphnet_S06R02E0", tmp_path)
        with pytest.raises(Failure, match="unknown series"):
            built_in("nothing", tmp_path)


class TestCommand:
    """The command line: its summary, picture and figures."""

    def test_writes_and_prints(self, services: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        lines = [
            f"{1_700_000_000 + at},{50 if 300 <= at < 305 else at % 5},{int(300 <= at < 310)}" for at in range(400)
        ]
        data = write(tmp_path / "pump.csv", "timestamp,value,label", *lines)
        urls = ["--training-api", services, "--inference", services]
        assert main([*urls, "--data", str(data), "--output", str(tmp_path)]) == 0
        text = capsys.readouterr().out
        assert "precision 1.000, recall 0.500, F1 0.667; 1 of 1 event(s) hit" in text
        assert "fitted the first 200, predicted the other 200" in text
        assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
        (figures,) = json.loads((tmp_path / "demo.json").read_text())["runs"]
        assert figures["detection"]["recall"] == 0.5
        assert figures["training"]["durations_s"]["fit_s"] == 0.2
        assert figures["started_at"] < figures["finished_at"]

    def test_a_file_without_labels(self, services: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        data = write(tmp_path / "pump.csv", points=200)
        urls = ["--training-api", services, "--inference", services]
        assert main([*urls, "--data", str(data), "--output", str(tmp_path)]) == 0
        assert "none in this file" in capsys.readouterr().out

    def test_added_shocks_are_labelled_the_same_each_time_and_leave_the_fitted_part(self) -> None:
        plain = Series("s", "test", np.arange(2000.0), np.sin(np.arange(2000.0)), np.zeros(2000, dtype=np.bool_))
        one, two = with_shocks(plain, 5), with_shocks(plain, 5)
        np.testing.assert_array_equal(one.values, two.values)
        assert one.labels is not None
        changed = one.values != plain.values
        assert not changed[: plain.split()].any()
        assert not (changed & ~one.labels).any()
        assert len(events(one.labels)) == 5

    @pytest.mark.parametrize(
        "words",
        [
            ["--data", "a.csv", "--series", "Daphnet_S06R02E0"],
            ["--column", "x"],
            ["--contamination", "0.6"],
            ["--series", "nothing"],
        ],
    )
    def test_bad_arguments(self, words: list[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            main(["--training-api", "http://a", "--inference", "http://b", *words])
        assert caught.value.code == 2
