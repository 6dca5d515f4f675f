"""Coding in the execution graph: where it pays, what it takes, and that raw bytes are what they were."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ionn.coding import CODINGS
from ionn.costs.loading import load_costs
from ionn.costs.model_ratios import model_ratios
from ionn.costs.models import Profile
from ionn.errors import InputError
from ionn.model.network import Network
from ionn.model.slices import Slice
from ionn.paper import CLIENT, MBPS, MODELS, SERVER
from ionn.planning.coding_costs import DOWN, UP
from ionn.planning.graph import ExecutionGraph
from ionn.planning.plan import make_plan
from ionn.planning.planners import PLANNERS
from tests.support.chains import at_server, forced_ms, uploads

ALEXNET = Network.load("alexnet")
TINY = Network.from_text(
    """
    layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 20 dim: 20 } } }
    layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
            convolution_param { num_output: 96 kernel_size: 3 } }
    layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
    layer { name: "fc" type: "InnerProduct" bottom: "conv" top: "fc" inner_product_param { num_output: 10 } }
    layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
    """,
    "tiny",
)
SPEEDS = st.sampled_from([None, 0.0, 0.5, 8.0, 100.0])
RATIOS = st.sampled_from([None, 0.01, 0.5, 0.9, 1.0])


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    count = len(TINY.layers)
    ms = draw(st.lists(st.integers(0, 50), min_size=count, max_size=count))
    ratios = draw(st.lists(RATIOS, min_size=count, max_size=count))
    speeds: dict[str, Any] = {"encode_ms_per_mb": draw(SPEEDS), "decode_ms_per_mb": draw(SPEEDS)}
    return Profile.of(TINY, ms, load_ms=draw(st.integers(0, 3)), output_ratios=ratios, **speeds)


BANDWIDTHS = st.sampled_from([1.0, 8.0, 80.0, 1000.0, 1e5])


def graphs(client: Profile, server: Profile, mbps: float, ratio: float = 0.8) -> Iterator[ExecutionGraph]:
    """The same, with each coding."""
    for coding in CODINGS:
        weight_ratio = ratio if coding == "lossless" else None
        yield ExecutionGraph.from_network(TINY, client, server, mbps, coding, weight_ratio)


@pytest.mark.parametrize("model", MODELS)
def test_without_coding_the_times_are_bytes_over_the_bandwidth(model: str) -> None:
    """Bit for bit those of the graph as it was before there was coding."""
    network = Network.load(model)
    graph = ExecutionGraph.from_network(network, load_costs(CLIENT), load_costs(SERVER), MBPS)
    sizes = [math.prod(stage.input_shape) * 4 for stage in network.stages]
    sizes.append(sum(math.prod(shape) * 4 for shape in network.stages[-1].output_shapes))
    grid = 2.0**24
    expected = [round(size / 10_000 * grid) / grid for size in sizes]
    assert graph.up_ms.tolist() == graph.down_ms.tolist() == expected
    weights = [round(stage.weight_bytes / 10_000 * grid) / grid for stage in network.stages]
    assert (graph.upload_ms - graph.load_ms).tolist() == weights
    assert list(graph.boundary_bytes) == sizes
    assert (graph.coded, graph.coded_weights) == ((), ())


@given(profiles(), profiles(), BANDWIDTHS)
def test_coding_is_never_slower_and_its_parts_add_up(client: Profile, server: Profile, mbps: float) -> None:
    none, features, lossless = graphs(client, server, mbps)
    for graph in (features, lossless):
        assert (graph.up_ms <= none.up_ms).all()
        assert (graph.down_ms <= none.down_ms).all()
        assert (graph.upload_ms <= none.upload_ms).all()
        assert (graph.client_ms.tolist(), graph.server_ms.tolist()) == (
            none.client_ms.tolist(),
            none.server_ms.tolist(),
        )
        for boundary in range(len(graph.up_ms)):
            for direction, ms in ((UP, graph.up_ms), (DOWN, graph.down_ms)):
                transfer = graph.transfer(boundary, direction)
                assert transfer.total_ms == ms[boundary]
                assert transfer.wire_bytes <= transfer.raw_bytes == graph.boundary_bytes[boundary]
    assert features.upload_ms.tolist() == none.upload_ms.tolist()
    assert features.up_ms.tolist() == lossless.up_ms.tolist()


@given(profiles(), profiles(), BANDWIDTHS, st.data())
def test_a_coded_transfer_takes_what_its_ends_and_the_link_take(
    client: Profile, server: Profile, mbps: float, data: st.DataObject
) -> None:
    """Each boundary, either way, worked out by itself."""
    _, features, _ = graphs(client, server, mbps)
    boundary = data.draw(st.integers(0, len(TINY.stages)))
    ends = [0, *(stage.last_layer for stage in TINY.stages)]
    raw_mb = features.boundary_bytes[boundary] / 1e6
    ratio = client.layers[ends[boundary]].output_ratio or server.layers[ends[boundary]].output_ratio
    link_ms = raw_mb * 8e3 / mbps
    for times, sender, receiver in ((features.up_ms, client, server), (features.down_ms, server, client)):
        best_ms = link_ms
        if None not in (ratio, sender.encode_ms_per_mb, receiver.decode_ms_per_mb):
            coding_ms = (sender.encode_ms_per_mb + receiver.decode_ms_per_mb) * raw_mb  # type: ignore[operator]
            best_ms = min(link_ms, coding_ms + link_ms * ratio)  # type: ignore[operator]
        # A wire byte more or less, and the grid.
        assert times[boundary] == pytest.approx(best_ms, abs=8e-3 / mbps + 1e-6)


@given(profiles(), profiles(), BANDWIDTHS, st.data())
def test_no_query_is_slower_for_coding_and_legs_still_add_up(
    client: Profile, server: Profile, mbps: float, data: st.DataObject
) -> None:
    none, *coded = graphs(client, server, mbps)
    uploaded = [piece for piece in data.draw(uploads(none)) if not isinstance(piece, Slice)]
    for graph in coded:
        assert graph.latency_ms(uploaded) <= none.latency_ms(uploaded)
        offloaded = set(at_server(graph, uploaded))
        assert forced_ms(graph, offloaded) == graph.latency_ms(uploaded)


@given(profiles(), profiles(), BANDWIDTHS, st.data())
def test_of_a_stage_in_part_a_query_waits_for_its_own_coding_at_most(
    client: Profile, server: Profile, mbps: float, data: st.DataObject
) -> None:
    """A side that codes computes later: what the stage's transfers gain may be less than that."""
    none, features, _ = graphs(client, server, mbps)
    uploaded = data.draw(uploads(none))
    coding_ms = sum(each.encode_ms + each.decode_ms for each in features.coded)
    assert features.latency_ms(uploaded) <= none.latency_ms(uploaded) + coding_ms


