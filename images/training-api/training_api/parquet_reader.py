"""Read a Parquet file from standard input: the program that `training_api.parquet` runs.

    python parquet_reader.py MAX_POINTS

Writes a line of JSON with what it found (`unreadable`; `types` of the columns, those `unusable`, whether there are
`more` rows than wanted, the `nulls` of each column by their first indices) and then, when all is well, the columns
`timestamp` and `value` as float64 in the machine's byte order. It ends with an error when the file makes it use more
memory or processor time than it may.

Standard library and arro3 only: NumPy alone would double its start and its memory.
"""

from __future__ import annotations

import io
import itertools
import json
import resource
import sys
from array import array
from typing import Any

import arro3.core
import arro3.io

_MORE_BYTES = 64 * 1024 * 1024
"""Beyond what the process has after its start: a body of 10 MB and 100,000 points as Python objects take 30 MB."""

_CPU_SECONDS = 10
_ROWS_AT_A_TIME = 16_384
_NAMES = ("timestamp", "value")
_NULLS_SHOWN = 10


def limit() -> None:
    """Let this process use no more than so much memory and processor time from here on."""
    if sys.platform != "linux":
        return  # a developer's machine: images are Linux
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[5])  # data and stack
    most = pages * resource.getpagesize() + _MORE_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def read(body: bytes, max_points: int) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """What the file holds, and its columns when they can be used."""
    reader = arro3.io.read_parquet(io.BytesIO(body), batch_size=_ROWS_AT_A_TIME)
    schema = reader.schema
    # `arro3.core.DataType<Utf8>` is said as `Utf8`.
    types = {name: str(schema.field(name).type).strip().partition("<")[2].removesuffix(">") for name in schema.names}
    found: dict[str, Any] = {"types": types, "more": False}
    if sorted(types) != sorted(_NAMES):
        return found, {}
    is_type = arro3.core.DataType
    kinds = {name: schema.field(name).type for name in _NAMES}
    unusable = {
        name: types[name] for name, kind in kinds.items() if not (is_type.is_integer(kind) or is_type.is_floating(kind))
    }
    if unusable:
        return found | {"unusable": unusable}, {}
    columns: dict[str, list[Any]] = {name: [] for name in _NAMES}
    for batch in reader:
        for name in _NAMES:
            columns[name] += batch.column(name).to_pylist()
        if len(columns["value"]) > max_points:
            return found | {"more": True}, {}
    found["nulls"] = {
        name: list(itertools.islice((i for i, item in enumerate(column) if item is None), _NULLS_SHOWN))
        for name, column in columns.items()
    }
    return found, {} if any(found["nulls"].values()) else columns


def main() -> None:
    """Do what the module's text says."""
    body = sys.stdin.buffer.read()
    limit()
    columns: dict[str, list[float]] = {}
    try:
        found, columns = read(body, int(sys.argv[1]))
    except MemoryError:
        raise
    except BaseException as error:  # arro3 panics, past `Exception`, at a file without a proper end
        found = {"unreadable": str(error).splitlines()[0][:200] if str(error) else type(error).__name__}
    output = sys.stdout.buffer
    output.write(json.dumps(found).encode() + b"\n")
    for name in _NAMES:
        output.write(array("d", columns.get(name, ())).tobytes())


if __name__ == "__main__":
    main()
