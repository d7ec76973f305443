"""The release of this checkout's chart in a cluster: installed, waited for by readiness, and described."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ci import console, images, paths
from ci.cluster import Cluster

NAMESPACE = "ml-dev"
RELEASE = "ads"
VALUES = paths.REPOSITORY / "values" / "local.yaml"
IMAGE_VALUES = paths.BUILD / "values-images.yaml"
READY_SECONDS = 900

_POD_SECURITY = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")}


def install(cluster: Cluster, references: Mapping[str, str]) -> None:
    """Install or upgrade the release and wait until everything in it is ready.

    Args:
        cluster: the cluster.
        references: the images' references by name.

    Raises:
        console.Failure: when helm refuses, or something does not become ready.
    """
    images.write_values(references, IMAGE_VALUES)
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": _POD_SECURITY}}
    console.run(cluster.kubectl("apply", "--server-side", "-f", "-"), log="helm", input=json.dumps(namespace))
    _recover(cluster)
    console.run(
        helm(cluster, "upgrade", RELEASE, paths.REPOSITORY, "--install", "--timeout", "5m", *_values_arguments()),
        log="helm",
        remedy=f"`kubectl -n {NAMESPACE} get pods,events` shows what the hook waits for",
    )
    wait_ready(cluster)


def _values_arguments() -> list[str]:
    return [word for path in (VALUES, IMAGE_VALUES) for word in ("--values", str(path))]


def helm(cluster: Cluster, *arguments: str | Path, namespace: str = NAMESPACE) -> list[str]:
    """The command line of `helm` for the release's namespace."""
    command = [str(paths.BIN / "helm"), "--kubeconfig", str(cluster.kubeconfig), "--namespace", namespace]
    return [*command, *map(str, arguments)]


def _recover(cluster: Cluster) -> None:
    """Forget the revision of an interrupted helm: as long as it is pending, every upgrade is refused.

    What it made stays; it carries the release's name, so that the next upgrade takes it over.
    """
    pending = f"owner=helm,name={RELEASE},status in (pending-install,pending-upgrade,pending-rollback)"
    command = cluster.kubectl("-n", NAMESPACE, "delete", "secret", "--selector", pending, "-o", "name")
    if "secret/" in console.output(command):
        console.say("    an earlier helm was interrupted: its unfinished revision is forgotten")


def _objects(cluster: Cluster, kinds: str, namespace: str) -> list[dict[str, Any]]:
    listed = console.output(cluster.kubectl("-n", namespace, "get", kinds, "-o", "json"))
    items: list[dict[str, Any]] = json.loads(listed)["items"]
    return items


def _waits_for(item: Mapping[str, Any]) -> str | None:
    """Why a workload is not ready yet, or None."""
    status, spec = item.get("status", {}), item["spec"]
    name = f"{item['kind']}/{item['metadata']['name']}"
    if status.get("observedGeneration", 0) < item["metadata"].get("generation", 0) and item["kind"] != "Job":
        return name
    match item["kind"]:
        case "Deployment":
            wanted = spec.get("replicas", 1)
            done = status.get("updatedReplicas", 0) >= wanted and status.get("availableReplicas", 0) >= wanted
            done = done and status.get("replicas", 0) == wanted
        case "StatefulSet":
            wanted = spec.get("replicas", 1)
            done = status.get("readyReplicas", 0) >= wanted and status.get("updateRevision") == status.get(
                "currentRevision"
            )
        case "Job":
            done = status.get("succeeded", 0) >= 1
        case "RayService":
            conditions = {each["type"]: each["status"] for each in status.get("conditions", [])}
            done = conditions.get("Ready") == "True" and conditions.get("UpgradeInProgress") != "True"
        case _:
            done = True
    return None if done else name


def wait_ready(cluster: Cluster, seconds: float = READY_SECONDS, *, namespace: str = NAMESPACE) -> None:
    """Wait until every workload of the release is ready, and say which are not yet.

    Raises:
        console.Failure: after `seconds`, with the pods that are not ready and their last events.
    """
    deadline = time.monotonic() + seconds
    shown = ""
    while True:
        items = _objects(cluster, "deployments,statefulsets,jobs,rayservices.ray.io", namespace)
        waiting = [name for name in map(_waits_for, items) if name]
        if not waiting:
            return
        line = f"    {len(items) - len(waiting)} of {len(items)} ready, waiting for {', '.join(sorted(waiting))}"
        if line != shown:
            console.say(line)
            shown = line
        if time.monotonic() > deadline:
            raise console.Failure(
                f"not ready after {seconds:.0f} s: {', '.join(waiting)}\n{diagnosis(cluster, namespace)}", "see above"
            )
        time.sleep(1)


def diagnosis(cluster: Cluster, namespace: str = NAMESPACE) -> str:
    """The pods that are not ready with the end of their logs, and the namespace's last warnings, as text."""
    parts = [console.output(cluster.kubectl("-n", namespace, "get", "pods", "-o", "wide"))]
    for pod in _objects(cluster, "pods", namespace):
        states = pod["status"].get("containerStatuses", []) + pod["status"].get("initContainerStatuses", [])
        if pod["status"]["phase"] == "Succeeded" or (states and all(s["ready"] for s in states)):
            continue
        name = pod["metadata"]["name"]
        command = cluster.kubectl("-n", namespace, "logs", name, "--all-containers", "--tail=15", "--prefix")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        parts.append(f"--- {name}\n{done.stdout or done.stderr}")
    events = cluster.kubectl(
        "-n", namespace, "get", "events", "--field-selector", "type=Warning", "--sort-by=.lastTimestamp"
    )
    parts.append("\n".join(console.output(events).splitlines()[-15:]))
    return "\n".join(parts)


SERVICES = {
    "Training API": ("training-api", 8030, "/docs"),
    "Inference API": ("anomaly-detector-serve-svc", 8000, "/docs"),
    "MLflow": ("mlflow-server", 5000, "/"),
    "RabbitMQ management": ("rabbitmq", 15672, "/"),
    "Ray dashboard": ("ray-serve", 8265, "/"),
}


def addresses(cluster: Cluster) -> str:
    """How to reach each interface of the release, as text."""
    rows = []
    for label, (service, port, path) in SERVICES.items():
        if cluster.kind == "embedded":
            where = f"{cluster.service_url(NAMESPACE, service, port)}{path}"
        else:
            where = f"kubectl -n {NAMESPACE} port-forward svc/{service} {port}   then http://localhost:{port}{path}"
        rows.append(f"  {label:<20} {where}")
    password = f"kubectl -n {NAMESPACE} get secret rabbitmq-secret -o jsonpath='{{.data.admin-password}}' | base64 -d"
    return "\n".join([*rows, f"  RabbitMQ's user is admin; its password: {password}"])


def user_data() -> Path | None:
    """The file that DATA names, if it names one.

    Raises:
        console.Failure: when it cannot be read.
    """
    given = os.environ.get("DATA")
    if not given:
        return None
    path = Path(os.environ.get("PWD", "."), Path(given).expanduser())
    if not os.access(path, os.R_OK) or not path.is_file():
        raise console.Failure(
            f"DATA={given} is not a file that can be read", "name a CSV with the columns timestamp,value"
        )
    return path


def main_job(data: Path | None) -> list[str]:
    """The arguments of Python that run the main job, on `data` where it is given."""
    return ["-m", "ci.demo", *(["--data", str(data)] if data else [])]
