"""The release under measurement: its models, memory and number of replicas."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
from ci import console, paths, release
from ci.cluster import Cluster

NAMESPACE = release.NAMESPACE
_WARM_AT_ONCE = 500
_FIT_SECONDS = 120.0

# Copies rows of the registry under other names. A table's columns are taken as they are, so that MLflow may add some.
_COPY = """
BEGIN;
CREATE TEMP TABLE copies ON COMMIT DROP AS
  SELECT '{target}' || n AS name, '{source}' || (n % {sources}) AS template FROM generate_series(0, {count} - 1) n
  WHERE NOT EXISTS (SELECT 1 FROM registered_models WHERE name = '{target}' || n);
{inserts}
COMMIT;
"""
_INSERT = """
INSERT INTO {table} SELECT (jsonb_populate_record(t, jsonb_build_object('name', c.name))).*
  FROM copies c JOIN {table} t ON t.name = c.template {where};
"""
_TABLES = {
    "registered_models": "",
    "registered_model_tags": "",
    "model_versions": "",
    "model_version_tags": "",
    "registered_model_aliases": "",
}


class System:
    """A release that answers.

    Args:
        cluster: where it runs.
        training_api: base URL.
        inference: base URL.
    """

    def __init__(self, cluster: Cluster, training_api: str, inference: str) -> None:
        self.cluster = cluster
        self.training_api = training_api
        self.inference = inference
        self.http = httpx.Client(timeout=60, trust_env=False)

    def fit(self, series_id: str, points: int, generator: np.random.Generator) -> tuple[float, dict[str, float]]:
        """Fit a random series.

        Returns:
            Seconds from sending it to the first answer by its model, and the durations that the job tells.

        Raises:
            console.Failure: the fit is refused or fails.
        """
        values = np.sin(np.arange(points) / generator.uniform(3, 20)) + 0.1 * generator.standard_normal(points)
        data = [{"timestamp": 1_700_000_000 + at, "value": value} for at, value in enumerate(values.tolist())]
        body = json.dumps({"data": data}).encode()
        start = time.perf_counter()
        answer = self.http.post(
            f"{self.training_api}/fit/{series_id}", content=body, headers={"Content-Type": "application/json"}
        )
        if answer.status_code != httpx.codes.ACCEPTED:
            raise console.Failure(f"the fit of {series_id} was refused: {answer.text[:300]}", "see the message")
        job_id = answer.json()["job_id"]
        job: dict[str, Any] = {"status": "queued"}
        while job["status"] in ("queued", "running"):
            if time.perf_counter() - start > _FIT_SECONDS:
                raise console.Failure(f"job {job_id} has not ended", "look at the training worker's log")
            time.sleep(0.01)
            job = self.http.get(f"{self.training_api}/jobs/{job_id}").json()
        if job["status"] != "succeeded":
            raise console.Failure(f"job {job_id} ended as {job['status']}", "look at the training worker's log")
        while True:
            served = self.http.post(f"{self.inference}/predict/{series_id}", json=data[0])
            if served.status_code == httpx.codes.OK and served.json()["model_version"] >= job["model_version"]:
                return time.perf_counter() - start, job["durations"]
            if time.perf_counter() - start > _FIT_SECONDS:
                raise console.Failure(f"{series_id} is not served: {served.text[:300]}", "look at the replica's log")
            time.sleep(0.01)

    def copy_models(self, source: str, sources: int, target: str, count: int) -> None:
        """Register the models of the series `source`0 … as those of `target`0 …, by turns, in MLflow's database itself.

        The blobs are shared by the tag `blob_key`; versions, tags and aliases equal those they are copied from.
        MLflow's REST interface takes three requests for each, which is ten minutes for 25,000.
        """
        inserts = "".join(_INSERT.format(table=table, where=where) for table, where in _TABLES.items())
        names = {"target": f"model_od_{target}", "source": f"model_od_{source}"}
        self._sql(_COPY.format(**names, sources=sources, count=count, inserts=inserts))

    def remove_copies(self, target: str) -> None:
        """Undo `copy_models`; blobs and runs belong to the models that were copied."""
        pattern = f"model_od_{target}".replace("_", r"\_") + "%"
        tables = reversed(_TABLES)
        self._sql(
            "BEGIN;" + "".join(f"DELETE FROM {table} WHERE name LIKE '{pattern}';" for table in tables) + "COMMIT;"
        )

    def _sql(self, statements: str) -> None:
        psql = 'PGPASSWORD="$POSTGRES_PASSWORD" exec psql -X --quiet -v ON_ERROR_STOP=1 -U postgres "$MLFLOW_DATABASE"'
        command = self.cluster.kubectl("-n", NAMESPACE, "exec", "-i", "postgresql-mlflow-0", "--", "sh", "-c", psql)
        console.run(command, log="bench", input=statements)

    def warm(self, prefix: str, numbers: Sequence[int]) -> int:
        """Have replicas load models; how many of them they hold afterwards, as they say."""
        loaded = 0
        for start in range(0, len(numbers), _WARM_AT_ONCE):
            names = [f"{prefix}{number}" for number in numbers[start : start + _WARM_AT_ONCE]]
            answer = self.http.post(f"{self.inference}/cache/warm", json={"series": names}, timeout=300)
            results = answer.raise_for_status().json()["results"]
            loaded += sum("model_version" in each for each in results.values())
        return loaded

    def touch_all(self, prefix: str, count: int, url: str | None = None) -> None:
        """One prediction for each series, at `url` if not here, so that what answers for it has its model in memory."""

        def predict(number: int) -> None:
            body = {"timestamp": 1_700_000_000, "value": 0.1}
            address = f"{url or self.inference}/predict/{prefix}{number}"
            self.http.post(address, json=body, timeout=300).raise_for_status()

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(predict, range(count)))

    def cold_load(self, series_id: str) -> float:
        """Seconds of a prediction for a series that is in neither memory nor disk: registry, store, check, score."""
        self.http.delete(f"{self.inference}/cache/{series_id}").raise_for_status()
        start = time.perf_counter()
        answer = self.http.post(
            f"{self.inference}/predict/{series_id}", json={"timestamp": 1_700_000_000, "value": 0.1}
        )
        seconds = time.perf_counter() - start
        if answer.status_code != httpx.codes.OK or answer.json()["source"] != "model":
            raise console.Failure(f"{series_id} is not answered by its model: {answer.text[:300]}", "see the message")
        return seconds

    def pod(self, selector: str) -> str:
        """The name of the first running pod with a label."""
        arguments = ("get", "pods", "-l", selector, "--field-selector", "status.phase=Running", "-o", "json")
        items = json.loads(console.output(self.cluster.kubectl("-n", NAMESPACE, *arguments)))["items"]
        alive = [item for item in items if "deletionTimestamp" not in item["metadata"]]
        newest = max(alive, key=lambda item: item["metadata"]["creationTimestamp"])
        name: str = newest["metadata"]["name"]
        return name

    def container_megabytes(self, selector: str) -> float:
        """What the pod's control group counts, less file pages that the kernel can drop, in MB."""
        # Version 2 of control groups, else version 1.
        script = (
            "cd /sys/fs/cgroup; if [ -e memory.current ]; then cat memory.current; grep '^inactive_file' memory.stat; "
            "else cd memory; cat memory.usage_in_bytes; grep '^total_inactive_file' memory.stat; fi"
        )
        words = self._exec(self.pod(selector), script).split()
        return (int(words[0]) - int(words[2])) / 1e6

    def process_megabytes(self, selector: str, title: str) -> list[float]:
        """Proportional set size, in MB, of each process of the pod whose command line starts with `title`."""
        script = (
            "for p in /proc/[0-9]*; do c=$(tr '\\0' ' ' <$p/cmdline 2>/dev/null); case \"$c\" in "
            f'"{title}"*) grep ^Pss: $p/smaps_rollup;; esac; done; true'
        )
        return [int(line.split()[1]) * 1024 / 1e6 for line in self._exec(self.pod(selector), script).splitlines()]

    def _exec(self, pod: str, script: str) -> str:
        return console.output(self.cluster.kubectl("-n", NAMESPACE, "exec", pod, "--", "sh", "-c", script))

    @contextlib.contextmanager
    def values(self, **changed: object) -> Iterator[None]:
        """The release with some values changed; the revision before comes back at the end."""
        history = json.loads(console.output(release.helm(self.cluster, "history", release.RELEASE, "-o", "json")))
        try:
            self.set_values(**changed)
            yield
        finally:
            rollback = release.helm(self.cluster, "rollback", release.RELEASE, str(history[-1]["revision"]))
            console.run(rollback, log="helm")
            self._settle()

    def set_values(self, **changed: object) -> None:
        """Upgrade the release: paths of values (`a__b` for `a.b`, `-` as `_`) of the subchart ray-serve."""
        words = [
            word
            for path, value in changed.items()
            for word in (
                "--set-string" if isinstance(value, str) else "--set",
                f"ray-serve.{path.replace('__', '.')}={value}",
            )
        ]
        chart = paths.REPOSITORY
        console.run(
            release.helm(self.cluster, "upgrade", release.RELEASE, chart, "--reuse-values", "--timeout", "5m", *words),
            log="helm",
        )
        self._settle()

    def _settle(self) -> None:
        release.wait_ready(self.cluster)
        # The service answers while a RayService changes; what is measured must be the new one.
        deadline = time.monotonic() + 300
        while self._ray_changes():
            if time.monotonic() > deadline:
                raise console.Failure("Ray Serve has not taken the change", "kubectl -n ml-dev describe rayservice")
            time.sleep(1)

    def _ray_changes(self) -> bool:
        get = ("get", "rayservice", "anomaly-detector", "-o", "json")
        item = json.loads(console.output(self.cluster.kubectl("-n", NAMESPACE, *get)))
        applications = item["status"].get("activeServiceStatus", {}).get("applicationStatuses", {})
        healthy = applications and all(each["status"] == "RUNNING" for each in applications.values())
        pending = item["status"].get("pendingServiceStatus", {}).get("rayClusterName")
        behind = item["status"].get("observedGeneration", 0) < item["metadata"]["generation"]
        wanted = item["spec"]["serveConfigV2"].split("num_replicas:")[1].split()[0]
        running = len(self.process_megabytes("app=ray-serve", "ray::ServeReplica"))
        return bool(pending or behind or not healthy or running != int(wanted))
