"""The report's page: its findings, charts and replays, what strangers' text becomes in it, and how large it gets."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import itertools
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from plotly.graph_objects import Figure

import ionn.cli
from ionn.evaluation import page
from ionn.evaluation.charts import Chart, bars, latencies, predictions, steps
from ionn.evaluation.claims import CLAIMS, Verdict
from ionn.evaluation.findings import Finding, findings
from ionn.evaluation.replay import replay
from ionn.evaluation.report import make_report, save_report
from ionn.evaluation.sections import Judged, Report
from ionn.evaluation.summary import summary
from ionn.evaluation.validation import validate
from ionn.paper import SHOWN, model_title
from ionn.testbed import runner
from ionn.testbed.arrivals import Arrivals
from ionn.testbed.trace import Trace, trace_path
from tests.support.runs import FIVE_FAST, make_trace, runs_with_queries

MB = 1_000_000
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def runs() -> list[Trace]:
    """AlexNet and MobileNet on the paper's testbed, by all algorithms."""
    return [trace for model in ("alexnet", "mobilenet") for trace in runner.run_virtual_all(model, SHOWN)]


def data_of(text: str) -> dict[str, Any]:
    """What the page's scripts read."""
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    data: dict[str, Any] = json.loads(found)
    return data


def check(chart: Chart) -> None:
    """Plotly's own check of all properties and values."""
    Figure(data=chart["data"], layout=chart["layout"])


def found_in(traces: Sequence[Trace], title: str) -> Finding:
    (finding,) = [each for each in findings(make_report(traces)) if each.title == title]
    check(finding.chart)
    return finding


# --- Findings -------------------------------------------------------------------------------------------------------


def test_what_is_found_is_said_with_the_numbers_of_the_rows() -> None:
    traces = runs_with_queries({"original": 20, "efficiency": 20, "recursive-efficiency": 30})
    traces += runs_with_queries({"original": 10, "efficiency": 11, "recursive-efficiency": 12}, model="resnet")
    queries = found_in(traces, "Queries while the model is uploaded")
    assert queries.sentence == (
        "Queries that are completed while AlexNet is uploaded: 30 with recursive-efficiency, 20 with original and "
        "efficiency. The most are 1.50 times those of original."
    )
    assert queries.where == "virtual testbed, 80 Mbps"
    assert found_in(traces, "The largest partition").sentence == (
        "The share of AlexNet's weights that the largest partition has: 75 % with original, efficiency and "
        "recursive-efficiency."
    )
    assert found_in(traces, "Latency against original").sentence == (
        "Mean latency during the upload, the best against original: AlexNet -33 % (recursive-efficiency) and ResNet "
        "-16 % (recursive-efficiency)."
    )
    assert found_in(traces, "Planning time").sentence == (
        "The longest that planning takes for any of the models: 0.5 ms with original, efficiency and "
        "recursive-efficiency."
    )


def test_planning_that_was_not_timed_takes_no_time(tmp_path: Path) -> None:
    """A client that measures plans again and again, and no trace says how long that takes."""
    (tmp_path / "link.csv").write_text("0,80\n")
    traces = runner.run_virtual_all("mobilenet", ["original"], mbps=None, link=tmp_path / "link.csv")
    report = make_report(traces)
    assert "Planning time in ms (section 4.4)" not in [section.title for section in report.sections]
    assert "Planning time" not in [finding.title for finding in findings(report)]


def test_latency_is_averaged_over_the_same_time() -> None:
    slow = make_trace("original", (1000.0, 1000.0, 1000.0, 100.0))
    fast = make_trace("recursive-efficiency", (1000.0, 500.0, 500.0, 500.0, 500.0, *[100.0] * 10))
    found = found_in([slow, fast], "When queries become faster")
    # From 1 to 4.1 s: 3 s of 1000 ms and 0.1 s of 100 ms; 1 s of 1000, 2 s of 500, and 0.1 s of 100 ms.
    assert found.sentence == (
        "A query of AlexNet takes 0 ms at the client alone and 100 ms in the end; on average over time, from 1.0 to "
        "4.1 s: 648 ms with recursive-efficiency, 971 ms with original."
    )


