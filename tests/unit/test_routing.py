"""Which way queries go while link and server are believed: what offloading may cost, and how it is tried again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ionn.client.estimates import Estimate
from ionn.client.routing import (
    ALLOWANCE_PER_QUERY,
    EXPLORE_QUERIES_MAX,
    EXPLORE_QUERIES_MIN,
    PROBE_MS_MAX,
    PROBE_MS_MIN,
    Route,
    Router,
)
from ionn.errors import InputError
from ionn.model.slices import TILE, Piece, Slice
from ionn.planning.graph import ExecutionGraph, Leg
from tests.support.chains import SMALL_INTEGERS, chain, chains, cut, cut_chains, uploads

# 50 ms at the client alone. With all of it uploaded, 2 + 12 + 2 ms over a link of 80 Mbps.
GRAPH = chain([10, 20, 20], [4, 4, 4], [100, 100, 100], [2, 4, 4, 2])
ALL: Sequence[Piece] = (0, 1, 2)
NOW = Estimate(80.0, 0.0)


def scaled(graph: ExecutionGraph, estimate: Estimate) -> ExecutionGraph:
    link = 80 / estimate.mbps
    return dataclasses.replace(
        graph,
        client_ms=graph.client_ms * estimate.client_factor,
        server_ms=graph.server_ms * estimate.server_factor,
        up_ms=graph.up_ms * link + estimate.rtt_ms / 2,
        down_ms=graph.down_ms * link + estimate.rtt_ms / 2,
    )


def router(graph: ExecutionGraph = GRAPH) -> Router:
    return Router(lambda estimate: scaled(graph, estimate))


def where(route: Route) -> list[tuple[str, int, int]]:
    return [leg[:3] for leg in route.legs]


HERE = [("client", 0, 2)]
THERE = [("server", 0, 2)]


def test_a_query_takes_the_path_that_is_believed_fastest() -> None:
    assert where(router().route(NOW, ALL)) == THERE
    assert where(router().route(NOW, [])) == HERE
    assert where(router().route(NOW._replace(server_factor=10.0), ALL)) == HERE
    assert where(router().route(NOW._replace(rtt_ms=40.0), ALL)) == HERE
    assert where(router().route(Estimate(80.0, 40.0, 1.0, 3.0), ALL)) == THERE
    assert where(router().route(NOW, [1])) == [("client", 0, 0), ("server", 1, 1), ("client", 2, 2)]
    # Beside weights a query has half of the link: 9 Mbps would be enough alone.
    assert where(router().route(NOW._replace(mbps=9.0), ALL)) == THERE
    assert where(router().route(NOW._replace(mbps=9.0), ALL, occupied=True)) == HERE


@pytest.mark.parametrize("client_ms", [0.0, 2.0**-26])
def test_costs_by_which_a_query_takes_no_time_at_the_client_are_refused(client_ms: float) -> None:
    nothing = chain([client_ms, 0, 0], [4, 4, 4], [100, 100, 100], [2, 4, 4, 2])
    for uploaded in ([], ALL):
        with pytest.raises(InputError, match="a query of 0 ms at the client is so fast"):
            router(nothing).route(NOW, uploaded)
        with pytest.raises(InputError, match="a query of 0 ms at the client is so fast"):
            router(nothing).wait(NOW, uploaded, [])


def test_a_query_is_given_as_long_as_the_client_takes() -> None:
    route = router().route(NOW, ALL)
    assert route.local_ms == 50
    assert route.deadline_ms(0) == 50  # completed at 100: one local latency lost
    some = route._replace(allowance=0.25)
    assert some.deadline_ms(0) == 12.5  # completed at 62.5
    assert some.deadline_ms(1) == 22.5  # with 40 ms left
    assert some.deadline_ms(2) == 42.5


def test_what_is_lost_is_saved_again() -> None:
    routes = router()
    late = routes.route(NOW, ALL)
    routes.settle(late, 100.0)
    # Nothing may be lost now: 16 ms at the server need an allowance of 0.32, which takes 20 queries, one of them late.
    for _ in range(19):
        route = routes.route(NOW, ALL)
        assert where(route) == HERE
        routes.settle(route, 50.0)
    route = routes.route(NOW, ALL)
    assert where(route) == THERE
    assert route.allowance == pytest.approx(20 * ALLOWANCE_PER_QUERY)
    routes.settle(route, 16.0)
    assert routes.route(NOW, ALL).allowance == 1.0


def with_allowance(graph: ExecutionGraph, allowance: float) -> Router:
    """A router of which one query has lost as much as leaves so much."""
    routes = router(graph)
    late = routes.route(NOW, range(len(graph.stages)))
    routes.settle(late, (2 + ALLOWANCE_PER_QUERY - allowance) * late.local_ms)
    assert routes.route(NOW, []).allowance == pytest.approx(allowance)
    return routes


TWICE = chain([20, 10, 20], [4, 4, 4], [100, 100, 100], [2, 4, 4, 2])
CUT = dataclasses.replace(GRAPH, cuts=(cut(1, tiles=2),))
CUT_LATER = chain([20, 20, 20], [4, 4, 4], [100, 100, 100], [2, 30, 4, 2], [2, 2, 4, 2], cuts=[cut(1, tiles=2)])
HALF = Slice(1, 0, TILE)


@pytest.mark.parametrize(
    ("graph", "uploaded", "first", "back_ms"),
    [
        (GRAPH, ALL, 0, 16.0),
        (GRAPH, [1], 1, 10.0 + 12),
        (TWICE, [0, 2], 0, 10.0),  # of two trips the first one
        (CUT, [HALF], 1, 10.0 + 10),  # the client's half takes longer
        (CUT, [HALF, 2], 1, 10.0 + 10 + 4 + 4),
        (CUT_LATER, [0, HALF], 0, 2.0 + 4 + 2 + 10),
    ],
)
def test_a_query_is_offloaded_if_its_data_is_expected_back_in_time(
    graph: ExecutionGraph, uploaded: Sequence[Piece], first: int, back_ms: float
) -> None:
    at_client_ms = float(graph.client_ms[:first].sum())
    enough = (back_ms - at_client_ms) / graph.local_ms
    assert 0 < enough < 1
    route = with_allowance(graph, enough + 0.01).route(NOW, uploaded)
    assert next(leg.first for leg in route.legs if leg.where != "client") == first
    route = with_allowance(graph, enough - 0.01).route(NOW, uploaded)
    assert route.legs == (Leg("client", 0, 2, False, False),)


def test_the_numbers_are_as_documented() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "adapting.md").read_text(encoding="utf-8")
    assert f"one at most, and 1/{1 / ALLOWANCE_PER_QUERY:.9g} more with each query" in " ".join(page.split())
    words = " ".join(page.split())
    assert f"after {EXPLORE_QUERIES_MIN} such queries" in words
    assert f"the gap doubles, up to {PROBE_MS_MAX / 1e3:g} s and to {EXPLORE_QUERIES_MAX} queries" in words
    assert "at first after a second of computing" in words
    assert PROBE_MS_MIN == 1000


def test_a_part_of_a_local_latency_that_is_lost_is_taken_out() -> None:
    routes = router()
    routes.settle(routes.route(NOW, ALL), 75.0)
    assert routes.route(NOW, ALL).allowance == pytest.approx(0.5 + ALLOWANCE_PER_QUERY)
    # One that waited and was not offloaded lost what it waited.
    routes.settle(routes.route(NOW, [], waited_ms=5.0), 60.0)
    assert routes.route(NOW, ALL).allowance == pytest.approx(0.4 + 2 * ALLOWANCE_PER_QUERY)


@given(st.data(), cut_chains(chains(5, SMALL_INTEGERS)))
def test_whatever_happens_no_more_is_lost_than_allowed(data: st.DataObject, graph: ExecutionGraph) -> None:
    """Believed or not, on time or late, waited for or not: at most 1 + N / 60 local latencies in N queries."""
    if not graph.local_ms:
        return
    routes = router(graph)
    lost = [0.0]
    for _ in range(data.draw(st.integers(1, 40))):
        estimate = Estimate(*(data.draw(st.sampled_from([0.1, 1.0, 10.0, 100.0])) for _ in range(4)))
        uploaded = data.draw(uploads(graph))
        _, wait_ms = routes.wait(estimate, uploaded, [(data.draw(st.floats(0, 20)), [0])])
        waited_ms = data.draw(st.floats(0, wait_ms))
        route = routes.route(estimate, uploaded, data.draw(st.booleans()), waited_ms)
        local_ms, took_ms = route.local_ms, waited_ms
        for leg in route.legs:
            first, ms = leg.first, float(route.graph.client_ms[leg.first : leg.last + 1].sum())
            if leg.where == "client":
                took_ms += ms
                continue
            if data.draw(st.booleans()):
                took_ms = max(took_ms, route.deadline_ms(first)) + float(route.graph.client_ms[first:].sum())
                break
            took_ms = max(took_ms, data.draw(st.floats(0, 1)) * route.deadline_ms(first))
        routes.settle(route, took_ms)
        lost.append(lost[-1] + took_ms / local_ms - 1)
    for first, before in enumerate(lost):
        for last in range(first + 1, len(lost)):
            assert lost[last] - before <= 1 + (last - first) * ALLOWANCE_PER_QUERY + 1e-9


def test_a_query_waits_for_what_comes_so_soon_that_it_ends_earlier() -> None:
    # At once 50; with stage 1 after 5, 5 + 10 + (4 + 4 + 4) + 20 = 47 over a link that weights use too, thus 55.
    assert router().wait(NOW, [], [(5.0, [1])]) == (0, 0.0)
    # With all of it after 6, 6 + 4 + 12 + 4.
    count, at_most_ms = router().wait(NOW, [], [(5.0, [1]), (6.0, [0, 2])])
    assert count == 2
    assert 6 <= at_most_ms <= 9
    assert router().wait(NOW, [], [(49.0, ALL)]) == (0, 0.0)
    assert router().wait(NOW, [], [(60.0, ALL)]) == (0, 0.0)
    for after_ms in (0.0, 1.0):
        assert router().wait(NOW, ALL, [(after_ms, [])]) == (0, 0.0)
    # It waits for nothing that comes later than it may.
    count, at_most_ms = with_allowance(GRAPH, 0.2).wait(NOW, [], [(9.5, ALL)])
    assert count == 1
    assert at_most_ms == pytest.approx(0.2 * 50)
    assert with_allowance(GRAPH, 0.2).wait(NOW, [], [(10.5, ALL)]) == (0, 0.0)


def test_now_and_then_a_query_explores_and_less_often_while_that_is_in_vain() -> None:
    slow = NOW._replace(server_factor=50.0)
    routes = router()
    explored = []
    for number in range(2000):
        route = routes.route(slow, ALL)
        if route.explores and route.offloads:
            explored.append(number)
        routes.settle(route, 100.0 if route.offloads else 50.0)
    gaps = [later - earlier for earlier, later in pairwise(explored)]
    assert explored[0] == EXPLORE_QUERIES_MIN
    assert gaps == sorted(gaps)
    assert gaps[:2] == [2 * EXPLORE_QUERIES_MIN + 1, 4 * EXPLORE_QUERIES_MIN + 1]
    assert gaps[-1] == EXPLORE_QUERIES_MAX + 1
    assert min(gaps) >= 1 / ALLOWANCE_PER_QUERY
    # Once it is on time, it is tried as often as at first.
    while not (route := routes.route(slow, ALL)).offloads:
        routes.settle(route, 50.0)
    routes.settle(route, 16.0)
    for _ in range(EXPLORE_QUERIES_MIN):
        route = routes.route(slow, ALL)
        assert not route.explores
        routes.settle(route, 50.0)
    assert routes.route(slow, ALL).explores


def test_beside_queries_at_the_client_the_link_is_probed_and_less_often_while_that_is_in_vain() -> None:
    routes = router()
    routes.settle(routes.route(NOW, ALL), 100.0)  # all is lost that may be
    now_ms, probed_ms = 0.0, [0.0]
    for _ in range(4000):
        route = routes.route(NOW, [])
        assert not route.offloads
        assert not routes.route(NOW, [], occupied=True).probes  # by what tells as much
        if route.probes:
            probed_ms.append(now_ms)
        routes.settle(route, 50.0)
        now_ms += 50.0
    gaps_ms = [later - earlier for earlier, later in pairwise(probed_ms)]
    assert gaps_ms[:3] == [PROBE_MS_MIN, 2 * PROBE_MS_MIN + 50, 4 * PROBE_MS_MIN + 50]
    assert gaps_ms == sorted(gaps_ms)
    assert gaps_ms[-1] == PROBE_MS_MAX + 50


def test_once_a_query_was_offloaded_the_link_is_probed_as_often_as_at_first() -> None:
    slow = NOW._replace(mbps=0.1)
    routes = router()

    def queries_until_a_probe() -> int:
        count = 0
        while not (route := routes.route(slow, ALL)).probes:
            assert not route.offloads
            routes.settle(route, 50.0)
            count += 1
        routes.settle(route, 50.0)
        return count

    assert queries_until_a_probe() == PROBE_MS_MIN / 50
    routes.settle(routes.route(NOW, ALL), 100.0)  # late
    assert queries_until_a_probe() == 2 * PROBE_MS_MIN / 50
    routes.settle(routes.route(NOW, ALL), 16.0)
    assert queries_until_a_probe() == PROBE_MS_MIN / 50


def test_the_path_to_explore_is_the_best_by_the_server() -> None:
    graph = chain([1, 24, 25], [1, 1, 1], [1] * 3, [90, 60, 300, 70], cuts=[cut(1, tiles=2)])
    routes = router(graph)
    for _ in range(EXPLORE_QUERIES_MIN):
        routes.settle(routes.route(NOW, ALL), 50.0)
    assert where(routes.route(NOW, ALL)) == [("client", 0, 0), ("server", 1, 2)]
    assert where(routes.route(NOW, [Slice(1, 0, TILE)])) == [("client", 0, 0), ("both", 1, 1), ("client", 2, 2)]
    # However slow the server is believed to be, but what is nearest to pay first.
    graph = chain([10, 10, 10], [25, 45, 90_000], [1, 1, 1], [0, 0, 0, 0])
    for uploaded, best in ((ALL, [("server", 0, 0), ("client", 1, 2)]), ([2], [("client", 0, 1), ("server", 2, 2)])):
        routes = router(graph)
        for _ in range(EXPLORE_QUERIES_MIN):
            routes.settle(routes.route(NOW, ALL), 30.0)
        assert where(routes.route(NOW, uploaded)) == best
    graph = chain([10, 10], [15, 25], [1, 1], [0, 0, 0])
    routes = router(graph)
    for _ in range(EXPLORE_QUERIES_MIN):
        routes.settle(routes.route(NOW, [0, 1]), 20.0)
    assert where(routes.route(NOW, [0, 1])) == [("server", 0, 0), ("client", 1, 1)]


def test_graphs_are_made_once_and_not_kept_for_ever() -> None:
    made: list[Estimate] = []
    routes = Router(lambda estimate: made.append(estimate) or GRAPH)  # type: ignore[func-returns-value]
    for mbps in range(1, 200):
        assert routes.graph(NOW._replace(mbps=float(mbps))) is routes.graph(NOW._replace(mbps=float(mbps)))
    assert len(made) == 199
    assert len(routes._graphs) < 100
