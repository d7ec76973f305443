"""Training beside the API's answers: whose turn it is, what is kept, what a limit means, and what an outage leaves."""

from __future__ import annotations

import base64
import gzip
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import arro3.core
import arro3.io
import httpx
import numpy as np
import pytest
from chart_harness.live import wait_for
from live.system import System, points, unique
from live.training import LONG, Broker, broker_of, paused, running, scaled
from obstore.store import S3Store

QUICK = {"n_estimators": 10}
KEPT = 10
"""Versions of a model that stay, as the chart has it."""

LIMIT = 5
"""Fits of a series within a minute, as the chart has it."""

# Sends fits to the replica that it runs in, all at once, and prints status and Retry-After of each.
_FIT_HERE = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
import httpx
series, *seeds = sys.argv[1:]
def fit(seed):
    data = [{"timestamp": 1_700_000_000 + i, "value": (i * 7 + int(seed)) % 13} for i in range(120)]
    answer = httpx.post(f"http://127.0.0.1:8030/fit/{series}", json={"data": data}, timeout=60)
    return answer.status_code, answer.headers.get("Retry-After")
with ThreadPoolExecutor(len(seeds)) as pool:
    print(json.dumps(list(pool.map(fit, seeds))))
"""


@pytest.fixture
def broker(system: System) -> Iterator[Broker]:
    with broker_of(system) as found:
        yield found


def test_a_high_priority_job_overtakes_those_that_wait(system: System, series: str) -> None:
    with paused(system):
        first = system.fit(f"{series}_first", points(300))
        running(system, first)
        waiting = [system.fit(f"{series}_{number}", points(300)) for number in range(3)]
        high = system.fit(f"{series}_high", points(300), priority="high")
        assert {system.job(job)["status"] for job in (*waiting, high)} == {"queued"}
    started = [system.succeeded(job)["started_at"] for job in (first, high, *waiting)]
    assert started == sorted(started)


def test_a_job_does_not_wait_for_a_busy_worker_while_another_is_free(system: System, series: str) -> None:
    with paused(system):
        busy = system.fit(f"{series}_busy", points(300))
        running(system, busy)
        waiting = system.fit(f"{series}_waiting", points(300))
        with scaled(system, "deployment/training-worker", 2):
            job = system.succeeded(waiting)
            assert job["attempts"] == 1, "the busy worker had it before"
            assert system.job(busy)["status"] == "running"
    assert system.succeeded(busy)["attempts"] == 1


def test_a_message_that_is_no_job_is_kept_with_its_reason(system: System, broker: Broker) -> None:
    nonsense = json.dumps({"job_id": unique("none")})
    broker.publish("training.job.standard", nonsense)
    (letter,) = wait_for(broker.dead_letters, "a dead letter", 30)
    assert letter["payload"] == nonsense
    headers = letter["properties"]["headers"]
    assert (headers["x-first-death-reason"], headers["x-first-death-queue"]) == ("rejected", "training-jobs")
    command = ("exec", "deployment/training-worker", "--", "python", "-m", "training_worker", "requeue")
    said = system.namespace.kubectl(*command).stdout
    assert said.splitlines() == ["left: a message that is no training job", "0 requeued"]
    # What nobody can use goes by an administrator's hand alone.
    assert [each["payload"] for each in broker.dead_letters(remove=True)] == [nonsense]
    assert broker.dead_letters() == []


def bodies() -> dict[str, tuple[bytes, dict[str, str]]]:
    """The same points in every form that a fit takes them in, with the headers that say so."""
    data = points(1000, seed=5)
    as_json = json.dumps({"data": data}).encode()
    as_csv = ("timestamp,value\n" + "".join(f"{p['timestamp']},{p['value']!r}\n" for p in data)).encode()
    columns: dict[str, Any] = {name: np.array([point[name] for point in data]) for name in ("timestamp", "value")}
    file = io.BytesIO()
    arro3.io.write_parquet(arro3.core.Table.from_pydict(columns), file)
    plain = {
        "json": (as_json, "application/json"),
        "csv": (as_csv, "text/csv"),
        "parquet": (file.getvalue(), "application/vnd.apache.parquet"),
    }
    found = {name: (body, {"Content-Type": media_type}) for name, (body, media_type) in plain.items()}
    for name, (body, headers) in list(found.items()):
        found[f"{name}_gzip"] = gzip.compress(body), headers | {"Content-Encoding": "gzip"}
    return found


def test_every_form_of_a_body_becomes_the_same_model(system: System, series: str) -> None:
    jobs = {}
    for name, (body, headers) in bodies().items():
        path = f"/fit/{series}_{name}?contamination=0.02&n_estimators=20"
        answer = system.training.request("POST", path, content=body, headers=headers)
        assert answer.status_code == 202, f"{name}: {answer.text}"
        jobs[name] = answer.json()["job_id"]
    served = {}
    for name, job_id in jobs.items():
        job = system.succeeded(job_id)
        assert (job["parameters"]["contamination"], job["points"]) == (0.02, 1000), name
        prediction = system.served(f"{series}_{name}", 1)
        served[name] = (prediction["anomaly_score"], prediction["threshold"])
    assert len(served) == 6
    assert len(set(served.values())) == 1, served


def fits_at(system: System, pod: str, series: str, seeds: range) -> list[tuple[int, str | None]]:
    """Status and Retry-After of fits sent at the same time to one replica of the API, by its own address."""
    command = ("exec", pod, "--", "python", "-c", _FIT_HERE, series, *map(str, seeds))
    return [tuple(each) for each in json.loads(system.namespace.kubectl(*command).stdout)]


def test_replicas_share_the_limit_of_a_series(system: System, series: str) -> None:
    with scaled(system, "deployment/training-api", 2) as (one, other):
        assert fits_at(system, one, series, range(3)) == [(202, None)] * 3
        answers = fits_at(system, other, series, range(3, 6))
        assert sorted(status for status, _ in answers) == [202, 202, 429]
        for pod in (one, other):
            ((status, retry_after),) = fits_at(system, pod, series, range(6, 7))
            assert status == 429
            assert retry_after is not None
            assert 0 < int(retry_after) <= 60
        # Both at the same moment.
        with ThreadPoolExecutor(2) as pool:
            together = pool.map(
                lambda pod, first: fits_at(system, pod, f"{series}_together", range(first, first + LIMIT)),
                (one, other),
                (0, LIMIT),
            )
            statuses = sorted(status for answers in together for status, _ in answers)
        assert statuses == [202] * LIMIT + [429] * LIMIT


@contextmanager
def artifacts(system: System) -> Iterator[S3Store]:
    """The bucket of the models, as the tracking server reaches it."""
    secret = {key: base64.b64decode(text).decode() for key, text in system.secrets()["mlflow-s3-secret"].items()}
    with system.cluster.url(system.namespace.name, "minio-mlflow", 9000) as url:
        yield S3Store(
            "mlflow-artifacts",
            endpoint=url,
            region="us-east-1",
            access_key_id=secret["access-key-id"],
            secret_access_key=secret["secret-access-key"],
            client_options={"allow_http": True},
        )


class TestOtherLimits:
    """A second for each fit, and no rate that a test would meet."""

    @pytest.fixture(scope="class")
    @classmethod
    def other_limits(cls, system: System) -> Iterator[None]:
        """The release with a second for each fit and no limit that a test would meet; afterwards it is as before."""
        with system.with_values(
            {"training-worker": {"fitTimeoutSeconds": 1}, "training-api": {"limits": {"fitRate": 100}}}
        ):
            yield

    def test_a_fit_that_takes_too_long_fails_and_the_worker_goes_on(
        self, system: System, series: str, other_limits: None
    ) -> None:
        worker = system.pod("training-worker")
        job = system.finished(system.fit(series, points(100_000), parameters=LONG))
        assert (job["status"], job["attempts"], job["model_version"]) == ("failed", 1, None)
        assert job["error"] == {
            "code": "TRAINING_FAILED",
            "message": "the fit took longer than the 1 s allowed: take fewer trees, points per tree or points",
        }
        again = system.succeeded(system.fit(series, points(300), parameters=QUICK))
        assert (again["attempts"], again["model_version"]) == (1, 1)
        after = system.pod("training-worker")
        assert after["metadata"]["uid"] == worker["metadata"]["uid"]
        assert [status["restartCount"] for status in after["status"]["containerStatuses"]] == [
            status["restartCount"] for status in worker["status"]["containerStatuses"]
        ]

    def test_the_last_versions_stay_and_older_ones_go_with_their_runs_and_files(
        self, system: System, series: str, other_limits: None
    ) -> None:
        """Counted in the registry and in the bucket themselves."""
        runs, folders, total = [], [], KEPT + 2
        for version in range(1, total + 1):
            job = system.succeeded(system.fit(series, points(120, seed=version), parameters=QUICK))
            assert job["model_version"] == version
            runs.append(job["mlflow_run_id"])
            tags = system.training.request("GET", f"/models/{series}/versions/{version}").json()["tags"]
            folders.append(tags["blob_key"].rpartition("/")[0])
        gone = total - KEPT
        expected = list(range(total, gone, -1))

        def versions() -> list[int]:
            query = f"/api/2.0/mlflow/model-versions/search?filter=name%3D%27model_od_{series}%27"
            found = system.mlflow.request("GET", query).json()["model_versions"]
            return sorted((int(each["version"]) for each in found), reverse=True)

        def pruned() -> bool:
            # The worker does it after the job has succeeded.
            assert versions() == expected, versions()
            return True

        wait_for(pruned, "the oldest versions to go", 30)
        stages = [
            system.mlflow.request("GET", f"/api/2.0/mlflow/runs/get?run_id={run}").json()["run"]["info"][
                "lifecycle_stage"
            ]
            for run in runs
        ]
        assert stages == ["deleted"] * gone + ["active"] * KEPT
        with artifacts(system) as bucket:
            files = [[each["path"] for each in bucket.list(prefix=folder).collect()] for folder in folders]
        assert files[:gone] == [[]] * gone
        assert all(f"{folder}/model.ads" in found for folder, found in zip(folders[gone:], files[gone:], strict=True))
        listed = system.training.request("GET", f"/models/{series}/versions").json()["versions"]
        assert [each["version"] for each in listed] == expected
        system.served(series, total)


def unavailable(answer: httpx.Response) -> None:
    """An answer that has to say that the service is away for now."""
    assert answer.json()["error"]["code"] == "SERVICE_UNAVAILABLE", answer.text
    assert int(answer.headers["Retry-After"]) > 0


OUTAGES = {
    "statefulset/rabbitmq": {"fit": 503, "job": 200, "versions": 200},
    "statefulset/postgresql-mlflow": {"fit": 503, "job": 503, "versions": 503, "promote": 503},
    "statefulset/minio-mlflow": {"fit": 503, "job": 200, "versions": 200},
    "deployment/mlflow-server": {"fit": 202, "job": 200, "versions": 503, "promote": 503},
}
"""What each route answers while a workload is away; a promotion that would be done is not tried."""


@pytest.mark.parametrize("workload", OUTAGES, ids=[name.partition("/")[2] for name in OUTAGES])
def test_an_outage_changes_nothing_and_is_over_without_a_restart(system: System, series: str, workload: str) -> None:
    for seed in (1, 2):
        job = system.succeeded(system.fit(series, points(300, seed=seed)))
    name, data = unique("away"), points(300, seed=3)
    requests: dict[str, tuple[str, str, dict[str, Any]]] = {
        "fit": ("POST", f"/fit/{name}", {"json": {"data": data}}),
        "job": ("GET", f"/jobs/{job['job_id']}", {}),
        "versions": ("GET", f"/models/{series}/versions", {}),
        "promote": ("POST", f"/models/{series}/promote", {"json": {"version": 1}}),
    }

    def ours() -> dict[tuple[str, str, str], int]:
        return {key: count for key, count in system.restarts().items() if key[0].startswith("training-")}

    before = ours()
    worker = system.pod("training-worker")["metadata"]["name"]
    with ExitStack() as outage:
        with paused(system):
            in_hand = system.fit(f"{series}_in_hand", points(300))
            running(system, in_hand)
            outage.enter_context(scaled(system, workload, 0))
        answers = {}
        for each in OUTAGES[workload]:
            method, path, options = requests[each]
            answers[each] = system.training.request(method, path, **options)
        assert {each: answer.status_code for each, answer in answers.items()} == OUTAGES[workload]
        for answer in answers.values():
            if answer.status_code == 503:
                unavailable(answer)
        wait_for(
            lambda: "waiting for a dependency" in system.namespace.kubectl("logs", worker, "--since=120s").stdout,
            "the worker to meet the outage",
            90,
        )
        assert system.training.request("GET", "/health/ready").json()["status"] == "degraded"
    # The job in hand is finished, by the same attempt unless the broker gave it to be done again.
    assert system.succeeded(in_hand)["model_version"] == 1
    system.served(f"{series}_in_hand", 1)
    left = system.training.request("GET", f"/jobs?series_id={name}", patience=60).json()["jobs"]
    if OUTAGES[workload]["fit"] == 503:
        # A job whose message could not be published says so; nothing else is left of a refused fit.
        assert [each["error"]["code"] for each in left] == ["SERVICE_UNAVAILABLE"] * len(left)
        assert len(left) <= (workload == "statefulset/rabbitmq")
        again = system.fit(name, data)
        assert again not in [each["job_id"] for each in left]
    else:
        (each,) = left
        again = each["job_id"]
    assert system.succeeded(again)["model_version"] == 1
    system.served(name, 1)
    versions = system.training.request("GET", f"/models/{series}/versions", patience=60).json()["versions"]
    assert {each["version"]: each["aliases"] for each in versions} == {2: ["production"], 1: ["previous"]}
    assert ours() == before, "something was restarted"
