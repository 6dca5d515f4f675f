"""What the benchmarks share: their rows, the raw numbers behind them, and the processes they start."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from ionn import paper
from ionn.client.session import Client
from ionn.costs.loading import load_costs
from ionn.model.network import Network
from ionn.planning.graph import ExecutionGraph
from ionn.planning.plan import Plan, make_plan

Row = tuple[str, float, float, str]  # measure, limit, ours, unit

# The raw numbers of this process, in the order they were measured; bench/run_all.py writes them to results/bench/.
raw: list[dict[str, Any]] = []


def keep(measure: str, **numbers: Any) -> None:
    """Remember the raw numbers behind a row."""
    raw.append({"measure": measure, **numbers})


def met(row: Row) -> bool:
    """Tell whether a row keeps its limit, which is an upper one unless the measure says "at least"."""
    measure, limit, ours, _ = row
    return ours >= limit if "at least" in measure else ours <= limit


def line(row: Row) -> str:
    """A row of the table, with "missed" if it does not keep its limit."""
    measure, limit, ours, unit = row
    verdict = "" if met(row) else "  missed"
    ratio = ours / limit if limit else float("inf")
    return f"{measure:<74} | {limit:>10.4g} | {ours:>10.4g} {unit:<7} | {ratio:>7.3f}{verdict}"


HEAD = f"{'measure':<74} | {'limit':>10} | {'ours':>10} {'':<7} | {'ratio':>7}"


def main(rows: Callable[[], list[Row]]) -> None:
    """Run one benchmark as a script."""
    print(HEAD)
    for row in rows():
        print(line(row))


def paper_plan(model: str) -> tuple[Network, ExecutionGraph, Plan]:
    """A model's recursive-efficiency plan for the paper's testbed."""
    network = Network.load(model)
    graph = ExecutionGraph.from_network(network, load_costs(paper.CLIENT), load_costs(paper.SERVER), paper.MBPS)
    return network, graph, make_plan(network, graph, paper.RECURSIVE, paper.MBPS)


def with_and_without(name: str, what: str, times_ms: dict[str, list[float]], limit: float) -> Row:
    """How many times as long something takes with a part of the server, NAME, as without: by medians of the times of
    `NAME` and of `no NAME`, which are kept."""
    keep(f"{name}, {what}", **{side.replace(" ", "_"): times for side, times in times_ms.items()})
    with_ms, without_ms = (statistics.median(times_ms[side]) for side in (name, f"no {name}"))
    note = f"{with_ms:.2f} / {without_ms:.2f} ms"
    return f"{name}: {what}, with / without ({note})", limit, with_ms / without_ms, "x"


def start_ms(address: str) -> float:
    """How long it takes to begin a session."""
    began = time.perf_counter()
    client = Client(address)
    elapsed_ms = (time.perf_counter() - began) * 1e3
    client.close()
    return elapsed_ms


@contextlib.contextmanager
def _script(name: str, *arguments: object) -> Iterator[IO[str]]:
    """Run a script of bench/ in a process of its own, and yield what it prints."""
    command = [sys.executable, str(Path(__file__).with_name(name)), *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout
        finally:
            process.terminate()


@contextlib.contextmanager
def tap(server: str, output: Path) -> Iterator[str]:
    """Run a tap (bench/tap.py) in front of `server` that writes to `output`, and yield the address to connect to."""
    with _script("tap.py", server, output) as printed:
        yield printed.readline().strip()


@contextlib.contextmanager
def echo(answer_bytes: int) -> Iterator[str]:
    """Run bare pyzmq (bench/echo.py) in two processes, and yield the address to connect to."""
    with _script("echo.py", "front") as printed:
        address, workers = printed.readline().strip(), printed.readline().strip()
        with _script("echo.py", "worker", workers, answer_bytes):
            yield address
