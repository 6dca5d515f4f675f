"""ZMTP, the protocol of ZeroMQ's connections, as a server speaks it to DEALER sockets. Bytes in, events out; no I/O.

Versions 3.0 and 3.1 (RFC 23 and 37) with the mechanisms NULL and CURVE (RFC 25 and 26). Peers are not trusted: nothing
that arrives costs more memory than `Bounds` allow, and whatever breaks the protocol raises `ZmtpError`. The identity
that a peer gives itself has no meaning here.

A connection goes through three states:

    greeting    64 bytes each way: the version and the mechanism
    handshake   NULL: READY each way. CURVE: HELLO, WELCOME, INITIATE, READY, or ERROR
    traffic     messages of one or more frames; PING, which is answered; PONG, which is ignored

Use: receive into `incoming`, then call `next_event` until it has none.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nacl import bindings as nacl

# `nacl.bindings` is made of these. Its functions copy a message twice more; these work in place.
from nacl._sodium import ffi, lib
from nacl.exceptions import CryptoError

from ionn.errors import ProtocolError
from ionn.protocol.buffers import Incoming, untouched

# The memory that a frame takes beside its bytes, for the objects that hold it on its way.
FRAME_COST = 512

# A frame's flags. The others are reserved.
_MORE, _LONG, _COMMAND = 1, 2, 4
_SHORT_MAX = 255
# CURVE's MESSAGE has the flags inside, where a command has another bit. Such a frame is called sealed here.
_TO_SEALED = {0: 0, _MORE: 1, _COMMAND: 2}
_FROM_SEALED = {sealed: flags for flags, sealed in _TO_SEALED.items()}

_GREETING_BYTES = 64
_SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
_VERSION = (3, 1)
_MECHANISM = slice(12, 32)
_AS_SERVER = 32

# The largest command of a handshake is INITIATE: 257 bytes and metadata of a socket type and an identity.
_COMMAND_MAX = 1024
_PING_TTL_BYTES = 2
_PING_CONTEXT_MAX = 16

_KEY_BYTES = 32
_NONCE_BYTES = 8
_MAC_BYTES = 16
_COOKIE_BYTES = 96
_HELLO_BYTES = 200
_INITIATE_BYTES_MIN = 257
_MESSAGE = b"\x07MESSAGE"
_BOX_AT = len(_MESSAGE) + _NONCE_BYTES
# The bytes that CURVE adds to a frame: the name, the nonce, the MAC and the flags.
_SEALED_EXTRA = _BOX_AT + _MAC_BYTES + 1


class ZmtpError(ProtocolError):
    """The peer does not speak ZMTP, or breaks its rules: the connection has to be closed. `farewell` is to be sent
    before."""

    def __init__(self, message: str, farewell: bytes = b"") -> None:
        super().__init__(message)
        self.farewell = farewell


class KeyRefusedError(ZmtpError):
    """The peer has proved to have `key` (32 bytes), which is not allowed."""

    def __init__(self, key: bytes) -> None:
        # A client of libzmq reports an ERROR with a status code as HANDSHAKE_FAILED_AUTH.
        super().__init__("a key is not allowed", _command(b"\x05ERROR\x03400"))
        self.key = key


class TooLargeError(ZmtpError):
    """A message exceeds `bound`, the name of a field of `Bounds`: it has at least `found`."""

    def __init__(self, bound: str, found: int) -> None:
        super().__init__(f"{bound}: {found}")
        self.bound = bound
        self.found = found


@dataclass(frozen=True)
class Bounds:
    """The most that a message may have: frames, bytes in the first one, and bytes in all of them."""

    frames: int
    first_frame_bytes: int
    message_bytes: int

    @property
    def cost(self) -> int:
        """The most that a message may cost, in bytes of memory."""
        return self.message_bytes + self.frames * FRAME_COST


@dataclass(frozen=True)
class Send:
    """Bytes of ZMTP itself that have to be sent to the peer."""

    data: bytes


@dataclass(frozen=True)
class Established:
    """The handshake is over: messages may follow, both ways. `key` is the peer's public key, empty without keys."""

    key: bytes


