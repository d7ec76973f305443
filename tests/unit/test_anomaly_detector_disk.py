"""Models on the local disk: what answers when memory has no room and nobody else does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from unit.inference_world import Mlflow, Store, World, code, replica

from anomaly_detector.disk import ModelDisk
from anomaly_detector.settings import InferenceSettings


def files(folder: Path) -> set[str]:
    """What is in a directory."""
    return {file.name for file in folder.iterdir()}


async def test_a_replica_that_starts_while_everything_is_away_serves_what_is_on_the_disk(
    own_settings: InferenceSettings, blobs: list[bytes]
) -> None:
    mlflow, store = Mlflow(), Store()
    async with replica(mlflow, store, own_settings) as before:
        before.publish("a", blobs[0])
        before.publish("a", blobs[1])
        expected = [(await before.predict("a", 100, version=version)).json() for version in (None, 1)]
    mlflow.away = store.away = True
    async with replica(mlflow, store, own_settings) as after:
        assert [(await after.predict("a", 100, version=version)).json() for version in (None, 1)] == expected
        assert [answer["source"] for answer in expected] == ["model", "model"]
        assert code(await after.predict("never_seen")) == (503, "SERVICE_UNAVAILABLE")
        health = (await after.client.get("/health")).json()
        assert health["cache"]["stale_models"] == 1, "which version is in production may have changed, version 1 not"
        assert health["cache"]["stale_answers"] == 1
        assert health["cache"]["disk"]["models"] == 2
        # Back again: the next try finds what is in production now, and no blob has to be read for it.
        mlflow.away = store.away = False
        reads = store.reads
        after.time = 31
        assert (await after.predict("a", 100)).json() == expected[0]
        assert after.service.cache.stale_models == 0
        assert store.reads == reads


async def test_a_model_without_room_in_memory_comes_from_the_disk(world: World, blobs: list[bytes]) -> None:
    world.service.cache.max_bytes = 10
    world.publish("a", blobs[0])
    answers = [(await world.predict("a", 3.0)).json() for _ in range(3)]
    assert answers[0] == answers[1] == answers[2]
    assert world.store.reads == 1
    world.mlflow.away = True
    assert (await world.predict("a", 3.0)).json() == answers[0]


async def test_the_version_before_answers_while_the_new_one_cannot_be_read(
    own_settings: InferenceSettings, blobs: list[bytes]
) -> None:
    mlflow, store = Mlflow(), Store()
    async with replica(mlflow, store, own_settings) as before:
        before.publish("a", blobs[0])
        await before.predict("a")
    async with replica(mlflow, store, own_settings) as after:
        after.publish("a", blobs[1])
        store.away = True
        answer = (await after.predict("a")).json()
        assert (answer["model_version"], answer["source"]) == (1, "model")


@pytest.mark.parametrize("damage", ["truncated", "changed", "of another model"])
async def test_damaged_files_are_never_served(own_settings: InferenceSettings, blobs: list[bytes], damage: str) -> None:
    mlflow, store = Mlflow(), Store()
    async with replica(mlflow, store, own_settings) as before:
        before.publish("a", blobs[0])
        expected = (await before.predict("a")).json()
    file = own_settings.model_disk_directory / "a.1.ads"
    assert file.read_bytes() == blobs[0]
    damaged = {"truncated": blobs[0][:-1], "changed": blobs[0][:-1] + b"\0", "of another model": blobs[1]}[damage]
    file.write_bytes(damaged)
    async with replica(mlflow, store, own_settings) as after:
        assert (await after.predict("a")).json() == expected
        assert store.reads == 2
        assert file.read_bytes() == blobs[0]
    if damage == "of another model":
        return  # whole, and who knows better is away: see the test above
    file.write_bytes(damaged)
    mlflow.away = True
    async with replica(mlflow, store, own_settings) as alone:
        assert code(await alone.predict("a")) == (503, "SERVICE_UNAVAILABLE")
        assert not file.exists()


async def test_a_model_that_is_deleted_does_not_come_back(world: World, blobs: list[bytes]) -> None:
    world.publish("a", blobs[0])
    await world.predict("a")
    del world.mlflow.versions["a"]
    world.time = 101
    assert code(await world.predict("a")) == (404, "MODEL_NOT_FOUND")
    assert files(world.service.settings.model_disk_directory) == set()
    world.mlflow.away = True
    world.time = 110
    assert (await world.predict("a")).json()["source"] == "fallback"


async def test_eviction_clears_the_disk_too(world: World, blobs: list[bytes]) -> None:
    for series_id in ("a", "ab"):
        world.publish(series_id, blobs[0])
        await world.predict(series_id)
        await world.predict(series_id, version=1)
    await world.client.delete("/cache/a")
    assert files(world.service.settings.model_disk_directory) == {"ab.1.ads", "ab.production"}


async def test_a_disk_that_does_not_work_costs_no_answer(
    own_settings: InferenceSettings, blobs: list[bytes], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a directory")
    settings = own_settings.model_copy(update={"model_disk_directory": tmp_path / "file"})
    async with replica(Mlflow(), Store(), settings) as world:
        world.publish("a", blobs[0])
        assert (await world.predict("a")).json()["source"] == "model"
        assert (await world.client.get("/health")).json()["cache"]["disk"]["failures"] > 0


async def test_no_disk_is_used_where_none_is_allowed(own_settings: InferenceSettings, blobs: list[bytes]) -> None:
    settings = own_settings.model_copy(update={"model_disk_max_bytes": 0})
    async with replica(Mlflow(), Store(), settings) as world:
        world.publish("a", blobs[0])
        assert (await world.predict("a")).status_code == 200
        assert (await world.client.delete("/cache/a")).status_code == 200
        assert (await world.client.get("/cache")).json()["disk"] is None
        assert "model_disk" not in (await world.client.get("/metrics")).text
    assert not settings.model_disk_directory.exists()


def test_the_least_recently_used_are_removed_and_the_limit_is_kept(tmp_path: Path) -> None:
    block = bytes(4096)
    disk = ModelDisk(tmp_path, 20 * 4096)
    for index in range(18):
        disk.write(f"s{index}", 1, block)
        disk.set_production(f"s{index}", 1)
        os.utime(tmp_path / f"s{index}.1.ads", (1000 + index, 1000 + index))
    assert disk.read("s0", 1) == block  # used again
    disk.touch("s1", 1)
    disk.touch("nothing", 1)
    for index in range(18, 22):
        disk.write(f"s{index}", 1, block)
    kept = files(tmp_path)
    assert {"s0.1.ads", "s1.1.ads", "s21.1.ads", "s0.production"} <= kept
    assert not {"s2.1.ads", "s3.1.ads", "s2.production"} & kept, "nor a link that leads nowhere"
    assert disk.nbytes <= disk.max_bytes
    assert disk.models == sum(name.endswith(".ads") for name in kept)
    assert disk.statistics.evictions == 22 - disk.models
    assert disk.read("s2", 1) is None


def test_replicas_share_what_there_is_and_its_limit(tmp_path: Path) -> None:
    one, other = ModelDisk(tmp_path, 100 * 4096), ModelDisk(tmp_path, 100 * 4096)
    for index in range(100):
        one.write(f"one{index}", 1, bytes(4096))
        other.write(f"other{index}", 1, bytes(4096))
    assert other.read("one99", 1) == one.read("other99", 1) == bytes(4096)
    assert len(files(tmp_path)) <= 105
    assert ModelDisk(tmp_path, 10 * 4096).models <= 10, "a smaller limit is kept from the start"


def test_what_an_ended_process_left_half_written_is_removed(tmp_path: Path) -> None:
    for name, age in ((".old", 1), (".new", None)):
        (tmp_path / name).write_bytes(b"half")
        if age:
            os.utime(tmp_path / name, (age, age))
    ModelDisk(tmp_path, 1000)
    assert files(tmp_path) == {".new"}
