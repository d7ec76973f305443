"""What helm does with a release: one class for each promise, each in a namespace of its own.

Object names are fixed within a namespace, so that these releases stand beside that of `make up` and beside each other.
"""

from __future__ import annotations

import base64
import json
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from chart_harness.live import wait_for
from ci import paths, release
from live.system import Installation, installed_objects, points, unique

PARTS = ("--values", str(Path(__file__).with_name("parts.yaml")))
API = "Deployment/training-api"


@pytest.fixture(scope="class")
def installed(home: Installation, values: str) -> Installation:
    """A release of the parts that accept a fit."""
    home.upgrade(values, *PARTS)
    return home


def environment(installation: Installation, name: str) -> str:
    """A variable of the training API's pods, as the Deployment has it now."""
    (container,) = installation.namespace.one("deployment", "training-api")["spec"]["template"]["spec"]["containers"]
    return next(str(variable["value"]) for variable in container["env"] if variable["name"] == name)


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    """Objects with another generation, ReplicaSets aside, and containers that are new, gone or restarted."""
    generations = before["generations"].items() ^ after["generations"].items()
    restarts = before["restarts"].items() ^ after["restarts"].items()
    objects = {name for name, _ in generations if not name.startswith("ReplicaSet/")}
    return objects | {container for (_, _, container), _ in restarts}


class Requests:
    """Requests to the training API one after the other, each on a connection of its own, while something goes on."""

    def __init__(self, installation: Installation) -> None:
        self._url = installation.training.url()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.answered = 0
        self.failed: list[str] = []

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                answer = httpx.get(f"{self._url}/jobs?limit=1", timeout=10, trust_env=False)
                answer.raise_for_status()
                self.answered += 1
            except httpx.HTTPError as error:
                self.failed.append(f"{type(error).__name__}: {error}")
            time.sleep(0.02)

    def __enter__(self) -> Requests:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def check(self, installation: Installation) -> None:
        """Fail if one was lost; a forwarded port ends with its pod, so that it is told only where there is none."""
        assert self.answered > 10
        if installation.cluster.kind == "embedded":
            assert not self.failed, f"{len(self.failed)} of {self.answered} requests failed: {self.failed[:3]}"


class TestInstall:
    """A release comes up from nothing but its values."""

    def test_it_accepts_a_fit(self, installed: Installation) -> None:
        job = installed.job(installed.fit(unique("install"), points(200)))
        assert job["status"] == "queued"

    def test_its_passwords_are_made_for_it(self, installed: Installation) -> None:
        """Long, and of this release alone; what made them, with its rights, is gone."""
        others = Installation(installed.cluster, release.NAMESPACE).secrets()
        secrets = {name: data for name, data in installed.secrets().items() if name in others}
        assert secrets, "there are no Secrets"
        for name, data in secrets.items():
            for key, value in data.items():
                if not key.endswith(("user", "-id")):
                    assert len(base64.b64decode(value)) >= 32, f"{name}/{key} is short"
                    assert value != others[name][key], f"{name}/{key} is the one of {release.NAMESPACE}"
        makers = installed.namespace.get("jobs,serviceaccounts,roles,rolebindings,configmaps")
        assert "secrets" not in {item["metadata"]["name"] for item in makers}

    def test_it_makes_nothing_outside_of_its_namespace(self, installed: Installation) -> None:
        """Two releases in one cluster would else fight for it."""
        command = installed.cluster.kubectl("api-resources", "--namespaced=false", "--no-headers")
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for_all = {line.split()[-1] for line in listed.splitlines()}
        made = installed.helm("get", "manifest", release.RELEASE).stdout
        made += installed.helm("get", "hooks", release.RELEASE).stdout
        kinds = {line.removeprefix("kind: ") for line in made.splitlines() if line.startswith("kind: ")}
        assert "Deployment" in kinds
        assert not kinds & for_all


