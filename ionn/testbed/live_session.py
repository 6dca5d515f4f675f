"""A live session of the experiment: queries computed by real Caffe, here and at a server, on the wall clock."""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ionn.client.pacing import PacedResult, run_paced
from ionn.client.query import Exchange
from ionn.client.session import FAULTS, Client, MakePartitions, Patience
from ionn.client.sliced_stage import SlicedStage
from ionn.model import engine
from ionn.model.caffemodel import Floats
from ionn.model.engine import StageNet
from ionn.model.network import Network
from ionn.model.partial_net import Partition
from ionn.model.slices import Piece, channels_of, stage_of
from ionn.planning.graph import ExecutionGraph, Leg
from ionn.protocol.sender import Upload
from ionn.records import PartitionRecord, QueryRecord, Segment

_FLOAT_BYTES = 4

# How often a session that waits reports its progress.
PROGRESS_S = 0.2
# How long a lost server may stay away before the upload counts as ended.
GIVE_UP_S = 20.0
# What the difference of two outputs is called when it is larger, or is none because one of them is no number.
DIFFERENCE_MAX = 1e9


@dataclass
class _Progress:
    """How far a query has come, seen from the client: `outputs` of the stage before `position` are there, and of the
    stage at `position` perhaps a `share` of the channels."""

    outputs: list[Floats]
    position: int = 0
    share: list[Floats] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    overruns: int = 0
    overrun_ms: float = 0.0
    failed: bool = False

    def reach(self, stage: int, outputs: list[Floats]) -> None:
        self.position, self.outputs, self.share = stage + 1, outputs, []

    def count(self, paced: PacedResult) -> None:
        self.overruns += paced.overruns
        self.overrun_ms += paced.overrun_ms


def _trips(legs: Sequence[Leg]) -> list[list[Leg]]:
    """The legs by trips: one at the client, or those between which data stays at the server."""
    trips: list[list[Leg]] = []
    for leg in legs:
        if leg.from_server and leg.where != "client":
            trips[-1].append(leg)
        else:
            trips.append([leg])
    return trips


def _check_result(
    exchange: Exchange,
    leg: Leg,
    outputs: Sequence[Floats],
    shapes: tuple[tuple[int, ...], ...],
    stages: int | None = None,
) -> None:
    """Raise ProtocolError if that cannot be what a leg results in: outputs, and times of so many `stages`."""
    if tuple(output.shape for output in outputs) != shapes or stages not in (None, leg.last - leg.first + 1):
        raise exchange.violation(f"the server's result is not what stages {leg.first}..{leg.last} have")


