"""The training API's routes, with its dependencies replaced at their interfaces."""

from __future__ import annotations

import gzip
import io
import json
import math
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import arro3.core
import arro3.io
import httpx
import numpy as np
import pytest
from unit.training_backend import Backend

from anomaly_detection.contracts import (
    DetectorParameters,
    FitRequest,
    JobStatus,
)
from anomaly_detection.errors import AppError
from anomaly_detection.series import Series
from training_api import parquet
from training_api.app import FIT_EXAMPLE, FIT_EXAMPLE_CSV
from training_api.body import read_fit

Points = list[dict[str, float]]


@pytest.fixture
def backend() -> Backend:
    return Backend()


@pytest.fixture
async def client(backend: Backend) -> AsyncIterator[httpx.AsyncClient]:
    async with backend.client() as client:
        yield client


async def test_fit_stores_the_points_then_the_job_then_publishes(
    client: httpx.AsyncClient, backend: Backend, points: Points
) -> None:
    answer = await client.post("/fit/s1", json={"data": points}, headers={"X-Request-ID": "me"})
    assert answer.status_code == 202, answer.text
    body = answer.json()
    assert (body["series_id"], body["status"]) == ("s1", "queued")
    assert answer.headers["location"] == body["links"]["self"]
    (routing_key, message, headers), *others = backend.published
    assert not others
    assert (routing_key, message.request_id, headers) == ("training.job.standard", "me", {"x-request-id": "me"})
    assert str(message.job_id) == body["job_id"]
    assert backend.confirmed == [message.job_id]
    stored = Series.from_bytes(backend.objects[message.data_key])
    assert stored.sha256() == message.data_sha256
    assert stored.values.tolist() == [point["value"] for point in points]


async def test_priority_and_parameters_reach_the_worker(
    client: httpx.AsyncClient, backend: Backend, points: Points
) -> None:
    body = {"data": points, "priority": "high", "parameters": {"max_samples": 1.0}}
    assert (await client.post("/fit/s1", json=body)).status_code == 202
    routing_key, message, _ = backend.published[0]
    assert routing_key == "training.job.priority"
    assert isinstance(message.parameters.max_samples, float)


async def test_the_same_again_is_the_same_job(client: httpx.AsyncClient, backend: Backend, points: Points) -> None:
    first, second = [(await client.post("/fit/s1", json={"data": points})).json()["job_id"] for _ in range(2)]
    assert first == second
    assert len(backend.published) == 1
    other = await client.post("/fit/s1", json={"data": points, "parameters": {"random_state": 1}})
    assert other.json()["job_id"] != first


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/fit/s1", b"not json", 400, "INVALID_INPUT"),
        ("/fit/s1", b'{"data":[{"timestamp":1,"value":NaN}]}', 400, "INVALID_INPUT"),
        ("/fit/s1", b"[]", 422, "INVALID_INPUT"),
        ("/fit/s1", b"{}", 422, "INVALID_INPUT"),
        ("/fit/s1", b'{"data":[]}', 422, "INSUFFICIENT_DATA"),
        ("/fit/s1", b'{"data":[],"unknown":1}', 422, "INVALID_INPUT"),
        ("/fit/s1", b'{"data":[],"priority":"now"}', 422, "INVALID_INPUT"),
        ("/fit/s1", b'{"data":[],"parameters":{"n_estimators":0}}', 422, "INVALID_INPUT"),
        ("/fit/s1", b" " * 100_001, 413, "PAYLOAD_TOO_LARGE"),
        ("/fit/s-1", b"{}", 422, "INVALID_INPUT"),
        ("/fit/" + "s" * 129, b"{}", 422, "INVALID_INPUT"),
    ],
)
async def test_bad_fits_are_refused_and_leave_nothing(
    client: httpx.AsyncClient, backend: Backend, path: str, body: bytes, status: int, code: str
) -> None:
    answer = await client.post(path, content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert not backend.jobs
    assert not backend.objects
    assert not backend.accepted


async def test_a_constant_series_is_refused(client: httpx.AsyncClient) -> None:
    data = [{"timestamp": i, "value": 3} for i in range(100)]
    assert (await client.post("/fit/s1", json={"data": data})).json()["error"]["code"] == "CONSTANT_SERIES"


async def test_a_body_without_a_declared_length_is_measured_while_it_is_read(client: httpx.AsyncClient) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 10_000
            yield b" " * 10_000

    answer = await client.post("/fit/s1", content=endless())
    assert answer.status_code == 413
    assert sent <= 120_000


async def test_the_rate_limit_says_when_to_come_back(
    client: httpx.AsyncClient, backend: Backend, points: Points
) -> None:
    backend.accepted = 5
    answer = await client.post("/fit/s1", json={"data": points})
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "RATE_LIMIT_EXCEEDED")
    assert answer.headers["retry-after"] == "13"


