"""The link: a process between client and server that forwards TCP connections at a limited rate and after a delay.

Only this process knows the rate; the two ends use any protocol over TCP, and do not notice the link. Each direction has
a limit of its own for all connections together. A limit of 80 Mbps is 80,000,000 bits of TCP payload per second:
headers and loopback cost nothing.

A direction carries one quantum of bytes at a time. It reads the quantum from the next connection that has bytes to send
and whose receiver accepts them. When the quantum's time on the link has passed, it is in flight, and after the delay it
is handed to the receiver. So connections that are always busy share a direction equally, the others get what they ask
for, and a slow receiver delays no other connection. Waiting bytes stay in the buffer of their socket, which is small:
once it is full, TCP makes the sender wait. Bytes in flight are kept here, as many as cross in a delay, so that a delay
costs no throughput. The ends of streams, and resets, take as long as bytes do; only new connections are made without a
delay.

Linux only (epoll).
"""

from __future__ import annotations

import ctypes
import errno
import logging
import math
import os
import select
import signal
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ionn.address import Address, format_address, resolve
from ionn.client.pacing import SPIN_S
from ionn.errors import InputError
from ionn.testbed.bandwidth import Bandwidth
from ionn.testbed.delay import Delay
from ionn.testbed.link_pacer import LinkPacer

SOCKET_BUFFER_BYTES = 256 * 1024
"""Of each socket of the link. Less than a few of loopback's 64 KiB segments would slow TCP down."""

IN_FLIGHT_BYTES_MAX = 64 * 1024 * 1024
"""Of each direction: half a second of 1 Gbit/s. A link that has so much in flight takes no more until some arrives."""

_PR_SET_TIMERSLACK = 29

# Reading also reports the end of a stream.
_EDGES = select.EPOLLIN | select.EPOLLOUT | select.EPOLLET
_log = logging.getLogger(__name__)


def serve_link(
    listen: Address,
    to: Address,
    bandwidth: Bandwidth,
    ready: Callable[[Address], None],
    *,
    up: Delay | None = None,
    down: Delay | None = None,
) -> None:
    """Forward every connection made to `listen` to the address `to`, until a signal's handler raises an exception. Each
    direction has the `bandwidth`, and its own delay: `up` to the server, `down` from it.

    Bandwidth and delays begin when the link is ready, and again at each SIGUSR1. `ready` is called once with the
    address at which the link listens, with the chosen port if `listen` has port 0. If `to` cannot be reached, the
    connection is reset and a warning is logged. Raises InputError if a host is unknown, or if the port is taken.
    """
    with _listen(listen) as listener:
        address: Address = listener.getsockname()[:2]
        target = resolve(to)
        if target[1][:2] == address:
            raise InputError(f"{format_address(to)}: the link cannot forward to itself; give the server's address")
        # Otherwise the system adds 0.05 ms to every wait for an arrival.
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1)
        directions = _Direction(bandwidth, up or Delay()), _Direction(bandwidth, down or Delay())
        link = _Link(listener, target, format_address(to), *directions)
        signal.signal(signal.SIGUSR1, lambda number, frame: link.begin_anew())
        ready(address)
        link.run()


def _listen(address: Address) -> socket.socket:
    family, sockaddr = resolve(address)
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


class _Flight(NamedTuple):
    """A quantum in flight, or, without `data`, the end of what a connection sends."""

    arrival_s: float
    flow: _Flow
    data: bytes
    last: bool  # it is probably the last of a message, as there was no more to read


