"""Whatever a server says, and when: queries return, with the right outputs, and the reason is the true one."""

from __future__ import annotations

import dataclasses
import itertools
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Collection

import pytest
import zmq

from ionn.client import connection as client_connection
from ionn.client.session import FAULTS, Client, Timeouts
from ionn.errors import ProtocolError, ServerError, ServerUnreachableError, printable
from ionn.model.partial_net import ExtractedPartition
from ionn.planning.graph import ExecutionGraph
from ionn.protocol import messages
from ionn.records import QueryRecord
from tests.malicious.hostile import (
    CODED,
    FLOODS,
    GRAPH,
    INPUTS,
    MOMENTS,
    PATIENT,
    QUICK,
    Connection,
    Hostile,
    Script,
    change,
    changed,
    frame,
    multipart,
    often,
    pour,
    say,
    session_at,
)
from tests.support.world import WAIT_S, wait_for

# JSON for a field of any type: each is wrong for most, and may be right for some.
TOKENS: dict[str, str | None] = {
    "absent": None, "null": "null", "a flag": "true", "negative": "-1", "zero": "0", "one": "1", "a fraction": "1.5",
    "1e308": "1e308", "-1e308": "-1e308", "1e999": "1e999", "NaN": "NaN", "Infinity": "Infinity", "2^62": str(2**62),
    "2^63": str(2**63), "400 digits": "1" + "0" * 400, "no text": '""', "escapes": '"\\u001b]0;x\\u0007\\u001b[31m"',
    "lines": '"a\\r\\nb"', "bidi": '"\\u202eabc"', "half a pair": '"\\ud83d"', "raw half a pair": '"\ud83d"',
    "long": '"' + "x" * 5000 + '"', "no list": "[]", "no object": "{}", "a list of nothing": "[null]",
    "numbers": "[1, -1, 1e9]", "lists of huge": "[[4611686018427387904, 4611686018427387904]]",
    "times": "[1e308, 1e308]", "infinite times": "[1e999]", "an object with NaN": '{"a": {"b": NaN}}',
    "deep": "[" * 500 + "]" * 500,
    "very deep": "[" * 100_000 + "]" * 100_000, "deep objects": '{"a":' * 70 + "1" + "}" * 70,
}  # fmt: skip

# The right answer at each moment is of this type.
_ANSWERS = ("welcome", "welcome", "ack", "ack", "ready", "result", "result", "result", "pong", "pong", "holds")
ANSWERS = dict(zip(MOMENTS, _ANSWERS, strict=True))
TYPES: dict[str, type[messages.Message]] = {cls.type: cls for cls in messages.Message.__subclasses__()}
EXAMPLES: dict[str, messages.Message] = {
    message.type: message
    for message in (
        messages.Hello(messages.PROTOCOL, "control"), messages.Welcome(messages.PROTOCOL, "f" * 32, 10**5, 10**6),
        messages.PartitionHeader(0, (), (), 0), messages.Chunk(0, 0, 0, (b"x",)), messages.PartitionEnd(0, ""),
        messages.Ack(0, 1), messages.Ready(0), messages.Query(1, 1, 1), messages.Part(1, 1, 1, False),
        messages.Join(1, False), messages.Result(1, (), ()),
        messages.Error(messages.ERROR_QUERY, "\x1b[31mno\n\u202e", 4), messages.Ping(), messages.Pong(), messages.Bye(),
        messages.Have((bytes(32),)), messages.Holds((b"\0",)),
    )
}  # fmt: skip


def fields_of(type_: str) -> list[str]:
    return ["type", *(each.name for each in dataclasses.fields(TYPES[type_]) if each.name != "payload")]


def test_every_message_has_its_example() -> None:
    """A new message is covered when it has one here; a new field is by itself."""
    assert EXAMPLES.keys() == TYPES.keys()
    assert set(ANSWERS.values()) | {"error"} == {cls.answer for cls in TYPES.values() if cls.answer} | {"error"}


# --- Fields, as they are read ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("type_", TYPES)
def test_a_wrong_field_is_a_protocol_error_that_can_be_shown(type_: str) -> None:
    head, *payload = (bytes(each) for each in EXAMPLES[type_].frames())
    for field, token in itertools.product(fields_of(type_), TOKENS.values()):
        said = ""
        try:
            message = messages.decode([change(head, field, token), *payload])
        except ProtocolError as error:
            said = str(error)
        else:
            # What is taken can be sent on, and no number in it is infinite or none.
            body = b"".join(map(bytes, message.frames()))
            assert not re.search(rb"NaN|Infinity", body)
            assert all(abs(int(number)) < 2**63 for number in re.findall(rb"-?\d+", body))
        assert printable(said) == said
        assert len(said) < 300


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-8-sig", "latin-1"])
def test_text_is_utf_8(encoding: str) -> None:
    head = '{"type": "error", "code": "query", "message": "é"}'
    assert isinstance(messages.decode([head.encode()]), messages.Error)
    with pytest.raises(ProtocolError, match="not a message of protocol"):
        messages.decode([head.encode(encoding)])


