"""The bytes on the wire: every message between client and server. docs/protocol.md shows them in use.

A message is a ZeroMQ multipart: one frame of JSON (`{"type": ..., fields}`), then raw frames where the message carries
bytes (a chunk's weights, a query's input, a result's outputs). A client holds two connections, so that a query never
queues behind weights: `control` for queries and `upload` for partitions. Nothing here knows sockets.

    control   client: Hello, Query, Part, Join, Ping, Bye  server: Welcome, Result, Pong, Error
    upload    client: Hello, PartitionHeader, Chunk,       server: Welcome, Ack, Ready, Pong, Error
                      PartitionEnd, Ping

Flow control is by credit: the sender never has more than the Welcome's `window_bytes` of unacknowledged weights under
way, so that nothing waits in sockets for long. A server reads no more of a client than it has room for.
"""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

from ionn.errors import ProtocolError, printable
from ionn.model.caffemodel import BlobSpan
from ionn.model.partial_net import Channels, NetStage, PartialNet
from ionn.strict import natural, parse_json, time_ms

PROTOCOL = 4

# A chunk occupies an 80 Mbps link for 13 ms: small beside a query, large beside the cost of a message in Python.
CHUNK_BYTES = 128 * 1024
# The largest JSON frame that is read at all; a server may set a lower limit.
HEADER_BYTES_MAX = 4 * 1024 * 1024

# What is read of an error's message.
_LINE_MAX = 1000
# A token, a digest, the name of a role or an error: what is longer is none.
_WORD_MAX = 100


class Message:
    """Base of all messages. `type` names it on the wire; `payload` are the raw frames that follow the JSON frame.

    `answer` is the type of what a server answers it with, if not with an Error; empty where there is no answer.
    """

    type: ClassVar[str]
    answer: ClassVar[str] = ""
    payload: Sequence[Any] = ()

    def frames(self) -> list[Any]:
        body = {name: getattr(self, name) for name in _fields_of(self.type) if name != "payload"}
        return [json.dumps({"type": self.type, **body}, default=asdict).encode(), *self.payload]


@functools.cache
def _fields_of(type_: str) -> tuple[str, ...]:
    return tuple(each.name for each in fields(_MESSAGES[type_]))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Hello(Message):
    """First on every connection. `session` is empty for a new session (role `control` only), else the Welcome's: on the
    upload connection, and on both where a client comes back to its session. The role's former connection ends then."""

    type: ClassVar[str] = "hello"
    answer: ClassVar[str] = "welcome"
    protocol: int
    role: str
    session: str = ""


@dataclass(frozen=True)
class Held:
    """What the server holds of a partition: its first `received` bytes, and whether queries may use it."""

    partition: int
    received: int
    ready: bool


@dataclass(frozen=True)
class Welcome(Message):
    """The session's process answers. `costs` is the server's cost model (JSON as `costs` saves it), empty if it was
    never calibrated. Chunks are at most `chunk_bytes`; at most `window_bytes` of them may be unacknowledged."""

    type: ClassVar[str] = "welcome"
    protocol: int
    session: str
    chunk_bytes: int
    window_bytes: int
    costs: dict[str, Any] = field(default_factory=dict)
    held: tuple[Held, ...] = ()


@dataclass(frozen=True)
class PartitionHeader(Message):
    """What is about to arrive: the nets to build, and where in `size` bytes of caffemodel their floats lie."""

    type: ClassVar[str] = "partition"
    answer: ClassVar[str] = "ack"
    partition: int
    nets: tuple[PartialNet, ...]
    blobs: tuple[BlobSpan, ...]
    size: int


@dataclass(frozen=True)
class Chunk(Message):
    """Bytes `offset`.. of a partition's caffemodel, in one or more payload frames, and their CRC-32."""

    type: ClassVar[str] = "chunk"
    answer: ClassVar[str] = "ack"
    partition: int
    offset: int
    crc32: int
    payload: Sequence[Any] = ()


@dataclass(frozen=True)
class PartitionEnd(Message):
    """All chunks were sent; the SHA-256 of the whole caffemodel in hexadecimal."""

    type: ClassVar[str] = "end"
    answer: ClassVar[str] = "ready"
    partition: int
    sha256: str


@dataclass(frozen=True)
class Ack(Message):
    """The server holds the first `received` bytes of the partition."""

    type: ClassVar[str] = "ack"
    partition: int
    received: int


@dataclass(frozen=True)
class Ready(Message):
    """The partition is complete, its digest is right, and queries may use it."""

    type: ClassVar[str] = "ready"
    partition: int


@dataclass(frozen=True)
class Query(Message):
    """Run stages `first`..`last` on the payload: the blob before `first` as float32, little endian. Without a payload,
    on what the message before left at the server: the output of a Query, or of a Part after its Join.

    A query of a client may be several messages with the same number, sent without waiting. Each has its Result.
    """

    type: ClassVar[str] = "query"
    answer: ClassVar[str] = "result"
    query: int
    first: int
    last: int
    payload: Sequence[Any] = ()


@dataclass(frozen=True)
class Part(Message):
    """Run a stage that is uploaded in slices, only its first `count` output channels. The payload is as a Query's.
    The Result has these channels, or no outputs if they are to `stay` for a Join."""

    type: ClassVar[str] = "part"
    answer: ClassVar[str] = "result"
    query: int
    stage: int
    count: int
    stay: bool
    payload: Sequence[Any] = ()


@dataclass(frozen=True)
class Join(Message):
    """The payload are the channels that the Part before did not run. The Result has no outputs if the stage's are to
    `stay` for the next message only; else it has all of them."""

    type: ClassVar[str] = "join"
    answer: ClassVar[str] = "result"
    query: int
    stay: bool
    payload: Sequence[Any] = ()


