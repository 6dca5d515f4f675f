"""A server with a store, by the protocol alone: it has no nets, and shares no code with the real one."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from ionn import coding
from ionn.model.partial_net import ExtractedPartition
from ionn.protocol.messages import (
    ERROR_MISSING,
    PROTOCOL,
    Ack,
    Chunk,
    Error,
    Have,
    Held,
    Holds,
    Message,
    PartitionEnd,
    PartitionHeader,
    Ready,
    Welcome,
    decode,
)
from tests.support.choices import Choices


@dataclass
class Arriving:
    """A partition of which `data` is there up to `position`, but for the spans `left`, which are still to be sent."""

    header: PartitionHeader
    data: bytearray
    stored: list[tuple[int, int]]  # (begin, end), of what came from the store
    position: int = 0
    sent: bytearray = field(default_factory=bytearray)
    ready: bool = False

    def __post_init__(self) -> None:
        self.skip()

    def skip(self) -> None:
        while ends := [end for begin, end in self.stored if begin <= self.position < end]:
            self.position = ends[0]


class StoreServer:
    """Answers an upload. `store` has the bytes of its pieces; it forgets some, is wrong about others (`lies`), and
    keeps what comes, by lot. Everything that a client must not do fails a test.

    By partition: `wire_bytes` are those of all chunks, and `weight_bytes` those of weights in the chunks since it was
    last announced.
    """

    def __init__(
        self,
        c: Choices,
        partitions: Sequence[ExtractedPartition],
        store: dict[str, bytes],
        chunk_bytes: int = 10**6,
        window_bytes: int = 10**7,
    ) -> None:
        self._c = c
        self._contents = [partition.caffemodel.tobytes() for partition in partitions]
        self.store = store
        self.chunk_bytes, self.window_bytes = chunk_bytes, window_bytes
        self._session = 0
        self.lies = False
        self.partitions: dict[int, Arriving] = {}
        self.wire_bytes = [0] * len(partitions)
        self.weight_bytes = [0] * len(partitions)

    def restart(self) -> None:
        """Be killed, and come back with the store."""
        self._session += 1
        self.partitions.clear()

    def welcome(self) -> Welcome:
        held = tuple(Held(index, each.position, each.ready) for index, each in self.partitions.items())
        return Welcome(
            PROTOCOL, f"session {self._session}", self.chunk_bytes, self.window_bytes, held=held,
            codecs=coding.CODECS, stores=True,
        )  # fmt: skip

    def answer(self, sent: Message) -> Message:
        message = decode([bytes(frame) for frame in sent.frames()])
        match message:
            case Have():
                return self._holds(message)
            case PartitionHeader():
                return self._announced(message)
            case Chunk():
                return self._chunk(message)
            case PartitionEnd():
                return self._end(message)
        raise AssertionError(message)

    def _holds(self, have: Have) -> Holds:
        content = b"".join(map(bytes, have.payload))
        digests = [content[at : at + 32].hex() for at in range(0, len(content), 32)]
        assert len(set(digests)) == len(digests) == len(content) / 32 > 0
        there = [digest in self.store or (self.lies and self._c.integer(0, 3) == 0) for digest in digests]
        return Holds((bytes(there),))

    def _announced(self, header: PartitionHeader) -> Message:
        index = header.partition
        assert index not in self.partitions
        content = self._contents[index]
        assert header.size == len(content)
        for piece in header.pieces:
            raw = b"".join(content[offset : offset + size] for offset, size in piece.spans)
            assert hashlib.sha256(raw).hexdigest() == piece.sha256
        stored = {number: piece for number, piece in enumerate(header.pieces) if piece.stored}
        missing = [number for number, piece in stored.items() if piece.sha256 not in self.store]
        if missing:
            return Error(ERROR_MISSING, "they are not there", partition=index, pieces=tuple(missing))
        data, spans = bytearray(len(content)), []
        for piece in stored.values():
            raw = self.store[piece.sha256]
            for offset, size in piece.spans:
                data[offset : offset + size], raw = raw[:size], raw[size:]
                spans.append((offset, offset + size))
            assert not raw
        self.partitions[index] = Arriving(header, data, spans)
        self.weight_bytes[index] = 0
        return Ack(index, self.partitions[index].position)

    def _chunk(self, chunk: Chunk) -> Message:
        index = chunk.partition
        part = self.partitions[index]
        payload = b"".join(map(bytes, chunk.payload))
        assert zlib.crc32(payload) == chunk.crc32
        raw = payload if chunk.codec == coding.RAW else bytes(coding.decode(chunk.codec, payload, chunk.raw_bytes))
        begin, end = chunk.offset, chunk.offset + len(raw)
        assert begin == part.position < end <= part.header.size
        assert len(raw) <= self.chunk_bytes
        assert not any(begin < after and before < end for before, after in part.stored), "a stored byte crosses"
        part.data[begin:end] = raw
        part.sent += raw
        part.position = end
        part.skip()
        self.wire_bytes[index] += len(payload)
        self.weight_bytes[index] += sum(
            max(0, min(end, span.offset + span.size) - max(begin, span.offset)) for span in part.header.blobs
        )
        return Ack(index, part.position)

    def _end(self, end: PartitionEnd) -> Message:
        part = self.partitions[end.partition]
        assert part.position == part.header.size
        assert hashlib.sha256(part.sent).hexdigest() == end.sha256
        part.ready = True
        return Ready(end.partition)

    def keep(self) -> None:
        """Store some of what has come, and lose some of what is stored, as happens between two messages."""
        for part in self.partitions.values():
            for piece in part.header.pieces:
                end = max(offset + size for offset, size in piece.spans)
                if end <= part.position and self._c.integer(0, 2) == 0:
                    self.store[piece.sha256] = b"".join(
                        bytes(part.data[offset : offset + size]) for offset, size in piece.spans
                    )
        for digest in list(self.store):
            if self._c.integer(0, 19) == 0:
                del self.store[digest]

    def check(self) -> None:
        """All floats are right, wherever they came from."""
        for index, content in enumerate(self._contents):
            part = self.partitions[index]
            assert part.ready
            for span in part.header.blobs:
                assert part.data[span.offset :][: span.size] == content[span.offset :][: span.size]