class _Direction:
    """One direction of the link: the flows that wait for their turn, the quantum that is crossing, and what has crossed
    and is in flight."""

    def __init__(self, bandwidth: Bandwidth, delay: Delay) -> None:
        self.pacer = LinkPacer(bandwidth)
        self.turns: deque[_Flow] = deque()
        self.crossing: tuple[_Flow, bytes] | None = None
        self.crossed_s = math.inf  # when the quantum that is crossing will have crossed
        self.last = False  # whether that quantum is the last of a message, as in _Flight
        self.in_flight: deque[_Flight] = deque()
        self.in_flight_bytes = 0
        self._delay = delay
        self._begin_s = 0.0

    def begin(self, now_s: float) -> None:
        """Have bandwidth and delay begin anew, also for the quantum that is crossing."""
        self._begin_s = now_s
        self.pacer.begin(now_s)
        if self.crossing:
            self.crossed_s = self.pacer.transmit(len(self.crossing[1]), now_s, waited=False)

    def next(self) -> tuple[float, bool]:
        """When something arrives or has crossed next, and whether it is the last of a message, for which somebody may
        be waiting."""
        if self.in_flight and self.in_flight[0].arrival_s <= self.crossed_s:
            return self.in_flight[0].arrival_s, self.in_flight[0].last
        return self.crossed_s, self.last

    def fly(self, flow: _Flow, data: bytes, left_s: float) -> None:
        """Add what has left one end of the link."""
        arrival_s = self._begin_s + self._delay.arrival(max(left_s - self._begin_s, 0.0))
        self.in_flight.append(_Flight(arrival_s, flow, data, self.last))
        self.in_flight_bytes += len(data)

    def land(self, now_s: float) -> Iterator[_Flight]:
        """Remove and return what has arrived at the other end by now."""
        while self.in_flight and self.in_flight[0].arrival_s <= now_s:
            self.in_flight_bytes -= len(self.in_flight[0].data)
            yield self.in_flight.popleft()


class _Flow:
    """One direction of one connection. The sockets are edge-triggered: the flags hold until a call would block."""

    def __init__(self, source: socket.socket, sink: socket.socket, direction: _Direction) -> None:
        self.source = source
        self.sink = sink
        self.direction = direction
        self.reverse: _Flow
        self.readable = False
        self.writable = False
        self.unsent = bytearray()  # bytes that have arrived, but that the sink has not taken yet
        self.busy = False  # it waits for its turn, or has a quantum that is crossing
        self.ended = False  # there is no more to read
        self.broken = False  # the same, because the connection was reset
        self.ending = False  # its end has arrived at the other end of the link
        self.over = False  # the sink has been told of the end

    def join(self) -> None:
        """Wait for a turn, if there may be something to read and someone who takes it."""
        if self.readable and self.writable and not (self.busy or self.ended):
            self.busy = True
            self.direction.turns.append(self)


