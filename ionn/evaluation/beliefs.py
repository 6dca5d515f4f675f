"""By how much a measuring client's estimates of its link's rate were off."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ionn.testbed.trace import Trace

# Estimates are compared with the link's mean rate over spans of this length.
SPAN_S = 0.1
# Nobody waits longer, but the trace of a stranger may tell of any time.
DAY_S = 86_400.0


def true_mbps(trace: Trace, times_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean rate of a trace's link from each of `times_s` (n,) until the next, in Mbps, (n - 1,). The trace must
    have the link's bandwidth."""
    bandwidth = trace.info.bandwidth
    assert bandwidth is not None
    sizes = [bandwidth.bytes_between(begin_s, end_s) for begin_s, end_s in pairwise(times_s.tolist())]
    return np.array(sizes) * 8 / 1e6 / np.diff(times_s)


def rate_errors(trace: Trace) -> NDArray[np.float64]:
    """The relative error of the client's estimate of the link's rate in each span of SPAN_S since its first estimate,
    on the first day of the run. Spans in which nothing could cross are left out."""
    begin_s, end_s = (min(time_s, DAY_S) for time_s in (trace.estimates[0].time_s, trace.queries[-1].end_s))
    times_s = np.arange(begin_s, end_s, SPAN_S)
    mbps = true_mbps(trace, times_s)
    which = np.searchsorted([each.time_s for each in trace.estimates], times_s[:-1], side="right") - 1
    believed = np.array([each.mbps for each in trace.estimates])[which]
    return np.abs(believed[mbps > 0] / mbps[mbps > 0] - 1)


def rate_error_percentiles(trace: Trace, *shares: float) -> list[float]:
    """The value that so many % of the `rate_errors` do not exceed, for each of the `shares`; NaN if there are none,
    because the run is shorter than a span, or because nothing could cross."""
    errors = rate_errors(trace)
    return [float(np.percentile(errors, share)) if errors.size else math.nan for share in shares]
