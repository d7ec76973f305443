"""Fitting and registering, as it runs in the training process; nothing here is asynchronous.

MLflow and scikit-learn are imported here and nowhere else: the process that talks to the broker stays small.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import mlflow.sklearn
import numpy as np
import requests
import sklearn.ensemble  # noqa: F401 - imported ahead of the first job, which would else wait for it
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException, RestException
from mlflow.models import Model, ModelSignature
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking._model_registry.client import ModelRegistryClient
from mlflow.types import Schema, TensorSpec

from anomaly_detection.contracts import (
    PREVIOUS_ALIAS,
    PRODUCTION_ALIAS,
    TAG_BLOB_KEY,
    TAG_BLOB_SHA256,
    TAG_DATA_KEY,
    TAG_DATA_SHA256,
    TAG_JOB_ID,
    TAG_MEAN,
    TAG_SCORE_HISTOGRAM,
    TAG_SEQUENCE,
    TAG_STD,
    DetectorParameters,
    TrainingJob,
    logged_model_id,
    model_name,
)
from anomaly_detection.scoring import MODEL_FILE_NAME, ScoringModel, fit_isolation_forest, score_histogram
from anomaly_detection.series import Series
from training_worker.results import Fitted, Registered, RegistryUnavailableError, UntrainableError

MODEL_NAME = "model"
"""Name of the logged model inside its run."""

_CALLS_AT_A_TIME = 6
"""As many as a logged model has files."""

_TRANSIENT = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED", "IO_ERROR"}

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _InHand:
    """A fitted model that is not registered yet.

    Attributes:
        job_id: the job it was fitted for.
        series: what it was fitted to.
        estimator: the scikit-learn estimator.
        model: its step function.
        fit_s: seconds the fit took.
        tried: whether its registration was tried before.
    """

    job_id: UUID
    series: Series
    estimator: Any
    model: ScoringModel
    fit_s: float
    tried: bool = False


class Trainer:
    """What the training process does, one call at a time.

    Args:
        tracking_uri: of MLflow.
        experiment_name: of the experiment that collects the runs; created when it is not there.
        sklearn_flavor: whether to log the scikit-learn model beside the blob that serving reads.
    """

    def __init__(self, tracking_uri: str, experiment_name: str, sklearn_flavor: bool) -> None:
        self._client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
        # `MlflowClient` asks for the whole registered model, again each time, before it points an alias.
        self._registry = ModelRegistryClient(tracking_uri, tracking_uri)
        # The logged model's artifacts and `models:/` sources are resolved through these.
        mlflow.set_tracking_uri(tracking_uri)
        mlflow.set_registry_uri(tracking_uri)
        # At every save they warn of the serialization format, and that the image has no pip to name.
        for name in ("mlflow.sklearn", "mlflow.utils.environment"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self._experiment_name = experiment_name
        self._experiment_id = ""
        self._requirements = [
            f"{name}=={importlib.metadata.version(name)}" for name in ("numpy", "scikit-learn", "cloudpickle")
        ]
        self._signature = ModelSignature(
            inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, 1), "value")]),
            outputs=Schema([TensorSpec(np.dtype(np.int64), (-1,))]),
        )
        self._sklearn_flavor = sklearn_flavor
        self._in_hand: _InHand | None = None
        # What does not depend on each other is asked at the same time.
        self._pool = ThreadPoolExecutor(_CALLS_AT_A_TIME, thread_name_prefix="mlflow")
        self._fit_something()

    def fit(self, job: TrainingJob, blob: bytes) -> Fitted:
        """Fit the model of a job, and keep it in hand until it is registered or another one is fitted.

        Args:
            job: what to train.
            blob: the stored points.

        Raises:
            UntrainableError: the points are damaged or no model can be fitted to them.
        """
        self._in_hand = None
        start = time.perf_counter()
        try:
            series = Series.from_bytes(blob)
        except ValueError as error:
            raise UntrainableError(str(error)) from error
        if series.sha256() != job.data_sha256:
            raise UntrainableError("the stored points are not those of the request: their checksum differs")
        loaded = time.perf_counter()
        try:
            estimator, model = fit_isolation_forest(series.values, job.parameters)
        except ValueError as error:
            # Of points that passed the API's checks: the same again for the same points.
            raise UntrainableError(f"no model can be fitted: {error}") from error
        fitted = Fitted(load_s=loaded - start, fit_s=time.perf_counter() - loaded)
        self._in_hand = _InHand(job.job_id, series, estimator, model, fitted.fit_s)
        return fitted

    def register(self, job: TrainingJob) -> Registered:
        """Register the model in hand as a new version, in no alias yet.

        Raises:
            RegistryUnavailableError: MLflow does not answer; the model stays in hand.
            RuntimeError: the model in hand is not that of the job.
        """
        start = time.perf_counter()
        found = self._in_hand
        if found is None or found.job_id != job.job_id:
            raise RuntimeError(f"the model of job {job.job_id} is not in hand")
        with _registry_errors():
            # What an attempt before this one got through is used, even if its answer was lost.
            done = self._registered_before(job) if found.tried else None
            found.tried = True
            version, run_id = done or self._register(job, found)
        self._in_hand = None
        return Registered(version, run_id, register_s=time.perf_counter() - start)

    def registered_before(self, job: TrainingJob) -> Registered | None:
        """The version that an earlier attempt at a job registered, if one got that far.

        Raises:
            RegistryUnavailableError: MLflow does not answer.
        """
        start = time.perf_counter()
        with _registry_errors():
            found = self._registered_before(job)
        return Registered(*found, register_s=time.perf_counter() - start) if found else None

    def promote(self, series_id: str, version: int) -> None:
        """Point the alias `production` at a version, and `previous` at the one it pointed at before.

        Raises:
            RegistryUnavailableError: MLflow does not answer.
        """
        name = model_name(series_id)
        with _registry_errors():
            before = self._client.get_registered_model(name).aliases.get(PRODUCTION_ALIAS)
            # One after the other: interrupted in between, the call that is repeated still finds what was before.
            if before is not None and int(before) != version:
                self._registry.set_registered_model_alias(name, PREVIOUS_ALIAS, str(before))
            self._registry.set_registered_model_alias(name, PRODUCTION_ALIAS, str(version))

    def prune(self, series_id: str, kept: int) -> int:
        """Delete the oldest versions of a model, with their artifacts and runs, until `kept` are left.

        A version with an alias stays whatever its age.

        Returns:
            How many versions were deleted.

        Raises:
            RegistryUnavailableError: MLflow does not answer.
        """
        name = model_name(series_id)
        with _registry_errors():
            found = self._client.search_model_versions(f"name = '{name}'", max_results=1000)
            versions = sorted((item for item in found), key=lambda item: int(item.version), reverse=True)
            in_use = set(map(str, self._client.get_registered_model(name).aliases.values()))
            surplus = [item for item in versions[kept:] if str(item.version) not in in_use]
            for item in surplus:
                self._client.delete_model_version(name, str(item.version))
                if item.source and (model_id := logged_model_id(item.source)):
                    get_artifact_repository(item.source, tracking_uri=mlflow.get_tracking_uri()).delete_artifacts()
                    self._client.delete_logged_model(model_id)
                if item.run_id:
                    self._client.delete_run(item.run_id)
            return len(surplus)

    def _fit_something(self) -> None:
        """Fit and save a tiny model and ask MLflow: the first job would else pay for imports and connections."""
        estimator, model = fit_isolation_forest(np.linspace(0.0, 1.0, 128), DetectorParameters())
        folder = Path(tempfile.mkdtemp(prefix="warm-up-"))
        try:
            self._save(estimator, model.to_bytes(), folder / MODEL_NAME)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        with suppress(RegistryUnavailableError), _registry_errors():
            self._experiment()

    def _save(self, estimator: Any, blob: bytes, folder: Path) -> None:
        """Write the MLflow model: the blob that serving reads and, for people, the scikit-learn flavour."""
        if self._sklearn_flavor:
            mlflow.sklearn.save_model(
                estimator,
                str(folder),
                signature=self._signature,
                # Given, because inferring them imports the model in a process of its own: 10 seconds.
                pip_requirements=self._requirements,
                # skops, the default, has to be told to trust the trees as well and takes longer than the fit.
                serialization_format=mlflow.sklearn.SERIALIZATION_FORMAT_CLOUDPICKLE,
            )
        else:
            folder.mkdir(parents=True)
            Model(signature=self._signature).save(str(folder / MLMODEL_FILE_NAME))
        (folder / MODEL_FILE_NAME).write_bytes(blob)

    def _register(self, job: TrainingJob, found: _InHand) -> tuple[int, str]:
        """Write run, model and version; returns the version's number and the run's id."""
        client, submit, model = self._client, self._pool.submit, found.model
        name = model_name(job.series_id)
        blob = model.to_bytes()
        now = int(time.time() * 1000)
        tags = {
            "series_id": job.series_id,
            TAG_JOB_ID: str(job.job_id),
            TAG_SEQUENCE: str(job.sequence),
            TAG_DATA_KEY: job.data_key,
            TAG_DATA_SHA256: job.data_sha256,
            "request_id": job.request_id,
        }
        parameters = {key: str(value) for key, value in job.parameters.model_dump(mode="json").items()}
        scores = model.score(found.series.values)
        metrics = {
            "points": float(len(found.series)),
            "mean": model.mean,
            "std": model.std,
            "minimum": float(found.series.values.min()),
            "maximum": float(found.series.values.max()),
            "threshold": model.threshold,
            "training_anomalies": float(model.is_anomaly(scores).sum()),
            "score_p50": float(np.percentile(scores, 50)),
            "score_p95": float(np.percentile(scores, 95)),
            "score_p99": float(np.percentile(scores, 99)),
            "fit_seconds": found.fit_s,
            "model_bytes": float(len(blob)),
        }
        folder = Path(tempfile.mkdtemp(prefix="model-"))
        try:
            named = submit(self._ensure_registered_model, name, job.series_id)
            saved = submit(self._save, found.estimator, blob, folder / MODEL_NAME)
            run_id = client.create_run(
                self._experiment(),
                start_time=now,
                tags={**tags, "detector": "isolation_forest"},
                run_name=f"{name}-{job.sequence}",
            ).info.run_id
            ending: list[Future[None]] = []
            try:
                noted = submit(
                    client.log_batch,
                    run_id,
                    metrics=[Metric(key, value, now, 0) for key, value in metrics.items()],
                    params=[Param(key, value) for key, value in parameters.items()],
                )
                logged = client.create_logged_model(
                    self._experiment(), name=MODEL_NAME, source_run_id=run_id, tags=tags, params=parameters
                )
                saved.result()
                self._upload(folder / MODEL_NAME, logged.artifact_location)
                ready = submit(client.finalize_logged_model, logged.model_id, "READY")
                ending.append(submit(client.set_terminated, run_id, "FINISHED"))
                # The version last: it says that everything else is there.
                before: list[Future[Any]] = [named, noted, ready, *ending]
                for call in before:
                    call.result()
                version = client.create_model_version(
                    name,
                    source=logged.artifact_location,
                    run_id=run_id,
                    model_id=logged.model_id,
                    tags={
                        **tags,
                        TAG_BLOB_KEY: blob_key(logged.artifact_location),
                        TAG_BLOB_SHA256: hashlib.sha256(blob).hexdigest(),
                        # Serving answers by these while the object store is away.
                        TAG_MEAN: repr(model.mean),
                        TAG_STD: repr(model.std),
                        # What the scores of later points can be compared with.
                        TAG_SCORE_HISTOGRAM: json.dumps(score_histogram(scores), separators=(",", ":")),
                    },
                    await_creation_for=0,
                )
                return int(version.version), run_id
            except BaseException:
                wait(ending)  # the last word on the run is the next line's
                client.set_terminated(run_id, "FAILED")
                raise
        finally:
            wait([named, saved])
            shutil.rmtree(folder, ignore_errors=True)

    def _upload(self, folder: Path, location: str) -> None:
        """Put the files of a folder under an artifact location, at the same time."""
        repository = get_artifact_repository(location, tracking_uri=mlflow.get_tracking_uri())

        def put(file: Path) -> None:
            parent = file.parent.relative_to(folder).as_posix()
            repository.log_artifact(str(file), None if parent == "." else parent)

        uploads = [self._pool.submit(put, file) for file in folder.rglob("*") if file.is_file()]
        wait(uploads)  # all of them: none may be under way when the folder goes
        for upload in uploads:
            upload.result()

    def _registered_before(self, job: TrainingJob) -> tuple[int, str] | None:
        """Version and run that an earlier attempt at this job registered, if one got that far."""
        found = self._client.search_model_versions(f"name = '{model_name(job.series_id)}'", max_results=1000)
        mine = [item for item in found if item.tags.get(TAG_JOB_ID) == str(job.job_id)]
        return (int(mine[0].version), mine[0].run_id or "") if mine else None

    def _ensure_registered_model(self, name: str, series_id: str) -> None:
        """Create the registered model of a series unless it is there."""
        try:
            self._client.create_registered_model(name, tags={"series_id": series_id})
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _experiment(self) -> str:
        """Id of the experiment, which is created when it is not there."""
        if not self._experiment_id:
            found = self._client.get_experiment_by_name(self._experiment_name)
            if found is None:
                try:
                    self._experiment_id = self._client.create_experiment(self._experiment_name)
                except MlflowException as error:
                    if error.error_code != "RESOURCE_ALREADY_EXISTS":
                        raise
                    return self._experiment()  # another worker was faster
            else:
                self._experiment_id = found.experiment_id
        return self._experiment_id


def blob_key(artifact_location: str) -> str:
    """Key of the model blob in the artifact bucket, from the artifact location of its logged model.

    The location is `mlflow-artifacts:/KEY` when the tracking server hands artifacts on (its destination being the
    bucket itself), or `s3://BUCKET/KEY`.
    """
    return f"{urlsplit(artifact_location).path.strip('/')}/{MODEL_FILE_NAME}"


@contextmanager
def _registry_errors() -> Iterator[None]:
    """Failures of MLflow that may pass become RegistryUnavailableError."""
    try:
        yield
    except RestException as error:
        if error.error_code in _TRANSIENT or error.get_http_status_code() >= 500:
            raise RegistryUnavailableError(str(error)[:500]) from error
        raise
    except (MlflowException, requests.RequestException) as error:
        # Connections refused, timeouts and answers of proxies arrive as the base class.
        raise RegistryUnavailableError(str(error)[:500]) from error
