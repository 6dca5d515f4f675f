"""Install latency: from the last byte of a partition at the server to READY and to the first query on it. About 40 s.

Every partition of the five models' plans (AlexNet's fc6, 151 MB, is one by itself) is measured two ways, raw and coded:
in a session alone, fed in this process with the bytes of the real messages, and at a real server over an unthrottled
connection, timed at the client from sending the last chunk. Before that chunk, all others are acknowledged and the
session is idle, as it is most of the time when a link brings them. A partition's time is the median over ROUNDS
sessions.

Memory: the peak of the anonymous resident memory of the server's two processes (front and session), read after every
chunk, less what they had before the upload. The limit is 1.15 x the weights, plus what the same nets take in bare Caffe
besides their weights (feature maps and convolution buffers) when every stage has run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import support
import zmq

from ionn import paper
from ionn.model import engine
from ionn.model.caffemodel import read_weights, weights_path
from ionn.model.coded_weights import open_sidecar
from ionn.model.network import Network
from ionn.model.partial_net import ExtractedPartition, extract, extract_net
from ionn.model.slices import runs_of
from ionn.protocol.messages import (
    CHUNK_BYTES,
    PROTOCOL,
    Ack,
    Bye,
    Chunk,
    Hello,
    Message,
    PartitionEnd,
    PartitionHeader,
    Ping,
    Pong,
    Query,
    Ready,
    Result,
    Welcome,
    decode,
    make_chunk,
)
from ionn.protocol.receiver import decoded_bytes
from ionn.server.limits import Limits
from ionn.server.worker import SessionState
from ionn.testbed import processes

ROUNDS = 3
QUERIES = 4  # on every new partition
READY_MS = 2.0
MEMORY = 1.15
# A session that answers a ping within this time does nothing else.
IDLE_S = 0.002
# What may come before a partition without its READY being 2 ms later for it.
PARTITIONS = 40


def messages(index: int, partition: ExtractedPartition) -> tuple[PartitionHeader, list[Chunk], PartitionEnd]:
    model = partition.caffemodel
    digest = hashlib.sha256()
    for piece in model.pieces:
        digest.update(piece)
    frames = {frame.offset: frame for frame in model.coded}
    chunks = []
    for offset, parts in model.chunks(CHUNK_BYTES, (end for frame in model.coded for end in (frame.offset, frame.end))):
        if frame := frames.get(offset):
            chunks.append(make_chunk(index, offset, [frame.read()], frame.codec, frame.raw_bytes))
        else:
            chunks.append(make_chunk(index, offset, parts))
    header = PartitionHeader(index, partition.nets, model.blobs, model.size)
    return header, chunks, PartitionEnd(index, digest.hexdigest())


class Alone:
    """A session without sockets. It gets messages as the bytes that a socket would deliver."""

    peak_bytes = 0
    watch_memory = False

    def __init__(self) -> None:
        self._state = SessionState("", {}, Limits(), lambda text: None)

    def _handle(self, message: Message) -> tuple[Message, float]:
        frames = [bytes(frame) for frame in message.frames()]
        began = time.perf_counter()
        reply = self._state.handle(decode(frames))
        reply.frames()
        return reply, (time.perf_counter() - began) * 1e3

    def install(self, header: PartitionHeader, chunks: Sequence[Chunk], end: PartitionEnd) -> float:
        """The time in ms from the last chunk to READY."""
        for message in (header, *chunks[:-1]):
            reply, _ = self._handle(message)
            assert isinstance(reply, Ack), reply
        while self._state.warm_up():  # as a session does while chunks are under way
            pass
        reply, last_ms = self._handle(chunks[-1])
        ready, end_ms = self._handle(end)
        assert isinstance(reply, Ack)
        assert isinstance(ready, Ready)
        return last_ms + end_ms

    def query(self, query: Query) -> float:
        """The time in ms from a query to its result."""
        result, ms = self._handle(query)
        assert isinstance(result, Result)
        return ms

    def close(self) -> None:
        pass


class Connected:
    """A session at a real server, as a client sees it."""

    def __init__(self, address: str) -> None:
        self.watch_memory = False
        before = descendants(os.getpid())
        self._context: zmq.Context[Any] = zmq.Context()
        self._control = self._connect(address, Hello(PROTOCOL, "control"))
        self._upload = self._connect(address, Hello(PROTOCOL, "upload", self._session))
        # The server's front process, and the session's, which is new.
        self._pids = [pid for pid in descendants(os.getpid()) if pid not in before or "\0serve\0" in command(pid)]
        self._idle_bytes = self._memory_bytes()
        self.peak_bytes = 0

    def _connect(self, address: str, hello: Hello) -> zmq.Socket[Any]:
        socket: zmq.Socket[Any] = self._context.socket(zmq.DEALER)
        socket.connect(address)
        socket.send_multipart(hello.frames())
        welcome = self._receive(socket)
        assert isinstance(welcome, Welcome)
        self._session, self._window_bytes = welcome.session, welcome.window_bytes
        return socket

    def _receive(self, socket: zmq.Socket[Any]) -> Message:
        assert socket.poll(30_000), "the server does not answer"
        return decode(socket.recv_multipart(copy=False))

    def install(self, header: PartitionHeader, chunks: Sequence[Chunk], end: PartitionEnd) -> float:
        self._upload.send_multipart(header.frames())
        assert isinstance(self._receive(self._upload), Ack)
        sent = received = 0
        for chunk in chunks[:-1]:
            self._upload.send_multipart(chunk.frames(), copy=False)
            sent += decoded_bytes(chunk)
            while sent - received > self._window_bytes - CHUNK_BYTES:
                received = self._acknowledged()
        while received < sent:
            received = self._acknowledged()
        self._wait_idle()
        began = time.perf_counter()
        self._upload.send_multipart(chunks[-1].frames(), copy=False)
        self._upload.send_multipart(end.frames())
        self._acknowledged()
        assert isinstance(self._receive(self._upload), Ready)
        return (time.perf_counter() - began) * 1e3

    def _wait_idle(self) -> None:
        """Return when the session answers at once, because it has no more nets to warm up."""
        quick = 0
        while quick < 2:
            began = time.perf_counter()
            self._control.send_multipart(Ping().frames())
            assert isinstance(self._receive(self._control), Pong)
            quick = quick + 1 if time.perf_counter() - began < IDLE_S else 0

    def _acknowledged(self) -> int:
        ack = self._receive(self._upload)
        assert isinstance(ack, Ack), ack
        if self.watch_memory:
            self.peak_bytes = max(self.peak_bytes, self._memory_bytes() - self._idle_bytes)
        return ack.received

    def query(self, query: Query) -> float:
        began = time.perf_counter()
        self._control.send_multipart(query.frames(), copy=False)
        result = self._receive(self._control)
        assert isinstance(result, Result)
        return (time.perf_counter() - began) * 1e3

    def _memory_bytes(self) -> int:
        return sum(anonymous_bytes(pid) for pid in self._pids)

    def close(self) -> None:
        self._control.send_multipart(Bye().frames())
        self._context.destroy(linger=200)


def descendants(pid: int) -> set[int]:
    children: set[int] = set()
    with contextlib.suppress(OSError):  # it has just ended
        for task in Path(f"/proc/{pid}/task").iterdir():
            children.update(map(int, (task / "children").read_text().split()))
    return children.union(*map(descendants, children))


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except FileNotFoundError:  # it has ended meanwhile
        return ""


def anonymous_bytes(pid: int) -> int:
    """The resident memory of a process that is not that of a file (RssAnon)."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


