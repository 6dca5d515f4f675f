"""What a session's process says that it does, where the front reads it when that process has died."""

from __future__ import annotations

import fcntl
import mmap
import os

_NOTE_BYTES = 512


class Note:
    """A line in memory that two processes share, of which both have the `descriptor`."""

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, _NOTE_BYTES)

    @staticmethod
    def allocate() -> int:
        """A descriptor of the memory for a note. Raises OSError where there is none.

        Neither process can make it smaller: to read beyond its end would end the other one.
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
