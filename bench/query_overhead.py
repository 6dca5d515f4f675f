"""Query overhead: the time of an offloaded query besides its bytes on the link and its layers. About a minute.

The network is a chain of 41 convolutions whose input is an image (602 KB): 40 run at a server, uploaded as 1 partition
or as 40, and the last one at the client. The overhead is the query's latency less payload bytes / link rate and the
times of the layers at both ends. It is compared with what a message of as many bytes and its answer take in bare pyzmq,
through as many processes and the same kind of link, less their bytes / link rate. Bare pyzmq reads none of the bytes,
computes nothing meanwhile and copies nothing outside of the system, while an input must be copied into Caffe's blob.
The two sessions and pyzmq take turns, query by query, so that whatever changes on this machine affects all alike.

On the link, both ends sleep while the bytes are under way, and a processor that has slept for long is half as fast for
a while. The measurement without a link, but with the same pause before each query, shows how much that is.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence

import numpy as np
import support
import zmq

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
# Limits, in bare round trips.
MEDIAN_RATIO = 1.5
P99_RATIO = 1.5
# The connection's name, its rate in Mbps, the pause before each query in s, and the queries in each session.
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
    """A session with stages 1..40 uploaded, whose fastest route runs them at the server and the last stage here.
    `audit` is the share of the time for audits of the server. In the graph, all transfers take a ms, and those in
    `coded` are coded."""
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


class Bare:
    """Round trips of bare pyzmq to an address, with messages of so many bytes."""

    def __init__(self, address: str, size_bytes: int, stack: contextlib.ExitStack) -> None:
        context = stack.enter_context(zmq.Context())
        self._socket = stack.enter_context(context.socket(zmq.REQ))
        self._socket.connect(address)
        self._message = bytes(size_bytes)

    def round_trip_ms(self) -> float:
        began = time.perf_counter()
        self._socket.send(self._message, copy=False)
        self._socket.recv(copy=False)
        return (time.perf_counter() - began) * 1e3


def overheads_ms(
    network: Network, mbps: float | None, pause_s: float, queries: int
) -> tuple[dict[int, list[float]], list[float]]:
    """The overhead of every query, by the number of partitions; and that of bare round trips."""
    with contextlib.ExitStack() as stack:

        def through_link(address: str) -> str:
            if mbps is None:
                return address
            options = ("--listen", "tcp://127.0.0.1:0", "--to", address, "--mbps", str(mbps))
            return stack.enter_context(processes.process("link", *options))

        up, down = network.stages[1].input_shape, network.stages[SERVER_STAGES + 1].input_shape
        up_bytes, down_bytes = 4 * math.prod(up), 4 * math.prod(down)
        link_ms = 0.0 if mbps is None else (up_bytes + down_bytes) * 8 / mbps / 1e3
        address = through_link(stack.enter_context(processes.process("serve", "--bind", "tcp://127.0.0.1:0")))
        sessions = {count: session(network, address, count, stack) for count in PARTITIONS}
        bare = Bare(through_link(stack.enter_context(support.echo(down_bytes))), up_bytes, stack)
        result: dict[int, list[float]] = {count: [] for count in PARTITIONS}
        bare_ms = []
        for _ in range(WARM_UP + queries):
            for count, made in sessions.items():
                time.sleep(pause_s)
                query = made.query()
                assert [part.where for part in query.segments] == ["client", "server", "client"], made.offloading.fault
                assert query.bit_equal
                result[count].append(query.latency_ms - sum(part.compute_ms for part in query.segments) - link_ms)
            time.sleep(pause_s)
            bare_ms.append(bare.round_trip_ms() - link_ms)
    return {count: overhead_ms[WARM_UP:] for count, overhead_ms in result.items()}, bare_ms[WARM_UP:]


def rows() -> list[support.Row]:
    network = chain()
    result: list[support.Row] = []
    for link, mbps, pause_s, queries in LINKS:
        overheads, bare_ms = overheads_ms(network, mbps, pause_s, queries)
        support.keep(f"bare round trip, {link}", ms=[round(ms, 3) for ms in bare_ms])
        for count, overhead_ms in overheads.items():
            name = f"{link}, {count} partition{'s' if count > 1 else ''}"
            support.keep(f"query overhead, {name}", overhead_ms=[round(ms, 3) for ms in overhead_ms])
            for percent, limit in ((50, MEDIAN_RATIO), (99, P99_RATIO)):
                ours_ms, other_ms = np.percentile(overhead_ms, percent), np.percentile(bare_ms, percent)
                print(f"{name}, {percent} %: {ours_ms:.2f} ms, bare {other_ms:.2f} ms")
                what = f"query overhead, {name}, {percent} %, of a bare round trip's"
                result.append((what, limit, float(ours_ms / other_ms), ""))
    return result


if __name__ == "__main__":
    support.main(rows)
