"""Strangers at the port: the worst ping beside them, and the worst one of the same run without them. About 40 s.

An honest session pings a server, one ping after another, and so does a newcomer, who connects for each ping, while
another process attacks the port. Each row is the worst ping of a few seconds, beside one attack or without any.
`--attack NAME ADDRESS SECONDS` is one attack by itself; bench/soak.py has all of them, in random order.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import support
import zmq

from ionn.address import Address, parse_address
from ionn.client.connection import ping
from ionn.model.network import Network
from ionn.model.partial_net import extract
from ionn.protocol.messages import PROTOCOL, Bye, Hello, Message, PartitionHeader, Ping, Query, Welcome, decode
from ionn.testbed import processes

LIMIT_MS = 100.0
SECONDS = 3.0
SETTLE_S = 1.0
WAIT_MS = 60_000
_MORE, _LONG, _COMMAND = 1, 2, 4
_GREETING = (b"\xff" + bytes(8) + b"\x7f\x03\x00NULL").ljust(64, b"\0")


# --- What strangers do ------------------------------------------------------------------------------------------------


def frame(data: bytes, flags: int = 0) -> bytes:
    if len(data) > 255:
        return bytes([flags | _LONG]) + len(data).to_bytes(8) + data
    return bytes([flags, len(data)]) + data


def message(sent: Message) -> bytes:
    frames = [bytes(each) for each in sent.frames()]
    return b"".join(frame(each, _MORE) for each in frames[:-1]) + frame(frames[-1])


def handshake(identity: bytes = b"") -> bytes:
    def prop(name: bytes, value: bytes) -> bytes:
        return bytes([len(name)]) + name + len(value).to_bytes(4) + value

    return _GREETING + frame(b"\x05READY" + prop(b"Socket-Type", b"DEALER") + prop(b"Identity", identity), _COMMAND)


HELLO = message(Hello(PROTOCOL, "control"))
_addresses = itertools.cycle(range(2, 30))


@contextlib.contextmanager
def connected(to: Address) -> Iterator[socket.socket]:
    """A connection from another address each time."""
    with socket.socket() as peer:
        peer.settimeout(2.0)
        peer.bind((f"127.0.0.{next(_addresses)}", 0))
        peer.connect(to)
        yield peer


def random_bytes(to: Address) -> None:
    with connected(to) as peer:
        peer.sendall(random.randbytes(random.randint(1, 5000)))


def connections(to: Address) -> None:
    """As many connections as a process may have, up to 5,000, at once."""
    opened = []
    with contextlib.suppress(OSError):
        for _ in range(5000):
            peer = socket.socket()
            opened.append(peer)
            peer.setblocking(False)
            peer.bind((f"127.0.0.{next(_addresses)}", 0))
            peer.connect_ex(to)
    for peer in opened:
        peer.close()


def identities(to: Address) -> None:
    """The routing ids that libzmq would give to the next clients."""
    with connected(to) as peer:
        peer.sendall(handshake(b"\0" + random.randint(0x6B8B4567, 0x6B8B4667).to_bytes(4)) + message(Ping()))
        peer.recv(4096)


def empty_frames(to: Address) -> None:
    """A message of ten million empty frames, with a session or without one."""
    with connected(to) as peer:
        with_session = random.random() < 0.5
        peer.sendall(handshake() + (HELLO if with_session else b""))
        for _ in range(10):
            peer.sendall(frame(b"", _MORE) * 1_000_000)


def endless_message(to: Address) -> None:
    with connected(to) as peer:
        peer.sendall(handshake() + HELLO)
        for _ in range(200):
            peer.sendall(frame(bytes(1_000_000), _MORE))


def small_messages(to: Address) -> None:
    with connected(to) as first, connected(to) as second:
        first.sendall(handshake() + HELLO)
        second.sendall(handshake())
        for _ in range(100):
            for peer in (first, second):
                peer.sendall(message(Ping()) * 200)
                with contextlib.suppress(BlockingIOError):
                    while peer.recv(65536, socket.MSG_DONTWAIT):
                        pass
        first.sendall(message(Bye()))


WIDE = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 1 dim: 5 dim: 5 } } }
layer { name: "wide" type: "Tile" bottom: "data" top: "wide" tile_param { tiles: 240000 } }
layer { name: "out" type: "ReLU" bottom: "wide" top: "out" }
"""


def never_reads(to: Address) -> None:
    """140 queries of 100 bytes that have answers of 24 MB."""
    network = Network.from_text(WIDE, "wide")
    partition = extract(network, [1], {})
    model = partition.caffemodel
    header = PartitionHeader(0, partition.nets, model.blobs, model.size)
    with connected(to) as peer:
        peer.sendall(handshake() + HELLO + message(header))
        peer.sendall(message(Query(1, 1, 1, (np.ones(25, "<f4"),))) * 140)
        time.sleep(2)


