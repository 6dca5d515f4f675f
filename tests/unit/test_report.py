"""The report: verdicts, predictions and tables that follow from the traces."""

from __future__ import annotations

import base64
import csv
import dataclasses
import json
import math
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ionn.costs.loading import load_costs
from ionn.errors import InputError
from ionn.evaluation.claims import CLAIMS, Evidence, Verdict, judge
from ionn.evaluation.figures import draw_figures
from ionn.evaluation.report import equal_time, make_report, write_report
from ionn.evaluation.slice_claims import SLICE_CLAIMS
from ionn.evaluation.summary import summary
from ionn.evaluation.validation import exchange_ms, validate
from ionn.model.network import Network
from ionn.paper import ALGORITHMS
from ionn.planning.graph import ExecutionGraph
from ionn.planning.plan import make_plan
from ionn.records import QueryRecord
from ionn.testbed.delay import DELAY_MAX_MS
from ionn.testbed.settings import Settings
from ionn.testbed.trace import RunInfo, Trace, trace_path
from ionn.testbed.virtual import run_virtual
from tests.support.chains import chain
from tests.support.machine import PROFILES, REFERENCE, needs_reference
from tests.support.runs import FIVE_FAST, make_trace, runs_with_queries


@pytest.fixture(scope="module")
def alexnet() -> list[Trace]:
    """AlexNet's runs on the paper's testbed, by the devices' cost models."""
    return alexnet_runs("odroid-xu4", "gtx1080ti")


def alexnet_runs(client_spec: str, server_spec: str) -> list[Trace]:
    network = Network.load("alexnet")
    client, server = load_costs(client_spec), load_costs(server_spec)
    graph = ExecutionGraph.from_network(network, client, server, 80)
    traces = []
    for algorithm in ALGORITHMS:
        plan = make_plan(network, graph, algorithm, 80)
        traces.append(run_virtual(RunInfo(Settings("virtual"), 1, plan, graph)))
    return traces


def as_live(trace: Trace, **changes: Any) -> Trace:
    info = dataclasses.replace(trace.info, settings=Settings("live"), sent="cpu", **changes)
    return dataclasses.replace(trace, info=info)


def verdict(traces: list[Trace], text: str) -> Verdict:
    (claim,) = [claim for claim in CLAIMS if text in claim.text]
    return judge(claim, Evidence.of(summary(traces), {}))


MORE = "recursive-efficiency over original: queries before"


def two_runs(original: int, recursive: int, **info: Any) -> list[Trace]:
    return runs_with_queries({"original": original, "recursive-efficiency": recursive}, **info)


def test_a_live_run_counts_only_where_the_server_is_far_faster_than_the_client() -> None:
    virtual = two_runs(60, 93)
    undilated = verdict(virtual + two_runs(60, 66, testbed="live"), MORE)
    assert (undilated.live, undilated.verdict) == ("+10%", "supported")
    dilated = verdict(virtual + two_runs(60, 66, testbed="live", dilation=8.0), MORE)
    assert (dilated.live, dilated.verdict) == ("+10% (dilation 8)", "not supported on the live testbed, dilation 8")
    assert verdict(virtual + two_runs(60, 85, testbed="live", dilation=8.0), MORE).verdict == "supported"


@needs_reference
def test_every_number_of_the_paper_is_a_claim() -> None:
    with (REFERENCE / "paper.csv").open() as lines:
        stated = list(csv.DictReader(lines))
    numbers = [row for row in stated if row["value"][0].isdigit()]
    assert len(numbers) > 10
    for row in numbers:
        shown = {claim.paper for claim in CLAIMS if claim.section == row["section"]}
        unit = {"percent": "%", "seconds": " s", "ms": " ms"}.get(row["unit"], "")
        assert shown & {row["value"] + unit, f"+{row['value']}{unit}"}, row
    assert {claim.section for claim in CLAIMS} == {row["section"] for row in stated}


def test_a_virtual_run_predicts_itself(alexnet: list[Trace]) -> None:
    live = as_live(alexnet[2])
    checked = validate(live)
    assert checked.predicted.queries == live.queries
    assert checked.query_error == checked.latency_error == 0


