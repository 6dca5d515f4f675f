"""A network at a client with a server: plan what to upload, upload it, and run queries meanwhile."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ionn.client.audit import Auditor
from ionn.client.estimates import Estimate
from ionn.client.executor import QueryExecutor
from ionn.client.measuring import Measuring
from ionn.client.routing import FAIR_SHARE, Router
from ionn.client.session import FAULTS, Client
from ionn.client.sliced_stage import SlicedStage, slice_stages
from ionn.coding import LOSSLESS, NONE, PLANES
from ionn.costs.loading import costs_from_json
from ionn.costs.models import Costs, Scaled
from ionn.errors import InputError, NotAcceptedError, ProtocolError
from ionn.model.caffemodel import CodedFrames
from ionn.model.coded_weights import open_sidecar, stage_wire_bytes
from ionn.model.comparison import OutputCheck, unsteady_layer
from ionn.model.engine import StageNet, numerics
from ionn.model.network import Network
from ionn.model.partial_net import ExtractedPartition, extract
from ionn.model.slices import Piece, channels_of, stage_of
from ionn.model.weight_pieces import WeightPiece
from ionn.paper import MBPS
from ionn.planning.graph import ExecutionGraph
from ionn.planning.plan import Plan, empty_plan, make_plan
from ionn.planning.planners import get_planner
from ionn.planning.stored_weights import StoredPiece
from ionn.protocol.curve import ClientKeys
from ionn.protocol.messages import DIGESTS_MAX, Welcome
from ionn.protocol.sender import Upload, chunk_bytes_of, takes
from ionn.records import PartitionRecord

# How often progress is reported to a caller that waits for a partition.
PROGRESS_S = 0.2
# The share of its time in which a client that measures plans again.
_PLANNING_SHARE = 1 / 50
# How long a lost server may stay away before the upload counts as ended.
GIVE_UP_S = 20.0


@dataclass(frozen=True)
class Prepared:
    """A plan with the `partitions` that it uploads and the client's nets for its slices (`sliced`). For a client that
    measures, `estimate` is what the plan was made for, the `router` makes graphs for later estimates, and `graph` is
    that of the costs, without the estimates' factors."""

    graph: ExecutionGraph
    plan: Plan
    server: Costs
    partitions: Sequence[ExtractedPartition]
    sliced: Mapping[int, SlicedStage]
    estimate: Estimate | None = None
    router: Router | None = None


# Given the partitions (as pieces) that have begun and those that have not, prepares others in place of the latter, for
# the present estimate; None if the plan has to stay.
PrepareRest = Callable[[Sequence[Sequence[Piece]], Sequence[Sequence[Piece]]], Prepared | None]


