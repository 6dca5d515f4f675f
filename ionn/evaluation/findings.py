"""The findings on the report's page, each a sentence and a chart, computed from the rows of any report.

`FINDINGS` are functions from a report to a `Finding`, or to None if the report's runs do not show it. To add a finding
to the page, write such a function and add it there.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from ionn.coding import CODINGS, NONE
from ionn.evaluation.charts import Chart, bars, grouped_bars, latencies, predictions
from ionn.evaluation.sections import Report
from ionn.evaluation.summary import Stat, SummaryRow, common_times, distinct, gain_percent, mean_latency, ratio
from ionn.paper import ORIGINAL
from ionn.testbed.settings import Settings

POINTS_MAX = 1_000  # per line


@dataclass(frozen=True)
class Finding:
    """A sentence and its chart. `where` says which runs it is about."""

    title: str
    sentence: str
    chart: Chart
    where: str


def findings(report: Report) -> list[Finding]:
    """The findings that the report's runs show, in the order of the page."""
    found = (find(report) for find in FINDINGS)
    return [each for each in found if each is not None]


def _main_rows(report: Report) -> list[SummaryRow]:
    """The runs that most findings are about: those with the paper's settings, or else with the first ones, preferably
    without coding. All upload something, and raise queries in a closed loop."""
    rows = [row for row in report.rows if row.settings.arrivals.closed and row.upload_s.mean > 0]
    order = sorted((row.settings for row in rows), key=lambda each: (not each.are_papers, each.coding != NONE))
    return [row for row in rows if row.settings == order[0]]


def _by_model(rows: Sequence[SummaryRow]) -> list[tuple[SummaryRow, ...]]:
    """The rows of each model, those of original first where there are any."""
    groups = [[row for row in rows if row.model == model] for model in distinct(row.model for row in rows)]
    return [tuple(sorted(group, key=lambda row: row.algorithm != ORIGINAL)) for group in groups]


def _gain(members: Sequence[SummaryRow], value: Callable[[SummaryRow], float]) -> float:
    """How many times original's value (the first member's) the best of the others has; 0 if that is not defined."""
    first, *others = map(value, members)
    if members[0].algorithm != ORIGINAL or not others or not first > 0:
        return 0.0
    return max(others) / first


def queries(report: Report) -> Finding | None:
    """How many queries are completed while a model is uploaded."""
    rows = _main_rows(report)
    if not rows:
        return None
    members = max(_by_model(rows), key=lambda group: _gain(group, lambda row: row.queries.mean))
    ordered = sorted(members, key=lambda row: row.queries.mean, reverse=True)
    counts = _listed_by_value((row.queries.count(), row.algorithm) for row in ordered)
    sentence = f"Queries that are completed while {report.titles[members[0].model]} is uploaded: {counts}."
    if (times := _gain(members, lambda row: row.queries.mean)) > 1:
        sentence += f" The most are {times:.2f} times those of original."
    chart = bars(rows, lambda row: row.queries, report.titles, "queries before the upload ended")
    return Finding("Queries while the model is uploaded", sentence, chart, _where(rows[0].settings))


def course(report: Report) -> Finding | None:
    """How the latency of queries falls over time."""
    rows = _main_rows(report)
    candidates = [group for group in _by_model(rows) if not math.isnan(_mean_over_time(group)[0])]
    if not candidates:
        return None
    members = max(candidates, key=lambda group: _gain(group, lambda row: row.queries.mean))
    local_ms, best_ms = members[0].traces[0].info.plan.local_ms, min(row.last_ms.mean for row in members)
    sentence = (
        f"A query of {report.titles[members[0].model]} takes {_short_ms(local_ms)} at the client alone and "
        f"{_short_ms(best_ms)} in the end"
    )
    begin_s, end_s, *means_ms = _mean_over_time(members)
    first_s = min(trace.queries[0].start_s for row in members for trace in row.traces)
    if end_s - begin_s >= (end_s - first_s) / 2:  # else the mean says little about the runs
        ordered = sorted(zip(members, means_ms, strict=True), key=lambda pair: pair[1])
        means = _listed_by_value((_short_ms(mean_ms), row.algorithm) for row, mean_ms in ordered)
        sentence += f"; on average over time, from {begin_s:.1f} to {end_s:.1f} s: {means}"
    sentence += "."
    return Finding("When queries become faster", sentence, latencies(members, POINTS_MAX), _where(rows[0].settings))


