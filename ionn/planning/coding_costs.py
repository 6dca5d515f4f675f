"""The costs of coding, and where coding is faster.

A blob is coded by its sender, crosses the link in fewer bytes, and is decoded by its receiver; these steps follow one
another, as the receiver needs the whole blob. A blob is coded where this takes less time than sending it raw. The
speeds of coding are in the costs of the devices, and the wire bytes follow from the blob's ratio. If one of these is
not known, the blob is sent raw.

Weights are coded once, before any upload, and the server decodes them while more of them arrive. So they take either
their time on the link or the time of decoding, whichever is longer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from ionn.costs.model_ratios import output_ratios, weight_ratios
from ionn.errors import InputError
from ionn.planning.grid import time_on_grid
from ionn.schema import Natural, Real

if TYPE_CHECKING:
    from ionn.costs.models import Costs
    from ionn.model.network import Network

UP, DOWN = "up", "down"


class Transfer(NamedTuple):
    """The costs of sending one blob from one side to the other: coding, the link, decoding. A raw blob takes the link
    only."""

    encode_ms: float
    link_ms: float
    decode_ms: float
    raw_bytes: int
    wire_bytes: int

    @property
    def total_ms(self) -> float:
        return self.encode_ms + self.link_ms + self.decode_ms

    def part(self, share: float) -> Transfer:
        """The transfer of a share of the blob."""
        return Transfer(
            time_on_grid(share * self.encode_ms),
            time_on_grid(share * self.link_ms),
            time_on_grid(share * self.decode_ms),
            round(share * self.raw_bytes),
            round(share * self.wire_bytes),
        )


@dataclass(frozen=True)
class CodedTransfer:
    """A transfer in which the blob at a boundary of the execution graph is coded; its direction is "up" or "down"."""

    boundary: Natural
    direction: Annotated[str, msgspec.Meta(pattern="^(up|down)$")]
    encode_ms: Real
    link_ms: Real
    decode_ms: Real
    wire_bytes: Natural

    @property
    def total_ms(self) -> float:
        return self.encode_ms + self.link_ms + self.decode_ms


@dataclass(frozen=True)
class CodedWeights:
    """The costs of a stage's weights if they are coded: `link_ms` on the link, and meanwhile `decode_ms` at the
    server."""

    stage: Natural
    link_ms: Real
    decode_ms: Real
    wire_bytes: Natural

    @property
    def total_ms(self) -> float:
        return max(self.link_ms, self.decode_ms)

    def part(self, share: float) -> CodedWeights:
        """The costs of a share of the weights."""
        return CodedWeights(
            self.stage,
            time_on_grid(share * self.link_ms),
            time_on_grid(share * self.decode_ms),
            round(share * self.wire_bytes),
        )


def coded_transfers(
    network: Network,
    client: Costs,
    server: Costs,
    boundary_bytes: Sequence[int],
    bytes_per_ms: float,
    delay_ms: float,
) -> Iterator[CodedTransfer]:
    """The transfers between stages that are faster if coded. All take `delay_ms` on top of the time of their bytes."""
    ratios = output_ratios(network, client, server)
    layers = [0, *(stage.last_layer for stage in network.stages)]
    for boundary, (layer, raw_bytes) in enumerate(zip(layers, boundary_bytes, strict=True)):
        for direction, sender, receiver in ((UP, client, server), (DOWN, server, client)):
            if sender.encode_ms_per_mb is None or receiver.decode_ms_per_mb is None or math.isnan(ratios[layer]):
                continue
            wire_bytes = math.ceil(raw_bytes * float(ratios[layer]))
            coded = CodedTransfer(
                boundary,
                direction,
                time_on_grid(sender.encode_ms_per_mb * raw_bytes / 1e6),
                time_on_grid(wire_bytes / bytes_per_ms) + delay_ms,
                time_on_grid(receiver.decode_ms_per_mb * raw_bytes / 1e6),
                wire_bytes,
            )
            if coded.total_ms < time_on_grid(raw_bytes / bytes_per_ms) + delay_ms:
                yield coded


def coded_weights(
    network: Network,
    server: Costs,
    bytes_per_ms: float,
    weight_ratio: float | None,
    coded_bytes: Sequence[int] | None,
) -> Iterator[CodedWeights]:
    """The stages whose weights arrive faster if coded. `coded_bytes` are the wire bytes of each stage's weights, or
    `weight_ratio` is the ratio of all weights; with neither, the measured ratios of a bundled model are used."""
    if server.decode_ms_per_mb is None:
        return
    if coded_bytes is None:
        ratios = weight_ratios(network) if weight_ratio is None else np.full(len(network.layers), weight_ratio)
        stages = network.stages
        coded_bytes = [_wire_bytes(network, stage.first_layer, stage.last_layer, ratios) for stage in stages]
    for stage, wire_bytes in zip(network.stages, coded_bytes, strict=True):
        coded = CodedWeights(
            stage.index,
            time_on_grid(wire_bytes / bytes_per_ms),
            time_on_grid(server.decode_ms_per_mb * stage.weight_bytes / 1e6),
            wire_bytes,
        )
        if coded.total_ms < time_on_grid(stage.weight_bytes / bytes_per_ms):
            yield coded


def _wire_bytes(network: Network, first: int, last: int, ratios: NDArray[np.float64]) -> int:
    """The wire bytes of the weights of some layers. Those whose ratio is not known count as raw."""
    return sum(
        math.ceil(layer.weight_bytes * (1.0 if math.isnan(ratio) else ratio))
        for layer, ratio in zip(network.layers[first : last + 1], ratios[first : last + 1].tolist(), strict=True)
    )


def check_coded(
    transfers: Sequence[CodedTransfer],
    weights: Sequence[CodedWeights],
    up_ms: NDArray[np.float64],
    down_ms: NDArray[np.float64],
    upload_ms: NDArray[np.float64],
    load_ms: NDArray[np.float64],
) -> None:
    """Raise InputError unless a graph's times agree with the coded transfers and weights in it, and none is there
    twice."""
    for transfer in transfers:
        times_ms = up_ms if transfer.direction == UP else down_ms
        if not (transfer.boundary < len(times_ms) and times_ms[transfer.boundary] == transfer.total_ms):
            raise InputError(f"execution graph: {transfer} is not what its {transfer.direction}_ms has")
    for stage in weights:
        if not (stage.stage < len(upload_ms) and upload_ms[stage.stage] == stage.total_ms + load_ms[stage.stage]):
            raise InputError(f"execution graph: {stage} is not what its upload_ms has")
    if len({(each.boundary, each.direction) for each in transfers}) < len(transfers):
        raise InputError("execution graph: a transfer is coded twice")
    if len({each.stage for each in weights}) < len(weights):
        raise InputError("execution graph: the weights of a stage are coded twice")
