"""All benchmarks of this project's own claims: one table, and the raw results in results/bench/. 17 minutes.

Each benchmark runs in a process of its own. A row that does not keep its limit is marked "missed"; that is a finding,
not a failure. Exit code 1: a benchmark could not run.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib
import json
import multiprocessing
import os
import subprocess
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import support

from ionn.model import engine

BENCHES = (
    "startup",
    "planner_speed",
    "sweep",
    "optimality",
    "slices",
    "coding_gains",
    "weight_coding",
    "install_latency",
    "link_use",
    "query_overhead",
    "coded_features",
    "audit",
    "second_visit",
    "memory",
    "many_clients",
    "fair_shares",
    "strangers",
    "sandbox",
    "store",
    "blas",
    "calibration",
)
ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "bench"


def measure(name: str) -> tuple[list[support.Row], list[dict[str, Any]]]:
    """The rows of a benchmark, and the raw numbers behind them. Runs in a process of its own."""
    with contextlib.redirect_stdout(sys.stderr):  # the table is all that goes there
        rows = importlib.import_module(name).rows()
    return rows, support.raw


def environment() -> dict[str, Any]:
    """What the numbers depend on. Runs in a process of its own too, as it loads Caffe."""
    return {**engine.environment(), "commit": commit(), "load_average": os.getloadavg()[0]}


def commit() -> str:
    """The commit that is measured, followed by "+" if its files have changed since; "" outside a repository."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--dirty=+"]
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return ""


def main() -> int:
    began = time.monotonic()
    failed = 0
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{datetime.datetime.now():%Y%m%d-%H%M%S}.jsonl"
    # A benchmark leaves nothing behind for the next one: no loaded Caffe, no warm memory.
    spawn = multiprocessing.get_context("spawn")
    with (
        path.open("w", encoding="utf-8") as out,
        ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as pool,
    ):

        def write(record: str, **values: Any) -> None:
            out.write(json.dumps({"record": record, **values}) + "\n")
            out.flush()

        write("environment", **pool.submit(environment).result())
        print(support.HEAD, flush=True)
        for number, name in enumerate(BENCHES, 1):
            print(f"[{time.monotonic() - began:3.0f} s] {number}/{len(BENCHES)} {name}", file=sys.stderr, flush=True)
            try:
                rows, raw = pool.submit(measure, name).result()
            except Exception:
                failed += 1
                traceback.print_exc()
                continue
            for numbers in raw:
                write("raw", bench=name, **numbers)
            for row in rows:
                measured, limit, ours, unit = row
                write("row", bench=name, measure=measured, limit=limit, ours=ours, unit=unit, met=support.met(row))
                print(support.line(row), flush=True)
        write("end", seconds=round(time.monotonic() - began, 1))
    print(f"[{time.monotonic() - began:3.0f} s] raw results: {path}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
