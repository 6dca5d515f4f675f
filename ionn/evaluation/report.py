"""The report on a results folder: tables and verdicts, as Markdown, as a page, and as text."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec

from ionn.coding import CODINGS
from ionn.errors import InputError
from ionn.evaluation import page
from ionn.evaluation.beliefs import SPAN_S, rate_error_percentiles
from ionn.evaluation.claims import CLAIMS, Claim, Evidence, Verdict, judge
from ionn.evaluation.sections import Judged, Report, Section
from ionn.evaluation.slice_claims import SLICE_CLAIMS
from ionn.evaluation.summary import (
    Stat,
    SummaryRow,
    distinct,
    gain_percent,
    load_results,
    lost_server,
    rank,
    ratio,
    runs_text,
    summary,
)
from ionn.evaluation.uncertainty import Uncertainty, load_uncertainty
from ionn.evaluation.validation import Validation, validate
from ionn.files import read_bytes, write_file
from ionn.paper import EFFICIENCY, FINE, MODELS, ORIGINAL, SHOWN, SLICED, model_title
from ionn.planning.plan import Plan, PlanDocument
from ionn.schema import read_json
from ionn.testbed.other_load import DISTURBED_SHARE
from ionn.testbed.settings import Settings
from ionn.testbed.trace import Trace

PlanningTimes = dict[tuple[str, str], float]  # (model, algorithm) -> ms
PlannedStages = dict[tuple[str, str], list[tuple[str, ...]]]  # (model, algorithm) -> stages of each partition

_WHO_JUDGES = (
    "The virtual testbed decides, and live runs with a dilation above 1: there the server is far faster than the "
    "client, as the paper's GPU is. In live runs without dilation the server is the CPU of this machine: those values "
    "are shown for comparison only."
)
_WHO_JUDGES_SLICES = (
    f"What docs/slicing.md states of {SLICED}. The virtual testbed decides about gains; about the rest live runs do "
    "too."
)

_YES_NO = {True: "yes", False: "NO", None: "-"}


class _PlanList(msgspec.Struct):
    """The file results/plans.json."""

    plans: tuple[PlanDocument, ...]


def write_report(results: Path, figures: Iterable[Path], algorithms: Collection[str] = ()) -> Path:
    """Write report.md and report.html of a results folder. Returns the path of report.md.

    It is made of the folder's traces, and of its plans.json and uncertainty.json if there are any. `figures` are those
    that the report shows; charts of the page show the `algorithms`, by default all but baselines. Raises InputError if
    there are no traces, and if something cannot be read or written.
    """
    traces, plans = load_results(results), _load_plans(results / "plans.json")
    return save_report(make_report(traces, plans, load_uncertainty(results)), results, figures, algorithms)


def save_report(report: Report, folder: Path, figures: Iterable[Path] = (), algorithms: Collection[str] = ()) -> Path:
    """Write report.md into the folder, and report.html if Plotly is installed. Returns the path of report.md. Of
    `figures`, the PNG files are shown; charts of the page show the `algorithms`, by default all but baselines.

    Raises InputError if an image cannot be read, or a report cannot be written.
    """
    images = [figure for figure in figures if figure.suffix == ".png"]
    write_file(folder / "report.md", report.markdown(images, folder).encode())
    if page.is_available():
        write_file(folder / "report.html", page.html_page(report, images, folder, algorithms).encode())
    return folder / "report.md"


def make_report(
    traces: Sequence[Trace], plans: Sequence[PlanDocument] = (), uncertainty: Uncertainty | None = None
) -> Report:
    """The report on these traces. `plans` are further plans, made to compare planning times (paper, section 4.4);
    `uncertainty` has the share of random draws of the costs in which each claim holds."""
    rows = summary(traces)
    planning_ms = _planning_ms([trace.info.plan for row in rows for trace in row.traces], plans)
    stages = {
        (row.model, row.algorithm): [part.stage_names for part in row.traces[0].info.plan.partitions]
        for row in rows
        if row.settings.testbed == "virtual"
    } | {(plan.model, plan.algorithm): [part.stages for part in plan.partitions] for plan in plans}
    # If the client measured, its run does not follow from its last plan and the costs.
    fixed = [row for row in rows if row.settings.testbed == "live" and row.settings.mbps is not None]
    live = [validate(trace) for row in fixed for trace in row.traces]
    evidence = Evidence.of(rows, planning_ms)
    verdicts = _judge(CLAIMS, evidence, uncertainty)
    sliced = any(row.algorithm == SLICED for row in rows)
    slice_verdicts = _judge(SLICE_CLAIMS, evidence, uncertainty) if sliced else []
    sections = [
        *_claims(verdicts, uncertainty),
        _slice_claims(slice_verdicts, uncertainty),
        *(_summary(settings, list(group)) for settings, group in groupby(rows, key=lambda row: row.settings)),
        _gains(rows),
        equal_time(rows),
        response_times(rows),
        validation(live),
        response_validation(live),
        _planning(planning_ms, stages),
        _faults(traces),
        estimates(rows),
        _validation_runs(live),
        _environments(rows),
    ]
    judged = (
        Judged("The paper's claims", _WHO_JUDGES + _of_draws(uncertainty), tuple(verdicts)),
        Judged(
            "Claims about slices below the layer",
            _WHO_JUDGES_SLICES + _of_draws(uncertainty),
            tuple(slice_verdicts),
        ),
    )
    return Report(
        tuple(section for section in sections if section.rows),
        tuple(rows),
        tuple(each for each in judged if any(verdict.checked for verdict in each.verdicts)),
        tuple(live),
        planning_ms,
    )


def _judge(claims: Iterable[Claim], evidence: Sequence[Evidence], uncertainty: Uncertainty | None) -> list[Verdict]:
    verdicts = [judge(claim, evidence) for claim in claims]
    if uncertainty is None:
        return verdicts
    return [replace(each, share=uncertainty.share(each.claim, each.virtual)) for each in verdicts]


def _of_draws(uncertainty: Uncertainty | None) -> str:
    """What the column "of draws" has; "" if it is empty."""
    if uncertainty is None:
        return ""
    return (
        f" Of draws: the share of {uncertainty.draws} random draws of what each layer costs at each side (lognormal, "
        f"sigma {uncertainty.sigma:g}) in which the claim holds on the virtual testbed. Near 0 or 100 %, the verdict "
        "follows from the costs; in between, small errors of the costs decide it."
    )


def _share(verdict: Verdict) -> str:
    return "-" if verdict.share is None else f"{verdict.share:.1%}"


def _claims(verdicts: Sequence[Verdict], uncertainty: Uncertainty | None) -> tuple[Section, Section]:
    supported = sum(v.verdict == "supported" for v in verdicts)
    checked = [v for v in verdicts if v.checked]

    def lines(chosen: Iterable[Verdict]) -> tuple[tuple[str, ...], ...]:
        return tuple(
            (
                v.claim.text, f"{v.claim.paper} ({v.claim.section})", v.virtual, v.live, v.claim.tolerance, v.verdict,
                _share(v),
            )
            for v in chosen
        )  # fmt: skip

    header = ("claim", "paper (section)", "virtual", "live", "tolerance", "verdict", "of draws")
    return (
        Section(
            "The paper's claims",
            f"{supported} supported, {len(checked) - supported} not supported, {len(verdicts) - len(checked)} "
            f"not checked. {_WHO_JUDGES}{_of_draws(uncertainty)}",
            header,
            lines(checked),
        ),
        Section(
            "Claims that are not checked",
            "With the reason.",
            header,
            lines(v for v in verdicts if not v.checked),
            detail=True,
        ),
    )


def _slice_claims(found: Sequence[Verdict], uncertainty: Uncertainty | None) -> Section:
    return Section(
        "Beyond the paper: slices below the layer",
        f"{_WHO_JUDGES_SLICES}{_of_draws(uncertainty)}",
        ("claim", "stated", "virtual", "live", "tolerance", "verdict", "of draws"),
        tuple((v.claim.text, v.claim.paper, v.virtual, v.live, v.claim.tolerance, v.verdict, _share(v)) for v in found),
    )


def _summary(settings: Settings, rows: Sequence[SummaryRow]) -> Section:
    return Section(
        f"Summary: {settings.name}, {settings.rate}",
        "Mean ± sample standard deviation over the runs. Disturbed: the live runs during which other processes used "
        f"more than {DISTURBED_SHARE:.0%} of the processors; they count as the others do. Partitions: by the half of "
        "the upload time in which their upload ends. Queries: those that ended before the upload did. Mean ms: of "
        "those that started before the upload ended. Energy: the client's per query, over the same, with the power "
        "that IONN's authors give for its board. Overruns: layers per run that were slower than their pace. Outputs: "
        "what they are to the local forward, bit-equal or within a part of the largest value.",
        (
            "model", "algorithm", "runs", "partitions", "largest", "queries", "upload s", "queries/s",
            "mean ms", "energy J", "first ms", "last ms", "overruns", "outputs", "planning ms",
        ),
        tuple(
            (
                model_title(row.model), row.algorithm, runs_text(row.traces),
                f"{row.first_half.count()} + {row.second_half.count()}", row.largest_share.times(100).text(0, unit="%"),
                row.queries.count(), row.upload_s.text(2), row.queries_per_s.text(2),
                row.mean_ms.text(), row.energy_j.text(2), row.first_ms.text(), row.last_ms.text(), row.overruns.count(),
                str(row.outputs) if row.outputs.computed else "-", row.planning_ms.text(2),
            )
            for row in rows
        ),
    )  # fmt: skip


def _gains(rows: Sequence[SummaryRow]) -> Section:
    rows = [row for row in rows if row.settings.arrivals.closed]
    baselines = {(row.settings, row.model): row for row in rows if row.algorithm == ORIGINAL}
    lines = []
    for row in rows:
        base = baselines.get((row.settings, row.model), row)
        if base is not row and row.upload_s.mean:  # else there are no queries before its upload ended
            pairs = ((row.queries, base.queries), (row.queries_per_s, base.queries_per_s), (row.mean_ms, base.mean_ms))
            changes = (gain_percent(new, old).percent(1) for new, old in pairs)
            lines.append((row.settings.slug, model_title(row.model), row.algorithm, *changes))
    return Section(
        f"Change against {ORIGINAL}",
        "Means over the runs, without algorithms that upload nothing. The ± is that of the change between single runs "
        "of both algorithms, paired at random.",
        ("testbed", "model", "algorithm", "queries", "queries/s", "mean latency"),
        tuple(lines),
    )


def equal_time(rows: Sequence[SummaryRow]) -> Section:
    """The queries of runs with a window, and the bytes that crossed the link in the whole run."""
    with_window = [row for row in rows if row.settings.window_s is not None and row.settings.arrivals.closed]
    originals = {(row.model, row.settings): row.queries_in_window for row in with_window if row.algorithm == ORIGINAL}
    lines = []
    for row in sorted(with_window, key=_by_coding):
        settings = row.settings
        raw = originals.get((row.model, settings.not_coded))
        times = "-" if raw is None else ratio(row.queries_in_window, raw).text()
        lines.append(
            (
                model_title(row.model), row.algorithm, settings.testbed, _coding(settings), f"{settings.window_s:g}",
                row.queries_in_window.count(), times, row.mean_ms_in_window.text(),
                row.last_ms.text(), row.upload_s.text(2),
                _mega(row.weight_bytes, row.weight_wire_bytes) + _held(row.weight_bytes_held),
                _mega(row.feature_bytes, row.feature_wire_bytes),
            )
        )  # fmt: skip
    return Section(
        "Queries in equal time",
        "Runs with a window: the queries that ended in it, how many times those of original without coding they are, "
        "and their mean latency. MB before coding, and on the wire; weights that are held were in the server's store.",
        (
            "model", "algorithm", "testbed", "coding", "window s", "queries in it", "times original's", "mean ms",
            "last ms", "upload s", "MB of weights", "MB of features per query",
        ),
        tuple(lines),
    )  # fmt: skip


def response_times(rows: Sequence[SummaryRow]) -> Section:
    """The response times of runs with arrivals other than a closed loop."""
    return Section(
        "Response times",
        "Runs whose queries arrive at times of their own. Response time: from the arrival of a query to its answer, of "
        "the queries that were answered. Dropped: queries that met a busy client (busy drop), or still waited when the "
        "run ended (busy wait). Within the deadline: the share of all queries that were raised.",
        (
            "model", "algorithm", "testbed", "bandwidth", "runs", "raised", "dropped", "50 % ms", "90 % ms", "99 % ms",
            "within the deadline",
        ),
        tuple(
            (
                model_title(row.model), row.algorithm, row.settings.name, row.settings.rate,
                runs_text(row.traces), row.raised.count(), row.dropped.count(), row.p50_ms.text(), row.p90_ms.text(),
                row.p99_ms.text(), row.within_deadline.times(100).text(unit="%"),
            )
            for row in rows
            if not row.settings.arrivals.closed
        ),
    )  # fmt: skip


def estimates(rows: Sequence[SummaryRow]) -> Section:
    """By how much the estimates of clients that measure were off."""
    measured = [
        (row, trace) for row in rows for trace in row.traces if trace.estimates and trace.info.bandwidth is not None
    ]
    return Section(
        "Clients' estimates of their links",
        "Runs whose clients measured. Off: by how much the estimated rate is off the link's, over time, in spans of "
        f"{SPAN_S:g} s of the first day; when a rate changes, the estimate is off until the client observes it. Late: "
        "queries that were completed at the client because the server's answer was late.",
        (
            "model", "algorithm", "testbed", "run", "estimates", "off, median", "off, 90 % of the time", "late",
            "queries",
        ),
        tuple(
            (
                model_title(row.model), row.algorithm, row.settings.name, str(trace.info.run),
                str(len(trace.estimates)),
                *(_percent(error * 100, "") for error in rate_error_percentiles(trace, 50, 90)),
                str(sum(query.fallback for query in trace.queries)), str(len(trace.queries)),
            )
            for row, trace in measured
        ),
    )  # fmt: skip


def _by_coding(row: SummaryRow) -> tuple[Any, ...]:
    return rank(row.model, list(MODELS)), rank(row.algorithm, SHOWN), CODINGS.index(row.settings.coding)


def _coding(settings: Settings) -> str:
    ratio = "" if settings.weight_ratio is None else f", weights to {settings.weight_ratio:.3g}"
    return settings.coding + ratio


def _mega(raw_bytes: Stat, wire_bytes: Stat) -> str:
    """MB before coding and on the wire: one number if they are the same, or if only one is known."""
    known = [each for each in (raw_bytes, wire_bytes) if not math.isnan(each.mean)]
    return " → ".join(distinct(f"{each.mean / 1e6:.2f}" for each in known)) or "-"


def _held(held_bytes: Stat) -> str:
    return f" ({held_bytes.mean / 1e6:.2f} held)" if held_bytes.mean else ""


def validation(live: Sequence[Validation]) -> Section:
    """How well the virtual testbed predicts live runs."""
    lines = []
    for (where, model, algorithm), group in groupby(live, key=_subject):
        members = list(group)
        measured, predicted = (
            Stat.of(getattr(each, side).queries_in_upload for each in members) for side in ("measured", "predicted")
        )
        lines.append(
            (
                where, model, algorithm, _runs(members), measured.text(), predicted.text(),
                _percent(gain_percent(predicted, measured).mean),
                _percent(_worst([each.query_error * 100 for each in members])),
                *(_percent(of([each.latency_error * 100 for each in members]), "") for of in (_mean, _worst)),
            )
        )  # fmt: skip
    return Section(
        "Model validation: the virtual testbed predicts the live runs",
        "Each live run against the virtual testbed fed with the costs measured in that run. Queries: those that ended "
        "before the upload did, and the completed part of the query that was running then. Latency error: "
        "|predicted - measured| over time, relative to the mean measured latency, until the upload ends.",
        (
            "testbed", "model", "algorithm", "runs", "measured queries", "predicted", "error", "worst run",
            "latency error", "worst run",
        ),
        tuple(lines),
    )  # fmt: skip


def response_validation(live: Sequence[Validation]) -> Section:
    """How well the virtual testbed predicts the response times of live runs."""
    lines = []
    arrived = (each for each in live if not each.measured.info.settings.arrivals.closed)
    for (where, model, algorithm), group in groupby(arrived, key=_subject):
        members = list(group)
        percentiles = [
            f"{statistics.median(getattr(getattr(each, side).responses, name) for each in members):.1f}"
            for name in ("p50_ms", "p90_ms", "p99_ms")
            for side in ("measured", "predicted")
        ]
        errors = [each.p90_error * 100 for each in members]
        lines.append(
            (
                where, model, algorithm, _runs(members), *percentiles, _percent(statistics.median(errors)),
                _percent(_worst(errors)),
            )
        )  # fmt: skip
    return Section(
        "Model validation: the virtual testbed predicts response times",
        "Each live run whose queries arrive at times of their own, against the virtual testbed fed with these times "
        "and with the costs measured in that run: percentiles of response times, medians over the runs. The error is "
        "that of the 90th percentile.",
        (
            "testbed", "model", "algorithm", "runs", "50 % ms", "predicted", "90 % ms", "predicted", "99 % ms",
            "predicted", "error", "worst run",
        ),
        tuple(lines),
    )  # fmt: skip


def _validation_runs(live: Sequence[Validation]) -> Section:
    return Section(
        "Model validation, run by run",
        "As above.",
        ("testbed", "model", "algorithm", "run", "measured queries", "predicted", "error", "latency error"),
        tuple(
            (
                *_subject(each), str(each.measured.info.run), f"{each.measured.queries_in_upload:.1f}",
                f"{each.predicted.queries_in_upload:.1f}", _percent(each.query_error * 100),
                _percent(each.latency_error * 100, ""),
            )
            for each in live
        ),
        detail=True,
    )  # fmt: skip


def _planning(planning_ms: PlanningTimes, stages: PlannedStages) -> Section:
    models, algorithms = (distinct(key[part] for key in planning_ms) for part in (0, 1))

    def same(model: str) -> str:
        fine, efficiency = stages.get((model, FINE)), stages.get((model, EFFICIENCY))
        return _YES_NO[None if fine is None or efficiency is None else fine == efficiency]

    return Section(
        "Planning time in ms (section 4.4)",
        "Of the planners, on this machine: the time in plans.json, else the median over all runs. Last column: whether "
        f"{FINE} has the plan of efficiency.",
        ("model", *algorithms, "same plan"),
        tuple(
            (
                model_title(model),
                *(f"{planning_ms[key]:.2f}" if (key := (model, name)) in planning_ms else "-" for name in algorithms),
                same(model),
            )
            for model in models
        ),
    )


def _faults(traces: Iterable[Trace]) -> Section:
    lines = []
    for trace in traces:
        fallbacks = sum(query.fallback for query in trace.queries)
        wrong = trace.outputs.wrong
        for text, applies in (
            (f"left out of all tables and figures: {trace.info.fault}", lost_server(trace)),
            (f"{fallbacks} queries completed at the client, because the server failed or was late", fallbacks),
            (f"{wrong} queries with an output that is wrong: further from the local one than it may be", wrong),
            (f"disturbed: {trace.disturbance}", trace.disturbance is not None),
        ):
            if applies:
                lines.append(
                    (f"{trace.info.settings.testbed} {trace.info.model} {trace.info.algorithm} {trace.info.run}", text)
                )
    return Section("Runs with faults", "Whatever went wrong while they ran.", ("run", "what"), tuple(lines))


def _environments(rows: Sequence[SummaryRow]) -> Section:
    lines = []
    for settings, group in groupby(rows, key=lambda row: row.settings):
        infos = [trace.info for row in group for trace in row.traces]
        noise = {"noise": settings.noise} if settings.testbed == "virtual" else {}
        facts = [
            {
                "client": settings.device, "server": i.server, "seed": settings.seed, **noise,
                **({} if i.output_check is None else {"outputs compared": str(i.output_check)}), **i.environment,
            }
            for i in infos
        ]  # fmt: skip
        for name in distinct(name for fact in facts for name in fact):
            values = distinct(str(fact[name]) for fact in facts if name in fact)
            lines.append((settings.slug, name, "; ".join(values)))
    return Section(
        "Where the runs were made", "As the traces record it.", ("testbed", "what", "value"), tuple(lines), detail=True
    )


def _planning_ms(run: Iterable[Plan], listed: Iterable[PlanDocument]) -> PlanningTimes:
    times: dict[tuple[str, str], list[float]] = {}
    for plan in run:
        if not math.isnan(plan.planning_ms):
            times.setdefault((plan.model, plan.algorithm), []).append(plan.planning_ms)
    medians = {key: statistics.median(each) for key, each in times.items()}
    return medians | {(each.model, each.algorithm): each.planning_ms for each in listed if each.planning_ms is not None}


def _load_plans(path: Path) -> tuple[PlanDocument, ...]:
    """The plans of a file {"plans": [...]}, each as `Plan.to_json` writes it; none if there is no such file."""
    if not path.exists():
        return ()
    try:
        listed: _PlanList = read_json(read_bytes(path, "the plans"), _PlanList)
    except ValueError as error:
        raise InputError(f"{path}: not a list of plans ({error}); delete it and plan again") from error
    return listed.plans


def _subject(validation: Validation) -> tuple[str, str, str]:
    info = validation.measured.info
    return info.settings.slug, model_title(info.model), info.algorithm


def _runs(members: Sequence[Validation]) -> str:
    return runs_text([each.measured for each in members])


def _mean(values: Iterable[float]) -> float:
    return Stat.of(values).mean


def _worst(values: Iterable[float]) -> float:
    return max((value for value in values if not math.isnan(value)), key=abs, default=math.nan)


def _percent(value: float, sign: str = "+") -> str:
    return "-" if math.isnan(value) else f"{value:{sign}.1f}%"
