"""Partitions: stages cut out of a network as prototxt and caffemodel, ready to be shipped and built at a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from google.protobuf import text_format

from ionn.caffemodel import Floats, Serialised, serialise
from ionn.graph import runs_of
from ionn.network import Network
from ionn.proto import caffe_pb2


@dataclass(frozen=True)
class StageCut:
    """How to find a stage in a net: its index in the chain, its last layer's name and the blobs it hands on."""

    index: int
    last_layer: str
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class PartialNet:
    """A run of stages as a net of its own: stock Caffe builds it from `prototxt`, whose input blob is `input`."""

    prototxt: str
    input: str
    stages: tuple[StageCut, ...]


@dataclass(frozen=True)
class Partition:
    """One upload: a partial net per run of adjacent stages, and one caffemodel with the weights of all of them."""

    nets: tuple[PartialNet, ...]
    caffemodel: Serialised


def stage_cuts(network: Network, first: int, last: int) -> tuple[StageCut, ...]:
    """The cuts of stages `first`..`last`, both included."""
    return tuple(
        StageCut(stage.index, network.layers[stage.last_layer].name, stage.outputs)
        for stage in network.stages[first : last + 1]
    )


def extract_net(network: Network, first: int, last: int) -> PartialNet:
    """The net of stages `first`..`last`: an Input layer of the boundary's shape, then the layers as the user wrote them
    (Caffe inserts the Split layers again)."""
    stages = network.stages[first : last + 1]
    begin, end = stages[0].first_layer, stages[-1].last_layer
    net = caffe_pb2.NetParameter(name=f"{network.name}[{stages[0].name}..{stages[-1].name}]")
    if network.layers[begin].type != "Input":
        boundary = net.layer.add(name=f"{stages[0].input}/boundary", type="Input", top=[stages[0].input])
        boundary.input_param.shape.add(dim=stages[0].input_shape)
    names = {layer.name for layer in network.layers[begin : end + 1] if layer.type != "Split"}
    for layer in network.param.layer:
        if layer.name in names:
            net.layer.add().CopyFrom(layer)
    return PartialNet(text_format.MessageToString(net), stages[0].input, stage_cuts(network, first, last))


def extract(network: Network, stages: Sequence[int], weights: Mapping[str, Sequence[Floats]]) -> Partition:
    """The partition of the given stage indices (ascending)."""
    nets = tuple(extract_net(network, first, last) for first, last in runs_of(stages))
    layers = [
        network.layers[index]
        for stage in stages
        for index in range(network.stages[stage].first_layer, network.stages[stage].last_layer + 1)
    ]
    return Partition(nets, serialise(network.name, layers, weights))