def test_no_mean_is_told_of_a_small_part_of_the_runs() -> None:
    """One of the runs has its first query when the others are almost over."""
    late = make_trace("mine", ends_s=(4.0, 4.0))
    assert found_in([make_trace(), late], "When queries become faster").sentence == (
        "A query of AlexNet takes 0 ms at the client alone and 100 ms in the end."
    )


def test_small_and_missing_differences_are_said_as_they_are() -> None:
    tiny = [make_trace(latencies_ms=[0.04] * 50, ends_s=(0.001, 0.002))]
    assert "0.04 ms in the end" in found_in(tiny, "When queries become faster").sentence
    for other_ms in (1_000.0, 999.0, 1_001.0):
        same = [make_trace(latencies_ms=[1_000.0] * 8), make_trace("efficiency", latencies_ms=[other_ms] * 8)]
        assert found_in(same, "Latency against original").sentence.endswith("against original: AlexNet unchanged.")


def test_models_of_one_title_are_told_apart() -> None:
    """ "alexnet" is written AlexNet, and somebody's own model may have that name."""
    report = make_report([make_trace(), make_trace(model="AlexNet", latencies_ms=[300.0] * 30)])
    assert [report.titles[name] for name in ("alexnet", "AlexNet")] == ["alexnet", "AlexNet"]
    chart = found_in(
        [trace for row in report.rows for trace in row.traces], "Queries while the model is uploaded"
    ).chart
    (bar,) = chart["data"]
    shown = {chart["layout"]["xaxis"]["ticktext"][int(x)]: y for x, y in zip(bar["x"], bar["y"], strict=True)}
    assert shown == {"alexnet": 4, "AlexNet": 10}


def test_each_run_can_be_chosen() -> None:
    traces = [make_trace(model=name, mbps=mbps) for name in ("alexnet", "AlexNet") for mbps in (5.0000001, 5.0000002)]
    data = data_of(page.html_page(make_report(traces)))
    assert len({(each["testbed"], each["model"]) for each in data["replays"]}) == 4
    assert all(len(set(texts)) == len(texts) for texts in data["choices"].values())


def test_no_gain_is_claimed_where_there_is_none() -> None:
    worse = runs_with_queries({"original": 20, "efficiency": 10})
    assert "most" not in found_in(worse, "Queries while the model is uploaded").sentence
    assert "AlexNet +" in found_in(worse, "Latency against original").sentence
    alone = [make_trace("mine", model="mine")]
    sentence = found_in(alone, "Queries while the model is uploaded").sentence
    assert sentence == "Queries that are completed while mine is uploaded: 4 with mine."
    assert "Latency against original" not in [each.title for each in findings(make_report(alone))]


def test_live_runs_are_told_by_their_predictions(runs: list[Trace]) -> None:
    live = [
        dataclasses.replace(
            trace, info=dataclasses.replace(trace.info, settings=make_trace(testbed="live").info.settings, sent="cpu")
        )
        for trace in runs
    ]
    found = found_in(live, "Live runs and their predictions")
    assert found.sentence == (
        "8 live runs, each computed again from the costs that were measured in it: the number of queries is off by "
        "0.0 % in the median, and 0.0 % at most."
    )
    assert found_in(live, "Queries while the model is uploaded").where == "live testbed, 80 Mbps"
    check(predictions([validate(trace) for trace in live], make_report(live).titles))


