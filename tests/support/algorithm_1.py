"""Algorithm 1 of the paper (section 3.4), as it is printed there: the planners are compared with it.

`efficiency` and `recursive_efficiency` in `ionn.planning.planners.efficiency` make the same plans a thousand times
faster. This one computes every efficiency anew, from two latencies, whenever something was uploaded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from ionn.model.slices import Piece, runs_of
from ionn.planning.graph import ExecutionGraph
from ionn.planning.planners.weightless import merge_weightless
from tests.support.chains import forced_ms

Candidate = tuple[int, ...]


def algorithm_1(graph: ExecutionGraph, *, recursive: bool = True) -> list[list[Piece]]:
    """Partitions in upload order. Without `recursive`, lines 8 and 9 are left out: the algorithm of section 3.2.

    Of equally efficient candidates the earlier one is taken, of two that begin alike the shorter one.
    """
    plan: list[list[int]] = []  # line 2
    optimal = graph.shortest_path(np.zeros(len(graph.stages)))  # line 3: everything that is worth uploading at all
    initial = graph.shortest_path(graph.upload_ms)  # line 4: what gains more than its upload takes
    if initial:
        plan.append(sorted(initial))
    uploaded = set(initial)
    while missing := optimal - uploaded:  # line 6
        # Lines 5, 11 and 12: runs of adjacent stages that are not uploaded, and their efficiencies by now.
        efficiencies = {run: efficiency(graph, uploaded, run) for run in candidates(missing)}

        def preference(run: Candidate) -> tuple[float, int, int]:
            return -efficiencies[run], run[0], len(run)  # noqa: B023 - it is called before it changes

        p = min(efficiencies, key=preference)  # line 7
        while recursive:  # line 8
            parts = [run for run in efficiencies if set(run) < set(p) and efficiencies[run] > 0]
            if not parts:
                break
            p = min(parts, key=preference)  # line 9
        plan.append(list(p))  # line 10
        uploaded.update(p)
    return merge_weightless(graph, plan)  # ours: what sends nothing is no partition of its own


def candidates(missing: Iterable[int]) -> list[Candidate]:
    """All runs of adjacent stages among those that are `missing` at the server."""
    return [
        tuple(range(begin, end + 1))
        for first, last in runs_of(missing)
        for begin in range(first, last + 1)
        for end in range(begin, last + 1)
    ]


def efficiency(graph: ExecutionGraph, uploaded: Iterable[int], run: Candidate) -> float:
    """Latency improvement per upload overhead (section 3.2); without overhead inf, 0 or -inf, by what it improves."""
    improvement_ms = forced_ms(graph, uploaded) - forced_ms(graph, {*uploaded, *run})
    overhead_ms = float(graph.upload_ms[list(run)].sum())
    if overhead_ms > 0:
        return improvement_ms / overhead_ms
    return math.copysign(math.inf, improvement_ms) if improvement_ms else 0.0
