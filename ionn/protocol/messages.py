"""The bytes on the wire: every message between client and server. docs/protocol.md shows them in use.

A message is a multipart message of ZeroMQ: one frame of JSON (`{"type": ..., fields}`), then raw frames if the message
carries bytes (a chunk's weights, a query's input, a result's outputs). A client has two connections, so that a query
never waits behind weights: `control` for queries and `upload` for partitions. There are no sockets here.

    control   client: Hello, Query, Part, Join, Ping, Bye  server: Welcome, Result, Pong, Error
    upload    client: Hello, Have, PartitionHeader, Chunk, server: Welcome, Holds, Ack, Ready, Pong, Error
                      PartitionEnd, Ping

Flow control is by credit: a client never has more than the Welcome's `window_bytes` of unacknowledged weights under
way, so that nothing waits in sockets for long. A server reads no more from a client than it has room for.
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

# A chunk occupies an 80 Mbps link for 13 ms: little beside a query, much beside the time for a message in Python.
CHUNK_BYTES = 128 * 1024
# What a client sends to measure a link.
PROBE_BYTES = 64_000
# The most digests (SHA-256) that a client may ask for at once, and the bytes of each.
DIGESTS_MAX, DIGEST_BYTES = 10_000, 32
PIECE_BYTES_MAX = PIECE_BYTES
# The largest JSON frame that is read; a server or client may set a lower limit.
HEADER_BYTES_MAX = 4 * 1024 * 1024

# How many characters of an error's message are read.
_LINE_MAX = 1000

# The number of a query or a partition; -1 for none.
_Number = Annotated[int, msgspec.Meta(ge=-1, le=NATURAL_MAX)]
# How long reading 10^6 bytes may take, in ms: a quarter of an hour. Graphs with such times can still be made.
_ReadMs = Annotated[float, msgspec.Meta(ge=0, le=1e6)]


class Message:
    """The base of all messages. `type` names a message on the wire; `payload` are the raw frames that follow the JSON
    frame. `answer` is the type of the server's answer, if that is not an Error; empty if there is no answer."""

    type: ClassVar[str]
    answer: ClassVar[str] = ""
    __dataclass_fields__: ClassVar[dict[str, Any]]  # all messages are dataclasses
    payload: Sequence[Any] = ()

    def frames(self) -> list[Any]:
        """The frames to send: the JSON frame and the payload."""
        body = {name: getattr(self, name) for name in _HEADER_FIELDS[self.type]}
        return [msgspec.json.encode({"type": self.type, **body}), *self.payload]


@dataclass(frozen=True)
class Hello(Message):
    """The first message of every connection. `session` is empty for a new session (role `control` only), else the
    token that the Welcome had: on the upload connection, and on both when a client comes back to its session. The
    role's former connection then ends. `codecs` are the codecs of `ionn.coding`, other than raw bytes, that the client
    takes in results."""

    type: ClassVar[str] = "hello"
    answer: ClassVar[str] = "welcome"
    protocol: Natural
    role: Word
    session: Word = ""
    codecs: tuple[Word, ...] = ()


@dataclass(frozen=True)
class Held:
    """How much of a partition the server holds: its first `received` bytes; and whether queries may use it."""

    partition: Natural
    received: Natural
    ready: bool


@dataclass(frozen=True)
class Welcome(Message):
    """The answer of the session's process to a Hello. `session` is the session's token. `costs` is the server's cost
    model (JSON as `ionn.costs` saves it), empty if the server was started without one. A chunk has at most
    `chunk_bytes`, and at most `window_bytes` of chunks may be unacknowledged. `held` is what the server has of the
    session's partitions, and `codecs` are those that it takes. `stores` tells whether it keeps weights for this client
    beyond sessions, and `store_ms_per_mb` how long it takes to read 10^6 bytes of them. `numerics` decide the last bits
    of its results; None if the server does not say."""

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
    """Asks which pieces of weights the server's store has. The payload are the SHA-256 of at most DIGESTS_MAX pieces,
    32 bytes each."""

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
    """A piece of a partition's weights: the bytes of its `spans`, each (offset, size) in the caffemodel, concatenated,
    have this SHA-256 in hexadecimal. The server takes a `stored` piece from its store, and the piece is not sent. It
    stores any other piece that has arrived, if it has a store."""

    sha256: Word
    spans: tuple[tuple[Natural, Natural], ...]
    stored: bool


