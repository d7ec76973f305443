"""The baseline as a process on this machine."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from ci import console, paths


@contextlib.contextmanager
def running(python: Path, tracking_uri: str) -> Iterator[str]:
    """Its base URL as long as the context lasts.

    Args:
        python: interpreter of its environment.
        tracking_uri: of the cluster's MLflow.

    Raises:
        console.Failure: it does not start.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = console.log_path("baseline")
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            [python, "-m", "load_tests.baseline.app", str(port)],
            cwd=paths.REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=stream,
            text=True,
            env={
                **os.environ,
                "MLFLOW_TRACKING_URI": tracking_uri,
                # Through the server: the store's own address resolves inside of the cluster only.
                "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_AUTH_MODE": "disabled",
            },
        )
        try:
            assert process.stdout is not None
            if not any(line.strip() == "ready" for line in process.stdout):
                raise console.Failure(f"the baseline did not start: {log.read_text()[-800:]}", "see the message")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