class TestBadValues:
    """Bad values are refused before anything is made, with the name of the key."""

    @pytest.mark.parametrize(
        ("setting", "named"),
        [
            ("training-api.replicas=many", "replicas"),
            ("training-api.replicaCount=2", "replicaCount"),
            ("global.objectStore.endpointUrl=minio:9000", "endpointUrl"),
            ("mlflow.postgresql.enabled=false", "global.database.host"),
        ],
    )
    def test_an_install_leaves_nothing_behind(self, home: Installation, values: str, setting: str, named: str) -> None:
        words = ("upgrade", release.RELEASE, str(paths.REPOSITORY), "--install", "--values", "-", *PARTS)
        done = home.helm(*words, "--set", setting, stdin=values, check=False)
        assert done.returncode != 0
        assert named in done.stderr, done.stderr
        assert list(installed_objects(home.namespace, home.cluster)) == []
        assert json.loads(home.helm("list", "--all", "--output", "json").stdout) == []


class TestUpgrade:
    """An upgrade changes what its values change, and loses nothing."""

    def test_a_changed_value_restarts_only_what_reads_it(self, installed: Installation, values: str) -> None:
        job_id = installed.fit(unique("upgrade"), points(200))
        job, before, secrets = installed.job(job_id), installed.footprint(), installed.secrets()
        with Requests(installed) as requests:
            installed.upgrade(values, *PARTS, "--set", "training-api.limits.minPoints=150")
            installed.gone(before, "training-api")
        requests.check(installed)
        assert changed(before, installed.footprint()) == {API, "training-api"}
        assert environment(installed, "MIN_POINTS") == "150"
        answer = installed.training.request("POST", f"/fit/{unique('few')}", json={"data": points(149)}, patience=10)
        assert answer.json()["error"]["code"] == "INSUFFICIENT_DATA"
        assert installed.job(job_id) == job
        assert installed.secrets() == secrets

    def test_a_dependency_takes_its_new_configuration(self, installed: Installation, values: str) -> None:
        """And what was in it is still there."""
        job_id = installed.fit(unique("upgrade"), points(200))
        job, before = installed.job(job_id), installed.footprint()
        current = ("--set", f"training-api.limits.minPoints={environment(installed, 'MIN_POINTS')}")
        installed.upgrade(
            values, *PARTS, *current, "--set-string", "mlflow.postgresql.configuration.max_connections=40"
        )
        assert changed(before, installed.footprint()) == {"StatefulSet/postgresql-mlflow", "postgresql"}
        assert installed.job(job_id) == job


class TestRollback:
    """A revision that was good can be had back, with the data of now."""

    def test_a_rollback_restores_the_values_and_keeps_the_data(self, installed: Installation, values: str) -> None:
        good, limit = installed.revision(), environment(installed, "MIN_POINTS")
        before, secrets = installed.footprint(), installed.secrets()
        installed.upgrade(values, *PARTS, "--set", "training-api.limits.minPoints=151")
        assert environment(installed, "MIN_POINTS") == "151"
        job_id = installed.fit(unique("rollback"), points(200))
        job = installed.job(job_id)
        installed.helm("rollback", release.RELEASE, str(good), "--timeout", "2m")
        installed.wait_ready()
        installed.gone(before, "training-api")
        assert environment(installed, "MIN_POINTS") == limit
        assert installed.job(job_id) == job
        assert installed.secrets() == secrets
        assert changed(before, installed.footprint()) == {API, "training-api"}

    def test_a_failed_upgrade_leaves_the_old_version_answering(self, installed: Installation, values: str) -> None:
        """An image that is not there: the old pod goes on, and a rollback ends the attempt."""
        good, before = installed.revision(), installed.restarts()
        words = ("upgrade", release.RELEASE, str(paths.REPOSITORY), "--values", "-", *PARTS)
        bad = ("--set", "training-api.image.tag=there-is-no-such-tag", "--wait", "--timeout", "15s")
        with Requests(installed) as requests:
            done = installed.helm(*words, *bad, stdin=values, check=False)
            assert done.returncode != 0
            assert "training-api" in done.stderr or "deadline" in done.stderr, done.stderr
            assert before.items() <= installed.restarts().items(), "a pod of the good version is gone"
            installed.fit(unique("failed_upgrade"), points(200), patience=0)
            installed.helm("rollback", release.RELEASE, str(good), "--timeout", "2m")
            installed.wait_ready()
        requests.check(installed)
        assert wait_for(lambda: installed.restarts() == before, "only the pods of the good version", 60)


