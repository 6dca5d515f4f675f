"""Planning for a server whose store has some of a network's weights: all planners, whole stages, slices, coded ones."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from itertools import accumulate
from itertools import chain as concatenated

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from ionn.costs.loading import load_costs
from ionn.errors import InputError
from ionn.model.network import Network
from ionn.model.slices import TILE, Piece, Slice, stage_of
from ionn.model.weight_pieces import weight_pieces
from ionn.planning.coding_costs import CodedWeights
from ionn.planning.graph import ExecutionGraph
from ionn.planning.plan import empty_plan, make_plan
from ionn.planning.planners import PLANNERS
from ionn.planning.planners.custom import checked
from ionn.planning.stored_weights import StoredPiece
from ionn.testbed.bandwidth import Bandwidth
from ionn.testbed.settings import Settings
from ionn.testbed.trace import RunInfo
from ionn.testbed.virtual import VirtualSession
from ionn.testbed.virtual_adaptive import run_adaptive
from tests.support.chains import WORKED_EXAMPLE, assert_alike, chain, chains, cut, cut_chains, uploads
from tests.support.runs import plan_of

TILE_BYTES = 1000
# Of a piece of a tile: what is read of it is on the grid of times.
MS_PER_MB = 250.0
TILE_READ_MS = 0.25


def check(graph: ExecutionGraph, plan: Sequence[Sequence[Piece]]) -> list[list[Piece]]:
    """The plan, if it is one that a planner of the user's own may make."""
    return checked("the plan", lambda _: plan)(graph)


def channels_in(graph: ExecutionGraph) -> list[int]:
    channels = {each.stage: each.channels for each in graph.cuts}
    return [channels.get(stage, 0) for stage in range(len(graph.stages))]


