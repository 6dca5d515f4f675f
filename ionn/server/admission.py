"""The checks of a stranger's partition before Caffe sees it, since Caffe aborts the process for a bad net.

`Network` checks shapes, names and layer types. This module checks the limits of a session, where the header's stages
lie in the nets, whether stages fit each other, and whether the announced weights are those that the layers take.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import NamedTuple

from google.protobuf import text_format

from ionn.errors import InputError, PartitionError
from ionn.model.layers import Shape, shape_text
from ionn.model.network import OUTPUTS_MAX, Layer, Network
from ionn.model.partial_net import PartialNet
from ionn.model.proto import LRNParameter, NetParameter
from ionn.model.slices import output_channels, set_output_channels
from ionn.protocol.messages import PartitionHeader
from ionn.server.limits import Limits, option

_FLOAT_BYTES = 4
# The name in messages of a net that is read, and how many nets are remembered.
_NAME = "partition"
_READ_MAX = 4


@dataclass(frozen=True)
class Usage:
    """How much nets use of a session's limits."""

    layers: int = 0
    weight_bytes: int = 0
    memory_bytes: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.layers + other.layers,
            self.weight_bytes + other.weight_bytes,
            self.memory_bytes + other.memory_bytes,
        )


class Boundary(NamedTuple):
    """The shape of a stage's input, and those of its outputs."""

    input: Shape
    outputs: tuple[Shape, ...]


class Read(NamedTuple):
    """A net that was read, and its text for Caffe. The text is written from the net, since only the net is checked."""

    network: Network
    prototxt: str


class CheckedNet:
    """A net that is safe to build. `usage` is what it takes of the limits, `layers` the names of the layers of each of
    its stages, for messages. For a slice, `whole` is the net of its whole stage."""

    def __init__(self, net: PartialNet, read: Read, usage: Usage, whole: CheckedNet | None = None) -> None:
        self.net = replace(net, prototxt=read.prototxt)
        self.network = read.network
        self.usage = usage
        self.whole = whole

    @property
    def stage(self) -> int:
        """The first of its stages; a slice's only one."""
        return self.net.stages[0].index

    @cached_property
    def layers(self) -> dict[int, str]:
        """Raises PartitionError if the stages do not fit the net."""
        return _check_stages(self.net, self.network)

    @property
    def boundaries(self) -> dict[int, Boundary]:
        """Return the boundary of each of its stages; for a slice, that of its whole stage."""
        if self.whole is not None:
            return self.whole.boundaries
        shapes = {
            blob: shape
            for layer in self.network.layers
            for blob, shape in zip(layer.tops, layer.top_shapes, strict=True)
        }
        boundaries, before = {}, shapes[self.net.input]
        for stage in self.net.stages:
            outputs = tuple(shapes[blob] for blob in stage.outputs)
            boundaries[stage.index] = Boundary(before, outputs)
            before = outputs[0]
        return boundaries


def check_partition(
    header: PartitionHeader,
    limits: Limits,
    used: Usage,
    known: Mapping[int, Boundary],
    begun: Mapping[int, CheckedNet] | None = None,
) -> list[CheckedNet]:
    """Check a partition's nets and weights against Caffe's rules, against the boundaries of the stages that the session
    has (`known`), and against the limits, of which `used` is in use already.

    The whole of a slice counts too, unless its stage has `begun` to arrive: these are the wholes of such stages. Raises
    PartitionError, naming the layer, the stage or the limit.
    """
    begun = begun or {}
    if not header.nets:
        raise PartitionError(f"partition {header.partition} has no nets")
    checked: list[CheckedNet] = []
    counted: set[int] = set()
    for net in header.nets:
        name = f"partition {header.partition}"
        read = _network_of(net.prototxt, name)
        known_whole = begun.get(net.stages[0].index)
        whole = None if net.channels is None else _whole(net, read.network, limits, name, known_whole)
        usage = _usage(read.network, limits)
        if whole is not None:
            # A slice's weights are counted with the whole, where they go.
            usage = replace(usage, weight_bytes=0)
            if whole.stage not in begun and whole.stage not in counted:
                counted.add(whole.stage)
                used += whole.usage
        checked.append(CheckedNet(net, read, usage, whole))
        used += usage
    _check_limits(used, limits)
    _check_overlaps(checked)
    _check_boundaries(checked, known)
    assign_blobs(header, checked)
    return checked


