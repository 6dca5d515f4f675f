"""Whether a server has keys, which ZeroMQ does not tell a client."""

from __future__ import annotations

import contextlib
import socket as sockets
import time

from ionn.address import parse_address

# How every connection of ZMTP 3 begins, and the size of its whole greeting, in which the mechanism's name is.
_SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
_GREETING_BYTES = 64


def mechanism_of(address: str, timeout_s: float = 2.0) -> str:
    """ "CURVE" if a live server at tcp://HOST:PORT has keys, "NULL" if it has none, and empty if no server greets
    within `timeout_s`.

    ZeroMQ itself does not tell a wrong key from a dead server: a server silently closes the connection of a client that
    it does not understand.
    """
    deadline = time.monotonic() + timeout_s
    for mechanism in ("CURVE", "NULL"):
        if _mechanism_in(_greeting(parse_address(address), mechanism, deadline)) == mechanism:
            return mechanism
    return ""


def _greeting(address: tuple[str, int], mechanism: str, deadline: float) -> bytes:
    """Return a server's greeting for a client of some mechanism, or as much of it as comes in time."""
    greeting = b""
    with (
        contextlib.suppress(OSError, ValueError),  # ValueError: the time is over
        sockets.create_connection(address, deadline - time.monotonic()) as connection,
    ):
        connection.sendall((_SIGNATURE + b"\x03\x00" + mechanism.encode()).ljust(_GREETING_BYTES, b"\0"))
        while len(greeting) < _GREETING_BYTES:
            connection.settimeout(deadline - time.monotonic())  # a server may send a byte a second
            if not (data := connection.recv(_GREETING_BYTES - len(greeting))):
                break
            greeting += data
    return greeting


def _mechanism_in(greeting: bytes) -> str:
    return greeting[12:32].rstrip(b"\0").decode(errors="replace")
