"""What the paper states about its results, and whether runs of ours support it.

`CLAIMS` is the one place where the paper's results are typed. Each claim is checked on runs with the paper's settings.
Verdicts come from those in which the server is far faster than the client: on the virtual testbed, and live with a
dilation above 1. Other live runs have a CPU as server; their values are shown, but decide nothing.
"""

from __future__ import annotations

import math
from collections import UserDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from ionn.evaluation.summary import (
    Stat,
    SummaryRow,
    common_times,
    distinct,
    disturbed_text,
    gain_percent,
    mean_latency,
)
from ionn.paper import ALGORITHMS, CLIENT, FINE, MBPS, MODELS, ORIGINAL, RECURSIVE, SERVER, model_title
from ionn.testbed.settings import Settings
from ionn.testbed.trace import Trace

COUNT_TOLERANCE = 0.12  # of the paper's number of queries
GAIN_TOLERANCE = {"virtual": 5.0, "live": 15.0}  # percentage points
CLEAR_PERCENT = 10.0  # from here on, a difference between mean latencies is called clear
OTHER_MACHINE = "the paper's planner ran on its Odroid XU4; the planning table has the times of this machine"


class MissingRuns(LookupError):
    """There are no runs that a claim could be checked on; the message names them."""


@dataclass(frozen=True)
class Evidence:
    """All rows of the same settings, and the planning times in ms, both by model and algorithm."""

    settings: Settings
    rows: Mapping[tuple[str, str], SummaryRow]
    planning_ms: Mapping[tuple[str, str], float]

    @classmethod
    def of(cls, rows: Sequence[SummaryRow], planning_ms: Mapping[tuple[str, str], float]) -> list[Evidence]:
        """The evidence for the paper's settings, one for each testbed and dilation; other runs are left out."""
        return [
            cls(settings, {(row.model, row.algorithm): row for row in rows if row.settings == settings}, planning_ms)
            for settings in distinct(row.settings for row in rows)
            if settings.are_papers
        ]

    @property
    def judged(self) -> bool:
        """Tell whether the server is far faster than the client, as the paper's GPU is."""
        return self.settings.testbed == "virtual" or self.settings.dilation > 1

    def row(self, model: str, algorithm: str) -> SummaryRow:
        """The row of a model and algorithm. Raises MissingRuns if there is none."""
        if (model, algorithm) not in self.rows:
            raise MissingRuns(f"no {self.settings.testbed} run of {model_title(model)} with {algorithm}")
        return self.rows[model, algorithm]


Finding = tuple[str, bool]  # what was found, and whether it is within the claim's tolerance


@dataclass(frozen=True)
class Claim:
    """A statement, with its place and its tolerance.

    - `check`: what was found, and whether that is within the tolerance. It raises MissingRuns without suitable runs.
    - `unchecked`: why the claim cannot be judged here; "" if it can.
    - `everywhere`: live runs without dilation decide about it too.
    """

    text: str
    paper: str
    section: str
    tolerance: str
    check: Callable[[Evidence], Finding]
    unchecked: str = ""
    everywhere: bool = False


@dataclass(frozen=True)
class Verdict:
    """What was found of a claim on both testbeds, and what follows. `share` is the share of random draws of the costs
    in which the claim holds (`ionn.evaluation.uncertainty`); None if that was not computed."""

    claim: Claim
    virtual: str
    live: str
    verdict: str  # "supported", "not supported on the TESTBED" or "not checked: REASON"
    share: float | None = None

    @property
    def checked(self) -> bool:
        return not self.verdict.startswith("not checked")


class _Asked(UserDict[tuple[str, str], SummaryRow]):
    """Rows that note in `traces` which of them a claim has looked at."""

    def __init__(self, rows: Mapping[tuple[str, str], SummaryRow]) -> None:
        super().__init__(rows)
        self.traces: dict[tuple[str, str], tuple[Trace, ...]] = {}

    def __getitem__(self, key: tuple[str, str]) -> SummaryRow:
        self.traces[key] = self.data[key].traces
        return self.data[key]


def _noted(settings: Settings, asked: _Asked) -> str:
    """The note behind a finding: the dilation, and how many of the runs were disturbed by other load."""
    traces = [trace for each in asked.traces.values() for trace in each]
    notes = [f"dilation {settings.dilation:g}"] if settings.dilation != 1 else []
    notes.append(disturbed_text(traces))
    told = "; ".join(filter(None, notes))
    return f" ({told})" if told else ""


