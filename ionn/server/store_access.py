"""A session's way to its server's store: what its process asks the store process, and what it gives it to keep.

Over `ask`, a pair of SOCK_SEQPACKET, the session asks and waits, a packet each way: which pieces are stored (HAS and
digests; a byte for each), and for open files of some (OPEN and digests; the bytes of each piece, 0 where it is not
stored, and the descriptors of the others, in order). Over `keep`, a stream, it gives pieces (digest, bytes and these)
and says which stored ones are damaged (digest, 0), without an answer and without waiting.

Whose pieces they are is the store process's to know, by the sockets; nothing here says it. No file is opened here, and
the only socket that descriptors come by is `ask`.
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

from ionn.protocol.messages import PIECE_BYTES_MAX
from ionn.protocol.receiver import BlobRange
from ionn.server.store import DIGEST_BYTES, read_piece

HAS, OPEN = b"h", b"o"
# Digests in a packet. Without root, the system takes packets of 200 kB.
HAS_MAX = 1000
# So many files are open at once: another answer for each would cost as much as reading a small piece.
OPEN_MAX = 8
SIZE = struct.Struct("<I")
PIECE = struct.Struct(f"<{DIGEST_BYTES}sI")

# The store answers in less than a millisecond, from a disk that sleeps in some more. Who waits for longer keeps its
# client waiting, which gives a silent server up after some seconds.
_ANSWER_S = 3.0
# What is given at once, so that a message that comes meanwhile waits for a tenth of a millisecond.
_GIVEN_BYTES = 256 * 1024
# A store that takes nothing for so long is not waited for.
_STUCK_S = 1.0


class _Kept(NamedTuple):
    """A piece that waits to be given: these ranges of `blobs`."""

    digest: bytes
    blobs: list[memoryview]
    ranges: tuple[BlobRange, ...]


class StoreAccess:
    """The session's end. Once the store process has not answered in time, or is gone, nothing is stored for this
    session any more: it is not `alive`. `pending` tells whether something waits to be given, and `ms_per_mb` how long
    it takes to read 10^6 bytes."""

    def __init__(self, ask: socket.socket, keep: socket.socket, ms_per_mb: float = 0.0) -> None:
        for end in (ask, keep):
            end.setblocking(False)
        self._ask, self._keep = ask, keep
        self._damaged: deque[bytes] = deque()
        self._kept: deque[_Kept] = deque()
        self._left = memoryview(b"")  # of what is being given
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
        """A byte for each digest: 1 if that piece is stored."""
        deadline = time.monotonic() + _ANSWER_S
        found = b""
        for begin in range(0, len(digests), HAS_MAX):
            asked = digests[begin : begin + HAS_MAX]
            answer, _ = self._answer(HAS, asked, len(asked), deadline)
            found += answer or bytes(len(asked))
        return found

    def read(self, pieces: Sequence[tuple[bytes, Sequence[memoryview]]]) -> list[int]:
        """Fill the views of each piece, named by its digest, with its bytes; the numbers of those that are not stored,
        or damaged."""
        missing = []
        for begin in range(0, len(pieces), OPEN_MAX):
            batch = pieces[begin : begin + OPEN_MAX]
            with self._opened([digest for digest, _ in batch]) as files:
                for number, ((digest, views), (size, descriptor)) in enumerate(zip(batch, files, strict=True), begin):
                    if descriptor is None:
                        missing.append(number)
                    elif size != sum(map(len, views)) or not read_piece(descriptor, digest, views):
                        self._damaged.append(digest)
                        missing.append(number)
        return missing

    @contextlib.contextmanager
    def _opened(self, digests: Sequence[bytes]) -> Iterator[list[tuple[int, int | None]]]:
        """The bytes and the open file of each piece."""
        answer, descriptors = self._answer(OPEN, digests, SIZE.size * len(digests), time.monotonic() + _ANSWER_S)
        try:
            sizes = [size for (size,) in SIZE.iter_unpack(answer or bytes(SIZE.size * len(digests)))]
            left = deque(descriptors)
            # There may be fewer, where the system has no room for another.
            yield [(size, left.popleft() if size and left else None) for size in sizes]
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _answer(self, kind: bytes, digests: Sequence[bytes], size: int, deadline: float) -> tuple[bytes, list[int]]:
        """An answer of so many bytes, with the descriptors that came with it; none at all where there is none."""
        descriptors: list[int] = []
        if not self.alive:
            return b"", descriptors
        answer = b""
        with contextlib.suppress(OSError):
            os.write(self._ask.fileno(), kind + b"".join(digests))
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

    def keep(self, digest: bytes, blobs: list[memoryview], ranges: tuple[BlobRange, ...]) -> None:
        """Give a piece to the store in some moment: these ranges of `blobs`, as they are then."""
        if self._keeps:
            self._kept.append(_Kept(digest, blobs, ranges))

    def forget(self, blobs: list[memoryview]) -> None:
        """Give nothing of these blobs any more."""
        self._kept = deque(kept for kept in self._kept if kept.blobs is not blobs)

    def give(self, other: int) -> None:
        """Give what is pending, as the store takes it, until there is something to read from descriptor `other`."""
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
        """Give what is pending, for so long at most, and as long as the store takes some of it."""
        deadline = time.monotonic() + within_s
        poll = select.poll()
        if self._keeps:
            poll.register(self._keep, select.POLLOUT)
        while self.pending and time.monotonic() < deadline and poll.poll(_STUCK_S * 1e3):
            self._give()

    def _give(self) -> None:
        """Give some of it now."""
        try:
            if not self._left:
                self._left = memoryview(b"")  # it still refers to what it was of
                self._left = memoryview(self._next())
            count = os.write(self._keep.fileno(), self._left[:_GIVEN_BYTES])
        except BlockingIOError:
            return
        except (OSError, MemoryError):  # the store is gone or takes no more, or there is no memory for the copy
            self._stop_keeping()
            return
        self._left = self._left[count:]

    def _next(self) -> bytes:
        """What is to be given next, as a copy: its memory may be freed meanwhile."""
        if self._damaged:
            return PIECE.pack(self._damaged.popleft(), 0)
        digest, blobs, ranges = self._kept.popleft()
        views = [blobs[blob][begin:end] for blob, begin, end in ranges]
        return b"".join((PIECE.pack(digest, sum(map(len, views))), *views))

    def _stop_keeping(self) -> None:
        self._keep.close()
        self._left = memoryview(b"")
        self._damaged.clear()
        self._kept.clear()


# What the copy of a piece takes of a session's memory.
ACCESS_BYTES = PIECE.size + PIECE_BYTES_MAX


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
