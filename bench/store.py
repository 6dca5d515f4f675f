"""What a server's store costs: reading stored weights, asking for them, and what must not get slower by it. About 30 s.

Stored weights of AlexNet's size are read into the blobs of its net as a session does, file by file from the store
process, with their checksums; in turns with that, the same files are read into a buffer by read alone. Both come from
the system's memory. Two servers, one of them with a store, take turns for the rest: a session's start, and the last
answer of an upload, during which the pieces before it are given to the store.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import support
import zmq

from ionn.model import engine
from ionn.model.network import Network
from ionn.model.partial_net import extract
from ionn.protocol import messages
from ionn.server.store import SHARED, Store, StoreSettings
from ionn.server.store_access import StoreAccess
from ionn.server.store_process import StoreProcess
from ionn.testbed import processes

MODEL = "alexnet"
MBPS = 80.0
READS, STARTS, UPLOADS, QUESTIONS = 9, 40, 30, 20
READ_RATIO = 2.0
# They should take no longer with a store; two equal servers differ by so much.
START_RATIO, READY_RATIO = 1.2, 1.2
ASK_PERCENT = 1.0
SERVERS = ("store", "no store")


def reading(folder: Path) -> support.Row:
    """Compare reading a stored model with reading its files."""
    settings = StoreSettings(folder, 10**10, 10**10)
    network = Network.load(MODEL)
    blobs = list(engine.new_network(network).blob_bytes().values())
    floats = np.random.default_rng(0).standard_normal(messages.PIECE_BYTES_MAX // 4, np.float32)
    store = Store(settings)
    pieces: list[tuple[bytes, list[memoryview]]] = []
    for blob in blobs:
        for begin in range(0, len(blob), messages.PIECE_BYTES_MAX):
            view = blob[begin : begin + messages.PIECE_BYTES_MAX]
            floats[0] = len(pieces)  # each is another
            content = floats.view(np.uint8).data[: len(view)]
            pieces.append((hashlib.sha256(content).digest(), [view]))
            assert store.put(SHARED, pieces[-1][0], content)
    total_bytes = sum(map(len, blobs))
    paths = [folder / SHARED / digest[:1].hex() / digest.hex() for digest, _ in pieces]
    process = StoreProcess(settings, 10**9)
    while process.news() is None:
        time.sleep(0.01)
    access = StoreAccess(*process.session(SHARED))
    buffer = memoryview(bytearray(total_bytes))
    times_ms: dict[str, list[float]] = {"store": [], "files": []}
    for _ in range(READS):
        began = time.perf_counter()
        assert access.read(pieces) == []
        times_ms["store"].append((time.perf_counter() - began) * 1e3)
        began = time.perf_counter()
        at = 0
        for path, (_, (view,)) in zip(paths, pieces, strict=True):
            descriptor = os.open(path, os.O_RDONLY)
            at += os.readv(descriptor, [buffer[at : at + len(view)]])
            os.close(descriptor)
        times_ms["files"].append((time.perf_counter() - began) * 1e3)
        assert at == total_bytes
    process.close()
    support.keep("reading stored weights", bytes=total_bytes, pieces=len(pieces), **times_ms)
    medians_ms = {name: statistics.median(times) for name, times in times_ms.items()}
    note = f"{total_bytes / 1e6:.0f} MB, {medians_ms['store']:.0f} / {medians_ms['files']:.0f} ms"
    ratio = medians_ms["store"] / medians_ms["files"]
    return f"store: reading {MODEL}, with store / read alone ({note})", READ_RATIO, ratio, "x"


class Uploader:
    """Sessions that upload one partition of 4 MB each, with other weights each time."""

    def __init__(self, address: str, context: zmq.Context[Any]) -> None:
        self._address, self._context = address, context
        self._network = Network.from_text(
            'layer { name: "d" type: "Input" top: "d" input_param { shape { dim: 1 dim: 1000 } } } '
            'layer { name: "f" type: "InnerProduct" bottom: "d" top: "f" inner_product_param { num_output: 1000 } }',
            "large",
        )

    def _ask(self, socket: zmq.Socket[Any], message: messages.Message) -> messages.Message:
        socket.send_multipart(message.frames())
        answer = messages.decode(socket.recv_multipart())
        assert not isinstance(answer, messages.Error), answer
        return answer

    def ready_ms(self, seed: int) -> float:
        """The time from the end of a partition until it is ready."""
        weights = np.random.default_rng(seed).standard_normal((1000, 1000), np.float32)
        partition = extract(self._network, [1], {"f": (weights, np.zeros(1000, np.float32))})
        model = partition.caffemodel
        content = memoryview(model.tobytes())
        pieces = tuple(
            messages.AddressedPiece(
                hashlib.sha256(content[offset : offset + 400_000]).hexdigest(), ((offset, 400_000),), False
            )
            for offset in range(model.blobs[0].offset, model.blobs[0].offset + 4_000_000, 400_000)
        )
        socket = self._context.socket(zmq.DEALER)
        socket.linger = 0
        socket.connect(self._address)
        self._ask(socket, messages.Hello(messages.PROTOCOL, "control"))
        self._ask(socket, messages.PartitionHeader(0, partition.nets, model.blobs, model.size, pieces))
        for offset in range(0, model.size, messages.CHUNK_BYTES):
            part = content[offset : offset + messages.CHUNK_BYTES]
            self._ask(socket, messages.make_chunk(0, offset, [part]))
        end = messages.PartitionEnd(0, hashlib.sha256(content).hexdigest())
        began = time.perf_counter()
        self._ask(socket, end)
        elapsed_ms = (time.perf_counter() - began) * 1e3
        socket.send_multipart(messages.Bye().frames())
        socket.recv_multipart()
        socket.close()
        return elapsed_ms


def asking_ms(address: str, context: zmq.Context[Any], digests: int) -> float:
    """How long a server takes to answer that it has none of so many pieces, without a session's start."""
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    socket.connect(address)
    socket.send_multipart(messages.Hello(messages.PROTOCOL, "control").frames())
    socket.recv_multipart()
    began = time.perf_counter()
    socket.send_multipart(messages.Have((os.urandom(32 * digests),)).frames())
    answer = messages.decode(socket.recv_multipart())
    elapsed_ms = (time.perf_counter() - began) * 1e3
    assert isinstance(answer, messages.Holds)
    assert bytes(answer.payload[0]) == bytes(digests)
    socket.send_multipart(messages.Bye().frames())
    socket.recv_multipart()
    socket.close()
    return elapsed_ms


