"""The MLflow model registry over REST."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import orjson

from anomaly_detection.contracts import (
    PREVIOUS_ALIAS,
    PRODUCTION_ALIAS,
    TAG_JOB_ID,
    TAG_SEQUENCE,
    ModelVersion,
    logged_model_id,
    model_name,
)
from anomaly_detection.errors import DependencyUnavailableError
from anomaly_detection.settings import MlflowSettings

NAME = "registry"
"""Its name on the health routes and in errors."""

_API = "/api/2.0/mlflow"
_ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
_PAGE = 1000
_CHECK_SECONDS = 2.0

logger = logging.getLogger(__name__)


class Registry:
    """Versions of models.

    Args:
        settings: where the registry is.
        transport: of the HTTP client; only tests need another than the network.
    """

    def __init__(self, settings: MlflowSettings, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._client = httpx.AsyncClient(
            base_url=settings.tracking_uri, timeout=httpx.Timeout(5.0, connect=2.0), transport=transport
        )

    async def versions(self, series_id: str) -> list[ModelVersion]:
        """The versions of the model of a series, newest first; empty when it has no model.

        Raises:
            DependencyUnavailableError: the registry does not answer.
        """
        name = model_name(series_id)
        found, model = await asyncio.gather(
            self._get(f"{_API}/model-versions/search", {"filter": f"name = '{name}'", "max_results": str(_PAGE)}),
            # Only here MLflow tells the aliases.
            self._get(f"{_API}/registered-models/get", {"name": name}),
        )
        aliases: dict[str, list[str]] = {}
        for item in model.get("registered_model", {}).get("aliases", []):
            aliases.setdefault(item["version"], []).append(item["alias"])
        versions = [
            _version(item, sorted(aliases.get(item["version"], []))) for item in found.get("model_versions", [])
        ]
        return sorted(versions, key=lambda version: version.version, reverse=True)

    async def run(self, run_id: str) -> tuple[dict[str, str], dict[str, float]]:
        """Parameters and metrics of a run; empty when it is gone.

        Raises:
            DependencyUnavailableError: the registry does not answer.
        """
        found = await self._get(f"{_API}/runs/get", {"run_id": run_id})
        data = found.get("run", {}).get("data", {})
        return (
            {item["key"]: item["value"] for item in data.get("params", [])},
            {item["key"]: float(item["value"]) for item in data.get("metrics", [])},
        )

    async def set_production(self, series_id: str, version: int, previous: int | None) -> None:
        """Point the alias `production` at a version and `previous` at another; None leaves that as it is.

        Raises:
            DependencyUnavailableError: the registry does not answer.
        """
        name = model_name(series_id)
        if previous is not None:
            await self._point(name, PREVIOUS_ALIAS, previous)
        await self._point(name, PRODUCTION_ALIAS, version)

    async def delete_version(self, series_id: str, version: int) -> None:
        """Delete a version with its aliases, its artifacts and its run; one that is gone is no error.

        Its number is not given to another one: what somebody cached or noted under it stays unmistakable.

        Raises:
            DependencyUnavailableError: the registry does not answer; repeating it finishes the deletion.
        """
        name = model_name(series_id)
        found = await self._get(f"{_API}/model-versions/get", {"name": name, "version": str(version)})
        record = found.get("model_version", {})
        # The version last: until it is gone, a repetition finds what else there is to delete.
        source = record.get("source", "")
        if model_id := logged_model_id(source):
            location = urlsplit(source)
            if location.scheme == "mlflow-artifacts":
                await self._delete(f"{_ARTIFACTS}/{quote(location.path.strip('/'))}")
            else:
                # The tracking server does not hand these on, and this service has no access to them.
                logger.warning("artifacts stay in the store", extra={"location": source})
            await self._delete(f"{_API}/logged-models/{model_id}")
        if run_id := record.get("run_id"):
            await self._delete(f"{_API}/runs/delete", {"run_id": run_id}, method="POST")
        await self._delete(f"{_API}/model-versions/delete", {"name": name, "version": str(version)})

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
        return await self._ask(self._client.build_request("GET", path, params=parameters))

    async def _point(self, name: str, alias: str, version: int) -> None:
        """Point an alias at a version, which has to be there."""
        body = {"name": name, "alias": alias, "version": str(version)}
        await self._ask(self._client.build_request("POST", f"{_API}/registered-models/alias", json=body), absent=False)

    async def _delete(self, path: str, body: dict[str, str] | None = None, method: str = "DELETE") -> None:
        """Delete something, which may be gone already."""
        await self._ask(self._client.build_request(method, path, json=body))

    async def _ask(self, request: httpx.Request, absent: bool = True) -> dict[str, Any]:
        """The answer to a request; empty when there is no such thing, unless that is an error."""
        try:
            answer = await self._client.send(request)
            found = dict(orjson.loads(answer.content or b"{}"))
            if absent and answer.status_code == 404 and found.get("error_code") == "RESOURCE_DOES_NOT_EXIST":
                return {}
            answer.raise_for_status()
            return found
        except (httpx.HTTPError, ValueError) as error:  # what answers is not MLflow, or not well
            logger.warning("the registry does not answer as it should", extra={"reason": repr(error)})
            raise DependencyUnavailableError(NAME) from error


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
