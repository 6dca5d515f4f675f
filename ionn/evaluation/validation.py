"""Validating the virtual testbed: it predicts a live run from the costs measured in that run, and both are compared.

The measured costs are the time of each stage, and the overhead of an exchange with the server: messages pass through
several processes, which the execution graph does not include.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from dataclasses import dataclass

import numpy as np

from ionn.errors import InputError
from ionn.evaluation.summary import common_times, latency_at
from ionn.testbed.settings import Settings
from ionn.testbed.trace import Trace
from ionn.testbed.virtual import run_virtual


@dataclass(frozen=True)
class Validation:
    """A live run and its prediction.

    `latency_error` is the mean over time of |predicted - measured latency|, relative to the mean measured latency,
    while both runs upload and execute queries; NaN if there is no such time.
    """

    measured: Trace
    predicted: Trace
    latency_error: float

    @property
    def query_error(self) -> float:
        """(predicted - measured) / measured queries; NaN if none was measured. They are `Trace.queries_in_upload`, not
        whole queries: of ten queries, the last may end just before the upload or just after."""
        measured = self.measured.queries_in_upload
        return (self.predicted.queries_in_upload - measured) / measured if measured else math.nan

    @property
    def p90_error(self) -> float:
        """(predicted - measured) / measured 90th percentile of the response times; NaN if no query was answered."""
        measured_ms, predicted_ms = self.measured.responses.p90_ms, self.predicted.responses.p90_ms
        return (predicted_ms - measured_ms) / measured_ms if measured_ms else math.nan


def exchange_ms(trace: Trace) -> float:
    """The overhead of an exchange with the server in a live run: its time besides stages and transfers, undilated. It
    is the median over the queries that began after the upload, as these have the link for themselves; 0 if there are
    none, and if the link's rate was not always that of the graph."""
    graph, settings = trace.info.graph, trace.info.settings
    if settings.mbps is None or settings.link:
        return 0.0
    taken_ms = [
        segment.total_ms - segment.compute_ms - float(graph.up_ms[segment.first] + graph.down_ms[segment.last + 1])
        for query in trace.queries
        if query.start_s >= trace.upload_s
        for segment in query.segments
        if segment.where == "server"
    ]
    return max(statistics.median(taken_ms) - 2 * settings.delay_ms, 0.0) if taken_ms else 0.0


def predict(trace: Trace) -> Trace:
    """The run as the virtual testbed computes it from the trace's plan and measured costs. Queries with arrivals of
    their own arrive when they did in the trace. Raises InputError if the costs cannot be those of a run."""
    settings = trace.info.settings
    virtual = Settings(
        "virtual", settings.mbps, client=settings.client, server=trace.info.server, seed=settings.seed,
        link=settings.link, delay_ms=settings.delay_ms, jitter_ms=settings.jitter_ms,
        upload=settings.upload,
    )  # fmt: skip
    if not settings.arrivals.closed:
        raised_s = sorted([*(query.raised_s for query in trace.queries), *trace.dropped_s])
        arrivals = dataclasses.replace(settings.arrivals, times_s=tuple(raised_s))
        virtual = dataclasses.replace(
            virtual, window_s=settings.window_s, arrivals=arrivals, busy=settings.busy, deadline_ms=settings.deadline_ms
        )
    try:
        return run_virtual(dataclasses.replace(trace.info, settings=virtual), exchange_ms(trace))
    except (InputError, ArithmeticError, ValueError) as error:  # numbers that no link has may overflow
        run = f"run {trace.info.run} of {trace.info.model}, {trace.info.algorithm}, {settings.name}"
        raise InputError(f"{run}: the costs in its trace do not predict it: {error}") from error


def validate(trace: Trace) -> Validation:
    """Compare a live run with its prediction. Raises InputError as `predict` does."""
    predicted = predict(trace)
    times = common_times([trace, predicted], min(trace.upload_s, predicted.upload_s))
    if not times.size:
        return Validation(trace, predicted, math.nan)
    seconds = np.diff(times)
    measured_ms, predicted_ms = (latency_at(each, times[:-1]) for each in (trace, predicted))
    return Validation(trace, predicted, float(np.abs(predicted_ms - measured_ms) @ seconds / (measured_ms @ seconds)))
