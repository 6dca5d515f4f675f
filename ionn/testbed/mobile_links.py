"""Synthetic bandwidths of mobile networks while their users walk or drive.

The quality of the reception is a Markov chain of a few states: in every second the state stays, or changes to the next
better or next worse one. The bandwidth is drawn each second, lognormally around the median of the state. The medians
are round numbers of the order that is reported for 4G networks; they are not fitted to measurements.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from ionn.errors import InputError
from ionn.testbed.bandwidth import MBPS_MIN, SECONDS_MAX, Bandwidth


@dataclass(frozen=True)
class Mobility:
    """A kind of mobility: for each state, the best first, the median bandwidth in Mbps (0 for an outage), the mean
    duration in seconds, and the standard deviation of the bandwidth's logarithm."""

    median_mbps: tuple[float, ...]
    mean_s: tuple[float, ...]
    spread: float


MOBILITIES = {
    "walking": Mobility(median_mbps=(60.0, 25.0, 6.0), mean_s=(20.0, 15.0, 8.0), spread=0.2),
    "driving": Mobility(median_mbps=(50.0, 20.0, 4.0, 0.0), mean_s=(8.0, 6.0, 4.0, 2.0), spread=0.4),
}


def mobile_bandwidth(mobility: str, seconds: int, seed: int) -> Bandwidth:
    """Generate a bandwidth of so many seconds, which begins in the best state, and then stays at its mean rate. The
    same arguments give the same bandwidth.

    Raises InputError for an unknown mobility, and for a time out of range.
    """
    if mobility not in MOBILITIES:
        raise InputError(f"mobility {mobility!r}: there are {', '.join(map(repr, MOBILITIES))}")
    if not 1 <= seconds <= SECONDS_MAX:
        raise InputError(f"{seconds} seconds: give a number from 1 to {SECONDS_MAX:g}")
    chain = MOBILITIES[mobility]
    draw = random.Random(f"{mobility}/{seed}")
    state, rates = 0, []
    for _ in range(seconds):
        mbps = chain.median_mbps[state] * draw.lognormvariate(0.0, chain.spread)
        rates.append(max(round(mbps, 2), MBPS_MIN) if mbps else 0.0)
        if draw.random() < 1 / chain.mean_s[state]:
            neighbours = [other for other in (state - 1, state + 1) if 0 <= other < len(chain.mean_s)]
            state = draw.choice(neighbours)
    mean_mbps = round(sum(rates) / seconds, 2)
    return Bandwidth(tuple(float(second) for second in range(seconds + 1)), (*rates, mean_mbps))