def test_queries_in_equal_time_and_by_themselves() -> None:
    window: dict[str, Any] = {"window_s": 9.0}
    traces = [
        make_trace("original", [1000.0] * 4 + [9000.0], **window),
        make_trace("sliced-efficiency", [1000.0] * 6 + [9000.0], coding="features", **window),
        make_trace("original", [1000.0] * 8 + [9000.0], mbps=800.0, **window),  # another link is no baseline
        make_trace("efficiency", [1000.0] * 8 + [9000.0], mbps=40.0, **window),
    ]
    assert found_in(traces, "Queries in equal time").sentence == (
        "In 9 s AlexNet completes 1.5 times as many queries with sliced-efficiency, coding features, as with "
        "original, coding none."
    )
    coded = [
        make_trace("efficiency", [1000.0] * count + [9000.0], coding="lossless", weight_ratio=ratio, **window)
        for count, ratio in ((8, 0.5), (6, 0.8))
    ]
    found = found_in([traces[0], *coded], "Queries in equal time")
    assert "2.0 times as many queries with efficiency, coding lossless, weight ratio 0.5, as" in found.sentence
    (bar,) = [each for each in found.chart["data"] if each["name"] == "efficiency"]
    assert (bar["hovertext"], bar["y"]) == (
        ["coding lossless, weight ratio 0.5", "coding lossless, weight ratio 0.8"], [2.0, 1.5],
    )  # fmt: skip
    arrived = [
        make_trace(name, latencies, arrivals=Arrivals("poisson:4"), window_s=9.0)
        for name, latencies in (("original", (500.0,) * 9), ("efficiency", (400.0,) * 9))
    ]
    found = found_in(arrived, "Response times")
    assert found.sentence.startswith("AlexNet's queries arrive at times of their own (poisson:4). Of those that are ")


@pytest.mark.parametrize(
    "traces",
    [
        [],
        [make_trace(ends_s=(), sizes=())],
        [make_trace(latencies_ms=(500.0,), ends_s=(0.2, 0.4))],
        [make_trace(), make_trace(run=2, latencies_ms=(900.0, *FIVE_FAST)), make_trace("a & b", model="<m>")],
        [make_trace(testbed="live", dilation=8.0), make_trace(mbps=40.0)],
        [make_trace(name, latencies_ms=[0.0] * 5) for name in ("original", "efficiency")],
    ],
    ids=["none", "nothing uploaded", "one query", "several runs", "other settings", "no time"],
)
def test_any_results_have_a_page(traces: list[Trace]) -> None:
    report = make_report(traces)
    for finding in findings(report):
        check(finding.chart)
        assert "nan" not in finding.sentence.lower()
    data = data_of(page.html_page(report))
    assert len(data["latencies"]) == len({(row.settings, row.model) for row in report.rows})
    for each in data["latencies"]:
        check(each["chart"])


RUNS = st.lists(
    st.builds(
        make_trace,
        st.sampled_from(["original", "efficiency", "mine"]),
        st.lists(st.floats(1.0, 3_000.0), min_size=1, max_size=8),
        st.sampled_from([(1.0, 4.0), (0.5, 0.5), (3.0, 3.5)]),
        st.sampled_from([(1_000, 3_000), (5, 0)]),
        model=st.sampled_from(["alexnet", "mine"]),
        run=st.integers(1, 2),
        testbed=st.sampled_from(["virtual", "live"]),
        mbps=st.sampled_from([80.0, 5.0]),
        window_s=st.sampled_from([None, 4.0]),
    ),
    max_size=6,
)


@given(RUNS)
def test_sentences_say_what_the_rows_have(traces: list[Trace]) -> None:
    report = make_report(traces)
    found = {each.title: each for each in findings(report)}
    for each in found.values():
        check(each.chart)
        assert not re.search("nan|inf", each.sentence)
    assert bool(traces) == ("Queries while the model is uploaded" in found)
    if traces:
        first = found["Queries while the model is uploaded"]
        told = [
            row
            for row in report.rows
            if first.where == f"{row.settings.name}, {row.settings.rate}"
            and f"{report.titles[row.model]} is" in first.sentence
        ]
        assert told
        for row in told:
            assert re.search(
                rf"{re.escape(row.queries.count())} with (?:[a-z]+(?:, | and ))*{row.algorithm}", first.sentence
            )


# --- Charts ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.integers(4, 40))
def test_a_line_keeps_its_form(values: list[int], points_max: int) -> None:
    times, line = np.arange(len(values) + 1.0), np.array([values], dtype=float)
    at, (kept,) = steps(times, line, points_max)
    assert at[0] == 0
    assert at[-1] == times[-1]
    assert (min(kept), max(kept)) == (min(values), max(values))
    changes = 1 + sum(one != other for one, other in itertools.pairwise(values))
    assert len(at) == len(kept) <= max(points_max, 3) + 2
    if changes <= points_max:
        shown = kept[np.searchsorted(at[:-1], times[:-1], side="right") - 1]
        assert shown.tolist() == values


