"""The stream from a server's front to a session's process: messages whole, in parts, and taken back."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from ionn.server import ipc
from ionn.server.ipc import TRIAL, FrontPipe, Pipe

LARGE = bytes(range(256)) * 2000


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FrontPipe, Pipe]]:
    """Both ends; every message comes slowly."""
    monkeypatch.setattr(ipc, "_SLOW_S", 0.0)
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * len(LARGE))  # nothing waits for the other end
    with theirs, contextlib.closing(FrontPipe(ours, 1000)) as front:
        yield front, Pipe(theirs)


def received(pipe: Pipe) -> tuple[str, list[bytes]]:
    stream, frames = pipe.receive()
    return stream, [bytes(frame) for frame in frames]


def test_whole_messages(ends: tuple[FrontPipe, Pipe]) -> None:
    front, pipe = ends
    messages = [("control", [b"one", b"", b"two"]), ("upload", [b"chunk"]), (TRIAL, [])]
    for stream, frames in messages:
        front.send(stream, frames)
    assert [received(pipe) for _ in messages] == messages


def test_others_pass_a_message_that_is_sent_in_parts(ends: tuple[FrontPipe, Pipe]) -> None:
    front, pipe = ends
    for arrived in (1000, len(LARGE) // 3, len(LARGE) // 2, len(LARGE) - 1):
        come = LARGE[:arrived].ljust(len(LARGE), b"?")
        front.send_ahead("control", [b"header", come], arrived)
    front.send("upload", [b"chunk"])
    assert received(pipe) == ("upload", [b"chunk"])
    front.send("control", [b"header", LARGE])
    assert received(pipe) == ("control", [b"header", LARGE])
    front.send("control", [b"next"])
    assert received(pipe) == ("control", [b"next"])


@pytest.mark.parametrize("times", [1, 2])
def test_what_is_taken_back_is_of_no_message(ends: tuple[FrontPipe, Pipe], times: int) -> None:
    front, pipe = ends
    front.take_back("control")  # nothing was sent
    for _ in range(times):
        front.send_ahead("control", [b"header", LARGE], len(LARGE) // 2)
        front.take_back("control")
    front.send("control", [b"another", LARGE[::-1]])
    assert received(pipe) == ("control", [b"another", LARGE[::-1]])


def test_nothing_is_sent_ahead_of_what_comes_at_once(
    ends: tuple[FrontPipe, Pipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    front, pipe = ends
    monkeypatch.setattr(ipc, "_SLOW_S", 1e9)
    for _ in range(2):
        front.send_ahead("control", [LARGE], len(LARGE) // 2)
    front.send("control", [b"another"])
    assert received(pipe) == ("control", [b"another"])