@dataclass(frozen=True)
class Received:
    """A message. `cost` is the memory that it takes, in bytes: its frames, and FRAME_COST for each."""

    frames: list[Any]
    cost: int


Event = Send | Established | Received


@dataclass(frozen=True)
class Keys:
    """The server's pair of keys and the public keys of the clients that are allowed, 32 bytes each."""

    secret: bytes = field(repr=False)
    public: bytes
    allowed: frozenset[bytes]


_NOTHING = Incoming(0)


class ServerConnection:
    """One connection, at the server. `bounds` may be replaced at any time, and hold from the next frame on.

    `room` is the cost that may be taken now, in bytes: a frame without room is not taken until there is room, even if
    it has begun to arrive. `waits_for_room` tells whether there is such a frame. No message costs more than
    `bounds.cost`. A frame that does not arrive in one piece with its head is received into the memory that `allocate`
    returns for its size; that may be replaced at any time, too.
    """

    def __init__(self, keys: Keys | None, bounds: Bounds) -> None:
        self.incoming = Incoming()
        self.bounds = bounds
        self.room = bounds.cost
        self.allocate: Callable[[int], memoryview] = untouched
        self._curve = _Curve(keys) if keys is not None else None
        self._state = "new"
        self._events: deque[Event] = deque()
        self._flags = 0  # of the frame whose body is arriving
        self._body: memoryview | None = None
        self._frames: list[Any] = []
        self._cost = self._message_bytes = 0
        self.waits_for_room = False

    def _greeting(self) -> bytes:
        mechanism, as_server = (b"CURVE", 1) if self._curve is not None else (b"NULL", 0)
        return (_SIGNATURE + bytes(_VERSION) + mechanism.ljust(20, b"\0") + bytes([as_server])).ljust(
            _GREETING_BYTES, b"\0"
        )

    @property
    def seals(self) -> bool:
        """Tell whether frames are encrypted, and so must be sent as a whole."""
        return self._curve is not None

    @property
    def arriving(self) -> bool:
        """Tell whether a frame is arriving that did not arrive in one piece with its head."""
        return self._body is not None

    @property
    def arriving_cost(self) -> int:
        """Return the cost so far of the message that is arriving, with the whole of the frame that has begun."""
        return self._cost + (0 if self._body is None else len(self._body) + FRAME_COST)

    def stop(self) -> None:
        """Take nothing more, and forget what has not been taken."""
        self.incoming = _NOTHING
        self.allocate = untouched
        self._body = None
        self._frames = []

    # --- What is sent -------------------------------------------------------------------------------------------------

    def frame(self, data: Any, more: bool) -> list[Any]:
        """The buffers to send for a frame (any object with a contiguous buffer)."""
        if self._curve is not None:
            return self._curve.seal(_MORE if more else 0, data)
        return [_head(memoryview(data).nbytes, _MORE if more else 0), data]

    def frame_head(self, size: int, more: bool) -> bytes:
        """Return what is sent before the bytes of a frame that is sent in pieces. Not for a connection that `seals`."""
        return _head(size, _MORE if more else 0)

    def message(self, frames: list[Any]) -> list[Any]:
        """The buffers to send for a message."""
        last = len(frames) - 1
        return [buffer for at, data in enumerate(frames) for buffer in self.frame(data, at < last)]

    # --- What has arrived ---------------------------------------------------------------------------------------------

    def next_event(self) -> Event | None:
        """Return the next event; None while it has not arrived completely, or has no room. Raises ZmtpError."""
        while not self._events:
            if self._state == "new":
                # A peer that sends nothing is sent nothing. A peer greets at once, so this costs no time.
                if not len(self.incoming):
                    return None
                self._state = "greeting"
                self._check_greeting()
                self._events.append(Send(self._greeting()))
            elif self._state == "greeting":
                self._check_greeting()
                if len(self.incoming) < _GREETING_BYTES:
                    return None
                self.incoming.skip(_GREETING_BYTES)
                self._state = "handshake"
                if self._curve is None:
                    self._events.append(Send(_command(b"\x05READY" + _SOCKET_TYPE)))
            elif (body := self._next_frame()) is None:
                return None
            elif self._state == "handshake":
                self._shake_hands(body)
            else:
                self._take(body)
        return self._events.popleft()

    def _check_greeting(self) -> None:
        """Raise ZmtpError at the first byte of the peer's greeting that is wrong."""
        greeting = bytes(self.incoming.peek(_GREETING_BYTES))
        mechanism = self._greeting()[_MECHANISM]
        if greeting[0] != 0xFF:
            raise ZmtpError("no ZMTP")
        if len(greeting) > 9 and greeting[9] != 0x7F:
            raise ZmtpError("no ZMTP of version 2 or later")
        if len(greeting) > 10 and greeting[10] < _VERSION[0]:
            raise ZmtpError(f"ZMTP {greeting[10]}; version 3 is wanted")
        if not mechanism.startswith(greeting[_MECHANISM]):
            raise ZmtpError("another mechanism")
        if len(greeting) > _AS_SERVER and greeting[_AS_SERVER]:
            raise ZmtpError("a server where a client is wanted")

    def _next_frame(self) -> Any:
        """The next frame's body, whose flags are in `_flags` then; None while it has not arrived or has no room."""
        if self._body is None:
            head = self.incoming.peek(9)
            if not len(head):
                return None
            flags = head[0]
            if flags & ~(_MORE | _LONG | _COMMAND):
                raise ZmtpError("a frame with reserved flags")
            if flags & _COMMAND and flags & _MORE:
                raise ZmtpError("a command of several frames")
            head_bytes = 9 if flags & _LONG else 2
            if len(head) < head_bytes:
                return None
            size = int.from_bytes(head[1:head_bytes])
            if not self._admit(flags, size):
                return None
            self.incoming.skip(head_bytes)
            self._flags = flags
            if len(self.incoming) >= size:
                body = bytes(self.incoming.peek(size))
                self.incoming.skip(size)
                return body
            self._body = self.allocate(size)
        if not self.incoming.fill(self._body):
            return None
        filled, self._body = self._body, None
        return filled

    def _admit(self, flags: int, size: int) -> bool:
        """Tell whether a frame of this size is to be taken now. Raises ZmtpError if it never is."""
        if self._state == "handshake":
            if not flags & _COMMAND:
                raise ZmtpError("a message before the handshake")
            if size > _COMMAND_MAX:
                raise ZmtpError(f"a command of {size} bytes")
            return True
        if self._curve is not None:  # opening it will show whether it is a command
            if size < _SEALED_EXTRA:
                raise ZmtpError("a frame too small to be sealed")
            size -= _SEALED_EXTRA
        elif flags & _COMMAND:
            if size > _COMMAND_MAX:
                raise ZmtpError(f"a command of {size} bytes")
            return True
        bounds, count = self.bounds, len(self._frames) + 1
        if count > bounds.frames:
            raise TooLargeError("frames", count)
        if count == 1 and size > bounds.first_frame_bytes:
            raise TooLargeError("first_frame_bytes", size)
        if self._message_bytes + size > bounds.message_bytes:
            raise TooLargeError("message_bytes", self._message_bytes + size)
        self.waits_for_room = self._cost + size + FRAME_COST > self.room
        return not self.waits_for_room

    def _shake_hands(self, body: Any) -> None:
        key = b""
        if self._curve is None:
            _check_metadata(_after(body, b"\x05READY"))
        elif not self._curve.welcomed:
            self._events.append(Send(_command(self._curve.welcome(body))))
            return
        else:
            key, ready = self._curve.admit(body)
            self._events.append(Send(_command(ready)))
        self._state = "traffic"
        self._events.append(Established(key))

    def _take(self, body: Any) -> None:
        """Take a frame of a message, or a command between frames."""
        flags = self._flags & (_MORE | _COMMAND)
        if self._curve is not None:
            flags, body = self._curve.open(body)
        if flags & _COMMAND:
            self._obey(bytes(body))
            return
        size = len(body)
        self._frames.append(body)
        self._message_bytes += size
        self._cost += size + FRAME_COST
        if not flags & _MORE:
            self._events.append(Received(self._frames, self._cost))
            self._frames, self._message_bytes, self._cost = [], 0, 0

    def _obey(self, command: bytes) -> None:
        if command.startswith(b"\x04PONG"):
            return
        rest = _after(command, b"\x04PING")
        if not _PING_TTL_BYTES <= len(rest) <= _PING_TTL_BYTES + _PING_CONTEXT_MAX:
            raise ZmtpError("a malformed PING")
        pong = b"\x04PONG" + rest[_PING_TTL_BYTES:]
        if self._curve is None:
            self._events.append(Send(_command(pong)))
        else:
            self._events.append(Send(b"".join(self._curve.seal(_COMMAND, pong))))