def rows() -> list[support.Row]:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        result = [reading(folder / "model")]
        store = ("--store", str(folder / "sessions"), "--store-gb", "10", "--store-shared")
        addresses = {
            name: stack.enter_context(
                processes.process("serve", "--bind", "tcp://127.0.0.1:0", *(store if name == "store" else ()))
            )
            for name in SERVERS
        }
        context: zmq.Context[Any] = stack.enter_context(zmq.Context())
        starts_ms: dict[str, list[float]] = {name: [] for name in SERVERS}
        ready_ms: dict[str, list[float]] = {name: [] for name in SERVERS}
        uploaders = {name: Uploader(address, context) for name, address in addresses.items()}
        for _ in range(STARTS):
            for name, address in addresses.items():
                starts_ms[name].append(support.start_ms(address))
        for number in range(UPLOADS):
            for name, uploader in uploaders.items():
                ready_ms[name].append(uploader.ready_ms(number))
        network = Network.load(MODEL)
        weight_bytes = sum(layer.weight_bytes for layer in network.layers)
        digests = weight_bytes // messages.PIECE_BYTES_MAX + len(network.layers)
        asked_ms = [asking_ms(addresses["store"], context, digests) for _ in range(QUESTIONS)]
    result += [
        support.with_and_without("store", "a session's start", starts_ms, START_RATIO),
        support.with_and_without("store", "a partition's end", ready_ms, READY_RATIO),
    ]
    support.keep("store, asking a server that has nothing", digests=digests, ms=asked_ms)
    upload_ms = weight_bytes * 8 / (MBPS * 1e3)
    percent = statistics.median(asked_ms) / upload_ms * 100
    note = f"{digests} pieces, {statistics.median(asked_ms):.2f} ms"
    result.append((f"store: asking in vain, of {MODEL}'s upload at {MBPS:g} Mbps ({note})", ASK_PERCENT, percent, "%"))
    return result


if __name__ == "__main__":
    support.main(rows)
