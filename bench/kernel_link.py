"""Runs through our link against runs between two machines whose cable the kernel shapes (tc tbf). About 4 minutes.

Each run is `ionn run --connect` with the same plan and the same costs at both ends: AlexNet, recursive-efficiency,
80 Mbps. Our link carries 80,000,000 bits of TCP payload per second; tc counts Ethernet frames, and is given 4.6 % more
for their headers. The machines are network namespaces (bench/namespaces.py). Runs through the two links alternate, so
that whatever drifts here meets both alike.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import support
from namespaces import FRAME_BYTES, PAYLOAD_BYTES, two_machines

from ionn import harness, live
from ionn.trace import Trace, trace_path

MODEL = "alexnet"
RUNS = 3  # through each
DIFFERENCE = 0.05


@contextlib.contextmanager
def our_link(costs: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """A server behind our link: its address, and what a client's command begins with."""
    with live.start_testbed(harness.MBPS, costs) as address:
        yield address, ()


@contextlib.contextmanager
def tc_tbf(costs: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The same for two machines."""
    with two_machines(harness.MBPS * FRAME_BYTES / PAYLOAD_BYTES) as (board, box):
        serve = ("serve", "--bind", f"tcp://{box.host}:0", "--insecure", "--costs", str(costs))
        with live.process(*serve, within=box.enter) as address:
            yield address, board.enter


def run(address: str, enter: tuple[str, ...]) -> Trace:
    """One run, with a client process of its own."""
    with tempfile.TemporaryDirectory() as results:
        client = ("run", MODEL, "--algorithm", support.ALGORITHM, "--connect", address, "--results", results)
        subprocess.run([*enter, sys.executable, "-m", "ionn", *client], stdout=subprocess.DEVNULL, check=True)
        return Trace.load(trace_path(Path(results), "live", MODEL, support.ALGORITHM, 1))


def row(what: str, pairs: list[tuple[Trace, Trace]], value: Callable[[Trace], float]) -> support.Row:
    """By how much the two links differ in the mean of a value."""
    ours, kernels = ([value(trace) for trace in traces] for traces in zip(*pairs, strict=True))
    support.keep(f"{what}, {MODEL}", our_link=ours, tc_tbf=kernels)
    means = statistics.mean(ours), statistics.mean(kernels)
    measure = f"{what}, {MODEL}: our link {means[0]:.1f}, tc {means[1]:.1f}; difference"
    return measure, DIFFERENCE, abs(means[0] / means[1] - 1), ""


def rows() -> list[support.Row]:
    with tempfile.TemporaryDirectory() as folder:
        costs = Path(folder) / "server.json"
        subject = harness.prepare_live(MODEL)
        live.profile_network(subject.network, subject.net, harness.PROFILE_RUNS).save(costs)
        pairs = []
        for _ in range(RUNS):
            with our_link(costs) as client:
                ours = run(*client)
            with tc_tbf(costs) as client:
                pairs.append((ours, run(*client)))
    return [
        row("queries in the upload", pairs, lambda trace: trace.queries_in_upload),
        row("upload s", pairs, lambda trace: trace.upload_s),
    ]


if __name__ == "__main__":
    support.main(rows)
