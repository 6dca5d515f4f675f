"""How far two results of the same computation are apart, and how near they have to be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ionn.model.caffemodel import Floats
from ionn.schema import Natural, Word

if TYPE_CHECKING:
    from ionn.model.network import Layer, Network

# How far a network's outputs may be from those of another end whose numerics differ, relative to the largest value
# (`difference`). Kernels for other processors add the same products in another order. For the models that come along
# that makes at most 6e-5 of what comes before the last layer (bench/kernels.py, docs/two-machines.md). A softmax there
# makes of what a value is off, in absolute numbers, a part of a probability: 2e-4, as logits are ten and more. Five
# times as much leaves room for other models; and for the same reason, what is wrong by little shows there as more.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Numerics:
    """What decides the last bits of what an end computes: two ends with the same have the same bits.

    `blas` is Caffe's BLAS with its version, `kernels` names those of its kernels that are in use, which follow from the
    processor; `libm` is the library that computes exponentials and powers.
    """

    architecture: Word
    blas: Word
    kernels: Word
    threads: Natural
    caffe: Word
    libm: Word

    def __str__(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.blas} {self.kernels} ({threads}, Caffe {self.caffe}, {self.libm}, {self.architecture})"


@dataclass(frozen=True)
class OutputCheck:
    """How what was computed at both ends is compared with what the client computes alone, and why so.

    `client` is the client's numerics, and `servers` those of the servers that it met, without repetitions and in order;
    None is of one that did not say. `unsteady` is the type of the network's `unsteady_layer`, "" where it has none.
    `tolerance` is 0 where all bits have to be the same.
    """

    client: Numerics
    servers: tuple[Numerics | None, ...] = ()
    unsteady: Word = ""

    @property
    def tolerance(self) -> float:
        return TOLERANCE if self.unsteady or any(each != self.client for each in self.servers) else 0.0

    @property
    def reason(self) -> str:
        others = [each for each in self.servers if each != self.client]
        if others:
            said = ", later with ".join("what it does not say" if each is None else str(each) for each in self.servers)
            return f"the server computes with {said}, this machine with {self.client}"
        if self.unsteady:
            return f"layers of type {self.unsteady} have other last bits from process to process"
        if self.servers:
            return f"both compute with {self.client}"
        return "no server took part"

    def __str__(self) -> str:
        """How and why, as it follows "outputs compared"."""
        how = f"within {self.tolerance:g} of the largest value" if self.tolerance else "bit for bit"
        return f"{how}: {self.reason}"


def bit_equal(got: Floats, wanted: Floats) -> bool:
    """Tell whether all bits are the same: the signs of zeros and the payloads of NaNs too."""
    return np.array_equal(got.view(np.uint32), wanted.view(np.uint32))


@np.errstate(all="ignore")  # a server may give anything for numbers
def difference(got: Floats, wanted: Floats) -> float:
    """The largest difference of a value, relative to the largest finite value that is wanted.

    Infinities and NaNs differ by nothing from their like and by infinity from all else, and so does everything from
    zeros where nothing but zeros is wanted.
    """
    values, wanted_values = got.astype(np.float64), wanted.astype(np.float64)
    other = ~((values == wanted_values) | (np.isnan(values) & np.isnan(wanted_values)))
    if not other.any():
        return 0.0
    largest = float(abs(wanted_values[np.isfinite(wanted_values)]).max(initial=0.0))
    worst = float(abs(values - wanted_values)[other].max())
    return worst / largest if largest and math.isfinite(worst) else math.inf


def largest_difference(got: Sequence[Floats], wanted: Sequence[Floats]) -> float:
    """The largest `difference` of several results, each from its own."""
    return max((difference(*pair) for pair in zip(got, wanted, strict=True)), default=0.0)


def unsteady_layer(network: Network) -> Layer | None:
    """The first layer whose last bits vary from process to process on one machine, if there is one: OpenBLAS sums
    absolute values in an order that depends on where in memory they lie."""
    for layer in network.layers:
        if layer.type == "Normalize" or "ASUM" in str(layer.param.reduction_param):
            return layer
    return None
