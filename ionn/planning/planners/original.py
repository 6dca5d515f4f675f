"""IONN's original algorithm (paper, section 2.2): shortest paths while the penalty factor on upload overheads falls."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ionn.planning.graph import ExecutionGraph

HALVING = tuple(0.5**k for k in range(7))
FINE_STEPS = 10_000  # section 4.4 lowers the factor by 0.0001 at a time

Stages = frozenset[int]


def original(graph: ExecutionGraph) -> list[list[int]]:
    """Plan with the penalty factors 1, 1/2, ..., 1/64, 0 (paper, section 3.1)."""
    return _plan(graph, HALVING)


def original_fine(graph: ExecutionGraph) -> list[list[int]]:
    """Plan with the penalty factors 1, 0.9999, ..., 0.0001, 0, which the paper compares with `efficiency` (section
    4.4)."""
    return _plan(graph, [step / FINE_STEPS for step in range(FINE_STEPS, 0, -1)])


def _plan(graph: ExecutionGraph, factors: Sequence[float]) -> list[list[int]]:
    """One partition for each factor whose shortest path has new stages at the server. The last factor, 0, is not among
    `factors`."""

    # Uploaded stages have no overhead any more, but it may be counted: as the factor falls, every stage at the server
    # stays there, so all paths that could be the shortest have that overhead. For the same reason, if two factors have
    # the same path, so have all factors between them.
    def partitions(before: int, until: int, uploaded: Stages, in_the_end: Stages) -> list[list[int]]:
        """Return the partitions of the factors after index `before`, up to and including index `until`."""
        if uploaded == in_the_end:
            return []
        if until - before == 1:
            return [sorted(in_the_end - uploaded)]
        middle = (before + until) // 2
        by_then = uploaded | (graph.shortest_path(factors[middle] * graph.upload_ms) & in_the_end)
        return partitions(before, middle, uploaded, by_then) + partitions(middle, until, by_then, in_the_end)

    return partitions(-1, len(factors), frozenset(), graph.shortest_path(np.zeros(len(graph.stages))))