@pytest.mark.parametrize("name", ["database", "object-store", "broker"])
async def test_a_dependency_away_leaves_nothing_half_written(
    client: httpx.AsyncClient, backend: Backend, points: Points, name: str
) -> None:
    backend.away.add(name)
    answer = await client.post("/fit/s1", json={"data": points})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "SERVICE_UNAVAILABLE")
    assert answer.json()["error"]["details"] == [{"dependency": name}]
    assert int(answer.headers["retry-after"]) > 0
    assert not backend.published
    assert all(job.status is JobStatus.FAILED for job in backend.jobs)


async def test_jobs_are_found_and_paged(client: httpx.AsyncClient, backend: Backend, points: Points) -> None:
    backend.accepted = -10
    for seed in range(5):
        await client.post(f"/fit/s{seed % 2}", json={"data": points, "parameters": {"random_state": seed}})
    job = backend.jobs[0]
    assert (await client.get(f"/jobs/{job.job_id}")).json()["job_id"] == str(job.job_id)
    first = (await client.get("/jobs", params={"limit": 2, "series_id": "s0"})).json()
    assert len(first["jobs"]) == 2
    rest = (await client.get("/jobs", params={"limit": 2, "series_id": "s0", "cursor": first["next_cursor"]})).json()
    assert [item["job_id"] for item in rest["jobs"]] == [str(job.job_id)]
    assert rest["next_cursor"] is None
    assert (await client.get("/jobs", params={"status": "failed"})).json()["jobs"] == []


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/jobs/00000000-0000-4000-8000-000000000000", 404),
        ("/jobs/17", 422),
        ("/jobs?status=lost", 422),
        ("/jobs?limit=0", 422),
        ("/jobs?cursor=x", 422),
        ("/jobs?cursor=9223372036854775808", 422),
        ("/jobs?series_id=a-b", 422),
        ("/models/s1/versions", 404),
    ],
)
async def test_bad_questions(client: httpx.AsyncClient, path: str, status: int) -> None:
    answer = await client.get(path)
    assert answer.status_code == status
    assert answer.json()["status"] == "error"