@given(profiles(), profiles(), BANDWIDTHS, st.sampled_from([0.25, 0.8, 0.999, 1.0]))
def test_weights_take_the_longer_of_link_and_decoding(
    client: Profile, server: Profile, mbps: float, ratio: float
) -> None:
    none, _, lossless = graphs(client, server, mbps, ratio)
    for stage, raw_ms, coded_ms in zip(TINY.stages, none.upload_ms, lossless.upload_ms, strict=True):
        load_ms = none.load_ms[stage.index]
        link_ms = stage.weight_bytes * 8e-3 / mbps
        best_ms = link_ms
        if server.decode_ms_per_mb is not None:
            best_ms = min(link_ms, max(link_ms * ratio, server.decode_ms_per_mb * stage.weight_bytes / 1e6))
        assert raw_ms == pytest.approx(link_ms + load_ms, abs=1e-6)
        assert coded_ms == pytest.approx(best_ms + load_ms, abs=16e-3 / mbps + 1e-6)
        wire_bytes = lossless.wire_bytes(stage.index, stage.weight_bytes)
        is_coded = stage.index in {each.stage for each in lossless.coded_weights}
        assert wire_bytes == pytest.approx(stage.weight_bytes * (ratio if is_coded else 1), abs=2)
        assert lossless.arrival_ms([stage.index])[0] == pytest.approx(wire_bytes * 8e-3 / mbps, abs=1e-6)