def test_several_runs_have_a_mean_and_a_spread() -> None:
    rows = summary([make_trace(), make_trace(run=2, latencies_ms=(900.0, 900.0, 900.0, *FIVE_FAST))])
    chart = latencies(rows, 100)
    check(chart)
    assert [line["legendgroup"] for line in chart["data"]] == ["original"] * 4
    assert [line.get("fill") for line in chart["data"]] == [None, "tonexty", None, None]


def test_bars_have_the_values_of_the_rows() -> None:
    other = make_trace(run=2, latencies_ms=(500.0, 500.0, *[250.0] * 12))
    rows = summary([make_trace(), other, make_trace("efficiency", sizes=(1_000, 2_000)), make_trace(model="resnet")])
    chart = bars(
        rows, lambda row: row.queries, make_report([make_trace(), make_trace(model="resnet")]).titles, "queries"
    )
    check(chart)
    shown = {
        (bar["name"], chart["layout"]["xaxis"]["ticktext"][chart["layout"]["xaxis"]["tickvals"].index(x)]): (y, spread)
        for bar in chart["data"]
        for x, y, spread in zip(bar["x"], bar["y"], bar["error_y"]["array"], strict=True)
    }
    assert shown == {
        (row.algorithm, model_title(row.model)): (round(row.queries.mean, 4), row.queries.std) for row in rows
    }
    assert {bar["name"]: bar["error_y"]["visible"] for bar in chart["data"]} == {"original": True, "efficiency": False}


def test_lines_have_the_latencies_of_the_queries() -> None:
    """Of one run as they are; of several their mean, and one sample standard deviation on either side."""
    one, other = make_trace(), make_trace(run=2, latencies_ms=(900.0, 900.0, 900.0, *FIVE_FAST))
    line, end = latencies(summary([one]), 100)["data"]
    at, values = np.array(line["x"]), np.array(line["y"])
    for query in one.queries:
        middle_s = (query.start_s + query.end_s) / 2
        assert values[np.searchsorted(at, middle_s, side="right") - 1] == pytest.approx(query.latency_ms)
    assert (at[0], at[-1]) == (one.queries[0].start_s, pytest.approx(one.queries[-1].end_s))
    assert (end["x"], end["y"]) == ([one.upload_s] * 2, [0, max(query.latency_ms for query in one.queries)])
    low, high, mean, end = latencies(summary([one, other]), 100)["data"]
    assert (low["y"][0], high["y"][0], mean["y"][0]) == (
        round(950 - np.std([900, 1000], ddof=1), 1), round(950 + np.std([900, 1000], ddof=1), 1), 950.0,
    )  # fmt: skip
    assert end["x"] == [4.0, 4.0]


def test_predictions_are_beside_what_was_measured() -> None:
    live = validate(make_trace(testbed="live"))
    assert live.measured.queries_in_upload != live.predicted.queries_in_upload
    _, points = predictions([live], {"alexnet": "AlexNet"})["data"]
    assert points["x"] == [round(live.measured.queries_in_upload, 2)]
    assert points["y"] == [round(live.predicted.queries_in_upload, 2)]


def test_long_names_leave_room_for_the_chart() -> None:
    """They are shortened, and stay apart."""
    names = ["a" * 60 + "b" * 60, "a" * 60 + "c" * 60, "a" * 60 + "d" + "c" * 59]
    rows = summary([make_trace(name, model=name) for name in names])
    lines = [line for line in latencies(rows, 100)["data"] if line.get("showlegend") is not False]
    short = ["a" * 12 + "…" + end for end in ("b" * 11, "c" * 11, "c" * 11 + " (2)")]
    assert [line["name"] for line in lines] == short
    assert [line["legendgroup"] for line in lines] == names
    chart = bars(rows, lambda row: row.queries, {name: name for name in names}, "queries")
    check(chart)
    assert [(bar["x"], bar["hovertext"]) for bar in chart["data"]] == [
        ([str(number)], [name]) for number, name in enumerate(names)
    ]
    assert chart["layout"]["xaxis"]["ticktext"] == short


# --- Replays --------------------------------------------------------------------------------------------------------