async def test_only_a_queued_job_is_cancelled(client: httpx.AsyncClient, backend: Backend, points: Points) -> None:
    path = (await client.post("/fit/s1", json={"data": points})).json()["job_id"]
    for _ in range(2):  # again is harmless
        answer = await client.delete(f"/jobs/{path}")
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    backend.jobs[0] = backend.jobs[0].model_copy(update={"status": JobStatus.RUNNING})
    answer = await client.delete(f"/jobs/{path}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "CANNOT_CANCEL")
    assert (await client.delete(f"/jobs/{uuid4()}")).status_code == 404


@pytest.mark.parametrize(
    ("started", "away", "ready", "health"),
    [(True, set(), 200, 200), (True, {"broker"}, 200, 503), (False, {"database"}, 503, 503)],
)
async def test_health(
    client: httpx.AsyncClient, backend: Backend, started: bool, away: set[str], ready: int, health: int
) -> None:
    backend.is_started, backend.away = started, away
    assert (await client.get("/health/live")).status_code == 200
    assert (await client.get("/health/ready")).status_code == ready
    answer = await client.get("/health")
    assert answer.status_code == health
    states = {name: state["status"] for name, state in answer.json()["dependencies"].items()}
    assert {name for name, state in states.items() if state == "down"} == away


async def test_metrics_have_a_label_per_route_not_per_series(client: httpx.AsyncClient, points: Points) -> None:
    await client.post("/fit/s1", json={"data": points})
    text = (await client.get("/metrics")).text
    assert 'route="/fit/{series_id}",status="202"' in text
    assert 'training_fit_requests_total{outcome="accepted"} 1.0' in text
    assert "s1" not in text


async def test_the_documented_example_is_accepted(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    content = document["paths"]["/fit/{series_id}"]["post"]["requestBody"]["content"]["application/json"]
    assert content["schema"] == {"$ref": "#/components/schemas/FitRequest"}
    for reference in ("FitRequest", "Point", "DetectorParameters", "ErrorEnvelope"):
        assert reference in document["components"]["schemas"]
    FitRequest.model_validate_json(httpx.Request("POST", "http://x", json=FIT_EXAMPLE).content)
    first = await client.post("/fit/s1", json=FIT_EXAMPLE)
    assert first.status_code == 202
    as_csv = await client.post(
        "/fit/s1",
        content=FIT_EXAMPLE_CSV,
        headers={"Content-Type": "text/csv"},
        params=FIT_EXAMPLE["parameters"],  # type: ignore[arg-type]
    )
    assert as_csv.json()["job_id"] == first.json()["job_id"]
    assert (await client.get("/docs")).status_code == 200


def example_of(schema: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    """An object made of the examples of a schema's properties."""
    schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return {name: part["examples"][0] for name, part in schema["properties"].items() if "examples" in part}


def documented_requests(document: dict[str, Any]) -> list[tuple[str, str, bytes | None, str, set[int]]]:
    """Every operation with the examples its description gives: method, path, body, media type, good statuses.

    An operation with a required parameter that has no example is an error.
    """
    found = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            where, query = path, {}
            for parameter in operation.get("parameters", []):
                if parameter["required"]:
                    value = next(iter(parameter["examples"].values()))["value"]
                    where = where.replace(f"{{{parameter['name']}}}", str(value))
                    if parameter["in"] == "query":
                        query[parameter["name"]] = value
            url = str(httpx.URL(where, params=query)) if query else where
            good = {int(status) for status in operation["responses"] if status.startswith("2")}
            contents = operation.get("requestBody", {}).get("content", {"": {}})
            for media_type, content in contents.items():
                schema = content.get("schema", {})
                schema = next((item for item in schema.get("anyOf", []) if "$ref" in item), schema)
                if "examples" in content:
                    values = [example["value"] for example in content["examples"].values()]
                elif "$ref" in schema:
                    values = [example_of(schema, document)]
                elif media_type:
                    continue  # binary: a document cannot show one
                else:
                    values = [None]
                for value in values:
                    text = value if isinstance(value, str) or value is None else json.dumps(value)
                    found.append((method.upper(), url, text.encode() if text is not None else None, media_type, good))
    return found


async def test_every_documented_example_runs(client: httpx.AsyncClient, backend: Backend) -> None:
    """Each in a world of its own, where the series has two versions and the job is queued."""
    requests = documented_requests((await client.get("/openapi.json")).json())
    operations = {(method, url.partition("?")[0]) for method, url, *_ in requests}
    assert len(operations) == 16
    assert sum(bool(body) for _, _, body, _, _ in requests) == 4  # two of fit, one each of promote and rollback
    for method, url, body, media_type, good in requests:
        world = Backend()
        async with world.client() as fresh:
            if "/models" in url:
                world.register("sensor_17_x", ["previous"], ["production"])
            if "/jobs/" in url:
                await fresh.post("/fit/sensor_17_x", json=FIT_EXAMPLE)
                world.jobs[0] = world.jobs[0].model_copy(update={"job_id": UUID(url.rpartition("/")[2])})
            answer = await fresh.request(method, url, content=body, headers={"Content-Type": media_type})
        assert answer.status_code in good, (method, url, answer.text)


async def test_a_request_sent_again_under_its_key_is_the_same_job(
    client: httpx.AsyncClient, backend: Backend, points: Points
) -> None:
    backend.accepted = 4  # the limit lets one more pass
    key = {"Idempotency-Key": "request-7"}
    first = await client.post("/fit/s1", json={"data": points}, headers=key)
    again = await client.post("/fit/s1", json={"data": points}, headers=key)
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json()["job_id"] == first.json()["job_id"]
    assert len(backend.published) == 1
    other = await client.post("/fit/s1", json={"data": points, "parameters": {"random_state": 1}}, headers=key)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "INVALID_INPUT")
    assert other.json()["error"]["details"][0]["field"] == "Idempotency-Key"


async def test_a_key_stands_for_its_job_whatever_came_later(
    client: httpx.AsyncClient, backend: Backend, points: Points
) -> None:
    first = await client.post("/fit/s1", json={"data": points}, headers={"Idempotency-Key": "k"})
    await client.post("/fit/s1", json={"data": points, "parameters": {"random_state": 1}})
    backend.jobs[0] = backend.jobs[0].model_copy(update={"status": JobStatus.SUPERSEDED})
    again = await client.post("/fit/s1", json={"data": points}, headers={"Idempotency-Key": "k"})
    assert again.json() == first.json() | {"status": "superseded"}


async def test_a_key_of_a_request_that_was_refused_is_free(
    client: httpx.AsyncClient, backend: Backend, points: Points
) -> None:
    backend.away.add("broker")
    key = {"Idempotency-Key": "k"}
    assert (await client.post("/fit/s1", json={"data": points}, headers=key)).status_code == 503
    backend.away.clear()
    assert (await client.post("/fit/s1", json={"data": points}, headers=key)).json()["status"] == "queued"
    assert len(backend.published) == 1


@pytest.mark.parametrize("key", ["", "with space", "x" * 129])
async def test_an_unusable_key_is_refused(client: httpx.AsyncClient, points: Points, key: str) -> None:
    answer = await client.post("/fit/s1", json={"data": points}, headers={"Idempotency-Key": key})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "INVALID_INPUT")


GZIP = {"Content-Encoding": "gzip"}


async def test_a_compressed_body_is_the_same_request(client: httpx.AsyncClient, points: Points) -> None:
    plain = await client.post("/fit/s1", json={"data": points})
    packed = await client.post("/fit/s1", content=gzip.compress(json.dumps({"data": points}).encode()), headers=GZIP)
    assert packed.status_code == 202, packed.text
    assert packed.json()["job_id"] == plain.json()["job_id"]


async def test_a_bomb_is_refused_while_it_is_read(client: httpx.AsyncClient) -> None:
    taken = 0
    packer = zlib.compressobj(wbits=31)

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield packer.compress(bytes(1_000_000))

    answer = await client.post("/fit/s1", content=endless(), headers=GZIP)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "PAYLOAD_TOO_LARGE")
    assert taken < 50  # of compressed output there is some every 16 calls or so


