"""What slices cost: after they have all arrived, and when each of them arrives. About 15 s.

A stage that has arrived in slices should run as fast as one that was uploaded whole. AlexNet's sliced stages run in two
sessions at a server, without sockets, in turns; the fastest run counts.

When a slice arrives, the server checks and builds its net, and copies its rows into the whole stage's net. Stock
pycaffe takes turns with it, slice by slice: it builds the same net from a file and copies the same rows, as anybody who
receives slices with Caffe must, and checks nothing. The median of the ratios counts.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from typing import Any

import numpy as np
import support

from ionn import paper
from ionn.model.caffemodel import read_weights, weights_path
from ionn.model.engine import load_caffe
from ionn.model.partial_net import ExtractedPartition, extract, extract_net
from ionn.model.slices import Piece, Slice
from ionn.planning.plan import make_plan
from ionn.protocol import messages
from ionn.server.limits import Limits
from ionn.server.worker import SessionState

MODEL = "alexnet"
RUNS = 40
# Two sessions with the same nets differ by so much, depending on where their memory happens to lie.
MOST_RATIO = 1.05
# The limit of a slice beyond its bytes, in times of stock pycaffe's.
SLICE_RATIO = 1.5


def upload(session: SessionState, number: int, sent: ExtractedPartition) -> tuple[float, float]:
    """Have a session take a partition. Returns the times in ms for its header and for its end."""
    model = sent.caffemodel
    chunks = [messages.make_chunk(number, offset, parts) for offset, parts in model.chunks(messages.CHUNK_BYTES)]
    digest = hashlib.sha256()  # not of a copy of all, whose memory would be the net's next
    for chunk in chunks:
        digest.update(chunk.payload[0])
    upload = [
        messages.PartitionHeader(number, sent.nets, model.blobs, model.size),
        *chunks,
        messages.PartitionEnd(number, digest.hexdigest()),
    ]
    taken_ms = []
    for message in upload:
        began = time.perf_counter()
        answer = session.handle(message)
        taken_ms.append((time.perf_counter() - began) * 1e3)
        assert not isinstance(answer, messages.Error), answer
        while session.warm_up():
            pass
    return taken_ms[0], taken_ms[-1]


def build(prototxt: str) -> tuple[Any, float]:
    """A net that stock pycaffe builds from a file, and the time in s to build it."""
    caffe = load_caffe()
    with tempfile.NamedTemporaryFile("w", suffix=".prototxt") as file:
        file.write(prototxt)
        file.flush()
        began = time.perf_counter()
        return caffe.Net(file.name, caffe.TEST), time.perf_counter() - began


def stock_upload(whole: Any, piece: Slice, sent: ExtractedPartition) -> tuple[float, Any]:
    """The time in ms that stock pycaffe takes for a slice beyond its bytes, and the slice's net."""
    net, taken_s = build(sent.nets[0].prototxt)
    blobs = [
        (weights.data, rows.data[piece.begin : piece.end])
        for name, blobs in net.params.items()
        for weights, rows in zip(blobs, whole.params[name], strict=True)
    ]
    for weights, _ in blobs:
        weights[...] = 1  # its bytes come
    began = time.perf_counter()
    for weights, rows in blobs:
        rows[...] = weights
    return (taken_s + time.perf_counter() - began) * 1e3, net


def rows() -> list[support.Row]:
    print(__doc__)
    network, graph, _ = support.paper_plan(MODEL)
    weights = read_weights(weights_path(MODEL, None), network)
    plan = make_plan(network, graph, paper.SLICED, paper.MBPS)
    pieces: dict[int, list[Piece]] = {}
    for piece in (piece for partition in plan.partitions for piece in partition.pieces):
        if isinstance(piece, Slice):
            pieces.setdefault(piece.stage, []).append(piece)
    rng = np.random.default_rng(0)
    ratios: dict[str, float] = {}
    beyond_ms, stock_ms = [], []
    for stage, slices in pieces.items():
        sessions = {name: SessionState("", {}, Limits(), lambda text: None) for name in ("whole", "sliced")}
        upload(sessions["whole"], 0, extract(network, [stage], weights))
        stock, _ = build(extract_net(network, stage, stage).prototxt)
        stock.forward()  # which maps its memory
        nets = []  # of the slices: they stay until all are there
        for number, piece in enumerate(slices):
            assert isinstance(piece, Slice)
            sent = extract(network, [piece], weights)
            ours_ms = sum(upload(sessions["sliced"], number, sent))
            ms, net = stock_upload(stock, piece, sent)
            nets.append(net)
            # The first has the whole stage's net built, and the last one frees what is left.
            if 0 < number < len(slices) - 1:
                beyond_ms.append(ours_ms)
                stock_ms.append(ms)
        data = rng.standard_normal(network.stages[stage].input_shape).astype("<f4").tobytes()
        stage_ms: dict[str, list[float]] = {name: [] for name in sessions}
        for _ in range(RUNS):
            for name, session in sessions.items():
                stage_ms[name].append(run(session, stage, data))
        whole, sliced = (min(stage_ms[name]) for name in ("whole", "sliced"))
        name = network.stages[stage].name
        ratios[name] = sliced / whole
        support.keep(name, slices=len(slices), whole_ms=whole, sliced_ms=sliced)
        print(f"{name:<8} {len(slices):>3} slices: {whole:6.2f} ms as one upload, {sliced:6.2f} ms joined")
    support.keep("slices beyond their bytes", ours_ms=beyond_ms, stock_ms=stock_ms)
    ratio = float(np.median(np.array(beyond_ms) / np.array(stock_ms)))
    print(f"\na slice beyond its bytes: {np.median(beyond_ms):.2f} ms, stock pycaffe {np.median(stock_ms):.2f} ms\n")
    return [
        *((f"{name}: run time joined from slices / as one upload", MOST_RATIO, r, "") for name, r in ratios.items()),
        ("a slice at the server beyond its bytes, of stock pycaffe's", SLICE_RATIO, ratio, ""),
    ]


def run(session: SessionState, stage: int, data: bytes) -> float:
    result = session.handle(messages.Query(1, stage, stage, (data,)))
    assert isinstance(result, messages.Result), result
    return result.stage_ms[0]


if __name__ == "__main__":
    support.main(rows)
