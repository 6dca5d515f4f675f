"""What was found, a sentence and a chart each: computed from the rows of a report, right for any results.

`FINDINGS` are functions from a report to a `Finding`, or None where its runs do not show it. To have the page say
something else, write such a function and add it there.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ionn.coding import NONE
from ionn.evaluation.charts import Chart, bars, grouped_bars, latencies, predictions
from ionn.evaluation.claims import gain_percent
from ionn.evaluation.sections import Report
from ionn.evaluation.summary import Stat, SummaryRow, distinct
from ionn.paper import ORIGINAL, model_title
from ionn.testbed.settings import Settings
from ionn.testbed.trace import Trace

POINTS_MAX = 1_000  # of a line


@dataclass(frozen=True)
class Finding:
    """`where` says which runs it is about."""

    title: str
    sentence: str
    chart: Chart
    where: str


def findings(report: Report) -> list[Finding]:
    """What the report's runs show, in the order in which it is told."""
    found = (find(report) for find in FINDINGS)
    return [each for each in found if each is not None]


def _main_rows(report: Report) -> list[SummaryRow]:
    """The runs that most is said about: those of the paper's settings, else of the first settings, with uploads and
    queries that follow each other."""
    rows = [row for row in report.rows if row.settings.arrivals.closed and row.upload_s.mean > 0]
    chosen = next((row.settings for row in rows if row.settings.are_papers), rows[0].settings if rows else None)
    return [row for row in rows if row.settings == chosen]


def _by_model(rows: Sequence[SummaryRow]) -> list[tuple[SummaryRow, ...]]:
    """The rows of each model, those of original first where there are any."""
    groups = [[row for row in rows if row.model == model] for model in distinct(row.model for row in rows)]
    return [tuple(sorted(group, key=lambda row: row.algorithm != ORIGINAL)) for group in groups]


def _gain(members: Sequence[SummaryRow], value: Callable[[SummaryRow], float]) -> float:
    """How many times as much as original (the first) the best of the others has; 0 where that cannot be said."""
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
    counts = _listed(
        f"{row.queries.count()} with {row.algorithm}"
        for row in sorted(members, key=lambda row: row.queries.mean, reverse=True)
    )
    sentence = f"Until all of {model_title(members[0].model)} is uploaded, queries completed are {counts}."
    if (times := _gain(members, lambda row: row.queries.mean)) > 1:
        sentence += f" The most are {times:.2f} times those of original."
    chart = bars(rows, lambda row: row.queries, "queries before the upload ended")
    return Finding("Queries while the model is uploaded", sentence, chart, _where(rows[0].settings))


def course(report: Report) -> Finding | None:
    """When queries become faster."""
    rows = _main_rows(report)
    candidates = [group for group in _by_model(rows) if _halfway(group)]
    if not candidates:
        return None
    members = max(candidates, key=lambda group: _gain(group, lambda row: row.queries.mean))
    local_ms, best_ms = _extremes(members)
    halfway = sorted(_halfway(members), key=lambda pair: pair[1])
    reached = _listed(f"{seconds:.1f} s with {row.algorithm}" for row, seconds in halfway)
    sentence = (
        f"A query of {model_title(members[0].model)} takes {local_ms:.0f} ms at the client alone, and {best_ms:.0f} ms "
        f"in the end. Half of that gain is reached after {reached}."
    )
    return Finding("When queries become faster", sentence, latencies(members, POINTS_MAX), _where(rows[0].settings))


def _extremes(members: Sequence[SummaryRow]) -> tuple[float, float]:
    """The latency at the client alone, and the least of the last queries, in ms."""
    return members[0].traces[0].info.plan.local_ms, min(row.last_ms.mean for row in members)


def _halfway(members: Sequence[SummaryRow]) -> list[tuple[SummaryRow, float]]:
    """When half of the gain is reached, in seconds; nothing where one of the runs does not reach it."""
    middle_ms = sum(_extremes(members)) / 2
    found = [(row, Stat.of(_first_below_s(trace, middle_ms) for trace in row.traces).mean) for row in members]
    local_ms, best_ms = _extremes(members)
    return found if local_ms > best_ms and all(not math.isnan(seconds) for _, seconds in found) else []


def _first_below_s(trace: Trace, limit_ms: float) -> float:
    return next((query.start_s for query in trace.queries if query.latency_ms <= limit_ms), math.nan)


def largest(report: Report) -> Finding | None:
    """How large the largest partitions are."""
    rows = _main_rows(report)
    if not rows:
        return None
    groups = _by_model(rows)
    members = max(groups, key=lambda group: group[0].largest_share.mean - group[-1].largest_share.mean)
    shares = _listed(f"{row.largest_share.mean:.0%} with {row.algorithm}" for row in members)
    sentence = f"Of the weights of {model_title(members[0].model)}, the largest partition has {shares}."
    chart = bars(rows, lambda row: _times(row.largest_share, 100), "% of the model's weights", " %")
    return Finding("The largest partition", sentence, chart, _where(rows[0].settings))


