"""Dividing work by joblib between processes of this machine, which end with the process that they work for."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from multiprocessing import resource_tracker
from typing import Any

from ionn.errors import InputError, IonnError
from ionn.server.orphans import end_with

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def local_workers(jobs: int | None) -> Iterator[None]:
    """Have `as_they_end` use `jobs` processes of this machine, by default one per core."""
    import joblib
    from joblib.externals.loky.backend import resource_tracker as of_joblib

    resource_tracker.ensure_running()  # workers would start it, and it unblocks signals when it starts
    # When a command is interrupted, joblib's tracker removes what is left, and would warn that there was something.
    filters = len(sys.warnoptions)
    sys.warnoptions.append("ignore")
    try:
        of_joblib.ensure_running()
    finally:
        del sys.warnoptions[filters:]
    count = jobs or len(os.sched_getaffinity(0))
    with joblib.parallel_config("loky", n_jobs=count, initializer=end_with, initargs=(os.getpid(),)):
        yield


def as_they_end(calls: Iterable[Any], work: str, again: str) -> Generator[Any, None, None]:
    """The results of calls made by `joblib.delayed`, in the order in which the calls end. Close the generator: calls
    that have not ended are then given up.

    Raises IonnError if a process is killed, and InputError if one cannot load what it is to run. The messages say that
    it was a process of this `work`, and, of one that was killed, how to do it `again`.
    """
    import joblib
    from joblib.externals.loky.process_executor import BrokenProcessPool, TerminatedWorkerError

    try:
        with warnings.catch_warnings(), ExitStack() as stack:
            warnings.filterwarnings("ignore", "[0-9]+ tasks", UserWarning)  # joblib's warning about calls given up
            with _interrupted_later():
                results = stack.enter_context(
                    closing(joblib.Parallel(return_as="generator_unordered", batch_size=1)(calls))
                )
            yield from results
    except TerminatedWorkerError as error:
        raise IonnError(f"a process of {work} was killed; {again}") from error
    except BrokenProcessPool as error:
        *_, why = (line for line in str(error.__cause__ or error).splitlines() if line.strip("\"'"))
        raise InputError(f"a process of {work} cannot load what it is to run: {why[:200]}; use --jobs 1") from error


@contextmanager
def _interrupted_later() -> Iterator[None]:
    """Have signals that come meanwhile take effect afterwards: one that interrupts joblib while it starts processes
    leaves it half-started.

    They are blocked for the workers, which inherit that: Ctrl-C in a terminal reaches them too, and one that is just
    starting would print an error. But the system may hand a signal to any other thread, such as one of numpy's, and
    Python then has this thread handle it. So Python's handlers are replaced, too.
    """
    came: list[int] = []
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    handled_here = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in _SIGNALS if handled_here}
    replaced = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in replaced:
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if came:
        signal.raise_signal(came[0])
