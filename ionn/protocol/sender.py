"""The upload of partitions: which message is sent next, and what the server's answers mean. No sockets here."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, count, pairwise
from typing import NamedTuple

from ionn.errors import ProtocolError
from ionn.model.caffemodel import CodedFrame
from ionn.model.partial_net import AddressedSpans, ExtractedPartition
from ionn.protocol.messages import (
    CHUNK_BYTES,
    Ack,
    AddressedPiece,
    Error,
    Held,
    Message,
    PartitionEnd,
    PartitionHeader,
    Pong,
    Ready,
    Welcome,
    make_chunk,
)
from ionn.protocol.stored import Stored
from ionn.protocol.yielding import BESIDE_QUERY_BYTES, YieldingWindow
from ionn.records import PartitionRecord

# The least chunk and window, in bytes, with which a client uploads: with less, an upload would take for ever.
CREDIT_BYTES_MIN = 1000
# The most that a client uses of a server's window, in bytes: half a second of a link of 250 Mbps.
WINDOW_BYTES_MAX = 16 * 1000 * 1000
# The most messages under way. The window does not bound them, since headers and ends take no credit.
_UNDER_WAY_MAX = 500
# The most bytes of a partition's header with its pieces: servers take 1,000 kB by default.
_HEADER_BYTES = 900_000
# The most bytes that a piece has in a header: without its spans, and for each span.
_ADDRESS_BYTES, _SPAN_BYTES = 104, 22

# A message, the only right answer to it, and the credit that it takes: the bytes of its weights, as they are sent.
_Step = tuple[Message, Message, int]


def chunk_bytes_of(welcome: Welcome) -> int:
    """The most bytes, before coding, that a chunk to this server may have."""
    return min(CHUNK_BYTES, welcome.chunk_bytes, welcome.window_bytes)


def _addressed(bare: PartitionHeader, pieces: Sequence[AddressedSpans]) -> Sequence[AddressedSpans]:
    """The first of a partition's pieces, as many as fit into its header; `bare` is the header without pieces."""
    room_bytes = _HEADER_BYTES - len(bare.frames()[0])
    ends = accumulate(_ADDRESS_BYTES + _SPAN_BYTES * len(piece.spans) for piece in pieces)
    return pieces[: sum(end <= room_bytes for end in ends)]


def takes(welcome: Welcome, frame: CodedFrame) -> bool:
    """Tell whether a server takes a coded frame."""
    return frame.codec in welcome.codecs and frame.raw_bytes <= chunk_bytes_of(welcome)


class _Awaited(NamedTuple):
    """The `answer` that is due to a message, the credit (`size`) that it gives back, when the message was sent, and how
    many bytes were under way then, its own included."""

    answer: Message
    size: int
    sent_s: float
    under_way_bytes: int


@dataclass
class _Announced:
    """A partition as it was announced. `stored` are the numbers of the pieces that the server takes from its store, and
    `gaps` the spans of the caffemodel that are therefore not sent, each (begin, end), ascending and not adjacent. While
    it is `waiting`, the server has not said yet whether it has all these pieces."""

    stored: frozenset[int] = frozenset()
    gaps: tuple[tuple[int, int], ...] = ()
    waiting: bool = False

    def missing_bytes(self, received: int, size: int) -> int:
        """How many bytes of a caffemodel of `size` bytes are still to be sent when the server has `received`."""
        return size - received - sum(max(0, end - max(begin, received)) for begin, end in self.gaps)


