"""Command line of the cluster and CI tooling; the Makefile's targets call it."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ci import bench as benchmark
from ci import cluster, console, host, images, paths, python_environment, release
from ci.cluster import embedded, programs


def up() -> int:
    """Cluster, images, release and main job; safe to interrupt and to repeat."""
    start = time.monotonic()
    paths.CACHE.mkdir(parents=True, exist_ok=True)
    with console.stage("Check this machine"):
        kind = _check()
    made = _bring_up(kind)
    with console.stage("Train and predict on real data"):
        code = _main_job(made)
    if code:
        return code
    console.say("\nWhere things are (also: make status)")
    console.say(release.addresses(made))
    console.say("\nTime of each stage (stages that run side by side overlap)")
    console.say(console.timings.table(time.monotonic() - start))
    console.timings.write(paths.BUILD / "timings-up.json")
    return 0


def _check() -> str:
    host.check_basics()
    release.user_data()
    kind = cluster.choose(os.environ.get("CLUSTER", "auto"))
    console.say(f"    cluster: {kind}")
    if kind == "embedded":
        host.check_embedded()
    else:
        cluster.check(kind)
    lacking = bool(programs.missing(cluster.needed_programs(kind)))
    packages = host.missing_packages() if kind == "embedded" else []
    host.check_registries(go=lacking, python=not python_environment.ready(), debian=bool(packages) or lacking)
    return kind


def _bring_up(kind: str) -> cluster.Cluster:
    packages = host.missing_packages() if kind == "embedded" else []
    if packages:
        with console.stage("Packages of the host"):
            host.install_packages(packages)
    # Compiling Go takes the processors, building images mostly the network: side by side they fit both.
    with ThreadPoolExecutor(2) as pool:
        environment = pool.submit(_build_images, kind)
        built = pool.submit(_build_programs, kind).result()
        # The cluster's own images stand on the base image.
        references = environment.result()
    with console.stage("Cluster"):
        made = cluster.up(kind, built)
    with console.stage("Images into the cluster"):
        images.load(references.values(), made.target)
        images.forget_earlier(references.values())
        if kind == "embedded":
            embedded.prune_images(set(references.values()))
    with console.stage("Install the chart"):
        release.install(made, references)
    return made


def _build_programs(kind: str) -> dict[str, Path]:
    with console.stage("Programs"):
        return programs.build(cluster.needed_programs(kind))


def _build_images(kind: str) -> dict[str, str]:
    python_environment.ensure()
    target = cluster.Cluster(kind, paths.CACHE).target
    with console.stage("Images"):
        return images.build(images.names(target), target)


def _main_job(made: cluster.Cluster) -> int:
    training, inference = release.SERVICES["Training API"], release.SERVICES["Inference API"]
    with (
        made.url(release.NAMESPACE, training[0], training[1]) as training_url,
        made.url(release.NAMESPACE, inference[0], inference[1]) as inference_url,
    ):
        command = release.main_job(release.user_data())
        return python_environment.run(*command, "--training-api", training_url, "--inference", inference_url)


def down() -> int:
    """Remove the cluster that `up` made, and nothing else."""
    with console.stage("Remove the cluster"):
        cluster.down()
    return 0


def clean() -> int:
    """Remove the cluster and everything in the cache."""
    down()
    with console.stage(f"Remove {paths.CACHE}"):
        images.remove_store()
        shutil.rmtree(paths.CACHE, ignore_errors=True)
    return 0


def status() -> int:
    """Say what runs and how to reach it."""
    made = cluster.current()
    if made is None or (made.kind == "embedded" and not embedded.running()):
        console.say("no cluster is up; `make up` makes one")
        return 1
    console.say(f"cluster: {made.kind}, kubeconfig {made.kubeconfig}\n")
    console.say(console.output(made.kubectl("-n", release.NAMESPACE, "get", "pods")))
    console.say("Where things are")
    console.say(release.addresses(made))
    return 0


def kubeconfig() -> int:
    """Print the path of the cluster's kubeconfig and nothing else."""
    made = cluster.current()
    if made is None:
        raise console.Failure("no cluster is up", "run `make up`")
    print(made.kubeconfig)
    return 0


def build_images() -> int:
    """Build the images, and push them where IMAGE_REGISTRY names a registry."""
    kind = "existing" if os.environ.get("IMAGE_REGISTRY") else cluster.choose(os.environ.get("CLUSTER", "auto"))
    target = cluster.Cluster(kind, paths.CACHE).target
    references = images.build(images.names(target), target)
    if kind == "existing":
        images.load(references.values(), target)
    images.write_values(references, release.IMAGE_VALUES)
    for name, reference in references.items():
        console.say(f"{name:<16} {reference}")
    console.say(f"values for helm: {release.IMAGE_VALUES.relative_to(paths.REPOSITORY)}")
    return 0


