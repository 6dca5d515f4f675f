"""Recursive partitioning, continued below the layer: stages with large weights are uploaded in slices.

The paper's recursion (section 3.3) ends at single stages. Here, it continues with the slices of a stage that can be
cut: its first slice is uploaded first, and the rest of it next, as after every recursion of the paper. So the bytes
are uploaded in the order of `recursive_efficiency`, only in smaller partitions, and a plan can be worse only by the
fixed time of its slices.

The number of slices balances gain and cost. Let a stage save `gain` of latency after an upload of the time `upload`.
In k equal slices, it saves a k-th of the gain after every k-th of the time. Compared with a saving that grows evenly,
this loses gain x upload / 2k (latency x time). On the other hand, each slice takes `slice_ms` more, and delays by this
time what is still to be saved: on average half of the gain, and all of `rest`, the saving of later partitions. The sum
of both is least for

    k = sqrt(gain x upload / (slice_ms x (2 rest + gain)))

and for k below two, the stage is better not sliced. Also, a slice has at least `least` channels (`ionn.model.slices`),
and with it queries must be faster than without it, but slower than with the whole stage; otherwise it is joined with
the next.
"""

from __future__ import annotations

import math

from ionn.model.slices import Piece, Slice, stage_of
from ionn.planning.graph import ExecutionGraph
from ionn.planning.planners.efficiency import recursive_efficiency
from ionn.planning.slice_costs import SlicePlan


def sliced_efficiency(graph: ExecutionGraph) -> list[list[Piece]]:
    """The partitions of `recursive_efficiency`, in which stages that can be cut are divided into slices."""
    best_ms = graph.latency_ms(range(len(graph.stages)))
    plan: list[list[Piece]] = []
    uploaded: list[Piece] = []
    for stages in recursive_efficiency(graph):
        plan += _cut(graph, uploaded, stages, best_ms)
        uploaded += stages
    return plan


def _cut(graph: ExecutionGraph, uploaded: list[Piece], stages: list[int], best_ms: float) -> list[list[Piece]]:
    """Divide a partition into several: of its stages that can be cut, the one with the longest upload is."""
    cuts = [cut for cut in graph.cuts if cut.stage in stages and graph.has_weights[cut.stage]]
    if not cuts:
        return [list(stages)]
    before_ms, after_ms = graph.latency_ms(uploaded), graph.latency_ms([*uploaded, *stages])
    # A partition that saves more than its upload takes is uploaded as a whole (paper, section 3.4).
    if before_ms - after_ms > graph.overhead_ms(stages)[0]:
        return [list(stages)]
    cut = max(cuts, key=lambda cut: graph.upload_ms[cut.stage])
    others: list[Piece] = [stage for stage in stages if stage != cut.stage]
    present = [*uploaded, *others]
    slower_ms, begin = before_ms, 0
    partitions: list[list[Piece]] = []
    slices = _number_of_slices(graph, cut, graph.latency_ms(present) - after_ms, after_ms - best_ms)
    for end in cut.ends(slices, graph.held_channels(cut.stage)):
        latency_ms = graph.latency_ms([*present, Slice(cut.stage, 0, end)])
        if after_ms < latency_ms < slower_ms or end == cut.channels:
            partitions.append([Slice(cut.stage, begin, end)])
            slower_ms, begin = latency_ms, end
    if len(partitions) == 1:
        return [list(stages)]
    partitions[0] = sorted(others + partitions[0], key=stage_of)
    return partitions


def _number_of_slices(graph: ExecutionGraph, cut: SlicePlan, gain_ms: float, rest_ms: float) -> int:
    """The k of the formula above, as a whole number that the stage allows."""
    if gain_ms <= 0:  # queries are as fast without what is missing of the stage
        return 1
    wait_ms = cut.slice_ms * (2 * rest_ms + gain_ms)
    ideal = math.sqrt(gain_ms * graph.upload_ms[cut.stage] / wait_ms) if wait_ms > 0 else math.inf
    return round(min(ideal, cut.most_slices(graph.held_channels(cut.stage)))) if ideal >= 2 else 1
