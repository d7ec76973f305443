"""The MLflow model registry over REST, read only."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import httpx
import orjson

from anomaly_detection.contracts import TAG_JOB_ID, TAG_SEQUENCE, ModelVersion, model_name
from anomaly_detection.errors import DependencyUnavailableError
from anomaly_detection.settings import MlflowSettings

NAME = "registry"
"""Its name on the health routes and in errors."""

_PAGE = 200
_CHECK_SECONDS = 2.0


class Registry:
    """Versions of models.

    Args:
        settings: where the registry is.
    """

    def __init__(self, settings: MlflowSettings) -> None:
        self._client = httpx.AsyncClient(base_url=settings.tracking_uri, timeout=httpx.Timeout(5.0, connect=2.0))

    async def versions(self, series_id: str) -> list[ModelVersion]:
        """The versions of the model of a series, newest first; empty when it has no model.

        Raises:
            DependencyUnavailableError: the registry does not answer.
        """
        name = model_name(series_id)
        found, model = await asyncio.gather(
            self._get(
                "/api/2.0/mlflow/model-versions/search", {"filter": f"name = '{name}'", "max_results": str(_PAGE)}
            ),
            # Only here MLflow tells the aliases.
            self._get("/api/2.0/mlflow/registered-models/get", {"name": name}),
        )
        aliases: dict[str, list[str]] = {}
        for item in model.get("registered_model", {}).get("aliases", []):
            aliases.setdefault(item["version"], []).append(item["alias"])
        versions = [
            _version(item, sorted(aliases.get(item["version"], []))) for item in found.get("model_versions", [])
        ]
        return sorted(versions, key=lambda version: version.version, reverse=True)

    async def check(self) -> None:
        """Return if the registry answers.

        Raises:
            DependencyUnavailableError: it does not.
        """
        try:
            async with asyncio.timeout(_CHECK_SECONDS):
                (await self._client.get("/health")).raise_for_status()
        except (httpx.HTTPError, TimeoutError) as error:
            raise DependencyUnavailableError(NAME) from error

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _get(self, path: str, parameters: dict[str, str]) -> dict[str, Any]:
        """The answer to a GET request; empty when there is no such thing."""
        try:
            answer = await self._client.get(path, params=parameters)
            if answer.status_code == httpx.codes.NOT_FOUND:
                return {}
            answer.raise_for_status()
        except httpx.HTTPError as error:
            raise DependencyUnavailableError(NAME) from error
        return dict(orjson.loads(answer.content))


def _version(item: dict[str, Any], aliases: list[str]) -> ModelVersion:
    """A model version as MLflow writes it, as the API shows it."""
    tags = {tag["key"]: tag["value"] for tag in item.get("tags", [])}
    sequence = tags.get(TAG_SEQUENCE)
    return ModelVersion(
        version=int(item["version"]),
        aliases=aliases,
        created_at=datetime.fromtimestamp(int(item["creation_timestamp"]) / 1000, UTC),
        run_id=item.get("run_id") or None,
        job_id=tags.get(TAG_JOB_ID),
        sequence=int(sequence) if sequence else None,
        tags=tags,
    )
