"""What the services say to each other and to their users.

Identifiers, requests, messages, jobs, broker and registry names.
"""

from __future__ import annotations

import re
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

SERIES_ID_PATTERN = r"^[A-Za-z0-9_]{1,128}$"
"""A series identifier.

Letters, digits and `_`, 1 to 128 of them. It becomes part of model names, object keys and routing keys.
"""

SeriesId = Annotated[str, StringConstraints(pattern=SERIES_ID_PATTERN)]

# Registry: one registered model per series. Aliases, not stages, which MLflow deprecated.
PRODUCTION_ALIAS = "production"
PREVIOUS_ALIAS = "previous"
TAG_BLOB_KEY = "blob_key"
TAG_MEAN, TAG_STD = "mean", "std"
TAG_BLOB_SHA256 = "blob_sha256"
TAG_SEQUENCE = "sequence"
TAG_JOB_ID = "job_id"
TAG_DATA_KEY, TAG_DATA_SHA256 = "data_key", "data_sha256"
TAG_SCORE_HISTOGRAM = "score_histogram"
SCORE_HISTOGRAM_BINS = 20
"""The training points' scores are counted in this many bins of equal width from 0 to 1, the range of a score."""

# Broker topology, declared by RabbitMQ's definitions; the services only use it.
EVENTS_EXCHANGE = "training-events"
DEAD_LETTER_EXCHANGE = "training-dlx"
JOBS_QUEUE = "training-jobs"
PRIORITY_QUEUE = "training-priority-high"
COMPLETION_QUEUE = "training-completion"
DEAD_LETTER_QUEUE = "training-jobs-dlq"
STANDARD_ROUTING_KEY = "training.job.standard"
PRIORITY_ROUTING_KEY = "training.job.priority"
COMPLETED_ROUTING_PATTERN = "training.completed.*"
DRIFT_EXCHANGE = "drift-events"
DRIFT_QUEUE = "drift-detected"
DRIFT_ROUTING_PATTERN = "drift.detected.*"
DELIVERY_LIMIT = 5
"""How often the broker delivers a job again before it goes to the dead-letter queue: the queues' `x-delivery-limit`."""

MAX_TREE_POINTS = 2_500_000
"""Most points that all trees of a forest are grown from together.

They decide what a fit costs (about 1 µs each, beside 5 ms for each tree) and how large its model is (about 1 byte
each): without a bound, 500 trees of 100,000 points each would keep a worker busy for a minute, for a model of 40 MB.
"""

INVALID_VERSION = "invalid_version"
"""Type of the validation error of something that is no number of a version."""


def model_name(series_id: str) -> str:
    """Name of the registered model of a series."""
    return f"model_od_{series_id}"


def logged_model_id(source: str) -> str | None:
    """Identity of the logged model that a version was registered from, None if its source is something else.

    MLflow keeps the link only in the source, `…/models/MODEL_ID/artifacts`: `model_id` of a version comes back empty.
    """
    found = re.search(r"/models/(m-[0-9a-f]+)/artifacts/?$", source)
    return found[1] if found else None


def completed_routing_key(series_id: str) -> str:
    """Routing key of the event that says a series has a new model."""
    return f"training.completed.{series_id}"


def is_series_id(text: str) -> bool:
    """Whether `text` is a series identifier."""
    # fullmatch: `$` alone would let a trailing newline pass.
    return re.fullmatch(SERIES_ID_PATTERN.strip("^$"), text) is not None


def _version_number(value: Any, number: ValidatorFunctionWrapHandler) -> int:
    """A version's number; whatever is wrong with it is an error of one type, which has an error code of its own."""
    try:
        return int(number(value))
    except ValidationError as error:
        reason = error.errors(include_url=False, include_input=False)[0]["msg"]
        raise PydanticCustomError(INVALID_VERSION, "no number of a version: {reason}", {"reason": reason}) from error


VersionNumber = Annotated[int, Field(ge=1, le=2**31 - 1), WrapValidator(_version_number)]


class Contract(BaseModel):
    """Base of everything a client may send: unknown fields are errors, so no typing mistake is silently ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Message(BaseModel):
    """Base of what services send each other: unknown fields are ignored, so that they can be upgraded one by one."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Point(Contract):
    """One measurement."""

    timestamp: float = Field(description="Unix time in seconds", examples=[1700000000])
    value: float = Field(description="finite, in the unit of the sensor", examples=[0.12])


