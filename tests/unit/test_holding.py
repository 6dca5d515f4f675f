"""Planning the rest, when a server holds some of a network already: all planners, whole stages and slices."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import chain as concatenated

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from ionn.costs.loading import load_costs
from ionn.model.network import Network
from ionn.model.slices import TILE, Piece, Slice, channels_of, stage_of
from ionn.planning.coding_costs import CodedWeights
from ionn.planning.graph import ExecutionGraph
from ionn.planning.plan import make_plan
from ionn.planning.planners import PLANNERS
from ionn.planning.planners.custom import checked
from tests.support.chains import (
    DECIMALS,
    SMALL_INTEGERS,
    WORKED_EXAMPLE,
    assert_alike,
    chain,
    chains,
    cut,
    cut_chains,
    uploads,
)

A, B, C, D = range(4)


def in_chain_order(graph: ExecutionGraph) -> list[list[Piece]]:
    """A planner of a user's own, which cuts every stage that can be cut, and knows nothing of what is held."""
    ends = {each.stage: each.ends(each.most_slices()) for each in graph.cuts}
    plan: list[list[Piece]] = []
    for stage in range(len(graph.stages)):
        if graph.offloadable[stage]:
            begin = 0
            for end in ends.get(stage, [0]):
                plan.append([Slice(stage, begin, end) if end else stage])
                begin = end
    return plan


ALL = {**PLANNERS, "in chain order": checked("in_chain_order", in_chain_order)}


def graphs() -> st.SearchStrategy[ExecutionGraph]:
    return cut_chains(chains(6, SMALL_INTEGERS, loads=True) | chains(6, DECIMALS, loads=True))


def on_another_link(graph: ExecutionGraph, factor: float) -> ExecutionGraph:
    times = {name: getattr(graph, name) * factor for name in ("up_ms", "down_ms")}
    upload_ms = graph.load_ms + (graph.upload_ms - graph.load_ms) * factor
    return dataclasses.replace(graph, upload_ms=upload_ms, **times)


def begun(draw: st.DrawFn, graph: ExecutionGraph) -> list[Piece]:
    """The pieces of the first partitions of a plan for another link."""
    plan = ALL[draw(st.sampled_from(sorted(ALL)))](on_another_link(graph, draw(st.sampled_from([0.0, 0.25, 1.0, 4.0]))))
    return [piece for pieces in plan[: draw(st.integers(0, len(plan)))] for piece in pieces]


@given(st.data(), graphs(), st.sampled_from(sorted(ALL)))
def test_the_rest_is_uploaded_once_and_nothing_that_is_held(
    data: st.DataObject, graph: ExecutionGraph, algorithm: str
) -> None:
    held = data.draw(st.composite(begun)(graph))
    holding = graph.holding(held)
    rest = holding.missing(ALL[algorithm](holding))
    event(f"{bool(held)=} {bool(rest)=} slices {any(isinstance(piece, Slice) for piece in held)}")
    assert all(rest)

    cuts = {each.stage: each for each in graph.cuts}
    there: dict[int, int] = {}  # channels, 0 for a stage that is there as a whole
    for piece in (*held, *concatenated.from_iterable(rest)):
        if isinstance(piece, Slice):
            assert piece.begin == there.get(piece.stage, 0)
            assert piece.end - piece.begin >= cuts[piece.stage].least
            there[piece.stage] = piece.end
        else:
            assert piece not in there
            there[piece] = 0
    complete = {stage for stage, channels in there.items() if channels in (0, cuts[stage].channels if channels else 0)}
    # As without anything held, planners of ionn's upload what the fastest path uses.
    wanted = graph.shortest_path(np.zeros(len(graph.stages))) if algorithm in PLANNERS else complete
    assert wanted <= complete
    if algorithm in PLANNERS:
        end_ms, all_ms = (
            graph.latency_ms(pieces)
            for pieces in ([*held, *concatenated.from_iterable(rest)], range(len(graph.stages)))
        )
        # Part of a stage may be better than all of it, see below.
        assert end_ms == all_ms or (end_ms < all_ms and complete < set(there))


@pytest.mark.parametrize("algorithm", PLANNERS)
def test_part_of_a_stage_may_be_better_than_all_of_it(algorithm: str) -> None:
    """Where the server is no faster than the client, both at once are, and the rest of the stage is not uploaded."""
    graph = chain(client=[2], server=[2], upload=[1], up=[0, 0], cuts=[cut(0, 2)])
    holding = graph.holding([Slice(0, 0, TILE)])
    assert (holding.latency_ms([]), holding.latency_ms([0])) == (1, 2)
    assert holding.missing(PLANNERS[algorithm](holding)) == []


@given(graphs(), st.sampled_from(sorted(ALL)))
def test_nothing_held_changes_no_plan_and_everything_held_leaves_none(graph: ExecutionGraph, algorithm: str) -> None:
    plan = ALL[algorithm](graph)
    assert graph.holding([]) == graph
    assert graph.missing(plan) == plan
    holding = graph.holding(concatenated.from_iterable(plan))
    assert holding.missing(ALL[algorithm](holding)) == []


