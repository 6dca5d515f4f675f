"""`ionn calibrate`: time layers of many shapes on this machine, and fit its cost model to them.

A server does this once, when it is installed (paper, section 2.1, after Neurosurgeon). Its clients may bring any
network, so the timed layers are those of small random networks (`design`), whose shapes span those of CNNs. Real
networks take no part in the fit, but can be measured too, to see how well the model predicts them.

The networks run layer by layer, one network after another, in several passes. So the caches are as in a real network: a
layer's input was just written, and its weights, last read a whole pass ago, have left the caches. (The convolutions of
real networks, put into these small networks, take the same time there within 4 % in total.)

At the end, the machine's speed of coding is measured, on photographs and on noise after a ReLU
(`ionn.costs.profiling.time_coding`).

The measured time is the CPU time of the one thread that computes, and the lower quartile of several passes: so the time
of other programs is left out. On an idle machine, CPU time is the elapsed time.

By this model, a server loads layers in no time. Building a layer's net does take time (0.1 ms, and 0.5 ms per MB of
weights: bench/calibration.py), but the server builds it when a partition's header arrives, while the weights are under
way. It copies them as they arrive, faster than 1 Gbit/s, and next to nothing is left to do after the last byte
(bench/install_latency.py).
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ionn.costs.features import features
from ionn.costs.fitting import FitQuality, fit, fit_quality
from ionn.costs.models import CostModel
from ionn.costs.profiling import time_coding
from ionn.model import engine, inputs
from ionn.model.caffemodel import Floats
from ionn.model.engine import StageNet
from ionn.model.network import Network
from ionn.model.synthetic import load_net
from ionn.paper import MODELS

BLOCKS = 200
PASSES = 10

# When so many seconds are over, no further pass begins, except for the first _PASSES_MIN.
_BUDGET_S = 45.0
_PASSES_MIN = 3
_QUANTILE = 0.25

# The seed of the design, and of the numbers in its blobs. With this one, no layer equals one of `MODELS`.
_SEED = 38

# The kinds of the small networks ("blocks"), in turn: a kind of convolution, or a head, that is an inner product.
_TURN = ("1x1", "3x3", "depthwise", "1x1", "large", "head", "1x1", "grouped", "3x3", "stem")
_KERNELS = {
    "1x1": (1,),
    "3x3": (3,),
    "depthwise": (3, 3, 3, 5),
    "large": (5, 7),
    "grouped": (1, 3, 5),
    "stem": (3, 5, 7, 11),
}
_POOLINGS = (
    "kernel_size: 2 stride: 2",
    "kernel_size: 3 stride: 2",
    "kernel_size: 3 stride: 1 pad: 1",
    "global_pooling: true",
)
# The range of the elements in one row of a blob, over all channels: wide blobs of CNNs have few channels, narrow ones
# have many.
_ROW_ELEMENTS = (800, 15000)
# The limits of a convolution: a smaller one is hardly more than the call, a larger one would take much time or memory.
_OPERATIONS = (3e5, 5e8)
_BYTES_MAX = {"input_bytes": 6e6, "output_bytes": 6e6, "column_bytes": 20e6, "weight_bytes": 24e6}
# The range of an inner product's number of weights.
_PRODUCT_WEIGHTS = (1e5, 4e7)
# The lengths of inner products are multiples of these in turn. They are channels times pixels: often whole pages.
_LENGTH_STEPS = (1024, 32)

# Random numbers repeat after so many: drawing hundreds of millions would take seconds.
_NOISE_PERIOD = 1 << 14

# The layer of a block that writes the input of the next one. It is no sample, as its own input is not in the caches.
_WARMING = 1


@dataclass(frozen=True)
class Calibration:
    """A machine's cost model, and how well it predicts the real networks that were measured for comparison."""

    model: CostModel
    quality: FitQuality


