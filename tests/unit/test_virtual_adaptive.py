"""A client that measures its link and its server, on the virtual testbed."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from ionn.costs.loading import load_costs
from ionn.errors import InputError
from ionn.model.network import Network
from ionn.model.slices import Slice, stage_of
from ionn.paper import MODELS
from ionn.planning.graph import ExecutionGraph
from ionn.planning.plan import empty_plan, make_plan
from ionn.planning.planners import add_planner
from ionn.testbed.arrivals import Arrivals
from ionn.testbed.bandwidth import Bandwidth
from ionn.testbed.mobile_links import mobile_bandwidth
from ionn.testbed.runner import run_virtual_all
from ionn.testbed.settings import Settings
from ionn.testbed.trace import RunInfo, Trace
from ionn.testbed.virtual import run_virtual
from ionn.testbed.virtual_adaptive import run_adaptive

CLIENT, SERVER = load_costs("odroid-xu4"), load_costs("gtx1080ti")
RATES = st.integers(0, 200).map(lambda step: float(0.5 * 2000 ** (step / 200)))


@cache
def network(model: str) -> Network:
    return Network.load(model)


def run(
    model: str,
    bandwidth: Bandwidth | float,
    *,
    slowness: float = 1.0,
    window_s: float | None = None,
    algorithm: str = "recursive-efficiency",
    **others: object,
) -> Trace:
    graph = ExecutionGraph.from_network(network(model), CLIENT, SERVER, 80.0)
    plan = empty_plan(network(model), graph, algorithm, 80.0)
    settings = Settings("virtual", None, window_s=window_s, link="a link", **others)  # type: ignore[arg-type]
    if isinstance(bandwidth, float | int):
        bandwidth = Bandwidth.constant(bandwidth)
    info = RunInfo(settings, 1, plan, graph, bandwidth=bandwidth)
    return run_adaptive(info, network(model), CLIENT, SERVER, slowness)


def fixed(model: str, mbps: float, window_s: float | None = None) -> Trace:
    """A run that is planned and routed for a link of `mbps`, over it."""
    graph = ExecutionGraph.from_network(network(model), CLIENT, SERVER, mbps)
    plan = make_plan(network(model), graph, "recursive-efficiency", mbps)
    return run_virtual(RunInfo(Settings("virtual", mbps, window_s=window_s), 1, plan, graph))


@st.composite
def bandwidths(draw: st.DrawFn) -> Bandwidth:
    if draw(st.booleans()):
        return Bandwidth.constant(draw(RATES))
    rates = draw(st.lists(RATES, min_size=2, max_size=8))
    spans_s = draw(st.lists(st.floats(0.5, 60), min_size=len(rates), max_size=len(rates)))
    ends_s = np.cumsum(spans_s).tolist()
    return Bandwidth((0.0, *ends_s[:-1]), tuple(rates), ends_s[-1] if draw(st.booleans()) else None)


def worst_mean(trace: Trace, local_ms: float) -> float:
    """The largest mean latency over queries in a row that are 30 at least and take 30 s, in local latencies."""
    ends_s = np.array([trace.queries[0].start_s, *(query.end_s for query in trace.queries)])
    sums_ms = np.concatenate([[0.0], np.cumsum([query.latency_ms for query in trace.queries])])
    worst = 0.0
    for first in range(len(trace.queries)):
        last = np.arange(max(first + 30, int(np.searchsorted(ends_s, ends_s[first] + 30))), len(sums_ms))
        if len(last):
            worst = max(worst, float(((sums_ms[last] - sums_ms[first]) / (last - first)).max()))
    return worst / local_ms


@settings(max_examples=60)
@given(
    st.sampled_from(list(MODELS)),
    bandwidths(),
    st.integers(0, 20).map(lambda step: float(50 ** (step / 20))),
    st.sampled_from(["original", "recursive-efficiency", "sliced-efficiency"]),
)
@example("alexnet", Bandwidth.constant(2.0), 1.0, "original")
@example("mobilenet", Bandwidth((0.0, 5.0), (1000.0, 0.5)), 50.0, "recursive-efficiency")
@example("resnet", Bandwidth((0.0, 20.0, 40.0), (80.0, 2.0, 80.0)), 1.0, "recursive-efficiency")
def test_offloading_makes_no_query_slower_than_the_client_alone(
    model: str, bandwidth: Bandwidth, slowness: float, algorithm: str
) -> None:
    """But for 5 %, which is what it costs to find out."""
    local_ms = ExecutionGraph.from_network(network(model), CLIENT, SERVER, 80.0).local_ms
    trace = run(model, bandwidth, slowness=slowness, window_s=100 * local_ms / 1e3, algorithm=algorithm)
    late = sum(query.fallback for query in trace.queries)
    event(f"late {late > 0}, offloaded {any(s.where != 'client' for q in trace.queries for s in q.segments)}")
    assert worst_mean(trace, local_ms) <= 1.05 + 1e-9
    assert max(query.latency_ms for query in trace.queries) <= 2 * local_ms + 1e-6
    # The plan is the order that was carried out: its partitions are those that arrived, and no piece is sent twice.
    parts = trace.info.plan.partitions
    assert [part.stage_names for part in parts] == [record.stages for record in trace.partitions]
    assert [part.index for part in parts] == list(range(len(parts)))
    there: dict[int, int] = {}
    for piece in (piece for part in parts for piece in part.pieces):
        assert stage_of(piece) not in there or isinstance(piece, Slice)
        assert not isinstance(piece, Slice) or piece.begin == there.get(piece.stage, 0)
        there[stage_of(piece)] = piece.end if isinstance(piece, Slice) else -1


@pytest.mark.parametrize("mbps", [0.5, 2.0, 10.0, 80.0, 300.0, 1000.0])
@pytest.mark.parametrize("model", list(MODELS))
def test_a_client_that_measures_is_as_fast_as_one_that_knows(model: str, mbps: float) -> None:
    window_s = fixed(model, mbps).upload_s + 10
    knows, measures = fixed(model, mbps, window_s), run(model, mbps, window_s=window_s)
    assert measures.mean_ms_in_window <= 1.1 * knows.mean_ms_in_window
    assert measures.estimates[-1].mbps == pytest.approx(mbps, rel=0.05)


def routes(trace: Trace, begin_s: float, end_s: float) -> set[str]:
    """Where stages ran in the queries that ended between two times."""
    queries = [query for query in trace.queries if begin_s <= query.end_s < end_s]
    return {segment.where for query in queries for segment in query.segments if segment.total_ms > 0}


def test_queries_stay_at_the_client_while_the_link_is_slow() -> None:
    trace = run("alexnet", Bandwidth((0.0, 10.0, 40.0), (80.0, 2.0, 80.0)), window_s=70.0)
    assert "server" in routes(trace, 0, 10)
    assert routes(trace, 14, 40) == {"client"}
    assert "server" in routes(trace, 42, 70)
    assert trace.queries[-1].latency_ms < 100
    believed = {estimate.time_s: round(estimate.mbps) for estimate in trace.estimates}
    assert [mbps for time_s, mbps in believed.items() if 13 <= time_s < 40] == [2]
    assert list(believed.values())[-1] == 80


def test_a_server_that_is_slower_than_promised_is_found_out_by_its_first_answer() -> None:
    trace = run("mobilenet", 80.0, slowness=400.0, window_s=200.0)
    late = [query for query in trace.queries if query.fallback]
    assert late[0].segments[-1].where == "client"
    assert trace.estimates[-1].server_factor == pytest.approx(400.0, rel=0.05)
    # It is asked again less and less often.
    gaps = [later.index - earlier.index for earlier, later in pairwise(late)]
    assert gaps == sorted(gaps)
    assert len(late) < 6
    fast = run("googlenet", 80.0, slowness=3.0, window_s=20.0)
    assert not any(query.fallback for query in fast.queries)
    assert fast.estimates[-1].server_factor == pytest.approx(3.0, rel=0.05)
    assert fast.estimates[-1].client_factor == 1.0


def test_what_is_not_begun_is_planned_again_for_another_link() -> None:
    trace, planned = run("googlenet", Bandwidth((0.0, 0.5), (80.0, 8.0))), fixed("googlenet", 80.0).info.plan
    carried_out, first = ([part.pieces for part in plan.partitions] for plan in (trace.info.plan, planned))
    assert trace.estimates[-1].mbps == pytest.approx(8.0, rel=0.05)
    begun = sum(record.start_s <= trace.estimates[-1].time_s for record in trace.partitions)
    held = [piece for pieces in carried_out[:begun] for piece in pieces]
    slow = ExecutionGraph.from_network(network("googlenet"), CLIENT, SERVER, trace.estimates[-1].mbps)
    rest = make_plan(network("googlenet"), slow.holding(held), "recursive-efficiency", 8.0)
    assert carried_out[begun:] == [part.pieces for part in rest.partitions]
    assert carried_out[:begun] == first[:begun]
    assert carried_out[begun:] != first[begun:]


def test_a_link_with_a_delay() -> None:
    trace = run("alexnet", 80.0, window_s=40.0, delay_ms=30.0)
    assert trace.estimates[-1].rtt_ms == 60.0
    assert trace.estimates[-1].mbps == pytest.approx(80.0, rel=0.05)
    last_ms = trace.queries[-1].latency_ms
    assert last_ms == pytest.approx(run("alexnet", 80.0, window_s=40.0).queries[-1].latency_ms + 60, rel=0.01)


@pytest.mark.parametrize(("model", "mbps"), [("googlenet", 80.0), ("mobilenet", 80.0), ("mobilenet", 1000.0)])
def test_no_query_waits_in_vain_for_what_comes_over_a_link_with_a_delay(model: str, mbps: float) -> None:
    """What is ready at the server is usable when the client has heard of it."""
    trace = run(model, mbps, delay_ms=50.0)
    assert trace.queries[0].latency_ms > 100
    for query in trace.queries:
        if all(segment.where == "client" for segment in query.segments):
            assert query.latency_ms == pytest.approx(trace.info.graph.local_ms)


@pytest.mark.parametrize("coding", ["none", "lossless"])
def test_a_slow_server_takes_longer_to_decode_and_to_load_too(coding: str) -> None:
    slowness = 20.0
    trace = run("mobilenet", 1000.0, slowness=slowness, coding=coding)
    graph = ExecutionGraph.from_network(network("mobilenet"), CLIENT, SERVER, 80.0, coding)
    pieces, first = trace.info.plan.partitions[0].pieces, trace.partitions[0]
    decode_ms, load_ms = (slowness * ms for ms in (graph.arrival_ms(pieces)[1], graph.overhead_ms(pieces)[1]))
    assert (decode_ms > first.end_s * 1e3) == (coding == "lossless")
    assert load_ms > 0
    assert first.ready_s * 1e3 == pytest.approx(max(first.end_s * 1e3, decode_ms) + load_ms, rel=1e-3)


def test_a_planner_that_fails_fails_at_once_or_not_at_all(tmp_path: Path) -> None:
    link = tmp_path / "slower.csv"
    link.write_text("0,80\n0.5,8\n")
    calls = lasts = 0

    def tired(graph: ExecutionGraph) -> list[list[int]]:
        nonlocal calls
        calls += 1
        if calls > lasts:
            raise RuntimeError("tired")
        return [[stage] for stage in range(len(graph.stages)) if graph.offloadable[stage]]

    name = add_planner(tired)
    with pytest.raises(InputError, match="planner tired: RuntimeError: tired"):
        run_virtual_all("googlenet", [name], mbps=None, link=link)
    calls, lasts = 0, 1
    (trace,) = run_virtual_all("googlenet", [name], mbps=None, link=link)
    assert calls > 2
    assert trace.estimates[-1].mbps == pytest.approx(8.0, rel=0.05)
    stages = [stage for part in trace.info.plan.partitions for stage in part.pieces]
    assert stages == [stage for stage in range(len(trace.info.graph.stages)) if trace.info.graph.offloadable[stage]]


@given(st.sampled_from([0.5, 5.0, 80.0, 1000.0]), st.integers(0, 100), st.sampled_from(["share", "yield"]))
@settings(max_examples=20)
def test_neither_delays_nor_weights_that_are_held_back_make_queries_slower(
    mbps: float, delay_ms: int, upload: str
) -> None:
    trace = run("googlenet", mbps, window_s=60.0, delay_ms=float(delay_ms), jitter_ms=delay_ms / 2, upload=upload)
    assert worst_mean(trace, trace.info.graph.local_ms) <= 1.05 + 1e-9
    if not delay_ms:
        assert trace.estimates[-1].mbps == pytest.approx(mbps, rel=0.05)


def test_the_trace_of_a_run_that_measured(tmp_path: Path) -> None:
    trace = run("mobilenet", 10.0, noise=0.1, seed=3)
    assert trace == run("mobilenet", 10.0, noise=0.1, seed=3)
    trace.save(tmp_path / "run-01.jsonl")
    assert Trace.load(tmp_path / "run-01.jsonl") == trace
    assert trace.info.settings.mbps is None
    assert "measured" in trace.info.settings.slug


def test_whatever_is_coded_invariant_and_estimates_hold() -> None:
    trace = run("alexnet", 10.0, coding="lossless", window_s=30.0)
    assert trace.estimates[-1].mbps == pytest.approx(10.0, rel=0.05)
    assert trace.feature_bytes[1] < trace.feature_bytes[0]  # type: ignore[operator]
    assert trace.weight_bytes[1] < trace.weight_bytes[0]  # type: ignore[operator]


@pytest.mark.parametrize("model", ["alexnet", "mobilenet"])
def test_the_time_to_code_is_not_taken_for_a_slow_link(model: str) -> None:
    trace = run(model, 80.0, slowness=3.0, coding="features", window_s=40.0)
    assert trace.feature_bytes[1] < trace.feature_bytes[0]  # type: ignore[operator]
    assert all(estimate.mbps == pytest.approx(80.0, rel=0.05) for estimate in trace.estimates)


@pytest.mark.parametrize("seed", range(4))
def test_slices_are_planned_again_on_a_link_that_changes_all_the_time(seed: int, tmp_path: Path) -> None:
    """Whatever is held: all of a stage at the server may be slower than some of it at both sides."""
    link = tmp_path / "driving.csv"
    link.write_text(mobile_bandwidth("driving", 120, seed).csv())
    (trace,) = run_virtual_all("alexnet", ["sliced-efficiency"], mbps=None, link=link, delay_ms=20.0)
    assert len(trace.estimates) > 5
    uploaded = [piece for part in trace.info.plan.partitions for piece in part.pieces]
    assert len(uploaded) == len(set(uploaded))


@pytest.mark.parametrize("mbps", [20.0, 80.0, 300.0])
@pytest.mark.parametrize("model", ["alexnet", "mobilenet", "googlenet"])
def test_weights_are_held_back_only_while_a_query_is_at_the_server(model: str, mbps: float) -> None:
    """As they are for a client that knows the link."""
    graph = ExecutionGraph.from_network(network(model), CLIENT, SERVER, mbps)
    plan = make_plan(network(model), graph, "recursive-efficiency", mbps)
    settings = Settings("virtual", mbps, window_s=60.0, upload="yield")
    knows = run_virtual(RunInfo(settings, 1, plan, graph))
    measures = run(model, mbps, window_s=60.0, upload="yield")
    assert measures.upload_s <= 1.2 * knows.upload_s
    assert measures.mean_ms_in_window <= 1.1 * knows.mean_ms_in_window
    # What goes up beside a query is not taken for a slow link.
    assert all(estimate.mbps == pytest.approx(mbps, rel=0.06) for estimate in measures.estimates)


@pytest.mark.parametrize("busy", ["wait", "drop"])
def test_queries_do_not_wait_for_a_link_that_is_out(busy: str) -> None:
    """Neither for what is measured when a client connects, nor for the upload."""
    link = Bandwidth((0.0, 100.0), (0.0, 80.0))
    trace = run("mobilenet", link, window_s=150.0, arrivals=Arrivals("fps:0.5"), busy=busy)
    assert trace.responses.p99_ms <= 2 * trace.info.graph.local_ms
    assert trace.responses.dropped == 0
    assert trace.upload_s > 100


def test_queries_over_a_link_that_carries_nearly_nothing_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A packet a day, as a trace of Mahimahi has it: the upload would take thirty years."""
    monkeypatch.setattr("ionn.testbed.virtual.QUERIES_MAX", 100)
    link = tmp_path / "day.mm"
    link.write_text("86400000\n")
    with pytest.raises(InputError, match=r"^100 queries, the last of .* ms, end before the upload .* faster link"):
        run_virtual_all("mobilenet", ["recursive-efficiency"], mbps=None, link=link)


def test_a_run_ends_with_its_upload() -> None:
    """What is planned for a slow link is soon uploaded, and more is planned when the link is faster."""
    link = Bandwidth((0.0, 6.0), (0.0, 80.0))
    ends, goes_on = (run("mobilenet", link, window_s=window_s) for window_s in (None, 60.0))
    assert ends.upload_s == goes_on.upload_s
    assert ends.weight_bytes == goes_on.weight_bytes
    assert ends.queries_before_upload == goes_on.queries_before_upload
