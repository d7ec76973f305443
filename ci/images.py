"""Container images: built from this checkout, named by their content, brought into the cluster.

An image's tag is a hash of its Dockerfile, of the files that the Dockerfile copies and of its build arguments, so of
its base too. An image whose tag the engine knows is not built again; one that the cluster knows is not loaded again.
"""

from __future__ import annotations

import configparser
import contextlib
import functools
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import ssl
import stat
import subprocess
import tarfile
import tempfile
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from ci import console, paths
from ci.cluster import programs

IMAGES = paths.REPOSITORY / "images"
OURS = ("tools", "training-api", "training-worker", "mlflow", "ray-serve")
"""The images that this repository makes, the quickest first."""
STAND_INS = ("postgresql", "rabbitmq", "minio", "versitygw")
"""Local images for others' software, used where no registry answers."""
STATIC = ("minio", "versitygw")
"""Stand-ins that are one Go program on an empty file system."""
HOST_PACKAGES = ("buildah", "debootstrap", "debian-archive-keyring", "ca-certificates")
"""Debian packages that building without a Docker engine and without a registry calls for."""

VALUES: dict[str, tuple[str, ...]] = {
    "tools": ("tools",),
    "training-api": ("training-api",),
    "training-worker": ("training-worker",),
    "ray-serve": ("ray-serve",),
    "mlflow": ("mlflow", "server"),
    "postgresql": ("mlflow", "postgresql"),
    "rabbitmq": ("rabbitmq",),
    "minio": ("mlflow", "objectStore", "minio"),
    "versitygw": ("mlflow", "objectStore", "versitygw"),
}
"""Where each image's `image` lies in the chart's values."""

LOCAL_PREFIX = "localhost/ads"
IGNORED = re.compile(r"(^|/)(__pycache__|\.[^/]*_cache)(/|$)|\.pyc$")
"""What `.dockerignore` keeps out of a build context as well."""


def _pins() -> dict[str, dict[str, str]]:
    return tomllib.loads((paths.REPOSITORY / "ci" / "versions.toml").read_text(encoding="utf-8"))


def pin(section: str, key: str) -> str:
    """A version of `ci/versions.toml`."""
    return _pins()[section][key]


@dataclass(frozen=True)
class Target:
    """The cluster that gets the images.

    Attributes:
        kind: `embedded`, `kind`, `minikube` or `existing`.
        containerd: containerd's socket, for `embedded`.
        cluster: the name of the kind cluster or of minikube's profile.
        registry: for `existing`, the registry and path that its nodes pull from, such as `registry.example.com/team`.
    """

    kind: str
    containerd: Path | None = None
    cluster: str = ""
    registry: str = ""

    @property
    def prefix(self) -> str:
        """What comes before an image's name in its reference.

        Raises:
            console.Failure: when an existing cluster's registry is not named.
        """
        if self.kind != "existing":
            return LOCAL_PREFIX
        if not self.registry:
            raise console.Failure(
                "the nodes of an existing cluster pull from a registry, and none is named",
                "set IMAGE_REGISTRY to one that you may push to, such as IMAGE_REGISTRY=registry.example.com/team",
            )
        return self.registry.rstrip("/")


class Engine(Protocol):
    """A program that builds images and keeps them."""

    def has(self, reference: str) -> bool:
        """Whether the engine's store holds the image."""

    def pull(self, reference: str) -> None:
        """Fetch an image from its registry."""

    def build(
        self,
        reference: str,
        dockerfile: Path,
        context: Path,
        arguments: Mapping[str, str],
        contexts: Mapping[str, Path],
    ) -> None:
        """Build one image; `contexts` are further build contexts by name."""

    def push(self, reference: str) -> None:
        """Send an image to the registry that its reference names."""

    def forget(self, wanted: Set[str]) -> None:
        """Remove earlier states of the images of `wanted`: other tags of the same names."""

    def archive(self, reference: str, known: Set[str], stream: IO[bytes]) -> None:
        """Write an image as a tar archive; layers whose digests the reader knows may be left out."""


