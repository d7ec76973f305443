"""The cluster of the live tests, whether there is one, and what is kept of a test that failed."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
from chart_harness import Chart, Manifests, Renderer, Scenario
from chart_harness.live import Evidence, Namespace
from ci import cluster, paths, release
from live.system import RESTRICTED, Installation, System, unique
from xdist.scheduler import LoadScopeScheduling

DESTRUCTIVE = "test_uninstall.py"
OWN_NAMESPACES = ("test_lifecycle.py", "test_gitops.py")
"""Files whose tests are in classes with a namespace of their own."""

EVIDENCE = pytest.StashKey[Evidence]()


def pytest_configure(config: pytest.Config) -> None:
    """Say where what is kept of failed tests goes."""
    config.stash[EVIDENCE] = Evidence(paths.BUILD / "live")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder, run them after all others, and last what removes the release."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.live)
    items.sort(key=lambda item: (item.get_closest_marker("live") is not None, item.path.name == DESTRUCTIVE))


class _Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # comes without types
    """Tests of the shared release in their order on one worker; beside it each class with a namespace of its own."""

    def _split_scope(self, nodeid: str) -> str:
        file, *inner = nodeid.split("::")
        return f"{file}::{inner[0]}" if file.endswith(OWN_NAMESPACES) else "shared"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _Scheduling:
    """Keep the tests of the shared release from meeting each other when they run with `-n`."""
    return _Scheduling(config, log)


def _made(config: pytest.Config) -> cluster.Cluster | str:
    """The cluster to test on, or the reason why there is none."""
    if reason := os.environ.get("ADS_NO_CLUSTER"):
        return reason
    if given := config.getoption("kubeconfig"):
        made = cluster.Cluster(config.getoption("cluster_type") or "existing", Path(given))
    else:
        current = cluster.current()
        if current is None:
            return "no cluster is up: run `make up`, or name one with --kubeconfig"
        made = current
    command = made.kubectl("--namespace", release.NAMESPACE, "get", "service", "training-api", "--request-timeout=10s")
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return f"there is no {command[0]}: run `make up`"
    if done.returncode != 0:
        return f"the system is not installed ({done.stderr.strip()}): run `make up`"
    return made


def refuse(reason: str) -> NoReturn:
    """Skip what this machine cannot test, with the reason; where CI is set, fail."""
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(f"the live tests must run under CI: {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def made_cluster(pytestconfig: pytest.Config) -> cluster.Cluster:
    """The cluster. Without one the tests are skipped with the reason; where CI is set, they fail."""
    made = _made(pytestconfig)
    if isinstance(made, str):
        refuse(made)
    # What pytest-helm-charts runs is called kubectl.
    os.environ["PATH"] = f"{paths.BIN}{os.pathsep}{os.environ['PATH']}"
    return made


@pytest.fixture(scope="module")
def kube_config(made_cluster: cluster.Cluster) -> str:
    """The kubeconfig that pytest-helm-charts connects with; replaces its fixture, which has to be told."""
    return str(made_cluster.kubeconfig)


@pytest.fixture(scope="session")
def evidence(pytestconfig: pytest.Config) -> Evidence:
    """Where a fixture says which namespace it brings."""
    return pytestconfig.stash[EVIDENCE]


@pytest.fixture(scope="session")
def system(request: pytest.FixtureRequest, made_cluster: cluster.Cluster, evidence: Evidence) -> Iterator[System]:
    """The installation of `make up`, ready."""
    found = System(made_cluster)
    evidence.watch(request, found.namespace)
    found.wait_ready()
    yield found
    found.close()


@pytest.fixture
def series(request: pytest.FixtureRequest) -> str:
    """A series of this test's own."""
    return unique(request.node.originalname.removeprefix("test_")[:60])


@pytest.fixture(scope="class")
def home(request: pytest.FixtureRequest, made_cluster: cluster.Cluster, evidence: Evidence) -> Iterator[Installation]:
    """A namespace of the test class's own, where it installs what it needs; deleted after its last test."""
    name = f"ads-{request.node.name.removeprefix('Test').lower()[:30]}-{uuid.uuid4().hex[:6]}"
    found = Installation(made_cluster, name)
    evidence.watch(request, found.namespace)
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": RESTRICTED}}
    found.namespace.kubectl("create", "--filename", "-", stdin=json.dumps(namespace))
    yield found
    found.close()
    found.namespace.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="session")
def served_kinds(made_cluster: cluster.Cluster) -> frozenset[str]:
    """Kinds that the API server knows."""
    listed = Installation(made_cluster, release.NAMESPACE).namespace.kubectl("api-resources", "--no-headers").stdout
    return frozenset(line.split()[-1] for line in listed.splitlines())


@pytest.fixture
def rendered_for(
    scenario: Scenario, chart: Chart, renderer: Renderer, served_kinds: frozenset[str]
) -> Callable[[Namespace], Manifests]:
    """Renders the scenario for a namespace. Skips where the cluster lacks a kind of it; where CI is set, that fails."""

    def render(namespace: Namespace) -> Manifests:
        manifests = renderer.render(chart, replace(scenario, namespace=namespace.name))
        if missing := {manifest.kind for manifest in manifests} - served_kinds:
            refuse(f"the cluster does not know {', '.join(sorted(missing))}: install their definitions")
        return manifests

    return render


@pytest.fixture(scope="session")
def values(made_cluster: cluster.Cluster) -> str:
    """The values (YAML) that `make up` installed with, images included."""
    return Installation(made_cluster, release.NAMESPACE).values()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Keep what the cluster knows when a test fails, and print the lines that matter."""
    report: pytest.TestReport = yield
    item.config.stash[EVIDENCE].keep(item, call, report)
    return report
