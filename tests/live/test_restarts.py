"""Whatever restarts, no model, no job and no message is lost."""

from __future__ import annotations

import pytest
from chart_harness.live import wait_for
from live.system import COMPONENTS, PROBE, System, points, unique


@pytest.fixture(scope="module")
def kept(system: System) -> tuple[str, dict[str, object], dict[str, object]]:
    """A series with a model that was made before anything restarted, its job, and its answer."""
    series = unique("kept")
    job = system.model(series)
    return series, job, system.predict(series, PROBE).json()


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_restart_loses_nothing(
    system: System, component: str, kept: tuple[str, dict[str, object], dict[str, object]]
) -> None:
    known, job_before, answer_before = kept
    # More jobs than one worker does at once: some wait in the queue while the pod goes away.
    waiting = {unique("waiting"): points(2000, seed=seed) for seed in range(6)}
    jobs = {series: system.fit(series, data) for series, data in waiting.items()}

    system.restart(component)

    for series, job_id in jobs.items():
        job = system.succeeded(job_id)
        system.served(series, job["model_version"])
    assert system.job(str(job_before["job_id"])) == job_before
    answer = wait_for(lambda: _answer_by_model(system, known), f"the model of {known} to answer", 120)
    assert answer == answer_before
    # And it goes on: a new series all the way through.
    system.model(unique("after"))


def _answer_by_model(system: System, series: str) -> dict[str, object]:
    answer = system.predict(series, PROBE)
    assert answer.status_code == 200, f"{answer.status_code} {answer.text}"
    found: dict[str, object] = answer.json()
    assert found["source"] == "model", "the fallback answers"
    return found


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "asked-to-end"])
def test_a_job_in_hand_survives_its_worker(system: System, series: str, kill: bool) -> None:
    """Killed: the message is delivered again. Asked to end: it is finished or given back."""
    # The most work that one request may ask for.
    parameters = {"n_estimators": 500, "max_samples": 4096, "contamination": 0.01}
    job_id = system.fit(series, points(100_000), parameters=parameters)

    def running() -> bool:
        status = system.job(job_id)["status"]
        assert status in ("queued", "running"), f"it is {status} before the worker could be ended"
        return bool(status == "running")

    wait_for(running, "the job to run", 60, every=0.02)
    system.restart("training-worker", kill=kill)
    job = system.succeeded(job_id, seconds=300)
    system.served(series, job["model_version"])
    assert job["model_version"] == 1, "one job makes one version"
    if kill:
        assert job["attempts"] > 1, "the worker was ended too late to matter"


def test_inference_answers_from_its_cache_while_the_registry_is_away(system: System, series: str) -> None:
    system.model(series)
    system.namespace.kubectl("scale", "deployment/mlflow-server", "--replicas=0")
    try:
        wait_for(lambda: not system.namespace.running_pods(COMPONENTS["mlflow-server"]), "MLflow to end", 60)
        answer = system.predict(series, PROBE)
        assert answer.status_code == 200
        assert answer.json()["source"] == "model"
    finally:
        system.namespace.kubectl("scale", "deployment/mlflow-server", "--replicas=1")
        system.pod("mlflow-server")


def test_nothing_is_left_in_the_dead_letter_queue(system: System) -> None:
    """After all of the above."""
    pod = system.pod("rabbitmq")["metadata"]["name"]
    command = (
        "exec",
        pod,
        "--container",
        "rabbitmq",
        "--",
        "rabbitmqctl",
        "--quiet",
        "list_queues",
        "-p",
        "ml-training",
    )
    listed = system.namespace.kubectl(*command, "name", "messages").stdout
    queues = dict(line.split() for line in listed.splitlines() if line.startswith("training-"))
    assert queues["training-jobs-dlq"] == "0", queues