class TestUninstall:
    """Uninstalling leaves the data and what opens it; installing again takes both up."""

    def test_data_and_passwords_wait_for_the_next_install(self, installed: Installation, values: str) -> None:
        job_id = installed.fit(unique("uninstall"), points(200))
        job, secrets = installed.job(job_id), installed.secrets()
        claims = installed.namespace.get("persistentvolumeclaims")
        installed.helm("uninstall", release.RELEASE, "--wait", "--timeout", "2m")
        installed.close()
        data = {f"persistentvolumeclaim/{claim['metadata']['name']}" for claim in claims}
        data |= {f"secret/{name}" for name in secrets}
        assert wait_for(
            lambda: set(installed_objects(installed.namespace, installed.cluster)) == data, "only the data", 60
        )
        installed.upgrade(values, *PARTS)
        assert installed.secrets() == secrets
        assert installed.job(job_id) == job


class TestScale:
    """Replicas come and go, and neither a request nor a job is lost."""

    @pytest.fixture(scope="class")
    @classmethod
    def scaled(cls, home: Installation, values: str) -> Installation:
        """The parts that train, too; workers are scaled by their autoscaler, at once in both directions."""
        autoscaling = "training-worker.autoscaling"
        trains = {
            "global.mlflow.trackingUri": "http://mlflow-server:5000",
            "mlflow.server.enabled": "true",
            "training-worker.enabled": "true",
            "training-worker.resources.requests.cpu": "20m",
            f"{autoscaling}.enabled": "true",
            f"{autoscaling}.minReplicas": "1",
            f"{autoscaling}.maxReplicas": "2",
            f"{autoscaling}.targetCpuUtilization": "100",
            f"{autoscaling}.scaleDownStabilizationSeconds": "0",
        }
        home.upgrade(values, *PARTS, *(word for item in trains.items() for word in ("--set", "=".join(item))))
        return home

    @staticmethod
    def pods(installation: Installation) -> int:
        """How many pods of the training API there are, those that end included."""
        return len(installation.namespace.get("pods", "app=training-api"))

    def test_no_request_is_lost_while_replicas_of_the_api_come_and_go(self, scaled: Installation) -> None:
        with Requests(scaled) as requests:
            for replicas in (2, 1):
                scaled.namespace.kubectl("scale", "deployment/training-api", f"--replicas={replicas}")
                scaled.namespace.kubectl("rollout", "status", "deployment/training-api", "--timeout=90s")
                wait_for(lambda: self.pods(scaled) == replicas, f"{replicas} pods of the training API", 60)  # noqa: B023
        requests.check(scaled)

    def test_workers_follow_the_load_and_lose_no_job(self, scaled: Installation) -> None:
        """The autoscaler reads its metrics; under load it adds a worker, afterwards it takes it back."""
        metrics = subprocess.run(
            scaled.cluster.kubectl("get", "--raw", "/apis/metrics.k8s.io/v1beta1/nodes"),
            capture_output=True,
            check=False,
        )
        if metrics.returncode != 0:
            pytest.skip("the cluster has no metrics API: an autoscaler that reads CPU cannot act")

        def reads() -> bool:
            status = scaled.namespace.one("horizontalpodautoscaler", "training-worker")["status"]
            conditions = {each["type"]: each for each in status.get("conditions", [])}
            assert conditions.get("AbleToScale", {}).get("status") == "True", conditions
            assert conditions.get("ScalingActive", {}).get("status") == "True", conditions
            return True

        wait_for(reads, "the autoscaler to read metrics", 120)
        # The most work that one request may ask for: seconds of CPU each.
        heavy = {"n_estimators": 500, "max_samples": 4096, "contamination": 0.01}
        jobs = [scaled.fit(unique("load"), points(20_000, seed=seed), parameters=heavy) for seed in range(12)]

        def workers() -> int:
            return int(scaled.namespace.one("deployment", "training-worker")["spec"]["replicas"])

        wait_for(lambda: workers() == 2, "a second worker", 150)
        # A version of each: none was trained twice, none not at all, whichever worker left meanwhile.
        assert [scaled.succeeded(job, seconds=300)["model_version"] for job in jobs] == [1] * len(jobs)
        wait_for(lambda: workers() == 1, "one worker again", 240)
