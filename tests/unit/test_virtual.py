from __future__ import annotations

import dataclasses
import math
import random
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from ionn.costs.loading import load_costs
from ionn.errors import InputError
from ionn.model.network import Network
from ionn.model.slices import TILE, Piece, Slice, stage_of
from ionn.planning.coding_costs import CodedTransfer, CodedWeights, Transfer
from ionn.planning.graph import ExecutionGraph
from ionn.planning.planners import PLANNERS
from ionn.protocol.yielding import BESIDE_QUERY_BYTES
from ionn.records import Segment
from ionn.testbed.arrivals import Arrivals
from ionn.testbed.bandwidth import Bandwidth
from ionn.testbed.experiment import QUERIES_AFTER_UPLOAD
from ionn.testbed.settings import Settings
from ionn.testbed.trace import RunInfo, Trace
from ionn.testbed.virtual import VirtualSession, run_virtual
from tests.support.chains import WORKED_EXAMPLE, chain, chains, cut
from tests.support.machine import PROFILES, needs_reference
from tests.support.runs import plan_of


def run_info(
    graph: ExecutionGraph,
    parts: Sequence[Sequence[Piece]],
    run: int = 1,
    seed: int = 0,
    noise: float = 0.0,
    window_s: float | None = None,
) -> RunInfo:
    plan = plan_of(graph, parts, [100 + stage_of(pieces[0]) for pieces in parts], "chain", "by hand")
    return RunInfo(Settings("virtual", seed=seed, noise=noise, window_s=window_s), run, plan, graph)


def log(trace: Trace) -> tuple[list[tuple[float, ...]], list[tuple[float, ...]]]:
    """Partitions (start, end, ready) and queries (raised, start, end), in ms."""

    def in_ms(*seconds: float) -> tuple[float, ...]:
        return tuple(round(s * 1e3, 6) for s in seconds)

    partitions = [in_ms(p.start_s, p.end_s, p.ready_s) for p in trace.partitions]
    return partitions, [in_ms(q.raised_s, q.start_s, q.end_s) for q in trace.queries]


def test_queries_and_upload_share_the_uplink() -> None:
    graph = chain(client=[19, 40], server=[2, 1], upload=[20, 30], up=[3, 50, 0], down=[0, 4, 5])
    partitions, queries = log(run_virtual(run_info(graph, [[0], [1]])))
    # The first query: 3 ms worth of features take 6 beside the upload of B, then 2 at the server, 4 down, 40 for B.
    # B's 30 ms on the link become 33. The queries after it: 3 up, 2 + 1 at the server, 5 down.
    assert partitions == [(0, 20, 20), (20, 53, 53)]
    ends = [72, 83, 94, 105, 116, 127]
    assert queries == [(0, 20, ends[0]), *((start, start, end) for start, end in pairwise(ends))]


def test_upload_ends_while_features_go_up() -> None:
    graph = chain(client=[50, 1], server=[1, 1], upload=[10, 4], up=[9, 9, 9], down=[0, 2, 2])
    partitions, queries = log(run_virtual(run_info(graph, [[0], [1]])))
    # From 10 on each has half: B's 4 end at 18, the features' other 5 at 23; then 1 + 2 and 1 at the client.
    assert partitions == [(0, 10, 10), (10, 18, 18)]
    assert queries[0] == (0, 10, 27)


def test_server_loads_one_partition_at_a_time_beside_the_link() -> None:
    graph = chain([90, 90, 90], [1, 1, 1], [10 + 30, 10 + 5, 10 + 2], [1] * 4, load=[30, 5, 2])
    partitions, queries = log(run_virtual(run_info(graph, [[0], [1], [2]])))
    assert partitions == [(0, 10, 40), (10, 20, 45), (20, 30, 47)]
    assert queries[0] == (0, 40, 40 + 1 + 1 + 1 + 180)


def test_segments_alternate_and_add_up() -> None:
    graph = chain(client=[20, 5, 20, 7], server=[1, 30, 2, 1], upload=[9] * 4, up=[1, 2, 3, 4, 0], pinned=[3])
    trace = run_virtual(run_info(graph, [[0, 2]]))
    assert trace.queries[0].segments == (
        Segment("server", 0, 0, 1, 1 + 1 + 2),
        Segment("client", 1, 1, 5, 5),
        Segment("server", 2, 2, 2, 3 + 2 + 4),
        Segment("client", 3, 3, 7, 7),
    )
    assert [query.index for query in trace.queries] == list(range(QUERIES_AFTER_UPLOAD))
    assert trace.partitions[0].stages == ("A", "C")
    assert trace.partitions[0].bytes == 100


