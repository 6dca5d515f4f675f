"""What coded weights cost: to code them once ahead of time, and per MB at both ends of an upload. About 20 s.

The processor time of an upload is measured without sockets: at the client, to make all messages of the model's plan
(`ionn.protocol.sender`, which also hashes the weights); at the server, to take them (`ionn.protocol.receiver`). Both
once raw and once coded, per MB of weights before coding (10^6 bytes).
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import support

from ionn import paper
from ionn.coding import CODECS
from ionn.model import coded_weights
from ionn.model.caffemodel import CodedFrames, read_weights, weights_path
from ionn.model.coded_weights import Sidecar
from ionn.model.network import Network
from ionn.model.partial_net import extract
from ionn.protocol.messages import PROTOCOL, Ack, Chunk, Message, PartitionEnd, PartitionHeader, Ready, Welcome
from ionn.protocol.receiver import PartitionReceiver
from ionn.protocol.sender import Upload
from ionn.server.limits import Limits

MODEL = "resnet"
# The time that the paper's server is assumed to take to decode a MB.
DECODE_MS = 1.5
# The limit at the client per MB, which takes 100 ms on the paper's link.
SEND_MS = 2.0


def build_row(model: str, path: Path) -> support.Row:
    """How long it takes to code a model's weights, which `ionn models --build` does."""
    network = Network.load(model)
    weights = read_weights(weights_path(model, None), network)
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    coded_weights.write(path, network, weights)
    build_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    began_s = time.perf_counter()
    with Sidecar(path, network, weights) as sidecar:
        open_s = time.perf_counter() - began_s
        sizes = [(piece.raw_bytes, piece.wire_bytes) for piece in sidecar.index.pieces]
    raw_bytes, wire_bytes = map(sum, zip(*sizes, strict=True))
    support.keep(
        f"coding weights, {model}", build_s=build_s, cpu_s=cpu_s, open_s=open_s, raw_bytes=raw_bytes,
        wire_bytes=wire_bytes, pieces=len(sizes),
    )  # fmt: skip
    print(f"{model}: coded in {build_s:.2f} s ({cpu_s:.2f} s of processor), opened in {open_s:.2f} s, "
          f"{wire_bytes / raw_bytes:.3f} of {raw_bytes / 1e6:.1f} MB in {len(sizes)} pieces")  # fmt: skip
    return f"synthetic weights of {model}, coded, share of raw", 0.83, wire_bytes / raw_bytes, ""


def upload_ms_per_mb(network: Network, path: Path, frames: CodedFrames) -> tuple[float, float]:
    """The processor time of an upload at the client and at the server."""
    _, _, plan = support.paper_plan(network.name)
    weights = read_weights(path, network)
    partitions = [extract(network, part.stages, weights, frames) for part in plan.partitions]
    upload = Upload(partitions, time.monotonic)
    limits = Limits()
    upload.begin(Welcome(PROTOCOL, "token", int(limits.chunk_kb * 1e3), int(limits.window_kb * 1e3), codecs=CODECS))
    client_s = server_s = 0.0
    receivers: dict[int, PartitionReceiver] = {}
    while not upload.ended:
        began_s = time.thread_time()
        message = upload.next_message()
        assert message is not None
        taken_s = time.thread_time()
        answer = take(receivers, message)
        answered_s = time.thread_time()
        upload.take(answer)
        client_s += taken_s - began_s + time.thread_time() - answered_s
        server_s += answered_s - taken_s
    raw_mb = sum(partition.caffemodel.size for partition in partitions) / 1e6
    return client_s * 1e3 / raw_mb, server_s * 1e3 / raw_mb


def take(receivers: dict[int, PartitionReceiver], message: Message) -> Message:
    match message:
        case PartitionHeader():
            targets = [memoryview(bytearray(span.size)) for span in message.blobs]
            receivers[message.partition] = PartitionReceiver(message, targets)
            return Ack(message.partition, 0)
        case Chunk():
            receivers[message.partition].take(message)
            return Ack(message.partition, receivers[message.partition].received)
    assert isinstance(message, PartitionEnd)
    receivers[message.partition].finish(message)
    return Ready(message.partition)


def rows() -> list[support.Row]:
    result: list[support.Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for model in paper.MODELS:
            result.append(build_row(model, Path(folder, f"{model}.coded")))
        network, path = Network.load(MODEL), weights_path(MODEL, None)
        raw = upload_ms_per_mb(network, path, {})
        with Sidecar(Path(folder, f"{MODEL}.coded"), network, read_weights(path, network)) as sidecar:
            coded = upload_ms_per_mb(network, path, sidecar.frames)
    support.keep(f"processor time of an upload, {MODEL}, ms/MB", raw=raw, coded=coded)
    print(f"{MODEL}: ms of processor per MB at the client and the server: raw {raw[0]:.2f} and {raw[1]:.2f}, "
          f"coded {coded[0]:.2f} and {coded[1]:.2f}")  # fmt: skip
    return [
        *result,
        (f"processor time at the client, {MODEL}, coded, per MB", SEND_MS, coded[0], "ms"),
        (f"processor time at the server for decoding, {MODEL}, per MB", DECODE_MS, coded[1] - raw[1], "ms"),
    ]


if __name__ == "__main__":
    support.main(rows)
