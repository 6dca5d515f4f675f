"""A polite client beside eight greedy ones: its share of what the server computes. About a minute.

A greedy client has as many sessions as it may have. Each raises queries without waiting for their answers, and one of
them uploads the same partition again and again. The polite client has one session, and one query at a time. No client
computes: they send bytes that were prepared, each from an address of its own. The share is the processor time of the
polite client's session at the server, of that of all sessions; an equal share is a ninth. For comparison, the same is
measured without turns, and not limited: the system then divides the processors between processes, and the one process
of all greedy clients may be too slow to keep all of their sessions busy.
"""

from __future__ import annotations

import dataclasses
import hashlib
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from typing import Any

import psutil
import support
import zmq

from ionn.model import inputs
from ionn.model.caffemodel import read_weights, weights_path
from ionn.model.network import Network
from ionn.model.partial_net import extract
from ionn.protocol.messages import (
    PROTOCOL,
    Hello,
    Message,
    PartitionEnd,
    PartitionHeader,
    Query,
    Ready,
    Result,
    Welcome,
    decode,
    make_chunk,
)
from ionn.testbed import processes

# A heavy one and a light one; of AlexNet the layers that compute most and have few weights.
MODELS = ("alexnet", "mobilenet")
GREEDY = 8
SESSIONS = 2
QUERIES_AHEAD = 20
CHUNKS_AHEAD = 8
CHUNK_BYTES = 200_000
SETTLE_S = 2.0
SECONDS = 10.0
PART = 0.7
WAIT_MS = 120_000
# The server's options: turns, or as many places for computing as there could be sessions.
WAYS: dict[str, tuple[str, ...]] = {"in turns": (), "without turns": ("--computing", "10000")}

Frames = list[bytes]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """All messages that clients send: those of an upload, those of another upload of the same weights, whose end is
    wrong so that it can be sent over and over, and a query."""

    upload: list[Frames]
    again: list[Frames]
    query: Frames


def frames(message: Message) -> Frames:
    return [bytes(frame) for frame in message.frames()]


def prepare(model: str) -> Prepared:
    network = Network.load(model)
    weights = read_weights(weights_path(model, None), network)
    stages: list[int] = []
    for stage in network.stages:
        types = {layer.type for layer in network.layers[stage.first_layer : stage.last_layer + 1]}
        if "InnerProduct" in types:
            break
        if not stage.pinned:
            stages.append(stage.index)
    partition = extract(network, stages, weights)
    model_bytes = partition.caffemodel
    chunks = list(model_bytes.chunks(CHUNK_BYTES))
    others = tuple(
        dataclasses.replace(
            net, stages=tuple(dataclasses.replace(stage, index=stage.index + 1000) for stage in net.stages)
        )
        for net in partition.nets
    )

    def messages(index: int, nets: Any, digest: str) -> list[Frames]:
        header = PartitionHeader(index, nets, model_bytes.blobs, model_bytes.size)
        parts = [make_chunk(index, offset, part) for offset, part in chunks]
        return [frames(message) for message in (header, *parts, PartitionEnd(index, digest))]

    data = inputs.query_inputs(network, seed=0, count=1)[0]
    return Prepared(
        messages(0, partition.nets, hashlib.sha256(model_bytes.tobytes()).hexdigest()),
        messages(1, others, "0" * 64),
        frames(Query(1, stages[0], stages[-1], (data.tobytes(),))),
    )


class Session:
    """A session from an address of its own. Its user polls its connections."""

    def __init__(self, context: zmq.Context[Any], address: str, number: int) -> None:
        self._context = context
        self._way = address.replace("tcp://", f"tcp://127.0.0.{number}:0;")
        self.control = self._connect()
        welcome = self.ask(self.control, frames(Hello(PROTOCOL, "control")))
        assert isinstance(welcome, Welcome), welcome
        self._token = welcome.session

    def _connect(self) -> zmq.Socket[Any]:
        socket: zmq.Socket[Any] = self._context.socket(zmq.DEALER)
        socket.linger = 0
        socket.connect(self._way)
        return socket

    def upload(self) -> zmq.Socket[Any]:
        socket = self._connect()
        welcome = self.ask(socket, frames(Hello(PROTOCOL, "upload", self._token)))
        assert isinstance(welcome, Welcome), welcome
        return socket

    def ask(self, socket: zmq.Socket[Any], message: Frames) -> Message:
        socket.send_multipart(message)
        assert socket.poll(WAIT_MS), "no answer"
        return decode(socket.recv_multipart())

    def send_all(self, messages: Sequence[Frames]) -> None:
        socket = self.upload()
        answers = [self.ask(socket, message) for message in messages]
        assert isinstance(answers[-1], Ready), answers[-1]
        socket.close()