def _network_of(prototxt: str, name: str) -> Read:
    try:
        return _read(prototxt)
    except InputError as error:  # it is the client's fault, not that of this server's user
        raise PartitionError(name + str(error).removeprefix(_NAME)) from error


@lru_cache(_READ_MAX)
def _read(prototxt: str) -> Read:
    """Read a net. The last few are remembered, as slices of a stage with equally many channels have the same text."""
    network = Network.from_text(prototxt, _NAME)
    return Read(network, text_format.MessageToString(network.param))


def _check_overlaps(checked: list[CheckedNet]) -> None:
    """Check that each stage is in one net only, or in several as slices that do not overlap."""
    nets: dict[int, list[CheckedNet]] = {}
    for each in checked:
        for stage in each.layers:
            for other in nets.setdefault(stage, []):
                mine, its = each.net.channels, other.net.channels
                if mine is None or its is None or mine.overlaps(its):
                    raise PartitionError(f"stage {stage} is in two nets")
                assert each.whole is not None
                assert other.whole is not None
                if each.whole.net != other.whole.net:
                    raise PartitionError(f"stage {stage} is in two nets, which are not slices of the same stage")
            nets[stage].append(each)


def _check_boundaries(checked: list[CheckedNet], known: Mapping[int, Boundary]) -> None:
    """Check that a stage makes what the next one takes. If it did not, numpy would broadcast the blob, or raise."""
    boundaries = {**known}
    for each in checked:
        boundaries.update(each.boundaries)
    for stage in {stage for each in checked for stage in each.layers}:
        for before, after in ((stage - 1, stage), (stage, stage + 1)):
            if before not in boundaries or after not in boundaries:
                continue
            made, taken = boundaries[before].outputs, boundaries[after].input
            if made != (taken,):
                shapes = ", ".join(map(shape_text, made))
                raise PartitionError(f"stage {after} takes {shape_text(taken)}, but stage {before} makes {shapes}")


def _whole(net: PartialNet, network: Network, limits: Limits, name: str, begun: CheckedNet | None) -> CheckedNet:
    """The net of the stage of which `net` is a slice: `begun`, from an earlier slice, if that is the same."""
    assert net.channels is not None
    begin, end, of = net.channels
    stage, layers = net.stages[0], network.layers[1:]
    if output_channels(layers) != end - begin or stage.outputs != layers[0].tops:
        raise PartitionError(f"stage {stage.index}: channels {begin} to {end} are not what its net makes")
    param = NetParameter()
    param.CopyFrom(network.param)
    set_output_channels(param.layer[1], of)
    if begun is not None and (begun.network.param, begun.net.stages) == (param, net.stages):
        return begun
    whole = _network_of(text_format.MessageToString(param), name)
    return CheckedNet(replace(net, channels=None), whole, _usage(whole.network, limits))


def _usage(network: Network, limits: Limits) -> Usage:
    for layer in network.layers:
        for top, top_shape in zip(layer.tops, layer.top_shapes, strict=True):
            if _bytes(top_shape) > limits.blob_mb * 1e6:
                raise PartitionError(
                    f"layer {layer.name!r}: blob {top!r} has {_bytes(top_shape) / 1e6:.1f} MB; "
                    f"the server's {option('blob_mb')} is {limits.blob_mb:g}"
                )
    weight_bytes = sum(layer.weight_bytes for layer in network.layers)
    memory_bytes = weight_bytes + sum(layer.output_bytes + _scratch_bytes(layer) for layer in network.layers)
    return Usage(len(network.layers), weight_bytes, memory_bytes)


