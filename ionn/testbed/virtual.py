"""The virtual testbed: the experiment with a simulated clock, over a fluid link (`ionn.testbed.fluid_link`).

A partition is usable once the server has loaded it and the client knows that. The server loads one partition at a time,
while the link carries the next one. A query's route is fixed when it starts. A stage that is uploaded in part runs at
both sides at once (`ionn.planning.slice_costs`).

Of coded data (`ionn.planning.coding_costs`), only the wire bytes are on the link. A query's features are coded before
that and decoded after it. Weights are decoded while they arrive, one partition at a time.
"""

from __future__ import annotations

import dataclasses
import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from ionn.errors import InputError
from ionn.model.slices import Piece, channels_of
from ionn.paper import MBPS
from ionn.planning.coding_costs import DOWN, UP, Transfer
from ionn.planning.graph import Leg
from ionn.planning.slice_costs import Split
from ionn.protocol.yielding import BESIDE_QUERY_BYTES
from ionn.records import PartitionRecord, QueryRecord, Segment
from ionn.testbed.bandwidth import Bandwidth
from ionn.testbed.delay import Delay
from ionn.testbed.experiment import run_experiment
from ionn.testbed.fluid_link import FluidLink
from ionn.testbed.settings import YIELD
from ionn.testbed.trace import RunInfo, Trace

# The most queries before upload and window end. It takes a minute to compute them, or minutes if the client measures;
# more would only be raised over a link so slow that nobody would wait for the upload.
QUERIES_MAX = 1_000_000


def run_virtual(info: RunInfo, exchange_ms: float = 0.0) -> Trace:
    """Compute the trace of a run from `info` alone. Equal arguments give equal traces. Each exchange with the server
    takes `exchange_ms` longer than the graph and the link's delay say.

    The settings' noise multiplies the compute time of each segment by a lognormal factor of mean 1, drawn from the
    settings' seed and `info.run`; the noise is the standard deviation of its logarithm. Raises InputError for a run
    that would not end: if queries take no time, or if there are more than QUERIES_MAX before upload and window end.
    """
    return run_experiment(VirtualSession(info, exchange_ms), info)


class _TimedLeg(NamedTuple):
    """A leg of a route and its times: features go `up`, the leg computes, results come `down` (a leg at the client has
    neither). A stage that both sides compute has a `split`."""

    leg: Leg
    up: Transfer
    compute_ms: float
    down: Transfer
    split: Split | None

    @property
    def transfers(self) -> tuple[Transfer, Transfer]:
        """The transfers of this leg over the link."""
        if self.split is None:
            return self.up, self.down
        return self.split.transfers(self.leg.from_server, self.leg.to_server)


class _Route(NamedTuple):
    """The route of a query, and the bytes that cross the link on it."""

    legs: Sequence[_TimedLeg]
    raw_bytes: int
    wire_bytes: int

    @classmethod
    def of(cls, legs: Sequence[_TimedLeg]) -> _Route:
        crossed = [transfer for timed in legs for transfer in timed.transfers]
        return cls(legs, sum(each.raw_bytes for each in crossed), sum(each.wire_bytes for each in crossed))


class _Uploaded(NamedTuple):
    """A partition that has left the client. The server has all of it at `arrived_ms`, and has decoded and loaded it at
    `decoded_ms` and `loaded_ms`. The client learns at `end_ms` that it arrived, and at `ready_ms` that it is ready."""

    arrived_ms: float
    decoded_ms: float
    loaded_ms: float
    end_ms: float
    ready_ms: float


NOTHING = Transfer(0.0, 0.0, 0.0, 0, 0)


def make_link(info: RunInfo, exchange_ms: float = 0.0) -> FluidLink:
    """The link of a run, at its beginning. There and back, it takes `exchange_ms` longer than its delay. Work on the
    link is in ms at the rate of the plan, or at the paper's rate if the client measures."""
    settings = info.settings
    mbps = settings.mbps or MBPS
    bandwidth = info.bandwidth or Bandwidth.constant(mbps)
    delays = Delay.both(settings.delay_ms + exchange_ms / 2, settings.jitter_ms, settings.seed)
    return FluidLink(bandwidth.work_ms(mbps), *delays)


