"""What tests of training share: its broker behind the scenes, jobs that run, and pods that come and go."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import quote, urlsplit

from chart_harness.live import wait_for
from live.system import COMPONENTS, Endpoint, System

from anomaly_detection.settings import BrokerSettings

LONG = {"n_estimators": 500, "max_samples": 4096, "contamination": 0.01}
"""The most work that one request may ask for, on 100,000 points."""

VIRTUAL_HOST = "ml-training"
DEAD_LETTERS = "training-jobs-dlq"

# [s]: the command itself, whose arguments are in /proc as well, is not meant.
_SIGNAL = 'for p in /proc/[0-9]*; do grep -qs "[s]pawn_main" "$p/cmdline" && kill -{} "${{p#/proc/}}"; done; true'


class Broker:
    """RabbitMQ's management API as the administrator, for what no client of the system may do.

    Args:
        endpoint: of the management interface.
        amqp: of the broker itself.
        password: of the user `admin`.
    """

    def __init__(self, endpoint: Endpoint, amqp: Endpoint, password: str) -> None:
        self._endpoint = endpoint
        self._amqp = amqp
        self._password = password

    def _ask(self, method: str, path: str, **options: Any) -> Any:
        answer = self._endpoint.request(method, f"/api/{path}", auth=("admin", self._password), **options)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        return self._ask("POST", path, json=body)

    def publish(self, routing_key: str, text: str, exchange: str = "training-events") -> None:
        """Publish a message to an exchange; a queue has to take it. `amq.default` leads to the queue that is named."""
        body = {"routing_key": routing_key, "payload": text, "payload_encoding": "string", "properties": {}}
        assert self._post(f"exchanges/{VIRTUAL_HOST}/{exchange}/publish", body) == {"routed": True}

    @contextmanager
    def queue(self, name: str) -> Iterator[str]:
        """A queue like those of jobs, but of a test's own; its name."""
        path = f"queues/{VIRTUAL_HOST}/{name}"
        arguments = {"x-queue-type": "quorum", "x-delivery-limit": 5}
        self._ask("PUT", path, json={"durable": True, "arguments": arguments})
        try:
            yield name
        finally:
            self._ask("DELETE", path)

    def drop(self, connection_name: str) -> int:
        """End the connections with a name, as an outage would; how many there were."""
        named = [
            each["name"]
            for each in self._ask("GET", "connections")
            if each.get("client_properties", {}).get("connection_name") == connection_name
        ]
        for name in named:
            self._ask("DELETE", f"connections/{quote(name, safe='')}")
        return len(named)

    def settings(self) -> BrokerSettings:
        """How a client of its own reaches it, as the administrator."""
        url = urlsplit(self._amqp.url())
        return BrokerSettings(
            host=url.hostname or "", port=url.port or 0, vhost=VIRTUAL_HOST, user="admin", password=self._password
        )

    def dead_letters(self, *, remove: bool = False) -> list[dict[str, Any]]:
        """The messages in the dead-letter queue, 100 at most; they stay there unless `remove` is set."""
        mode = "ack_requeue_false" if remove else "ack_requeue_true"
        body = {"count": 100, "ackmode": mode, "encoding": "auto"}
        found: list[dict[str, Any]] = self._post(f"queues/{VIRTUAL_HOST}/{DEAD_LETTERS}/get", body)
        return found

    def dead_letter_of(self, job_id: str) -> dict[str, Any] | None:
        """The dead letter that is about a job."""
        for letter in self.dead_letters():
            try:
                if json.loads(letter["payload"])["job_id"] == job_id:
                    return letter
            except (ValueError, KeyError):
                continue
        return None


@contextmanager
def broker_of(system: System) -> Iterator[Broker]:
    """The broker of the installation."""
    password = base64.b64decode(system.secrets()["rabbitmq-secret"]["admin-password"]).decode()
    with (
        closing(Endpoint(system.cluster, "rabbitmq", 15672)) as endpoint,
        closing(Endpoint(system.cluster, "rabbitmq", 5672)) as amqp,
    ):
        yield Broker(endpoint, amqp, password)


def running(system: System, job_id: str, attempt: int = 1) -> None:
    """Wait until a worker has a job, for this time."""

    def taken() -> bool:
        job = system.job(job_id)
        assert (job["status"], job["attempts"]) == ("running", attempt), job
        return True

    wait_for(taken, f"attempt {attempt} at job {job_id}", 60, every=0.05)


@contextmanager
def paused(system: System) -> Iterator[None]:
    """Let the training process stand still: its worker takes one job, and has it in hand until the end of this."""
    pod = system.pod("training-worker")["metadata"]["name"]
    system.namespace.kubectl("exec", pod, "--", "sh", "-c", _SIGNAL.format("STOP"))
    try:
        yield
    finally:
        system.namespace.kubectl("exec", pod, "--", "sh", "-c", _SIGNAL.format("CONT"))


@contextmanager
def scaled(system: System, workload: str, replicas: int) -> Iterator[list[str]]:
    """Another number of pods of `kind/component` as long as this lasts; their names once they are ready."""
    component = workload.partition("/")[2]
    selector = COMPONENTS[component]

    def ready(count: int) -> list[str]:
        pods = system.namespace.running_pods(selector)
        assert len(pods) == count, f"{len(pods)} pods of {component}"
        for pod in pods:
            conditions = {each["type"]: each["status"] for each in pod["status"].get("conditions", [])}
            assert conditions.get("Ready") == "True", f"{pod['metadata']['name']} is not ready"
        return [pod["metadata"]["name"] for pod in pods]

    before = len(ready(len(system.namespace.running_pods(selector))))
    system.namespace.kubectl("scale", workload, f"--replicas={replicas}")
    try:
        yield wait_for(lambda: ready(replicas), f"{replicas} pods of {component}", 180)
    finally:
        system.namespace.kubectl("scale", workload, f"--replicas={before}")
        wait_for(lambda: ready(before), f"{before} pods of {component}", 240)
