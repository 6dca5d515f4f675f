"""Partitions without weights, such as that of a pooling layer, are merged with a neighbour.

A partition without weights is complete as soon as the one before it is, so it becomes part of that one, which changes
no latency. If it is the first, it becomes part of the next one, so queries can use it only when that one has arrived.
"""

from __future__ import annotations

from collections.abc import Sequence

from ionn.model.slices import Piece, stage_of
from ionn.planning.graph import ExecutionGraph


def merge_weightless(graph: ExecutionGraph, plan: Sequence[Sequence[Piece]]) -> list[list[Piece]]:
    """The plan with each partition that has no weights merged with its neighbour. Partitions are sorted by stage."""
    merged: list[list[Piece]] = []
    any_sent = False
    for pieces in plan:
        sends = any(graph.has_weights[stage_of(piece)] for piece in pieces)
        if merged and not (sends and any_sent):
            merged[-1] = sorted([*merged[-1], *pieces], key=stage_of)
        else:
            merged.append(list(pieces))
        any_sent = any_sent or sends
    return merged
