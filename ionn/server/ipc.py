"""The stream between a server's front and a session's process: messages of several frames, over a pair of sockets.

On the wire: the number of frames and the bytes of all that follows, the length of every frame, and the frames. The
first frame for a session's process is the role of the connection that the message came by; or it is TRIAL, alone, for a
stage that has not run yet to be tried, and MORE is the answer if there was one.
"""

from __future__ import annotations

import itertools
import os
import socket
import struct
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ionn.protocol.buffers import PEEK_BYTES_MAX, Incoming, Outgoing, untouched

TRIAL = b"trial"
MORE = b"more"

_HEAD = struct.Struct("<IQ")
_LENGTH_BYTES = 8
# The front looks at the lengths of an answer's frames at once.
_FRAMES_MAX = PEEK_BYTES_MAX // _LENGTH_BYTES
# The front passes a frame on in pieces of this size, so that it never holds much of an answer.
_PIECE_BYTES = 256 * 1024


def _parts(frames: Sequence[Any]) -> list[Any]:
    """Return what sends a message."""
    sizes = [memoryview(frame).nbytes for frame in frames]
    lengths = struct.pack(f"<{len(sizes)}Q", *sizes)
    return [_HEAD.pack(len(sizes), len(lengths) + sum(sizes)) + lengths, *frames]


class _Written:
    """A socket that is written to like a file: whoever may send messages may send descriptors, too."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def sendmsg(self, buffers: Iterable[memoryview], /) -> int:
        return os.writev(self._socket.fileno(), list(buffers))


class Pipe:
    """The end of a session's process: it blocks. It uses one buffer for all messages that it receives."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        self._socket = sock
        self._outgoing = Outgoing()
        self._head = bytearray(_HEAD.size)
        self._buffer = bytearray()

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, frames: Sequence[Any]) -> None:
        """Send a message, any objects with a contiguous buffer. Raises OSError if the other end is closed."""
        self._outgoing.add(_parts(frames))
        self._outgoing.send(_Written(self._socket))

    def receive(self) -> list[memoryview]:
        """The frames of the next message, which hold until the next call. Raises EOFError when the other end has
        closed."""
        self._fill(memoryview(self._head))
        count, size = _HEAD.unpack(self._head)
        if len(self._buffer) < size:
            self._buffer = bytearray(size)
        body = memoryview(self._buffer)[:size]
        self._fill(body)
        ends = itertools.accumulate(struct.unpack_from(f"<{count}Q", body), initial=count * _LENGTH_BYTES)
        return [body[start:end] for start, end in itertools.pairwise(ends)]

    def _fill(self, target: memoryview) -> None:
        while target:
            try:
                got = self._socket.recv_into(target)
            except ConnectionResetError:  # closed with messages unread
                got = 0
            if not got:
                raise EOFError
            target = target[got:]


class Piece(NamedTuple):
    """Bytes of a frame of `frame_bytes`: whether it begins and ends with them, and whether the message goes on after
    it."""

    data: Any
    frame_bytes: int
    begins: bool
    ends: bool
    more: bool


class FrontPipe:
    """The front's end: it never blocks. `send` keeps what the socket does not take yet, and `flush` has to be called
    again when it takes more, as long as something is `pending`. Frames of more than `frame_bytes_max` are not received.
    """

    def __init__(self, sock: socket.socket, frame_bytes_max: int) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._frame_bytes_max = frame_bytes_max
        self._outgoing = Outgoing()
        self._incoming = Incoming()
        self._lengths: deque[int] = deque()  # of the message's frames that have not ended
        self._passed = 0  # of the first of these
        self._target: memoryview | None = None

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def pending(self) -> bool:
        return self._outgoing.size > 0

    def send(self, frames: Sequence[Any]) -> None:
        """Send a message, any objects with a contiguous buffer; they must not change while it is pending.

        Raises OSError if the other end is closed.
        """
        self._outgoing.add(_parts(frames))
        self.flush()

    def flush(self) -> None:
        """Send what is pending, as far as the socket takes it. Raises OSError if the other end is closed."""
        self._outgoing.send(self._socket)

    def receive(self, whole: bool) -> Piece | None:
        """The next piece of a message, a `whole` frame if wanted; None while it has not arrived.

        Raises EOFError when the other end has closed, ValueError for what no process of ours sends.
        """
        while (piece := self._next(whole)) is None:
            try:
                got = self._socket.recv_into(self._incoming.buffer())
            except BlockingIOError:
                return None
            except ConnectionResetError:  # closed with messages unread
                got = 0
            if not got:
                raise EOFError
            self._incoming.received(got)
        return piece

    def _next(self, whole: bool) -> Piece | None:
        if not self._lengths and not self._begin():
            return None
        size = self._lengths[0]
        left = size - self._passed
        if self._target is None:
            self._target = untouched(left if whole else min(left, _PIECE_BYTES))
        if not self._incoming.fill(self._target):
            return None
        data, self._target = self._target, None
        begins = not self._passed
        self._passed += len(data)
        ends = self._passed == size
        if ends:
            self._lengths.popleft()
            self._passed = 0
        return Piece(data, size, begins, ends, len(self._lengths) > (not ends))

    def _begin(self) -> bool:
        """Tell whether the lengths of the next message's frames are there."""
        head = self._incoming.peek(_HEAD.size)
        if len(head) < _HEAD.size:
            return False
        count, _ = _HEAD.unpack(head)
        if not 0 < count <= _FRAMES_MAX - 2:
            raise ValueError(f"a message of {count} frames")
        head_bytes = _HEAD.size + count * _LENGTH_BYTES
        head = self._incoming.peek(head_bytes)
        if len(head) < head_bytes:
            return False
        self._lengths.extend(struct.unpack_from(f"<{count}Q", head, _HEAD.size))
        if max(self._lengths) > self._frame_bytes_max:
            raise ValueError(f"a frame of {max(self._lengths)} bytes")
        self._incoming.skip(head_bytes)
        return True

    def close(self) -> None:
        self._socket.close()
