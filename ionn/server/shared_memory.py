"""Memory that the front shares with a session's process: a note, in which the process says what it is doing, and an
inbox, into which the front receives what the process will read."""

from __future__ import annotations

import fcntl
import mmap
import os
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ionn.protocol.buffers import PEEK_BYTES_MAX, untouched

_NOTE_BYTES = 512
# The inputs of the bundled models have a sixth of it.
_INBOX_BYTES = 4 * 1024 * 1024
# The place of a frame that is not in the inbox.
ELSEWHERE = -1


def _allocate(name: str, size: int, at_once: int) -> int:
    """A descriptor of memory, of which the first `at_once` bytes are taken from the system now, and others when they
    are written to. Raises OSError if there is no memory.

    No process can shrink it, because reading beyond its end would kill another one.
    """
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        os.posix_fallocate(descriptor, 0, at_once)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


class Note:
    """A line of text, which the front reads when the session's process has died; both have its `descriptor`."""

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, _NOTE_BYTES)

    @staticmethod
    def allocate() -> int:
        """A descriptor of memory for a note. Raises OSError if there is no memory."""
        return _allocate("note", _NOTE_BYTES, _NOTE_BYTES)

    def write(self, text: str) -> None:
        line = text.encode()[: _NOTE_BYTES - 1]
        self._memory[: len(line) + 1] = line + b"\0"

    def read(self) -> str:
        return self._memory[:].partition(b"\0")[0].decode(errors="replace")

    def close(self) -> None:
        self._memory.close()


class Inbox:
    """The front's end of an inbox, which has room for one frame at a time.

    The session's process can read it by `descriptor`, but not write to it; whoever passes that on closes it. The inbox
    keeps the memory that it has ever needed until nothing refers to it and its frame. Raises OSError if there is no
    memory.
    """

    def __init__(self) -> None:
        # `Incoming.fill` copies bytes into a frame's memory if they arrived with its head. If the system had no memory
        # then, to copy them would kill this process, while to receive the others would only fail.
        descriptor = _allocate("inbox", _INBOX_BYTES, PEEK_BYTES_MAX)
        try:
            self._memory = mmap.mmap(descriptor, _INBOX_BYTES)
            self.descriptor = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(descriptor)
        self._frame: Callable[[], NDArray[np.uint8] | None] = lambda: None

    def take(self, size: int) -> memoryview:
        """Return memory for a frame of `size` bytes: the inbox's, if it has room and nothing refers to its last frame
        any more, or else other memory."""
        if size > _INBOX_BYTES or self._frame() is not None:
            return untouched(size)
        frame = np.frombuffer(self._memory, np.uint8, size)
        self._frame = weakref.ref(frame)
        return frame.data

    def place(self, view: memoryview) -> int:
        """Return where in the inbox `view` begins, if it is of its frame or of the end of its frame, or else
        ELSEWHERE."""
        frame = self._frame()
        owner: Any = view.obj
        return ELSEWHERE if frame is None or owner is not frame else frame.nbytes - view.nbytes


def open_inbox(descriptor: int) -> memoryview:
    """Return the memory of an inbox, for the session's process. Closes the descriptor."""
    try:
        return memoryview(mmap.mmap(descriptor, _INBOX_BYTES, prot=mmap.PROT_READ))
    finally:
        os.close(descriptor)
