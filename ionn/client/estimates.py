"""What a client believes of its link, its server and itself, by what it has observed. No sockets and no clock here.

Each belief is the quotient of two sums over what was observed lately, such as bytes and the time that they took. So it
does not matter in which portions something is observed, and long observations count for more than short ones.

What is told of a belief stays until it has moved by more than a few percent: graphs and plans are made from it.
"""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

# How long a client waits for a server's first answers, by which it measures the link.
ANSWER_S = 5.0
# How long an observation counts, the last ones aside.
WINDOW_S = 2.0
# What is observed within so long is one observation: of queries in a row, some thousands in WINDOW_S, each takes no
# longer for that.
_TOGETHER_S = 0.05
# By this factor a belief may move until another one is told.
TOLERANCE = 1.05
# Where a link's rate, or what a time is measured to be a multiple of, cannot be told from nothing or from infinity.
MBPS_MIN, MBPS_MAX = 0.01, 1e5
FACTOR_MIN, FACTOR_MAX = 1e-3, 1e4
# A shorter round trip is none.
RTT_MIN_MS = 0.1
# Of the time that a query's transfers take, so much at least is for their bytes, whatever the round trip is.
_FOR_BYTES = 0.05


class Estimate(NamedTuple):
    """The rate of a link in each direction and its round-trip time; by which factors the server's and the client's
    times are longer than their costs promise."""

    mbps: float
    rtt_ms: float
    server_factor: float = 1.0
    client_factor: float = 1.0


class _Quotient:
    """The sum of the first numbers that were observed lately, divided by that of the second ones; `initial` before."""

    def __init__(self, initial: float) -> None:
        self._initial = initial
        # When each observation began, and the sums of its numbers.
        self._observed: deque[tuple[float, float, float]] = deque()
        self._before = 0.0, 0.0  # the sums over all but the last one

    def observe(self, now_s: float, dividend: float, divisor: float) -> None:
        if divisor <= 0:
            return
        if self._observed and now_s - self._observed[-1][0] < _TOGETHER_S:
            began_s, dividends, divisors = self._observed[-1]
            self._observed[-1] = began_s, dividends + dividend, divisors + divisor
        else:
            self._observed.append((now_s, dividend, divisor))
            self._sum()

    def value(self, now_s: float) -> float:
        if not self._observed:
            return self._initial
        if len(self._observed) > 1 and self._observed[0][0] < now_s - WINDOW_S:
            while len(self._observed) > 1 and self._observed[0][0] < now_s - WINDOW_S:
                self._observed.popleft()
            self._sum()
        (before, before_by), (_, dividend, divisor) = self._before, self._observed[-1]
        return (before + dividend) / (before_by + divisor)

    def _sum(self) -> None:
        """Anew, so that no error of rounding stays."""
        before = list(self._observed)[:-1]
        self._before = math.fsum(each[1] for each in before), math.fsum(each[2] for each in before)


class Estimates:
    """The beliefs of one session; `now_s` is when something was observed, on any clock that does not go back.

    Before anything is observed, the link carries `mbps` without delay, and both sides are as their costs promise.
    """

    def __init__(self, mbps: float) -> None:
        self._mbps = _Quotient(mbps)
        self._rtt_ms = _Quotient(0.0)
        self._server = _Quotient(1.0)
        self._client = _Quotient(1.0)
        self._told = Estimate(mbps, 0.0)

    def observe_bytes(self, now_s: float, size_bytes: float, seconds: float) -> None:
        """So many bytes crossed one way, which took all of the link for so long."""
        self._mbps.observe(now_s, size_bytes * 8 / 1e6, seconds)

    def observe_transfers(self, now_s: float, size_bytes: float, seconds: float) -> None:
        """So many bytes went up and came down, one after the other and alone, and were there after so long.

        The mean round trip is taken off: the least of several would not be misled by one that was measured late, but on
        a link whose delay wanders it would make the rate look lower than it is.
        """
        rtt_s = self._rtt_ms.value(now_s) / 1e3
        self.observe_bytes(now_s, size_bytes, max(seconds - rtt_s, _FOR_BYTES * seconds))

    def observe_round_trip(self, now_s: float, ms: float) -> None:
        """A message without payload was answered at once."""
        self._rtt_ms.observe(now_s, ms, 1.0)

    def observe_server(self, now_s: float, measured_ms: float, promised_ms: float) -> None:
        """The server took so long for what its costs promise to take so long."""
        self._server.observe(now_s, measured_ms, promised_ms)

    def observe_client(self, now_s: float, measured_ms: float, promised_ms: float) -> None:
        """As `observe_server`, of the client."""
        self._client.observe(now_s, measured_ms, promised_ms)

    def current(self, now_s: float) -> Estimate:
        """What is believed now, within TOLERANCE."""
        told, rtt_ms = self._told, self._rtt_ms.value(now_s)
        self._told = Estimate(
            _told(self._mbps.value(now_s), told.mbps, MBPS_MIN, MBPS_MAX),
            0.0 if rtt_ms < RTT_MIN_MS else _told(rtt_ms, told.rtt_ms, RTT_MIN_MS, math.inf),
            _told(self._server.value(now_s), told.server_factor, FACTOR_MIN, FACTOR_MAX),
            _told(self._client.value(now_s), told.client_factor, FACTOR_MIN, FACTOR_MAX),
        )
        return self._told


def _told(value: float, told: float, least: float, most: float) -> float:
    """What was told before while that is near enough, else the value, within its range."""
    value = min(max(value, least), most)
    return told if told / TOLERANCE <= value <= told * TOLERANCE else value
