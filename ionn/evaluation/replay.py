"""What the page's replay of a run needs, as plain data: the chain, when which part of it arrived, and where queries were.

`web/replay.js` draws it. All times are seconds since the upload began, widths are in ms of time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ionn.model.slices import Piece, Slice, stage_of
from ionn.planning.graph import ExecutionGraph
from ionn.records import QueryRecord, Segment
from ionn.testbed.trace import Trace



_PLACES = ("client", "server", "both")


def replay(trace: Trace, queries_max: int) -> dict[str, Any]:
    """A run as JSON: `stages` by name, with `uploadMs` and `clientMs`; `partitions` with start, end and when they are
    usable, and their parts: [stage, begin, end], begin and end being shares of its channels; `routes`, each a list of
    [place, first stage, last stage], place being 0 (client), 1 (server) or 2 (both); `queries`, each [start, end,
    route, times], times being [up, compute, down] in ms for each step of the route. `every` is k where only every k-th
    query is there."""
    graph = trace.info.graph
    every = -(-len(trace.queries) // queries_max)
    routes: dict[tuple[tuple[int, int, int], ...], int] = {}
    queries = []
    for query in trace.queries[::every]:
        segments = _within(query, len(graph.stages))
        route = tuple((_PLACES.index(each.where), each.first, each.last) for each in segments)
        number = routes.setdefault(route, len(routes))
        times = [_times(each, graph) for each in segments]
        queries.append([_seconds(query.start_s), _seconds(query.end_s), number, times])
    planned = {partition.index: partition.pieces for partition in trace.info.plan.partitions}
    partitions = [
        {
            "start": _seconds(each.start_s),
            "end": _seconds(each.end_s),
            "ready": _seconds(each.ready_s),
            "megabytes": round(each.bytes / 1e6, 3),
            "parts": [_part(graph, piece) for piece in _pieces(graph, planned.get(each.index, ()), each.stages)],
        }
        for each in trace.partitions
    ]
    return {
        "stages": list(graph.stages),
        "uploadMs": _milliseconds(graph.upload_ms),
        "clientMs": _milliseconds(graph.client_ms),
        "pinned": [not offloadable for offloadable in graph.offloadable.tolist()],
        "partitions": partitions,
        "routes": [list(map(list, route)) for route in routes],
        "queries": queries,
        "total": len(trace.queries),
        "every": every,
        "end": max(trace.queries[-1].end_s, trace.upload_s),
    }


def _within(query: QueryRecord, stages: int) -> list[Segment]:
    """The segments that are of this chain: what is drawn must be there."""
    return [each for each in query.segments if each.first <= each.last < stages]


def _pieces(graph: ExecutionGraph, planned: Sequence[Piece], names: Sequence[str]) -> list[Piece]:
    """What a partition that arrived consists of: as it was planned. A client that measures plans again meanwhile, and
    then only the names of the stages are known."""
    if [graph.stages[stage_of(piece)] for piece in planned] == list(names):
        return list(planned)
    return [graph.stages.index(name) for name in names if name in graph.stages]


def _part(graph: ExecutionGraph, piece: Piece) -> list[float]:
    if not isinstance(piece, Slice):
        return [piece, 0, 1]
    channels = {cut.stage: cut.channels for cut in graph.cuts}[piece.stage]
    return [piece.stage, round(piece.begin / channels, 4), round(piece.end / channels, 4)]


def _times(segment: Segment, graph: ExecutionGraph) -> list[float]:
    """How long the input went up, the stages computed, and the output came down, in ms. What is recorded is the sum of
    both transfers: it is divided as the costs say."""
    if segment.where != "server":
        return [0, round(segment.total_ms, 2), 0]
    moved_ms = max(segment.total_ms - segment.compute_ms, 0.0)
    up_ms, down_ms = float(graph.up_ms[segment.first]), float(graph.down_ms[segment.last + 1])
    share = up_ms / (up_ms + down_ms) if up_ms + down_ms else 0.5
    return [round(ms, 2) for ms in (moved_ms * share, segment.total_ms - moved_ms, moved_ms * (1 - share))]


def _seconds(value: float) -> float:
    return round(value, 4)


def _milliseconds(values: Any) -> list[float]:
    return [round(value, 3) for value in values.tolist()]
