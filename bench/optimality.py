"""How far each algorithm is from the best order, and what slices below the layer add: the paper's testbed, virtual.

Area: latency integrated over the time of the upload, as planned. Of best: relative to the least area of all orders of
whole stages; for MobileNet, whose stages are too many, to a bound that no order can be below. Queries are counted until
the algorithm's own upload ended, as in the paper, and until the longest upload of the model's did.
"""

from __future__ import annotations

from dataclasses import dataclass

import support

from ionn import paper
from ionn.costs.loading import load_costs
from ionn.errors import InputError
from ionn.evaluation.summary import largest_share
from ionn.model.network import Network
from ionn.paper import SLICED, model_title
from ionn.planning.graph import ExecutionGraph
from ionn.planning.plan import make_plan
from ionn.planning.planners.optimal import area, least_area, optimal
from ionn.testbed.settings import Settings
from ionn.testbed.trace import RunInfo, Trace
from ionn.testbed.virtual import run_virtual

ALGORITHMS = (*paper.SHOWN, "optimal")
# Planning is timed over as many repetitions, and the fastest counts.
REPETITIONS = 5
ALEXNET_GAIN = 2.0  # over original
INCEPTION_GAIN = 1.35  # over recursive-efficiency
LARGEST_PERCENT = 10.0


@dataclass(frozen=True)
class Result:
    """A virtual run of one algorithm. `area` in ms x s."""

    trace: Trace
    area: float
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


def measure(model: str) -> tuple[dict[str, Result], float, bool]:
    """What each algorithm makes of a model; the area to compare with, and whether an order with that area is known."""
    network = Network.load(model)
    graph = ExecutionGraph.from_network(network, load_costs(paper.CLIENT), load_costs(paper.SERVER), paper.MBPS)
    results = {}
    for algorithm in ALGORITHMS:
        try:
            plans = [make_plan(network, graph, algorithm, paper.MBPS) for _ in range(REPETITIONS)]
        except InputError:  # too many stages for the best order
            continue
        plan = min(plans, key=lambda plan: plan.planning_ms)
        info = RunInfo(Settings("virtual"), 1, plan, graph)
        pieces = [partition.pieces for partition in plan.partitions]
        results[algorithm] = Result(run_virtual(info), area(graph, pieces), plan.planning_ms)
        support.keep(
            algorithm, model=model, area_ms_s=results[algorithm].area, queries=results[algorithm].queries,
            largest_percent=results[algorithm].largest_percent, planning_ms=plan.planning_ms,
        )  # fmt: skip
    known = "optimal" in results
    return results, area(graph, optimal(graph)) if known else least_area(graph), known


def print_table(model: str, results: dict[str, Result], best: float, known: bool) -> None:
    end_s = max(result.trace.upload_s for result in results.values())
    print(
        f"\n{model_title(model)}: least area {'' if known else 'at least '}{best:.0f} ms s\n"
        f"{'algorithm':<21} {'partitions':>10} {'largest':>8} {'area':>8} {'of best':>8} {'queries':>8} "
        f"{f'in {end_s:.1f} s':>10} {'planning ms':>12}"
    )
    for algorithm, result in results.items():
        print(
            f"{algorithm:<21} {len(result.trace.partitions):>10} {result.largest_percent:>7.1f}% {result.area:>8.0f} "
            f"{result.area / best:>7.1%} {result.queries:>8} {result.queries_until(end_s):>10} "
            f"{result.planning_ms:>12.2f}"
        )


def rows() -> list[support.Row]:
    print(__doc__)
    results = {}
    for model in paper.MODELS:
        results[model], best, known = measure(model)
        print_table(model, results[model], best, known)
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
            (f"{model_title(model)}, largest partition", LARGEST_PERCENT, results[model][SLICED].largest_percent, "%")
            for model in ("alexnet", "inception")
        ),
    ]


if __name__ == "__main__":
    support.main(rows)
