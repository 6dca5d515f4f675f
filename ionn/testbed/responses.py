"""Response times, from arrival to answer, of queries that are raised at times of their own (docs/arrivals.md)."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ionn.records import QueryRecord

# A run is divided into at most so many spans of equal length, so that figures and the JSON of long runs stay small.
SPANS_MAX = 60


@dataclass(frozen=True)
class Responses:
    """The queries that were raised from `start_s` on, and before `end_s` (seconds since the upload began).

    - `raised`: their number. `dropped`: how many of them were never answered.
    - `p50_ms`, `p90_ms`, `p99_ms`: the 50th, 90th and 99th percentile of the response times of those that were
      answered; NaN if none was.
    - `within_deadline`: the share of the raised queries, dropped ones included, that were answered within the deadline;
      NaN without a deadline, and without queries.
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
    """The smallest of some values in ascending order that at least `percent` % of them do not exceed; NaN if there are
    no values."""
    return values[max(math.ceil(len(values) * percent / 100), 1) - 1] if values else math.nan


def responses_of(
    queries: Sequence[QueryRecord], dropped_s: Sequence[float], deadline_ms: float | None, start_s: float, end_s: float
) -> Responses:
    """The responses to those queries that were raised from `start_s` on and before `end_s`. `queries` were answered;
    others were raised at the times `dropped_s` and never answered. Both are in the order in which they were raised."""
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
    """Divide the time from 0 to `end_s` into spans of 1, 2, 5, 10, 20, 50 ... seconds, at most SPANS_MAX of them."""
    lengths_s = (digit * 10.0**exponent for exponent in itertools.count() for digit in (1, 2, 5))
    length_s = next(length_s for length_s in lengths_s if end_s < SPANS_MAX * length_s)
    return ((number * length_s, (number + 1) * length_s) for number in range(int(end_s / length_s) + 1))
