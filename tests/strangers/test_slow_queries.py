"""Queries that come slowly, or never end, or faster than they are computed."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import signal
import socket
import time
from contextlib import ExitStack
from typing import Self

import numpy as np
import psutil
import pytest

from ionn.client.connection import ping
from ionn.model.network import Network
from ionn.model.partial_net import extract
from ionn.protocol import messages
from tests.strangers.peers import COMMAND, Stranger, ask, begin_session, frame, message, send_partition, welcome
from tests.strangers.test_shares import PATIENT, WIDE, served
from tests.support.raw import upload_messages
from tests.support.world import WAIT_S, Server, freeze, wait_for

RELU = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 224 dim: 224 } } }
layer { name: "relu" type: "ReLU" bottom: "data" top: "relu" }
"""
PIECES = 20


class Slow:
    """A session that has uploaded a ReLU, and a query of it that comes in pieces."""

    def __init__(self, server: Server, stack: ExitStack) -> None:
        network = Network.from_text(RELU, "relu")
        self._server, self._stack = server, stack
        self.control, self.upload = (stack.enter_context(Stranger(server.address)) for _ in range(2))
        self.token, _ = begin_session(server, self.control)
        welcome(self.upload, self.token, "upload")
        send_partition(self.upload, extract(network, [1], {}))
        self._shape = network.input_shape

    def query(self, number: int) -> tuple[list[bytes], np.ndarray]:
        """The pieces of a query, and its result."""
        data = np.random.default_rng(number).standard_normal(self._shape).astype("<f4")
        sent = message(messages.Query(number, 1, 1, (data.tobytes(),)))
        size = len(sent) // PIECES + 1
        return [sent[at : at + size] for at in range(0, len(sent), size)], np.maximum(data, 0)

    def send(self, pieces: list[bytes]) -> None:
        """Send pieces, and ask for a sign of life by the other connection after each."""
        for piece in pieces:
            self.control.send(piece)
            assert isinstance(ask(self.upload, messages.Ping()), messages.Pong)

    def check(self, number: int) -> None:
        pieces, expected = self.query(number)
        self.send(pieces)
        self.expect(expected)

    def expect(self, expected: np.ndarray) -> None:
        result = self.control.answer()
        assert isinstance(result, messages.Result), result
        assert bytes(result.payload[0]) == expected.tobytes()

    def come_back(self) -> None:
        self.control = self._stack.enter_context(Stranger(self._server.address))
        assert welcome(self.control, self.token) == self.token


def test_queries_that_come_at_once_are_all_answered_rightly() -> None:
    """The session's inbox has one of them."""
    with served(*PATIENT) as server, ExitStack() as stack:
        slow = Slow(server, stack)
        queries = [slow.query(number) for number in range(1, 8)]
        slow.control.send(b"".join(piece for pieces, _ in queries for piece in pieces))
        for _, expected in queries:
            slow.expect(expected)


def test_uploads_do_not_wait_for_a_query_that_comes_slowly() -> None:
    with served(*PATIENT) as server, ExitStack() as stack:
        slow = Slow(server, stack)
        for number in (1, 2):
            slow.check(number)


@pytest.mark.parametrize("how", ["closed", "reset", "taken over"])
def test_a_query_that_never_ends_is_forgotten(how: str) -> None:
    """Its connection is gone, or another one takes its place."""
    with served(*PATIENT) as server, ExitStack() as stack:
        slow = Slow(server, stack)
        for number in range(1, 6, 2):
            pieces, _ = slow.query(number)
            slow.send(pieces[: PIECES - number])
            if how == "closed":
                slow.control.socket.close()
            elif how == "reset":
                slow.control.reset()
            slow.come_back()
            slow.check(number + 1)


# --- In the middle of an answer ---------------------------------------------------------------------------------------


class Reader(Stranger):
    """A peer that reads what there is, and then takes its answers from that first."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._read = bytearray()

    def read_all(self) -> None:
        """Read until nothing has come for a second."""
        while select.select([self.socket], [], [], 1.0)[0]:
            self._read += self.socket.recv(1_000_000)

    def receive(self, count: int) -> bytes:
        data = bytes(self._read[:count])
        del self._read[:count]
        return data + super().receive(count - len(data))


def begin_answer(server: Server, peer: Stranger) -> int:
    """Have a session's process stop in the middle of an answer that no buffers hold; its number."""
    _, process = begin_session(server, peer)
    send_partition(peer, extract(Network.from_text(WIDE, "wide"), [1], {}))
    peer.send(message(messages.Query(1, 1, 1, (np.ones(25, "<f4"),))))
    select.select([peer.socket], [], [])
    freeze(process)
    return process


