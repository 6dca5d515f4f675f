"""One connection of a client to a server: it sends and receives messages, and tells why it broke."""

from __future__ import annotations

import contextlib
import errno
import itertools
import math
import os
import socket as sockets
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from ionn.address import format_address, parse_address, resolve
from ionn.client.inflow import Inflow
from ionn.client.mechanism import mechanism_of
from ionn.coding import CODECS
from ionn.errors import InputError, NotAcceptedError, ProtocolError, ServerError, ServerUnreachableError, VersionError
from ionn.protocol.curve import ClientKeys
from ionn.protocol.messages import (
    ERROR_MISSING,
    ERROR_VERSION,
    PROTOCOL,
    Ack,
    Bye,
    Error,
    Hello,
    Message,
    Ping,
    Pong,
    Welcome,
    decode,
)

# Bounds on what a server, which is not trusted, may have a client hold. A frame is an output, which is far smaller.
FRAME_BYTES_MAX = 64 * 1024 * 1024
# A network has fewer outputs.
FRAMES_MAX = 2000
# A cost model is smaller. JSON takes up to thirty times as much memory when it is read.
HEADER_BYTES_MAX = 1024 * 1024
# Messages that ZeroMQ holds; further ones wait in the system's buffers, which are small.
_WAITING_MAX = 16
# A day, which stands for never. Told not to reconnect at all, ZeroMQ drops what came before the connection broke.
_NEVER_MS = 86_400_000

