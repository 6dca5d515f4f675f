"""The schedule by which bytes cross the link.

If this machine wakes up late, the delay is made up for, so that long runs keep their exact rate. After the link was
idle, the schedule begins anew.
"""

from __future__ import annotations

import math

from ionn.testbed.bandwidth import Bandwidth

QUANTUM_S = 0.0004
"""The time of a quantum on the link when it is sent: so long a connection waits for each of the others."""

ALONE_QUANTA = 2
"""If no other connection waits, one sends so many quanta at once, which costs the link less CPU."""

MIN_QUANTUM_BYTES = 1_500
"""Slow links take turns packet by packet, as an Ethernet would, rather than in a few bytes."""

MAX_QUANTUM_BYTES = 256 * 1024
"""This bounds the memory for links that are faster than this machine."""

MAX_CATCH_UP_S = 0.01
"""How far a link that was held up may fall behind and still make up for it: 1 % of the bytes of any one second."""


class LinkPacer:
    """The schedule of one direction of a link that has a bandwidth, one quantum at a time.

    Times are seconds on any clock that does not go back; the bandwidth begins at its 0, and again at each `begin`.
    """

    def __init__(self, bandwidth: Bandwidth) -> None:
        self._bandwidth = bandwidth
        self._begin_s = 0.0
        self._free_s = -math.inf

    def begin(self, now_s: float) -> None:
        """Let the bandwidth begin again, with nothing on the link."""
        self._begin_s, self._free_s = now_s, -math.inf

    def quantum_bytes(self, alone: bool, now_s: float) -> int:
        """Return how many bytes a connection may send at its turn; `alone` says that no other one waits."""
        at_s = now_s - self._begin_s
        quantum_bytes = max(MIN_QUANTUM_BYTES, round(self._bandwidth.bytes_between(at_s, at_s + QUANTUM_S)))
        return min(ALONE_QUANTA * quantum_bytes if alone else quantum_bytes, MAX_QUANTUM_BYTES)

    def transmit(self, size_bytes: int, now_s: float, waited: bool) -> float:
        """Put a quantum on the link. Returns the time at which its last byte has crossed.

        If the quantum `waited` for the link, its transmission began when the link became free, even if this call comes
        late (by MAX_CATCH_UP_S at most). Otherwise the link was idle, and the transmission begins now.
        """
        earliest_s = now_s - MAX_CATCH_UP_S if waited else now_s
        start_s = max(self._free_s, earliest_s, self._begin_s)
        self._free_s = self._begin_s + self._bandwidth.arrival_s(start_s - self._begin_s, size_bytes)
        return self._free_s
