"""The link: a process between client and server that forwards TCP connections at a capped rate.

It is the only one that knows the rate; the two ends speak any protocol over TCP and do not know that it is there. Both
directions are capped, each for itself, over all connections together. A cap of 80 Mbps is 80,000,000 bits of TCP
payload per second: headers and loopback cost nothing.

A direction carries one quantum at a time. It is read from the next connection that has bytes to send and a receiver
that takes them, and is handed to the receiver when its time on the link has passed. So connections that are always
busy share a direction equally, the others get what they ask for, and a slow receiver holds up nobody else. What waits
stays in the buffer of its socket, which is small: once it is full, TCP makes the sender wait.

Linux only (epoll).
"""

from __future__ import annotations

import ctypes
import errno
import logging
import math
import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from ionn.address import Address, format_address
from ionn.client.pacing import SPIN_S
from ionn.errors import InputError
from ionn.testbed.link_pacer import LinkPacer

SOCKET_BUFFER_BYTES = 256 * 1024
"""Of each socket of the link. Less than a few of loopback's 64 KiB segments would slow TCP down."""

_PR_SET_TIMERSLACK = 29

# The end of a stream is something to read, too.
_EDGES = select.EPOLLIN | select.EPOLLOUT | select.EPOLLET
_log = logging.getLogger(__name__)


def serve_link(listen: Address, to: Address, mbps: float, ready: Callable[[Address], None]) -> None:
    """Forward every connection made to `listen` to `to`, `mbps` in each direction, until a signal's handler raises.

    `ready` is called once with the address that is listened at, its port chosen if `listen` left it open. A connection
    is reset, and a warning logged, when `to` cannot be reached. Raises InputError if the rate is none, a host is
    unknown, or the port is taken.
    """
    if not (math.isfinite(mbps) and mbps > 0):
        raise InputError(f"{mbps} Mbps: a link needs a finite rate above 0")
    with _listen(listen) as listener:
        address: Address = listener.getsockname()[:2]
        target = _resolve(to)
        if target[1][:2] == address:
            raise InputError(f"{format_address(to)}: the link cannot forward to itself; give the server's address")
        # Else the system adds 0.05 ms to every wait for an arrival.
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1)
        ready(address)
        _Link(listener, target, format_address(to), mbps).run()


def _resolve(address: Address) -> tuple[int, tuple[Any, ...]]:
    """Address family and socket address."""
    try:
        family, _, _, _, sockaddr = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise InputError(f"{format_address(address)}: unknown host; check its name") from error
    return family, sockaddr


def _listen(address: Address) -> socket.socket:
    family, sockaddr = _resolve(address)
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _set_options(listener)  # accepted sockets inherit them; the receive window is negotiated by then
        listener.bind(sockaddr)
        listener.listen()
    except OSError as error:
        listener.close()
        text = f"{format_address(address)}: cannot listen there ({error.strerror}); give another port"
        raise InputError(text) from error
    return listener


def _set_options(sock: socket.socket) -> None:
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)


class _Direction:
    """One direction of the link: the flows that wait for their turn, and the quantum that is crossing."""

    def __init__(self, mbps: float) -> None:
        self.pacer = LinkPacer(mbps)
        self.turns: deque[_Flow] = deque()
        self.crossing: tuple[_Flow, bytes] | None = None
        self.arrival_s = math.inf  # of the quantum that is crossing
        self.last = False  # of its message, it seems: there was no more to read


class _Flow:
    """One direction of one connection. The sockets are edge-triggered: the flags hold until a call would block."""

    def __init__(self, source: socket.socket, sink: socket.socket, direction: _Direction) -> None:
        self.source = source
        self.sink = sink
        self.direction = direction
        self.reverse: _Flow
        self.readable = False
        self.writable = False
        self.unsent = b""  # has crossed the link, and the sink did not take it yet
        self.busy = False  # waits for its turn, or is crossing
        self.ended = False

    def join(self) -> None:
        """Wait for a turn, if there may be something to read and someone who takes it."""
        if self.readable and self.writable and not (self.busy or self.ended):
            self.busy = True
            self.direction.turns.append(self)


