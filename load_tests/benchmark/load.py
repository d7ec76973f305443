"""Load: closed loop by wrk, open loop by vegeta."""

from __future__ import annotations

import base64
import json
import os
import random
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ci.console import Failure

SCRIPT = Path(__file__).with_name("requests.lua")


@dataclass(frozen=True)
class Load:
    """What came of some seconds of load: requests answered a second, latencies in milliseconds, failed requests."""

    rate: float
    p50: float
    p95: float
    p99: float
    errors: int


def _closed(url: str, seconds: int, connections: int, environment: dict[str, str]) -> Load:
    done = subprocess.run(
        [
            *("wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{seconds}s"),
            *("--timeout", "30s", "--script", str(SCRIPT), url),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    try:
        found = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError) as error:
        raise Failure(f"wrk failed: {(done.stderr or done.stdout)[-500:]}", "see the message") from error
    return Load(found["requests"] / found["seconds"], found["p50"], found["p95"], found["p99"], found["errors"])


def closed_singles(url: str, prefix: str, series: int, seconds: int, connections: int = 32) -> Load:
    """Single predictions of random series, each connection sending the next when it has the answer to the last."""
    return _closed(url, seconds, connections, {"BENCH_PREFIX": prefix, "BENCH_SERIES": str(series)})


def closed_body(url: str, path: str, body: Path, seconds: int, connections: int = 4) -> Load:
    """The same request again and again."""
    return _closed(url, seconds, connections, {"BENCH_PATH": path, "BENCH_BODY": str(body)})


def open_singles(vegeta: Path, url: str, prefix: str, series: int, rate: int, seconds: int) -> Load:
    """Single predictions at a fixed rate, whether or not the ones before are answered; a late answer counts as late."""
    generator = random.Random(1)
    targets = []
    for number in range(1000):
        body = json.dumps({"timestamp": 1700000000 + number, "value": round(generator.uniform(-1, 1), 4)})
        target = {
            "method": "POST",
            "url": f"{url}/predict/{prefix}{generator.randrange(series)}",
            "header": {"Content-Type": ["application/json"]},
            "body": base64.b64encode(body.encode()).decode(),
        }
        targets.append(json.dumps(target))
    attack = subprocess.run(
        [vegeta, "attack", "-format=json", f"-rate={rate}", f"-duration={seconds}s", "-connections=64"],
        input="\n".join(targets).encode(),
        capture_output=True,
        check=True,
    )
    report = subprocess.run([vegeta, "report", "-type=json"], input=attack.stdout, capture_output=True, check=True)
    found = json.loads(report.stdout)
    times = found["latencies"]
    failed = found["requests"] - round(found["success"] * found["requests"])
    p50, p95, p99 = (times[name] / 1e6 for name in ("50th", "95th", "99th"))
    return Load(found["throughput"], p50, p95, p99, failed)
