"""Builds the cluster's programs from pinned Go modules, each named in the cache by a hash of what it is made from.

The pins, with a hash for each module, are the `go.mod` and `go.sum` files under `ci/cluster/go`.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ci import console, paths

MODULES = Path(__file__).parent / "go"
STORE = paths.CACHE / "programs"
MINIMUM_GO = (1, 26)


@dataclass(frozen=True)
class Program:
    """One Go program.

    Attributes:
        module: folder under `ci/cluster/go` that pins it.
        package: what `go build` takes.
        output: the name `go build` gives it.
        flags: name of the linker flags, see `_linker_flags`.
        links: names under which it is called; its own by default.
        alone: whether it must not share a `go build` with others: two spellings of one import path collide.
    """

    module: str
    package: str
    output: str
    flags: str = "plain"
    links: tuple[str, ...] = ()
    alone: bool = False


KUBERNETES_COMMANDS = (
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
    "kubelet",
    "kubeadm",
    "kubectl",
)

PROGRAMS = {
    "hyperkube": Program("kubernetes", "./cmd/hyperkube", "hyperkube", "kubernetes", KUBERNETES_COMMANDS),
    "coredns": Program("kubernetes", "./cmd/coredns", "coredns"),
    "pause": Program("kubernetes", "./cmd/pause", "pause"),
    "metrics-server": Program("kubernetes", "./cmd/metrics-server", "metrics-server"),
    "etcd": Program("kubernetes", "go.etcd.io/etcd/server/v3", "server"),
    "kuberay-operator": Program("kubernetes", "github.com/ray-project/kuberay/ray-operator", "ray-operator"),
    "local-path-provisioner": Program(
        "kubernetes", "github.com/rancher/local-path-provisioner", "local-path-provisioner", alone=True
    ),
    "helm": Program("kubernetes", "helm.sh/helm/v3/cmd/helm", "helm", "helm"),
    "helm-unittest": Program(
        "helm-unittest", "github.com/helm-unittest/helm-unittest/cmd/helm-unittest", "helm-unittest"
    ),
    "kind": Program("kind", "sigs.k8s.io/kind", "kind"),
    "minio": Program("minio", "github.com/minio/minio", "minio", "minio"),
    "vegeta": Program("vegeta", "github.com/tsenart/vegeta/v12", "vegeta", links=("vegeta",)),
    "versitygw": Program("versitygw", "github.com/versity/versitygw/cmd/versitygw", "versitygw", "versitygw"),
}

EMBEDDED = (
    "hyperkube",
    "coredns",
    "pause",
    "metrics-server",
    "etcd",
    "kuberay-operator",
    "local-path-provisioner",
    "helm",
)
"""The programs of the embedded cluster."""


def module_version(module: str, dependency: str) -> str:
    """The version of `dependency` that the module `module` pins, without the leading v.

    Raises:
        KeyError: when the module does not require it.
    """
    text = (MODULES / module / "go.mod").read_text(encoding="utf-8")
    found = re.search(rf"^\s*(?:require\s+)?{re.escape(dependency)} v(\S+)", text, re.MULTILINE)
    if not found:
        raise KeyError(f"{dependency} in {module}/go.mod")
    return found[1]


def kubernetes_version() -> str:
    """The version of Kubernetes that this checkout pins, such as 1.34.2."""
    return module_version("kubernetes", "k8s.io/kubernetes")


def _linker_flags(name: str) -> str:
    major, minor, _ = kubernetes_version().split(".")
    if name == "kubernetes":
        base = "k8s.io/component-base/version"
        values = {
            f"{base}.gitVersion": f"v{kubernetes_version()}",
            f"{base}.gitMajor": major,
            f"{base}.gitMinor": minor,
            f"{base}.gitTreeState": "clean",
        }
    elif name == "helm":
        # Without these `helm template` tells its templates that the cluster is Kubernetes 1.20.
        values = {"helm.sh/helm/v3/internal/version.version": f"v{module_version('kubernetes', 'helm.sh/helm/v3')}"}
        for package in ("pkg/chartutil", "pkg/lint/rules"):
            values[f"helm.sh/helm/v3/{package}.k8sVersionMajor"] = major
            values[f"helm.sh/helm/v3/{package}.k8sVersionMinor"] = minor
    elif name == "minio":
        # Its releases are named by the time of their commit, which is what a pseudo-version holds.
        _, stamp, commit = module_version("minio", "github.com/minio/minio").split("-")
        time = datetime.strptime(stamp, "%Y%m%d%H%M%S").replace(tzinfo=UTC)
        base = "github.com/minio/minio/cmd"
        values = {
            f"{base}.Version": time.strftime("%Y-%m-%dT%H:%M:%SZ"),
            f"{base}.ReleaseTag": time.strftime("RELEASE.%Y-%m-%dT%H-%M-%SZ"),
            f"{base}.ShortCommitID": commit,
            f"{base}.CopyrightYear": str(time.year),
        }
    elif name == "versitygw":
        values = {"main.Version": f"v{module_version('versitygw', 'github.com/versity/versitygw')}"}
    else:
        values = {}
    return " ".join(["-s -w", *(f"-X {key}={value}" for key, value in values.items())])


def _environment() -> dict[str, str]:
    return {"CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false -trimpath -tags=providerless", "GOTOOLCHAIN": "local"}


def require_go() -> str:
    """The version of the installed Go, as `go env GOVERSION` prints it.

    Raises:
        console.Failure: when Go is missing or too old.
    """
    remedy = f"install Go {MINIMUM_GO[0]}.{MINIMUM_GO[1]} or newer and put it on PATH"
    if not shutil.which("go"):
        raise console.Failure("the program `go` is not on PATH", remedy)
    version = console.output(["go", "env", "GOVERSION"]).strip()
    found = re.match(r"go(\d+)\.(\d+)", version)
    if not found or (int(found[1]), int(found[2])) < MINIMUM_GO:
        raise console.Failure(f"Go is {version}, too old", remedy)
    return version


def key(name: str, go_version: str) -> str:
    """The cache key of a program: a hash of its module's files, its package, its flags and Go's version."""
    program = PROGRAMS[name]
    digest = hashlib.sha256()
    for part in (go_version, program.package, _linker_flags(program.flags), *sorted(_environment().values())):
        digest.update(part.encode() + b"\0")
    for path in sorted((MODULES / program.module).rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(MODULES).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def path(name: str) -> Path:
    """Where the program of this checkout's pins is, or will be once built."""
    return STORE / name / key(name, require_go()) / name


