"""What a live client observes of its link and its server: its estimates, for all of its threads.

While weights are under way the uplink is never idle, so all that crosses it tells its rate: what was acknowledged in a
while, and the features of queries that ended in it. While the features of a query are on their way nobody knows how
many of them have crossed, and no such while ends. Where no weights are under way, the transfers of queries tell it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from ionn.client.estimates import Estimate, Estimates
from ionn.paper import MBPS
from ionn.records import EstimateRecord

# A session may last for days, and an experiment hardly changes its mind so often.
RECORDS_MAX = 10_000
# Acknowledged chunks tell the rate over so long a time at least: they come in bursts.
_OBSERVED_S_MIN = 0.1
# A server acknowledges nothing while it computes: so long after a query, what waited for it has been acknowledged.
_SETTLED_S = 0.05


class Measuring:
    """Estimates that are fed with what a client observes on the wall, where all takes `dilation` times as long as the
    estimates say.

    `records` are the estimates that held last, by the clock `now_s`.
    """

    def __init__(self, dilation: float = 1.0) -> None:
        self.now_s: Callable[[], float] = time.monotonic
        self.records: deque[EstimateRecord] = deque(maxlen=RECORDS_MAX)
        self._dilation = dilation
        self._estimates = Estimates(MBPS)
        self._lock = threading.RLock()
        self.uploading = False  # weights are under way
        self._since_s: float | None = None  # all that crosses is counted
        self._crossed_bytes = 0
        self._queries = 0  # whose features may be on their way
        self._answered_s = 0.0  # when the last one ended

    def begin(self, now_s: Callable[[], float]) -> None:
        """Have the records begin now, by another clock."""
        with self._lock:
            self.now_s = now_s
            self.records.clear()

    def current(self) -> Estimate:
        with self._lock:
            told = self._estimates.current(time.monotonic())
            if not self.records or self.records[-1] != EstimateRecord(self.records[-1].time_s, *told):
                self.records.append(EstimateRecord(max(self.now_s(), 0.0), *told))
            return told

    def round_trip(self, seconds: float) -> None:
        """A message without payload was answered so long after it was sent."""
        with self._lock:
            self._estimates.observe_round_trip(time.monotonic(), seconds / self._dilation * 1e3)

    def probed(self, size_bytes: int, seconds: float) -> None:
        """So many bytes were sent for no other purpose, and answered so long after that."""
        with self._lock:
            self._estimates.observe_transfers(time.monotonic(), size_bytes, seconds / self._dilation)

    def acknowledged(self, size_bytes: int) -> None:
        """Weights of so many bytes have crossed, and more are under way."""
        now_s = time.monotonic()
        with self._lock:
            self.uploading = True
            if self._since_s is None:
                # Features of a query, and weights beside it, may have crossed before.
                if not self._queries and now_s - self._answered_s >= _SETTLED_S:
                    self._since_s, self._crossed_bytes = now_s, 0
                return
            self._crossed_bytes += size_bytes
            took_s = now_s - self._since_s
            if not self._queries and took_s >= _OBSERVED_S_MIN:
                self._estimates.observe_bytes(now_s, self._crossed_bytes, took_s / self._dilation)
                self._since_s, self._crossed_bytes = now_s, 0

    def idle(self) -> None:
        """No weights are under way."""
        with self._lock:
            self.uploading, self._since_s = False, None

    def asked(self) -> bool:
        """Features are about to go up; whether they have the link for themselves."""
        with self._lock:
            self._queries += 1
            return not self.uploading

    def answered(self, alone: bool, up_bytes: int, down_bytes: int, seconds: float) -> None:
        """They have crossed, and the answer has come; so long took the link for both. `alone`: what `asked` said."""
        with self._lock:
            self._queries, self._answered_s = self._queries - 1, time.monotonic()
            if self._since_s is not None:
                self._crossed_bytes += up_bytes
            elif alone and not self.uploading and seconds > 0:
                size_bytes = up_bytes + down_bytes
                self._estimates.observe_transfers(time.monotonic(), size_bytes, seconds / self._dilation)

    def failed(self) -> None:
        """No answer will come to what was asked."""
        with self._lock:
            self._queries, self._answered_s = self._queries - 1, time.monotonic()
            self._since_s = None

    def computed(self, where: str, measured_ms: float, promised_ms: float) -> None:
        """The "server" or the "client" took so long on the wall for what its costs promise to take so long."""
        with self._lock:
            observe = self._estimates.observe_server if where == "server" else self._estimates.observe_client
            observe(time.monotonic(), measured_ms / self._dilation, promised_ms)