@dataclass(frozen=True)
class Measured:
    """One partition's times in ms: medians over the rounds."""

    model: str
    index: int
    bytes: int
    ready_ms: float
    first_ms: float  # by how much the first query takes longer than the next ones


def measure(model: str, connect: Callable[[], Alone | Connected], coded: bool = False) -> tuple[list[Measured], int]:
    """Measure every partition of a model's plan, sent raw or coded, and the server's peak memory in bytes."""
    network, _, plan = support.paper_plan(model)
    path = weights_path(model, None)
    weights = read_weights(path, network)
    with contextlib.ExitStack() as stack:
        sidecar = open_sidecar(path, network, weights) if coded else None
        assert bool(sidecar) == coded, "no coded weights: run 'make models'"
        frames = stack.enter_context(sidecar).frames if sidecar else {}
        uploads = [messages(part.index, extract(network, part.stages, weights, frames)) for part in plan.partitions]
    ready_ms: list[list[float]] = [[] for _ in uploads]
    query_ms: list[list[list[float]]] = [[] for _ in uploads]
    peak_bytes = 0
    for round_ in range(ROUNDS):
        session = connect()
        session.watch_memory = round_ == 0
        for part, upload in zip(plan.partitions, uploads, strict=True):
            ready_ms[part.index].append(session.install(*upload))
            if not session.watch_memory:
                query = first_run(network, part.stages)
                query_ms[part.index].append([session.query(query) for _ in range(QUERIES)])
        peak_bytes = max(peak_bytes, session.peak_bytes)
        session.close()
    measured = [
        Measured(
            model, part.index, part.bytes,
            statistics.median(ready_ms[part.index]),
            statistics.median(first - statistics.median(later) for first, *later in query_ms[part.index]),
        )
        for part in plan.partitions
    ]  # fmt: skip
    return measured, peak_bytes


