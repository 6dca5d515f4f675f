"""When bytes cross the link.

It has a schedule of its own, which is compared with a clock. What is late because this machine woke up late is made up
for, so that long runs keep their exact rate; a link that was idle begins anew.
"""

from __future__ import annotations

import math

QUANTUM_S = 0.0004
"""Link time of a quantum: what a connection waits for each of the others."""

ALONE_QUANTA = 2
"""Where nobody else waits a connection sends so many quanta at once, which costs the link less CPU."""

MIN_QUANTUM_BYTES = 1_500
"""Slow links take turns packet by packet, as an Ethernet would, rather than in a few bytes."""

MAX_QUANTUM_BYTES = 256 * 1024
"""Bounds the memory of links that are faster than this machine."""

MAX_CATCH_UP_S = 0.01
"""How far a link that was held up may fall behind and still make up for it: 1 % of the bytes of any one second."""


class LinkPacer:
    """The schedule of one direction of a link that carries `mbps` * 10**6 bits per second, one quantum at a time.

    Times are seconds on any clock that does not go back.
    """

    def __init__(self, mbps: float) -> None:
        self._bytes_per_s = mbps * 1e6 / 8
        self._free_s = -math.inf

    def quantum_bytes(self, alone: bool) -> int:
        """Return how much a connection may send at its turn; `alone`: no other waits for one."""
        quantum_bytes = max(MIN_QUANTUM_BYTES, int(self._bytes_per_s * QUANTUM_S))
        return min(ALONE_QUANTA * quantum_bytes if alone else quantum_bytes, MAX_QUANTUM_BYTES)

    def transmit(self, size_bytes: int, now_s: float, waited: bool) -> float:
        """Put a quantum on the link; when its last byte has crossed.

        `waited`: it was there when the link became free, so its transmission began then, even if this call comes late
        (by MAX_CATCH_UP_S at most). Otherwise the link was idle, and the transmission begins now.
        """
        earliest_s = now_s - MAX_CATCH_UP_S if waited else now_s
        self._free_s = max(self._free_s, earliest_s) + size_bytes / self._bytes_per_s
        return self._free_s
