"""`ionn calibrate`: time layers of many shapes on this machine, and fit its cost model to them.

A server does this once, when it is installed (Neurosurgeon's prediction functions; paper, section 2.1). Its clients may
bring any network, so the layers that are timed are those of small random networks (`design`), whose shapes span what
CNNs have. Networks that exist take no part in the fit; they can be measured beside, to see how well it predicts them.

The networks run layer by layer, one after the other, and then all of them again. So a layer finds what it finds in a
real network: its input was just written, and its weights, last read a whole pass ago, have left the caches.

What is timed is the CPU time of the one thread that computes, and of several passes the lower quartile counts: both
leave out what others on this machine took meanwhile. On an idle machine it is the time that elapses.

By this model a server loads layers in no time. Building a layer's net does take time (0.1 ms, and 0.5 ms per MB of
weights; bench/calibration.py measures it), but that happens when a partition's header arrives, while its weights are
under way. They are copied as they come, faster than 1 Gbit/s, and after the last byte 0.1 ms is left to do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ionn import engine, harness, live
from ionn.caffemodel import Floats, read_weights
from ionn.costs import CostModel
from ionn.engine import StageNet
from ionn.errors import InputError
from ionn.fitting import FitQuality, fit, fit_quality
from ionn.network import Network

MODELS = ("alexnet", "inception", "resnet", "googlenet", "mobilenet")
BLOCKS = 160
PASSES = 10

# A slow machine makes fewer passes rather than take longer.
_BUDGET_S = 40.0
_PASSES_MIN = 3
_QUANTILE = 0.25

# What blocks begin with, in turn: the kernel sizes and numbers of groups to choose from of a convolution, where 0 groups
# are as many as channels. "stem" is a convolution of a picture, "head" an inner product.
_KINDS: dict[str, tuple[Sequence[int], Sequence[int]]] = {
    "1x1": ((1,), (1,)),
    "3x3": ((3,), (1,)),
    "depthwise": ((3, 3, 5), (0,)),
    "reduce": ((1,), (1,)),
    "large": ((5, 7), (1,)),
    "head": ((), ()),
    "expand": ((1,), (1,)),
    "grouped": ((1, 3, 5), (2, 4, 8, 32)),
    "square": ((3,), (1,)),
    "stem": ((3, 5, 7, 11), (1,)),
}
# The layer of a block that writes the input of the one after it. It is no sample: what it reads itself is cold.
_WARMING = 1


@dataclass(frozen=True)
class Calibration:
    """A machine's cost model, and how well it predicts the networks that were measured beside."""

    model: CostModel
    quality: FitQuality


def calibrate(
    models: Sequence[str] = MODELS,
    progress: Callable[[], None] = lambda: None,
    blocks: int = BLOCKS,
    passes: int = PASSES,
) -> Calibration:
    """Fit this machine's cost model to `blocks` random networks, and compare it with measurements of `models` (names,
    or paths of .prototxt files with their weights beside them). Half a minute where nothing else runs.

    `progress` is called after each pass, of which there are at most `passes` + 1. Raises InputError for a model that
    cannot be read.
    """
    networks = [Network.load(model) for model in models]
    weights = [read_weights(harness.weights_path(m, None), n) for m, n in zip(models, networks, strict=True)]
    inputs = [live.query_inputs(network, seed=0)[0] for network in networks]
    samples = design(blocks)
    nets = [_load(network, random_weights(network), _noise(network.input_shape)) for network in samples]
    nets += map(_load, networks, weights, inputs)
    times = _time(nets, passes, progress)
    measured = [
        (layer, float(ms))
        for network, layer_ms in zip(samples, times, strict=False)
        for layer, ms in zip(network.layers, layer_ms, strict=True)
        if layer.index != _WARMING
    ]
    description = live.environment()
    model = fit(measured, f"calibration of {description['cpu']}", machine=description)
    return Calibration(model, fit_quality(model, list(zip(networks, times[blocks:], strict=True))))


def _load(network: Network, weights: dict[str, Sequence[Floats]], data: Floats) -> StageNet:
    net = engine.load_network(network, weights)
    net.put(net.first, data)
    return net


def _time(nets: Sequence[StageNet], passes: int, progress: Callable[[], None]) -> list[NDArray[np.float64]]:
    """The time of every net's layers, in ms; one pass more than counted, because the first maps the memory."""
    end_s = time.monotonic() + _BUDGET_S
    times: list[list[NDArray[np.float64]]] = [[] for _ in nets]
    for number in range(passes + 1):
        if number > _PASSES_MIN and time.monotonic() > end_s:
            break
        for net, of_net in zip(nets, times, strict=True):
            of_net.append(engine.time_pass(net, time.thread_time))
        progress()
    return [np.quantile(of_net[1:], _QUANTILE, axis=0) for of_net in times]


def random_weights(network: Network) -> dict[str, Sequence[Floats]]:
    """Weights with which activations stay around zero and of size one, so that computing takes its usual time."""
    weights = {}
    for layer in network.layers:
        if layer.type in ("Convolution", "InnerProduct"):
            depth = np.prod(layer.weight_shapes[0][1:])
            weights[layer.name] = [_noise(shape) / np.float32(np.sqrt(depth)) for shape in layer.weight_shapes]
        elif layer.weight_shapes:
            # Mean, variance and factor of a BatchNorm; factor and bias of a Scale, which undoes the shift.
            weights[layer.name] = [np.ones(shape, np.float32) for shape in layer.weight_shapes]
    return weights


def _noise(shape: Sequence[int]) -> Floats:
    return np.resize(_NOISE, tuple(shape))


_NOISE = np.random.default_rng(0).standard_normal(1 << 18, np.float32)


# --- The design: small random networks ------------------------------------------------------------------------------


def design(blocks: int) -> list[Network]:
    """The networks whose layers are timed: always the same ones, `blocks` of them, of all kinds in turn.

    Most are a convolution, what commonly follows it (BatchNorm and Scale, or a bias; ReLU), and pooling, normalisation
    or a join. Every eighth begins with a wide image of three channels, every eighth is an inner product and what
    follows that. Sizes are spread evenly over orders of magnitude; wide blobs have few channels, narrow ones many.
    """
    rng = np.random.default_rng(0)
    heads = -(-blocks // 8)
    networks = []
    for block in range(blocks):
        turn, kind = divmod(block, 8)
        if kind == 7:
            networks.append(_head(rng, turn, heads))
        else:
            networks.append(_body(rng, block))
    return networks
