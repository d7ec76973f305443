"""Uninstalling keeps the data and says so; installing again takes it up. Runs last, and leaves the system installed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from chart_harness.live import wait_for
from ci import release
from live.system import PROBE, System, installed_objects, points, unique


@pytest.fixture
def installed_again(system: System) -> Iterator[str]:
    """The release's values; the system is installed again whatever happens in between."""
    values = system.values()
    yield values
    system.close()
    system.upgrade(values)


def test_uninstalling_keeps_volumes_and_passwords_and_installing_takes_them_up(
    system: System, series: str, installed_again: str
) -> None:
    job = system.model(series)
    answer = system.predict(series, PROBE).json()
    secrets = system.secrets()
    volumes = {claim["metadata"]["name"] for claim in system.namespace.get("persistentvolumeclaims")}
    notes = system.helm("get", "notes", release.RELEASE).stdout
    assert "keeps your data" in notes
    for command in ("delete pvc", "delete secret", "delete pod smoke-test"):
        assert f"kubectl -n {release.NAMESPACE} {command}" in notes

    # The pod that `helm test` leaves, if it ran, goes as the notes say.
    system.namespace.kubectl("delete", "pod", "smoke-test", "--ignore-not-found")
    system.helm("uninstall", release.RELEASE, "--wait", "--timeout", "5m")
    system.close()

    def only_data() -> bool:
        left = set(installed_objects(system.namespace, system.cluster))
        expected = {f"persistentvolumeclaim/{name}" for name in volumes} | {f"secret/{name}" for name in secrets}
        assert left == expected, f"also there: {sorted(left - expected)}; gone: {sorted(expected - left)}"
        return True

    wait_for(only_data, "everything but the data to be gone", 180)

    system.upgrade(installed_again)
    assert system.secrets() == secrets
    assert system.job(job["job_id"]) == job
    system.served(series, job["model_version"], seconds=120)
    assert system.predict(series, PROBE).json() == answer
    # A job done before counts for the numbering of those after.
    second = system.succeeded(system.fit(series, points(1000, seed=99)))
    assert second["model_version"] == 2
    system.model(unique("after"))
