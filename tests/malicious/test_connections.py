"""What a client's connections cost: while it waits for a server it sleeps, and none is left open."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time

import pytest

from ionn.client import connection as module
from ionn.client.inflow import _WATCH
from ionn.client.session import FAULTS, Client
from ionn.errors import ServerUnreachableError
from ionn.protocol import messages
from tests.malicious.hostile import INPUTS, PATIENT, QUICK, Connection, Hostile
from tests.support.world import wait_for


def test_a_client_that_waits_for_a_welcome_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after a loss, of which the client's thread was told."""
    calls, welcomes, waited = itertools.count(), itertools.count(), []
    receive = module.Connection.receive

    def counted(self: module.Connection, timeout_s: float) -> messages.Message | None:
        next(calls)
        return receive(self, timeout_s)

    def delay_the_second(connection: Connection, answer: messages.Message) -> bool:
        if next(welcomes):
            before = next(calls)
            time.sleep(1.0)
            waited.append(next(calls) - before)
        connection.send(answer)
        return True

    monkeypatch.setattr(module.Connection, "receive", counted)
    server = Hostile("welcome upload", delay_the_second)
    client = Client(server.address, timeouts=PATIENT)
    try:
        server._connections[-1].close()
        wait_for(lambda: waited, "the second welcome")
    finally:
        client.close()
        server.close()
    assert waited[0] < 200  # ten are made in a second


def test_a_query_that_fails_while_the_client_is_closed_leaves_nothing_open() -> None:
    with contextlib.closing(Hostile()) as server:  # what is opened only once
        Client(server.address, timeouts=PATIENT).close()
    files, inflows = len(os.listdir("/proc/self/fd")), len(_WATCH._inflows)
    server = Hostile("query", lambda connection, answer: True)
    client = Client(server.address, timeouts=QUICK)

    def query() -> None:
        with contextlib.suppress(*FAULTS):
            client.run(1, 1, INPUTS[0])

    thread = threading.Thread(target=query)
    thread.start()
    assert server.struck.wait(60)
    client.close()
    thread.join()
    server.close()
    assert (len(os.listdir("/proc/self/fd")), len(_WATCH._inflows)) == (files, inflows)


def test_a_server_that_is_left_during_a_query_leaves_nothing_open() -> None:
    inflows = len(_WATCH._inflows)
    server = Hostile()
    client = Client(server.address, timeouts=PATIENT)
    leaving = threading.Thread(target=client.leave, args=(ServerUnreachableError("enough"),))
    with client._querying:  # as a query of another thread
        leaving.start()
        client._keeper.join(60)
    leaving.join()
    client.close()
    server.close()
    assert len(_WATCH._inflows) == inflows


def test_a_client_is_woken_while_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of what was closed may be another file's at once."""
    server = Hostile()
    client = Client(server.address, timeouts=PATIENT)
    wake, close = client._wake, os.close
    closed: list[int] = []

    def closing(descriptor: int) -> None:
        close(descriptor)
        if descriptor == wake and not closed:
            closed.append(descriptor)
            client.wake()

    monkeypatch.setattr(os, "close", closing)
    client.close()
    server.close()
    assert closed == [wake]
