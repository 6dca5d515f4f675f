"""The grid of times: in an execution graph, all are multiples of 2^-24 ms (0.06 ns).

Sums of such numbers are exact in float64 up to six days. So paths that are equally fast have equal latencies, in
whatever order their times are summed.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

_PER_MS = 2.0**24


@np.errstate(over="ignore")  # numbers that are not finite raise InputError later
def on_grid(ms: ArrayLike) -> NDArray[np.float64]:
    """Round times to the grid."""
    return np.rint(np.asarray(ms, dtype=np.float64) * _PER_MS) / _PER_MS


def time_on_grid(ms: float) -> float:
    """Do as `on_grid` for a single time, which is ten times as fast."""
    count = ms * _PER_MS
    return round(count) / _PER_MS if math.isfinite(count) else count