class Docker:
    """Docker's engine with BuildKit."""

    def has(self, reference: str) -> bool:
        return _succeeds(["docker", "image", "inspect", reference])

    def pull(self, reference: str) -> None:
        console.run(["docker", "pull", "--quiet", reference], log="images", remedy=_REGISTRY_REMEDY)

    def build(
        self,
        reference: str,
        dockerfile: Path,
        context: Path,
        arguments: Mapping[str, str],
        contexts: Mapping[str, Path],
    ) -> None:
        # BuildKit, unlike buildah, does not read the host's proxy from the environment; neither puts it into the image.
        proxies = {name: os.environ[name] for name in _PROXY_VARIABLES if name in os.environ}
        with package_settings() as secrets:
            console.run(
                [
                    *("docker", "buildx", "build", "--load", "--progress", "plain", "--tag", reference),
                    *("--file", dockerfile),
                    *_build_flags({**proxies, **arguments}, contexts, secrets),
                    context,
                ],
                log=_log_name(reference),
                remedy=_BUILD_REMEDY,
            )

    def push(self, reference: str) -> None:
        console.run(["docker", "push", "--quiet", reference], log="images", remedy=_REGISTRY_REMEDY)

    def forget(self, wanted: Set[str]) -> None:
        listed = console.output(["docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}"]).split()
        for reference in _earlier(listed, wanted):
            _succeeds(["docker", "image", "rm", reference])

    def archive(self, reference: str, known: Set[str], stream: IO[bytes]) -> None:  # noqa: ARG002 (always whole)
        _write(["docker", "save", reference], stream, log=_log_name(reference))


class Buildah:
    """buildah with a store of its own in the user's cache, so that nothing else on the machine is touched."""

    def __init__(self) -> None:
        # Its locks and mount counts must not outlive a restart of the machine.
        runtime = Path("/run") if os.geteuid() == 0 else Path(os.environ.get("XDG_RUNTIME_DIR", tempfile.gettempdir()))
        self.command = [
            "buildah",
            "--root",
            str(paths.CACHE / "containers"),
            "--runroot",
            str(runtime / "anomaly-detection-system" / "containers"),
        ]
        # buildah keeps cache mounts under its folder for temporary files.
        self.scratch = paths.CACHE / "buildah"
        self.scratch.mkdir(parents=True, exist_ok=True)

    def _run(self, *words: str | Path, log: str, remedy: str) -> None:
        console.run([*self.command, *words], log=log, env={"TMPDIR": str(self.scratch)}, remedy=remedy)

    def has(self, reference: str) -> bool:
        return _succeeds([*self.command, "inspect", "--type", "image", "--format", "{{.FromImageID}}", reference])

    def pull(self, reference: str) -> None:
        self._run("pull", "--quiet", reference, log="images", remedy=_REGISTRY_REMEDY)

    def build(
        self,
        reference: str,
        dockerfile: Path,
        context: Path,
        arguments: Mapping[str, str],
        contexts: Mapping[str, Path],
    ) -> None:
        with package_settings() as secrets:
            self._run(
                *("bud", "--isolation", "chroot", "--network", "host", "--pull-never", "--layers"),
                *("--tag", reference, "--file", dockerfile),
                *_build_flags(arguments, contexts, secrets),
                context,
                log=_log_name(reference),
                remedy=_BUILD_REMEDY,
            )

    def push(self, reference: str) -> None:
        self._run("push", "--quiet", reference, f"docker://{reference}", log="images", remedy=_REGISTRY_REMEDY)

    def forget(self, wanted: Set[str]) -> None:
        listed = console.output([*self.command, "images", "--format", "{{.Name}}:{{.Tag}}"]).split()
        for reference in _earlier(listed, wanted):
            self._run("rmi", reference, log="images", remedy=_DISK_REMEDY)

    def archive(self, reference: str, known: Set[str], stream: IO[bytes]) -> None:
        inspected = json.loads(console.output([*self.command, "inspect", "--type", "image", reference]))
        layers = {layer["digest"]: layer["size"] for layer in json.loads(inspected["Manifest"])["layers"]}
        omitted = {digest: size for digest, size in layers.items() if digest in known}
        if sum(omitted.values()) * 2 < sum(layers.values()):
            # Straight through: neither compressed nor written to the disk on the way.
            save = [*self.command, "push", "--quiet", reference, f"docker-archive:/dev/stdout:{reference}"]
            _write(save, stream, log=_log_name(reference))
            return
        with tempfile.TemporaryDirectory(dir=self.scratch, prefix="archive-") as folder:
            layout = Path(folder)
            (layout / "blobs" / "sha256").mkdir(parents=True)
            # buildah does not write a blob that the layout has: a sparse file of its size will do for those left out.
            for digest, size in omitted.items():
                with (layout / _blob(digest)).open("wb") as file:
                    file.truncate(size)
            push = ["push", "--quiet", reference, f"oci:{layout}:{reference}"]
            self._run(*push, log=_log_name(reference), remedy=_DISK_REMEDY)
            left_out = {_blob(digest) for digest in omitted}
            with tarfile.open(fileobj=stream, mode="w|") as tar:
                for path in sorted(layout.rglob("*")):
                    name = path.relative_to(layout).as_posix()
                    if path.is_file() and name not in left_out:
                        tar.add(path, name)


