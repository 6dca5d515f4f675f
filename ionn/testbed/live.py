"""The live testbed: client, link and server as processes of this machine, real Caffe, real bytes, real time."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ionn.client.session import FAULTS, Client
from ionn.client.sliced_stage import SlicedStage, slice_stages
from ionn.costs.loading import costs_from_json
from ionn.costs.models import Costs, Scaled
from ionn.errors import InputError, ProtocolError
from ionn.model.caffemodel import Floats
from ionn.model.engine import StageNet, environment
from ionn.model.inputs import query_inputs
from ionn.model.network import Network
from ionn.model.partial_net import Partition, extract
from ionn.model.slices import Piece
from ionn.planning.graph import ExecutionGraph
from ionn.planning.plan import Plan, empty_plan, make_plan
from ionn.planning.planners import get_planner
from ionn.protocol.curve import ClientKeys
from ionn.testbed.experiment import run_experiment
from ionn.testbed.live_session import LiveSession
from ionn.testbed.trace import RunInfo, Trace


@dataclass(frozen=True)
class Subject:
    """What live runs are about: a network with its weights, loaded at the client, and the device that the client is.

    It is paced to that device's costs, or, not `paced`, is the device.
    """

    network: Network
    net: StageNet
    client: Costs
    paced: bool = True

    @property
    def weights(self) -> Mapping[str, Sequence[Floats]]:
        """Those that are loaded, not those of a file: what is uploaded must compute what is computed here."""
        return self.net.weights()

    @property
    def device(self) -> str:
        """What traces call the client."""
        return self.client.name if self.paced else f"{self.client.name}, not paced"


@dataclass(frozen=True)
class Link:
    """Where the server is reached and over what: `mbps` undilated; link and client are slowed down by `dilation`.

    `keys` are for a server that has keys.
    """

    address: str
    mbps: float
    dilation: float = 1.0
    keys: ClientKeys | None = None


@dataclass
class Opened:
    """A session, and what it was planned with; that may be planned again, once a server is known.

    `fault` is why the session will never have a server, if so.
    """

    session: LiveSession
    graph: ExecutionGraph
    plan: Plan
    server: Costs
    fault: Exception | None


@contextlib.contextmanager
def open_session(
    subject: Subject,
    algorithm: str,
    link: Link,
    server: Costs | None,
    inputs: Sequence[Floats],
    progress: Callable[[LiveSession], None] = lambda session: None,
    may_be_lost: bool = False,
) -> Iterator[Opened]:
    """Connect, and plan with the costs that the server sends, or with `server`.

    The session works without a server too; it then has nothing to upload. If it `may_be_lost` from the beginning, the
    server is looked for again, and planned for when it sends its costs. Raises InputError where the server sends none.
    """
    network = subject.network
    client: Client | None = None
    fault: Exception | None = None
    get_planner(algorithm)
    with contextlib.ExitStack() as stack:
        graph: ExecutionGraph | None = None
        try:
            client = Client(link.address, link.keys, may_be_lost=may_be_lost)
            stack.callback(client.close)
            if server is not None:
                server = Scaled(server, link.dilation)
                graph = ExecutionGraph.from_network(network, subject.client, server, link.mbps)
            elif client.fault is None:
                server, graph = _sent_graph(subject, link, client.costs)
        except FAULTS as error:
            fault, client = error, None
        later = client is not None and graph is None
        sliced: dict[int, SlicedStage] = {}
        if client is None or graph is None:
            server = subject.client  # of no effect: nothing is uploaded
            graph = ExecutionGraph.from_network(network, subject.client, server, link.mbps)
            plan = empty_plan(network, graph, algorithm, link.mbps)
        else:
            graph, plan, sliced = _exact_plan(subject, graph, algorithm, link.mbps, inputs[0])

        def make(costs: dict[str, Any]) -> Sequence[Partition]:
            with session.computing:
                opened.server, graph = _sent_graph(subject, link, costs)
                opened.graph, opened.plan, sliced = _exact_plan(subject, graph, algorithm, link.mbps, inputs[0])
                partitions = _partitions(subject, opened.plan)
                session.adopt(opened.graph, partitions, _pieces(opened.plan), sliced)
            return partitions

        session = LiveSession(
            network, subject.net, graph,
            (subject.client.layer_ms(network) * link.dilation).tolist() if subject.paced else None, inputs, client,
            _partitions(subject, plan), _pieces(plan), progress, link.dilation, sliced, make if later else None,
        )  # fmt: skip
        assert server is not None
        opened = Opened(session, graph, plan, server, fault)
        yield opened


def _pieces(plan: Plan) -> list[tuple[Piece, ...]]:
    return [partition.pieces for partition in plan.partitions]


def _partitions(subject: Subject, plan: Plan) -> list[Partition]:
    weights = subject.weights
    return [extract(subject.network, pieces, weights) for pieces in _pieces(plan)]


def _sent_graph(subject: Subject, link: Link, sent: dict[str, Any]) -> tuple[Costs, ExecutionGraph]:
    """The costs that a server sent, and the graph with them.

    Raises InputError if it sent none, ProtocolError if they are none, or not of this network.
    """
    if not sent:
        raise InputError(
            f"{link.address}: the server sends no cost model; start it with 'ionn serve --costs FILE' "
            "(ionn calibrate writes one), or give --server COSTS"
        )
    try:
        server = Scaled(costs_from_json(sent, "its costs"), link.dilation)
        return server, ExecutionGraph.from_network(subject.network, subject.client, server, link.mbps)
    except InputError as error:
        raise ProtocolError(f"{link.address}: the server's costs cannot be used: {error}") from error


def run_live(
    subject: Subject,
    algorithm: str,
    link: Link,
    run: int = 1,
    server: Costs | None = None,
    seed: int = 0,
    progress: Callable[[LiveSession], None] = lambda session: None,
) -> Trace:
    """One run of the experiment: `open_session`, upload, query.

    Without a server the queries run at the client, and the trace's environment says so under "fault".
    """
    inputs = query_inputs(subject.network, seed)
    with open_session(subject, algorithm, link, server, inputs, progress) as opened:
        session, fault = opened.session, opened.fault
        info = RunInfo(
            testbed="live", model=subject.network.name, algorithm=algorithm, run=run, mbps=link.mbps, seed=seed,
            dilation=link.dilation, client=subject.device, server=opened.server.name, plan=opened.plan.to_json(),
            graph={}, environment=dict(environment()),
        )  # fmt: skip
        trace = run_experiment(session, info)
    fault = fault or session.fault
    if fault is not None:
        info.environment["fault"] = str(fault)
    measured = _measured(opened.graph, session, link.dilation)
    return dataclasses.replace(trace, info=dataclasses.replace(info, graph=measured.to_json()))


def _exact_plan(
    subject: Subject, graph: ExecutionGraph, algorithm: str, mbps: float, data: Floats
) -> tuple[ExecutionGraph, Plan, dict[int, SlicedStage]]:
    """A plan, and the stages that it has in slices. A stage whose slices are not bit for bit the whole with this
    machine's BLAS is not cut: the graph returned is without that cut."""
    while True:
        plan = make_plan(subject.network, graph, algorithm, mbps)
        sliced = slice_stages(subject.network, [partition.pieces for partition in plan.partitions], subject.weights)
        inexact = set()
        blob = data
        # Stage by stage, as a later stage may work in place on the memory of an earlier one's output.
        for stage in range(max(sliced, default=-1) + 1):
            subject.net.put(stage, blob)
            subject.net.run(stage, stage)
            output = subject.net.outputs(stage)[0].copy()
            if stage in sliced and not sliced[stage].exact(blob, output):
                inexact.add(stage)
            blob = output
        if not inexact:
            return graph, plan, sliced
        graph = dataclasses.replace(graph, cuts=tuple(cut for cut in graph.cuts if cut.stage not in inexact))


def _measured(graph: ExecutionGraph, session: LiveSession, dilation: float) -> ExecutionGraph:
    """The graph with the times that the stages took in the session, undilated."""
    costs = {"client": graph.client_ms.copy(), "server": graph.server_ms.copy()}
    for where, stage_ms in costs.items():
        for stage, ms in session.measured_ms(where).items():
            stage_ms[stage] = ms / dilation
    return dataclasses.replace(graph, client_ms=costs["client"], server_ms=costs["server"])