def change(report: Report) -> Finding | None:
    """What is gained in latency over original, model by model."""
    groups = [group for group in _by_model(_main_rows(report)) if group[0].algorithm == ORIGINAL and len(group) > 1]
    groups = [group for group in groups if not any(math.isnan(row.mean_ms.mean) for row in group)]
    if not groups:
        return None
    parts, values = [], []
    for first, *others in groups:
        changes = {row.algorithm: gain_percent(row.mean_ms, first.mean_ms) for row in others}
        best = min(changes, key=lambda name: changes[name])
        parts.append(f"{model_title(first.model)} {changes[best]:+.0f} % ({best})")
        values += [(model_title(first.model), name, Stat(percent, 0.0)) for name, percent in changes.items()]
    sentence = f"Mean latency during the upload, the best against original: {_listed(parts)}."
    chart = grouped_bars(values, "change in mean latency (%)", " %", 0, "model")
    return Finding("Latency against original", sentence, chart, _where(groups[0][0].settings))


def prediction(report: Report) -> Finding | None:
    """Whether the virtual testbed predicts live runs."""
    live = [each for each in report.live if not math.isnan(each.query_error)]
    if not live:
        return None
    errors = [abs(each.query_error) * 100 for each in live]
    sentence = (
        f"{_counted(len(live), 'live run')}, each computed again from the costs that were measured in it: the number "
        f"of queries is off by {statistics.median(errors):.1f} % in the median, and {max(errors):.1f} % at most."
    )
    return Finding("Live runs and their predictions", sentence, predictions(live), "live testbed")


def equal_time(report: Report) -> Finding | None:
    """How many queries are completed in a window of time, with and without coding."""
    rows = [row for row in report.rows if row.settings.window_s is not None and row.settings.arrivals.closed]
    rows = [row for row in rows if row.settings.testbed == rows[0].settings.testbed and not row.settings.link]
    best: tuple[float, SummaryRow] | None = None
    values = []
    for row in rows:
        originals = [
            base.queries_in_window.mean
            for base in rows
            if base.model == row.model
            and base.algorithm == ORIGINAL
            and base.settings.coding == NONE
            and base.settings.window_s == row.settings.window_s
        ]
        if originals and originals[0] > 0:
            times = row.queries_in_window.mean / originals[0]
            coding = "" if row.settings.coding == NONE else f", {row.settings.coding} coded"
            values.append((model_title(row.model), row.algorithm + coding, Stat(times, 0.0)))
            best = max(best or (times, row), (times, row), key=lambda pair: pair[0])
    if best is None or best[0] <= 1:
        return None
    times, row = best
    coding = "without coding" if row.settings.coding == NONE else f"with coding of {row.settings.coding}"
    sentence = (
        f"In {row.settings.window_s:g} s {model_title(row.model)} completes {times:.1f} times as many queries with "
        f"{row.algorithm} {coding} as with original without coding."
    )
    chart = grouped_bars(values, "times the queries of original, not coded", " x", 1, "model")
    return Finding("Queries in equal time", sentence, chart, f"{row.settings.testbed} testbed, {row.settings.rate}")


def response_times(report: Report) -> Finding | None:
    """How long queries that arrive by themselves wait for their answers."""
    rows = [row for row in report.rows if not row.settings.arrivals.closed and not math.isnan(row.p90_ms.mean)]
    rows = [row for row in rows if row.settings == rows[0].settings]
    if not rows:
        return None
    groups = _by_model(rows)
    members = max(groups, key=lambda group: group[0].p90_ms.mean / max(group[-1].p90_ms.mean, 1e-9))
    times = _listed(
        f"{row.p90_ms.mean:.0f} ms with {row.algorithm}" for row in sorted(members, key=lambda row: row.p90_ms.mean)
    )
    sentence = (
        f"Of the queries of {model_title(members[0].model)} that arrive by themselves ({rows[0].settings.arrivals.name})"
        f" and are answered, 90 % are within {times}."
    )
    chart = bars(rows, lambda row: row.p90_ms, "90th percentile of response time (ms)", " ms")
    return Finding("Response times", sentence, chart, _where(rows[0].settings))


def planning(report: Report) -> Finding | None:
    """How long planning takes."""
    if not report.planning_ms:
        return None
    algorithms = distinct(name for _, name in report.planning_ms)
    longest = {name: max(ms for (_, each), ms in report.planning_ms.items() if each == name) for name in algorithms}
    parts = _listed(f"{ms:.2g} ms with {name}" for name, ms in sorted(longest.items(), key=lambda pair: pair[1]))
    sentence = f"The longest that planning takes for any model is {parts}."
    values = [(model_title(model), name, Stat(ms, 0.0)) for (model, name), ms in report.planning_ms.items() if ms > 0]
    chart = grouped_bars(values, "planning time (ms)", " ms", 2, "model", log=True)
    return Finding("Planning time", sentence, chart, "on the machine that planned")


FINDINGS: tuple[Callable[[Report], Finding | None], ...] = (
    queries, course, largest, change, prediction, equal_time, response_times, planning,
)  # fmt: skip


def _where(settings: Settings) -> str:
    return f"{settings.name}, {settings.rate}"


def _times(stat: Stat, factor: float) -> Stat:
    return Stat(stat.mean * factor, stat.std * factor)


def _listed(parts: Iterable[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def _counted(number: int, what: str) -> str:
    return f"1 {what}" if number == 1 else f"{number} {what}s"
