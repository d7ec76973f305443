"""Contracts: identifiers, parameters, messages."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from pydantic import ValidationError

from anomaly_detection.contracts import (
    DetectorParameters,
    FitOptions,
    JobStatus,
    Priority,
    ProductionChange,
    TrainingCompleted,
    TrainingJob,
    completed_routing_key,
    is_series_id,
    logged_model_id,
    model_name,
)
from anomaly_detection.jobs import NewJob


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("sensor_17_X", True),
        ("a" * 128, True),
        ("a" * 129, False),
        ("", False),
        ("a-b", False),
        ("a\n", False),
        ("ä", False),
        ("a.b", False),
        ("../a", False),
    ],
)
def test_series_ids(text: str, valid: bool) -> None:
    assert is_series_id(text) is valid


def test_names_of_a_series() -> None:
    assert model_name("s1") == "model_od_s1"
    assert completed_routing_key("s1") == "training.completed.s1"
    assert Priority.HIGH.routing_key == "training.job.priority"
    assert Priority.STANDARD.routing_key == "training.job.standard"


@pytest.mark.parametrize(
    "given",
    [
        {"n_estimators": 0},
        {"n_estimators": 501},
        {"n_estimators": "100"},
        {"n_estimators": 10.0},
        {"max_samples": 0},
        {"max_samples": 1.5},
        {"max_samples": 0.0},
        {"max_samples": "all"},
        {"max_samples": True},
        {"contamination": 0},
        {"contamination": 0.51},
        {"contamination": "0.1"},
        {"random_state": -1},
        {"random_state": None},
        {"bootstrap": 1},
        {"n_jobs": 4},
    ],
)
def test_parameters_out_of_range_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DetectorParameters.model_validate(given)


@pytest.mark.parametrize("max_samples", [1, 1.0, "auto", 0.25, 4096])
def test_max_samples_keeps_its_type_through_a_message(max_samples: Any) -> None:
    message = TrainingJob(
        job_id=uuid4(),
        series_id="s",
        sequence=1,
        data_key="k",
        data_sha256="0",
        points=100,
        parameters=DetectorParameters(max_samples=max_samples),
        request_id="r",
        created_at=datetime.now(UTC),
    )
    read = TrainingJob.model_validate_json(message.model_dump_json()).parameters.max_samples
    assert (type(read), read) == (type(max_samples), max_samples)


def test_messages_of_a_newer_version_are_read() -> None:
    message = TrainingJob(
        job_id=uuid4(),
        series_id="s",
        sequence=1,
        data_key="k",
        data_sha256="0",
        points=100,
        parameters=DetectorParameters(),
        request_id="r",
        created_at=datetime.now(UTC),
    )
    newer = message.model_dump(mode="json") | {"field_of_the_future": 1}
    assert (
        TrainingJob.model_validate(
            newer | {"job_id": message.job_id, "created_at": message.created_at, "priority": Priority.STANDARD}
        )
        == message
    )


def test_unknown_fields_of_a_request_are_refused() -> None:
    with pytest.raises(ValidationError):
        FitOptions.model_validate({"paramters": {}})


def test_final_states() -> None:
    assert {status for status in JobStatus if not status.is_final} == {JobStatus.QUEUED, JobStatus.RUNNING}


def test_equal_jobs_have_equal_fingerprints() -> None:
    def fingerprint(digest: str, **parameters: Any) -> str:
        return NewJob("s", "k", digest, 100, DetectorParameters(**parameters), Priority.STANDARD, "r").fingerprint

    assert fingerprint("a") == fingerprint("a", n_estimators=100)
    different = [fingerprint("a"), fingerprint("b"), fingerprint("a", max_samples=1), fingerprint("a", max_samples=1.0)]
    assert len(set(different)) == 4


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("mlflow-artifacts:/1/models/m-20cac7e4/artifacts", "m-20cac7e4"),
        ("s3://bucket/prefix/1/models/m-20cac7e4/artifacts/", "m-20cac7e4"),
        ("runs:/0123/model", None),
        ("mlflow-artifacts:/1/0123/artifacts/model", None),
    ],
)
def test_the_logged_model_of_a_version_is_known_by_its_source(source: str, expected: str | None) -> None:
    assert logged_model_id(source) == expected


def test_an_event_says_why_production_changed_and_that_there_is_none_any_more() -> None:
    given = {"series_id": "s", "sequence": 4, "request_id": "r", "finished_at": datetime.now(UTC)}
    before = TrainingCompleted.model_validate(given | {"job_id": uuid4(), "model_version": 1})
    assert before.change is ProductionChange.TRAINED  # as events were before there was another reason
    gone = TrainingCompleted.model_validate(given | {"job_id": None, "model_version": None, "change": "deleted"})
    assert TrainingCompleted.model_validate_json(gone.model_dump_json()) == gone