class DetectorParameters(Contract):
    """Parameters of the isolation forest, with the names and meanings of `sklearn.ensemble.IsolationForest`."""

    # Strict: max_samples 1 is one point and 1.0 all of them, so numbers must not be converted into one another.
    model_config = ConfigDict(strict=True)

    n_estimators: int = Field(default=100, ge=1, le=500, description="number of trees")
    max_samples: Literal["auto"] | Annotated[int, Field(strict=True, ge=1)] | Annotated[float, Field(gt=0, le=1)] = (
        Field(
            default="auto",
            description='points drawn for each tree: a number, a fraction of the series, or "auto" (256, all if fewer)',
        )
    )
    contamination: Literal["auto"] | Annotated[float, Field(gt=0, le=0.5)] = Field(
        default=0.01,
        description='share of training points above the threshold; "auto" takes the threshold 0.5, which alarms often',
    )
    bootstrap: bool = Field(default=False, description="draw the points of a tree with replacement")
    random_state: int = Field(
        default=42, ge=0, le=2**32 - 1, description="seed: equal data and parameters give equal models"
    )

    def points_per_tree(self, points: int) -> int:
        """How many points of a series of `points` each tree is grown from, by scikit-learn's own rules.

        A series shorter than what is asked for gives all it has, and a fraction at least one point.
        """
        if self.max_samples == "auto":
            return min(256, points)
        if isinstance(self.max_samples, int):
            return min(self.max_samples, points)
        return max(1, int(self.max_samples * points))


class Priority(StrEnum):
    """Which queue a job waits in."""

    STANDARD = "standard"
    HIGH = "high"

    @property
    def routing_key(self) -> str:
        """Routing key that leads to this priority's queue."""
        return PRIORITY_ROUTING_KEY if self is Priority.HIGH else STANDARD_ROUTING_KEY


class FitOptions(Contract):
    """What `POST /fit/{series_id}` takes beside the points."""

    detector: Literal["isolation_forest"] = Field(default="isolation_forest", description="the kind of detector")
    parameters: DetectorParameters = Field(
        default_factory=DetectorParameters,
        validation_alias=AliasChoices("parameters", "params"),
        description="of the detector; `params` is another name for it",
    )
    priority: Priority = Priority.STANDARD


class FitRequest(FitOptions):
    """Body of `POST /fit/{series_id}`.

    It documents the body; the service reads `data` with `anomaly_detection.series.read_points`, which takes 100,000
    points in a fraction of the time that one object per point would need.
    """

    data: list[Point] = Field(description="the series in the order of its timestamps, which increase strictly")


class JobStatus(StrEnum):
    """States of a training job. The last four are final."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"

    @property
    def is_final(self) -> bool:
        """Whether a job in this state stays in it."""
        return self not in (JobStatus.QUEUED, JobStatus.RUNNING)


class TrainingJob(Message):
    """Message that asks for a training. It refers to the points in the object store instead of carrying them."""

    job_id: UUID
    series_id: SeriesId
    sequence: int = Field(
        description="fencing number: grows with every job, a lower one never replaces the model of a higher one"
    )
    data_key: str = Field(description="key of the points in the training bucket")
    data_sha256: str
    points: int
    parameters: DetectorParameters
    priority: Priority = Priority.STANDARD
    request_id: str
    created_at: datetime


class ProductionChange(StrEnum):
    """Why another version of a series' model is in production."""

    TRAINED = "trained"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    DELETED = "deleted"


class TrainingCompleted(Message):
    """Event that says another version of a series' model is in production, or none any more."""

    job_id: UUID | None = Field(description="the job that made the version; null when there is no version")
    series_id: SeriesId
    model_version: int | None = Field(description="the version in production now; null after a deletion")
    sequence: int = Field(description="of the job or the decision: a higher one came later")
    change: ProductionChange = ProductionChange.TRAINED
    request_id: str
    finished_at: datetime


class DriftDetected(Message):
    """Event that says the recent scores of a model in production have become others than those of its training points.

    It comes once when the drift becomes major, and again only after it was below moderate. It may come again from
    another replica, or after the model has left a replica's memory.
    """

    series_id: SeriesId
    model_version: int
    population_stability_index: float
    threshold: float = Field(description="from which the index means major drift")
    recent_points: float = Field(description="points that it rests on, each weighted by its age")
    replica: str = Field(description="of the inference service")
    detected_at: datetime

    def routing_key(self) -> str:
        """The key that the event is published with."""
        return DRIFT_ROUTING_PATTERN.replace("*", self.series_id)


class JobDurations(BaseModel):
    """Seconds spent in each stage of a job; a stage not reached is null."""

    queued_s: float | None = Field(default=None, description="from the request to the worker")
    load_s: float | None = Field(default=None, description="reading the points")
    fit_s: float | None = Field(default=None, description="fitting the model")
    register_s: float | None = Field(default=None, description="run, artifacts and version in MLflow, aliases")
    total_s: float | None = Field(default=None, description="from the request to the servable model")


class JobError(BaseModel):
    """Why a job failed."""

    code: str = Field(examples=["TRAINING_FAILED"])
    message: str