def first_run(network: Network, stages: Sequence[int]) -> Query:
    """A query for the first run of adjacent stages."""
    first = last = stages[0]
    while last + 1 in stages:
        last += 1
    return Query(0, first, last, (np.zeros(network.stages[first].input_shape, "<f4"),))


def rows() -> list[support.Row]:
    result: list[support.Row] = []
    alone = [part for model in paper.MODELS for part in measure(model, Alone)[0]]
    result += install_rows("a session alone", alone)
    decoding = [part for model in paper.MODELS for part in measure(model, Alone, coded=True)[0]]
    result += install_rows("a session alone, coded", decoding)
    with processes.process("serve", "--bind", "tcp://127.0.0.1:0") as server:
        served = [(measure(model, lambda: Connected(server)), model) for model in paper.MODELS]
        there = [part for model in paper.MODELS for part in measure(model, lambda: Connected(server), coded=True)[0]]
    result += install_rows("at a server", [part for (parts, _), _ in served for part in parts])
    result += install_rows("at a server, coded", there)
    return result + [memory_row(model, sum(part.bytes for part in parts), peak) for (parts, peak), model in served]


def memory_row(model: str, weight_bytes: int, peak_bytes: int) -> support.Row:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        features = fresh.submit(bare_bytes, model).result() - weight_bytes
    support.keep(
        f"memory, {model}", weight_bytes=weight_bytes, bare_feature_bytes=features, server_peak_bytes=peak_bytes
    )
    return f"peak memory of the server, {model}", (MEMORY * weight_bytes + features) / 1e6, peak_bytes / 1e6, "MB"


def bare_bytes(model: str) -> int:
    """The memory that Caffe takes for the nets of a model's partitions when each of their stages has run."""
    network, _, plan = support.paper_plan(model)
    runs = [run for part in plan.partitions for run in runs_of(part.stages)]
    weights = read_weights(weights_path(model, None), network)
    engine.load_caffe()
    before = anonymous_bytes(os.getpid())
    nets = [engine.StageNet(extract_net(network, *run)) for run in runs]
    for net in nets:
        net.load(weights)
        net.run(net.first, net.last)
    return anonymous_bytes(os.getpid()) - before


def install_rows(where: str, parts: Sequence[Measured]) -> list[support.Row]:
    for part in parts:
        support.keep(f"install latency, {where}", **dataclasses.asdict(part))
    worst = max(parts, key=lambda part: part.ready_ms)
    largest = max(parts, key=lambda part: part.bytes)
    first_ms = statistics.median(part.first_ms for part in parts)
    slope_ms = float(np.polyfit([part.index for part in parts], [part.ready_ms for part in parts], 1)[0])
    return [
        (f"READY, {where}, slowest of {len(parts)} partitions ({worst.model})", READY_MS, worst.ready_ms, "ms"),
        (f"READY, {where}, {largest.bytes / 1e6:.0f} MB ({largest.model})", READY_MS, largest.ready_ms, "ms"),
        (f"READY, {where}, later by each partition before", READY_MS / PARTITIONS, slope_ms, "ms"),
        (f"first query on a partition, {where}, longer than the next, median", READY_MS, first_ms, "ms"),
    ]


if __name__ == "__main__":
    support.main(rows)
