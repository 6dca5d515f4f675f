"""What the system says of a connection's bytes, which bounds what a server may send unasked."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ionn.client.inflow import _WATCH, SLACK_BYTES, Inflow
from tests.support.world import wait_for


@contextlib.contextmanager
def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.create_connection(listening.getsockname()) as ours:
        theirs, _ = listening.accept()
        with theirs:
            yield ours, theirs


def flood(ours: socket.socket, theirs: socket.socket) -> None:
    """Have more come than anything can be waiting for, and be read as ZeroMQ does, unless the connection is cut."""
    for end in (ours, theirs):
        end.settimeout(60)
    chunk = bytes(SLACK_BYTES // 8)
    for _ in range(9):
        theirs.sendall(chunk)
        left = len(chunk)
        while left and (got := ours.recv(left)):
            left -= len(got)


def inflow_of(ours: socket.socket) -> Inflow:
    return Inflow(ours.fileno(), ours.getpeername()[1], 0)


def test_more_than_is_expected_cuts_the_connection() -> None:
    with connection() as (ours, theirs), contextlib.closing(inflow_of(ours)) as inflow:
        with contextlib.suppress(OSError):  # it is cut meanwhile
            flood(ours, theirs)
            theirs.sendall(b"more")  # and is not read: there is something to look at
        wait_for(lambda: inflow.flooded, "the flood is noticed")


def test_a_system_that_counts_no_bytes_cuts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """qemu's user mode answers with the first number of the struct."""
    monkeypatch.setattr(socket.socket, "getsockopt", lambda *arguments: b"\1\0\0\0", raising=False)
    with connection() as (ours, theirs), contextlib.closing(inflow_of(ours)) as inflow:
        inflow.take(1000, 1)
        flood(ours, theirs)
        inflow.check()
        assert not inflow.flooded
        theirs.sendall(b"more")
        assert ours.recv(4) == b"more"


@contextlib.contextmanager
def other_file(what: str, folder: Path) -> Iterator[int]:
    """The descriptor of something else than the connection with a server."""
    with contextlib.ExitStack() as stack:
        if what == "a file":
            yield stack.enter_context((folder / "file").open("wb")).fileno()
        elif what == "a pipe":
            reading, writing = os.pipe()
            stack.callback(os.close, writing)
            stack.callback(os.close, reading)
            yield reading
        elif what == "a pair":
            ends = [stack.enter_context(end) for end in socket.socketpair()]
            yield ends[0].fileno()
        elif what == "UDP":
            yield stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)).fileno()
        elif what == "a connection that is not made":
            yield stack.enter_context(socket.socket()).fileno()
        elif what == "a connection with another server":
            ours, _ = stack.enter_context(connection())
            yield ours.fileno()
        else:
            yield 10**6


@pytest.mark.parametrize(
    "what",
    [
        "nothing", "a file", "a pipe", "a pair", "UDP", "a connection that is not made",
        "a connection with another server",
    ],
)  # fmt: skip
def test_a_descriptor_that_is_another_files_by_now_is_let_alone(what: str, tmp_path: Path) -> None:
    with other_file(what, tmp_path) as descriptor:
        gc.collect()  # what earlier tests left open is not this test's
        files = os.listdir("/proc/self/fd")
        with pytest.raises(OSError):  # noqa: PT011 (whatever the system says)
            Inflow(descriptor, 7675, 0)
        assert os.listdir("/proc/self/fd") == files


def test_a_child_process_watches_its_own_connections() -> None:
    """Of fork, which takes no threads along, and a lock as it is held at that moment."""
    with connection() as (ours, _), contextlib.closing(inflow_of(ours)), _WATCH._lock:
        child = os.fork()
        if child == 0:
            signal.alarm(100)
            try:
                test_more_than_is_expected_cuts_the_connection()
            finally:
                os._exit(0 if sys.exc_info()[0] is None else 1)
    assert os.waitpid(child, 0)[1] == 0
