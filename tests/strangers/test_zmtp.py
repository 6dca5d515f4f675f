"""ZMTP without sockets: every case whole, byte by byte, and with more behind it."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl import bindings as nacl
from numpy.typing import NDArray

from ionn.protocol.zmtp import (
    FRAME_COST,
    Bounds,
    Established,
    Event,
    KeyRefusedError,
    Keys,
    Received,
    Send,
    ServerConnection,
    ZmtpError,
)
from tests.strangers.peers import (
    COMMAND,
    DEALER,
    LONG,
    MORE,
    READY,
    SIGNATURE,
    CurveClient,
    frame,
    greeting,
    prop,
    ready,
)

BOUNDS = Bounds(frames=3, first_frame_bytes=1000, message_bytes=50_000)
SHAKEN = greeting() + ready()


def feed(connection: ServerConnection, data: bytes) -> Iterator[Event]:
    """All events of these bytes, received as far as there is room for them."""
    rest = memoryview(data)
    while True:
        while (event := connection.next_event()) is not None:
            yield event
        if not rest:
            return
        buffer = connection.incoming.buffer()
        count = min(len(buffer), len(rest))
        buffer[:count] = rest[:count]
        connection.incoming.received(count)
        rest = rest[count:]


def messages(events: list[Event]) -> list[list[bytes]]:
    return [[bytes(part) for part in event.frames] for event in events if isinstance(event, Received)]


@dataclass(frozen=True)
class Case:
    """Bytes after a greeting and a READY, and what they are: messages, commands in answer, an error at the end."""

    data: bytes
    messages: list[list[bytes]] = field(default_factory=list)
    said: list[bytes] = field(default_factory=list)
    error: str = ""


CASES = {
    "a message": Case(frame(b"one"), [[b"one"]]),
    "an empty message": Case(frame(b""), [[b""]]),
    "several frames": Case(frame(b"a", MORE) + frame(b"", MORE) + frame(b"c"), [[b"a", b"", b"c"]]),
    "two messages": Case(frame(b"a") + frame(b"b"), [[b"a"], [b"b"]]),
    "a long frame that is short": Case(b"\x02" + (3).to_bytes(8) + b"abc", [[b"abc"]]),
    "a large frame": Case(frame(b"h", MORE) + frame(b"x" * 40_000), [[b"h", b"x" * 40_000]]),
    "255 bytes": Case(frame(b"x" * 255), [[b"x" * 255]]),
    "256 bytes": Case(frame(b"x" * 256), [[b"x" * 256]]),
    "a ping": Case(frame(b"\x04PING\0\x01context", COMMAND), said=[b"\x04PONGcontext"]),
    "a ping between frames": Case(
        frame(b"a", MORE) + frame(b"\x04PING\0\0", COMMAND) + frame(b"b"), [[b"a", b"b"]], [b"\x04PONG"]
    ),
    "a pong": Case(frame(b"\x04PONG", COMMAND) + frame(b"a"), [[b"a"]]),
    "a ping with too long a context": Case(frame(b"\x04PING\0\0" + bytes(17), COMMAND), error="malformed PING"),
    "a ping cut short": Case(frame(b"\x04PING\0", COMMAND), error="malformed PING"),
    "an unknown command": Case(frame(b"\x09SUBSCRIBE", COMMAND), error="another command"),
    "an empty command": Case(frame(b"", COMMAND), error="another command"),
    "another READY": Case(ready(), error="another command"),
    "a large command": Case(frame(b"\x04PONG" + bytes(2000), COMMAND), error="a command of 2005 bytes"),
    "a command that goes on": Case(frame(b"\x04PING\0\0", COMMAND | MORE), error="a command of several frames"),
    "reserved flags": Case(b"\x08\x01a", error="reserved flags"),
    "a message and an error": Case(frame(b"a") + b"\x80\x00", [[b"a"]], error="reserved flags"),
    "four frames": Case(frame(b"", MORE) * 3 + frame(b""), error="frames: 4"),
    "a large header": Case(frame(b"x" * 1001), error="first_frame_bytes: 1001"),
    "an enormous frame": Case(frame(b"", MORE) + b"\x02" + b"\xff" * 8, error="message_bytes: 18446744073709551615"),
    "a large message": Case(
        frame(b"", MORE) + frame(b"x" * 30_000, MORE) + frame(b"x" * 30_000), error="message_bytes: 60000"
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", ["whole", "byte by byte", "with more behind it"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_traffic(case: Case, how: str) -> None:
    connection = ServerConnection(None, BOUNDS)
    assert messages(list(feed(connection, SHAKEN))) == []
    pieces = [bytes([byte]) for byte in case.data] if how == "byte by byte" else [case.data]
    if how == "with more behind it" and not case.error:
        pieces = [case.data + frame(b"behind it")]
    events: list[Event] = []
    said = ""
    try:
        for piece in pieces:
            for event in feed(connection, piece):
                events.append(event)
    except ZmtpError as error:
        said = str(error)
    behind = [[b"behind it"]] if how == "with more behind it" and not case.error else []
    assert messages(events) == case.messages + behind
    assert [event.data for event in events if isinstance(event, Send)] == [frame(pong, COMMAND) for pong in case.said]
    assert bool(said) == bool(case.error)
    assert case.error in said


def test_the_greeting_says_what_the_server_is() -> None:
    first, *_ = feed(ServerConnection(None, BOUNDS), b"\xff")
    assert first == Send(greeting(version=b"\x03\x01"))


def test_what_a_message_costs() -> None:
    (event,) = (e for e in feed(ServerConnection(None, BOUNDS), SHAKEN + frame(b"a" * 10, MORE) + frame(b"b"))
                if isinstance(e, Received))  # fmt: skip
    assert event.cost == 11 + 2 * FRAME_COST
    assert Bounds(2, 10, 11).cost == event.cost


@pytest.mark.parametrize("at", range(64))
@pytest.mark.parametrize("change", [0x01, 0x80, 0xFF])
def test_a_greeting_with_a_changed_byte(at: int, change: int) -> None:
    """What does not matter is ignored: the padding that ZMTP 1 reads, the minor version, the filler."""
    changed = bytearray(greeting())
    changed[at] ^= change
    ignored = at in range(1, 9) or at == 11 or at > 32 or (at == 10 and changed[10] >= 3)
    connection = ServerConnection(None, BOUNDS)
    if ignored:
        assert Established(b"") in list(feed(connection, bytes(changed) + ready()))
    else:
        with pytest.raises(ZmtpError):
            list(feed(connection, bytes(changed[: at + 1])))  # at once, not when the greeting is complete


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"SSH-2.0-OpenSSH_9.2\r\n", b"\0",
        b"\x01\0",
        b"\x05\0peer", SIGNATURE + b"\x00\x05", SIGNATURE + b"\x01\x05\0\0", SIGNATURE + b"\x02", greeting(b"PLAIN"),
        greeting(b"CURVE"), greeting(b"NULLX"), b"\xff" + bytes(9),
    ],
)  # fmt: skip
def test_no_peer(data: bytes) -> None:
    with pytest.raises(ZmtpError):
        list(feed(ServerConnection(None, BOUNDS), data))


@pytest.mark.parametrize(
    "metadata",
    [
        DEALER, prop(b"socket-TYPE", b"DEALER"), DEALER + prop(b"Identity", b""),
        DEALER + prop(b"Identity", b"\0" * 255),
        prop(b"Identity", b"\0\x6b\x8b\x45\x67") + DEALER, DEALER + prop(b"X-Any", b"thing"),
    ],
)  # fmt: skip
def test_metadata_of_a_dealer(metadata: bytes) -> None:
    assert Established(b"") in list(feed(ServerConnection(None, BOUNDS), greeting() + ready(metadata)))


@pytest.mark.parametrize(
    "command",
    [
        ready(b""), ready(prop(b"Socket-Type", b"ROUTER")), ready(prop(b"Socket-Type", b"")), ready(DEALER[:-1]),
        ready(DEALER + b"\0"), ready(b"\xff" + DEALER), ready(b"\x0bSocket-Type\xff\xff\xff\xffDEALER"),
        ready(prop(b"", b"") + DEALER), frame(READY + DEALER), frame(b"\x06READY!" + DEALER, COMMAND),
        frame(b"", COMMAND), frame(READY + bytes(1024), COMMAND), bytes([COMMAND | LONG]) + b"\xff" * 8, frame(b"a"),
    ],
)  # fmt: skip
def test_no_ready(command: bytes) -> None:
    with pytest.raises(ZmtpError):
        list(feed(ServerConnection(None, BOUNDS), greeting() + command))


def test_a_frame_waits_for_room_and_costs_nothing_until_then() -> None:
    connection = ServerConnection(None, BOUNDS)
    list(feed(connection, SHAKEN))
    connection.room = 20_000
    head = frame(b"h", MORE) + b"\x02" + (30_000).to_bytes(8)
    assert list(feed(connection, head)) == []
    assert connection.waits_for_room
    assert connection.next_event() is None
    connection.room = 40_000
    (event,) = feed(connection, b"x" * 30_000)
    assert not connection.waits_for_room
    assert isinstance(event, Received)
    assert messages([event]) == [[b"h", b"x" * 30_000]]


@dataclass
class Allocated:
    """The memory that a connection has allocated for frames."""

    frames: list[weakref.ref[NDArray[np.uint8]]] = field(default_factory=list)

    def allocate(self, size: int) -> memoryview:
        frame = np.zeros(size, np.uint8)
        self.frames.append(weakref.ref(frame))
        return frame.data

    @property
    def sizes(self) -> list[int]:
        """Of the frames that anything refers to."""
        return [frame.nbytes for each in self.frames if (frame := each()) is not None]


def test_a_large_frame_is_received_into_memory_that_is_allocated() -> None:
    """No other is, and it is freed when nobody needs the frame, or the connection stops in its middle."""
    connection, allocated = ServerConnection(None, BOUNDS), Allocated()
    connection.allocate = allocated.allocate
    data = frame(b"h" * 900, MORE) + frame(b"x" * 40_000)
    received = list(feed(connection, SHAKEN + data)).pop()
    assert allocated.sizes == [40_000]
    assert messages([received]) == [[b"h" * 900, b"x" * 40_000]]
    del received
    assert allocated.sizes == []
    assert list(feed(connection, data[:-1])) == []
    assert allocated.sizes == [40_000]
    connection.stop()
    assert allocated.sizes == []


# --- CURVE ------------------------------------------------------------------------------------------------------------


@dataclass
class Curve:
    """A server with keys, and a client that it allows."""

    server: ServerConnection
    client: CurveClient
    key: bytes
    steps: list[bytes] = field(default_factory=list)  # what the client has sent

    def step(self, data: bytes) -> list[Event]:
        self.steps.append(data)
        return list(feed(self.server, data))


def curve(allowed: bool = True) -> Curve:
    public, secret = nacl.crypto_box_keypair()
    key, own = nacl.crypto_box_keypair()
    keys = Keys(secret, public, frozenset([key] if allowed else []))
    return Curve(ServerConnection(keys, BOUNDS), CurveClient(own, public), key)


def body(event: Event) -> bytes:
    assert isinstance(event, Send)
    return event.data[2:] if not event.data[0] & LONG else event.data[9:]


def welcomed(allowed: bool = True) -> tuple[Curve, bytes]:
    """A handshake as far as the WELCOME, which this is."""
    both = curve(allowed)
    (said,) = both.step(greeting(b"CURVE"))
    assert said == Send(greeting(b"CURVE", b"\x03\x01")[:32] + b"\x01" + bytes(31))
    (welcome,) = both.step(both.client.hello())
    return both, body(welcome)


def shaken() -> Curve:
    both, welcome = welcomed()
    said, established = both.step(both.client.initiate(welcome, DEALER))
    assert body(said).startswith(READY)
    assert established == Established(both.key)
    return both


def test_curve_carries_messages_both_ways() -> None:
    both = shaken()
    sent = both.client.seal(b"head", 1) + both.client.seal(b"x" * 40_000)
    assert messages(both.step(sent)) == [[b"head", b"x" * 40_000]]
    head, box = both.server.frame(b"answer", more=True)
    assert both.client.open((head + box)[2:]) == (1, b"answer")
    (pong,) = both.step(both.client.seal(b"\x04PING\0\0now", 2))
    assert both.client.open(body(pong)) == (2, b"\x04PONGnow")


def test_a_large_sealed_frame_is_opened_where_it_was_received() -> None:
    both, allocated = shaken(), Allocated()
    both.server.allocate = allocated.allocate
    (received,) = both.step(both.client.seal(b"head", 1) + both.client.seal(b"x" * 40_000))
    assert isinstance(received, Received)
    (large,) = allocated.frames
    owner: Any = received.frames[1].obj
    assert owner is large()


def test_a_key_that_is_not_allowed_is_told_so() -> None:
    both, welcome = welcomed(allowed=False)
    with pytest.raises(KeyRefusedError) as refused:
        both.step(both.client.initiate(welcome))
    assert refused.value.key == both.key
    assert refused.value.farewell == frame(b"\x05ERROR\x03400", COMMAND)


def at_step(step: int) -> tuple[Curve, bytes]:
    """A handshake as far as HELLO (0), INITIATE (1) or the first message (2), and what is due then."""
    both = curve()
    both.step(greeting(b"CURVE"))
    data = both.client.hello()
    if step > 0:
        (welcome,) = both.step(data)
        data = both.client.initiate(body(welcome))
    if step > 1:
        both.step(data)
        data = both.client.seal(b"message")
    return both, data


@pytest.mark.parametrize("step", range(3))
def test_a_curve_handshake_cut_and_corrupted_at_every_byte(step: int) -> None:
    """While it is cut off it is waited for; with any byte changed it is the end of the connection."""
    for at in range(len(at_step(step)[1])):
        if step == 0 and 2 + 8 <= at < 2 + 80:  # padding
            continue
        both, data = at_step(step)
        assert list(feed(both.server, data[:at])) == []
        with pytest.raises(ZmtpError):
            list(feed(both.server, bytes([data[at] ^ 0x08]) + data[at + 1 :] + bytes(20_000)))


@pytest.mark.parametrize("metadata", [b"", prop(b"Socket-Type", b"ROUTER"), DEALER[:-1], b"\xff"])
def test_curve_wants_a_dealer_too(metadata: bytes) -> None:
    both, welcome = welcomed()
    with pytest.raises(ZmtpError):
        both.step(both.client.initiate(welcome, metadata))


def test_curve_refuses_what_is_said_twice_or_out_of_turn() -> None:
    both = shaken()
    with pytest.raises(ZmtpError):
        both.step(both.steps[2])  # INITIATE
    both = shaken()
    sealed = both.client.seal(b"a")
    both.step(sealed)
    with pytest.raises(ZmtpError, match="nonce"):
        both.step(sealed)
    both, _ = welcomed()
    with pytest.raises(ZmtpError):
        both.step(both.steps[1])  # HELLO
    for unsealed in (frame(b"a"), frame(b"\x04PING\0\0", COMMAND), frame(b"\x07MESSAGE" + bytes(40))):
        with pytest.raises(ZmtpError):
            shaken().step(unsealed)


def test_a_vouch_for_another_connection() -> None:
    for vouched in (bytes(64), bytes(32) + nacl.crypto_box_keypair()[0]):
        both, welcome = welcomed()
        with pytest.raises(ZmtpError, match="vouches"):
            both.step(both.client.initiate(welcome, vouched=vouched))


@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31)])
def test_a_hello_whose_key_has_no_secret(point: bytes) -> None:
    """Points of low order: whatever is multiplied with them, everybody knows the result."""
    both, _ = at_step(0)
    hello = b"\x05HELLO\x01\x00" + bytes(72) + point + (1).to_bytes(8) + bytes(80)
    with pytest.raises(ZmtpError):
        both.step(frame(hello, COMMAND))


# --- Anything ---------------------------------------------------------------------------------------------------------

flags = st.integers(0, 7) | st.integers(0, 255)
some_frames = st.builds(lambda flag, data: bytes([flag & ~LONG, len(data)]) + data, flags, st.binary(max_size=255))
long_frames = st.builds(
    lambda flag, size, data: bytes([flag | LONG]) + size.to_bytes(8) + data,
    flags, st.integers(0, 2**64 - 1) | st.integers(0, 300), st.binary(max_size=300),
)  # fmt: skip
anything = st.lists(st.binary(max_size=80) | some_frames | long_frames, max_size=20).map(b"".join)


def events_or_error(connection: ServerConnection, pieces: list[bytes]) -> None:
    """The invariant: any bytes are events or a ZmtpError, never anything else, and no message exceeds the bounds."""
    refusal: ZmtpError | None = None
    try:
        for piece in pieces:
            for event in feed(connection, piece):
                if isinstance(event, Received):
                    assert event.cost <= BOUNDS.cost
                    assert len(event.frames) <= BOUNDS.frames
                    assert len(event.frames[0]) <= BOUNDS.first_frame_bytes
    except ZmtpError as error:
        refusal = error
    assert refusal is None or (str(refusal).isprintable() and not refusal.farewell)


@given(pieces=st.lists(anything, max_size=4), start=st.sampled_from([b"", greeting(), SHAKEN]))
def test_any_bytes(pieces: list[bytes], start: bytes) -> None:
    events_or_error(ServerConnection(None, BOUNDS), [start, *pieces])


@given(data=anything, step=st.integers(0, 3))
def test_any_bytes_with_keys(data: bytes, step: int) -> None:
    both = shaken() if step == 3 else curve()
    if 0 < step < 3:
        both.step(greeting(b"CURVE"))
    if step == 2:
        both.step(both.client.hello())
    events_or_error(both.server, [data])


@given(sealed=st.lists(st.tuples(st.binary(max_size=100), st.integers(0, 255)), max_size=8))
def test_any_sealed_frames(sealed: list[tuple[bytes, int]]) -> None:
    both = shaken()
    events_or_error(both.server, [both.client.seal(data, flag) for data, flag in sealed])


@given(
    metadata=st.binary(max_size=100)
    | st.builds(lambda a, b: a + DEALER + b, st.binary(max_size=9), st.binary(max_size=9))
)
def test_any_metadata(metadata: bytes) -> None:
    events_or_error(ServerConnection(None, BOUNDS), [greeting() + ready(metadata)])
