"""A server that lies: a real one, behind a proxy that changes what its results say."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from ionn.address import format_address, parse_address

# What a lie makes of one result's outputs, which are float32, flat, and may be changed. Called with the number of the
# query, as its client counts them.
Lie = Callable[[int, list[np.ndarray]], None]
WAIT_S = 30.0


def an_ulp(values: np.ndarray) -> None:
    flat = values.reshape(-1)
    at = flat.size // 2
    flat[at] = np.nextafter(flat[at], np.float32(np.inf))


def the_sign_of_a_zero(values: np.ndarray) -> None:
    flat = values.reshape(-1)
    flat[np.flatnonzero(flat == 0)[0]] *= np.float32(-1)


def no_number(values: np.ndarray) -> None:
    values.reshape(-1)[-1] = np.nan


# What is hard to see. Each changes one value of a contiguous array.
SMALL_CHANGES: dict[str, Callable[[np.ndarray], None]] = {
    "an ulp": an_ulp, "the sign of a zero": the_sign_of_a_zero, "no number": no_number,
}  # fmt: skip


def honest(query: int, outputs: list[np.ndarray]) -> None:
    """Change nothing."""


class Liar:
    """The proxy in front of the server at `to`; its `lie` may be changed at any time.

    `connections` is how many were made so far, `results` what the server really answered, query after query.
    """

    def __init__(self, to: str, lie: Lie = honest) -> None:
        self.lie = lie
        self.connections = 0
        self.results: list[tuple[int, list[np.ndarray]]] = []
        self._to = parse_address(to)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://{format_address(self._listener.getsockname())}"
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def __enter__(self) -> Liar:
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(WAIT_S)
        self.reset()
        for thread in self._threads:
            thread.join(WAIT_S)
            assert not thread.is_alive()
        for end in (self._listener, *self._open):
            end.close()

    def reset(self) -> None:
        """Cut every connection that was made so far."""
        for end in list(self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _start(self, run: Callable[..., None], *arguments: Any) -> None:
        self._threads.append(threading.Thread(target=run, args=arguments, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._to)
            except OSError:
                return
            self.connections += 1
            self._open += [client, server]
            self._start(self._pump, client, server, self._forward)
            self._start(self._pump, server, client, self._change)

    def _pump(self, source: socket.socket, sink: socket.socket, way: Callable[..., None]) -> None:
        with contextlib.suppress(OSError, EOFError):
            way(source, sink)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        while data := source.recv(65536):
            sink.sendall(data)

    def _change(self, source: socket.socket, sink: socket.socket) -> None:
        """Pass ZMTP on, message by message."""
        reader = source.makefile("rb")

        def read(size: int) -> bytes:
            data = reader.read(size)
            if len(data) < size:
                raise EOFError
            return data

        sink.sendall(read(64))  # the greeting
        while True:
            heads, bodies, more = [], [], True
            while more:
                flags = read(1)
                size = read(8 if flags[0] & 2 else 1)
                heads.append(flags + size)
                bodies.append(bytearray(read(int.from_bytes(size))))
                more = bool(flags[0] & 1)
            if bodies[0].startswith(b"{"):
                said = json.loads(bodies[0])
                if said["type"] == "result" and len(bodies) > 1:
                    outputs = [np.frombuffer(body, "<f4") for body in bodies[1:]]
                    self.results.append((said["query"], [output.copy() for output in outputs]))
                    self.lie(said["query"], outputs)
            sink.sendall(b"".join(part for pair in zip(heads, bodies, strict=True) for part in pair))