# --- Whole sessions --------------------------------------------------------------------------------------------------


class Outcome:
    def __init__(self, faults: list[Exception], records: list[QueryRecord]) -> None:
        self.faults = faults
        self.records = records


def meet(
    moment: str,
    script: Script,
    losses: int = 1,
    rounds: int = 3,
    timeouts: Timeouts = PATIENT,
    graph: ExecutionGraph = GRAPH,
    stored: Collection[str] = (),
) -> Outcome:
    """Have a client meet a server that is a good one until `moment`, and has `stored` some of its weights; until it has
    lost it so often, or has been content for so many rounds."""
    server = Hostile(moment, script, stored=stored)
    try:
        with session_at(server.address, timeouts, graph) as (client, session):
            session.start_upload()
            records = []
            deadline = time.monotonic() + 2 * WAIT_S
            after = 0
            while after < rounds and len(client.faults) < losses:
                assert time.monotonic() < deadline, f"neither loss nor peace: {client.faults}"
                if not moment.startswith("pong"):  # while a query runs, nobody pings
                    records.append(session.query())
                after += server.struck.is_set() and session.uploaded() and client.fault is None
                time.sleep(0.01)
            records.append(session.query())
    finally:
        server.close()
    for fault in client.faults:
        assert isinstance(fault, FAULTS)
        assert printable(str(fault)) == str(fault)
        assert str(fault).startswith(f"{server.address}: "), fault
    # Nobody lied about values: whatever ran where, the outputs are right.
    assert all(record.bit_equal or record.difference < 1e-4 for record in records)
    return Outcome(client.faults, records)


@pytest.mark.parametrize("graph", [GRAPH, CODED], ids=["raw", "coded"])
def test_a_good_server_is_used(graph: ExecutionGraph) -> None:
    server = Hostile()
    try:
        with session_at(server.address, graph=graph) as (client, session):
            session.start_upload()
            while not session.uploaded():
                assert client.fault is None
                time.sleep(0.01)
            record = session.query()
    finally:
        server.close()
    assert not client.faults
    assert [segment.where for segment in record.segments] == ["client", "server", "both", "server", "client"]
    assert record.difference < 1e-5
    assert not record.fallback
    assert record.feature_bytes
    assert record.feature_wire_bytes
    assert (record.feature_wire_bytes < record.feature_bytes) == (graph is CODED)


_rng = random.Random(19)
_KEPT = {(moment, field): _rng.choice(list(TOKENS)) for moment in MOMENTS for field in fields_of(ANSWERS[moment])}
FIELDS = often(
    ((moment, field, name) for (moment, field) in _KEPT for name in TOKENS),
    lambda moment, field, name: _KEPT[moment, field] == name,
)
# The moments that are not only in the long run.
OFTEN = ("welcome control", "chunk ack", "part", "pong control")


@pytest.mark.parametrize(("moment", "field", "name"), FIELDS)
def test_a_wrong_field(moment: str, field: str, name: str) -> None:
    outcome = meet(moment, changed(field, TOKENS[name]))
    for fault in outcome.faults:
        assert isinstance(fault, ProtocolError), fault


# --- Messages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("moment", "type_"), often(itertools.product(MOMENTS, TYPES), lambda at, _: at in OFTEN))
def test_another_message(moment: str, type_: str) -> None:
    """The session goes on without the server, and the reason is that answer."""
    if type_ == ANSWERS[moment] and type_ not in ("ack", "result", "welcome"):
        return  # the right one
    outcome = meet(moment, say(EXAMPLES[type_]), losses=1, rounds=300 if moment.startswith("pong") else 3)
    if type_ == "error" and moment in ("query", "part", "join"):
        # It is query 4's, says the server, and only once in a session it is.
        assert all(re.search(r"failed query 4, not \d", str(fault)) for fault in outcome.faults)
        return
    if moment.startswith("welcome") and type_ == "welcome":
        assert not outcome.faults  # another window than ours
        return
    (fault, *_) = outcome.faults
    if type_ == "error":
        # A query may be the first to hear what was said to the ping before.
        assert re.search(r": \?\[31mno\?\?$|failed query 4, not \d", str(fault)), fault
        return
    assert isinstance(fault, ProtocolError)
    due = "is not to what it was sent|" if type_ == "ack" else ""
    due += "does not fit its shapes|result is not what|result is query 1's" if type_ == ANSWERS[moment] else "where '"
    assert re.search(due, str(fault)), fault