class Job(BaseModel):
    """A training job as the API shows it."""

    job_id: UUID
    series_id: str
    status: JobStatus
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    points: int
    parameters: DetectorParameters
    priority: Priority
    attempts: int = Field(description="how often a worker took the job")
    model_version: int | None = None
    model_deleted_at: datetime | None = Field(default=None, description="when that version was deleted by a request")
    mlflow_run_id: str | None = None
    durations: JobDurations
    error: JobError | None = None
    links: dict[str, str] = Field(examples=[{"self": "/jobs/6f1c…", "versions": "/models/sensor_1_x/versions"}])


class JobPage(BaseModel):
    """A page of jobs, newest first."""

    jobs: list[Job]
    next_cursor: str | None = Field(description="pass it as `cursor` for the following page; null on the last one")


class FitAccepted(BaseModel):
    """Answer to `POST /fit/{series_id}`."""

    job_id: UUID
    series_id: str
    status: JobStatus
    links: dict[str, str]


class ModelVersion(BaseModel):
    """A version of the model of a series."""

    version: int
    aliases: list[str]
    created_at: datetime
    run_id: str | None
    job_id: str | None
    sequence: int | None
    tags: dict[str, Any]


class ModelVersions(BaseModel):
    """The versions of the model of a series, newest first."""

    series_id: str
    model_name: str
    versions: list[ModelVersion]


class ModelSummary(BaseModel):
    """A series with a model in production."""

    series_id: str
    model_name: str
    model_version: int = Field(description="the version in production")
    updated_at: datetime = Field(description="since when")
    links: dict[str, str] = Field(examples=[{"versions": "/models/sensor_1_x/versions"}])


class ModelPage(BaseModel):
    """A page of models in the order of their series."""

    models: list[ModelSummary]
    next_cursor: str | None = Field(description="pass it as `cursor` for the following page; null on the last one")


class ScoreDistribution(BaseModel):
    """How the scores of a version's own training points are distributed."""

    threshold: float | None = Field(description="a point with a greater score is an anomaly")
    anomalies: float | None = Field(description="share of the points above the threshold")
    quantiles: dict[str, float] = Field(examples=[{"p50": 0.41, "p95": 0.55, "p99": 0.63}])
    histogram: list[int] | None = Field(
        description=f"points in each of {SCORE_HISTOGRAM_BINS} bins of equal width from 0 to 1; "
        "null for versions made before it was kept"
    )


class ModelVersionDetail(ModelVersion):
    """A version with what it was made from and how it came out."""

    series_id: str
    parameters: dict[str, str]
    metrics: dict[str, float]
    data_sha256: str | None = Field(description="digest of the points: equal digests, equal points")
    data_key: str | None = Field(description="key of the points in the training bucket")
    scores: ScoreDistribution


class Compared(BaseModel):
    """A figure of two versions."""

    a: float | None
    b: float | None
    difference: float | None = Field(description="b - a")


class ComparedText(BaseModel):
    """A setting of two versions."""

    a: str | None
    b: str | None


class ComparedScores(BaseModel):
    """The distributions of two versions' scores, each over its own training points, and how far they are apart."""

    a: ScoreDistribution
    b: ScoreDistribution
    kolmogorov_smirnov: float | None = Field(
        description="greatest difference between the shares of points below a score, 0 to 1; from the histograms"
    )
    population_stability_index: float | None = Field(
        description="0 for equal distributions; above 0.25 is commonly called a major shift; from the histograms"
    )


class ModelComparison(BaseModel):
    """Two versions of the model of a series, side by side."""

    series_id: str
    a: ModelVersion
    b: ModelVersion
    same_data: bool = Field(description="both were made from the same points")
    same_parameters: bool
    data_sha256: ComparedText
    parameters: dict[str, ComparedText] = Field(description="those that differ")
    metrics: dict[str, Compared]
    scores: ComparedScores


class PromoteRequest(Contract):
    """Body of `POST /models/{series_id}/promote`."""

    version: VersionNumber = Field(examples=[1])


class RollbackRequest(Contract):
    """Body of `POST /models/{series_id}/rollback`; it may be left out."""

    from_version: VersionNumber | None = Field(
        default=None,
        description="refuse unless this version is in production: makes it safe to send the request again",
        examples=[2],
    )


class ProductionChanged(BaseModel):
    """Answer to a promotion or a rollback."""

    series_id: str
    model_version: int = Field(description="the version in production now")
    previous_version: int | None = Field(description="the one that a rollback would put back")
    sequence: int = Field(description="jobs with a lower one do not replace this version any more")
    links: dict[str, str]


class ModelDeleted(BaseModel):
    """Answer to a deletion."""

    series_id: str
    deleted_versions: list[int]