def judge(claim: Claim, evidence: Sequence[Evidence]) -> Verdict:
    """Check a claim on all evidence. It is supported if it holds in all settings that decide, and in at least one."""
    found: dict[str, list[str]] = {"virtual": [], "live": []}
    holds: dict[str, bool] = {}
    missing = f"no virtual run of {CLIENT} and {SERVER} at {MBPS:g} Mbps"
    for each in evidence:
        where = each.settings
        try:
            text, held = claim.check(replace(each, rows=(asked := _Asked(each.rows))))
        except MissingRuns as error:
            missing = str(error) if where.testbed == "virtual" else missing
            continue
        found.setdefault(where.testbed, []).append(text + _noted(where, asked))
        if each.judged or claim.everywhere:
            holds[where.name] = held
    failed = [name for name, held in holds.items() if not held]
    if claim.unchecked or not holds:
        verdict = f"not checked: {claim.unchecked or missing}"
    elif failed:
        verdict = f"not supported on the {' and the '.join(failed)}"
    else:
        verdict = "supported"
    return Verdict(claim, "; ".join(found["virtual"]) or "-", "; ".join(found["live"]) or "-", verdict)


def _queries(algorithm: str, paper: float) -> Claim:
    def check(evidence: Evidence) -> Finding:
        queries = evidence.row("alexnet", algorithm).queries
        return queries.count(), abs(queries.mean / paper - 1) <= COUNT_TOLERANCE

    return Claim(
        f"AlexNet, {algorithm}: queries before the upload ended", f"{paper:g}", "4.3", f"±{COUNT_TOLERANCE:.0%}", check
    )


def _gain(what: str, of: Callable[[SummaryRow], Stat], paper: float) -> Claim:
    def check(evidence: Evidence) -> Finding:
        new, old = (of(evidence.row("alexnet", algorithm)) for algorithm in (RECURSIVE, ORIGINAL))
        gain = gain_percent(new, old)
        return gain.percent(), abs(gain.mean - paper) <= GAIN_TOLERANCE[evidence.settings.testbed]

    tolerance = f"±{GAIN_TOLERANCE['virtual']:g} points; live ±{GAIN_TOLERANCE['live']:g}"
    return Claim(f"AlexNet, {RECURSIVE} over original: {what}", f"{paper:+g}%", "4.3", tolerance, check)


def _largest_difference(paper_from_s: float, paper_to_s: float) -> Claim:
    def check(evidence: Evidence) -> Finding:
        old, new = (evidence.row("alexnet", algorithm) for algorithm in (ORIGINAL, RECURSIVE))
        from_s, to_s = interval_of_largest_difference(old, new)
        if math.isnan(from_s):
            return "never faster", False
        overlap_s = min(to_s, paper_to_s) - max(from_s, paper_from_s)
        return f"{from_s:.0f}-{to_s:.0f} s", overlap_s >= (paper_to_s - paper_from_s) / 2

    return Claim(
        f"AlexNet, {RECURSIVE} over original: when latencies differ most",
        f"{paper_from_s:g}-{paper_to_s:g} s",
        "4.3",
        "overlap of at least half",
        check,
    )


def interval_of_largest_difference(old: SummaryRow, new: SummaryRow) -> tuple[float, float]:
    """Return the time (from, to), in seconds, around the largest lead of `new` over `old`, in which its lead is at
    least half as large; (NaN, NaN) if `new` is never faster, or if they never execute queries at the same time."""
    times = common_times([*old.traces, *new.traces])
    difference = mean_latency(old.traces, times[:-1])[0] - mean_latency(new.traces, times[:-1])[0]
    if not (difference > 0).any():
        return math.nan, math.nan
    peak = int(difference.argmax())
    below = np.flatnonzero(difference < difference[peak] / 2)
    first = int(below[below < peak].max(initial=-1)) + 1
    end = int(below[below > peak].min(initial=len(difference)))
    return float(times[first]), float(times[end])


def _single_stage(algorithm: str) -> Claim:
    def check(evidence: Evidence) -> Finding:
        traces = evidence.row("inception", algorithm).traces
        largest = [max(trace.partitions, key=lambda p: p.bytes, default=None) for trace in traces]
        stages = [partition.stages if partition else () for partition in largest]
        return "; ".join(distinct(map(_stage_list, stages))), all(len(each) == 1 for each in stages)

    return Claim(
        f"Inception, {algorithm}: the largest partition is indivisible", "a single layer", "4.2", "one stage", check
    )


def _stage_list(stages: tuple[str, ...]) -> str:
    return f"{stages[0]} alone" if len(stages) == 1 else f"{len(stages)} stages"


def _smaller(model: str, algorithm: str) -> Claim:
    def check(evidence: Evidence) -> Finding:
        old, new = (evidence.row(model, name).largest_share.mean for name in (ORIGINAL, algorithm))
        return f"{old:.0%} → {new:.0%}", new < old

    return Claim(
        f"{model_title(model)}, {algorithm}: largest partition smaller than original's", "smaller", "4.2", "none", check
    )