def check_answer(peer: Stranger) -> None:
    result = peer.answer()
    assert isinstance(result, messages.Result), result
    assert bytes(result.payload[0]) == np.ones(25 * 240_000, "<f4").tobytes()


def test_an_answer_ends_though_more_is_refused_since_the_server_stops() -> None:
    server = Server(*PATIENT, "--stop-s", "600")
    with Reader(server.address) as peer:
        process = begin_answer(server, peer)
        server.strike(signal.SIGTERM)
        wait_for(lambda: not ping(server.address, timeout_s=WAIT_S).room, "the server to be told")
        peer.send(message(messages.Ping()))
        peer.read_all()
        os.kill(process, signal.SIGCONT)
        check_answer(peer)
        refused = peer.answer()
        assert isinstance(refused, messages.Error)
        assert refused.code == messages.ERROR_STOPPING
    wait_for(lambda: not server.alive(), "the server to end")
    assert server.stop()[0] == 0


# As long as LONG_QUERY of test_floods, and its input is small.
LONG = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 8 dim: 20 dim: 20 } } }
layer { name: "high" type: "Tile" bottom: "data" top: "high" tile_param { axis: 2 tiles: 40 } }
layer { name: "wide" type: "Tile" bottom: "high" top: "wide" tile_param { axis: 3 tiles: 40 } }
layer { name: "pool" type: "Pooling" bottom: "wide" top: "pool" pooling_param { kernel_size: 200 stride: 1 } }
layer { name: "out" type: "ReLU" bottom: "pool" top: "out" }
"""


def computing(processes: set[int]) -> set[int]:
    """Those of the processes that use a processor."""

    def used_s() -> dict[int, float]:
        used = {}
        for pid in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                used[pid] = sum(psutil.Process(pid).cpu_times()[:2])
        return used

    before = used_s()
    time.sleep(0.5)
    return {pid for pid, used in used_s().items() if used > before[pid]}


class Narrow(Stranger):
    """A peer whose system holds little of what it has not read."""

    def __enter__(self) -> Self:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.settimeout(WAIT_S)
        self.socket.bind((self._source, 0))
        self.socket.connect(self._address)
        return self


def test_what_is_computed_after_an_answer_that_nobody_reads_is_stuck() -> None:
    """Of answers of many sizes, some fill what the front may hold, and no process waits to pass them on."""
    network = Network.from_text(LONG, "long")
    stages = range(1, len(network.stages))
    header, chunks, end = upload_messages(extract(network, stages, {}), 1)
    (net,) = header.nets
    net = dataclasses.replace(
        net, stages=tuple(dataclasses.replace(each, index=10 + each.index) for each in net.stages)
    )
    header = dataclasses.replace(header, nets=(net,))
    long = messages.Query(2, 10 + stages[0], 10 + stages[-1], (bytes(4 * 8 * 20 * 20),))
    wide = messages.Query(1, 1, 1, (np.ones(25, "<f4"),))
    with (
        served("--computing", "20", "--turn-s", "600", "--stall-s", "4", "--unread-s", "600") as server,
        ExitStack() as stack,
    ):
        for number, tiles in enumerate(range(36_000, 48_000, 2000), 2):  # of 100 bytes each
            peer = stack.enter_context(Narrow(server.address, number))
            welcome(peer)
            text = WIDE.replace("240000", str(tiles))
            send_partition(peer, extract(Network.from_text(text, "wide"), [1], {}))
            # At once, so that no stage is tried before.
            peer.send(b"".join(map(message, (header, *chunks, end, wide, long))))
        begun = len(server.session_processes())
        wait_for(lambda: len(server.session_processes()) < begun, "the first of them to be ended")
        wait_for(lambda: not computing(server.session_processes()), "the end of all that compute")


def test_a_heartbeat_is_not_answered_within_an_answer() -> None:
    """libzmq sends them where a client asks for that."""
    with served(*PATIENT) as server, Reader(server.address) as peer:
        process = begin_answer(server, peer)
        peer.send(frame(b"\x04PING\0\0", COMMAND))
        peer.read_all()
        os.kill(process, signal.SIGCONT)
        check_answer(peer)
        assert peer.frame() == (COMMAND, b"\x04PONG")
        assert isinstance(ask(peer, messages.Ping()), messages.Pong)
