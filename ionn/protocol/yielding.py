"""How little an upload keeps under way that yields to queries: what it has sent already cannot be held back any more.

Too little would leave the link idle, too much is a queue in front of the next query. What fills the link is its rate
times the shortest round trip; both are measured, as TCP BBR does.
"""

from __future__ import annotations

import math
from collections import deque

from ionn.protocol.messages import CHUNK_BYTES

BESIDE_QUERY_BYTES = 2 * CHUNK_BYTES
"""What may be under way beside a query, or be sent meanwhile: an upload beside queries without a pause goes on, too. It
is also the queue in front of the link while there is no query, so that the link is never idle."""

# The rate is the highest of so many chunks: one that had to wait says nothing about the link.
_CHUNKS = 16


class YieldingWindow:
    """How many `bytes` may be under way while there is no query."""

    def __init__(self) -> None:
        self.bytes = BESIDE_QUERY_BYTES
        self._shortest_s = math.inf
        self._bytes_per_s: deque[float] = deque(maxlen=_CHUNKS)

    def acknowledged(self, under_way_bytes: int, round_trip_s: float) -> None:
        """A chunk was acknowledged so long after it was sent, with so many bytes under way then, its own included."""
        self._shortest_s = min(self._shortest_s, round_trip_s)
        self._bytes_per_s.append(under_way_bytes / max(round_trip_s, 1e-6))
        self.bytes = BESIDE_QUERY_BYTES + round(max(self._bytes_per_s) * self._shortest_s)
