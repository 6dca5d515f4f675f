"""What summary, report and figures say of queries that arrive by themselves."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import ionn.evaluation.response_figures
from ionn.evaluation.figures import draw_figures
from ionn.evaluation.report import equal_time, make_report, response_times
from ionn.evaluation.response_figures import fig_responses
from ionn.evaluation.summary import summary
from ionn.evaluation.validation import validate
from ionn.testbed.arrivals import Arrivals
from ionn.testbed.settings import Settings
from ionn.testbed.trace import RunInfo, Trace, trace_path
from ionn.testbed.virtual import run_virtual
from tests.support.chains import chain
from tests.support.runs import make_trace, plan_of

CAMERA = {"arrivals": Arrivals("fps:4"), "busy": "drop", "deadline_ms": 450.0}


def arrived(algorithm: str = "original", run: int = 1, client_ms: float = 200.0, **settings: object) -> Trace:
    """A run in which a query takes twice `client_ms` at the client, and 90 ms when all is uploaded, after 2 s."""
    graph = chain([client_ms, client_ms], [20, 20], [1000, 1000], [50, 50, 0])
    made = Settings("virtual", **{**CAMERA, "window_s": 4.0, **settings})  # type: ignore[arg-type]
    plan = plan_of(graph, [[0], [1]], [3, 1], "alexnet", algorithm)
    return run_virtual(RunInfo(made, run, plan, graph))


def as_live(trace: Trace) -> Trace:
    settings = dataclasses.replace(trace.info.settings, testbed="live")
    return dataclasses.replace(trace, info=dataclasses.replace(trace.info, settings=settings, sent="cpu"))


def test_a_row_of_the_summary() -> None:
    # One every 250 ms. At the client they take 400 ms; from 1 s on, with A, 370 beside the upload; from 2.1 s on, 90.
    # So 5 are dropped of the first run; of the second, whose client is half as fast, 3 and then 2 twice.
    traces = [arrived(run=1), arrived(run=2, client_ms=400.0)]
    (row,) = summary(traces)
    assert [len(trace.dropped_s) for trace in traces] == [5, 7]
    assert (row.raised.mean, row.raised.std, row.dropped.mean) == (16, 0, 6)
    each = [trace.responses for trace in traces]
    assert [one.p50_ms for one in each] == pytest.approx([90, 90])
    assert row.p90_ms.mean == pytest.approx((each[0].p90_ms + each[1].p90_ms) / 2)
    assert row.p99_ms.mean == pytest.approx((400 + 800) / 2)
    assert row.within_deadline.mean == pytest.approx(sum(one.within_deadline for one in each) / 2)
    assert math.isnan(summary([make_trace()])[0].within_deadline.mean)


def test_the_report_has_response_times_and_leaves_out_what_compares_closed_loops() -> None:
    rows = summary([make_trace(window_s=4.0), arrived(), arrived("efficiency", deadline_ms=None)])
    table = response_times(rows)
    assert [line[:2] for line in table.rows] == [("AlexNet", "efficiency"), ("AlexNet", "original")]
    responses = arrived().responses
    assert table.rows[1][2:] == (
        "virtual testbed, window 4 s, arrivals fps:4, busy drop, deadline 450 ms", "80 Mbps", "1", "16",
        str(responses.dropped), "90.0", f"{responses.p90_ms:.1f}", "400.0", f"{responses.within_deadline:.1%}",
    )  # fmt: skip
    assert table.rows[0][-1] == "-"
    assert len(equal_time(rows).rows) == 1
    titles = [section.title for section in make_report([arrived(), arrived("efficiency")]).sections]
    assert "Response times" in titles
    assert not {"Change against original", "Queries in equal time"} & set(titles)
    assert "Response times" not in [section.title for section in make_report([make_trace()]).sections]


@pytest.mark.parametrize("arrivals", [Arrivals("poisson:4"), Arrivals("walk.txt (00000000)", (0.0, 0.3, 0.35, 2.2))])
@pytest.mark.parametrize("busy", ["wait", "drop"])
def test_a_run_predicts_itself(arrivals: Arrivals, busy: str, tmp_path: Path) -> None:
    """Also from a trace, which does not have a file's timestamps: what arrived is what was raised."""
    as_live(arrived(arrivals=arrivals, busy=busy, seed=3)).save(tmp_path / "run.jsonl")
    read = Trace.load(tmp_path / "run.jsonl")
    checked = validate(read)
    assert checked.predicted.queries == read.queries
    assert (checked.p90_error, checked.latency_error) == (0, 0)


