"""What can be done with models and jobs beside fitting: compare, promote, roll back, delete, requeue."""

from __future__ import annotations

import gzip
import json
from typing import Any

import httpx
import pytest
from chart_harness.live import wait_for
from live.system import PROBE, System, points, unique
from live.training import LONG, broker_of, running


def done(answer: httpx.Response) -> dict[str, Any]:
    """The body of an answer that has to be a success."""
    assert answer.status_code == 200, f"{answer.status_code} {answer.text}"
    found: dict[str, Any] = answer.json()
    return found


def code(answer: httpx.Response) -> tuple[int, str]:
    """Status and error code."""
    return answer.status_code, answer.json()["error"]["code"]


def aliases(system: System, series: str) -> dict[str, int]:
    """Which version each alias of a series points at."""
    versions = done(system.training.request("GET", f"/models/{series}/versions"))["versions"]
    return {alias: version["version"] for version in versions for alias in version["aliases"]}


def two_versions(system: System, series: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two jobs of a series that made versions 1 and 2, the second one in production and served."""
    jobs = [system.succeeded(system.fit(series, points(1000, seed=seed))) for seed in (1, 2)]
    assert [job["model_version"] for job in jobs] == [1, 2]
    system.served(series, 2)
    return jobs[0], jobs[1]


def test_models_are_listed_page_by_page(system: System, series: str) -> None:
    names = [f"{series}_{number}" for number in range(3)]
    for job in [system.fit(name, points(300)) for name in names]:
        system.succeeded(job)
    seen: list[str] = []
    cursor = series
    for _ in range(2):
        page = done(system.training.request("GET", f"/models?limit=2&cursor={cursor}"))
        seen += [model["series_id"] for model in page["models"] if model["model_version"] == 1]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert [name for name in seen if name.startswith(series)] == names


def test_versions_are_described_and_compared(system: System, series: str) -> None:
    first, second = two_versions(system, series)
    details = [done(system.training.request("GET", f"/models/{series}/versions/{version}")) for version in (1, 2)]
    for job, detail in zip((first, second), details, strict=True):
        assert (detail["job_id"], detail["run_id"]) == (job["job_id"], job["mlflow_run_id"])
        assert detail["parameters"]["n_estimators"] == "100"
        assert detail["metrics"]["points"] == sum(detail["scores"]["histogram"]) == 1000
        assert detail["scores"]["anomalies"] == pytest.approx(0.01, abs=0.002)
        assert detail["data_sha256"] in detail["data_key"]
    compared = done(system.training.request("GET", f"/models/{series}/compare?a=1&b=2"))
    assert (compared["same_data"], compared["same_parameters"]) == (False, True)
    threshold = compared["metrics"]["threshold"]
    assert threshold["difference"] == pytest.approx(threshold["b"] - threshold["a"])
    assert 0 < compared["scores"]["kolmogorov_smirnov"] < 0.5
    assert compared["scores"]["population_stability_index"] > 0
    itself = done(system.training.request("GET", f"/models/{series}/compare?a=2&b=2"))
    assert (itself["same_data"], itself["scores"]["kolmogorov_smirnov"]) == (True, 0)


def test_a_promotion_and_a_rollback_are_served(system: System, series: str) -> None:
    two_versions(system, series)
    changed = done(system.training.request("POST", f"/models/{series}/promote", json={"version": 1}))
    assert (changed["model_version"], changed["previous_version"]) == (1, 2)
    system.served(series, 1, seconds=15)
    assert aliases(system, series) == {"production": 1, "previous": 2}
    done(system.training.request("POST", f"/models/{series}/rollback", json={"from_version": 1}))
    system.served(series, 2, seconds=15)
    assert aliases(system, series) == {"production": 2, "previous": 1}
    # Sent again it would take itself back, which `from_version` prevents.
    again = system.training.request("POST", f"/models/{series}/rollback", json={"from_version": 1})
    assert code(again) == (409, "INVALID_STAGE_TRANSITION")
    assert code(system.training.request("POST", f"/models/{series}/promote", json={"version": 9})) == (
        404,
        "INVALID_VERSION",
    )


def test_a_job_from_before_a_rollback_does_not_undo_it(system: System, series: str) -> None:
    two_versions(system, series)
    job_id = system.fit(series, points(100_000, seed=3), parameters=LONG)
    running(system, job_id)
    assert code(system.training.request("DELETE", f"/models/{series}")) == (409, "TRAINING_IN_PROGRESS")
    done(system.training.request("POST", f"/models/{series}/rollback"))
    job = system.finished(job_id)
    assert (job["status"], job["model_version"]) == ("superseded", 3)
    assert aliases(system, series) == {"production": 1, "previous": 2}
    system.served(series, 1)
    # What it made is there all the same, and a fit from after the rollback takes over.
    done(system.training.request("POST", f"/models/{series}/promote", json={"version": 3}))
    system.served(series, 3, seconds=15)
    assert system.succeeded(system.fit(series, points(1000, seed=4)))["model_version"] == 4
    system.served(series, 4)


def test_a_version_is_deleted_with_its_artifacts(system: System, series: str) -> None:
    two_versions(system, series)
    tags = done(system.training.request("GET", f"/models/{series}/versions/1"))["tags"]
    folder = tags["blob_key"].rsplit("/", 1)[0]
    listing = f"/api/2.0/mlflow-artifacts/artifacts?path={folder}"
    assert "model.ads" in system.mlflow.request("GET", listing).text
    assert done(system.training.request("DELETE", f"/models/{series}/versions/1"))["deleted_versions"] == [1]
    assert code(system.training.request("GET", f"/models/{series}/versions/1")) == (404, "INVALID_VERSION")
    assert "model.ads" not in system.mlflow.request("GET", listing).text
    assert code(system.predict(series, PROBE, version=1)) == (404, "INVALID_VERSION")
    assert code(system.training.request("DELETE", f"/models/{series}/versions/2")) == (409, "INVALID_STAGE_TRANSITION")
    assert code(system.training.request("POST", f"/models/{series}/rollback")) == (409, "INVALID_STAGE_TRANSITION")
    system.served(series, 2)


def test_a_deleted_model_is_forgotten_and_its_data_can_be_fitted_again(system: System, series: str) -> None:
    _, second = two_versions(system, series)
    assert done(system.training.request("DELETE", f"/models/{series}"))["deleted_versions"] == [1, 2]
    assert code(system.training.request("GET", f"/models/{series}/versions")) == (404, "MODEL_NOT_FOUND")
    assert code(system.training.request("DELETE", f"/models/{series}")) == (404, "MODEL_NOT_FOUND")

    def forgotten() -> bool:
        answer = system.predict(series, PROBE)
        assert answer.status_code == 404, answer.text
        assert answer.json()["error"]["code"] == "MODEL_NOT_FOUND"
        return True

    wait_for(forgotten, f"inference to forget {series}", 15)
    assert system.job(second["job_id"])["model_deleted_at"]
    again = system.succeeded(system.fit(series, points(1000, seed=2)))
    assert again["job_id"] != second["job_id"]
    assert again["model_version"] == 3, "a number stands for one version only"
    system.served(series, 3)


def test_json_csv_and_compressed_bodies_are_the_same_job(system: System, series: str) -> None:
    data = points(1000, seed=5)
    job_id = system.fit(series, data)
    text = "timestamp,value\n" + "".join(f"{point['timestamp']},{point['value']!r}\n" for point in data)
    packed = gzip.compress(json.dumps({"data": data, "parameters": {"contamination": 0.01}}).encode())
    for content, headers in (
        (text.encode(), {"Content-Type": "text/csv"}),
        (packed, {"Content-Type": "application/json", "Content-Encoding": "gzip"}),
        (gzip.compress(text.encode()), {"Content-Type": "text/csv", "Content-Encoding": "gzip"}),
    ):
        answer = system.training.request("POST", f"/fit/{series}?contamination=0.01", content=content, headers=headers)
        assert (answer.status_code, answer.json().get("job_id")) == (202, job_id), answer.text


def test_a_bomb_is_refused(system: System, series: str) -> None:
    body = gzip.compress(bytes(100_000_000))
    answer = system.training.request("POST", f"/fit/{series}", content=body, headers={"Content-Encoding": "gzip"})
    assert code(answer) == (413, "PAYLOAD_TOO_LARGE")


def test_a_request_sent_again_under_its_key_is_the_same_job(system: System, series: str) -> None:
    key = {"Idempotency-Key": unique("key")}
    body = {"data": points(300, seed=6)}
    first = system.training.request("POST", f"/fit/{series}", json=body, headers=key)
    other = system.fit(series, points(300, seed=7))
    # Eight requests are more than the rate limit lets pass; these are one.
    for _ in range(7):
        again = system.training.request("POST", f"/fit/{series}", json=body, headers=key)
        assert (again.status_code, again.json()["job_id"]) == (202, first.json()["job_id"])
    assert other != first.json()["job_id"]
    body["data"] = points(300, seed=8)
    assert code(system.training.request("POST", f"/fit/{series}", json=body, headers=key)) == (422, "INVALID_INPUT")


def requeue(system: System, *words: str) -> str:
    """Run the requeue command in a worker; what it says."""
    command = ("exec", "deployment/training-worker", "--", "python", "-m", "training_worker", "requeue", *words)
    return system.namespace.kubectl(*command).stdout


def test_a_poison_message_is_given_up_and_can_be_requeued(system: System, series: str) -> None:
    """Its training process is killed at each of the five deliveries, as it would be for lack of memory."""
    job_id = system.fit(series, points(100_000, seed=9), parameters=LONG)
    # [s]: the command itself, whose arguments are in /proc as well, is not meant.
    kill = 'for p in /proc/[0-9]*; do grep -qs "[s]pawn_main" "$p/cmdline" && kill -9 "${p#/proc/}"; done; true'

    def given_up() -> bool:
        job = system.job(job_id)
        if job["status"] == "running":
            system.namespace.kubectl("exec", "deployment/training-worker", "--", "sh", "-c", kill)
        assert job["status"] == "failed", f"it is {job['status']} after {job['attempts']} attempts"
        return True

    wait_for(given_up, f"job {job_id} to be given up", 240)
    job = system.job(job_id)
    assert job["attempts"] == 5
    assert job["error"]["code"] == "TRAINING_FAILED"
    assert "given up after 5 deliveries" in job["error"]["message"]
    with broker_of(system) as broker:
        letter = broker.dead_letter_of(job_id)
    assert letter is not None, "its message is not in the dead-letter queue"
    assert letter["properties"]["headers"]["x-first-death-reason"] == "rejected"
    said = requeue(system, "--job", job_id)
    assert f"requeued: job {job_id} of series {series}" in said
    assert "1 requeued" in said
    job = system.succeeded(job_id)
    assert (job["model_version"], job["error"]) == (1, None)
    system.served(series, 1)
    assert "0 requeued" in requeue(system)
