"""The bytes on the wire: every message between client and server. docs/protocol.md shows them in use.

A message is a ZeroMQ multipart: one frame of JSON (`{"type": ..., fields}`), then raw frames where the message carries
bytes (a chunk's weights, a query's input, a result's outputs). A client holds two connections, so that a query never
queues behind weights: `control` for queries and `upload` for partitions. Nothing here knows sockets.

    control   client: Hello, Query, Part, Join, Ping, Bye  server: Welcome, Result, Pong, Error
    upload    client: Hello, Have, PartitionHeader, Chunk, server: Welcome, Holds, Ack, Ready, Pong, Error
                      PartitionEnd, Ping

Flow control is by credit: the sender never has more than the Welcome's `window_bytes` of unacknowledged weights under
way, so that nothing waits in sockets for long. A server reads no more of a client than it has room for.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, ClassVar

import msgspec

from ionn.coding import RAW
from ionn.errors import ProtocolError, printable
from ionn.model.caffemodel import BlobSpan
from ionn.model.comparison import Numerics
from ionn.model.partial_net import PartialNet
from ionn.model.weight_pieces import PIECE_BYTES
from ionn.schema import NATURAL_MAX, Natural, Tagged, TimeMs, Word

PROTOCOL = 7

# A chunk occupies an 80 Mbps link for 13 ms: small beside a query, large beside the cost of a message in Python.
CHUNK_BYTES = 128 * 1024
# What a client sends to measure a link before it plans for it.
PROBE_BYTES = 64_000
# The most digests that a client may ask for at once, each a SHA-256, and the most bytes that a piece may have.
DIGESTS_MAX, DIGEST_BYTES = 10_000, 32
PIECE_BYTES_MAX = PIECE_BYTES
# The largest JSON frame that is read at all; a server may set a lower limit.
HEADER_BYTES_MAX = 4 * 1024 * 1024

# What is read of an error's message.
_LINE_MAX = 1000

# The number of a query or a partition; -1 for none.
_Number = Annotated[int, msgspec.Meta(ge=-1, le=NATURAL_MAX)]
# How long 10^6 bytes may take to be read: a quarter of an hour. Graphs with such times can still be made.
_ReadMs = Annotated[float, msgspec.Meta(ge=0, le=1e6)]


class Message:
    """Base of all messages. `type` names it on the wire; `payload` are the raw frames that follow the JSON frame.

    `answer` is the type of what a server answers it with, if not with an Error; empty where there is no answer.
    """

    type: ClassVar[str]
    answer: ClassVar[str] = ""
    __dataclass_fields__: ClassVar[dict[str, Any]]  # all messages are dataclasses
    payload: Sequence[Any] = ()

    def frames(self) -> list[Any]:
        body = {name: getattr(self, name) for name in _HEADER_FIELDS[self.type]}
        return [msgspec.json.encode({"type": self.type, **body}), *self.payload]


@dataclass(frozen=True)
class Hello(Message):
    """First on every connection. `session` is empty for a new session (role `control` only), else the Welcome's: on the
    upload connection, and on both where a client comes back to its session. The role's former connection ends then.
    `codecs` are those of `ionn.coding` beside raw bytes that the client takes in results."""

    type: ClassVar[str] = "hello"
    answer: ClassVar[str] = "welcome"
    protocol: Natural
    role: Word
    session: Word = ""
    codecs: tuple[Word, ...] = ()


@dataclass(frozen=True)
class Held:
    """What the server holds of a partition: its first `received` bytes, and whether queries may use it."""

    partition: Natural
    received: Natural
    ready: bool


@dataclass(frozen=True)
class Welcome(Message):
    """The session's process answers. `costs` is the server's cost model (JSON as `costs` saves it), empty if it was
    never calibrated. Chunks are at most `chunk_bytes`; at most `window_bytes` of them may be unacknowledged. `codecs`
    are those that the server takes. `stores` tells whether it keeps weights for this client beyond its sessions, and
    `store_ms_per_mb` how long it takes to read 10^6 bytes of them. `numerics` is what decides the last bits of its
    results, None where it does not say."""

    type: ClassVar[str] = "welcome"
    protocol: Natural
    session: Word
    chunk_bytes: Natural
    window_bytes: Natural
    costs: dict[str, Any] = field(default_factory=dict)
    held: tuple[Held, ...] = ()
    codecs: tuple[Word, ...] = ()
    stores: bool = False
    store_ms_per_mb: _ReadMs = 0.0
    numerics: Numerics | None = None


@dataclass(frozen=True)
class Have(Message):
    """Which pieces of weights does the server's store have? The payload are their SHA-256, 32 bytes each, at most
    DIGESTS_MAX."""

    type: ClassVar[str] = "have"
    answer: ClassVar[str] = "holds"
    payload: Sequence[Any] = ()


@dataclass(frozen=True)
class Holds(Message):
    """The payload has a byte for each digest of a Have, in their order: 1 if that piece is stored, else 0."""

    type: ClassVar[str] = "holds"
    payload: Sequence[Any] = ()


@dataclass(frozen=True)
class AddressedPiece:
    """A piece of a partition's weights: the bytes `spans`, each (offset, size) in the caffemodel, one after the other,
    have this SHA-256 in hexadecimal. One that is `stored` is taken from the server's store, and its bytes are not sent;
    another is stored when it has come, if the server has a store."""

    sha256: Word
    spans: tuple[tuple[Natural, Natural], ...]
    stored: bool


@dataclass(frozen=True)
class PartitionHeader(Message):
    """What is about to arrive: the nets to build, and where in `size` bytes of caffemodel their floats lie. `pieces`
    are those of its weights that have an address."""

    type: ClassVar[str] = "partition"
    answer: ClassVar[str] = "ack"
    partition: _Number
    nets: tuple[PartialNet, ...]
    blobs: tuple[BlobSpan, ...]
    size: Natural
    pieces: tuple[AddressedPiece, ...] = ()


@dataclass(frozen=True)
class Chunk(Message):
    """Bytes `offset`.. of a partition's caffemodel, in one or more payload frames, and the CRC-32 of these. Where the
    `codec` is not raw, they are `raw_bytes` when they are decoded, by themselves. None has bytes of a stored piece."""

    type: ClassVar[str] = "chunk"
    answer: ClassVar[str] = "ack"
    partition: _Number
    offset: Natural
    crc32: Natural
    payload: Sequence[Any] = ()
    codec: Word = RAW
    raw_bytes: Natural = 0


@dataclass(frozen=True)
class PartitionEnd(Message):
    """All chunks were sent; the SHA-256 in hexadecimal of all bytes that were sent of the caffemodel."""

    type: ClassVar[str] = "end"
    answer: ClassVar[str] = "ready"
    partition: _Number
    sha256: Word


@dataclass(frozen=True)
class Ack(Message):
    """The server holds the first `received` bytes of the partition: the next chunk begins there, or behind the stored
    piece that does."""

    type: ClassVar[str] = "ack"
    partition: _Number
    received: Natural


@dataclass(frozen=True)
class Ready(Message):
    """The partition is complete, its digest is right, and queries may use it."""

    type: ClassVar[str] = "ready"
    partition: _Number


@dataclass(frozen=True)
class Query(Message):
    """Run stages `first`..`last` on the payload: the blob before `first` as float32, little endian. Without a payload,
    on what the message before left at the server: the output of a Query, or of a Part after its Join.

    A query of a client may be several messages with the same number, sent without waiting. Each has its Result.

    `codecs` are those of the payload's frames, one for each, or none where all are raw: here, and in all messages that
    have the field. If `coded`, the client would have the outputs coded.
    """

    type: ClassVar[str] = "query"
    answer: ClassVar[str] = "result"
    query: _Number
    first: Natural
    last: Natural
    payload: Sequence[Any] = ()
    codecs: tuple[Word, ...] = ()
    coded: bool = False


@dataclass(frozen=True)
class Part(Message):
    """Run a stage that is uploaded in slices, only its first `count` output channels. The payload is as a Query's.
    The Result has these channels, or no outputs if they are to `stay` for a Join."""

    type: ClassVar[str] = "part"
    answer: ClassVar[str] = "result"
    query: _Number
    stage: Natural
    count: Natural
    stay: bool
    payload: Sequence[Any] = ()
    codecs: tuple[Word, ...] = ()
    coded: bool = False


@dataclass(frozen=True)
class Join(Message):
    """The payload are the channels that the Part before did not run. The Result has no outputs if the stage's are to
    `stay` for the next message only; else it has all of them."""

    type: ClassVar[str] = "join"
    answer: ClassVar[str] = "result"
    query: _Number
    stay: bool
    payload: Sequence[Any] = ()
    codecs: tuple[Word, ...] = ()
    coded: bool = False


@dataclass(frozen=True)
class Result(Message):
    """The outputs of a Query, Part or Join, a payload frame for each of `shapes`, and the time each stage took, without
    coding."""

    type: ClassVar[str] = "result"
    query: _Number
    shapes: tuple[tuple[Natural, ...], ...]
    stage_ms: tuple[TimeMs, ...]
    payload: Sequence[Any] = ()
    codecs: tuple[Word, ...] = ()


@dataclass(frozen=True)
class Error(Message):
    """A request failed. `code` is one of the `ERROR_*` names below; `query` or `partition` says which, else -1.
    `pieces` are the numbers, in a partition's header, of the stored pieces that are missing."""

    type: ClassVar[str] = "error"
    code: Word
    message: str
    query: _Number = -1
    partition: _Number = -1
    pieces: tuple[Natural, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", printable(self.message[:_LINE_MAX]))


@dataclass(frozen=True)
class Ping(Message):
    """A heartbeat, which the session's process answers; without a session the server's front answers. The payload is
    of no meaning: that it has to cross the link lets a client measure that."""

    type: ClassVar[str] = "ping"
    answer: ClassVar[str] = "pong"
    payload: Sequence[Any] = ()


@dataclass(frozen=True)
class Pong(Message):
    """Alive. From the front: how many `sessions` there are, whether there is `room` for another, and whether their
    processes are `sandboxed`."""

    type: ClassVar[str] = "pong"
    sessions: Natural = 0
    room: bool = True
    sandboxed: bool = False


@dataclass(frozen=True)
class Bye(Message):
    """The client ends its session; the server frees it."""

    type: ClassVar[str] = "bye"


ERROR_PROTOCOL = "protocol"  # the message is not understood or not allowed now
ERROR_VERSION = "version"  # the peer speaks another protocol version
ERROR_SESSION = "session"  # no such session, or it has ended
ERROR_CRASHED = "crashed"  # the session's process died, and the session with it
ERROR_TAKEN = "taken"  # another connection said hello in this one's place
ERROR_PARTITION = "partition"  # the partition cannot be accepted; sending it again does not help
ERROR_DAMAGED = "damaged"  # not the bytes that were expected: say hello again, and go on from what the server holds
ERROR_MISSING = "missing"  # not all pieces of the partition that were to be in the store are there: announce it anew
ERROR_QUERY = "query"  # the query cannot be run
ERROR_BUSY = "busy"  # the server has no room for another session
ERROR_STOPPING = "stopping"  # the server stops

_MESSAGES: dict[str, type[Message]] = {
    cls.type: cls
    for cls in (
        Hello, Welcome, Have, Holds, PartitionHeader, Chunk, PartitionEnd, Ack, Ready, Query, Part, Join, Result, Error,
        Ping, Pong, Bye,
    )
}  # fmt: skip


_CARRIES_PAYLOAD = {name: any(each.name == "payload" for each in fields(cls)) for name, cls in _MESSAGES.items()}
_HEADER_FIELDS = {
    name: tuple(each.name for each in fields(cls) if each.name != "payload") for name, cls in _MESSAGES.items()
}
_JSON = Tagged("type", _MESSAGES)


def decode(frames: Sequence[Any], header_bytes_max: int = HEADER_BYTES_MAX) -> Message:
    """The message in these frames (bytes, or objects with a `buffer`), the first of at most `header_bytes_max`.

    Raises ProtocolError for anything that is not a valid message, and nothing else.
    """
    if not frames:
        raise ProtocolError("an empty message")
    buffers = [memoryview(getattr(frame, "buffer", frame)) for frame in frames]
    if len(buffers[0]) > header_bytes_max:
        raise ProtocolError(f"a header of {len(buffers[0])} bytes; the limit is {header_bytes_max}")
    try:
        message: Message = _JSON.read(buffers[0])
        if _CARRIES_PAYLOAD[message.type]:
            object.__setattr__(message, "payload", tuple(buffers[1:]))  # nobody else knows it yet
            return message
        if len(buffers) > 1:
            raise ValueError(f"'{message.type}' carries no payload")
        return message
    except ValueError as error:
        raise ProtocolError(f"not a message of protocol {PROTOCOL}: {printable(str(error)[:200])}") from error


def make_chunk(partition: int, offset: int, parts: Sequence[Any], codec: str = RAW, raw_bytes: int = 0) -> Chunk:
    """Many small blobs go in one frame: sending a frame costs a thread more than copying them."""
    payload = parts[0] if len(parts) == 1 else b"".join(parts)
    return Chunk(partition, offset, zlib.crc32(payload), (payload,), codec, raw_bytes)
