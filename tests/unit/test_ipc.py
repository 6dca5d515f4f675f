"""The stream from a server's front to a session's process, and the inbox that spares it the large frames."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import random
import socket
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ionn.protocol.buffers import PEEK_BYTES_MAX, Incoming
from ionn.server.ipc import TRIAL, FrontPipe, Pipe
from ionn.server.shared_memory import ELSEWHERE, Inbox, open_inbox

LARGE = bytes(range(256)) * 2000


@contextlib.contextmanager
def connected() -> Iterator[tuple[FrontPipe, Pipe]]:
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * len(LARGE))  # nothing waits for the other end
    inbox = Inbox()
    with theirs, contextlib.closing(FrontPipe(ours, inbox, 1000)) as front:
        yield front, Pipe(theirs, open_inbox(inbox.descriptor))


@pytest.fixture
def ends() -> Iterator[tuple[FrontPipe, Pipe]]:
    with connected() as ends:
        yield ends


def received(pipe: Pipe) -> tuple[str, list[bytes]]:
    stream, frames = pipe.receive()
    return stream, [bytes(frame) for frame in frames]


def filled(inbox: Inbox, data: bytes) -> memoryview:
    frame = inbox.take(len(data))
    frame[:] = data
    return frame


def send_for_ever(pipe: Pipe, frame: bytes) -> None:
    while True:
        pipe.send([frame])


@pytest.mark.parametrize("size", [1, 100, 30_000, 1_000_000])
def test_a_process_that_waits_for_room_is_told_that_the_front_has_ended(size: int) -> None:
    """Whether some of its message was taken, or none."""
    with connected() as (front, pipe):
        closing = threading.Timer(0.1, front.close)
        closing.start()
        with pytest.raises(EOFError):
            send_for_ever(pipe, bytes(size))
        closing.join()


def test_messages(ends: tuple[FrontPipe, Pipe]) -> None:
    front, pipe = ends
    messages = [("control", [b"one", b"", LARGE, b"two"]), ("upload", [b"chunk"]), (TRIAL, [])]
    for stream, frames in messages:
        front.send(stream, frames)
    assert [received(pipe) for _ in messages] == messages


@pytest.mark.parametrize("begin", [0, 33])
def test_a_frame_in_the_inbox_is_read_where_it_is(begin: int, ends: tuple[FrontPipe, Pipe]) -> None:
    """As a whole, or what follows the head of an encrypted one."""
    front, pipe = ends
    frame = filled(front.inbox, LARGE)[begin:]
    assert front.inbox.place(frame) == begin
    front.send("control", [b"header", frame, b"end"])
    stream, (header, data, end) = pipe.receive()
    assert (stream, bytes(header), bytes(end)) == ("control", b"header", b"end")
    assert data == LARGE[begin:]
    frame[0] ^= 255
    assert data == frame
    assert data.readonly


def test_the_inbox_has_one_frame_at_a_time(ends: tuple[FrontPipe, Pipe]) -> None:
    front, pipe = ends
    first, second = filled(front.inbox, LARGE), filled(front.inbox, LARGE[::-1])
    assert (front.inbox.place(first), front.inbox.place(second)) == (0, ELSEWHERE)
    front.send("control", [first, second])
    assert received(pipe) == ("control", [LARGE, LARGE[::-1]])
    end = first[-1000:]
    del first
    assert front.inbox.place(front.inbox.take(1000)) == ELSEWHERE
    del end
    assert front.inbox.place(front.inbox.take(1000)) == 0


class Session:
    """What the front does with a session's messages, and their process with them. Frames are of random bytes."""

    def __init__(self, front: FrontPipe, pipe: Pipe) -> None:
        self._front, self._pipe = front, pipe
        self._random = random.Random(0)
        self._arriving: list[memoryview] = []
        # The messages that are not answered: their frames, and what they were when they were sent.
        self._sent: deque[tuple[str, list[memoryview], list[bytes]]] = deque()
        self._reads: list[memoryview] | None = None

    def arrive(self, size: int) -> None:
        """A frame of the message that arrives by the connection whose frames are received in the inbox."""
        self._arriving.append(filled(self._front.inbox, self._random.randbytes(size)))

    def end(self) -> None:
        frames, self._arriving = self._arriving, []
        self._send("control", frames)

    def close(self) -> None:
        """The connection closes, and what it has begun is forgotten."""
        self._arriving = []

    @property
    def waits(self) -> bool:
        """Tell whether a message is not answered."""
        return bool(self._sent)

    def upload(self, size: int) -> None:
        self._send("upload", [memoryview(self._random.randbytes(size))])

    def _send(self, stream: str, frames: list[memoryview]) -> None:
        self._front.send(stream, frames)
        self._sent.append((stream, frames, [bytes(frame) for frame in frames]))

    def read(self) -> None:
        if self._sent and self._reads is None:
            stream, self._reads = self._pipe.receive()
            assert stream == self._sent[0][0]

    def answer(self) -> None:
        """The process has read a message until now."""
        if self._reads is not None:
            assert self._reads == self._sent.popleft()[2]
            self._reads = None


SIZES = st.integers(1, 3000)
STEPS = st.one_of(
    *(st.tuples(st.just(step), SIZES) for step in (Session.arrive, Session.upload)),
    *(st.tuples(st.just(step)) for step in (Session.end, Session.close, Session.read, Session.answer)),
)


@given(st.lists(STEPS, max_size=50))
def test_a_message_stays_as_it_was_sent_until_it_is_answered(steps: list[tuple[Any, ...]]) -> None:
    """Whatever is received, sent and forgotten meanwhile."""
    with connected() as ends:
        session = Session(*ends)
        for step, *sizes in steps:
            step(session, *sizes)
        while session.waits:
            session.read()
            session.answer()


def test_what_an_inbox_has_no_room_for_is_elsewhere() -> None:
    inbox = Inbox()
    os.close(inbox.descriptor)
    size = 1
    while inbox.place(inbox.take(size)) == 0:
        size *= 2
    assert len(inbox.take(size)) == size > len(LARGE)


def test_an_inbox_takes_memory_as_it_is_written_to_and_the_other_end_cannot_write() -> None:
    inbox = Inbox()
    try:

        def taken_bytes() -> int:
            return 512 * os.fstat(inbox.descriptor).st_blocks

        assert taken_bytes() == PEEK_BYTES_MAX
        frame = inbox.take(len(LARGE))
        assert taken_bytes() == PEEK_BYTES_MAX
        frame[:100_000] = bytes(100_000)
        assert 100_000 <= taken_bytes() < 100_000 + 2 * PEEK_BYTES_MAX
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(inbox.descriptor, b"x")
    finally:
        os.close(inbox.descriptor)


def test_a_system_without_memory_for_a_frame_kills_nobody() -> None:
    """What arrived with its head is copied to memory that the inbox always has, and nothing more can be received."""
    inbox = Inbox()
    os.close(inbox.descriptor)
    memory = np.frombuffer(inbox._memory, np.uint8)
    rest = ctypes.c_void_p(memory.ctypes.data + PEEK_BYTES_MAX), ctypes.c_size_t(memory.nbytes - PEEK_BYTES_MAX)
    assert not ctypes.CDLL(None).mprotect(*rest, mmap.PROT_READ)
    incoming = Incoming()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(bytes(PEEK_BYTES_MAX + 1))
        incoming.received(ours.recv_into(incoming.buffer()))
        assert not incoming.fill(inbox.take(PEEK_BYTES_MAX + 1))
        with pytest.raises(OSError, match="Bad address"):
            ours.recv_into(incoming.buffer())
