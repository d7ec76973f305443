"""Which models are used most, and a new replica that loads them before it is asked."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from pathlib import Path

import orjson
import pytest
from unit.inference_world import Mlflow, Store, World, replica

from anomaly_detector.api import keep_warm
from anomaly_detector.disk import ModelDisk
from anomaly_detector.peers import Peers
from anomaly_detector.settings import InferenceSettings
from anomaly_detector.usage import HALF_LIFE_SECONDS, Usage

pytestmark = pytest.mark.anyio


def in_memory(world: World) -> set[str]:
    return {series_id for series_id, _, _ in world.service.cache.state(99)}


async def run(world: World, until_loads: int = 0) -> None:
    """Keep warm until so many models were loaded and the uses were written."""
    usage = world.service.settings.model_disk_directory / "most-used" / f"{world.service.peers.own}.json"
    task = asyncio.create_task(keep_warm(world.service, poll_seconds=0.001, write_seconds=0.01))
    async with asyncio.timeout(20):
        while world.service.cache.statistics.loads < until_loads or not usage.exists():  # noqa: ASYNC110 - it is a file
            await asyncio.sleep(0.005)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_a_new_replica_loads_what_was_used_most(own_settings: InferenceSettings, blobs: list[bytes]) -> None:
    settings = own_settings.model_copy(update={"model_cache_warm_models": 2})
    mlflow, store = Mlflow(), Store()
    configuration = settings.model_disk_directory.parent / "haproxy.cfg"
    async with replica(mlflow, store, settings) as first:
        for name, uses in (("rare", 1), ("often", 5), ("gone", 4), ("some", 3)):
            first.publish(name, blobs[0])
            for _ in range(uses):
                await first.predict(name)
        await run(first)
    configuration.write_text("    server SERVE_REPLICA_x-second 127.0.0.1:30001 check\n")
    peers = Peers("second", configuration, "http://entrance")
    del mlflow.versions["gone"]  # fewer than asked for are loaded, and the replica starts all the same
    async with replica(mlflow, store, settings, peers) as second:
        reads = store.reads
        await run(second, until_loads=1)
        assert in_memory(second) == {"often"}
        assert store.reads == reads, "the disk has it"


async def test_with_no_number_nothing_is_kept(own_settings: InferenceSettings, blobs: list[bytes]) -> None:
    settings = own_settings.model_copy(update={"model_cache_warm_models": 0})
    async with replica(Mlflow(), Store(), settings) as world:
        await keep_warm(world.service)  # ends at once
    assert not (settings.model_disk_directory / "most-used").exists()


async def test_a_new_version_keeps_the_uses_of_its_series(world: World, blobs: list[bytes]) -> None:
    world.publish("a", blobs[0])
    for _ in range(3):
        await world.predict("a")
    await world.predict("a", version=1)
    world.publish("a", blobs[1])
    world.service.cache.refresh("a")
    await world.settle()
    assert list(world.service.cache.uses()) == [(3.0, "a")]
    world.service.cache.use_weight = 2.0
    await world.predict("a")
    assert list(world.service.cache.uses()) == [(2.5, "a")]


def test_later_uses_count_more_and_replicas_together(tmp_path: Path) -> None:
    one, two = (Usage(tmp_path, name, 3) for name in ("one", "two"))
    one.write([(4.0, "a"), (3.0, "b"), (1.0, "c"), (0.5, "d")])
    two.write([(1.5, "b"), (3.9, "e")])
    assert one.most() == ["b", "a", "e"]
    kept = tmp_path / "most-used" / "one.json"
    written = orjson.loads(kept.read_bytes())
    assert "d" not in written["uses"]
    kept.write_bytes(orjson.dumps(written | {"at": written["at"] - HALF_LIFE_SECONDS}))
    assert one.most() == ["e", "b", "a"]


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"at": "x", "uses": {}}', b'{"at": 1, "uses": {"a": "x"}}'])
def test_a_damaged_file_is_left_out(tmp_path: Path, content: bytes) -> None:
    usage = Usage(tmp_path, "one", 3)
    assert usage.most() == []
    usage.write([(1.0, "a")])
    (tmp_path / "most-used" / "two.json").write_bytes(content)
    assert usage.most() == ["a"]


def test_old_files_go_and_the_disk_leaves_the_others_alone(tmp_path: Path) -> None:
    usage = Usage(tmp_path, "one", 3)
    old = tmp_path / "most-used" / "old.json"
    usage.write([(1.0, "a")])
    old.write_bytes(b"{}")
    os.utime(old, (time.time() - 8 * 86_400,) * 2)
    usage.write([(2.0, "b")])
    assert not old.exists()
    disk = ModelDisk(tmp_path, 10_000)
    for i in range(20):
        disk.write(f"s{i}", 1, b"x" * 1000)
    assert disk.models < 20
    assert usage.most() == ["b"]
