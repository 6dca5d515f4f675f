"""The `ionn` command, and what signals do to it.

Ctrl-C ends it with exit code 130, from its first import until its work is done. SIGTERM ends `serve` and `link`, which
run until they are told to stop, with exit code 0. `run` and `sweep`, which have processes to end, treat SIGTERM like
Ctrl-C.
"""

import codecs
import io
import os
import signal
import sys
import threading
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_INTERRUPTED = "ionn: interrupted\n"
# Longer than it takes to end the processes that a command has started.
_END_S = 15.0


def _end(number: int, frame: FrameType | None) -> None:
    """Raise the exception that ends the command. Further signals are ignored while it ends, as handlers could interrupt
    each other for ever."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    for each in _SIGNALS:
        signal.signal(each, lambda number, frame: None)
    signal.signal(signal.SIGALRM, lambda alarm, frame: _end_at_last(number))
    signal.setitimer(signal.ITIMER_REAL, _END_S)
    threading.excepthook = lambda thread: None  # joblib's threads fail where their processes are ended
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(0)


def _end_at_last(number: int) -> None:
    """End the process if the raised exception has not ended it: Python drops exceptions in finalisers, and one that is
    raised just after a lock was taken leaves it locked for ever. Processes that the command has started end with it."""
    if number == signal.SIGINT:
        os.write(2, _INTERRUPTED.encode())
    os._exit(130 if number == signal.SIGINT else 0)


def open_standard_streams() -> None:
    """Open standard streams that the shell closed (`2>&-`), so that their output is discarded. Otherwise the next file
    or socket would get the stream's number, and with it the messages for the user. Then have any text be printed."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdin = sys.stdin or os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)
    if isinstance(sys.stdout, io.TextIOWrapper):
        codecs.register_error("ionn", _escaped)
        sys.stdout.reconfigure(errors="ionn")


def _escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    """Give a path's bytes that are no text as they are, and what the terminal's encoding lacks in ASCII."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


def main() -> None:
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # shells have background jobs ignore it
        signal.signal(signal.SIGINT, _end)
    try:
        open_standard_streams()
        # Figures are only written to files. Matplotlib cannot be imported while this names no backend that it knows.
        os.environ.pop("MPLBACKEND", None)
        if sys.argv[1:2] in (["serve"], ["link"]):
            signal.signal(signal.SIGTERM, _end)
        if sys.argv[1:2] in (["run"], ["sweep"]):
            signal.signal(signal.SIGTERM, lambda number, frame: _end(signal.SIGINT, frame))
        from ionn.cli import main as command_line

        command_line()
    except KeyboardInterrupt:
        sys.stderr.write(_INTERRUPTED)
        sys.exit(130)
    finally:
        # The exit code is settled, but the interpreter takes a moment to end, so signals are ignored. They are blocked
        # first, because Python reports a signal that comes just when it is told to ignore it.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, 0)  # without its handler, the alarm would be the exit code


if __name__ == "__main__":
    main()
