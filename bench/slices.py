"""What is left of slices when all are there: AlexNet's largest stages, uploaded whole and in the slices of its plan.

Two sessions at a server, without sockets, in turns; the fastest run counts. And what a slice takes at the server beyond
its bytes: checking and building its net, and copying its rows to the whole. About 15 s.
"""

from __future__ import annotations

import hashlib
import time

import numpy as np
import support

from ionn import paper
from ionn.model.caffemodel import read_weights, weights_path
from ionn.model.partial_net import ExtractedPartition, extract
from ionn.model.slices import Piece, Slice
from ionn.planning.plan import make_plan
from ionn.planning.slice_costs import SLICE_MS
from ionn.protocol import messages
from ionn.server.limits import Limits
from ionn.server.worker import SessionState

MODEL = "alexnet"
RUNS = 40
# Two sessions with the same nets differ by that much, from where their memory happens to lie.
MOST_RATIO = 1.05


def upload(session: SessionState, number: int, sent: ExtractedPartition) -> tuple[float, float]:
    """Have a session take a partition; the time in ms for its header, and for its end."""
    model = sent.caffemodel
    upload = [
        messages.PartitionHeader(number, sent.nets, model.blobs, model.size),
        *(messages.make_chunk(number, offset, parts) for offset, parts in model.chunks(messages.CHUNK_BYTES)),
        messages.PartitionEnd(number, hashlib.sha256(model.tobytes()).hexdigest()),
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
    ratios, beyond_ms = {}, []
    for stage, slices in pieces.items():
        sessions = {}
        uploads: dict[str, list[Piece]] = {"whole": [stage], "sliced": slices}
        for name, parts in uploads.items():
            sessions[name] = SessionState("", {}, Limits(), lambda text: None)
            taken = [
                upload(sessions[name], number, extract(network, [piece], weights)) for number, piece in enumerate(parts)
            ]
        # The first has the whole stage's net built, and the last one frees what is left.
        beyond_ms += [sum(times) for times in taken[1:-1]]
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
    print()
    return [
        *((f"{name}: run time joined from slices / as one upload", MOST_RATIO, r, "") for name, r in ratios.items()),
        ("a slice at the server beyond its bytes", SLICE_MS, min(beyond_ms), "ms"),
    ]


def run(session: SessionState, stage: int, data: bytes) -> float:
    result = session.handle(messages.Query(1, stage, stage, (data,)))
    assert isinstance(result, messages.Result), result
    return result.stage_ms[0]


if __name__ == "__main__":
    support.main(rows)
