"""Weight pieces: the units in which a network's weights are coded, named by their digests, and stored.

The weights of each stage are divided into pieces of at most PIECE_BYTES, along output channels at multiples of TILE. In
a stage that can be cut into slices, each tile of TILE channels is a piece, so that a slice is a set of pieces. Small
layers of a stage share a piece. No piece has weights of two stages, so a stage or slice need not be sent if the server
has its pieces.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ionn.model.network import Layer, Network
from ionn.model.slices import TILE, slice_sizes

PIECE_BYTES = 4_000_000


class BlobRange(NamedTuple):
    """Bytes `begin`..`end` (not included) of a layer's blob."""

    layer: str
    blob: int
    begin: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.begin


class Layout(NamedTuple):
    """The place of a weight piece in a network: `ranges` of the blobs of its stage. `channels` are the output channels,
    begin and end (not included), that it belongs to; None if the stage cannot be cut, or if it belongs to all."""

    stage: int
    channels: tuple[int, int] | None
    ranges: tuple[BlobRange, ...]

    @property
    def raw_bytes(self) -> int:
        return sum(each.size for each in self.ranges)


class WeightPiece(NamedTuple):
    """A weight piece of weights that are loaded. `sha256` is its digest, that of its raw bytes, in hexadecimal."""

    layout: Layout
    sha256: str


def weight_pieces(network: Network) -> Iterator[Layout]:
    """How the weights of a network are divided, in the order of the layers."""
    for stage in network.stages:
        layers = [layer for layer in network.layers[stage.first_layer : stage.last_layer + 1] if layer.weight_shapes]
        if slice_sizes(network, stage):
            for channels, ranges in _tiles(layers[0], TILE):
                yield Layout(stage.index, channels, ranges)
        else:
            for ranges in _packed(layers):
                yield Layout(stage.index, None, ranges)


def _packed(layers: Sequence[Layer]) -> Iterator[tuple[BlobRange, ...]]:
    """The pieces of the layers of a stage that cannot be cut; small layers share a piece."""
    packed: list[BlobRange] = []
    for layer in layers:
        large = layer.weight_bytes > PIECE_BYTES
        if packed and (large or sum(each.size for each in packed) + layer.weight_bytes > PIECE_BYTES):
            yield tuple(packed)
            packed = []
        if large:
            for _, ranges in _tiles(layer):
                yield ranges
        else:
            packed += _whole_blobs(layer)
    if packed:
        yield tuple(packed)


def _whole_blobs(layer: Layer) -> list[BlobRange]:
    return [BlobRange(layer.name, blob, 0, 4 * math.prod(shape)) for blob, shape in enumerate(layer.weight_shapes)]


def _tiles(layer: Layer, step: int | None = None) -> Iterator[tuple[tuple[int, int] | None, tuple[BlobRange, ...]]]:
    """The pieces of a layer, with their output channels: `step` channels each, by default as many tiles as fit. Blobs
    that are not divided by channels are in pieces of their own."""
    count = layer.weight_shapes[0][0]  # a layer that is cut, or is so large, has channels
    row_bytes = {
        blob: 4 * math.prod(shape[1:]) for blob, shape in enumerate(layer.weight_shapes) if shape[:1] == (count,)
    }
    if step is None:
        step = TILE * max(1, PIECE_BYTES // (TILE * sum(row_bytes.values())))
    for begin in range(0, count, step):
        end = min(begin + step, count)
        ranges = [BlobRange(layer.name, blob, begin * row, end * row) for blob, row in row_bytes.items()]
        for piece in _bounded(ranges):
            yield (begin, end), piece
    if others := [each for each in _whole_blobs(layer) if each.blob not in row_bytes]:
        for piece in _bounded(others):
            yield None, piece


def _bounded(ranges: Sequence[BlobRange]) -> Iterator[tuple[BlobRange, ...]]:
    """These ranges as one piece, or, if that is too large, each in pieces of its own."""
    if sum(each.size for each in ranges) <= PIECE_BYTES:
        yield tuple(ranges)
        return
    for each in ranges:
        for begin in range(each.begin, each.end, PIECE_BYTES):
            yield (each._replace(begin=begin, end=min(begin + PIECE_BYTES, each.end)),)
