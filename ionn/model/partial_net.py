"""Extracting partitions: stages of a network as prototxt and caffemodel, which a server can build by itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from google.protobuf import text_format

from ionn.model.caffemodel import CodedFrame, CodedFrames, Floats, Serialised, serialise_blobs
from ionn.model.network import Layer, Network
from ionn.model.proto import NetParameter
from ionn.model.slices import Piece, Slice, runs_of, set_output_channels, stage_of
from ionn.model.weight_pieces import WeightPiece
from ionn.schema import Natural


@dataclass(frozen=True)
class NetStage:
    """The place of a stage in a net: its index in the chain, the index of its last layer in the net as Caffe lists it,
    and its output blobs. (Layers are found by index, because Caffe's layers may share a name, or have none.)"""

    index: Natural
    last_layer: Natural
    outputs: tuple[str, ...]


class Channels(NamedTuple):
    """Output channels `begin`..`end` (`end` not included) of a stage that has `of` channels."""

    begin: int
    end: int
    of: int

    def overlaps(self, other: Channels) -> bool:
        return self.begin < other.end and other.begin < self.end


@dataclass(frozen=True)
class PartialNet:
    """A run of stages as a net of its own. Stock Caffe builds it from `prototxt`; its input blob is `input`.

    With `channels` it is a slice of its only stage: the same layers, with fewer output channels.

    Raises ValueError if there are no stages, if they are not adjacent, and for channels that are no slice of a single
    stage.
    """

    prototxt: str
    input: str
    stages: tuple[NetStage, ...]
    channels: Channels | None = None

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("a net without stages")
        if any(stage.index != self.stages[0].index + at for at, stage in enumerate(self.stages)):
            raise ValueError("a net's stages are not adjacent")
        if self.channels is None:
            return
        begin, end, of = self.channels
        if not 0 <= begin < end <= of < 2**31 or (begin, end) == (0, of):
            raise ValueError(f"{list(self.channels)} is not a slice")
        if len(self.stages) != 1:
            raise ValueError("a slice of several stages")


class AddressedSpans(NamedTuple):
    """A weight piece in a caffemodel: the bytes of its `spans`, each (offset, size), and their SHA-256 in
    hexadecimal."""

    sha256: str
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class ExtractedPartition:
    """A partition ready for upload: a partial net for each run of adjacent stages, and one caffemodel with the weights
    of all of them. `addressed` are the weight pieces in it that have a digest, sorted by their first bytes."""

    nets: tuple[PartialNet, ...]
    caffemodel: Serialised
    addressed: tuple[AddressedSpans, ...] = ()

    @property
    def weight_bytes(self) -> int:
        """The bytes of all floats. The caffemodel has a few more bytes between them."""
        return sum(span.size for span in self.caffemodel.blobs)


def net_stages(network: Network, first: int, last: int) -> tuple[NetStage, ...]:
    """The places of stages `first`..`last`, both included, in the net of these stages."""
    stages = network.stages[first : last + 1]
    # All but the first stage have an Input layer put before them.
    offset = stages[0].first_layer - (first > 0)
    return tuple(NetStage(stage.index, stage.last_layer - offset, stage.outputs) for stage in stages)


def extract_net(network: Network, first: int, last: int) -> PartialNet:
    """The net of stages `first`..`last`: an Input layer in the shape of the blob before them, then the layers as the
    user wrote them. (Caffe inserts the Split layers again.)"""
    net = _net(network, first, last)
    return PartialNet(text_format.MessageToString(net), network.stages[first].input, net_stages(network, first, last))


def extract_slice(network: Network, piece: Slice) -> PartialNet:
    """The net of a slice."""
    stage = network.stages[piece.stage]
    net = _net(network, piece.stage, piece.stage)
    channels = Channels(piece.begin, piece.end, stage.output_shapes[0][1])
    set_output_channels(net.layer[1], piece.end - piece.begin)
    cuts = net_stages(network, piece.stage, piece.stage)
    return PartialNet(text_format.MessageToString(net), stage.input, cuts, channels)


def _net(network: Network, first: int, last: int) -> Any:
    stages = network.stages[first : last + 1]
    begin, end = stages[0].first_layer, stages[-1].last_layer
    net = NetParameter(name=f"{network.name}[{stages[0].name}..{stages[-1].name}]")
    if first > 0:
        # It takes the name of the layer that makes the blob, so that what Caffe inserts after it has the same names as
        # in the whole net, where they clash with no other.
        boundary = net.layer.add(name=network.layers[begin - 1].name, type="Input", top=[stages[0].input])
        boundary.input_param.shape.add(dim=stages[0].input_shape)
    net.layer.extend(layer.param for layer in network.layers[begin : end + 1] if not layer.inserted)
    return net


def extract(
    network: Network,
    pieces: Sequence[Piece],
    weights: Mapping[str, Sequence[Floats]],
    frames: CodedFrames | None = None,
    weight_pieces: Iterable[WeightPiece] = (),
) -> ExtractedPartition:
    """Extract the partition of the given stages (by index) and slices. Its caffemodel is in the order of its nets.
    `frames` are the coded frames of the network's weights, and `weight_pieces` the weight pieces with a digest; the
    partition gets those that lie wholly in it."""
    frames = frames or {}
    slices = [piece for piece in pieces if isinstance(piece, Slice) and not _is_whole(network, piece)]
    runs = runs_of(stage_of(piece) for piece in pieces if piece not in slices)
    nets = (
        *(extract_net(network, first, last) for first, last in runs),
        *(extract_slice(network, piece) for piece in slices),
    )
    # Each with the slice whose rows of its blobs are taken, not copied; None for all.
    layers: list[tuple[Layer, Slice | None]] = [
        *((layer, None) for first, last in runs for layer in _weighted(network, first, last)),
        *((layer, piece) for piece in slices for layer in _weighted(network, piece.stage, piece.stage)),
    ]
    entries: list[tuple[Layer, Sequence[Floats], Sequence[Sequence[CodedFrame]]]] = []
    for layer, piece in layers:
        blobs, coded = weights[layer.name], frames.get(layer.name, ())
        if piece is not None:
            coded = _slice_frames(coded, blobs, piece)
            blobs = [blob[piece.begin : piece.end] for blob in blobs]
        entries.append((layer, blobs, coded))
    caffemodel = serialise_blobs(network.name, entries)
    rows = [piece for _, piece in layers]
    return ExtractedPartition(nets, caffemodel, _addressed(caffemodel, rows, weights, weight_pieces))


def _addressed(
    caffemodel: Serialised,
    rows: Sequence[Slice | None],
    weights: Mapping[str, Sequence[Floats]],
    weight_pieces: Iterable[WeightPiece],
) -> tuple[AddressedSpans, ...]:
    """The places of weight pieces in a caffemodel whose layers have all their blobs, whole or a slice's rows."""
    # By layer and blob: the bytes (begin, end) of it that are in the caffemodel, and the place of the first of them.
    places: dict[tuple[str, int], list[tuple[int, int, int]]] = defaultdict(list)
    entries = iter(rows)
    for span in caffemodel.blobs:
        if span.blob == 0:
            piece = next(entries)
        begin = 0 if piece is None else piece.begin * weights[span.layer][span.blob][:1].nbytes
        places[span.layer, span.blob].append((begin, begin + span.size, span.offset))
    found = []
    for each in weight_pieces:
        spans = [
            (offset + wanted.begin - begin, wanted.size)
            for wanted in each.layout.ranges
            for begin, end, offset in places.get((wanted.layer, wanted.blob), ())
            if begin <= wanted.begin and wanted.end <= end
        ]
        if len(spans) == len(each.layout.ranges):
            found.append(AddressedSpans(each.sha256, tuple(spans)))
    return tuple(sorted(found, key=lambda piece: piece.spans[0]))


def _slice_frames(
    frames: Sequence[Sequence[CodedFrame]], blobs: Sequence[Floats], piece: Slice
) -> list[list[CodedFrame]]:
    """The frames of each blob that lie wholly in a slice, with their places in the slice's blob."""
    found = []
    for of_blob, blob in zip(frames, blobs, strict=False):
        begin, end = (channel * blob[:1].nbytes for channel in (piece.begin, piece.end))
        inside = [frame for frame in of_blob if begin <= frame.offset and frame.end <= end]
        found.append([replace(frame, offset=frame.offset - begin) for frame in inside])
    return found


def _is_whole(network: Network, piece: Slice) -> bool:
    return piece.end - piece.begin == network.stages[piece.stage].output_shapes[0][1]


def _weighted(network: Network, first: int, last: int) -> list[Layer]:
    """The layers of stages `first`..`last` that have weights."""
    begin, end = network.stages[first].first_layer, network.stages[last].last_layer
    return [layer for layer in network.layers[begin : end + 1] if layer.weight_shapes]
