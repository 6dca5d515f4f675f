"""Times lie on a grid: all are multiples of 2^-24 ms (0.06 ns).

Sums of such numbers are exact in float64 up to six days, so what gains nothing is a tie in whatever order it is summed.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

_PER_MS = 2.0**24


@np.errstate(over="ignore")  # what is not finite is an InputError, not a warning
def on_grid(ms: ArrayLike) -> NDArray[np.float64]:
    return np.rint(np.asarray(ms, dtype=np.float64) * _PER_MS) / _PER_MS


def time_on_grid(ms: float) -> float:
    """As `on_grid`, and ten times as fast for a single one."""
    count = ms * _PER_MS
    return round(count) / _PER_MS if math.isfinite(count) else count