def _mean_over_time(members: Sequence[SummaryRow]) -> list[float]:
    """The time (from, to), in seconds, in which all of these runs execute queries, followed by the mean latency of each
    row over that time, in ms; NaN alone if there is no such time."""
    times = common_times([trace for row in members for trace in row.traces])
    if not times.size:
        return [math.nan]
    seconds = np.diff(times)
    means_ms = [float(mean_latency(row.traces, times[:-1])[0] @ seconds / seconds.sum()) for row in members]
    return [float(times[0]), float(times[-1]), *means_ms]


def largest(report: Report) -> Finding | None:
    """How large the largest partitions are."""
    rows = _main_rows(report)
    if not rows:
        return None
    groups = _by_model(rows)
    members = max(groups, key=lambda group: group[0].largest_share.mean - group[-1].largest_share.mean)
    ordered = sorted(members, key=lambda row: row.largest_share.mean, reverse=True)
    shares = _listed_by_value((f"{row.largest_share.mean * 100:.0f} %", row.algorithm) for row in ordered)
    sentence = f"The share of {report.titles[members[0].model]}'s weights that the largest partition has: {shares}."
    chart = bars(rows, lambda row: row.largest_share.times(100), report.titles, "% of the model's weights", " %")
    return Finding("The largest partition", sentence, chart, _where(rows[0].settings))


def change(report: Report) -> Finding | None:
    """The change in mean latency against original, model by model."""
    groups = [group for group in _by_model(_main_rows(report)) if group[0].algorithm == ORIGINAL and len(group) > 1]
    groups = [
        group
        for group in groups
        if not any(math.isnan(gain_percent(row.mean_ms, group[0].mean_ms).mean) for row in group)
    ]
    if not groups:
        return None
    parts, values = [], []
    for first, *others in groups:
        changes = {row.algorithm: gain_percent(row.mean_ms, first.mean_ms) for row in others}
        best = min(changes, key=lambda name: changes[name].mean)
        told = f"{changes[best].mean:+.0f} % ({best})" if round(changes[best].mean) else "unchanged"
        parts.append(f"{report.titles[first.model]} {told}")
        values += [(report.titles[first.model], name, percent) for name, percent in changes.items()]
    sentence = f"Mean latency during the upload, the best against original: {_listed(parts)}."
    chart = grouped_bars(values, "change in mean latency (%)", " %", 0, "model")
    return Finding("Latency against original", sentence, chart, _where(groups[0][0].settings))


def prediction(report: Report) -> Finding | None:
    """How well the virtual testbed predicts live runs."""
    live = [each for each in report.live if not math.isnan(each.query_error)]
    if not live:
        return None
    errors = [abs(each.query_error) * 100 for each in live]
    sentence = (
        f"{len(live)} live run{'s' * (len(live) != 1)}, each computed again from the costs that were measured in it: "
        f"the number of queries is off by {statistics.median(errors):.1f} % in the median, and {max(errors):.1f} % at "
        "most."
    )
    return Finding("Live runs and their predictions", sentence, predictions(live, report.titles), "live testbed")


