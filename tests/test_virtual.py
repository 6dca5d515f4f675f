from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from chains import WORKED_EXAMPLE, chain, chains
from hypothesis import given
from hypothesis import strategies as st

from ionn.costs import load_costs
from ionn.errors import InputError
from ionn.experiment import QUERIES_AFTER_UPLOAD
from ionn.graph import ExecutionGraph
from ionn.network import Network
from ionn.planners import PLANNERS
from ionn.trace import RunInfo, Segment, Trace
from ionn.virtual import run_virtual


def run_info(graph: ExecutionGraph, plan: list[list[int]], run: int = 1, seed: int = 0) -> RunInfo:
    partitions = [{"stages": [graph.stages[i] for i in stages], "bytes": 100 + stages[0]} for stages in plan]
    return RunInfo(
        testbed="virtual",
        model="chain",
        algorithm="by hand",
        run=run,
        mbps=80.0,
        seed=seed,
        dilation=1.0,
        client="a client",
        server="a server",
        plan={"partitions": partitions},
        graph=graph.to_json(),
    )


def log(trace: Trace) -> tuple[list[tuple[float, ...]], list[tuple[float, ...]]]:
    """Partitions (start, end, ready) and queries (raised, start, end), in ms."""
    partitions = [(p.start_s, p.end_s, p.ready_s) for p in trace.partitions]
    queries = [(q.raised_s, q.start_s, q.end_s) for q in trace.queries]
    return ([tuple(round(s * 1e3, 6) for s in record) for record in records] for records in (partitions, queries))


def test_queries_and_upload_share_the_uplink():
    graph = chain(client=[19, 40], server=[2, 1], upload=[20, 30], up=[3, 50, 0], down=[0, 4, 5])
    partitions, queries = log(run_virtual(run_info(graph, [[0], [1]])))
    # The first query: 3 ms worth of features take 6 beside the upload of B, then 2 at the server, 4 down, 40 for B.
    # B's 30 ms on the link become 33. The queries after it: 3 up, 2 + 1 at the server, 5 down.
    assert partitions == [(0, 20, 20), (20, 53, 53)]
    ends = [72, 83, 94, 105, 116, 127]
    assert queries == [(0, 20, ends[0]), *((start, start, end) for start, end in pairwise(ends))]


def test_upload_ends_while_features_go_up():
    graph = chain(client=[50, 1], server=[1, 1], upload=[10, 4], up=[9, 9, 9], down=[0, 2, 2])
    partitions, queries = log(run_virtual(run_info(graph, [[0], [1]])))
    # From 10 on each has half: B's 4 end at 18, the features' other 5 at 23; then 1 + 2 and 1 at the client.
    assert partitions == [(0, 10, 10), (10, 18, 18)]
    assert queries[0] == (0, 10, 27)


def test_server_loads_one_partition_at_a_time_beside_the_link():
    graph = chain([90, 90, 90], [1, 1, 1], [10 + 30, 10 + 5, 10 + 2], [1] * 4, load=[30, 5, 2])
    partitions, queries = log(run_virtual(run_info(graph, [[0], [1], [2]])))
    assert partitions == [(0, 10, 40), (10, 20, 45), (20, 30, 47)]
    assert queries[0] == (0, 40, 40 + 1 + 1 + 1 + 180)


def test_segments_alternate_and_add_up():
    graph = chain(client=[20, 5, 20, 7], server=[1, 30, 2, 1], upload=[9] * 4, up=[1, 2, 3, 4, 0], pinned=[3])
    trace = run_virtual(run_info(graph, [[0, 2]]))
    assert trace.queries[0].segments == (
        Segment("server", 0, 0, 1, 1 + 1 + 2),
        Segment("client", 1, 1, 5, 5),
        Segment("server", 2, 2, 2, 3 + 2 + 4),
        Segment("client", 3, 3, 7, 7),
    )
    assert trace.partitions[0].stages == ("A", "C")
    assert trace.partitions[0].bytes == 100


def test_empty_plan_queries_run_at_the_client():
    partitions, queries = log(run_virtual(run_info(WORKED_EXAMPLE, [])))
    assert partitions == []
    assert queries == [(50 * k, 50 * k, 50 * (k + 1)) for k in range(QUERIES_AFTER_UPLOAD)]


def test_weightless_partitions_take_no_time():
    graph = chain(client=[9, 9, 9], server=[1, 1, 1], upload=[0, 5, 0], up=[1] * 4)
    partitions, queries = log(run_virtual(run_info(graph, [[0], [1], [2]])))
    assert partitions == [(0, 0, 0), (0, 6, 6), (6, 6, 6)]  # the first query's features take 1 of the link
    assert queries[0] == (0, 0, 2 + 1 + 1 + 18)


