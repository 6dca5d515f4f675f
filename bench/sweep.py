"""What a sweep costs, and what a second process gains. Takes three minutes on two cores: python bench/sweep.py

The sweep is of five models, three algorithms and 667 bandwidths from 1 to 1000 Mbps, 10,005 runs, with a process per
core. What two workers gain over one, of joblib here and of a Dask cluster, is compared with what two bare processes
gain, each of which makes half of the tasks. Processes share caches and the clock of the processor, so they cannot be
twice as fast. The measurements alternate, and the best of each counts.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import distributed
import support
from support import Row

from ionn import paper
from ionn.testbed.sweep import Grid, Task, expand, run_sweep, run_task

ALGORITHMS = (paper.ORIGINAL, paper.RECURSIVE, paper.SLICED)
LIMIT_S = 120.0
GAIN_LIMIT = 0.9
TURNS = 4
# For the gain: so many that starting processes is little of it.
GAIN_MBPS = 200


def grid(count: int) -> Grid:
    return Grid.of(list(paper.MODELS), ALGORITHMS, list(map(float, expand(f"1:1000:{count}"))))


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def make(tasks: list[Task]) -> None:
    for task in tasks:
        run_task(task)


def bare_s(tasks: list[Task], processes: int) -> float:
    """How long bare processes take that divide the tasks evenly."""
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=make, args=(tasks[part::processes],)) for part in range(processes)]

    def work() -> None:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    return seconds(work)


def swept_s(swept: Grid, **where: Any) -> float:
    with tempfile.TemporaryDirectory() as folder:
        return seconds(lambda: run_sweep(swept, Path(folder) / "sweep.csv", **where))


def gain_rows() -> list[Row]:
    swept = grid(GAIN_MBPS)
    tasks = swept.tasks(list(swept.cells()))
    start: Any = distributed.LocalCluster
    took: dict[str, list[float]] = {}
    options: dict[str, Any] = {
        "threads_per_worker": 1,
        "processes": True,
        "host": "127.0.0.1",
        "dashboard_address": "127.0.0.1:0",
    }
    with start(n_workers=2, **options) as cluster:
        address = cluster.scheduler_address
        # Workers have loaded ionn before they are timed; so have the bare processes, which are forked.
        swept_s(grid(8), jobs=2)
        swept_s(grid(8), cluster=address)
        ways: dict[str, Callable[[], float]] = {
            "one bare": lambda: bare_s(tasks, 1),
            "two bare": lambda: bare_s(tasks, 2),
            "one": lambda: swept_s(swept, jobs=1),
            "two": lambda: swept_s(swept, jobs=2),
            "cluster": lambda: swept_s(swept, cluster=address),
        }
        for _ in range(TURNS):
            for name, work in ways.items():
                took.setdefault(name, []).append(work())
    support.keep("sweep, one and two processes", seconds=took)
    best = {name: min(times) for name, times in took.items()}
    bare = best["one bare"] / best["two bare"]
    what = f"of two bare processes' ({bare:.2f}), at least"
    return [
        (f"sweep, gain of two processes, {what}", GAIN_LIMIT, best["one"] / best["two"] / bare, ""),
        (f"sweep, gain of two Dask workers, {what}", GAIN_LIMIT, best["one"] / best["cluster"] / bare, ""),
    ]


def rows() -> list[Row]:
    swept = grid(667)
    return [(f"sweep of {len(swept):,} runs", LIMIT_S, swept_s(swept), "s"), *gain_rows()]


if __name__ == "__main__":
    support.main(rows)