def test_a_replay_shows_what_the_server_held_before() -> None:
    (trace,) = runner.run_virtual_all("alexnet", ["preinstalled"])
    shown = replay(trace, 1_000)
    assert shown["held"] == list(trace.info.plan.held) != []
    assert shown["partitions"] == []
    (route,) = shown["routes"]
    assert [leg[:3] for leg in route] == [
        [0, 0, shown["held"][0] - 1], [1, shown["held"][0], shown["held"][-1]],
        [0, shown["held"][-1] + 1, len(shown["stages"]) - 1],
    ]  # fmt: skip


def test_a_replay_has_what_the_run_had(runs: list[Trace]) -> None:
    for trace in runs:
        shown = replay(trace, 1_000)
        stages = trace.info.graph.stages
        assert shown["stages"] == list(stages)
        assert (len(shown["queries"]), shown["every"]) == (len(trace.queries), 1)
        for query, (start_s, end_s, route, durations) in zip(trace.queries, shown["queries"], strict=True):
            assert end_s - start_s == pytest.approx(query.latency_ms / 1e3, abs=2e-4)
            assert sum(map(sum, durations)) == pytest.approx(query.latency_ms, abs=0.1)
            legs = shown["routes"][route]
            assert [leg[1] for leg in legs] == [0, *(leg[2] + 1 for leg in legs[:-1])]
            assert legs[-1][2] == len(stages) - 1
            # Where a leg leaves the data, the next one finds it.
            assert [leg[3] for leg in legs[1:]] == [leg[4] for leg in legs[:-1]]


def test_slices_are_shares_of_their_stages(runs: list[Trace]) -> None:
    (sliced,) = [t for t in runs if (t.info.model, t.info.algorithm) == ("alexnet", "sliced-efficiency")]
    parts = [part for partition in replay(sliced, 10)["partitions"] for part in partition["parts"]]
    fc6 = sliced.info.graph.stages.index("fc6")
    shares = [(begin, end) for stage, begin, end in parts if stage == fc6]
    assert len(shares) > 10
    assert (shares[0][0], shares[-1][1]) == (0, 1)
    assert [begin for begin, _ in shares[1:]] == [end for _, end in shares[:-1]]


def test_what_is_not_of_the_chain_is_not_drawn() -> None:
    """Traces are anybody's."""
    trace = make_trace()
    strange = dataclasses.replace(trace.partitions[0], stages=("what",))
    shown = replay(dataclasses.replace(trace, partitions=(strange, *trace.partitions[1:])), 10)
    assert shown["partitions"][0]["parts"] == []


# --- The page -------------------------------------------------------------------------------------------------------


def test_text_of_strangers_stays_text(tmp_path: Path) -> None:
    comment = "<!--<script>"
    traces = [
        make_trace(HOSTILE, model=f"{HOSTILE}m", environment={HOSTILE: comment}),
        make_trace(client=HOSTILE),
    ]
    for trace in traces:
        trace.save(trace_path(tmp_path, trace.info.settings, trace.info.model, trace.info.algorithm, 1))
    loaded = [Trace.load(path) for path in tmp_path.rglob("*.jsonl")]
    text = page.html_page(make_report(loaded))
    assert "<img src=x" not in text
    assert html.escape(HOSTILE) in text
    assert comment not in text
    data = data_of(text)
    assert HOSTILE in data["choices"]["algorithm"]
    names = [line["legendgroup"] for each in data["latencies"] for line in each["chart"]["data"]]
    assert html.escape(HOSTILE) in names  # Plotly takes some HTML


def test_only_the_pages_own_scripts_may_run(runs: list[Trace]) -> None:
    text = page.html_page(make_report(runs))
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="(.*?)"', text)
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 2
    for script in scripts:
        assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy.split(";")[1]
    assert not re.findall(r'(?:src|href)="(?!#|data:)', text)


def test_shares_of_draws_stand_beside_verdicts() -> None:
    verdicts = [
        Verdict(CLAIMS[0], "63", "-", "supported", share)
        for share in (0.0, 0.004, 0.5, 0.996, 1.0, None)
    ]  # fmt: skip
    text = page.html_page(Report((), judged=(Judged("Claims", "So.", tuple(verdicts)),)))
    assert re.findall("holds in (.*?) of draws", text) == ["0 %", "under 1 %", "50 %", "over 99 %", "100 %"]
    assert "<b>6</b> supported" in text
    without = page.html_page(Report((), judged=(Judged("Claims", "So.", tuple(verdicts[-1:])),)))
    assert "draws" not in without.split("<style>")[0] + without.split("</style>")[1].split("<script")[0]