def _earlier(listed: Iterable[str], wanted: Set[str]) -> list[str]:
    """Those of `listed` that are another tag of an image of `wanted`."""
    names = {reference.rpartition(":")[0] for reference in wanted}
    return [reference for reference in listed if reference.rpartition(":")[0] in names and reference not in wanted]


def _blob(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


_PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
_REGISTRY_REMEDY = "check that the registry answers from this machine and that you are logged in to it"
_BUILD_REMEDY = (
    "read the log named above; packages come from the index in your pip configuration and from Debian's mirror"
)
_DISK_REMEDY = f"make room on the disk that holds {paths.CACHE}"


def _succeeds(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False).returncode == 0
    except FileNotFoundError:
        return False


def _write(command: list[str], stream: IO[bytes], *, log: str) -> None:
    """Run a command that writes to `stream`.

    Raises:
        console.Failure: when it fails.
    """
    path = console.log_path(log)
    with path.open("a", encoding="utf-8") as errors:
        done = subprocess.run(command, stdout=stream, stderr=errors, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        shown = os.path.relpath(path, paths.REPOSITORY)
        problem = f"`{' '.join(command)[:200]}` ended with code {done.returncode} (log: {shown})"
        raise console.Failure(problem, _DISK_REMEDY)


def _log_name(reference: str) -> str:
    return f"image-{reference.rpartition('/')[2].partition(':')[0]}"


def _build_flags(arguments: Mapping[str, str], contexts: Mapping[str, Path], secrets: Mapping[str, Path]) -> list[str]:
    flags = []
    for name, value in arguments.items():
        flags += ["--build-arg", f"{name}={value}"]
    for name, folder in contexts.items():
        flags += ["--build-context", f"{name}={folder}"]
    for name, file in secrets.items():
        flags += ["--secret", f"id={name},src={file}"]
    return flags


@functools.cache
def docker_answers() -> bool:
    """Whether a Docker engine answers; a Docker client alone does not count."""
    return bool(shutil.which("docker")) and _succeeds(["docker", "version", "--format", "{{.Server.Version}}"])


@functools.cache
def engine() -> Engine:
    """The engine of this machine.

    Raises:
        console.Failure: when there is none.
    """
    if docker_answers():
        if not _succeeds(["docker", "buildx", "version"]):
            raise console.Failure(
                "Docker has no BuildKit", "install its plugin (Debian: docker-buildx, else docker-buildx-plugin)"
            )
        return Docker()
    if shutil.which("buildah"):
        return Buildah()
    raise console.Failure("no Docker engine answers and buildah is not installed", "start Docker, or install buildah")


# The user's package index and certificates, for the time of a build only.


def pip_settings() -> dict[str, str]:
    """The user's pip configuration as pip itself would read it: files, then environment; keys as in `pip.conf`."""
    home = Path.home()
    folders = os.environ.get("XDG_CONFIG_DIRS") or "/etc/xdg"
    files = [
        *(Path(folder) / "pip" / "pip.conf" for folder in folders.split(":")),
        Path("/etc/pip.conf"),
        home / ".pip" / "pip.conf",
        Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip" / "pip.conf",
    ]
    if "PIP_CONFIG_FILE" in os.environ:
        named = Path(os.environ["PIP_CONFIG_FILE"])
        files = [] if named == Path(os.devnull) else [*files, named]
    parser = configparser.RawConfigParser()
    parser.read(files, encoding="utf-8")
    settings: dict[str, str] = {}
    for section in ("global", "install"):
        if parser.has_section(section):
            settings.update(parser.items(section))
    for name, value in os.environ.items():
        if name.startswith("PIP_") and name != "PIP_CONFIG_FILE" and value:
            settings[name.removeprefix("PIP_").lower().replace("_", "-")] = value
    return settings


def _certificates(settings: Mapping[str, str]) -> Path | None:
    """The file of certificates that this machine trusts: pip's, else what the environment names, else the system's."""
    system = ssl.get_default_verify_paths()
    variables = (os.environ.get(name) for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"))
    for name in (settings.get("cert"), *variables, "/etc/ssl/certs/ca-certificates.crt", system.cafile):
        if name and Path(name).is_file():
            return Path(name)
    return None


def _is_url(value: str) -> bool:
    return "://" in value and not value.startswith("file:")


@contextlib.contextmanager
def package_settings() -> Iterator[dict[str, Path]]:
    """The files that builds mount and no layer keeps, by the name of their secret."""
    settings = pip_settings()
    lists = {
        name: [word for word in settings.get(name, "").split() if word] for name in ("extra-index-url", "trusted-host")
    }
    # A folder of the host is not in the build.
    links = [word for word in settings.get("find-links", "").split() if _is_url(word)]
    pip: dict[str, str] = {
        name: settings[name]
        for name in ("index-url", "proxy", "timeout", "default-timeout", "retries")
        if name in settings
    }
    uv: dict[str, object] = {}
    if "index-url" in settings:
        uv["index-url"] = settings["index-url"]
    for name, key in (("extra-index-url", "extra-index-url"), ("trusted-host", "allow-insecure-host")):
        if lists[name]:
            pip[name] = "\n  ".join(lists[name])
            uv[key] = lists[name]
    if links:
        pip["find-links"] = "\n  ".join(links)
        uv["find-links"] = links
    # pip searches all indexes for the best match; uv would take the first that knows the name; hashes decide.
    if "extra-index-url" in uv:
        uv["index-strategy"] = "unsafe-best-match"
    if "proxy" in settings:
        uv["https-proxy"] = uv["http-proxy"] = settings["proxy"]
    with tempfile.TemporaryDirectory(prefix="build-secrets-") as folder:
        files = {"pip.conf": Path(folder) / "pip.conf", "uv.toml": Path(folder) / "uv.toml"}
        files["pip.conf"].write_text("".join(["[global]\n", *(f"{name} = {value}\n" for name, value in pip.items())]))
        # A JSON string or list of strings is written as in TOML.
        files["uv.toml"].write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in uv.items()))
        certificates = _certificates(settings)
        if certificates:
            files["ca-certificates.crt"] = certificates
        yield files


# Content and tags.


@dataclass(frozen=True)
class Recipe:
    """What an image is made from.

    Attributes:
        name: the image's name.
        dockerfile: its Dockerfile.
        files: what the Dockerfile copies from the repository, relative to it.
        arguments: build arguments.
        contexts: further build contexts by name.
        key: the hash of all of it; the image's tag.
    """

    name: str
    dockerfile: Path
    files: tuple[Path, ...]
    arguments: dict[str, str]
    contexts: dict[str, Path]
    key: str


def copied_files(dockerfile: Path, root: Path = paths.REPOSITORY) -> tuple[Path, ...]:
    """The files that a Dockerfile's COPY and ADD lines take from the build context, relative to `root`, sorted.

    Raises:
        console.Failure: when a source does not exist.
    """
    text = re.sub(r"\\\n", " ", dockerfile.read_text(encoding="utf-8"))
    found: set[Path] = set()
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if not words or words[0].upper() not in ("COPY", "ADD") or any(word.startswith("--from=") for word in words):
            continue
        sources = [word for word in words[1:] if not word.startswith("--")][:-1]
        for source in sources:
            matches = sorted(root.glob(source))
            if not matches:
                raise console.Failure(
                    f"{dockerfile} copies {source}, which does not exist", "restore the file from git"
                )
            for match in matches:
                members = match.rglob("*") if match.is_dir() else [match]
                found.update(member.relative_to(root) for member in members if member.is_file())
    return tuple(sorted(path for path in found if not IGNORED.search(path.as_posix())))


def _hash(dockerfile: Path, root: Path, files: Iterable[Path], *texts: str) -> str:
    digest = hashlib.sha256(dockerfile.read_bytes())
    for text in texts:
        digest.update(b"\0" + text.encode())
    for path in files:
        content = (root / path).read_bytes()
        digest.update(f"\0{path.as_posix()}\0{_mode(root / path):o}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def _mode(path: Path) -> int:
    """A file's mode as git knows it: the rest depends on the user's umask."""
    return 0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644


def recipe(name: str, base: str) -> Recipe:
    """What the image `name` is made from on the base image `base`."""
    folder = IMAGES / "stand-ins" / name if name in STAND_INS else IMAGES / name
    dockerfile = folder / "Dockerfile"
    files = copied_files(dockerfile)
    arguments: dict[str, str] = {}
    contexts: dict[str, Path] = {}
    if name in STATIC:
        contexts["program"] = programs.path(name).parent
    else:
        arguments["BASE_IMAGE"] = base
    texts = [*(f"{key}={value}" for key, value in arguments.items()), *(path.name for path in contexts.values())]
    key = _hash(dockerfile, paths.REPOSITORY, files, platform.machine(), *texts)
    return Recipe(name, dockerfile, files, arguments, contexts, key)


@contextlib.contextmanager
def _context(made_from: Recipe) -> Iterator[Path]:
    """A build context of exactly the files that were hashed, with the same modes and times on every machine."""
    with tempfile.TemporaryDirectory(prefix="build-context-") as folder:
        root = Path(folder)
        for path in made_from.files:
            target = root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(paths.REPOSITORY / path, target)
            target.chmod(_mode(paths.REPOSITORY / path))
        for path in (root, *root.rglob("*")):
            if path.is_dir():
                path.chmod(0o755)
            os.utime(path, (0, 0))
        yield root


# The base image.


@functools.cache
def registry_answers() -> bool:
    """Whether the registry of the official base image answers from this machine."""
    host = _pins()["images"]["python"].partition("/")[0]
    address = f"https://{'registry-1.docker.io' if host == 'docker.io' else host}/v2/"
    certificates = _certificates({})
    context = ssl.create_default_context(cafile=str(certificates) if certificates else None)
    handlers = (urllib.request.ProxyHandler(), urllib.request.HTTPSHandler(context=context))
    try:
        with urllib.request.build_opener(*handlers).open(address, timeout=4) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        # The protocol's answer to a caller who has not logged in yet.
        return error.code == 401
    except (OSError, ValueError):
        return False


@functools.cache
def base_image() -> str:
    """The reference of the base image, present in the engine: BASE_IMAGE, else the official one, else one made here.

    Raises:
        console.Failure: when it can neither be fetched nor made.
    """
    wanted = os.environ.get("BASE_IMAGE") or _pins()["images"]["python"]
    if engine().has(wanted):
        return wanted
    if os.environ.get("BASE_IMAGE") or registry_answers():
        with console.stage(f"base image {wanted}"):
            engine().pull(wanted)
        return wanted
    return _local_base()


def _local_base() -> str:
    """Make Debian's base image, unless the engine has it.

    Raises:
        console.Failure: without root, or when Debian's mirror does not answer.
    """
    folder = IMAGES / "stand-ins" / "base"
    dockerfile, script = folder / "Dockerfile", Path("rootfs.sh")
    release = _pins()["debian"]["release"]
    reference = f"{LOCAL_PREFIX}/python:{_hash(dockerfile, folder, [script], release, platform.machine())}"
    if engine().has(reference):
        return reference
    if os.geteuid() != 0:
        raise console.Failure(
            "no container registry answers, and making a base image without one takes root",
            "make the registry reachable, or name an image that the engine has: BASE_IMAGE=...; or run as root",
        )
    mirror = [os.environ["DEBIAN_MIRROR"]] if os.environ.get("DEBIAN_MIRROR") else []
    remedy = (
        "check that Debian's mirror answers; another one can be named: DEBIAN_MIRROR=http://mirror.example.com/debian"
    )
    paths.CACHE.mkdir(parents=True, exist_ok=True)
    with (
        console.stage(f"base image: Debian {release}"),
        tempfile.TemporaryDirectory(dir=paths.CACHE, prefix="base-") as scratch,
    ):
        root, context = Path(scratch) / "root", Path(scratch) / "context"
        context.mkdir()
        console.run(["debootstrap", "--variant=minbase", release, root, *mirror], log="image-base", remedy=remedy)
        # debootstrap leaves these mounted.
        for mounted in ("proc", "sys"):
            subprocess.run(["umount", "--recursive", str(root / mounted)], capture_output=True, check=False)
        shutil.copyfile(folder / script, root / "rootfs.sh")
        console.run(["chroot", root, "/bin/sh", "/rootfs.sh"], log="image-base", remedy=remedy)
        (root / "rootfs.sh").unlink()
        console.run(
            [
                "tar",
                "--create",
                "--one-file-system",
                "--numeric-owner",
                "--directory",
                root,
                "--file",
                context / "rootfs.tar",
                ".",
            ],
            log="image-base",
            remedy=_DISK_REMEDY,
        )
        engine().build(reference, dockerfile, context, {}, {})
    return reference


def remove_store() -> None:
    """Remove what buildah keeps in the cache; its mounts have to go before the folders can."""
    if isinstance(engine(), Buildah):
        console.run([*Buildah().command, "rm", "--all"], log="images")
        console.run([*Buildah().command, "rmi", "--all", "--force"], log="images")


# What a caller asks for.


def names(target: Target, object_store: str = "minio") -> list[str]:
    """The images that the chart needs in a cluster: ours, and the stand-ins where no registry answers.

    Args:
        target: the cluster.
        object_store: `objectStore.engine` of the chart's values.
    """
    if target.kind == "existing" or registry_answers():
        return list(OURS)
    stores = [object_store] if object_store in STAND_INS else []
    return ["postgresql", "rabbitmq", *stores, *OURS]


def references(image_names: Iterable[str], target: Target) -> dict[str, str]:
    """The reference of each image for this checkout's content, by name; builds nothing but the base image."""
    base = base_image()
    return {name: f"{target.prefix}/{name}:{recipe(name, base).key}" for name in image_names}


def build(image_names: Iterable[str], target: Target) -> dict[str, str]:
    """Build the images that the engine does not have.

    Args:
        image_names: of `OURS` and `STAND_INS`.
        target: the cluster that they are for; it decides the references' prefix.

    Returns:
        The reference of each image by name.

    Raises:
        console.Failure: when a build fails.
    """
    built: dict[str, str] = {}
    base = base_image()
    for name in image_names:
        made_from = recipe(name, base)
        built[name] = f"{target.prefix}/{name}:{made_from.key}"
        if engine().has(built[name]):
            continue
        if name in STATIC:
            programs.build([name])
        with console.stage(f"image {name}"), _context(made_from) as context:
            engine().build(built[name], made_from.dockerfile, context, made_from.arguments, made_from.contexts)
    return built


def forget_earlier(image_references: Iterable[str]) -> None:
    """Remove earlier states of these images from the engine, so that a changed image does not fill the disk."""
    engine().forget(frozenset(image_references))


def load(image_references: Iterable[str], target: Target) -> None:
    """Bring images that were built into the cluster, except those that it has.

    Raises:
        console.Failure: when the cluster or the registry does not take one.
    """
    wanted = list(image_references)
    match target.kind:
        case "embedded":
            _import(wanted, target)
        case "kind":
            with console.stage(f"images into kind cluster {target.cluster}"):
                console.run(["kind", "load", "docker-image", "--name", target.cluster, *wanted], log="images")
        case "minikube":
            minikube = ["minikube", "--profile", target.cluster]
            present = console.output([*minikube, "image", "ls"]).split()
            for reference in wanted:
                if reference not in present:
                    with console.stage(f"image {reference} into minikube"):
                        _load_minikube(minikube, reference)
        case "existing":
            for reference in wanted:
                with console.stage(f"push {reference}"):
                    engine().push(reference)
        case other:
            raise ValueError(f"unknown kind of cluster: {other}")


def _load_minikube(minikube: list[str], reference: str) -> None:
    with tempfile.NamedTemporaryFile(suffix=".tar") as file:
        engine().archive(reference, frozenset(), file)
        file.flush()
        console.run([*minikube, "image", "load", file.name], log="images")


def _import(wanted: list[str], target: Target) -> None:
    ctr = ["ctr", "--address", str(target.containerd), "--namespace", "k8s.io"]
    present = set(console.output([*ctr, "images", "ls", "--quiet"]).split())
    # Two at a time: one image is read from the engine while another is unpacked.
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda reference: _import_one(ctr, reference), [name for name in wanted if name not in present]))


