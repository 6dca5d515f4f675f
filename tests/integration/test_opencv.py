"""OpenCV reads Caffe's formats with code of its own, and agrees with Caffe about every partition that is uploaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import pytest

from ionn.costs.loading import load_costs
from ionn.model import engine, inputs
from ionn.model.caffemodel import read_weights
from ionn.model.engine import StageNet
from ionn.model.network import Network
from ionn.model.partial_net import ExtractedPartition, PartialNet, extract
from ionn.model.slices import Piece, stage_of
from ionn.paper import CLIENT, MBPS, SERVER
from ionn.planning.graph import ExecutionGraph
from ionn.planning.plan import make_plan
from tests.support.machine import weights_of

MODELS = ("alexnet", "inception", "resnet", "googlenet", "mobilenet")
# Of the largest magnitude in a blob: the two sum in different orders.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Model:
    """`net` holds the blobs of one forward pass. `extract` cuts out a partition of these stages."""

    network: Network
    net: StageNet
    graph: ExecutionGraph
    extract: Callable[[Sequence[Piece]], ExtractedPartition]


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> Model:
    network = Network.load(request.param)
    weights = read_weights(weights_of(request.param), network)
    net = engine.load_network(network, weights)
    engine.forward(net, inputs.query_inputs(network, seed=0, count=1)[0])
    costs = load_costs(CLIENT), load_costs(SERVER)
    graph = ExecutionGraph.from_network(network, *costs, MBPS)
    return Model(network, net, graph, lambda pieces: extract(network, pieces, weights))


@pytest.mark.parametrize("algorithm", ["sliced-efficiency", "recursive-efficiency", "original"])
def test_partitions(model: Model, algorithm: str) -> None:
    plan = make_plan(model.network, model.graph, algorithm, MBPS)
    offloadable = [stage.index for stage in model.network.stages if not stage.pinned]
    assert sorted({stage_of(piece) for partition in plan.partitions for piece in partition.pieces}) == offloadable
    for planned in plan.partitions:
        partition = model.extract(planned.pieces)
        content = partition.caffemodel.tobytes()
        for net in partition.nets:
            assert difference(model, net, content) <= TOLERANCE, (planned.stages, net.stages)


def test_a_wrong_weight_is_noticed(model: Model) -> None:
    """The judge judges: bytes that are not the partition's weights give another output."""
    stage = next(stage for stage in model.network.stages if stage.weight_bytes)
    partition = model.extract((stage.index,))
    content = bytearray(partition.caffemodel.tobytes())
    span = partition.caffemodel.blobs[0]
    floats = np.frombuffer(content, "<f4", span.size // 4, span.offset)
    floats[...] = floats[::-1].copy()
    assert difference(model, partition.nets[0], bytes(content)) > TOLERANCE


def difference(model: Model, net: PartialNet, caffemodel: bytes) -> float:
    """How far OpenCV's output of a net is from Caffe's, relative to its largest magnitude.

    The input is the blob that Caffe has before the net's first stage. OpenCV names an output by its layer and not by
    its blob, so a stage that hands on several blobs could not be asked for: no stage that these models upload does.
    """
    first, last = net.stages[0], net.stages[-1]
    (expected,) = model.net.outputs(last.index)
    if net.channels is not None:
        expected = expected[:, net.channels.begin : net.channels.end]
    (data,) = model.net.outputs(first.index - 1)
    judge = cv2.dnn.readNetFromCaffe(
        np.frombuffer(net.prototxt.encode(), np.uint8), np.frombuffer(caffemodel, np.uint8)
    )
    judge.setInput(data)
    output = judge.forward(Network.from_text(net.prototxt, "partition").layers[last.last_layer].name)
    assert output.shape == expected.shape
    return float(np.abs(output - expected).max() / np.abs(expected).max())