def test_slices_of_coded_weights_are_shares_of_them() -> None:
    graph = ExecutionGraph.from_network(ALEXNET, load_costs(CLIENT), load_costs(SERVER), MBPS, "lossless", 0.5)
    fc6 = next(stage for stage in ALEXNET.stages if stage.name == "fc6")
    quarter, rest = Slice(fc6.index, 0, 1008), Slice(fc6.index, 1008, 4096)
    share = 1008 / 4096
    assert graph.wire_bytes(quarter, fc6.weight_bytes) == pytest.approx(share * 0.5 * fc6.weight_bytes, abs=1)
    link_ms, decode_ms = graph.arrival_ms([quarter])
    assert link_ms == pytest.approx(share * 0.5 * fc6.weight_bytes / 10_000)
    assert decode_ms == pytest.approx(share * 1.5 * fc6.weight_bytes / 1e6)
    whole = graph.arrival_ms([fc6.index])
    assert np.add(graph.arrival_ms([quarter]), graph.arrival_ms([rest])).tolist() == pytest.approx(whole)


@pytest.mark.parametrize("model", MODELS)
def test_on_a_fast_link_nothing_is_coded_and_on_a_slow_one_the_input_is(model: str) -> None:
    network, client, server = Network.load(model), load_costs(CLIENT), load_costs(SERVER)
    fast = ExecutionGraph.from_network(network, client, server, 10_000.0, "lossless")
    assert (fast.coded, fast.coded_weights) == ((), ())
    slow = ExecutionGraph.from_network(network, client, server, 80.0, "lossless")
    assert (1, UP) in {(each.boundary, each.direction) for each in slow.coded}
    assert {each.stage for each in slow.coded_weights} == {s.index for s in network.stages if s.weight_bytes}


def test_weights_shrink_by_default_as_they_were_measured() -> None:
    recorded = model_ratios("alexnet")
    assert recorded is not None
    graph = ExecutionGraph.from_network(ALEXNET, load_costs(CLIENT), load_costs(SERVER), MBPS, "lossless")
    wire_bytes = sum(graph.wire_bytes(stage.index, stage.weight_bytes) for stage in ALEXNET.stages)
    raw_bytes = sum(stage.weight_bytes for stage in ALEXNET.stages)
    assert wire_bytes / raw_bytes == pytest.approx(recorded.weight_ratio, rel=0.01)


