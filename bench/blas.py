"""Which OpenBLAS kernels compute the five models fastest on this CPU, and what a second thread gains. About 40 s.

The limit is 5 % above the fastest of all kernels that this CPU supports, with one thread; ours are those that
`ionn.model.engine` chooses. Each candidate is a process of its own with all five models. They take turns after each
forward pass, and the fastest pass counts, as other work on this machine only adds time. Results with other kernels or
another number of threads differ in the last bits (the raw results have digests), so that the outputs of two ends are
then compared within a tolerance only.

OPENBLAS_CORETYPE=X and OPENBLAS_NUM_THREADS=N overrule the engine, here and everywhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import support

from ionn import paper
from ionn.model import engine, inputs
from ionn.model.caffemodel import weights_path
from ionn.model.network import Network

TURNS = 6
# A choice within this of the fastest is as good: the same kernels differ by so much from process to process.
TOLERANCE = 1.05
# OpenBLAS's threads spin for a while after a product, which would slow down the candidate whose turn is next.
SPIN_S = 0.1
# Kernels of x86-64 and the CPU flags they need. Zen's are Haswell's.
KERNELS = {
    "Haswell": {"avx2", "fma"},
    "SkylakeX": {"avx512f", "avx512dq", "avx512cd", "avx512bw", "avx512vl"},
    "Cooperlake": {"avx512f", "avx512dq", "avx512cd", "avx512bw", "avx512vl", "avx512_bf16"},
}
OURS, TWO_THREADS = "ours", "ours, 2 threads"


def cpu_flags() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.split(":", 1)[1].split())
    return set()


def candidates() -> dict[str, dict[str, str]]:
    """The environment of each candidate."""
    kernels = {name: {"OPENBLAS_CORETYPE": name} for name, needed in KERNELS.items() if needed <= cpu_flags()}
    return {OURS: {}, **kernels, TWO_THREADS: {"OPENBLAS_NUM_THREADS": "2"}}


def worker() -> None:
    """Load the models, then answer each model's name with the time of a forward in ms and the output's digest."""
    nets = {}
    for model in paper.MODELS:
        network = Network.load(model)
        net = engine.read_network(network, weights_path(model, None))
        nets[model] = net, inputs.query_inputs(network, seed=0, count=1)[0]
        engine.forward(*nets[model])
    print(json.dumps(engine.blas()), flush=True)
    for line in sys.stdin:
        net, data = nets[line.strip()]
        net.put(net.first, data)
        began = time.perf_counter()
        net.run(net.first, net.last)
        forward_ms = (time.perf_counter() - began) * 1e3
        digest = hashlib.sha256(b"".join(output.tobytes() for output in net.outputs(net.last))).hexdigest()
        print(json.dumps([forward_ms, digest[:16]]), flush=True)


class Candidate:
    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **environment},
        )  # fmt: skip
        self.blas: str = self._answer()
        self.forward_ms: dict[str, list[float]] = {model: [] for model in paper.MODELS}
        self.digests: dict[str, str] = {}

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def turn(self, model: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{model}\n")
        self._process.stdin.flush()
        forward_ms, self.digests[model] = self._answer()
        self.forward_ms[model].append(forward_ms)

    def close(self) -> None:
        self._process.communicate()


@contextlib.contextmanager
def started() -> Iterator[dict[str, Candidate]]:
    with contextlib.ExitStack() as stack:
        running: dict[str, Candidate] = {}
        for name, environment in candidates().items():
            if OURS in running and name in running[OURS].blas.split():
                continue  # it is what the engine chooses
            running[name] = Candidate(environment)
            stack.callback(running[name].close)
        yield running


def rows() -> list[support.Row]:
    with started() as running:
        for _ in range(TURNS):
            for model in paper.MODELS:
                for name, candidate in running.items():
                    candidate.turn(model)
                    if name == TWO_THREADS:
                        time.sleep(SPIN_S)
    result: list[support.Row] = []
    for name, candidate in running.items():
        support.keep(
            f"forward, {name}", blas=candidate.blas, forward_ms=candidate.forward_ms, digests=candidate.digests
        )
    for model in paper.MODELS:
        times_ms = {name: min(each.forward_ms[model]) for name, each in running.items()}
        del times_ms[TWO_THREADS]  # of interest, but no choice: docs/performance.md has the reasons
        fastest = min(times_ms, key=lambda name: times_ms[name])
        measure = f"forward of {model}, 5 % above the fastest kernels ({fastest})"
        result.append((measure, TOLERANCE * times_ms[fastest], times_ms[OURS], "ms"))
    return result


if __name__ == "__main__":
    if sys.argv[1:] == ["worker"]:
        worker()
    else:
        support.main(rows)
