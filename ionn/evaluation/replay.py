"""The data for the page's replay of a run: the chain, the arrival of its parts, and the routes of queries.

`web/replay.js` draws it. Times are seconds since the upload began; durations are in ms.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from ionn.model.slices import Piece, Slice, stage_of
from ionn.planning.graph import ExecutionGraph, Leg
from ionn.records import Segment
from ionn.testbed.trace import Trace

_PLACES = ("client", "server", "both")


def replay(trace: Trace, queries_max: int) -> dict[str, Any]:
    """A run as JSON.

    - `stages`: their names. `uploadMs`, `clientMs`, `pinned`: a value for each stage. `held`: the numbers of the stages
      that the server held before the run.
    - `partitions`: `start`, `end`, `ready`, `megabytes`, and `parts`, each [stage, begin, end], where begin and end are
      shares of the stage's channels.
    - `routes`: lists of legs, each [place, first stage, last stage, from server, to server]. The place is 0 (client), 1
      (server) or 2 (both); the last two say whether the data is at the server before and after the leg.
    - `queries`: each [start, end, number of its route, durations], with [up, compute, down] for each leg. If the run
      has more than `queries_max` queries, only every k-th is there; `every` is k, and `total` the number of all.
    - `end`: when the run and its upload are over.
    """
    graph, held = trace.info.graph, trace.info.plan.held
    every = -(-len(trace.queries) // queries_max)
    pieces = pieces_that_arrived(trace)
    ready_s = [each.ready_s for each in trace.partitions]

    @cache
    def legs(usable: tuple[int, ...]) -> tuple[Leg, ...]:
        return graph.legs([*held, *(piece for index in usable for piece in pieces[index])])

    routes: dict[tuple[Leg, ...], int] = {}
    queries = []
    for query in trace.queries[::every]:
        usable = tuple(index for index, time_s in enumerate(ready_s) if time_s <= query.start_s)
        route = _route(query.segments, legs(usable))
        number = routes.setdefault(route, len(routes))
        durations = [_durations(*each, graph) for each in zip(query.segments, route, strict=True)]
        queries.append([_seconds(query.start_s), _seconds(query.end_s), number, durations])
    partitions = [
        {
            "start": _seconds(each.start_s),
            "end": _seconds(each.end_s),
            "ready": _seconds(each.ready_s),
            "megabytes": round(each.bytes / 1e6, 3),
            "parts": [_part(graph, piece) for piece in parts],
        }
        for each, parts in zip(trace.partitions, pieces, strict=True)
    ]
    return {
        "stages": list(graph.stages),
        "uploadMs": _milliseconds(graph.upload_ms),
        "clientMs": _milliseconds(graph.client_ms),
        "pinned": [not offloadable for offloadable in graph.offloadable.tolist()],
        "held": list(held),
        "partitions": partitions,
        "routes": [[[_PLACES.index(leg.where), *leg[1:]] for leg in route] for route in routes],
        "queries": queries,
        "total": len(trace.queries),
        "every": every,
        "end": _seconds(max(trace.queries[-1].end_s, trace.upload_s)),
    }


def pieces_that_arrived(trace: Trace) -> list[list[Piece]]:
    """Return the pieces of each partition of a run."""
    planned = {partition.index: partition.pieces for partition in trace.info.plan.partitions}
    return [_pieces(trace.info.graph, planned.get(each.index, ()), each.stages) for each in trace.partitions]


def _route(segments: Sequence[Segment], planned: Sequence[Leg]) -> tuple[Leg, ...]:
    """The legs that were recorded. Between them the data was where the planned route has it, if the query took that
    route; otherwise it is taken to have come back to the client after each leg."""
    recorded = [(each.where, each.first, each.last) for each in segments]
    if recorded == [leg[:3] for leg in planned]:
        return tuple(planned)
    return tuple(Leg(*each, from_server=False, to_server=False) for each in recorded)


def _pieces(graph: ExecutionGraph, planned: Sequence[Piece], names: Sequence[str]) -> list[Piece]:
    """The pieces of a partition that arrived: those that the plan has for it. If a client that measures has planned
    again meanwhile, only the names of its stages are known, which are then taken to be whole."""
    if [graph.stages[stage_of(piece)] for piece in planned] == list(names):
        return list(planned)
    return [graph.stages.index(name) for name in names if name in graph.stages]


def _part(graph: ExecutionGraph, piece: Piece) -> list[float]:
    if not isinstance(piece, Slice):
        return [piece, 0, 1]
    channels = {cut.stage: cut.channels for cut in graph.cuts}[piece.stage]
    return [piece.stage, round(piece.begin / channels, 4), round(piece.end / channels, 4)]


def _durations(segment: Segment, leg: Leg, graph: ExecutionGraph) -> list[float]:
    """How long the input went up, the stages computed, and the output came down. Only the sum of both transfers is
    recorded; it is divided as the costs predict."""
    if segment.where != "server":
        return [0, round(segment.total_ms, 2), 0]
    moved_ms = max(segment.total_ms - segment.compute_ms, 0.0)
    up_ms = 0.0 if leg.from_server else float(graph.up_ms[segment.first])
    down_ms = 0.0 if leg.to_server else float(graph.down_ms[segment.last + 1])
    share = up_ms / (up_ms + down_ms) if up_ms + down_ms else 0.5
    return [round(ms, 2) for ms in (moved_ms * share, segment.total_ms - moved_ms, moved_ms * (1 - share))]


def _seconds(value: float) -> float:
    return round(value, 4)


def _milliseconds(values: Any) -> list[float]:
    return [round(value, 3) for value in values.tolist()]
