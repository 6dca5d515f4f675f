"""The best order there is, for comparison: uploads of one stage each, in the order with the least area under the
latency curve.

The area is the latency of queries integrated over the time of the upload. It depends on the order alone, since every
planner uploads the same stages. A larger partition never makes it less, as a stage uploaded early can stay unused.
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
"""That `optimal` orders: it weighs all of their subsets."""

# Into which `least_area` divides the time of the upload.
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
    """The area between the latency curve of a plan and the least latency there is, until its upload ends, in ms x s."""
    upload_ms = sum(graph.overhead_ms(pieces)[0] for pieces in plan)
    return area(graph, plan) - graph.latency_ms(range(len(graph.stages))) * upload_ms / 1e3


def optimal(graph: ExecutionGraph) -> list[list[int]]:
    """The stages one by one in the order of least area, after those without upload overhead.

    Raises InputError where more than MOST_STAGES have an upload overhead.
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
    least = np.zeros(len(sets))  # area from a set to the end of the upload
    following = np.zeros(len(sets), dtype=np.int64)  # what goes up next
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
    """A bound for any number of stages: no order has an area below it, in ms x s.

    It takes each instant by itself: the least latency that any stages allow whose uploads fit into the time until then.
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

    # After k steps: the least latency of any stages whose uploads take so long.
    latency_ms = np.minimum.accumulate(_fastest(graph, _STEPS, {*free, *weighted}, arrive))
    return float(latency_ms.sum()) * step_ms / 1e3


def _stages(graph: ExecutionGraph) -> tuple[list[int], list[int]]:
    """The stages to upload, with and without an upload overhead."""
    stages = sorted(graph.shortest_path(np.zeros(len(graph.stages))))
    return [i for i in stages if graph.upload_ms[i] > 0], [i for i in stages if graph.upload_ms[i] == 0]


def _latencies(graph: ExecutionGraph, weighted: list[int], free: list[int], present: NDArray[np.bool_]) -> Times:
    """`graph.latency_ms` of many sets: `present` is (sets, weighted stages); the free stages are in all of them."""
    columns = dict(zip(weighted, present.T, strict=True))

    def arrive(stage: int, there: Times) -> Times:
        return np.where(columns[stage], there, np.inf) if stage in columns else there

    return _fastest(graph, len(present), {*free, *weighted}, arrive)


def _fastest(
    graph: ExecutionGraph, cases: int, stages: Collection[int], arrive: Callable[[int, Times], Times]
) -> Times:
    """The latencies of the fastest paths in many cases at once, (cases,), with no more than `stages` at the server.

    `arrive` turns the times by which a stage would have been executed at the server into those by which it is: later
    or, where it is not there, never.
    """
    at_client, at_server = np.zeros(cases), np.full(cases, np.inf)
    for stage in range(len(graph.stages)):
        there = np.minimum(at_server, at_client + graph.up_ms[stage]) + graph.server_ms[stage]
        at_client = np.minimum(at_client, at_server + graph.down_ms[stage]) + graph.client_ms[stage]
        at_server = arrive(stage, there) if stage in stages else np.full(cases, np.inf)
    latencies: Times = np.minimum(at_client, at_server + graph.down_ms[-1])
    return latencies
