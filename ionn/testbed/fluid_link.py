"""The link of the virtual testbed: a fluid model, in which bytes flow continuously, with a simulated clock.

The uplink carries at most two flows: the upload, one partition after another, and the features of one query. While both
are active, each has half the rate (max-min fairness). The downlink is separate, and only queries use it. A byte that
has left the sender arrives after the link's delay.

Work is measured in the ms that it takes at the rate for which the plan was made. The rate of the link is relative to
that rate, and may change over time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from ionn.testbed.bandwidth import Steps
from ionn.testbed.delay import Delay

NO_DELAY = Delay()


class Crossing(NamedTuple):
    """The times at which a transfer has left the sender, so that the link is free, and at which it has arrived."""

    left_ms: float
    arrived_ms: float


class FluidLink:
    """A link whose rate is `rate`, in ms of work per ms, and its clock, which stands at `now_ms`.

    - `left_ms`: when each partition that was uploaded so far had left the client.
    - `allowance_ms`: the work that the upload may still do.
    - `reach_ms`: the client is in reach until then, and nothing leaves it later.
    - `sent_ms`: the work of the upload so far.
    - `features_left_ms`: when the features that were sent last had left; None while they are being sent.
    """

    def __init__(self, rate: Steps, up: Delay = NO_DELAY, down: Delay = NO_DELAY) -> None:
        self._rate = rate
        self._up, self._down = up, down
        self._unsent_ms: list[float] = []  # of each partition, until it has left
        self._features_ms = 0.0  # what is left of a query's features
        self.now_ms = 0.0
        self.left_ms: list[float] = []
        self.allowance_ms = math.inf
        self.reach_ms = math.inf
        self.sent_ms = 0.0
        self.features_left_ms: float | None = None

    def upload(self, works_ms: Iterable[float]) -> None:
        """Add partitions to the upload, given by their work."""
        self._unsent_ms += works_ms

    @property
    def uploading(self) -> bool:
        return len(self.left_ms) < len(self._unsent_ms)

    @property
    def begun(self) -> int:
        """The number of partitions of which something has left the client."""
        return min(len(self.left_ms) + (self.now_ms > 0), len(self._unsent_ms))

    def unsent_ms(self) -> list[float]:
        """The remaining work of each partition that has not left completely."""
        return self._unsent_ms[len(self.left_ms) :]

    def replace_rest(self, works_ms: Iterable[float]) -> None:
        """Upload these partitions in place of those that have not begun."""
        self._unsent_ms[self.begun :] = works_ms

    def arrived_up_ms(self, left_ms: float) -> float:
        """The time at which a byte arrives at the server that left the client at `left_ms`."""
        return self._up.arrival(left_ms)

    def arrived_down_ms(self, left_ms: float) -> float:
        """The time at which a byte arrives at the client that left the server at `left_ms`."""
        return self._down.arrival(left_ms)

    def finish_next(self, until_ms: float = math.inf) -> None:
        """Move the clock until the next partition has left, with no query meanwhile, or to `until_ms`."""
        self.advance(min(self._rate.end(self.now_ms, self._unsent_ms[len(self.left_ms)]), until_ms))

    def advance(self, until_ms: float) -> None:
        """Move the clock to `until_ms`. Meanwhile the upload continues, and so do features for which the client no
        longer waits."""
        if self._features_ms:
            self._send_features(until_ms)
        self._send_weights(until_ms)

    def _send_weights(self, until_ms: float, share: float = 1.0) -> None:
        """Move the clock to `until_ms` while the upload, if it has not ended, goes on at a share of the link's rate."""
        last_ms = min(until_ms, self.reach_ms)
        while self.now_ms <= last_ms and (work_ms := self._sendable_ms()) is not None:
            index, end_ms = len(self.left_ms), self._rate.end(self.now_ms, work_ms / share)
            if end_ms > last_ms:
                work_ms = min(work_ms, self._rate.amount(self.now_ms, last_ms) * share)  # rounding leaves no debt
            self.sent_ms += work_ms
            self.allowance_ms -= work_ms
            if end_ms > last_ms:
                self._unsent_ms[index] -= work_ms
                break
            self.now_ms = end_ms
            if work_ms == self._unsent_ms[index]:
                self.left_ms.append(end_ms)
            else:
                self._unsent_ms[index] -= work_ms
        self.now_ms = until_ms

    def _sendable_ms(self) -> float | None:
        """The work that the upload may do next without a pause; None if there is none."""
        index = len(self.left_ms)
        if index == len(self._unsent_ms) or self.allowance_ms == 0:
            return None
        return min(self._unsent_ms[index], self.allowance_ms)

    def _send_features(self, until_ms: float) -> None:
        """Move the clock until a query's features have left, or to `until_ms`."""
        until_ms = min(until_ms, self.reach_ms)
        while self._features_ms > 0 and self.now_ms < until_ms:
            beside_ms = self._sendable_ms()
            work_ms = self._features_ms if beside_ms is None else min(self._features_ms, beside_ms)
            share = 1.0 if beside_ms is None else 0.5
            end_ms = self._rate.end(self.now_ms, work_ms / share)
            if end_ms > until_ms:
                work_ms = min(self._rate.amount(self.now_ms, until_ms) * share, self._features_ms)
                end_ms = until_ms
            self._send_weights(end_ms, share)
            self._features_ms -= work_ms
            if not self._features_ms:
                self.features_left_ms = self.now_ms

    def send_up(self, at_ms: float, work_ms: float, until_ms: float = math.inf) -> Crossing:
        """Send a query's features at `at_ms`, which is not before now, and move the clock until they have left. If they
        have not left by `until_ms`, the clock stops there, the crossing is returned as one that never arrives, and the
        features continue while the clock advances."""
        self.advance(min(at_ms, until_ms))
        self._features_ms, self.features_left_ms = work_ms, None if work_ms else self.now_ms
        self._send_features(until_ms)
        if self.features_left_ms is None:
            return Crossing(math.inf, math.inf)
        return Crossing(self.now_ms, self._up.arrival(self.now_ms))

    def send_down(self, at_ms: float, work_ms: float) -> Crossing:
        """Send a query's results at `at_ms`. The clock does not move, as the client may compute meanwhile."""
        if at_ms == math.inf:
            return Crossing(at_ms, at_ms)
        left_ms = self._rate.end(at_ms, work_ms)
        return Crossing(left_ms, self._down.arrival(left_ms))
