"""The command line, run as a user does."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Serving(NamedTuple):
    address: str
    pid: int


def ionn(*arguments: str | Path, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ionn", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


@contextlib.contextmanager
def serving(*options: str) -> Iterator[Serving]:
    """A server process at a free port. When the context ends it must still be there, and end well."""
    command = [sys.executable, "-m", "ionn", "serve", "--bind", "tcp://127.0.0.1:0", "--stop-at-eof", *options]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stdout is not None
            yield Serving(process.stdout.readline().strip(), process.pid)
            assert process.poll() is None
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()
