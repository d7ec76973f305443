"""How far two distributions over the same bins are apart."""

from __future__ import annotations

import math
from collections.abc import Sequence

MODERATE, MAJOR = 0.1, 0.25
"""Values of the population stability index from which a shift is called moderate and major."""


def population_stability_index(expected: Sequence[float], actual: Sequence[float]) -> float:
    """Sum over the bins of (q - p) ln(q / p), with p and q the shares of a bin; 0 for equal shares.

    Half a point is added to every bin, so that a bin that only one of the two uses counts without being infinite.

    Args:
        expected: points in each bin, weighted or not.
        actual: likewise, of the same bins; what is exchanged for the other gives the same index.
    """
    total_expected = sum(expected) + len(expected) / 2
    total_actual = sum(actual) + len(actual) / 2
    index = 0.0
    for of_expected, of_actual in zip(expected, actual, strict=True):
        p, q = (of_expected + 0.5) / total_expected, (of_actual + 0.5) / total_actual
        index += (q - p) * math.log(q / p)
    return index