def be_greedy(prepared: Prepared, address: str, channel: Connection) -> None:
    """Be all greedy clients. Tells the channel when they have begun, and at the end how many messages were answered."""
    context: zmq.Context[Any] = zmq.Context()
    poller = zmq.Poller()
    sending: dict[zmq.Socket[Any], Iterator[Frames]] = {}
    sessions = [Session(context, address, 2 + number % GREEDY) for number in range(GREEDY * SESSIONS)]
    for session in sessions:
        session.send_all(prepared.upload)
    ways = [(session.control, [prepared.query], QUERIES_AHEAD) for session in sessions]
    ways += [(session.upload(), prepared.again, CHUNKS_AHEAD) for session in sessions[:GREEDY]]
    for socket, messages, ahead in ways:
        poller.register(socket, zmq.POLLIN)
        sending[socket] = endlessly(messages)
        for _ in range(ahead):
            socket.send_multipart(next(sending[socket]), copy=False)
    channel.send("begun")
    answered = 0
    while not channel.poll():
        for socket, _ in poller.poll(100):
            socket.recv_multipart(copy=False)
            answered += 1
            socket.send_multipart(next(sending[socket]), copy=False)
    channel.send(answered)
    context.destroy(linger=0)


def endlessly(messages: Sequence[Frames]) -> Iterator[Frames]:
    while True:
        yield from messages


@contextmanager
def greedy(prepared: Prepared, address: str) -> Iterator[None]:
    context = multiprocessing.get_context("spawn")
    channel, theirs = context.Pipe()
    process = context.Process(target=be_greedy, args=(prepared, address, theirs))
    process.start()
    try:
        assert channel.recv() == "begun"
        yield
        channel.send("end")
        channel.recv()
    finally:
        process.kill()
        process.join()


def session_processes() -> dict[int, float]:
    """The processor time of each session's process at the server in s, by process."""
    return {
        process.pid: sum(process.cpu_times()[:2])
        for server in psutil.Process().children()
        for forks in server.children()
        for process in forks.children()
    }


def measure(prepared: Prepared, options: Sequence[str]) -> tuple[float, list[float]]:
    """The polite client's share of the computing, and the times of its queries in ms."""
    limits = ("--sessions", str(GREEDY * SESSIONS + 1), "--sessions-per-client", str(SESSIONS), "--memory-mb", "500")
    with ExitStack() as stack:
        address = stack.enter_context(processes.process("serve", "--bind", "tcp://127.0.0.1:0", *limits, *options))
        context: zmq.Context[Any] = zmq.Context()
        stack.callback(context.destroy, linger=0)
        session = Session(context, address, 100)
        session.send_all(prepared.upload)
        (mine,) = session_processes()
        stack.enter_context(greedy(prepared, address))
        times_ms: list[float] = []
        settled, before = time.monotonic() + SETTLE_S, session_processes()
        while (now := time.monotonic()) < settled + SECONDS:
            if now < settled:
                times_ms, before = [], session_processes()
            assert isinstance(session.ask(session.control, prepared.query), Result)
            times_ms.append((time.monotonic() - now) * 1e3)
        used_s = {pid: after_s - before.get(pid, 0.0) for pid, after_s in session_processes().items()}
    return used_s[mine] / sum(used_s.values()), times_ms


def rows() -> list[support.Row]:
    result: list[support.Row] = []
    for model in MODELS:
        prepared = prepare(model)
        parts: dict[str, float] = {}
        for way, options in WAYS.items():
            part, times_ms = measure(prepared, options)
            parts[way] = (GREEDY + 1) * part
            support.keep(f"fair shares, {model}, {way}", equal_parts=parts[way], query_ms=times_ms)
        beside = f"{model}, a client beside {GREEDY} greedy ones"
        result += [
            (f"{beside}: equal parts, at least", PART, parts["in turns"], ""),
            (f"{beside}: without turns, of all", GREEDY + 1.0, parts["without turns"], ""),
        ]
    return result


if __name__ == "__main__":
    support.main(rows)
