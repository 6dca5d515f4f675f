"""The link of the virtual testbed: bytes flow through it as a fluid does, on a simulated clock.

The uplink carries at most two flows, the upload (partitions back to back) and one query's features; while both are
active each has half the rate (max-min fair). The downlink is separate, and only queries use it. What has left the
sender's end of the link arrives at the other one after the link's delay.

Work is measured in the ms that it takes at the rate which the plan was made for. The rate of the link is relative to
that, and may change over time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from ionn.testbed.bandwidth import Steps

# When what leaves one end of the link at a time, in ms, is at the other one: not earlier than what left before.
Delay = Callable[[float], float]


def no_delay(left_ms: float) -> float:
    return left_ms


class Crossing(NamedTuple):
    """When a transfer has left one end of the link, which then is free, and when it has arrived at the other."""

    left_ms: float
    arrived_ms: float


class FluidLink:
    """A link whose rate is `rate`, in ms of work per ms, and its clock, which stands at `now_ms`.

    `left_ms` is when each partition that was uploaded so far had left the client. While `held`, the upload waits.
    """

    def __init__(self, rate: Steps, up: Delay = no_delay, down: Delay = no_delay) -> None:
        self._rate = rate
        self._up, self._down = up, down
        self._unsent_ms: list[float] = []  # of each partition, until it has left
        self.now_ms = 0.0
        self.left_ms: list[float] = []
        self.held = False

    def upload(self, works_ms: Iterable[float]) -> None:
        """Add partitions to the upload, of so much work each."""
        self._unsent_ms += works_ms

    def arrived_up_ms(self, left_ms: float) -> float:
        """When what left the client at a time is at the server."""
        return self._up(left_ms)

    def arrived_down_ms(self, left_ms: float) -> float:
        """When what left the server at a time is at the client."""
        return self._down(left_ms)

    def finish_next(self) -> None:
        """Move the clock until the next partition has left, with no query meanwhile."""
        self.advance(self._rate.end(self.now_ms, self._unsent_ms[len(self.left_ms)]))

    def advance(self, until_ms: float, share: float = 1.0) -> None:
        """Move the clock to `until_ms` while the upload, if it has not ended, goes on at a share of the link's rate."""
        while not self.held and (index := len(self.left_ms)) < len(self._unsent_ms):
            left_ms = self._rate.end(self.now_ms, self._unsent_ms[index] / share)
            if left_ms > until_ms:
                sent_ms = self._rate.amount(self.now_ms, until_ms) * share
                self._unsent_ms[index] = max(0.0, self._unsent_ms[index] - sent_ms)  # rounding must not leave a debt
                break
            self.now_ms = left_ms
            self.left_ms.append(left_ms)
        self.now_ms = until_ms

    def send_up(self, at_ms: float, work_ms: float) -> Crossing:
        """Send a query's features at `at_ms`, not earlier than now; the clock stands when they have left."""
        self.advance(at_ms)
        while work_ms > 0 and not self.held and len(self.left_ms) < len(self._unsent_ms):
            shared_ms = min(work_ms, self._unsent_ms[len(self.left_ms)])
            self.advance(self._rate.end(self.now_ms, 2 * shared_ms), share=0.5)
            work_ms -= shared_ms
        self.advance(self._rate.end(self.now_ms, work_ms))
        return Crossing(self.now_ms, self._up(self.now_ms))

    def send_down(self, at_ms: float, work_ms: float) -> Crossing:
        """Send a query's results at `at_ms`. The clock stays: the client may compute meanwhile."""
        left_ms = self._rate.end(at_ms, work_ms)
        return Crossing(left_ms, self._down(left_ms))