@pytest.mark.parametrize(("moment", "count"), often(itertools.product(MOMENTS, (0, 2, 3)), lambda at, n: n < 3))
def test_no_answer_and_too_many(moment: str, count: int) -> None:
    outcome = meet(moment, repeat(count), rounds=300, timeouts=PATIENT if count else QUICK)
    for fault in outcome.faults:
        reason = "is not to what it was sent|where '|result is|not fit|"
        reason += "was asked nothing" if count else "not answered|no sign of life"
        assert re.search(reason, str(fault)), fault
    assert outcome.faults


def repeat(count: int) -> Script:
    def script(connection: Connection, answer: messages.Message) -> bool:
        connection.send(*[answer] * count)
        return True

    return script


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_closed_connection(moment: str) -> None:
    losses = 1 if moment.startswith("pong") else 4  # who has lost a server queries, and asks for no pong meanwhile
    outcome = meet(moment, lambda connection, answer: False, losses, rounds=300)
    assert len(outcome.faults) >= losses
    for fault in outcome.faults:
        assert re.search("connection was closed", str(fault)), fault


WELCOME = messages.Welcome(messages.PROTOCOL, "f" * 32, 50_000, 10**6)
WELCOMES = {
    "no window": (dataclasses.replace(WELCOME, window_bytes=0), "takes 0 bytes at a time"),
    "no chunk": (dataclasses.replace(WELCOME, chunk_bytes=0), "takes 0 bytes at a time"),
    "hardly a window": (dataclasses.replace(WELCOME, window_bytes=999), "takes 999 bytes at a time, less than 1000"),
    "another session": (dataclasses.replace(WELCOME, session="e" * 32), "another session than the one asked for"),
    "no session": (dataclasses.replace(WELCOME, session=""), "another session than the one asked for"),
    "another version": (
        dataclasses.replace(WELCOME, protocol=messages.PROTOCOL + 1),
        f"to protocol {messages.PROTOCOL + 1}",
    ),
    "what was not sent": (
        dataclasses.replace(WELCOME, held=(messages.Held(7, 0, False),)),
        "holds what it was never sent",
    ),
    "more than there is": (dataclasses.replace(WELCOME, held=(messages.Held(0, 2**40, False),)), "holds what it was"),
    "all but not whole": (
        dataclasses.replace(WELCOME, held=(messages.Held(0, 1, True),)),
        "holds what it was never sent",
    ),
    "one twice": (dataclasses.replace(WELCOME, held=(messages.Held(1, 0, False),) * 2), "holds what it was never sent"),
}


@pytest.mark.parametrize("which", WELCOMES)
def test_a_welcome_that_cannot_be(which: str) -> None:
    welcome, reason = WELCOMES[which]
    outcome = meet("welcome upload", say(welcome), losses=5)
    assert len(outcome.faults) >= 5
    for fault in outcome.faults:
        assert reason in str(fault)


def test_an_upload_that_gets_nowhere_is_given_up() -> None:
    """A server that welcomes a client and takes the first bytes, and closes, again and again."""
    server = Hostile("chunk ack", lambda connection, answer: False)
    try:
        with session_at(server.address) as (client, session):
            session.start_upload()
            deadline = time.monotonic() + 60
            while not session.uploaded():
                assert time.monotonic() < deadline
                session.query()
            assert "connection was closed" in str(session.offloading.fault)
            assert client.upload is not None
            assert client.upload.ready == 0
    finally:
        server.close()


# --- Floods ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("moment", "flood"), often(itertools.product(MOMENTS, FLOODS), lambda at, _: at in OFTEN))
def test_a_flood(moment: str, flood: str) -> None:
    timeouts = QUICK if flood == "a frame that never ends" else PATIENT
    outcome = meet(moment, pour(*FLOODS[flood]), rounds=300, timeouts=timeouts)
    assert outcome.faults
    for fault in outcome.faults:
        assert "not answered" not in str(fault) or flood == "a frame that never ends", fault


def test_a_flood_that_is_noticed_before_the_client_looks() -> None:
    """As on a busy machine. ZeroMQ then holds as many messages as it may, and does not read on to the connection's
    end before some of them are taken; but of a flood, none is."""
    context = zmq.Context()
    server = Hostile("pong control", pour(frame(bytes(20_000)) * 100))
    connection = client_connection.Connection(context, server.address)
    try:
        connection.hello("control", "", WAIT_S)
        connection.send(messages.Ping())
        wait_for(lambda: connection._inflow and connection._inflow.flooded, "the flood to be noticed")
        with pytest.raises(ProtocolError, match="sent more than it was asked for"):
            connection.ask(messages.Ping(), WAIT_S)
    finally:
        connection.close()
        server.close()
        context.destroy(linger=0)


