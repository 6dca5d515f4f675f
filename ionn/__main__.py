"""The `ionn` command. From its first import on, and until its work is done, Ctrl-C ends it with exit code 130; `serve`
and `link`, which run until they are told to stop, end with 0 at SIGTERM; `sweep`, which has processes to end, takes it
for Ctrl-C."""

import os
import signal
import sys
import threading
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_INTERRUPTED = "ionn: interrupted\n"
# Longer than what ends the processes that a command has started.
_END_S = 15.0


def _end(number: int, frame: FrameType | None) -> None:
    """Raise what ends the command, once: to be told so again while it ends changes nothing, nor does it keep it from
    ending: handlers would interrupt each other for ever."""
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
    """End the process if what was raised has not: Python drops exceptions that come in a finaliser, and one that comes
    just when a lock has been taken leaves it locked for ever. Processes that a command has started end with it."""
    if number == signal.SIGINT:
        os.write(2, _INTERRUPTED.encode())
    os._exit(130 if number == signal.SIGINT else 0)


def _open_standard_streams() -> None:
    """Where the shell closed one (`2>&-`), the next file or socket would get its number, and what is said to people
    would go there. It goes nowhere instead."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdin = sys.stdin or os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)


def main() -> None:
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as a shell has it for jobs in the background
        signal.signal(signal.SIGINT, _end)
    try:
        _open_standard_streams()
        if sys.argv[1:2] in (["serve"], ["link"]):
            signal.signal(signal.SIGTERM, _end)
        if sys.argv[1:2] == ["sweep"]:
            signal.signal(signal.SIGTERM, lambda number, frame: _end(signal.SIGINT, frame))
        from ionn.cli import main as command_line

        command_line()
    except KeyboardInterrupt:
        sys.stderr.write(_INTERRUPTED)
        sys.exit(130)
    finally:
        # The interpreter takes a moment to end, without handlers for signals. By now the exit code is settled. They are
        # blocked first, as Python reports one that comes just when it is told to ignore it.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, 0)  # without its handler, the alarm would be the exit code


if __name__ == "__main__":
    main()
