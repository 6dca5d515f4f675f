"""The server's port: what it does with answers that are not read yet. The tests turn the server's loop themselves."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from ionn.protocol.messages import ERROR_SESSION, Error, Ping, Pong
from ionn.server.front import Server
from tests.strangers.peers import Stranger, greeting, message, ready
from tests.support.world import WAIT_S


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server("tcp://127.0.0.1:0")
    server._door.open()
    yield server
    server.close()


def turn_until(server: Server, condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        server._loop.turn(0.01)


@pytest.mark.parametrize("dismissed", [False, True])
def test_a_connection_without_a_session_gets_all_that_it_was_sent(dismissed: bool, server: Server) -> None:
    """It reads only when more is waiting than such a connection may have."""
    received = bytearray()
    pong = message(Pong(0, room=True, sandboxed=not server._lacks))
    with Stranger(server.address) as peer:
        peer.socket.setblocking(False)

        def got(end: bytes) -> bool:
            """Read what is there; whether it ends so."""
            with contextlib.suppress(BlockingIOError):
                data = peer.socket.recv(4096)
                assert data, "the connection was closed"
                received.extend(data)
            return received.endswith(end)

        peer.send(greeting() + ready() + message(Ping()))
        turn_until(server, lambda: got(pong))
        (connection,) = server._door._connections
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        answer, count = Error(ERROR_SESSION, 900 * "x"), 0
        while not connection.full:
            server._door.say(connection, answer)
            count += 1
        if dismissed:
            server._door.dismiss(connection, answer)
            count += 1
        turn_until(server, lambda: got(message(answer) * count))
        if not dismissed:
            peer.send(message(Ping()))
            turn_until(server, lambda: got(pong))
    assert server.counts.unforeseen == 0
