"""Summaries of traces: runs with equal settings are grouped, and each group is averaged."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ionn.errors import InputError
from ionn.paper import MODELS, SHOWN
from ionn.planning.planners import BASELINES
from ionn.records import Outputs
from ionn.testbed.energy import mean_energy_j
from ionn.testbed.settings import Settings
from ionn.testbed.trace import Trace, load_traces

Grid = NDArray[np.float64]


@dataclass(frozen=True)
class Stat:
    """Mean and sample standard deviation (0 for one run) over the runs in which the quantity is defined."""

    mean: float
    std: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Stat:
        defined = [value for value in values if not math.isnan(value)]
        if not defined:
            return cls(math.nan, 0.0)
        return cls(float(np.mean(defined)), float(np.std(defined, ddof=1)) if len(defined) > 1 else 0.0)

    def times(self, factor: float) -> Stat:
        return Stat(self.mean * factor, self.std * factor)

    def text(self, digits: int = 1, sign: str = "", unit: str = "") -> str:
        """Return the text: with the `sign` "+" for a change, and with the unit behind it where it is defined."""
        if math.isnan(self.mean):
            return "-"
        spread = f"{self.std:.{digits}f}"
        return f"{self.mean:{sign}.{digits}f}" + (f" ± {spread}" if float(spread) else "") + unit

    def count(self) -> str:
        """Return the text for a quantity that is a whole number in each run."""
        return self.text(1 if self.std else 0)

    def percent(self, digits: int = 0) -> str:
        """Return the text for a change in percent."""
        return self.text(digits, "+", "%")


def ratio(new: Stat, old: Stat) -> Stat:
    """Return the quotient of two means, with the spread of the quotient of single runs, paired at random; NaN if the
    old mean is 0."""
    if not old.mean:
        return Stat(math.nan, 0.0)
    times = new.mean / old.mean
    return Stat(times, math.hypot(new.std, times * old.std) / abs(old.mean))


def gain_percent(new: Stat, old: Stat) -> Stat:
    """Return by how many percent the new mean is larger, with the spread as in `ratio`; NaN if the old mean is 0."""
    times = ratio(new, old)
    return Stat((times.mean - 1) * 100, times.std * 100)


@dataclass(frozen=True)
class SummaryRow:
    """The runs of one model and algorithm with the same settings, averaged (paper, sections 4.2-4.4)."""

    settings: Settings
    model: str
    algorithm: str
    traces: tuple[Trace, ...]
    first_half: Stat  # partitions whose upload ends in the first half of the upload time
    second_half: Stat
    partitions: Stat
    largest_share: Stat  # bytes of the largest partition / weight bytes of the model
    queries: Stat  # that ended before the upload did
    upload_s: Stat
    queries_per_s: Stat  # during the upload
    mean_ms: Stat  # latency of the queries that started before the upload ended
    energy_j: Stat  # the client's per query, over the same queries; over all if nothing is uploaded
    first_ms: Stat  # latency of the first query
    last_ms: Stat
    overruns: Stat  # layers slower than the pace, per run
    outputs: Outputs  # of all queries
    planning_ms: Stat
    queries_in_window: Stat  # that ended within the run's window; undefined without one
    mean_ms_in_window: Stat  # their mean latency
    weight_bytes: Stat  # of all partitions
    weight_wire_bytes: Stat  # that crossed the link for them; undefined for traces of earlier versions
    weight_bytes_held: Stat  # of them, those that the server's store had
    feature_bytes: Stat  # inputs and feature maps, per query; undefined for traces of earlier versions
    feature_wire_bytes: Stat
    raised: Stat  # queries, answered or not
    dropped: Stat  # queries that were not answered
    p50_ms: Stat  # percentiles of the response time
    p90_ms: Stat
    p99_ms: Stat
    within_deadline: Stat  # share of the queries raised; undefined without a deadline

    @classmethod
    def of(cls, settings: Settings, model: str, algorithm: str, traces: list[Trace]) -> SummaryRow:
        halves = [trace.partitions_per_half() for trace in traces]
        responses = [trace.responses for trace in traces]
        return cls(
            settings,
            model,
            algorithm,
            tuple(traces),
            first_half=Stat.of(first for first, _ in halves),
            second_half=Stat.of(second for _, second in halves),
            partitions=Stat.of(sum(half) for half in halves),
            largest_share=Stat.of(map(largest_share, traces)),
            queries=Stat.of(trace.queries_before_upload for trace in traces),
            upload_s=Stat.of(trace.upload_s for trace in traces),
            queries_per_s=Stat.of(
                trace.queries_before_upload / trace.upload_s if trace.upload_s else math.nan for trace in traces
            ),
            mean_ms=Stat.of(trace.mean_ms_in_upload for trace in traces),
            energy_j=Stat.of(map(mean_energy_j, traces)),
            first_ms=Stat.of(trace.queries[0].latency_ms for trace in traces),
            last_ms=Stat.of(trace.queries[-1].latency_ms for trace in traces),
            overruns=Stat.of(sum(query.overruns for query in trace.queries) for trace in traces),
            outputs=Outputs.of(query for trace in traces for query in trace.queries),
            planning_ms=Stat.of(trace.info.plan.planning_ms for trace in traces),
            queries_in_window=Stat.of(len(trace.in_window) if settings.window_s else math.nan for trace in traces),
            mean_ms_in_window=Stat.of(trace.mean_ms_in_window for trace in traces),
            weight_bytes=Stat.of(_defined(trace.weight_bytes[0]) for trace in traces),
            weight_wire_bytes=Stat.of(_defined(trace.weight_bytes[1]) for trace in traces),
            weight_bytes_held=Stat.of(trace.weight_bytes_held for trace in traces),
            feature_bytes=Stat.of(_defined(trace.feature_bytes[0]) / len(trace.queries) for trace in traces),
            feature_wire_bytes=Stat.of(_defined(trace.feature_bytes[1]) / len(trace.queries) for trace in traces),
            raised=Stat.of(each.raised for each in responses),
            dropped=Stat.of(each.dropped for each in responses),
            p50_ms=Stat.of(each.p50_ms for each in responses),
            p90_ms=Stat.of(each.p90_ms for each in responses),
            p99_ms=Stat.of(each.p99_ms for each in responses),
            within_deadline=Stat.of(each.within_deadline for each in responses),
        )


def _defined(size: int | None) -> float:
    return math.nan if size is None else size


def load_results(results: Path) -> list[Trace]:
    """The traces of a results folder. Raises InputError if one is not complete, and unless one has kept its server."""
    traces = load_traces(results)
    if all(map(lost_server, traces)):
        what = "every run lost its server" if traces else "no traces here"
        raise InputError(f"{results}: {what}; `ionn run alexnet --testbed virtual --results {results}` makes one")
    return traces


def lost_server(trace: Trace) -> bool:
    """Tell whether the run had to go on without its server, so that it is no measurement of the experiment."""
    return trace.info.fault is not None


def summary(traces: Iterable[Trace]) -> list[SummaryRow]:
    """One row per settings, model and algorithm: virtual before live, the paper's models and algorithms first.

    Runs that lost their server are left out.
    """
    groups: dict[tuple[Settings, str, str], list[Trace]] = {}
    for trace in traces:
        if lost_server(trace):
            continue
        groups.setdefault((trace.info.settings, trace.info.model, trace.info.algorithm), []).append(trace)

    def order(key: tuple[Settings, str, str]) -> tuple[Any, ...]:
        settings, model, algorithm = key
        return (
            (settings.testbed != "virtual", settings.dilation, -(settings.mbps or 0.0), settings.slug),
            rank(model, list(MODELS)),
            rank(algorithm, SHOWN),
        )

    return [SummaryRow.of(*key, groups[key]) for key in sorted(groups, key=order)]


def disturbed(traces: Iterable[Trace]) -> list[Trace]:
    """The runs that other load disturbed."""
    return [trace for trace in traces if trace.disturbance is not None]


def runs_text(traces: Sequence[Trace]) -> str:
    """How many runs these are, and how many of them were disturbed."""
    count = len(disturbed(traces))
    return f"{len(traces)}, {count} disturbed" if count else str(len(traces))


def disturbed_text(traces: Sequence[Trace]) -> str:
    """How many of these runs were disturbed; "" if none was."""
    count = len(disturbed(traces))
    return f"{count} of {len(traces)} runs disturbed" if count else ""


def averaged_text(rows: Sequence[SummaryRow]) -> str:
    """How many runs the means of these rows are of, and how many of all their runs were disturbed."""
    counts = distinct(sorted(len(row.traces) for row in rows))
    runs = "1 run" if counts == [1] else f"{'-'.join(map(str, distinct([counts[0], counts[-1]])))} runs, mean ± std"
    return ", ".join(filter(None, (runs, disturbed_text([trace for row in rows for trace in row.traces]))))


def rank(name: str, known: Sequence[str]) -> tuple[int, str]:
    """A key by which names are sorted: the known ones first, in their order."""
    return (known.index(name) if name in known else len(known)), name


def distinct(values: Iterable[Any]) -> list[Any]:
    """The values without repetitions, in order of appearance."""
    return list(dict.fromkeys(values))


def are_drawn(present: Iterable[str], asked: Collection[str]) -> list[str]:
    """The algorithms that charts show, of those present: the ones `asked` for, by default all but baselines."""
    return [name for name in distinct(present) if (name in asked if asked else name not in BASELINES)]


def largest_share(trace: Trace) -> float:
    """Bytes of the largest partition over the weight bytes of the model (paper, Fig. 6); 0 for an empty plan."""
    sizes = [partition.bytes for partition in trace.partitions]
    return max(sizes) / (trace.info.plan.model_bytes or sum(sizes)) if sizes else 0.0


def common_times(
    traces: Sequence[Trace], end_s: float = math.inf, last: Callable[[Iterable[float]], float] = min
) -> Grid:
    """The times at which the latency of a trace changes, and the end: (m,) seconds since the upload began, ascending.

    They are the starts of all queries from when every trace executes queries until the first trace ends (with `last` =
    max, the last trace), but not after `end_s`; empty if there is no such time. Between two neighbouring times,
    `latency_at` of each trace is constant.
    """
    start_s = max(trace.queries[0].start_s for trace in traces)
    end_s = min(end_s, last(trace.queries[-1].end_s for trace in traces))
    starts = {query.start_s for trace in traces for query in trace.queries if start_s <= query.start_s < end_s}
    return np.array([*sorted(starts), end_s]) if starts else np.array([])


def latency_at(trace: Trace, times_s: Grid) -> Grid:
    """The latency in ms of the query that is executed at each of `times_s`, (m,), which must not be before the first
    query; NaN after the last query."""
    starts = np.array([query.start_s for query in trace.queries])
    latencies = np.array([query.latency_ms for query in trace.queries])
    over = np.asarray(times_s) > trace.queries[-1].end_s
    return np.where(over, math.nan, latencies[np.searchsorted(starts, times_s, side="right") - 1])


def mean_latency(traces: Sequence[Trace], times_s: Grid) -> tuple[Grid, Grid]:
    """Mean and sample standard deviation (0 for one run) of `latency_at`, over the runs that still execute queries at
    that time; each (m,), ms."""
    runs = np.array([latency_at(trace, times_s) for trace in traces])
    count = (~np.isnan(runs)).sum(axis=0)
    mean = np.nansum(runs, axis=0) / count
    spread = np.sqrt(np.nansum((runs - mean) ** 2, axis=0) / np.maximum(count - 1, 1))
    return mean, spread
