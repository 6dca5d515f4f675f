"""The pipe between a server's front and a session's process: messages of several frames, over a pair of sockets.

A message to the front is the number of its frames, the number of bytes that follow, the length of every frame, and the
frames.

A message to a session's process is the same, but in parts: it may begin before all of it has arrived from its client,
and messages of other streams may pass between its parts. Each part begins with its stream, whether the message ends
with it, how many bytes the message has, and how many bytes of it follow. The stream is the role of the connection by
which the message came, or TRIAL. A message of TRIAL has no frames, and asks to run a stage that has not run yet; the
answer is MORE if there was one. A part of a message of no bytes takes back the parts before it.
"""

from __future__ import annotations

import itertools
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ionn.protocol.buffers import PEEK_BYTES_MAX, Incoming, Outgoing, untouched

TRIAL = "trial"
STREAMS = ("control", "upload", TRIAL)
MORE = b"more"

_HEAD = struct.Struct("<IQ")
_PART = struct.Struct("<B?QQ")
_LENGTH_BYTES = 8
# The front looks at the lengths of an answer's frames at once.
_FRAMES_MAX = PEEK_BYTES_MAX // _LENGTH_BYTES
# Parts are sent ahead only of a message that has been arriving for so long, and have at least so many bytes, because a
# part costs both ends some time.
_SLOW_S = 0.002
_AHEAD_BYTES = 64 * 1024
# The front passes on answers' frames in pieces of this size, so that it never holds much of an answer.
_PIECE_BYTES = 256 * 1024


def _head(frames: Sequence[Any]) -> bytes:
    """Return the head of a message, which comes before its frames."""
    sizes = [memoryview(frame).nbytes for frame in frames]
    lengths = struct.pack(f"<{len(sizes)}Q", *sizes)
    return _HEAD.pack(len(sizes), len(lengths) + sum(sizes)) + lengths


class _Written:
    """A socket that is written to like a file. The sandbox allows no sendmsg, by which descriptors could be sent."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def sendmsg(self, buffers: Iterable[memoryview], /) -> int:
        return os.writev(self._socket.fileno(), list(buffers))


class Pipe:
    """The end of a session's process, which blocks. It receives all messages of a stream into one buffer."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        self._socket = sock
        self._outgoing = Outgoing()
        self._part = bytearray(_PART.size)
        self._buffers = [untouched(0) for _ in STREAMS]
        self._filled = [0 for _ in STREAMS]

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, frames: Sequence[Any]) -> None:
        """Send a message, any objects with a contiguous buffer. Raises OSError if the other end is closed."""
        self._outgoing.add([_head(frames), *frames])
        self._outgoing.send(_Written(self._socket))

    def receive(self) -> tuple[str, list[memoryview]]:
        """The stream and the frames of the next message that is complete; the frames are valid until the next call.
        Raises EOFError when the other end has closed."""
        while True:
            self._fill(memoryview(self._part))
            stream, ends, size, part = _PART.unpack(self._part)
            if len(self._buffers[stream]) < size:
                self._buffers[stream] = untouched(size)
            body, filled = self._buffers[stream][:size], self._filled[stream]
            self._fill(body[filled : filled + part])
            self._filled[stream] = filled + part if size and not ends else 0
            if ends:
                return STREAMS[stream], _frames(body)

    def _fill(self, target: memoryview) -> None:
        while target:
            try:
                got = self._socket.recv_into(target, 0, socket.MSG_WAITALL)
            except ConnectionResetError:  # closed with messages unread
                got = 0
            if not got:
                raise EOFError
            target = target[got:]


def _frames(body: memoryview) -> list[memoryview]:
    """The frames of a message."""
    count, _ = _HEAD.unpack_from(body)
    begin = _HEAD.size + count * _LENGTH_BYTES
    ends = itertools.accumulate(struct.unpack_from(f"<{count}Q", body, _HEAD.size), initial=begin)
    return [body[start:end] for start, end in itertools.pairwise(ends)]


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
    `pending`, call `flush` when the socket takes more. A frame of more than `frame_bytes_max` is an error."""

    def __init__(self, sock: socket.socket, frame_bytes_max: int) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._frame_bytes_max = frame_bytes_max
        self._outgoing = Outgoing()
        # By stream: when the message that is arriving began to arrive, and how many bytes of it were sent ahead.
        self._began: dict[str, float] = {}
        self._ahead = dict.fromkeys(STREAMS, 0)
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
        """Send a message, or what of it was not sent ahead. Frames are any objects with a contiguous buffer, and must
        not change while something is pending. Raises OSError if the other end is closed."""
        head = _head(frames)
        size = len(head) + sum(memoryview(frame).nbytes for frame in frames)
        self._send_part(stream, [head, *frames], size, size)
        self._forget(stream)

    def send_ahead(self, stream: str, frames: Sequence[Any], arrived: int) -> None:
        """Send what has arrived of a message, if it arrives slowly: of its last frame, only the first `arrived` bytes.

        Afterwards, `send` the same frames to complete the message, or `take_back` to have the process forget it. Raises
        OSError if the other end is closed.
        """
        now = time.monotonic()
        if now - self._began.setdefault(stream, now) < _SLOW_S:
            return
        head, last = _head(frames), memoryview(frames[-1]).cast("B")
        size = len(head) + sum(memoryview(frame).nbytes for frame in frames)
        come = size - len(last) + arrived
        if come - self._ahead[stream] >= _AHEAD_BYTES and not self.pending:
            self._send_part(stream, [head, *frames], size, come)
            self._ahead[stream] = come

    def take_back(self, stream: str) -> None:
        """Have the process forget what was sent ahead of a message. Raises OSError if the other end is closed."""
        if self._ahead[stream]:
            self._outgoing.add([_PART.pack(STREAMS.index(stream), False, 0, 0)])
        self._forget(stream)
        self.flush()

    def _forget(self, stream: str) -> None:
        self._began.pop(stream, None)
        self._ahead[stream] = 0

    def _send_part(self, stream: str, buffers: Sequence[Any], size: int, end: int) -> None:
        """Send the bytes up to `end` of a message of `size` bytes, without those that were sent ahead."""
        begin = self._ahead[stream]
        self._outgoing.add([_PART.pack(STREAMS.index(stream), end == size, size, end - begin)])
        at = 0
        for buffer in buffers:
            view = memoryview(buffer).cast("B")
            self._outgoing.add([view[max(begin - at, 0) : max(end - at, 0)]])
            at += len(view)
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
