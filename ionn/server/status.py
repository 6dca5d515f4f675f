"""What a session's process says that it is doing, in memory that the front reads when the process has died."""

from __future__ import annotations

import fcntl
import mmap
import os

_NOTE_BYTES = 512


class Note:
    """A line of text in memory that two processes share; both have its `descriptor`."""

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, _NOTE_BYTES)

    @staticmethod
    def allocate() -> int:
        """A descriptor of memory for a note. Raises OSError if there is no memory.

        Neither process can shrink it, because reading beyond its end would kill the other one.
        """
        descriptor = os.memfd_create("note", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(descriptor, 0, _NOTE_BYTES)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def write(self, text: str) -> None:
        line = text.encode()[: _NOTE_BYTES - 1]
        self._memory[: len(line) + 1] = line + b"\0"

    def read(self) -> str:
        return self._memory[:].partition(b"\0")[0].decode(errors="replace")

    def close(self) -> None:
        self._memory.close()