class Offloading:
    """A network at this client, and perhaps a server that runs stages of it as they arrive there. Close it when done.

    `executor` runs queries. `partitions` are uploaded in order, and `pieces[i]` are the pieces of `partitions[i]`; the
    other arguments are the executor's. Without partitions, `prepare` makes them when the server's costs are known.
    `fault` is why there is no client. `plan`, and the costs `server` with which it was made, are known if
    `open_offloading` made this.

    With `measuring`, partitions that have not begun are prepared again by `prepare_rest` when another estimate holds,
    in a thread of its own, and `plan` is the order that is carried out.
    """

    def __init__(
        self,
        network: Network,
        net: StageNet,
        graph: ExecutionGraph,
        client: Client | None = None,
        partitions: Sequence[ExtractedPartition] = (),
        pieces: Sequence[Sequence[Piece]] = (),
        sliced: Mapping[int, SlicedStage] | None = None,
        layer_ms: Sequence[float] | None = None,
        dilation: float = 1.0,
        *,
        auditor: Auditor | None = None,
        prepare: Callable[[dict[str, Any]], Prepared] | None = None,
        fault: Exception | None = None,
        measuring: Measuring | None = None,
        prepare_rest: PrepareRest | None = None,
    ) -> None:
        self.executor = QueryExecutor(
            network, net, graph, client, pieces, sliced or {}, layer_ms, dilation, auditor, measuring
        )
        self.executor.before_query = self._before_query
        self.measuring = measuring
        self.network = network
        self.graph = graph
        self.plan: Plan | None = None
        self.server: Costs | None = None
        self._client = client
        self._partitions = partitions
        self._pieces = pieces
        self._prepare = prepare
        self._prepare_rest = prepare_rest
        self._estimate: Estimate | None = None  # the one for which the plan was made
        self._estimate_changed, self._closed = threading.Event(), threading.Event()
        self._planning: threading.Thread | None = None
        self._rest: tuple[int, Prepared] | None = None  # what is to follow the first so many partitions
        self._is_told = False  # whether the user was told that a planner fails
        self._fault = fault
        layer = unsteady_layer(network)
        self._unsteady = "" if layer is None else layer.type

    @property
    def upload(self) -> Upload | None:
        """Return the upload that is under way or has ended, if there is one."""
        return self._client.upload if self._client is not None else None

    @property
    def planned(self) -> bool:
        """Tell whether there is a plan, which needs the server's costs."""
        return self._client is None or self._prepare is None or self.upload is not None

    @property
    def total_bytes(self) -> int:
        """Return the bytes of all partitions' caffemodels."""
        return sum(partition.caffemodel.size for partition in self._partitions)

    @property
    def uploaded_bytes(self) -> int:
        return self.upload.sent_bytes if self.upload else 0

    @property
    def fault(self) -> Exception | None:
        """Return why the server is lost, or why the upload ended early; None if neither is the case."""
        if self._client is None:
            return self._fault
        return self._client.fault or (self.upload.error if self.upload else None)

    @property
    def output_check(self) -> OutputCheck:
        """Return how outputs are compared with those of the client alone, given the servers so far."""
        return OutputCheck(numerics(), self._client.numerics if self._client is not None else (), self._unsteady)

    def start_upload(self, now_s: Callable[[], float] = time.monotonic) -> None:
        """Begin to upload, in the background; `now_s` is the clock of the records. To be called once."""
        if self._client is None:
            return
        if self.measuring is not None:
            self.measuring.begin(now_s)
            self._client.look = self._look
            self._planning = threading.Thread(target=self._keep_planning, name="ionn planning", daemon=True)
            self._planning.start()
        if self._prepare is not None:
            self._client.start_upload_when_known(self._plan_for, now_s)
        elif self._partitions or self.measuring is not None:
            self._client.start_upload(self._partitions, now_s)

    def _plan_for(self, costs: dict[str, Any]) -> Sequence[ExtractedPartition]:
        """The partitions for a server that has sent these costs."""
        assert self._prepare is not None
        prepared = self._prepare(costs)
        with self.executor.computing:
            self.adopt(prepared)
        return self._partitions

    def adopt(self, prepared: Prepared) -> None:
        """Use another plan, of which nothing is uploaded yet. To be called while nobody else uses the net."""
        self.graph, self.plan, self.server = prepared.graph, prepared.plan, prepared.server
        self._partitions = prepared.partitions
        self._pieces = prepared.plan.uploads
        self.executor.adopt(self.graph, self._pieces, prepared.sliced, prepared.router)
        self._estimate = prepared.estimate

    # --- Planning again, in a thread of its own beside queries and upload ---------------------------------------------

    def _look(self) -> None:
        """Have the thread plan again if another estimate holds than that of the plan."""
        if self.measuring is not None and self.measuring.current() != self._estimate:
            self._estimate_changed.set()

    def _before_query(self) -> None:
        """Adopt a new plan before a query, while holding `computing`. The thread itself may never get hold of that
        beside queries without a pause."""
        self._adopt_rest()
        self._look()

    def _keep_planning(self) -> None:
        """Plan again whenever another estimate holds, for _PLANNING_SHARE of the time at most."""
        pause_s = 0.0
        while not self._closed.wait(pause_s):
            self._estimate_changed.wait()
            self._estimate_changed.clear()
            began_s = time.monotonic()
            self._plan_again()
            with self.executor.computing:
                self._adopt_rest()
            pause_s = (time.monotonic() - began_s) / _PLANNING_SHARE

    def _plan_again(self) -> None:
        """Prepare the partitions that have not begun again, for the present estimate."""
        upload = self.upload
        if self._prepare_rest is None or self.measuring is None or upload is None or self._closed.is_set():
            return
        if upload.error is not None:  # nothing more will be uploaded
            return
        estimate, begun = self.measuring.current(), upload.begun
        try:
            rest = None
            if self.plan is None or not self.plan.held:  # else the plan depends on no estimate
                rest = self._prepare_rest(self._pieces[:begun], self._pieces[begun:])
        except InputError as error:  # a planner of the user's own fails, which made the first plan
            rest = None
            if not self._is_told:
                print(f"ionn: {error}; what it planned before stays", file=sys.stderr)
                self._is_told = True
        if rest is None:
            self._estimate = estimate
        else:
            self._rest = begun, rest

    def _adopt_rest(self) -> None:
        """Upload what was prepared again, unless another partition has begun meanwhile. Called while holding
        `computing`."""
        upload = self.upload
        if self._rest is None or self._client is None or upload is None or self.plan is None:
            return
        (begun, rest), self._rest = self._rest, None
        if not upload.replace_rest(begun, rest.partitions):
            return
        new = [replace(partition, index=begun + partition.index) for partition in rest.plan.partitions]
        self._pieces = [*self._pieces[:begun], *rest.plan.uploads]
        self._partitions = [*self._partitions[:begun], *rest.partitions]
        self.executor.adopt(rest.graph, self._pieces, rest.sliced, rest.router)
        partitions = (*self.plan.partitions[:begun], *new)
        self.plan = replace(self.plan, mbps=rest.plan.mbps, best_ms=rest.plan.best_ms, partitions=partitions)
        self._client.wake()
        self._estimate = rest.estimate

    def close(self) -> None:
        """Stop planning. Waits for a planner that is at work."""
        self._closed.set()
        self._estimate_changed.set()
        if self._planning is not None:
            self._planning.join()

    def wait_for_first_partition(self, on_progress: Callable[[], None] = lambda: None) -> None:
        """Wait until the first partition is ready, or until the upload has ended or the server is lost. Returns at once
        if the client measures, since each query then waits by itself if that makes it faster."""
        upload = None if self.measuring is not None else self.upload
        while upload is not None and not upload.ended and self.fault is None:
            if upload.wait_ready(1, timeout_s=PROGRESS_S):
                return
            on_progress()

    def uploaded(self, give_up_s: float = GIVE_UP_S) -> bool:
        """Tell whether nothing more will arrive: the upload has ended, or the server has been lost for `give_up_s`."""
        if self._client is None:
            return True
        upload = self.upload
        if self.planned if upload is None else upload.ended:
            return True
        return self._client.fault is not None and time.monotonic() - self._client.lost_s > give_up_s

    def wait_stored(self, timeout_s: float) -> bool:
        """Wait until a server with a store has stored the weights that were uploaded; whether it has."""
        return self._client is not None and self._client.wait_stored(timeout_s)

    def records(self) -> list[PartitionRecord]:
        """Return the records of what was uploaded, in the order of the plan."""
        if self.upload is None:
            return []
        stages = self.network.stages
        names = [tuple(stages[stage_of(piece)].name for piece in pieces) for pieces in self._pieces]
        return self.upload.records(names)


