"""Sizes, counts and times make sense together, whatever an environment sets them to."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chart_harness import Container, Manifest, Manifests, Pod, quantity
from chart_harness.objects import load_yaml
from ci import paths

MIB, GIB = 2.0**20, 2.0**30

SERVING = "RayService/anomaly-detector"


def requested(container: Container, name: str) -> float:
    """What a container asks for; CPUs, or bytes."""
    return quantity(container.spec["resources"]["requests"][name])


def memory_limit(container: Container) -> float:
    """Bytes that a container may use."""
    return quantity(container.spec["resources"]["limits"]["memory"])


def test_requests_are_of_a_service_not_of_a_machine(container: Container) -> None:
    assert 0.01 <= requested(container, "cpu") <= 8
    assert 32 * MIB <= requested(container, "memory") <= 32 * GIB


def test_memory_beyond_the_request_has_bounds(container: Container) -> None:
    """What is promised to nobody is taken from the neighbours."""
    request, limit = requested(container, "memory"), memory_limit(container)
    assert request <= limit <= 4 * request, container.id


def test_scratch_space_is_bounded(pod: Pod) -> None:
    for name, volume in pod.volumes.items():
        if "emptyDir" in volume and name != "extra":
            assert MIB <= quantity(volume["emptyDir"]["sizeLimit"]) <= 8 * GIB, f"{pod.id}: {name}"
    assert quantity(pod.volumes["tmp"]["emptyDir"]["sizeLimit"]) >= 64 * MIB, "a log or an upload fills less at once"


def test_probes_are_in_proportion(container: Container) -> None:
    """A start may take minutes; a pod that does not answer gets no requests at once, and is restarted later."""
    if "startupProbe" not in container.spec:
        return
    startup, liveness, readiness = (container.spec[f"{kind}Probe"] for kind in ("startup", "liveness", "readiness"))

    def budget(probe: dict[str, int]) -> int:
        return probe["periodSeconds"] * probe["failureThreshold"]

    assert 60 <= budget(startup) <= 600, f"{container.id}: {budget(startup)} s to start"
    assert 5 <= budget(readiness) <= 30, f"{container.id}: {budget(readiness)} s until it gets no requests"
    assert 2 * budget(readiness) <= budget(liveness) <= 180, f"{container.id}: {budget(liveness)} s until a restart"
    assert startup["periodSeconds"] <= readiness["periodSeconds"] <= liveness["periodSeconds"], container.id
    assert all(probe["failureThreshold"] >= 3 for probe in (startup, liveness, readiness)), "one lost packet is nothing"
    timeouts = {probe["timeoutSeconds"] for probe in (startup, liveness, readiness)}
    assert len(timeouts) == 1, f"{container.id}: what is asked is the same, and so is the time it may take"
    assert 2 <= timeouts.pop() <= readiness["periodSeconds"], container.id


def test_pods_stop_in_time(pod: Pod) -> None:
    assert pod.runs_to_completion or "terminationGracePeriodSeconds" in pod.spec, f"{pod.id}: it is left to Kubernetes"
    grace = pod.spec.get("terminationGracePeriodSeconds", 30)
    assert 30 <= grace <= 300, pod.id
    for container in pod.containers:
        before = (container.spec.get("lifecycle") or {}).get("preStop") or {}
        if "sleep" in before:
            assert 3 <= before["sleep"]["seconds"] <= grace / 2, f"{container.id}: requests in hand need the rest"
        for text in before.get("exec", {}).get("command", []):
            for seconds in re.findall(r"--timeout=(\d+)", text):
                assert grace / 2 <= int(seconds) < grace, container.id
        if "SHUTDOWN_GRACE_SECONDS" in container.env:
            own = float(container.env["SHUTDOWN_GRACE_SECONDS"]["value"])
            assert grace / 2 <= own <= grace - 10, f"{container.id}: a job in hand, and then the way back to the queue"


def test_pods_run_as_the_user_of_their_image(pod: Pod) -> None:
    """One id is user, group and owner of the volumes, so that what is written can be read; it is the image's own."""
    context = pod.spec["securityContext"]
    assert context["runAsUser"] == context["runAsGroup"] == context["fsGroup"], pod.id
    for container in pod.containers:
        name = re.split(r"[:@]", container.spec["image"].rpartition("/")[2])[0].replace("postgres", "postgresql")
        for file in (paths.REPOSITORY / "images").glob(f"**/{name}/Dockerfile"):
            for user in re.findall(r"^USER (\d+):\1$", file.read_text(), re.MULTILINE):
                assert context["runAsUser"] == int(user), f"{container.id}: {file.parent.name} has files of {user}"


