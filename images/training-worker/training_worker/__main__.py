"""`python -m training_worker`: train jobs until SIGTERM; health and metrics on port 8040.

The training process imports this module too, under another name: what only the worker needs is imported inside `main`.
"""

from __future__ import annotations

import asyncio


def main() -> None:
    """Run until SIGTERM."""
    from training_worker.service import serve

    asyncio.run(serve())


if __name__ == "__main__":
    main()
