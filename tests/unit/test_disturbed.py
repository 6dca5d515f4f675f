"""Runs that other load disturbed count, and are marked wherever runs are told of."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from per_model import to_run_again

from ionn.cli.experiments import _run_json, _runs_text
from ionn.evaluation.claims import CLAIMS, Evidence, judge
from ionn.evaluation.page import html_page
from ionn.evaluation.report import make_report
from ionn.evaluation.slice_claims import SLICE_CLAIMS
from ionn.evaluation.summary import Stat, gain_percent, ratio, summary
from ionn.paper import SLICED
from ionn.records import LoadRecord
from ionn.testbed.trace import Trace, trace_path
from tests.support.runs import make_trace

SAID = "disturbed: other processes used 40% of the processors from second 0 to 4"


def beside(other: float, trace: Trace) -> Trace:
    """The run, as it was beside so much other load."""
    return dataclasses.replace(trace, loads=(LoadRecord(0.0, 4.0, 0.25 + other, 0.25),))


@pytest.fixture
def runs() -> list[Trace]:
    return [
        beside(0.4, make_trace(testbed="live")),
        beside(0.05, make_trace(testbed="live", run=2)),
        make_trace(testbed="live", run=3),
    ]


def test_the_report_marks_them(runs: list[Trace]) -> None:
    report = make_report(runs)
    for title in ("Summary: live", "Model validation: the virtual testbed predicts the live runs"):
        (section,) = [part for part in report.sections if part.title.startswith(title)]
        assert [row[section.header.index("runs")] for row in section.rows] == ["3, 1 disturbed"]
    (section,) = [part for part in report.sections if part.title == "Runs with faults"]
    assert section.rows == (("live alexnet original 1", SAID),)
    assert "Other load disturbed 1 of 2 live runs that recorded it." in html_page(report)
    assert "Other load disturbed none of 1 live runs that recorded it." in html_page(make_report(runs[1:]))
    assert "Other load disturbed" not in html_page(make_report(runs[2:]))


@pytest.mark.parametrize(("dilation", "note"), [(1.0, ""), (8.0, "dilation 8; ")])
def test_claims_say_how_many_of_their_runs_are(dilation: float, note: str) -> None:
    made = [
        beside(0.4, make_trace(name, testbed="live", dilation=dilation, run=run, latencies_ms=latencies_ms))
        for name, run, latencies_ms in (
            ("original", 1, (1000.0, 1000.0, 1000.0)),
            ("original", 2, (500.0,) * 6),
            ("recursive-efficiency", 1, (500.0,) * 6),
        )
    ]
    made.append(beside(0.0, make_trace("original", testbed="live", dilation=dilation, run=3)))
    evidence = Evidence.of(summary(made), {})
    queries, gain = (next(each for each in CLAIMS if text in each.text) for text in ("original: queries", "over orig"))
    assert judge(queries, evidence).live == f"4.3 ± 1.5 ({note}2 of 3 runs disturbed)"
    assert judge(gain, evidence).live == f"+38 ± 49% ({note}3 of 4 runs disturbed)"
    quiet = [beside(0.0, trace) for trace in made]
    assert "disturbed" not in judge(gain, Evidence.of(summary(quiet), {})).live


def test_a_claim_about_one_algorithm_does_not_count_the_runs_of_others() -> None:
    made = [
        beside(other, make_trace(name, testbed="live", run=run, bit_equal=True))
        for name, other in (("original", 0.4), (SLICED, 0.0))
        for run in (1, 2)
    ]
    (exact,) = (each for each in SLICE_CLAIMS if "bit for bit" in each.text)
    assert judge(exact, Evidence.of(summary(made), {})).live == "all"
    made[-1] = beside(0.4, made[-1])
    assert judge(exact, Evidence.of(summary(made), {})).live == "all (1 of 2 runs disturbed)"


def test_the_command_line_says_it(runs: list[Trace]) -> None:
    assert _runs_text(runs).splitlines()[3] == f"    {SAID}"
    assert _runs_text(runs).count("disturbed") == 1
    told = json.loads(json.dumps([_run_json(trace) for trace in runs]))
    assert [each["other_load"] for each in told] == [pytest.approx(0.4), pytest.approx(0.05), None]
    assert [each["disturbance"] for each in told] == [
        {"share": pytest.approx(0.4), "start_s": 0, "end_s": 4},
        None,
        None,
    ]


def test_the_scripts_say_how_to_run_them_again(runs: list[Trace]) -> None:
    path = trace_path(Path("my results"), runs[0].info.settings, "alexnet", "original", 1)
    _, *lines = to_run_again(runs, Path("my results")).splitlines()
    assert lines == [f"rm '{path}'  # {SAID.removeprefix('disturbed: ')}"]
    assert to_run_again(runs[1:], Path("results")) == ""


def test_the_spread_of_a_ratio() -> None:
    """To first order, as of independent quantities."""
    assert ratio(Stat(6.0, 1.2), Stat(4.0, 0.6)) == Stat(1.5, pytest.approx(1.5 * (0.2**2 + 0.15**2) ** 0.5))  # type: ignore[arg-type]
    assert gain_percent(Stat(6.0, 1.2), Stat(4.0, 0.6)).percent() == "+50 ± 38%"
    assert gain_percent(Stat(6.0, 1.2), Stat(4.0, 0.6)).percent(1) == "+50.0 ± 37.5%"
    assert gain_percent(Stat(3.0, 0.0), Stat(4.0, 0.0)).percent() == "-25%"
    assert ratio(Stat(3.0, 1.0), Stat(0.0, 0.0)).text() == gain_percent(Stat(3.0, 1.0), Stat(0.0, 0.0)).percent() == "-"
