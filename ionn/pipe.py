"""The stream between a server's front and a session's process: messages of several frames, over a pair of sockets.

ZeroMQ would wake two threads of its own for each message, and waking a thread costs more than passing on most messages.
"""

from __future__ import annotations

import itertools
import socket
import struct
from collections import deque
from collections.abc import Sequence
from typing import Any

# The number of frames and the bytes of what follows: the length of every frame, and the frames.
_HEAD = struct.Struct("<IQ")
_LENGTH_BYTES = 8
# More than the system takes in one call is not offered to it; messages have fewer frames.
_FRAMES_AT_ONCE = 64


class Pipe:
    """One end. Not for use by two threads at once.

    The end of the `front` never blocks: `send` keeps what the socket does not take yet, and `pending` tells that
    `flush` has to be called again when it takes more. The other end blocks, and it uses one buffer for all messages.
    Messages of more than `bytes_max` are not received.
    """

    def __init__(self, sock: socket.socket, front: bool, bytes_max: int) -> None:
        sock.setblocking(not front)
        self._socket = sock
        self._front = front
        self._bytes_max = bytes_max
        self._outgoing: deque[memoryview] = deque()
        self._head = bytearray(_HEAD.size)
        self._body: memoryview | None = None  # of the message whose head has arrived
        self._filled = 0  # of the head or the body
        self._buffer = bytearray()

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def pending(self) -> bool:
        return bool(self._outgoing)

    def send(self, frames: Sequence[Any]) -> None:
        """Send a message, any objects with a contiguous buffer; they must not change while the message is pending.

        Raises OSError if the other end is closed.
        """
        views = [memoryview(frame) for frame in frames]
        lengths = struct.pack(f"<{len(views)}Q", *(view.nbytes for view in views))
        size = len(lengths) + sum(view.nbytes for view in views)
        self._outgoing.append(memoryview(_HEAD.pack(len(views), size) + lengths))
        self._outgoing.extend(view.cast("B") for view in views if view.nbytes)
        self.flush()

    def flush(self) -> None:
        """Send what is pending, as far as the socket takes it. Raises OSError if the other end is closed."""
        while self._outgoing:
            try:
                sent = self._socket.sendmsg(itertools.islice(self._outgoing, _FRAMES_AT_ONCE))
            except BlockingIOError:
                return
            while self._outgoing and sent >= len(self._outgoing[0]):
                sent -= len(self._outgoing.popleft())
            if sent:
                self._outgoing[0] = self._outgoing[0][sent:]

    def receive(self) -> list[memoryview] | None:
        """The frames of the next message; None, at the front, while it has not arrived whole.

        At the other end they hold until the next call. Raises EOFError when the other end has closed, ValueError if the
        message is too large; no more can be received then.
        """
        if self._body is None:
            if not self._fill(memoryview(self._head)):
                return None
            _, size = _HEAD.unpack(self._head)
            if size > self._bytes_max:
                raise ValueError(f"a message of {size} bytes")
            if self._front or len(self._buffer) < size:
                self._buffer = bytearray(size)
            self._body = memoryview(self._buffer)[:size]
        if not self._fill(self._body):
            return None
        body, self._body = self._body, None
        count, _ = _HEAD.unpack(self._head)
        ends = itertools.accumulate(struct.unpack_from(f"<{count}Q", body), initial=count * _LENGTH_BYTES)
        return [body[start:end] for start, end in itertools.pairwise(ends)]

    def _fill(self, target: memoryview) -> bool:
        """Read on until `target` is full; whether it is."""
        while self._filled < len(target):
            try:
                got = self._socket.recv_into(target[self._filled :])
            except BlockingIOError:
                return False
            except ConnectionResetError:  # closed with messages unread
                got = 0
            if not got:
                raise EOFError
            self._filled += got
        self._filled = 0
        return True

    def close(self) -> None:
        self._socket.close()