@dataclass(frozen=True)
class PartitionHeader(Message):
    """Announces a partition: the nets to build, and where in a caffemodel of `size` bytes their floats lie. `pieces`
    are the pieces of its weights that have a digest."""

    type: ClassVar[str] = "partition"
    answer: ClassVar[str] = "ack"
    partition: _Number
    nets: tuple[PartialNet, ...]
    blobs: tuple[BlobSpan, ...]
    size: Natural
    pieces: tuple[AddressedPiece, ...] = ()


@dataclass(frozen=True)
class Chunk(Message):
    """Bytes of a partition's caffemodel from `offset` on, in one or more payload frames, and these frames' CRC-32. If
    the `codec` is not raw, the chunk by itself decodes to `raw_bytes` bytes. No chunk has bytes of a stored piece."""

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
    """All chunks were sent. `sha256` is that of all bytes of the caffemodel that were sent, before coding, in
    hexadecimal."""

    type: ClassVar[str] = "end"
    answer: ClassVar[str] = "ready"
    partition: _Number
    sha256: Word


@dataclass(frozen=True)
class Ack(Message):
    """The server has the first `received` bytes of the partition: the next chunk begins there."""

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
    """Asks to run stages `first`..`last` on the payload: the blob before `first` as float32, little endian; or, without
    a payload, on what the message before left at the server: the output of a Query or of a Join.

    A query may consist of several messages with the same number, sent without waiting. Each is answered by a Result.

    Here and in the messages below, `codecs` are those of the payload's frames, one for each, or none if all are raw. If
    `coded`, the server codes the outputs where that makes them smaller.
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
    """Asks to run the first `count` output channels of a stage that is uploaded in slices. The payload is as a Query's.
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
    """Adds to the channels that stayed after a Part those that it did not run, which are the payload. The Result has
    the stage's whole output, or no outputs if that is to `stay` for the next message only."""

    type: ClassVar[str] = "join"
    answer: ClassVar[str] = "result"
    query: _Number
    stay: bool
    payload: Sequence[Any] = ()
    codecs: tuple[Word, ...] = ()
    coded: bool = False


@dataclass(frozen=True)
class Result(Message):
    """The outputs of a Query, Part or Join, a payload frame for each of `shapes`, and the time that each stage took,
    without coding."""

    type: ClassVar[str] = "result"
    query: _Number
    shapes: tuple[tuple[Natural, ...], ...]
    stage_ms: tuple[TimeMs, ...]
    payload: Sequence[Any] = ()
    codecs: tuple[Word, ...] = ()


@dataclass(frozen=True)
class Error(Message):
    """A request failed. `code` is one of the `ERROR_*` names below. `query` or `partition` is the number of the one
    that failed, else -1. `pieces` are the numbers, in a partition's header, of the stored pieces that are missing."""

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
    """A heartbeat, which the session's process answers; without a session the server's front answers. The payload has
    no meaning: a client times it to measure the link."""

    type: ClassVar[str] = "ping"
    answer: ClassVar[str] = "pong"
    payload: Sequence[Any] = ()


@dataclass(frozen=True)
class Pong(Message):
    """The answer to a Ping. From the front, it says how many `sessions` there are, whether there is `room` for another
    one of this client, and whether their processes are completely `sandboxed`."""

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
ERROR_MISSING = "missing"  # the store lacks pieces of the partition that it should have: announce it again without them
ERROR_QUERY = "query"  # the query cannot be run
ERROR_BUSY = "busy"  # the server cannot begin another session now
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
    """The message in these frames (bytes, or objects with a `buffer`), of which the first may have at most
    `header_bytes_max` bytes. Raises ProtocolError, and nothing else, for anything that is not a valid message."""
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
    """The chunk with the bytes of `parts`. They go in one frame, because sending a frame takes longer than copying."""
    payload = parts[0] if len(parts) == 1 else b"".join(parts)
    return Chunk(partition, offset, zlib.crc32(payload), (payload,), codec, raw_bytes)
