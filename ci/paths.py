"""Where things live: the repository, what it builds, and the user's cache."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
"""The checkout."""

BUILD = REPOSITORY / "build"
"""Reports, logs and pictures of the last run; ignored by git, safe to delete."""

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anomaly-detection-system"
"""Programs, virtual environments and images, each named by a hash of what it was made from; safe to delete."""

BIN = CACHE / "bin"
"""Links to the programs of the versions pinned by this checkout."""
