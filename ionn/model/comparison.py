"""How far two results of the same computation are apart."""

from __future__ import annotations

import math

import numpy as np

from ionn.model.caffemodel import Floats


def bit_equal(got: Floats, wanted: Floats) -> bool:
    """Tell whether all bits are the same: the signs of zeros and the payloads of NaNs too."""
    return np.array_equal(got.view(np.uint32), wanted.view(np.uint32))


@np.errstate(all="ignore")  # a server may give anything for numbers
def difference(got: Floats, wanted: Floats) -> float:
    """The largest difference of a value, relative to the largest finite value that is wanted.

    Infinities and NaNs differ by nothing from their like and by infinity from all else, and so does everything from
    zeros where nothing but zeros is wanted.
    """
    values, wanted_values = got.astype(np.float64), wanted.astype(np.float64)
    other = ~((values == wanted_values) | (np.isnan(values) & np.isnan(wanted_values)))
    if not other.any():
        return 0.0
    largest = float(abs(wanted_values[np.isfinite(wanted_values)]).max(initial=0.0))
    worst = float(abs(values - wanted_values)[other].max())
    return worst / largest if largest and math.isfinite(worst) else math.inf