def _bytes(shape: Shape) -> int:
    return math.prod(shape) * _FLOAT_BYTES


def _scratch_bytes(layer: Layer) -> int:
    """Return the most bytes that Caffe takes beside a layer's blobs to compute it; 0 for types that need less than
    their blobs."""
    if layer.type.endswith("onvolution"):
        # Caffe unrolls the input: an element for each multiply-add of one output channel.
        group: int = layer.param.convolution_param.group
        return layer.operations * group // layer.weight_shapes[0][0] * _FLOAT_BYTES
    if layer.type == "LRN" and layer.param.lrn_param.norm_region == LRNParameter.ACROSS_CHANNELS:
        # An image with a margin of half the window's size before its first channel, and behind its last.
        _, channels, height, width = layer.bottom_shapes[0]
        return _bytes((channels + layer.param.lrn_param.local_size - 1, height, width))
    return 0


def _check_limits(usage: Usage, limits: Limits) -> None:
    for name, value in (
        ("layers", usage.layers),
        ("weights_mb", usage.weight_bytes / 1e6),
        ("memory_mb", usage.memory_bytes / 1e6),
    ):
        if value > getattr(limits, name):
            raise PartitionError(
                f"the session's nets would have {value:.0f} {name.replace('_', ' ')}; "
                f"the server's {option(name)} is {getattr(limits, name):g}"
            )


def _check_stages(net: PartialNet, network: Network) -> dict[int, str]:
    """The layers of each stage, as text. Raises PartitionError unless the stages cover the net, and each makes its
    outputs."""
    if network.input != net.input:
        raise PartitionError(f"the net's input is {network.input!r}, not {net.input!r}")
    begin, layers = 0, {}
    for stage in net.stages:
        end = stage.last_layer
        if not begin <= end < len(network.layers):
            raise PartitionError(f"stage {stage.index} cannot end with layer {end} of {len(network.layers)}")
        made = {top for layer in network.layers[begin : end + 1] for top in layer.tops}
        if not stage.outputs or not made.issuperset(stage.outputs):
            raise PartitionError(f"stage {stage.index} does not make its outputs")
        if len(stage.outputs) > OUTPUTS_MAX:
            raise PartitionError(
                f"stage {stage.index} has {len(stage.outputs)} outputs; at most {OUTPUTS_MAX} are sent"
            )
        first = network.layers[min(max(begin, 1), end)]  # not the Input layer, with which every net begins
        layers[stage.index] = f"layers {first.name!r} to {network.layers[end].name!r}"
        begin = end + 1
    if begin != len(network.layers):
        raise PartitionError(f"layer {network.layers[begin].name!r} is in no stage")
    return layers


def assign_blobs(header: PartitionHeader, checked: list[CheckedNet]) -> list[tuple[int, str, int]]:
    """Return where each of the header's blobs goes: the index of its net, its layer and its number there.

    Raises PartitionError unless every blob of every layer is announced once, in its size. Slices of one stage have
    layers of the same name: their blobs come in the order of the nets.
    """
    wanted: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for index, each in enumerate(checked):
        for layer in each.network.layers:
            for blob, shape in enumerate(layer.weight_shapes):
                wanted.setdefault((layer.name, blob), []).append((index, _bytes(shape)))
    places = []
    for span in header.blobs:
        takers = wanted.get((span.layer, span.blob))
        if not takers:
            raise PartitionError(f"blob {span.blob} of layer {span.layer!r} is sent twice, or the layer has none")
        index, size = takers.pop(0)
        if size != span.size:
            raise PartitionError(
                f"blob {span.blob} of layer {span.layer!r} has {span.size} bytes, the layer takes {size}"
            )
        places.append((index, span.layer, span.blob))
    for (layer_name, blob), takers in wanted.items():
        if takers:
            raise PartitionError(f"blob {blob} of layer {layer_name!r} is not sent")
    return places
