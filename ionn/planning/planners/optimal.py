"""The best possible order, for comparison: the stages are uploaded one by one, in the order with the least area under
the latency curve (docs/optimality.md).

The area is the latency of queries, integrated over the time of the upload. It depends on the order alone, since every
planner uploads the same stages. Larger partitions never make it smaller, as a stage that is uploaded early can stay
unused.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from ionn.errors import InputError
from ionn.model.slices import Piece
from ionn.planning.graph import ExecutionGraph

Times = NDArray[np.float64]

MOST_STAGES = 20
"""The most stages that `optimal` orders, as it evaluates all of their subsets."""

# `least_area` divides the time of the upload into so many steps.
_STEPS = 20_000


def area(graph: ExecutionGraph, plan: Sequence[Sequence[Piece]]) -> float:
    """The area under the latency curve of a plan until its upload ends, in ms x s."""
    uploaded: list[Piece] = []
    total = 0.0
    for pieces in plan:
        total += graph.latency_ms(uploaded) * graph.overhead_ms(pieces)[0]
        uploaded += pieces
    return total / 1e3


def excess_area(graph: ExecutionGraph, plan: Sequence[Sequence[Piece]]) -> float:
    """The area between the latency curve of a plan and the least possible latency, until its upload ends, in ms x s."""
    upload_ms = sum(graph.overhead_ms(pieces)[0] for pieces in plan)
    return area(graph, plan) - graph.latency_ms(range(len(graph.stages))) * upload_ms / 1e3


def optimal(graph: ExecutionGraph) -> list[list[int]]:
    """The stages one by one: first those without upload overhead, then the others in the order of least area.

    Raises InputError if more than MOST_STAGES stages have an upload overhead.
    """
    weighted, free = _stages(graph)
    if len(weighted) > MOST_STAGES:
        raise InputError(
            f"optimal: {len(weighted)} stages to order, more than the {MOST_STAGES} whose subsets can be counted; "
            "choose another algorithm"
        )
    upload_ms = graph.upload_ms[weighted]
    sets = np.arange(2 ** len(weighted))
    present = (sets[:, None] >> np.arange(len(weighted)) & 1).astype(bool)
    latency_ms = _latencies(graph, weighted, free, present)
    size = present.sum(axis=1)
    least = np.zeros(len(sets))  # the area from each set to the end of the upload
    following = np.zeros(len(sets), dtype=np.int64)  # the stage that is uploaded next
    for count in reversed(range(len(weighted))):
        here = sets[size == count]
        after = np.where(present[here], 0, here[:, None] | 1 << np.arange(len(weighted)))
        areas = np.where(present[here], np.inf, latency_ms[here, None] * upload_ms + least[after])
        following[here] = areas.argmin(axis=1)
        least[here] = areas.min(axis=1)
    plan = [free] if free else []
    chosen = 0
    for _ in weighted:
        plan.append([weighted[following[chosen]]])
        chosen |= 1 << int(following[chosen])
    return plan


def least_area(graph: ExecutionGraph) -> float:
    """A lower bound of the area of any order, in ms x s, for any number of stages.

    For each moment of the upload, it takes the least latency of all sets of stages that can be uploaded until then.
    """
    weighted, free = _stages(graph)
    total_ms = float(graph.upload_ms[weighted].sum())
    if not total_ms:
        return 0.0
    step_ms = total_ms / _STEPS
    steps = np.zeros(len(graph.stages), dtype=np.int64)
    steps[weighted] = (graph.upload_ms[weighted] / step_ms).astype(np.int64)  # rounded down: still a bound

    def arrive(stage: int, there: Times) -> Times:
        executed = np.full(_STEPS, np.inf)
        executed[steps[stage] :] = there[: _STEPS - steps[stage]]
        return executed

    # For each number of steps: the least latency of any stages whose uploads take that long.
    latency_ms = np.minimum.accumulate(_fastest(graph, _STEPS, {*free, *weighted}, arrive))
    return float(latency_ms.sum()) * step_ms / 1e3


def _stages(graph: ExecutionGraph) -> tuple[list[int], list[int]]:
    """The stages to upload: those with an upload overhead, and those without."""
    stages = sorted(graph.shortest_path(np.zeros(len(graph.stages))))
    return [i for i in stages if graph.upload_ms[i] > 0], [i for i in stages if graph.upload_ms[i] == 0]


def _latencies(graph: ExecutionGraph, weighted: list[int], free: list[int], present: NDArray[np.bool_]) -> Times:
    """`graph.latency_ms` of many sets of stages: `present`, (sets, weighted stages), says which of the `weighted`
    stages each set has, and all have the `free` stages."""
    columns = dict(zip(weighted, present.T, strict=True))

    def arrive(stage: int, there: Times) -> Times:
        return np.where(columns[stage], there, np.inf) if stage in columns else there

    return _fastest(graph, len(present), {*free, *weighted}, arrive)


def _fastest(
    graph: ExecutionGraph, cases: int, stages: Collection[int], arrive: Callable[[int, Times], Times]
) -> Times:
    """The latencies of the fastest paths in many cases at once, (cases,), with only `stages` allowed at the server.

    `arrive` maps the times at which the server would have executed a stage, if it had it, to the actual ones: later, or
    never in cases where the server does not have it.
    """
    at_client, at_server = np.zeros(cases), np.full(cases, np.inf)
    for stage in range(len(graph.stages)):
        there = np.minimum(at_server, at_client + graph.up_ms[stage]) + graph.server_ms[stage]
        at_client = np.minimum(at_client, at_server + graph.down_ms[stage]) + graph.client_ms[stage]
        at_server = arrive(stage, there) if stage in stages else np.full(cases, np.inf)
    latencies: Times = np.minimum(at_client, at_server + graph.down_ms[-1])
    return latencies