async def test_a_compressed_body_just_within_the_limit_is_read(client: httpx.AsyncClient, points: Points) -> None:
    body = json.dumps({"data": points}).encode()
    for size, status in ((100_000, 202), (100_001, 413)):
        answer = await client.post("/fit/s1", content=gzip.compress(body.ljust(size)), headers=GZIP)
        assert answer.status_code == status, size


@pytest.mark.parametrize(
    ("content", "encoding", "status"),
    [
        (b"{}", "gzip", 400),
        (gzip.compress(b"{}", mtime=0)[:-1], "gzip", 400),
        (gzip.compress(b"{}", mtime=0) + b"x", "gzip", 400),
        (gzip.compress(b"{}", mtime=0) + gzip.compress(b"{}", mtime=0), "gzip", 400),
        (gzip.compress(b"{}", mtime=0)[:-6] + b"xxxxxx", "gzip", 400),
        (b"", "gzip", 400),
        (b"{}", "br", 415),
        (b"{}", "gzip, gzip", 415),
    ],
)
async def test_a_damaged_or_unknown_encoding_is_refused(
    client: httpx.AsyncClient, backend: Backend, content: bytes, encoding: str, status: int
) -> None:
    answer = await client.post("/fit/s1", content=content, headers={"Content-Encoding": encoding})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, "INVALID_INPUT")
    assert not backend.jobs


CSV = {"Content-Type": "text/csv; charset=utf-8"}


def csv_of(points: Points) -> str:
    return "timestamp,value\n" + "".join(f"{p['timestamp']},{p['value']!r}\n" for p in points)


async def test_csv_is_the_same_request_as_json(client: httpx.AsyncClient, backend: Backend, points: Points) -> None:
    first = await client.post("/fit/s1", json={"data": points, "parameters": {"max_samples": 1.0}, "priority": "high"})
    windows = "\ufeff" + csv_of(points).replace("\n", "\r\n") + "\r\n"
    for text in (csv_of(points), windows):
        answer = await client.post("/fit/s1?max_samples=1.0&priority=high", content=text.encode(), headers=CSV)
        assert answer.status_code == 202, answer.text
        assert answer.json()["job_id"] == first.json()["job_id"]
    # One sample is not all samples.
    assert (await client.post("/fit/s1?max_samples=1", content=csv_of(points), headers=CSV)).json() != first.json()
    packed = gzip.compress(csv_of(points).encode())
    assert (await client.post("/fit/s2", content=packed, headers=CSV | GZIP)).status_code == 202


