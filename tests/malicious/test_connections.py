"""What a client's connections cost: while it waits for a server it sleeps, and none is left open."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from ionn.client import connection as module
from ionn.client.connection import ping
from ionn.client.inflow import _WATCH
from ionn.client.measuring import Measuring
from ionn.client.session import FAULTS, Client
from ionn.errors import ServerUnreachableError
from ionn.model.partial_net import extract
from ionn.protocol import messages
from ionn.protocol.sender import Upload
from tests.malicious.hostile import (
    INPUTS,
    NETWORK,
    PATIENT,
    WAIT_S,
    WEIGHTS,
    Connection,
    Hostile,
    chunks_under_way,
    session_at,
)
from tests.support.command import serving
from tests.support.machine import needs_ipv6
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
    client = Client(server.address, timeouts=PATIENT)

    def query() -> None:
        with contextlib.suppress(*FAULTS):
            client.run(1, 1, INPUTS[0], timeout_s=0.6)

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


FEW_FILES = """
import os, resource, sys
from ionn.client.connection import ping
from ionn.client.session import Client, Timeouts
from ionn.errors import ServerUnreachableError

for call in (
    lambda address: ping(address, timeout_s=60.0),
    lambda address: Client(address, timeouts=Timeouts(connect_s=60.0)).close(),
):
    for free in range(25):
        child = os.fork()
        if child == 0:
            while os.dup(0) < 50:
                pass
            resource.setrlimit(resource.RLIMIT_NOFILE, (51 + free, 51 + free))
            try:
                call(sys.argv[1])
            except ServerUnreachableError:
                os._exit(1)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_process_that_can_open_few_files_goes_on() -> None:
    """ZeroMQ would end it."""
    server = Hostile()
    arguments = [sys.executable, "-c", FEW_FILES, server.address]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=250, check=False)
    server.close()
    assert done.stderr == ""
    ended = done.stdout.split()
    assert [ended[0], ended[24], ended[25], ended[49]] == ["1", "0", "1", "0"]
    assert set(ended) == {"0", "1"}


class Counting(Hostile):
    """It counts the control connection's Pings, and probes."""

    pings = probes = 0

    def _answer(self, message: messages.Message, role: str) -> tuple[str, messages.Message]:
        if isinstance(message, messages.Ping):  # one thread counts either
            if role == "control":
                self.pings += 1
            elif message.payload:
                self.probes += 1
        return super()._answer(message, role)

    def wait(self) -> None:
        """Wait for longer than a client is to be silent that heartbeats each tenth of a second."""
        before = self.pings
        wait_for(lambda: self.pings > before + 40, "forty Pings")


@pytest.mark.parametrize("refused", [False, True])
def test_a_chunk_may_take_longer_than_a_server_may_be_silent(refused: bool) -> None:
    """The control connection tells that the server is alive. The chunks may be of a partition that it has refused."""
    timeouts = dataclasses.replace(PATIENT, heartbeat_s=0.1, silence_s=3.0)
    refusal = messages.Error(messages.ERROR_PARTITION, "too many weights")
    answered: list[messages.Message] = []
    uploading = threading.Event()

    def delay_the_second(connection: Connection, answer: messages.Message) -> bool:
        uploading.wait(WAIT_S)
        if len(answered) == 1:
            server.wait()
        answered.append(answer)
        connection.send(refusal if refused else answer)
        return True

    server = Counting("chunk ack", delay_the_second)
    try:
        with session_at(server.address, timeouts) as (client, session):
            session.start_upload()
            upload = client.upload
            assert upload is not None
            wait_for(lambda: chunks_under_way(upload) > 1, "a second chunk, which nothing is sent after a refusal")
            uploading.set()
            wait_for(lambda: len(answered) > 1 and upload.ended and not upload.under_way, "all answers")
            assert (upload.error is not None) == refused
            assert client.faults == []
    finally:
        server.close()


@needs_ipv6
def test_a_name_that_has_only_an_ipv6_address(monkeypatch: pytest.MonkeyPatch) -> None:
    look_up = socket.getaddrinfo

    def getaddrinfo(host: Any, *arguments: Any, **options: Any) -> list[Any]:
        return look_up("::1" if host == "box" else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with serving("--bind", "tcp://[::1]:0") as server:
        port = server.address.rpartition(":")[2]
        assert ping(f"tcp://box:{port}", timeout_s=60.0).room
        Client(f"tcp://box:{port}", timeouts=PATIENT).close()


@pytest.mark.parametrize("host", ["box.invalid", "a..b"])
def test_an_unknown_host_is_said_to_be_unknown(host: str) -> None:
    with pytest.raises(ServerUnreachableError, match=rf"{host}:7675: unknown host; check its name$"):
        ping(f"tcp://{host}:7675")


def test_a_probe_may_take_longer_than_a_server_may_be_silent() -> None:
    answered: list[int] = []

    def delay_the_second(connection: Connection, answer: messages.Message) -> bool:
        if server.probes == 2 and 2 not in answered:
            server.wait()
        answered.append(server.probes)
        connection.send(answer)
        return True

    server = Counting("pong upload", delay_the_second)
    try:
        timeouts = dataclasses.replace(PATIENT, heartbeat_s=0.1, silence_s=3.0)
        client = Client(server.address, timeouts=timeouts, measuring=Measuring())
        try:

            def probes() -> bool:
                client.probe()  # again, because none is sent while a Ping is under way
                return server.probes == 2

            wait_for(probes, "a probe")
            wait_for(lambda: 2 in answered, "its answer")
            assert client.fault is None
            assert client._breaks == 0
        finally:
            client.close()
    finally:
        server.close()


class Racing(Client):
    """A client whose thread does not see yet, so many times, that the user's thread has started the upload."""

    unseen = 0
    _started: Upload | None = None

    @property
    def upload(self) -> Upload | None:
        if self._started is None or self.unseen == 0:
            return self._started
        self.unseen -= 1
        return None

    @upload.setter
    def upload(self, started: Upload | None) -> None:
        self._started = started


@pytest.mark.parametrize("unseen", range(6))
def test_an_upload_begins_whenever_it_is_started(unseen: int) -> None:
    server = Hostile()
    try:
        client = Racing(server.address, timeouts=PATIENT)
        try:
            client.unseen = unseen
            upload = client.start_upload([extract(NETWORK, [1], WEIGHTS)], time.monotonic)
            wait_for(lambda: upload.ready == 1, "the upload")
            assert client.unseen == 0
        finally:
            client.close()
    finally:
        server.close()
