"""Hooks of Schemathesis: every series and job it changes is its own.

`OPENAPI_SERIES` names a series that has a model; it and what begins with it belong to the run.
"""

from __future__ import annotations

import os
import re
import uuid
import zlib
from typing import Any

import schemathesis

OWN = os.environ["OPENAPI_SERIES"]
READING = frozenset({"GET", "HEAD", "OPTIONS"})

_jobs: set[str] = set()


def _own_series(name: str, method: str) -> str:
    """A valid name for a valid name, so that the document holds for a request as before; the same for the same."""
    if name.startswith(OWN):
        return name
    # Half of the requests meet the model. Nothing deletes it.
    if zlib.crc32(name.encode()) % 2 and method != "DELETE":
        return OWN
    return f"{OWN}_{name}"[:128]


def _is_uuid(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case[Any], kwargs: dict[str, Any]) -> None:
    """Lead requests to what belongs to the run; what the service has to refuse stays as it is."""
    parameters = case.path_parameters or {}
    series_id, job_id = parameters.get("series_id"), parameters.get("job_id")
    if isinstance(series_id, str) and re.fullmatch(r"[A-Za-z0-9_]{1,128}", series_id):
        parameters["series_id"] = _own_series(series_id, case.method.upper())
    if isinstance(job_id, str) and case.method.upper() not in READING and job_id not in _jobs and _is_uuid(job_id):
        parameters["job_id"] = str(uuid.uuid5(uuid.NAMESPACE_OID, job_id))


@schemathesis.hook
def after_call(
    context: schemathesis.HookContext, case: schemathesis.Case[Any], response: schemathesis.Response
) -> None:
    """Note the jobs of the run."""
    if response.status_code == 202:
        _jobs.add(response.json()["job_id"])


@schemathesis.serializer("text/csv")
def csv(context: schemathesis.SerializationContext, value: Any) -> bytes:
    """A body of CSV, which the document calls a text."""
    return value if isinstance(value, bytes) else str(value).encode()
