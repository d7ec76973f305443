"""Virtual environments on the host, each named in the cache by a hash of its requirements."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ci import console, images, paths

STORE = paths.CACHE / "python"
RESOLVER = paths.REPOSITORY / "requirements" / "lock.txt"
REQUIREMENTS = (paths.REPOSITORY / "requirements" / "test.txt", paths.REPOSITORY / "requirements" / "data.txt")
"""Of the tests, the main job and the benchmark."""
BASELINE = (paths.REPOSITORY / "requirements" / "baseline.txt",)
"""Of what the benchmark compares with."""


def directory(requirements: Sequence[Path] = REQUIREMENTS) -> Path:
    """Where the environment of these requirement files is, or will be."""
    digest = hashlib.sha256(f"{sys.executable} {platform.python_version()} {platform.machine()}".encode())
    for path in requirements:
        digest.update(path.read_bytes())
    # Apart, so that the newest one in STORE is that of the tests.
    store = STORE if requirements == REQUIREMENTS else STORE.with_name(f"{STORE.name}-{requirements[0].stem}")
    return store / digest.hexdigest()[:16]


def python(requirements: Sequence[Path] = REQUIREMENTS) -> Path:
    """The environment's interpreter."""
    return directory(requirements) / "bin" / "python"


def ready(requirements: Sequence[Path] = REQUIREMENTS) -> bool:
    """Whether the environment is complete."""
    return (directory(requirements) / "complete").exists()


def ensure(requirements: Sequence[Path] = REQUIREMENTS) -> Path:
    """Make the environment when it is missing; its interpreter.

    Safe to interrupt and to run twice at once.

    Raises:
        console.Failure: when it cannot be made.
    """
    STORE.mkdir(parents=True, exist_ok=True)
    with (STORE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready(requirements):
            with console.stage(f"Python packages of {', '.join(path.name for path in requirements)}"):
                _make(directory(requirements), requirements)
    return python(requirements)


def _make(target: Path, requirements: Sequence[Path]) -> None:
    shutil.rmtree(target, ignore_errors=True)
    console.run(
        [sys.executable, "-m", "venv", target],
        log="python",
        remedy="install Python's venv module (Debian: python3-venv)",
    )
    interpreter = str(target / "bin" / "python")
    remedy = "check that the package index in `pip config list` answers, and run the same command again"
    with tempfile.TemporaryDirectory(dir=STORE) as uv, images.package_settings() as settings:
        pip = [interpreter, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--target", uv]
        console.run([*pip, "--require-hashes", "-r", str(RESOLVER)], log="python", remedy=remedy)
        # uv downloads and unpacks in parallel: a quarter of pip's time.
        environment = {"UV_CONFIG_FILE": str(settings["uv.toml"]), "UV_CACHE_DIR": str(paths.CACHE / "uv")}
        if "ca-certificates.crt" in settings:
            environment["SSL_CERT_FILE"] = str(settings["ca-certificates.crt"])
        install = [
            f"{uv}/bin/uv",
            "pip",
            "install",
            "--python",
            interpreter,
            "--no-deps",
            "--no-build",
            "--compile-bytecode",
        ]
        for path in requirements:
            console.run([*install, "--require-hashes", "-r", str(path)], log="python", env=environment, remedy=remedy)
    (target / "complete").touch()


def run(*arguments: str | Path, environment: dict[str, str] | None = None) -> int:
    """Run Python in the environment with this process's terminal; its exit code."""
    command = [str(ensure()), *map(str, arguments)]
    return subprocess.call(command, cwd=paths.REPOSITORY, env={**os.environ, **(environment or {})})
