"""What is checked of a stranger's partition before Caffe sees it: Caffe answers a bad net by aborting the process.

Shapes, names and layer types are `Network`'s part. Here are the limits of a session, how the header's stages lie in
the nets, and that the weights to come are those that the layers take.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from google.protobuf import text_format

from ionn.errors import InputError
from ionn.layers import Shape
from ionn.limits import Limits, option
from ionn.network import Layer, Network
from ionn.partition import PartialNet
from ionn.wire import PartitionHeader

_FLOAT_BYTES = 4


@dataclass(frozen=True)
class Usage:
    """What nets take of a session's limits."""

    layers: int = 0
    weight_bytes: int = 0
    memory_bytes: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.layers + other.layers,
            self.weight_bytes + other.weight_bytes,
            self.memory_bytes + other.memory_bytes,
        )


@dataclass(frozen=True)
class CheckedPartition:
    """`nets` are safe to build; `layers` names the layers of each stage, for messages; `usage` is what they take."""

    nets: tuple[PartialNet, ...]
    layers: dict[int, str]
    usage: Usage


def check_partition(header: PartitionHeader, limits: Limits, used: Usage) -> CheckedPartition:
    """Check a partition's nets and weights against Caffe's rules and what the session has left (`used` is in use).

    Raises InputError, naming the layer, the stage or the limit.
    """
    if not header.nets:
        raise InputError(f"partition {header.partition} has no nets")
    networks = [Network.from_text(net.prototxt, f"partition {header.partition}") for net in header.nets]
    usage = sum((_usage(network, limits) for network in networks), Usage())
    _check_limits(used + usage, limits)
    layers: dict[int, str] = {}
    for net, network in zip(header.nets, networks, strict=True):
        for stage, names in _check_stages(net, network).items():
            if stage in layers:
                raise InputError(f"stage {stage} is in two nets")
            layers[stage] = names
    _check_weights(header, networks)
    # Only what was read has been checked: the text that Caffe gets is written from that.
    nets = tuple(
        PartialNet(text_format.MessageToString(network.param), net.input, net.stages)
        for net, network in zip(header.nets, networks, strict=True)
    )
    return CheckedPartition(nets, layers, usage)


def _usage(network: Network, limits: Limits) -> Usage:
    shape = network.input_shape
    if shape and shape[0] > limits.batch:
        raise InputError(
            f"input {network.input!r} has a batch of {shape[0]}; the server's {option('batch')} is {limits.batch}"
        )
    for layer in network.layers:
        for top, top_shape in zip(layer.tops, layer.top_shapes, strict=True):
            if _bytes(top_shape) > limits.blob_mb * 1e6:
                raise InputError(
                    f"layer {layer.name!r}: blob {top!r} has {_bytes(top_shape) / 1e6:.1f} MB; "
                    f"the server's {option('blob_mb')} is {limits.blob_mb:g}"
                )
    weight_bytes = sum(layer.weight_bytes for layer in network.layers)
    memory_bytes = weight_bytes + sum(layer.output_bytes + _columns_bytes(layer) for layer in network.layers)
    return Usage(len(network.layers), weight_bytes, memory_bytes)


def _bytes(shape: Shape) -> int:
    return math.prod(shape) * _FLOAT_BYTES


def _columns_bytes(layer: Layer) -> int:
    """At most what Caffe unrolls a convolution's input into: an element per multiply-add of one output channel."""
    if not layer.type.endswith("onvolution"):
        return 0
    group: int = layer.param.convolution_param.group
    return layer.operations * group // layer.weight_shapes[0][0] * _FLOAT_BYTES


def _check_limits(usage: Usage, limits: Limits) -> None:
    for name, value in (
        ("layers", usage.layers),
        ("weights_mb", usage.weight_bytes / 1e6),
        ("memory_mb", usage.memory_bytes / 1e6),
    ):
        if value > getattr(limits, name):
            raise InputError(
                f"the session's nets would have {value:.0f} {name.replace('_', ' ')}; "
                f"the server's {option(name)} is {getattr(limits, name):g}"
            )


def _check_stages(net: PartialNet, network: Network) -> dict[int, str]:
    """The layers of each stage, as text. The stages must cover the net, and each must make the blobs it hands on."""
    if network.input != net.input:
        raise InputError(f"the net's input is {network.input!r}, not {net.input!r}")
    position = {layer.name: layer.index for layer in network.layers}
    begin, layers = 0, {}
    for stage in net.stages:
        end = position.get(stage.last_layer, -1)
        if end < begin:
            raise InputError(f"stage {stage.index} cannot end with layer {stage.last_layer!r}")
        made = {top for layer in network.layers[begin : end + 1] for top in layer.tops}
        if not stage.outputs or not made.issuperset(stage.outputs):
            raise InputError(f"stage {stage.index} does not make its outputs")
        first = network.layers[min(max(begin, 1), end)]  # not the Input layer, which every net starts with
        layers[stage.index] = f"layers {first.name!r} to {stage.last_layer!r}"
        begin = end + 1
    if begin != len(network.layers):
        raise InputError(f"layer {network.layers[begin].name!r} is in no stage")
    return layers


def _check_weights(header: PartitionHeader, networks: list[Network]) -> None:
    """Every blob of every layer must be announced once, in its size."""
    wanted: dict[tuple[str, int], int] = {}
    for network in networks:
        for layer in network.layers:
            for blob, shape in enumerate(layer.weight_shapes):
                if (layer.name, blob) in wanted:
                    raise InputError(f"two layers are named {layer.name!r}")
                wanted[layer.name, blob] = _bytes(shape)
    for span in header.blobs:
        size = wanted.pop((span.layer, span.blob), None)
        if size is None:
            raise InputError(f"blob {span.blob} of layer {span.layer!r} is sent twice, or the layer has none")
        if size != span.size:
            raise InputError(f"blob {span.blob} of layer {span.layer!r} has {span.size} bytes, the layer takes {size}")
    for layer_name, blob in wanted:
        raise InputError(f"blob {blob} of layer {layer_name!r} is not sent")
