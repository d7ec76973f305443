"""The running installation, as its users and its operators see it."""

from __future__ import annotations

import contextlib
import json
import math
import random
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import yaml
from chart_harness.live import Namespace, wait_for
from ci import console, paths, release
from ci.cluster import Cluster
from scenarios import merged

PROBE = {"timestamp": 1_800_000_000, "value": 3.0}
"""A point to predict: far outside of what `points` makes."""

FINAL = frozenset({"succeeded", "failed", "cancelled", "superseded"})
"""States a job stays in."""

COMPONENTS = {
    "postgresql-mlflow": "app=postgresql-mlflow",
    "minio-mlflow": "app=minio-mlflow",
    "mlflow-server": "app=mlflow",
    "rabbitmq": "app=rabbitmq",
    "training-api": "app=training-api",
    "training-worker": "app=training-worker",
    "ray-head": "ray.io/node-type=head",
}
"""What can be restarted, and the label selector of its pods."""

RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
"""Labels of a namespace that enforces Pod Security `restricted`."""


# Ray has no command for it, and the image no pkill.
_END_REPLICAS = """
import os, pathlib, signal, sys
left = int(sys.argv[1])
for process in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        if left and process.joinpath("cmdline").read_bytes().startswith(b"ray::ServeReplica"):
            os.kill(int(process.name), signal.SIGKILL)
            left -= 1
    except (FileNotFoundError, ProcessLookupError):
        pass
"""


class Endpoint:
    """One HTTP interface, at the address it has just now.

    Args:
        cluster: the cluster.
        service: name of the Service.
        port: port of the Service.
        namespace: where the Service is.
    """

    def __init__(self, cluster: Cluster, service: str, port: int, namespace: str = release.NAMESPACE) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._service = service
        self._port = port
        self._open = contextlib.ExitStack()
        self._client: httpx.Client | None = None

    def url(self) -> str:
        """Base URL; the same until a connection fails."""
        return str(self._http().base_url).rstrip("/")

    def _http(self) -> httpx.Client:
        if self._client is None:
            url = self._open.enter_context(self._cluster.url(self._namespace, self._service, self._port))
            self._client = self._open.enter_context(httpx.Client(base_url=url, timeout=30.0, trust_env=False))
        return self._client

    def close(self) -> None:
        """Close the connection; the next request opens another one."""
        self._open.close()
        self._client = None

    def request(self, method: str, path: str, *, patience: float = 0.0, **options: Any) -> httpx.Response:
        """Send a request.

        Args:
            method: HTTP method.
            path: path with query.
            patience: for how many seconds to try again while nothing listens or the answer is 502, 503 or 504.
            options: as `httpx.Client.request` takes them.
        """
        deadline = time.monotonic() + patience
        while True:
            try:
                answer = self._http().request(method, path, **options)
            except (httpx.TransportError, console.Failure) as error:
                # A forwarded port ends with its pod, and a Service made anew has another address, if it is there yet.
                self.close()
                if time.monotonic() > deadline:
                    raise AssertionError(f"{method} {self._service}{path}: {error or type(error).__name__}") from error
            else:
                if answer.status_code not in (502, 503, 504) or time.monotonic() > deadline:
                    return answer
            time.sleep(0.5)


def points(count: int = 1000, *, seed: int = 0, spikes: int = 0) -> list[dict[str, float]]:
    """A noisy sine, one point every five minutes; the last `spikes` points lie far outside of its range."""
    noise = random.Random(seed)
    values = [math.sin(index / 20) + noise.gauss(0, 0.1) for index in range(count)]
    for index in range(count - spikes, count):
        values[index] = 25.0 if index % 2 else -25.0
    return [{"timestamp": 1_700_000_000 + 300 * index, "value": value} for index, value in enumerate(values)]


