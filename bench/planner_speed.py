"""The times of planning and of the virtual testbed. About 20 s: python bench/planner_speed.py

Times are CPU times, as everything here is one thread that never waits. A planner is timed on a fresh graph, which has
nothing computed yet; the fastest of a few times counts. The limit of `original-0.0001` is the time that the paper
reports for it (section 4.4).
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import time
import tracemalloc
from collections.abc import Callable

import numpy as np
import support
from numpy.typing import NDArray
from support import Row

from ionn import paper
from ionn.costs.loading import load_costs
from ionn.model.network import Network
from ionn.planning.graph import ExecutionGraph
from ionn.planning.plan import make_plan
from ionn.planning.planners import get_planner
from ionn.testbed import runner
from ionn.testbed.settings import Settings
from ionn.testbed.trace import RunInfo
from ionn.testbed.virtual import run_virtual

Times = NDArray[np.float64]

EFFICIENCY = (paper.EFFICIENCY, paper.RECURSIVE)
MODEL_LIMITS_MS = {paper.RECURSIVE: 1.0, paper.SLICED: 3.0, paper.FINE: 100.0}
MODEL_REPETITIONS = 10
CHAINS = ((1_000, 100.0, 5), (10_000, 3_000.0, 1))  # stages, limit in ms, repetitions
MEMORY_LIMIT = 0.01  # of a table with the efficiency of every candidate
VIRTUAL_LIMIT_S = 1.0
SWEEP_LIMIT_S = 10.0
SWEEP_MBPS = np.geomspace(1, 1000, 1000)
SEED = 1


def execution_graph(client_ms: Times, server_ms: Times, upload_ms: Times, transfer_ms: Times) -> ExecutionGraph:
    n = len(client_ms)
    return ExecutionGraph(
        stages=tuple(map(str, range(n))),
        client_ms=client_ms,
        server_ms=server_ms,
        upload_ms=upload_ms,
        load_ms=np.zeros(n),
        up_ms=transfer_ms,
        down_ms=transfer_ms,
        offloadable=np.ones(n, dtype=np.bool_),
    )


def chains(n: int) -> dict[str, ExecutionGraph]:
    """Chains of n stages by the kind of their costs."""
    random = np.random.default_rng(SEED)

    def uniform(most: float, size: int = n) -> Times:
        return random.uniform(0, most, size)

    def heavy(median: float, sigma: float, size: int = n) -> Times:
        return median * random.lognormal(0, sigma, size)

    ones, rising, boundaries = np.ones(n), np.linspace(0, 1, n), np.linspace(0, 1, n + 1)
    return {
        "uniform": execution_graph(uniform(100), uniform(10), uniform(1e5), uniform(50, n + 1)),
        "heavy-tailed": execution_graph(heavy(20, 2), heavy(1, 1), heavy(5e3, 2.5), heavy(20, 2, n + 1)),
        "all equal": execution_graph(10 * ones, ones, 1e3 * ones, np.full(n + 1, 3.0)),
        "increasing gain": execution_graph(10 + 90 * rising, ones, 1e3 * ones, np.full(n + 1, 3.0)),
        "decreasing gain": execution_graph(100 - 90 * rising, ones, 1e3 * ones, np.full(n + 1, 3.0)),
        # Algorithm 1 as written divides a candidate n^2 / 2 times.
        "increasing transfers": execution_graph(10 * ones, ones, 1e3 * ones, 1 + 500 * (1 - (1 - boundaries) ** 2)),
        "decreasing transfers": execution_graph(10 * ones, ones, 1e3 * ones, 1 + 500 * (1 - boundaries**2)),
        "half without upload": execution_graph(
            uniform(100), uniform(10), uniform(1e5) * (uniform(1) < 0.5), uniform(50, n + 1)
        ),
    }


def planning_row(subject: str, graph: ExecutionGraph, algorithm: str, limit_ms: float, repetitions: int) -> Row:
    measure = f"plan {subject}, {algorithm}"
    planner = get_planner(algorithm)
    times_ms = []
    for _ in range(repetitions):
        fresh = ExecutionGraph.from_json(graph.to_json())
        started = time.process_time()
        planner(fresh)
        times_ms.append((time.process_time() - started) * 1e3)
    support.keep(measure, planning_ms=times_ms)
    return measure, limit_ms, min(times_ms), "ms"


def model_rows() -> list[Row]:
    client, server = load_costs(paper.CLIENT), load_costs(paper.SERVER)
    networks = [Network.load(model) for model in paper.MODELS]
    graphs = [ExecutionGraph.from_network(network, client, server, paper.MBPS) for network in networks]
    return [
        planning_row(network.name, graph, algorithm, limit_ms, MODEL_REPETITIONS)
        for algorithm, limit_ms in MODEL_LIMITS_MS.items()
        for network, graph in zip(networks, graphs, strict=True)
    ]


def chain_rows() -> list[Row]:
    return [
        planning_row(f"{n:,} stages, {costs}", graph, algorithm, limit_ms, repetitions)
        for n, limit_ms, repetitions in CHAINS
        for costs, graph in chains(n).items()
        for algorithm in EFFICIENCY
    ]


def memory_row(n: int = 10_000) -> Row:
    graph = chains(n)["uniform"]
    tracemalloc.start()
    get_planner(paper.RECURSIVE)(graph)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return f"memory to plan {n:,} stages, uniform", MEMORY_LIMIT * n * n * 8 / 1e6, peak_bytes / 1e6, "MB"


def timed_row(measure: str, limit_s: float, work: Callable[[], None]) -> Row:
    started = time.process_time()
    work()
    return measure, limit_s, time.process_time() - started, "s"


def virtual_set() -> None:
    for model in paper.MODELS:
        runner.run_virtual_all(model, paper.ALGORITHMS)


def sweep(model: str = "alexnet") -> None:
    """Plan and run all three algorithms at every bandwidth."""
    network, client, server = Network.load(model), load_costs(paper.CLIENT), load_costs(paper.SERVER)
    for mbps in SWEEP_MBPS.tolist():
        costs = ExecutionGraph.from_network(network, client, server, mbps)
        for algorithm in paper.ALGORITHMS:
            plan = make_plan(network, costs, algorithm, mbps)
            run_virtual(RunInfo(Settings("virtual", mbps), 1, plan, costs))


def rows() -> list[Row]:
    runs = f"{len(paper.MODELS)} models x {len(paper.ALGORITHMS)} algorithms"
    bandwidths = f"{len(SWEEP_MBPS):,} bandwidths x {len(paper.ALGORITHMS)} algorithms"
    return [
        *model_rows(),
        *chain_rows(),
        memory_row(),
        timed_row(f"virtual testbed, {runs}", VIRTUAL_LIMIT_S, virtual_set),
        timed_row(f"virtual testbed, alexnet, {bandwidths}", SWEEP_LIMIT_S, sweep),
    ]


if __name__ == "__main__":
    support.main(rows)
