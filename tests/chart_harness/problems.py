"""What is wrong with an object: where, what, and the template line that made it."""

from __future__ import annotations

from dataclasses import dataclass, field

from chart_harness.objects import Manifest
from chart_harness.origins import Location


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with an object.

    Attributes:
        path: where, as dotted keys with list positions or names; empty for the object itself.
        message: what.
        manifest: the object, where it is known; it tells the template line.
    """

    path: str
    message: str
    manifest: Manifest | None = field(default=None, repr=False, compare=False)

    @property
    def location(self) -> Location | None:
        """The template line, for an object that a `Renderer` made."""
        return self.manifest.locate(self.path) if self.manifest is not None else None

    def __str__(self) -> str:
        text = f"{self.path}: {self.message}" if self.path else self.message
        location = self.location
        return f"{text} ({location})" if location else text