@pytest.mark.parametrize(
    ("line", "code", "reason"),
    [
        ("1700000900,abc", "INVALID_INPUT", "str, not a number"),
        ("1700000900,", "INVALID_INPUT", "null, not a number"),
        ("1700000900,nan", "INVALID_INPUT", "nan is not"),
        ("1700000900,1e300", "INVALID_INPUT", "1e+300 is not"),
        ("1700000900,1_0", "INVALID_INPUT", "str, not a number"),
        ("2023-11-14,1", "INVALID_TIMESTAMP", "str, not a number"),
        ("1700000600,1", "INVALID_TIMESTAMP", "1700000600 repeats the timestamp before it"),
        ("1700000900000,1", "INVALID_TIMESTAMP", "1700000900000 is outside"),
        ("1700000900", "INVALID_INPUT", "`value` is missing"),
        ("1700000900,1,g", "INVALID_INPUT", "unknown field `column 3`"),
    ],
)
async def test_a_bad_line_of_csv_is_named_as_a_bad_point_of_json_is(
    client: httpx.AsyncClient, points: Points, line: str, code: str, reason: str
) -> None:
    lines = csv_of(points).splitlines()
    lines[4] = line
    answer = await client.post("/fit/s1", content="\n".join(lines), headers=CSV)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["details"][0]["index"]) == (422, code, 3), error
    assert error["details"][0]["reason"].startswith(reason), error


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/fit/s1", b"", 422, "INVALID_INPUT"),
        ("/fit/s1", b"1,2\n", 422, "INVALID_INPUT"),
        ("/fit/s1", b"value,timestamp\n1,2\n", 422, "INVALID_INPUT"),
        ("/fit/s1", b"timestamp,value\n", 422, "INSUFFICIENT_DATA"),
        ("/fit/s1", b"timestamp,value\n1,\xff\n", 400, "INVALID_INPUT"),
        ("/fit/s1", b'timestamp,value\n1,"2\n', 400, "INVALID_INPUT"),
        ("/fit/s1", b"timestamp,value\n" + b"1,2\n" * 1001, 422, "INVALID_INPUT"),
        ("/fit/s1", b"timestamp,value\n" + b"1,2\n" * 30_000, 413, "PAYLOAD_TOO_LARGE"),
    ],
)
async def test_bad_csv_is_refused(client: httpx.AsyncClient, path: str, body: bytes, status: int, code: str) -> None:
    answer = await client.post(path, content=body, headers=CSV)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


async def test_too_many_lines_are_counted(client: httpx.AsyncClient) -> None:
    answer = await client.post("/fit/s1", content="timestamp,value\n" + "1,2\n" * 1234, headers=CSV)
    assert answer.json()["error"]["message"] == "1234 points are more than the 1000 allowed"


@pytest.mark.parametrize("query", ["trees=3", "parameters=3", "n_estimators=many", "priority=now"])
async def test_an_unknown_option_in_the_query_is_refused(client: httpx.AsyncClient, points: Points, query: str) -> None:
    for body in ({"content": csv_of(points), "headers": CSV}, {"json": {"data": points}}):
        answer = await client.post(f"/fit/s1?{query}", **body)
        assert (answer.status_code, answer.json()["error"]["message"]) == (422, "a parameter is not acceptable")


async def test_options_of_a_json_body_stand_before_those_of_the_query(
    client: httpx.AsyncClient, backend: Backend, points: Points
) -> None:
    body = {"data": points, "parameters": {"n_estimators": 7}}
    await client.post("/fit/s1?n_estimators=9&random_state=3&priority=high", json=body)
    ((routing_key, message, _),) = backend.published
    assert routing_key == "training.job.priority"
    assert message.parameters == DetectorParameters(n_estimators=7, random_state=3)
    await client.post("/fit/s2?priority=high", json=body | {"priority": "standard"})
    assert backend.published[1][0] == "training.job.standard"


