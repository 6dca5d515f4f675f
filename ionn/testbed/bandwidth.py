"""The bandwidth of a link over time.

It changes in steps. After the last step it stays constant, or all steps are repeated with a period.
"""

from __future__ import annotations

import hashlib
import math
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path

from ionn.arguments import decimal_of
from ionn.errors import InputError
from ionn.files import read_text

# The range of rates in a file: from less than any client waits for to more than any link has.
MBPS_MIN, MBPS_MAX = 0.001, 1e6
# The latest time in a file, a day: nobody runs an experiment for longer.
SECONDS_MAX = 86_400.0
# The shortest period: Mahimahi's timestamps are in ms.
PERIOD_MIN_S = 0.001
LINES_MAX = 1_000_000
CSV_HEADER = "seconds,mbps"
# A timestamp in a Mahimahi trace stands for a full Ethernet packet.
MAHIMAHI_BYTES = 1500


class Steps:
    """A rate that changes in steps: `rates[i]` from the time `begins[i]` until `begins[i + 1]`, with `begins[0]` = 0.
    After each `period` the steps repeat; with an infinite period, the last rate stays.

    Times are in any unit, amounts in any other, and rates are amounts per time. At least one rate is above 0; with an
    infinite period, the last one is.
    """

    def __init__(self, begins: Sequence[float], rates: Sequence[float], period: float = math.inf) -> None:
        self._begins, self._rates, self._period = list(begins), list(rates), period
        self._is_constant = len(begins) == 1 and period == math.inf  # the usual case, which is kept fast
        spans = (end - begin for begin, end in pairwise([*begins, period]))
        pieces = (rate * span if rate else 0.0 for rate, span in zip(rates, spans, strict=True))
        self._amounts = list(accumulate(pieces, initial=0.0))  # the amounts before each step, and of a whole period

    def amount(self, begin: float, end: float) -> float:
        """The amount that passes between two times."""
        if self._is_constant:
            return (end - begin) * self._rates[0]
        first, last = self._step(begin), self._step(end)
        if first == last:
            return (end - begin) * self._rates[first[1]]
        return self._until(end) - self._until(begin)

    def end(self, begin: float, amount: float) -> float:
        """The first time by which `amount` has passed since `begin`."""
        if amount == 0:
            return begin
        if self._is_constant:
            return begin + amount / self._rates[0]
        lap, step = self._step(begin)
        rate, next_begin = self._rates[step], self._start(lap, step + 1)
        # Sums are not exact: an amount of which less than a billionth is left at the end of a step counts as passed.
        # Otherwise it would pass only after an outage that follows.
        spare = 1e-9 * amount
        if rate and begin + (amount - spare) / rate <= next_begin:
            return min(begin + amount / rate, next_begin)
        left = self._amounts[step + 1] + amount - rate * (next_begin - begin)
        nearly = max(left - max(spare, 4 * math.ulp(left)), math.nextafter(self._amounts[step + 1], math.inf))
        if nearly > self._amounts[-1]:
            laps = math.ceil(nearly / self._amounts[-1]) - 1
            lap, left, nearly = (lap + laps, *(each - laps * self._amounts[-1] for each in (left, nearly)))
        # Quotients are not exact either, so the result is kept within this period.
        step = bisect_left(self._amounts, min(max(nearly, math.ulp(0.0)), self._amounts[-1])) - 1
        return self._start(lap, step) + (left - self._amounts[step]) / self._rates[step]

    def _step(self, at: float) -> tuple[int, int]:
        """The number of the repetition that a time is in, and the number of the step within it."""
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
    """A bandwidth over time: `mbps[i]` from the second `begins_s[i]` until `begins_s[i + 1]`; 0 Mbps is an outage. The
    last value stays, or, with a `period_s`, everything repeats after so many seconds.

    Raises InputError for times that do not ascend from 0, for a period below PERIOD_MIN_S, for rates that are negative
    or not finite, and for a bandwidth that ends in an outage.
    """

    begins_s: tuple[float, ...]
    mbps: tuple[float, ...]
    period_s: float | None = None

    def __post_init__(self) -> None:
        if not self.begins_s or len(self.begins_s) != len(self.mbps) or self.begins_s[0] != 0:
            raise InputError("bandwidth: needs rates, and as many times, the first of them 0 s")
        ends_s = self.begins_s[1:] if self.period_s is None else (*self.begins_s[1:], self.period_s)
        if not all(begin_s < end_s < math.inf for begin_s, end_s in zip(self.begins_s, ends_s, strict=False)):
            raise InputError("bandwidth: its times do not ascend")
        if self.period_s is not None and self.period_s < PERIOD_MIN_S:
            raise InputError(f"bandwidth: a period of {self.period_s:g} s is below {PERIOD_MIN_S:g} s")
        if not all(0 <= mbps < math.inf for mbps in self.mbps):
            raise InputError("bandwidth: give rates that are not negative, and finite")
        if (self.mbps[-1] if self.period_s is None else max(self.mbps)) == 0:
            raise InputError("bandwidth: ends in an outage for ever")

    @classmethod
    def constant(cls, mbps: float) -> Bandwidth:
        """A constant bandwidth. Raises InputError unless the rate is finite and above 0."""
        if not 0 < mbps < math.inf:
            raise InputError(f"{mbps} Mbps: a link needs a finite rate above 0")
        return cls((0.0,), (mbps,))

    @classmethod
    def load(cls, path: Path) -> Bandwidth:
        """Read a file of `seconds,mbps` lines, or a trace in Mahimahi's format. Raises InputError, which names the
        line, for any other file."""
        lines = read_text(path, "the bandwidth").split("\n")
        if len(lines) > LINES_MAX:
            raise InputError(f"{path}: has more than {LINES_MAX} lines; give a shorter part of it")
        numbered = [(f"{path}:{number}", line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
        if numbered and numbered[0][1].replace(" ", "").lower() == CSV_HEADER:
            is_csv = True
            del numbered[0]
        else:
            is_csv = bool(numbered) and "," in numbered[0][1]
        if not numbered:
            raise InputError(f"{path}: has no line with a rate; write 'seconds,mbps' lines, or use a Mahimahi trace")
        return cls._from_csv(numbered) if is_csv else cls._from_mahimahi(numbered)

    @classmethod
    def _from_csv(cls, lines: Sequence[tuple[str, str]]) -> Bandwidth:
        begins_s: list[float] = []
        rates: list[float] = []
        for place, line in lines:
            numbers = [decimal_of(each) for each in line.split(",")]
            if len(numbers) != 2 or any(map(math.isnan, numbers)):
                raise InputError(f"{place}: {line[:40]!r} is not two numbers, seconds and Mbps, such as '12.5,40'")
            begin_s, mbps = numbers
            if not begins_s and begin_s != 0:
                raise InputError(f"{place}: the first rate is from {begin_s:g} s on; let it be 0")
            if begins_s and not begin_s > begins_s[-1]:
                raise InputError(f"{place}: {begin_s:g} s is not after {begins_s[-1]:g} s; times must ascend")
            if begin_s > SECONDS_MAX:
                raise InputError(f"{place}: {begin_s:g} s is above {SECONDS_MAX:g}; give a shorter part of it")
            if not (mbps == 0 or MBPS_MIN <= mbps <= MBPS_MAX):
                raise InputError(f"{place}: {mbps:g} Mbps; give 0, or a rate from {MBPS_MIN:g} to {MBPS_MAX:g}")
            begins_s.append(begin_s)
            rates.append(mbps)
        if rates[-1] == 0:
            raise InputError(f"{lines[-1][0]}: ends in an outage for ever; add a line with the rate that follows it")
        return cls(tuple(begins_s), tuple(rates))

    @classmethod
    def _from_mahimahi(cls, lines: Sequence[tuple[str, str]]) -> Bandwidth:
        """The bandwidth of a Mahimahi trace: one packet may cross the link at each timestamp, in ms, and the last
        timestamp is the period. Here, a packet's bytes cross evenly within the ms that ends at its timestamp."""
        packets: dict[int, int] = {}
        last_ms = 0
        for place, line in lines:
            if not (line.isascii() and line.isdigit() and len(line) < 20):
                raise InputError(f"{place}: {line[:40]!r} is neither a Mahimahi timestamp, in ms, nor 'seconds,mbps'")
            if (time_ms := int(line)) < last_ms:
                raise InputError(f"{place}: {time_ms} ms is before {last_ms} ms; a Mahimahi trace ascends")
            last_ms = time_ms
            end_ms = max(time_ms, 1)
            packets[end_ms] = packets.get(end_ms, 0) + 1
        if not 0 < last_ms <= SECONDS_MAX * 1e3:
            raise InputError(f"{lines[-1][0]}: the last timestamp is {last_ms} ms; give one above 0, and within a day")
        begins_ms, rates, free_ms = [], [], 0
        for end_ms, count in packets.items():
            if end_ms - 1 > free_ms:
                begins_ms.append(free_ms)
                rates.append(0.0)
            begins_ms.append(end_ms - 1)
            rates.append(count * MAHIMAHI_BYTES * 8 / 1e3)
            free_ms = end_ms
        return cls(tuple(begin_ms / 1e3 for begin_ms in begins_ms), tuple(rates), last_ms / 1e3)

    def csv(self) -> str:
        """The text of a file that `load` reads, for a bandwidth without a period."""
        rows = zip(self.begins_s, self.mbps, strict=True)
        return "".join([f"{CSV_HEADER}\n", *(f"{begin_s!r},{mbps!r}\n" for begin_s, mbps in rows)])

    @cached_property
    def digest(self) -> str:
        """A hexadecimal digest of the times and rates."""
        values = [*self.begins_s, *self.mbps, self.period_s or 0.0]
        return hashlib.sha256(struct.pack(f"<{len(values)}d", *values)).hexdigest()[:12]

    def scaled(self, dilation: float) -> Bandwidth:
        """The same bandwidth slowed down: times are multiplied by `dilation`, and rates divided."""
        period_s = None if self.period_s is None else self.period_s * dilation
        begins_s = tuple(begin_s * dilation for begin_s in self.begins_s)
        return Bandwidth(begins_s, tuple(mbps / dilation for mbps in self.mbps), period_s)

    @cached_property
    def _bytes(self) -> Steps:
        """The steps in seconds and bytes."""
        return Steps(self.begins_s, [mbps * 1e6 / 8 for mbps in self.mbps], self.period_s or math.inf)

    def arrival_s(self, start_s: float, size_bytes: float) -> float:
        """The time in seconds at which `size_bytes` bytes have crossed the link, if they are sent from `start_s` on."""
        return self._bytes.end(start_s, size_bytes)

    def bytes_between(self, start_s: float, end_s: float) -> float:
        """How many bytes can cross the link between two times in seconds."""
        return self._bytes.amount(start_s, end_s)

    def work_ms(self, mbps: float) -> Steps:
        """The steps in ms, for amounts that are given by the ms that they take at a constant `mbps`."""
        begins_ms = [begin_s * 1e3 for begin_s in self.begins_s]
        return Steps(begins_ms, [each / mbps for each in self.mbps], (self.period_s or math.inf) * 1e3)
