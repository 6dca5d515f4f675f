"""The bandwidth of a link over time.

It is constant for a while, then another, and so on: after its last step for ever, or all of it again and again.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

from ionn.errors import InputError

MBPS_MAX = 1e6
"""More than any link has."""

SECONDS_MAX = 86_400.0
"""A day: nobody runs an experiment for longer."""


class Steps:
    """A rate that changes in steps: `rates[i]` from `begins[i]`, the first of which is 0, until the next one. It begins
    anew after each `period`, or keeps its last value.

    Times are in any unit, amounts in any other, and rates are amounts per time. Some rate is above 0, and so is the
    last one if there is no period.
    """

    def __init__(self, begins: Sequence[float], rates: Sequence[float], period: float = math.inf) -> None:
        self._begins, self._rates, self._period = list(begins), list(rates), period
        spans = (end - begin for begin, end in pairwise([*begins, period]))
        pieces = (rate * span if rate else 0.0 for rate, span in zip(rates, spans, strict=True))
        self._amounts = list(accumulate(pieces, initial=0.0))  # until each begin, and in a whole period

    def rate(self, at: float) -> float:
        return self._rates[self._step(at)[1]]

    def amount(self, begin: float, end: float) -> float:
        """What passes between two times."""
        first, last = self._step(begin), self._step(end)
        if first == last:
            return (end - begin) * self._rates[first[1]]
        return self._until(end) - self._until(begin)

    def end(self, begin: float, amount: float) -> float:
        """The first time by which `amount` has passed since `begin`."""
        if amount == 0:
            return begin
        lap, step = self._step(begin)
        rate, next_begin = self._rates[step], self._start(lap, step + 1)
        if rate and (end := begin + amount / rate) <= next_begin:
            return end
        left = self._amounts[step + 1] + amount - rate * (next_begin - begin)
        if left > self._amounts[-1]:
            laps = math.ceil(left / self._amounts[-1]) - 1
            lap, left = lap + laps, left - laps * self._amounts[-1]
        step = max(bisect_left(self._amounts, left) - 1, 0)
        return self._start(lap, step) + (left - self._amounts[step]) / self._rates[step]

    def _step(self, at: float) -> tuple[int, int]:
        """Which repetition a time is in, and which step of it."""
        lap = 0 if self._period == math.inf else int(at // self._period)
        return lap, max(bisect_right(self._begins, at - self._start(lap, 0)) - 1, 0)

    def _start(self, lap: int, step: int) -> float:
        offset = self._begins[step] if step < len(self._begins) else self._period
        return lap * self._period + offset if lap else offset

    def _until(self, at: float) -> float:
        lap, step = self._step(at)
        whole = lap * self._amounts[-1] if lap else 0.0
        return whole + self._amounts[step] + (at - self._start(lap, step)) * self._rates[step]


@dataclass(frozen=True)
class Bandwidth:
    """`mbps[i]` from the second `begins_s[i]` until the next one; after the last one for ever, or, with a `period_s`,
    all of it again and again. 0 Mbps is an outage.

    Times are seconds since it began. Raises InputError for what is no bandwidth, and for one that no byte would ever
    cross.
    """

    begins_s: tuple[float, ...]
    mbps: tuple[float, ...]
    period_s: float | None = None

    def __post_init__(self) -> None:
        if not self.begins_s or len(self.begins_s) != len(self.mbps) or self.begins_s[0] != 0:
            raise InputError("bandwidth: needs rates, and as many times, the first of them 0 s")
        times_s = [*self.begins_s, SECONDS_MAX * 1000 if self.period_s is None else self.period_s]
        if not all(earlier < later for earlier, later in pairwise(times_s)):
            raise InputError("bandwidth: its times do not ascend")
        if not all(0 <= mbps <= MBPS_MAX for mbps in self.mbps):
            raise InputError(f"bandwidth: give rates from 0 to {MBPS_MAX:g} Mbps")
        if (self.mbps[-1] if self.period_s is None else max(self.mbps)) == 0:
            raise InputError("bandwidth: after its last outage no byte would ever cross")

    @classmethod
    def constant(cls, mbps: float) -> Bandwidth:
        return cls((0.0,), (mbps,))

    @cached_property
    def _bytes(self) -> Steps:
        """In seconds and bytes."""
        return Steps(self.begins_s, [mbps * 1e6 / 8 for mbps in self.mbps], self.period_s or math.inf)

    def arrival_s(self, start_s: float, size_bytes: float) -> float:
        """When so many bytes have crossed that are sent from `start_s` on."""
        return self._bytes.end(start_s, size_bytes)

    def bytes_between(self, start_s: float, end_s: float) -> float:
        """How many bytes can cross between two times."""
        return self._bytes.amount(start_s, end_s)

    def mbps_at(self, time_s: float) -> float:
        return self.mbps[0] if len(self.mbps) == 1 else self._bytes.rate(time_s) * 8 / 1e6

    def work_ms(self, mbps: float) -> Steps:
        """The same in ms, for amounts that are the ms which they would take at `mbps`."""
        begins_ms = [begin_s * 1e3 for begin_s in self.begins_s]
        return Steps(begins_ms, [each / mbps for each in self.mbps], (self.period_s or math.inf) * 1e3)
