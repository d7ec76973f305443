"""Settings of the training worker."""

from __future__ import annotations

from pydantic import Field

from anomaly_detection.settings import MlflowSettings, ServiceSettings


class WorkerSettings(ServiceSettings):
    """How the worker behaves."""

    model_versions_kept: int = Field(default=10, ge=2, description="versions of a model that stay in the registry")
    shutdown_grace_seconds: float = Field(
        default=50, ge=0, description="how long a job may go on after SIGTERM before it is returned to the queue"
    )
    fit_timeout_seconds: float = Field(default=120, gt=0, description="how long a fit may take before its job fails")
    sklearn_flavor: bool = Field(
        default=True, description="log the scikit-learn model beside the blob that serving reads, for people"
    )
    outage_patience_seconds: float = Field(
        default=600,
        ge=0,
        description="how long a job waits for a dependency that is away before it is returned to the queue; "
        "below the broker's acknowledgement timeout of 30 minutes",
    )


class WorkerMlflowSettings(MlflowSettings):
    """Where runs and models go."""

    experiment_name: str = "anomaly-detection"
