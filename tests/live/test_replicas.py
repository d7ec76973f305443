"""Several replicas: every series has one of them, whichever comes or goes."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from chart_harness.live import wait_for
from live.system import PROBE, System, points, unique

REPLICAS = 3


@pytest.fixture(scope="module")
def replicas(system: System) -> Iterator[set[str]]:
    """The names of the replicas, once there are three that answer; afterwards there are as many as before."""
    with system.with_values({"ray-serve": {"serve": {"replicas": REPLICAS, "autoscaling": {"enabled": False}}}}):
        yield wait_for(lambda: answering(system, REPLICAS), f"{REPLICAS} replicas to answer", 180)


def answering(system: System, count: int) -> set[str]:
    """The replicas that answer, which have to be so many and to know of each other."""
    cache = system.inference.request("GET", "/cache").json()
    assert len(cache["replicas"]) == count, cache["replicas"].keys()
    assert not cache["unreachable"]
    found = set(owners(system, [f"s{i}" for i in range(60)]).values())
    assert found == set(cache["replicas"])
    return found


def owners(system: System, series: list[str]) -> dict[str, str]:
    """Who answers for each series; asked with a version that is none, so that no model is looked for."""
    found = {}
    for name in series:
        answer = system.inference.request("GET", f"/drift/{name}?version=none")
        assert answer.status_code == 422, f"{answer.status_code} {answer.text}"
        found[name] = answer.headers["X-Replica"]
    return found


def test_replicas_follow_the_load(system: System) -> None:
    """A second one comes while the first uses more CPU than it is meant to."""
    series = unique("loaded")
    system.model(series, seed=60)
    body = {"data": points(8000, seed=61)}
    enough = threading.Event()

    def load() -> None:
        while not enough.is_set():
            assert system.inference.request("POST", f"/predict/{series}/batch", json=body).status_code == 200

    scaling = {"enabled": True, "minReplicas": 1, "maxReplicas": 2, "targetCpuUtilization": 20}
    with system.with_values({"ray-serve": {"serve": {"autoscaling": scaling}}}), ThreadPoolExecutor(2) as threads:
        answering(system, 1)
        loads = [threads.submit(load) for _ in range(2)]
        try:
            wait_for(lambda: answering(system, 2), "a second replica", 180)
        finally:
            enough.set()
        for each in loads:
            each.result()


def test_every_route_of_a_series_leads_to_one_replica(system: System, replicas: set[str]) -> None:
    series = [unique("owned") for _ in range(20)]
    owner = owners(system, series)
    assert set(owner.values()) <= replicas
    for name, (method, path) in itertools.product(
        series,
        (
            ("POST", "/predict/{}?version=none"),
            ("POST", "/predict/{}/batch?version=none"),
            ("GET", "/plot/{}?version=none"),
            ("POST", "/v2/models/{}/versions/none/infer"),
            ("PUT", "/cache/{}"),
        ),
    ):
        answer = system.inference.request(method, path.format(name), json=PROBE)
        assert answer.headers["X-Replica"] == owner[name], f"{method} {path}"
    # What is of no series is answered by all.
    anyone = {system.inference.request("GET", "/health/live").headers["X-Replica"] for _ in range(30)}
    assert anyone == replicas


def test_replicas_divide_the_models(system: System, replicas: set[str]) -> None:
    series = [unique("divided") for _ in range(6)]
    jobs = [system.fit(name, points(300, seed=40 + i)) for i, name in enumerate(series)]
    for job in jobs:
        system.succeeded(job)

    def predicted(name: str) -> None:
        assert system.predict(name, PROBE).json()["source"] == "model"

    # Two at once: requests that meet at a replica stay there while there is little to do.
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(predicted, series * 20))
    cache = system.inference.request("GET", "/cache?limit=1000").json()
    held = Counter(entry["series_id"] for entry in cache["entries"] if entry["series_id"] in series)
    assert held == dict.fromkeys(series, 1), "a model is in several replicas"
    at = {entry["series_id"]: entry["replica"] for entry in cache["entries"] if entry["series_id"] in series}
    assert at == owners(system, series)
    metrics = system.inference.request("GET", "/metrics").text
    for name in replicas:
        assert f'model_cache_models{{replica="{name}"}}' in metrics
    dropped = system.inference.request("DELETE", f"/cache/{series[0]}").json()
    assert dropped["evicted"] == 1
    warmed = system.inference.request("POST", "/cache/warm", json={"series": series}).json()["results"]
    assert {name: warmed[name]["replica"] for name in series} == at


def test_a_hot_series_is_answered_by_several(system: System, replicas: set[str]) -> None:
    series = unique("hot")
    system.model(series, seed=50)
    body = {"data": points(8000, seed=51)}
    url = f"{system.inference.url()}/predict/{series}/batch"

    def ask(_: int) -> str:
        answer = httpx.post(url, json=body, timeout=60, trust_env=False)
        assert answer.status_code == 200, answer.text
        return answer.headers["X-Replica"]

    with ThreadPoolExecutor(24) as threads:
        shares = Counter(threads.map(ask, range(240)))
    print(f"a hot series: {dict(shares)}")
    assert len(shares) >= 2
    assert max(shares.values()) < 240 * 0.75
    # Left alone it is at home again.
    assert len({system.predict(series, PROBE).headers["X-Replica"] for _ in range(10)}) == 1


def test_the_end_of_a_replica_moves_its_share_alone(system: System, replicas: set[str]) -> None:
    series = [f"moved_{i}" for i in range(300)]
    before = owners(system, series)
    shares = Counter(before.values())
    print(f"shares of {len(series)} series: {dict(shares)}")
    assert min(shares.values()) > len(series) / REPLICAS / 2
    system.end_replicas(1)

    def moved() -> dict[str, str]:
        after = owners(system, series)
        assert len(set(after.values()) & replicas) < REPLICAS, "nothing has ended yet"
        return after

    after = wait_for(moved, "the replica to be missed", 60)
    (dead,) = replicas - set(after.values())
    new = set(after.values()) - replicas
    strays = [one for one in series if before[one] not in (dead, after[one]) and after[one] not in new]
    assert strays == [], f"{len(strays)} series have moved between replicas that live"
    heirs = {after[one] for one in series if before[one] == dead}
    assert len(heirs) >= 2, "one replica inherits everything"
    print(f"{shares[dead]} series moved, to {len(heirs)} replicas")
    wait_for(lambda: answering(system, REPLICAS), "a new replica", 180)
