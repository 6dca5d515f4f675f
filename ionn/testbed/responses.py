"""What became of queries that were raised by themselves: how long each took from its arrival to its answer."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ionn.records import QueryRecord

# A run is looked at in as many spans of equal length at most, so that a figure and a JSON of a long one stay small.
SPANS_MAX = 60


@dataclass(frozen=True)
class Responses:
    """The queries that were raised from `start_s` on, and before `end_s`.

    `dropped` of those `raised` were never answered. The response times of the others, from arrival to answer, are at
    most `p50_ms` for 50 % of them, and so on; NaN where there is none. `within_deadline` is the share of all raised,
    those dropped included, that were answered within the deadline; NaN where there is no deadline or no query.
    """

    start_s: float
    end_s: float
    raised: int
    dropped: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    within_deadline: float


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of the values, which are in ascending order, that at least so many percent of them do not exceed;
    NaN where there is none."""
    return values[max(math.ceil(len(values) * percent / 100), 1) - 1] if values else math.nan


def responses_of(
    queries: Sequence[QueryRecord], dropped_s: Sequence[float], deadline_ms: float | None, start_s: float, end_s: float
) -> Responses:
    """What became of the queries that were answered, and of those raised at `dropped_s`, which were not: of all that
    were raised within the span. Both are in the order in which they were raised."""
    first, end = (bisect_left(queries, time_s, key=lambda query: query.raised_s) for time_s in (start_s, end_s))
    response_ms = sorted(query.response_ms for query in queries[first:end])
    dropped = bisect_left(dropped_s, end_s) - bisect_left(dropped_s, start_s)
    raised = len(response_ms) + dropped
    within = math.nan
    if deadline_ms is not None and raised:
        within = sum(ms <= deadline_ms for ms in response_ms) / raised
    p50_ms, p90_ms, p99_ms = (percentile(response_ms, percent) for percent in (50, 90, 99))
    return Responses(start_s, end_s, raised, dropped, p50_ms, p90_ms, p99_ms, within)


def spans(end_s: float) -> Iterator[tuple[float, float]]:
    """Spans of 1, 2, 5, 10, 20, 50 ... seconds that cover the time from 0 to `end_s`, at most SPANS_MAX of them."""
    lengths_s = (digit * 10.0**exponent for exponent in itertools.count() for digit in (1, 2, 5))
    length_s = next(length_s for length_s in lengths_s if end_s < SPANS_MAX * length_s)
    return ((number * length_s, (number + 1) * length_s) for number in range(int(end_s / length_s) + 1))