def ticks(graph: ExecutionGraph, plan: list[list[int]]) -> Iterator[tuple[str, int, int]]:
    """The same testbed ticking by 1 ms: yields ("ready", index, ms) and ("query", start ms, end ms) as they happen.

    With whole numbers as costs every event falls on a tick, even if the link is halved.
    """
    unsent = [sum(graph.upload_ms[i] - graph.load_ms[i] for i in stages) for stages in plan]
    loading: list[float] = []
    usable = now = after = 0
    query: list[list] | None = None  # what is left to do of the current query: [kind, ms]
    started = 0
    while True:
        while unsent and unsent[0] <= 0:
            unsent.pop(0)
            loading.append(sum(graph.load_ms[i] for i in plan[usable + len(loading)]))
        while loading and loading[0] <= 0:
            loading.pop(0)
            yield "ready", usable, now
            usable += 1
        while query and query[0][1] <= 0:
            query.pop(0)
        if query == []:
            yield "query", started, now
            query = None
        if query is None and (usable or not plan):
            after += usable == len(plan)
            if after > QUERIES_AFTER_UPLOAD:
                return
            query, started = todo(graph, [i for stages in plan[:usable] for i in stages]), now
            continue
        sending = bool(query) and query[0][0] == "up"
        if query:
            query[0][1] -= 0.5 if sending and unsent else 1
        if loading:
            loading[0] -= 1
        if unsent:
            unsent[0] -= 0.5 if sending else 1
        now += 1


def todo(graph: ExecutionGraph, uploaded: list[int]) -> list[list]:
    at_server = {i for first, last in graph.route(uploaded) for i in range(first, last + 1)}
    steps = []
    for i in range(len(graph.stages) + 1):
        if i in at_server and i - 1 not in at_server:
            steps.append(["up", graph.up_ms[i]])
        if i not in at_server and i - 1 in at_server:
            steps.append(["down", graph.down_ms[i]])
        if i < len(graph.stages):
            steps.append(["compute", graph.server_ms[i] if i in at_server else graph.client_ms[i]])
    return steps


@st.composite
def graphs_and_plans(draw: st.DrawFn) -> tuple[ExecutionGraph, list[list[int]]]:
    """Slow clients (never 0 ms: the query loop would not end); the plan uploads stages in any order and grouping."""
    graph = draw(chains(5, st.integers(0, 9), loads=True))
    graph = dataclasses.replace(graph, client_ms=4 * graph.client_ms + 1)
    order = draw(st.permutations(range(len(graph.stages))))
    cuts = [0, *sorted(draw(st.sets(st.integers(1, len(order)))))]
    return graph, [sorted(order[first:end]) for first, end in pairwise(cuts)]


@given(graphs_and_plans())
def test_events_equal_a_simulation_in_ticks(graph_and_plan):
    graph, plan = graph_and_plan
    partitions, queries = log(run_virtual(run_info(graph, plan)))
    events = list(ticks(graph, plan))
    assert [ready for _, _, ready in partitions] == [ms for kind, _, ms in events if kind == "ready"]
    assert [query[1:] for query in queries] == [tuple(ms) for kind, *ms in events if kind == "query"]


def test_same_settings_same_trace():
    info = run_info(WORKED_EXAMPLE, [[1], [0], [2], [3]])
    assert run_virtual(info, noise=0.1) == run_virtual(info, noise=0.1)


def test_noise_depends_on_seed_and_run_and_has_mean_one():
    info = run_info(WORKED_EXAMPLE, [])
    first_ms = [run_virtual(dataclasses.replace(info, run=run), noise=0.3).queries[0].latency_ms for run in range(400)]
    assert len(set(first_ms)) == 400
    assert sum(first_ms) / 400 == pytest.approx(50, rel=0.05)  # standard error 0.015
    assert run_virtual(dataclasses.replace(info, seed=1), 0.3).queries != run_virtual(info, 0.3).queries
    assert run_virtual(info, 0.3).info.environment == {"noise": 0.3}


def test_a_trace_predicts_itself_from_disk(tmp_path):
    trace = run_virtual(run_info(WORKED_EXAMPLE, PLANNERS["recursive-efficiency"](WORKED_EXAMPLE)))
    trace.save(tmp_path / "run.jsonl")
    loaded = Trace.load(tmp_path / "run.jsonl")
    assert loaded == trace
    assert run_virtual(loaded.info) == trace


def test_graph_of_another_version_is_an_input_error():
    info = dataclasses.replace(run_info(WORKED_EXAMPLE, []), graph={"client_ms": [1]})
    with pytest.raises(InputError, match="execution graph"):
        run_virtual(info)


PROFILES = Path(__file__).resolve().parents[2] / "shared" / "reference" / "profiles"


@pytest.mark.skipif(not PROFILES.is_dir(), reason=f"no published profiles in {PROFILES}")
def test_alexnet_completes_more_queries_as_in_the_paper():
    network = Network.load("alexnet")
    columns = ("odroid_xu4_ms", "gtx1080ti_ms")
    client, server = (load_costs(f"{PROFILES / 'alexnet.csv'}:{column}") for column in columns)
    graph = ExecutionGraph.from_network(network, client, server, 80.0)
    queries = {
        algorithm: run_virtual(run_info(graph, PLANNERS[algorithm](graph))).queries_before_upload
        for algorithm in ("original", "recursive-efficiency")
    }
    assert queries["original"] == pytest.approx(56.8, rel=0.12)
    assert queries["recursive-efficiency"] == pytest.approx(88.1, rel=0.12)
    assert queries["recursive-efficiency"] / queries["original"] == pytest.approx(1.55, abs=0.05)