@pytest.mark.kinds("Deployment", "StatefulSet")
def test_replicas_are_few(manifest: Manifest) -> None:
    """Hundreds are a slip of the finger; none is what `enabled` is for."""
    replicas = manifest.at("spec.replicas")
    assert replicas is None or 1 <= replicas <= 20, manifest


@pytest.mark.kinds("Deployment")
def test_an_update_replaces_one_pod_at_a_time(manifest: Manifest) -> None:
    """With room for another one it comes first; without, one goes first."""
    strategy = manifest["spec"]["strategy"]
    if strategy["type"] == "RollingUpdate":
        rolling = strategy["rollingUpdate"]
        assert (rolling["maxSurge"], rolling["maxUnavailable"]) in ((1, 0), (0, 1)), manifest


def scaling(manifests: Manifests) -> Iterator[tuple[Manifest, int, int, int]]:
    """What scales pods, with the fewest, the most, and the seconds before fewer are enough."""
    for scaler in manifests.by_kind("HorizontalPodAutoscaler"):
        seconds = scaler.at("spec.behavior.scaleDown.stabilizationWindowSeconds")
        yield scaler, scaler.at("spec.minReplicas"), scaler.at("spec.maxReplicas"), seconds
    for scaler in manifests.by_kind("ScaledObject"):
        behavior = scaler.at("spec.advanced.horizontalPodAutoscalerConfig.behavior")
        seconds = behavior["scaleDown"]["stabilizationWindowSeconds"]
        yield scaler, scaler.at("spec.minReplicaCount"), scaler.at("spec.maxReplicaCount"), seconds


def test_autoscalers_have_room_and_patience(manifests: Manifests) -> None:
    for scaler, fewest, most, seconds in scaling(manifests):
        assert 1 <= fewest < most <= 20, scaler
        assert 60 <= seconds <= 1800, f"{scaler}: trainings come in bursts"
        for metric in scaler.at("spec.metrics", []):
            assert metric["type"] == "Resource", scaler
            assert metric["resource"]["target"]["type"] == "Utilization", scaler
            assert 50 <= metric["resource"]["target"]["averageUtilization"] <= 90, scaler
        for trigger in scaler.at("spec.triggers", []):
            assert 5 <= scaler.at("spec.pollingInterval") <= 60, scaler
            assert 1 <= int(trigger["metadata"]["value"]) <= 50, scaler


def test_disruptions_leave_the_others(manifests: Manifests) -> None:
    """At most one of each at a time, and of what has several all but one."""
    for budget in manifests.by_kind("PodDisruptionBudget"):
        if (away := budget.at("spec.maxUnavailable")) is not None:
            assert away == 1, budget
        else:
            groups = manifests.one(*SERVING.split("/")).at("spec.rayClusterConfig.workerGroupSpecs")
            assert budget.at("spec.minAvailable") == groups[0]["replicas"] - 1, budget


def claims(manifests: Manifests) -> dict[str, float]:
    """Bytes of disk that each StatefulSet's pods ask for."""
    return {
        manifest.name: quantity(claim["spec"]["resources"]["requests"]["storage"])
        for manifest in manifests.by_kind("StatefulSet")
        for claim in manifest.at("spec.volumeClaimTemplates", [])
    }


def test_volumes_are_of_a_service_not_of_an_archive(manifests: Manifests) -> None:
    for name, size in claims(manifests).items():
        assert GIB <= size <= 1024 * GIB, name


def services(manifests: Manifests) -> dict[str, Container]:
    """The main container of everything that runs all the time, by the name of its pod."""
    return {
        container.pod.id: container
        for container in manifests.containers()
        if container.long_running and container.pod.owner.kind != "Job"
    }


SMALLER = [("local", "minikube"), ("minikube", "defaults"), ("defaults", "staging"), ("staging", "production")]
"""Environments, each with the next larger one."""


