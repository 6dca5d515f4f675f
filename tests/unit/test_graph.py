from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import chain as concatenated
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ionn.errors import InputError
from ionn.model.slices import TILE, Slice, runs_of, stage_of
from ionn.planning.graph import ExecutionGraph, Leg
from tests.support.chains import (
    DECIMALS,
    SMALL_INTEGERS,
    WORKED_EXAMPLE,
    at_server,
    chain,
    chains,
    cut,
    cut_chains,
    forced_ms,
    uploads,
)


def subsets(stages: Iterable[int]) -> Iterator[frozenset[int]]:
    stages = list(stages)
    return map(frozenset, concatenated.from_iterable(combinations(stages, k) for k in range(len(stages) + 1)))


def fig1_distance(graph: ExecutionGraph, uploaded: Container[int], slices: Sequence[Slice] = ()) -> float:
    """Fastest path over the nodes and edges of the paper's Fig. 1, relaxed in topological order.

    A stage uploaded in part has the edges of `ionn.planning.slice_costs` as well.
    """
    n = len(graph.stages)
    edges = []
    for i, begin, end in slices:
        if graph.offloadable[i]:
            split = graph.split(i, end - begin)
            for node, from_server in ((1, False), (2, True)):
                edges.append(((i, node), (i + 1, 1), split.end_ms(from_server, False)))
                edges.append(((i, node), (i, 3), split.end_ms(from_server, True)))
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


def test_worked_example_latencies() -> None:
    sets: tuple[list[int], ...] = ([], [1], [0, 1], [0, 1, 2], [0, 1, 2, 3])
    assert [WORKED_EXAMPLE.latency_ms(s) for s in sets] == [50, 50 - 9, 50 - 15, 50 - 23, 50 - 31]


def test_forced_latency_pays_every_change_of_side() -> None:
    # A and B up over boundary 0 and down over 2, C at the client, D up over 3, its output down over 4
    assert forced_ms(WORKED_EXAMPLE, [0, 1, 3]) == 4 + (3 + 3) + 4 + 16 + 8 + 3 + 2
    assert WORKED_EXAMPLE.latency_ms([0, 1, 3]) == 4 + (3 + 3) + 4 + 16 + 5
    assert at_server(WORKED_EXAMPLE, [0, 1, 3]) == [0, 1]


def test_uplink_and_downlink_differ() -> None:
    graph = chain(client=[9, 9], server=[1, 1], upload=[0, 0], up=[2, 3, 50], down=[60, 5, 7])
    assert forced_ms(graph, [0]) == 2 + 1 + 5 + 9
    assert forced_ms(graph, [1]) == 9 + 3 + 1 + 7
    assert forced_ms(graph, [0, 1]) == 2 + 1 + 1 + 7


def test_several_server_segments() -> None:
    graph = chain(client=[20, 1, 20], server=[1, 30, 1], upload=[0] * 3, up=[1, 1, 1, 1])
    assert at_server(graph, range(3)) == [0, 2]


def test_ties_go_to_the_client() -> None:
    assert chain([5, 5], [5, 5], [0, 0], [0, 0, 0]).shortest_path([0, 0]) == set()
    # A at the client and B's input up, or A at the server: both take 1
    assert chain(client=[1, 9], server=[0, 0], upload=[0, 0], up=[1, 0, 0]).shortest_path([0, 0]) == {1}


def test_pinned_stage_stays_at_the_client() -> None:
    graph = chain(client=[9, 9, 9], server=[0, 0, 0], upload=[0] * 3, up=[0] * 4, pinned=[0, 2])
    assert graph.shortest_path(np.zeros(3)) == {1}
    assert graph.latency_ms(range(3)) == 18
    assert forced_ms(graph, [0]) == math.inf


@given(chains(5, SMALL_INTEGERS))
def test_latency_is_the_distance_in_figure_1(graph: ExecutionGraph) -> None:
    for uploaded in subsets(range(len(graph.stages))):
        assert graph.latency_ms(uploaded) == fig1_distance(graph, uploaded)


@given(chains(5, SMALL_INTEGERS | DECIMALS), st.lists(SMALL_INTEGERS, min_size=5, max_size=5))
def test_shortest_path_is_the_smallest_of_the_fastest_sets(graph: ExecutionGraph, overhead: list[float]) -> None:
    overhead = overhead[: len(graph.stages)]
    cost = {s: forced_ms(graph, s) + sum(overhead[i] for i in s) for s in subsets(range(len(graph.stages)))}
    fastest = [s for s in cost if cost[s] == min(cost.values())]
    assert graph.shortest_path(overhead) == frozenset.intersection(*fastest)