def test_verdicts_are_told_by_word_and_colour(runs: list[Trace]) -> None:
    text = page.html_page(make_report(runs))
    badges = re.findall(r'<span class="badge (\w+)">([\w ]+)</span>', text)
    assert set(badges) == {("yes", "supported"), ("no", "not supported"), ("open", "not checked")}
    for kind, word in set(badges):
        counts = re.findall(rf'<span class="{kind}" style="flex-grow:(\d+)"><b>(\d+)</b> {word}</span>', text)
        assert sum(int(count) for count, _ in counts) == badges.count((kind, word))


def test_long_runs_and_many_of_them_do_not_make_the_page_large() -> None:
    random = np.random.default_rng(1)
    long = [
        make_trace("original", [float(ms) for ms in 10 + random.random(30_000)], ends_s=(1.0, 1_000.0)),
        make_trace("mine", [float(ms) for ms in 10 + random.random(30_000)], ends_s=(1.0, 1_000.0)),
    ]
    many = [make_trace(f"n{number}", mbps=1.0 + number % 50) for number in range(300)]
    report = Report((), tuple(summary([*long, *many])))
    text = page.html_page(report)
    assert len(text) < 8 * MB
    data = data_of(text)
    assert len(data["replays"]) == page.REPLAYS_MAX
    assert f"Here are {page.REPLAYS_MAX} of 302" in text
    assert max(len(each["run"]["queries"]) for each in data["replays"]) <= page.REPLAY_QUERIES_MAX
    assert sum(len(line["x"]) for each in data["latencies"] for line in each["chart"]["data"]) < 1.2 * page.POINTS_MAX


def test_many_partitions_do_not_make_the_page_large() -> None:
    parts = 800
    ends_s = [1 + 0.01 * number for number in range(parts)]
    traces = [
        make_trace(latencies_ms=[20.0] * 800, ends_s=ends_s, sizes=(1_000,) * parts, mbps=1.0 + number)
        for number in range(40)
    ]
    text = page.html_page(Report((), tuple(summary(traces))))
    assert len(text) < page.BYTES_MAX
    shown = len(data_of(text)["replays"])
    assert 10 < shown < 40
    assert f"Here are {shown} of 40" in text


def test_figures_that_are_too_much_are_linked(tmp_path: Path) -> None:
    images = [tmp_path / "figures" / f"{name} & b.png" for name in ("small", "large", "last")]
    images[0].parent.mkdir()
    for image, size in zip(images, (1_000, page.BYTES_MAX, 2_000), strict=True):
        image.write_bytes(bytes(size))
    text = page.html_page(make_report([make_trace()]), images, tmp_path)
    assert len(text) < page.BYTES_MAX
    assert re.findall(r'<img alt="(\w+)', text) == ["small", "last"]
    assert "1 of 3 figures would make this page too large" in text
    assert '<a href="figures/large%20%26%20b.png">large &amp; b</a>' in text


def test_charts_have_the_algorithms_of_the_figures(tmp_path: Path) -> None:
    for name in ("original", "efficiency", "preinstalled"):
        trace = make_trace(name)
        trace.save(trace_path(tmp_path, trace.info.settings, "alexnet", name, 1))

    def drawn(*arguments: str) -> set[str]:
        done = CliRunner().invoke(ionn.cli.cli, ["figures", "--results", str(tmp_path), *arguments])
        assert (done.exit_code, done.stderr) == (0, "")
        text = (tmp_path / "report.html").read_text(encoding="utf-8")
        data = data_of(text)
        assert len(data["replays"]) == 3
        bars_of = {bar["name"] for chart in data["findings"] if "bar" in str(chart["data"]) for bar in chart["data"]}
        lines = {line["name"] for each in data["latencies"] for line in each["chart"]["data"]}
        assert bars_of == lines
        return lines

    assert drawn() == {"original", "efficiency"}
    assert drawn("--algorithm", "preinstalled", "--algorithm", "original") == {"original", "preinstalled"}


