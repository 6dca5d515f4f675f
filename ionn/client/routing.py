"""The routes of queries by estimates of link and server, which may be wrong, so that offloading never costs much.

A query takes the path that the estimates say is fastest, as long as the client's *allowance* permits it. The allowance
is counted in local latencies (the time of a query at the client alone). It is 1 at most, and grows by
ALLOWANCE_PER_QUERY with every query. A query that was offloaded and took longer than at the client takes the difference
out; one that was faster puts it in. No query waits so long that it could take out more than there is: it is completed
at the client before.

Therefore N queries in a row lose at most 1 + N x ALLOWANCE_PER_QUERY local latencies, whatever the link and the server
do: 5 % of the time of 30 queries, and a smaller part of more.

While all queries run at the client, nothing is learnt about link and server. So the client *probes* the link beside
them. And when the allowance is full, one query *explores*: it takes the best path through the server although the
estimates say that it is slower. Either happens less and less often while it brings no improvement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from ionn.client.estimates import Estimate
from ionn.errors import InputError
from ionn.model.slices import Piece, channels_of
from ionn.planning.graph import ExecutionGraph, Leg

ALLOWANCE_PER_QUERY = 1 / 60
# The gap between two queries that explore, in queries, and between two probes, in ms of queries, at first and at most.
# It doubles each time that no improvement was found.
EXPLORE_QUERIES_MIN, EXPLORE_QUERIES_MAX = 30, 240
PROBE_MS_MIN, PROBE_MS_MAX = 1e3, 30e3
# How many graphs are kept, since estimates come back.
_GRAPHS_MAX = 64
# The part of a link that each of two sending connections has.
FAIR_SHARE = 0.5
# A query waits for partitions by this factor longer than they should take.
_WAIT_MARGIN = 1.25
# The largest factor by which the client counts as slower, to find the path to explore.
_SLOWER_MAX = 2**20


class Route(NamedTuple):
    """The path of a query by the `graph` of an estimate, and what it may cost.

    `local_ms` is a query's latency at the client alone, `allowance` how much it may lose, in local latencies, and
    `waited_ms` how long it has waited already. A query `explores` to learn about link and server. If it `probes`, the
    link is to be probed beside it.
    """

    graph: ExecutionGraph
    legs: tuple[Leg, ...]
    local_ms: float
    allowance: float
    waited_ms: float = 0.0
    explores: bool = False
    probes: bool = False

    @property
    def offloads(self) -> bool:
        return any(leg.where != "client" for leg in self.legs)

    def deadline_ms(self, stage: int) -> float:
        """How long after the query's begin data that went to the server before a stage may come back: the query's
        latency at the client alone, or less if the client could not complete the query within the allowance then."""
        left_ms = float(self.graph.client_ms[stage:].sum())
        return min(self.local_ms, (1 + self.allowance) * self.local_ms - left_ms)


class Router:
    """Routes the queries of a session, one after another.

    `make_graph` makes the graph of an estimate. While weights are under way, a query has the part `share` of the link.
    Methods raise InputError for a graph whose queries take no time at the client alone, since an allowance cannot be
    counted in local latencies of 0.
    """

    def __init__(self, make_graph: Callable[[Estimate], ExecutionGraph], share: float = FAIR_SHARE) -> None:
        self._make_graph = make_graph
        self._share = share
        self._graphs: dict[Estimate, ExecutionGraph] = {}
        self._allowance = 1.0
        self._gap = EXPLORE_QUERIES_MIN
        self._explored = 0  # how many queries ran at the client since one was offloaded or explored
        self._probe_gap_ms = PROBE_MS_MIN
        self._unprobed_ms = 0.0  # how long these ran since the link was last used or probed

    def graph(self, estimate: Estimate) -> ExecutionGraph:
        """The graph of an estimate."""
        if estimate not in self._graphs:
            while len(self._graphs) >= _GRAPHS_MAX:
                del self._graphs[next(iter(self._graphs))]
            graph = self._make_graph(estimate)
            if not graph.local_ms:
                raise InputError("a query of 0 ms at the client is so fast that it is never offloaded; check the costs")
            self._graphs[estimate] = graph
        return self._graphs[estimate]

    def wait(
        self, estimate: Estimate, uploaded: Sequence[Piece], coming: Iterable[tuple[float, Sequence[Piece]]]
    ) -> tuple[int, float]:
        """For how many of the `coming` partitions, each with the time in ms until it is ready, a query should wait to
        end as early as possible, and for how many ms at most; (0, 0.0) for no wait."""
        graph = self.graph(self._shared(estimate))
        best_ms, count, wait_ms = graph.latency_ms(uploaded), 0, 0.0
        there = list(uploaded)
        for number, (after_ms, pieces) in enumerate(coming, start=1):
            if after_ms >= min(best_ms, self._allowance * graph.local_ms):
                break
            there += pieces
            if (end_ms := after_ms + graph.latency_ms(there)) < best_ms:
                best_ms, count, wait_ms = end_ms, number, after_ms
        return count, min(_WAIT_MARGIN * wait_ms, self._allowance * graph.local_ms)

    def route(
        self, estimate: Estimate, uploaded: Sequence[Piece], occupied: bool = False, waited_ms: float = 0.0
    ) -> Route:
        """The route of the next query, which has waited for `waited_ms` already. If nothing is `uploaded`, all of it is
        at the client. While the link is `occupied` by other data of the client, the query has its share of the link,
        and the link is not probed."""
        if occupied:
            estimate = self._shared(estimate)
        graph = self.graph(estimate)
        route = Route(graph, graph.legs(uploaded), graph.local_ms, self._allowance, waited_ms)
        if route.offloads and waited_ms + _back_ms(route, uploaded) <= route.deadline_ms(_first(route)):
            return route
        local = route._replace(legs=(Leg("client", 0, len(graph.stages) - 1, False, False),))
        if waited_ms:
            return local
        if self._explored >= self._gap and self._allowance == 1 and uploaded:
            explored = route if route.offloads else self._best_offloaded(estimate, uploaded, route)
            return explored._replace(explores=True)
        return local._replace(probes=not occupied and self._unprobed_ms >= self._probe_gap_ms)

    def _shared(self, estimate: Estimate) -> Estimate:
        return estimate._replace(mbps=self._share * estimate.mbps)

    def _best_offloaded(self, estimate: Estimate, uploaded: Sequence[Piece], local: Route) -> Route:
        """The fastest path for a client that is slower by the least power of two for which that path is offloaded."""
        slower, route = 2, local
        while not route.offloads and slower <= _SLOWER_MAX:
            legs = self.graph(estimate._replace(client_factor=estimate.client_factor * slower)).legs(uploaded)
            route, slower = local._replace(legs=legs), slower * 2
        return route

    def settle(self, route: Route, latency_ms: float) -> None:
        """Settle the allowance and the gaps after a query that took `latency_ms`, by its route or completed at the
        client. One that was not offloaded lost only the time that it waited."""
        lost = (latency_ms - route.local_ms if route.offloads else route.waited_ms) / route.local_ms
        self._allowance = min(max(self._allowance - lost, 0.0) + ALLOWANCE_PER_QUERY, 1.0)
        if route.offloads and lost <= 0:
            self._gap, self._probe_gap_ms = EXPLORE_QUERIES_MIN, PROBE_MS_MIN
        elif route.explores:
            self._gap = min(2 * self._gap, EXPLORE_QUERIES_MAX)
        self._explored = 0 if route.offloads or route.explores else self._explored + 1
        if route.probes:
            self._probe_gap_ms = min(2 * self._probe_gap_ms, PROBE_MS_MAX)
        self._unprobed_ms = 0.0 if route.offloads or route.probes else self._unprobed_ms + latency_ms


def _first(route: Route) -> int:
    """The stage before which data first goes to the server."""
    return next(leg.first for leg in route.legs if leg.where != "client")


def _back_ms(route: Route, uploaded: Sequence[Piece]) -> float:
    """How long after the query's begin data is back at the client that has first gone to the server, by the graph."""
    graph, channels, ms = route.graph, channels_of(uploaded), 0.0
    for leg in route.legs:
        run = slice(leg.first, leg.last + 1)
        if leg.where == "client":
            ms += float(graph.client_ms[run].sum())
            continue
        if leg.where == "both":
            ms += graph.split(leg.first, channels[leg.first]).end_ms(leg.from_server, leg.to_server)
        else:
            ms += float(graph.server_ms[run].sum())
            ms += 0.0 if leg.from_server else float(graph.up_ms[leg.first])
            ms += 0.0 if leg.to_server else float(graph.down_ms[leg.last + 1])
        if not leg.to_server:
            break
    return ms