@pytest.mark.parametrize("moment", ["welcome control", "ready", "part", "pong control"])
def test_a_byte_now_and_then(moment: str) -> None:
    """A message that does not end in time is none, however slowly it comes."""
    stopped = threading.Event()

    def drip(connection: Connection, answer: messages.Message) -> bool:
        for byte in multipart([bytes(each) for each in answer.frames()]):
            if stopped.wait(0.5):
                return False
            connection.raw(bytes((byte,)))
        return True

    try:
        outcome = meet(moment, drip, timeouts=QUICK)
    finally:
        stopped.set()
    (fault, *_) = outcome.faults
    assert re.search("not answered|no sign of life", str(fault)), fault


# --- Time, and mistakes of ours --------------------------------------------------------------------------------------


class Slow(Hostile):
    """Each answer to a message of a query comes in time, all of them together do not."""

    def _answer(self, message: messages.Message, role: str) -> tuple[str, messages.Message]:
        moment, answer = super()._answer(message, role)
        if isinstance(answer, messages.Result):
            time.sleep(QUICK.query_s / 2)
        return moment, answer


def test_a_query_has_one_deadline() -> None:
    server = Slow()
    # Nothing else takes too long, also on a busy machine.
    hasty = dataclasses.replace(PATIENT, query_s=QUICK.query_s)
    try:
        with session_at(server.address, hasty) as (client, session):
            session.start_upload()
            while not session.uploaded():
                time.sleep(0.01)
            record = session.query()
            faults = [str(fault) for fault in client.faults]
    finally:
        server.close()
    assert record.fallback
    assert record.difference < 1e-4
    assert faults == [f"{server.address}: the server has not answered a query in time"]


def test_a_mistake_of_ours_is_told_and_costs_no_query(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no fault of the server, which is not asked again and again."""
    told: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", told.append)

    def make(costs: dict[str, object]) -> list[ExtractedPartition]:
        raise KeyError("our mistake")

    server = Hostile()
    try:
        with session_at(server.address) as (client, session):
            client.start_upload_when_known(make, time.monotonic)
            client._keeper.join(30)
            assert [each.exc_type for each in told] == [KeyError]
            assert isinstance(client.fault, KeyError)
            assert session.query().bit_equal
            with pytest.raises(ServerUnreachableError, match="our mistake"):
                client.run(1, 1, INPUTS[0])
    finally:
        server.close()


def break_off(client: Client) -> None:
    with client.query() as exchange:
        exchange.run(1, 2, INPUTS[0])
        raise KeyboardInterrupt


def test_a_query_that_its_caller_breaks_off() -> None:
    """Its answers are not taken for those of the next."""
    server = Hostile()
    try:
        with session_at(server.address) as (client, session):
            session.start_upload()
            wait_for(session.uploaded, "the upload")
            with pytest.raises(KeyboardInterrupt):
                break_off(client)
            wait_for(lambda: not session.query().fallback, "the server to be used again")
            assert [str(fault) for fault in client.faults] == [f"{server.address}: a query was broken off"]
    finally:
        server.close()


@pytest.mark.parametrize("moment", ["welcome control", "pong control"])
def test_the_last_word_of_a_server_that_closes_is_the_reason(moment: str) -> None:
    """It says an error and closes at once: whoever waits for an answer is told the error, every time."""

    def last_word(connection: Connection, answer: messages.Message) -> bool:
        connection.send(messages.Error(messages.ERROR_CRASHED, "enough for today"))
        return False

    context = zmq.Context()
    server = Hostile(moment, last_word)
    try:
        for _ in range(100):
            connection = client_connection.Connection(context, server.address)
            try:
                with pytest.raises(ServerError, match="enough for today"):  # noqa: PT012 - one of the two raises it
                    connection.hello("control", "", WAIT_S)
                    connection.ask(messages.Ping(), WAIT_S)
            finally:
                connection.close()
    finally:
        server.close()
        context.destroy(linger=0)


AT_ONCE = """
import sys, threading
import zmq
from ionn.client.connection import Connection
from ionn.protocol.messages import Ping

context, together, failed = zmq.Context(), threading.Barrier(16), []

def one():
    together.wait()
    try:
        connection = Connection(context, sys.argv[1])
        connection.ask(Ping(), 60)
        connection.close()
    except BaseException as error:
        failed.append(repr(error))

threads = [threading.Thread(target=one) for _ in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not failed, failed
assert sum(thread.name == "ionn inflow" for thread in threading.enumerate()) == 1
"""


def test_sessions_of_a_program_that_begin_at_once() -> None:
    """The first ones: what all connections of a process share is made once."""
    server = Hostile()
    try:
        for _ in range(3):
            subprocess.run([sys.executable, "-c", AT_ONCE, server.address], check=True, timeout=WAIT_S * 2)
    finally:
        server.close()
