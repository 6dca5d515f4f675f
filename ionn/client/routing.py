"""Which way a query goes while link and server are not known but believed, so that offloading never costs much.

A query takes the path that is believed fastest, as long as the client has an *allowance* for it. The allowance is
counted in local latencies, which a query takes at the client alone. It is 1 at most, and grows by ALLOWANCE_PER_QUERY
with every query. A query that was offloaded and took longer than at the client takes the difference out; one that was
faster puts it in. What a query waits for is bounded so that it cannot take out more than there is: when it has waited
for so long, it is completed at the client.

Therefore N queries in a row lose at most 1 + N x ALLOWANCE_PER_QUERY local latencies, whatever the link and the server
do: 5 % of 30 queries, and less of more.

While all queries run at the client nothing is learnt of link and server. So the client *probes* the link beside them,
and when it has a full allowance, one query *explores*: it takes the best path by the server although that is believed
slower. As long as either is in vain, it happens less and less often.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from ionn.client.estimates import Estimate
from ionn.errors import InputError
from ionn.model.slices import Piece, channels_of
from ionn.planning.graph import ExecutionGraph, Leg

ALLOWANCE_PER_QUERY = 1 / 60
# Queries between two that explore, and computing between two probes, at first and at most: the gap doubles each time
# that it was in vain.
EXPLORE_QUERIES_MIN, EXPLORE_QUERIES_MAX = 30, 240
PROBE_MS_MIN, PROBE_MS_MAX = 1e3, 30e3
# Graphs that are kept: beliefs come back.
_GRAPHS_MAX = 64
# Of two connections that send, each has this part of a link.
FAIR_SHARE = 0.5
# What a query waits for may come so much later than was believed.
_WAIT_MARGIN = 1.25
# For the path to explore the client counts as so many times slower, at most.
_SLOWER_MAX = 2**20


class Route(NamedTuple):
    """The path of a query, by the `graph` of what is believed, and what it may cost.

    `local_ms` is a query's latency at the client alone, and `allowance` the part of that which it may lose; `waited_ms`
    is how long it has waited already. Beside a query that `probes`, the link is to be probed.
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
        """How long after the query began its data before a stage, which went to the server, may take to come back: as
        long as the query takes at the client alone, and no longer than it can be completed there by what it may
        lose."""
        left_ms = float(self.graph.client_ms[stage:].sum())
        return min(self.local_ms, (1 + self.allowance) * self.local_ms - left_ms)


class Router:
    """Routes the queries of a session, one after another.

    `make_graph` makes the graph of an estimate. While weights are under way, a query has the part `share` of the link.
    Raises InputError for a graph of queries that take no time at the client alone: there is nothing to gain, and no
    local latency to count an allowance in.
    """

    def __init__(self, make_graph: Callable[[Estimate], ExecutionGraph], share: float = FAIR_SHARE) -> None:
        self._make_graph = make_graph
        self._share = share
        self._graphs: dict[Estimate, ExecutionGraph] = {}
        self._allowance = 1.0
        self._gap = EXPLORE_QUERIES_MIN
        self._explored = 0  # queries since one explored
        self._probe_gap_ms = PROBE_MS_MIN
        self._unprobed_ms = 0.0  # of queries since anything was learnt of the link

    def graph(self, estimate: Estimate) -> ExecutionGraph:
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
        """For how many of the partitions that are `coming`, each after so many ms, a query should wait so that it ends
        the soonest, and for how many ms at most; (0, 0.0) for not at all."""
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
        """The route of the next query, which has waited so long already. All of it is at the client where nothing is
        `uploaded`. While the link is `occupied` by something of the client's, that tells how fast it is."""
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
        """The path that a client would take which is as many times slower as it takes."""
        slower, route = 2, local
        while not route.offloads and slower <= _SLOWER_MAX:
            legs = self.graph(estimate._replace(client_factor=estimate.client_factor * slower)).legs(uploaded)
            route, slower = local._replace(legs=legs), slower * 2
        return route

    def settle(self, route: Route, latency_ms: float) -> None:
        """A query took its route, or was completed at the client, and took so long. One that was not offloaded lost
        what it waited; what else it took is the client's own affair."""
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
    """The stage before which the data goes to the server for the first time."""
    return next(leg.first for leg in route.legs if leg.where != "client")


def _back_ms(route: Route, uploaded: Sequence[Piece]) -> float:
    """When the data is expected back at the client, after it went to the server for the first time."""
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
