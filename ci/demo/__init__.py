"""The main job: fit a real series, follow its training job, predict the rest and say what was found.

`python -m ci.demo --training-api URL --inference URL` runs it; `run()` is the same thing for tests. Unlike the rest of
`ci`, which uses the standard library only, this package needs httpx, numpy and matplotlib and so runs inside the
project's virtual environment.
"""

from ci.demo.client import Client, LatencySummary
from ci.demo.job import DEFAULT_CONTAMINATION, DemoResult, Detection, Training, run
from ci.demo.series import BUILT_IN, Series, built_in, read_csv

__all__ = [
    "BUILT_IN",
    "DEFAULT_CONTAMINATION",
    "Client",
    "DemoResult",
    "Detection",
    "LatencySummary",
    "Series",
    "Training",
    "built_in",
    "read_csv",
    "run",
]
