"""Model blobs on the local disk: what is served when memory has no room and nobody else answers.

The replicas of a pod share the directory. Files appear and change by renaming alone, so a reader sees all of a blob or
none of it; whoever reads one verifies it. A symbolic link per series says which version was in production.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from anomaly_detector.usage import FOLDER

_SUFFIX = ".ads"
_LINK_SUFFIX = ".production"
_TEMPORARY = "."  # no series identifier begins with it
_TEMPORARY_SECONDS = 60.0  # an older temporary file is what a process left behind that ended while writing
_UNSEEN_SHARE = 0.05  # of the limit: written by this process until it looks what the others have written
_KEPT_SHARE = 0.9  # of the limit: what is left after removing, so that not every write removes something

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class DiskStatistics:
    """What happened since the start."""

    hits: int = 0
    misses: int = 0
    writes: int = 0
    evictions: int = 0
    failures: int = 0


@dataclass(slots=True)
class ModelDisk:
    """A directory of model blobs, bounded by bytes; those not read or written for longest go first.

    All methods block, and may be called from any thread. None of them fails: without a disk that works there are no
    models on it.

    Attributes:
        directory: where the files are; made if it is not there.
        max_bytes: what the files may take on the disk. Replicas that share the directory count together, each of them
            exact to 5 % of it.
        nbytes: what they take, as far as this process knows.
        models: how many blobs there are, as far as it knows.
    """

    directory: Path
    max_bytes: int
    statistics: DiskStatistics = field(default_factory=DiskStatistics)
    nbytes: int = 0
    models: int = 0
    _unseen: int = 0
    _failing: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._trim()
        except OSError as error:
            self._failed(error)

    def read(self, series_id: str, version: int) -> bytes | None:
        """The blob of a version, None if there is none; it is not verified."""
        path = self._path(series_id, version)
        try:
            blob = path.read_bytes()
            os.utime(path)
        except FileNotFoundError:
            self.statistics.misses += 1
            return None
        except OSError as error:
            self._failed(error)
            return None
        self.statistics.hits += 1
        return blob

    def write(self, series_id: str, version: int, blob: bytes) -> None:
        """Keep a blob."""
        temporary = self._temporary()
        try:
            temporary.write_bytes(blob)
            size = _size(temporary.stat(follow_symlinks=False))
            temporary.replace(self._path(series_id, version))
            self.statistics.writes += 1
            self._failing = False
            with self._lock:
                self.nbytes += size
                self.models += 1
                self._unseen += size
                if self.nbytes > self.max_bytes or self._unseen > _UNSEEN_SHARE * self.max_bytes:
                    self._trim()
        except OSError as error:
            self._failed(error)
            with suppress(OSError):
                temporary.unlink()

    def touch(self, series_id: str, version: int) -> None:
        """Say that the blob of a version is in use; nothing happens if there is none."""
        try:
            os.utime(self._path(series_id, version))
        except FileNotFoundError:
            return
        except OSError as error:
            self._failed(error)

    def production(self, series_id: str) -> int | None:
        """The version that was in production when the registry was asked last."""
        try:
            return int(self._link(series_id).readlink().name.rsplit(".", 2)[1])
        except FileNotFoundError:
            return None
        except OSError as error:
            self._failed(error)
            return None

    def set_production(self, series_id: str, version: int) -> None:
        """Remember which version is in production."""
        if self.production(series_id) == version:
            return
        temporary = self._temporary()
        try:
            temporary.symlink_to(self._path(series_id, version).name)
            temporary.replace(self._link(series_id))
        except OSError as error:
            self._failed(error)
            with suppress(OSError):
                temporary.unlink()

    def forget(self, series_id: str, version: int | None) -> None:
        """Remove a version; for None the one in production, and that it was."""
        try:
            if version is None:
                version = self.production(series_id)
                self._link(series_id).unlink(missing_ok=True)
            if version is not None:
                self._path(series_id, version).unlink(missing_ok=True)
        except OSError as error:
            self._failed(error)

    def evict(self, series_id: str) -> None:
        """Remove all versions of a series."""
        try:
            for name in os.listdir(self.directory):
                if name.partition(".")[0] == series_id:
                    (self.directory / name).unlink(missing_ok=True)
        except OSError as error:
            self._failed(error)

    def _trim(self) -> None:
        """Look what there is; above the limit remove what was not used for longest."""
        found: list[tuple[float, int, str]] = []
        links: list[str] = []
        total = 0
        with os.scandir(self.directory) as entries:
            for entry in entries:
                if entry.name == FOLDER:
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:  # another replica has removed it
                    continue
                if entry.name.startswith(_TEMPORARY):
                    if status.st_mtime < time.time() - _TEMPORARY_SECONDS:
                        (self.directory / entry.name).unlink(missing_ok=True)
                    continue
                total += _size(status)
                if entry.name.endswith(_SUFFIX):
                    found.append((status.st_mtime, _size(status), entry.name))
                else:
                    links.append(entry.name)
        models = len(found)
        if total > self.max_bytes:
            for _, size, name in sorted(found):
                (self.directory / name).unlink(missing_ok=True)
                self.statistics.evictions += 1
                models -= 1
                total -= size
                if total <= _KEPT_SHARE * self.max_bytes:
                    break
            for name in links:
                if not (self.directory / name).exists():
                    (self.directory / name).unlink(missing_ok=True)
        self.nbytes, self.models, self._unseen = total, models, 0

    def _path(self, series_id: str, version: int) -> Path:
        return self.directory / f"{series_id}.{version}{_SUFFIX}"

    def _link(self, series_id: str) -> Path:
        return self.directory / f"{series_id}{_LINK_SUFFIX}"

    def _temporary(self) -> Path:
        return self.directory / f"{_TEMPORARY}{uuid4()}"

    def _failed(self, error: OSError) -> None:
        """Count a failure; a row of them is one line in the log."""
        self.statistics.failures += 1
        if not self._failing:
            logger.warning("the local disk does not keep models", extra={"reason": repr(error)})
        self._failing = True


def _size(status: os.stat_result) -> int:
    """What a file takes on the disk; blocks are not always known yet."""
    return max(status.st_size, 512 * status.st_blocks)
