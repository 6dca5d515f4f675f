"""What a live client observes of its link and its server: its estimates, for all of its threads.

While weights are under way the uplink is never idle, so the bytes that cross it in a period tell its rate: weights that
were acknowledged in the period, and features of queries that ended in it. No period ends while features of a query are
on their way, because it is unknown how many of them have crossed. While no weights are under way, the transfers of
queries tell the rate.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from ionn.client.estimates import Estimate, Estimates
from ionn.paper import MBPS
from ionn.records import EstimateRecord

# How many records are kept: a session may last for days. An experiment hardly has so many.
RECORDS_MAX = 10_000
# The shortest period over which chunks are observed, because acknowledgements come in bursts.
_OBSERVED_S_MIN = 0.1
# How long after a query a period may begin. A server acknowledges nothing while it computes; by then, it has
# acknowledged the chunks that waited.
_SETTLED_S = 0.05


class Measuring:
    """Estimates from what a client observes by the wall clock, where everything takes `dilation` times as long as in
    the estimates. `records` are the last RECORDS_MAX estimates, with times of the clock `now_s`."""

    def __init__(self, dilation: float = 1.0) -> None:
        self.now_s: Callable[[], float] = time.monotonic
        self.records: deque[EstimateRecord] = deque(maxlen=RECORDS_MAX)
        self._dilation = dilation
        self._estimates = Estimates(MBPS)
        self._lock = threading.RLock()
        self.uploading = False  # weights are under way
        self._since_s: float | None = None  # when the period began in which crossing bytes are counted
        self._crossed_bytes = 0
        self._queries = 0  # how many queries have features on their way
        self._beside_weights = False  # weights were under way beside these features
        self._answered_s = 0.0  # when the last query ended

    def begin(self, now_s: Callable[[], float]) -> None:
        """Begin the records anew, with times of this clock."""
        with self._lock:
            self.now_s = now_s
            self.records.clear()

    def current(self) -> Estimate:
        """The estimate that holds now."""
        with self._lock:
            told = self._estimates.current(time.monotonic())
            if not self.records or self.records[-1] != EstimateRecord(self.records[-1].time_s, *told):
                self.records.append(EstimateRecord(max(self.now_s(), 0.0), *told))
            return told

    def round_trip(self, seconds: float) -> None:
        """Observe that a message without payload was answered so many seconds after it was sent."""
        with self._lock:
            self._estimates.observe_round_trip(time.monotonic(), seconds / self._dilation * 1e3)

    def probed(self, size_bytes: int, seconds: float) -> None:
        """Observe that a probe of so many bytes was answered so many seconds after it was sent."""
        with self._lock:
            self._estimates.observe_transfers(time.monotonic(), size_bytes, seconds / self._dilation)

    def acknowledged(self, size_bytes: int) -> None:
        """Observe that weights of so many bytes on the wire have crossed, while more are under way."""
        now_s = time.monotonic()
        with self._lock:
            if self._since_s is None:
                # Not yet after a query: its features, and weights beside it, may have crossed before.
                if not self._queries and now_s - self._answered_s >= _SETTLED_S:
                    self._since_s, self._crossed_bytes = now_s, 0
                return
            self._crossed_bytes += size_bytes
            took_s = now_s - self._since_s
            if not self._queries and took_s >= _OBSERVED_S_MIN:
                self._estimates.observe_bytes(now_s, self._crossed_bytes, took_s / self._dilation)
                self._since_s, self._crossed_bytes = now_s, 0

    def under_way(self, weights: bool) -> None:
        """Note whether weights are under way."""
        with self._lock:
            self.uploading = weights
            if weights:
                self._beside_weights = True
            else:
                self._since_s = None

    def asked(self) -> None:
        """Note that features are about to go up."""
        with self._lock:
            self._queries += 1
            if self._queries == 1:
                self._beside_weights = self.uploading

    def answered(self, up_bytes: int, down_bytes: int, seconds: float | None) -> None:
        """Observe that features have crossed and their answer has come, for which the link took so many seconds; None
        if that is unknown."""
        with self._lock:
            self._queries, self._answered_s = self._queries - 1, time.monotonic()
            if self._since_s is not None:
                self._crossed_bytes += up_bytes
            elif not self._beside_weights and seconds is not None and seconds > 0:
                size_bytes = up_bytes + down_bytes
                self._estimates.observe_transfers(time.monotonic(), size_bytes, seconds / self._dilation)

    def failed(self) -> None:
        """Note that features will get no answer."""
        with self._lock:
            self._queries, self._answered_s = self._queries - 1, time.monotonic()
            self._since_s = None

    def computed(self, where: str, measured_ms: float, promised_ms: float) -> None:
        """Observe how long the "server" or the "client" took by the wall clock, and how long it should take by its
        costs."""
        with self._lock:
            observe = self._estimates.observe_server if where == "server" else self._estimates.observe_client
            observe(time.monotonic(), measured_ms / self._dilation, promised_ms)