def sizes(graph: ExecutionGraph) -> list[int]:
    """The raw bytes of each stage's weights: of a tile TILE_BYTES, of what cannot be cut twice that."""
    return [TILE_BYTES * (channels // TILE or 2) for channels in channels_in(graph)]


def everything(graph: ExecutionGraph) -> list[StoredPiece]:
    """All pieces of all stages: one for each tile of channels, two of what cannot be cut."""
    return [
        StoredPiece(stage, (TILE * number, TILE * (number + 1)) if channels else None, TILE_BYTES)
        for stage, channels in enumerate(channels_in(graph))
        for number in range(channels // TILE or 2)
    ]


@st.composite
def graphs(draw: st.DrawFn) -> ExecutionGraph:
    """Chains with slices, whose client is often slow; some weights are coded, sometimes slower to decode than to send.
    All times are such that an even share of a tile is on the grid."""
    graph = draw(cut_chains(chains(6, st.integers(0, 6).map(lambda ms: 60.0 * ms), loads=True)))
    graph = dataclasses.replace(graph, client_ms=draw(st.sampled_from([1, 20])) * graph.client_ms)
    upload_ms, coded = graph.upload_ms.copy(), []
    for stage in range(len(graph.stages)):
        if draw(st.integers(0, 2)) == 0:
            link_ms, decode_ms = (60.0 * draw(st.integers(1, 4)) for _ in range(2))
            coded.append(CodedWeights(stage, link_ms, decode_ms, sizes(graph)[stage] // 2))
            upload_ms[stage] = graph.load_ms[stage] + coded[-1].total_ms
    return dataclasses.replace(graph, upload_ms=upload_ms, coded_weights=coded)


def some(draw: st.DrawFn, graph: ExecutionGraph) -> list[StoredPiece]:
    return [piece for piece in everything(graph) if draw(st.booleans())]


def storing(graph: ExecutionGraph, pieces: Sequence[StoredPiece]) -> ExecutionGraph:
    return graph.storing(pieces, sizes(graph), MS_PER_MB)


def link_ms(graph: ExecutionGraph, piece: Piece) -> float:
    upload_ms, load_ms = graph.overhead_ms([piece])
    return upload_ms - load_ms


@given(graphs(), st.sampled_from(sorted(PLANNERS)))
def test_nothing_stored_changes_nothing(graph: ExecutionGraph, algorithm: str) -> None:
    assert storing(graph, []) == graph
    assert PLANNERS[algorithm](storing(graph, [])) == PLANNERS[algorithm](graph)


@given(graphs())
def test_all_stored_is_loaded_and_read_and_not_sent(graph: ExecutionGraph) -> None:
    full = storing(graph, everything(graph))
    read_ms = np.array(sizes(graph)) * MS_PER_MB / 1e6
    assert full.load_ms == pytest.approx(graph.load_ms + read_ms, abs=1e-6)
    assert full.upload_ms.tolist() == full.load_ms.tolist()
    assert full.coded_weights == ()
    for stage in range(len(graph.stages)):
        assert full.arrival_ms([stage]) == (0, 0)
        assert full.wire_bytes(stage, sizes(graph)[stage]) == 0
    for name in ("client_ms", "server_ms", "up_ms", "down_ms"):
        assert getattr(full, name).tolist() == getattr(graph, name).tolist()


@given(st.data(), graphs())
def test_slices_cost_what_their_own_channels_cost(data: st.DataObject, graph: ExecutionGraph) -> None:
    pieces = data.draw(st.composite(some)(graph))
    stored = storing(graph, pieces)
    for each in graph.cuts:
        stage, tiles = each.stage, each.channels // TILE
        there = {piece.channels[0] // TILE for piece in pieces if piece.stage == stage and piece.channels}
        event(f"{bool(there)=} {len(there) == tiles=}")
        ends = sorted({*data.draw(st.sets(st.integers(1, tiles))), tiles})
        slices = [Slice(stage, TILE * a, TILE * b) for a, b in zip([0, *ends], ends, strict=False)]
        for piece in slices:
            own = set(range(piece.begin // TILE, piece.end // TILE))
            missing = len(own - there) / tiles
            assert link_ms(stored, piece) == pytest.approx(missing * link_ms(graph, stage), abs=1e-6)
            load_ms = len(own) / tiles * graph.load_ms[stage] + TILE_READ_MS * len(own & there) + each.slice_ms
            assert stored.overhead_ms([piece])[1] == pytest.approx(load_ms, abs=1e-6)
            if own <= there:
                assert link_ms(stored, piece) == 0
                assert stored.arrival_ms([piece]) == (0, 0)
                assert stored.wire_bytes(piece, sizes(graph)[stage]) == 0
            assert stored.sent_bytes(piece, sizes(graph)[stage]) == TILE_BYTES * len(own - there)
        assert sum(link_ms(stored, piece) for piece in slices) == pytest.approx(link_ms(stored, stage), abs=1e-6)
        arrivals = np.array([stored.arrival_ms([piece]) for piece in slices])
        assert arrivals.sum(axis=0) == pytest.approx(np.array(stored.arrival_ms([stage])), abs=1e-6)
        overhead_ms = stored.overhead_ms(slices)[0] - each.slice_ms * len(slices)
        assert overhead_ms == pytest.approx(stored.overhead_ms([stage])[0], abs=1e-6)


@given(st.data(), graphs())
def test_stages_that_cannot_be_cut_cost_what_is_missing_of_them(data: st.DataObject, graph: ExecutionGraph) -> None:
    pieces = data.draw(st.composite(some)(graph))
    stored = storing(graph, pieces)
    for stage in set(range(len(graph.stages))) - {each.stage for each in graph.cuts}:
        there = sum(piece.stage == stage for piece in pieces)
        assert stored.upload_ms[stage] - stored.load_ms[stage] == pytest.approx(
            (1 - there / 2) * (graph.upload_ms[stage] - graph.load_ms[stage]), abs=1e-6
        )
        assert stored.load_ms[stage] == graph.load_ms[stage] + there * TILE_READ_MS
        assert stored.sent_bytes(stage, 2 * TILE_BYTES) == (2 - there) * TILE_BYTES


@given(st.data(), graphs())
def test_it_composes_with_what_is_held_and_with_itself_in_any_order(data: st.DataObject, graph: ExecutionGraph) -> None:
    pieces, held = data.draw(st.composite(some)(graph)), data.draw(uploads(graph))
    both = storing(graph, pieces).holding(held)
    assert_alike(both, storing(graph.holding(held), pieces))
    half, rest = pieces[::2], pieces[1::2]
    assert_alike(both, storing(storing(graph, half).holding(held), rest))
    assert_alike(both, storing(graph, pieces).holding(held[:1]).holding(held[1:]))
    for stage in range(len(graph.stages)):
        if stage in held:
            assert both.overhead_ms([stage]) == (0, 0)
            assert not both.has_weights[stage]
    # What is left of a stage that is held in part is as it was before.
    channels = dict(enumerate(channels_in(graph)))
    for piece in both.held:
        if isinstance(piece, Slice):
            left = Slice(piece.stage, piece.end, channels[piece.stage])
            assert both.overhead_ms([left]) == pytest.approx(storing(graph, pieces).overhead_ms([left]), abs=1e-6)
            assert both.sent_bytes(left, 0) == storing(graph, pieces).sent_bytes(left, 0)


@given(st.data(), graphs(), st.sampled_from(sorted(PLANNERS)))
def test_every_planner_makes_a_plan_of_all_that_is_worth_it(
    data: st.DataObject, graph: ExecutionGraph, algorithm: str
) -> None:
    stored = storing(graph, data.draw(st.composite(some)(graph)))
    plan = PLANNERS[algorithm](stored)
    assert check(stored, plan) == plan
    pieces = list(concatenated.from_iterable(plan))
    assert {stage_of(piece) for piece in pieces} == graph.shortest_path(np.zeros(len(graph.stages)))
    assert graph.latency_ms(pieces) == graph.latency_ms(range(len(graph.stages)))


def test_what_is_stored_does_not_wait_for_what_is_sent() -> None:
    graph = chain([100] * 3, [1] * 3, [1000] * 3, [10] * 4)
    stored = graph.storing([StoredPiece(0, None, 500), StoredPiece(2, None, 500)], [500] * 3, 1.0)
    for name, planner in PLANNERS.items():
        first, *others = planner(stored)
        assert set(first) <= {0, 2}, name
        assert [1] in others, name


def test_a_server_that_has_half_of_a_model_gets_another_plan_and_one_that_has_all_is_used_at_once() -> None:
    network = Network.load("alexnet")
    graph = ExecutionGraph.from_network(network, load_costs("odroid-xu4"), load_costs("gtx1080ti"), 80.0)
    stage_bytes = [stage.weight_bytes for stage in network.stages]
    assert set(channels_in(graph)) > {0}
    pieces = [StoredPiece(stage.index, None, stage.weight_bytes) for stage in network.stages if stage.weight_bytes]
    for algorithm in ("recursive-efficiency", "sliced-efficiency"):
        fresh = make_plan(network, graph, algorithm, 80.0)
        half = make_plan(network, graph.storing(pieces[len(pieces) // 2 :], stage_bytes, 0.3), algorithm, 80.0)
        full = make_plan(network, graph.storing(pieces, stage_bytes, 0.3), algorithm, 80.0)
        assert [part.pieces for part in half.partitions] != [part.pieces for part in fresh.partitions]
        assert sum(part.stored_bytes for part in fresh.partitions) == 0
        assert sum(part.stored_bytes for part in full.partitions) == sum(part.bytes for part in full.partitions)
        assert sum(part.wire_bytes for part in full.partitions) == 0
        assert sum(part.upload_ms for part in full.partitions) < 0.02 * sum(part.upload_ms for part in fresh.partitions)
        assert full.best_ms == half.best_ms == fresh.best_ms
        for plan in (fresh, half, full):
            assert all(part.wire_bytes + part.stored_bytes == part.bytes for part in plan.partitions)


@given(st.data(), graphs(), st.sampled_from(sorted(PLANNERS)))
def test_an_upload_takes_what_was_predicted(data: st.DataObject, graph: ExecutionGraph, algorithm: str) -> None:
    """The link sends one partition after the other; the server decodes one meanwhile, and loads one after the other."""
    stored = storing(graph, data.draw(st.composite(some)(graph)))
    plan = PLANNERS[algorithm](stored)
    event(f"{bool(plan)=}")
    info = RunInfo(Settings("virtual"), 1, plan_of(stored, plan, [100] * len(plan)), stored)
    session = VirtualSession(info)
    session.start_upload()
    session.wait_for_upload()
    left_ms = list(accumulate(stored.arrival_ms(pieces)[0] for pieces in plan))
    decoded_ms = loaded_ms = 0.0
    for at_ms, pieces in zip(left_ms, plan, strict=True):
        decoded_ms = max(at_ms, decoded_ms + stored.arrival_ms(pieces)[1])
        loaded_ms = max(decoded_ms, loaded_ms) + stored.overhead_ms(pieces)[1]
    assert session.now_s() * 1e3 == pytest.approx(loaded_ms, abs=1e-6)
    full = storing(graph, everything(graph))
    plan = PLANNERS[algorithm](full)
    session = VirtualSession(RunInfo(Settings("virtual"), 1, plan_of(full, plan, [100] * len(plan)), full))
    session.wait_for_upload()
    # Nothing is sent, so it takes the sum of the upload overheads.
    assert session.now_s() * 1e3 == pytest.approx(sum(full.overhead_ms(pieces)[0] for pieces in plan), abs=1e-6)


@given(st.data(), graphs())
def test_a_saved_graph_is_the_same(data: st.DataObject, graph: ExecutionGraph) -> None:
    stored = storing(graph, data.draw(st.composite(some)(graph)))
    read = ExecutionGraph.from_json(json.loads(json.dumps(stored.to_json())))
    assert read == stored
    for each in graph.cuts:
        piece = Slice(each.stage, 0, TILE)
        assert read.overhead_ms([piece]) == stored.overhead_ms([piece])


def test_a_graph_of_an_earlier_version_has_nothing_stored() -> None:
    document = WORKED_EXAMPLE.to_json()
    del document["stored"]
    assert ExecutionGraph.from_json(document) == WORKED_EXAMPLE


def test_pieces_that_share_channels_add_up_and_none_counts_for_more_than_there_is() -> None:
    """A tile of a layer with many inputs is in several pieces, which have the same channels."""
    graph = chain([9], [1], [48], [1] * 2, cuts=[cut(0, tiles=4)])
    pieces = [StoredPiece(0, (0, TILE), 400), StoredPiece(0, (0, TILE), 200), StoredPiece(0, (TILE, 2 * TILE), 9000)]
    stored = graph.storing(pieces, [4000], 1000.0)
    (weights,) = stored.stored
    assert (weights.ends, weights.missing_bytes) == ((TILE, 2 * TILE, 4 * TILE), (400, 400, 2400))
    assert weights.read_ms == pytest.approx((0.6, 1.6, 1.6), abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"stage": 7}, "stage 7 is not of its channels"),
        ({"ends": [48, 96, 144]}, "stage 0 is not of its channels"),
        ({"ends": [96, 96, 192]}, "do not ascend"),
        ({"ends": [0, 96, 192]}, "do not ascend"),
        ({"ends": []}, "do not ascend"),
        ({"missing_bytes": [5, 4, 6]}, "do not ascend"),
        ({"missing_bytes": [5, 6]}, "do not ascend"),
        ({"missing_bytes": [-1, 0, 1]}, "not written by ionn"),
        ({"read_ms": [2.0, 1.0, 3.0]}, "do not ascend"),
        ({"read_ms": [float("nan"), 1.0, 3.0]}, "not written by ionn"),
    ],
)
def test_what_was_not_saved_so_is_refused(changes: dict[str, object], reason: str) -> None:
    graph = chain([9], [1], [48], [1] * 2, cuts=[cut(0, tiles=4)])
    graph = graph.storing([StoredPiece(0, (TILE, 2 * TILE), 1000)], [4000], 1.0)
    document = graph.to_json()
    (weights,) = document["stored"]
    assert weights["ends"] == (TILE, 2 * TILE, 4 * TILE)
    document["stored"] = [{**weights, **changes}]
    with pytest.raises(InputError, match=reason):
        ExecutionGraph.from_json(document)
    document["stored"] = [weights, weights]
    with pytest.raises(InputError, match="twice"):
        ExecutionGraph.from_json(document)


@pytest.mark.parametrize("there", ["nothing", "a half", "all"])
def test_a_client_that_measures_takes_from_the_store_what_is_there(there: str) -> None:
    network, client, server = Network.load("mobilenet"), load_costs("odroid-xu4"), load_costs("gtx1080ti")
    pieces = [StoredPiece(each.stage, each.channels, each.raw_bytes) for each in weight_pieces(network)]
    pieces = {"nothing": [], "a half": pieces[::2], "all": pieces}[there]
    graph = ExecutionGraph.from_network(network, client, server, 80.0)
    settings = Settings("virtual", None, link="constant")
    plan = empty_plan(network, graph, "sliced-efficiency", 80.0)
    info = RunInfo(settings, 1, plan, graph, bandwidth=Bandwidth.constant(80.0))
    trace = run_adaptive(info, network, client, server, stored=pieces, store_ms_per_mb=0.5)
    raw_bytes, wire_bytes = trace.weight_bytes
    stored_bytes = sum(part.stored_bytes for part in trace.partitions)
    assert raw_bytes == sum(stage.weight_bytes for stage in network.stages)
    assert stored_bytes == sum(piece.raw_bytes for piece in pieces)
    assert wire_bytes == raw_bytes - trace.weight_bytes_held == raw_bytes - stored_bytes
    # 17 MB at 80 Mbps, which queries share.
    assert (trace.upload_s < 0.2) == (there == "all")
    # What is in the trace says how the upload went on: the graph is that of the server's store.
    assert bool(trace.info.graph.stored) == (there != "nothing")
