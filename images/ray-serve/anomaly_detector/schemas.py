"""What the routes read and answer, for the OpenAPI document and its examples."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from anomaly_detection.contracts import Point

PointRequest = Point


class BatchRequest(BaseModel):
    """Points of one series with strictly increasing timestamps, 32,768 at most."""

    data: list[dict[str, float]] = Field(
        min_length=1, examples=[[{"timestamp": 1700000000, "value": 0.12}, {"timestamp": 1700000300, "value": 9.5}]]
    )


class ManyRequest(BaseModel):
    """By series identifier, a point or `{"data": […]}` with points; 32,768 points at most in all."""

    series: dict[str, dict[str, Any]] = Field(
        min_length=1,
        examples=[
            {
                "sensor_1_x": {"timestamp": 1700000000, "value": 0.12},
                "sensor_1_y": {"data": [{"timestamp": 1700000000, "value": 0.3}]},
            }
        ],
    )


class WarmRequest(BaseModel):
    """Series whose models are to be loaded."""

    series: list[str] = Field(examples=[["sensor_1_x", "sensor_1_y"]])


class Scored(BaseModel):
    """A point and its score."""

    timestamp: float
    value: float
    anomaly_score: float = Field(
        description="(0, 1] from the model, [0, 1] from the fallback; higher is more anomalous"
    )
    is_anomaly: bool = Field(description="the score is greater than the threshold")


class Prediction(Scored):
    """Answer for one point."""

    series_id: str
    threshold: float
    model_version: int
    source: Literal["model", "fallback"] = Field(
        description="fallback: the model cannot be read at the moment, |value - mean| > 3 std decides"
    )


class BatchPrediction(BaseModel):
    """Answer for points of one series; predictions have the order of the points."""

    series_id: str
    model_version: int
    source: Literal["model", "fallback"]
    threshold: float
    predictions: list[Scored]


class MemberError(BaseModel):
    """Why a series has no prediction: the `error` part of the error envelope."""

    error: dict[str, Any]


class ManyPredictions(BaseModel):
    """Answer for many series."""

    results: dict[str, Prediction | BatchPrediction | MemberError]


class DriftHistogram(BaseModel):
    """Shares of the training points and of the recent points by score; bin i holds edges[i-1] <= score < edges[i]."""

    edges: list[float]
    training: list[float]
    recent: list[float] | None = Field(description="null before the first point")


class DriftThresholds(BaseModel):
    """From which `psi` on drift is called so."""

    moderate: float
    major: float


class Health(BaseModel):
    """Whether what the replica depends on answers."""

    model_config = ConfigDict(extra="allow")

    status: Literal["healthy", "degraded"]
    dependencies: dict[str, dict[str, Any]] = Field(description="by name: `status`, `latency_ms` and `circuit`")


class Warmed(BaseModel):
    """What is in memory once the model of a series is loaded."""

    model_version: int
    replica: str = Field(description="where")


class WarmAnswer(BaseModel):
    """By series, what is in memory now, or why it is not."""

    results: dict[str, Warmed | MemberError]


class Evicted(BaseModel):
    """What was dropped."""

    series_id: str
    evicted: int = Field(description="models in memory that were dropped, of all replicas")
    unreachable: list[str] = Field(description="replicas that did not answer, and may have it still")


class CacheState(BaseModel):
    """What the replicas have in memory. Numbers outside of `replicas` are sums over them."""

    model_config = ConfigDict(extra="allow")

    models: int
    bytes: int
    max_bytes: int
    replicas: dict[str, dict[str, Any]] = Field(description="the same of each replica by its name")
    unreachable: list[str] = Field(description="replicas that did not answer, and are missing here")
    entries: list[dict[str, Any]]


class Drift(BaseModel):
    """How far the recent scores of a model are from those of its training points."""

    series_id: str
    model_version: int
    replica: str = Field(description="where its recent scores were counted")
    psi: float | None = Field(
        description="population stability index, 0 or more; null while there are too few recent points, or where the "
        "model was made without a baseline"
    )
    state: Literal["stable", "moderate", "major", "unknown"]
    recent_points: float | None = Field(description="recent points, each weighted by its age")
    minimum_points: int = Field(description="recent points needed")
    half_life_points: int = Field(description="a point counts half as much as one that came so many points later")
    thresholds: DriftThresholds
    histogram: DriftHistogram | None


class Drifts(BaseModel):
    """The models that have drifted most."""

    measured_models: int
    largest: list[Drift]
    unreachable: list[str] = Field(description="replicas that did not answer, and are missing here")