def test_an_error_of_the_prediction() -> None:
    """A query that took twice as long as its costs say."""
    trace = as_live(arrived(window_s=30.0))
    slow = [dataclasses.replace(query, end_s=query.end_s + query.response_ms / 1e3) for query in trace.queries]
    wrong = dataclasses.replace(trace, queries=tuple(slow))
    assert validate(wrong).p90_error == pytest.approx(-0.5)
    (table,) = [each for each in make_report([wrong]).sections if "predicts response times" in each.title]
    assert table.rows[0][3:] == ("1", "180.0", "90.0", "180.0", "90.0", "800.0", "400.0", "-50.0%", "-50.0%")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn, instead of files."""
    figures: list[Figure] = []

    def keep(figure: Figure, stem: Path, *_: object) -> list[Path]:
        figures.append(figure)
        return []

    monkeypatch.setattr(ionn.evaluation.response_figures, "save_png_and_pdf", keep)
    return figures


def lines(axes: Axes) -> list[tuple[list[float], list[float]]]:
    """The lines over time; the vertical ones, of two points, mark the end of an upload."""
    found = [(np.array(line.get_xdata()).tolist(), np.array(line.get_ydata()).tolist()) for line in axes.lines]
    return [line for line in found if len(line[0]) > 2]


def test_a_figure_has_what_became_of_queries_over_time(drawn: list[Figure], tmp_path: Path) -> None:
    one, other = arrived(run=1), arrived(run=2, client_ms=400.0)
    fig_responses(summary([one, other, arrived("efficiency")]), tmp_path)
    (figure,) = drawn
    response, within, dropped = figure.axes
    spans = [trace.responses_over_time for trace in (one, other)]
    for axes, name, factor in ((response, "p90_ms", 1.0), (within, "within_deadline", 100.0)):
        x, y = lines(axes)[0]
        assert x == [0.5, 1.5, 2.5, 3.5]
        values = [[getattr(span, name) * factor for span in each] for each in spans]
        assert y == pytest.approx([sum(pair) / 2 for pair in zip(*values, strict=True)])
    assert lines(dropped)[1][1] == pytest.approx([100 * span.dropped / span.raised for span in one.responses_over_time])
    assert response.get_yscale() == "log"
    assert "450 ms" in within.get_ylabel()
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert [label.split(":")[0] for label in labels] == ["original", "efficiency"]
    assert labels[1].startswith("efficiency: 90, ")
    assert "% dropped; " in labels[1]


def test_the_subtitle_counts_the_runs_of_all_algorithms(drawn: list[Figure], tmp_path: Path) -> None:
    two = [arrived(run=1), arrived(run=2)]
    for traces, said in (
        ([arrived()], "1 run"),
        (two, "2 runs, mean ± std"),
        ([*two, arrived("efficiency")], "1-2 runs, mean ± std"),
    ):
        fig_responses(summary(traces), tmp_path)
        subtitle = drawn.pop().axes[0].texts[0].get_text().replace("\n", " ")
        assert subtitle.split(", ", 5)[-1] == f"80 Mbps, {said}"


def test_runs_of_other_lengths_are_drawn_over_common_spans(drawn: list[Figure], tmp_path: Path) -> None:
    """Of two seconds each, since the longer run takes more than a minute."""
    short = arrived(run=1, arrivals=Arrivals("a (00000000)", (0.0, 1.9, 4.0)))
    long = arrived(run=2, arrivals=Arrivals("a (00000000)", (0.5, 2.5, 70.0)))
    fig_responses(summary([short, long]), tmp_path)
    x, y = lines(drawn[0].axes[2])[0]
    assert x == [2 * number + 1 for number in range(36)]
    assert [place for place, dropped in zip(x, y, strict=True) if not math.isnan(dropped)] == [1, 3, 5, 71]


def test_what_is_not_there_has_no_panel(drawn: list[Figure], tmp_path: Path) -> None:
    fig_responses(summary([arrived(busy="wait", deadline_ms=None), make_trace()]), tmp_path)
    (figure,) = drawn
    assert len(figure.axes) == 1


def test_arrivals_have_a_figure_of_their_own_beside_the_papers(tmp_path: Path) -> None:
    for trace in (arrived(), arrived("sliced-efficiency"), make_trace()):
        trace.save(trace_path(tmp_path, trace.info.settings, "alexnet", trace.info.algorithm, 1))
    names = {path.stem for path in draw_figures(tmp_path, tmp_path / "figures")}
    slug = arrived().info.settings.slug
    assert names == {"fig5-virtual", "fig6-virtual", "fig7-virtual-alexnet", f"responses-{slug}-alexnet"}
    image = cv2.imread(str(tmp_path / "figures" / f"responses-{slug}-alexnet.png"))
    assert image is not None
    assert image.shape[1] > 900
