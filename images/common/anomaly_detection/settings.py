"""Settings from the environment, checked when a service starts; passwords never show in a log or a traceback."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class BrokerSettings(BaseSettings):
    """RabbitMQ: `RABBITMQ_HOST`, `RABBITMQ_PORT`, `RABBITMQ_VHOST`, `RABBITMQ_USER`, `RABBITMQ_PASSWORD`."""

    model_config = SettingsConfigDict(env_prefix="RABBITMQ_", frozen=True)

    host: str
    port: int = 5672
    vhost: str = "ml-training"
    user: str
    password: SecretStr


class DatabaseSettings(BaseSettings):
    """PostgreSQL: `DATABASE_HOST`, `DATABASE_PORT`, `DATABASE_NAME`, `DATABASE_USER`, `DATABASE_PASSWORD`."""

    model_config = SettingsConfigDict(env_prefix="DATABASE_", frozen=True)

    host: str
    port: int = 5432
    name: str
    user: str
    password: SecretStr


class ObjectStoreSettings(BaseSettings):
    """S3: `S3_ENDPOINT_URL`, `S3_REGION`, `S3_BUCKET`, `S3_ACCESS_KEY_ID`, `S3_SECRET_ACCESS_KEY`."""

    model_config = SettingsConfigDict(env_prefix="S3_", frozen=True)

    endpoint_url: str
    region: str = "us-east-1"
    bucket: str
    access_key_id: SecretStr
    secret_access_key: SecretStr


class MlflowSettings(BaseSettings):
    """MLflow: `MLFLOW_TRACKING_URI`."""

    model_config = SettingsConfigDict(env_prefix="MLFLOW_", frozen=True)

    tracking_uri: str


class ServiceSettings(BaseSettings):
    """What every service has: `LOG_LEVEL`."""

    model_config = SettingsConfigDict(frozen=True)

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(default="INFO")
