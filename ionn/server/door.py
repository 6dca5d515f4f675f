"""The server's port: who may connect, and how much is held of what peers send, and of what they do not read.

A connection is read from only while its peer reads its answers, and only as far as its host, the front, has room; all
else waits in the system's buffers and at the peer. So what a connection can occupy is bounded:

    without a session   a message of 1 kB, 10 kB of answers, and the 16 KiB buffer of `Incoming`
    with a session      what the host has room for, and `_UNREAD_BYTES_MAX` and a piece of answers

Connections without a session are called strangers. Their number is bounded, in all and of one address, and they are
closed after `hello_s`. If there is no room for another one of an address, the oldest of that address is closed; if
there is none at all, the oldest of the address that has most of them.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import socket
import time
from collections.abc import Callable
from typing import Any, Protocol

from ionn.address import format_address, parse_address, resolve
from ionn.errors import InputError
from ionn.protocol.buffers import Outgoing, give_back
from ionn.protocol.curve import ServerKeys, printed
from ionn.protocol.messages import Message
from ionn.protocol.zmtp import (
    Bounds,
    Established,
    KeyRefusedError,
    Received,
    Send,
    ServerConnection,
    TooLargeError,
    ZmtpError,
)
from ionn.server.limits import Limits
from ionn.server.loop import GOES, GONE, IN, OUT, Loop
from ionn.server.metrics import Counts

log = logging.getLogger(__name__)

# For messages without a session: a Hello has a tenth of this, in one frame.
STRANGERS = Bounds(frames=4, first_frame_bytes=1024, message_bytes=1024)
# With so much unread, neither a connection nor its session's process is read from. It fills a fast link for 10 ms.
_UNREAD_BYTES_MAX = 1_000_000
_STRANGER_UNREAD_BYTES_MAX = 10_000
# The most messages of one connection in one turn of the loop, so that others have their turn.
_MESSAGES_AT_ONCE = 16
_ACCEPTED_AT_ONCE = 16
# How many times at most a connection is received from in one turn of the loop.
_RECEIVED_AT_ONCE = 4
# A peer that is dismissed has so long to close its connection. If it were closed here at once, libzmq would drop what
# it has not handed out yet, and the system what the peer has not read.
_FAREWELL_S = 2.0
# Errors of a system that has no descriptor or memory for another connection now.
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_PAUSE_S = 0.1
# A warning that strangers can cause is logged only so often, so that they cannot fill the log.
_WARN_EVERY_S = 10.0
# The most connections that wait to be accepted: the system lets a peer beyond that try again after a second.
_BACKLOG = 4096
# When so many connections have been closed, their memory is returned to the system.
_GONE_MANY = 256


class Connection:
    """A peer's connection. `key` is its public key, empty without keys. `session` and `role` are the host's; a stranger
    has no session."""

    def __init__(self, sock: socket.socket, address: str, zmtp: ServerConnection, closes_at: float) -> None:
        self.socket = sock
        self.address = address
        self.zmtp = zmtp
        self.key = b""
        self.session: Any = None
        self.role = ""
        self.closes_at = closes_at  # while it has no session
        self.outgoing = Outgoing()
        self.heard = 0.0  # when something last arrived
        self.sent_at = 0.0  # when the peer last took some of `outgoing`, or when that began to wait
        self.answering = False  # an answer is being sent in pieces: nothing else may be sent between them
        self.waiting = False  # more may have arrived, but cannot be taken now
        self.paused = False  # the host has not taken the last message yet
        self.leaving = False  # it was dismissed, and nothing more is taken
        self.closed = False

    @property
    def full(self) -> bool:
        """Tell whether so much waits for its peer to read that nothing more may be added."""
        most_bytes = _STRANGER_UNREAD_BYTES_MAX if self.session is None else _UNREAD_BYTES_MAX
        return self.outgoing.cost >= most_bytes


class Host(Protocol):
    """What takes the messages of connections: the front."""

    def room(self, connection: Connection) -> int:
        """Return the cost, in bytes, of what may be taken from a connection now."""

    def received(self, connection: Connection, frames: list[Any], cost: int) -> None:
        """Take a message that has arrived."""

    def too_large(self, connection: Connection, error: TooLargeError) -> None:
        """Dismiss a connection, since a message of it exceeds its bounds."""

    def drained(self, connection: Connection) -> None:
        """Note that a session's connection is no longer full, or that it is closed."""


