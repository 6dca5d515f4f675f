"""A session's access to its server's store: what its process asks the store process, and what it gives it to keep.

Over `ask`, a pair of SOCK_SEQPACKET, the session asks and waits, a packet each way:

    HAS, digests     which pieces are stored: a byte for each
    OPEN, digests    their files: the size of each piece, 0 if it is not stored, and descriptors of the others, in order

Over `keep`, a stream, it gives pieces (digest, size, bytes) and reports stored pieces as damaged (digest, 0), without
an answer and without waiting.

The store process knows by the sockets whose pieces they are; no message says it. No file is opened here, and `ask` is
the only socket by which descriptors come.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import statistics
import struct
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ionn.protocol.messages import DIGEST_BYTES, PIECE_BYTES_MAX
from ionn.protocol.receiver import TargetRange
from ionn.server.store import read_piece

HAS, OPEN = b"h", b"o"
# The most digests in a packet: the system takes packets of 200 kB from users other than root.
HAS_MAX = 1000
# The most files asked for at once: a request for each file would take as long as reading a small piece.
OPEN_MAX = 8
SIZE = struct.Struct("<I")
PIECE = struct.Struct(f"<{DIGEST_BYTES}sI")

# How long the store process may take to answer. It takes less than a millisecond, and more if its disk sleeps. The
# client waits meanwhile, and gives a silent server up after five seconds.
_ANSWER_S = 3.0
# How much is given at once, so that a message that comes meanwhile waits for a tenth of a millisecond.
_GIVEN_BYTES = 256 * 1024
# Buffers offered to the system in one call, which takes only so many.
_VIEWS_AT_ONCE = 64
# How long `finish` waits for a store process that takes nothing.
_STUCK_S = 1.0


class _Kept(NamedTuple):
    """A piece that waits to be given: these ranges of `blobs`."""

    digest: bytes
    blobs: list[memoryview]
    ranges: tuple[TargetRange, ...]


class StoreAccess:
    """The session's end. If the store process has once not answered in time, or has ended, it is not `alive`: it is not
    asked any more, and nothing more is stored for this session. `pending` tells whether something waits to be given,
    and `ms_per_mb` how long it takes to read 10^6 bytes, in ms."""

    def __init__(self, ask: socket.socket, keep: socket.socket, ms_per_mb: float = 0.0) -> None:
        for end in (ask, keep):
            end.setblocking(False)
        self._ask, self._keep = ask, keep
        self._damaged: deque[bytes] = deque()
        self._suspect: dict[bytes, int] = {}  # pieces that were found damaged, with the size that they should have
        self._kept: deque[_Kept] = deque()
        self._left: deque[memoryview] = deque()  # what is left of the piece that is being given
        self._left_of: list[memoryview] | None = None  # the blobs whose memory that is
        self.alive = True
        self.ms_per_mb = ms_per_mb

    @property
    def descriptor(self) -> int:
        """The number of `ask`."""
        return self._ask.fileno()

    def _lose(self) -> None:
        self.alive = False
        self._ask.close()
        self._stop_keeping()

    # --- Asking -------------------------------------------------------------------------------------------------------

    def has(self, digests: Sequence[bytes]) -> bytes:
        """A byte for each digest: 1 if that piece is stored, else 0. A piece that was damaged is read again, because
        the store process may not have removed or replaced it yet."""
        deadline = time.monotonic() + _ANSWER_S
        found = bytearray()
        for begin in range(0, len(digests), HAS_MAX):
            asked = digests[begin : begin + HAS_MAX]
            self._ask_for(HAS, asked)
            answer, _ = self._hear(len(asked), deadline)
            found += answer or bytes(len(asked))
        for number, digest in enumerate(digests):
            if found[number] and digest in self._suspect:
                found[number] = self._is_right(digest)
                if found[number]:
                    del self._suspect[digest]
        return bytes(found)

    def _is_right(self, digest: bytes) -> bool:
        size = self._suspect[digest]
        self._ask_for(OPEN, [digest])
        with self._opened(1) as [(there, descriptor)]:
            return (
                descriptor is not None
                and there == size
                and read_piece(descriptor, digest, [memoryview(bytearray(size))])
            )

    def read(self, pieces: Sequence[tuple[bytes, Sequence[memoryview]]]) -> list[int]:
        """Fill the views of each piece, which is named by its digest, with its bytes. Returns the numbers of those that
        are not stored, or damaged."""
        try:
            return self._read(pieces)
        except BaseException:
            self._lose()  # an answer may still come, and would be taken for another one
            raise

    def _read(self, pieces: Sequence[tuple[bytes, Sequence[memoryview]]]) -> list[int]:
        missing = []
        self._ask_for(OPEN, [digest for digest, _ in pieces[:OPEN_MAX]])
        for begin in range(0, len(pieces), OPEN_MAX):
            end = begin + OPEN_MAX
            with self._opened(len(pieces[begin:end])) as files:
                # The store process opens the next ones while these are read.
                self._ask_for(OPEN, [digest for digest, _ in pieces[end : end + OPEN_MAX]])
                for number, ((digest, views), (size, descriptor)) in enumerate(
                    zip(pieces[begin:end], files, strict=True), begin
                ):
                    if descriptor is None:
                        missing.append(number)
                    elif size != sum(map(len, views)) or not read_piece(descriptor, digest, views):
                        self._damaged.append(digest)
                        self._suspect[digest] = sum(map(len, views))
                        missing.append(number)
                    else:
                        self._suspect.pop(digest, None)
        return missing

    @contextlib.contextmanager
    def _opened(self, count: int) -> Iterator[list[tuple[int, int | None]]]:
        """The size and the open file of each of the `count` pieces that were asked for; no file if it is not stored."""
        answer, descriptors = self._hear(SIZE.size * count, time.monotonic() + _ANSWER_S)
        try:
            sizes = [size for (size,) in SIZE.iter_unpack(answer or bytes(SIZE.size * count))]
            left = deque(descriptors)
            # There may be fewer descriptors than sizes, if this process may have no more.
            yield [(size, left.popleft() if size and left else None) for size in sizes]
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _ask_for(self, kind: bytes, digests: Sequence[bytes]) -> None:
        if self.alive and digests:
            with contextlib.suppress(OSError):  # then no answer comes, which is noticed
                os.write(self._ask.fileno(), kind + b"".join(digests))

    def _hear(self, size: int, deadline: float) -> tuple[bytes, list[int]]:
        """An answer of `size` bytes, with the descriptors that came with it; empty if none comes before `deadline`."""
        answer, descriptors = b"", list[int]()
        if not self.alive:
            return answer, descriptors
        with contextlib.suppress(OSError):
            poll = select.poll()
            poll.register(self._ask, select.POLLIN)
            if poll.poll(max(0.0, deadline - time.monotonic()) * 1e3):
                answer, descriptors, _, _ = socket.recv_fds(self._ask, size + 1, OPEN_MAX)
        if len(answer) != size:
            self._lose()
            answer = b""
        return answer, descriptors

    # --- Keeping ------------------------------------------------------------------------------------------------------

    @property
    def _keeps(self) -> bool:
        return self._keep.fileno() >= 0

    @property
    def pending(self) -> bool:
        return self._keeps and bool(self._left or self._damaged or self._kept)

    def keep(self, digest: bytes, blobs: list[memoryview], ranges: tuple[TargetRange, ...]) -> None:
        """Have a piece given to the store later: these ranges of `blobs`, as they are then."""
        if self._keeps:
            self._kept.append(_Kept(digest, blobs, ranges))

    def forget(self, blobs: list[memoryview]) -> None:
        """Give no more pieces of these blobs, and no longer refer to their memory."""
        self._kept = deque(kept for kept in self._kept if kept.blobs is not blobs)
        self.release(blobs)

    def release(self, blobs: list[memoryview]) -> None:
        """No longer refer to the memory where these blobs have been: copy what is left of the piece being given."""
        if self._left_of is blobs:
            try:
                self._left, self._left_of = deque([memoryview(b"".join(self._left))]), None
            except MemoryError:
                self._stop_keeping()

    def give(self, other: int) -> None:
        """Give what is pending, as fast as the store takes it, until descriptor `other` is readable."""
        poll = select.poll()
        poll.register(other, select.POLLIN)
        if self._keeps:
            poll.register(self._keep, select.POLLOUT)
        while self.pending:
            ready = dict(poll.poll())
            if other in ready:
                return
            self._give()

    def finish(self, within_s: float) -> None:
        """Give what is pending, for `within_s` at most, and only as long as the store takes some of it."""
        deadline = time.monotonic() + within_s
        poll = select.poll()
        if self._keeps:
            poll.register(self._keep, select.POLLOUT)
        while self.pending and time.monotonic() < deadline and poll.poll(_STUCK_S * 1e3):
            self._give()

    def _give(self) -> None:
        """Give some of what is pending now."""
        if not self._left:
            self._begin_next()
        some, size = [], 0
        for view in self._left:
            some.append(view[: _GIVEN_BYTES - size])
            size += len(some[-1])
            if size == _GIVEN_BYTES or len(some) == _VIEWS_AT_ONCE:
                break
        try:
            count = os.writev(self._keep.fileno(), some)
        except BlockingIOError:
            return
        except OSError:  # the store is gone, or takes no more
            self._stop_keeping()
            return
        while self._left and count >= len(self._left[0]):
            count -= len(self._left.popleft())
        if count:
            self._left[0] = self._left[0][count:]

    def _begin_next(self) -> None:
        if self._damaged:
            self._left, self._left_of = deque([memoryview(PIECE.pack(self._damaged.popleft(), 0))]), None
            return
        digest, self._left_of, ranges = self._kept.popleft()
        views = [self._left_of[blob][begin:end] for blob, begin, end in ranges]
        self._left = deque([memoryview(PIECE.pack(digest, sum(map(len, views)))), *views])

    def _stop_keeping(self) -> None:
        self._keep.close()
        self._left, self._left_of = deque(), None
        self._damaged.clear()
        self._kept.clear()


# The memory that a session needs for a copy of a piece that is given, and for one of a piece that is read again.
ACCESS_BYTES = 2 * PIECE_BYTES_MAX


def measured_ms_per_mb() -> float:
    """How long it takes this process to read 10^6 bytes of a piece that the system has in memory, in ms."""
    digest = bytes(DIGEST_BYTES)
    target = memoryview(bytearray(PIECE_BYTES_MAX))
    with open(os.memfd_create("piece"), "w+b", buffering=0) as file:
        file.write(target)
        times_s = []
        for _ in range(5):
            file.seek(0)
            began_s = time.perf_counter()
            read_piece(file.fileno(), digest, [target])
            times_s.append(time.perf_counter() - began_s)
    return round(statistics.median(times_s) * 1e3 / (PIECE_BYTES_MAX / 1e6), 4)