def _joined(spans: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Spans (offset, size), which do not overlap, as (begin, end), ascending. Adjacent ones are joined."""
    joined: list[tuple[int, int]] = []
    for offset, size in sorted(spans):
        if joined and joined[-1][1] == offset:
            joined[-1] = joined[-1][0], offset + size
        else:
            joined.append((offset, offset + size))
    return tuple(joined)


class Upload:
    """The upload of partitions to a server, in order. It outlives connections: `begin` continues from what the server
    holds. Weights with a coded form that the server takes are sent in that form.

    Weight pieces that the server's store has, according to `store`, are not sent. If a partition has any, its chunks
    wait until the server has answered that it has read them.

    The server answers in order, and the right answer to each message is known; `take` accepts no other.

    `ready` is the number of partitions that queries may use now, `sent_bytes` the bytes of caffemodels that the server
    has, before coding, and `error` what ended the upload early. `now_s` is the clock of the records. An upload that
    `yields` keeps no more under way than the link needs; while a query is at the server, it sends at most
    BESIDE_QUERY_BYTES, less what was under way when the query came.

    `begun` is the number of partitions of which something was sent, or is about to be sent. Those that follow can be
    replaced.
    """

    def __init__(
        self,
        partitions: Sequence[ExtractedPartition],
        now_s: Callable[[], float],
        yields: bool = False,
        store: Stored | None = None,
    ) -> None:
        self._partitions = list(partitions)
        self._store = store or Stored()
        self._announced: dict[int, _Announced] = {}
        # The pieces that each partition was announced with, if the server has a store.
        self._addressed: dict[int, Sequence[AddressedSpans]] = {}
        self._now_s = now_s
        self._changed = threading.Condition()
        self._started_s = [0.0] * len(partitions)
        self._ended_s = [0.0] * len(partitions)
        self._ready_s: list[float | None] = [None] * len(partitions)
        self._received = [0] * len(partitions)
        self._wire_bytes = [0] * len(partitions)
        self._whole: set[int] = set()
        self._under_way_bytes = self._window_bytes = 0
        self._yielding = YieldingWindow() if yields else None
        self._query: int | None = None  # the query that is at the server
        self._beside_query_bytes = 0  # what may still be sent beside it
        self._awaited: deque[_Awaited] = deque()
        self._may_code, self._has_coded = True, False
        self._messages: Iterator[_Step | None] = iter(())
        self._next: _Step | None = None
        self._stopped = False
        self.ready = self.begun = 0
        self.error: Exception | None = None

    @property
    def under_way(self) -> bool:
        """Tell whether an answer is due."""
        return bool(self._awaited)

    @property
    def weights_under_way(self) -> bool:
        """Tell whether chunks are on their way to the server, not only headers and ends."""
        return self._under_way_bytes > 0

    @property
    def is_stored(self) -> bool:
        """Tell whether the server's store has all pieces that the partitions were, or will be, announced with."""
        return all(
            piece.sha256 in self._store.pieces
            for index, partition in enumerate(self._partitions)
            for piece in self._addressed.get(index, partition.addressed)
        )

    @property
    def sent_bytes(self) -> int:
        return sum(self._received)

    @property
    def wire_bytes(self) -> int:
        """Return how many bytes of weights crossed the link in all attempts, as far as the server acknowledged them."""
        return sum(self._wire_bytes)

    @property
    def ended(self) -> bool:
        """Tell whether nothing more will become ready."""
        return self._stopped or self.ready == len(self._partitions)

    def wait_ready(self, number: int, timeout_s: float) -> bool:
        """Wait until `number` partitions are ready or the upload has ended; whether they are ready."""
        with self._changed:
            self._changed.wait_for(lambda: self.ready >= number or self._stopped, timeout_s)
        return self.ready >= number

    def replace_rest(self, begun: int, partitions: Sequence[ExtractedPartition]) -> bool:
        """Upload these partitions in place of all but the first `begun`, unless another one has begun already; whether
        that was done. Any thread may call this."""
        with self._changed:
            if self.begun != begun or self._stopped:
                return False
            self._partitions[begun:] = partitions
            for values in (self._started_s, self._ended_s):
                values[begun:] = [0.0] * len(partitions)
            self._ready_s[begun:] = [None] * len(partitions)
            for counts in (self._received, self._wire_bytes):
                counts[begun:] = [0] * len(partitions)
        return True

    def unsent(self) -> tuple[int, list[float]]:
        """How many partitions are ready, and which share of each of the others is still to be sent."""
        with self._changed:
            sizes = [partition.caffemodel.size for partition in self._partitions]
            shares = []
            for index in range(self.ready, len(sizes)):
                announced, size = self._announced.get(index, _Announced()), sizes[index]
                all_bytes = announced.missing_bytes(0, size)
                left_bytes = announced.missing_bytes(self._received[index], size)
                shares.append(left_bytes / all_bytes if all_bytes else 0.0)
            return self.ready, shares

    def _turn_to(self, index: int) -> ExtractedPartition | None:
        """The partition of this index, which is sent now; None after the last."""
        with self._changed:
            if index == len(self._partitions):
                return None
            self.begun = max(self.begun, index + 1)
            return self._partitions[index]

    def records(self, names: Sequence[tuple[str, ...]]) -> list[PartitionRecord]:
        """Return the records of the partitions that became ready, each as it was uploaded last. `names` are the names
        of each partition's stages."""
        return [
            PartitionRecord(
                index, names[index], self._partitions[index].weight_bytes,
                self._started_s[index], self._ended_s[index], ready_s,
                self._wire_bytes[index], self._stored_bytes(index),
            )
            for index, ready_s in enumerate(self._ready_s) if ready_s is not None
        ]  # fmt: skip

    def _stored_bytes(self, index: int) -> int:
        """How many bytes of a partition's weights the server took from its store."""
        return sum(end - begin for begin, end in self._announced.get(index, _Announced()).gaps)

    def begin(self, welcome: Welcome) -> None:
        """Continue on a new connection, from what the welcome says that the server holds. Raises ProtocolError for a
        welcome with which the upload cannot continue."""
        if chunk_bytes_of(welcome) < CREDIT_BYTES_MIN:
            raise ProtocolError(
                f"the server takes {chunk_bytes_of(welcome)} bytes at a time, less than {CREDIT_BYTES_MIN}"
            )
        held = {each.partition: each for each in welcome.held}
        if len(held) < len(welcome.held) or not all(map(self._may_be_held, welcome.held)):
            raise ProtocolError("the server holds what it was never sent, it says")
        self._whole = {index for index, each in held.items() if each.ready}
        for announced in self._announced.values():
            announced.waiting = False
        with self._changed:
            self._received = [held[index].received if index in held else 0 for index in range(len(self._partitions))]
        for awaited in self._awaited:
            due = awaited.answer
            if isinstance(due, Ack) and due.received <= self._received[due.partition]:  # only the answer was lost
                self._wire_bytes[due.partition] += awaited.size
        self._under_way_bytes, self._window_bytes = 0, min(welcome.window_bytes, WINDOW_BYTES_MAX)
        self._awaited.clear()
        started = {index: each.received for index, each in held.items()}
        self._messages = iter(()) if self._stopped else self._remaining(started, welcome)
        self._next = None
        self._count_ready()

    def _may_be_held(self, held: Held) -> bool:
        if held.partition >= len(self._partitions):
            return False
        size = self._partitions[held.partition].caffemodel.size
        gaps = self._announced.get(held.partition, _Announced()).gaps
        between = held.received <= size and not any(begin <= held.received < end for begin, end in gaps)
        return held.received == size if held.ready else between

    def pause(self) -> None:
        """Note that the connection was lost: nothing is ready, and nothing is sent before the next `begin`."""
        self._messages, self._next = iter(()), None
        self._whole = set()
        self._count_ready()

    def go_raw(self) -> bool:
        """Send weights raw from the next `begin` on; whether coded ones may have been sent until now."""
        may_code, self._may_code = self._may_code, False
        return may_code and self._has_coded

    def stop(self, error: Exception | None = None) -> None:
        """Send nothing more, because of `error` if there is one. What is ready stays ready."""
        self._messages, self._next = iter(()), None
        with self._changed:
            self.error = error
            self._stopped = True
            self._changed.notify_all()

    def _count_ready(self) -> None:
        """Count the first partitions that are all whole. (After a loss, a later one may be whole before an earlier
        one.)"""
        ready = next(
            (index for index in range(len(self._partitions)) if index not in self._whole), len(self._partitions)
        )
        now_s = self._now_s()
        for index in range(ready):
            self._ended_s[index] = self._ended_s[index] or now_s
            self._ready_s[index] = self._ready_s[index] or now_s
        with self._changed:
            self.ready = ready
            self._changed.notify_all()

    def next_message(self, query: int | None = None) -> Message | None:
        """The next message to send; None while it has to wait for credit or an answer, and when all is sent.

        `query` is the number of the query that is at the server now, if there is one: an upload that yields may have to
        wait until it has ended.
        """
        if self._next is None:
            self._next = next(self._messages, None)
        step = self._next
        if step is None or len(self._awaited) >= _UNDER_WAY_MAX:
            return None
        message, answer, size = step
        if query != self._query:
            self._query, self._beside_query_bytes = query, BESIDE_QUERY_BYTES - self._under_way_bytes
        if self._under_way_bytes + size > self._window_bytes:
            return None
        if self._yielding is not None:
            if self._under_way_bytes + size > self._yielding.bytes or (
                query is not None and size > self._beside_query_bytes
            ):
                return None
            self._beside_query_bytes -= size
        self._under_way_bytes += size
        self._awaited.append(_Awaited(answer, size, self._now_s(), self._under_way_bytes))
        self._next = None
        return message

    def _remaining(self, started: Mapping[int, int], welcome: Welcome) -> Iterator[_Step | None]:
        """The messages that are left to send; None while there is nothing to send, but may be later."""
        for index in count():
            while (partition := self._turn_to(index)) is None:
                yield None
            if index in self._whole:
                continue
            if index not in started:
                self._started_s[index] = self._now_s()
                yield from self._announce(index, partition, welcome)
            yield from self._chunks(index, partition, started.get(index, 0), welcome)

    def _announce(self, index: int, partition: ExtractedPartition, welcome: Welcome) -> Iterator[_Step | None]:
        """Announce a partition, again and again until the server has all pieces that it is to take from its store."""
        model = partition.caffemodel
        bare = PartitionHeader(index, partition.nets, model.blobs, model.size)
        addressed: Sequence[AddressedSpans] = ()
        if welcome.stores:
            addressed = self._addressed[index] = _addressed(bare, partition.addressed)
        while True:
            stored = frozenset(at for at, piece in enumerate(addressed) if self._store.may_be_taken(piece.sha256))
            gaps = _joined(span for at in stored for span in addressed[at].spans)
            announced = self._announced[index] = _Announced(stored, gaps, bool(stored))
            pieces = tuple(AddressedPiece(*piece, at in stored) for at, piece in enumerate(addressed))
            yield replace(bare, pieces=pieces), Ack(index, gaps[0][1] if gaps and gaps[0][0] == 0 else 0), 0
            while announced.waiting:
                yield None
            if self._announced.get(index) is announced:
                return

    def _chunks(self, index: int, partition: ExtractedPartition, start: int, welcome: Welcome) -> Iterator[_Step]:
        """The chunks and the end of an announced partition, of which the server has the bytes before `start`."""
        model, gaps = partition.caffemodel, self._announced.get(index, _Announced()).gaps
        digest = hashlib.sha256()
        frames = {frame.offset: frame for frame in model.coded if self._may_code and takes(welcome, frame)}
        inner = (end for frame in frames.values() for end in (frame.offset, frame.end))
        ends = sorted({start, *inner, *(begin for begin, _ in gaps)})
        chunks = model.chunks(chunk_bytes_of(welcome), ends, gaps)
        for (offset, parts), (received, _) in pairwise(chain(chunks, [(model.size, ())])):
            for part in parts:
                digest.update(part)
            if offset < start:
                continue
            # If the server has a part of a coded frame, the rest of it goes raw.
            frame = frames.get(offset)
            coded = frame.read() if frame else None
            if frame is not None and coded is not None:
                self._has_coded = True
                chunk = make_chunk(index, offset, [coded], frame.codec, frame.raw_bytes)
            else:
                chunk = make_chunk(index, offset, parts)
            yield chunk, Ack(index, received), sum(map(len, chunk.payload))
        yield PartitionEnd(index, digest.hexdigest()), Ready(index), 0

    def take(self, message: Message) -> int:
        """Take an answer of the server, which may be a Pong; how many bytes on the wire it acknowledges. An Error says
        that the server's store lacks pieces that it should have.

        Raises ProtocolError for any answer but the one that is due. An upload that was stopped takes any answer, as the
        server may refuse all that was under way.
        """
        if isinstance(message, Pong):
            return 0
        awaited = self._awaited.popleft() if self._awaited else None
        if awaited is not None:
            self._under_way_bytes -= awaited.size
        if self._stopped:
            return 0
        if awaited is not None and isinstance(message, Error):
            self._miss(awaited.answer, message)
            return 0
        if awaited is None or message != awaited.answer:
            raise ProtocolError(f"the server's answer, '{message.type}', is not to what it was sent")
        now_s = self._now_s()
        if isinstance(message, Ack):
            index = message.partition
            if index in self._announced:
                self._announced[index].waiting = False
            self._wire_bytes[index] += awaited.size
            # Beside a query a round trip takes longer, whatever the link is.
            if self._yielding is not None and awaited.size and self._query is None:
                self._yielding.acknowledged(awaited.under_way_bytes, now_s - awaited.sent_s)
            self._received[index] = message.received
            if message.received == self._partitions[index].caffemodel.size:
                self._ended_s[index] = now_s
                with self._changed:
                    if index + 1 < len(self._partitions) and index + 1 not in self._whole:
                        # Its first chunks may have been sent long before, but the link carries them only now.
                        self._started_s[index + 1] = now_s
        elif isinstance(message, Ready):
            self._ready_s[message.partition] = now_s
            self._whole.add(message.partition)
            self._count_ready()
        return awaited.size

    def _miss(self, due: Message, error: Error) -> None:
        """Have a partition announced again, as the server's store lacks pieces of it. Raises ProtocolError if the error
        is not about pieces that the server was to take from its store."""
        announced = self._announced.get(error.partition, _Announced())
        of_it = isinstance(due, Ack) and due.partition == error.partition
        if not (of_it and announced.waiting and error.pieces and announced.stored.issuperset(error.pieces)):
            raise ProtocolError("the server misses pieces of weights that it was not to take from its store, it says")
        addressed = self._addressed[error.partition]
        self._store.miss(addressed[at].sha256 for at in error.pieces)
        del self._announced[error.partition]
        announced.waiting = False
