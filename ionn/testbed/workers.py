"""Sharing work between processes by joblib: on this machine, where they end with the process that they work for, or
wherever a backend of joblib has them."""

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
    """Have `as_they_end` use processes of this machine, by default as many as it has cores."""
    import joblib

    resource_tracker.ensure_running()  # which workers want, and which lets signals through when it starts
    count = jobs or len(os.sched_getaffinity(0))
    with joblib.parallel_config("loky", n_jobs=count, initializer=end_with, initargs=(os.getpid(),)):
        yield


def as_they_end(calls: Iterable[Any]) -> Generator[Any, None, None]:
    """What comes of calls, which `joblib.delayed` makes, in the order in which they end. Close it: what has not ended
    then is given up."""
    import joblib

    with warnings.catch_warnings(), ExitStack() as stack:
        warnings.filterwarnings("ignore", "[0-9]+ tasks", UserWarning)  # what joblib says of calls that are given up
        with _interrupted_later():
            results = stack.enter_context(
                closing(joblib.Parallel(return_as="generator_unordered", batch_size=1)(calls))
            )
        yield from results


@contextmanager
def _interrupted_later() -> Iterator[None]:
    """Ctrl-C in a terminal is for workers too, and one that is starting would say that it cannot. They inherit this."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
