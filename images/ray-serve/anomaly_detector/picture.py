"""From SVG to PNG, in a process of its own.

The renderer holds the interpreter's lock for the 40 ms that it takes, in which a replica would answer nobody. As a
program this file reads SVG and writes PNG.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

SCALE = 2
"""Pixels of the picture for each of the SVG, for screens that have as many."""

_AT_ONCE = asyncio.Semaphore(1)  # plots are for people; predictions need the processors
_SECONDS = 30.0


async def png(svg: str) -> bytes:
    """The picture of an SVG, other requests being answered meanwhile.

    Raises:
        RuntimeError: it cannot be rendered, or not within 30 s.
    """
    command = [sys.executable, "-P", __file__]
    async with _AT_ONCE:
        try:
            done = await asyncio.to_thread(
                subprocess.run, command, input=svg.encode(), capture_output=True, timeout=_SECONDS, check=True
            )
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"the picture cannot be rendered: {error.stderr.decode(errors='replace')}") from error
        except subprocess.TimeoutExpired as error:
            raise RuntimeError("the picture cannot be rendered in time") from error
    return done.stdout


def main() -> None:
    """Render standard input to standard output."""
    import font_lato
    import resvg_py

    fonts = Path(font_lato.__file__).with_name("files")
    picture = resvg_py.svg_to_bytes(
        svg_string=sys.stdin.buffer.read().decode(),
        zoom=SCALE,
        skip_system_fonts=True,
        font_dirs=[str(fonts)],
        font_family="Lato",
        sans_serif_family="Lato",
    )
    sys.stdout.buffer.write(picture)


if __name__ == "__main__":
    main()