async def test_the_options_are_documented_as_parameters_of_the_query(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    documented = {item["name"]: item for item in document["paths"]["/fit/{series_id}"]["post"]["parameters"]}
    query = {name: item for name, item in documented.items() if item["in"] == "query"}
    assert query.keys() == {"detector", "priority"} | DetectorParameters.model_fields.keys()
    assert {"path", "header"} == {item["in"] for item in documented.values()} - {"query"}
    assert not any(item["required"] for item in query.values())
    assert all(item["description"] for item in query.values())
    assert query["priority"]["schema"]["enum"] == ["standard", "high"]
    schema = query["n_estimators"]["schema"]
    assert (schema["type"], schema["minimum"], schema["maximum"], schema["default"]) == ("integer", 1, 500, 100)
    assert "$ref" not in json.dumps(list(query.values())), "a reference would lead to a schema that is not there"


PARQUET = {"Content-Type": "application/vnd.apache.parquet"}


def parquet_of(columns: dict[str, Any], compression: str | None = None) -> bytes:
    """A file with these columns: NumPy arrays, or lists of Python values with their type."""
    arrays: dict[str, Any] = {
        name: arro3.core.Array(*column) if isinstance(column, tuple) else arro3.core.Array.from_numpy(column)
        for name, column in columns.items()
    }
    file = io.BytesIO()
    arro3.io.write_parquet(arro3.core.Table.from_pydict(arrays), file, compression=compression)
    return file.getvalue()


@pytest.mark.parametrize("compression", [None, "snappy", "gzip(6)", "zstd(3)", "lz4_raw", "brotli(3)"])
async def test_parquet_is_the_same_request_as_json(
    client: httpx.AsyncClient, points: Points, compression: str | None
) -> None:
    first = await client.post("/fit/s1", json={"data": points, "parameters": {"max_samples": 1.0}, "priority": "high"})
    body = parquet_of(
        {
            "value": np.array([point["value"] for point in points]),
            "timestamp": np.array([int(point["timestamp"]) for point in points]),
        },
        compression,
    )
    for content, headers in ((body, PARQUET), (gzip.compress(body), PARQUET | GZIP)):
        answer = await client.post("/fit/s1?max_samples=1.0&priority=high", content=content, headers=headers)
        assert answer.status_code == 202, answer.text
        assert answer.json()["job_id"] == first.json()["job_id"]


TIMES = np.arange(200) * 300 + 1_700_000_000
VALUES = np.sin(np.arange(200.0))


def replaced(column: Any, index: int, item: Any) -> Any:
    changed = column.copy()
    changed[index] = item
    return changed


@pytest.mark.parametrize(
    ("columns", "code", "detail"),
    [
        ({"timestamp": TIMES}, "INVALID_INPUT", {"field": "columns", "reason": "they are 'timestamp'"}),
        (
            {"timestamp": TIMES, "value": VALUES, "unit": VALUES},
            "INVALID_INPUT",
            {"field": "columns", "reason": "they are 'timestamp, value, unit'"},
        ),
        (
            {"timestamp": TIMES, "value": (["1.0"] * 200, arro3.core.DataType.utf8())},
            "INVALID_INPUT",
            {"field": "value", "reason": "Utf8, not a number"},
        ),
        (
            {"timestamp": TIMES.astype("datetime64[ms]"), "value": VALUES},
            "INVALID_TIMESTAMP",
            {"field": "timestamp", "reason": "Timestamp(ms), not a number"},
        ),
        (
            {"timestamp": TIMES, "value": ([1.0, 2.0, None, *range(197)], arro3.core.DataType.float64())},
            "INVALID_INPUT",
            {"index": 2, "reason": "null, not a number"},
        ),
        (
            {"timestamp": TIMES, "value": replaced(VALUES, 3, math.nan)},
            "INVALID_INPUT",
            {"index": 3, "reason": "nan is not"},
        ),
        (
            {"timestamp": replaced(TIMES, 7, TIMES[6]), "value": VALUES},
            "INVALID_TIMESTAMP",
            {"index": 7, "reason": "1700001800 repeats the timestamp before it"},
        ),
        (
            {"timestamp": TIMES[:99], "value": VALUES[:99]},
            "INSUFFICIENT_DATA",
            {"field": "data", "reason": "at least 100 points"},
        ),
        (
            {"timestamp": np.arange(1001), "value": np.arange(1001.0)},
            "INVALID_INPUT",
            {"field": "data", "reason": "at most 1000 points"},
        ),
    ],
)
async def test_bad_parquet_is_named_as_bad_json_is(
    client: httpx.AsyncClient, columns: dict[str, Any], code: str, detail: dict[str, Any]
) -> None:
    answer = await client.post("/fit/s1", content=parquet_of(columns), headers=PARQUET)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (422, code), error
    assert error["details"][0] == detail


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b"PAR1", lambda b: b[:-9], lambda b: b"x" * 50 + b[50:]])
async def test_a_damaged_file_is_no_parquet(client: httpx.AsyncClient, damage: Callable[[bytes], bytes]) -> None:
    body = damage(parquet_of({"timestamp": TIMES, "value": VALUES}))
    answer = await client.post("/fit/s1", content=body, headers=PARQUET)
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "the body is not Parquet")
    assert answer.json()["error"]["details"][0]["reason"]


