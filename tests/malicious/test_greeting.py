"""Whatever a server greets with: a client says in time that there is none that it can use."""

from __future__ import annotations

import random
import re
import time

import pytest
import zmq

from ionn.client.connection import ping
from ionn.client.mechanism import mechanism_of
from ionn.client.session import FAULTS, Client
from ionn.errors import NotAcceptedError, printable
from ionn.protocol.curve import ClientKeys
from tests.malicious.hostile import GREETING, PATIENT, QUICK, READY, Connection, Hostile, Script, frame, pour

KEYS = ClientKeys(zmq.curve_keypair()[1].decode(), zmq.curve_keypair()[0].decode())


def send(*pieces: bytes, hold: bool = False) -> Script:
    def script(connection: Connection, answer: object) -> bool:
        for piece in pieces:
            connection.raw(piece)
        if hold:
            connection.read(10**6)  # until the client has enough of it
        return False

    return script


def drip(connection: Connection, answer: object) -> bool:
    for byte in GREETING + READY:
        connection.raw(bytes((byte,)))
        time.sleep(0.2)
    return True


CURVE = GREETING.replace(b"NULL\0", b"CURVE")
GREETINGS: dict[str, tuple[Script, str]] = {
    "nothing": (send(), "no ionn server there"),
    "silence": (send(hold=True), "has not answered"),
    "half a greeting": (send(GREETING[:30]), "no ionn server there"),
    "half a greeting, and silence": (send(GREETING[:30], hold=True), "has not answered"),
    "no more than a greeting": (send(GREETING), "no ionn server there"),
    "no more than a greeting, and silence": (send(GREETING, hold=True), "has not answered"),
    "keys": (send(CURVE), "takes only clients with keys"),
    "keys, and silence": (send(CURVE, hold=True), "takes only clients with keys"),
    "HTTP": (send(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "no ionn server there"),
    "SSH": (send(b"SSH-2.0-OpenSSH_9.2\r\n"), "no ionn server there"),
    "TLS": (send(b"\x15\x03\x01\x00\x02\x02\x28"), "no ionn server there"),
    "escapes": (send(b"\x1b[31m\r\n" * 20), "no ionn server there"),
    "an error": (
        send(GREETING, frame(b"\x05ERROR\x03400", command=True), hold=True),
        "does not allow this client's key",
    ),
    "a flood": (pour(b"\x7f" * 10**6), "no ionn server there|more than it was asked"),
    "a flood after the greeting": (
        pour(GREETING, b"\0" * 10**6),
        "no ionn server there|not a message|more than it was asked",
    ),
    "a flood of commands": (pour(GREETING, READY * 10**4), "no ionn server there|closed|more than it was asked"),
    "a byte now and then": (drip, "has not answered"),
}


@pytest.mark.parametrize("which", GREETINGS)
def test_a_greeting(which: str) -> None:
    script, reason = GREETINGS[which]
    # Only a server that lets its client wait meets an impatient one.
    timeouts = QUICK if reason == "has not answered" else PATIENT
    server = Hostile("greeting", script)
    try:
        with pytest.raises(FAULTS) as raised:
            Client(server.address, timeouts=timeouts)
        with pytest.raises(FAULTS) as again:
            ping(server.address, timeout_s=timeouts.connect_s)
    finally:
        server.close()
    for said in (str(raised.value), str(again.value)):
        assert printable(said) == said
        assert re.search(reason, said), said


@pytest.mark.parametrize("seed", range(8))
def test_any_greeting(seed: int) -> None:
    rng = random.Random(seed)
    greeting = bytearray(GREETING + READY)
    for _ in range(rng.randrange(1, 4)):
        greeting[rng.randrange(len(greeting))] = rng.randrange(256)
    server = Hostile("greeting", send(bytes(greeting)))
    try:
        with pytest.raises(FAULTS) as raised:
            Client(server.address, timeouts=QUICK)
    finally:
        server.close()
    assert printable(str(raised.value)) == str(raised.value)


def test_keys_where_there_are_none() -> None:
    server = Hostile()
    try:
        with pytest.raises(NotAcceptedError, match="the server has no keys; connect without"):
            Client(server.address, KEYS, PATIENT)
    finally:
        server.close()


@pytest.mark.parametrize("which", ["a byte now and then", "silence", "half a greeting, and silence", "a flood"])
def test_the_mechanism_is_asked_for_in_time(which: str) -> None:
    server = Hostile("greeting", GREETINGS[which][0])
    try:
        assert mechanism_of(server.address, 0.5) == ""
    finally:
        server.close()
