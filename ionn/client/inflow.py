"""A bound on what a server sends and nobody takes.

ZeroMQ bounds a frame, and how many messages wait to be received, but not how many frames a message has: a server that
never ends a message could have its client hold any number of bytes. The system knows how many bytes came by a
connection, and the client knows how many of them it took. If more came than the client can be waiting for, the
connection is shut down. Linux only (TCP_INFO, epoll).
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import threading
import time

# What may come beyond the expected bytes: a few small answers. Empty frames of so many bytes take 8 MB of memory, since
# ZeroMQ needs 32 times as much for them.
SLACK_BYTES = 256 * 1024

# The time between two checks of connections by which bytes come. Loopback carries some 10 MB in it.
_INTERVAL_S = 0.005
# More than what ZMTP and CURVE add to a frame (9 and 33 bytes).
_FRAME_OVERHEAD_BYTES = 64
# Where Linux's struct tcp_info has tcpi_bytes_received, a 64-bit number.
_BYTES_RECEIVED_AT = 128
_TCP_INFO_BYTES = 136


class Inflow:
    """The bytes that came by the TCP connection of a `descriptor` with a server's `port`, and have not been taken yet.

    If they exceed `expected_bytes` + SLACK_BYTES, the connection is shut down, and `flooded` is set. Close it with the
    connection. Raises OSError if the descriptor is no longer that of such a connection.
    """

    def __init__(self, descriptor: int, port: int, expected_bytes: int) -> None:
        self.expected_bytes = expected_bytes
        self.flooded = False
        self._taken_bytes = 0
        self._lock = threading.Lock()
        # A duplicate, because ZeroMQ may close its own descriptor, whose number may then be another file's. It may be
        # already.
        duplicate = os.dup(descriptor)
        try:
            self._connection = socket.socket(fileno=duplicate)
        except OSError:
            os.close(duplicate)
            raise
        try:
            self._received_bytes()
            if self._connection.getpeername()[1] != port:
                raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        except OSError:
            self._connection.close()
            raise
        _WATCH.add(self)

    def fileno(self) -> int:
        return self._connection.fileno()

    def _received_bytes(self) -> int:
        """How many bytes came by the connection; 0 if the system does not count them, as in qemu's user mode."""
        info = self._connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        if len(info) < _TCP_INFO_BYTES:
            return 0
        (received,) = struct.unpack_from("=Q", info, _BYTES_RECEIVED_AT)
        return int(received)

    def take(self, size: int, frames: int) -> None:
        """Note that a message of so many bytes and frames was received."""
        with self._lock:
            taken = self._taken_bytes + size + _FRAME_OVERHEAD_BYTES * frames
            self._taken_bytes = min(taken, self._received_bytes())

    def check(self) -> None:
        """Shut the connection down if too much came."""
        with self._lock, contextlib.suppress(OSError):  # it may have been closed
            if self._received_bytes() - self._taken_bytes > self.expected_bytes + SLACK_BYTES:
                self.flooded = True
                self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        _WATCH.remove(self)
        self._connection.close()


class _Watch:
    """A thread that waits until bytes come by some of the connections, and then checks these.

    A forked process has none of its parent's threads, and begins anew with connections of its own.
    """

    def __init__(self) -> None:
        self._begin()
        os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        self._epoll = select.epoll()
        self._runs = False
        self._inflows: dict[int, Inflow] = {}
        self._lock = threading.Lock()

    def add(self, inflow: Inflow) -> None:
        with self._lock:
            if not self._runs:
                threading.Thread(target=self._run, name="ionn inflow", daemon=True).start()
                self._runs = True
            self._inflows[inflow.fileno()] = inflow
            self._epoll.register(inflow.fileno(), select.EPOLLIN | select.EPOLLET)

    def remove(self, inflow: Inflow) -> None:
        with self._lock:
            if self._inflows.pop(inflow.fileno(), None) is not None:  # else it is a parent's
                self._epoll.unregister(inflow.fileno())

    def _run(self) -> None:
        while True:
            ready = {descriptor for descriptor, _ in self._epoll.poll()}
            with self._lock:
                for descriptor in ready & self._inflows.keys():
                    self._inflows[descriptor].check()
            time.sleep(_INTERVAL_S)


_WATCH = _Watch()
