"""Bytes on their way from and to a socket: received where they stay, sent from where they are. No sockets here but the
one that `Outgoing.send` is given."""

from __future__ import annotations

import ctypes
import itertools
from collections import deque
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np

# Any amount that a protocol looks at before it knows how much follows is smaller.
PEEK_BYTES_MAX = 16 * 1024
# What is received at once, so that one sender does not occupy its receiver.
_AT_ONCE_BYTES = 1024 * 1024
# What holds a buffer beside its bytes.
_BUFFER_COST = 256
# More than the system takes in one call is not offered to it.
_BUFFERS_AT_ONCE = 64


def untouched(size: int) -> memoryview:
    """Memory of so many bytes. Unlike a bytearray's, which is zeroed, it is none of the system's until it is written
    to: what is announced costs nothing until it comes."""
    return np.empty(size, np.uint8).data


def give_back() -> None:
    """Have glibc give freed memory back to the system, of which it keeps as much as was once needed. A millisecond."""
    ctypes.CDLL(None).malloc_trim(0)


class Incoming:
    """Bytes that arrive in any pieces, taken in the amounts that a protocol has.

    Receive into `buffer()` and say with `received` how much; then take what is there with `peek`, `skip` and `fill`.
    What is there is taken before more is received. Small amounts come through a buffer of 16 KiB; large ones are
    received where they stay, so they are not copied.
    """

    def __init__(self, peek_bytes: int = PEEK_BYTES_MAX) -> None:
        self._buffer = memoryview(bytearray(peek_bytes))
        self._start = self._end = 0
        self._target: memoryview | None = None  # what `fill` fills
        self.filled = 0  # so many of its bytes are there

    def __len__(self) -> int:
        """Return how many bytes `peek` can show."""
        return self._end - self._start

    def buffer(self) -> memoryview:
        """Return where the next bytes are to be received: never empty."""
        if self._target is not None:
            return self._target[self.filled : self.filled + _AT_ONCE_BYTES]
        if self._start:
            left = bytes(self._buffer[self._start : self._end])
            self._buffer[: len(left)] = left
            self._start, self._end = 0, len(left)
        return self._buffer[self._end :]

    def received(self, count: int) -> None:
        if self._target is not None:
            self.filled += count
        else:
            self._end += count

    def peek(self, count: int) -> memoryview:
        """The next `count` bytes, or as many as are there; they hold until `buffer` is called."""
        return self._buffer[self._start : min(self._start + count, self._end)]

    def skip(self, count: int) -> None:
        self._start += count

    def fill(self, target: memoryview) -> bool:
        """Tell whether `target` is full of the next bytes; until it is, call this again with the same one."""
        if self._target is None:
            here = self.peek(len(target))
            target[: len(here)] = here
            self.skip(len(here))
            self._target, self.filled = target, len(here)
        full = self.filled == len(target)
        if full:
            self._target = None
        return full


class Sink(Protocol):
    """A socket that does not wait."""

    def sendmsg(self, buffers: Iterable[memoryview], /) -> int: ...


class Outgoing:
    """Buffers that wait for their socket, in order. They must not change meanwhile. `size` is their bytes."""

    def __init__(self) -> None:
        self._views: deque[memoryview] = deque()
        self.size = 0

    @property
    def cost(self) -> int:
        """Return what they weigh in memory, in bytes: small ones weigh more than they have."""
        return self.size + _BUFFER_COST * len(self._views)

    def add(self, buffers: Iterable[Any]) -> None:
        """Any objects with a contiguous buffer."""
        for buffer in buffers:
            view = memoryview(buffer)
            if view.nbytes:
                self._views.append(view.cast("B"))
                self.size += view.nbytes

    def send(self, sock: Sink) -> bool:
        """Send as far as the socket takes it; whether it took any. Raises OSError if the other end is closed."""
        before = self.size
        while self._views:
            try:
                sent = sock.sendmsg(itertools.islice(self._views, _BUFFERS_AT_ONCE))
            except BlockingIOError:
                break
            self.size -= sent
            while self._views and sent >= len(self._views[0]):
                sent -= len(self._views.popleft())
            if sent:
                self._views[0] = self._views[0][sent:]
        return self.size < before

    def clear(self) -> None:
        self._views.clear()
        self.size = 0