def _import_one(ctr: list[str], reference: str) -> None:
    start = time.monotonic()
    known = set(console.output([*ctr, "content", "ls", "--quiet"]).split())
    with console.log_path("images").open("a", encoding="utf-8") as log:
        reader = subprocess.Popen(
            [*ctr, "images", "import", "--all-platforms", "-"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        assert reader.stdin
        try:
            engine().archive(reference, known, reader.stdin)
        except BrokenPipeError:
            # containerd stopped reading; its code and the log say why.
            pass
        finally:
            with contextlib.suppress(BrokenPipeError):
                reader.stdin.close()
            code = reader.wait()
    if code != 0:
        raise console.Failure(f"containerd did not take {reference} (log: build/logs/images.log)", _DISK_REMEDY)
    # Not a stage: two run at once, and their times would be counted twice.
    console.say(f"    {reference} {time.monotonic() - start:.1f} s")


def write_values(image_references: Mapping[str, str], path: Path) -> None:
    """Write a values file in which the chart's images are those of `references`.

    Args:
        image_references: references by name, as `build` returns them.
        path: the file; JSON, which is YAML too.
    """
    values: dict[str, object] = {}
    for name, reference in image_references.items():
        location, _, tag = reference.rpartition(":")
        registry, _, repository = location.partition("/")
        place = values
        for key in VALUES[name]:
            place = place.setdefault(key, {})  # type: ignore[assignment]
        place["image"] = {"registry": registry, "repository": repository, "tag": tag, "digest": ""}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