def test_what_an_exchange_takes_beside_stages_and_bytes_goes_into_the_prediction(alexnet: list[Trace]) -> None:
    trace = as_live(alexnet[2])

    def slower(query: QueryRecord, by_ms: float) -> QueryRecord:
        segments = [
            dataclasses.replace(each, total_ms=each.total_ms + by_ms * (each.where == "server"))
            for each in query.segments
        ]
        return dataclasses.replace(query, segments=tuple(segments))

    # What is measured beside the upload, when the link is shared, does not count; nor does one query that had bad luck.
    during = [slower(query, 50.0) for query in trace.queries if query.start_s < trace.upload_s]
    after = [query for query in trace.queries if query.start_s >= trace.upload_s]
    luck = [slower(query, ms) for query, ms in zip(after, [4.0] * (len(after) - 1) + [90.0], strict=True)]
    live = dataclasses.replace(trace, queries=(*during, *luck))
    assert exchange_ms(live) == pytest.approx(4.0)
    was, predicted = (validate(each).predicted.queries[-1] for each in (trace, live))
    assert predicted.latency_ms == pytest.approx(was.latency_ms + 4.0)
    assert exchange_ms(dataclasses.replace(trace, queries=tuple(during))) == 0


def test_what_an_exchange_takes_comes_on_top_of_the_longest_delay(alexnet: list[Trace]) -> None:
    settings = Settings("live", delay_ms=DELAY_MAX_MS)
    info = dataclasses.replace(alexnet[2].info, settings=settings, sent="cpu")
    live = run_virtual(info, 4.0)
    assert exchange_ms(live) == pytest.approx(4.0)
    predicted = validate(live).predicted
    assert [query.end_s for query in predicted.queries] == pytest.approx([query.end_s for query in live.queries])


def predictable(client_ms: float, run: int = 1) -> Trace:
    """A live run of queries that took 125 ms each, with costs by which they take `client_ms`."""
    graph = ExecutionGraph(
        stages=("stage0", "stage1"),
        client_ms=np.array([client_ms, 0.0]),
        server_ms=np.array([500.0, 500.0]),
        upload_ms=np.array([1000.0, 3000.0]),
        load_ms=np.zeros(2),
        up_ms=np.full(3, 10.0),
        down_ms=np.full(3, 10.0),
        offloadable=np.array([True, True]),
    )
    return make_trace(latencies_ms=(125.0,) * 29, testbed="live", graph=graph, run=run)


def test_prediction_errors() -> None:
    live = predictable(137.5)
    checked = validate(live)
    assert checked.latency_error == pytest.approx(0.1)
    assert live.queries_before_upload == 24
    assert checked.predicted.queries_before_upload == 21
    assert checked.query_error == pytest.approx(125.0 / 137.5 - 1)


def test_details_are_not_for_the_terminal() -> None:
    report = make_report([predictable(137.5)])
    details = {part.title for part in report.sections if part.detail}
    assert details == {"Claims that are not checked", "Model validation, run by run", "Where the runs were made"}
    assert all((part.title in report.text()) != part.detail for part in report.sections)
    assert all(f"## {part.title}\n" in report.markdown() for part in report.sections)


def test_prediction_errors_in_the_report() -> None:
    sections = {part.title: part for part in make_report([predictable(137.5), predictable(100.0, run=2)]).sections}
    (line,) = sections["Model validation: the virtual testbed predicts the live runs"].rows
    # Of 24 queries each, 21.8 and 30 were predicted: 7.95 % more on average; latencies are off by 10 and 20 %.
    assert line == (
        "live", "AlexNet", "original", "2", "24.0", "25.9 ± 5.8", "+8.0%", "+25.0%", "15.0%", "20.0%",
    )  # fmt: skip
    assert sections["Model validation, run by run"].rows == (
        ("live", "AlexNet", "original", "1", "24.0", "21.8", "-9.1%", "10.0%"),
        ("live", "AlexNet", "original", "2", "24.0", "30.0", "+25.0%", "20.0%"),
    )


