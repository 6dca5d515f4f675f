"""Queries that arrive at times of their own, live: does the virtual testbed predict their response times? 85 minutes.

Poisson arrivals that wait for a busy client, and a camera whose pictures are dropped then, on AlexNet and MobileNet
with the paper's algorithms and slices: over 200 queries in each run. The 90th percentile of response times is compared
with that of the virtual testbed, which is given the costs that were measured in the run; the median of the runs counts.
Traces are kept in results/beyond, and finished runs are not made again; `make beyond` shows them.

python bench/arrivals.py --runs 1 --models mobilenet --algorithms original: two minutes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import support
from per_model import at_least_1

from ionn import paper
from ionn.errors import IonnError
from ionn.evaluation.validation import validate
from ionn.files import matching
from ionn.testbed import runner
from ionn.testbed.arrivals import DROP, WAIT, Arrivals
from ionn.testbed.settings import Settings
from ionn.testbed.trace import RUNS, Trace, trace_path

MODELS = ("alexnet", "mobilenet")
# The arrivals, and whether queries that meet a busy client wait or are dropped.
ARRIVALS = ((Arrivals("poisson:4"), WAIT), (Arrivals("fps:5"), DROP))
WINDOW_S = 60.0
DEADLINE_MS = 200.0
QUERIES = 200
OFF = 0.1
RESULTS = Path("results") / "beyond"


def run_virtual(results: Path) -> list[Trace]:
    """The same runs on the virtual testbed, with the paper's server."""
    return [
        trace
        for model in MODELS
        for arrivals, busy in ARRIVALS
        for trace in runner.run_virtual_all(
            model, paper.SHOWN, results=results, window_s=WINDOW_S, arrivals=arrivals, busy=busy,
            deadline_ms=DEADLINE_MS,
        )
    ]  # fmt: skip


def live_settings(arrivals: Arrivals, busy: str) -> Settings:
    return Settings("live", window_s=WINDOW_S, arrivals=arrivals, busy=busy, deadline_ms=DEADLINE_MS)


def finished(results: Path) -> list[Trace]:
    """The live runs that are in `results`."""
    return [
        Trace.load(path)
        for model in MODELS
        for given in ARRIVALS
        for algorithm in paper.SHOWN
        for path in matching(trace_path(results, live_settings(*given), model, algorithm, 1).parent, RUNS)
    ]


def measure(model: str, algorithms: Sequence[str], runs: int, results: Path) -> list[support.Row]:
    """A row for each of ARRIVALS and each algorithm."""
    subject = runner.prepare_live(model)
    rows: list[support.Row] = []
    for arrivals, busy in ARRIVALS:
        traces = runner.run_live_all(subject, algorithms, runs, live_settings(arrivals, busy), results=results)
        for algorithm in algorithms:
            checked = [validate(trace) for trace in traces if trace.info.algorithm == algorithm]
            responses = [each.measured.responses for each in checked]
            assert all(each.raised >= QUERIES for each in responses)
            errors = [each.p90_error for each in checked]
            name = f"{paper.model_title(model)}, {algorithm}, {arrivals.name}, {busy}"
            support.keep(
                name, p90_ms=[each.p90_ms for each in responses], p90_errors=errors,
                dropped=[each.dropped for each in responses],
            )  # fmt: skip
            rows.append((f"{name}: 90 % predicted off live", OFF, abs(statistics.median(errors)), ""))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--algorithms", nargs="+", choices=paper.SHOWN, default=paper.SHOWN)
    parser.add_argument("--runs", type=at_least_1, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    try:
        print(support.HEAD)
        for model in given.models:
            for row in measure(model, given.algorithms, given.runs, given.results):
                print(support.line(row), flush=True)
    except IonnError as error:
        sys.stderr.write(f"bench/arrivals.py: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
