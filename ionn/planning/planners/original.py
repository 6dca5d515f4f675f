"""IONN's own algorithm (paper, section 2.2): shortest paths while a penalty factor on the upload overhead shrinks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ionn.planning.graph import ExecutionGraph

HALVING = tuple(0.5**k for k in range(7))
FINE_STEPS = 10_000  # section 4.4 lowers the factor by 0.0001 at a time

Stages = frozenset[int]


def original(graph: ExecutionGraph) -> list[list[int]]:
    """Penalty factors 1, 1/2, ..., 1/64, 0."""
    return _plan(graph, HALVING)


def original_fine(graph: ExecutionGraph) -> list[list[int]]:
    """Penalty factors 1, 0.9999, ..., 0.0001, 0, the paper's stand-in for `efficiency` in section 4.4."""
    return _plan(graph, [step / FINE_STEPS for step in range(FINE_STEPS, 0, -1)])


def _plan(graph: ExecutionGraph, factors: Sequence[float]) -> list[list[int]]:
    """One partition per factor whose shortest path brings new stages to the server; after `factors`, the last is 0."""

    # What is uploaded has no overhead any more. Counting it changes nothing: as the factor falls, the path keeps every
    # server-side stage that it has, so it pays that overhead either way. For the same reason, where two factors have
    # the same path, all between them have it too.
    def partitions(before: int, until: int, uploaded: Stages, in_the_end: Stages) -> list[list[int]]:
        """Return the partitions of the factors after index `before` up to index `until`."""
        if uploaded == in_the_end:
            return []
        if until - before == 1:
            return [sorted(in_the_end - uploaded)]
        middle = (before + until) // 2
        by_then = uploaded | (graph.shortest_path(factors[middle] * graph.upload_ms) & in_the_end)
        return partitions(before, middle, uploaded, by_then) + partitions(middle, until, by_then, in_the_end)

    return partitions(-1, len(factors), frozenset(), graph.shortest_path(np.zeros(len(graph.stages))))