def calibrate(
    models: Sequence[str] = tuple(MODELS),
    progress: Callable[[], None] = lambda: None,
    blocks: int = BLOCKS,
    passes: int = PASSES,
) -> Calibration:
    """Fit this machine's cost model to `blocks` random networks, and compare it with measurements of `models` (names,
    or paths of .prototxt files with their weights beside them).

    Takes 20 s on an idle server core, and 2 GB of memory beside the models. `progress` is called after each pass, of
    which there are at most `passes` + 1. Raises InputError for a model or weights that cannot be read.
    """
    end_s = time.monotonic() + _BUDGET_S
    networks = [Network.load(model) for model in models]
    nets = [
        _with_input(load_net(model, None, network), inputs.query_inputs(network, seed=0, count=1)[0])
        for model, network in zip(models, networks, strict=True)
    ]
    samples = design(blocks)
    nets += [
        _with_input(engine.load_network(network, _random_weights(network)), _noise(network.input_shape))
        for network in samples
    ]
    times = _time(nets, passes, end_s, progress)
    measured = list(zip(networks, times, strict=False))
    description = engine.environment()
    model = fit(
        [
            (layer, float(ms))
            for network, layer_ms in zip(samples, times[len(networks) :], strict=True)
            for layer, ms in zip(network.layers, layer_ms, strict=True)
            if layer.index != _WARMING
        ],
        f"calibration of {description['cpu']}",
        machine=description,
    )
    speed = time_coding()
    model = dataclasses.replace(model, encode_ms_per_mb=speed.encode_ms_per_mb, decode_ms_per_mb=speed.decode_ms_per_mb)
    return Calibration(model, fit_quality(model, measured))


def _with_input(net: StageNet, data: Floats) -> StageNet:
    net.put(net.first, data)
    return net


def _time(
    nets: Sequence[StageNet], passes: int, end_s: float, progress: Callable[[], None]
) -> list[NDArray[np.float64]]:
    """The times of every net's layers, in ms. The first pass does not count, as memory is mapped in it."""
    times: list[list[NDArray[np.float64]]] = [[] for _ in nets]
    for number in range(passes + 1):
        if number > _PASSES_MIN and time.monotonic() > end_s:
            break
        for net, of_net in zip(nets, times, strict=True):
            of_net.append(engine.time_pass(net, time.thread_time))
        progress()
    return [np.quantile(of_net[1:], _QUANTILE, axis=0) for of_net in times]


def _random_weights(network: Network) -> dict[str, Sequence[Floats]]:
    """Weights that keep activations around zero with a deviation of one, so that computing takes its usual time."""
    weights: dict[str, Sequence[Floats]] = {}
    for layer in network.layers:
        if layer.type in ("Convolution", "InnerProduct"):
            depth = np.prod(layer.weight_shapes[0][1:])
            weights[layer.name] = [_noise(shape) / np.float32(np.sqrt(depth)) for shape in layer.weight_shapes]
        elif layer.weight_shapes:
            # Mean, variance and factor of a BatchNorm; factor and bias of a Scale, which undoes the shift.
            weights[layer.name] = [np.ones(shape, np.float32) for shape in layer.weight_shapes]
    return weights


def _noise(shape: Sequence[int]) -> Floats:
    return np.resize(np.random.default_rng(_SEED).standard_normal(_NOISE_PERIOD, np.float32), tuple(shape))


# --- The design: small random networks ------------------------------------------------------------------------------


