"""IONN's own algorithm (paper, section 2.2): shortest paths while a penalty factor on the upload overhead shrinks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ionn.graph import ExecutionGraph

HALVING = (*(0.5**k for k in range(7)), 0.0)
FINE_STEPS = 10_000  # section 4.4 lowers the factor by 0.0001 at a time


def original(graph: ExecutionGraph) -> list[list[int]]:
    """Penalty factors 1, 1/2, ..., 1/64, 0."""
    return _plan(graph, HALVING)


def original_fine(graph: ExecutionGraph) -> list[list[int]]:
    """Penalty factors 1, 0.9999, ..., 0.0001, 0, the paper's stand-in for `efficiency` in section 4.4."""
    return _plan(graph, [step / FINE_STEPS for step in range(FINE_STEPS, -1, -1)])


def _plan(graph: ExecutionGraph, factors: Sequence[float]) -> list[list[int]]:
    """One partition per factor whose shortest path brings new stages to the server. The last factor is 0."""
    missing = graph.shortest_path(np.zeros(len(graph.stages)))
    plan: list[list[int]] = []
    for factor in factors:
        if not missing:
            break
        # What is uploaded has no overhead any more. Counting it changes nothing: as the factor falls, the path keeps
        # every server-side stage that it has, so it pays that overhead either way.
        if partition := sorted(graph.shortest_path(factor * graph.upload_ms) & missing):
            plan.append(partition)
            missing = missing.difference(partition)
    return plan
