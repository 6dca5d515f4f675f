"""What is checked of a stranger's partition before Caffe sees it: Caffe answers a bad net by aborting the process.

Shapes, names and layer types are `Network`'s part. Here are the limits of a session, how the header's stages lie in
the nets, and that the weights to come are those that the layers take.
"""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import dataclass, replace
from functools import cached_property

from google.protobuf import text_format

from ionn.errors import InputError
from ionn.layers import Shape
from ionn.limits import Limits, option
from ionn.network import Layer, Network
from ionn.partition import PartialNet
from ionn.proto import caffe_pb2
from ionn.slicing import output_channels, set_output_channels
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


class CheckedNet:
    """A net that is safe to build and takes `usage`. `layers` names the layers of each stage, for messages. Of a slice,
    `whole` is the net of its whole stage."""

    def __init__(self, net: PartialNet, network: Network, usage: Usage, whole: CheckedNet | None = None) -> None:
        # Only what was read has been checked: the text that Caffe gets is written from that.
        self.net = replace(net, prototxt=text_format.MessageToString(network.param))
        self.network = network
        self.usage = usage
        self.whole = whole

    @property
    def stage(self) -> int:
        """The first of its stages, of a slice the only one."""
        return self.net.stages[0].index

    @cached_property
    def layers(self) -> dict[int, str]:
        """Raises InputError if the stages do not fit the net."""
        return _check_stages(self.net, self.network)


def check_partition(
    header: PartitionHeader, limits: Limits, used: Usage, begun: Container[int] = ()
) -> list[CheckedNet]:
    """Check a partition's nets and weights against Caffe's rules and what the session has left (`used` is in use).

    The whole of a slice counts too, unless its stage has `begun` to arrive. Raises InputError, naming the layer, the
    stage or the limit.
    """
    if not header.nets:
        raise InputError(f"partition {header.partition} has no nets")
    checked: list[CheckedNet] = []
    for net in header.nets:
        network = Network.from_text(net.prototxt, f"partition {header.partition}")
        whole = None if net.channels is None else _whole(net, network, limits)
        usage = _usage(network, limits)
        # A slice's weights are counted with the whole, where they go.
        usage = usage if whole is None else replace(usage, weight_bytes=0)
        checked.append(CheckedNet(net, network, usage, whole))
        used += usage if whole is None or whole.stage in begun else usage + whole.usage
    _check_limits(used, limits)
    seen: set[int] = set()
    for each in checked:
        if not seen.isdisjoint(each.layers):
            raise InputError(f"stage {min(seen & each.layers.keys())} is in two nets")
        seen.update(each.layers)
    _check_weights(header, [each.network for each in checked])
    return checked


def _whole(net: PartialNet, network: Network, limits: Limits) -> CheckedNet:
    """The net of the stage that `net` is a slice of."""
    assert net.channels is not None
    begin, end, of = net.channels
    stage, layers = net.stages[0], network.layers[1:]
    if output_channels(layers) != end - begin or stage.outputs != layers[0].tops:
        raise InputError(f"stage {stage.index}: channels {begin} to {end} are not what its net makes")
    param = caffe_pb2.NetParameter()
    param.CopyFrom(network.param)
    set_output_channels(param.layer[1], of)
    whole = Network.from_text(text_format.MessageToString(param), network.name)
    return CheckedNet(replace(net, channels=None), whole, _usage(whole, limits))


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
