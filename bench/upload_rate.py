"""Bytes over time through the link while a model uploads and queries run, counted behind the link by bench/tap.py.

python bench/upload_rate.py [MODEL]: the least and most that crossed in any second of the upload, against 80 Mbps.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ionn import harness, live
from ionn.costs import load_costs

WINDOW_S = 1.0
STEP_S = 0.05


@contextlib.contextmanager
def tap(server: str, output: Path) -> Iterator[str]:
    command = [sys.executable, str(Path(__file__).with_name("tap.py")), server, str(output)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def windows(times_s: np.ndarray, bytes_up: np.ndarray, start_s: float, end_s: float) -> np.ndarray:
    """Mbps in every window of WINDOW_S between two times, in steps of STEP_S."""
    begins = np.arange(start_s, end_s - WINDOW_S, STEP_S)
    crossed = np.interp(begins + WINDOW_S, times_s, bytes_up) - np.interp(begins, times_s, bytes_up)
    return crossed * 8 / 1e6 / WINDOW_S


def measure(model: str) -> None:
    subject = harness.prepare_live(model)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "bytes"
        with (
            live.process("serve", "--bind", "tcp://127.0.0.1:0") as server,
            tap(server, output) as tapped,
            live.process("link", "--listen", "tcp://127.0.0.1:0", "--to", tapped, "--mbps", str(harness.MBPS)) as link,
        ):
            trace = live.run_live(
                subject, "recursive-efficiency", live.Link(link, harness.MBPS), server=load_costs(harness.SERVER)
            )
        times_s, bytes_up = np.loadtxt(output).T
    # The upload ends when the last of the weights has crossed; its beginning is that much earlier.
    weights = sum(partition.bytes for partition in trace.partitions)
    end_s = times_s[np.searchsorted(bytes_up, weights)]
    start_s = times_s[np.searchsorted(bytes_up, 100_000)]
    rates = windows(times_s, bytes_up, start_s, min(end_s, start_s + trace.upload_s))
    print(f"{model}: {len(rates)} windows of {WINDOW_S:g} s while {weights / 1e6:.1f} MB of weights uploaded")
    print(f"{'measure':<28} {'limit':>8} {'ours':>8} {'ratio':>7}")
    for name, rate in (("least in any second, Mbps", rates.min()), ("most in any second, Mbps", rates.max())):
        print(f"{name:<28} {harness.MBPS:>8.2f} {rate:>8.2f} {rate / harness.MBPS:>7.4f}")


if __name__ == "__main__":
    measure(sys.argv[1] if len(sys.argv) > 1 else "alexnet")
