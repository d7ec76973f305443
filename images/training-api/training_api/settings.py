"""Settings of the training API."""

from __future__ import annotations

from pydantic import Field

from anomaly_detection.settings import ServiceSettings


class TrainingApiSettings(ServiceSettings):
    """Limits of `POST /fit/{series_id}`."""

    max_body_bytes: int = Field(default=10 * 1024 * 1024, ge=1)
    min_points: int = Field(default=100, ge=2)
    max_points: int = Field(default=100_000, ge=2)
    fit_rate_limit: int = Field(
        default=5, ge=1, description="fit requests per series and window, all replicas together"
    )
    fit_rate_window_seconds: int = Field(default=60, ge=1)