@given(st.data(), graphs())
def test_latencies_and_overheads_are_those_of_what_is_held_too(data: st.DataObject, graph: ExecutionGraph) -> None:
    held, more = data.draw(uploads(graph)), data.draw(uploads(graph))
    holding = graph.holding(held)
    assert holding.latency_ms(more) == graph.latency_ms([*held, *more])
    assert holding.legs(more) == graph.legs([*held, *more])
    assert holding.local_ms == graph.latency_ms([])
    assert holding.overhead_ms(held) == (0, 0)
    # In one step or two, in any order.
    assert_alike(holding.holding(more), graph.holding([*more, *held]))
    channels = channels_of(held)
    for stage in range(len(graph.stages)):
        missing = [each for each in graph.cuts if each.stage == stage and stage in channels]
        if stage in held:
            assert (holding.upload_ms[stage], holding.load_ms[stage]) == (0, 0)
        elif missing:
            share = 1 - channels[stage] / missing[0].channels
            assert holding.upload_ms[stage] == pytest.approx(share * graph.upload_ms[stage], abs=1e-6)
            rest = Slice(stage, channels[stage], missing[0].channels)
            assert holding.overhead_ms([rest]) == pytest.approx(graph.overhead_ms([rest]), abs=1e-6)
        else:
            assert holding.overhead_ms([stage]) == graph.overhead_ms([stage])


def test_the_rest_of_the_worked_example_by_hand() -> None:
    planner = PLANNERS["recursive-efficiency"]
    assert planner(WORKED_EXAMPLE) == [[B], [A], [C], [D]]
    holding = WORKED_EXAMPLE.holding([A, C])
    assert holding.held == (A, C)
    assert holding.upload_ms.tolist() == [0, 8, 0, 8]
    assert holding.latency_ms([]) == WORKED_EXAMPLE.latency_ms([A, C])
    # With A and C there, B joins them for 8 ms and saves more than that; D comes last.
    assert holding.missing(planner(holding)) == [[B], [D]]
    # A copy keeps what is held, and no document has it.
    assert dataclasses.replace(holding, cuts=()).held == (A, C)
    assert holding != WORKED_EXAMPLE
    assert "held" not in holding.to_json()


def test_a_slice_that_is_too_small_beside_what_is_held_joins_the_next() -> None:
    graph = chain([9, 9], [1, 1], [60, 6], [1] * 3, load=[6, 0], cuts=[cut(0, tiles=6, least=2)])
    holding = graph.holding([Slice(0, 0, 3 * TILE)])
    assert holding.upload_ms.tolist() == [30, 6]
    assert holding.load_ms.tolist() == [3, 0]
    assert holding.held_channels(0) == 3 * TILE
    plan: Sequence[Sequence[Piece]] = [
        [Slice(0, 0, 2 * TILE)],
        [Slice(0, 2 * TILE, 4 * TILE), 1],
        [Slice(0, 4 * TILE, 6 * TILE)],
    ]
    assert holding.missing(plan) == [[1], [Slice(0, 3 * TILE, 6 * TILE)]]
    assert holding.missing([[0, 1]]) == [[Slice(0, 3 * TILE, 6 * TILE), 1]]


def test_coded_weights_of_the_rest() -> None:
    graph = dataclasses.replace(
        chain([9, 9], [1, 1], [40, 8], [1] * 3, load=[4, 0], cuts=[cut(0, tiles=4)]),
        coded_weights=(CodedWeights(0, 36.0, 20.0, 3600), CodedWeights(1, 2.0, 8.0, 200)),
    )
    holding = graph.holding([Slice(0, 0, TILE), 1])
    assert holding.coded_weights == (CodedWeights(0, 27.0, 15.0, 2700),)
    rest = Slice(0, TILE, 4 * TILE)
    assert holding.wire_bytes(rest, 4000) == graph.wire_bytes(rest, 4000) == 2700
    assert holding.arrival_ms([rest]) == graph.arrival_ms([rest]) == (27, 15)


@pytest.mark.parametrize("algorithm", [name for name in PLANNERS if name != "optimal"])
@pytest.mark.parametrize("model", ["alexnet", "googlenet"])
def test_a_plan_changed_halfway_uploads_each_stage_once(model: str, algorithm: str) -> None:
    network = Network.load(model)
    client, server = load_costs("odroid-xu4"), load_costs("gtx1080ti")
    fast, slow = (ExecutionGraph.from_network(network, client, server, mbps) for mbps in (80.0, 8.0))
    former = make_plan(network, fast, algorithm, 80.0)
    begun_pieces = [piece for part in former.partitions[: len(former.partitions) // 2] for piece in part.pieces]
    rest = make_plan(network, slow.holding(begun_pieces), algorithm, 8.0)
    wanted = make_plan(network, slow, algorithm, 8.0)
    sent = {stage_of(piece) for piece in begun_pieces} | {stage for part in rest.partitions for stage in part.stages}
    assert sent >= {stage for part in wanted.partitions for stage in part.stages}
    assert rest.local_ms == wanted.local_ms
    assert rest.best_ms == wanted.best_ms
    assert [part.index for part in rest.partitions] == list(range(len(rest.partitions)))
    uploaded = list(begun_pieces)
    for part in rest.partitions:
        uploaded += part.pieces
        assert part.latency_ms == slow.latency_ms(uploaded)
        assert part.upload_ms == pytest.approx(slow.overhead_ms(part.pieces)[0])
    bytes_there = sum(part.bytes for part in (*former.partitions[: len(former.partitions) // 2], *rest.partitions))
    stages = {stage_of(piece) for piece in uploaded}
    if channels_of(uploaded).keys() <= {stage for stage in stages if _complete(slow, uploaded, stage)}:
        assert bytes_there == sum(network.stages[stage].weight_bytes for stage in stages)


def _complete(graph: ExecutionGraph, pieces: Sequence[Piece], stage: int) -> bool:
    channels = {each.stage: each.channels for each in graph.cuts}
    return stage in pieces or channels_of(pieces).get(stage) == channels.get(stage)
