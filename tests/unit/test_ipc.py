"""The stream from a server's front to a session's process, and the inbox that spares it the large frames."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

import pytest

from ionn.protocol.buffers import PEEK_BYTES_MAX
from ionn.server.ipc import TRIAL, FrontPipe, Pipe
from ionn.server.shared_memory import ELSEWHERE, Inbox, open_inbox

LARGE = bytes(range(256)) * 2000


@pytest.fixture
def ends() -> Iterator[tuple[FrontPipe, Pipe]]:
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * len(LARGE))  # nothing waits for the other end
    inbox = Inbox()
    with theirs, contextlib.closing(FrontPipe(ours, inbox, 1000)) as front:
        yield front, Pipe(theirs, open_inbox(inbox.descriptor))


def received(pipe: Pipe) -> tuple[str, list[bytes]]:
    stream, frames = pipe.receive()
    return stream, [bytes(frame) for frame in frames]


def filled(inbox: Inbox, data: bytes) -> memoryview:
    frame = inbox.take(len(data))
    frame[:] = data
    return frame


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
