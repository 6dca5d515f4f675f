"""Calibration: how well the fitted model predicts five networks that took no part in the fit, and why loading is free.

About 40 s: python bench/calibration.py. A server's work on a partition while it arrives (building its nets, copying its
chunks) is to be less than the time that a 1 Gbit/s link needs for its bytes, the building of any partition less than
what the sender's credit bridges at 80 Mbps, and what is left after the last byte next to nothing.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import support

from ionn import harness
from ionn.caffemodel import read_weights
from ionn.calibrate import calibrate
from ionn.engine import load_caffe
from ionn.network import Network
from ionn.partition import Partition, extract
from ionn.wire import CHUNK_BYTES, WINDOW_BYTES, Message, PartitionEnd, PartitionHeader, Ready, make_chunk
from ionn.worker import SessionState

CALIBRATION_S = 60.0
TOTAL_PERCENT = 10.0
HEAVY_PERCENT = 15.0
FAST_MBPS = 1000.0
AFTER_LAST_BYTE_MS = 1.0


@dataclass(frozen=True)
class Load:
    """What a server spends on a partition: at its header, on its chunks, and at its end."""

    model: str
    layers: int
    bytes: int
    build_ms: float
    copy_ms: float
    end_ms: float


def rows() -> list[support.Row]:
    return [*prediction_rows(), *load_rows()]


def prediction_rows() -> list[support.Row]:
    start_s = time.perf_counter()
    result = calibrate(support.MODELS)
    took_s = time.perf_counter() - start_s
    quality = result.quality
    support.keep("calibration", model=result.model.to_json(), table=quality.table().splitlines())
    print(f"\n{quality.table()}\n")
    return [
        ("calibration, with the measurement of five models", CALIBRATION_S, took_s, "s"),
        *(
            (f"total of {network.network}: |predicted / measured - 1|", TOTAL_PERCENT, abs(network.error) * 100, "%")
            for network in quality.networks
        ),
        (f"{quality.heavy.type}: median error", HEAVY_PERCENT, quality.heavy.median_error * 100, "%"),
    ]


def load_rows() -> list[support.Row]:
    load_caffe()
    loads = [load for model in support.MODELS for load in measure_loads(model)]
    support.keep("loading at a server", partitions=[vars(load) for load in loads])
    result = []
    for model in support.MODELS:
        own = [load for load in loads if load.model == model]
        work_ms = sum(load.build_ms + load.copy_ms for load in own)
        link_ms = sum(load.bytes for load in own) * 8 / FAST_MBPS / 1e3
        result.append((f"{model}: a server's work while {link_ms:.0f} ms of 1 Gbit/s bring it", link_ms, work_ms, "ms"))
    slowest = max(loads, key=lambda load: load.build_ms)
    credit_ms = WINDOW_BYTES * 8 / harness.MBPS / 1e3
    return [
        *result,
        (f"building a stage of {slowest.bytes / 1e6:.0f} MB, the slowest", credit_ms, slowest.build_ms, "ms"),
        ("after a stage's last byte, the slowest", AFTER_LAST_BYTE_MS, max(load.end_ms for load in loads), "ms"),
    ]


def measure_loads(model: str) -> Iterator[Load]:
    """Upload every stage of a model on its own into a session of this process."""
    network = Network.load(model)
    weights = read_weights(harness.weights_path(model, None), network)
    session = SessionState()
    for index, stage in enumerate(stage for stage in network.stages if not stage.pinned):
        partition = extract(network, [stage.index], weights)
        header, chunks, end = messages(index, partition)
        build_ms, _ = timed(session, [header])
        copy_ms, _ = timed(session, chunks)
        end_ms, replies = timed(session, [end])
        assert replies == [Ready(index)], f"{model}: the session refused {stage.name}: {replies}"
        yield Load(model, len(stage.layers), partition.caffemodel.size, build_ms, copy_ms, end_ms)


def messages(index: int, partition: Partition) -> tuple[Message, list[Message], Message]:
    model = partition.caffemodel
    digest = hashlib.sha256()
    chunks: list[Message] = []
    for offset, parts in model.chunks(CHUNK_BYTES):
        for part in parts:
            digest.update(part)
        chunks.append(make_chunk(index, offset, parts))
    header = PartitionHeader(index, partition.nets, model.blobs, model.size)
    return header, chunks, PartitionEnd(index, digest.hexdigest())


def timed(session: SessionState, sent: list[Message]) -> tuple[float, list[Message]]:
    """How long a session takes over some messages, in ms, and its replies."""
    start_s = time.perf_counter()
    replies = [reply for message in sent for reply in session.handle(message)]
    return (time.perf_counter() - start_s) * 1e3, replies


if __name__ == "__main__":
    support.main(rows)
