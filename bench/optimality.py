"""How far each algorithm is from the best order, and what slices below the layer add: the paper's testbed, virtual.

Area: latency integrated over the time of the upload, as planned. Of best: relative to the least area of all orders of
whole stages; for MobileNet, which has too many stages, relative to a lower bound. Excess: the same for the excess area,
which is the area above the least latency, and the only part that depends on the order. Queries are counted until the
algorithm's own upload ended, as in the paper, and until the longest upload of the model did.

Then the excess areas on random chains over the least: 3 to 9 stages whose times at the client, transfers and uploads
are lognormal (sigma of the logarithm: 1, 1 and 1.5), and which take 0 to 30 % of their client times at the server.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import support
from planner_speed import execution_graph

from ionn import paper
from ionn.costs.loading import load_costs
from ionn.errors import InputError
from ionn.evaluation.slice_claims import ALEXNET_GAIN, INCEPTION_GAIN, LARGEST_SHARE
from ionn.evaluation.summary import largest_share
from ionn.model.network import Network
from ionn.paper import SLICED, model_title
from ionn.planning.graph import ExecutionGraph
from ionn.planning.plan import make_plan
from ionn.planning.planners import get_planner
from ionn.planning.planners.baselines import ALL_AT_ONCE, FRONT_TO_BACK
from ionn.planning.planners.optimal import area, excess_area, least_area, optimal
from ionn.testbed.settings import Settings
from ionn.testbed.trace import RunInfo, Trace
from ionn.testbed.virtual import run_virtual

DENSEST, OPTIMAL = "densest", "optimal"
ALGORITHMS = (ALL_AT_ONCE, FRONT_TO_BACK, *paper.ALGORITHMS, paper.FINE, SLICED, DENSEST, OPTIMAL)
# Planning is timed so many times, and the fastest counts.
REPETITIONS = 5
EXCESS = 2.0  # of densest over the least of any order: docs/optimality.md

CHAINS, SEED = 2000, 16
ON_CHAINS = (ALL_AT_ONCE, FRONT_TO_BACK, *paper.ALGORITHMS, DENSEST)
# A smaller excess area, in ms x s, counts as none.
NONE = 1e-9


@dataclass(frozen=True)
class Result:
    """A virtual run of one algorithm. `area` and `excess` are in ms x s."""

    trace: Trace
    area: float
    excess: float
    planning_ms: float

    @property
    def queries(self) -> int:
        return self.trace.queries_before_upload

    @property
    def largest_percent(self) -> float:
        return largest_share(self.trace) * 100

    def queries_until(self, end_s: float) -> int:
        """Queries that ended by then; those after the run are like its last one."""
        last = self.trace.queries[-1]
        further = max(0.0, end_s - last.end_s) // (last.end_s - last.start_s)
        return sum(query.end_s <= end_s for query in self.trace.queries) + int(further)


@dataclass(frozen=True)
class Best:
    """The least area of all orders of whole stages and its excess area, in ms x s; lower bounds of both if the best
    order is not known."""

    area: float
    excess: float
    known: bool


def measure(model: str) -> tuple[dict[str, Result], Best]:
    """The result of each algorithm on a model, and the best possible one."""
    network = Network.load(model)
    graph = ExecutionGraph.from_network(network, load_costs(paper.CLIENT), load_costs(paper.SERVER), paper.MBPS)
    results = {}
    for algorithm in ALGORITHMS:
        try:
            plans = [make_plan(network, graph, algorithm, paper.MBPS) for _ in range(REPETITIONS)]
        except InputError:  # too many stages for the best order
            continue
        plan = min(plans, key=lambda plan: plan.planning_ms)
        trace = run_virtual(RunInfo(Settings("virtual"), 1, plan, graph))
        results[algorithm] = Result(
            trace, area(graph, plan.uploads), excess_area(graph, plan.uploads), plan.planning_ms
        )
        support.keep(
            algorithm, model=model, area_ms_s=results[algorithm].area, excess_ms_s=results[algorithm].excess,
            queries=results[algorithm].queries, largest_percent=results[algorithm].largest_percent,
            planning_ms=plan.planning_ms,
        )  # fmt: skip
    if OPTIMAL in results:
        order = optimal(graph)
        return results, Best(area(graph, order), excess_area(graph, order), True)
    bound = least_area(graph)
    best_ms = graph.latency_ms(range(len(graph.stages)))
    upload_s = float(graph.upload_ms[sorted(graph.shortest_path(np.zeros(len(graph.stages))))].sum()) / 1e3
    return results, Best(bound, bound - best_ms * upload_s, False)


def print_table(model: str, results: dict[str, Result], best: Best) -> None:
    end_s = max(result.trace.upload_s for result in results.values())
    least = "" if best.known else "at least "
    print(
        f"\n{model_title(model)}: least area {least}{best.area:.0f} ms s, excess {least}{best.excess:.0f} ms s\n"
        f"{'algorithm':<21} {'partitions':>10} {'largest':>8} {'area':>8} {'of best':>8} {'excess':>8} {'queries':>8} "
        f"{f'in {end_s:.1f} s':>10} {'planning ms':>12}"
    )
    for algorithm, result in results.items():
        print(
            f"{algorithm:<21} {len(result.trace.partitions):>10} {result.largest_percent:>7.1f}% {result.area:>8.0f} "
            f"{result.area / best.area:>7.1%} {result.excess / best.excess:>8.2f} {result.queries:>8} "
            f"{result.queries_until(end_s):>10} {result.planning_ms:>12.2f}"
        )


def random_chain(random: np.random.Generator) -> ExecutionGraph:
    n = int(random.integers(3, 10))
    client_ms, transfer_ms = random.lognormal(2, 1, n), random.lognormal(1, 1, n + 1)
    server_ms, upload_ms = client_ms * random.uniform(0, 0.3, n), random.lognormal(2, 1.5, n)
    return execution_graph(client_ms, server_ms, upload_ms, transfer_ms)


def excess_on_chains() -> dict[str, list[float]]:
    """The excess area of each algorithm over the least of any order, on the random chains where that is not 0."""
    random = np.random.default_rng(SEED)
    ratios: dict[str, list[float]] = {algorithm: [] for algorithm in ON_CHAINS}
    for graph in (random_chain(random) for _ in range(CHAINS)):
        least = excess_area(graph, optimal(graph))
        if least > NONE:
            for algorithm in ON_CHAINS:
                ratios[algorithm].append(excess_area(graph, get_planner(algorithm)(graph)) / least)
    return ratios


def print_chains(ratios: dict[str, list[float]]) -> None:
    print(
        f"\n{len(ratios[DENSEST])} random chains of 3 to 9 stages: excess over the least\n"
        f"{'algorithm':<21} {'mean':>8} {'90 %':>8} {'worst':>8}"
    )
    for algorithm, each in ratios.items():
        mean, most, worst = np.mean(each), np.percentile(each, 90), max(each)
        print(f"{algorithm:<21} {mean:>8.3f} {most:>8.3f} {worst:>8.2f}")
        support.keep(algorithm, chains=len(each), mean_excess=float(mean), worst_excess=worst)


def rows() -> list[support.Row]:
    print(__doc__)
    results, excess = {}, 0.0
    for model in paper.MODELS:
        results[model], best = measure(model)
        print_table(model, results[model], best)
        excess = max(excess, results[model][DENSEST].excess / best.excess)
    chains = excess_on_chains()
    print_chains(chains)
    print()

    def gain(model: str, over: str) -> float:
        return results[model][SLICED].queries / results[model][over].queries

    least_gain = min(gain(model, paper.RECURSIVE) for model in paper.MODELS)
    return [
        ("AlexNet, queries over those of original, at least", ALEXNET_GAIN, gain("alexnet", paper.ORIGINAL), ""),
        (
            "Inception, queries over those of recursive-efficiency, at least",
            INCEPTION_GAIN,
            gain("inception", paper.RECURSIVE),
            "",
        ),
        ("any model, queries over those of recursive-efficiency, at least", 1.0, least_gain, ""),
        *(
            (
                f"{model_title(model)}, largest partition",
                LARGEST_SHARE * 100,
                results[model][SLICED].largest_percent,
                "%",
            )
            for model in ("alexnet", "inception")
        ),
        ("any model, excess area of densest over the least", EXCESS, excess, ""),
        ("random chains, excess area of densest over the least, worst", EXCESS, max(chains[DENSEST]), ""),
    ]


if __name__ == "__main__":
    support.main(rows)
