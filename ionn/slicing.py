"""Parts of a stage: slices of its output channels, and what a stage costs while only some of them are at the server.

A stage can be cut if its first layer is an inner product or a convolution without groups, the only one with weights,
and in-place element-wise layers are all that follows. Each output channel then needs its own rows of the weights and
nothing of the other channels, so that slices concatenate to the stage's output, computed from the same numbers.

While some channels are at the server, a query may compute these there and the others at the client, at the same time
and from the same input. In the execution graph (paper, Fig. 1; `ionn.graph` has the node numbers) such a stage has four
edges, by where its input is (1: the client, 2: the server) and where its output is wanted (4: the client, 3: the
server):

    1 --> 4   The input goes up, and the server's channels come down. The client computes all the while.
    1 --> 3   The input goes up. The client's channels follow when they are computed and the uplink is free.
    2 --> 4   The input comes down. The server's channels follow when they are computed and the downlink is free.
    2 --> 3   The input comes down, and the client's channels go up. The server computes all the while.

An edge ends when all channels are where they are wanted. Each side starts when it has the input; a direction of the
link carries one transfer at a time, the input first. `Split.end_ms` is that in code. Once all channels are uploaded,
the stage runs at the server like any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ionn.errors import InputError

if TYPE_CHECKING:
    from ionn.network import Layer, Network, Stage

# For products of up to this many multiply-adds, OpenBLAS has kernels that do not pack, on some processors. They round
# differently, so a slice is kept larger: its channels are then bit for bit those of the whole stage.
SMALL_PRODUCT = 100**3
# Slices begin at multiples of this, a multiple of the channels that OpenBLAS's kernels for x86 compute at once (12 or
# 16): what is left over is computed by other code, which may round differently.
TILE = 48
# Inner products of larger batches are not cut: of eight rows and more, OpenBLAS's kernels for Haswell and Zen compute
# the last channels of a block in another order, and where a block ends depends on how many channels there are.
MOST_ROWS = 7
# What a slice takes beyond its share of the upload: the message that announces it, and a layer more to be loaded at the
# server. 0.6 to 1 ms were measured live (a partition more for the same bytes), 0.7 to 1.3 ms is the constant part of
# the load times of the paper's server.
SLICE_MS = 2.0

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
    return piece.stage if isinstance(piece, Slice) else piece


def channels_of(pieces: Iterable[Piece]) -> dict[int, int]:
    """How many channels of each stage that is cut are in these pieces."""
    channels: dict[int, int] = {}
    for piece in pieces:
        if isinstance(piece, Slice):
            channels[piece.stage] = channels.get(piece.stage, 0) + piece.end - piece.begin
    return channels


@dataclass(frozen=True)
class Cut:
    """How a stage can be cut. Raises InputError for numbers that cannot be.

    `channels` is how many it has, `least` how many a slice must have, a multiple of TILE. `client_fixed_ms` and
    `server_fixed_ms` are parts of the stage's times that a side needs in full for any number of channels, such as the
    convolution's unrolling of its input. `slice_ms` is what a slice takes to upload beyond its share.
    """

    stage: int
    channels: int
    least: int
    client_fixed_ms: float
    server_fixed_ms: float
    slice_ms: float

    def __post_init__(self) -> None:
        if self.least < TILE or self.least % TILE or self.channels < 2 * self.least:
            raise InputError(f"{self}: not a cut: needs slices of whole tiles of {TILE} channels, and room for two")
        for name in ("client_fixed_ms", "server_fixed_ms", "slice_ms"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise InputError(f"{self}: not a cut: {name} is negative or not finite")

    @property
    def most_slices(self) -> int:
        return self.channels // self.least

    def ends(self, slices: int) -> list[int]:
        """Where each of `slices` slices of about equal size ends; at most `most_slices`."""
        tiles = [self.channels * number // (slices * TILE) for number in range(1, slices)]
        return [*(tile * TILE for tile in tiles), self.channels]


@dataclass(frozen=True)
class Split:
    """A stage of which some channels are at the server. Times in ms: each side's for its channels, the transfers of the
    input, of the client's channels up and of the server's channels down."""

    client_ms: float
    server_ms: float
    input_up_ms: float
    input_down_ms: float
    output_up_ms: float
    output_down_ms: float

    def end_ms(
        self,
        from_server: bool,
        to_server: bool,
        start_ms: float = 0.0,
        send_up: Callable[[float, float], float] = lambda at_ms, ms: at_ms + ms,
    ) -> float:
        """When the output is complete at its place, if the input is there (`from_server` or not) at `start_ms`.

        `send_up(at_ms, ms)` is the end of a transfer that takes `ms` of the uplink alone and may begin at `at_ms`.
        """
        here_ms = there_ms = uplink_free_ms = downlink_free_ms = start_ms
        if from_server:
            here_ms = downlink_free_ms = start_ms + self.input_down_ms
        else:
            there_ms = uplink_free_ms = send_up(start_ms, self.input_up_ms)
        here_ms += self.client_ms
        there_ms += self.server_ms
        if to_server:
            return max(there_ms, send_up(max(here_ms, uplink_free_ms), self.output_up_ms))
        return max(here_ms, max(there_ms, downlink_free_ms) + self.output_down_ms)


def find_cuts(network: Network, client_fixed_ms: Sequence[float], server_fixed_ms: Sequence[float]) -> tuple[Cut, ...]:
    """The cuts of a network's stages. The arguments are parts of each stage's times, see `Cut`."""
    sizes = {stage.index: size for stage in network.stages if (size := _channels(network, stage))}
    return tuple(
        Cut(stage, channels, least, client_fixed_ms[stage], server_fixed_ms[stage], SLICE_MS)
        for stage, (channels, least) in sizes.items()
    )


def output_channels(layers: Sequence[Layer]) -> int | None:
    """How many output channels the layers of a stage make; None if it cannot be cut."""
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


def _channels(network: Network, stage: Stage) -> tuple[int, int] | None:
    """How many output channels a stage has and a slice of it must have; None if it cannot be cut."""
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
