"""Which models are used most: kept beside the models on the disk, so that a new replica loads these before it is asked.

A use counts half as much as one a day later. Each replica of a pod writes a file of its own, and reads those of all.
"""

from __future__ import annotations

import heapq
import logging
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from uuid import uuid4

import orjson

FOLDER = "most-used"
"""Name of the folder below that of the models; no series identifier has a `-`."""

HALF_LIFE_SECONDS = 86_400.0
_KEPT_SECONDS = 7 * 86_400.0  # what a replica that is no more has written, is worth less than a hundredth by then

logger = logging.getLogger(__name__)


class Usage:
    """The uses of models by all replicas that shared a disk; all methods block, none fails.

    Args:
        directory: of the models on the disk.
        replica: the name of this replica.
        limit: how many series to keep.
    """

    def __init__(self, directory: Path, replica: str, limit: int) -> None:
        self._folder = directory / FOLDER
        self._replica = replica
        self._limit = limit

    def write(self, uses: Iterable[tuple[float, str]]) -> None:
        """Keep uses, weighted as of now, and series of the models that this replica has."""
        most = heapq.nlargest(self._limit, uses)
        temporary = self._folder / f"{uuid4()}.new"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary.write_bytes(orjson.dumps({"at": time.time(), "uses": {name: count for count, name in most}}))
            temporary.replace(self._folder / f"{self._replica}.json")
            for path in self._folder.iterdir():
                if path.stat().st_mtime < time.time() - _KEPT_SECONDS:
                    path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("the uses of models are not kept", extra={"reason": repr(error)})

    def most(self) -> list[str]:
        """The series whose models were used most, those first."""
        total: Counter[str] = Counter()
        for path in self._folder.glob("*.json"):
            try:
                kept = orjson.loads(path.read_bytes())
                weight = 0.5 ** (max(time.time() - kept["at"], 0.0) / HALF_LIFE_SECONDS)
                total.update({str(name): weight * count for name, count in kept["uses"].items()})
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                logger.warning("what was used most is not known", extra={"path": path.name, "reason": repr(error)})
        return [name for name, _ in total.most_common(self._limit)]