@pytest.mark.parametrize(("smaller", "larger"), SMALLER)
def test_environments_grow(smaller: str, larger: str, renderings: list[Manifests]) -> None:
    below, above = (next(m for m in renderings if m.scenario == name) for name in (smaller, larger))
    known = services(above)
    for name, container in services(below).items():
        # With workers beside it the head of Ray serves nothing, and may be small.
        if name in known and "headGroupSpec" not in container.pod.path:
            assert requested(container, "cpu") <= requested(known[name], "cpu"), name
            assert requested(container, "memory") <= requested(known[name], "memory"), name
            assert memory_limit(container) <= memory_limit(known[name]), name
    sizes = claims(above)
    for name, size in claims(below).items():
        assert size <= sizes.get(name, size), name
    for kind in ("Deployment", "StatefulSet"):
        for manifest in below.by_kind(kind):
            found = above.find(kind, manifest.name)
            if found is not None and None not in (manifest.at("spec.replicas"), found.at("spec.replicas")):
                assert manifest.at("spec.replicas") <= found.at("spec.replicas"), manifest


def test_local_is_small_throughout(renderings: list[Manifests]) -> None:
    """Every service has numbers of its own there, for a machine that has nothing to spare."""
    local, defaults = (next(m for m in renderings if m.scenario == name) for name in ("local", "defaults"))
    for name, container in services(defaults).items():
        small = services(local)[name]
        assert requested(small, "cpu") < requested(container, "cpu"), name
        assert requested(small, "memory") < requested(container, "memory"), name
        assert memory_limit(small) < memory_limit(container), name
    assert all(size < claims(defaults)[name] for name, size in claims(local).items())
    for deployment in local.by_kind("Deployment"):
        assert deployment.at("spec.replicas") == 1, deployment
        assert deployment.at("spec.strategy.rollingUpdate.maxSurge") == 0, deployment
        arguments = " ".join(map(str, deployment.pods[0].containers[-1].spec.get("args") or []))
        assert "--workers" not in arguments or arguments.endswith("--workers 1"), deployment


def numbers(manifests: Manifests) -> dict[str, tuple[int, int]]:
    """The fewest and the most pods of each pod template, by its id; a group of Ray's has a fixed number."""
    found = {}
    for pod in manifests.pods():
        count = pod.owner.at("spec.replicas", 1)
        if pod.owner.id == SERVING and "workerGroupSpecs" in pod.path:
            count = pod.owner.at("spec.rayClusterConfig.workerGroupSpecs")[0]["replicas"]
        found[pod.id] = (count, count)
    for scaler, fewest, most, _ in scaling(manifests):
        found[f"Deployment/{scaler.at('spec.scaleTargetRef.name')}"] = (fewest, most)
    return found


def total(manifests: Manifests, name: str) -> float:
    """What all pods that run all the time ask for."""
    found = numbers(manifests)
    return float(sum(requested(c, name) * found[c.pod.id][0] for c in services(manifests).values()))


def test_environments_fit_their_machines(renderings: list[Manifests]) -> None:
    """As the first lines of the values files say; the cluster's own pods need some of it."""
    local, minikube = (next(m for m in renderings if m.scenario == name) for name in ("local", "minikube"))
    assert sum(memory_limit(container) for container in services(local).values()) < 6e9
    assert 0.5 < total(local, "cpu") < 1
    assert total(minikube, "cpu") < 3
    assert total(minikube, "memory") < 6 * GIB
    assert sum(memory_limit(container) for container in services(minikube).values()) < 10 * GIB


def test_production_stands_the_loss_of_a_pod(renderings: list[Manifests]) -> None:
    """Two at least of what answers requests, three of what elects a leader, and no pod goes before another has come."""
    for manifests in renderings:
        if manifests.scenario not in ("staging", "production"):
            continue
        for deployment in manifests.by_kind("Deployment"):
            assert deployment.at("spec.replicas", 2) >= 2, deployment
            assert deployment.at("spec.strategy.rollingUpdate.maxUnavailable") == 0, deployment
        assert manifests.one("StatefulSet", "rabbitmq").at("spec.replicas") == 3
        assert all(fewest >= 2 for _, fewest, _, _ in scaling(manifests))