def test_fast() -> int:
    """Formatter, linter, types, unit tests and render assertions: no cluster, no root."""
    with console.stage("Programs and packages for the tests"):
        host.check_basics()
        host.check_registries(go=bool(programs.missing(["helm"])), python=not python_environment.ready(), debian=False)
        programs.build(["helm"])
        python_environment.ensure()
    for name, words in (
        ("Format", ("-m", "ruff", "format", "--check", "--quiet", ".")),
        ("Lint", ("-m", "ruff", "check", "--quiet", ".")),
        ("Types", ("-m", "mypy")),
        ("Generated files are current", ("-m", "ci.docs", "--check")),
    ):
        with console.stage(name):
            code = python_environment.run(*words)
        if code:
            return code
    with console.stage("Unit and render tests"):
        return _pytest("-n", "2", "tests/unit", "tests/chart_harness", "tests/render")


def test() -> int:
    """Everything: the fast tests, then the live tests on a cluster that is brought up when it is not there."""
    start = time.monotonic()
    code = test_fast()
    if code:
        return code
    reason = _bring_up_for_tests()
    environment = {"ADS_NO_CLUSTER": reason} if reason else {}
    console.say("\nTime of each stage up to here (stages that run side by side overlap)")
    console.say(console.timings.table(time.monotonic() - start))
    console.timings.write(paths.BUILD / "timings-test.json")
    # Last, so that the output ends with pytest's own summary.
    console.say("==> Live tests")
    return _pytest("tests/live", **environment)


def _bring_up_for_tests() -> str | None:
    """Bring the release of this checkout up; the reason why it cannot be, where that is no failure."""
    try:
        with console.stage("Check this machine"):
            kind = _check()
    except console.Failure as failure:
        if os.environ.get("CI"):
            raise
        return failure.problem
    _bring_up(kind)
    return None


def bench() -> int:
    """Measure the running system beside the baseline; brings it up where it is not. BENCH=quick for a short run."""
    benchmark.mode()
    made = cluster.current()
    if made is None or (made.kind == "embedded" and not embedded.running()):
        code = up()
        made = cluster.current()
        if code or made is None:
            return code or 1
    return benchmark.run(made)


def _pytest(*arguments: str, **environment: str) -> int:
    return python_environment.run("-m", "pytest", *arguments, environment=environment)


def coverage() -> int:
    """Which branches of the chart's templates the render tests take; fails when one is not."""
    return _chart_harness("coverage")


def mutants() -> int:
    """How many mistakes in templates and values the render tests notice; MUTANTS holds options (--changed main)."""
    return _chart_harness("mutate", *shlex.split(os.environ.get("MUTANTS", "")))


def _chart_harness(command: str, *options: str) -> int:
    """Run a command of the harness, as `python -m chart_harness COMMAND`."""
    programs.build(["helm"])
    python_environment.ensure()
    search_path = str(paths.REPOSITORY / "tests")
    return python_environment.run("-m", "chart_harness", command, *options, environment={"PYTHONPATH": search_path})


def lock() -> int:
    """Remake requirements/ from pyproject.toml."""
    return subprocess.call([sys.executable, "-m", "ci.lock"], cwd=paths.REPOSITORY)


def docs() -> int:
    """Remake what is generated from comments: the charts' README tables and schemas."""
    return python_environment.run("-m", "ci.docs")


COMMANDS = {
    "up": up,
    "down": down,
    "clean": clean,
    "status": status,
    "kubeconfig": kubeconfig,
    "images": build_images,
    "test": test,
    "test-fast": test_fast,
    "coverage": coverage,
    "mutants": mutants,
    "bench": bench,
    "lock": lock,
    "docs": docs,
}

CHANGING = ("up", "down", "clean", "images", "test", "bench")
"""Commands that must not run beside each other."""


def main(words: Sequence[str] | None = None) -> int:
    """Run the command named on the command line; its exit code."""
    parser = argparse.ArgumentParser(prog="python3 -m ci", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, function in COMMANDS.items():
        summary = (function.__doc__ or "").split("\n")[0]
        commands.add_parser(name, help=summary, description=summary)
    name = parser.parse_args(words).command
    return console.main_guard(_alone if name in CHANGING else lambda command: COMMANDS[command](), name)


def _alone(name: str) -> int:
    with console.exclusive():
        return COMMANDS[name]()


if __name__ == "__main__":
    sys.exit(main())
