"""The live testbed: client, link and server as processes of this machine, real Caffe, real bytes, real time."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ionn import engine
from ionn.caffemodel import Floats
from ionn.client import FAULTS, Client
from ionn.cost_files import costs_from_json
from ionn.costs import Costs, Milliseconds, Profile
from ionn.engine import StageNet
from ionn.errors import InputError, IonnError, ProtocolError
from ionn.experiment import run_experiment
from ionn.graph import ExecutionGraph
from ionn.images import natural_images
from ionn.keys import ClientKeys
from ionn.network import Network
from ionn.partition import Partition, extract
from ionn.plan import Plan, empty_plan, make_plan
from ionn.planners import get_planner
from ionn.session import LiveSession
from ionn.shares import SlicedStage, slice_stages
from ionn.slicing import Piece
from ionn.trace import RunInfo, Trace

# Different pictures, so that an output cannot be right by being the previous one.
INPUTS = 8
# A process says where it listens within this time, Caffe's start included.
_START_S = 30.0
_STOP_S = 5.0


@contextlib.contextmanager
def process(*arguments: str, within: Sequence[str] = ()) -> Iterator[str]:
    """Run `ionn ARGUMENTS` (serve or link) beside this process, and no longer than it, however it ends; the address
    that it announces on its standard output.

    `within` is what its command line begins with, for example the command that enters another network.
    """
    command = [*within, sys.executable, "-m", "ionn", *arguments, "--stop-at-eof"]
    pipe = subprocess.PIPE
    child: subprocess.Popen[str] | None = None
    try:
        with _uninterrupted():
            # In a group of its own: a Ctrl-C is for this process, which then ends the other.
            child = subprocess.Popen(command, stdout=pipe, stdin=pipe, text=True, process_group=0)
        assert child.stdout is not None
        readable, _, _ = select.select([child.stdout], [], [], _START_S)
        if not readable:
            raise IonnError(f"'ionn {' '.join(arguments)}' was not ready within {_START_S:.0f} s")
        address = child.stdout.readline().strip()
        if not address:
            raise IonnError(f"'ionn {' '.join(arguments)}' ended before it was ready (exit code {child.wait()})")
        yield address
    finally:
        if child is not None:
            child.terminate()
            try:
                child.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Signals whose handlers may raise come when the block has ended. Threads but the main one have none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, frame: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
        if came:
            signal.raise_signal(came[0])


@contextlib.contextmanager
def start_testbed(mbps: float, costs: Path | None = None) -> Iterator[str]:
    """A server and a link of `mbps` in front of it, for as long as the context lasts: the address clients connect to.

    `costs` is the file of the cost model or profile that the server sends to its clients.
    """
    told = [] if costs is None else ["--costs", str(costs)]
    with (
        process("serve", "--bind", "tcp://127.0.0.1:0", *told) as server,
        process("link", "--listen", "tcp://127.0.0.1:0", "--to", server, "--mbps", str(mbps)) as link,
    ):
        yield link


def query_inputs(network: Network, seed: int) -> Sequence[Floats]:
    """Inputs for queries: photographs where the network takes images, else seeded noise."""
    if len(network.input_shape) == 4:
        images = natural_images(network.input_shape, INPUTS * network.input_shape[0])
        return list(images.reshape(INPUTS, *network.input_shape))
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(network.input_shape, np.float32) for _ in range(INPUTS)]


def profile_network(network: Network, net: StageNet, runs: int, progress: Callable[[], None] = lambda: None) -> Profile:
    """Time every layer of a network in this process."""
    data = query_inputs(network, seed=0)[0]
    return Profile.of(network, engine.time_layers(net, runs, data, progress), machine=machine())


def machine() -> dict[str, str]:
    """What this machine is, for the record."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return {
        "cpu": model,
        "cores": str(os.cpu_count()),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def environment() -> dict[str, str]:
    """Host, versions and BLAS, as every trace records them."""
    return {**machine(), **engine.versions(), "blas": engine.blas(), "blas_threads": engine.blas_threads()}


@dataclass(frozen=True)
class Scaled:
    """Costs divided by a factor: what a dilated testbed makes of a machine that is not paced."""

    costs: Costs
    factor: float

    @property
    def name(self) -> str:
        return self.costs.name if self.factor == 1 else f"{self.costs.name} / {self.factor:g}"

    def layer_ms(self, network: Network) -> Milliseconds:
        return self.costs.layer_ms(network) / self.factor

    def load_ms(self, network: Network) -> Milliseconds:
        return self.costs.load_ms(network) / self.factor

    def fixed_ms(self, network: Network) -> Milliseconds:
        return self.costs.fixed_ms(network) / self.factor

    def to_json(self) -> dict[str, Any]:
        return {**self.costs.to_json(), "divided_by": self.factor}


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