async def test_a_file_that_grows_beyond_the_limit_is_not_read(client: httpx.AsyncClient) -> None:
    """5 million equal values in a few kilobytes: refused by their number, or by the memory that one page takes."""
    many = parquet_of({"timestamp": np.zeros(5_000_000), "value": np.zeros(5_000_000)}, "zstd(3)")
    assert len(many) < 100_000
    answer = await client.post("/fit/s1", content=many, headers=PARQUET)
    assert (answer.status_code, answer.json()["error"]["code"]) in ((422, "INVALID_INPUT"), (413, "PAYLOAD_TOO_LARGE"))


def test_the_reader_takes_no_more_memory_than_it_may() -> None:
    reader = Path(parquet.__file__).with_name("parquet_reader.py")
    hungry = f"import sys, runpy; m = runpy.run_path({str(reader)!r}); m['limit'](); bytearray(80 * 1024 * 1024)"
    done = subprocess.run([sys.executable, "-I", "-c", hungry], capture_output=True, text=True, check=False)
    assert "MemoryError" in done.stderr


@pytest.mark.parametrize(
    ("parameters", "ok"),
    [
        ({"n_estimators": 500, "max_samples": 5000}, True),
        ({"n_estimators": 500, "max_samples": 1.0}, False),
        ({"n_estimators": 250, "max_samples": 1.0}, True),
        ({"n_estimators": 251, "max_samples": 1.0}, False),
        ({"n_estimators": 500}, True),
    ],
)
def test_a_forest_too_large_is_refused(parameters: dict[str, Any], ok: bool) -> None:
    columns = {"timestamp": np.arange(10_000), "value": np.arange(10_000.0)}
    query = {name: json.dumps(value) for name, value in parameters.items()}
    limits = {"min_points": 100, "max_points": 10_000}
    if ok:
        read_fit(parquet_of(columns), PARQUET["Content-Type"], query, **limits)
    else:
        with pytest.raises(AppError, match=r"INVALID_INPUT: .* allowed for a forest") as caught:
            read_fit(parquet_of(columns), PARQUET["Content-Type"], query, **limits)
        assert caught.value.details[0]["field"] == "parameters.max_samples"


@pytest.mark.parametrize("extra", [{"detector": "lof"}, {"params": {}, "parameters": {}}])
async def test_an_unknown_detector_and_parameters_given_twice_are_refused(
    client: httpx.AsyncClient, points: Points, extra: dict[str, Any]
) -> None:
    answer = await client.post("/fit/s1", json={"data": points} | extra)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "INVALID_INPUT")


async def test_the_short_name_of_the_parameters(client: httpx.AsyncClient, points: Points) -> None:
    long = await client.post("/fit/s1", json={"data": points, "parameters": {"random_state": 1}})
    short = await client.post(
        "/fit/s1", json={"data": points, "params": {"random_state": 1}, "detector": "isolation_forest"}
    )
    query = await client.post("/fit/s1?random_state=1&detector=isolation_forest", content=csv_of(points), headers=CSV)
    assert long.json()["job_id"] == short.json()["job_id"] == query.json()["job_id"]


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/fit/a", "POST"),
        ("/jobs/26d1dd9c-a9c4-42ca-a6ad-71da9c46a5a8", "DELETE, GET"),
        ("/models/a/versions/1", "DELETE, GET"),
    ],
)
async def test_a_path_tells_all_of_its_methods(backend: Backend, path: str, allowed: str) -> None:
    async with backend.client() as client:
        answer = await client.patch(path)
    assert (answer.status_code, answer.headers["Allow"]) == (405, allowed)
