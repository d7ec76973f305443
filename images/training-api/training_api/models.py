"""Versions of models: what they are made of, how two of them differ, and which one is in production.

What is in production is decided under the lock of the series (`JobStore.locked`), which workers take too: the aliases
in the registry and the number that keeps older jobs away change together.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import accumulate
from uuid import UUID

import orjson

from anomaly_detection.contracts import (
    PREVIOUS_ALIAS,
    PRODUCTION_ALIAS,
    TAG_BLOB_KEY,
    TAG_DATA_KEY,
    TAG_DATA_SHA256,
    TAG_SCORE_HISTOGRAM,
    Compared,
    ComparedScores,
    ComparedText,
    ModelComparison,
    ModelDeleted,
    ModelVersion,
    ModelVersionDetail,
    ProductionChange,
    ProductionChanged,
    ScoreDistribution,
    TrainingCompleted,
)
from anomaly_detection.errors import RETRY_AFTER_SECONDS, AppError, DependencyUnavailableError, ErrorCode
from anomaly_detection.logging import request_id
from anomaly_detection.stability import population_stability_index
from training_api.services import Services, announce

_QUANTILE = "score_"

Choose = Callable[[Sequence[ModelVersion]], ModelVersion]

logger = logging.getLogger(__name__)


async def versions_of(services: Services, series_id: str) -> list[ModelVersion]:
    """The versions of the model of a series, newest first.

    Raises:
        AppError: MODEL_NOT_FOUND.
    """
    versions = await services.models.versions(series_id)
    if not versions:
        raise AppError(ErrorCode.MODEL_NOT_FOUND, f"series {series_id} has no model")
    return versions


def _pick(series_id: str, versions: Sequence[ModelVersion], number: int) -> ModelVersion:
    """One of the versions.

    Raises:
        AppError: INVALID_VERSION.
    """
    for version in versions:
        if version.version == number:
            return version
    raise AppError(
        ErrorCode.INVALID_VERSION,
        f"the model of series {series_id} has no version {number}",
        [{"version": number, "newest": versions[0].version}],
    )


def _holder(versions: Sequence[ModelVersion], alias: str) -> ModelVersion | None:
    """The version that an alias points at."""
    return next((version for version in versions if alias in version.aliases), None)


async def detail(services: Services, series_id: str, number: int) -> ModelVersionDetail:
    """A version with what its run tells.

    Raises:
        AppError: MODEL_NOT_FOUND or INVALID_VERSION.
    """
    return await _detail(services, series_id, _pick(series_id, await versions_of(services, series_id), number))


async def _detail(services: Services, series_id: str, version: ModelVersion) -> ModelVersionDetail:
    """See `detail`."""
    parameters, metrics = await services.models.run(version.run_id) if version.run_id else ({}, {})
    points, anomalies = metrics.get("points"), metrics.get("training_anomalies")
    histogram = version.tags.get(TAG_SCORE_HISTOGRAM)
    return ModelVersionDetail(
        **version.model_dump(),
        series_id=series_id,
        parameters=parameters,
        metrics=metrics,
        data_sha256=version.tags.get(TAG_DATA_SHA256),
        data_key=version.tags.get(TAG_DATA_KEY),
        scores=ScoreDistribution(
            threshold=metrics.get("threshold"),
            anomalies=anomalies / points if points and anomalies is not None else None,
            quantiles={
                name.removeprefix(_QUANTILE): value for name, value in metrics.items() if name.startswith(_QUANTILE)
            },
            histogram=orjson.loads(histogram) if histogram else None,
        ),
    )


async def compare(services: Services, series_id: str, a: int, b: int) -> ModelComparison:
    """Two versions side by side.

    Raises:
        AppError: MODEL_NOT_FOUND or INVALID_VERSION.
    """
    versions = await versions_of(services, series_id)
    one, other = [await _detail(services, series_id, _pick(series_id, versions, number)) for number in (a, b)]
    parameters = {
        name: ComparedText(a=one.parameters.get(name), b=other.parameters.get(name))
        for name in sorted({*one.parameters, *other.parameters})
        if one.parameters.get(name) != other.parameters.get(name)
    }
    both = one.scores.histogram, other.scores.histogram
    return ModelComparison(
        series_id=series_id,
        a=ModelVersion(**one.model_dump(include=set(ModelVersion.model_fields))),
        b=ModelVersion(**other.model_dump(include=set(ModelVersion.model_fields))),
        same_data=one.data_sha256 is not None and one.data_sha256 == other.data_sha256,
        same_parameters=not parameters,
        data_sha256=ComparedText(a=one.data_sha256, b=other.data_sha256),
        parameters=parameters,
        metrics={
            name: _compared(one.metrics.get(name), other.metrics.get(name))
            for name in sorted({*one.metrics, *other.metrics})
        },
        scores=ComparedScores(
            a=one.scores,
            b=other.scores,
            kolmogorov_smirnov=None if both[0] is None or both[1] is None else kolmogorov_smirnov(both[0], both[1]),
            population_stability_index=None
            if both[0] is None or both[1] is None
            else population_stability_index(both[0], both[1]),
        ),
    )


def _compared(a: float | None, b: float | None) -> Compared:
    """A figure of two versions."""
    return Compared(a=a, b=b, difference=None if a is None or b is None else b - a)


def kolmogorov_smirnov(a: Sequence[int], b: Sequence[int]) -> float:
    """Greatest difference between the cumulative shares of two histograms over the same bins, 0 to 1."""
    below_a, below_b = accumulate(a), accumulate(b)
    return max(abs(x / sum(a) - y / sum(b)) for x, y in zip(below_a, below_b, strict=True))


async def promote(services: Services, series_id: str, number: int) -> ProductionChanged:
    """Put a version into production.

    Raises:
        AppError: MODEL_NOT_FOUND, INVALID_VERSION, or INVALID_STAGE_TRANSITION for a version that cannot be served.
    """

    def choose(versions: Sequence[ModelVersion]) -> ModelVersion:
        return _pick(series_id, versions, number)

    return await _change_production(services, series_id, ProductionChange.PROMOTED, choose)


async def roll_back(services: Services, series_id: str, expected: int | None) -> ProductionChanged:
    """Put the version back into production that was there before.

    Args:
        services: of the API.
        series_id: the series.
        expected: the version to roll back from, None for whichever it is.

    Raises:
        AppError: MODEL_NOT_FOUND, or INVALID_STAGE_TRANSITION when no version was there before, or another one than
            expected is in production.
    """

    def choose(versions: Sequence[ModelVersion]) -> ModelVersion:
        production, previous = _holder(versions, PRODUCTION_ALIAS), _holder(versions, PREVIOUS_ALIAS)
        if expected is not None and (production is None or production.version != expected):
            raise AppError(
                ErrorCode.INVALID_STAGE_TRANSITION,
                f"version {expected} is not in production",
                [{"production": production.version if production else None}],
            )
        if previous is None:
            raise AppError(ErrorCode.INVALID_STAGE_TRANSITION, "there is no version to roll back to")
        return previous

    return await _change_production(services, series_id, ProductionChange.ROLLED_BACK, choose)


async def _change_production(
    services: Services, series_id: str, change: ProductionChange, choose: Choose
) -> ProductionChanged:
    """Put the version that `choose` names into production, and tell serving."""
    async with services.jobs.locked(series_id) as series:
        versions = await versions_of(services, series_id)
        chosen = choose(versions)
        if chosen.job_id is None or TAG_BLOB_KEY not in chosen.tags:
            raise AppError(
                ErrorCode.INVALID_STAGE_TRANSITION,
                f"version {chosen.version} was not made by a training job and cannot be served",
                [{"version": chosen.version}],
            )
        before = _holder(versions, PRODUCTION_ALIAS)
        changed = before is not None and before.version != chosen.version
        previous = before if changed else _holder(versions, PREVIOUS_ALIAS)
        # Committed only after the registry has followed: until then a repetition does all of this again.
        event = await series.set_production(change, chosen.version, UUID(chosen.job_id), request_id())
        await services.models.set_production(
            series_id, chosen.version, before.version if before is not None and changed else None
        )
    await _announce(services, event)
    logger.info("production changed", extra={"series_id": series_id, "change": change, "version": chosen.version})
    return ProductionChanged(
        series_id=series_id,
        model_version=chosen.version,
        previous_version=previous.version if previous else None,
        sequence=event.sequence,
        links={
            "version": f"/models/{series_id}/versions/{chosen.version}",
            "versions": f"/models/{series_id}/versions",
        },
    )


async def delete_version(services: Services, series_id: str, number: int) -> ModelDeleted:
    """Delete a version that is not in production, with its artifacts and its run.

    Raises:
        AppError: MODEL_NOT_FOUND, INVALID_VERSION, INVALID_STAGE_TRANSITION for the one in production, or
            TRAINING_IN_PROGRESS while its job is about to put it there.
    """
    async with services.jobs.locked(series_id) as series:
        version = _pick(series_id, await versions_of(services, series_id), number)
        if PRODUCTION_ALIAS in version.aliases:
            raise AppError(
                ErrorCode.INVALID_STAGE_TRANSITION,
                f"version {number} is in production; promote another one first, or delete the whole model",
                [{"version": number}],
            )
        _refuse(series_id, [job for job in await series.unfinished_jobs() if str(job) == version.job_id])
        await series.note_deleted(number)
        await _delete(services, series_id, [version])
    return ModelDeleted(series_id=series_id, deleted_versions=[number])


async def delete_model(services: Services, series_id: str) -> ModelDeleted:
    """Delete all versions of a model, with their artifacts and runs, and tell serving.

    Raises:
        AppError: MODEL_NOT_FOUND, or TRAINING_IN_PROGRESS while a job of the series waits or runs.
    """
    async with services.jobs.locked(series_id) as series:
        _refuse(series_id, await series.unfinished_jobs())
        versions = await versions_of(services, series_id)
        event = await series.set_production(ProductionChange.DELETED, None, None, request_id())
        await series.note_deleted(None)
        # The one in production last: whatever interrupts this, the series is served until it is without versions.
        await _delete(services, series_id, sorted(versions, key=lambda version: PRODUCTION_ALIAS in version.aliases))
    await _announce(services, event)
    return ModelDeleted(series_id=series_id, deleted_versions=sorted(version.version for version in versions))


def _refuse(series_id: str, jobs: Sequence[UUID]) -> None:
    """Raise TRAINING_IN_PROGRESS if there are such jobs."""
    if jobs:
        raise AppError(
            ErrorCode.TRAINING_IN_PROGRESS,
            f"series {series_id} is being trained; wait for its jobs or cancel them",
            [{"job_id": str(job)} for job in jobs],
        )


async def _delete(services: Services, series_id: str, versions: Sequence[ModelVersion]) -> None:
    """Delete versions one after the other.

    Raises:
        AppError: SERVICE_UNAVAILABLE; a repetition goes on where this stopped.
    """
    for version in versions:
        try:
            await services.models.delete_version(series_id, version.version)
        except DependencyUnavailableError as error:
            raise AppError(
                ErrorCode.SERVICE_UNAVAILABLE,
                f"{error.dependency} is not available at the moment; the deletion has begun, send the request again",
                error.details,
                headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
            ) from error
        logger.info("version deleted", extra={"series_id": series_id, "version": version.version})


async def _announce(services: Services, event: TrainingCompleted) -> None:
    """Tell serving; what cannot be said now is said as soon as the broker is back."""
    try:
        await announce(services.publisher, services.jobs, event)
    except DependencyUnavailableError:
        logger.warning("the event of a decision waits for the broker", extra={"series_id": event.series_id})
