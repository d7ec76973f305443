"""The trainer against MLflow itself, with its files in a folder in place of a server."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from anomaly_detection.contracts import DetectorParameters, TrainingJob
from anomaly_detection.scoring import ScoringModel
from anomaly_detection.series import Series
from training_worker.results import RegistryUnavailableError, UntrainableError
from training_worker.trainer import Trainer

NAME = "model_od_s1"


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return tmp_path.joinpath("mlflow").as_uri()


@pytest.fixture
def trainer(uri: str) -> Trainer:
    return Trainer(uri, "unit", sklearn_flavor=True)


@pytest.fixture
def client(uri: str) -> MlflowClient:
    return MlflowClient(uri, uri)


def job_of(number: int) -> tuple[TrainingJob, bytes]:
    """A job and its points."""
    values = np.random.default_rng(number).normal(size=200)
    series = Series(np.arange(200.0), values)
    job = TrainingJob(
        job_id=uuid4(),
        series_id="s1",
        sequence=number,
        data_key=f"series/s1/{number}.npz",
        data_sha256=series.sha256(),
        points=200,
        parameters=DetectorParameters(n_estimators=5),
        request_id=f"request-{number}",
        created_at=datetime.now(UTC),
    )
    return job, series.to_bytes()


def made(trainer: Trainer, number: int) -> int:
    """The version that a job makes, in production."""
    job, blob = job_of(number)
    trainer.fit(job, blob)
    version = trainer.register(job).version
    trainer.promote("s1", version)
    return version


def files_of(version: ModelVersion) -> Path:
    """Where the files of a version are."""
    assert version.source is not None
    return Path(version.source.removeprefix("file://"))


def stage_of(client: MlflowClient, version: ModelVersion) -> str:
    """Whether the run of a version is `active` or `deleted`."""
    assert version.run_id is not None
    return str(client.get_run(version.run_id).info.lifecycle_stage)


def run_of(client: MlflowClient) -> Any:
    """The only run there is."""
    experiment = client.get_experiment_by_name("unit")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return run


def test_a_version_has_its_run_its_files_and_its_origin(trainer: Trainer, client: MlflowClient) -> None:
    job, blob = job_of(1)
    trainer.fit(job, blob)
    registered = trainer.register(job)
    version = client.get_model_version(NAME, str(registered.version))
    assert (version.tags["job_id"], version.tags["data_sha256"]) == (str(job.job_id), job.data_sha256)
    run = client.get_run(registered.run_id)
    assert (run.info.status, run.data.params["n_estimators"], run.data.metrics["points"]) == ("FINISHED", "5", 200)
    folder = files_of(version)
    assert {"MLmodel", "model.ads", "model.pkl", "requirements.txt"} <= {file.name for file in folder.iterdir()}
    assert ScoringModel.from_bytes(folder.joinpath("model.ads").read_bytes()).mean == run.data.metrics["mean"]
    assert trainer.registered_before(job) is not None


def test_a_registration_that_breaks_leaves_no_version_and_says_so_in_the_run(
    trainer: Trainer, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, blob = job_of(1)
    trainer.fit(job, blob)

    def refuse(*_: object) -> None:
        raise MlflowException("the store does not answer")

    with monkeypatch.context() as broken:
        broken.setattr(trainer, "_upload", refuse)
        with pytest.raises(RegistryUnavailableError, match="the store does not answer"):
            trainer.register(job)
    assert run_of(client).info.status == "FAILED"
    assert list(client.search_model_versions(f"name = '{NAME}'")) == []
    # The model is still in hand.
    assert trainer.register(job).version == 1


def test_what_a_broken_call_registered_all_the_same_is_found(
    trainer: Trainer, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, blob = job_of(1)
    trainer.fit(job, blob)
    register = trainer._register

    def lost(*arguments: Any) -> tuple[int, str]:
        register(*arguments)
        raise MlflowException("its answer was lost")

    with monkeypatch.context() as broken:
        broken.setattr(trainer, "_register", lost)
        with pytest.raises(RegistryUnavailableError):
            trainer.register(job)
    assert trainer.register(job).version == 1
    assert len(client.search_model_versions(f"name = '{NAME}'")) == 1


def test_the_version_before_gets_the_alias_previous(trainer: Trainer, client: MlflowClient) -> None:
    assert made(trainer, 1) == 1
    assert client.get_registered_model(NAME).aliases == {"production": "1"}
    assert made(trainer, 2) == 2
    trainer.promote("s1", 2)  # again is harmless
    assert client.get_registered_model(NAME).aliases == {"production": "2", "previous": "1"}


def test_old_versions_go_with_their_files_and_runs_unless_an_alias_points_at_them(
    trainer: Trainer, client: MlflowClient
) -> None:
    for number in range(1, 6):
        made(trainer, number)
    trainer.promote("s1", 1)
    found = {int(item.version): item for item in client.search_model_versions(f"name = '{NAME}'")}
    assert trainer.prune("s1", kept=2) == 2
    left = {int(item.version) for item in client.search_model_versions(f"name = '{NAME}'")}
    assert left == {1, 4, 5}, "1 is in production, 4 and 5 are the last"
    for number, version in found.items():
        assert (stage_of(client, version) == "active") == (number in left)
        assert files_of(version).joinpath("model.ads").exists() == (number in left)
    assert trainer.prune("s1", kept=2) == 0


def test_points_that_were_changed_are_not_fitted(trainer: Trainer) -> None:
    job, _ = job_of(1)
    with pytest.raises(UntrainableError, match="checksum differs"):
        trainer.fit(job, job_of(2)[1])
    with pytest.raises(UntrainableError):
        trainer.fit(job, b"nonsense")
    with pytest.raises(RuntimeError, match="not in hand"):
        trainer.register(job)
