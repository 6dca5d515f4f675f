"""The live testbed: client, link and server as processes of this machine, real Caffe, real bytes, real time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ionn.client.offloading import Offloading, open_offloading
from ionn.costs.models import Costs
from ionn.model.caffemodel import Floats
from ionn.model.engine import StageNet, environment
from ionn.model.inputs import query_inputs
from ionn.model.network import Network
from ionn.planning.graph import ExecutionGraph
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


def run_live(
    subject: Subject,
    algorithm: str,
    link: Link,
    run: int = 1,
    server: Costs | None = None,
    seed: int = 0,
    progress: Callable[[LiveSession], None] = lambda session: None,
) -> Trace:
    """One run of the experiment: connect, plan, upload, query.

    Without a server the queries run at the client, and the trace's environment says so under "fault".
    """
    with open_offloading(
        subject.network, subject.net, subject.client, link.address, link.mbps, algorithm,
        there=server, keys=link.keys, paced=subject.paced, dilation=link.dilation,
    ) as offloading:  # fmt: skip
        assert offloading.plan is not None
        assert offloading.server is not None
        info = RunInfo(
            testbed="live", model=subject.network.name, algorithm=algorithm, run=run, mbps=link.mbps, seed=seed,
            dilation=link.dilation, client=subject.device, server=offloading.server.name,
            plan=offloading.plan.to_json(), graph={}, environment=dict(environment()),
        )  # fmt: skip
        session = LiveSession(offloading, subject.net, query_inputs(subject.network, seed), progress)
        trace = run_experiment(session, info)
    if offloading.fault is not None:
        info.environment["fault"] = str(offloading.fault)
    measured = _measured(offloading, link.dilation)
    return dataclasses.replace(trace, info=dataclasses.replace(info, graph=measured.to_json()))


def _measured(offloading: Offloading, dilation: float) -> ExecutionGraph:
    """The graph with the times that the stages took in a session, undilated."""
    graph = offloading.graph
    costs = {"client": graph.client_ms.copy(), "server": graph.server_ms.copy()}
    for where, stage_ms in costs.items():
        for stage, ms in offloading.executor.measured_ms(where).items():
            stage_ms[stage] = ms / dilation
    return dataclasses.replace(graph, client_ms=costs["client"], server_ms=costs["server"])
