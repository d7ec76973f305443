"""PostgreSQL, RabbitMQ and the object store are configured for the pods that they run in."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from chart_harness import Container, Manifest, Manifests, quantity
from chart_harness.objects import load_yaml
from ci import paths
from scenarios import NAMESPACE

UNITS = {"": 1, "kB": 2**10, "MB": 2**20, "GB": 2**30}
"""Units of PostgreSQL. RabbitMQ's decimal ones differ by less than the bounds here leave."""


def size(text: str) -> float:
    """Bytes of `128MB`."""
    match = re.fullmatch(r"(\d+)([kMG]B|)", text)
    assert match, f"{text!r} is no size"
    return float(match[1]) * UNITS[match[2]]


def options(text: str) -> dict[str, str]:
    """The lines `name = value` of a configuration, without quotes; each name once."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            name, equals, value = (part.strip() for part in line.partition("="))
            assert equals, f"{line!r} sets nothing"
            assert name not in found, f"{name} is set twice"
            found[name] = value.strip("'")
    return found


def store(manifests: Manifests, name: str) -> Manifest:
    """The StatefulSet of a store."""
    found = manifests.find("StatefulSet", name)
    if found is None:
        pytest.skip(f"{name} is outside of the release")
    return found


def memory(container: Container) -> float:
    """Bytes that a container may use."""
    return quantity(container.spec["resources"]["limits"]["memory"])


def claim(manifest: Manifest) -> float:
    """Bytes of the disk of each pod."""
    (found,) = manifest["spec"]["volumeClaimTemplates"]
    assert found["spec"]["accessModes"] == ["ReadWriteOnce"]
    return quantity(found["spec"]["resources"]["requests"]["storage"])


def mounted(container: Container, path: str) -> bool:
    """Whether a file lies in a volume."""
    return any(path.startswith(f"{mount['mountPath']}/") for mount in container.spec["volumeMounts"])


@pytest.fixture
def postgresql(manifests: Manifests) -> dict[str, str]:
    """PostgreSQL's options."""
    store(manifests, "postgresql-mlflow")
    return options(manifests.one("ConfigMap", "postgresql-mlflow").at("data")["postgresql.conf"])


def test_postgresql_listens_where_its_clients_ask(manifests: Manifests, postgresql: dict[str, str]) -> None:
    (container,) = store(manifests, "postgresql-mlflow").pods[0].containers
    assert postgresql["listen_addresses"] == "*"
    assert int(postgresql["port"]) == container.ports["postgresql"]
    assert mounted(container, postgresql["hba_file"])
    assert postgresql["hba_file"].rpartition("/")[2] in manifests.one("ConfigMap", "postgresql-mlflow").at("data")
    assert mounted(container, f"{postgresql['unix_socket_directories']}/.s.PGSQL.5432"), "the root is read-only"


def test_postgresql_asks_everyone_for_a_password_but_who_prepares_it(manifests: Manifests) -> None:
    """Before it listens, the preparation connects as the administrator through the socket, where nobody else is."""
    store(manifests, "postgresql-mlflow")
    files = manifests.one("ConfigMap", "postgresql-mlflow").at("data")
    rules, preparation = (
        [line.split() for line in files[name].splitlines() if line and not line.startswith("#")]
        for name in ("pg_hba.conf", "pg_hba_preparation.conf")
    )
    assert {kind for kind, *_ in rules} == {"local", "host"}
    assert {method for *_, method in rules} == {"scram-sha-256"}
    assert preparation == [["local", "all", "postgres", "trust"]]


def test_postgresql_hashes_passwords_and_needs_no_shared_memory_of_the_node(postgresql: dict[str, str]) -> None:
    """A container has 64 MB of /dev/shm, which a parallel query soon fills: it fails with «no space left on device»."""
    assert postgresql["password_encryption"] == "scram-sha-256"
    assert postgresql["dynamic_shared_memory_type"] == "mmap"


def test_postgresql_fits_its_memory(
    manifests: Manifests, postgresql: dict[str, str], scenario_values: Callable[[str], dict[str, Any]]
) -> None:
    """Buffers are shared, each connection takes megabytes of its own, and the rest is the kernel's cache."""
    (container,) = store(manifests, "postgresql-mlflow").pods[0].containers
    limit = memory(container)
    values = scenario_values(manifests.scenario).get("mlflow", {}).get("postgresql", {}).get("configuration", {})
    left_to_postgresql = {name for name, value in values.items() if value is None}
    chosen = {"max_connections", "shared_buffers", "effective_cache_size", "log_min_duration_statement"}
    assert chosen - left_to_postgresql <= postgresql.keys()
    if shared := postgresql.get("shared_buffers"):
        assert 0.1 <= size(shared) / limit <= 0.4
    if cache := postgresql.get("effective_cache_size"):
        assert 2 * size(postgresql["shared_buffers"]) <= size(cache) <= 0.8 * limit
    if connections := postgresql.get("max_connections"):
        assert 50 <= int(connections) <= limit / (5 * 2**20)
    if duration := postgresql.get("log_min_duration_statement"):
        assert 100 <= int(duration) <= 10_000, "milliseconds; less than a page of a list may take is noise"


@pytest.fixture
def rabbitmq(manifests: Manifests) -> dict[str, str]:
    """RabbitMQ's options."""
    store(manifests, "rabbitmq")
    return options(manifests.one("ConfigMap", "rabbitmq").at("data")["rabbitmq.conf"])