def design(blocks: int) -> list[Network]:
    """The networks whose layers are timed, `blocks` of them and always the same ones.

    Nine of ten are a convolution with what commonly follows it (BatchNorm and Scale, or a bias; a ReLU; then poolings,
    or LRN, Eltwise and Concat). The others are an inner product and what follows that. Sizes are spread evenly over
    orders of magnitude.
    """
    rng = random.Random(_SEED)
    turns = -(-blocks // len(_TURN))
    networks = []
    for block in range(blocks):
        turn, place = divmod(block, len(_TURN))
        kind = _TURN[place]
        networks.append(_head(rng, turn, turns) if kind == "head" else _body(rng, kind))
    return networks


def _body(rng: random.Random, kind: str) -> Network:
    """A network of a kind of convolution and what follows it."""
    least, most = _OPERATIONS
    while True:
        text = _convolution(rng, kind) + (_poolings(rng) if rng.random() < 0.5 else _norm_and_joins())
        network = Network.from_text(text, kind)
        sizes = features(network.layers[_WARMING + 1])
        if least <= sizes["operations"] <= most and all(sizes[name] <= top for name, top in _BYTES_MAX.items()):
            return network


def _convolution(rng: random.Random, kind: str) -> str:
    kernel = rng.choice(_KERNELS[kind])
    groups = rng.choice((2, 4, 8, 16, 32)) if kind == "grouped" else 1
    step = max(8, groups)
    if kind == "stem":
        size, stride, channels = rng.randint(96, 240), rng.randint(2, 4), 3
    else:
        size, stride = round(_log_uniform(rng, 6, 113)), rng.choice((1, 1, 1, 2))
        channels = _multiple(step, _log_uniform(rng, *_ROW_ELEMENTS) / size)
    filters = _multiple(step, _log_uniform(rng, *_ROW_ELEMENTS) / size * stride)
    if kind == "depthwise":
        groups = filters = channels
    normalised = rng.random() < 0.5
    layers = [
        _input(channels, size, size),
        _layer(
            "Convolution", "data", "body",
            f"convolution_param {{ num_output: {filters} kernel_size: {kernel} stride: {stride} pad: {kernel // 2} "
            f"group: {groups} bias_term: {str(not normalised).lower()} }}",
        ),
    ]  # fmt: skip
    if normalised:
        layers.append(_layer("BatchNorm", "body", "body", "batch_norm_param { use_global_stats: true }"))
        layers.append(_layer("Scale", "body", "body", "scale_param { bias_term: true }"))
    return "".join(layers) + _layer("ReLU", "body", "body")


def _poolings(rng: random.Random) -> str:
    windows = {method: rng.choice(_POOLINGS) for method in ("MAX", "AVE")}
    return "".join(
        _layer("Pooling", "body", method, f"pooling_param {{ pool: {method} {window} }}")
        for method, window in windows.items()
    )


def _norm_and_joins() -> str:
    layers = (
        _layer("LRN", "body", "norm", "lrn_param { local_size: 5 }"),
        _layer("Eltwise", "body norm", "sum"),
        _layer("Concat", "body norm sum", "join"),
    )
    return "".join(layers)


def _head(rng: random.Random, turn: int, turns: int) -> Network:
    """A network of an inner product and what follows it. Later turns have larger ones."""
    least, most = _PRODUCT_WEIGHTS
    weights = least * (most / least) ** ((turn + rng.random()) / turns)
    step = _LENGTH_STEPS[turn % len(_LENGTH_STEPS)]
    length = _multiple(step, (weights * _log_uniform(rng, 0.1, 10)) ** 0.5)
    layers = (
        _input(length),
        _layer("InnerProduct", "data", "head", f"inner_product_param {{ num_output: {round(weights / length)} }}"),
        _layer("ReLU", "head", "head"),
        _layer("Dropout", "head", "head"),
        _layer("Softmax", "head", "probabilities"),
    )
    return Network.from_text("".join(layers), "head")


def _input(*shape: int) -> str:
    """The network's input, and the layer that writes it just before the next layer reads it (`_WARMING`)."""
    dims = "".join(f"dim: {size} " for size in (1, *shape))
    return _layer("Input", "", "data", f"input_param {{ shape {{ {dims}}} }}") + _layer("ReLU", "data", "data")


def _layer(type_: str, bottoms: str, top: str, parameters: str = "") -> str:
    given = "".join(f'bottom: "{bottom}" ' for bottom in bottoms.split())
    return f'layer {{ name: "{type_} {top}" type: "{type_}" {given}top: "{top}" {parameters} }}\n'


def _multiple(step: int, number: float) -> int:
    """The multiple of `step` that is closest to a number, but not 0."""
    return step * max(1, round(number / step))


def _log_uniform(rng: random.Random, low: float, high: float) -> float:
    return float(low * (high / low) ** rng.random())