class LiveSession:
    """Implements `experiment.Session`.

    `net` is the client's own copy of the network and `layer_ms` (layers,) the pace of its layers, already dilated, or
    None to run them as fast as this machine does. `pieces[i]` are what `partitions[i]` has, and `sliced` the stages
    that are uploaded in slices. `inputs` are taken in turn, and every output is compared with `net`'s own forward.

    Stages run here where there is no `client`, and while its server is lost. A query that the server fails is completed
    here; its record says so, as those of the queries that follow do until the server is back. `give_up_s` is how long
    the experiment waits for that.

    Without a plan, `make` makes one of the server's costs when they are known, and hands it to `adopt`. Whoever holds
    `computing` may use `net`.
    """

    def __init__(
        self,
        network: Network,
        net: StageNet,
        graph: ExecutionGraph,
        layer_ms: Sequence[float] | None,
        inputs: Sequence[Floats],
        client: Client | None,
        partitions: Sequence[Partition],
        pieces: Sequence[Sequence[Piece]],
        on_progress: Callable[[LiveSession], None] = lambda session: None,
        dilation: float = 1.0,
        sliced: Mapping[int, SlicedStage] | None = None,
        make: MakePartitions | None = None,
    ) -> None:
        self._network = network
        self._net = net
        self._graph = graph
        self._layer_ms = layer_ms
        self._inputs = inputs
        self._expected = [engine.forward(net, data) for data in inputs]
        self._client = client
        self._partitions = partitions
        self._pieces = pieces
        self._sliced = sliced or {}
        self._make = make
        self.computing = threading.Lock()
        self._on_progress = on_progress
        self._dilation = dilation
        self.last_query: QueryRecord | None = None
        self._start_s = 0.0
        self._queries = 0
        # What each stage took at each side, for `measured_ms`.
        self._observed: dict[str, dict[int, list[float]]] = {"client": defaultdict(list), "server": defaultdict(list)}
        self.silence_s = (client.patience if client else Patience()).query_s
        self.give_up_s = GIVE_UP_S

    def adopt(
        self,
        graph: ExecutionGraph,
        partitions: Sequence[Partition],
        pieces: Sequence[Sequence[Piece]],
        sliced: Mapping[int, SlicedStage],
    ) -> None:
        """Have a plan, which is about to be uploaded. Called while holding `computing`."""
        self._graph, self._partitions, self._pieces, self._sliced = graph, partitions, pieces, sliced

    @property
    def _upload(self) -> Upload | None:
        return self._client.upload if self._client is not None else None

    @property
    def planned(self) -> bool:
        """Whether there is a plan: not before a server is known."""
        return self._client is None or self._make is None or self._client.upload is not None

    @property
    def total_bytes(self) -> int:
        """Of all partitions."""
        return sum(partition.caffemodel.size for partition in self._partitions)

    @property
    def uploaded_bytes(self) -> int:
        return self._upload.sent_bytes if self._upload else 0

    @property
    def fault(self) -> Exception | None:
        """Why the server is lost, or why it did not take the whole upload."""
        if self._client is None:
            return None
        return self._client.fault or (self._upload.error if self._upload else None)

    def now_s(self) -> float:
        return time.monotonic() - self._start_s

    def start_upload(self) -> None:
        self._start_s = time.monotonic()
        if self._client is None:
            return
        if self._make is not None:
            self._client.start_upload_when_known(self._make, self.now_s)
        elif self._partitions:
            self._client.start_upload(self._partitions, self.now_s)

    def wait_for_first_partition(self) -> None:
        """Return when the first partition is ready, or when nobody knows when it will be."""
        upload = self._upload
        while upload is not None and not upload.ended and self.fault is None:
            if upload.wait_ready(1, timeout_s=PROGRESS_S):
                return
            self._on_progress(self)

    def uploaded(self) -> bool:
        """Whether nothing more will arrive: all partitions are usable, or the server has been lost for too long."""
        upload = self._upload
        if self._client is None or (self.planned if upload is None else upload.ended):
            return True
        return self._client.fault is not None and time.monotonic() - self._client.lost_s > self.give_up_s

    def query(self, raised_s: float | None = None) -> QueryRecord:
        """One query of the experiment, on the next of the session's inputs; its output is compared."""
        return self._query(None, raised_s)[1]

    def answer(self, data: Floats) -> tuple[list[Floats], QueryRecord]:
        """The network's outputs for `data`, which nobody else writes to, and how they came about.

        Any number of threads may ask; their queries are computed one after another.
        """
        return self._query(data, None)

    def _query(self, data: Floats | None, raised_s: float | None) -> tuple[list[Floats], QueryRecord]:
        start_s = self.now_s()
        with self.computing:
            index, self._queries = self._queries, self._queries + 1
            which = index % len(self._inputs)
            lost = self._client is not None and self._client.fault is not None
            query = _Progress([self._inputs[which] if data is None else data])
            self._execute(query)
            # They may be the net's own memory, which is another's as soon as the lock is free.
            outputs = [output.copy() for output in query.outputs]
        end_s = self.now_s()
        wanted = self._expected[which]
        equal = (
            None
            if data is not None
            else all(
                np.array_equal(got.view(np.uint32), want.view(np.uint32))
                for got, want in zip(outputs, wanted, strict=True)
            )
        )
        record = QueryRecord(
            index, start_s if raised_s is None else raised_s, start_s, end_s,
            tuple(query.segments), query.overruns, query.overrun_ms, equal, lost or query.failed,
            _difference(outputs, wanted) if equal is False else 0.0,
        )  # fmt: skip
        self.last_query = record
        self._on_progress(self)
        return outputs, record

    def _execute(self, query: _Progress) -> None:
        upload = self._upload
        ready = upload.ready if upload else 0
        uploaded = [piece for pieces in self._pieces[:ready] for piece in pieces]
        channels = channels_of(uploaded)
        for trip in _trips(self._graph.legs(uploaded)):
            if trip[0].where == "client":
                self._run_here(query, trip[0].last)
                continue
            try:
                self._run_there(query, trip, channels)
            except FAULTS:
                self._complete(query, channels)
                return

    def _run_here(self, query: _Progress, last: int) -> None:
        """Run the stages up to `last` at the client."""
        first = query.position
        began = time.perf_counter()
        self._net.put(first, query.outputs[0])
        if self._layer_ms is None:
            stage_ms = self._net.run(first, last)
        else:
            layers = self._net.layers(first, last)
            paced = run_paced(self._net.run_layer, layers, [self._layer_ms[layer] for layer in layers])
            query.count(paced)
            ends = np.cumsum([len(self._net.layers(stage, stage)) for stage in range(first, last + 1)])
            stage_ms = tuple(float(ms.sum()) for ms in np.split(np.array(paced.layer_ms), ends[:-1]))
        query.segments.append(self._segment("client", first, last, stage_ms, began))
        query.reach(last, self._net.outputs(last))

    def _run_there(self, query: _Progress, trip: Sequence[Leg], channels: Mapping[int, int]) -> None:
        """Run a trip: legs between which data is at the server, from the client's data and back to it.

        What does not wait for the client's channels is sent ahead, so that the server need not wait for it.
        """
        assert self._client is not None
        with self._client.query(self._deadline_s(trip), self._results_bytes(trip, channels)) as exchange:

            def send(leg: Leg, data: Floats | None) -> int:
                if leg.where == "server":
                    return exchange.run(leg.first, leg.last, data)
                return exchange.run_part(leg.first, channels[leg.first], leg.to_server, data)

            began = time.perf_counter()
            ticket = send(trip[0], query.outputs[0])
            for leg, following in zip(trip, (*trip[1:], None), strict=True):
                share_ms, joined = 0.0, -1
                # The client's channels of a stage at both need its input, wherever it is needed too.
                down = following is not None and following.where == "both"
                if leg.where == "both":
                    share_ms = self._run_share(query, channels[leg.first])
                    if leg.to_server:
                        joined = exchange.join(query.share[0], stay=not down)
                sent_ahead = -1 if following is None else send(following, None)
                outputs, result = exchange.result(ticket)
                _check_result(exchange, leg, outputs, self._shapes(leg, channels), len(result.stage_ms))
                if leg.where == "server":
                    query.segments.append(self._segment("server", *leg[1:3], result.stage_ms, began))
                else:
                    ms = max(share_ms, result.stage_ms[0])
                    query.segments.append(Segment("both", *leg[1:3], ms, (time.perf_counter() - began) * 1e3))
                    if not leg.to_server:
                        outputs = [np.concatenate((outputs[0], query.share[0]), axis=1)]
                    elif down:
                        outputs, _ = exchange.result(joined)
                        _check_result(exchange, leg, outputs, self._network.stages[leg.last].output_shapes)
                if outputs:
                    query.reach(leg.last, outputs)
                ticket, began = sent_ahead, time.perf_counter()

    def _run_share(self, query: _Progress, begin: int, end: int | None = None) -> float:
        """Run channels `begin`..`end` (by default the last) of the next stage at the client; how long that took."""
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
        """The server failed: complete the query at the client, from the last data that is here."""
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

    def _deadline_s(self, trip: Sequence[Leg]) -> float:
        graph, expected_ms = self._graph, 0.0
        for leg in trip:
            expected_ms += graph.up_ms[leg.first] + graph.server_ms[leg.first : leg.last + 1].sum()
            expected_ms += graph.down_ms[leg.last + 1]
        return Patience(query_s=self.silence_s).deadline_s(expected_ms * self._dilation)

    def _results_bytes(self, trip: Sequence[Leg], channels: Mapping[int, int]) -> int:
        """The most that a trip's results can have: a stage at both may have its whole output joined too."""
        stages = self._network.stages
        shapes = [shape for leg in trip for shape in self._shapes(leg, channels)]
        shapes += [shape for leg in trip if leg.where == "both" for shape in stages[leg.last].output_shapes]
        return _FLOAT_BYTES * sum(map(math.prod, shapes))

    def _shapes(self, leg: Leg, channels: Mapping[int, int]) -> tuple[tuple[int, ...], ...]:
        """Of the outputs that a leg's message brings to the client."""
        shapes = self._network.stages[leg.last].output_shapes
        if leg.where == "server":
            return shapes
        images, _, *rest = shapes[0]
        return () if leg.to_server else ((images, channels[leg.first], *rest),)

    def _segment(self, where: str, first: int, last: int, stage_ms: tuple[float, ...], began: float) -> Segment:
        for stage, ms in zip(range(first, last + 1), stage_ms, strict=True):
            self._observed[where][stage].append(ms)
        return Segment(where, first, last, sum(stage_ms), (time.perf_counter() - began) * 1e3, stage_ms)

    def measured_ms(self, where: str) -> dict[int, float]:
        """The mean time in ms that each stage took at "client" or "server" in this session, where it ran there."""
        return {stage: float(np.mean(times)) for stage, times in self._observed[where].items()}

    def finish(self) -> list[PartitionRecord]:
        if self._upload is None:
            return []
        names = [tuple(self._network.stages[stage_of(piece)].name for piece in pieces) for pieces in self._pieces]
        return self._upload.records(names)


@np.errstate(all="ignore")  # a server may give anything for numbers
def _difference(outputs: Sequence[Floats], wanted: Sequence[Floats]) -> float:
    """The largest difference of a value, relative to the largest value of its output; DIFFERENCE_MAX at most."""
    pairs = [(got.astype(np.float64), want.astype(np.float64)) for got, want in zip(outputs, wanted, strict=True)]
    worst = [float(abs(got - want).max() / (abs(want).max() or 1.0)) for got, want in pairs]
    return max(each if each < DIFFERENCE_MAX else DIFFERENCE_MAX for each in worst)  # also where it is no number
