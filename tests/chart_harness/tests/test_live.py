"""What is kept of a failed test, with a stand-in for kubectl: no cluster is needed to say what is asked of it."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from chart_harness import live

pytest_plugins = ("pytester",)

CONFTEST = """
import os
from pathlib import Path

import pytest
from chart_harness.live import Evidence, Namespace

KEPT = pytest.StashKey()


def pytest_configure(config):
    config.stash[KEPT] = Evidence(Path({folder!r}))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    item.config.stash[KEPT].keep(item, call, report)
    return report


@pytest.fixture(scope="class")
def home(request):
    namespace = Namespace({kubectl!r}, f"of-{{request.node.name.lower()}}")
    request.config.stash[KEPT].watch(request, namespace)
    if "Setup" in request.node.name:
        raise AssertionError("does not come up")
    yield namespace


@pytest.fixture(scope="session")
def shared(request):
    namespace = Namespace({kubectl!r}, "shared")
    request.config.stash[KEPT].watch(request, namespace)
    yield namespace
"""

TESTS = """
class TestCall:
    def test_fails(self, home): assert False
    def test_passes(self, home): pass

class TestSetup:
    def test_never_runs(self, home): pass

class TestShared:
    @pytest.mark.parametrize("path", ["a/b", "c"])
    def test_fails(self, shared, path): assert path == "c"

class TestNone:
    def test_fails(self): assert False
"""


def _kubectl(folder: Path) -> list[str]:
    """A stand-in that answers as kubectl does for a namespace with one pod that was restarted."""
    event = {
        "type": "Warning",
        "reason": "BackOff",
        "message": "back-off restarting",
        "involvedObject": {"kind": "Pod", "name": "web-0"},
        # However slow the machine: not before the test.
        "metadata": {"creationTimestamp": (datetime.now(UTC) + timedelta(hours=1)).isoformat()},
    }
    lines = ["started", '{"level": "info", "message": "no error"}', "ERROR: cannot reach the database"]
    answers = {
        "get events --output": json.dumps({"items": [event, event]}),
        "get events --sort-by": "BackOff\n",
        "get pods --output wide": "NAME READY STATUS\nweb-0 0/1 CrashLoopBackOff 3\n",
        "get pods --output name": "pod/web-0\n",
        "describe all": "d" * (live.FILE_BYTES + 1000),
        "logs pod/web-0": "\n".join(lines * 30),
    }
    program = folder / "kubectl.py"
    program.write_text(
        "import sys\n"
        f"answers = {answers!r}\n"
        "words = ' '.join(sys.argv[3:])\n"
        "assert sys.argv[1] == '--namespace'\n"
        f"assert '--tail={live.LOG_LINES}' in words or not words.startswith('logs'), words\n"
        "print(next(text for start, text in answers.items() if words.startswith(start)))\n"
    )
    return [sys.executable, str(program)]


@pytest.mark.parametrize("options", [(), ("-p", "xdist", "-n", "2")], ids=["serial", "parallel"])
def test_what_a_failed_test_leaves(
    pytester: pytest.Pytester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    """Of the namespaces that the test uses and of no other; when the fixture fails, too; under pytest-xdist as well."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    kept = tmp_path / "kept"
    pytester.makeconftest(CONFTEST.format(folder=str(kept), kubectl=_kubectl(tmp_path)))
    pytester.makepyfile(f"import pytest\n{TESTS}")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", *options)
    result.assert_outcomes(passed=2, failed=3, errors=1)

    folders = sorted(str(path.parent.relative_to(kept)) for path in kept.rglob("pods.txt"))
    module = "test_what_a_failed_test_leaves.py"
    assert folders == [
        f"{module}-TestCall-test_fails/of-testcall",
        f"{module}-TestSetup-test_never_runs/of-testsetup",
        f"{module}-TestShared-test_fails-a-b-/shared",
    ]
    for folder in folders:
        sizes = {path.name: path.stat().st_size for path in (kept / folder).iterdir()}
        assert sizes.keys() == {"describe.txt", "events.txt", "pods.txt", "web-0.log", "web-0.previous.log"}
        assert max(sizes.values()) <= live.FILE_BYTES

    printed = result.stdout.str()
    assert printed.count("- Namespace ") == 3
    section = printed.partition("- Namespace of-testsetup")[2].partition("\n_")[0]
    assert section.count("Pod/web-0: BackOff: back-off restarting") == 1
    assert section.count("web-0 0/1 CrashLoopBackOff 3") == 1
    assert section.count("ERROR: cannot reach the database") == 10, "five of the log, five of the one before"
    assert "no error" not in section


def test_few_lines_are_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "TELLING_LINES", 4)
    namespace = live.Namespace(_kubectl(tmp_path), "any")
    assert len(namespace.collect(tmp_path / "kept", since_seconds=60)) == 4