@contextlib.contextmanager
def open_offloading(
    network: Network,
    net: StageNet,
    here: Costs,
    address: str,
    mbps: float | None,
    algorithm: str,
    *,
    coding: str = NONE,
    weights_file: Path | None = None,
    there: Costs | None = None,
    keys: ClientKeys | None = None,
    paced: bool = False,
    dilation: float = 1.0,
    may_be_lost: bool = False,
    auditor: Auditor | None = None,
    yields: bool = False,
) -> Iterator[Offloading]:
    """Connect to a server, and plan with the costs that it sends, or with the costs `there`.

    `net` is the network at this client, which is a device with the costs `here`, or is `paced` to them. The link
    carries `mbps`; if that is None, it is measured, and plans and routes follow the estimates. `coding` says what may
    be coded on the link. Client and link are slowed down by `dilation`. `auditor` checks the server's answers.
    `weights_file` is the caffemodel of the net: if there is a sidecar beside it, weights are coded (with the coding
    "lossless"), and those that the server's store has are not sent. An upload that `yields` holds weights back while a
    query is at the server.

    If no server answers, the context works without one, and uploads nothing. If the server `may_be_lost` from the
    beginning, the client looks for it again, and plans when it sends its costs. Raises InputError if the server sends
    no costs and none are given, and NotAcceptedError if it does not accept the keys, or the `auditor` does not accept
    it.
    """
    get_planner(algorithm)
    coded: CodedFrames = {}
    weight_pieces: Sequence[WeightPiece] = ()
    client: Client | None = None

    measuring = Measuring(dilation) if mbps is None else None
    inexact: set[int] = set()  # stages whose slices do not make the same bits as the whole here
    exact: set[tuple[Piece, ...]] = set()  # slices of a stage that do
    wire_bytes: dict[tuple[tuple[str, ...], int] | None, list[int]] = {}

    def coded_bytes(welcome: Welcome | None) -> list[int]:
        """The wire bytes of each stage's weights for a server that takes some coded frames. Counted once for a server,
        because graphs are made while queries wait."""
        taken = None if welcome is None else (welcome.codecs, chunk_bytes_of(welcome))
        if taken not in wire_bytes:
            frames = {
                name: [[frame for frame in blob if welcome is None or takes(welcome, frame)] for blob in blobs]
                for name, blobs in coded.items()
            }
            wire_bytes[taken] = stage_wire_bytes(network, frames)
        return wire_bytes[taken]

    def graph_with(server: Costs, estimate: Estimate) -> ExecutionGraph:
        welcome = client.welcome if client is not None else None
        coding_there = coding if welcome is None or PLANES in welcome.codecs else NONE
        graph = ExecutionGraph.from_network(
            network, Scaled(here, 1 / estimate.client_factor), Scaled(server, 1 / estimate.server_factor),
            estimate.mbps, coding_there, coded_bytes=coded_bytes(welcome), rtt_ms=estimate.rtt_ms,
        )  # fmt: skip
        graph = replace(graph, cuts=tuple(cut for cut in graph.cuts if cut.stage not in inexact))
        if client is None or welcome is None or not client.stored_pieces:
            return graph
        stored = _stored(weight_pieces, client.stored_pieces, {cut.stage for cut in graph.cuts})
        read_ms_per_mb = welcome.store_ms_per_mb * estimate.server_factor / dilation
        return graph.storing(stored, [stage.weight_bytes for stage in network.stages], read_ms_per_mb)

    def believed() -> Estimate:
        return Estimate(mbps or MBPS, 0.0) if measuring is None else measuring.current()

    def prepared(
        server: Costs,
        begun: Sequence[Sequence[Piece]] = (),
        router: Router | None = None,
        former: Sequence[Sequence[Piece]] | None = None,
    ) -> Prepared | None:
        """A plan of what follows the partitions that have `begun`. None if the `former` plan had the same, or if a
        stage that has begun in slices would need slices that are not exact."""
        estimate, held = believed(), [piece for pieces in begun for piece in pieces]
        while True:
            graph = graph_with(server, estimate).holding(held)
            plan = make_plan(network, graph, algorithm, estimate.mbps)
            if former is not None and plan.uploads == list(former):
                return None
            pieces = [*begun, *plan.uploads]
            sliced = slice_stages(network, pieces, net)
            unchecked = {stage: each for stage, each in sliced.items() if _slices(stage, pieces) not in exact}
            if not (found := _inexact(net, unchecked) - inexact):
                exact.update(_slices(stage, pieces) for stage in unchecked)
                break
            if found & channels_of(held).keys():
                return None
            inexact.update(found)
        stages = [network.stages[each.stage] for each in graph.coded_weights]
        frames = {name: coded[name] for stage in stages for name in stage.layers if name in coded}
        weights = net.weights()
        partitions = [extract(network, each, weights, frames, weight_pieces) for each in plan.uploads]
        if measuring is None:
            return Prepared(graph, plan, server, partitions, sliced)
        router = router or Router(lambda estimate: graph_with(server, estimate), 1.0 if yields else FAIR_SHARE)
        return Prepared(
            graph_with(server, Estimate(estimate.mbps, 0.0)), plan, server, partitions, sliced, estimate, router
        )

    def first(server: Costs) -> Prepared:
        ready = prepared(server)
        assert ready is not None, "nothing has begun"
        return ready

    def prepare_rest(begun: Sequence[Sequence[Piece]], former: Sequence[Sequence[Piece]]) -> Prepared | None:
        assert offloading.server is not None
        return prepared(offloading.server, begun, offloading.executor.router, former)

    def prepare(sent: dict[str, Any]) -> Prepared:
        """Prepare for a server that has sent these costs. Raises InputError if it sent none, and ProtocolError for
        invalid costs, or costs of another network."""
        if not sent:
            raise InputError(
                f"{address}: the server sends no cost model; start it with 'ionn serve --costs FILE' "
                "(ionn calibrate writes one), or give --server COSTS"
            )
        try:
            server = Scaled(costs_from_json(sent, "its costs"), dilation)
            graph_with(server, believed())
        except InputError as error:
            raise ProtocolError(f"{address}: the server's costs cannot be used: {error}") from error
        return first(server)

    with contextlib.ExitStack() as stack:
        if weights_file is not None:
            try:
                if sidecar := open_sidecar(weights_file, network, net.weights()):
                    stack.enter_context(sidecar)
                    coded = sidecar.frames if coding == LOSSLESS else {}
                    weight_pieces = sidecar.pieces[:DIGESTS_MAX]  # a server may be asked for no more
            except InputError as error:  # this does no harm: weights are sent raw
                print(f"ionn: {error}", file=sys.stderr)
        fault: Exception | None = None
        ready: Prepared | None = None
        try:
            digests = [piece.sha256 for piece in weight_pieces]
            client = Client(
                address, keys, may_be_lost=may_be_lost, yields=yields, measuring=measuring, digests=digests,
                check=auditor.check_server if auditor is not None else lambda numerics: None,
            )  # fmt: skip
            stack.callback(client.close)
            if there is not None:
                ready = first(Scaled(there, dilation))
            elif client.fault is None:
                ready = prepare(client.costs)
        except NotAcceptedError:  # waiting does not help
            raise
        except FAULTS as error:
            client, fault = None, error
        known = ready is not None
        if ready is None:
            graph = graph_with(here, believed())  # the server's costs have no effect: nothing is uploaded
            ready = Prepared(graph, empty_plan(network, graph, algorithm, believed().mbps), here, (), {})
        pace_ms = (here.layer_ms(network) * dilation).tolist() if paced else None
        offloading = Offloading(
            network, net, ready.graph, client, layer_ms=pace_ms, dilation=dilation,
            auditor=auditor, prepare=None if known else prepare, fault=fault,
            measuring=measuring, prepare_rest=prepare_rest,
        )  # fmt: skip
        stack.callback(offloading.close)
        offloading.adopt(ready)
        yield offloading


def _stored(pieces: Sequence[WeightPiece], digests: Set[str], cut: Set[int]) -> list[StoredPiece]:
    """The weight pieces that a server's store has, by their digests; `cut` are the stages that can be sliced."""
    return [
        StoredPiece(layout.stage, layout.channels if layout.stage in cut else None, layout.raw_bytes)
        for layout, digest in pieces
        if digest in digests
    ]


def _slices(stage: int, partitions: Sequence[Sequence[Piece]]) -> tuple[Piece, ...]:
    """The pieces of a stage in partitions."""
    return tuple(piece for pieces in partitions for piece in pieces if stage_of(piece) == stage)


def _inexact(net: StageNet, sliced: Mapping[int, SlicedStage]) -> set[int]:
    """The stages whose slices do not make the same bits as the whole stage, on random data."""
    inexact = set()
    random = np.random.default_rng(0)
    for stage in sliced:
        data = random.standard_normal(net.input_shape(stage), np.float32)
        with net.lock:
            net.put(stage, data)
            net.run(stage, stage)
            output = net.outputs(stage)[0].copy()
        if not sliced[stage].exact(data, output):
            inexact.add(stage)
    return inexact
