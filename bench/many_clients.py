"""Many clients at one server compared with as many bare pycaffe loops on the same cores. About a minute.

N sessions over unthrottled connections, each with weights of its own, raise queries as fast as they are answered; the
server runs all of MobileNet but its input and output layers. They are compared with N processes that only set the input
and call pycaffe's `forward` of the same layers. Both take turns. A rate is the sum of the processes' own rates. The
median of the turns' ratios counts, because something else may disturb one turn.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import support

from ionn.client.session import Client
from ionn.model import engine, inputs
from ionn.model.caffemodel import Floats, read_weights, weights_path
from ionn.model.network import Network
from ionn.model.partial_net import extract, extract_net
from ionn.testbed import processes

MODEL = "mobilenet"
COUNTS = (1, 2, 4, 8)
ROUNDS = 4
TURN_S = 1.5
RATE_SHARE = 0.9
FAIRNESS = 0.7


def subject(index: int) -> tuple[Network, dict[str, tuple[Floats, ...]], range, Floats]:
    """The network, the weights of process `index`, the stages that are computed, and their input."""
    network = Network.load(MODEL)
    stored = read_weights(weights_path(MODEL, None), network)
    weights = {name: tuple(blob * np.float32(1 + index / 100) for blob in blobs) for name, blobs in stored.items()}
    stages = [stage.index for stage in network.stages if not stage.pinned]
    return network, weights, range(stages[0], stages[-1] + 1), inputs.query_inputs(network, seed=0, count=1)[0]


def turns(channel: Connection, query: Callable[[], Any]) -> None:
    """For every number of seconds from the channel: query for so long, and answer with the queries per second."""
    query()
    channel.send(None)
    while (duration_s := channel.recv()) is not None:
        count, began = 0, time.perf_counter()
        while (elapsed_s := time.perf_counter() - began) < duration_s:
            query()
            count += 1
        channel.send(count / elapsed_s)


def bare(index: int, channel: Connection, address: str) -> None:
    caffe = engine.load_caffe()
    network, weights, stages, data = subject(index)
    with tempfile.NamedTemporaryFile("w", suffix=".prototxt") as file:
        file.write(extract_net(network, stages[0], stages[-1]).prototxt)
        file.flush()
        net = caffe.Net(file.name, caffe.TEST)
    for name, blobs in net.params.items():
        for blob, values in zip(blobs, weights[name], strict=True):
            blob.data[...] = values

    def query() -> None:
        net.blobs[network.stages[stages[0]].input].data[...] = data
        net.forward()

    turns(channel, query)


def served(index: int, channel: Connection, address: str) -> None:
    network, weights, stages, data = subject(index)
    client = Client(address)
    uploader = client.start_upload([extract(network, stages, weights)], time.monotonic)
    assert uploader.wait_ready(1, timeout_s=60), uploader.error
    turns(channel, lambda: client.run(stages[0], stages[-1], data))
    client.close()


def start(body: Callable[[int, Connection, str], None], address: str, stack: ExitStack) -> list[Connection]:
    """Start as many processes as ever run at once. Returns their channels when all are ready for their turns."""
    context = multiprocessing.get_context("spawn")
    channels = []
    for index in range(max(COUNTS)):
        channel, theirs = context.Pipe()
        process = context.Process(target=body, args=(index, theirs, address))
        process.start()
        stack.callback(process.join)
        stack.callback(channel.send, None)
        channels.append(channel)
    for channel in channels:
        channel.recv()
    return channels


def turn(channels: list[Connection]) -> list[float]:
    for channel in channels:
        channel.send(TURN_S)
    return [channel.recv() for channel in channels]


def rows() -> list[support.Row]:
    rates: dict[tuple[str, int], list[list[float]]] = {}
    with processes.process("serve", "--bind", "tcp://127.0.0.1:0") as address, ExitStack() as stack:
        sides = {"bare": start(bare, address, stack), "served": start(served, address, stack)}
        for count in COUNTS:
            for _ in range(ROUNDS):
                for side, channels in sides.items():
                    rates.setdefault((side, count), []).append(turn(channels[:count]))
    result: list[support.Row] = []
    for count in COUNTS:
        support.keep(f"many clients, {count}", bare_per_s=rates["bare", count], served_per_s=rates["served", count])
        bare_per_s, served_per_s = ([sum(each) for each in rates[side, count]] for side in ("bare", "served"))
        shares = [ours / theirs for ours, theirs in zip(served_per_s, bare_per_s, strict=True)]
        name = f"{count} client{'s' if count > 1 else ''}"
        measure = f"{name}, queries per second, of bare pycaffe's {statistics.mean(bare_per_s):.0f}, at least"
        result.append((measure, RATE_SHARE, statistics.median(shares), "x"))
        if count > 1:
            each = np.mean(rates["served", count], axis=0)
            result.append((f"{name}, slowest / mean, at least", FAIRNESS, float(each.min() / each.mean()), ""))
    return result


if __name__ == "__main__":
    support.main(rows)
