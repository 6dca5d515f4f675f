from __future__ import annotations

import math
from collections import defaultdict
from itertools import chain as concatenated
from itertools import combinations

import numpy as np
import pytest
from chains import DECIMALS, SMALL_INTEGERS, WORKED_EXAMPLE, chain, chains
from hypothesis import given
from hypothesis import strategies as st

from ionn.errors import InputError
from ionn.graph import ExecutionGraph, runs_of


def subsets(stages):
    stages = list(stages)
    return map(frozenset, concatenated.from_iterable(combinations(stages, k) for k in range(len(stages) + 1)))


def fig1_distance(graph: ExecutionGraph, uploaded: set[int]) -> float:
    """Fastest path over the nodes and edges of the paper's Fig. 1, relaxed in topological order."""
    n = len(graph.stages)
    edges = []
    for i in range(n):
        one, two, three, four, five = (i, 1), (i, 2), (i, 3), (i + 1, 1), (i + 1, 2)
        edges.append((one, four, graph.client_ms[i]))
        edges.append((one, two, graph.up_ms[i]))
        if i in uploaded and graph.offloadable[i]:
            edges.append((two, three, graph.server_ms[i]))
        edges.append((three, four, graph.down_ms[i + 1]))
        edges.append((three, five, 0.0))
    distance = defaultdict(lambda: math.inf, {(0, 1): 0.0})
    for i in range(n):
        for tail in ((i, 1), (i, 2), (i, 3)):
            for edge_tail, head, ms in edges:
                if edge_tail == tail:
                    distance[head] = min(distance[head], distance[tail] + ms)
    return distance[n, 1]


def test_worked_example_latencies():
    sets = ([], [1], [0, 1], [0, 1, 2], [0, 1, 2, 3])
    assert [WORKED_EXAMPLE.latency_ms(s) for s in sets] == [50, 50 - 9, 50 - 15, 50 - 23, 50 - 31]


def test_forced_latency_pays_every_change_of_side():
    # A and B up over boundary 0 and down over 2, C at the client, D up over 3, its output down over 4
    assert WORKED_EXAMPLE.forced_ms([0, 1, 3]) == 4 + (3 + 3) + 4 + 16 + 8 + 3 + 2
    assert WORKED_EXAMPLE.latency_ms([0, 1, 3]) == 4 + (3 + 3) + 4 + 16 + 5
    assert WORKED_EXAMPLE.route([0, 1, 3]) == ((0, 1),)


def test_uplink_and_downlink_differ():
    graph = chain(client=[9, 9], server=[1, 1], upload=[0, 0], up=[2, 3, 50], down=[60, 5, 7])
    assert graph.forced_ms([0]) == 2 + 1 + 5 + 9
    assert graph.forced_ms([1]) == 9 + 3 + 1 + 7
    assert graph.forced_ms([0, 1]) == 2 + 1 + 1 + 7


def test_several_server_segments():
    graph = chain(client=[20, 1, 20], server=[1, 30, 1], upload=[0] * 3, up=[1, 1, 1, 1])
    assert graph.route(range(3)) == ((0, 0), (2, 2))


def test_ties_go_to_the_client():
    assert chain([5, 5], [5, 5], [0, 0], [0, 0, 0]).shortest_path([0, 0]) == set()
    # A at the client and B's input up, or A at the server: both take 1
    assert chain(client=[1, 9], server=[0, 0], upload=[0, 0], up=[1, 0, 0]).shortest_path([0, 0]) == {1}


def test_pinned_stage_stays_at_the_client():
    graph = chain(client=[9, 9, 9], server=[0, 0, 0], upload=[0] * 3, up=[0] * 4, pinned=[0, 2])
    assert graph.shortest_path(np.zeros(3)) == {1}
    assert graph.latency_ms(range(3)) == 18
    assert graph.forced_ms([0]) == math.inf


@given(chains(5, SMALL_INTEGERS))
def test_latency_is_the_distance_in_figure_1(graph):
    for uploaded in subsets(range(len(graph.stages))):
        assert graph.latency_ms(uploaded) == fig1_distance(graph, uploaded)


@given(chains(5, SMALL_INTEGERS | DECIMALS), st.lists(SMALL_INTEGERS, min_size=5, max_size=5))
def test_shortest_path_is_the_smallest_of_the_fastest_sets(graph, overhead):
    overhead = overhead[: len(graph.stages)]
    cost = {s: graph.forced_ms(s) + sum(overhead[i] for i in s) for s in subsets(range(len(graph.stages)))}
    fastest = [s for s in cost if cost[s] == min(cost.values())]
    assert graph.shortest_path(overhead) == frozenset.intersection(*fastest)


@given(chains(6, DECIMALS), st.sets(st.integers(0, 5)))
def test_route_uses_uploaded_stages_and_takes_the_latency(graph, uploaded):
    uploaded = {i for i in uploaded if i < len(graph.stages)}
    offloaded = {i for first, last in graph.route(uploaded) for i in range(first, last + 1)}
    assert offloaded <= uploaded
    assert graph.forced_ms(offloaded) == graph.latency_ms(uploaded)


def test_runs_of():
    assert runs_of({7, 3, 4, 0, 5}) == [(0, 0), (3, 5), (7, 7)]
    assert runs_of(()) == []


@given(chains(4, st.floats(0, 1e6), loads=True))
def test_json_round_trip(graph):
    copy = ExecutionGraph.from_json(graph.to_json())
    assert copy.to_json() == graph.to_json()
    assert copy.latency_ms(range(len(graph.stages))) == graph.latency_ms(range(len(graph.stages)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"client_ms": [1, -1, 1, 1]}, "client_ms has a time that is negative"),
        ({"server_ms": [1, math.nan, 1, 1]}, "server_ms has a time that is negative or not finite"),
        ({"up_ms": [1, 1, 1, 1]}, "up_ms needs 5 times for 4 stages"),
        ({"offloadable": [True]}, "offloadable needs 4 flags"),
        ({"load_ms": [9, 0, 0, 0]}, "upload_ms includes load_ms"),
        ({"stages": None}, "not written by ionn"),
        ({"speed": 3}, "not written by ionn"),
        ({"up_ms": "fast"}, "not written by ionn"),
    ],
)
def test_bad_costs_are_named(change, message):
    with pytest.raises(InputError, match=message):
        ExecutionGraph.from_json({**WORKED_EXAMPLE.to_json(), **change})
