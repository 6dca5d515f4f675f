"""The upload of partitions: which message is next, and what the server's answers mean. No sockets here."""

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

# What a server must grant, in bytes: with less, an upload would hardly end.
CREDIT_BYTES_MIN = 1000
# What is taken of what a server grants, in bytes: half a second of a link of 250 Mbps.
WINDOW_BYTES_MAX = 16 * 1000 * 1000
# Messages under way: servers take 1,000.
_UNDER_WAY_MAX = 500
# What a partition's header may have with its addresses: servers take 1,000 kB by default.
_HEADER_BYTES = 900_000
# What an address has in a header, without its spans and for each span, at most.
_ADDRESS_BYTES, _SPAN_BYTES = 104, 22

# A message, the only right answer to it, and the credit that it takes: the weights in it, as they are sent.
_Step = tuple[Message, Message, int]


def chunk_bytes_of(welcome: Welcome) -> int:
    """The most that a chunk to this server may have, before coding."""
    return min(CHUNK_BYTES, welcome.chunk_bytes, welcome.window_bytes)


def _addressed(bare: PartitionHeader, pieces: Sequence[AddressedSpans]) -> Sequence[AddressedSpans]:
    """The first of a partition's pieces, as many as its header has room for, of which `bare` is the rest."""
    room_bytes = _HEADER_BYTES - len(bare.frames()[0])
    ends = accumulate(_ADDRESS_BYTES + _SPAN_BYTES * len(piece.spans) for piece in pieces)
    return pieces[: sum(end <= room_bytes for end in ends)]


def takes(welcome: Welcome, frame: CodedFrame) -> bool:
    """Tell whether a server takes a coded frame."""
    return frame.codec in welcome.codecs and frame.raw_bytes <= chunk_bytes_of(welcome)


class _Awaited(NamedTuple):
    """An answer that is due, the credit that it gives back, and when what it answers was sent, with how much under
    way."""

    answer: Message
    size: int
    sent_s: float
    under_way_bytes: int


@dataclass
class _Announced:
    """A partition as the server was told of it. `stored` are the numbers of the pieces that the server takes from its
    store, and `gaps` the spans of the caffemodel that are therefore not sent, each (begin, end), ascending and apart.
    While it is `waiting`, the server has not said yet whether it has them all."""

    stored: frozenset[int] = frozenset()
    gaps: tuple[tuple[int, int], ...] = ()
    waiting: bool = False

    def missing_bytes(self, received: int, size: int) -> int:
        """How many bytes are to be sent of a caffemodel of `size` bytes, of which the server has the first ones."""
        return size - received - sum(max(0, end - max(begin, received)) for begin, end in self.gaps)


