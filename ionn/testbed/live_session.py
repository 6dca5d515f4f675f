"""A live session of the experiment: queries computed by real Caffe, here and at a server, on the wall clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ionn.client.offloading import GIVE_UP_S, PROGRESS_S, Offloading
from ionn.client.pacing import WallClock
from ionn.model import engine
from ionn.model.caffemodel import Floats
from ionn.model.comparison import bit_equal, largest_difference
from ionn.model.engine import StageNet
from ionn.records import PartitionRecord, QueryRecord

# The recorded difference of two outputs if it is larger, or is infinite because one of them is no number.
DIFFERENCE_MAX = 1e9


class LiveSession:
    """Implements `experiment.Session` with an `Offloading`; `net` is the whole network at the client.

    Queries take the `inputs` in turn, and each output is compared with that of `net` alone: bit for bit if no server
    took part, or one with the same numerics, and otherwise within a tolerance. A query that the server failed is a
    `fallback`. `begin` is called when the clock has begun, before the upload. `give_up_s` is how long the experiment
    waits for a lost server.
    """

    def __init__(
        self,
        offloading: Offloading,
        net: StageNet,
        inputs: Sequence[Floats],
        on_progress: Callable[[LiveSession], None] = lambda session: None,
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        self.offloading = offloading
        self._inputs = inputs
        self._expected = [engine.forward(net, data) for data in inputs]
        self._on_progress = on_progress
        self._begin = begin
        self.last_query: QueryRecord | None = None
        self._start_s: float | None = None  # the clock stands at 0 until then
        self._is_preinstalled = False
        self._queries = 0
        self.give_up_s = GIVE_UP_S

    def now_s(self) -> float:
        return 0.0 if self._start_s is None else time.monotonic() - self._start_s

    def preinstall(self) -> None:
        """Before the run begins, upload what the server holds by the plan, and wait until it is usable, or until it is
        unknown whether it ever will be. The clock stands at 0 meanwhile."""
        if self.offloading.plan is not None and self.offloading.plan.held:
            self._is_preinstalled = True
            self.offloading.start_upload(self.now_s)
            self.wait_for_upload()

    def start_upload(self) -> None:
        self._start_s = time.monotonic()
        self._begin()
        if not self._is_preinstalled:
            self.offloading.start_upload(self.now_s)

    def wait_for_first_partition(self) -> None:
        self.offloading.wait_for_first_partition(lambda: self._on_progress(self))

    def uploaded(self) -> bool:
        return self.offloading.uploaded(self.give_up_s)

    def wait_until(self, time_s: float) -> None:
        assert self._start_s is not None
        WallClock().wait_until(self._start_s + time_s)

    def wait_for_upload(self) -> None:
        while not self.uploaded():
            time.sleep(PROGRESS_S)
            self._on_progress(self)

    def query(self, raised_s: float | None = None) -> QueryRecord:
        which = self._queries % len(self._inputs)
        start_s = self.now_s()
        done = self.offloading.executor.execute(self._inputs[which])
        end_s = self.now_s()
        wanted = self._expected[which]
        pairs = list(zip(done.outputs, wanted, strict=True))
        equal = all(bit_equal(got, want) for got, want in pairs)
        off = 0.0 if equal else min(largest_difference(done.outputs, wanted), DIFFERENCE_MAX)
        elsewhere = any(segment.where != "client" for segment in done.segments)
        tolerance = self.offloading.output_check.tolerance if elsewhere else 0.0
        self.last_query = QueryRecord(
            self._queries, start_s if raised_s is None else raised_s, start_s, end_s, done.segments, done.overruns,
            done.overrun_ms, equal, done.fallback, off, done.feature_bytes, done.feature_wire_bytes, tolerance,
        )  # fmt: skip
        self._queries += 1
        self._on_progress(self)
        return self.last_query

    def finish(self) -> list[PartitionRecord]:
        return [] if self._is_preinstalled else self.offloading.records()
