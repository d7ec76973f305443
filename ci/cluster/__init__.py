"""The Kubernetes cluster that `make up` installs into: found, made or removed, by kind of cluster."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

from ci import console, images, paths
from ci.cluster import daemons, embedded, programs

KINDS = ("auto", "kind", "minikube", "existing", "embedded")
NAME = "anomaly-detection"
RECORD = paths.CACHE / "cluster.json"
"""Which cluster the last `make up` used."""


@dataclass(frozen=True)
class Cluster:
    """A cluster that answers.

    Attributes:
        kind: `kind`, `minikube`, `existing` or `embedded`.
        kubeconfig: the file that reaches it, with the right context as its current one.
    """

    kind: str
    kubeconfig: Path

    @property
    def target(self) -> images.Target:
        """How images get into it."""
        return images.Target(
            self.kind,
            containerd=embedded.SOCKET if self.kind == "embedded" else None,
            cluster=NAME,
            registry=os.environ.get("IMAGE_REGISTRY", ""),
        )

    def kubectl(self, *arguments: str | Path) -> list[str]:
        """The command line of `kubectl` for it."""
        return [str(paths.BIN / "kubectl"), "--kubeconfig", str(self.kubeconfig), *map(str, arguments)]

    @contextlib.contextmanager
    def url(self, namespace: str, service: str, port: int) -> Iterator[str]:
        """A base URL of a Service as long as the context lasts.

        The embedded cluster's node is this machine, so its service addresses answer here; others are forwarded.
        """
        if self.kind == "embedded":
            yield self.service_url(namespace, service, port)
            return
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            local = probe.getsockname()[1]
        command = self.kubectl("-n", namespace, "port-forward", f"service/{service}", f"{local}:{port}")
        forward = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            daemons.wait_until(
                lambda: _listens(local),
                f"forwarding port {port} of {service}",
                30,
                f"check `kubectl -n {namespace} get pods`",
            )
            yield f"http://127.0.0.1:{local}"
        finally:
            forward.terminate()
            forward.wait()

    def service_url(self, namespace: str, service: str, port: int) -> str:
        """A Service's URL by its cluster address."""
        jsonpath = "jsonpath={.spec.clusterIP}"
        address = console.output(self.kubectl("-n", namespace, "get", "service", service, "-o", jsonpath)).strip()
        return f"http://{address}:{port}"


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def choose(requested: str) -> str:
    """The kind of cluster that `requested` stands for: auto is kind where a Docker engine answers, else embedded.

    Raises:
        console.Failure: when `requested` is not one of `KINDS`.
    """
    if requested not in KINDS:
        raise console.Failure(
            f"CLUSTER={requested} is not a kind of cluster", f"set CLUSTER to one of: {', '.join(KINDS)}"
        )
    if requested != "auto":
        return requested
    return "kind" if images.docker_answers() else "embedded"


def check(kind: str) -> None:
    """What a kind of cluster other than the embedded one needs; changes nothing.

    Raises:
        console.Failure: with what is missing.
    """
    if kind == "kind" and not images.docker_answers():
        raise console.Failure(
            "no Docker engine answers, and CLUSTER=kind needs one",
            "start Docker, or use CLUSTER=embedded on a Linux machine as root",
        )
    if kind == "minikube" and not shutil.which("minikube"):
        raise console.Failure("minikube is not on PATH", "install it, or use CLUSTER=kind or CLUSTER=embedded")
    # Fails where an existing cluster's registry is not named.
    Cluster(kind, paths.CACHE).target.prefix  # noqa: B018


def needed_programs(kind: str) -> tuple[str, ...]:
    """The programs that a kind of cluster needs on this machine."""
    return {
        "embedded": programs.EMBEDDED,
        "kind": ("hyperkube", "helm", "kind"),
    }.get(kind, ("hyperkube", "helm"))


