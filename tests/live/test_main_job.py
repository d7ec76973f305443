"""The main job on real and on changed sensor data, and what becomes of a second fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ci.demo import DemoResult, Series, built_in, run
from live.system import PROBE, System, points, unique


@pytest.fixture(scope="module")
def daphnet() -> Series:
    """The accelerometer series of the main job, under a name of this run's own so that it is trained here and now."""
    return replace(built_in("Daphnet_S06R02E0"), series_id=unique("daphnet"))


def run_on(system: System, series: Series) -> DemoResult:
    """The main job as `make up` runs it."""
    return run(series, system.training.url(), system.inference.url())


def test_a_real_series_is_trained_and_served(system: System, daphnet: Series) -> None:
    result = run_on(system, daphnet)
    assert not result.training.reused
    assert result.training.model_version == 1
    assert result.detection.points == len(daphnet.values) - result.training_points
    assert result.detection.found > 0
    assert result.answered_by.keys() == {"model"}, "the fallback answered"
    assert result.scores.shape == result.found.shape == (result.detection.points,)
    assert np.all((result.scores > 0) & (result.scores <= 1))
    assert set(result.training.durations_s) == {"queued_s", "load_s", "fit_s", "register_s", "total_s"}
    # The same data again is the same job and the same model.
    again = run_on(system, daphnet)
    assert again.training.reused
    assert again.training.job_id == result.training.job_id
    assert np.array_equal(again.scores, result.scores)


def test_what_lies_outside_a_real_series_is_found(system: System, daphnet: Series) -> None:
    """Real data, with points far outside of its range put in and labelled: all of them have to be found."""
    values = daphnet.values.copy()
    labels = np.zeros(len(values), dtype=bool)
    changed = np.arange(len(values) - 500, len(values), 25)
    values[changed] = values.max() + 10 * values.std()
    labels[changed] = True
    series = replace(daphnet, series_id=unique("daphnet_changed"), values=values, labels=labels)
    result = run_on(system, series)
    assert result.detection.labelled == len(changed)
    assert result.detection.recall == 1.0
    assert result.detection.events_hit == result.detection.events


def test_a_second_fit_makes_version_2_and_serves_it(system: System, series: str) -> None:
    first = system.model(series, seed=1)
    assert first["model_version"] == 1
    before = system.served(series, 1)
    second = system.succeeded(system.fit(series, points(1000, seed=2)))
    assert second["model_version"] == 2
    after = system.served(series, 2, seconds=15)
    assert after["threshold"] != before["threshold"]
    # The version before can still be asked for, and answers as it did.
    pinned = system.predict(series, PROBE, version=1).json()
    assert (pinned["model_version"], pinned["anomaly_score"]) == (1, before["anomaly_score"])
    versions = system.training.request("GET", f"/models/{series}/versions").json()["versions"]
    assert {v["version"]: v["aliases"] for v in versions} == {2: ["production"], 1: ["previous"]}


def test_the_same_data_again_is_the_same_job(system: System, series: str) -> None:
    first = system.fit(series, points(500, seed=3))
    assert system.fit(series, points(500, seed=3)) == first
    system.succeeded(first)
    assert system.fit(series, points(500, seed=3)) == first
    assert system.fit(series, points(500, seed=4)) != first


def test_a_newer_fit_wins(system: System, series: str) -> None:
    """Several fits in a row: each ends as done or as superseded, and what is served comes of the last one."""
    jobs = [system.fit(series, points(2000, seed=seed)) for seed in range(4)]
    ended = [system.finished(job) for job in jobs]
    assert {job["status"] for job in ended} <= {"succeeded", "superseded"}
    assert ended[-1]["status"] == "succeeded"
    system.served(series, ended[-1]["model_version"])


def test_a_priority_job_is_trained_too(system: System, series: str) -> None:
    assert system.model(series, seed=5, priority="high")["priority"] == "high"


def test_single_batch_and_many_agree(system: System, series: str) -> None:
    system.model(series, seed=6)
    data = points(200, seed=7, spikes=4)
    batch = system.inference.request("POST", f"/predict/{series}/batch", json={"data": data}).json()
    single = [system.predict(series, point).json() for point in data[-8:]]
    assert [p["anomaly_score"] for p in batch["predictions"][-8:]] == pytest.approx(
        [p["anomaly_score"] for p in single]
    )
    assert [p["is_anomaly"] for p in batch["predictions"][-4:]] == [True] * 4
    unknown = unique("nobody")
    many = system.inference.request("POST", "/predict", json={"series": {series: data[-1], unknown: data[-1]}}).json()[
        "results"
    ]
    assert many[series]["anomaly_score"] == pytest.approx(single[-1]["anomaly_score"])
    assert many[unknown]["error"]["code"] == "MODEL_NOT_FOUND"


def test_the_largest_series_is_trained(system: System, series: str) -> None:
    job = system.model(series, count=100_000, seed=8)
    assert job["points"] == 100_000
    assert job["durations"]["total_s"] < 60


def test_one_request_id_goes_all_the_way(system: System, series: str) -> None:
    request_id = unique("request")
    body = {"data": points(300, seed=9)}
    answer = system.training.request("POST", f"/fit/{series}", json=body, headers={"X-Request-ID": request_id})
    assert answer.headers["X-Request-ID"] == request_id
    system.succeeded(answer.json()["job_id"])
    for component in ("training-api", "training-worker"):
        pod = system.pod(component)["metadata"]["name"]
        logs = system.namespace.kubectl("logs", pod, "--since=5m").stdout
        assert f'"{request_id}"' in logs, f"no line of {component} has the request id"


def test_mlflow_knows_the_run(system: System, series: str) -> None:
    job = system.model(series, seed=10)
    answer = system.mlflow.request("GET", f"/api/2.0/mlflow/runs/get?run_id={job['mlflow_run_id']}")
    data = answer.json()["run"]["data"]
    assert {"n_estimators", "contamination"} <= {parameter["key"] for parameter in data["params"]}
    assert data["metrics"]
    alias = system.mlflow.request(
        "GET", f"/api/2.0/mlflow/registered-models/alias?name=model_od_{series}&alias=production"
    ).json()
    assert int(alias["model_version"]["version"]) == job["model_version"]
