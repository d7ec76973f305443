"""What `make bench` needs beside a running release: the load generators and the baseline's environment."""

from __future__ import annotations

import os
import shutil

from ci import console, host, python_environment, release
from ci.cluster import Cluster, programs

MODES = ("full", "quick")


def mode() -> str:
    """What BENCH asks for.

    Raises:
        console.Failure: it is none of `MODES`.
    """
    asked = os.environ.get("BENCH") or "full"
    if asked not in MODES:
        raise console.Failure(f"BENCH={asked} is unknown", f"one of {', '.join(MODES)}")
    return asked


def run(made: Cluster) -> int:
    """Measure a release; the benchmark's exit code.

    Raises:
        console.Failure: a load generator is missing.
    """
    quick = mode() == "quick"
    with console.stage("Load generators and the baseline's packages"):
        if not shutil.which("wrk"):
            if not shutil.which("apt-get") or os.geteuid() != 0:
                raise console.Failure("the program `wrk` is not on PATH", "install your system's package wrk")
            host.install_packages(["wrk"])
        vegeta = programs.build(["vegeta"])["vegeta"]
        baseline = python_environment.ensure(python_environment.BASELINE)
    training, inference, mlflow = (release.SERVICES[name] for name in ("Training API", "Inference API", "MLflow"))
    with (
        made.url(release.NAMESPACE, *training[:2]) as training_url,
        made.url(release.NAMESPACE, *inference[:2]) as inference_url,
        made.url(release.NAMESPACE, *mlflow[:2]) as mlflow_url,
    ):
        return python_environment.run(
            *("-m", "load_tests.benchmark", "--training-api", training_url, "--inference", inference_url),
            *("--mlflow", mlflow_url, "--vegeta", vegeta, "--baseline-python", baseline),
            *(["--quick"] if quick else []),
        )