def test_empty_plan_queries_run_at_the_client() -> None:
    partitions, queries = log(run_virtual(run_info(WORKED_EXAMPLE, [])))
    assert partitions == []
    assert queries == [(50 * k, 50 * k, 50 * (k + 1)) for k in range(QUERIES_AFTER_UPLOAD)]


def test_weightless_partitions_take_no_time() -> None:
    graph = chain(client=[9, 9, 9], server=[1, 1, 1], upload=[0, 5, 0], up=[1] * 4)
    partitions, queries = log(run_virtual(run_info(graph, [[0], [1], [2]])))
    assert partitions == [(0, 0, 0), (0, 6, 6), (6, 6, 6)]  # the first query's features take 1 of the link
    assert queries[0] == (0, 0, 2 + 1 + 1 + 18)


def split_run(plan: list[list[Piece]]) -> Trace:
    """Of three stages; A and C have no weights, B's second half takes 100 to upload."""
    graph = chain([20, 20, 20], [2, 2, 2], [0, 200, 0], [3, 4, 6, 4], cuts=[cut(1, tiles=2)])
    return run_virtual(run_info(graph, plan))


FIRST, SECOND = Slice(1, 0, TILE), Slice(1, TILE, 2 * TILE)


def about(ms: float) -> float:
    """Equal to what differs from `ms` by rounding only."""
    return cast(float, pytest.approx(ms))


def test_both_sides_compute_while_features_share_the_uplink() -> None:
    first, *_ = split_run([[FIRST], [SECOND]]).queries
    # The features take 8 of the 10 that the client computes its half; 1 at the server and 3 down make 12.
    assert first.segments == (
        Segment("client", 0, 0, 20, 20),
        Segment("both", 1, 1, 10, about(12)),
        Segment("client", 2, 2, 20, about(20)),
    )
    joined_at_server = split_run([[FIRST, 2], [SECOND]]).queries[0]
    # The client's half goes up in 6 when it is computed.
    assert joined_at_server.segments[1:] == (
        Segment("both", 1, 1, 10, about(16)),
        Segment("server", 2, 2, 2, about(2 + 4)),
    )
    from_server = split_run([[0, FIRST], [SECOND]]).queries[0]
    assert from_server.segments == (
        Segment("server", 0, 0, 2, about(6 + 2)),
        Segment("both", 1, 1, 10, about(4 + 10)),
        Segment("client", 2, 2, 20, about(20)),
    )
    between = split_run([[0, FIRST, 2], [SECOND]]).queries[0]
    assert between.segments[1] == Segment("both", 1, 1, 10, about(4 + 10 + 6))


@pytest.mark.parametrize("seed", range(12))
def test_noise_is_drawn_for_each_segment_and_for_both_sides_of_a_split(seed: int) -> None:
    """The time of a split is that of the side that takes longer: with some seeds the client's, with some the other."""
    graph = chain([20, 20, 20], [2, 12, 2], [0, 200, 0], [3, 4, 6, 4], cuts=[cut(1, tiles=2)])
    first, *_ = run_virtual(run_info(graph, [[FIRST], [SECOND]], run=3, seed=seed, noise=0.4)).queries
    draw = random.Random(f"{seed}/3")
    before, client, server, after = (draw.lognormvariate(-0.08, 0.4) for _ in range(4))
    computed = [20 * before, max(10 * client, 6 * server), 20 * after]
    assert [segment.compute_ms for segment in first.segments] == list(map(about, computed))


def test_a_stage_is_one_at_the_server_when_its_slices_are_there() -> None:
    trace = split_run([[0, FIRST], [SECOND, 2]])
    assert [(p.stages, round(p.end_s * 1e3)) for p in trace.partitions[:1]] == [(("A", "B"), 100)]
    assert trace.queries[-1].segments == (Segment("server", 0, 2, 6, about(3 + 6 + 4)),)


