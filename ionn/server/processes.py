"""The processes that a server's front starts beside itself, as Python programs of their own."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

# The variables of the server's environment that such a process gets: those that its libraries read. Others may be
# secret.
_ENVIRONMENT = ("PATH", "PYTHON", "LD_", "LANG", "LC_", "GLOG_", "OPENBLAS_", "OMP_")
_STOP_S = 2.0
# The most bytes of a packet between the front and such a process; and the most characters of a text that is sent in
# one, of which JSON makes twelve bytes each at most.
PACKET_BYTES_MAX = 65536
TEXT_MAX = 4000


def start_process(
    module: str, end: socket.socket, given: Sequence[Any], stderr: int | None = None
) -> subprocess.Popen[bytes]:
    """Run `main(descriptor)` of a module in a process of its own. It gets this `end` of a pair of sockets, and reads
    the id of this process and what is `given`, pickled, from its standard input. Raises OSError if it cannot be
    started."""
    code = f"import sys; sys.path[:] = {sys.path!r}; from {module} import main; main({end.fileno()})"
    environment = {name: value for name, value in os.environ.items() if name.startswith(_ENVIRONMENT)}
    with open(os.memfd_create("arguments"), "w+b") as arguments:
        pickle.dump((os.getpid(), *given), arguments)
        arguments.seek(0)
        return subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=arguments, stdout=subprocess.DEVNULL, stderr=stderr, pass_fds=[end.fileno()], env=environment,
        )  # fmt: skip


def next_packet(end: socket.socket) -> bytes | None:
    """The next packet from such a process, by an end that does not block; None if there is none. Raises EOFError if the
    process has died."""
    try:
        packet = end.recv(PACKET_BYTES_MAX)
    except BlockingIOError:
        return None
    except ConnectionResetError:
        packet = b""
    if not packet:
        raise EOFError
    return packet


def end_process(process: subprocess.Popen[bytes]) -> None:
    """Wait for a process to end, which has been told to. If it takes too long, kill it and wait as long again: if its
    disk does not answer, it may not end even then, and is left alone."""
    for _ in range(2):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)
            return
        process.kill()
