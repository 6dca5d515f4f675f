"""What a query takes of the client's battery: by hand, and as properties of any run."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ionn.evaluation.summary import summary
from ionn.planning.graph import ExecutionGraph
from ionn.planning.planners import get_planner
from ionn.records import PartitionRecord, QueryRecord, Segment
from ionn.testbed.energy import COMPUTE_W, IDLE_W, TRANSFER_W, mean_energy_j, query_energy_j, upload_spans_s
from ionn.testbed.settings import Settings
from ionn.testbed.trace import RunInfo
from ionn.testbed.virtual import run_virtual
from tests.support.chains import chains
from tests.support.runs import make_trace, plan_of


def query(*segments: Segment, start_s: float = 10.0, end_s: float | None = None) -> QueryRecord:
    took_s = sum(segment.total_ms for segment in segments) / 1e3
    return QueryRecord(0, start_s, start_s, start_s + took_s if end_s is None else end_s, segments)


def upload(*spans_s: tuple[float, float]) -> list[PartitionRecord]:
    return [PartitionRecord(index, (), 1, begin, end, end) for index, (begin, end) in enumerate(spans_s)]


def test_the_powers_are_those_of_the_authors() -> None:
    assert (IDLE_W, TRANSFER_W, COMPUTE_W) == (3.977, 6.611, 7.239)


def test_a_query_at_the_client_computes_all_the_time_whatever_is_uploaded() -> None:
    local = query(Segment("client", 0, 3, 1990, 2000))
    assert query_energy_j(local) == pytest.approx(2 * 7.239)
    assert query_energy_j(local, [(0, 100)]) == query_energy_j(local)


@pytest.mark.parametrize(
    ("spans_s", "waiting_w"),
    [
        ([], 3.977),
        ([(0.0, 100.0)], 6.611),
        ([(0.0, 10.0), (12.0, 13.0)], 3.977),  # before and after it
        ([(10.5, 11.0)], (3.977 + 6.611) / 2),  # half of the leg
        ([(0.0, 10.25), (10.75, 20.0)], (3.977 + 6.611) / 2),
    ],
)
def test_while_the_server_computes_the_client_waits_or_sends_weights(
    spans_s: list[tuple[float, float]], waiting_w: float
) -> None:
    offloaded = query(Segment("server", 0, 3, 400, 1000))
    assert query_energy_j(offloaded, spans_s) == pytest.approx(0.6 * 6.611 + 0.4 * waiting_w)


def test_legs_add_up_and_a_stage_at_both_sides_computes() -> None:
    segments = (
        Segment("client", 0, 0, 100, 100),
        Segment("server", 1, 1, 50, 250),
        Segment("both", 2, 2, 300, 500),
    )
    # Weights until 10.1 s: the leg at the server begins then.
    assert query_energy_j(query(*segments), [(0, 10.1)]) == pytest.approx(
        (0.1 + 0.3) * 7.239 + (0.2 + 0.2) * 6.611 + 0.05 * 3.977
    )


def test_what_no_segment_accounts_for_is_waited_for() -> None:
    late = query(Segment("client", 0, 3, 1000, 1000), end_s=12.0)
    assert query_energy_j(late) == pytest.approx(7.239 + 3.977)
    assert query_energy_j(late, [(0, 100)]) == pytest.approx(7.239 + 6.611)


def test_neighbouring_uploads_are_one_span() -> None:
    assert upload_spans_s(upload((0, 1), (1, 3), (5, 6))) == [(0, 3), (5, 6)]
    assert upload_spans_s(upload((4, 6), (0, 3), (1, 2))) == [(0, 3), (4, 6)]
    assert upload_spans_s([]) == []


def test_the_mean_is_over_queries_that_started_before_the_upload_ended() -> None:
    trace = make_trace(latencies_ms=(1000, 3000, 500, 500))  # ready at 1 and 4 s, all at the client
    assert [each.start_s for each in trace.in_upload] == [1, 2]
    assert trace.mean_ms_in_upload == 2000
    assert mean_energy_j(trace) == pytest.approx(2 * 7.239)
    (row,) = summary([trace])
    assert (row.energy_j.mean, row.energy_j.std) == (mean_energy_j(trace), 0)


def test_without_an_upload_it_is_over_all_queries_and_without_queries_there_is_none() -> None:
    local = make_trace(latencies_ms=(1000, 3000), ends_s=(), sizes=())
    assert mean_energy_j(local) == pytest.approx(2 * 7.239)
    assert math.isnan(local.mean_ms_in_upload)
    instant = make_trace(latencies_ms=(1000,), ends_s=(0.0,), sizes=(1,))  # it began when the upload had ended
    assert math.isnan(mean_energy_j(instant))


@given(chains(6, st.sampled_from([0.0, 0.5, 1.0, 30.0, 300.0])), st.sampled_from(["share", "yield"]))
def test_a_query_takes_more_than_waiting_and_at_most_what_computing_all_the_time_does(
    graph: ExecutionGraph, upload: str
) -> None:
    graph = dataclasses.replace(graph, client_ms=graph.client_ms + 1.0)  # queries take time
    parts = get_planner("recursive-efficiency")(graph)
    plan = plan_of(graph, parts, [1] * len(parts))
    trace = run_virtual(RunInfo(Settings("virtual", upload=upload), 1, plan, graph))
    spans_s = upload_spans_s(trace.partitions)
    for each in trace.queries:
        seconds, energy_j = each.latency_ms / 1e3, query_energy_j(each, spans_s)
        assert seconds * IDLE_W * (1 - 1e-9) <= energy_j <= seconds * COMPUTE_W * (1 + 1e-9)
        if all(segment.where == "client" for segment in each.segments):
            assert energy_j == pytest.approx(seconds * COMPUTE_W)
        elif all(segment.where == "server" for segment in each.segments):
            assert energy_j <= seconds * TRANSFER_W * (1 + 1e-9)
