"""A client that measures, at a server that lies about times, is late, or does not answer: its outputs are right."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from ionn.client.measuring import Measuring
from ionn.client.offloading import Offloading, open_offloading
from ionn.client.session import Client
from ionn.costs.models import Profile
from ionn.model import engine
from ionn.model.comparison import bit_equal
from ionn.protocol import messages
from ionn.schema import TIME_MAX_MS
from tests.malicious.hostile import (
    INPUTS,
    NETWORK,
    PATIENT,
    QUICK,
    WAIT_S,
    WEIGHTS,
    Connection,
    Hostile,
    Script,
    chunks_under_way,
)
from tests.support.world import wait_for

# The client takes 180 ms for a query.
HERE = Profile.of(NETWORK, np.full(len(NETWORK.layers), 30.0))
THERE = Profile.of(NETWORK, np.full(len(NETWORK.layers), 0.1))
LATE_S = 0.5


def never(connection: Connection, answer: messages.Message) -> bool:
    return True


def late(change: Callable[[Any], tuple[messages.Message, ...]]) -> Script:
    """What the answer becomes, when nobody waits for it any more."""

    def script(connection: Connection, answer: messages.Message) -> bool:
        time.sleep(LATE_S)
        connection.send(*change(answer))
        return True

    return script


def with_times(ms: float) -> Script:
    def script(connection: Connection, answer: messages.Message) -> bool:
        assert isinstance(answer, messages.Result)
        connection.send(dataclasses.replace(answer, stage_ms=(ms,) * len(answer.stage_ms)))
        return True

    return script


LIES: dict[str, tuple[str, Script]] = {
    "no time": ("query", with_times(0.0)),
    "all the time": ("query", with_times(TIME_MAX_MS)),
    "negative times": ("query", with_times(-1.0)),
    "no answer": ("query", never),
    "late": ("query", late(lambda answer: (answer,))),
    "late, twice": ("query", late(lambda answer: (answer, answer))),
    "late, of another query": ("query", late(lambda answer: (dataclasses.replace(answer, query=answer.query + 1),))),
    "late, an error": ("query", late(lambda answer: (messages.Error(messages.ERROR_QUERY, "no", answer.query),))),
    "no weights acknowledged": ("chunk ack", never),
    "nothing ready": ("ready", never),
}


@pytest.mark.parametrize("what", LIES)
def test_outputs_are_right_whatever_the_server_says(what: str) -> None:
    server = Hostile(*LIES[what])
    net = engine.load_network(NETWORK, WEIGHTS)
    expected = [engine.forward(net, data) for data in INPUTS]
    try:
        with open_offloading(
            NETWORK, net, HERE, server.address, None, "recursive-efficiency", there=THERE, paced=True
        ) as offloading:
            assert offloading.measuring is not None
            offloading.start_upload()
            for number in range(12):
                which = number % len(INPUTS)
                done = offloading.executor.execute(INPUTS[which])
                assert all(bit_equal(*pair) for pair in zip(done.outputs, expected[which], strict=True))
            # An error took no time, and tells nothing of how fast the server is.
            if what == "late, an error":
                assert offloading.measuring.current().server_factor > 0.1
    finally:
        server.close()


def test_a_server_that_answers_no_ping_holds_up_nobody() -> None:
    """Not beyond the time that it has to answer a hello."""
    server = Hostile("pong upload", never)
    try:
        # As long as a busy machine may need to answer the hello.
        timeouts = dataclasses.replace(QUICK, connect_s=5.0)
        client = Client(server.address, timeouts=timeouts, measuring=Measuring())
        wait_for(lambda: client.fault is not None, "the silence to be noticed")
        client.close()
    finally:
        server.close()


@contextlib.contextmanager
def measured_at(server: Hostile) -> Iterator[tuple[Offloading, Client, Measuring]]:
    """Offloading to a server that the client measures. The server is closed at the end."""
    net = engine.load_network(NETWORK, WEIGHTS)
    try:
        with open_offloading(
            NETWORK, net, HERE, server.address, None, "recursive-efficiency", there=THERE, paced=True
        ) as offloading:
            client, measuring = offloading._client, offloading.measuring
            assert client is not None
            assert measuring is not None
            yield offloading, client, measuring
    finally:
        server.close()


def test_a_client_measures_on_after_a_partition_was_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """But not what has to wait behind the chunks that still cross."""
    refused = messages.Error(messages.ERROR_PARTITION, "too many weights")
    chunks, uploading, crossed = itertools.count(), threading.Event(), threading.Event()

    def refuse(connection: Connection, answer: messages.Message) -> bool:
        uploading.wait(WAIT_S)
        if next(chunks) > 0:
            crossed.wait(WAIT_S)
        connection.send(refused)
        return True

    server = Hostile("chunk ack", refuse)
    with measured_at(server) as (offloading, client, measuring):
        offloading.start_upload()
        upload = offloading.upload
        assert upload is not None
        wait_for(lambda: chunks_under_way(upload) > 1, "a second chunk, as none is sent after a refusal")
        uploading.set()
        wait_for(lambda: upload.error, "the partition to be refused")
        client.timeouts = dataclasses.replace(PATIENT, heartbeat_s=1.0)
        sent_s: dict[str, list[float]] = {"round trip": [], "probe": []}

        def observe(what: str, took_s: float) -> None:
            sent_s[what].append(time.monotonic() - took_s)

        monkeypatch.setattr(measuring, "round_trip", lambda seconds: observe("round trip", seconds))
        monkeypatch.setattr(measuring, "probed", lambda size_bytes, seconds: observe("probe", seconds))
        client.probe()
        wait_for(lambda: client._pings, "a Ping behind the chunks")
        assert measuring.uploading
        crossed_s = time.monotonic()
        crossed.set()
        wait_for(lambda: sent_s["round trip"], "a round trip")

        def has_probed() -> bool:
            client.probe()  # again, because none is sent while a Ping is under way
            return bool(sent_s["probe"])

        wait_for(has_probed, "a probe")
        assert all(each > crossed_s for times in sent_s.values() for each in times)
        assert not measuring.uploading
        # Nothing is planned that could not be uploaded.
        planned: list[object] = []
        monkeypatch.setattr(offloading, "_prepare_rest", lambda *pieces: planned.append(pieces))
        offloading._plan_again()
        assert planned == []
        assert client.fault is None


def test_an_outage_does_not_count_for_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that cross are counted from the first answer of a connection on."""
    chunks = itertools.count()
    counted: list[bool] = []

    def lose_the_second(connection: Connection, answer: messages.Message) -> bool:
        number = next(chunks)
        if number == 1:
            wait_for(lambda: counted, "the first answer, which may get lost with the connection")
            return False
        if number < 3:  # the first of a connection: with others under way, so that counting goes on
            wait_for(lambda: chunks_under_way(offloading.upload) > 1, "another chunk")
        connection.send(answer)
        return True

    server = Hostile("chunk ack", lose_the_second)
    with measured_at(server) as (offloading, client, measuring):
        client.timeouts = PATIENT
        acknowledged = measuring.acknowledged

        def acknowledge(size_bytes: int) -> None:
            counted.append(measuring._since_s is not None)
            acknowledged(size_bytes)

        monkeypatch.setattr(measuring, "acknowledged", acknowledge)
        offloading.start_upload()
        # If the first round trip seems slow, nothing is uploaded until another one was measured.
        wait_for(lambda: len(counted) > 2, "three answers")
        assert counted[:3] == [False, False, True]


