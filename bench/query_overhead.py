"""Query overhead: what an offloaded query takes beyond its bytes on the link and its layers. About 50 s.

A chain of 41 convolutions whose input is an image (602 KB): 40 run at a server, uploaded as 1 partition or as 40, and
the last one at the client. The overhead is the query's latency less payload bytes / link rate and the times of the
layers at both ends. The two sessions take turns, query by query, so that whatever drifts on this machine meets both.

On the link both ends sleep while the bytes are under way, and a processor that has slept for long does everything at
half its speed for a while. How much that is can be seen where there is no link, but the same pause before each query.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

import numpy as np
import support

from ionn.client.audit import Auditor
from ionn.client.offloading import Offloading
from ionn.client.session import Client
from ionn.model import engine, inputs
from ionn.model.network import Network
from ionn.model.partial_net import extract
from ionn.planning.coding_costs import CodedTransfer
from ionn.planning.graph import ExecutionGraph
from ionn.testbed import processes
from ionn.testbed.live_session import LiveSession

SERVER_STAGES = 40
PARTITIONS = (1, 40)
CHANNELS = 8
WARM_UP = 5
MEDIAN_MS = 2.0
P99_MS = 6.0
# What is between the two processes, its rate in Mbps, a pause before each query, and their number in each session.
LINKS = (("loopback", None, 0.0, 500), ("loopback after 60 ms", None, 0.06, 120), ("80 Mbps", 80.0, 0.0, 200))


def chain() -> Network:
    """The input, `SERVER_STAGES` convolutions for the server and one for the client."""
    lines = [
        'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 224 dim: 224 } } }'
    ]
    bottom = "data"
    for index in range(SERVER_STAGES + 1):
        top, stride = f"conv{index}", 8 if index == 0 else 1
        lines.append(
            f'layer {{ name: "{top}" type: "Convolution" bottom: "{bottom}" top: "{top}" convolution_param '
            f"{{ num_output: {CHANNELS} kernel_size: 3 pad: 1 stride: {stride} }} }}"
        )
        bottom = top
    return Network.from_text("\n".join(lines), "chain")


def session(
    network: Network,
    address: str,
    partitions: int,
    stack: contextlib.ExitStack,
    audit: float = 0.0,
    coded: Sequence[CodedTransfer] = (),
) -> LiveSession:
    """A session with stages 1..40 uploaded, whose fastest route runs them there and the last stage here; a share of the
    time is for an `audit` of the server. Transfers that are `coded` take a ms in the graph, as all do."""
    rng = np.random.default_rng(0)
    weights = {
        layer.name: tuple(0.1 * rng.standard_normal(shape).astype(np.float32) for shape in layer.weight_shapes)
        for layer in network.layers
        if layer.weight_shapes
    }
    stages = [part.tolist() for part in np.array_split(np.arange(1, SERVER_STAGES + 1), partitions)]
    n = len(network.stages)
    graph = ExecutionGraph(
        stages=tuple(stage.name for stage in network.stages),
        client_ms=np.full(n, 100.0), server_ms=np.ones(n), upload_ms=np.ones(n), load_ms=np.zeros(n),
        up_ms=np.ones(n + 1), down_ms=np.ones(n + 1),
        offloadable=np.array([not stage.pinned for stage in network.stages]), coded=coded,
    )  # fmt: skip
    client = Client(address)
    stack.callback(client.close)
    net = engine.load_network(network, weights)
    auditor = Auditor(network, net, address, audit) if audit else None
    parts = [extract(network, part, weights) for part in stages]
    offloading = Offloading(network, net, graph, client, parts, stages, auditor=auditor)
    made = LiveSession(offloading, net, inputs.query_inputs(network, seed=0))
    made.start_upload()
    while not made.uploaded():
        time.sleep(0.01)
    return made


def overheads_ms(network: Network, mbps: float | None, pause_s: float, queries: int) -> dict[int, list[float]]:
    """The overhead of every query, by the number of partitions."""
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(processes.process("serve", "--bind", "tcp://127.0.0.1:0"))
        if mbps is not None:
            through = ("--to", address, "--mbps", str(mbps))
            address = stack.enter_context(processes.process("link", "--listen", "tcp://127.0.0.1:0", *through))
        sessions = {count: session(network, address, count, stack) for count in PARTITIONS}
        up, down = network.stages[1].input_shape, network.stages[SERVER_STAGES + 1].input_shape
        link_ms = 0.0 if mbps is None else 4 * (np.prod(up) + np.prod(down)) * 8 / mbps / 1e3
        result: dict[int, list[float]] = {count: [] for count in PARTITIONS}
        for _ in range(WARM_UP + queries):
            for count, made in sessions.items():
                time.sleep(pause_s)
                query = made.query()
                assert [part.where for part in query.segments] == ["client", "server", "client"], made.offloading.fault
                assert query.bit_equal
                result[count].append(query.latency_ms - sum(part.compute_ms for part in query.segments) - link_ms)
    return {count: overhead_ms[WARM_UP:] for count, overhead_ms in result.items()}


def rows() -> list[support.Row]:
    network = chain()
    result: list[support.Row] = []
    for link, mbps, pause_s, queries in LINKS:
        for count, overhead_ms in overheads_ms(network, mbps, pause_s, queries).items():
            name = f"{link}, {count} partition{'s' if count > 1 else ''}"
            support.keep(f"query overhead, {name}", overhead_ms=[round(ms, 3) for ms in overhead_ms])
            result += [
                (f"query overhead, {name}, median", MEDIAN_MS, float(np.median(overhead_ms)), "ms"),
                (f"query overhead, {name}, 99 %", P99_MS, float(np.percentile(overhead_ms, 99)), "ms"),
            ]
    return result


if __name__ == "__main__":
    support.main(rows)