class _Curve:
    """CURVE's keys and nonces of one connection. As in RFC 26, the client has the long-term key C and the connection's
    key C', the server S and S'."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._peer = b""  # C'
        self._public, self._secret = b"", b""  # S'
        # The client sends it back. It need not contain anything here, because the connection's state is kept.
        self._cookie = b""
        self._shared = b""
        self._sent_nonce = self._peer_nonce = 0
        self.welcomed = False

    def welcome(self, hello: bytes) -> bytes:
        """The WELCOME that answers a HELLO: S' and the cookie, for a client that knows S."""
        rest = _after(hello, b"\x05HELLO")
        if len(hello) != _HELLO_BYTES or rest[:2] != b"\x01\x00":
            raise ZmtpError("a malformed HELLO")
        self._peer = rest[74 : 74 + _KEY_BYTES]
        nonce = rest[106 : 106 + _NONCE_BYTES]
        try:
            if any(nacl.crypto_box_open_easy(rest[114:], b"CurveZMQHELLO---" + nonce, self._peer, self._keys.secret)):
                raise ZmtpError("a malformed HELLO")
            self._advance(nonce)
            self._public, self._secret = nacl.crypto_box_keypair()
            self._cookie = os.urandom(_COOKIE_BYTES)
            nonce = os.urandom(16)
            box = nacl.crypto_box_easy(self._public + self._cookie, b"WELCOME-" + nonce, self._peer, self._keys.secret)
        except CryptoError:
            raise ZmtpError("a HELLO for another key") from None
        self.welcomed = True
        return b"\x07WELCOME" + nonce + box

    def admit(self, initiate: bytes) -> tuple[bytes, bytes]:
        """The key of a client that has proved with its INITIATE that it has it, and the READY that answers it."""
        rest = _after(initiate, b"\x08INITIATE")
        if len(initiate) < _INITIATE_BYTES_MIN or rest[:_COOKIE_BYTES] != self._cookie:
            raise ZmtpError("a malformed INITIATE")
        nonce = rest[_COOKIE_BYTES : _COOKIE_BYTES + _NONCE_BYTES]
        try:
            self._shared = nacl.crypto_box_beforenm(self._peer, self._secret)
            opened = nacl.crypto_box_open_easy_afternm(
                rest[_COOKIE_BYTES + _NONCE_BYTES :], b"CurveZMQINITIATE" + nonce, self._shared
            )
            self._advance(nonce)
            client, vouch_nonce, vouch, metadata = opened[:32], opened[32:48], opened[48:128], opened[128:]
            vouched = nacl.crypto_box_open_easy(vouch, b"VOUCH---" + vouch_nonce, client, self._secret)
        except CryptoError:
            raise ZmtpError("an INITIATE that cannot be opened") from None
        if vouched != self._peer + self._keys.public:
            raise ZmtpError("an INITIATE that vouches for another connection")
        _check_metadata(metadata)
        if client not in self._keys.allowed:
            raise KeyRefusedError(client)
        nonce = self._next_nonce()
        box = nacl.crypto_box_easy_afternm(_SOCKET_TYPE, b"CurveZMQREADY---" + nonce, self._shared)
        return client, b"\x05READY" + nonce + box

    def seal(self, flags: int, data: Any) -> list[Any]:
        """The buffers to send for a frame and its flags, encrypted. The data is copied once, and encrypted there."""
        view = memoryview(data).cast("B")
        nonce = self._next_nonce()
        name = _MESSAGE + nonce
        sealed = untouched(_MAC_BYTES + 1 + len(view))
        sealed[_MAC_BYTES] = _TO_SEALED[flags]
        sealed[_MAC_BYTES + 1 :] = view
        box = ffi.from_buffer("unsigned char[]", sealed, require_writable=True)
        whole = b"CurveZMQMESSAGES" + nonce
        lib.crypto_box_easy_afternm(box, box + _MAC_BYTES, len(sealed) - _MAC_BYTES, whole, self._shared)
        return [_head(len(name) + len(sealed), 0) + name, sealed]

    def open(self, body: Any) -> tuple[int, memoryview]:
        """The flags and the bytes of a sealed frame, decrypted in place."""
        sealed = memoryview(bytearray(body) if isinstance(body, bytes) else body)
        if bytes(sealed[: len(_MESSAGE)]) != _MESSAGE:
            raise ZmtpError("a frame that is not sealed")
        nonce = bytes(sealed[len(_MESSAGE) : _BOX_AT])
        box = ffi.from_buffer("unsigned char[]", sealed, require_writable=True) + _BOX_AT
        whole = b"CurveZMQMESSAGEC" + nonce
        if lib.crypto_box_open_easy_afternm(box + _MAC_BYTES, box, len(sealed) - _BOX_AT, whole, self._shared):
            raise ZmtpError("a frame that cannot be opened")
        self._advance(nonce)
        flags = sealed[_BOX_AT + _MAC_BYTES]
        if flags not in _FROM_SEALED:
            raise ZmtpError("a sealed frame with reserved flags")
        return _FROM_SEALED[flags], sealed[_SEALED_EXTRA:]

    def _advance(self, nonce: bytes) -> None:
        """Remember the peer's nonce, which must be above the one before, so that nothing is taken twice."""
        number = int.from_bytes(nonce)
        if number <= self._peer_nonce:
            raise ZmtpError("a nonce that was used before")
        self._peer_nonce = number

    def _next_nonce(self) -> bytes:
        self._sent_nonce += 1
        return self._sent_nonce.to_bytes(_NONCE_BYTES)


