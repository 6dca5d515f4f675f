"""Bytes on their way from and to a socket, with as few copies as possible. The only socket here is the one that
`Outgoing.send` is given."""

from __future__ import annotations

import ctypes
import itertools
from collections import deque
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np

# The most bytes that a protocol may look at before it knows how many follow.
PEEK_BYTES_MAX = 16 * 1024
# The most bytes received in one call, so that one sender does not occupy its receiver.
_AT_ONCE_BYTES = 1024 * 1024
# The memory of the objects that hold a buffer, in bytes.
_BUFFER_COST = 256
# Buffers offered to the system in one call, which takes only so many.
_BUFFERS_AT_ONCE = 64


def untouched(size: int) -> memoryview:
    """Memory of so many bytes. A bytearray's is zeroed and so taken from the system at once; this is taken when it is
    written to. So bytes that are only announced cost nothing."""
    return np.empty(size, np.uint8).data


def give_back() -> None:
    """Have glibc return freed memory to the system, which it otherwise keeps. Takes a millisecond."""
    ctypes.CDLL(None).malloc_trim(0)


class Incoming:
    """Bytes that arrive in any pieces, and are taken in the amounts that a protocol prescribes.

    Receive into `buffer()`, and tell `received` how many bytes came; then take them with `peek`, `skip` and `fill`
    before receiving more. Small amounts pass through a buffer of 16 KiB; large ones are received directly into the
    target of `fill`, so they are not copied.
    """

    def __init__(self, peek_bytes: int = PEEK_BYTES_MAX) -> None:
        self._buffer = memoryview(bytearray(peek_bytes))
        self._start = self._end = 0
        self._target: memoryview | None = None  # what `fill` fills
        self._filled = 0  # how many bytes of it have arrived

    def __len__(self) -> int:
        """Return how many bytes `peek` can show."""
        return self._end - self._start

    def buffer(self) -> memoryview:
        """Return where to receive the next bytes: never empty."""
        if self._target is not None:
            return self._target[self._filled : self._filled + _AT_ONCE_BYTES]
        if self._start:
            left = bytes(self._buffer[self._start : self._end])
            self._buffer[: len(left)] = left
            self._start, self._end = 0, len(left)
        return self._buffer[self._end :]

    def received(self, count: int) -> None:
        if self._target is not None:
            self._filled += count
        else:
            self._end += count

    def peek(self, count: int) -> memoryview:
        """The next `count` bytes, or as many as have arrived; valid until `buffer` is called."""
        return self._buffer[self._start : min(self._start + count, self._end)]

    def skip(self, count: int) -> None:
        self._start += count

    def fill(self, target: memoryview) -> bool:
        """Put the next bytes into `target`; whether it is full. Until it is, call this again with the same target."""
        if self._target is None:
            here = self.peek(len(target))
            target[: len(here)] = here
            self.skip(len(here))
            self._target, self._filled = target, len(here)
        full = self._filled == len(target)
        if full:
            self._target = None
        return full


class Sink(Protocol):
    """A socket that does not block."""

    def sendmsg(self, buffers: Iterable[memoryview], /) -> int: ...


class Outgoing:
    """Buffers that wait to be sent, in order. They must not change meanwhile. `size` is the sum of their bytes."""

    def __init__(self) -> None:
        self._views: deque[memoryview] = deque()
        self.size = 0

    @property
    def cost(self) -> int:
        """Return how much memory they take, in bytes, with the objects that hold them."""
        return self.size + _BUFFER_COST * len(self._views)

    def add(self, buffers: Iterable[Any]) -> None:
        """Append buffers: any objects with a contiguous buffer."""
        for buffer in buffers:
            view = memoryview(buffer)
            if view.nbytes:
                self._views.append(view.cast("B"))
                self.size += view.nbytes

    def send(self, sock: Sink) -> bool:
        """Send as much as the socket takes; whether it took any. Raises OSError if the other end is closed."""
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