def listener_at(bind: str) -> socket.socket:
    """A socket that listens at tcp://HOST:PORT. Raises InputError if that is impossible."""
    family, where = resolve(parse_address(bind, listen=True))
    both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
    try:
        listener = socket.create_server(where, family=family, backlog=_BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise InputError(f"{bind}: cannot listen there: {reason}; choose another address") from error
    listener.setblocking(False)
    return listener


class Door:
    """Accepts connections, speaks ZMTP with them and keeps them within the limits. `address` is where it listens.
    Raises InputError if it cannot listen."""

    def __init__(
        self, bind: str, limits: Limits, keys: ServerKeys | None, counts: Counts, loop: Loop, host: Host
    ) -> None:
        self._limits = limits
        self._keys = keys.curve() if keys is not None else None
        self._counts = counts
        self._loop = loop
        self._host = host
        self._listener = listener_at(bind)
        self.address = f"tcp://{format_address(self._listener.getsockname()[:2])}"
        self._listens_from: float | None = None  # when it listens again, if it is paused
        self._connections: dict[Connection, None] = {}
        self._strangers: dict[str, dict[Connection, None]] = {}  # by address, the oldest first
        self._strangers_count = 0
        self._gone = 0
        self._warns_from = 0.0

    # --- Connections come ---------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Accept connections from now on."""
        self._loop.watch(self._listener.fileno(), IN, self._accept, self._pause, outer=False)

    def _accept(self, mask: int) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                sock, where = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._pause()
                    return
                continue  # a connection that ended before it was accepted
            try:
                self._admit(sock, _address(where[0]))
            except OSError:  # it has ended already
                sock.close()

    def _pause(self) -> None:
        self._listens_from = time.monotonic() + _PAUSE_S
        self._loop.change(self._listener.fileno(), 0)
        self._warn("no descriptor or memory for another connection")

    def _admit(self, sock: socket.socket, address: str) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        zmtp = ServerConnection(self._keys, STRANGERS)
        connection = Connection(sock, address, zmtp, time.monotonic() + self._limits.hello_s)
        self._loop.watch(
            sock.fileno(), IN, lambda mask: self._serve(connection, mask), lambda: self.close(connection), outer=True
        )
        self._connections[connection] = None
        self._counts.connections = len(self._connections)
        self._count_in(connection)

    def _count_in(self, stranger: Connection) -> None:
        """Count one more stranger. If there is no room for it, close another one."""
        limits, same = self._limits, self._strangers.get(stranger.address, {})
        if len(same) >= limits.pending_per_address:
            self._evict(same)
        elif self._strangers_count >= limits.pending:
            self._evict(max(self._strangers.values(), key=len))
        self._strangers.setdefault(stranger.address, {})[stranger] = None
        self._strangers_count += 1

    def _evict(self, strangers: dict[Connection, None]) -> None:
        self._counts.evicted += 1
        self.close(next(iter(strangers)))

    def _count_out(self, stranger: Connection) -> None:
        same = self._strangers[stranger.address]
        del same[stranger]
        if not same:
            del self._strangers[stranger.address]
        self._strangers_count -= 1

    # --- What the host does with them ---------------------------------------------------------------------------------

    def attach(
        self, connection: Connection, session: Any, role: str, bounds: Bounds, allocate: Callable[[int], memoryview]
    ) -> None:
        """Give a stranger a session. Its large frames are received into memory that `allocate` returns."""
        self._count_out(connection)
        connection.session, connection.role = session, role
        connection.zmtp.bounds, connection.zmtp.allocate = bounds, allocate
        self._loop.move(connection.socket.fileno(), outer=False)

    def resume(self, connection: Connection) -> None:
        """Take more from a connection, if it has sent more: the host may have room now."""
        connection.paused = False
        if connection.waiting:
            self._loop.later(connection.socket.fileno())

    def say(self, connection: Connection, message: Message) -> None:
        """Send a message of the host's own, unless an answer is being sent in pieces."""
        if not (connection.closed or connection.leaving or connection.answering):
            self._send(connection, connection.zmtp.message(message.frames()))

    def dismiss(self, connection: Connection, message: Message) -> None:
        """Send a last message; the peer has two seconds to read it and to close the connection."""
        self.say(connection, message)
        self._leave(connection)

    def answer(self, connection: Connection, data: Any, frame_bytes: int, begins: bool, ends: bool, more: bool) -> None:
        """Send a piece of an answer's frame, which has `frame_bytes`: whether the frame `begins` and `ends` with it,
        and whether there are `more` frames. Only whole frames if the connection `seals`."""
        if connection.closed or connection.leaving:
            return
        connection.answering = more or not ends
        zmtp = connection.zmtp
        if zmtp.seals:
            self._queue(connection, zmtp.frame(data, more))
        else:
            self._queue(connection, [zmtp.frame_head(frame_bytes, more), data] if begins else [data])
        if not connection.answering:
            self.resume_if_waiting(connection)

    def flush(self, connection: Connection) -> None:
        """Send as much of the answers as the peer takes."""
        if not connection.closed:
            self._flush(connection)
            self._settle(connection)

    # --- One connection -----------------------------------------------------------------------------------------------

    def _queue(self, connection: Connection, buffers: list[Any]) -> None:
        if not connection.outgoing.size:
            connection.sent_at = time.monotonic()
        connection.outgoing.add(buffers)

    def _send(self, connection: Connection, buffers: list[Any]) -> None:
        self._queue(connection, buffers)
        self.flush(connection)

    def _flush(self, connection: Connection) -> None:
        was_full = connection.full
        try:
            if connection.outgoing.send(connection.socket):
                connection.sent_at = time.monotonic()
        except OSError:
            self.close(connection)
            return
        if was_full and not connection.full:
            if connection.session is not None:
                self._host.drained(connection)
            self.resume_if_waiting(connection)

    def resume_if_waiting(self, connection: Connection) -> None:
        """Take more from a connection, unless the host has not taken its last message yet."""
        if connection.waiting and not connection.paused:
            self._loop.later(connection.socket.fileno())

    def _settle(self, connection: Connection) -> None:
        """Watch a connection for what it waits for now."""
        if not connection.closed:
            mask = OUT if connection.outgoing.size else 0
            if connection.leaving:
                mask |= GOES
            elif not connection.waiting:
                mask |= IN
            self._loop.change(connection.socket.fileno(), mask)

    def _serve(self, connection: Connection, mask: int) -> None:
        if mask & OUT:
            self._flush(connection)
        if not connection.closed:
            if mask & IN and not connection.leaving:
                self._receive(connection)
            elif mask & (GONE | GOES):
                self.close(connection)
            elif connection.waiting:
                self._take(connection)
        self._settle(connection)

    def _receive(self, connection: Connection) -> None:
        """Receive and take what has arrived, a few times while a large frame is arriving: to try again takes no longer
        than to ask the system whether there is more."""
        zmtp = connection.zmtp
        for _ in range(_RECEIVED_AT_ONCE):
            if connection.waiting:  # it has begun to wait since the system reported it as readable
                return
            try:
                count = connection.socket.recv_into(zmtp.incoming.buffer())
            except BlockingIOError:
                return
            except OSError:
                count = 0
            if not count:
                self.close(connection)
                return
            connection.heard = time.monotonic()
            zmtp.incoming.received(count)
            self._take(connection)
            if not zmtp.arriving:
                return

    def _take(self, connection: Connection) -> None:
        """Take some of what has arrived; nothing while an answer is being sent in pieces, as it may have to be answered
        at once."""
        zmtp = connection.zmtp
        connection.waiting = True
        for _ in range(_MESSAGES_AT_ONCE):
            if connection.closed or connection.leaving or connection.paused or connection.full or connection.answering:
                return
            zmtp.room = self._host.room(connection)
            try:
                event = zmtp.next_event()
            except TooLargeError as error:
                self._host.too_large(connection, error)
                return
            except ZmtpError as error:
                self._refuse(connection, error)
                return
            match event:
                case None:
                    connection.waiting = zmtp.waits_for_room
                    return
                case Send():
                    self._send(connection, [event.data])
                case Established():
                    connection.key = event.key
                case Received():
                    self._host.received(connection, event.frames, event.cost)
        self._loop.later(connection.socket.fileno())

    def _refuse(self, connection: Connection, error: ZmtpError) -> None:
        if isinstance(error, KeyRefusedError):
            self._counts.refused["key"] += 1
            self._warn("a key is not allowed", client=f"{printed(error.key)} at {connection.address}")
        else:
            self._counts.refused["zmtp"] += 1
        if error.farewell:
            self._queue(connection, [error.farewell])
            self._leave(connection)
        else:
            self.close(connection)

    def _leave(self, connection: Connection) -> None:
        """Take nothing more, and close when the peer has closed, or after _FAREWELL_S."""
        if connection.closed or connection.leaving:
            return
        if connection.answering:  # nothing can be said in the middle of an answer
            self.close(connection)
            return
        self._detach(connection)
        connection.leaving = True
        connection.zmtp.stop()
        connection.closes_at = time.monotonic() + _FAREWELL_S
        self.flush(connection)

    def _detach(self, connection: Connection) -> None:
        if connection.session is not None:
            connection.session = None
            self._loop.move(connection.socket.fileno(), outer=True)
            self._count_in(connection)

    def close(self, connection: Connection) -> None:
        """Close a connection at once."""
        if connection.closed:
            return
        connection.closed = True
        self._gone += 1
        del self._connections[connection]
        self._counts.connections = len(self._connections)
        if connection.session is None:
            self._count_out(connection)
        self._loop.unwatch(connection.socket.fileno())
        connection.socket.close()
        connection.outgoing.clear()
        connection.zmtp.stop()  # messages without an answer yet still refer to the connection
        if connection.session is not None:
            self._host.drained(connection)

    # --- Time passes --------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Close connections whose time is over. To be called several times a second."""
        if self._listens_from is not None and now >= self._listens_from:
            self._listens_from = None
            self._loop.change(self._listener.fileno(), IN)
        for connection in list(self._connections):
            if connection.session is None and now >= connection.closes_at:
                self.close(connection)
            elif connection.outgoing.size and now - connection.sent_at > self._limits.unread_s:
                self._counts.refused["unread"] += 1
                self.close(connection)

        if self._gone >= _GONE_MANY:
            self._gone = 0
            give_back()

    @property
    def leaving(self) -> bool:
        """Tell whether a dismissed peer has not closed its connection yet."""
        return any(connection.leaving for connection in self._connections)

    def shut(self) -> None:
        for connection in list(self._connections):
            self.close(connection)
        self._loop.unwatch(self._listener.fileno())
        self._listener.close()

    def _warn(self, event: str, **fields: str) -> None:
        """Log a warning, but not often: strangers must not fill the log."""
        now = time.monotonic()
        if now >= self._warns_from:
            self._warns_from = now + _WARN_EVERY_S
            log.warning(event, extra={"fields": fields})


def _address(host: str) -> str:
    """Return what counts as one address. For IPv6 that is a /64 network, which one subscriber gets."""
    if ":" not in host:
        return host
    address = ipaddress.IPv6Address(host.partition("%")[0])
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address, 64), strict=False))
