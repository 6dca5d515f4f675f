from __future__ import annotations

import json
import math

import numpy as np
import pytest

from ionn.costs.models import Profile
from ionn.errors import InputError
from ionn.model.network import Network
from ionn.model.slices import Slice, stage_of
from ionn.planning.graph import ExecutionGraph
from ionn.planning.plan import Plan, empty_plan, make_plan
from ionn.planning.planners import PLANNERS

MBPS = 8.0  # a byte takes a microsecond


@pytest.fixture
def tiny_graph(tiny: Network) -> ExecutionGraph:
    """The client takes 1 ms for the first layer, 2 for the second, and so on; the server a quarter of that."""
    client_ms = np.arange(1.0, len(tiny.layers) + 1)
    client = Profile.of(tiny, client_ms)
    server = Profile.of(tiny, client_ms / 4, load_ms=client_ms / 8)
    return ExecutionGraph.from_network(tiny, client, server, MBPS)


def test_graph_of_a_network(tiny_graph: ExecutionGraph) -> None:
    # data | conv1 relu1 split left right join | pool | fc1 relu2 | fc2 | prob
    assert tiny_graph.stages == ("data", "conv1", "join", "pool", "fc1", "fc2", "prob")
    layer_numbers = [(1,), (2, 3), (4, 5, 6, 7), (8,), (9, 10), (11,), (12,)]
    client_ms = [sum(numbers) for numbers in layer_numbers]
    weights = [0, (27 + 1) * 8, (8 + 1) * 6 + (72 + 1) * 6, 0, (6 * 11 * 11 + 1) * 400, 401 * 10, 0]
    blobs = [3 * 24 * 24, 3 * 24 * 24, 8 * 22 * 22, 6 * 22 * 22, 6 * 11 * 11, 400, 10, 10]
    assert tiny_graph.client_ms.tolist() == client_ms
    assert tiny_graph.server_ms.tolist() == [ms / 4 for ms in client_ms]
    assert tiny_graph.load_ms.tolist() == [ms / 8 for ms in client_ms]
    assert tiny_graph.upload_ms == pytest.approx(
        [floats * 4 / 1000 + ms / 8 for floats, ms in zip(weights, client_ms, strict=True)], abs=1e-7
    )
    assert tiny_graph.up_ms == pytest.approx([floats * 4 / 1000 for floats in blobs], abs=1e-7)
    assert tiny_graph.down_ms.tolist() == tiny_graph.up_ms.tolist()
    assert tiny_graph.offloadable.tolist() == [False, True, True, True, True, True, False]


def test_bandwidth_scales_transfers_and_weights_but_not_loading(tiny: Network) -> None:
    costs = Profile.of(tiny, np.ones(len(tiny.layers)), load_ms=3.0)
    slow, fast = (ExecutionGraph.from_network(tiny, costs, costs, mbps) for mbps in (10, 80))
    assert slow.up_ms == pytest.approx(8 * fast.up_ms, abs=1e-6)
    assert slow.upload_ms - slow.load_ms == pytest.approx(8 * (fast.upload_ms - fast.load_ms), abs=1e-6)
    assert slow.load_ms.tolist() == fast.load_ms.tolist()


def test_a_plan_of_nothing(tiny: Network, tiny_graph: ExecutionGraph) -> None:
    plan = empty_plan(tiny, tiny_graph, "original", MBPS)
    weights = sum(layer.weight_bytes for layer in tiny.layers)
    assert plan == Plan("tiny", "original", MBPS, weights, 78.0, 78.0, (), math.nan)
    assert math.isnan(plan.planning_ms)
    assert "planning_ms" not in plan.to_json()
    with pytest.raises(InputError, match="bandwidth"):
        empty_plan(tiny, tiny_graph, "original", 0.0)
    with pytest.raises(InputError, match="unknown algorithm"):
        empty_plan(tiny, tiny_graph, "none", MBPS)


@pytest.mark.parametrize("algorithm", PLANNERS)
def test_plan_describes_the_planner_s_partitions(tiny: Network, tiny_graph: ExecutionGraph, algorithm: str) -> None:
    plan = make_plan(tiny, tiny_graph, algorithm, MBPS)
    assert [list(partition.stages) for partition in plan.partitions] == PLANNERS[algorithm](tiny_graph)
    assert plan.partitions
    assert plan.local_ms == sum(range(1, 13))
    assert plan.best_ms == plan.partitions[-1].latency_ms < plan.local_ms
    assert plan.planning_ms > 0
    uploaded: list[int] = []
    for index, partition in enumerate(plan.partitions):
        uploaded += partition.stages
        stages = [tiny.stages[i] for i in partition.stages]
        assert partition.index == index
        assert partition.stage_names == tuple(stage.name for stage in stages)
        assert partition.layers == tuple(
            layer.name for stage in stages for layer in tiny.layers[stage.first_layer : stage.last_layer + 1]
        )
        assert partition.bytes == sum(layer.weight_bytes for layer in tiny.layers if layer.name in partition.layers)
        assert partition.upload_ms == sum(tiny_graph.upload_ms[i] for i in partition.stages)
        assert partition.latency_ms == tiny_graph.latency_ms(uploaded)


