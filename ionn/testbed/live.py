"""The live testbed: client, link and server are processes, Caffe computes every layer, and time is real."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ionn.client.offloading import Offloading, open_offloading
from ionn.coding import LOSSLESS
from ionn.costs.models import Costs
from ionn.model.caffemodel import Floats
from ionn.model.coded_weights import sizes_digest, wire_bytes
from ionn.model.engine import StageNet, environment
from ionn.model.inputs import query_inputs
from ionn.model.network import Network
from ionn.planning.graph import ExecutionGraph
from ionn.protocol.curve import ClientKeys
from ionn.testbed.bandwidth import Bandwidth
from ionn.testbed.experiment import run_experiment
from ionn.testbed.live_session import LiveSession
from ionn.testbed.other_load import recorded_load
from ionn.testbed.settings import YIELD, Settings
from ionn.testbed.trace import RunInfo, Trace, run_digests

# At its end, a run waits at most so long until the server has stored the weights, so that the next run finds them.
_STORED_S = 10.0


@dataclass(frozen=True)
class Subject:
    """The subject of live runs: a network with its weights, loaded at the client, and the costs of the client's device.

    A `paced` client is slowed down to these costs; otherwise they are those of this machine. `weights_file` is the file
    that the weights were read from.
    """

    network: Network
    net: StageNet
    client: Costs
    paced: bool = True
    weights_file: Path | None = None

    def digests(self, algorithm: str, coding: str) -> dict[str, str]:
        """The `RunInfo.digests` of a run, planned by an algorithm."""
        digests = run_digests(self.network, algorithm)
        return digests if coding != LOSSLESS else {**digests, "coded": self._coded_digest}

    @functools.cached_property
    def _coded_digest(self) -> str:
        """A digest of the sizes of the coded weights; "" if there are none that can be used."""
        sizes = self.weights_file and wire_bytes(self.weights_file, self.network, self.weights)
        return sizes_digest(sizes) if sizes else ""

    @property
    def weights(self) -> Mapping[str, Sequence[Floats]]:
        """The loaded weights. The file may have changed meanwhile, and both ends must have the same weights."""
        return self.net.weights()


def run_live(
    subject: Subject,
    algorithm: str,
    settings: Settings,
    address: str,
    run: int = 1,
    server: Costs | None = None,
    keys: ClientKeys | None = None,
    progress: Callable[[LiveSession], None] = lambda session: None,
    bandwidth: Bandwidth | None = None,
    begin: Callable[[], None] = lambda: None,
) -> Trace:
    """Make one run of the experiment with the server at `address`: connect, plan, upload, query.

    - `server`: the server's costs to plan with, by default those that the server sends. `keys`: for a server with keys.
    - `bandwidth`: that of the link which the settings name. `begin` is called to have it begin anew: before the client
      connects, and when the run's clock begins.

    If the settings have no bandwidth, the client measures. What the server holds by the plan is uploaded before the run
    begins. If the server is lost, queries run at the client, and the trace's `RunInfo.fault` says so.
    """
    begin()
    with open_offloading(
        subject.network, subject.net, subject.client, address, settings.mbps, algorithm,
        coding=settings.coding, weights_file=subject.weights_file, there=server, keys=keys, paced=subject.paced,
        dilation=settings.dilation, yields=settings.upload == YIELD,
    ) as offloading:  # fmt: skip
        assert offloading.plan is not None
        assert offloading.server is not None
        sent = "" if server else offloading.server.name
        info = RunInfo(
            settings, run, offloading.plan, offloading.graph, sent, dict(environment()),
            digests=subject.digests(algorithm, settings.coding), bandwidth=bandwidth,
        )  # fmt: skip
        session = LiveSession(offloading, subject.net, query_inputs(subject.network, settings.seed), progress, begin)
        session.preinstall()
        with recorded_load(session.now_s) as loads:
            trace = run_experiment(session, info)
        trace = dataclasses.replace(trace, loads=tuple(loads))
        offloading.wait_stored(_STORED_S)
    fault = None if offloading.fault is None else str(offloading.fault)
    info = dataclasses.replace(
        info, graph=_measured(offloading, settings.dilation), fault=fault, output_check=offloading.output_check
    )
    if (measuring := offloading.measuring) is None:
        return dataclasses.replace(trace, info=info)
    # A client that measures plans again: the trace has the partitions that were uploaded, in their order.
    plan = dataclasses.replace(offloading.plan, partitions=offloading.plan.partitions[: len(trace.partitions)])
    info = dataclasses.replace(info, plan=plan)
    return dataclasses.replace(trace, info=info, estimates=tuple(measuring.records))


def _measured(offloading: Offloading, dilation: float) -> ExecutionGraph:
    """The graph with the times that stages took in the session, undilated."""
    graph = offloading.graph
    costs = {"client": graph.client_ms.copy(), "server": graph.server_ms.copy()}
    for where, stage_ms in costs.items():
        for stage, ms in offloading.executor.measured_ms(where).items():
            stage_ms[stage] = ms / dilation
    return dataclasses.replace(graph, client_ms=costs["client"], server_ms=costs["server"])