class VirtualSession:
    """Implements `experiment.Session` on a simulated clock, which counts ms."""

    def __init__(self, info: RunInfo, exchange_ms: float = 0.0) -> None:
        held = info.plan.held
        self._graph = graph = info.graph.holding(held) if held else info.graph
        self._partitions = list(info.plan.partitions)
        self._pieces = [partition.pieces for partition in self._partitions]
        self._load_ms = [graph.overhead_ms(pieces)[1] for pieces in self._pieces]
        mbps = info.settings.mbps or MBPS
        arrivals_ms = [graph.arrival_ms(pieces) for pieces in self._pieces]
        self._decode_ms = [decode_ms for _, decode_ms in arrivals_ms]
        settings = info.settings
        self._link = make_link(info, exchange_ms)
        self._held_ms = math.inf  # the work that the upload may do while a query is at the server
        if settings.upload == YIELD:
            self._held_ms = BESIDE_QUERY_BYTES * 8 / (mbps * 1e3)
        self._link.upload(link_ms for link_ms, _ in arrivals_ms)
        self._uploaded: list[_Uploaded] = []
        self._routes: dict[int, _Route] = {}
        self._queries = 0
        self._window_ms = (settings.window_s or 0.0) * 1e3
        self._noise = settings.noise
        self._random = random.Random(f"{settings.seed}/{info.run}")

    @property
    def _now_ms(self) -> float:
        return self._link.now_ms

    def now_s(self) -> float:
        return self._now_ms / 1e3

    def start_upload(self) -> None:
        """The clock stands at 0 already."""

    def wait_for_first_partition(self) -> None:
        if self._pieces:
            if not self._link.left_ms:
                self._link.finish_next()
            self._follow_upload()
            self._link.advance(self._uploaded[0].ready_ms)

    def uploaded(self) -> bool:
        return self._usable() == len(self._pieces)

    def wait_until(self, time_s: float) -> None:
        self._link.advance(max(self._now_ms, time_s * 1e3))

    def wait_for_upload(self) -> None:
        while len(self._link.left_ms) < len(self._pieces):
            self._link.finish_next()
        self._follow_upload()
        self._link.advance(max([self._now_ms, *(uploaded.ready_ms for uploaded in self._uploaded[-1:])]))

    def query(self, raised_s: float | None = None) -> QueryRecord:
        start_ms = self._now_ms
        segments: list[Segment] = []
        route = self._route(self._usable())
        for timed in route.legs:
            began_ms = self._now_ms
            if not timed.leg.from_server:  # else the query is at the server since an earlier leg
                self._link.allowance_ms = math.inf if timed.leg.where == "client" else self._held_ms
            compute_ms = self._run_split(timed.split, timed.leg) if timed.split else self._run(timed)
            segments.append(Segment(*timed.leg[:3], compute_ms, self._now_ms - began_ms))
        self._link.allowance_ms = math.inf
        return self._record(start_ms, raised_s, segments, route.raw_bytes, route.wire_bytes)

    def _record(
        self,
        start_ms: float,
        raised_s: float | None,
        segments: Sequence[Segment],
        raw_bytes: int,
        wire_bytes: int,
        fallback: bool = False,
    ) -> QueryRecord:
        """The record of a query that ends now, for which so many bytes of features crossed the link. Raises InputError
        if queries are so fast, or the link so slow, that the run would not end."""
        start_s = start_ms / 1e3
        self._queries += 1
        goes_on = not self.uploaded() or self._now_ms < self._window_ms
        if goes_on and self._now_ms == start_ms:
            raise InputError("a query of 0 ms is so fast that the run would not end; check the costs")
        if goes_on and self._queries == QUERIES_MAX:
            raise InputError(
                f"{QUERIES_MAX} queries, the last of {self._now_ms - start_ms:g} ms, end before the upload and the "
                "window are over; give a faster link or a shorter window, or check the costs"
            )
        return QueryRecord(
            index=self._queries - 1,
            raised_s=start_s if raised_s is None else raised_s,
            start_s=start_s,
            end_s=self._now_ms / 1e3,
            segments=tuple(segments),
            fallback=fallback,
            feature_bytes=raw_bytes if self._graph.boundary_bytes else None,  # where the graph knows them
            feature_wire_bytes=wire_bytes if self._graph.boundary_bytes else None,
        )

    def _run(self, timed: _TimedLeg) -> float:
        up, down, link = timed.up, timed.down, self._link
        at_ms = self._now_ms
        if up is not NOTHING:
            at_ms = link.send_up(at_ms + up.encode_ms, up.link_ms).arrived_ms + up.decode_ms
        compute_ms = timed.compute_ms * self._factor()
        at_ms += compute_ms
        if down is not NOTHING:
            at_ms = link.send_down(at_ms + down.encode_ms, down.link_ms).arrived_ms + down.decode_ms
        link.advance(at_ms)
        return compute_ms

    def _run_split(self, split: Split, leg: Leg) -> float:
        """Run a stage at both sides. Returns the compute time of the slower side."""
        if self._noise:
            split = dataclasses.replace(
                split, client_ms=split.client_ms * self._factor(), server_ms=split.server_ms * self._factor()
            )
        link = self._link
        link.advance(split.end_ms(leg.from_server, leg.to_server, self._now_ms, link.send_up, link.send_down))
        return max(split.client_ms, split.server_ms)

    def _factor(self) -> float:
        return self._random.lognormvariate(-(self._noise**2) / 2, self._noise) if self._noise else 1.0

    def finish(self) -> list[PartitionRecord]:
        self._follow_upload()
        start_ms = [0.0, *(uploaded.end_ms for uploaded in self._uploaded)]
        return [
            PartitionRecord(
                index=index,
                stages=self._partitions[index].stage_names,
                bytes=self._partitions[index].bytes,
                start_s=start_ms[index] / 1e3,
                end_s=uploaded.end_ms / 1e3,
                ready_s=uploaded.ready_ms / 1e3,
                wire_bytes=self._partitions[index].wire_bytes,
                stored_bytes=self._partitions[index].stored_bytes,
            )
            for index, uploaded in enumerate(self._uploaded)
        ]

    def _usable(self) -> int:
        """Return how many partitions queries may use now; they become usable in plan order."""
        self._follow_upload()
        return bisect_right(self._uploaded, self._now_ms, key=lambda uploaded: uploaded.ready_ms)

    def _follow_upload(self) -> None:
        """Compute what the server does with the partitions that have left the client meanwhile."""
        link = self._link
        for index in range(len(self._uploaded), len(link.left_ms)):
            before = self._uploaded[-1:]
            arrived_ms = link.arrived_up_ms(link.left_ms[index])
            # Its first bytes arrive when the partition before it has arrived.
            began_ms = max([link.arrived_up_ms(0.0), *(each.decoded_ms for each in before)])
            decoded_ms = max(arrived_ms, began_ms + self._decode_ms[index])
            loaded_ms = max([decoded_ms, *(each.loaded_ms for each in before)]) + self._load_ms[index]
            end_ms, ready_ms = link.arrived_down_ms(arrived_ms), link.arrived_down_ms(loaded_ms)
            self._uploaded.append(_Uploaded(arrived_ms, decoded_ms, loaded_ms, end_ms, ready_ms))

    def _route(self, usable: int) -> _Route:
        if usable not in self._routes:
            uploaded = [piece for pieces in self._pieces[:usable] for piece in pieces]
            self._routes[usable] = _Route.of([self._timed(leg, uploaded) for leg in self._graph.legs(uploaded)])
        return self._routes[usable]

    def _timed(self, leg: Leg, uploaded: list[Piece]) -> _TimedLeg:
        graph = self._graph
        run = slice(leg.first, leg.last + 1)
        if leg.where == "client":
            return _TimedLeg(leg, NOTHING, float(graph.client_ms[run].sum()), NOTHING, None)
        if leg.where == "both":
            return _TimedLeg(leg, NOTHING, 0.0, NOTHING, graph.split(leg.first, channels_of(uploaded)[leg.first]))
        up = NOTHING if leg.from_server else graph.transfer(leg.first, UP)
        down = NOTHING if leg.to_server else graph.transfer(leg.last + 1, DOWN)
        return _TimedLeg(leg, up, float(graph.server_ms[run].sum()), down, None)