def _head(size: int, flags: int) -> bytes:
    if size <= _SHORT_MAX:
        return bytes((flags, size))
    return bytes((flags | _LONG,)) + size.to_bytes(8)


def _command(body: bytes) -> bytes:
    return _head(len(body), _COMMAND) + body


def _after(command: Any, name: bytes) -> bytes:
    """Return what follows the name of a command, which must be this one."""
    body = bytes(command)
    if not body.startswith(name):
        raise ZmtpError("another command than the one that is due")
    return body[len(name) :]


# A property: its name and its value, each behind its length.
_SOCKET_TYPE = b"\x0bSocket-Type\0\0\0\x06ROUTER"


def _check_metadata(metadata: bytes) -> None:
    """Raise ZmtpError unless these are properties, and those of a DEALER. Other properties are ignored."""
    found = {}
    at = 0
    while at < len(metadata):
        value_at = at + 1 + metadata[at] + 4
        end = value_at + int.from_bytes(metadata[value_at - 4 : value_at])
        if end > len(metadata) or value_at > len(metadata) or not metadata[at]:
            raise ZmtpError("malformed metadata")
        found[metadata[at + 1 : value_at - 4].lower()] = metadata[value_at:end]
        at = end
    if found.get(b"socket-type") != b"DEALER":
        raise ZmtpError("another socket than a DEALER")