def test_of_a_stage_only_layers_whose_ratio_is_known_shrink(tiny: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage join has the weights of left and of right."""
    ratios = np.array([0.5 if layer.name == "right" else np.nan for layer in tiny.layers])
    monkeypatch.setattr("ionn.planning.coding_costs.weight_ratios", lambda network: ratios)
    server = Profile.of(tiny, 1.0, decode_ms_per_mb=0.0)
    graph = ExecutionGraph.from_network(tiny, Profile.of(tiny, 1.0), server, 8.0, "lossless")
    left, right = (next(layer for layer in tiny.layers if layer.name == name) for name in ("left", "right"))
    (coded,) = graph.coded_weights
    assert graph.stages[coded.stage] == "join"
    assert coded.wire_bytes == left.weight_bytes + right.weight_bytes / 2


def test_what_is_not_known_goes_raw() -> None:
    known = Profile.of(TINY, 1.0, output_ratios=[0.1] * 5, encode_ms_per_mb=0.0, decode_ms_per_mb=0.0)
    unknown = Profile.of(TINY, 1.0)
    speedless = dataclasses.replace(known, encode_ms_per_mb=None, decode_ms_per_mb=None)
    assert len(graph_of(known, known).coded) == 2 * (len(TINY.stages) + 1)
    assert graph_of(unknown, unknown).coded == ()
    assert graph_of(speedless, known).coded == graph_of(known, speedless).coded == ()
    no_ratios = Profile.of(TINY, 1.0, encode_ms_per_mb=0.0, decode_ms_per_mb=0.0)
    assert graph_of(no_ratios, no_ratios).coded == ()
    assert graph_of(no_ratios, known).coded == graph_of(known, no_ratios).coded != ()
    assert graph_of(no_ratios, no_ratios).coded_weights == ()  # no record of this network


def graph_of(client: Profile, server: Profile) -> ExecutionGraph:
    return ExecutionGraph.from_network(TINY, client, server, 8.0, "lossless")


@given(profiles(), profiles(), BANDWIDTHS)
def test_coded_graphs_come_back_from_json(client: Profile, server: Profile, mbps: float) -> None:
    for graph in graphs(client, server, mbps):
        again = ExecutionGraph.from_json(graph.to_json())
        assert again == graph
        assert again.coded == graph.coded
        assert again.coded_weights == graph.coded_weights


CODED = ExecutionGraph.from_network(ALEXNET, load_costs(CLIENT), load_costs(SERVER), MBPS, "lossless").to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coded": [CODED["coded"][0]] * 2}, "a transfer is coded twice"),
        ({"coded_weights": [CODED["coded_weights"][0]] * 2}, "are coded twice"),
        ({"coded": [{**CODED["coded"][0], "boundary": len(ALEXNET.stages) + 1}]}, "is not what its up_ms has"),
        ({"coded": [{**CODED["coded"][0], "link_ms": 0.5}]}, "is not what its up_ms has"),
        ({"coded": [{**CODED["coded"][0], "direction": "left"}]}, "not written by ionn"),
        ({"coded": [{**CODED["coded"][0], "encode_ms": -1}]}, "not written by ionn"),
        (
            {"coded_weights": [{**CODED["coded_weights"][0], "stage": len(ALEXNET.stages)}]},
            "is not what its upload_ms has",
        ),
        ({"coded_weights": [{**CODED["coded_weights"][0], "link_ms": 0.5}]}, "is not what its upload_ms has"),
        ({"boundary_bytes": [1]}, "boundary_bytes needs"),
        ({"boundary_bytes": [-1]}, "not written by ionn"),
    ],
)
def test_what_is_coded_must_be_the_graphs(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ExecutionGraph.from_json({**CODED, **change})


@pytest.mark.parametrize("algorithm", ["original", "recursive-efficiency", "sliced-efficiency"])
def test_plans_say_what_crosses_the_link(algorithm: str) -> None:
    graphs_ = [
        ExecutionGraph.from_network(ALEXNET, load_costs(CLIENT), load_costs(SERVER), MBPS, coding)
        for coding in ("features", "lossless")
    ]
    features, lossless = (make_plan(ALEXNET, graph, algorithm, MBPS) for graph in graphs_)
    assert all(part.wire_bytes == part.bytes and "wire_bytes" not in part.to_json() for part in features.partitions)
    assert sum(part.bytes for part in lossless.partitions) == sum(part.bytes for part in features.partitions)
    for part in lossless.partitions:
        if part.bytes:
            assert part.to_json()["wire_bytes"] == part.wire_bytes
            assert 0.8 < part.wire_bytes / part.bytes < 0.9


def test_planners_need_not_know() -> None:
    """A graph of the same times without what is coded has the same plan."""
    graph = ExecutionGraph.from_network(ALEXNET, load_costs(CLIENT), load_costs(SERVER), MBPS, "lossless")
    times = dataclasses.replace(graph, coded=(), coded_weights=(), cuts=())
    whole = dataclasses.replace(graph, cuts=())
    for name in ("original", "efficiency", "recursive-efficiency", "optimal"):
        assert PLANNERS[name](whole) == PLANNERS[name](times)
