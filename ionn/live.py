"""The live testbed: client, link and server as processes of this machine, real Caffe, real bytes, real time."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ionn import engine
from ionn.caffemodel import Floats
from ionn.client import Client
from ionn.costs import Costs, Profile
from ionn.engine import StageNet
from ionn.errors import InputError, IonnError, ServerUnreachableError
from ionn.experiment import run_experiment
from ionn.graph import ExecutionGraph
from ionn.images import natural_images
from ionn.network import Network
from ionn.partition import extract
from ionn.plan import Plan
from ionn.session import LiveSession
from ionn.trace import RunInfo, Trace

# Different pictures, so that an output cannot be right by being the previous one.
INPUTS = 8
# A process says where it listens within this time, Caffe's start included.
_START_S = 30.0
_STOP_S = 5.0


@contextlib.contextmanager
def _process(*arguments: str) -> Iterator[str]:
    """Run `ionn ARGUMENTS` beside this process; the address it announces on its standard output."""
    command = [sys.executable, "-m", "ionn", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        if not address:
            raise IonnError(f"'ionn {' '.join(arguments)}' ended before it was ready (exit code {process.wait()})")
        yield address
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def testbed(mbps: float) -> Iterator[str]:
    """A server and a link of `mbps` in front of it, for as long as the context lasts: the address clients connect to."""
    with (
        _process("serve", "--bind", "tcp://127.0.0.1:0") as server,
        _process("link", "--listen", "tcp://127.0.0.1:0", "--to", server, "--mbps", str(mbps)) as link,
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
    return {"cpu": model, "cores": str(os.cpu_count()), "system": platform.platform(), "python": platform.python_version()}


def environment() -> dict[str, str]:
    """Host, versions and BLAS threads, as every trace records them."""
    return {**machine(), **engine.versions(), "blas_threads": str(engine.BLAS_THREADS)}


@dataclass(frozen=True)
class Scaled:
    """Costs divided by a factor: what a dilated testbed makes of a machine that is not paced."""

    costs: Costs
    factor: float

    @property
    def name(self) -> str:
        return self.costs.name if self.factor == 1 else f"{self.costs.name} / {self.factor:g}"

    def layer_ms(self, network: Network) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        return self.costs.layer_ms(network) / self.factor

    def load_ms(self, network: Network) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        return self.costs.load_ms(network) / self.factor


@dataclass(frozen=True)
class Subject:
    """What a live run is about: a network with its weights, loaded at the client, and the costs of both sides.

    `client` is the device that the client is paced to (None: not paced, it runs as this machine does, and `graph` holds
    this machine's costs).
    """

    network: Network
    weights: Mapping[str, Sequence[Floats]]
    net: StageNet
    client: Costs | None
    graph: ExecutionGraph
    names: tuple[str, str]  # of the client's and the server's costs


def run_live(
    subject: Subject,
    plan: Plan,
    address: str,
    run: int,
    mbps: float,
    dilation: float = 1.0,
    seed: int = 0,
    progress: Callable[[LiveSession], None] = lambda session: None,
) -> Trace:
    """One run of the experiment against the server at `address`.

    `mbps` is the undilated bandwidth that the plan was made for. Without a server the queries run at the client, and
    the trace's environment says so under "fault".
    """
    network = subject.network
    client: Client | None = None
    fault: Exception | None = None
    try:
        client = Client(address)
    except InputError:
        raise
    except IonnError as error:
        fault = error
    layer_ms = None if subject.client is None else (subject.client.layer_ms(network) * dilation).tolist()
    partitions = [extract(network, partition.stages, dict(subject.weights)) for partition in plan.partitions]
    try:
        session = LiveSession(
            network, subject.net, subject.graph, layer_ms, query_inputs(network, seed), client, partitions,
            [partition.stages for partition in plan.partitions], progress,
        )  # fmt: skip
        info = RunInfo(
            testbed="live", model=network.name, algorithm=plan.algorithm, run=run, mbps=mbps, seed=seed,
            dilation=dilation, client=subject.names[0], server=subject.names[1], plan=plan.to_json(),
            graph={}, environment=dict(environment()),
        )  # fmt: skip
        trace = run_experiment(session, info)
    finally:
        if client is not None:
            client.close()
    fault = fault or session.fault
    if fault is not None:
        info.environment["fault"] = str(fault)
    measured = _measured(subject.graph, session, dilation)
    return dataclasses.replace(trace, info=dataclasses.replace(info, graph=measured.to_json()))


def _measured(graph: ExecutionGraph, session: LiveSession, dilation: float) -> ExecutionGraph:
    """The graph with the times that the stages took in the session, undilated."""
    costs = {"client": graph.client_ms.copy(), "server": graph.server_ms.copy()}
    for where, stage_ms in costs.items():
        for stage, ms in session.measured_ms(where).items():
            stage_ms[stage] = ms / dilation
    return dataclasses.replace(graph, client_ms=costs["client"], server_ms=costs["server"])


def lost_server(trace: Trace) -> ServerUnreachableError | None:
    """The error of a run that had to go on without its server."""
    fault = trace.info.environment.get("fault")
    return None if fault is None else ServerUnreachableError(f"{fault}; the queries ran at the client")