class Installation:
    """A release of the chart, whole or in parts, in a namespace.

    Args:
        cluster: the cluster it runs in.
        namespace: where it is, or is going to be.
    """

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = Namespace(cluster.kubectl(), namespace)
        self.training = Endpoint(cluster, *release.SERVICES["Training API"][:2], namespace)

    def close(self) -> None:
        """Close every connection."""
        self.training.close()

    def helm(self, *words: str, stdin: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run helm in the namespace.

        Raises:
            AssertionError: it failed and `check` is set; the message is helm's own.
        """
        command = release.helm(self.cluster, *words, namespace=self.namespace.name)
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
        if check:
            assert done.returncode == 0, f"helm {' '.join(words)}: {done.stderr.strip()}"
        return done

    def upgrade(self, values: str, *options: str) -> None:
        """Install or upgrade the checkout's chart with these values (YAML) and wait until it is ready.

        Args:
            values: all of them; what an earlier revision had is forgotten.
            options: more words for helm.
        """
        words = ("upgrade", release.RELEASE, str(paths.REPOSITORY), "--install", "--timeout", "5m", "--values", "-")
        self.helm(*words, *options, stdin=values)
        self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until every workload is ready."""
        release.wait_ready(self.cluster, namespace=self.namespace.name)

    def revision(self) -> int:
        """Number of the release's present revision."""
        found = json.loads(self.helm("status", release.RELEASE, "--output", "json").stdout)
        return int(found["version"])

    def gone(self, before: dict[str, Any], component: str) -> None:
        """Wait until no pod is left of those that a component had at the time of a `footprint`."""
        old = {name for name, _, _ in before["restarts"] if name.startswith(f"{component}-")}

        def ended() -> bool:
            left = old & {pod["metadata"]["name"] for pod in self.namespace.get("pods")}
            assert not left, f"{', '.join(sorted(left))} still there"
            return True

        wait_for(ended, f"the earlier pods of {component} to go", 90)

    def values(self) -> str:
        """The values the release was installed with, as YAML."""
        return self.helm("get", "values", release.RELEASE, "--output", "yaml").stdout

    @contextlib.contextmanager
    def with_values(self, more: Mapping[str, Any]) -> Iterator[None]:
        """The release with these values over its own; afterwards it has its own again."""
        before = self.values()
        try:
            self.upgrade(yaml.safe_dump(merged(yaml.safe_load(before) or {}, more)))
            yield
        finally:
            self.upgrade(before)

    def fit(self, series: str, data: list[dict[str, float]], *, patience: float = 60.0, **options: Any) -> str:
        """Send a fit that has to be accepted; its job id."""
        body = {"data": data, "parameters": {"contamination": 0.01}, **options}
        answer = self.training.request("POST", f"/fit/{series}", json=body, patience=patience)
        assert answer.status_code == 202, f"{answer.status_code} {answer.text}"
        return str(answer.json()["job_id"])

    def job(self, job_id: str) -> dict[str, Any]:
        """A job that has to exist."""
        answer = self.training.request("GET", f"/jobs/{job_id}", patience=60.0)
        assert answer.status_code == 200, f"{answer.status_code} {answer.text}"
        found: dict[str, Any] = answer.json()
        return found

    def finished(self, job_id: str, seconds: float = 180.0) -> dict[str, Any]:
        """A job once it has ended."""

        def ended() -> dict[str, Any] | None:
            job = self.job(job_id)
            assert job["status"] in FINAL, f"it is {job['status']}"
            return job

        return wait_for(ended, f"the end of job {job_id}", seconds)

    def succeeded(self, job_id: str, seconds: float = 180.0) -> dict[str, Any]:
        """A job once it has ended, which it must have done well."""
        job = self.finished(job_id, seconds)
        assert job["status"] == "succeeded", job
        return job

    def pod(self, component: str) -> dict[str, Any]:
        """The one running pod of a component, once there is just one and it is ready."""

        def ready() -> dict[str, Any]:
            pods = self.namespace.running_pods(COMPONENTS[component])
            assert len(pods) == 1, f"{len(pods)} pods of {component}"
            conditions = {each["type"]: each["status"] for each in pods[0]["status"].get("conditions", [])}
            assert conditions.get("Ready") == "True", f"{pods[0]['metadata']['name']} is not ready"
            return pods[0]

        return wait_for(ready, f"a ready pod of {component}", 240)

    def restart(self, component: str, *, kill: bool = False) -> None:
        """Delete the pod of a component (`kill`: without a chance to end well) and wait for a new ready one."""
        old = self.pod(component)["metadata"]
        # Not `--force`: that forgets the pod at once and lets its processes end in their own time.
        options = ["--grace-period=1"] if kill else []
        self.namespace.kubectl("delete", "pod", old["name"], "--wait=false", *options)

        def replaced() -> bool:
            return bool(self.pod(component)["metadata"]["uid"] != old["uid"])

        wait_for(replaced, f"a new pod of {component}", 240)

    def secrets(self) -> dict[str, Any]:
        """The data of the Secrets that belong to the release; helm's own records are not among them."""
        found = self.namespace.get("secrets")
        return {s["metadata"]["name"]: s.get("data") for s in found if not s["type"].startswith("helm.sh/")}

    def restarts(self) -> dict[tuple[str, str, str], int]:
        """How often each container of a running pod was restarted, by pod, the pod's uid and container."""
        return {
            (pod["metadata"]["name"], pod["metadata"]["uid"], status["name"]): status["restartCount"]
            for pod in self.namespace.running_pods()
            for status in pod["status"].get("containerStatuses", [])
        }

    def footprint(self) -> dict[str, Any]:
        """What changes when something restarts: the pods with their restarts, and what stands behind them."""
        kinds = "deployments,statefulsets,replicasets,rayservices.ray.io,rayclusters.ray.io"
        generations = {
            f"{item['kind']}/{item['metadata']['name']}": item["metadata"]["generation"]
            for item in self.namespace.get(kinds)
        }
        return {"restarts": self.restarts(), "generations": generations}


class System(Installation):
    """The whole release that `make up` installed.

    Args:
        cluster: the cluster it runs in.
    """

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster, release.NAMESPACE)
        self.inference = Endpoint(cluster, *release.SERVICES["Inference API"][:2])
        self.mlflow = Endpoint(cluster, *release.SERVICES["MLflow"][:2])
        self.restarts_before = self.restarts()

    def close(self) -> None:
        """Close every connection."""
        super().close()
        for endpoint in (self.inference, self.mlflow):
            endpoint.close()

    def predict(self, series: str, point: dict[str, float], *, version: int | None = None) -> httpx.Response:
        """Score a point, waiting while inference is away."""
        query = "" if version is None else f"?version={version}"
        return self.inference.request("POST", f"/predict/{series}{query}", json=point, patience=120.0)

    def end_replicas(self, most: int = 100) -> None:
        """End replicas of inference at once, as the kernel does with one that takes too much memory."""
        head = self.pod("ray-head")
        container = head["spec"]["containers"][0]["name"]
        words = ("exec", head["metadata"]["name"], "--container", container, "--", "python", "-c", _END_REPLICAS)
        self.namespace.kubectl(*words, str(most))

    def served(self, series: str, version: int, seconds: float = 60.0) -> dict[str, Any]:
        """The answer for a point of a series, once this version of its model gives it."""

        def answered() -> dict[str, Any]:
            answer = self.predict(series, PROBE)
            assert answer.status_code == 200, f"{answer.status_code} {answer.text}"
            found: dict[str, Any] = answer.json()
            assert found["model_version"] == version, f"version {found['model_version']} answers"
            assert found["source"] == "model", "the fallback answers"
            return found

        return wait_for(answered, f"version {version} of {series} to be served", seconds)

    def model(self, series: str, *, count: int = 1000, seed: int = 0, priority: str = "standard") -> dict[str, Any]:
        """Fit a series and wait until its model is served; the finished job."""
        job = self.succeeded(self.fit(series, points(count, seed=seed), priority=priority))
        self.served(series, job["model_version"])
        return job


def unique(name: str) -> str:
    """A series of a test's own, so that runs on one cluster do not meet."""
    return f"live_{name}_{uuid.uuid4().hex[:8]}"


def forbidden_pod() -> str:
    """A pod that Pod Security `restricted` has to refuse."""
    container = {"name": "root", "image": "example.org/none:1", "securityContext": {"privileged": True}}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "forbidden"}, "spec": {"containers": [container]}}
    return json.dumps(pod)


def installed_objects(namespace: Namespace, cluster: Cluster) -> Iterator[str]:
    """Names (`kind/name`) of everything in the namespace, less what a cluster adds by itself."""
    listed = subprocess.run(
        cluster.kubectl("api-resources", "--namespaced", "--verbs=list", "--output=name"),
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    transient = ("events", "events.events.k8s.io", "leases.coordination.k8s.io", "pods.metrics.k8s.io")
    kinds = ",".join(kind for kind in listed if kind not in transient)
    own = {"configmap/kube-root-ca.crt", "serviceaccount/default"}
    names = namespace.kubectl("get", kinds, "--output", "name", "--ignore-not-found").stdout.split()
    yield from sorted(set(names) - own)