@given(chains(6, DECIMALS), st.sets(st.integers(0, 5)))
def test_route_uses_uploaded_stages_and_takes_the_latency(graph: ExecutionGraph, uploaded: set[int]) -> None:
    uploaded = {i for i in uploaded if i < len(graph.stages)}
    offloaded = set(at_server(graph, uploaded))
    assert offloaded <= uploaded
    assert forced_ms(graph, offloaded) == graph.latency_ms(uploaded)


# --- Stages uploaded in part ----------------------------------------------------------------------------------------


def halved(client: list[float], up: list[float]) -> ExecutionGraph:
    return chain(client, [2, 2, 2], [8, 8, 8], up, cuts=[cut(1, tiles=4)])


HALF = 2 * TILE


def test_a_stage_uploaded_in_part_runs_at_both_sides() -> None:
    graph = halved([20, 20, 20], [3, 4, 6, 4])
    slice_ = Slice(1, 0, HALF)
    # From and to the client: its half takes 10; 4 up + 1 + 3 down beside it.
    assert graph.latency_ms([slice_]) == 20 + 10 + 20
    assert graph.legs([slice_]) == (
        Leg("client", 0, 0, False, False),
        Leg("both", 1, 1, False, False),
        Leg("client", 2, 2, False, False),
    )
    # From the server: its input comes down first.
    assert graph.latency_ms([0, slice_]) == 3 + 2 + (4 + 10) + 20
    assert graph.legs([0, slice_])[:2] == (Leg("server", 0, 0, False, True), Leg("both", 1, 1, True, False))
    # To the server: its half goes up, half of 6.
    assert graph.latency_ms([slice_, 2]) == 20 + (10 + 3) + 2 + 4
    assert graph.legs([slice_, 2])[1:] == (Leg("both", 1, 1, False, True), Leg("server", 2, 2, True, False))
    # From and to the server.
    assert graph.latency_ms([0, slice_, 2]) == 3 + 2 + (4 + 10 + 3) + 2 + 4
    assert at_server(graph, [0, slice_, 2]) == [0, 2]
    # As a whole.
    assert graph.latency_ms([0, slice_, Slice(1, HALF, 2 * HALF), 2]) == graph.latency_ms([0, 1, 2])


def test_slices_that_do_not_pay_stay_unused() -> None:
    graph = halved([20, 4, 20], [30, 9, 9, 30])
    assert graph.latency_ms([Slice(1, 0, HALF)]) == 44
    assert graph.legs([Slice(1, 0, HALF)]) == (Leg("client", 0, 2, False, False),)


def test_fixed_times_are_paid_by_both_sides() -> None:
    graph = chain([100], [10], [8], [0, 0], cuts=[cut(0, tiles=4, client_fixed=20, server_fixed=2)])
    split = graph.split(0, TILE)
    assert (split.client_ms, split.server_ms) == (20 + 60, 2 + 2)
    measured = dataclasses.replace(graph, client_ms=np.array([10.0]), server_ms=np.array([1.0])).split(0, TILE)
    assert (measured.client_ms, measured.server_ms) == (10, 1)


def test_overheads_of_slices_add_up() -> None:
    graph = chain([9], [1], [40], [0, 0], load=[8], cuts=[cut(0, tiles=4, slice_ms=2)])
    assert graph.overhead_ms([0]) == (40, 8)
    assert graph.overhead_ms([Slice(0, 0, TILE)]) == (12, 4)
    assert graph.overhead_ms([Slice(0, TILE, 4 * TILE)]) == (32, 8)
    assert (graph.share(Slice(0, TILE, 4 * TILE)), graph.share(0)) == (0.75, 1)


@given(cut_chains(chains(5, SMALL_INTEGERS)), st.data())
def test_latency_in_part_is_the_distance_in_figure_1(graph: ExecutionGraph, data: st.DataObject) -> None:
    uploaded = data.draw(uploads(graph))
    whole = {piece for piece in uploaded if not isinstance(piece, Slice)}
    slices = [piece for piece in uploaded if isinstance(piece, Slice)]
    assert graph.latency_ms(uploaded) == fig1_distance(graph, whole, slices)


