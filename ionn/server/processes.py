"""The processes that a server's front starts by the side of it, as Python programs of their own."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

# What such a process is told of the server's environment: what its libraries go by. The rest may be secret.
_ENVIRONMENT = ("PATH", "PYTHON", "LD_", "LANG", "LC_", "GLOG_", "OPENBLAS_", "OMP_")
_STOP_S = 2.0


def start_process(
    module: str, end: socket.socket, given: Sequence[Any], stderr: int | None = None
) -> subprocess.Popen[bytes]:
    """Run `main(descriptor)` of a module in a process of its own. It has this `end` of a pair of sockets, and finds the
    number of this process and what is `given` on its standard input, pickled. Raises OSError where that cannot be."""
    code = f"import sys; sys.path[:] = {sys.path!r}; from {module} import main; main({end.fileno()})"
    environment = {name: value for name, value in os.environ.items() if name.startswith(_ENVIRONMENT)}
    with open(os.memfd_create("arguments"), "w+b") as arguments:
        pickle.dump((os.getpid(), *given), arguments)
        arguments.seek(0)
        return subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=arguments, stdout=subprocess.DEVNULL, stderr=stderr, pass_fds=[end.fileno()], env=environment,
        )  # fmt: skip


def next_packet(end: socket.socket, bytes_max: int) -> bytes | None:
    """The next packet of such a process, by an end that does not block; None if there is none. Raises EOFError when the
    process has died."""
    try:
        packet = end.recv(bytes_max)
    except BlockingIOError:
        return None
    except ConnectionResetError:
        packet = b""
    if not packet:
        raise EOFError
    return packet


def end_process(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end of a process that has been told to, kill it when it takes longer, and leave it when it takes as
    long again: not even that ends one whose disk does not answer."""
    for _ in range(2):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)
            return
        process.kill()