def missing(names: Iterable[str]) -> list[str]:
    """Those of `names` that the cache does not hold."""
    return [name for name in names if not path(name).exists()]


def build(names: Iterable[str]) -> dict[str, Path]:
    """Build what the cache lacks and link all of `names` under `paths.BIN`.

    Safe to interrupt: a program appears in the cache complete or not at all.

    Returns:
        The path of each program.
    """
    names = list(names)
    groups: dict[tuple[str, str, str], list[str]] = {}
    for name in missing(names):
        program = PROGRAMS[name]
        groups.setdefault((program.module, program.flags, name if program.alone else ""), []).append(name)
    for (module, flags, _), members in groups.items():
        with console.stage(f"go build {', '.join(members)}"):
            _build_group(module, flags, members)
    found = {name: path(name) for name in names}
    paths.BIN.mkdir(parents=True, exist_ok=True)
    for name, built in found.items():
        for link in PROGRAMS[name].links or (name,):
            _link(paths.BIN / link, built)
    return found


def _build_group(module: str, flags: str, members: list[str]) -> None:
    STORE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=STORE, prefix="build-") as scratch:
        console.run(
            ["go", "build", "-ldflags", _linker_flags(flags), "-o", f"{scratch}/"]
            + [PROGRAMS[name].package for name in members],
            log="go-build",
            env=_environment(),
            cwd=MODULES / module,
            remedy="check that the Go module proxy (`go env GOPROXY`) answers, and run the same command again",
        )
        for name in members:
            target = path(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(Path(scratch) / PROGRAMS[name].output, target)


def _link(link: Path, target: Path) -> None:
    if link.is_symlink() and Path(os.readlink(link)) == target:
        return
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.symlink_to(target)
    os.replace(temporary, link)


def module_directory(module: str, dependency: str) -> Path:
    """The folder of a dependency's sources in Go's module cache, fetched when it is not there."""
    console.run(["go", "mod", "download", dependency], log="go-build", env=_environment(), cwd=MODULES / module)
    listed = console.output(
        ["go", "list", "-m", "-f", "{{.Dir}}", dependency], env=_environment(), cwd=MODULES / module
    )
    return Path(listed.strip())
