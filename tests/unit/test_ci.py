"""The tooling behind `make up`: what it writes, what it waits for and what it says when something is missing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import sys
import tarfile
from pathlib import Path

import pytest
from ci import cluster, console, host, images, paths, release
from ci.cluster import archive, daemons, embedded, programs


def test_a_static_image_names_its_layer_by_digest_and_keeps_links(tmp_path: Path) -> None:
    binary = tmp_path / "program"
    binary.write_bytes(b"\x7fELF...")
    target = tmp_path / "image.tar"
    archive.write_static_image(
        target,
        ["localhost/test/program:1", "localhost/test/other:1"],
        {"/usr/local/bin/program": binary, "/usr/local/bin/alias": "program"},
        entrypoint=["/usr/local/bin/program"],
        user="65532:65532",
    )
    with tarfile.open(target) as tar:
        manifest = json.load(tar.extractfile("manifest.json"))[0]  # type: ignore[arg-type]
        config = json.load(tar.extractfile(manifest["Config"]))  # type: ignore[arg-type]
        layer = tar.extractfile(manifest["Layers"][0]).read()  # type: ignore[union-attr]
    assert manifest["RepoTags"] == ["localhost/test/program:1", "localhost/test/other:1"]
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(layer).hexdigest()}"]
    assert config["config"]["User"] == "65532:65532"
    (tmp_path / "layer.tar").write_bytes(layer)
    with tarfile.open(tmp_path / "layer.tar") as tar:
        assert tar.getmember("usr/local/bin/program").mode == 0o755
        assert tar.getmember("usr/local/bin/alias").linkname == "program"


def test_the_same_static_image_is_the_same_bytes(tmp_path: Path) -> None:
    binary = tmp_path / "program"
    binary.write_bytes(b"content")
    for name in ("a.tar", "b.tar"):
        archive.write_static_image(tmp_path / name, ["localhost/test/x:1"], {"/x": binary})
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_a_daemon_is_known_by_its_start_time_and_ends_when_asked(tmp_path: Path) -> None:
    daemon = daemons.Daemon("sleeper", tmp_path)
    daemon.start([sys.executable, "-c", "import signal; print('up', flush=True); signal.pause()"])
    pid = daemon.pid()
    assert pid is not None
    daemon.start(["false"])
    assert daemon.pid() == pid, "a second start must leave the running daemon alone"
    daemons.wait_until(lambda: "up" in daemon.last_lines(), "the daemon's first line", 10, "see its log")
    daemon.stop()
    assert daemon.pid() is None
    assert not daemon.pid_file.exists()


def test_a_reused_process_id_is_not_taken_for_the_daemon(tmp_path: Path) -> None:
    daemon = daemons.Daemon("stranger", tmp_path)
    daemon.pid_file.write_text(f"{os.getpid()} 1\n")
    assert daemon.pid() is None
    daemon.stop()  # must not signal this process


def test_a_failed_command_shows_its_last_lines_and_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(paths, "BUILD", tmp_path)
    with pytest.raises(console.Failure) as failed:
        console.run(
            [sys.executable, "-c", "print('the cause'); raise SystemExit(3)"], log="failing", remedy="mend the cause"
        )
    assert "code 3" in failed.value.problem
    assert "| the cause" in failed.value.problem
    assert "What to do: mend the cause" in str(failed.value)


def test_every_program_has_a_pinned_module_with_hashes() -> None:
    for name, program in programs.PROGRAMS.items():
        folder = programs.MODULES / program.module
        assert (folder / "go.mod").is_file(), name
        assert (folder / "go.sum").stat().st_size > 1000, name


@pytest.mark.skipif(not shutil.which("go"), reason="needs the Go toolchain")
def test_a_program_is_named_by_all_it_is_made_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copytree(programs.MODULES, tmp_path / "go")
    monkeypatch.setattr(programs, "MODULES", tmp_path / "go")
    before = {name: programs.key(name, "go1.26.8") for name in programs.PROGRAMS}
    assert programs.key("helm", "go1.26.9") != before["helm"], "another compiler"
    with (tmp_path / "go" / "kubernetes" / "go.sum").open("a") as stream:
        stream.write("\n")
    after = {name: programs.key(name, "go1.26.8") for name in programs.PROGRAMS}
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {name for name, program in programs.PROGRAMS.items() if program.module == "kubernetes"}


def test_the_kubernetes_version_is_read_from_its_pin() -> None:
    major, minor, patch = programs.kubernetes_version().split(".")
    assert (major, minor) == ("1", "34")
    assert patch.isdigit()


@pytest.mark.parametrize("requested", ["docker-desktop", "", "KIND"])
def test_an_unknown_kind_of_cluster_is_refused_with_the_known_ones(requested: str) -> None:
    with pytest.raises(console.Failure, match="embedded"):
        cluster.choose(requested)


def test_an_existing_cluster_is_never_chosen_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for answers in (True, False):
        monkeypatch.setattr(images, "docker_answers", lambda answers=answers: answers)
        assert cluster.choose("auto") == ("kind" if answers else "embedded")


@pytest.mark.parametrize(
    ("kind", "lacking"), [("kind", "no Docker engine"), ("minikube", "not on PATH"), ("existing", "registry")]
)
def test_what_another_cluster_lacks_is_said_before_anything_changes(
    monkeypatch: pytest.MonkeyPatch, kind: str, lacking: str
) -> None:
    monkeypatch.setattr(images, "docker_answers", lambda: False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("IMAGE_REGISTRY", raising=False)
    with pytest.raises(console.Failure, match=lacking):
        cluster.check(kind)


def test_data_that_cannot_be_read_is_refused_before_anything_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "no-such-file.csv")
    with pytest.raises(console.Failure, match=r"DATA=no-such-file.csv"):
        release.user_data()


def test_one_make_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(paths, "CACHE", tmp_path)
    with console.exclusive(), pytest.raises(console.Failure, match="at work"), console.exclusive():
        pytest.fail("two at once")
    with console.exclusive():
        pass


def test_a_busy_port_is_named_with_the_program_that_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(embedded, "PORTS", {port: "kube-apiserver"})
        assert embedded.busy_ports() == {port: "kube-apiserver"}
    assert embedded.busy_ports() == {}


def test_without_root_the_embedded_cluster_says_so_before_anything_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(console.Failure, match="needs root") as refused:
        host.check_embedded()
    assert "CLUSTER=kind" in refused.value.remedy


def test_too_little_memory_is_refused_with_both_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "MEMORY_GIB", 1_000_000)
    with pytest.raises(console.Failure, match=r"GiB of memory are available, and the system needs 1000000 GiB"):
        host._check_memory()


def test_a_full_disk_is_refused_with_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "DISK_COLD_GIB", 1_000_000)
    monkeypatch.setattr(host, "DISK_WARM_GIB", 1_000_000)
    with pytest.raises(console.Failure, match="are free on the disk of /"):
        host._check_disk()


def test_the_embedded_clusters_images_hold_every_program_that_runs_in_a_pod() -> None:
    built = {name: Path("/cache/programs") / name / "key" / name for name in programs.EMBEDDED}
    held = {source for files, _ in embedded.system_images(built).values() for source in files.values()}
    assert set(built.values()) - held == {built["helm"]}, "helm alone runs on the host only"


def _workload(kind: str, spec: dict[str, object], status: dict[str, object]) -> dict[str, object]:
    return {
        "kind": kind,
        "metadata": {"name": "x", "generation": 2},
        "spec": spec,
        "status": {"observedGeneration": 2, **status},
    }


@pytest.mark.parametrize(
    ("item", "ready"),
    [
        (_workload("Deployment", {"replicas": 1}, {"updatedReplicas": 1, "availableReplicas": 1, "replicas": 1}), True),
        (
            _workload("Deployment", {"replicas": 1}, {"updatedReplicas": 1, "availableReplicas": 1, "replicas": 2}),
            False,
        ),
        (
            _workload(
                "Deployment",
                {"replicas": 1},
                {"observedGeneration": 1, "updatedReplicas": 1, "availableReplicas": 1, "replicas": 1},
            ),
            False,
        ),
        (_workload("Deployment", {"replicas": 0}, {}), True),
        (
            _workload(
                "StatefulSet", {"replicas": 1}, {"readyReplicas": 1, "updateRevision": "a", "currentRevision": "a"}
            ),
            True,
        ),
        (
            _workload(
                "StatefulSet", {"replicas": 1}, {"readyReplicas": 1, "updateRevision": "b", "currentRevision": "a"}
            ),
            False,
        ),
        (_workload("Job", {}, {"failed": 1}), False),
        (_workload("Job", {}, {"succeeded": 1}), True),
        (_workload("RayService", {}, {"conditions": [{"type": "Ready", "status": "True"}]}), True),
        (
            _workload(
                "RayService",
                {},
                {"conditions": [{"type": "Ready", "status": "True"}, {"type": "UpgradeInProgress", "status": "True"}]},
            ),
            False,
        ),
        (_workload("RayService", {}, {}), False),
    ],
)
def test_readiness_means_the_newest_revision_serves(item: dict[str, object], ready: bool) -> None:
    assert (release._waits_for(item) is None) == ready


def test_only_other_tags_of_the_same_images_are_forgotten() -> None:
    listed = ["localhost/ads/tools:old", "localhost/ads/tools:new", "localhost/ads/python:base", "localhost/other:1"]
    assert images._earlier(listed, {"localhost/ads/tools:new"}) == ["localhost/ads/tools:old"]
