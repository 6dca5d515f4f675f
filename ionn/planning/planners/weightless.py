"""Stages without weights, such as a pooling layer's, are no partitions of their own.

A partition that sends nothing is complete when the one before it is, so it belongs to that one: whatever has been sent,
queries are as fast as before. Only the first has none before it; it belongs to the next, and queries wait for that.
"""

from __future__ import annotations

from collections.abc import Sequence

from ionn.model.slices import Piece, stage_of
from ionn.planning.graph import ExecutionGraph


def merge_weightless(graph: ExecutionGraph, plan: Sequence[Sequence[Piece]]) -> list[list[Piece]]:
    """The plan with every partition that has no weights as a part of its neighbour; partitions are sorted by stage."""
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