def test_planning_is_timed_in_ms(tiny: Network, tiny_graph: ExecutionGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    clock_s = 7.0

    def planner(graph: ExecutionGraph) -> list[list[int]]:
        nonlocal clock_s
        clock_s += 0.25
        return [[1]]

    monkeypatch.setattr("ionn.planning.plan.get_planner", lambda name: planner)
    monkeypatch.setattr("ionn.planning.plan.time.perf_counter", lambda: clock_s)
    assert make_plan(tiny, tiny_graph, "mine", MBPS).planning_ms == 250.0


def test_json(tiny: Network, tiny_graph: ExecutionGraph) -> None:
    plan = make_plan(tiny, tiny_graph, "recursive-efficiency", MBPS)
    document = json.loads(json.dumps(plan.to_json()))
    keys = ["model", "algorithm", "mbps", "model_bytes", "local_ms", "best_ms", "partitions", "planning_ms"]
    assert list(document) == keys
    scalars = ["tiny", "recursive-efficiency", MBPS, plan.model_bytes, plan.local_ms, plan.best_ms]
    assert [document[key] for key in keys[:6]] == scalars
    assert document["planning_ms"] == plan.planning_ms
    first, expected = document["partitions"][0], plan.partitions[0]
    assert first == {
        "stages": list(expected.stage_names),
        "layers": list(expected.layers),
        "bytes": expected.bytes,
        "upload_ms": expected.upload_ms,
        "latency_ms": expected.latency_ms,
    }
    assert len(document["partitions"]) == len(plan.partitions)


@pytest.fixture(scope="module")
def wide() -> Network:
    """A stage with weights for 25 slices, next to one without any."""
    return Network.from_text(
        'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 32 dim: 8 dim: 8 } } }'
        'layer { name: "pool" type: "Pooling" bottom: "data" top: "pool" pooling_param { kernel_size: 1 } }'
        'layer { name: "fc" type: "InnerProduct" bottom: "pool" top: "fc" inner_product_param { num_output: 13000 } }'
        'layer { name: "relu" type: "ReLU" bottom: "fc" top: "fc" }'
        'layer { name: "sum" type: "Reduction" bottom: "fc" top: "sum" }',
        "wide",
    )


def test_slices_in_a_plan(wide: Network) -> None:
    client, server = (Profile.of(wide, [0, ms, 40 * ms, ms, ms]) for ms in (10.0, 0.1))
    graph = ExecutionGraph.from_network(wide, client, server, MBPS)
    plan = make_plan(wide, graph, "sliced-efficiency", MBPS)
    pieces = PLANNERS["sliced-efficiency"](graph)
    assert [list(partition.pieces) for partition in plan.partitions] == pieces
    sliced = [partition for partition in plan.partitions if partition.slices]
    assert len(sliced) > 1
    for partition in plan.partitions:
        assert partition.stages == tuple(map(stage_of, partition.pieces))
        slices = {wide.stages[p.stage].name: (p.begin, p.end) for p in partition.pieces if isinstance(p, Slice)}
        assert partition.slices == slices
        document = json.loads(json.dumps(partition.to_json()))
        assert document.get("slices", {}) == {name: list(channels) for name, channels in slices.items()}
        assert document["stages"] == list(partition.stage_names)
    for partition in sliced:
        ((begin, end),) = partition.slices.values()
        assert partition.bytes == (2048 + 1) * 4 * (end - begin)
        assert partition.layers == (("pool", "fc", "relu") if end == 13000 else ("fc", "relu"))
        assert partition.upload_ms == graph.overhead_ms(partition.pieces)[0]
    assert sum(partition.bytes for partition in plan.partitions) == plan.model_bytes


def test_nothing_worth_offloading(tiny: Network) -> None:
    costs = Profile.of(tiny, np.ones(len(tiny.layers)))
    plan = make_plan(tiny, ExecutionGraph.from_network(tiny, costs, costs, MBPS), "efficiency", MBPS)
    assert plan.partitions == ()
    assert plan.best_ms == plan.local_ms == len(tiny.layers)


@pytest.mark.parametrize("mbps", [0.0, -80.0, math.nan, math.inf])
def test_bandwidth_must_be_positive(tiny: Network, tiny_graph: ExecutionGraph, mbps: float) -> None:
    costs = Profile.of(tiny, np.ones(len(tiny.layers)))
    with pytest.raises(InputError, match=r"bandwidth .* Mbps: give a positive number"):
        ExecutionGraph.from_network(tiny, costs, costs, mbps)
    with pytest.raises(InputError, match="bandwidth"):
        make_plan(tiny, tiny_graph, "efficiency", mbps)


def test_bandwidth_too_small_to_count_with(tiny: Network) -> None:
    costs = Profile.of(tiny, np.ones(len(tiny.layers)))
    with pytest.raises(InputError, match="not finite"):
        ExecutionGraph.from_network(tiny, costs, costs, 1e-310)
