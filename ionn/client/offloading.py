"""What a client does for one network: plan what to upload to a server, upload it, and run queries meanwhile."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ionn.client.audit import Auditor
from ionn.client.executor import QueryExecutor
from ionn.client.session import FAULTS, Client
from ionn.client.sliced_stage import SlicedStage, slice_stages
from ionn.coding import LOSSLESS, NONE
from ionn.costs.loading import costs_from_json
from ionn.costs.models import Costs, Scaled
from ionn.errors import InputError, NotAcceptedError, ProtocolError
from ionn.model.caffemodel import CodedFrames, Floats
from ionn.model.coded_weights import open_sidecar, stage_wire_bytes
from ionn.model.engine import StageNet
from ionn.model.inputs import query_inputs
from ionn.model.network import Network
from ionn.model.partial_net import ExtractedPartition, extract
from ionn.model.slices import Piece, stage_of
from ionn.planning.graph import ExecutionGraph
from ionn.planning.plan import Plan, empty_plan, make_plan
from ionn.planning.planners import get_planner
from ionn.protocol.curve import ClientKeys
from ionn.protocol.sender import Upload
from ionn.records import PartitionRecord

# How often whoever waits for a partition is told how far the upload is.
PROGRESS_S = 0.2
# How long a lost server may stay away before the upload counts as ended.
GIVE_UP_S = 20.0


@dataclass(frozen=True)
class Prepared:
    """A plan with what it uploads, and the client's nets for its slices."""

    graph: ExecutionGraph
    plan: Plan
    server: Costs
    partitions: Sequence[ExtractedPartition]
    sliced: Mapping[int, SlicedStage]


