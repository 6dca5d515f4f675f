"""Slices: some output channels of a stage, uploaded and computed by themselves.

A stage can be cut if its first layer is an inner product or a convolution without groups, the only one with weights,
and in-place element-wise layers are all that follows. Each output channel then needs its own rows of the weights and
nothing of the other channels, so that slices concatenate to the stage's output, computed from the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ionn.model.network import Layer, Network, Stage

# For products of up to this many multiply-adds, OpenBLAS has kernels that do not pack, on some processors. They round
# differently, so a slice is kept larger: its channels are then bit for bit those of the whole stage.
SMALL_PRODUCT = 100**3
# Slices begin at multiples of this, a multiple of the channels that OpenBLAS's kernels for x86 compute at once (12 or
# 16): what is left over is computed by other code, which may round differently.
# Those for arm64 round alike wherever a slice begins (docs/arm64.md).
TILE = 48
# Inner products of larger batches are not cut: of eight rows and more, OpenBLAS's kernels for Haswell and Zen compute
# the last channels of a block in another order, and where a block ends depends on how many channels there are.
MOST_ROWS = 7

# What computes each element of its output from the same element of its input, without weights.
ELEMENT_WISE = {
    "BNLL", "Dropout", "ELU", "Exp", "HardSigmoid", "HardSwish", "Log", "Power", "ReLU", "ReLU6", "Sigmoid", "TanH",
    "Threshold",
}  # fmt: skip


class Slice(NamedTuple):
    """Output channels `begin`..`end` (not included) of a stage, but not all of them."""

    stage: int
    begin: int
    end: int


# What a plan uploads: a stage as a whole, or a slice of it.
Piece = int | Slice


def stage_of(piece: Piece) -> int:
    """Return the stage that a piece is, or is a slice of."""
    return piece.stage if isinstance(piece, Slice) else piece


def channels_of(pieces: Iterable[Piece]) -> dict[int, int]:
    """Return how many channels of each stage that is cut are in these pieces, from its first one on."""
    channels: dict[int, int] = {}
    for piece in pieces:
        if isinstance(piece, Slice):
            channels[piece.stage] = max(channels.get(piece.stage, 0), piece.end)
    return channels


def runs_of(stages: Iterable[int]) -> list[tuple[int, int]]:
    """The maximal runs of adjacent stages, as (first, last), both included, in chain order."""
    runs: list[tuple[int, int]] = []
    for stage in sorted(stages):
        if runs and runs[-1][1] == stage - 1:
            runs[-1] = (runs[-1][0], stage)
        else:
            runs.append((stage, stage))
    return runs


def output_channels(layers: Sequence[Layer]) -> int | None:
    """Return how many output channels the layers of a stage make; None if it cannot be cut."""
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
    """Have a LayerParameter, the first of a stage that can be cut, make so many channels."""
    _weighted_param(layer).num_output = channels


def _weighted_param(layer: Any) -> Any:
    return layer.inner_product_param if layer.type == "InnerProduct" else layer.convolution_param


def slice_sizes(network: Network, stage: Stage) -> tuple[int, int] | None:
    """Return how many output channels a stage has and a slice of it must have; None if it cannot be cut."""
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
