"""Slices: some output channels of a stage, uploaded and computed by themselves (docs/slicing.md).

A stage can be cut into slices if its first layer is an inner product or a convolution without groups, and only in-place
element-wise layers without weights follow. Each output channel then depends on its own rows of the weights and on no
other channel, so the outputs of the slices concatenate to the output of the stage.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ionn.model.network import Layer, Network, Stage

# On some processors, OpenBLAS has kernels that do not pack their operands, for products of up to this many
# multiply-adds. They round differently. Slices are larger, so that their channels equal the stage's bit for bit.
SMALL_PRODUCT = 100**3
# Slices begin at multiples of this, which is a multiple of the channels that OpenBLAS's kernels for x86 compute at once
# (12 or 16): other code computes the channels that are left over, and may round differently. The kernels for arm64
# round alike wherever a slice begins (docs/arm64.md).
TILE = 48
# Inner products of larger batches are not cut: with eight rows and more, OpenBLAS's kernels for Haswell and Zen sum the
# last channels of a block in another order, and where a block ends depends on the number of channels.
MOST_ROWS = 7

# Layer types without weights that compute each element of their output from the same element of their input.
ELEMENT_WISE = {
    "BNLL", "Dropout", "ELU", "Exp", "HardSigmoid", "HardSwish", "Log", "Power", "ReLU", "ReLU6", "Sigmoid", "TanH",
    "Threshold",
}  # fmt: skip


class Slice(NamedTuple):
    """Output channels `begin`..`end` (`end` not included) of the stage with index `stage`; never all its channels."""

    stage: int
    begin: int
    end: int


# What a plan uploads: a whole stage, by its index, or a slice of it.
Piece = int | Slice


def stage_of(piece: Piece) -> int:
    """Return the index of the stage that a piece is, or is a slice of."""
    return piece.stage if isinstance(piece, Slice) else piece


def channels_of(pieces: Iterable[Piece]) -> dict[int, int]:
    """Return, for each stage of which there are slices among the pieces, how many of its first channels they cover."""
    channels: dict[int, int] = {}
    for piece in pieces:
        if isinstance(piece, Slice):
            channels[piece.stage] = max(channels.get(piece.stage, 0), piece.end)
    return channels


def runs_of(stages: Iterable[int]) -> list[tuple[int, int]]:
    """Group stages into maximal runs of adjacent ones: (first, last), both included, in the order of the chain."""
    runs: list[tuple[int, int]] = []
    for stage in sorted(stages):
        if runs and runs[-1][1] == stage - 1:
            runs[-1] = (runs[-1][0], stage)
        else:
            runs.append((stage, stage))
    return runs


def output_channels(layers: Sequence[Layer]) -> int | None:
    """Return how many output channels the layers of a stage make; None if it cannot be cut."""
    if not layers:
        return None
    layer, *rest = layers
    in_place = all(other.bottoms == other.tops == layer.tops and other.type in ELEMENT_WISE for other in rest)
    if len(layer.tops) != 1 or not in_place:
        return None
    p = _weighted_param(layer.param)
    if layer.type == "InnerProduct":
        cuttable = p.axis == 1 and not p.transpose
    else:
        cuttable = layer.type == "Convolution" and p.axis == 1 and p.group == 1
    return int(p.num_output) if cuttable else None


def set_output_channels(layer: Any, channels: int) -> None:
    """Set the number of output channels of a LayerParameter: the first one of a stage that can be cut."""
    _weighted_param(layer).num_output = channels


def _weighted_param(layer: Any) -> Any:
    return layer.inner_product_param if layer.type == "InnerProduct" else layer.convolution_param


def slice_sizes(network: Network, stage: Stage) -> tuple[int, int] | None:
    """Return how many output channels a stage has, and how many a slice of it has at least; None if it cannot be
    cut."""
    layers = network.layers[stage.first_layer : stage.last_layer + 1]
    channels = None if stage.pinned else output_channels(layers)
    if channels is None:
        return None
    layer = layers[0]
    batch = layer.bottom_shapes[0][0]
    if layer.type == "InnerProduct" and batch > MOST_ROWS:
        return None
    products = batch if layer.type == "Convolution" else 1  # Caffe's, one per image
    least = TILE * (SMALL_PRODUCT * products * channels // (layer.operations * TILE) + 1)
    return (channels, least) if channels >= 2 * least else None
