"""A client's estimates of its link, its server and itself, from what it observes. No sockets and no clock here.

Each number is the quotient of two sums over recent observations, such as bytes and the time that they took. So it does
not matter in which portions something is observed, and long observations count for more than short ones.

The numbers in an Estimate stay until the quotients have moved by more than a few percent, because graphs and plans are
made from them.
"""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

# How long a client waits for a server's first answers, by which it measures the link.
ANSWER_S = 5.0
# How long an observation counts. The last one counts until there is another.
WINDOW_S = 2.0
# What is observed within so long is one observation, so that thousands of short queries in WINDOW_S do not make many.
_TOGETHER_S = 0.05
# The factor by which a quotient may move before the Estimate changes.
TOLERANCE = 1.05
# The range of estimates. Beyond it, a link's rate or a factor is no different from none or from infinity.
MBPS_MIN, MBPS_MAX = 0.01, 1e5
FACTOR_MIN, FACTOR_MAX = 1e-3, 1e4
# A shorter round trip counts as none.
RTT_MIN_MS = 0.1
# The least share of the time of a query's transfers that counts for their bytes, however long the round trip is.
_FOR_BYTES = 0.05


class Estimate(NamedTuple):
    """The rate of a link in each direction, its round-trip time, and the factors by which the times of the server and
    of the client are longer than their costs predict."""

    mbps: float
    rtt_ms: float
    server_factor: float = 1.0
    client_factor: float = 1.0


class _Quotient:
    """The sum of the dividends that were observed recently, divided by the sum of the divisors; at first `initial`."""

    def __init__(self, initial: float) -> None:
        self._initial = initial
        # Of each observation: when it began, and the sums of its dividends and of its divisors.
        self._observed: deque[tuple[float, float, float]] = deque()
        self._before = 0.0, 0.0  # these two sums over all observations but the last

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
        """Sum up again, so that no errors of rounding accumulate."""
        before = list(self._observed)[:-1]
        self._before = math.fsum(each[1] for each in before), math.fsum(each[2] for each in before)


class Estimates:
    """The estimates of one session. `now_s` is when something was observed, by any clock that does not go back. Before
    anything is observed, the link carries `mbps` without delay, and both sides take as long as their costs predict."""

    def __init__(self, mbps: float) -> None:
        self._mbps = _Quotient(mbps)
        self._rtt_ms = _Quotient(0.0)
        self._server = _Quotient(1.0)
        self._client = _Quotient(1.0)
        self._told = Estimate(mbps, 0.0)

    def observe_bytes(self, now_s: float, size_bytes: float, seconds: float) -> None:
        """Observe bytes that crossed in one direction, and took all of the link for so many seconds."""
        self._mbps.observe(now_s, size_bytes * 8 / 1e6, seconds)

    def observe_transfers(self, now_s: float, size_bytes: float, seconds: float) -> None:
        """Observe bytes that went up and then came down, alone on the link, within so many seconds.

        The mean round trip is subtracted. The least one would not be misled by a round trip that was measured too long,
        but on a link whose delay varies it would make the rate look lower than it is.
        """
        rtt_s = self._rtt_ms.value(now_s) / 1e3
        self.observe_bytes(now_s, size_bytes, max(seconds - rtt_s, _FOR_BYTES * seconds))

    def observe_round_trip(self, now_s: float, ms: float) -> None:
        """Observe the time until a message without payload was answered."""
        self._rtt_ms.observe(now_s, ms, 1.0)

    def observe_server(self, now_s: float, measured_ms: float, promised_ms: float) -> None:
        """Observe how long the server took for something, and how long it should take by its costs."""
        self._server.observe(now_s, measured_ms, promised_ms)

    def observe_client(self, now_s: float, measured_ms: float, promised_ms: float) -> None:
        """Observe the same for the client."""
        self._client.observe(now_s, measured_ms, promised_ms)

    def current(self, now_s: float) -> Estimate:
        """The estimate that holds now, within TOLERANCE."""
        told, rtt_ms = self._told, self._rtt_ms.value(now_s)
        self._told = Estimate(
            _told(self._mbps.value(now_s), told.mbps, MBPS_MIN, MBPS_MAX),
            0.0 if rtt_ms < RTT_MIN_MS else _told(rtt_ms, told.rtt_ms, RTT_MIN_MS, math.inf),
            _told(self._server.value(now_s), told.server_factor, FACTOR_MIN, FACTOR_MAX),
            _told(self._client.value(now_s), told.client_factor, FACTOR_MIN, FACTOR_MAX),
        )
        return self._told


def _told(value: float, told: float, least: float, most: float) -> float:
    """The number that was told before if the value is within TOLERANCE of it, else the value, limited to its range."""
    value = min(max(value, least), most)
    return told if told / TOLERANCE <= value <= told * TOLERANCE else value
