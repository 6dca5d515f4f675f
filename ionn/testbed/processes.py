"""The processes of the live testbed: a server, and a link in front of it."""

from __future__ import annotations

import contextlib
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ionn.errors import IonnError
from ionn.testbed.settings import Settings

# A process announces its address within this time, which includes loading Caffe, also on a machine that is busy or
# small. One that ends before is noticed at once.
_START_S = 120.0
_STOP_S = 5.0


@contextlib.contextmanager
def process(*arguments: str, within: Sequence[str] = ()) -> Iterator[str]:
    """Run `ionn ARGUMENTS` (serve or link) while the context lasts, and yield the address that it announces on its
    standard output. It ends with this process, however this one ends.

    `within` is the beginning of its command line, for example a command that enters another network namespace.
    """
    with _process(arguments, within) as (address, _):
        yield address


@contextlib.contextmanager
def _process(arguments: Sequence[str], within: Sequence[str] = ()) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Do as `process`, and yield the process too."""
    command = [*within, sys.executable, "-m", "ionn", *arguments, "--stop-at-eof"]
    pipe = subprocess.PIPE
    child: subprocess.Popen[str] | None = None
    try:
        with uninterrupted():
            # In a group of its own, so that Ctrl-C reaches only this process, which then ends the other.
            child = subprocess.Popen(command, stdout=pipe, stdin=pipe, text=True, process_group=0)
        assert child.stdout is not None
        readable, _, _ = select.select([child.stdout], [], [], _START_S)
        if not readable:
            raise IonnError(f"'ionn {' '.join(arguments)}' was not ready within {_START_S:.0f} s")
        address = child.stdout.readline().strip()
        if not address:
            raise IonnError(f"'ionn {' '.join(arguments)}' ended before it was ready (exit code {child.wait()})")
        yield address, child
    finally:
        if child is not None:
            child.terminate()
            try:
                child.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Put off the signals whose handlers may raise an exception until the context ends. Only the main thread gets
    signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, frame: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
        if came:
            signal.raise_signal(came[0])


@dataclass(frozen=True)
class Testbed:
    """A server and a link in front of it. Clients connect to `address`; `begin` has the link's bandwidth and delays
    begin anew, as at the start of a run."""

    address: str
    begin: Callable[[], None]


@contextlib.contextmanager
def start_testbed(settings: Settings, costs: Path | None = None, link: Path | None = None) -> Iterator[Testbed]:
    """A testbed for live runs with these settings, for as long as the context lasts. `costs` is the file with the costs
    that the server sends to its clients, and `link` the file with the link's bandwidth over time."""
    told = [] if costs is None else ["--costs", str(costs)]
    rate = ["--mbps", str(settings.mbps)] if link is None else ["--trace", str(link)]
    options = {
        "--delay-ms": settings.delay_ms, "--jitter-ms": settings.jitter_ms, "--seed": settings.seed,
        "--dilation": settings.dilation,
    }  # fmt: skip
    rest = [text for option, value in options.items() for text in (option, str(value))]
    with (
        process("serve", "--bind", "tcp://127.0.0.1:0", *told) as server,
        _process(["link", "--listen", "tcp://127.0.0.1:0", "--to", server, *rate, *rest]) as (address, child),
    ):
        yield Testbed(address, lambda: child.send_signal(signal.SIGUSR1))
