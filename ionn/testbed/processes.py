"""The processes of the live testbed: a server, and a link in front of it."""

from __future__ import annotations

import contextlib
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from ionn.errors import IonnError

# A process says where it listens within this time, Caffe's start included.
_START_S = 30.0
_STOP_S = 5.0


@contextlib.contextmanager
def process(*arguments: str, within: Sequence[str] = ()) -> Iterator[str]:
    """Run `ionn ARGUMENTS` (serve or link) beside this process, and no longer than it, however it ends; the address
    that it announces on its standard output.

    `within` is what its command line begins with, for example the command that enters another network.
    """
    command = [*within, sys.executable, "-m", "ionn", *arguments, "--stop-at-eof"]
    pipe = subprocess.PIPE
    child: subprocess.Popen[str] | None = None
    try:
        with _uninterrupted():
            # In a group of its own: a Ctrl-C is for this process, which then ends the other.
            child = subprocess.Popen(command, stdout=pipe, stdin=pipe, text=True, process_group=0)
        assert child.stdout is not None
        readable, _, _ = select.select([child.stdout], [], [], _START_S)
        if not readable:
            raise IonnError(f"'ionn {' '.join(arguments)}' was not ready within {_START_S:.0f} s")
        address = child.stdout.readline().strip()
        if not address:
            raise IonnError(f"'ionn {' '.join(arguments)}' ended before it was ready (exit code {child.wait()})")
        yield address
    finally:
        if child is not None:
            child.terminate()
            try:
                child.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Signals whose handlers may raise come when the block has ended. Threads but the main one have none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, frame: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
        if came:
            signal.raise_signal(came[0])


@contextlib.contextmanager
def start_testbed(mbps: float, costs: Path | None = None) -> Iterator[str]:
    """A server and a link of `mbps` in front of it, for as long as the context lasts: the address clients connect to.

    `costs` is the file of the cost model or profile that the server sends to its clients.
    """
    told = [] if costs is None else ["--costs", str(costs)]
    with (
        process("serve", "--bind", "tcp://127.0.0.1:0", *told) as server,
        process("link", "--listen", "tcp://127.0.0.1:0", "--to", server, "--mbps", str(mbps)) as link,
    ):
        yield link