def reconnections(to: Address) -> None:
    """A hundred connections of one session, each with a large query on its way."""
    with connected(to) as first:
        first.sendall(handshake() + HELLO)
        answer = b""
        while b'"session": "' not in answer:
            if not (got := first.recv(4096)):
                return
            answer += got
        token = answer.partition(b'"session": "')[2][:32].decode()
        for _ in range(100):
            with contextlib.suppress(TimeoutError), connected(to) as peer:
                peer.settimeout(0.1)
                peer.sendall(handshake() + message(Hello(PROTOCOL, "control", token)))
                peer.sendall(message(Query(1, 1, 1, (bytes(30_000_000),))))


ATTACKS: dict[str, Callable[[Address], None]] = {
    attack.__name__.replace("_", " "): attack
    for attack in (
        random_bytes, connections, identities, empty_frames, endless_message, small_messages, never_reads,
        reconnections,
    )
}  # fmt: skip


# All of them in any order, with pauses.
WEATHER = "weather"


def attack(name: str, address: str, duration_s: float) -> None:
    """Make one attack over and over, or WEATHER, until the process that started this one has ended."""
    os.nice(10)
    to, parent, ends = parse_address(address), os.getppid(), time.monotonic() + duration_s
    while time.monotonic() < ends and os.getppid() == parent:
        with contextlib.suppress(OSError):  # whoever is thrown out comes back
            (random.choice(list(ATTACKS.values())) if name == WEATHER else ATTACKS[name])(to)
        if name == WEATHER:
            time.sleep(random.expovariate(1.0))


@contextlib.contextmanager
def strangers(name: str, address: str) -> Iterator[None]:
    """A process that makes an attack for as long as the context lasts."""
    command = [sys.executable, __file__, "--attack", name, address, "3600"]
    process = subprocess.Popen(command)
    try:
        yield
    finally:
        process.kill()
        process.wait()


# --- Who pings --------------------------------------------------------------------------------------------------------


class Pinger:
    """A session of a stock DEALER. It must still answer in the end, or there is no row."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._context: zmq.Context[Any] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.connect(address)
        assert isinstance(self._ask(Hello(PROTOCOL, "control")), Welcome)

    def _ask(self, sent: Message) -> Message:
        self._socket.send_multipart(sent.frames())
        assert self._socket.poll(WAIT_MS), "no answer"
        return decode(self._socket.recv_multipart())

    def pings_ms(self, duration_s: float) -> tuple[list[float], list[float]]:
        """The times of all pings in so many seconds: of the session, and of newcomers."""
        session, newcomer = [], []
        ends = time.monotonic() + duration_s
        while time.monotonic() < ends:
            for _ in range(20):
                began = time.perf_counter()
                assert self._ask(Ping()).type == "pong"
                session.append((time.perf_counter() - began) * 1e3)
            began = time.perf_counter()
            ping(self._address, timeout_s=WAIT_MS / 1e3)
            newcomer.append((time.perf_counter() - began) * 1e3)
        return session, newcomer

    def close(self) -> None:
        self._socket.send_multipart(Bye().frames())
        self._context.destroy(linger=1000)


def rows() -> list[support.Row]:
    result: list[support.Row] = []
    with processes.process("serve", "--bind", "tcp://127.0.0.1:0", "--idle-s", "2") as address:
        pinger = Pinger(address)
        for name in ("", *ATTACKS):
            with contextlib.ExitStack() as stack:
                if name:
                    stack.enter_context(strangers(name, address))
                    time.sleep(SETTLE_S)
                session_ms, newcomer_ms = pinger.pings_ms(SECONDS)
            support.keep(f"pings beside {name or 'nobody'}", session_ms=session_ms, newcomer_ms=newcomer_ms)
            where = f"beside strangers: {name}" if name else "when it is quiet"
            result += [
                (f"worst ping of a session, {where}", LIMIT_MS, max(session_ms), "ms"),
                (f"worst ping of a newcomer, {where}", LIMIT_MS, max(newcomer_ms), "ms"),
            ]
        pinger.close()
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--attack", nargs=3, metavar=("NAME", "ADDRESS", "SECONDS"), help=f"{', '.join(ATTACKS)}, {WEATHER}"
    )
    arguments = parser.parse_args()
    if arguments.attack:
        attack(arguments.attack[0], arguments.attack[1], float(arguments.attack[2]))
    else:
        support.main(rows)
