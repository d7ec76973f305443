"""What Ray Serve is told fits the image, its pods and itself."""

from __future__ import annotations

import ast
import importlib
import inspect
import tomllib
from typing import Any

import pytest
from chart_harness import Container, Manifest, Manifests, quantity
from chart_harness.objects import load_yaml
from ci import paths

IMAGE = paths.REPOSITORY / "images" / "ray-serve"

OBJECT_STORE_LEAST = 75 * 1024**2
"""Bytes: Ray refuses less (`OBJECT_STORE_MINIMUM_MEMORY_BYTES`)."""


@pytest.fixture
def service(manifests: Manifests) -> Manifest:
    """The RayService."""
    found = manifests.find("RayService", "anomaly-detector")
    if found is None:
        pytest.skip("inference is switched off")
    return found


@pytest.fixture
def config(service: Manifest) -> Any:
    """The configuration of Serve."""
    return load_yaml(service.at("spec.serveConfigV2"))


def groups(service: Manifest) -> list[dict[str, Any]]:
    """The head and the workers, as KubeRay takes them, with the number of pods."""
    cluster = service.at("spec.rayClusterConfig")
    return [{**cluster["headGroupSpec"], "replicas": 1}, *cluster.get("workerGroupSpecs", [])]


def most_replicas(deployment: dict[str, Any]) -> int:
    """Replicas at the most."""
    scaling = deployment.get("autoscaling_config")
    return int(scaling["max_replicas"] if scaling else deployment["num_replicas"])


def main(group: dict[str, Any]) -> dict[str, Any]:
    """The container of a group's pods."""
    (container,) = group["template"]["spec"]["containers"]
    found: dict[str, Any] = container
    return found


def test_the_application_is_in_the_image(config: Any) -> None:
    (application,) = config["applications"]
    module, _, attribute = application["import_path"].partition(":")
    tree = ast.parse((IMAGE / f"{module.replace('.', '/')}.py").read_text())
    assigned = {
        t.id: n.value for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)
    }
    assert attribute in assigned, application["import_path"]
    named = {
        keyword.value.value
        for node in ast.walk(assigned[attribute])
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "name" and isinstance(keyword.value, ast.Constant)
    }
    assert {deployment["name"] for deployment in application["deployments"]} == named
    assert application["name"] == "anomaly-detector", "part of the documented addresses"
    assert application["route_prefix"] == "/"


def test_rays_version_is_the_images(service: Manifest) -> None:
    packages = tomllib.loads((paths.REPOSITORY / "pyproject.toml").read_text())["dependency-groups"]["ray-serve"]
    (version,) = (entry.partition("==")[2] for entry in packages if str(entry).startswith("ray["))
    assert service.at("spec.rayClusterConfig.rayVersion") == version


def test_every_node_answers_on_the_declared_port(service: Manifest, config: Any) -> None:
    """A Service leads to any pod, and each has HAProxy in front of all replicas."""
    assert config["proxy_location"] == "EveryNode"
    assert config["http_options"]["host"] == "0.0.0.0"
    for group in groups(service):
        ports = {port["name"]: port["containerPort"] for port in main(group)["ports"]}
        assert ports["serve"] == config["http_options"]["port"]


def test_the_application_writes_its_own_access_log(config: Any) -> None:
    assert config["logging_config"] == {"log_level": "WARNING", "enable_access_log": False}


def test_replicas_are_added_before_they_use_what_each_reserves(config: Any) -> None:
    for deployment in config["applications"][0]["deployments"]:
        if "autoscaling_config" in deployment:
            scaling = deployment["autoscaling_config"]
            assert 1 <= scaling["min_replicas"] <= scaling["max_replicas"] <= 100
            module, _, name = scaling["policy"]["policy_function"].partition(":")
            policy = getattr(importlib.import_module(module), name)
            inspect.signature(policy).bind(**scaling["policy"]["policy_kwargs"])
            reserved = deployment["ray_actor_options"]["num_cpus"]
            assert reserved / 2 <= scaling["policy"]["policy_kwargs"]["target"] < reserved
            assert "num_replicas" not in deployment, "Serve refuses both"
        else:
            assert 1 <= deployment["num_replicas"] <= 100
        assert 50 <= deployment["max_ongoing_requests"] <= 1000, "a replica is one event loop"


def test_replicas_are_watched_and_stop_in_time(service: Manifest, config: Any) -> None:
    for deployment in config["applications"][0]["deployments"]:
        assert 5 <= deployment["health_check_period_s"] <= 30
        assert deployment["health_check_period_s"] < deployment["health_check_timeout_s"] <= 60
        for group in groups(service):
            grace = group["template"]["spec"]["terminationGracePeriodSeconds"]
            assert 10 <= deployment["graceful_shutdown_timeout_s"] <= grace / 2