def test_rabbitmq_listens_on_the_declared_ports(manifests: Manifests, rabbitmq: dict[str, str]) -> None:
    container = next(c for c in store(manifests, "rabbitmq").pods[0].containers if not c.init)
    ports = container.ports
    assert int(rabbitmq["listeners.tcp.default"]) == ports["amqp"]
    assert int(rabbitmq["management.tcp.port"]) == ports["management"]
    assert int(rabbitmq["prometheus.tcp.port"]) == ports["http-metrics"]
    plugins = manifests.one("ConfigMap", "rabbitmq").at("data.enabled_plugins")
    assert plugins.strip() == "[rabbitmq_management, rabbitmq_prometheus]."


def test_rabbitmq_writes_its_log_where_kubectl_shows_it(rabbitmq: dict[str, str]) -> None:
    assert rabbitmq["log.console"] == "true"
    assert rabbitmq["log.file"] == "false"
    assert rabbitmq["log.console.level"] == "info"


def test_rabbitmq_imports_what_the_init_container_writes(manifests: Manifests, rabbitmq: dict[str, str]) -> None:
    pod = store(manifests, "rabbitmq").pods[0]
    assert all(mounted(container, rabbitmq["load_definitions"]) for container in pod.containers)
    assert rabbitmq["default_vhost"] == "ml-training"
    container = next(c for c in pod.containers if not c.init)
    for name in ("RABBITMQ_CONFIG_FILE", "RABBITMQ_ENABLED_PLUGINS_FILE"):
        path = container.env[name]["value"]
        assert mounted(container, path), name
        assert path.rpartition("/")[2] in manifests.one("ConfigMap", "rabbitmq").at("data"), name


def test_rabbitmq_blocks_publishers_before_it_is_killed(manifests: Manifests, rabbitmq: dict[str, str]) -> None:
    """It stops accepting messages while there is memory and disk left to hand out those it has."""
    container = next(c for c in store(manifests, "rabbitmq").pods[0].containers if not c.init)
    limit = memory(container)
    seen = rabbitmq["total_memory_available_override_value"].replace("iB", "i")
    assert quantity(seen) == limit, "the container's limit, not the node's memory"
    assert 0.4 <= float(rabbitmq["vm_memory_high_watermark.relative"]) <= 0.7
    assert 0.05 <= size(rabbitmq["disk_free_limit.absolute"]) / claim(store(manifests, "rabbitmq")) <= 0.3
    # 512 MiB by default, which the log of a small broker's queues would fill its memory with.
    log = int(rabbitmq.get("raft.wal_max_size_bytes", 512 * 2**20))
    assert 2**24 <= log <= limit / 2


def test_rabbitmqs_nodes_are_its_pods(manifests: Manifests, rabbitmq: dict[str, str]) -> None:
    """An odd number of them, which agree on who leads and stop on the smaller side of a split."""
    replicas = store(manifests, "rabbitmq").at("spec.replicas")
    assert replicas % 2 == 1
    clustering = {name: value for name, value in rabbitmq.items() if "cluster" in name or "quorum_queue" in name}
    if replicas == 1:
        assert clustering == {}
        return
    prefix = "cluster_formation.classic_config.nodes."
    nodes = {int(name.removeprefix(prefix)): value for name, value in clustering.items() if name.startswith(prefix)}
    service = store(manifests, "rabbitmq").at("spec.serviceName")
    assert nodes == {
        index + 1: f"rabbit@rabbitmq-{index}.{service}.{NAMESPACE}.svc.cluster.local" for index in range(replicas)
    }
    assert clustering["cluster_formation.peer_discovery_backend"] == "classic_config"
    assert int(clustering["cluster_formation.target_cluster_size_hint"]) == replicas
    assert clustering["cluster_partition_handling"] == "pause_minority"
    membership = "quorum_queue.continuous_membership_reconciliation"
    assert clustering[f"{membership}.enabled"] == "true"
    assert int(clustering[f"{membership}.target_group_size"]) == replicas
    container = next(c for c in store(manifests, "rabbitmq").pods[0].containers if not c.init)
    assert container.env["RABBITMQ_NODENAME"]["value"] == nodes[1].replace("rabbitmq-0", "$(POD_NAME)")
    assert container.env["RABBITMQ_USE_LONGNAME"]["value"] == "true"


@pytest.mark.kinds("StatefulSet")
def test_volumes_outlive_the_release(manifest: Manifest) -> None:
    assert manifest["spec"]["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}


@pytest.mark.kinds("StatefulSet")
def test_data_lies_on_the_volume_that_is_kept(manifest: Manifest) -> None:
    claims = {found["metadata"]["name"] for found in manifest["spec"]["volumeClaimTemplates"]}
    for container in manifest.pods[0].containers:
        if not container.init:
            assert claims <= {mount["name"] for mount in container.spec["volumeMounts"]}, container.id


@pytest.mark.kinds("StatefulSet")
def test_a_store_without_copies_has_one_pod(manifest: Manifest) -> None:
    """Only RabbitMQ's nodes share what they hold."""
    assert manifest.name == "rabbitmq" or manifest.at("spec.replicas") == 1


def test_every_file_of_a_chart_is_in_a_config_map(render: Callable[..., Manifests]) -> None:
    """Whole, letter by letter, but for the broker's vhost."""
    texts = {text.strip() for item in render().by_kind("ConfigMap") for text in item.at("data", {}).values()}
    vhost = load_yaml((paths.REPOSITORY / "values.yaml").read_text())["global"]["broker"]["vhost"]
    files = list((paths.REPOSITORY / "charts").glob("*/files/*"))
    assert files
    for file in files:
        assert file.read_text().replace("@vhost@", vhost).strip() in texts, f"{file.name} is in no ConfigMap"