class HoldingProbes(Hostile):
    """It answers a probe only while `answering` is set."""

    def __init__(self) -> None:
        self.answering = threading.Event()
        self.answering.set()
        super().__init__()

    def _answer(self, message: messages.Message, role: str) -> tuple[str, messages.Message]:
        if isinstance(message, messages.Ping) and message.payload:
            self.answering.wait(WAIT_S)
        return super()._answer(message, role)


def test_a_ping_behind_a_probe_is_no_round_trip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer comes when that of the probe has come."""
    server = HoldingProbes()
    try:
        measuring = Measuring()
        client = Client(server.address, timeouts=dataclasses.replace(PATIENT, heartbeat_s=1.0), measuring=measuring)
        try:
            sent_s: list[float] = []
            monkeypatch.setattr(measuring, "round_trip", lambda took_s: sent_s.append(time.monotonic() - took_s))
            monkeypatch.setattr(measuring, "probed", lambda size_bytes, took_s: None)
            server.answering.clear()

            def probes() -> bool:
                client.probe()  # again, because none is sent while a Ping is under way
                return any(ping.size_bytes for ping in list(client._pings))

            wait_for(probes, "a probe")
            sent_s.clear()
            wait_for(lambda: len(client._pings) > 1, "a Ping behind the probe")
            answered_s = time.monotonic()
            server.answering.set()
            wait_for(lambda: sent_s, "a round trip")
            assert sent_s[0] > answered_s
            assert client.fault is None
        finally:
            client.close()
    finally:
        server.close()
