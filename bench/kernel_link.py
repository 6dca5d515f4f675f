"""Runs through our link, and between two machines whose cable the kernel shapes (tc tbf), compared. About 4 minutes.

Each run is `ionn run --connect` with the same plan and the same costs at both ends: AlexNet, recursive-efficiency,
80 Mbps. Our link carries 80,000,000 bits of TCP payload per second; tc counts Ethernet frames, and is given 4.6 % more
for their headers. The machines are network namespaces (bench/namespaces.py). A run through each link is made at the
same time, so that whatever else happens on this machine affects both alike.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import support
from namespaces import FRAME_BYTES, PAYLOAD_BYTES, two_machines

from ionn import paper
from ionn.costs import profiling
from ionn.testbed import processes, runner
from ionn.testbed.settings import Settings
from ionn.testbed.trace import Trace, load_traces

MODEL = "alexnet"
RUNS = 3  # through each
CONGESTION = ("bbr", "cubic")
DIFFERENCE = 0.05

# Where clients connect, and what a client's command begins with.
Server = tuple[str, tuple[str, ...]]


@contextlib.contextmanager
def our_link(costs: Path) -> Iterator[Server]:
    """A server behind our link."""
    with processes.start_testbed(Settings("live"), costs) as testbed:
        yield testbed.address, ()


@contextlib.contextmanager
def tc_tbf(costs: Path, congestion: str) -> Iterator[Server]:
    """A server on another machine."""
    with two_machines(paper.MBPS * FRAME_BYTES / PAYLOAD_BYTES, congestion) as (board, box):
        serve = ("serve", "--bind", f"tcp://{box.host}:0", "--insecure", "--costs", str(costs))
        with processes.process(*serve, within=box.enter) as address:
            yield address, board.enter


def run(server: Server) -> Trace:
    """One run, with a client process of its own."""
    address, enter = server
    with tempfile.TemporaryDirectory() as results:
        client = ("run", MODEL, "--algorithm", paper.RECURSIVE, "--connect", address, "--results", results)
        subprocess.run([*enter, sys.executable, "-m", "ionn", *client], stdout=subprocess.DEVNULL, check=True)
        (trace,) = load_traces(Path(results))
        return trace


def row(what: str, values: list[tuple[float, ...]]) -> support.Row:
    """By how much the two links differ in the mean of a value; `values` are pairs."""
    ours, kernels = zip(*values, strict=True)
    support.keep(what, our_link=ours, tc_tbf=kernels)
    means = statistics.mean(ours), statistics.mean(kernels)
    measure = f"{what}: our link {means[0]:.1f}, tc {means[1]:.1f}, difference"
    return measure, DIFFERENCE, abs(means[0] / means[1] - 1), ""


def compare(costs: Path, congestion: str) -> list[support.Row]:
    with our_link(costs) as ours, tc_tbf(costs, congestion) as kernels, ThreadPoolExecutor(2) as at_once:
        pairs = [tuple(at_once.map(run, (ours, kernels))) for _ in range(RUNS)]
    return [
        row(f"{MODEL} {congestion}, queries", [tuple(trace.queries_in_upload for trace in pair) for pair in pairs]),
        row(f"{MODEL} {congestion}, upload s", [tuple(trace.upload_s for trace in pair) for pair in pairs]),
    ]


def rows() -> list[support.Row]:
    with tempfile.TemporaryDirectory() as folder:
        costs = Path(folder) / "server.json"
        subject = runner.prepare_live(MODEL)
        profiling.profile_network(subject.network, subject.net, runner.PROFILE_RUNS).save(costs)
        return [row for congestion in CONGESTION for row in compare(costs, congestion)]


if __name__ == "__main__":
    support.main(rows)