def equal_time(report: Report) -> Finding | None:
    """How many queries are completed in a window of time, with and without coding."""
    rows = [row for row in report.rows if row.settings.window_s is not None and row.settings.arrivals.closed]
    originals = {
        (row.model, row.settings): row.queries_in_window
        for row in rows
        if row.algorithm == ORIGINAL and row.queries_in_window.mean > 0
    }
    found = [
        (ratio(row.queries_in_window, originals[row.model, base]), row)
        for row in rows
        if (row.model, base := row.settings.not_coded) in originals
    ]
    if not found or max(times.mean for times, _ in found) <= 1:
        return None
    times, row = max(found, key=lambda pair: pair[0].mean)
    sentence = (
        f"In {row.settings.window_s:g} s {report.titles[row.model]} completes {times.mean:.1f} times as many queries "
        f"with {row.algorithm}, {_coding(row.settings)}, as with original, coding {NONE}."
    )
    compared = [
        (factor, each)
        for factor, each in found
        if (each.model, each.settings.not_coded) == (row.model, row.settings.not_coded)
    ]
    compared.sort(key=lambda pair: (CODINGS.index(pair[1].settings.coding), pair[1].settings.weight_ratio or 1))
    values = [(_coding(each.settings), each.algorithm, factor) for factor, each in compared]
    chart = grouped_bars(values, "queries, times original's", " x", 1, "coding")
    return Finding("Queries in equal time", sentence, chart, _where(row.settings.not_coded))


def _coding(settings: Settings) -> str:
    ratio = "" if settings.weight_ratio is None else f", weight ratio {settings.weight_ratio}"
    return f"coding {settings.coding}{ratio}"


def response_times(report: Report) -> Finding | None:
    """How long queries that arrive at times of their own take until they are answered."""
    rows = [row for row in report.rows if not row.settings.arrivals.closed and not math.isnan(row.p90_ms.mean)]
    rows = [row for row in rows if row.settings == rows[0].settings]
    if not rows:
        return None
    groups = _by_model(rows)
    members = max(groups, key=lambda group: group[0].p90_ms.mean / max(group[-1].p90_ms.mean, 1e-9))
    ordered = sorted(members, key=lambda row: row.p90_ms.mean)
    times = _listed_by_value((_short_ms(row.p90_ms.mean), row.algorithm) for row in ordered)
    sentence = (
        f"{report.titles[members[0].model]}'s queries arrive at times of their own ({rows[0].settings.arrivals.name}). "
        f"Of those that are answered, 90 % are answered within: {times}."
    )
    chart = bars(rows, lambda row: row.p90_ms, report.titles, "90th percentile of response time (ms)", " ms")
    return Finding("Response times", sentence, chart, _where(rows[0].settings))


def planning(report: Report) -> Finding | None:
    """How long planning takes."""
    if not report.planning_ms:
        return None
    algorithms = distinct(name for _, name in report.planning_ms)
    longest = {name: max(ms for (_, each), ms in report.planning_ms.items() if each == name) for name in algorithms}
    parts = _listed_by_value((_short_ms(ms), name) for name, ms in sorted(longest.items(), key=lambda pair: pair[1]))
    sentence = f"The longest that planning takes for any of the models: {parts}."
    values = [(report.titles[model], name, Stat(ms, 0.0)) for (model, name), ms in report.planning_ms.items() if ms > 0]
    chart = grouped_bars(values, "planning time (ms)", " ms", 2, "model", log=True)
    return Finding("Planning time", sentence, chart, "on the machine that planned")


FINDINGS: tuple[Callable[[Report], Finding | None], ...] = (
    queries, course, largest, change, prediction, equal_time, response_times, planning,
)  # fmt: skip


def _where(settings: Settings) -> str:
    return f"{settings.name}, {settings.rate}"


def _short_ms(value_ms: float) -> str:
    if value_ms >= 10:
        return f"{value_ms:.0f} ms"
    return f"{value_ms:.1f} ms" if value_ms >= 1 else f"{value_ms:.2g} ms"


def _listed_by_value(pairs: Iterable[tuple[str, str]]) -> str:
    """A text of pairs (value, algorithm), in order: "9 with A, 5 with B and C". Equal neighbours share a value."""
    groups = groupby(pairs, key=lambda pair: pair[0])
    return ", ".join(f"{value} with {_listed(name for _, name in group)}" for value, group in groups)


def _listed(parts: Iterable[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last