class _Link:
    """The event loop. `target` is address family and socket address, `name` what messages call it."""

    def __init__(self, listener: socket.socket, target: tuple[int, tuple[Any, ...]], name: str, mbps: float) -> None:
        self._listener = listener
        self._target = target
        self._name = name
        self._up, self._down = _Direction(mbps), _Direction(mbps)
        self._epoll = select.epoll()
        self._epoll.register(listener, select.EPOLLIN | select.EPOLLET)
        self._flows: dict[int, _Flow] = {}  # by the file descriptor of their source
        self._accepting = False  # whether connections may be waiting
        self._reported = False  # that the target cannot be reached; once, not for every attempt of a patient client

    def run(self) -> None:
        try:
            while True:
                for fd, events in self._wait():
                    if fd in self._flows:
                        self._update(self._flows[fd], events)
                    elif fd == self._listener.fileno():
                        self._accepting = True
                now_s = time.monotonic()
                self._serve(self._up, now_s)
                self._serve(self._down, now_s)
                if self._accepting:  # last: a new socket may get the number of one that was closed above
                    self._accept()
        finally:
            for flow in self._flows.values():
                flow.source.close()
            self._epoll.close()

    def _wait(self) -> list[tuple[int, int]]:
        """Wait for events or the next arrival, whichever is first. Somebody may wait for the last of a message: it is
        not delivered a moment late, as sleeping until its arrival would."""
        next_ = min(self._up, self._down, key=lambda direction: direction.arrival_s)
        if next_.arrival_s == math.inf:
            return self._epoll.poll()
        timeout_s = next_.arrival_s - time.monotonic() - (SPIN_S if next_.last else 0)
        # Not with epoll alone: it counts in whole milliseconds.
        if timeout_s > 0 and not select.select((self._epoll,), (), (), timeout_s)[0]:
            return []
        return self._epoll.poll(0)

    def _accept(self) -> None:
        self._accepting = False
        try:
            while True:
                self._accept_one()
        except BlockingIOError:
            pass
        except OSError as error:
            _log.warning("cannot accept a connection: %s", error.strerror)

    def _accept_one(self) -> None:
        family, address = self._target
        server = socket.socket(family, socket.SOCK_STREAM)  # first: out of files, the client stays in the queue
        try:
            client, _ = self._listener.accept()
        except OSError:
            server.close()
            raise
        client.setblocking(False)
        _set_options(server)
        error = server.connect_ex(address)
        up, down = _Flow(client, server, self._up), _Flow(server, client, self._down)
        up.reverse, down.reverse = down, up
        for flow in (up, down):
            self._flows[flow.source.fileno()] = flow
            self._epoll.register(flow.source, _EDGES)
        if error not in (0, errno.EINPROGRESS):
            self._report(error)
            self._close(up, reset=True)

    def _report(self, error: int) -> None:
        if not self._reported:
            _log.warning("cannot reach %s: %s; is the server running?", self._name, os.strerror(error))
        self._reported = True

    def _update(self, flow: _Flow, events: int) -> None:
        """Something happened at the source of `flow`, which is the sink of its reverse."""
        if events & select.EPOLLERR:
            error = flow.source.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if flow.direction is self._down and error != errno.ECONNRESET:
                self._report(error)
            self._close(flow, reset=True)
            return
        if events & select.EPOLLIN:
            flow.readable = True
            flow.join()
        if events & select.EPOLLOUT and not flow.reverse.ended:
            if flow.direction is self._down:
                self._reported = False
            self._deliver(flow.reverse, flow.reverse.unsent)

    def _serve(self, direction: _Direction, now_s: float) -> None:
        """Deliver the quantum that has crossed, and send the next one on its way."""
        waited = direction.crossing is not None
        if direction.crossing:
            if direction.arrival_s > now_s:
                return
            flow, data = direction.crossing
            direction.crossing, direction.arrival_s = None, math.inf
            flow.busy = False
            self._deliver(flow, data)
        while direction.turns:
            flow = direction.turns.popleft()
            limit = direction.pacer.quantum_bytes(alone=not direction.turns)
            if data := self._read(flow, limit):
                direction.crossing = flow, data
                direction.last = len(data) < limit
                direction.arrival_s = direction.pacer.transmit(len(data), now_s, waited)
                return
            flow.busy = False

    def _read(self, flow: _Flow, limit: int) -> bytes:
        """Up to `limit` bytes; none if there are none now, or no more will come."""
        try:
            data = flow.source.recv(limit)
            if not data:
                flow.ended = True
                flow.sink.shutdown(socket.SHUT_WR)
                if flow.reverse.ended:
                    self._close(flow, reset=False)
            return data
        except BlockingIOError:
            flow.readable = False
        except OSError:
            self._close(flow, reset=True)
        return b""

    def _deliver(self, flow: _Flow, data: bytes) -> None:
        try:
            sent = flow.sink.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._close(flow, reset=True)
            return
        flow.unsent = data[sent:]
        flow.writable = not flow.unsent
        flow.join()

    def _close(self, flow: _Flow, reset: bool) -> None:
        """Close both sockets of a connection; a `reset` reaches the end that did not cause it."""
        for sock in (flow.source, flow.sink):
            if self._flows.pop(sock.fileno(), None):
                if reset:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.close()
        self._accepting = True  # those that came while there were too many open files
