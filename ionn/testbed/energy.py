"""The energy that a query takes of its client, from a trace alone: what it did how long, times what that draws.

The power of the client is what IONN's authors give for their Odroid XU4, a number each for computing, for the radio,
and for waiting. At any time the client draws the most of what it does:

- it computes: its own stages, and its channels of a stage at both sides;
- else it sends or receives: features, whose delay on the link and whose coding count as that, or weights that are
  under way, from when the link turned to a partition until its last byte arrived, held back meanwhile or not;
- else it waits: for the server to compute, or for nothing that the trace knows of.

Nothing is measured: the numbers are the authors' for their board and their Wi-Fi, so energies can be compared with each
other, and mean little for another device. What the trace does not say is taken to be simple. Where weights are under
way for a part of a leg at the server, so they are for that part of the server's computing. A stage at both sides
computes at the client for as long as at the side that takes longer, which is the client's but for the last channels.
What the client draws between queries is no query's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ionn.records import PartitionRecord, QueryRecord
from ionn.testbed.trace import Trace

# IONN's authors' for the Odroid XU4.
COMPUTE_W = 7.239
TRANSFER_W = 6.611
IDLE_W = 3.977

Spans = Sequence[tuple[float, float]]


def mean_energy_j(trace: Trace) -> float:
    """The client's energy per query in J, over the queries that started before the upload ended, or over all where
    nothing was uploaded; NaN where there is none."""
    spans_s = upload_spans_s(trace.partitions)
    queries = trace.in_upload if trace.partitions else trace.queries
    energies = [query_energy_j(query, spans_s) for query in queries]
    return math.fsum(energies) / len(energies) if energies else math.nan


def upload_spans_s(partitions: Sequence[PartitionRecord]) -> Spans:
    """When weights are under way: (begin, end) in seconds, ascending, neighbours joined."""
    spans: list[tuple[float, float]] = []
    for begin_s, end_s in sorted((each.start_s, each.end_s) for each in partitions):
        if spans and begin_s <= spans[-1][1]:
            spans[-1] = spans[-1][0], max(end_s, spans[-1][1])
        else:
            spans.append((begin_s, end_s))
    return spans


def query_energy_j(query: QueryRecord, spans_s: Spans = ()) -> float:
    """The client's energy in J from the start of a query to its end, while weights are under way in `spans_s`."""
    begin_s, energy_j = query.start_s, 0.0
    for segment in query.segments:
        length_s = segment.total_ms / 1e3
        end_s = begin_s + length_s
        at_work_s = length_s if segment.where == "client" else min(segment.compute_ms / 1e3, length_s)
        power_w = _waiting_w(begin_s, end_s, spans_s) if segment.where == "server" else COMPUTE_W
        energy_j += at_work_s * power_w + (length_s - at_work_s) * TRANSFER_W
        begin_s = end_s
    # What no segment accounts for is waited for: a server that was late, or the client's own code between segments.
    return energy_j + max(0.0, query.end_s - begin_s) * _waiting_w(begin_s, query.end_s, spans_s)


def _waiting_w(begin_s: float, end_s: float, spans_s: Spans) -> float:
    """What the client draws on average while it waits: weights may be under way."""
    if not begin_s < end_s:
        return IDLE_W
    busy_s = sum(max(0.0, min(end_s, end) - max(begin_s, begin)) for begin, end in spans_s)
    return IDLE_W + (TRANSFER_W - IDLE_W) * busy_s / (end_s - begin_s)