def current() -> Cluster | None:
    """The cluster that the last `make up` used, or the embedded one that runs although the record is lost."""
    try:
        record = json.loads(RECORD.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Cluster("embedded", embedded.KUBECONFIG) if embedded.running() else None
    cluster = Cluster(record["kind"], Path(record["kubeconfig"]))
    return cluster if cluster.kubeconfig.exists() else None


def up(kind: str, built: dict[str, Path]) -> Cluster:
    """Make the cluster, or take the one that is there.

    Args:
        kind: what `choose` returned.
        built: the programs by name.

    Raises:
        console.Failure: when it cannot be made or does not answer.
    """
    kubeconfig = paths.CACHE / f"kubeconfig-{kind}"
    match kind:
        case "embedded":
            embedded.up(built)
            kubeconfig = embedded.KUBECONFIG
        case "kind":
            _up_kind(built["kind"], kubeconfig)
        case "minikube":
            _up_minikube(kubeconfig)
        case "existing":
            _take_existing(kubeconfig)
    cluster = Cluster(kind, kubeconfig)
    if kind != "embedded":
        crd = subprocess.run(cluster.kubectl("get", "crd", "rayservices.ray.io"), capture_output=True, check=False)
        if crd.returncode != 0:
            version = programs.module_version("kubernetes", "github.com/ray-project/kuberay/ray-operator")
            with console.stage(f"KubeRay {version}"):
                embedded.install_kuberay(kubeconfig, f"quay.io/kuberay/operator:v{version}")
    RECORD.write_text(json.dumps({"kind": kind, "kubeconfig": str(kubeconfig)}) + "\n", encoding="utf-8")
    return cluster


def _up_kind(kind: Path, kubeconfig: Path) -> None:
    if NAME in console.output([kind, "get", "clusters"]).split():
        console.run([kind, "export", "kubeconfig", "--name", NAME, "--kubeconfig", kubeconfig], log="cluster")
        return
    with console.stage("kind create cluster"):
        create = [str(kind), "create", "cluster", "--name", NAME, "--kubeconfig", str(kubeconfig), "--wait", "3m"]
        console.run([*create, "--image", images.pin("kind", "node")], log="cluster")


def _up_minikube(kubeconfig: Path) -> None:
    version = f"v{programs.kubernetes_version()}"
    with console.stage("minikube start"):
        console.run(
            ["minikube", "start", "--profile", NAME, f"--kubernetes-version={version}", "--addons=metrics-server"],
            log="cluster",
            env={"KUBECONFIG": str(kubeconfig)},
        )


def _take_existing(kubeconfig: Path) -> None:
    kubectl = str(paths.BIN / "kubectl")
    # Flattened to its current context, so that a later `kubectl config use-context` does not redirect us.
    text = console.output([kubectl, "config", "view", "--minify", "--flatten"])
    kubeconfig.touch(mode=0o600)
    kubeconfig.write_text(text, encoding="utf-8")
    existing = Cluster("existing", kubeconfig)
    context = console.output(existing.kubectl("config", "current-context")).strip()
    server = console.output(existing.kubectl("config", "view", "-o", "jsonpath={.clusters[0].cluster.server}"))
    console.say(f"    context {context} ({urlparse(server).netloc})")
    console.output(existing.kubectl("get", "--raw", "/readyz", "--request-timeout=10s"))


def down() -> None:
    """Remove the cluster that `up` made; an existing one is left, as nobody asked us to make it."""
    cluster = current()
    kind = cluster.kind if cluster else ("embedded" if embedded.exists() else None)
    match kind:
        case None:
            console.say("nothing to remove: no cluster was made by `make up`")
        case "embedded":
            embedded.down()
        case "kind":
            console.run([paths.BIN / "kind", "delete", "cluster", "--name", NAME], log="cluster")
        case "minikube":
            console.run(["minikube", "delete", "--profile", NAME], log="cluster")
        case "existing":
            console.say("the cluster is not ours to remove; `helm uninstall ads -n ml-dev` removes the release from it")
    if cluster and kind != "existing" and kind != "embedded":
        cluster.kubeconfig.unlink(missing_ok=True)
    RECORD.unlink(missing_ok=True)