@dataclass(frozen=True)
class Result(Message):
    """The outputs of a Query, Part or Join, a payload frame for each of `shapes`, and the time each stage took."""

    type: ClassVar[str] = "result"
    query: int
    shapes: tuple[tuple[int, ...], ...]
    stage_ms: tuple[float, ...]
    payload: Sequence[Any] = ()


@dataclass(frozen=True)
class Error(Message):
    """A request failed. `code` is one of the `ERROR_*` names below; `query` or `partition` says which, else -1."""

    type: ClassVar[str] = "error"
    code: str
    message: str
    query: int = -1
    partition: int = -1


@dataclass(frozen=True)
class Ping(Message):
    """A heartbeat, which the session's process answers; without a session the server's front answers."""

    type: ClassVar[str] = "ping"
    answer: ClassVar[str] = "pong"


@dataclass(frozen=True)
class Pong(Message):
    """Alive. From the front: how many `sessions` there are, and whether there is `room` for another."""

    type: ClassVar[str] = "pong"
    sessions: int = 0
    room: bool = True


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
ERROR_QUERY = "query"  # the query cannot be run
ERROR_BUSY = "busy"  # the server has no room for another session
ERROR_STOPPING = "stopping"  # the server stops

_MESSAGES: dict[str, type[Message]] = {
    cls.type: cls
    for cls in (
        Hello, Welcome, PartitionHeader, Chunk, PartitionEnd, Ack, Ready, Query, Part, Join, Result, Error, Ping,
        Pong, Bye,
    )
}  # fmt: skip


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError(f"{value!r:.40} is not a string")
    return value


def _word(value: Any) -> str:
    if len(_text(value)) > _WORD_MAX or printable(value) != value:
        raise ValueError(f"{value!r:.40} is too long, or not printable")
    return str(value)


def _line(value: Any) -> str:
    return printable(_text(value)[:_LINE_MAX])


def _names(value: Any) -> tuple[str, ...]:
    return tuple(_text(item) for item in _list(value))


def _list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise ValueError(f"{value!r:.40} is not a list")
    return value


def _object(value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise ValueError(f"{value!r:.40} is not an object")
    return value


def _id(value: Any) -> int:
    return -1 if value == -1 else natural(value)


def _net(value: Any) -> PartialNet:
    net = _object(value)
    stages = tuple(
        NetStage(natural(stage["index"]), natural(stage["last_layer"]), _names(stage["outputs"]))
        for stage in map(_object, _list(net["stages"]))
    )
    if not stages:
        raise ValueError("a net without stages")
    if any(stage.index != stages[0].index + at for at, stage in enumerate(stages)):
        raise ValueError("a net's stages are not adjacent")
    channels = _channels(net["channels"]) if net["channels"] is not None else None
    if channels is not None and len(stages) != 1:
        raise ValueError("a slice of several stages")
    return PartialNet(_text(net["prototxt"]), _text(net["input"]), stages, channels)


def _channels(value: Any) -> Channels:
    channels = Channels(*map(natural, _list(value)))
    if not channels.begin < channels.end <= channels.of < 2**31 or channels[:2] == (0, channels.of):
        raise ValueError(f"{list(channels)} is not a slice")
    return channels


def _blob_span(value: Any) -> BlobSpan:
    span = _object(value)
    return BlobSpan(_text(span["layer"]), natural(span["blob"]), natural(span["offset"]), natural(span["size"]))


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError(f"{value!r:.40} is not true or false")
    return value


def _held(value: Any) -> Held:
    held = _object(value)
    return Held(natural(held["partition"]), natural(held["received"]), _flag(held["ready"]))


# How each field is read from JSON. A field means the same in every message, so one table serves all.
_READERS = {
    "protocol": natural,
    "role": _word,
    "session": _word,
    "costs": _object,
    "chunk_bytes": natural,
    "window_bytes": natural,
    "held": lambda value: tuple(map(_held, _list(value))),
    "sessions": natural,
    "room": _flag,
    "partition": _id,
    "query": _id,
    "nets": lambda value: tuple(map(_net, _list(value))),
    "blobs": lambda value: tuple(map(_blob_span, _list(value))),
    "size": natural,
    "offset": natural,
    "crc32": natural,
    "sha256": _word,
    "received": natural,
    "first": natural,
    "last": natural,
    "stage": natural,
    "count": natural,
    "stay": _flag,
    "shapes": lambda value: tuple(tuple(map(natural, _list(shape))) for shape in _list(value)),
    "stage_ms": lambda value: tuple(map(time_ms, _list(value))),
    "code": _word,
    "message": _line,
}


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
        body = _object(parse_json(bytes(buffers[0])))
        cls = _MESSAGES[_text(body.pop("type"))]
        known = _fields_of(cls.type)
        values = {name: _READERS[name](value) for name, value in body.items() if name in known}
        if "payload" in known:
            values["payload"] = tuple(buffers[1:])
        elif len(buffers) > 1:
            raise ValueError(f"'{cls.type}' carries no payload")
        return cls(**values)
    except (ValueError, KeyError, TypeError) as error:
        raise ProtocolError(f"not a message of protocol {PROTOCOL}: {printable(str(error)[:200])}") from error


def make_chunk(partition: int, offset: int, parts: Sequence[memoryview]) -> Chunk:
    """Many small blobs go in one frame: sending a frame costs a thread more than copying them."""
    payload = parts[0] if len(parts) == 1 else b"".join(parts)
    return Chunk(partition, offset, zlib.crc32(payload), (payload,))