def test_the_pods_have_room_for_every_replica(service: Manifest, config: Any) -> None:
    """Serve would wait for ever with fewer CPUs than its replicas reserve; with many more, pods stand idle."""
    (deployment,) = config["applications"][0]["deployments"]
    needed = most_replicas(deployment) * deployment["ray_actor_options"]["num_cpus"]
    offered = [int(group["rayStartParams"]["num-cpus"]) * group["replicas"] for group in groups(service)]
    assert needed <= sum(offered) <= 4 * needed
    assert len(offered) == 1 or offered[0] == 0, "with workers the head serves nothing"
    for group in groups(service):
        asked = quantity(main(group)["resources"]["requests"]["cpu"])
        assert int(group["rayStartParams"]["num-cpus"]) <= 4 * asked, "a replica in use takes a whole core"


def test_the_caches_fit_into_their_pods(service: Manifest, config: Any) -> None:
    """A replica takes its cache and about as much again; the disk of a pod is shared by its replicas."""
    (deployment,) = config["applications"][0]["deployments"]
    pods = sum(group["replicas"] for group in groups(service) if group["rayStartParams"]["num-cpus"] != "0")
    each = -(-most_replicas(deployment) // pods)
    for group in groups(service):
        environment = {entry["name"]: entry.get("value") for entry in main(group)["env"]}
        limit = quantity(main(group)["resources"]["limits"]["memory"])
        cache = int(environment["MODEL_CACHE_MAX_BYTES"])
        if group["rayStartParams"]["num-cpus"] != "0":
            assert limit / 64 <= each * cache <= limit / 2, "replicas of a pod"
        (scratch,) = (v["emptyDir"]["sizeLimit"] for v in group["template"]["spec"]["volumes"] if v["name"] == "tmp")
        assert 64 * 2**20 <= int(environment["MODEL_DISK_MAX_BYTES"]) <= quantity(scratch) * 0.75
        store = int(group["rayStartParams"]["object-store-memory"])  # left to itself, Ray takes 30 % of the memory
        assert OBJECT_STORE_LEAST <= store <= limit / 10, "nothing here passes objects through Ray's store"


def test_the_size_of_a_group_is_fixed(service: Manifest) -> None:
    """KubeRay scales no pods here, Serve scales replicas: with numbers that differ both would."""
    for group in service.at("spec.rayClusterConfig.workerGroupSpecs", []):
        assert 1 <= group["replicas"] == group["minReplicas"] == group["maxReplicas"] <= 50
        assert group["groupName"] == "workers"


def test_ray_runs_nothing_that_nobody_reads(service: Manifest) -> None:
    """An autoscaler of pods and a shipper of log lines would take 45 MB each; usage statistics leave the cluster."""
    for index, group in enumerate(groups(service)):
        parameters = group["rayStartParams"]
        assert parameters["include-log-monitor"] == "no", "KubeRay leaves out a parameter that says `false`"
        assert parameters["disable-usage-stats"] == "true"
        if index == 0:
            assert parameters["no-monitor"] == "true"
            assert parameters["dashboard-host"] == "0.0.0.0", "the operator sends Serve's configuration there"


@pytest.mark.parametrize("part", ["minReplicas", "maxReplicas", "modelCache"])
def test_production_serves_the_fleet(part: str, renderings: list[Manifests]) -> None:
    """300,000 series: 8 to 12 replicas on workers of their own, each with a cache of a share of the models."""
    production = next(m for m in renderings if m.scenario == "production").one("RayService", "anomaly-detector")
    (deployment,) = load_yaml(production.at("spec.serveConfigV2"))["applications"][0]["deployments"]
    head, workers = groups(production)
    match part:
        case "minReplicas":
            assert deployment["autoscaling_config"]["min_replicas"] == 8
        case "maxReplicas":
            assert deployment["autoscaling_config"]["max_replicas"] == 12
            assert deployment["ray_actor_options"]["num_cpus"] == 1, "a replica in use takes a whole core"
            assert quantity(main(workers)["resources"]["requests"]["memory"]) == quantity(
                main(workers)["resources"]["limits"]["memory"]
            ), "what serves is the last that the kernel ends"
        case _:
            caches = [int(e["value"]) for e in main(workers)["env"] if e["name"] == "MODEL_CACHE_MAX_BYTES"]
            assert caches[0] * 12 / 105_000 > 150_000, "half of the models, at 105 KB each"
    assert quantity(main(head)["resources"]["requests"]["memory"]) < quantity(
        main(workers)["resources"]["requests"]["memory"]
    )


def test_haproxy_gets_no_more_threads_than_there_are_cpus(container: Container) -> None:
    if "RAY_SERVE_HAPROXY_NBTHREAD" in container.env:
        assert 1 <= int(container.env["RAY_SERVE_HAPROXY_NBTHREAD"]["value"]) <= 8