@pytest.mark.filterwarnings("error")
def test_no_error_where_both_upload_and_execute_at_no_time() -> None:
    nothing = chain(client=[100.0], server=[200.0], upload=[1.0], up=[1.0] * 2)
    live = make_trace(testbed="live", latencies_ms=FIVE_FAST, ends_s=(), sizes=(), graph=nothing)
    checked = validate(live)
    assert math.isnan(checked.latency_error)
    assert math.isnan(checked.query_error)
    assert checked.predicted.info.settings.testbed == "virtual"


def test_a_trace_whose_costs_cannot_be_is_named() -> None:
    zeros = chain(client=[0.0, 0.0], server=[0.0, 0.0], upload=[1.0, 1.0], up=[0.0] * 3)
    with pytest.raises(InputError, match="run 1 of alexnet, original, live testbed: the costs in its trace do not"):
        validate(make_trace(testbed="live", graph=zeros))


class Page(HTMLParser):
    """Cells per table row, and the sources of the images."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[int]] = []
        self.images: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append(0)
        elif tag in ("td", "th"):
            self.tables[-1][-1] += 1
        elif tag == "img":
            self.images.append(dict(attributes)["src"] or "")


def test_the_report_shows_tables_and_figures(alexnet: list[Trace], tmp_path: Path) -> None:
    odd = "an <odd> | name"
    for trace in [*alexnet, *(as_live(trace, environment={"cpu": odd}) for trace in alexnet)]:
        trace.save(trace_path(tmp_path, trace.info.settings, "alexnet", trace.info.algorithm, 1))
    figures = draw_figures(tmp_path, tmp_path / "figures")
    path = write_report(tmp_path, figures)
    assert path == tmp_path / "report.md"
    text, page = path.read_text(), (tmp_path / "report.html").read_text()

    assert "| AlexNet | recursive-efficiency | 1 | " in text
    assert "an <odd> \\| name" in text
    assert "an &lt;odd&gt; | name" in page
    shown = [figure for figure in figures if figure.suffix == ".png"]
    for figure in shown:
        assert f"({figure.relative_to(tmp_path)})" in text
    assert page.count("<h1>Report</h1>") == 1
    assert page.count("<table>") == page.count("</table>")
    html = Page(page)
    assert len(html.tables) == text.count("| --- |\n")
    assert all(len(set(table)) == 1 for table in html.tables)
    images = [base64.b64decode(image.removeprefix("data:image/png;base64,")) for image in html.images]
    assert images == [figure.read_bytes() for figure in shown]


def slice_verdict(traces: Sequence[Trace], text: str) -> tuple[str, ...]:
    (claim,) = [claim for claim in SLICE_CLAIMS if text in claim.text]
    found = judge(claim, Evidence.of(summary(traces), {}))
    return found.virtual, found.live, found.verdict


def sliced_runs(counts: Sequence[int], **info: Any) -> list[Trace]:
    """Runs of the three algorithms and with slices that complete so many queries before the upload ends."""
    queries = dict(zip((*ALGORITHMS, "sliced-efficiency"), counts, strict=True))
    *others, ours = runs_with_queries(queries, model="inception", **info)
    parts = [dataclasses.replace(part, layers=("cut",)) for part in ours.info.plan.partitions]  # another plan
    plan = dataclasses.replace(ours.info.plan, partitions=tuple(parts))
    return [*others, dataclasses.replace(ours, info=dataclasses.replace(ours.info, plan=plan))]


def test_live_runs_decide_about_the_order_but_not_about_gains() -> None:
    virtual = sliced_runs((50, 50, 52, 80))
    live = sliced_runs((30, 30, 32, 36), testbed="live", bit_equal=True)
    assert slice_verdict(virtual + live, "Inception: queries before") == ("1.54 x", "1.12 x", "supported")
    assert slice_verdict(virtual + live, "Outputs equal") == ("-", "all", "supported")
    assert slice_verdict(virtual + live, "Inception: queries of")[2] == "supported"
    worse = sliced_runs((30, 30, 32, 26), testbed="live", bit_equal=False)
    for text in ("Inception: queries of", "Inception: queries, recursive", "Outputs equal"):
        assert slice_verdict(virtual + worse, text)[2] == "not supported on the live testbed"
    noisy = sliced_runs((30, 30, 32, 28), testbed="live")
    assert slice_verdict(virtual + noisy, "Inception: queries, recursive") == ("52 → 80", "32 → 28", "supported")
    partitions = worse[0].info.plan.partitions
    plans = [dataclasses.replace(t.info.plan, partitions=partitions) for t in worse]
    same = [
        dataclasses.replace(t, info=dataclasses.replace(t.info, plan=plan))
        for t, plan in zip(worse, plans, strict=True)
    ]
    same_plan = ("52 → 80", "32 → 26, the same plan", "supported")
    assert slice_verdict(virtual + same, "Inception: queries, recursive") == same_plan


def test_claims_are_listed_once_and_counted(alexnet: list[Trace]) -> None:
    checked, unchecked = make_report(alexnet).sections[:2]
    assert (checked.title, unchecked.title) == ("The paper's claims", "Claims that are not checked")
    assert len(checked.rows) + len(unchecked.rows) == len(CLAIMS)
    assert {len(row) for row in (*checked.rows, *unchecked.rows)} == {7}
    assert all(row[5] == "supported" or row[5].startswith("not supported") for row in checked.rows)
    assert all(row[5].startswith("not checked: ") for row in unchecked.rows)
    supported = sum(row[5] == "supported" for row in checked.rows)
    counts = f"{supported} supported, {len(checked.rows) - supported} not supported, {len(unchecked.rows)} not checked."
    assert checked.text.startswith(counts)
    assert 0 < supported < len(checked.rows)
    assert [part.detail for part in (checked, unchecked)] == [False, True]


def test_the_report_has_claims_about_slices_where_there_are_some(alexnet: list[Trace]) -> None:
    def titles(traces: list[Trace]) -> list[str]:
        return [part.title for part in make_report(traces).sections if "slices" in part.title]

    assert titles(alexnet) == []
    assert titles(sliced_runs((50, 50, 52, 80))) == ["Beyond the paper: slices below the layer"]


@needs_reference
def test_published_latencies_support_the_main_claims() -> None:
    profile = PROFILES / "alexnet.csv"
    alexnet = alexnet_runs(f"{profile}:odroid_xu4_ms", f"{profile}:gtx1080ti_ms")
    for text in ("AlexNet, original: queries", "AlexNet, recursive-efficiency: queries", MORE, "queries per second"):
        assert verdict(alexnet, text).verdict == "supported"


def test_the_terminal_gets_what_was_checked(alexnet: list[Trace]) -> None:
    text = make_report(alexnet).text()
    assert "supported" in text
    assert "not checked:" not in text
    assert "Model validation" not in text
    claims = text.split("Summary: virtual testbed, 80 Mbps")[0].splitlines()
    column = next(line for line in claims if line.startswith("claim")).index("paper (section)")
    assert all(line[column - 1] == " " for line in claims if line.startswith("AlexNet"))


def test_gains_against_original() -> None:
    (section,) = [part for part in make_report(two_runs(60, 93)).sections if part.title.startswith("Change")]
    assert section.rows == (("virtual", "AlexNet", "recursive-efficiency", "+55.0%", "+55.0%", "-35.3%"),)


def test_a_row_of_the_summary() -> None:
    def line(*traces: Trace) -> tuple[str, ...]:
        (section,) = [part for part in make_report(traces).sections if part.title.startswith("Summary")]
        (row,) = section.rows
        return row

    first = make_trace(latencies_ms=(1234.5, 777.77, *FIVE_FAST), ends_s=(1.234, 3.876), bit_equal=True)
    assert line(first) == (
        "AlexNet", "original", "1", "1 + 1", "75%", "7", "3.88", "1.81", "358.9", "2.60", "1234.5", "100.0", "7",
        "bit-equal", "0.50",
    )  # fmt: skip
    second = make_trace(latencies_ms=(1234.5, 1277.77, 90.0), ends_s=(1.234, 3.0), sizes=(1_000, 1_000), run=2)
    assert line(first, second) == (
        "AlexNet", "original", "2", "1 + 1", "62 ± 18%", "4.0 ± 4.2", "3.44 ± 0.62", "1.07 ± 1.04",
        "807.5 ± 634.4", "5.85 ± 4.59", "1234.5", "95.0 ± 7.1", "5.0 ± 2.8", "bit-equal", "0.50",
    )  # fmt: skip
    assert line(make_trace(bit_equal=False, difference=2e-3))[-2] == "WRONG, off by 2e-03"
    assert line(make_trace(bit_equal=False, difference=3e-7, tolerance=1e-4))[-2] == "within 3e-07"
    assert line(make_trace())[-2] == "-"


def test_planning_times_and_the_fine_steps(tmp_path: Path) -> None:
    trace = make_trace("efficiency")
    trace.save(trace_path(tmp_path, trace.info.settings, "alexnet", "efficiency", 1))
    fine = {**trace.info.plan.to_json(), "algorithm": "original-0.0001", "planning_ms": 90.0}
    plans = tmp_path / "plans.json"
    for partitions, same in ((fine["partitions"], "yes"), (fine["partitions"][::-1], "NO")):
        plans.write_text(json.dumps({"plans": [{**fine, "partitions": partitions}]}))
        assert f"| AlexNet | 0.50 | 90.00 | {same} |" in write_report(tmp_path, ()).read_text()
    for broken in ("{", "[]", '{"plans": [{"model": "alexnet"}]}'):
        plans.write_text(broken)
        with pytest.raises(InputError, match=r"plans\.json: not a list of plans"):
            write_report(tmp_path, ())


def test_faults_are_told() -> None:
    traces = [
        make_trace(bit_equal=False),
        make_trace("recursive-efficiency", bit_equal=False, difference=1e-7, tolerance=1e-4),
        make_trace("efficiency", testbed="live", fault="no answer"),
    ]
    (section,) = [part for part in make_report(traces).sections if part.title == "Runs with faults"]
    assert section.rows == (
        (
            "virtual alexnet original 1",
            "9 queries with an output that is wrong: further from the local one than it may be",
        ),
        ("live alexnet efficiency 1", "left out of all tables and figures: no answer"),
    )


def test_queries_in_equal_time_are_compared_with_originals_raw() -> None:
    """Each model's with its own; by model, algorithm and coding."""
    rows = summary(
        [
            coded_trace("sliced-efficiency", 2, coding="lossless", weight_ratio=0.85),
            coded_trace("original", 4, coding="features"),
            coded_trace("original", 8),
            coded_trace("original", 4, model="resnet"),
            make_trace(),
        ]
    )
    section = equal_time(rows)
    assert [row[:7] for row in section.rows] == [
        ("AlexNet", "original", "virtual", "none", "9", "8", "1.0"),
        ("AlexNet", "original", "virtual", "features", "9", "4", "0.5"),
        ("AlexNet", "sliced-efficiency", "virtual", "lossless, weights to 0.85", "9", "2", "0.2"),
        ("ResNet", "original", "virtual", "none", "9", "4", "1.0"),
    ]
    assert section.rows[2][-2:] == ("0.00", "3.00 → 1.50")
    assert "Queries in equal time" in make_report([coded_trace("original", 8)]).text()
    assert "Queries in equal time" not in make_report([make_trace()]).text()


def test_weights_that_were_in_the_servers_store_are_told() -> None:
    trace = coded_trace("original", 8)
    first, *rest = trace.partitions
    held = dataclasses.replace(first, bytes=3_000_000, wire_bytes=1_000_000, stored_bytes=2_000_000)
    others = [dataclasses.replace(part, bytes=0, wire_bytes=0) for part in rest]
    (row,) = equal_time(summary([dataclasses.replace(trace, partitions=(held, *others))])).rows
    assert row[-2] == "3.00 → 1.00 (2.00 held)"


def coded_trace(algorithm: str, queries: int, model: str = "alexnet", **settings: Any) -> Trace:
    """A run of which so many queries, of a second each, end within its window of 9 s; 3 MB of features for each."""
    trace = make_trace(algorithm, [1000.0] * queries + [9000.0], model=model, window_s=9.0, **settings)
    sizes: dict[str, Any] = {"feature_bytes": 3_000_000, "feature_wire_bytes": 1_500_000}
    return dataclasses.replace(trace, queries=tuple(dataclasses.replace(query, **sizes) for query in trace.queries))
