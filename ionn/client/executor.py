"""Queries over both sides: each stage runs at the client, at the server, or with some of its channels at each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ionn.client.audit import Answered, Auditor
from ionn.client.measuring import Measuring
from ionn.client.pacing import PacedResult, run_paced
from ionn.client.query import Coding, Exchange, Wanted
from ionn.client.routing import Router
from ionn.client.session import FAULTS, Client
from ionn.client.sliced_stage import SlicedStage
from ionn.errors import LateError, WrongResultError
from ionn.model.caffemodel import Floats
from ionn.model.engine import StageNet
from ionn.model.network import Network
from ionn.model.slices import Piece, channels_of
from ionn.planning.coding_costs import DOWN, UP
from ionn.planning.graph import ExecutionGraph, Leg
from ionn.records import Segment

_FLOAT_BYTES = 4
# A shorter time between a query's begin and its route is no wait.
_WAITED_S_MIN = 0.01


@dataclass(frozen=True)
class Execution:
    """The result of a query: copies of the network's outputs, and how they were computed.

    `overruns` and `overrun_ms` are those of a paced client. `fallback`: the server was lost, failed or was late, and
    the client completed the query alone. `audited`: the server's answers were computed again at the client.
    `feature_bytes` crossed the link for the query, counted before coding; `feature_wire_bytes` are counted as sent.
    """

    outputs: list[Floats]
    segments: tuple[Segment, ...]
    overruns: int
    overrun_ms: float
    fallback: bool
    audited: bool = False
    feature_bytes: int = 0
    feature_wire_bytes: int = 0


@dataclass
class _Progress:
    """How far a query has come at the client: it has the `outputs` of the stage before `position`, and perhaps a
    `share` of the channels of the stage at `position`."""

    outputs: list[Floats]
    position: int = 0
    share: list[Floats] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    answered: list[Answered] = field(default_factory=list)
    overruns: int = 0
    overrun_ms: float = 0.0
    failed: bool = False
    feature_bytes: int = 0
    feature_wire_bytes: int = 0

    def reach(self, stage: int, outputs: list[Floats]) -> None:
        self.position, self.outputs, self.share = stage + 1, outputs, []

    def count(self, paced: PacedResult) -> None:
        self.overruns += paced.overruns
        self.overrun_ms += paced.overrun_ms

    def count_crossed(self, exchange: Exchange) -> None:
        """Add the bytes that crossed the link in an exchange, and the overruns of its coding."""
        self.feature_bytes += exchange.raw_bytes
        self.feature_wire_bytes += exchange.wire_bytes
        for paced in exchange.paced:
            self.count(paced)


@dataclass(frozen=True)
class _Trip:
    """Adjacent legs of a query: one at the client, or several between which data stays at the server. Those at the
    server take `expected_ms`, and their answers have `results_bytes` at most."""

    legs: Sequence[Leg]
    expected_ms: float
    results_bytes: int


class QueryExecutor:
    """Runs queries of a network whose partitions are arriving at a server.

    Each takes the fastest path of `graph` through the stages that are uploaded when it starts. `pieces[i]` are what the
    client uploads as its i-th partition, and `sliced` the stages that are uploaded in slices. `net` is the client's own
    copy of the network. `layer_ms` (layers,) is the pace of its layers, or None to run them as fast as this machine
    does. By the wall clock, times are `dilation` times as long as the graph's.

    With `measuring`, each query takes the route that the `router` finds by the estimates. If the server is late, the
    client completes the query, and runs all queries until the late answer has come. `before_query` is called when a
    query begins, with `computing` held; it must not take long.

    Without a `client`, and while its server is lost, all stages run here. If the server fails a query, the client
    completes it. If the `auditor` finds a wrong result, the server is never used again, and the whole query runs here.
    Any number of threads may ask; their queries are computed one after another. Other users of `net` must hold
    `computing` meanwhile.
    """

    def __init__(
        self,
        network: Network,
        net: StageNet,
        graph: ExecutionGraph,
        client: Client | None,
        pieces: Sequence[Sequence[Piece]],
        sliced: Mapping[int, SlicedStage],
        layer_ms: Sequence[float] | None,
        dilation: float,
        auditor: Auditor | None,
        measuring: Measuring | None,
    ) -> None:
        self._network = network
        self._net = net
        self._client = client
        self._layer_ms = layer_ms
        self._dilation = dilation
        self._auditor = auditor
        self._measuring = measuring
        self.router: Router | None = None
        self.before_query: Callable[[], None] = lambda: None
        self.computing = net.lock
        first, *others = network.layers[network.stages[0].first_layer : network.stages[0].last_layer + 1]
        self._only_takes = first.type == "Input" and not others  # the first stage computes nothing
        # How often each stage ran at each side, and how long in all, for `measured_ms`.
        self._observed = {where: [(0, 0.0)] * len(network.stages) for where in ("client", "server")}
        self.adopt(graph, pieces, sliced)

    def adopt(
        self,
        graph: ExecutionGraph,
        pieces: Sequence[Sequence[Piece]],
        sliced: Mapping[int, SlicedStage],
        router: Router | None = None,
    ) -> None:
        """Use another plan, of which no more is uploaded yet than of the plan before. Called while holding `computing`.
        With a `router`, the `graph` is that of the costs, without the estimates' factors."""
        self._graph = self._promised = graph
        self._pieces, self._sliced, self.router = pieces, sliced, router
        self._fastest: tuple[int, list[_Trip], dict[int, int]] | None = None

    def execute(self, data: Floats) -> Execution:
        """Compute the network on `data`, of its input's shape."""
        with self.computing:
            lost = self._client is not None and self._client.fault is not None
            query = _Progress([data])
            self._execute(query)
            # They may be the net's own memory, which an audit needs, and other threads when the lock is free.
            outputs = [output.copy() for output in query.outputs]
            audited = False
            if self._auditor is not None:
                try:
                    audited = self._auditor.audit(query.answered)
                except WrongResultError as error:
                    assert self._client is not None
                    self._client.leave(error)
                    crossed = query.feature_bytes, query.feature_wire_bytes
                    audited, query = True, _Progress([data], failed=True)
                    query.feature_bytes, query.feature_wire_bytes = crossed
                    self._run_here(query, len(self._network.stages) - 1)
                    outputs = [output.copy() for output in query.outputs]
        return Execution(
            outputs, tuple(query.segments), query.overruns, query.overrun_ms, lost or query.failed, audited,
            query.feature_bytes, query.feature_wire_bytes,
        )  # fmt: skip

    def measured_ms(self, where: str) -> dict[int, float]:
        """The mean time in ms that each stage took at the "client" or the "server", for the stages that ran there."""
        observed = enumerate(self._observed[where])
        return {stage: total_ms / count for stage, (count, total_ms) in observed if count}

    def _execute(self, query: _Progress) -> None:
        if self._measuring is None or self._client is None:
            self._follow(query, *self._fastest_trips())
            return
        began = time.monotonic()
        self.before_query()
        if self.router is None:  # no server is known yet
            self._run_here(query, len(self._network.stages) - 1)
            return
        uploaded, waited_s = self._wait(self._measuring, self.router, self._client), time.monotonic() - began
        occupied = self._measuring.uploading or self._client.is_late
        waited_ms = waited_s * 1e3 / self._dilation if waited_s > _WAITED_S_MIN else 0.0
        route = self.router.route(self._measuring.current(), uploaded, occupied, waited_ms)
        if route.probes:
            self._client.probe()
        self._graph = route.graph
        self._follow(
            query, self._trips(route.legs, channels_of(uploaded)), channels_of(uploaded),
            lambda stage: began + route.deadline_ms(stage) * self._dilation / 1e3,
        )  # fmt: skip
        self.router.settle(route, (time.monotonic() - began) * 1e3 / self._dilation)

    def _ready(self) -> int:
        """How many partitions queries may use now."""
        upload = self._client.upload if self._client is not None else None
        return upload.ready if upload else 0

    def _uploaded(self, ready: int) -> list[Piece]:
        """What queries may use when so many partitions are ready."""
        return [piece for pieces in self._pieces[:ready] for piece in pieces]

    def _fastest_trips(self) -> tuple[list[_Trip], dict[int, int]]:
        """The fastest path through what is uploaded, and how many channels of each sliced stage are uploaded. It is
        found once for each number of partitions, because queries wait for it."""
        ready = self._ready()
        if self._fastest is None or self._fastest[0] != ready:
            uploaded = self._uploaded(ready)
            channels = channels_of(uploaded)
            self._fastest = ready, self._trips(self._graph.legs(uploaded), channels), channels
        return self._fastest[1:]

    def _trips(self, legs: Sequence[Leg], channels: Mapping[int, int]) -> list[_Trip]:
        groups: list[list[Leg]] = []
        for leg in legs:
            if leg.from_server and leg.where != "client":
                groups[-1].append(leg)
            else:
                groups.append([leg])
        return [
            _Trip(group, 0.0, 0) if group[0].where == "client"
            else _Trip(group, self._expected_ms(group), self._results_bytes(group, channels))
            for group in groups
        ]  # fmt: skip

    def _wait(self, measuring: Measuring, router: Router, client: Client) -> list[Piece]:
        """Wait for partitions that will be ready so soon that the query ends earlier. Returns what it may use then."""
        if client.is_late:
            return []
        upload, uploaded = client.upload, self._uploaded(self._ready())
        if upload is None or upload.ended or client.fault is not None:
            return uploaded
        estimate, (ready, shares) = measuring.current(), upload.unsent()
        graph = router.graph(estimate)

        def coming() -> Iterator[tuple[float, Sequence[Piece]]]:
            after_ms = estimate.rtt_ms
            for pieces, share in zip(self._pieces[ready:], shares, strict=False):
                after_ms += share * graph.arrival_ms(pieces)[0] + graph.overhead_ms(pieces)[1]
                yield after_ms, pieces

        count, wait_ms = router.wait(estimate, uploaded, coming())
        if count:
            upload.wait_ready(ready + count, wait_ms * self._dilation / 1e3)
        return self._uploaded(self._ready())

    def _follow(
        self,
        query: _Progress,
        trips: Sequence[_Trip],
        channels: Mapping[int, int],
        late_s: Callable[[int], float | None] = lambda stage: None,
    ) -> None:
        """Run legs one after another. `late_s` gives the time at which data that went to the server before a stage is
        late."""
        for trip in trips:
            first = trip.legs[0]
            if first.where == "client":
                self._run_here(query, first.last)
                continue
            try:
                self._run_there(query, trip, channels, late_s(first.first))
            except (*FAULTS, LateError):
                self._complete(query, channels)
                return

    def _run_here(self, query: _Progress, last: int) -> None:
        """Run the stages up to `last` at the client."""
        first = query.position
        began = time.perf_counter()
        if last == 0 and self._only_takes and self._layer_ms is None:  # its output is its input
            query.segments.append(self._segment("client", 0, 0, (0.0,), began))
            query.reach(0, query.outputs)
            return
        self._net.put(first, query.outputs[0])
        if self._layer_ms is None:
            stage_ms = self._net.run(first, last)
        else:
            layers = self._net.layers(first, last)
            paced = run_paced(self._net.run_layer, layers, [self._layer_ms[layer] for layer in layers])
            query.count(paced)
            ends = np.cumsum([len(self._net.layers(stage, stage)) for stage in range(first, last + 1)])
            stage_ms = tuple(float(ms.sum()) for ms in np.split(np.array(paced.layer_ms), ends[:-1]))
        if self._measuring is not None:
            promised_ms = float(self._promised.client_ms[first : last + 1].sum())
            self._measuring.computed("client", sum(stage_ms), promised_ms)
        query.segments.append(self._segment("client", first, last, stage_ms, began))
        query.reach(last, self._net.outputs(last))

    def _run_there(self, query: _Progress, trip: _Trip, channels: Mapping[int, int], late_s: float | None) -> None:
        """Run legs between which data stays at the server, from data at the client to data at the client.

        Messages that do not depend on the client's channels are sent ahead, so that the server need not wait for them.
        """
        assert self._client is not None
        legs, timeouts = trip.legs, self._client.timeouts
        deadline_s = timeouts.deadline_s(trip.expected_ms * self._dilation)
        if late_s is not None:  # being late must come first
            deadline_s = max(deadline_s, late_s - time.monotonic() + timeouts.query_s)
        done = self._observer(legs, channels)
        try:
            with self._client.query(deadline_s, trip.results_bytes, late_s, done) as exchange:
                try:
                    self._exchange(exchange, query, legs, channels)
                finally:
                    query.count_crossed(exchange)
        except LateError:  # whoever takes the late answer calls `done`
            raise
        except BaseException:
            done(None)
            raise
        done(exchange)

    def _observer(self, legs: Sequence[Leg], channels: Mapping[int, int]) -> Callable[[Exchange | None], None]:
        """The function to call when the answers to these legs have come or, with None, when they never will."""
        measuring, began = self._measuring, time.monotonic()
        if measuring is None:
            return lambda exchange: None
        graph, promised = self._graph, self._promised
        promised_ms = coding_ms = 0.0
        for leg in legs:
            if leg.where == "both":
                promised_ms += promised.split(leg.first, channels[leg.first]).server_ms
            else:
                promised_ms += float(promised.server_ms[leg.first : leg.last + 1].sum())
                coding_ms += graph.transfer(leg.first, UP).decode_ms + graph.transfer(leg.last + 1, DOWN).encode_ms
        # Beside a stage at both sides the client computes, so its time is not that of transfers only.
        transfers_only = all(leg.where == "server" for leg in legs)
        measuring.asked()

        def done(exchange: Exchange | None) -> None:
            if exchange is None:
                measuring.failed()
                return
            elsewhere_s = exchange.coding_s + (exchange.stage_ms + coding_ms * self._dilation) / 1e3
            link_s = time.monotonic() - began - elsewhere_s if transfers_only else None
            measuring.answered(exchange.up_bytes, exchange.down_bytes, link_s)
            measuring.computed("server", exchange.stage_ms, promised_ms)

        return done

    def _exchange(self, exchange: Exchange, query: _Progress, legs: Sequence[Leg], channels: Mapping[int, int]) -> None:
        def send(leg: Leg, data: Floats | None) -> int:
            share = channels[leg.first] / self._sliced[leg.first].channels if leg.where == "both" else 1.0
            up, wanted = self._coding(leg.first, UP), self._wanted(leg, self._shapes(leg, channels), share)
            if leg.where == "server":
                return exchange.run(leg.first, leg.last, data, up, wanted)
            return exchange.run_part(leg.first, channels[leg.first], leg.to_server, data, up, wanted)

        data = query.outputs[0]
        if self._auditor is not None:
            data = data.copy()  # it may be the net's own memory, and an audit comes later
        answered = Answered(legs[0].first, data)
        query.answered.append(answered)
        began = time.perf_counter()
        sent = send(legs[0], data)
        for leg, following in zip(legs, (*legs[1:], None), strict=True):
            share_ms, joined = 0.0, None
            # If the next stage is at both sides, the client needs its input, even if the server has it.
            down = following is not None and following.where == "both"
            if leg.where == "both":
                share_ms = self._run_share(query, channels[leg.first])
                if leg.to_server:
                    others = 1 - channels[leg.first] / self._sliced[leg.first].channels
                    wanted = self._wanted(leg, self._network.stages[leg.last].output_shapes if down else ())
                    joined = exchange.join(query.share[0], not down, self._coding(leg.last + 1, UP, others), wanted)
            sent_ahead = None if following is None else send(following, None)
            outputs, result = exchange.result(sent)
            if len(result.stage_ms) != leg.last - leg.first + 1:
                raise exchange.violation(f"the server's result is not what stages {leg.first}..{leg.last} have")
            answered.add(leg.last, outputs)
            if leg.where == "server":
                query.segments.append(self._segment("server", *leg[1:3], result.stage_ms, began))
            else:
                ms = max(share_ms, result.stage_ms[0])
                query.segments.append(Segment("both", *leg[1:3], ms, (time.perf_counter() - began) * 1e3))
                if not leg.to_server:
                    outputs = [np.concatenate((outputs[0], query.share[0]), axis=1)]
                elif joined is not None and down:
                    outputs, _ = exchange.result(joined)
                    answered.add(leg.last, outputs)
            if outputs:
                query.reach(leg.last, outputs)
            if sent_ahead is not None:
                sent = sent_ahead
            began = time.perf_counter()

    def _coding(self, boundary: int, direction: str, share: float = 1.0) -> Coding | None:
        """How a share of the blob at a boundary is coded in a direction; None if it goes raw."""
        if not self._graph.is_coded(boundary, direction):
            return None
        transfer = self._graph.transfer(boundary, direction).part(share)
        ms = transfer.encode_ms if direction == UP else transfer.decode_ms
        return Coding(None if self._layer_ms is None else ms * self._dilation)

    def _wanted(self, leg: Leg, shapes: tuple[tuple[int, ...], ...], share: float = 1.0) -> Wanted:
        return Wanted(shapes, self._coding(leg.last + 1, DOWN, share))

    def _run_share(self, query: _Progress, begin: int, end: int | None = None) -> float:
        """Run channels `begin`..`end` (not included; by default all others) of the next stage at the client. Returns
        how long that took, in ms."""
        stage = query.position
        sliced = self._sliced[stage]
        end = sliced.channels if end is None else end
        pace_ms = None
        if self._layer_ms is not None:
            whole_ms = float(self._graph.client_ms[stage])
            share_ms = self._graph.split(stage, sliced.channels - (end - begin)).client_ms
            first, last = self._network.stages[stage].first_layer, self._network.stages[stage].last_layer
            scale = share_ms / whole_ms if whole_ms else 0.0
            pace_ms = [ms * scale for ms in self._layer_ms[first : last + 1]]
        output, paced = sliced.run(query.outputs[0], begin, end, pace_ms)
        if pace_ms is not None:
            query.count(paced)
        query.share.append(output)
        return sum(paced.layer_ms)

    def _complete(self, query: _Progress, channels: Mapping[int, int]) -> None:
        """Complete a query at the client, from the last data here, because the server failed or is late."""
        query.failed = True
        if query.share:
            stage = query.position
            began = time.perf_counter()
            ms = self._run_share(query, 0, channels[stage])
            query.segments.append(Segment("client", stage, stage, ms, (time.perf_counter() - began) * 1e3))
            query.reach(stage, [np.concatenate(query.share[::-1], axis=1)])
        last = len(self._network.stages) - 1
        if query.position <= last:
            self._run_here(query, last)

    def _expected_ms(self, legs: Sequence[Leg]) -> float:
        graph, expected_ms = self._graph, 0.0
        for leg in legs:
            expected_ms += graph.up_ms[leg.first] + graph.server_ms[leg.first : leg.last + 1].sum()
            expected_ms += graph.down_ms[leg.last + 1]
        return float(expected_ms)

    def _results_bytes(self, legs: Sequence[Leg], channels: Mapping[int, int]) -> int:
        """The most bytes that the results of legs can have. A stage at both sides may also have its whole output
        joined."""
        stages = self._network.stages
        shapes = [shape for leg in legs for shape in self._shapes(leg, channels)]
        shapes += [shape for leg in legs if leg.where == "both" for shape in stages[leg.last].output_shapes]
        return _FLOAT_BYTES * sum(map(math.prod, shapes))

    def _shapes(self, leg: Leg, channels: Mapping[int, int]) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of the outputs that the answer to a leg's message has."""
        shapes = self._network.stages[leg.last].output_shapes
        if leg.where == "server":
            return shapes
        images, _, *rest = shapes[0]
        return () if leg.to_server else ((images, channels[leg.first], *rest),)

    def _segment(self, where: str, first: int, last: int, stage_ms: tuple[float, ...], began: float) -> Segment:
        observed = self._observed[where]
        for stage, ms in zip(range(first, last + 1), stage_ms, strict=True):
            count, total_ms = observed[stage]
            observed[stage] = count + 1, total_ms + ms
        return Segment(where, first, last, sum(stage_ms), (time.perf_counter() - began) * 1e3, stage_ms)
