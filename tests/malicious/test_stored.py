"""A server that lies about what it has stored: no more than time is lost, and the reason is the true one."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import pytest

from ionn.errors import ProtocolError
from ionn.protocol import messages
from tests.malicious.hostile import DIGESTS, Connection, Hostile, Script, say, session_at
from tests.malicious.test_malicious import meet
from tests.support.world import WAIT_S

HOLDS: dict[str, tuple[bytes, ...]] = {
    "nothing": (),
    "too few": (bytes(len(DIGESTS) - 1),),
    "too many": (bytes(len(DIGESTS) + 1),),
    "other numbers": (b"\2" * len(DIGESTS),),
    "text": (b"1" * len(DIGESTS),),
    "a megabyte": (bytes(10**5),),
}


@pytest.mark.parametrize("which", HOLDS)
def test_an_answer_that_does_not_say_of_each_piece_whether_it_is_stored(which: str) -> None:
    outcome = meet("holds", say(messages.Holds(HOLDS[which])), losses=4)
    assert len(outcome.faults) >= 4
    for fault in outcome.faults:
        assert isinstance(fault, ProtocolError)
        assert f"asked for {len(DIGESTS)} pieces of weights, and does not say of each whether it has it" in str(fault)


@pytest.mark.parametrize("ms", [-1.0, 1.1e6, 1e9, 1e300])
def test_a_time_to_read_that_no_store_has(ms: float) -> None:
    def script(connection: Connection, answer: messages.Message) -> bool:
        assert isinstance(answer, messages.Welcome)
        connection.send(dataclasses.replace(answer, store_ms_per_mb=ms))
        return True

    outcome = meet("welcome upload", script)
    assert all(isinstance(fault, ProtocolError) for fault in outcome.faults)
    assert "store_ms_per_mb" in str(outcome.faults[0])


def missing(pieces: Callable[[messages.Ack], tuple[int, ...]], partition: int | None = None) -> Script:
    """The pieces of the partition are missing, whatever was announced."""

    def script(connection: Connection, answer: messages.Message) -> bool:
        assert isinstance(answer, messages.Ack)
        number = answer.partition if partition is None else partition
        connection.send(
            messages.Error(messages.ERROR_MISSING, "they are gone", partition=number, pieces=pieces(answer))
        )
        return True

    return script


MISSING: dict[str, Script] = {
    "nothing": missing(lambda answer: ()),
    "no piece": missing(lambda answer: (10**6,)),
    "a piece and none": missing(lambda answer: (0, 2**62)),
    "what was not to be stored": missing(lambda answer: (1,)),
    "of another partition": missing(lambda answer: (0,), partition=1),
    "of no partition": missing(lambda answer: (0,), partition=-1),
}


@pytest.mark.parametrize("moment", ["header ack", "chunk ack"])
@pytest.mark.parametrize("which", MISSING)
def test_what_cannot_be_missing(which: str, moment: str) -> None:
    losses = 3 if moment == "header ack" else 1  # this server holds what it was sent, whatever it said of it
    outcome = meet(moment, MISSING[which], losses, stored=DIGESTS[:1])
    assert len(outcome.faults) >= losses
    for fault in outcome.faults:
        assert isinstance(fault, ProtocolError)
        assert "misses pieces of weights that it was not to take from its store" in str(fault)


@pytest.mark.parametrize("moment", ["query", "ready", "welcome upload", "holds", "pong upload", "welcome control"])
def test_pieces_that_are_missing_where_something_else_is_due(moment: str) -> None:
    """An Error like any other there."""
    error = messages.Error(messages.ERROR_MISSING, "they are gone", partition=0, pieces=(0,))
    outcome = meet(moment, say(error), losses=1, rounds=300, stored=DIGESTS)
    (fault, *_) = outcome.faults
    assert "they are gone" in str(fault) or "failed query -1" in str(fault)


def test_pieces_that_are_missing_one_after_another_for_ever() -> None:
    """Each time that a partition is announced, less of it is to be stored; and then an answer is wrong."""
    announced: list[int] = []

    def first(answer: messages.Ack) -> tuple[int, ...]:
        announced.append(answer.partition)
        return (len(announced) - 1,)

    server = Hostile("header ack", missing(first), stored=DIGESTS)
    try:
        with session_at(server.address) as (client, session):
            session.start_upload()
            deadline = time.monotonic() + WAIT_S
            while not session.uploaded():
                assert time.monotonic() < deadline
                assert session.query().difference < 1e-4
            assert client.upload is not None
            assert client.upload.ready == 0
            assert "misses pieces of weights that it was not to take" in str(session.offloading.fault)
    finally:
        server.close()
    # As often as it has pieces, and then three times.
    assert len(announced) <= len(DIGESTS) + 3


def test_a_server_with_everything_is_sent_nothing_and_used() -> None:
    server = Hostile(stored=DIGESTS)
    try:
        with session_at(server.address) as (client, session):
            assert client.stored_pieces == set(DIGESTS)
            session.start_upload()
            deadline = time.monotonic() + WAIT_S
            while not session.uploaded():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            record = session.query()
            records = session.finish()
    finally:
        server.close()
    assert not client.faults
    assert "server" in {segment.where for segment in record.segments}
    assert record.difference < 1e-5
    # The channels of a stage that are in no piece of a tile are sent.
    for each in records:
        assert each.wire_bytes is not None
        assert each.bytes - each.stored_bytes <= each.wire_bytes < each.bytes - each.stored_bytes + 300
    assert sum(each.stored_bytes for each in records) > 0
