"""Comparing two results of the same computation: how much they differ, and how much they may differ."""

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

# How much outputs may differ if the numerics of both ends differ, relative to the largest value (`difference`). Kernels
# for other processors add the same products in another order. In the bundled models, this changes the values before the
# last layer by at most 6e-5 (bench/kernels.py, docs/two-machines.md). A softmax then turns the absolute error of a
# logit into a relative error of a probability: 2e-4, as logits are ten and more. Five times as much leaves room for
# other models. For the same reason, a small mistake before a softmax is larger after it.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Numerics:
    """What decides the last bits of the results of one end. Two ends with equal numerics compute the same bits.

    `blas` is Caffe's BLAS with its version, `kernels` the name of the kernels that it uses, which depend on the
    processor, and `threads` the number of its threads; `caffe` is Caffe's version, and `libm` the library that computes
    exponentials and powers.
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
    """How the outputs of both ends together are compared with those of the client alone, and why.

    `client` is the client's numerics; `servers` are those of the servers that it used, in order and without
    repetitions, None for a server that did not tell. `unsteady` is the type of the network's `unsteady_layer`, "" if it
    has none. `tolerance` is the largest `difference` that is right; 0 if all bits must be equal.
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
        """How outputs are compared, and why, as the end of a sentence that begins with "outputs compared"."""
        how = f"within {self.tolerance:g} of the largest value" if self.tolerance else "bit for bit"
        return f"{how}: {self.reason}"


def bit_equal(got: Floats, wanted: Floats) -> bool:
    """Tell whether all bits are equal, those of zeros' signs and NaNs' payloads too."""
    return np.array_equal(got.view(np.uint32), wanted.view(np.uint32))


@np.errstate(all="ignore")  # a server may send any numbers
def difference(got: Floats, wanted: Floats) -> float:
    """The largest difference of any value, relative to the largest finite value in `wanted`.

    Equal infinities, and NaNs among themselves, differ by 0, and by infinity from everything else. If `wanted` has only
    zeros, any other value differs by infinity.
    """
    values, wanted_values = got.astype(np.float64), wanted.astype(np.float64)
    other = ~((values == wanted_values) | (np.isnan(values) & np.isnan(wanted_values)))
    if not other.any():
        return 0.0
    largest = float(abs(wanted_values[np.isfinite(wanted_values)]).max(initial=0.0))
    worst = float(abs(values - wanted_values)[other].max())
    return worst / largest if largest and math.isfinite(worst) else math.inf


def largest_difference(got: Sequence[Floats], wanted: Sequence[Floats]) -> float:
    """The largest `difference` of several results, each from the corresponding wanted one."""
    return max((difference(*pair) for pair in zip(got, wanted, strict=True)), default=0.0)


def unsteady_layer(network: Network) -> Layer | None:
    """The first layer whose last bits vary from process to process on one machine; None if there is none. OpenBLAS sums
    absolute values in an order that depends on their place in memory."""
    for layer in network.layers:
        if layer.type == "Normalize" or "ASUM" in str(layer.param.reduction_param):
            return layer
    return None
