"""Drift: recent scores against those of the training."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from unit.inference_world import World, code

from anomaly_detection.contracts import DetectorParameters
from anomaly_detection.scoring import ScoreHistogram, ScoringModel, fit_isolation_forest
from anomaly_detector.drift import HALF_LIFE_POINTS, MINIMUM_POINTS, DriftRanking, DriftState, RecentScores, state_of


@pytest.fixture(scope="module")
def model() -> ScoringModel:
    """A model of normal noise."""
    return fit_isolation_forest(np.random.default_rng(1).normal(size=5000), DetectorParameters())[1]


def recent(model: ScoringModel, values: Any) -> RecentScores:
    """The recent scores of a model after a batch of values."""
    assert model.baseline
    scores = RecentScores(model.baseline)
    scores.add_many(model.score(values))
    return scores


def test_the_same_distribution_is_stable_and_others_are_not(model: ScoringModel) -> None:
    generator = np.random.default_rng(2)
    states = {
        name: state_of(recent(model, values))
        for name, values in {
            "same": generator.normal(size=2000),
            "shifted": generator.normal(1.5, 1, 2000),
            "wider": generator.normal(0, 2, 2000),
            "stuck": np.zeros(2000),
        }.items()
    }
    assert states == {
        "same": DriftState.STABLE,
        "shifted": DriftState.MAJOR,
        "wider": DriftState.MAJOR,
        "stuck": DriftState.MAJOR,
    }


def test_the_index_is_the_population_stability_index() -> None:
    """Against its definition, with shares worked out by hand."""
    scores = RecentScores(ScoreHistogram((0.4, 0.6), (50_000, 30_000, 20_000)))
    scores.add_many(np.repeat([0.3, 0.4, 0.6], [300_000, 400_000, 300_000]))
    expected = sum((q - p) * math.log(q / p) for p, q in ((0.5, 0.3), (0.3, 0.4), (0.2, 0.3)))
    assert scores.index == pytest.approx(expected, rel=1e-3)


def test_single_points_and_batches_count_alike(model: ScoringModel) -> None:
    values = np.random.default_rng(3).normal(1, 1, 1000)
    batch, single = recent(model, values), recent(model, values[:0])
    for score in model.score(values).tolist():
        single.add(score)
    assert single.measure() == pytest.approx(batch.measure(), rel=0.02)
    assert sum(batch.counts()) == pytest.approx(1000)
    assert 960 < sum(single.counts()) < 1000, "the older of single points count less already"


def test_too_few_points_say_nothing(model: ScoringModel) -> None:
    scores = recent(model, np.full(MINIMUM_POINTS - 1, 9.0))
    assert state_of(scores) is DriftState.UNKNOWN
    assert math.isnan(scores.measure())
    assert state_of(None) is DriftState.UNKNOWN
    scores.add_many(model.score(np.full(200, 9.0)))
    assert state_of(scores) is DriftState.MAJOR


def test_what_is_long_ago_is_forgotten(model: ScoringModel) -> None:
    generator = np.random.default_rng(4)
    scores = recent(model, np.full(HALF_LIFE_POINTS, 9.0))
    assert state_of(scores) is DriftState.MAJOR
    for _ in range(10):
        scores.add_many(model.score(generator.normal(size=HALF_LIFE_POINTS)))
    assert state_of(scores) is DriftState.STABLE


def test_counting_goes_on_for_ever(model: ScoringModel) -> None:
    """The weight of a point grows, and is brought back before it is too large a number."""
    scores = recent(model, np.zeros(0))
    for _ in range(300):
        scores.add_many(model.score(np.zeros(32_768)))
    counts = scores.counts()
    assert all(math.isfinite(count) for count in counts)
    assert 32_768 < sum(counts) < 2 * 32_768


def test_a_model_without_a_baseline_loads_and_has_no_drift(model: ScoringModel) -> None:
    """As blobs were before there was one."""
    old = ScoringModel(model.threshold, model.breakpoints, model.scores, model.mean, model.std, model.training)
    blob = old.to_bytes()
    assert b"baseline" not in blob
    assert ScoringModel.from_bytes(blob).baseline is None


async def test_drift_route(world: World, model: ScoringModel) -> None:
    world.publish("a", model.to_bytes())
    before = (await world.client.get("/drift/a")).json()
    assert (before["state"], before["psi"], before["recent_points"], before["model_version"]) == ("unknown", None, 0, 1)
    assert before["histogram"]["recent"] is None
    values = np.random.default_rng(5).normal(3, 1, 600).tolist()
    data = [{"timestamp": index, "value": value} for index, value in enumerate(values)]
    await world.client.post("/predict/a/batch", json={"data": data})
    await world.predict("a", 3.0)
    after = (await world.client.get("/drift/a")).json()
    assert after["state"] == "major"
    assert after["psi"] > after["thresholds"]["major"]
    assert after["recent_points"] == pytest.approx(601, abs=0.1)
    for shares in (after["histogram"]["training"], after["histogram"]["recent"]):
        assert sum(shares) == pytest.approx(1)
        assert len(shares) == len(after["histogram"]["edges"]) + 1
    assert (await world.client.get("/drift")).json() == {"measured_models": 1, "largest": [after], "unreachable": []}
    metrics = (await world.client.get("/metrics")).text
    assert 'model_drift_models{replica="alone",state="major"} 1.0' in metrics
    assert f'model_drift_psi_max{{replica="alone"}} {after["psi"]}'[:43] in metrics


async def test_a_new_version_starts_anew(world: World, model: ScoringModel, blobs: list[bytes]) -> None:
    world.publish("a", model.to_bytes())
    for index in range(3):
        await world.predict("a", index)
    world.publish("a", blobs[0])
    world.service.cache.refresh("a")
    await world.settle()
    answer = (await world.client.get("/drift/a")).json()
    assert (answer["model_version"], answer["recent_points"]) == (2, 0)


async def test_an_unchanged_model_keeps_its_recent_scores_when_it_is_asked_for_again(
    world: World, model: ScoringModel
) -> None:
    world.publish("a", model.to_bytes())
    await world.predict("a")
    world.time = 101
    await world.predict("a")
    assert (await world.client.get("/drift/a")).json()["recent_points"] == pytest.approx(2, abs=0.1)


async def test_plots_and_the_fallback_are_no_recent_points(world: World, model: ScoringModel) -> None:
    world.publish("a", model.to_bytes())
    await world.client.post("/plot/a", json={"data": [{"timestamp": 1, "value": 1}]})
    assert (await world.client.get("/drift/a")).json()["recent_points"] == 0
    assert world.service.predictor.answers.model == 0


async def test_drift_of_what_is_not_there(world: World) -> None:
    assert code(await world.client.get("/drift/unknown")) == (404, "MODEL_NOT_FOUND")
    assert code(await world.client.get("/drift/not-a-series")) == (422, "INVALID_INPUT")
    assert (await world.client.get("/drift")).json() == {"measured_models": 0, "largest": [], "unreachable": []}


async def test_major_drift_is_told_once(world: World, model: ScoringModel) -> None:
    world.publish("a", model.to_bytes())
    waiting = world.service.drift.waiting

    async def batch(values: list[float], version: str = "") -> None:
        data = [{"timestamp": 1_700_000_000 + i, "value": value} for i, value in enumerate(values)]
        answer = await world.client.post(f"/predict/a/batch{version}", json={"data": data})
        assert answer.status_code == 200

    strange = [50.0 + i for i in range(600)]
    await batch(strange, "?version=1")
    assert not waiting, "a version that is asked for is not the one in production"
    await batch(strange)
    await batch(strange)
    assert len(waiting) == 1
    event = waiting[0]
    assert (event.series_id, event.model_version, event.replica) == ("a", 1, "alone")
    assert event.population_stability_index >= event.threshold
    assert event.routing_key() == "drift.detected.a"
    # What is over and begins again is told again.
    loaded = world.service.cache.peek("a", None)
    assert loaded is not None
    assert loaded.recent is not None
    loaded.recent.index = 0.05
    world.service.drift.notice("a", loaded)
    await batch(strange)
    assert len(waiting) == 2


def test_ranking_follows_models_that_come_change_and_go() -> None:
    ranking = DriftRanking()
    scores = {name: RecentScores(ScoreHistogram((0.5,), (1, 1))) for name in "abcd"}
    for name, recent in scores.items():
        ranking.put(name, recent)
    assert (len(ranking), ranking.states[DriftState.UNKNOWN]) == (0, 4)
    for name, index in (("a", 0.3), ("b", 0.05), ("c", 0.15), ("d", 0.3)):
        scores[name].index = index
        ranking.put(name, scores[name])
    ranking.put("old", None)
    assert ranking.largest(3) == [(0.3, "d"), (0.3, "a"), (0.15, "c")]
    assert (ranking.largest(0), len(ranking.largest(99)), len(ranking)) == ([], 4, 4)
    assert dict(ranking.states) == {"unknown": 1, "stable": 1, "moderate": 1, "major": 2}
    scores["d"].index = 0.01
    ranking.put("d", scores["d"])
    ranking.remove("a")
    ranking.remove("a")
    ranking.remove("old")
    assert ranking.largest(9) == [(0.15, "c"), (0.05, "b"), (0.01, "d")]
    assert +ranking.states == {"stable": 2, "moderate": 1}


async def test_what_is_counted_is_what_is_in_memory(world: World, blobs: list[bytes]) -> None:
    """Sums that are kept up to date, against a look at every model."""
    cache = world.service.cache
    for i in range(6):
        world.publish(f"s{i}", blobs[0])
        await world.client.post(
            f"/predict/s{i}/batch", json={"data": [{"timestamp": t, "value": t} for t in range(600)]}
        )
    cache.max_bytes = 4 * cache.nbytes // 6
    world.publish("s5", blobs[0])
    cache.refresh("s5")
    await world.settle()
    await world.predict("s4", version=1)
    await cache.evict("s3")
    world.store.away = world.mlflow.away = True
    cache.expire_all()
    await world.predict("s4")
    entries = cache._entries
    assert 1 < len(entries) < 6
    assert cache.nbytes == sum(entry.loaded.model.nbytes for entry in entries.values())
    assert cache.stale_models == sum(entry.stale for entry in entries.values()) == 1
    recent = {key[0]: entry.loaded.recent for key, entry in entries.items() if key[1] is None}
    assert +cache.ranking.states == Counter(map(state_of, recent.values()))
    measured = {name: each.index for name, each in recent.items() if each and not math.isnan(each.index)}
    assert {name: index for index, name in cache.ranking.largest(99)} == measured
    assert measured
