"""The Jobs around the chart: Secrets, the object store's users, the test of an installation."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from minio.credentials.credentials import Credentials

from ads_tools import __main__ as command_line
from ads_tools import smoke
from ads_tools.console import Failure
from ads_tools.object_store import User, connect
from ads_tools.secrets import KeySpec, Secrets, SecretSpec, read_specification
from ads_tools.waiting import NotYetError, wait_until

SPEC = SecretSpec(
    name="rabbitmq-secret",
    keys={"admin-password": KeySpec(length=32), "user": KeySpec(value="admin")},
    labels={"app.kubernetes.io/part-of": "anomaly-detection-system"},
)


class ApiServer:
    """The Secrets of the Kubernetes API, with its optimistic locking."""

    def __init__(self) -> None:
        self.secrets: dict[str, dict[str, Any]] = {}
        self.before: Callable[[httpx.Request], httpx.Response | None] = lambda request: None
        self.writes = 0

    def answer(self, request: httpx.Request) -> httpx.Response:
        if (response := self.before(request)) is not None:
            return response
        assert request.headers["authorization"] == "Bearer token"
        prefix = "/api/v1/namespaces/ml-dev/secrets"
        assert request.url.path.startswith(prefix)
        name = request.url.path.removeprefix(prefix).removeprefix("/")
        if request.method == "GET":
            found = self.secrets.get(name)
            return httpx.Response(200, json=found) if found else httpx.Response(404, json={"message": "not found"})
        body = json.loads(request.content)
        if request.method == "POST":
            name = body["metadata"]["name"]
            if name in self.secrets:
                return httpx.Response(409, json={"message": "exists"})
            self.put(name, body)
            return httpx.Response(201, json=self.secrets[name])
        assert request.headers["content-type"] == "application/merge-patch+json"
        current = self.secrets[name]
        if body["metadata"]["resourceVersion"] != current["metadata"]["resourceVersion"]:
            return httpx.Response(409, json={"message": "changed"})
        self.put(name, {**current, "data": {**current.get("data", {}), **body["data"]}})
        return httpx.Response(200, json=self.secrets[name])

    def put(self, name: str, secret: dict[str, Any]) -> None:
        """Store a Secret under a new resource version."""
        self.writes += 1
        self.secrets[name] = {**secret, "metadata": {**secret["metadata"], "resourceVersion": str(self.writes)}}

    def value(self, name: str, key: str) -> str:
        """A stored value."""
        return base64.b64decode(self.secrets[name]["data"][key]).decode()


@pytest.fixture
def server() -> ApiServer:
    return ApiServer()


@pytest.fixture
def secrets(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> Secrets:
    monkeypatch.setattr("ads_tools.waiting.time.sleep", lambda seconds: None)
    transport = httpx.MockTransport(server.answer)
    client = httpx.Client(base_url="https://api", headers={"Authorization": "Bearer token"}, transport=transport)
    return Secrets(client, "ml-dev")


def test_missing_secret_is_created_with_random_values(server: ApiServer, secrets: Secrets) -> None:
    assert secrets.ensure(SPEC) == "created with admin-password, user"
    assert re.fullmatch(r"[0-9a-f]{32}", server.value(SPEC.name, "admin-password"))
    assert server.value(SPEC.name, "user") == "admin"
    assert server.secrets[SPEC.name]["metadata"]["labels"]["app.kubernetes.io/part-of"] == "anomaly-detection-system"


def test_existing_secret_is_left_alone(server: ApiServer, secrets: Secrets) -> None:
    secrets.ensure(SPEC)
    before = json.dumps(server.secrets)
    assert secrets.ensure(SPEC) == "exists, unchanged"
    assert json.dumps(server.secrets) == before


def test_only_missing_keys_are_added(server: ApiServer, secrets: Secrets) -> None:
    mine = base64.b64encode(b"chosen by me").decode()
    server.put(SPEC.name, {"metadata": {"name": SPEC.name}, "data": {"user": mine, "another": mine}})
    assert secrets.ensure(SPEC) == "exists, added admin-password"
    assert server.value(SPEC.name, "user") == server.value(SPEC.name, "another") == "chosen by me"
    assert len(server.value(SPEC.name, "admin-password")) == 32


def test_another_run_that_creates_first_wins(server: ApiServer, secrets: Secrets) -> None:
    theirs = {key: base64.b64encode(b"theirs").decode() for key in SPEC.keys}

    def race(request: httpx.Request) -> None:
        if request.method == "POST" and SPEC.name not in server.secrets:
            server.put(SPEC.name, {"metadata": {"name": SPEC.name}, "data": theirs})

    server.before = race
    assert secrets.ensure(SPEC) == "exists, unchanged"
    assert server.value(SPEC.name, "admin-password") == "theirs"


def test_another_run_that_adds_a_key_first_wins(server: ApiServer, secrets: Secrets) -> None:
    theirs = base64.b64encode(b"theirs").decode()
    server.put(SPEC.name, {"metadata": {"name": SPEC.name}, "data": {"user": theirs}})

    def race(request: httpx.Request) -> None:
        if request.method == "PATCH" and "admin-password" not in server.secrets[SPEC.name]["data"]:
            server.put(SPEC.name, {**server.secrets[SPEC.name], "data": {"user": theirs, "admin-password": theirs}})

    server.before = race
    assert secrets.ensure(SPEC) == "exists, unchanged"
    assert server.value(SPEC.name, "admin-password") == "theirs"


def test_a_server_that_is_away_for_a_moment_is_waited_for(server: ApiServer, secrets: Secrets) -> None:
    failures = [httpx.Response(503), httpx.Response(429)]
    server.before = lambda request: failures.pop() if failures else None
    assert secrets.ensure(SPEC).startswith("created")


def test_missing_rights_are_told_apart(server: ApiServer, secrets: Secrets) -> None:
    server.before = lambda request: (
        httpx.Response(403, json={"message": "forbidden"}) if request.method != "GET" else None
    )
    with pytest.raises(Failure, match=r"refuses POST .* 403 forbidden"):
        secrets.ensure(SPEC)
    server.put(SPEC.name, {"metadata": {"name": SPEC.name}, "data": {}})
    with pytest.raises(Failure, match="add the missing keys yourself"):
        secrets.ensure(SPEC)


def test_no_value_is_printed(
    server: ApiServer, secrets: Secrets, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [httpx.Response(500)]
    server.before = lambda request: failures.pop() if failures else None
    print(secrets.ensure(SPEC))
    assert server.value(SPEC.name, "admin-password") not in capsys.readouterr().out


def test_specification_is_read() -> None:
    text = '[{"name": "a", "keys": {"x": {"length": 32}, "y": {"value": "mlflow"}}, "labels": {"k": "v"}}]'
    assert read_specification(text) == [
        SecretSpec("a", {"x": KeySpec(length=32), "y": KeySpec(value="mlflow")}, {"k": "v"})
    ]
    assert len(KeySpec(length=33).make()) == 33
    assert KeySpec(length=32).make() != KeySpec(length=32).make()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "{}",
        '[{"name": "a"}]',
        '[{"name": "a", "keys": {"x": {}}}]',
        '[{"name": "a", "keys": {"x": {"length": 8}}}]',
        '[{"name": "a", "keys": {"x": {"size": 32}}}]',
    ],
)
def test_bad_specification_is_refused(text: str) -> None:
    with pytest.raises(Failure, match="cannot be read"):
        read_specification(text)


def test_rights_of_a_reader_are_a_subset_of_a_writers() -> None:
    reader, writer = (User("u", "s", "bucket", writes) for writes in (False, True))
    granted = {action for statement in reader.statements() for action in statement["Action"]}
    assert granted == {"s3:GetObject", "s3:ListBucket", "s3:GetBucketLocation"}
    assert granted < {action for statement in writer.statements() for action in statement["Action"]}
    for user in (reader, writer):
        assert {resource for s in user.statements() for resource in s["Resource"]} == {
            "arn:aws:s3:::bucket",
            "arn:aws:s3:::bucket/*",
        }


@pytest.mark.parametrize("endpoint", ["minio:9000", "http://", "s3://bucket", "http://minio:9000/path"])
def test_bad_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(Failure, match="S3_ENDPOINT_URL"):
        connect(endpoint, "us-east-1", Credentials("user", "password"))


def test_waiting_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("ads_tools.waiting.time.monotonic", lambda: now[0])
    monkeypatch.setattr("ads_tools.waiting.time.sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))

    def never() -> None:
        raise NotYetError("still closed")

    with pytest.raises(Failure, match="the door: not within 5 s; at the end: still closed"):
        wait_until("the door", never, seconds=5)
    assert now[0] == 5


class Installation:
    """The three services as the smoke test sees them."""

    def __init__(self) -> None:
        self.versions = 0
        self.served = 0
        self.job_status = "succeeded"
        self.threshold = 10.0
        self.looks = 0

    def answer(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path.startswith("/health"):
            return httpx.Response(200, json={"status": "healthy"})
        if path == "/fit/smoke_test":
            assert len(json.loads(request.content)["data"]) == smoke.POINTS
            self.versions += 1
            return httpx.Response(202, json={"job_id": "7", "status": "queued"})
        if path == "/jobs/7":
            self.looks += 1
            status = "running" if self.looks < 3 else self.job_status
            return httpx.Response(
                200, json={"status": status, "model_version": self.versions, "durations": {"fit_s": 0.2}}
            )
        body = json.loads(request.content)
        if path == "/predict/smoke_test":
            answer = self.prediction(body["value"])
            self.served = self.versions
            return httpx.Response(200, json=answer)
        return httpx.Response(200, json={"predictions": [self.prediction(point["value"]) for point in body["data"]]})

    def prediction(self, value: float) -> dict[str, Any]:
        """An answer of the version that is served."""
        found = {"anomaly_score": abs(value), "threshold": self.threshold, "is_anomaly": abs(value) > self.threshold}
        return {**found, "model_version": self.served, "source": "model"}


@pytest.fixture
def installation() -> Installation:
    return Installation()


def run_smoke(installation: Installation) -> None:
    """Run the smoke test against it."""
    client = httpx.Client(base_url="http://service", transport=httpx.MockTransport(installation.answer))
    smoke.Smoke(client, client, client, interval=0).run()


def test_smoke_passes_where_everything_works(installation: Installation, capsys: pytest.CaptureFixture[str]) -> None:
    run_smoke(installation)
    told = capsys.readouterr().out
    assert "made version 1" in told
    assert "value 50: score 50.000, threshold 10.000, an anomaly" in told
    assert "100 points: 50 anomalies" in told


def test_smoke_fails_on_a_failed_job(installation: Installation) -> None:
    installation.job_status = "failed"
    with pytest.raises(Failure, match="job 7 has failed"):
        run_smoke(installation)


def test_smoke_fails_on_a_missed_outlier(installation: Installation) -> None:
    installation.threshold = 100
    with pytest.raises(Failure, match=r"value 50: .*: this is an anomaly, but the service says otherwise"):
        run_smoke(installation)


def test_smoke_series_is_usable_and_new_each_time() -> None:
    first, second = smoke.series(1_700_000_000), smoke.series(1_700_000_001)
    timestamps = [point["timestamp"] for point in first]
    assert timestamps == sorted(set(timestamps))
    assert [point["value"] for point in first] != [point["value"] for point in second]


def test_failures_end_with_exit_code_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("TRAINING_API_URL", raising=False)
    assert command_line.main(["smoke"]) == 1
    assert "FAILED: the environment variable TRAINING_API_URL is not set" in capsys.readouterr().out
