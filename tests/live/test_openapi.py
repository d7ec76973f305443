"""Both services do what their OpenAPI documents say: no answer of theirs is undocumented, and none is a failure.

Schemathesis makes requests out of each document, good and bad ones, and follows what one answer offers to the next
request. `OPENAPI_EXAMPLES` sets how many requests it makes up for each operation beside the systematic ones.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ci import paths
from live.system import System

CONFIGURATION = Path(__file__).parent / "openapi"
EXAMPLES = os.environ.get("OPENAPI_EXAMPLES", "10")


def newest_jobs(system: System) -> Iterator[dict[str, Any]]:
    """All jobs, newest first."""
    cursor = ""
    while True:
        page = system.training.request("GET", f"/jobs?limit=200{cursor}", patience=30).json()
        yield from page["jobs"]
        if page["next_cursor"] is None:
            return
        cursor = f"&cursor={page['next_cursor']}"


@pytest.mark.parametrize("service", ["training", "inference"])
def test_the_service_does_what_its_document_says(system: System, series: str, service: str) -> None:
    newest = system.model(series)
    url = getattr(system, service).url()
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIGURATION / "schemathesis.toml")]
    command += ["run", f"{url}/openapi.json", "--max-examples", EXAMPLES, "--no-color"]
    environment = {
        **os.environ,
        "SCHEMATHESIS_HOOKS": "live.openapi.hooks",
        "OPENAPI_SERIES": series,
        "PYTHONPATH": str(paths.REPOSITORY / "tests"),
        "NO_PROXY": "*",
    }
    folder = paths.BUILD / "live" / "openapi" / service
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    (folder / "output.txt").write_text(done.stdout + done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    # What it left in the queues must not be in the way of other tests.
    for job in newest_jobs(system):
        if job["created_at"] < newest["created_at"]:
            break
        if job["series_id"].startswith(series):
            system.training.request("DELETE", f"/jobs/{job['job_id']}", patience=30)
            system.finished(job["job_id"])
