"""The machine that `make up` runs on: what it must have, checked before anything is changed, and what is installed."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ci import console, images, paths
from ci.cluster import embedded, programs

MINIMUM_PYTHON = (3, 11)
MEMORY_GIB = 7
"""For all pods and the cluster's own programs."""
DISK_COLD_GIB, DISK_WARM_GIB = 20, 6
"""Free space for building everything, and for a run whose programs and images are in the cache."""
REGISTRY_SECONDS = 30


def check_basics() -> None:
    """What every target needs.

    Raises:
        console.Failure: when Python or Go is missing or too old.
    """
    if sys.version_info < MINIMUM_PYTHON:
        wanted = ".".join(map(str, MINIMUM_PYTHON))
        raise console.Failure(
            f"Python is {platform.python_version()}, too old", f"run with Python {wanted} or newer: make PYTHON=..."
        )
    programs.require_go()


def check_embedded() -> None:
    """What the embedded cluster needs of the machine; changes nothing.

    Raises:
        console.Failure: with the first thing that is missing.
    """
    if platform.system() != "Linux":
        raise console.Failure(
            f"the embedded cluster runs on Linux, and this is {platform.system()}",
            "start Docker and use CLUSTER=kind, or name a cluster of your own with CLUSTER=existing",
        )
    if os.geteuid() != 0:
        raise console.Failure(
            "a cluster without a Docker engine needs root",
            "run `sudo make up`, or start Docker for CLUSTER=kind, or use a cluster of your own: CLUSTER=existing",
        )
    if embedded.running():
        return
    if missing_packages() and not shutil.which("apt-get"):
        raise console.Failure(
            f"not installed, and only Debian's and Ubuntu's packages are known here: {', '.join(missing_packages())}",
            "install them with your system's package manager, or start Docker and use CLUSTER=kind",
        )
    other = embedded.foreign()
    if other:
        raise console.Failure(
            f"another Kubernetes is installed on this machine: {other} exists",
            "use it with CLUSTER=existing, or remove it with `kubeadm reset`",
        )
    _check_memory()
    _check_disk()
    busy = {} if embedded.exists() else embedded.busy_ports()
    if busy:
        named = ", ".join(f"{port} ({user})" for port, user in busy.items())
        raise console.Failure(
            f"ports that the cluster needs are taken on this machine: {named}",
            f"end the program that listens there (`ss -ltnp 'sport = :{min(busy)}'` names it)",
        )


def _check_memory() -> None:
    text = Path("/proc/meminfo").read_text(encoding="utf-8")
    available = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("MemAvailable")) / 2**20
    if available < MEMORY_GIB:
        raise console.Failure(
            f"{available:.1f} GiB of memory are available, and the system needs {MEMORY_GIB} GiB",
            "end other programs, or use a larger machine",
        )


def _check_disk() -> None:
    cold = bool(programs.missing(programs.EMBEDDED))
    needed = DISK_COLD_GIB if cold else DISK_WARM_GIB
    for folder in (paths.CACHE, embedded.STATE):
        present = next(parent for parent in (folder, *folder.parents) if parent.exists())
        free = shutil.disk_usage(present).free / 2**30
        if free < needed:
            raise console.Failure(
                f"{free:.1f} GiB are free on the disk of {present}, and {needed} GiB are needed",
                "make room; XDG_CACHE_HOME=... puts programs and images on another disk",
            )


def missing_packages() -> list[str]:
    """Debian packages that the embedded cluster needs and that are not installed."""
    if not shutil.which("dpkg-query"):
        commands = ("buildah", "conntrack", "containerd", "debootstrap", "ip", "iptables", "nft", "runc")
        return [command for command in commands if not shutil.which(command)]
    wanted = sorted({*embedded.PACKAGES, *images.HOST_PACKAGES})
    done = subprocess.run(
        ["dpkg-query", "--show", "--showformat", "${Package} ${db:Status-Status}\n", *wanted],
        capture_output=True,
        text=True,
        check=False,
    )
    installed = {line.split()[0] for line in done.stdout.splitlines() if line.endswith(" installed")}
    lacking = [name for name in wanted if name not in installed]
    # Debian's own Python makes no virtual environment without this package.
    if importlib.util.find_spec("ensurepip") is None:
        lacking.append("python3-venv")
    return lacking


def check_registries(*, go: bool, python: bool, debian: bool) -> None:
    """Ask the package registries that this run will need whether they answer.

    Raises:
        console.Failure: naming the first that does not.
    """
    checks: list[Callable[[], None]] = []
    if go:
        checks.append(_check_go_proxy)
    # A Python without pip gets its own in a virtual environment later, and asks the index then.
    if python and importlib.util.find_spec("pip"):
        checks.append(_check_python_index)
    if debian and shutil.which("apt-get"):
        checks.append(_check_debian_mirror)
    with ThreadPoolExecutor(3) as pool:
        for result in [pool.submit(check) for check in checks]:
            result.result()


def _answers(command: list[str], what: str, remedy: str, cwd: Path | None = None) -> None:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=REGISTRY_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
            cwd=cwd,
        )
        problem = done.stderr.strip()[-400:] if done.returncode else ""
    except subprocess.TimeoutExpired:
        problem = f"no answer within {REGISTRY_SECONDS} s"
    if problem:
        raise console.Failure(f"{what} does not answer: {problem}", remedy)


def _check_go_proxy() -> None:
    _answers(
        ["go", "list", "-m", "-json", "k8s.io/api@latest"],
        "the Go module proxy",
        "check the network and `go env GOPROXY`",
        cwd=programs.MODULES / "kubernetes",
    )


def _check_python_index() -> None:
    with tempfile.TemporaryDirectory() as folder:
        _answers(
            [
                *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir", "--dest", folder),
                *("--require-hashes", "--only-binary", ":all:"),
                *("--requirement", str(paths.REPOSITORY / "requirements" / "data.txt")),
            ],
            "the Python package index",
            "check the network and `pip config list`",
        )


def _check_debian_mirror() -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "partial").mkdir()
        _answers(
            [
                *("apt-get", "update", "-o", f"Dir::State::Lists={folder}", "-o", "APT::Sandbox::User=root"),
                *("-o", "APT::Update::Error-Mode=any", "-o", "Acquire::Languages=none"),
            ],
            "Debian's package mirror",
            "check the network and /etc/apt/sources.list",
        )


def install_packages(names: list[str]) -> None:
    """Install Debian packages on the host, and say which."""
    console.say(f"    installing {', '.join(names)}")
    environment = {"DEBIAN_FRONTEND": "noninteractive"}
    remedy = "run `apt-get update` and `apt-get install` by hand and see what they say"
    console.run(["apt-get", "update"], log="apt", env=environment, remedy=remedy)
    # A package's own service would start a second containerd that nobody asked for.
    policy = Path("/usr/sbin/policy-rc.d")
    held = not policy.exists()
    if held:
        policy.write_text("#!/bin/sh\nexit 101\n", encoding="utf-8")
        policy.chmod(0o755)
    try:
        command = ["apt-get", "install", "--yes", "--no-install-recommends", *names]
        console.run(command, log="apt", env=environment, remedy=remedy)
    finally:
        if held:
            policy.unlink()