class Task:
    """Something that a query does: `ms` are left of it. `what` is "up" where it takes the uplink."""

    def __init__(self, what: str, ms: float, *waits_for: Task) -> None:
        self.what, self.ms, self.waits_for = what, ms, waits_for

    @property
    def ready(self) -> bool:
        return all(task.done for task in self.waits_for)

    @property
    def done(self) -> bool:
        return self.ms <= 0 and self.ready


@dataclasses.dataclass(frozen=True)
class Conditions:
    """What is not in the graph, in ms: when the link carries nothing in each `period`, its delay, what the upload may
    send while a query is at the server, when queries arrive (None: in a closed loop), and whether those that meet a
    busy client are dropped."""

    outages: frozenset[int] = frozenset()
    period: int = 1
    delay: int = 0
    held: float = math.inf
    arrivals: Sequence[int] | None = None
    drops: bool = False

    def bandwidth(self) -> Bandwidth:
        rates = [0.0 if tick in self.outages else 80.0 for tick in range(self.period)]
        return Bandwidth(tuple(tick / 1e3 for tick in range(self.period)), tuple(rates), self.period / 1e3)


def ticks(
    graph: ExecutionGraph, plan: list[list[Piece]], conditions: Conditions = Conditions()
) -> Iterator[tuple[str, int, int, int]]:
    """The same testbed ticking by 1 ms: yields ("ready", index, ms, ms), ("query", raised ms, start ms, end ms) and
    ("dropped", raised ms, ...) as they happen.

    With whole numbers as costs every event falls on a tick, even if the link is halved.
    """
    unsent, undecoded = map(list, zip(*(graph.arrival_ms(pieces) for pieces in plan), strict=True))
    loading = [graph.overhead_ms(pieces)[1] for pieces in plan]
    left: list[int] = []  # when each partition had left the client, and when the server had loaded it
    loaded: list[int] = []
    now = usable = after = decoded = 0
    query: list[Task] = []
    coming, waiting = list(conditions.arrivals or []), [0] if conditions.arrivals is None else []
    started = 0, 0
    allowance = math.inf
    while True:
        while len(left) < len(plan) and unsent[len(left)] <= 0:
            left.append(now)
        # What is on the link, or has left it, is decoded, one partition after the other.
        while decoded < len(left) and left[decoded] + conditions.delay <= now and undecoded[decoded] <= 0:
            decoded += 1
        while len(loaded) < decoded and loading[len(loaded)] <= 0:
            loaded.append(now)
        while usable < len(loaded) and loaded[usable] + conditions.delay <= now:
            yield "ready", usable, now, now
            usable += 1
        marks = (task for task in query if task.what in ("at server", "at client") and task.ready and not task.ms)
        for mark in marks:
            mark.ms = -1
            allowance = conditions.held if mark.what == "at server" else math.inf
        if query and all(task.done for task in query):
            yield "query", *started, now
            query, allowance = [], math.inf
            if conditions.arrivals is None:
                waiting = [now]
            if after == QUERIES_AFTER_UPLOAD:
                yield from (("dropped", raised, now, now) for raised in waiting if conditions.arrivals is not None)
                return
        while coming and coming[0] == now and (query or not waiting):
            raised = coming.pop(0)
            if conditions.drops and query:
                yield "dropped", raised, now, now
            else:
                waiting.append(raised)
        if not query and waiting and (conditions.arrivals is not None or usable or not plan):
            after += usable == len(plan)
            started = waiting.pop(0), now
            query = tasks(graph, [piece for pieces in plan[:usable] for piece in pieces], conditions.delay)
            continue
        if not (query or coming or waiting) and usable == len(plan):
            return
        running = [task for task in query if task.ms > 0 and task.ready]
        carries = now % conditions.period not in conditions.outages
        sending = carries and any(task.what == "up" for task in running)
        uploading = carries and len(left) < len(plan) and allowance > 0
        for task in running:
            if carries or task.what not in ("up", "down"):
                task.ms -= 0.5 if task.what == "up" and uploading else 1
        if uploading:
            unsent[len(left)] -= 0.5 if sending else 1
            allowance -= 0.5 if sending else 1
        if len(loaded) < decoded:
            loading[len(loaded)] -= 1
        if decoded < len(plan) and undecoded[decoded] > 0 and now >= conditions.delay:
            undecoded[decoded] -= 1
        now += 1


