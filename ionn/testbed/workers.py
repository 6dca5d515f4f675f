"""Dividing work between processes by joblib: those of this machine, which end with the process that they work for, or
those of another backend of joblib."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from multiprocessing import resource_tracker
from typing import Any

from ionn.server.orphans import end_with


@contextmanager
def local_workers(jobs: int | None) -> Iterator[None]:
    """Have `as_they_end` use `jobs` processes of this machine, by default one per core."""
    import joblib

    resource_tracker.ensure_running()  # workers would start it, and it unblocks signals when it starts
    count = jobs or len(os.sched_getaffinity(0))
    with joblib.parallel_config("loky", n_jobs=count, initializer=end_with, initargs=(os.getpid(),)):
        yield


def as_they_end(calls: Iterable[Any]) -> Generator[Any, None, None]:
    """The results of calls made by `joblib.delayed`, in the order in which the calls end. Close the generator: calls
    that have not ended are then given up."""
    import joblib

    with warnings.catch_warnings(), ExitStack() as stack:
        warnings.filterwarnings("ignore", "[0-9]+ tasks", UserWarning)  # joblib's warning about calls given up
        with _interrupted_later():
            results = stack.enter_context(
                closing(joblib.Parallel(return_as="generator_unordered", batch_size=1)(calls))
            )
        yield from results


@contextmanager
def _interrupted_later() -> Iterator[None]:
    """Block signals, which workers inherit: Ctrl-C in a terminal reaches them too, and one that is just starting would
    print an error."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