class Offloading:
    """A network at this client, and perhaps a server that takes over its stages as they arrive there.

    `executor` runs its queries. `partitions` are uploaded in order, `pieces[i]` being what `partitions[i]` has; the
    other arguments are the executor's. Without partitions, `prepare` makes them when the server's costs are known.
    `fault` is why there is no client. `plan` and `server`, the costs that it was made with, are known where
    `open_offloading` made it.
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
    ) -> None:
        self.executor = QueryExecutor(network, net, graph, client, pieces, sliced, layer_ms, dilation, auditor)
        self.network = network
        self.graph = graph
        self.plan: Plan | None = None
        self.server: Costs | None = None
        self._client = client
        self._partitions = partitions
        self._pieces = pieces
        self._prepare = prepare
        self._fault = fault

    @property
    def upload(self) -> Upload | None:
        """The upload that is under way or has ended, if there is one."""
        return self._client.upload if self._client is not None else None

    @property
    def planned(self) -> bool:
        """Tell whether there is a plan: not before a server's costs are known."""
        return self._client is None or self._prepare is None or self.upload is not None

    @property
    def total_bytes(self) -> int:
        """The bytes of all partitions."""
        return sum(partition.caffemodel.size for partition in self._partitions)

    @property
    def uploaded_bytes(self) -> int:
        return self.upload.sent_bytes if self.upload else 0

    @property
    def fault(self) -> Exception | None:
        """Why the server is lost, or why it did not take the whole upload."""
        if self._client is None:
            return self._fault
        return self._client.fault or (self.upload.error if self.upload else None)

    def start_upload(self, now_s: Callable[[], float] = time.monotonic) -> None:
        """Begin to upload, in the background; `now_s` is the clock of the records. Once."""
        if self._client is None:
            return
        if self._prepare is not None:
            self._client.start_upload_when_known(self._plan_for, now_s)
        elif self._partitions:
            self._client.start_upload(self._partitions, now_s)

    def _plan_for(self, costs: dict[str, Any]) -> Sequence[ExtractedPartition]:
        """The partitions for a server with these costs, which is now known."""
        assert self._prepare is not None
        with self.executor.computing:
            self.adopt(self._prepare(costs))
        return self._partitions

    def adopt(self, prepared: Prepared) -> None:
        """Go by another plan, of which nothing is uploaded yet. Called while nobody else uses the net."""
        self.graph, self.plan, self.server = prepared.graph, prepared.plan, prepared.server
        self._partitions = prepared.partitions
        self._pieces = [partition.pieces for partition in prepared.plan.partitions]
        self.executor.adopt(self.graph, self._pieces, prepared.sliced)

    def wait_for_first_partition(self, on_progress: Callable[[], None] = lambda: None) -> None:
        """Return when the first partition is ready, or when nobody knows when it will be."""
        upload = self.upload
        while upload is not None and not upload.ended and self.fault is None:
            if upload.wait_ready(1, timeout_s=PROGRESS_S):
                return
            on_progress()

    def uploaded(self, give_up_s: float = GIVE_UP_S) -> bool:
        """Tell whether nothing more will arrive: all partitions are usable, or the server has been lost for
        `give_up_s`."""
        if self._client is None:
            return True
        upload = self.upload
        if self.planned if upload is None else upload.ended:
            return True
        return self._client.fault is not None and time.monotonic() - self._client.lost_s > give_up_s

    def records(self) -> list[PartitionRecord]:
        """Return what was uploaded, in the order of the plan."""
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
    mbps: float,
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
    """Connect to a server, and plan with the costs that it sends, or with those of `there`.

    `net` is the network at this client, which is a device with the costs `here`, or is `paced` to them. The link
    carries `mbps`, and `coding` says what may be coded on it; client and link are slowed down by `dilation`. `auditor`
    checks what the server answers. `weights_file` is the caffemodel of the net: weights are coded if there is a sidecar
    beside it. An upload that `yields` waits while a query is at the server.

    It works without a server too, and has nothing to upload then. If the server `may_be_lost` from the beginning, it is
    looked for again, and planned for when it sends its costs. Raises InputError where the server sends none, and
    NotAcceptedError where it does not take the keys.
    """
    get_planner(algorithm)
    coded: CodedFrames = {}

    def prepared(server: Costs, graph: ExecutionGraph) -> Prepared:
        graph, plan, sliced = _exact_plan(network, net, graph, algorithm, mbps)
        stages = [network.stages[each.stage] for each in graph.coded_weights]
        frames = {name: coded[name] for stage in stages for name in stage.layers if name in coded}
        partitions = [extract(network, partition.pieces, net.weights(), frames) for partition in plan.partitions]
        return Prepared(graph, plan, server, partitions, sliced)

    def graph_with(server: Costs) -> ExecutionGraph:
        return ExecutionGraph.from_network(
            network, here, server, mbps, coding, coded_bytes=stage_wire_bytes(network, coded)
        )

    def prepare(sent: dict[str, Any]) -> Prepared:
        """Prepare for a server that sends its costs. InputError if it sends none, ProtocolError if they are none, or
        not of this network."""
        if not sent:
            raise InputError(
                f"{address}: the server sends no cost model; start it with 'ionn serve --costs FILE' "
                "(ionn calibrate writes one), or give --server COSTS"
            )
        try:
            server = Scaled(costs_from_json(sent, "its costs"), dilation)
            graph = graph_with(server)
        except InputError as error:
            raise ProtocolError(f"{address}: the server's costs cannot be used: {error}") from error
        return prepared(server, graph)

    with contextlib.ExitStack() as stack:
        if coding == LOSSLESS and weights_file is not None:
            try:
                if sidecar := open_sidecar(weights_file, network, net.weights()):
                    coded = stack.enter_context(sidecar).frames
            except InputError as error:  # of no harm: weights go raw
                print(f"ionn: {error}", file=sys.stderr)
        client: Client | None = None
        fault: Exception | None = None
        ready: Prepared | None = None
        try:
            client = Client(address, keys, may_be_lost=may_be_lost, yields=yields)
            stack.callback(client.close)
            if there is not None:
                there = Scaled(there, dilation)
                ready = prepared(there, graph_with(there))
            elif client.fault is None:
                ready = prepare(client.costs)
        except NotAcceptedError:  # which waiting does not mend
            raise
        except FAULTS as error:
            client, fault = None, error
        known = ready is not None
        if ready is None:
            graph = graph_with(here)  # of no effect: nothing is uploaded
            ready = Prepared(graph, empty_plan(network, graph, algorithm, mbps), here, (), {})
        pace_ms = (here.layer_ms(network) * dilation).tolist() if paced else None
        offloading = Offloading(
            network, net, ready.graph, client, layer_ms=pace_ms, dilation=dilation,
            auditor=auditor, prepare=None if known else prepare, fault=fault,
        )  # fmt: skip
        offloading.adopt(ready)
        yield offloading


def _exact_plan(
    network: Network, net: StageNet, graph: ExecutionGraph, algorithm: str, mbps: float
) -> tuple[ExecutionGraph, Plan, dict[int, SlicedStage]]:
    """A plan, and the stages that it has in slices. A stage whose slices are not bit for bit the whole with this
    machine's BLAS is not cut: the graph returned is without that cut."""
    while True:
        plan = make_plan(network, graph, algorithm, mbps)
        sliced = slice_stages(network, [partition.pieces for partition in plan.partitions], net.weights())
        if not (inexact := _inexact(network, net, sliced)):
            return graph, plan, sliced
        graph = dataclasses.replace(graph, cuts=tuple(cut for cut in graph.cuts if cut.stage not in inexact))


def _inexact(network: Network, net: StageNet, sliced: Mapping[int, SlicedStage]) -> set[int]:
    """The stages whose slices are not bit for bit the whole."""
    if not sliced:
        return set()
    blob: Floats = query_inputs(network, seed=0, count=1)[0]
    inexact = set()
    # Stage by stage, as a later stage may work in place on the memory of an earlier one's output.
    for stage in range(max(sliced) + 1):
        net.put(stage, blob)
        net.run(stage, stage)
        output = net.outputs(stage)[0].copy()
        if stage in sliced and not sliced[stage].exact(blob, output):
            inexact.add(stage)
        blob = output
    return inexact
