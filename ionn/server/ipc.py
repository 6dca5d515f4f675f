"""The pipe between a server's front and a session's process: messages of several frames, over a pair of sockets.

A message to the front is the number of its frames, the number of bytes that follow, the length of every frame, and the
frames.

A message to a session's process is its stream, the number of its frames, the number of bytes that follow, a table, and
the frames that the table says follow. For every frame the table has its place in the session's inbox, or ELSEWHERE if
it follows, and its length. The stream is the role of the connection by which the message came, or TRIAL. A message of
TRIAL has no frames, and asks to run a stage that has not run yet; the answer is MORE if there was one.
"""

from __future__ import annotations

import os
import socket
import struct
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ionn.protocol.buffers import PEEK_BYTES_MAX, Incoming, Outgoing, untouched
from ionn.server.shared_memory import ELSEWHERE, Inbox

TRIAL = "trial"
STREAMS = ("control", "upload", TRIAL)
MORE = b"more"

_HEAD = struct.Struct("<IQ")
_LENGTH_BYTES = 8
# Of a message to a session's process, and of a frame in its table.
_STREAM_HEAD = struct.Struct("<BIQ")
_FRAME = struct.Struct("<qQ")
# The front looks at the lengths of an answer's frames at once.
_FRAMES_MAX = PEEK_BYTES_MAX // _LENGTH_BYTES
# The front passes on answers' frames in pieces of this size, so that it never holds much of an answer.
_PIECE_BYTES = 256 * 1024


class _Written:
    """A socket that is written to like a file. The sandbox allows no sendmsg, by which descriptors could be sent."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def sendmsg(self, buffers: Iterable[memoryview], /) -> int:
        return os.writev(self._socket.fileno(), list(buffers))


class Pipe:
    """The end of a session's process, which blocks. `inbox` is the memory of its inbox. It receives all messages into
    one buffer."""

    def __init__(self, sock: socket.socket, inbox: memoryview) -> None:
        sock.setblocking(True)
        self._socket = sock
        self._inbox = inbox
        self._outgoing = Outgoing()
        self._head = memoryview(bytearray(_STREAM_HEAD.size))
        self._buffer = untouched(0)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, frames: Sequence[Any]) -> None:
        """Send a message, any objects with a contiguous buffer. Raises EOFError when the other end has closed."""
        sizes = [memoryview(frame).nbytes for frame in frames]
        lengths = struct.pack(f"<{len(sizes)}Q", *sizes)
        self._outgoing.add([_HEAD.pack(len(sizes), len(lengths) + sum(sizes)), lengths, *frames])
        try:
            self._outgoing.send(_Written(self._socket))
        except ConnectionError:  # broken, or reset if it was closed with messages unread
            raise EOFError from None

    def receive(self) -> tuple[str, list[memoryview]]:
        """The stream and the frames of the next message; the frames are valid until the message is answered. Raises
        EOFError when the other end has closed."""
        self._fill(self._head)
        stream, count, size = _STREAM_HEAD.unpack(self._head)
        if len(self._buffer) < size:
            self._buffer = untouched(size)
        body = self._buffer[:size]
        self._fill(body)
        frames = []
        at = count * _FRAME.size
        for place, length in _FRAME.iter_unpack(body[:at]):
            if place == ELSEWHERE:
                frames.append(body[at : at + length])
                at += length
            else:
                frames.append(self._inbox[place : place + length])
        return STREAMS[stream], frames

    def _fill(self, target: memoryview) -> None:
        while target:
            try:
                got = self._socket.recv_into(target, 0, socket.MSG_WAITALL)
            except ConnectionResetError:  # closed with messages unread
                got = 0
            if not got:
                raise EOFError
            target = target[got:]


class Piece(NamedTuple):
    """A piece of a frame of `frame_bytes`: whether the frame `begins` and `ends` with it, and whether there are `more`
    frames of its message."""

    data: Any
    frame_bytes: int
    begins: bool
    ends: bool
    more: bool


class FrontPipe:
    """The front's end, which never blocks. `send` keeps what the socket does not take yet; as long as something is
    `pending`, call `flush` when the socket takes more. A frame that is in the `inbox` is not sent, and has to be kept
    until its message is answered. A frame of more than `frame_bytes_max` is an error."""

    def __init__(self, sock: socket.socket, inbox: Inbox, frame_bytes_max: int) -> None:
        sock.setblocking(False)
        self._socket = sock
        self.inbox = inbox
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

    def send(self, stream: str, frames: Sequence[Any]) -> None:
        """Send a message. Frames are any objects with a contiguous buffer, and must not change while something is
        pending. Raises OSError if the other end is closed."""
        views = [memoryview(frame) for frame in frames]
        places = [self.inbox.place(view) for view in views]
        table = b"".join(_FRAME.pack(place, view.nbytes) for place, view in zip(places, views, strict=True))
        following = [view for place, view in zip(places, views, strict=True) if place == ELSEWHERE]
        size = len(table) + sum(view.nbytes for view in following)
        self._outgoing.add([_STREAM_HEAD.pack(STREAMS.index(stream), len(frames), size) + table, *following])
        self.flush()

    def flush(self) -> None:
        """Send what is pending, as far as the socket takes it. Raises OSError if the other end is closed."""
        self._outgoing.send(self._socket)

    def receive(self, whole: bool) -> Piece | None:
        """The next piece of a message, or a `whole` frame of it; None while it has not arrived.

        Raises EOFError when the other end has closed, and ValueError for what no process of ours sends.
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
        """Read the lengths of the next message's frames, if they have arrived; whether they have."""
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