def test_production_has_more_of_everything(renderings: list[Manifests]) -> None:
    """Each service has numbers of its own there, and more than on a machine that was not asked."""
    production, defaults = (next(m for m in renderings if m.scenario == name) for name in ("production", "defaults"))
    for name, container in services(production).items():
        if container.pod.owner.id == SERVING:
            continue
        less = services(defaults)[name]
        assert requested(container, "cpu") > requested(less, "cpu"), name
        assert requested(container, "memory") > requested(less, "memory"), name
        assert memory_limit(container) > memory_limit(less), name
    assert all(size > claims(defaults)[name] for name, size in claims(production).items())
    for deployment in production.by_kind("Deployment"):
        usual = defaults.one("Deployment", deployment.name)
        assert deployment.at("spec.replicas", 9) > usual.at("spec.replicas", 1), deployment


def test_jobs_have_minutes_not_hours(pod: Pod) -> None:
    """A Job that cannot succeed ends while somebody still looks; one that can gets a few tries."""
    if not pod.runs_to_completion:
        return
    job = pod.owner["spec"]
    assert 60 <= job["activeDeadlineSeconds"] <= 3600, pod.id
    assert 1 <= job.get("backoffLimit", 1) <= 10, pod.id
    assert pod.spec["restartPolicy"] in ("Never", "OnFailure"), pod.id


def test_tokens_are_short_lived(pod: Pod) -> None:
    for name, volume in pod.volumes.items():
        for source in volume.get("projected", {}).get("sources", []):
            if "serviceAccountToken" in source:
                assert 600 <= source["serviceAccountToken"]["expirationSeconds"] <= 3600, f"{pod.id}: {name}"


DOCUMENT = paths.REPOSITORY / "docs" / "environments.md"


def amount(size: float) -> str:
    """Bytes as a person reads them."""
    return f"{size / GIB:.3g} GiB" if size >= GIB else f"{size / MIB:.3g} MiB"


def replicas_of_serve(manifests: Manifests) -> str:
    """How many replicas answer predictions, and what each takes."""
    (deployment,) = load_yaml(manifests.one(*SERVING.split("/")).at("spec.serveConfigV2"))["applications"][0][
        "deployments"
    ]
    bounds = deployment.get("autoscaling_config")
    number = f"{bounds['min_replicas']} to {bounds['max_replicas']}" if bounds else str(deployment["num_replicas"])
    cpus = deployment["ray_actor_options"]["num_cpus"]
    return f"Replicas in Ray's pods, which answer predictions: {number}, with {cpus:g} CPUs set aside for each."


def table(manifests: Manifests) -> str:
    """What an environment asks of a cluster."""
    lines = [
        "| Pods | Number | CPUs | Memory | Limit of memory | Disk |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    disks, counts = claims(manifests), numbers(manifests)
    sums = [0.0, 0.0, 0.0, 0.0]
    for pod in manifests.pods():
        if pod.runs_to_completion:
            continue
        containers = [container for container in pod.containers if container.long_running]
        each = [
            sum(requested(container, "cpu") for container in containers),
            sum(requested(container, "memory") for container in containers),
            sum(memory_limit(container) for container in containers),
            disks.get(pod.owner.name, 0.0),
        ]
        fewest, most = counts[pod.id]
        sums = [total + fewest * size for total, size in zip(sums, each, strict=True)]
        number = str(fewest) if fewest == most else f"{fewest} to {most}"
        part = re.search(r"(head|worker)GroupSpec", pod.path)
        lines.append(_row(f"{pod.owner.name}{f' ({part[1]})' if part else ''}", number, each))
    lines.append(_row("**all, at the least**", "", sums))
    return "\n".join(lines) + f"\n\n{replicas_of_serve(manifests)}"


def _row(name: str, number: str, sizes: list[float]) -> str:
    cpus, *rest = sizes
    cells = [name, number, f"{cpus:.4g}", *(amount(size) if size else "" for size in rest)]
    return f"| {' | '.join(cells)} |"


ENVIRONMENTS = ("defaults", *sorted(file.stem for file in (paths.REPOSITORY / "values").glob("*.yaml")))


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_documented_sizes_are_the_rendered_ones(
    environment: str, renderings: list[Manifests], documented: Callable[[Path, str, str], str]
) -> None:
    """`pytest tests/render/test_sizes.py --write-docs` writes the tables anew."""
    rendered = table(next(m for m in renderings if m.scenario == environment))
    known = documented(DOCUMENT, environment, rendered)
    assert known.splitlines() == rendered.splitlines(), f"{DOCUMENT.name}: write it anew with --write-docs"
