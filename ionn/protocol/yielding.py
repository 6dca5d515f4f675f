"""How many bytes an upload that yields to queries keeps under way. What it has sent cannot be held back any more.

Too few would leave the link idle, and too many are a queue before the next query. The link is full with its rate times
the shortest round trip; both are measured, as by TCP BBR (Cardwell et al., ACM Queue 2016).
"""

from __future__ import annotations

import math
from collections import deque

from ionn.protocol.messages import CHUNK_BYTES

BESIDE_QUERY_BYTES = 2 * CHUNK_BYTES
"""The most bytes of weights that are under way when a query begins, or are sent beside it. An upload continues even
beside queries without a pause. While there is no query, so many bytes more than fill the link are under way, so that it
is never idle."""

# The rate is the highest of so many chunks, as the others may have waited at the server.
_CHUNKS = 16


class YieldingWindow:
    """`bytes` may be under way while there is no query."""

    def __init__(self) -> None:
        self.bytes = BESIDE_QUERY_BYTES
        self._shortest_s = math.inf
        self._bytes_per_s: deque[float] = deque(maxlen=_CHUNKS)

    def acknowledged(self, under_way_bytes: int, round_trip_s: float) -> None:
        """Note that a chunk was acknowledged `round_trip_s` after it was sent, with `under_way_bytes` under way then,
        its own included."""
        self._shortest_s = min(self._shortest_s, round_trip_s)
        self._bytes_per_s.append(under_way_bytes / max(round_trip_s, 1e-6))
        self.bytes = BESIDE_QUERY_BYTES + round(max(self._bytes_per_s) * self._shortest_s)