_EVENTS = (
    zmq.EVENT_CONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
_monitors = itertools.count()
# More than the files that a connection opens, the first one of a context included.
_FILES = 10


@contextlib.contextmanager
def opening(address: str) -> Iterator[None]:
    """Raise ServerUnreachableError where the system or ZeroMQ opens no more files."""
    try:
        yield
    except (OSError, zmq.ZMQError) as error:
        raise ServerUnreachableError(f"{address}: no connection can be made: {error.strerror}") from error


def _check_files() -> None:
    """Raise OSError unless _FILES more can be opened. With fewer, ZeroMQ may end the whole process."""
    opened: list[int] = []
    try:
        for _ in range(_FILES):
            opened.append(os.eventfd(0))
    finally:
        for descriptor in opened:
            os.close(descriptor)


class Connection:
    """A connection, which two threads must not use at once. It does not reconnect: once it is broken, every call raises
    the reason.

    A message is accepted only if it has the type of the next answer that is due. Any other raises ProtocolError, and
    the connection cannot be used any more.

    `greeted` tells whether a server has completed ZMTP's handshake, even if it answers no message.
    """

    def __init__(self, context: zmq.Context[Any], address: str, keys: ClientKeys | None = None) -> None:
        self._address = address
        self._keys = keys
        self.greeted = False
        self._awaited: deque[str] = deque()  # the types of the answers that are due
        self._inflow: Inflow | None = None
        self._expected_bytes = HEADER_BYTES_MAX
        self._broken: Exception | None = None
        place = parse_address(address)
        with opening(address):
            _check_files()
            try:
                # Here, since libzmq is to be told which of the two families a name has.
                family, where = resolve(place)
            except InputError as error:
                raise self.unreachable("unknown host; check its name") from error
            self._socket = context.socket(zmq.DEALER)
            try:
                self._socket.linger = 0
                self._socket.sndhwm = 0  # no limit: credit bounds what is under way
                self._socket.rcvhwm = _WAITING_MAX
                self._socket.maxmsgsize = FRAME_BYTES_MAX
                self._socket.reconnect_ivl = _NEVER_MS
                self._socket.ipv6 = family == sockets.AF_INET6
                if keys is not None:
                    keys.apply(self._socket)
                self._monitor = self._socket.get_monitor_socket(_EVENTS, f"inproc://monitor-{next(_monitors)}")
                self._poller = zmq.Poller()
                self._poller.register(self._socket, zmq.POLLIN)
                self._poller.register(self._monitor, zmq.POLLIN)
                self._socket.connect(f"tcp://{format_address(where[:2])}")
            except zmq.ZMQError:
                self._socket.close()
                raise

    def wake_by(self, descriptor: int) -> None:
        """Have `receive` also return, with nothing, when a file descriptor becomes readable."""
        self._poller.register(descriptor, zmq.POLLIN)

    def expect(self, bytes_max: int) -> None:
        """Expect at most so many bytes of answers to what is sent next, beside their headers."""
        self._expected_bytes = bytes_max
        if (inflow := self._inflow) is not None:  # another thread may close this meanwhile
            inflow.expected_bytes = bytes_max

    def send(self, message: Message, copy: bool = False) -> None:
        """Send a message. ZeroMQ sends it later, from the memory of its payload, which must not change, or from a
        `copy`. Raises as `receive` does."""
        # ZeroMQ accepts messages for a connection that is closed, too.
        self._hear_monitor()
        if self._broken is not None:
            raise self._why_broken(self._broken)
        try:
            self._socket.send_multipart(message.frames(), zmq.NOBLOCK, copy=copy)
        except zmq.Again:  # it was closed just now
            self._hear_monitor()
            self._broken = self._broken or self._closed()
            raise self._why_broken(self._broken) from None
        if not isinstance(message, Bye):
            self._awaited.append(message.answer)

    def receive(self, timeout_s: float) -> Message | None:
        """The next message; None if none has come within `timeout_s`, or sometimes earlier.

        Raises ServerUnreachableError if the connection is broken (NotAcceptedError if the server does not accept the
        keys), ServerError for an Error, and ProtocolError for a message that is not due or too large. The Error
        `missing` is returned where an Ack is due.
        """
        ready = dict(self._poller.poll(0 if self._broken else max(0, math.ceil(timeout_s * 1e3))))
        if self._monitor in ready:
            self._hear_monitor()
        if self._inflow is not None and self._inflow.flooded:
            # ZeroMQ may not tell: while it holds as many messages as it may, it does not read on to the end.
            self._broken = self._broken or self._closed()
        elif self._socket in ready or self._broken is not None:
            message = self._take()  # it may have come before the connection broke
            if message is not None:
                return message
        if self._broken is not None:
            raise self._broken
        return None

    def _take(self) -> Message | None:
        frames: list[zmq.Frame] = []
        try:
            while not frames or frames[-1].more:
                if len(frames) == FRAMES_MAX:
                    raise self.violation(f"the server's message has more than {FRAMES_MAX} frames")
                frames.append(self._socket.recv(zmq.NOBLOCK, copy=False))
        except zmq.Again:  # it was lost with the connection
            return None
        if self._inflow is not None:
            self._inflow.take(sum(map(len, frames)), len(frames))
        try:
            message = decode(frames, HEADER_BYTES_MAX)
        except ProtocolError as error:
            raise self.violation(str(error)) from error
        awaited = self._awaited.popleft() if self._awaited else ""
        if isinstance(message, Error):  # it may come unasked, when the session ends
            if message.code == ERROR_MISSING and awaited == Ack.type:
                return message
            raise ServerError(message.code, f"{self._address}: {message.message}", message.query)
        if not awaited:
            raise self.violation(f"the server says '{message.type}', and was asked nothing")
        if message.type != awaited:
            raise self.violation(f"the server says '{message.type}' where '{awaited}' is due")
        return message

    def _hear_monitor(self) -> None:
        while self._monitor.get(zmq.EVENTS) & zmq.POLLIN:  # `poll` would make a poller each time
            event = recv_monitor_message(self._monitor)
            match event["event"]:
                case zmq.Event.CONNECTED:
                    try:
                        self._inflow = Inflow(event["value"], parse_address(self._address)[1], self._expected_bytes)
                    except OSError as error:
                        if error.errno in (errno.EMFILE, errno.ENFILE):
                            self._broken = self.unreachable(f"no connection can be made: {error.strerror}")
                        # Otherwise it was closed already, which the next event tells.
                case zmq.Event.HANDSHAKE_SUCCEEDED:
                    self.greeted = True
                case zmq.Event.HANDSHAKE_FAILED_AUTH:
                    reason = "the server does not allow this client's key; put it on its list"
                    self._broken = self._broken or NotAcceptedError(f"{self._address}: {reason}")
                case _:
                    self._broken = self._broken or self._closed()

    def _why_broken(self, reason: Exception) -> Exception:
        """The last Error of the server if it has sent one, else the `reason` why nothing can be sent any more."""
        try:
            while not (self._inflow and self._inflow.flooded) and self._take() is not None:
                pass
        except (ServerError, ProtocolError) as error:
            self._broken = reason = error
        return reason

    def _closed(self) -> Exception:
        if self._inflow is not None and self._inflow.flooded:
            return self.violation("the server sent more than it was asked for")
        if self.greeted:
            return self.unreachable("the connection was closed")
        reason = ""
        match mechanism_of(self._address), self._keys:
            case "CURVE", None:
                reason = "the server takes only clients with keys; give --key, --server-key"
            case "CURVE", _:
                reason = "the server has another key than the one given; check --server-key"
            case "NULL", ClientKeys():
                reason = "the server has no keys; connect without"
        return NotAcceptedError(f"{self._address}: {reason}") if reason else self.unreachable("no ionn server there")

    def violation(self, what: str) -> ProtocolError:
        """The error to raise when the server breaks the protocol."""
        return ProtocolError(f"{self._address}: {what}")

    def unreachable(self, reason: str) -> ServerUnreachableError:
        """The error to raise when this connection cannot be used any more."""
        return ServerUnreachableError(f"{self._address}: {reason}")

    def ask(self, message: Message, timeout_s: float, stopped: threading.Event | None = None) -> Message:
        """Send a message and return the next answer. Raises as `receive` does, and ServerUnreachableError if none comes
        within `timeout_s`, or before `stopped` is set."""
        deadline = time.monotonic() + timeout_s
        self.send(message)
        while (left_s := deadline - time.monotonic()) > 0 and not (stopped and stopped.is_set()):
            if (answer := self.receive(min(left_s, 0.1))) is not None:
                return answer
        raise self.unreachable(f"the server has not answered for {timeout_s:g} s")

    def hello(self, role: str, session: str, timeout_s: float, stopped: threading.Event | None = None) -> Welcome:
        """Begin a session, or continue one. Raises as `ask` does, and VersionError for another version of the
        protocol."""
        try:
            answer = self.ask(Hello(PROTOCOL, role, session, CODECS), timeout_s, stopped)
        except ServerError as error:
            if error.code == ERROR_VERSION:
                raise VersionError(str(error)) from error
            raise
        assert isinstance(answer, Welcome)
        if answer.protocol != PROTOCOL:
            raise self.violation(f"the server welcomes a client of protocol {PROTOCOL} to protocol {answer.protocol}")
        if not answer.session or (session and answer.session != session):
            raise self.violation("the server welcomes to another session than the one asked for")
        self.expect(0)
        return answer

    def close(self, linger_ms: int = 0) -> None:
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(linger_ms)
        if self._inflow is not None:
            self._inflow.close()
            self._inflow = None


def ping(address: str, keys: ClientKeys | None = None, timeout_s: float = 2.0) -> Pong:
    """Ask a server at tcp://HOST:PORT whether it is alive and accepts another session. Raises as `Connection.ask`
    does."""
    with opening(address):
        context: zmq.Context[Any] = zmq.Context()
    try:
        connection = Connection(context, address, keys)
        try:
            answer = connection.ask(Ping(), timeout_s)
        finally:
            connection.close()
    finally:
        context.destroy(linger=0)
    assert isinstance(answer, Pong)
    return answer
