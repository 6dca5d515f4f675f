"""What a client's connections cost: while it waits for a server it sleeps."""

from __future__ import annotations

import itertools
import time

import pytest

from ionn.client import connection as module
from ionn.client.session import Client
from ionn.protocol import messages
from tests.malicious.hostile import PATIENT, Connection, Hostile
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