@given(cut_chains(chains(6, DECIMALS)), st.data())
def test_legs_are_the_path(graph: ExecutionGraph, data: st.DataObject) -> None:
    uploaded = data.draw(uploads(graph))
    legs = graph.legs(uploaded)
    assert [i for leg in legs for i in range(leg.first, leg.last + 1)] == list(range(len(graph.stages)))
    total_ms = 0.0
    for before, leg, after in zip([None, *legs], legs, [*legs[1:], None], strict=False):
        run = range(leg.first, leg.last + 1)
        if leg.where == "client":
            assert (leg.from_server, leg.to_server) == (False, False)
            total_ms += sum(graph.client_ms[i] for i in run)
            continue
        assert leg.from_server == (before is not None and before.to_server)
        assert leg.to_server == (after is not None and after.from_server)
        if leg.where == "server":
            assert {*run} <= {*uploaded}
            total_ms += sum(graph.server_ms[i] for i in run)
            total_ms += 0 if leg.from_server else graph.up_ms[leg.first]
            total_ms += 0 if leg.to_server else graph.down_ms[leg.last + 1]
        else:
            (piece,) = (piece for piece in uploaded if stage_of(piece) == leg.first)
            assert isinstance(piece, Slice)
            assert (leg.where, leg.first) == ("both", leg.last)
            total_ms += graph.split(leg.first, piece.end - piece.begin).end_ms(leg.from_server, leg.to_server)
    assert total_ms == graph.latency_ms(uploaded)


@given(cut_chains(chains(5, DECIMALS)), st.data())
def test_all_slices_are_the_stage(graph: ExecutionGraph, data: st.DataObject) -> None:
    uploaded = data.draw(uploads(graph))
    if graph.cuts:
        cut = graph.cuts[0]
        uploaded = [piece for piece in uploaded if stage_of(piece) != cut.stage]
        middle = cut.least
        slices = [Slice(cut.stage, 0, middle), Slice(cut.stage, middle, cut.channels)]
        assert graph.legs([*uploaded, *slices]) == graph.legs([*uploaded, cut.stage])
        assert graph.latency_ms([*uploaded, *slices]) == graph.latency_ms([*uploaded, cut.stage])


def test_runs_of() -> None:
    assert runs_of({7, 3, 4, 0, 5}) == [(0, 0), (3, 5), (7, 7)]
    assert runs_of(()) == []


@given(cut_chains(chains(4, st.floats(0, 1e6), loads=True)))
def test_json_round_trip(graph: ExecutionGraph) -> None:
    copy = ExecutionGraph.from_json(graph.to_json())
    assert copy == graph
    assert hash(copy) == hash(graph)
    assert copy.to_json() == graph.to_json()
    assert copy.latency_ms(range(len(graph.stages))) == graph.latency_ms(range(len(graph.stages)))


def test_graphs_of_traces_without_slices_are_read() -> None:
    data = WORKED_EXAMPLE.to_json()
    del data["cuts"]
    assert ExecutionGraph.from_json(data).to_json() == WORKED_EXAMPLE.to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"client_ms": [1, -1, 1, 1]}, r"Expected `float` >= 0.0 - at `\$.client_ms\[1\]`"),
        ({"server_ms": [1, math.nan, 1, 1]}, "server_ms has a time that is negative or not finite|Expected `float`"),
        ({"up_ms": [1, 1, 1, 1]}, "up_ms needs 5 times for 4 stages"),
        ({"offloadable": [True]}, "offloadable needs 4 flags"),
        ({"load_ms": [9, 0, 0, 0]}, "upload_ms includes load_ms"),
        ({"cuts": [dataclasses.asdict(cut(4, tiles=2))]}, "is not of one of its 4 stages"),
        ({"cuts": [{**dataclasses.asdict(cut(0, tiles=2)), "stage": -1}]}, "is not of one of its 4 stages"),
        ({"cuts": [{**dataclasses.asdict(cut(0, tiles=2)), "channels": 48}]}, "not a cut"),
        ({"cuts": [{"stage": 0}]}, "not written by ionn"),
        ({"cuts": 3}, "not written by ionn"),
        ({"stages": None}, "not written by ionn"),
        ({"up_ms": "fast"}, "not written by ionn"),
    ],
)
def test_bad_costs_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ExecutionGraph.from_json({**WORKED_EXAMPLE.to_json(), **change})