def _joined(spans: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Spans (offset, size) that do not overlap as (begin, end), ascending, where adjacent ones are one."""
    joined: list[tuple[int, int]] = []
    for offset, size in sorted(spans):
        if joined and joined[-1][1] == offset:
            joined[-1] = joined[-1][0], offset + size
        else:
            joined.append((offset, offset + size))
    return tuple(joined)


class Upload:
    """Partitions on their way to a server, in order. It survives connections: `begin` goes on from what a server holds.
    Weights that are there in a coded form which the server takes go in that form.

    What of them the server's store has, by `store`, is not sent. The server is told of a partition, and says whether it
    has read all of that before the rest of the partition is sent.

    The server answers in order, and what it has to answer is known: anything else is no answer.

    `ready` is the number of partitions that queries may use now, `sent_bytes` the weights that the server has, before
    coding, `error` what ended the upload early. `now_s` is the clock of the records. One that `yields` keeps no more
    under way than the link needs, and sends BESIDE_QUERY_BYTES at most while a query is at the server, what was under
    way when it came included.

    `begun` is the number of partitions of which something was sent, or is about to be: what follows them can be
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
        # The pieces that each partition was announced with, where the server has a store.
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
        self._query: int | None = None  # the one that is at the server
        self._beside_query_bytes = 0  # what may be sent meanwhile
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
        """Tell whether weights are on their way to the server, and not only what has none."""
        return self._under_way_bytes > 0

    @property
    def is_stored(self) -> bool:
        """Tell whether the server's store has all pieces of the partitions that have an address: those that they were,
        or will be, announced with."""
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
        """What of the weights crossed the link, in every attempt, as far as the server acknowledged it."""
        return sum(self._wire_bytes)

    @property
    def ended(self) -> bool:
        """Tell whether nothing more will become ready."""
        return self._stopped or self.ready == len(self._partitions)

    def wait_ready(self, number: int, timeout_s: float) -> bool:
        """Wait until so many partitions are ready or the upload has ended; whether they are ready."""
        with self._changed:
            self._changed.wait_for(lambda: self.ready >= number or self._stopped, timeout_s)
        return self.ready >= number

    def replace_rest(self, begun: int, partitions: Sequence[ExtractedPartition]) -> bool:
        """Upload these partitions in place of all but the first `begun`; whether no other had begun yet. Any thread may
        call this."""
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
        """How many partitions are ready, and what part of each of the others the server does not have yet."""
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
        """The partition that is to be sent now, None after the last."""
        with self._changed:
            if index == len(self._partitions):
                return None
            self.begun = max(self.begun, index + 1)
            return self._partitions[index]

    def records(self, names: Sequence[tuple[str, ...]]) -> list[PartitionRecord]:
        """Return what was uploaded, each partition as it was the last time; `names` are the stages of each."""
        return [
            PartitionRecord(
                index, names[index], self._partitions[index].weight_bytes,
                self._started_s[index], self._ended_s[index], ready_s,
                self._wire_bytes[index], self._stored_bytes(index),
            )
            for index, ready_s in enumerate(self._ready_s) if ready_s is not None
        ]  # fmt: skip

    def _stored_bytes(self, index: int) -> int:
        """What of a partition's weights the server took from its store."""
        return sum(end - begin for begin, end in self._announced.get(index, _Announced()).gaps)

    def begin(self, welcome: Welcome) -> None:
        """A connection was made; the welcome says how much of what the server holds.

        Raises ProtocolError for a welcome with which no upload can go on.
        """
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
            if isinstance(due, Ack) and due.received <= self._received[due.partition]:  # it arrived; the answer did not
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
        """The connection was lost: nothing is ready."""
        self._messages, self._next = iter(()), None
        self._whole = set()
        self._count_ready()

    def go_raw(self) -> bool:
        """Send no coded weights any more, from the next `begin` on; whether some were sent before."""
        may_code, self._may_code = self._may_code, False
        return may_code and self._has_coded

    def stop(self, error: Exception | None = None) -> None:
        """Send nothing more, because of `error` if there is one. What is ready stays so."""
        self._messages, self._next = iter(()), None
        with self._changed:
            self.error = error
            self._stopped = True
            self._changed.notify_all()

    def _count_ready(self) -> None:
        """Count the partitions that are whole with all before them; after a loss a later one may be whole before an
        earlier one."""
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
        """The next message to send; None while the server's credit is used up, or when all is sent.

        `query` is the number of the query that is at the server now, if there is one: an upload that yields may have to
        wait for its end.
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
        """What is to be sent, and None while there is nothing to be sent now: more may follow."""
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
        """Tell of a partition, until the server has all pieces that it is to take from its store."""
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
        """What follows the announcement of a partition, of which the server has the bytes before `start`."""
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
            # Of a frame that is there in part, the rest goes raw.
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
        """An answer of the server, or a sign of life; how many bytes that crossed the link are acknowledged by it. An
        Error says that the server misses pieces which it was to have.

        Raises ProtocolError for any answer but the one that is due.
        """
        if self._stopped or isinstance(message, Pong):
            return 0
        awaited = self._awaited.popleft() if self._awaited else None
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
            self._under_way_bytes -= awaited.size
            self._wire_bytes[index] += awaited.size
            # Beside a query a round trip takes longer, which says nothing about the link.
            if self._yielding is not None and awaited.size and self._query is None:
                self._yielding.acknowledged(awaited.under_way_bytes, now_s - awaited.sent_s)
            self._received[index] = message.received
            if message.received == self._partitions[index].caffemodel.size:
                self._ended_s[index] = now_s
                if index + 1 < len(self._partitions) and index + 1 not in self._whole:
                    # Its first chunks may have been queued long before, but the link turns to it only now.
                    self._started_s[index + 1] = now_s
        elif isinstance(message, Ready):
            self._ready_s[message.partition] = now_s
            self._whole.add(message.partition)
            self._count_ready()
        return awaited.size

    def _miss(self, due: Message, error: Error) -> None:
        """The server's store has not all that a partition was to have from it: the partition is announced anew."""
        announced = self._announced.get(error.partition, _Announced())
        of_it = isinstance(due, Ack) and due.partition == error.partition
        if not (of_it and announced.waiting and error.pieces and announced.stored.issuperset(error.pieces)):
            raise ProtocolError("the server misses pieces of weights that it was not to take from its store, it says")
        addressed = self._addressed[error.partition]
        self._store.miss(addressed[at].sha256 for at in error.pieces)
        del self._announced[error.partition]
        announced.waiting = False