def tasks(graph: ExecutionGraph, uploaded: list[Piece], delay: int) -> list[Task]:
    """What a query does, leg by leg, over a link with a delay."""
    todo = [Task("start", 0)]

    def then(what: str, ms: float) -> None:
        todo.append(Task(what, ms, todo[-1]))

    def move(way: str, transfer: Transfer) -> None:
        then("encode", transfer.encode_ms)
        then(way, transfer.link_ms)
        then("delay", delay)
        then("decode", transfer.decode_ms)

    for leg in graph.legs(uploaded):
        if not leg.from_server:
            then("at client" if leg.where == "client" else "at server", 0)
        last, end = todo[-1], leg.last + 1
        if leg.where == "client":
            then("compute", sum(graph.client_ms[leg.first : end]))
        elif leg.where == "server":
            if not leg.from_server:
                move("up", graph.transfer(leg.first, "up"))
            then("compute", sum(graph.server_ms[leg.first : end]))
            if not leg.to_server:
                move("down", graph.transfer(end, "down"))
        else:
            channels = sum(p.end - p.begin for p in uploaded if isinstance(p, Slice) and p.stage == leg.first)
            split = graph.split(leg.first, channels)
            there, back = split.transfers(leg.from_server, leg.to_server)
            encoded = Task("encode", there.encode_ms, last)
            moved = Task("down" if leg.from_server else "up", there.link_ms, encoded)
            arrived = Task("delay", delay, moved)
            decoded = Task("decode", there.decode_ms, arrived)
            client = Task("compute", split.client_ms, decoded if leg.from_server else encoded)
            server = Task("compute", split.server_ms, encoded if leg.from_server else decoded)
            giver, taker = (client, server) if leg.to_server else (server, client)
            coded = Task("encode", back.encode_ms, giver)
            returned = Task("up" if leg.to_server else "down", back.link_ms, coded, moved)
            came = Task("delay", delay, returned)
            joined = Task("decode", back.decode_ms, came, taker)
            todo += [encoded, moved, arrived, decoded, client, server, coded, returned, came, joined]
            then("join", 0)
    return todo


@st.composite
def coded(draw: st.DrawFn, graph: ExecutionGraph) -> ExecutionGraph:
    """A graph some of whose transfers and weights are coded, in even times again."""
    even = st.integers(0, 3).map(lambda ms: 2.0 * ms)
    ways_ms = {"up": graph.up_ms.copy(), "down": graph.down_ms.copy()}
    upload_ms = graph.upload_ms.copy()
    transfers, weights = [], []
    for boundary in range(len(graph.up_ms)):
        for way, ms in ways_ms.items():
            if draw(st.booleans()):
                transfers.append(CodedTransfer(boundary, way, draw(even), draw(even), draw(even), 7))
                ms[boundary] = transfers[-1].total_ms
    for stage in range(len(graph.stages)):
        if draw(st.booleans()):
            weights.append(CodedWeights(stage, draw(even), 2 * draw(even), 7))
            upload_ms[stage] = weights[-1].total_ms + graph.load_ms[stage]
    return dataclasses.replace(
        graph, up_ms=ways_ms["up"], down_ms=ways_ms["down"], upload_ms=upload_ms, coded=transfers, coded_weights=weights
    )


