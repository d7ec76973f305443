"""`make lock`: turn the dependency groups of `pyproject.toml` into hashed requirement files.

All groups are resolved together first (`requirements/constraints.txt`); every group's file is then compiled under those
constraints, so that a package has one version in all images and in the tests. Versions already in the constraints are
kept unless a changed pin forces another one; `python3 -m ci.lock --upgrade` takes the newest allowed versions instead.
"""

from __future__ import annotations

import hashlib
import sys
import tomllib
import venv

from ci import paths
from ci.console import Failure, main_guard, run, stage

REQUIREMENTS = paths.REPOSITORY / "requirements"
IMAGES = ("training-api", "training-worker", "ray-serve", "mlflow", "tools")
"""Groups installed into images: Python 3.13 on Linux."""
HOST = ("test", "baseline", "lock")
"""Groups installed on a host: any supported Python, Linux or macOS."""
DATA = ("data",)
"""Groups installed without their dependencies, for the files they carry; apart from the one resolution."""
IMAGE_PYTHON, HOST_PYTHON = "3.13", "3.11"


def resolver() -> list[str]:
    """The command of the pinned resolver, installed into the cache when it is not there."""
    groups = tomllib.loads((paths.REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    pins = groups["lock"]
    folder = paths.CACHE / f"lock-{hashlib.sha256(repr((pins, sys.version_info[:2])).encode()).hexdigest()[:16]}"
    program = folder / "bin" / "uv"
    if not program.exists():
        venv.create(folder, with_pip=True, clear=True)
        run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", *pins], log="lock")
    return [
        str(program),
        "pip",
        "compile",
        "--quiet",
        "--universal",
        "--no-header",
        "--no-annotate",
        "--no-emit-index-url",
    ]


def lock(upgrade: bool) -> None:
    """Write `requirements/constraints.txt` and one hashed file per group.

    Raises:
        Failure: when the groups contradict each other or the package index does not answer.
    """
    REQUIREMENTS.mkdir(exist_ok=True)
    remedy = "change the pins in pyproject.toml that contradict each other, or make the package index reachable"
    constraints = REQUIREMENTS / "constraints.txt"
    with stage("resolver"):
        compile_ = [*resolver(), *(["--upgrade"] if upgrade else [])]
    with stage("one resolution of all groups"):
        groups = [word for group in (*IMAGES, *HOST) for word in ("--group", group)]
        run([*compile_, *groups, "--python-version", HOST_PYTHON, "-o", constraints], log="lock", remedy=remedy)
    with stage("a file per group"):
        for group in (*IMAGES, *HOST, *DATA):
            python = IMAGE_PYTHON if group in IMAGES else HOST_PYTHON
            bounds = ["--no-deps"] if group in DATA else ["-c", constraints]
            target = REQUIREMENTS / f"{group}.txt"
            run(
                [*compile_, "--group", group, *bounds, "--generate-hashes", "--python-version", python, "-o", target],
                log="lock",
                remedy=remedy,
            )


def main() -> None:
    """The command line: at most `--upgrade`.

    Raises:
        Failure: for any other argument.
    """
    arguments = sys.argv[1:]
    if arguments not in ([], ["--upgrade"]):
        raise Failure(
            f"unknown arguments: {' '.join(arguments)}", "run `python3 -m ci.lock` or `python3 -m ci.lock --upgrade`"
        )
    lock(upgrade=bool(arguments))


if __name__ == "__main__":
    sys.exit(main_guard(main))