def _more(model: str, algorithm: str, than: str) -> Claim:
    def check(evidence: Evidence) -> Finding:
        old, new = (evidence.row(model, name) for name in (than, algorithm))
        totals = [row.first_half.mean + row.second_half.mean for row in (old, new)]
        return " → ".join(f"{total:g}" for total in totals), totals[1] > totals[0]

    return Claim(
        f"{model_title(model)}, {algorithm}: total number of partitions above {than}'s", "more", "4.2", "none", check
    )


def _more_in_both_halves(model: str) -> Claim:
    def check(evidence: Evidence) -> Finding:
        old, new = (evidence.row(model, algorithm) for algorithm in (ORIGINAL, RECURSIVE))
        shown = " → ".join(f"{row.first_half.count()} + {row.second_half.count()}" for row in (old, new))
        return shown, new.first_half.mean > old.first_half.mean and new.second_half.mean > old.second_half.mean

    return Claim(
        f"{model_title(model)}, {RECURSIVE}: more partitions in both halves of the upload than original",
        "more",
        "4.2",
        "none",
        check,
    )


def _benefit(model: str, clear: bool) -> Claim:
    def check(evidence: Evidence) -> Finding:
        rows = [evidence.row(model, algorithm) for algorithm in ALGORITHMS]
        changes = [gain_percent(row.mean_ms, rows[0].mean_ms) for row in rows[1:]]
        text = ", ".join(change.percent() for change in changes)
        if clear:
            return text, changes[-1].mean <= -CLEAR_PERCENT
        return text, all(abs(change.mean) < CLEAR_PERCENT for change in changes)

    return Claim(
        f"{model_title(model)}: mean latency of efficiency, {RECURSIVE} against original",
        "some benefit" if clear else "no clear difference",
        "4.3",
        f"{RECURSIVE} -{CLEAR_PERCENT:g}% or less" if clear else f"each within ±{CLEAR_PERCENT:g}%",
        check,
    )


def _planning(what: str, algorithms: Iterable[str], models: Iterable[str], paper: str) -> Claim:
    def check(evidence: Evidence) -> Finding:
        times = [ms for (m, a), ms in evidence.planning_ms.items() if m in models and a in algorithms]
        if not times or evidence.settings.testbed != "virtual":
            raise MissingRuns("no plan")
        return " to ".join(distinct(f"{ms:.1f}" for ms in (min(times), max(times)))) + " ms", True

    return Claim(f"{what}: planning time", paper, "4.4", "-", check, unchecked=OTHER_MACHINE)


def _setting(text: str, paper: str, of: Callable[[Evidence], Iterable[float]]) -> Claim:
    def check(evidence: Evidence) -> Finding:
        return " to ".join(f"{value:g}" for value in distinct(sorted(of(evidence)))), True

    return Claim(f"Setting: {text}", paper, "4.1", "-", check, unchecked="a setting, not a result")


def _queries_after_upload(evidence: Evidence) -> list[int]:
    traces = [trace for row in evidence.rows.values() for trace in row.traces]
    return [sum(query.start_s >= trace.upload_s for query in trace.queries) for trace in traces]


CLAIMS: tuple[Claim, ...] = (
    _queries(ORIGINAL, 56.8),
    _queries(RECURSIVE, 88.1),
    _gain("queries before the upload ended", lambda row: row.queries, 55),
    _gain("queries per second", lambda row: row.queries_per_s, 48),
    _largest_difference(22, 30),
    *(_single_stage(algorithm) for algorithm in ALGORITHMS),
    *(_smaller(model, algorithm) for model in MODELS if model != "inception" for algorithm in ALGORITHMS[1:]),
    *(_more(model, name, than) for model in MODELS for than, name in pairwise(ALGORITHMS)),
    *(_more_in_both_halves(model) for model in ("alexnet", "resnet")),
    _benefit("resnet", clear=True),
    *(_benefit(model, clear=False) for model in ("inception", "googlenet", "mobilenet")),
    _planning("original and efficiency", ALGORITHMS[:2], MODELS, "0.1-0.5 ms"),
    _planning("original with steps of 0.0001", (FINE,), MODELS, "100 ms"),
    _planning(f"AlexNet, {RECURSIVE}", (RECURSIVE,), ("alexnet",), "0.6 ms"),
    _planning(f"MobileNet, {RECURSIVE}", (RECURSIVE,), ("mobilenet",), "2 ms"),
    _setting("bandwidth of the link, Mbps", "80", lambda evidence: [evidence.settings.mbps or 0.0]),
    _setting("runs that are averaged", "10", lambda evidence: [len(row.traces) for row in evidence.rows.values()]),
    _setting("queries raised after the upload", "5", _queries_after_upload),
)
