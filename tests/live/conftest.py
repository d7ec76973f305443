"""The cluster of the live tests, whether there is one, and what is kept of a test that failed."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from ci import cluster, paths, release
from live.system import System, unique

DESTRUCTIVE = "test_uninstall.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder, run them after all others, and last what removes the release."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.live)
    items.sort(key=lambda item: (item.get_closest_marker("live") is not None, item.path.name == DESTRUCTIVE))


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


@pytest.fixture(scope="session")
def made_cluster(pytestconfig: pytest.Config) -> cluster.Cluster:
    """The cluster. Without one the tests are skipped with the reason; where CI is set, they fail."""
    made = _made(pytestconfig)
    if isinstance(made, str):
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(f"the live tests must run under CI: {made}", pytrace=False)
        pytest.skip(made)
    # What pytest-helm-charts runs is called kubectl.
    os.environ["PATH"] = f"{paths.BIN}{os.pathsep}{os.environ['PATH']}"
    return made


@pytest.fixture(scope="module")
def kube_config(made_cluster: cluster.Cluster) -> str:
    """The kubeconfig that pytest-helm-charts connects with; replaces its fixture, which has to be told."""
    return str(made_cluster.kubeconfig)


@pytest.fixture(scope="session")
def system(made_cluster: cluster.Cluster) -> Iterator[System]:
    """The running installation, ready."""
    release.wait_ready(made_cluster)
    found = System(made_cluster)
    yield found
    found.close()


@pytest.fixture
def series(request: pytest.FixtureRequest) -> str:
    """A series of this test's own."""
    return unique(request.node.originalname.removeprefix("test_")[:60])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Keep what the cluster knows when a test fails, and print the lines that matter."""
    report: Any = yield
    system = getattr(item, "funcargs", {}).get("system")
    if report.failed and isinstance(system, System):
        name = "".join(c if c.isalnum() or c in "-_" else "-" for c in item.name)
        folder = paths.BUILD / "live" / name
        lines = system.namespace.collect(folder, since_seconds=int(time.time() - call.start) + 30)
        report.sections.append((f"Cluster (all of it in {folder.relative_to(paths.REPOSITORY)})", "\n".join(lines)))
    return report
