"""The virtual testbed with a client that measures: like the live one, it plans and routes by what it has observed.

What happens in a run follows from the costs and from the link's bandwidth over time; the server may be slower than its
costs predict. The client's estimates are made by `ionn.client.estimates`, and its routes by `ionn.client.routing`.

A late query is completed at the client, and so is one that is at the server when the client goes out of its reach. The
data of a late query stay on the link and at the server. Its answer, when it comes, is one more observation, and from
then on queries may use the server again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ionn.client.estimates import ANSWER_S, Estimate, Estimates
from ionn.client.routing import FAIR_SHARE, Router
from ionn.costs.models import Costs, Scaled
from ionn.errors import InputError
from ionn.model.network import Network
from ionn.model.slices import Piece, channels_of
from ionn.paper import MBPS
from ionn.planning.coding_costs import DOWN, UP, Transfer
from ionn.planning.graph import ExecutionGraph, Leg
from ionn.planning.plan import Partition, make_plan
from ionn.planning.planners.baselines import PREINSTALLED
from ionn.planning.slice_costs import Split
from ionn.planning.stored_weights import StoredPiece
from ionn.protocol.messages import PROBE_BYTES
from ionn.records import EstimateRecord, QueryRecord, Segment
from ionn.testbed.experiment import run_experiment
from ionn.testbed.fluid_link import Crossing
from ionn.testbed.settings import YIELD
from ionn.testbed.trace import RunInfo, Trace
from ionn.testbed.virtual import NOTHING, VirtualSession, make_link

# For a client that measures, work on the link is in ms at the paper's rate.
BYTES_PER_MS = MBPS * 1e6 / 8 / 1e3
_PROBE_MS = PROBE_BYTES / BYTES_PER_MS
# An observation of an upload lasts at least so long.
_OBSERVED_MS_MIN = 20.0


def run_adaptive(
    info: RunInfo,
    network: Network,
    client: Costs,
    server: Costs,
    server_slowness: float = 1.0,
    coded_bytes: Sequence[int] | None = None,
    stored: Sequence[StoredPiece] = (),
    store_ms_per_mb: float = 0.0,
) -> Trace:
    """Compute the trace of a run over a link that the client measures. Equal arguments give equal traces; noise is that
    of `run_virtual`.

    - `info.plan`: an empty plan, with the planner's name. `info.graph`: a graph of the costs `client` and `server`.
    - `server_slowness`: the server takes so many times as long as its costs predict.
    - `coded_bytes`: the wire bytes of each stage's coded weights, if they are known.
    - `stored`: the pieces in the server's store, which reads 10^6 bytes in `store_ms_per_mb`.

    The trace's plan has the partitions that were uploaded, in their order. Raises InputError as `run_virtual` does.
    """
    session = AdaptiveSession(
        info, network, client, server, server_slowness, coded_bytes, stored=stored, store_ms_per_mb=store_ms_per_mb
    )
    trace = run_experiment(session, info)
    return dataclasses.replace(trace, info=session.info(), estimates=tuple(session.estimates))


@dataclass(frozen=True)
class _Asked:
    """A leg that the server runs: its transfers up and down, the time that it computes (`compute_ms`) and would compute
    by the costs (`promised_ms`), and when the answer is back; None while its features are on their way. `alone` is
    whether no weights were uploaded meanwhile."""

    began_ms: float
    up: Transfer
    compute_ms: float
    down: Transfer
    promised_ms: float
    alone: bool
    back_ms: float | None = None


class AdaptiveSession(VirtualSession):
    """Implements `experiment.Session` on a simulated clock, which counts ms, with a client that measures.

    The client is in reach of the server until `reach_ms`; a query that is at the server then is completed at the
    client. `estimates` are the client's so far. With the baseline `preinstalled`, the server holds the first plan's
    stages from the beginning, and nothing is planned again.
    """

    def __init__(
        self,
        info: RunInfo,
        network: Network,
        client: Costs,
        server: Costs,
        server_slowness: float = 1.0,
        coded_bytes: Sequence[int] | None = None,
        *,
        stored: Sequence[StoredPiece],
        store_ms_per_mb: float,
        reach_ms: float = math.inf,
    ) -> None:
        stage_bytes = [stage.weight_bytes for stage in network.stages]

        def storing(graph: ExecutionGraph, server_factor: float) -> ExecutionGraph:
            return graph.storing(stored, stage_bytes, store_ms_per_mb * server_factor)

        super().__init__(dataclasses.replace(info, graph=storing(info.graph, 1.0)))
        self._link.reach_ms = reach_ms
        settings = info.settings

        def make_graph(estimate: Estimate) -> ExecutionGraph:
            graph = ExecutionGraph.from_network(
                network, Scaled(client, 1 / estimate.client_factor), Scaled(server, 1 / estimate.server_factor),
                estimate.mbps, settings.coding, settings.weight_ratio, coded_bytes, rtt_ms=estimate.rtt_ms,
            )  # fmt: skip
            return storing(graph, estimate.server_factor)

        self._info = info
        self._network = network
        self._slowness = server_slowness
        self._yields = settings.upload == YIELD
        self._router = Router(make_graph, 1.0 if self._yields else FAIR_SHARE)
        self._observed = Estimates(MBPS)
        self._believed = Estimate(MBPS, 0.0)
        self._late: _Asked | None = None
        self._preinstalled: tuple[int, ...] = ()
        self._begin_to_observe()
        self.estimates: list[EstimateRecord] = []

    def info(self) -> RunInfo:
        """The `RunInfo` of the run: its plan has the partitions that were uploaded, in their order."""
        graph = self._router.graph(self._believed)
        plan = dataclasses.replace(
            self._info.plan,
            mbps=self._believed.mbps,
            local_ms=graph.local_ms,
            best_ms=graph.latency_ms(range(len(graph.stages))),
            partitions=tuple(self._partitions[: len(self._uploaded)]),
            held=self._preinstalled,
        )
        return dataclasses.replace(self._info, plan=plan, graph=graph)

    def start_upload(self) -> None:
        """Plan by what the client measured when it connected, a round trip and a probe, and begin to upload. That was
        before the clock began to run, over the same link. The client learns nothing from an answer for which it would
        have to wait longer than ANSWER_S."""
        link, answer_ms = make_link(self._info), ANSWER_S * 1e3
        rtt_ms = link.arrived_down_ms(link.arrived_up_ms(0.0))
        if rtt_ms <= answer_ms:
            self._observed.observe_round_trip(self.now_s(), rtt_ms)
            probe_ms = link.arrived_down_ms(link.send_up(0.0, _PROBE_MS).arrived_ms)
            if probe_ms <= answer_ms:
                self._observed.observe_transfers(self.now_s(), PROBE_BYTES, probe_ms / 1e3)
        self._look_around()

    def _probe(self, until_ms: float) -> _Asked:
        """Send a probe over the link, and wait for it to leave the client, but not longer than `until_ms`."""
        up = Transfer(0.0, _PROBE_MS, 0.0, PROBE_BYTES, PROBE_BYTES)
        answer = Transfer(0.0, 0.0, 0.0, 0, 0)  # without payload
        probe = _Asked(self._now_ms, up, 0.0, answer, 0.0, not self._link.uploading)
        return self._answered(probe, self._link.send_up(self._now_ms, _PROBE_MS, until_ms).arrived_ms)

    def wait_for_first_partition(self) -> None:
        """Return at once: queries run at the client meanwhile, or wait if that is faster."""

    def query(self, raised_s: float | None = None) -> QueryRecord:
        link, start_ms = self._link, self._now_ms
        self._look_around()
        if self._late is None:
            count, wait_ms = self._router.wait(self._believed, self._there(), self._coming())
            self._wait(self._usable() + count, min(start_ms + wait_ms, link.reach_ms))
        uploaded = self._there() if self._late is None else []
        occupied = self._link.uploading or self._late is not None
        route = self._router.route(self._believed, uploaded, occupied, self._now_ms - start_ms)
        if route.probes:
            self._late = self._probe(self._now_ms)
        segments, late = list[Segment](), False
        crossed: list[Transfer] = []
        for leg in route.legs:
            if leg.where == "client":
                link.allowance_ms = math.inf
                segments.append(self._run_here(leg.first, leg.last))
                continue
            if not leg.from_server:
                first, deadline_ms = leg.first, min(start_ms + route.deadline_ms(leg.first), link.reach_ms)
                link.allowance_ms = self._held_ms
            asked = self._ask(leg, route.graph, uploaded, deadline_ms)
            crossed += [asked.up, asked.down]
            if asked.back_ms is None or asked.back_ms > deadline_ms:
                self._late, late = asked, True
                link.advance(max(deadline_ms, self._now_ms))
                link.allowance_ms = math.inf
                segments = [segment for segment in segments if segment.last < first]
                segments.append(self._run_here(first, len(self._graph.stages) - 1))
                break
            link.advance(asked.back_ms)
            self._observe_answer(asked)
            segments.append(Segment(*leg[:3], asked.compute_ms, self._now_ms - asked.began_ms))
        link.allowance_ms = math.inf
        if self._yields and route.offloads:
            self._begin_to_observe()
        self._router.settle(route, self._now_ms - start_ms)
        raw_bytes, wire_bytes = sum(each.raw_bytes for each in crossed), sum(each.wire_bytes for each in crossed)
        return self._record(start_ms, raised_s, segments, raw_bytes, wire_bytes, late)

    def _wait(self, count: int, until_ms: float) -> None:
        """Wait until so many partitions are usable, but not longer than `until_ms`."""
        while self._usable() < count and self._now_ms < until_ms:
            if len(self._uploaded) < count:
                self._link.finish_next(until_ms)
            else:
                self._link.advance(min(self._uploaded[count - 1].ready_ms, until_ms))
        self._look_around()

    def _run_here(self, first: int, last: int) -> Segment:
        promised_ms = float(self._graph.client_ms[first : last + 1].sum())
        compute_ms = promised_ms * self._factor()
        self._link.advance(self._now_ms + compute_ms)
        self._observed.observe_client(self.now_s(), compute_ms, promised_ms)
        return Segment("client", first, last, compute_ms, compute_ms)

    def _ask(self, leg: Leg, graph: ExecutionGraph, uploaded: Sequence[Piece], deadline_ms: float) -> _Asked:
        """Send what a leg at the server needs. The client waits for its answer until the deadline."""
        link, began_ms, alone = self._link, self._now_ms, not self._link.uploading

        def send_up(at_ms: float, work_ms: float) -> Crossing:
            return link.send_up(at_ms, work_ms, deadline_ms)

        if leg.where == "both":
            split = self._true_split(leg.first, channels_of(uploaded)[leg.first], graph)
            up = split.output_up if leg.from_server else split.input_up
            down = split.input_down if leg.to_server else split.output_down
            back_ms = split.end_ms(leg.from_server, leg.to_server, began_ms, send_up, link.send_down)
            promised_ms = split.server_ms / self._slowness
            asked = _Asked(began_ms, up, split.server_ms, down, promised_ms, False, _if_finite(back_ms))
        else:
            up = NOTHING if leg.from_server else self._true_transfer(graph.transfer(leg.first, UP), UP)
            down = NOTHING if leg.to_server else self._true_transfer(graph.transfer(leg.last + 1, DOWN), DOWN)
            promised_ms = float(self._graph.server_ms[leg.first : leg.last + 1].sum())
            compute_ms = promised_ms * self._slowness * self._factor()
            arrived_ms = send_up(began_ms + up.encode_ms, up.link_ms).arrived_ms if up is not NOTHING else began_ms
            asked = self._answered(_Asked(began_ms, up, compute_ms, down, promised_ms, alone), arrived_ms)
        self._feature_bytes += up.wire_bytes
        return asked

    def _answered(self, asked: _Asked, arrived_ms: float) -> _Asked:
        """The same with the time when the answer is back, if the features arrive at `arrived_ms`."""
        down, back_ms = asked.down, arrived_ms + asked.up.decode_ms + asked.compute_ms
        if down is not NOTHING:
            back_ms = self._link.send_down(back_ms + down.encode_ms, down.link_ms).arrived_ms + down.decode_ms
        return dataclasses.replace(asked, back_ms=_if_finite(back_ms))

    def _true_transfer(self, believed: Transfer, direction: str) -> Transfer:
        """The actual times of a transfer, coded or not as the client chose by its estimates."""
        here, there = 1 / self._believed.client_factor, self._slowness / self._believed.server_factor
        sender, receiver = (here, there) if direction == UP else (there, here)
        return believed._replace(
            encode_ms=believed.encode_ms * sender,
            link_ms=believed.wire_bytes / BYTES_PER_MS,
            decode_ms=believed.decode_ms * receiver,
        )

    def _true_split(self, stage: int, channels: int, graph: ExecutionGraph) -> Split:
        """The actual costs of a stage of which some channels are at the server."""
        times, believed = self._graph.split(stage, channels), graph.split(stage, channels)
        return Split(
            times.client_ms * self._factor(),
            times.server_ms * self._slowness * self._factor(),
            self._true_transfer(believed.input_up, UP),
            self._true_transfer(believed.input_down, DOWN),
            self._true_transfer(believed.output_up, UP),
            self._true_transfer(believed.output_down, DOWN),
        )

    def _there(self) -> list[Piece]:
        """The pieces at the server that queries may use now."""
        return [*self._preinstalled, *(piece for pieces in self._pieces[: self._usable()] for piece in pieces)]

    def _coming(self) -> Iterator[tuple[float, Sequence[Piece]]]:
        """The partitions that are not usable yet, in order, each with the ms after which the client expects it."""
        arrived_ms = loaded_ms = 0.0
        unsent_ms = [0.0] * (len(self._link.left_ms) - self._usable()) + self._link.unsent_ms()
        for pieces, work_ms in zip(self._pieces[self._usable() :], unsent_ms, strict=True):
            arrived_ms += work_ms * MBPS / self._believed.mbps
            load_ms = self._graph.overhead_ms(pieces)[1] * self._believed.server_factor
            loaded_ms = max(arrived_ms, loaded_ms) + load_ms
            yield loaded_ms + self._believed.rtt_ms, pieces

    # --- What the client observes -------------------------------------------------------------------------------------

    def _look_around(self) -> None:
        """Observe what has come since the last query, and plan again if it changes the estimate."""
        late, link = self._late, self._link
        if late is not None:
            if late.back_ms is None and link.features_left_ms is not None:
                late = self._late = self._answered(late, link.arrived_up_ms(link.features_left_ms))
            if late.back_ms is not None and late.back_ms <= self._now_ms:
                self._late = None
                self._observe_answer(late)
        if self._late is None:
            self._observe_upload()
        self._replan()

    def _observe_answer(self, asked: _Asked) -> None:
        assert asked.back_ms is not None
        now_s, up, down = self.now_s(), asked.up, asked.down
        self._observed.observe_server(now_s, asked.compute_ms, asked.promised_ms)
        coding_ms = up.encode_ms + up.decode_ms + down.encode_ms + down.decode_ms
        link_ms = asked.back_ms - asked.began_ms - asked.compute_ms - coding_ms
        if asked.alone and link_ms > 0:
            self._observed.observe_transfers(now_s, up.wire_bytes + down.wire_bytes, link_ms / 1e3)

    def _observe_upload(self) -> None:
        """Observe the rate: the uplink is never idle during an upload, so all bytes that crossed it meanwhile count."""
        link = self._link
        until_ms = self._now_ms if link.uploading else max(link.left_ms, default=0.0)
        took_ms = until_ms - self._since_ms
        if link.uploading and took_ms < _OBSERVED_MS_MIN:
            return
        # If features went up when the upload ended, it is not known how many of their bytes crossed before its end.
        if took_ms > 0 and (link.uploading or not self._feature_bytes):
            size_bytes = (link.sent_ms - self._since_work_ms) * BYTES_PER_MS + self._feature_bytes
            self._observed.observe_bytes(self.now_s(), size_bytes, took_ms / 1e3)
        self._begin_to_observe()

    def _begin_to_observe(self) -> None:
        self._since_ms, self._since_work_ms, self._feature_bytes = self._now_ms, self._link.sent_ms, 0

    def _replan(self) -> None:
        """If the estimate has changed, plan again what has not begun to be uploaded."""
        estimate = self._observed.current(self.now_s())
        if estimate == self._believed and self.estimates:
            return
        self._believed = estimate
        self.estimates.append(EstimateRecord(self.now_s(), *estimate))
        if self._info.algorithm == PREINSTALLED and len(self.estimates) > 1:
            return  # what the server holds does not change with the estimate
        begun = self._link.begun
        held = [piece for pieces in self._pieces[:begun] for piece in pieces]
        graph = self._router.graph(estimate).holding(held)
        try:
            plan = make_plan(self._network, graph, self._info.algorithm, estimate.mbps)
        except InputError:
            if len(self.estimates) == 1:
                raise
            return  # a user's planner may fail later: then its former plan stays
        self._preinstalled = plan.held
        rest = [*plan.partitions, *self._after_plan()]
        if [part.pieces for part in rest] != self._pieces[begun:]:
            self._upload_rest(rest, graph)

    def _after_plan(self) -> Sequence[Partition]:
        """The partitions to upload after the plan, which have not begun."""
        return ()

    def _upload_rest(self, rest: Sequence[Partition], graph: ExecutionGraph) -> None:
        """Upload these partitions, which were planned on this graph, in place of those that have not begun."""
        begun, link = self._link.begun, self._link
        if not link.uploading:
            self._begin_to_observe()
        link.replace_rest(part.wire_bytes / BYTES_PER_MS for part in rest)
        self._partitions[begun:] = [dataclasses.replace(part, index=begun + at) for at, part in enumerate(rest)]
        self._pieces[begun:] = [part.pieces for part in rest]
        slower = self._slowness / self._believed.server_factor
        self._load_ms[begun:] = [self._graph.overhead_ms(part.pieces)[1] * self._slowness for part in rest]
        self._decode_ms[begun:] = [graph.arrival_ms(part.pieces)[1] * slower for part in rest]


def _if_finite(ms: float) -> float | None:
    return ms if math.isfinite(ms) else None