@st.composite
def graphs_and_plans(draw: st.DrawFn) -> tuple[ExecutionGraph, list[list[Piece]]]:
    """Slow clients; the plan uploads stages, some of them in two halves, in any order and grouping. The first stage
    takes time wherever it runs, as the loop of queries of 0 ms would not end. Times are even, so that those of halves
    are whole."""
    graph = draw(chains(5, st.integers(0, 9).map(lambda ms: 2 * ms), loads=True))
    n = len(graph.stages)
    cuts = [cut(stage, tiles=2, slice_ms=draw(st.integers(0, 2))) for stage in draw(st.sets(st.integers(0, n - 1)))]
    server_ms = graph.server_ms + 2 * (np.arange(n) == 0)
    graph = dataclasses.replace(graph, client_ms=4 * graph.client_ms + 2, server_ms=server_ms, cuts=cuts)
    graph = draw(coded(graph))
    halved = {each.stage for each in graph.cuts}
    pieces: list[Piece] = [stage for stage in range(n) if stage not in halved]
    for stage in halved:
        pieces += [Slice(stage, 0, TILE), Slice(stage, TILE, 2 * TILE)]
    order = draw(st.permutations(pieces))
    fewest = draw(st.integers(0, len(order) // 2))
    ends = [0, *sorted(draw(st.sets(st.integers(1, len(order)), min_size=fewest))), len(order)]
    plan = []
    for first, end in pairwise(sorted(set(ends))):
        stages = Counter(map(stage_of, order[first:end]))
        plan.append([p if stages[stage_of(p)] == 1 else stage_of(p) for p in order[first:end]])
        plan[-1] = sorted(set(plan[-1]), key=stage_of)
    return graph, plan


@given(graphs_and_plans())
def test_events_equal_a_simulation_in_ticks(graph_and_plan: tuple[ExecutionGraph, list[list[Piece]]]) -> None:
    graph, plan = graph_and_plan
    event(str({leg.where for uploaded in accumulate(plan) for leg in graph.legs(uploaded)}))
    partitions, queries = log(run_virtual(run_info(graph, plan)))
    events = list(ticks(graph, plan))
    assert [ready for _, _, ready in partitions] == [ms for kind, _, _, ms in events if kind == "ready"]
    assert queries == [tuple(ms) for kind, *ms in events if kind == "query"]


def test_same_settings_same_trace() -> None:
    info = run_info(WORKED_EXAMPLE, [[1], [0], [2], [3]], noise=0.1)
    assert run_virtual(info) == run_virtual(info)


def test_noise_depends_on_seed_and_run_and_has_mean_one() -> None:
    runs = [run_virtual(run_info(WORKED_EXAMPLE, [], run, noise=0.6)) for run in range(400)]
    assert len({trace.queries[0].latency_ms for trace in runs}) == 400
    latencies_ms = [query.latency_ms for trace in runs for query in trace.queries]
    assert sum(latencies_ms) / len(latencies_ms) == pytest.approx(50, rel=0.06)  # standard error 0.015
    logarithms = [math.log(ms / 50) for ms in latencies_ms]
    assert statistics.stdev(logarithms) == pytest.approx(0.6, rel=0.06)
    one, other = (run_virtual(run_info(WORKED_EXAMPLE, [], seed=seed, noise=0.3)) for seed in (0, 1))
    assert one.queries != other.queries


def test_a_trace_predicts_itself_from_disk(tmp_path: Path) -> None:
    trace = run_virtual(run_info(WORKED_EXAMPLE, PLANNERS["recursive-efficiency"](WORKED_EXAMPLE)))
    trace.save(tmp_path / "run.jsonl")
    loaded = Trace.load(tmp_path / "run.jsonl")
    assert loaded == trace
    assert run_virtual(loaded.info) == trace


@given(graphs_and_plans())
def test_bytes_are_those_of_what_crosses_the_link(graph_and_plan: tuple[ExecutionGraph, list[list[Piece]]]) -> None:
    graph, plan = graph_and_plan
    sizes = [1000 * (boundary + 1) for boundary in range(len(graph.up_ms))]
    trace = run_virtual(run_info(dataclasses.replace(graph, boundary_bytes=sizes), plan))
    # Coded or not, the last query's transfers: those at the ends of its legs at the server, all channels being there.
    expected = [
        (sizes[boundary], 7 if (boundary, way) in {(each.boundary, each.direction) for each in graph.coded} else None)
        for leg in graph.legs([piece for pieces in plan for piece in pieces])
        if leg.where == "server"
        for boundary, way in ((leg.first, "up"), (leg.last + 1, "down"))
    ]
    last = trace.queries[-1]
    assert last.feature_bytes == sum(raw_bytes for raw_bytes, _ in expected)
    assert last.feature_wire_bytes == sum(wire_bytes or raw_bytes for raw_bytes, wire_bytes in expected)
    assert {query.feature_bytes for query in run_virtual(run_info(graph, plan)).queries} == {None}


def test_coded_features_take_their_ends_time_and_leave_the_link_to_the_upload() -> None:
    graph = chain(client=[50, 50], server=[1, 1], upload=[10, 30], up=[9, 9, 9], down=[0, 9, 9])
    coded = [CodedTransfer(0, "up", 2.0, 3.0, 4.0, 7), CodedTransfer(1, "down", 1.0, 2.0, 4.0, 7)]
    graph = dataclasses.replace(graph, coded=coded, down_ms=np.array([0, 7, 9.0]))
    partitions, queries = log(run_virtual(run_info(graph, [[0], [1]])))
    # From 10 on: 2 to encode, 6 on the half link, 4 to decode, 1 at the server, 1 + 2 + 4 down, 50 at the client.
    assert queries[0] == (0, 10, 10 + 2 + 6 + 4 + 1 + 7 + 50)
    assert partitions[1] == (10, 10 + 30 + 3, 10 + 30 + 3)


def test_weights_are_decoded_while_they_arrive() -> None:
    graph = chain([90, 90, 90], [1, 1, 1], [12 + 3, 30 + 5, 10], [1] * 4, load=[3, 5, 0])
    weights = [CodedWeights(0, 10.0, 12.0, 7), CodedWeights(1, 20.0, 30.0, 7)]
    partitions, _ = log(run_virtual(run_info(dataclasses.replace(graph, coded_weights=weights), [[0], [1], [2]])))
    # The first is decoded at 12; the second, which begins to arrive at 10, from then on until 42.
    assert partitions[:2] == [(0, 10, 12 + 3), (10, 31, 42 + 5)]


# --- The link -------------------------------------------------------------------------------------------------------


def over(
    graph: ExecutionGraph,
    parts: Sequence[Sequence[Piece]],
    bandwidth: Bandwidth | None = None,
    mbps: float = 80.0,
    **settings: Any,
) -> RunInfo:
    """A run over a link with a bandwidth of its own."""
    info = run_info(graph, parts)
    link = "" if bandwidth is None else "made up (0a)"
    return dataclasses.replace(info, settings=Settings("virtual", mbps, link=link, **settings), bandwidth=bandwidth)


def test_a_bandwidth_over_time_carries_the_same_bytes_at_other_times() -> None:
    graph = chain(client=[19, 40], server=[2, 1], upload=[20, 30], up=[3, 50, 0], down=[0, 4, 5])
    # Half the rate that the plan is for during 30 ms, an outage of 10, then twice the rate.
    bandwidth = Bandwidth((0.0, 0.03, 0.04), (40.0, 0.0, 160.0))
    partitions, queries = log(run_virtual(over(graph, [[0], [1]], bandwidth)))
    # A has crossed 15 of its 20 at 30, and ends at 42.5. The query's 3 take as long as 3 of B, until 45.5 at twice the
    # rate; then 2 at the server, 4 / 2 down, 40 at the client. B's other 27 take 13.5.
    assert partitions == [(0, 42.5, 42.5), (42.5, 59, 59)]
    assert queries[0] == (0, 42.5, 45.5 + 2 + 2 + 40)
    assert queries[1] == (89.5, 89.5, 89.5 + 1.5 + 2 + 1 + 2.5)


def test_a_delay_adds_to_each_transfer_and_once_to_an_upload() -> None:
    graph = chain([90, 90, 90], [1, 1, 1], [10 + 30, 10 + 5, 10 + 2], [1] * 4, load=[30, 5, 2])
    partitions, queries = log(run_virtual(over(graph, [[0], [1], [2]], delay_ms=7)))
    # As without: 10, 20, 30 to cross and 40, 45, 47 to be loaded; the client hears of it a round trip later.
    assert partitions == [(0, 24, 54), (24, 34, 59), (34, 44, 61)]
    assert queries[0] == (0, 54, 54 + 1 + 1 + 1 + 180 + 2 * 7)


def test_a_delay_is_in_both_transfers_of_a_stage_at_both_sides() -> None:
    graph = dataclasses.replace(chain([50], [40], [60], [2, 0], [0, 6]), cuts=[cut(0, tiles=2)])
    parts: list[list[Piece]] = [[Slice(0, 0, TILE)], [Slice(0, TILE, 2 * TILE)]]
    without, with_ = (run_virtual(over(graph, parts, delay_ms=delay_ms)).queries[0] for delay_ms in (0, 9))
    assert [leg.where for leg in graph.legs(parts[0])] == ["both"]
    # The input is up at 4, beside the upload, and the server's half is back 20 + 3 later; the client needs 25.
    assert without.latency_ms == pytest.approx(27)
    assert with_.latency_ms == pytest.approx(27 + 2 * 9)


def test_jitter_is_within_its_bounds_and_of_the_seed() -> None:
    graph = chain(client=[19, 40], server=[2, 1], upload=[20, 30], up=[3, 50, 0], down=[0, 4, 5])
    (plain, _), (low, _), (high, _) = (
        log(run_virtual(over(graph, [[0], [1]], delay_ms=delay_ms))) for delay_ms in (10, 6, 14)
    )
    (one, _), (same, _), (other, _) = (
        log(run_virtual(over(graph, [[0], [1]], delay_ms=10, jitter_ms=4, seed=seed))) for seed in (1, 1, 2)
    )
    assert one == same
    assert len({one[0], other[0], plain[0]}) == 3
    for made in (one, other):
        assert low[0][1] <= made[0][1] <= high[0][1]


def test_an_upload_that_yields_sends_no_more_than_its_allowance_beside_a_query() -> None:
    graph = chain(client=[500, 900, 60], server=[1, 1, 1], upload=[10, 700, 1], up=[200, 1, 1, 1], down=[1] * 4)
    parts: list[list[Piece]] = [[0], [1]]
    share, yields = (run_virtual(over(graph, parts, upload=upload)) for upload in ("share", "yield"))
    allowance_ms = BESIDE_QUERY_BYTES * 8 / 80e3
    # Features of 200 ms: beside the upload they take 400; beside what was under way they take 200 and as much as that.
    assert share.queries[0].segments[0].total_ms == pytest.approx(400 + 1 + 1)
    assert yields.queries[0].segments[0].total_ms == pytest.approx(200 + allowance_ms + 1 + 1)
    # Then the client computes for longer than the rest of the upload takes alone.
    query_ms = yields.queries[0].segments[0].total_ms
    assert yields.partitions[1].end_s == pytest.approx((10 + query_ms + 700 - allowance_ms) / 1e3)


@given(graphs_and_plans(), st.sampled_from([0.0, 5.0]), st.sampled_from(["share", "yield"]))
def test_no_byte_is_lost_over_a_link_that_changes(
    graph_and_plan: tuple[ExecutionGraph, list[list[Piece]]], delay_ms: float, upload: str
) -> None:
    """Whatever the link does, all is uploaded, in order, and not before the bandwidth lets all bytes so far cross."""
    graph, plan = graph_and_plan
    bandwidth = Bandwidth((0.0, 0.01, 0.02, 0.05), (80.0, 8.0, 0.0, 240.0), 0.1)
    trace = run_virtual(over(graph, plan, bandwidth, delay_ms=delay_ms, upload=upload))
    assert len(trace.partitions) == len(plan)
    sent_ms = accumulate(graph.arrival_ms(pieces)[0] for pieces in plan)
    for partition, work_ms in zip(trace.partitions, sent_ms, strict=True):
        arrival_s = bandwidth.arrival_s(0, work_ms * 10_000)  # bytes per ms at 80 Mbps
        assert partition.end_s >= arrival_s + 2 * delay_ms / 1e3 - 1e-9
        assert partition.ready_s >= partition.end_s - 1e-9
    for query in trace.queries:
        if any(segment.where != "client" for segment in query.segments):
            assert query.latency_ms >= 2 * delay_ms - 1e-6


CONDITIONS = st.integers(1, 30).flatmap(
    lambda period: st.builds(
        Conditions, st.frozensets(st.integers(0, period - 1), max_size=period - 1), st.just(period), st.integers(0, 9),
        st.sampled_from([math.inf, 0.0, 1.0, 6.0]),
        st.lists(st.integers(0, 30), min_size=5, max_size=20).map(lambda gaps: list(accumulate(gaps))), st.booleans(),
    )
)  # fmt: skip


@given(graphs_and_plans(), CONDITIONS)
def test_queries_arrive_over_a_link_with_outages_and_a_delay(
    graph_and_plan: tuple[ExecutionGraph, list[list[Piece]]], conditions: Conditions
) -> None:
    """Beside an upload that shares, and one that yields."""
    graph, plan = graph_and_plan
    # An upload during which queries are offloaded.
    raw = [stage not in {each.stage for each in graph.coded_weights} for stage in range(len(graph.stages))]
    graph = dataclasses.replace(graph, upload_ms=graph.upload_ms + 200 * np.array(raw))
    assert conditions.arrivals is not None
    settings: dict[str, Any] = {
        "delay_ms": float(conditions.delay), "upload": "share" if conditions.held == math.inf else "yield",
        "arrivals": Arrivals("times (00000000)", tuple(ms / 1e3 for ms in conditions.arrivals)),
        "busy": "drop" if conditions.drops else "wait",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ionn.testbed.virtual.BESIDE_QUERY_BYTES", conditions.held * 10_000)  # bytes per ms at 80 Mbps
        trace = run_virtual(over(graph, plan, conditions.bandwidth(), **settings))
    partitions, queries = log(trace)
    events = list(ticks(graph, plan, conditions))
    assert [ready for _, _, ready in partitions] == [ms for kind, _, _, ms in events if kind == "ready"]
    assert queries == [tuple(ms) for kind, *ms in events if kind == "query"]
    assert [round(s * 1e3, 6) for s in trace.dropped_s] == [ms for kind, ms, *_ in events if kind == "dropped"]
    event(f"{settings['upload']}, busy {settings['busy']}, dropped: {bool(trace.dropped_s)}")
    offloaded = [each for each in trace.queries if any(segment.where != "client" for segment in each.segments)]
    event(f"at the server during the upload: {any(each.end_s < trace.partitions[-1].end_s for each in offloaded)}")


def test_an_upload_that_yields_goes_on_when_the_server_has_answered() -> None:
    graph = chain(client=[5, 900], server=[1, 1], upload=[700, 10], up=[1, 60, 1], down=[1, 1, 1])
    arrivals = Arrivals("times (00000000)", (0.02,))
    partitions, queries = log(run_virtual(over(graph, [[1], [0]], upload="yield", arrivals=arrivals)))
    # A's 700 ms pause but for the allowance, which the 60 ms of features share: then it goes on at once.
    allowance_ms = round(BESIDE_QUERY_BYTES * 8 / 80e3, 6)
    assert queries == [(20, 20, 20 + 5 + 60 + allowance_ms + 1 + 1)]
    assert partitions[1][1] == 10 + 700 + 60 + 1 + 1


def test_whoever_waits_for_the_upload_has_it() -> None:
    graph = chain([90, 90], [1, 1], [10 + 30, 10 + 5], [1] * 3, load=[30, 5])
    session = VirtualSession(over(graph, [[0], [1]], delay_ms=7.0))
    session.wait_until(0.058)
    assert not session.uploaded()
    session.wait_for_upload()
    assert session.now_s() == pytest.approx(0.059)  # 10 to cross, 35 to be loaded, and a round trip
    assert session.uploaded()
    session.wait_until(0.07)
    session.wait_until(0.06)
    session.wait_for_upload()
    assert session.now_s() == 0.07


@needs_reference
def test_alexnet_completes_more_queries_as_in_the_paper() -> None:
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


@pytest.mark.parametrize(
    ("client_ms", "reason"),
    [(0.0, "a query of 0 ms is so fast that the run would not end"), (2.0**-24, "10000 queries")],
)
def test_queries_that_take_nearly_no_time_are_refused(
    client_ms: float, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would be raised for ever: the upload would not come to an end."""
    monkeypatch.setattr("ionn.testbed.virtual.QUERIES_MAX", 10_000)
    graph = chain([client_ms, client_ms], [1, 1], [1000, 1000], [1, 1, 1])
    with pytest.raises(InputError, match=f"^{reason}.*check the costs$"):
        run_virtual(run_info(graph, [[0], [1]]))


def test_a_window_goes_on_after_the_upload() -> None:
    trace = run_virtual(run_info(WORKED_EXAMPLE, [], window_s=0.42))
    assert len(trace.queries) == 9  # of 50 ms each; the last begins at 400
    assert len(trace.in_window) == 8


def test_queries_are_bounded_while_the_upload_or_the_window_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ionn.testbed.virtual.QUERIES_MAX", 4)
    assert len(run_virtual(run_info(WORKED_EXAMPLE, [])).queries) == QUERIES_AFTER_UPLOAD
    with pytest.raises(InputError, match=r"^4 queries, the last of 50 ms, end before the upload and the window"):
        run_virtual(run_info(WORKED_EXAMPLE, [], window_s=0.3))
    assert len(run_virtual(run_info(WORKED_EXAMPLE, [], window_s=0.2)).queries) == QUERIES_AFTER_UPLOAD
    with pytest.raises(InputError, match="a query of 0 ms is so fast"):
        run_virtual(run_info(chain([0], [1], [1], [1, 1]), [], window_s=0.1))
