"""The costs of a stage while only some of its channels are at the server (docs/slicing.md).

A query may then compute these channels at the server and the others at the client, at the same time and from the same
input. In the execution graph (paper, Fig. 1; `ionn.planning.graph` has the node numbers) such a stage has four more
edges, by where its input is (1: the client, 2: the server) and where its output is wanted (4: the client, 3: the
server):

    1 --> 4   The input goes up, and the server's channels come down. The client computes meanwhile.
    1 --> 3   The input goes up. The client's channels follow when they are computed and the uplink is free.
    2 --> 4   The input comes down. The server's channels follow when they are computed and the downlink is free.
    2 --> 3   The input comes down, and the client's channels go up. The server computes meanwhile.

An edge ends when all channels are where they are wanted. Each side starts when it has the input. A direction of the
link carries one transfer at a time, the input first. Each side codes and decodes in the thread that computes: it codes
what it sends before it continues, and decodes what it receives when that has arrived. `Split.end_ms` computes this.
Once all channels are uploaded, the stage runs at the server like any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ionn.errors import InputError
from ionn.model.slices import TILE, slice_sizes
from ionn.planning.coding_costs import Transfer

if TYPE_CHECKING:
    from ionn.model.network import Network

# The time of a slice beyond its share of the upload: for the message that announces it, and for one more net that the
# server builds (bench/slices.py). Live, one more partition for the same bytes took 0.6 to 1 ms; the constant part of
# the load times of the paper's server is 0.7 to 1.3 ms.
SLICE_MS = 2.0


@dataclass(frozen=True)
class SlicePlan:
    """How the stage with index `stage` can be cut into slices.

    - `channels`: the number of its output channels.
    - `least`: the least number of channels of a slice, a multiple of TILE.
    - `client_fixed_ms`, `server_fixed_ms`: the parts of the stage's times that a side needs for any number of channels,
      such as a convolution's unrolling of its input.
    - `slice_ms`: the time that a slice takes to upload beyond its share.

    Raises InputError for impossible numbers.
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

    def most_slices(self, begin: int = 0) -> int:
        """The largest number of slices into which the channels from `begin` on can be cut."""
        return (self.channels - begin) // self.least

    def ends(self, slices: int, begin: int = 0) -> list[int]:
        """Cut the channels from `begin` on into `slices` slices of about equal size, at most `most_slices`. Returns the
        end of each."""
        tiles = [(self.channels - begin) * number // (slices * TILE) for number in range(1, slices)]
        return [*(begin + tile * TILE for tile in tiles), self.channels]


# One direction of the link: a function from the time at which a transfer may begin, and its ms if it has the link for
# itself, to the times at which it has left the sender and has arrived.
Send = Callable[[float, float], tuple[float, float]]


def _alone(at_ms: float, link_ms: float) -> tuple[float, float]:
    return at_ms + link_ms, at_ms + link_ms


@dataclass(frozen=True)
class Split:
    """The costs of a stage of which some channels are at the server: each side's time for its own channels, and the
    transfers of the input, of the client's output channels up, and of the server's output channels down."""

    client_ms: float
    server_ms: float
    input_up: Transfer
    input_down: Transfer
    output_up: Transfer
    output_down: Transfer

    def end_ms(
        self,
        from_server: bool,
        to_server: bool,
        start_ms: float = 0.0,
        send_up: Send = _alone,
        send_down: Send = _alone,
    ) -> float:
        """Return the time at which the whole output is at the server (`to_server`) or at the client, if the input is at
        the server (`from_server`) or at the client at `start_ms`.

        `send_up` and `send_down` are the two directions of the link; by default nothing else is on it.
        """
        here_ms = there_ms = uplink_free_ms = downlink_free_ms = start_ms
        if from_server:
            there_ms += self.input_down.encode_ms
            downlink_free_ms, arrived_ms = send_down(there_ms, self.input_down.link_ms)
            here_ms = arrived_ms + self.input_down.decode_ms
        else:
            here_ms += self.input_up.encode_ms
            uplink_free_ms, arrived_ms = send_up(here_ms, self.input_up.link_ms)
            there_ms = arrived_ms + self.input_up.decode_ms
        here_ms += self.client_ms
        there_ms += self.server_ms
        if to_server:
            begin_ms = max(here_ms + self.output_up.encode_ms, uplink_free_ms)
            _, arrived_ms = send_up(begin_ms, self.output_up.link_ms)
            return max(there_ms, arrived_ms) + self.output_up.decode_ms
        begin_ms = max(there_ms + self.output_down.encode_ms, downlink_free_ms)
        _, arrived_ms = send_down(begin_ms, self.output_down.link_ms)
        return max(here_ms, arrived_ms) + self.output_down.decode_ms

    def transfers(self, from_server: bool, to_server: bool) -> tuple[Transfer, Transfer]:
        """The two transfers over the link: the input, and the output channels of the other side."""
        return (
            self.input_down if from_server else self.input_up,
            self.output_up if to_server else self.output_down,
        )


def slice_plans(
    network: Network, client_fixed_ms: Sequence[float], server_fixed_ms: Sequence[float]
) -> tuple[SlicePlan, ...]:
    """Return the slice plan of each stage that can be cut. The fixed times of `SlicePlan` are given for each stage."""
    sizes = {stage.index: size for stage in network.stages if (size := slice_sizes(network, stage))}
    return tuple(
        SlicePlan(stage, channels, least, client_fixed_ms[stage], server_fixed_ms[stage], SLICE_MS)
        for stage, (channels, least) in sizes.items()
    )
