"""The upload of partitions: which message is next, and what the server's answers mean. No sockets here."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence

from ionn.errors import ProtocolError
from ionn.partition import Partition
from ionn.trace import PartitionRecord
from ionn.wire import CHUNK_BYTES, Ack, Chunk, Message, PartitionEnd, PartitionHeader, Pong, Ready, Welcome, make_chunk


class Upload:
    """Partitions on their way to a server, in order. It survives connections: `begin` goes on from what a server holds.

    `ready` is the number of partitions that queries may use now, `sent_bytes` the weights that the server has, `error`
    what ended the upload early. `now_s` is the clock of the records.
    """

    def __init__(self, partitions: Sequence[Partition], now_s: Callable[[], float]) -> None:
        self._partitions = partitions
        self._now_s = now_s
        self._changed = threading.Condition()
        self._started_s = [0.0] * len(partitions)
        self._ended_s = [0.0] * len(partitions)
        self._ready_s: list[float | None] = [None] * len(partitions)
        self._received = [0] * len(partitions)
        self._whole: set[int] = set()
        self._under_way = self._window_bytes = 0
        self._sent = self._answered = self._sent_before_ping = 0  # messages of this connection
        self._messages: Iterator[Message] = iter(())
        self._next: Message | None = None
        self._stopped = False
        self.ready = 0
        self.error: Exception | None = None

    @property
    def sent_bytes(self) -> int:
        return sum(self._received)

    @property
    def ended(self) -> bool:
        """Whether nothing more will become ready."""
        return self._stopped or self.ready == len(self._partitions)

    def wait_ready(self, count: int, timeout_s: float) -> bool:
        """Wait until `count` partitions are ready or the upload has ended; whether they are ready."""
        with self._changed:
            self._changed.wait_for(lambda: self.ready >= count or self._stopped, timeout_s)
        return self.ready >= count

    def records(self, names: Sequence[tuple[str, ...]]) -> list[PartitionRecord]:
        """What was uploaded, each partition as it was the last time; `names` are the stages of each."""
        return [
            PartitionRecord(
                index, names[index], self._partitions[index].caffemodel.size,
                self._started_s[index], self._ended_s[index], ready_s,
            )
            for index, ready_s in enumerate(self._ready_s) if ready_s is not None
        ]  # fmt: skip

    def begin(self, welcome: Welcome) -> None:
        """A connection was made; the welcome says how much of what the server holds."""
        received = {held.partition: held.received for held in welcome.held}
        self._whole = {held.partition for held in welcome.held if held.ready}
        self._received = [received.get(index, 0) for index in range(len(self._partitions))]
        self._under_way, self._window_bytes = 0, welcome.window_bytes
        self._sent = self._answered = self._sent_before_ping = 0
        chunk_bytes = max(1, min(CHUNK_BYTES, welcome.chunk_bytes, welcome.window_bytes))
        self._messages = iter(()) if self._stopped else self._remaining(received, chunk_bytes)
        self._next = None
        self._count_ready()

    def pause(self) -> None:
        """The connection was lost: nothing is ready."""
        self._messages, self._next = iter(()), None
        self._whole = set()
        self._count_ready()

    def stop(self, error: Exception | None = None) -> None:
        """Send nothing more, because of `error` if there is one. What is ready stays so."""
        self._messages, self._next = iter(()), None
        with self._changed:
            self.error = error
            self._stopped = True
            self._changed.notify_all()

    def _count_ready(self) -> None:
        """Those that are whole with all before them; after a loss a later one may be whole before an earlier one."""
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

    def next_message(self) -> Message | None:
        """The next message to send; None while the server's credit is used up, or when all is sent."""
        if self._next is None:
            self._next = next(self._messages, None)
        message = self._next
        if isinstance(message, Chunk):
            size = sum(map(len, message.payload))
            if self._under_way + size > self._window_bytes:
                return None
            self._under_way += size
        self._next = None
        self._sent += message is not None
        return message

    def pinged(self) -> None:
        """A ping follows what was sent so far. The server answers everything, in order."""
        self._sent_before_ping = self._sent

    def _remaining(self, received: dict[int, int], chunk_bytes: int) -> Iterator[Message]:
        for index, partition in enumerate(self._partitions):
            model = partition.caffemodel
            if index in self._whole:
                continue
            start = received.get(index)
            if start is None:
                self._started_s[index] = self._now_s()
                yield PartitionHeader(index, partition.nets, model.blobs, model.size)
            digest = hashlib.sha256()
            for offset, parts in model.chunks(chunk_bytes):
                for part in parts:
                    digest.update(part)
                skip = (start or 0) - offset
                if skip < sum(map(len, parts)):
                    yield make_chunk(index, offset + max(skip, 0), _without(parts, max(skip, 0)))
            yield PartitionEnd(index, digest.hexdigest())

    def take(self, message: Message) -> None:
        """An answer of the server. Raises ProtocolError for one to something that was not sent."""
        if self._stopped:
            return
        now_s = self._now_s()
        if isinstance(message, Pong):
            if self._answered < self._sent_before_ping:
                raise ProtocolError("the server answers a ping, but not what was sent before")
            return
        self._answered += 1
        if isinstance(message, Ack):
            index = message.partition
            if not (
                0 <= index < len(self._received) and 0 <= message.received - self._received[index] <= self._under_way
            ):
                raise ProtocolError(f"the server has {message.received} bytes of partition {index}, it says")
            self._under_way -= message.received - self._received[index]
            self._received[index] = message.received
            if message.received == self._partitions[index].caffemodel.size:
                self._ended_s[index] = now_s
                if index + 1 < len(self._partitions):
                    # Its first chunks may have been queued long before, but the link turns to it only now.
                    self._started_s[index + 1] = max(self._started_s[index + 1], now_s)
        elif isinstance(message, Ready):
            if message.partition != self.ready:
                raise ProtocolError(f"partition {message.partition} is ready, says the server, before {self.ready} is")
            self._ready_s[message.partition] = now_s
            self._whole.add(message.partition)
            self._count_ready()


def _without(parts: Sequence[memoryview], skip: int) -> list[memoryview]:
    """The bytes of `parts` without the first `skip`."""
    rest = []
    for part in parts:
        if skip < len(part):
            rest.append(part[skip:])
        skip = max(0, skip - len(part))
    return rest
