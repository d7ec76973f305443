"""The dependencies of the training API in memory, at their interfaces."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import httpx
from unit.jobs_in_memory import JobsInMemory

from anomaly_detection.contracts import ModelVersion, TrainingCompleted, TrainingJob
from anomaly_detection.errors import DependencyUnavailableError
from training_api.app import create_app
from training_api.services import Services
from training_api.settings import TrainingApiSettings


class Backend(JobsInMemory):
    """Jobs, broker, store and registry in memory; what is named in `away` does not answer."""

    def __init__(self) -> None:
        super().__init__()
        self.published: list[tuple[str, TrainingJob, dict[str, str]]] = []
        self.objects: dict[str, bytes] = {}
        self.registered: dict[str, list[ModelVersion]] = {}
        self.runs: dict[str, tuple[dict[str, str], dict[str, float]]] = {}
        self.events: list[TrainingCompleted] = []
        self.deletions_left = 1000
        self.is_started = True

    def services(self) -> Services:
        def check(name: str) -> Any:
            async def call() -> None:
                self.need(name)

            return call

        async def nothing() -> None:
            return None

        return Services(
            jobs=self,
            publisher=self,
            store=self,
            models=Models(self),
            checks={name: check(name) for name in ("database", "broker", "object-store", "registry")},
            start=nothing,
            stop=nothing,
            started=lambda: self.is_started,
        )

    def client(self) -> httpx.AsyncClient:
        """A client of the application on this backend."""
        settings = TrainingApiSettings(max_body_bytes=100_000, min_points=100, max_points=1000)
        transport = httpx.ASGITransport(app=create_app(self.services(), settings))
        return httpx.AsyncClient(transport=transport, base_url="http://api")

    async def publish(
        self, routing_key: str, body: bytes, *, message_id: str, headers: dict[str, str] | None = None
    ) -> None:
        self.need("broker")
        if routing_key.startswith("training.completed."):
            self.events.append(TrainingCompleted.model_validate_json(body))
            return
        self.published.append((routing_key, TrainingJob.model_validate_json(body), headers or {}))

    async def put(self, key: str, blob: bytes) -> None:
        self.need("object-store")
        self.objects[key] = blob

    def register(self, series_id: str, *aliases: list[str], **tags: str) -> None:
        """Give a series versions with these aliases, the first one being version 1."""
        self.numbers[series_id] = 0
        self.registered[series_id] = [
            ModelVersion(
                version=number,
                aliases=held,
                created_at=datetime.now(UTC),
                run_id=f"run-{number}",
                job_id=str(uuid4()),
                sequence=number,
                tags={"blob_key": f"{number}/model.ads"} | tags,
            )
            for number, held in enumerate(aliases, 1)
        ]

    def aliases(self, series_id: str) -> dict[str, int]:
        """Which version each alias of a series points at."""
        return {alias: item.version for item in self.registered[series_id] for alias in item.aliases}


class Models:
    """The registry of the backend."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    async def versions(self, series_id: str) -> list[ModelVersion]:
        self.backend.need("registry")
        return self.backend.registered.get(series_id, [])[::-1]

    async def run(self, run_id: str) -> tuple[dict[str, str], dict[str, float]]:
        self.backend.need("registry")
        return self.backend.runs.get(run_id, ({}, {}))

    async def set_production(self, series_id: str, version: int, previous: int | None) -> None:
        self.backend.need("aliases")
        pointed = {"production": version} | ({"previous": previous} if previous else {})
        for item in self.backend.registered[series_id]:
            kept = [alias for alias in item.aliases if alias not in pointed]
            item.aliases[:] = kept + [alias for alias, number in pointed.items() if number == item.version]

    async def delete_version(self, series_id: str, version: int) -> None:
        if not self.backend.deletions_left:
            raise DependencyUnavailableError("registry")
        self.backend.deletions_left -= 1
        versions = self.backend.registered[series_id]
        versions[:] = [item for item in versions if item.version != version]
