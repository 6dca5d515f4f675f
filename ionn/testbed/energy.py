"""The energy that a query costs its client, computed from a trace: the times of its activities, times their power.

IONN's authors give three powers for their Odroid XU4: for computing, for the radio, and for waiting. At any time, the
client draws the power of the first of these activities that applies:

- it computes: its own stages, and its channels of a stage at both sides;
- it sends or receives: features, with their delay on the link and their coding, or weights that are under way, from
  the beginning of a partition's upload until its last byte has arrived, held back meanwhile or not;
- it waits: for the server to compute, or for anything that is not in the trace.

Nothing is measured. The powers are those of the authors' board and its Wi-Fi, so energies can be compared with each
other, but mean little for another device. Two things that a trace does not tell are simplified. If weights are under
way during a part of a segment at the server, they count as under way during the same part of the server's computing. At
a stage that both sides compute, the client counts as computing for as long as the slower side takes; that is the
client, except for the last channels. Power between queries is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ionn.records import PartitionRecord, QueryRecord
from ionn.testbed.trace import Trace

# The powers that IONN's authors give for the Odroid XU4.
COMPUTE_W = 7.239
TRANSFER_W = 6.611
IDLE_W = 3.977

Spans = Sequence[tuple[float, float]]


def mean_energy_j(trace: Trace) -> float:
    """The client's mean energy per query in J, over the queries that started before the upload ended, or over all if
    nothing was uploaded; NaN if there are none."""
    spans_s = upload_spans_s(trace.partitions)
    queries = trace.in_upload if trace.partitions else trace.queries
    energies = [query_energy_j(query, spans_s) for query in queries]
    return math.fsum(energies) / len(energies) if energies else math.nan


def upload_spans_s(partitions: Sequence[PartitionRecord]) -> Spans:
    """The spans in which weights are under way: (begin, end) in seconds, ascending, with adjacent spans joined."""
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
    # Time outside of all segments counts as waiting: for a late server, or in the client's own code between segments.
    return energy_j + max(0.0, query.end_s - begin_s) * _waiting_w(begin_s, query.end_s, spans_s)


def _waiting_w(begin_s: float, end_s: float, spans_s: Spans) -> float:
    """The client's mean power while it waits, in which weights may be under way."""
    if not begin_s < end_s:
        return IDLE_W
    busy_s = sum(max(0.0, min(end_s, end) - max(begin_s, begin)) for begin, end in spans_s)
    return IDLE_W + (TRANSFER_W - IDLE_W) * busy_s / (end_s - begin_s)
