"""What the system says of a connection's bytes, which bounds what a server may send unasked."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from ionn.client.inflow import SLACK_BYTES, Inflow
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


def test_more_than_is_expected_cuts_the_connection() -> None:
    with connection() as (ours, theirs), contextlib.closing(Inflow(ours.fileno(), 0)) as inflow:
        with contextlib.suppress(OSError):  # it is cut meanwhile
            flood(ours, theirs)
            theirs.sendall(b"more")  # and is not read: there is something to look at
        wait_for(lambda: inflow.flooded, "the flood is noticed")


def test_a_system_that_counts_no_bytes_cuts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """qemu's user mode answers with the first number of the struct."""
    monkeypatch.setattr(socket.socket, "getsockopt", lambda *arguments: b"\1\0\0\0", raising=False)
    with connection() as (ours, theirs), contextlib.closing(Inflow(ours.fileno(), 0)) as inflow:
        inflow.take(1000, 1)
        flood(ours, theirs)
        inflow.check()
        assert not inflow.flooded
        theirs.sendall(b"more")
        assert ours.recv(4) == b"more"