class _Link:
    """The event loop. `target` is the address family and the socket address of the server, `name` its name in
    messages."""

    def __init__(
        self,
        listener: socket.socket,
        target: tuple[int, tuple[Any, ...]],
        name: str,
        up: _Direction,
        down: _Direction,
    ) -> None:
        self._listener = listener
        self._target = target
        self._name = name
        self._up, self._down = up, down
        self._epoll = select.epoll()
        self._epoll.register(listener, select.EPOLLIN | select.EPOLLET)
        self._anew = os.eventfd(0, os.EFD_NONBLOCK)
        self._epoll.register(self._anew, select.EPOLLIN)
        self._flows: dict[int, _Flow] = {}  # by the file descriptor of their source
        self._accepting = False  # whether connections may be waiting
        self._reported = False  # that the target cannot be reached, which is reported once, not for every attempt

    def begin_anew(self) -> None:
        """Let bandwidth and delays begin again. May be called from any thread, and from a signal's handler."""
        os.eventfd_write(self._anew, 1)

    def _begin(self) -> None:
        now_s = time.monotonic()
        self._up.begin(now_s)
        self._down.begin(now_s)

    def run(self) -> None:
        self._begin()
        try:
            while True:
                for fd, events in self._wait():
                    if fd in self._flows:
                        self._update(self._flows[fd], events)
                    elif fd == self._listener.fileno():
                        self._accepting = True
                    elif fd == self._anew:
                        os.eventfd_read(self._anew)
                        self._begin()
                now_s = time.monotonic()
                self._serve(self._up, now_s)
                self._serve(self._down, now_s)
                if self._accepting:  # last: a new socket may get the number of one that was closed above
                    self._accept()
        finally:
            for flow in self._flows.values():
                flow.source.close()
            self._epoll.close()
            os.close(self._anew)

    def _wait(self) -> list[tuple[int, int]]:
        """Wait for events or the next arrival, whichever is first. For the last of a message, for which somebody may be
        waiting, the last moments are spent without sleep: waking up would make it late."""
        next_s, last = min(self._up.next(), self._down.next())
        if next_s == math.inf:
            return self._epoll.poll()
        timeout_s = next_s - time.monotonic() - (SPIN_S if last else 0)
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
        # This socket is made first: if there are too many open files, the client stays in the queue.
        server = socket.socket(family, socket.SOCK_STREAM)
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
            self._end(flow, broken=True)
            return
        if events & select.EPOLLIN:
            flow.readable = True
            flow.join()
        if events & select.EPOLLOUT and not flow.reverse.over:
            if flow.direction is self._down:
                self._reported = False
            self._hand_over(flow.reverse)

    def _serve(self, direction: _Direction, now_s: float) -> None:
        """Deliver what has arrived, and put the next quantum on the link when the one before has crossed."""
        waited, crossed = direction.crossing is not None, None
        if direction.crossing and direction.crossed_s <= now_s:
            crossed, data = direction.crossing
            direction.fly(crossed, data, direction.crossed_s)
            direction.crossing, direction.crossed_s = None, math.inf
            crossed.busy = False
        for flight in direction.land(now_s):
            self._deliver(flight.flow, flight.data)
        if crossed is not None:
            crossed.join()  # after the delivery, which without a delay may have filled its sink
        while direction.turns and not direction.crossing and direction.in_flight_bytes < IN_FLIGHT_BYTES_MAX:
            flow = direction.turns.popleft()
            limit = direction.pacer.quantum_bytes(alone=not direction.turns, now_s=now_s)
            if data := self._read(flow, limit):
                direction.crossing = flow, data
                direction.last = len(data) < limit
                direction.crossed_s = direction.pacer.transmit(len(data), now_s, waited)
            else:
                flow.busy = False

    def _read(self, flow: _Flow, limit: int) -> bytes:
        """Up to `limit` bytes; none if there are none now, or no more will come."""
        try:
            data = flow.source.recv(limit)
            if not data:
                self._end(flow, broken=False)
            return data
        except BlockingIOError:
            flow.readable = False
        except OSError:
            self._end(flow, broken=True)
        return b""

    def _end(self, flow: _Flow, broken: bool) -> None:
        """Nothing more comes from the source. The sink learns it after the link's delay, as if it was a last byte; if
        the connection is `broken`, it is reset then."""
        if flow.broken or (flow.ended and not broken):
            return
        flow.ended, flow.broken = True, broken
        flow.direction.fly(flow, b"", time.monotonic())

    def _deliver(self, flow: _Flow, data: bytes) -> None:
        """Something has arrived: bytes, or the end."""
        if flow.sink.fileno() < 0:  # the connection was closed meanwhile
            return
        if flow.broken and not data:
            self._close(flow, reset=True)
            return
        flow.unsent += data
        flow.ending = not data
        self._hand_over(flow)

    def _hand_over(self, flow: _Flow) -> None:
        """Give the sink as many bytes as it accepts, then the end of the stream if that has arrived."""
        try:
            while flow.unsent:
                del flow.unsent[: flow.sink.send(flow.unsent)]
            if flow.ending:
                flow.over = True
                flow.sink.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            pass
        except OSError:
            self._end(flow.reverse, broken=True)
            return
        flow.writable = not flow.unsent
        flow.join()
        if flow.over and flow.reverse.over:
            self._close(flow, reset=False)

    def _close(self, flow: _Flow, reset: bool) -> None:
        """Close both sockets of a connection, with a `reset` for the end that did not cause it, or in good order."""
        for sock in (flow.source, flow.sink):
            if self._flows.pop(sock.fileno(), None):
                if reset:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.close()
        self._accepting = True  # connections may be waiting, because there were too many open files
