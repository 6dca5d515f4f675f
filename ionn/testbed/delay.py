"""The delay of a link in one direction: the time of a byte from one end to the other."""

from __future__ import annotations

import random

from ionn.errors import InputError

DELAY_MAX_MS = 500.0
"""More than any network has; a satellite's delay is 300 ms. A client waits five seconds for a server's first answer."""


def check_delay(delay_ms: float, jitter_ms: float) -> None:
    """Raise InputError unless these can be the delay and the jitter of a link."""
    if not 0 <= delay_ms <= DELAY_MAX_MS:
        raise InputError(f"delay {delay_ms:g} ms: give a number from 0 to {DELAY_MAX_MS:g}")
    if not 0 <= jitter_ms <= delay_ms:
        raise InputError(f"jitter {jitter_ms:g} ms: give a number from 0 to the delay, which is {delay_ms:g} ms")


class Delay:
    """A delay that varies within `mean` ± `jitter`, in any unit of time.

    It moves in straight lines between values that are drawn uniformly, one every 2 x `jitter`. So it never falls faster
    than time passes, and no byte overtakes an earlier one. It depends on the time and the `seed` alone.
    """

    def __init__(self, mean: float = 0.0, jitter: float = 0.0, seed: str = "") -> None:
        self._mean, self._jitter, self._seed = mean, jitter, seed
        self._leg = -1, 0.0, 0.0  # the number of the current line, and the values at its ends

    def arrival(self, left: float) -> float:
        """The time at which a byte arrives that left the other end at the time `left`, which is at least 0."""
        if not self._jitter:
            return left + self._mean
        position = min(left / (2 * self._jitter), 1e300)  # finite for any jitter
        if (number := int(position)) != self._leg[0]:
            self._leg = number, self._drawn(number), self._drawn(number + 1)
        _, begin, end = self._leg
        return left + self._mean + begin + (position - number) * (end - begin)

    @classmethod
    def both(cls, mean: float, jitter: float, seed: int) -> tuple[Delay, Delay]:
        """The delays of a link up and down, which vary independently."""
        return cls(mean, jitter, f"{seed}/up"), cls(mean, jitter, f"{seed}/down")

    def _drawn(self, number: int) -> float:
        return random.Random(f"{self._seed}/{number}").uniform(-self._jitter, self._jitter)
