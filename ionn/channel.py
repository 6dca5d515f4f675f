"""One connection of a client to a server: messages out and in, and what becomes of the connection."""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from ionn.errors import InputError, ProtocolError, ServerError, ServerUnreachableError
from ionn.keys import ClientKeys, mechanism_of
from ionn.wire import CHUNK_BYTES, ERROR_VERSION, PROTOCOL, Error, Hello, Message, Ping, Pong, Welcome, decode

# What a server that cannot be trusted may make a client hold: the result of a query is far smaller.
FRAME_BYTES_MAX = max(CHUNK_BYTES, 64 * 1024 * 1024)

_EVENTS = zmq.EVENT_CLOSED | zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH
_monitors = itertools.count()


class Channel:
    """Not for use by two threads at once. It does not reconnect: once it is broken, every call says so.

    `greeted` tells whether there is a live server at the other end, even if it answers no message.
    """

    def __init__(self, context: zmq.Context[Any], address: str, keys: ClientKeys | None = None) -> None:
        self._address = address
        self._keys = keys
        self.greeted = False
        self._socket = context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.sndhwm = 0  # what is under way is bounded by credit
        self._socket.maxmsgsize = FRAME_BYTES_MAX
        self._socket.reconnect_ivl = -1
        self._socket.ipv6 = "[" in address
        if keys is not None:
            keys.apply(self._socket)
        self._monitor = self._socket.get_monitor_socket(_EVENTS, f"inproc://monitor-{next(_monitors)}")
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        self._socket.connect(address)

    def wake_by(self, descriptor: int) -> None:
        """Have `receive` also return, with nothing, when a file descriptor becomes readable."""
        self._poller.register(descriptor, zmq.POLLIN)

    def send(self, message: Message) -> None:
        try:
            self._socket.send_multipart(message.frames(), zmq.NOBLOCK, copy=False)
        except zmq.Again:
            raise self.unreachable("the connection is closed") from None

    def receive(self, timeout_s: float) -> Message | None:
        """The next message; None if there is none in time.

        Raises ServerUnreachableError when the connection breaks, InputError if the server does not take the keys,
        ServerError for an Error, ProtocolError.
        """
        events = dict(self._poller.poll(int(timeout_s * 1e3)))
        if self._socket in events:  # first: what was said before the connection broke
            message = decode(self._socket.recv_multipart(copy=False))
            if isinstance(message, Error):
                raise ServerError(message.code, f"{self._address}: {message.message}")
            return message
        if self._monitor in events:
            match recv_monitor_message(self._monitor)["event"]:
                case zmq.Event.HANDSHAKE_SUCCEEDED:
                    self.greeted = True
                case zmq.Event.HANDSHAKE_FAILED_AUTH:
                    raise InputError(
                        f"{self._address}: the server does not allow this client's key; put it on its list"
                    )
                case _:
                    raise self._closed()
        return None

    def _closed(self) -> InputError | ServerUnreachableError:
        if self.greeted:
            return self.unreachable("the connection was closed")
        match mechanism_of(self._address), self._keys:
            case "CURVE", None:
                return InputError(f"{self._address}: the server takes only clients with keys; give --key, --server-key")
            case "CURVE", _:
                return InputError(f"{self._address}: the server has another key than the one given; check --server-key")
            case "NULL", ClientKeys():
                return InputError(f"{self._address}: the server has no keys; connect without")
        return self.unreachable("no server there")

    def unreachable(self, reason: str) -> ServerUnreachableError:
        """The error to raise when this connection is of no more use."""
        return ServerUnreachableError(f"{self._address}: {reason}")

    def ask(self, message: Message, timeout_s: float, stopped: threading.Event | None = None) -> Message:
        """Send a message and wait for the next. ServerUnreachableError if none comes in time or before `stopped`."""
        deadline = time.monotonic() + timeout_s
        self.send(message)
        while (left_s := deadline - time.monotonic()) > 0 and not (stopped and stopped.is_set()):
            if (answer := self.receive(min(left_s, 0.1))) is not None:
                return answer
        raise self.unreachable(f"the server has not answered for {timeout_s:g} s")

    def hello(self, role: str, session: str, timeout_s: float, stopped: threading.Event | None = None) -> Welcome:
        """Begin a session, or go on with one. Raises as `receive` and `ask` do, InputError for another version."""
        try:
            answer = self.ask(Hello(PROTOCOL, role, session), timeout_s, stopped)
        except ServerError as error:
            if error.code == ERROR_VERSION:
                raise InputError(str(error)) from error
            raise
        if not isinstance(answer, Welcome) or answer.protocol != PROTOCOL:
            raise ProtocolError(f"{self._address}: no ionn server, it answered a hello with '{answer.type}'")
        return answer

    def close(self, linger_ms: int = 0) -> None:
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(linger_ms)


def ping(address: str, keys: ClientKeys | None = None, timeout_s: float = 2.0) -> Pong:
    """Ask a server at tcp://HOST:PORT whether it lives and takes another session. Raises as `Channel.receive` does."""
    context: zmq.Context[Any] = zmq.Context()
    try:
        answer = Channel(context, address, keys).ask(Ping(), timeout_s)
    finally:
        context.destroy(linger=0)
    if not isinstance(answer, Pong):
        raise ProtocolError(f"{address}: no ionn server, it answered a ping with '{answer.type}'")
    return answer
