"""The whole section 4 of the paper: virtual and live runs of every model, Figures 5-7, the report, and the share of
random draws of the costs in which each claim holds.

Finished live runs in the results folder are kept, so an interrupted command continues when it is repeated.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Collection
from pathlib import Path

from per_model import at_least_1, live, to_run_again

from ionn import paper
from ionn.costs.loading import load_costs
from ionn.errors import IonnError
from ionn.evaluation.figures import draw_figures
from ionn.evaluation.report import make_report, write_report
from ionn.evaluation.summary import load_results
from ionn.evaluation.uncertainty import DRAWS, keep_uncertainty
from ionn.files import write_file
from ionn.model.network import Network
from ionn.planning.graph import ExecutionGraph
from ionn.planning.plan import make_plan
from ionn.testbed import runner

# The planners that section 4.4 compares, and slices. Each plan is made so many times, and the fastest counts.
PLANNERS = (*paper.SHOWN, paper.FINE)
REPETITIONS = 5


def write_plans(results: Path) -> None:
    """Write results/plans.json: the plans of all models and planners for the paper's testbed, with planning times."""
    client, server = load_costs(paper.CLIENT), load_costs(paper.SERVER)
    plans = []
    for model in paper.MODELS:
        network = Network.load(model)
        graph = ExecutionGraph.from_network(network, client, server, paper.MBPS)
        for algorithm in PLANNERS:
            made = [make_plan(network, graph, algorithm, paper.MBPS) for _ in range(REPETITIONS)]
            plans.append(min(made, key=lambda plan: plan.planning_ms).to_json())
    write_file(results / "plans.json", json.dumps({"plans": plans}).encode())


def reproduce(runs: int, results: Path, models: Collection[str] = paper.MODELS) -> None:
    started = time.monotonic()
    write_plans(results)
    for model in paper.MODELS:
        runner.run_virtual_all(model, paper.SHOWN, results=results)
    for model in models:
        live(model, runs, 1.0, results)
    with runner.bar(DRAWS, "draw", "claims in random draws of the costs") as progress:
        uncertainty = keep_uncertainty(results, progress=progress.update)
    figures = draw_figures(results, results / "figures")
    report = write_report(results, figures)
    traces = load_results(results)
    print(make_report(traces, uncertainty=uncertainty).text())
    print(f"{len(figures)} figure files in {results / 'figures'}, report in {report}")
    print(f"took {(time.monotonic() - started) / 60:.1f} minutes")
    if again := to_run_again(traces, results):
        print(again)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--runs", type=at_least_1, default=1, help="live runs of each model and algorithm (default: %(default)s)"
    )
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument(
        "--model", action="append", choices=paper.MODELS, help="live runs of this model only; give it again for another"
    )
    arguments = parser.parse_args()
    try:
        reproduce(arguments.runs, arguments.results, arguments.model or paper.MODELS)
    except IonnError as error:
        sys.stderr.write(f"reproduce: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit("interrupted; finished runs are kept, run again to continue")


if __name__ == "__main__":
    main()
