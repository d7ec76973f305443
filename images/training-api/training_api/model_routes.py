"""The routes under `/models`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Path, Query

from anomaly_detection.contracts import (
    SERIES_ID_PATTERN,
    ModelComparison,
    ModelDeleted,
    ModelPage,
    ModelVersionDetail,
    ModelVersions,
    ProductionChanged,
    PromoteRequest,
    RollbackRequest,
    VersionNumber,
    model_name,
)
from training_api import models
from training_api.openapi import SeriesIdPath, errors
from training_api.services import Services

VersionPath = Annotated[VersionNumber, Path(description="number of the version", openapi_examples={"x": {"value": 1}})]
VersionQuery = Annotated[VersionNumber, Query(description="number of a version", openapi_examples={"x": {"value": 1}})]


def model_routes(services: Services) -> APIRouter:
    """The routes.

    Args:
        services: of the API.
    """
    router = APIRouter(tags=["models"])

    @router.get(
        "/models",
        summary="Series with a model in production",
        description="In the order of the series' names, page by page.",
        responses=errors(422, 503),
    )
    async def get_models(
        cursor: Annotated[
            str | None, Query(pattern=SERIES_ID_PATTERN, description="`next_cursor` of the page before")
        ] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> ModelPage:
        found, following = await services.jobs.models(cursor, limit)
        return ModelPage(models=found, next_cursor=following)

    @router.get(
        "/models/{series_id}/versions",
        summary="Versions of the model of a series, newest first",
        responses=errors(404, 422, 503),
    )
    async def get_versions(series_id: SeriesIdPath) -> ModelVersions:
        return ModelVersions(
            series_id=series_id,
            model_name=model_name(series_id),
            versions=await models.versions_of(services, series_id),
        )

    @router.get(
        "/models/{series_id}/versions/{version}",
        summary="A version: its data, parameters, metrics and scores",
        responses=errors(404, 422, 503),
    )
    async def get_version(series_id: SeriesIdPath, version: VersionPath) -> ModelVersionDetail:
        return await models.detail(services, series_id, version)

    @router.get(
        "/models/{series_id}/compare",
        summary="Two versions side by side",
        description="Differences in data, parameters, metrics and in the distribution of the scores, each version's "
        "over its own training points.",
        responses=errors(404, 422, 503),
    )
    async def get_comparison(series_id: SeriesIdPath, a: VersionQuery, b: VersionQuery) -> ModelComparison:
        return await models.compare(services, series_id, a, b)

    @router.post(
        "/models/{series_id}/promote",
        summary="Put a version into production",
        description="The one before becomes `previous`. Jobs accepted before this request do not replace the version; "
        "a fit accepted after it does. Repeating it is harmless.",
        responses=errors(400, 404, 409, 422, 503),
    )
    async def post_promote(series_id: SeriesIdPath, body: PromoteRequest) -> ProductionChanged:
        return await models.promote(services, series_id, body.version)

    @router.post(
        "/models/{series_id}/rollback",
        summary="Put the version before back into production",
        description="The version it replaces becomes `previous`, so that a second rollback takes the first one back; "
        "with `from_version` it is refused instead. Jobs accepted before this request do not undo it.",
        responses=errors(400, 404, 409, 422, 503),
    )
    async def post_rollback(
        series_id: SeriesIdPath, body: Annotated[RollbackRequest | None, Body()] = None
    ) -> ProductionChanged:
        return await models.roll_back(services, series_id, body.from_version if body else None)

    @router.delete(
        "/models/{series_id}/versions/{version}",
        summary="Delete a version that is not in production",
        description="With its artifacts and its run. The stored points stay.",
        responses=errors(404, 409, 422, 503),
    )
    async def delete_version(series_id: SeriesIdPath, version: VersionPath) -> ModelDeleted:
        return await models.delete_version(services, series_id, version)

    @router.delete(
        "/models/{series_id}",
        summary="Delete the model of a series",
        description="All of its versions with their artifacts and runs; inference forgets it. The stored points and "
        "the jobs stay; numbers of versions are not used again.",
        responses=errors(404, 409, 422, 503),
    )
    async def delete_model(series_id: SeriesIdPath) -> ModelDeleted:
        return await models.delete_model(services, series_id)

    return router
