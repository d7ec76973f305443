"""Settings of the inference service."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from anomaly_detection.settings import ServiceSettings


class AffinitySettings(BaseSettings):
    """`AFFINITY_MAX_LOAD_PERCENT`; read by what starts HAProxy."""

    model_config = SettingsConfigDict(env_prefix="AFFINITY_", frozen=True)

    max_load_percent: int = Field(
        default=150,
        gt=100,
        description="requests a replica may have at once, in per cent of the average of all replicas",
    )


class InferenceSettings(ServiceSettings):
    """`MODEL_CACHE_*`, `MODEL_DISK_*`, `BATCH_MAX_POINTS`, `MAX_BODY_BYTES`, `CIRCUIT_BREAKER_*`,
    `HAPROXY_*`.

    Sizes are in bytes, times in seconds.
    """

    model_cache_max_bytes: int = Field(default=512 * 1024**2, gt=0)
    model_cache_ttl_seconds: float = Field(default=7200, gt=0)
    model_cache_ttl_jitter: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="fraction of the TTL; spreads the reloads of models loaded together",
    )
    model_cache_negative_seconds: float = Field(
        default=2, ge=0, description="how long it is remembered that a series has no model"
    )
    model_cache_warm_models: int = Field(
        default=1000,
        ge=0,
        description="how many of the models used most are loaded when a replica starts; 0 loads none",
    )
    model_disk_directory: Path = Path(tempfile.gettempdir()) / "models"
    model_disk_max_bytes: int = Field(default=1024**3, ge=0, description="0 keeps no model on the disk")
    batch_max_points: int = Field(default=32_768, gt=0)
    max_body_bytes: int = Field(default=10 * 1024**2, gt=0)
    circuit_breaker_failures: int = Field(default=3, gt=0)
    circuit_breaker_retry_seconds: float = Field(default=30, gt=0)
    haproxy_directory: Path = Field(
        default=Path(tempfile.gettempdir()) / "haproxy-serve",
        description="where Ray Serve keeps what HAProxy needs, in a folder for each node",
    )
    haproxy_url: str = Field(default="http://127.0.0.1:8000", description="base URL of the HAProxy on this node")
