"""Execution graphs for tests: the paper's worked example, hand-made chains, and random ones."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from hypothesis import strategies as st

from ionn.model.network import Network
from ionn.model.slices import TILE, Piece, Slice, runs_of
from ionn.planning.coding_costs import DOWN, UP, CodedTransfer, Transfer
from ionn.planning.graph import ExecutionGraph
from ionn.planning.slice_costs import SlicePlan

Times = Sequence[float] | np.ndarray


def chain(
    client: Times,
    server: Times,
    upload: Times,
    up: Times,
    down: Times | None = None,
    load: Sequence[float] | None = None,
    pinned: Sequence[int] = (),
    cuts: Sequence[SlicePlan] = (),
) -> ExecutionGraph:
    """Stages A, B, C ...; `upload` includes `load` (none by default); `down` is like `up` by default."""
    n = len(client)
    return ExecutionGraph(
        stages=tuple(chr(ord("A") + i) for i in range(n)),
        client_ms=np.array(client),
        server_ms=np.array(server),
        upload_ms=np.array(upload),
        load_ms=np.array(load or [0] * n),
        up_ms=np.array(up),
        down_ms=np.array(up if down is None else down),
        offloadable=np.array([i not in pinned for i in range(n)]),
        cuts=tuple(cuts),
    )


def coded_everywhere(graph: ExecutionGraph, network: Network) -> ExecutionGraph:
    """The same graph, in which every blob is coded both ways, in no time, and none of the times changes."""
    shapes = [[stage.input_shape] for stage in network.stages] + [network.stages[-1].output_shapes]
    coded = [
        CodedTransfer(boundary, direction, 0.0, float(ms), 0.0, 1)
        for direction, times_ms in ((UP, graph.up_ms), (DOWN, graph.down_ms))
        for boundary, ms in enumerate(times_ms)
    ]
    return dataclasses.replace(graph, boundary_bytes=[4 * sum(map(math.prod, each)) for each in shapes], coded=coded)


def raw(ms: float) -> Transfer:
    """A transfer that is not coded, of a blob whose size is not known."""
    return Transfer(0.0, ms, 0.0, 0, 0)


def cut(
    stage: int, tiles: int, least: int = 1, client_fixed: float = 0.0, server_fixed: float = 0.0, slice_ms: float = 0.0
) -> SlicePlan:
    """A stage of `tiles` x TILE channels, with at least `least` tiles in a slice."""
    return SlicePlan(stage, tiles * TILE, least * TILE, client_fixed, server_fixed, slice_ms)


WORKED_EXAMPLE = chain(client=[10, 19, 16, 5], server=[3, 3, 4, 3], upload=[8, 8, 16, 8], up=[4, 3, 4, 8, 2])


@st.composite
def chains(draw: st.DrawFn, most_stages: int, ms: st.SearchStrategy[float], loads: bool = False) -> ExecutionGraph:
    n = draw(st.integers(1, most_stages))

    def times(size: int) -> list[float]:
        return draw(st.lists(ms, min_size=size, max_size=size))

    load = times(n) if loads else [0] * n
    upload = [wire_ms + load_ms for wire_ms, load_ms in zip(times(n), load, strict=True)]
    pinned = [i for i in range(n) if draw(st.integers(0, 5)) == 0]
    return chain(times(n), times(n), upload, times(n + 1), times(n + 1), load, pinned)


@st.composite
def cut_chains(draw: st.DrawFn, graphs: st.SearchStrategy[ExecutionGraph], most_tiles: int = 6) -> ExecutionGraph:
    """Chains of which some stages can be cut into two or more slices."""
    graph = draw(graphs)
    cuts = []
    for stage in draw(st.sets(st.integers(0, len(graph.stages) - 1))):
        client_ms, server_ms = (
            draw(st.sampled_from([0.0, 0.5, 1.0])) * float(ms[stage]) for ms in (graph.client_ms, graph.server_ms)
        )
        tiles = draw(st.integers(2, most_tiles))
        least, slice_ms = draw(st.integers(1, tiles // 2)), draw(st.sampled_from([0.0, 0.5, 2.0]))
        cuts.append(cut(stage, tiles, least, client_ms, server_ms, slice_ms))
    return dataclasses.replace(graph, cuts=tuple(cuts))


@st.composite
def uploads(draw: st.DrawFn, graph: ExecutionGraph) -> list[Piece]:
    """Some stages of a graph, in part where they can be cut."""
    stages = draw(st.sets(st.integers(0, len(graph.stages) - 1)))
    pieces: list[Piece] = [stage for stage in stages if draw(st.booleans())]
    for each in graph.cuts:
        if each.stage in stages.difference(pieces):
            pieces.append(Slice(each.stage, 0, TILE * draw(st.integers(1, each.channels // TILE - 1))))
    return pieces


SMALL_INTEGERS = st.integers(0, 6).map(float)  # many ties, many stages without upload overhead
DECIMALS = st.integers(0, 60).map(lambda tenths: tenths / 10)  # not exact in binary


def at_server(graph: ExecutionGraph, uploaded: Iterable[Piece]) -> list[int]:
    """The stages that run at the server as a whole on the fastest path through what is uploaded."""
    legs = (leg for leg in graph.legs(uploaded) if leg.where == "server")
    return [stage for leg in legs for stage in range(leg.first, leg.last + 1)]


def forced_ms(graph: ExecutionGraph, at_server: Iterable[int]) -> float:
    """Latency with exactly these stages at the server; infinite if one of them is not offloadable."""
    chosen = set(at_server)
    server_ms = np.where(graph.offloadable, graph.server_ms, math.inf)
    stages_ms = sum(server_ms[i] if i in chosen else graph.client_ms[i] for i in range(len(graph.stages)))
    transfers_ms = sum(graph.up_ms[first] + graph.down_ms[last + 1] for first, last in runs_of(chosen))
    return float(stages_ms + transfers_ms)


def assert_alike(one: ExecutionGraph, other: ExecutionGraph) -> None:
    """Equal but for rounding."""
    assert sorted(one.held, key=str) == sorted(other.held, key=str)
    for name in ("client_ms", "server_ms", "upload_ms", "load_ms", "up_ms", "down_ms"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-6)
    assert [each.stage for each in one.coded_weights] == [each.stage for each in other.coded_weights]
    for a, b in zip(one.coded_weights, other.coded_weights, strict=True):
        assert (a.link_ms, a.decode_ms, a.wire_bytes) == pytest.approx((b.link_ms, b.decode_ms, b.wire_bytes), abs=1.5)
    for channel in (0, *(end for each in one.stored for end in each.ends)):
        for mine, others in zip(one.stored, other.stored, strict=True):
            assert mine.missing_between(0, channel) == pytest.approx(others.missing_between(0, channel), abs=1.5)
            assert mine.read_between_ms(0, channel) == pytest.approx(others.read_between_ms(0, channel), abs=1e-6)
