"""The times of two short commands, from the start of the process to its exit: the median of RUNS. About 5 s."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import support

RUNS = 7
LIMITS_MS = {("--help",): 150.0, ("plan", "alexnet"): 1000.0}


def run_ms(arguments: tuple[str, ...]) -> float:
    command = [sys.executable, "-m", "ionn", *arguments]
    began = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return (time.perf_counter() - began) * 1e3


def rows() -> list[support.Row]:
    times_ms = {arguments: [run_ms(arguments) for _ in range(RUNS)] for arguments in LIMITS_MS}
    result: list[support.Row] = []
    for arguments, limit_ms in LIMITS_MS.items():
        name = f"ionn {' '.join(arguments)}, process start to exit"
        support.keep(name, times_ms=times_ms[arguments])
        result.append((name, limit_ms, statistics.median(times_ms[arguments]), "ms"))
    return result


if __name__ == "__main__":
    support.main(rows)