def test_a_page_is_not_written_where_plotly_is_not_what_it_should_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = make_trace()
    trace.save(trace_path(tmp_path, trace.info.settings, "alexnet", "original", 1))
    (tmp_path / "report.html").write_text("earlier", encoding="utf-8")
    monkeypatch.setitem(sys.modules, "plotly.offline", ModuleType("plotly.offline"))
    done = CliRunner().invoke(ionn.cli.cli, ["figures", "--results", str(tmp_path)])
    assert done.exit_code == 0
    assert done.stderr == page.HOW_TO_GET_IT.format(older=" (the one that is there is of an earlier time)") + "\n"
    assert (tmp_path / "report.md").is_file()
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == "earlier"


def test_no_page_without_plotly_but_all_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = make_trace()
    trace.save(trace_path(tmp_path, trace.info.settings, "alexnet", "original", 1))
    monkeypatch.setattr(page, "is_available", lambda: False)
    done = CliRunner().invoke(ionn.cli.cli, ["figures", "--results", str(tmp_path)])
    assert done.exit_code == 0
    assert done.stderr == page.HOW_TO_GET_IT.format(older="") + "\n"
    assert (tmp_path / "report.md").is_file()
    assert list((tmp_path / "figures").glob("*.png"))
    assert not (tmp_path / "report.html").exists()
    assert "report.html" not in done.stdout


def test_the_page_is_named_where_it_is_written(tmp_path: Path) -> None:
    trace = make_trace()
    trace.save(trace_path(tmp_path, trace.info.settings, "alexnet", "original", 1))
    done = CliRunner().invoke(ionn.cli.cli, ["figures", "--results", str(tmp_path)])
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-2:] == [str(tmp_path / "report.md"), str(tmp_path / "report.html")]


def test_equal_traces_give_equal_pages(tmp_path: Path) -> None:
    written = []
    for name in ("one", "two"):
        save_report(make_report([make_trace(), make_trace("efficiency")]), tmp_path / name)
        written.append((tmp_path / name / "report.html").read_bytes())
    assert written[0] == written[1]


def luminance(color: str) -> float:
    """Relative luminance of #rrggbb, as WCAG 2 defines it."""
    channels = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted(map(luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def web(name: str) -> str:
    return (Path(str(page.__file__)).with_name("web") / name).read_text(encoding="utf-8")


def test_text_stands_out_from_its_ground() -> None:
    colors = dict(re.findall(r"--([\w-]+): (#\w{6});", web("page.css")))
    pairs = [(name, ground) for name in ("ink", "soft", "accent") for ground in ("paper", "ground")]
    for name, ground in (
        *pairs,
        ("yes", "yes-ground"),
        ("no", "no-ground"),
        ("open", "open-ground"),
        ("paper", "accent"),
    ):
        assert contrast(colors[name], colors[ground]) >= 4.5, (name, ground)


def test_a_replay_and_lines_stand_out_from_their_ground() -> None:
    """Text 4.5 to 1, and what else has to be seen 3 to 1."""
    colors = dict(re.findall(r'(\w+): "(#\w{6})"', web("replay.js")))
    ((one, other),) = re.findall(r'usable: \["(#\w+)", "(#\w+)"\]', web("replay.js"))
    texts = [
        ("#ffffff", one),
        ("#ffffff", other),
        (colors["ink"], colors["client"]),
        (colors["ink"], colors["arriving"]),
    ]
    assert [pair for pair in texts if contrast(*pair) < 4.5] == []
    shapes = [(colors["halo"], usable) for usable in (one, other)]
    shapes += [(colors[name], colors["halo"]) for name in ("path", "ahead", "arriving", "edge", "latency")]
    (border,) = re.findall(r"select, button {.*?border: 1px solid (#\w{6})", web("page.css"), re.DOTALL)
    shapes.append((border, "#ffffff"))
    names = [*SHOWN, *"abcdefg"]
    lines = latencies(summary([make_trace(name) for name in names]), 100)["data"]
    shapes += [(line["line"]["color"], "#ffffff") for line in lines]
    assert [pair for pair in shapes if contrast(*pair) < 3] == []
