"""Recursive efficiency, continued below the layer: partitions whose weights are large go up in slices.

The recursion of the paper (section 3.3) ends at a stage. Here a stage that can be cut is a partition of slices: its
first slice goes first, and the rest of it is next, as after every recursion of the paper. So the bytes go up in the
order of `recursive_efficiency`, only in smaller partitions: no plan is worse for it but by what the slices cost.

How many slices is a matter of cost. A stage that saves `gain` when all of its `upload` is there saves, in `k` equal
slices, a k-th of it after every k-th of the time. Against saving it evenly all the while, that loses gain x upload / 2k
(latency x time). Each slice in turn takes `slice_ms` more, and holds back for that long what is still to be saved: half
of the gain on average, and all of `rest`, what later partitions save. Both together are least for

    k = sqrt(gain x upload / (slice_ms x (2 rest + gain)))

and below two, no slices are better. But a slice has at least `least` channels (`ionn.model.slices`), and must make
queries faster than they were without it and slower than they are with the whole stage, else it stays with the next one.
"""

from __future__ import annotations

import math

from ionn.model.slices import Piece, Slice, stage_of
from ionn.planning.graph import ExecutionGraph
from ionn.planning.planners.efficiency import recursive_efficiency
from ionn.planning.slice_costs import SlicePlan


def sliced_efficiency(graph: ExecutionGraph) -> list[list[Piece]]:
    """The partitions of `recursive_efficiency`, those that can be cut in slices."""
    best_ms = graph.latency_ms(range(len(graph.stages)))
    plan: list[list[Piece]] = []
    uploaded: list[Piece] = []
    for stages in recursive_efficiency(graph):
        plan += _cut(graph, uploaded, stages, best_ms)
        uploaded += stages
    return plan


def _cut(graph: ExecutionGraph, uploaded: list[Piece], stages: list[int], best_ms: float) -> list[list[Piece]]:
    """A partition as partitions, the stage with the largest upload that can be cut in slices."""
    cuts = [cut for cut in graph.cuts if cut.stage in stages and graph.has_weights[cut.stage]]
    if not cuts:
        return [list(stages)]
    before_ms, after_ms = graph.latency_ms(uploaded), graph.latency_ms([*uploaded, *stages])
    # What saves more than it takes to upload is needed as a whole (paper, section 3.4).
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
    if gain_ms <= 0:  # some slices of it, at both sides, are as fast as all of it at the server
        return 1
    wait_ms = cut.slice_ms * (2 * rest_ms + gain_ms)
    ideal = math.sqrt(gain_ms * graph.upload_ms[cut.stage] / wait_ms) if wait_ms > 0 else math.inf
    return round(min(ideal, cut.most_slices(graph.held_channels(cut.stage)))) if ideal >= 2 else 1
