"""Whole nets at random: every layer type that is allowed, wired in every way; with their weights and inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from google.protobuf import text_format

from ionn.errors import InputError
from ionn.model.layers import LAYER_TYPES, Shape, infer
from ionn.model.network import Network
from ionn.model.proto import LayerParameter, NetParameter
from tests.support.choices import Choices, chance, pick
from tests.support.forward import Weights
from tests.support.nets import layer

# --- Layers ----------------------------------------------------------------------------------------------------------

# Elements of a blob, and of a layer's weights: nets shall be small.
MOST_ELEMENTS, MOST_WEIGHTS = 6_000, 40_000


class Proposal(NamedTuple):
    """A layer on some blobs of a net, valid or not."""

    bottoms: list[str]
    tops: int = 1
    params: str = ""


@dataclass
class Draft:
    """A net so far. `shapes` of its blobs; `made_by` the layer that wrote each; `uses` of a blob's last version;
    `names` of layers, `parameters` that have a name and their shapes."""

    text: str = ""
    shapes: dict[str, Shape] = field(default_factory=dict)
    made_by: dict[str, str] = field(default_factory=dict)
    uses: dict[str, int] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    parameters: list[tuple[str, Shape]] = field(default_factory=list)
    types: list[str] = field(default_factory=list)
    weighted: set[str] = field(default_factory=set)

    def blob(self, c: Choices, fits: Callable[[Shape], bool] = lambda shape: True) -> str:
        """A blob, rather one that fits, that is new and that nothing uses."""
        fitting = [blob for blob, shape in self.shapes.items() if fits(shape)] or list(self.shapes)
        unused = [blob for blob in fitting if not self.uses[blob]]
        if unused and not chance(c, 25):
            return pick(c, unused[::-1][:3])
        return pick(c, fitting[::-1][:6])


Generator = Callable[[Choices, Draft], Proposal]


def _axes(*numbers: int) -> Callable[[Shape], bool]:
    return lambda shape: len(shape) in numbers


def _plain(*params: str, axes: Sequence[int] = range(33)) -> Generator:
    """One bottom with so many axes, one top, one of `params`."""
    return lambda c, draft: Proposal([draft.blob(c, _axes(*axes))], 1, pick(c, params or ("",)))


def _axis(c: Choices, shape: Shape) -> int:
    """An axis, often 1; from the end at times; rarely none of the blob's."""
    if chance(c, 3):
        return c.integer(-6, 5)
    n = max(len(shape), 1)
    axis: int = pick(c, [min(1, n - 1), *range(n)])
    return axis - n if chance(c, 20) else axis


def _windows(c: Choices, image: bool) -> str:
    params = []
    for name, values in (
        ("kernel_size", (1, 3, 2, 4)), ("stride", (1, 1, 2, 3)), ("pad", (0, 0, 1, 2)), ("dilation", (1, 1, 1, 2)),
    ):  # fmt: skip
        value = pick(c, values)
        if name == "kernel_size" or value != values[0]:
            if image and name != "dilation" and chance(c, 15):
                params += [
                    f"{name.removesuffix('_size')}_h: {value}",
                    f"{name.removesuffix('_size')}_w: {max(value - 1, 1)}",
                ]
            else:
                params.append(f"{name}: {value}")
    return " ".join(params)


def _convolution(c: Choices, draft: Draft) -> Proposal:
    bottom = draft.blob(c, lambda shape: len(shape) >= 3)
    shape = draft.shapes[bottom]
    channels = shape[1] if len(shape) > 1 else 1
    group = pick(c, [1, 1, 1, *(n for n in (2, 3, channels) if channels % n == 0)])
    outputs = group * pick(c, [1, 2, 3])
    more = pick(c, ["", "bias_term: false", "force_nd_im2col: true", "axis: 1", "axis: -3", "axis: 2"])
    number = 2 if chance(c, 10) else 1
    windows = "kernel_size: 1" if chance(c, 15) else _windows(c, len(shape) == 4)
    return Proposal(
        [bottom] * number, number, f"convolution_param {{ num_output: {outputs} group: {group} {windows} {more} }}"
    )


def _im2col(c: Choices, draft: Draft) -> Proposal:
    bottom = draft.blob(c, lambda shape: len(shape) >= 3)
    return Proposal([bottom], 1, f"convolution_param {{ {_windows(c, len(draft.shapes[bottom]) == 4)} }}")


def _pooling(c: Choices, draft: Draft) -> Proposal:
    bottom = draft.blob(c, _axes(4))
    method = pick(c, ["MAX", "AVE"])
    if chance(c, 15):
        return Proposal([bottom], 1, f"pooling_param {{ pool: {method} global_pooling: true }}")
    kernel, stride, pad = pick(c, (2, 3, 1, 5)), pick(c, (1, 2, 3)), pick(c, (0, 0, 1))
    ceil = pick(c, ["", "", "ceil_mode: false"])
    params = f"pooling_param {{ pool: {method} kernel_size: {kernel} stride: {stride} pad: {pad} {ceil} }}"
    return Proposal([bottom], 2 if method == "MAX" and chance(c, 25) else 1, params)


def _lrn(c: Choices, draft: Draft) -> Proposal:
    region = pick(c, ["", "norm_region: WITHIN_CHANNEL"])
    params = f"lrn_param {{ local_size: {pick(c, (5, 3, 1))} alpha: 0.1 beta: 0.75 {region} }}"
    return Proposal([draft.blob(c, _axes(4))], 1, params)


def _inner_product(c: Choices, draft: Draft) -> Proposal:
    bottom = draft.blob(c)
    axis = pick(c, [1, 1, _axis(c, draft.shapes[bottom])])
    more = pick(c, ["", "bias_term: false", "transpose: true"])
    return Proposal([bottom], 1, f"inner_product_param {{ num_output: {pick(c, (3, 5, 1, 8))} axis: {axis} {more} }}")


def _operand(kind: str) -> Generator:
    """Scale or Bias, by a weight or by a second bottom."""

    def generate(c: Choices, draft: Draft) -> Proposal:
        bottom = draft.blob(c)
        shape = draft.shapes[bottom]
        axis = _axis(c, shape)
        bias = pick(c, ["", "bias_term: true"]) if kind == "scale" else ""
        if chance(c, 30):
            start = axis % max(len(shape), 1)
            other = draft.blob(c, lambda other: other == shape[start : start + len(other)])
            return Proposal([bottom, other], 1, f"{kind}_param {{ axis: {axis} {bias} }}")
        number = pick(c, [1, -1, 0, 2])
        return Proposal([bottom], 1, f"{kind}_param {{ axis: {axis} num_axes: {number} {bias} }}")

    return generate


def _eltwise(c: Choices, draft: Draft) -> Proposal:
    bottom = draft.blob(c)
    bottoms = [bottom]
    for _ in range(c.integer(1, 2)):
        bottoms.append(draft.blob(c, lambda shape: shape == draft.shapes[bottom]))
    operation = pick(c, ["SUM", "PROD", "MAX"])
    coefficients = " ".join(f"coeff: {pick(c, ('1', '-0.7', '0.3'))}" for _ in bottoms) if chance(c, 30) else ""
    return Proposal(bottoms, 1, f"eltwise_param {{ operation: {operation} {coefficients} }}")


def _concat(c: Choices, draft: Draft) -> Proposal:
    bottom = draft.blob(c)
    shape = draft.shapes[bottom]
    axis = _axis(c, shape)

    def fits(other: Shape) -> bool:
        at = axis % max(len(shape), 1)
        return len(other) == len(shape) and (*other[:at], *other[at + 1 :]) == (*shape[:at], *shape[at + 1 :])

    others = [draft.blob(c, fits) for _ in range(c.integer(0, 2))]
    return Proposal([bottom, *others], 1, f"concat_param {{ axis: {axis} }}")


def _slice(c: Choices, draft: Draft) -> Proposal:
    bottom = draft.blob(c, lambda shape: max(shape, default=0) > 1)
    shape = draft.shapes[bottom]
    axis = _axis(c, shape)
    size = shape[axis] if -len(shape) <= axis < len(shape) else 1
    tops = pick(c, [2, 1, 3])
    if size % tops or chance(c, 30):
        points = sorted(c.integer(1, max(size - 1, 1)) for _ in range(tops - 1))
        return Proposal(
            [bottom], tops, f"slice_param {{ axis: {axis} {' '.join(f'slice_point: {p}' for p in points)} }}"
        )
    return Proposal([bottom], tops, f"slice_param {{ axis: {axis} }}")


def _split(c: Choices, draft: Draft) -> Proposal:
    return Proposal([draft.blob(c)], pick(c, [2, 1, 3]))


def _silence(c: Choices, draft: Draft) -> Proposal:
    return Proposal([draft.blob(c) for _ in range(c.integer(1, 2))], 0)


def _flatten(c: Choices, draft: Draft) -> Proposal:
    bottom = draft.blob(c)
    if chance(c, 60):
        return Proposal([bottom])
    axis = _axis(c, draft.shapes[bottom])
    return Proposal([bottom], 1, f"flatten_param {{ axis: {axis} end_axis: {pick(c, (-1, 2, 1, axis))} }}")


def _reshape(c: Choices, draft: Draft) -> Proposal:
    bottom = draft.blob(c)
    shape = draft.shapes[bottom]
    dims = pick(
        c, [[0, -1], [-1], [1, -1], [-1, 1], list(shape), list(shape)[::-1], [0, 0, -1, 1], [*shape, 1], [2, -1]]
    )
    more = pick(c, ["", "", "axis: 1", "axis: 1 num_axes: 1", "num_axes: 0"])
    if chance(c, 15) and math.prod(shape) == 1:
        dims = []
    return Proposal([bottom], 1, f"reshape_param {{ shape {{ {' '.join(f'dim: {dim}' for dim in dims)} }} {more} }}")


def _crop(c: Choices, draft: Draft) -> Proposal:
    bottom = draft.blob(c, lambda shape: len(shape) >= 2)
    shape = draft.shapes[bottom]
    axis = _axis(c, shape)

    def fits(other: Shape) -> bool:
        at = axis % max(len(shape), 1)
        return len(other) >= len(shape) and all(o <= s for o, s in zip(other[at:], shape[at:], strict=False))

    offset = pick(c, ["", "offset: 0", "offset: 1"])
    return Proposal([bottom, draft.blob(c, fits)], 1, f"crop_param {{ axis: {axis} {offset} }}")


def _tile(c: Choices, draft: Draft) -> Proposal:
    bottom = draft.blob(c)
    return Proposal([bottom], 1, f"tile_param {{ tiles: {pick(c, (2, 1, 3))} axis: {_axis(c, draft.shapes[bottom])} }}")


def _permute(c: Choices, draft: Draft) -> Proposal:
    bottom = draft.blob(c)
    axes = list(range(len(draft.shapes[bottom])))
    if axes and not chance(c, 35):
        at = c.integer(0, len(axes) - 1)
        axes = axes[at:] + axes[:at]
        if chance(c, 30):
            axes[0], axes[-1] = axes[-1], axes[0]
    return Proposal([bottom], 1, f"permute_param {{ {' '.join(f'order: {axis}' for axis in axes)} }}")


def _unsqueeze(c: Choices, draft: Draft) -> Proposal:
    bottom = draft.blob(c)
    return Proposal([bottom], 1, f"unsqueeze_param {{ dim: {pick(c, (0, -1, 1, len(draft.shapes[bottom])))} }}")


def _pad(c: Choices, draft: Draft) -> Proposal:
    pads = " ".join(f"pad_{side}: {pick(c, (0, 1, 2))}" for side in "udlr")
    return Proposal([draft.blob(c, _axes(4))], 1, f"pad_param {{ {pads} {pick(c, ('', 'pad_type: REFLECT'))} }}")


def _pixel_shuffle(c: Choices, draft: Draft) -> Proposal:
    bottom = draft.blob(c, lambda shape: len(shape) == 4 and shape[1] % 4 == 0)
    return Proposal([bottom], 1, f"pixelshuffle_param {{ upscale_factor: {pick(c, (2, 1))} }}")


def _resize(c: Choices, draft: Draft) -> Proposal:
    sizes = f"height: {pick(c, (3, 1, 5))} width: {pick(c, (4, 2, 7))}"
    bottom = draft.blob(c) if chance(c, 30) else draft.blob(c, _axes(4))
    return Proposal([bottom], 1, f"resize_param {{ {sizes} }}")


def _upsample(c: Choices, draft: Draft) -> Proposal:
    bottom = draft.blob(c, _axes(4, 3))
    axes = len(draft.shapes[bottom])
    return Proposal([bottom], 1, f"upsample_param {{ scale: {pick(c, (2, 1))} dims_num: {axes} }}")


def _reduction(c: Choices, draft: Draft) -> Proposal:
    bottom = draft.blob(c)
    axis = pick(c, [_axis(c, draft.shapes[bottom]), 0])
    operation = pick(c, ["SUM", "ASUM", "SUMSQ", "MEAN"])
    coefficient = pick(c, ["", "coeff: 0.3"])
    return Proposal([bottom], 1, f"reduction_param {{ axis: {axis} operation: {operation} {coefficient} }}")


def _argmax(c: Choices, draft: Draft) -> Proposal:
    bottom = draft.blob(c)
    axis = f"axis: {_axis(c, draft.shapes[bottom])}" if chance(c, 50) else ""
    more = pick(c, ["", "out_max_val: true"])
    return Proposal([bottom], 1, f"argmax_param {{ top_k: {pick(c, (1, 2))} {axis} {more} }}")


def _input(c: Choices, draft: Draft) -> Proposal:
    """A second one, which is refused."""
    return Proposal([], 1, "input_param { shape { dim: 1 dim: 3 } }")


GENERATORS: dict[str, Generator] = {
    "AbsVal": _plain(),
    "ArgMax": _argmax,
    "BNLL": _plain(),
    "BatchNorm": _plain("", "batch_norm_param { eps: 0.01 }", "batch_norm_param { use_global_stats: false }", ""),
    "BatchNormKyle": _plain("", "batch_norm_param { use_alpha_beta: true use_global_stats: true }"),
    "Bias": _operand("bias"),
    "Concat": _concat,
    "Convolution": _convolution,
    "Crop": _crop,
    "Deconvolution": _convolution,
    "Dropout": _plain("", "dropout_param { dropout_ratio: 0.3 }"),
    "ELU": _plain("", "elu_param { alpha: 0.3 }"),
    "Eltwise": _eltwise,
    "Exp": _plain("exp_param { scale: 0.1 }", "exp_param { base: 2 scale: 0.1 shift: 0.3 }", ""),
    "Flatten": _flatten,
    "HardSigmoid": _plain(),
    "HardSwish": _plain(),
    "Im2col": _im2col,
    "InnerProduct": _inner_product,
    "Input": _input,
    "LRN": _lrn,
    "Log": _plain("log_param { scale: 0.1 shift: 7 }", "log_param { base: 10 scale: 0.1 shift: 3 }", ""),
    "MVN": _plain("", "mvn_param { across_channels: true }", "mvn_param { normalize_variance: false }", axes=range(5)),
    "Normalize": _plain("", "norm_param { across_spatial: false channel_shared: false }", axes=range(2, 5)),
    "PReLU": _plain("", "prelu_param { channel_shared: true }", axes=range(2, 5)),
    "Pad": _pad,
    "Permute": _permute,
    "PixelShuffle": _pixel_shuffle,
    "Pooling": _pooling,
    "Power": _plain("power_param { scale: 0.7 shift: 0.1 }", "power_param { power: 2 scale: 0.3 }", ""),
    "ReLU": _plain("", "relu_param { negative_slope: 0.1 }"),
    "ReLU6": _plain(),
    "Reduction": _reduction,
    "Reshape": _reshape,
    "Resize": _resize,
    "SPP": _plain("spp_param { pyramid_height: 2 }", "spp_param { pyramid_height: 1 pool: AVE }", axes=(4,)),
    "Scale": _operand("scale"),
    "Sigmoid": _plain(),
    "Silence": _silence,
    "Slice": _slice,
    "Softmax": _plain("", "softmax_param { axis: -1 }", "softmax_param { axis: 0 }"),
    "Split": _split,
    "TanH": _plain(),
    "Threshold": _plain("", "threshold_param { threshold: 0.3 }"),
    "Tile": _tile,
    "Unsqueeze": _unsqueeze,
    "Upsample": _upsample,
}

# Layers that give their top the memory of their bottom are where answers went wrong, and chains of them.
_FREQUENT = [
    "Flatten", "Split", "Permute", "Reshape", "Concat", "Slice",
    "ReLU", "Convolution", "InnerProduct", "Scale", "Eltwise",
]  # fmt: skip


# --- Nets ------------------------------------------------------------------------------------------------------------


def layer_text(param: Any) -> str:
    return f"layer {{ {text_format.MessageToString(param, as_one_line=True)} }}\n"


def _layer_name(c: Choices, draft: Draft, number: int, bottoms: Sequence[str], weighted: bool) -> str:
    """Mostly a name of its own. Else none, another's, or one like those that are made up for layers on the way."""
    plain = f"l{number}"
    if not chance(c, 30):
        return plain
    blob = bottoms[0] if bottoms else "data"
    split = f"{blob}_{draft.made_by.get(blob, '')}_0_split"
    names = [f"{blob}/boundary", split, f"{blob}/boundary'", "", *draft.names[-2:]]
    name = pick(c, names)
    clashes = name in draft.names if weighted else name in draft.weighted
    return plain if clashes and not chance(c, 4) else name


def _top_name(c: Choices, draft: Draft, number: int, top: int, bottoms: Sequence[str], name: str) -> str:
    plain = f"b{number}" if top == 0 else f"b{number}_{top}"
    if not chance(c, 12):
        return plain
    blob = bottoms[0] if bottoms else "data"
    other = pick(c, [name or plain, f"{blob}/boundary", f"{blob}_{draft.made_by.get(blob, '')}_0_split_{top}"])
    return plain if other in draft.shapes and not chance(c, 4) else other


def _name_parameters(c: Choices, draft: Draft, param: Any, shapes: Sequence[Shape]) -> None:
    """Name some of a layer's weights: mostly by names of their own, else by one that Caffe would share them by."""
    for shape in shapes[: c.integer(1, 3)]:
        shared = [name for name, other in draft.parameters if other == shape]
        name = pick(c, shared) if shared and chance(c, 70) else f"w{len(draft.parameters)}"
        param.param.add(name=name, lr_mult=0)  # BatchNorm's must not be trained
        draft.parameters.append((name, shape))


def _add(c: Choices, draft: Draft, number: int) -> bool:
    """Add a layer; whether the net can still be valid."""
    kinds = sorted(GENERATORS)
    kind = pick(c, _FREQUENT) if chance(c, 40) else kinds[c.integer(0, len(kinds) - 1)]
    if kind == "Input" and not chance(c, 5):
        kind = "ReLU"
    proposal = GENERATORS[kind](c, draft)
    bottoms = proposal.bottoms
    param = LayerParameter(name="?", type=kind, bottom=bottoms)
    text_format.Merge(proposal.params, param)
    param.top.extend(f"?{top}" for top in range(proposal.tops))
    shapes = [draft.shapes[blob] for blob in bottoms]
    try:
        result = infer(param, shapes)
    except InputError:
        result = None
    refused = result is None
    if refused and not chance(c, 8):
        return True
    if result is not None:
        elements = max([0, *map(math.prod, result.tops)])
        if elements > MOST_ELEMENTS or sum(map(math.prod, result.weights)) > MOST_WEIGHTS:
            return True
    name = _layer_name(c, draft, number, bottoms, bool(result and result.weights))
    tops = [_top_name(c, draft, number, top, bottoms, name) for top in range(proposal.tops)]
    in_place = LAYER_TYPES[kind].in_place and bottoms and (draft.uses[bottoms[0]] == 0 or chance(c, 3))
    # Nothing else may use what is overwritten.
    if in_place and bottoms.count(bottoms[0]) == 1 and chance(c, 45):
        tops[0] = bottoms[0]
    param.name = name
    del param.top[:]
    param.top.extend(tops)
    if not name:
        param.ClearField("name")
    if chance(c, 4):
        param.loss_weight.extend([0.0] * len(tops))
    if result is not None and chance(c, 40):
        _name_parameters(c, draft, param, result.weights)
    draft.text += layer_text(param)
    draft.names.append(name)
    draft.types.append(kind)
    if result is None:
        return False
    if result.weights:
        draft.weighted.add(name)
    for blob in bottoms:
        draft.uses[blob] += 1
    for blob, shape in zip(tops, result.tops, strict=True):
        draft.shapes.pop(blob, None)  # the newest last
        draft.shapes[blob], draft.made_by[blob], draft.uses[blob] = shape, name, 0
    return True


_SHAPES: list[Shape] = [
    (1, 4, 6, 6), (2, 4, 5, 7), (3, 4), (1, 6, 6), (4,), (2, 3, 2, 3, 2), (1, 4, 8, 8), (3, 1, 1, 1), (2, 8, 4, 4), (),
]  # fmt: skip


def draft_net(c: Choices) -> Draft:
    """A net, whose last layer Caffe may refuse."""
    shape = pick(c, _SHAPES)
    dims = " ".join(f"dim: {size}" for size in shape)
    name = pick(c, ["data", "data", "data", "", "l1"])
    if chance(c, 15):
        name = "input"
        draft = Draft(f'input: "data" input_shape {{ {dims} }}\n')
    else:
        draft = Draft(f'layer {{ name: "{name}" type: "Input" top: "data" input_param {{ shape {{ {dims} }} }} }}\n')
    draft.shapes["data"], draft.made_by["data"], draft.uses["data"] = shape, name, 0
    draft.names.append(name)
    for number in range(1, c.integer(1, 14)):
        if not _add(c, draft, number):
            return draft
    if chance(c, 50):  # few outputs, so that there are boundaries
        loose = [blob for blob, uses in draft.uses.items() if blob in draft.shapes and not uses]
        if len(loose) > 2:
            param = LayerParameter(name="quiet", type="Silence", bottom=loose[:-1])
            draft.text += layer_text(param)
    return draft


def wide_net(c: Choices) -> Draft:
    """A net with layers wide enough that planners cut them in slices."""
    channels, outputs = pick(c, (192, 200, 144)), pick(c, (144, 400, 500))
    layers = [
        layer("Convolution", "conv", "data", "conv", f"convolution_param {{ num_output: {channels} kernel_size: 3 }}")
    ]
    blob = "conv"
    if chance(c, 50):
        layers.append(layer("ReLU", "", "conv", "conv"))
    if chance(c, 50):
        layers.append(layer("Pooling", "pool", "conv", "pool", "pooling_param { kernel_size: 2 stride: 2 }"))
        blob = "pool"
    if chance(c, 50):
        layers.append(layer("Flatten", "flat", blob, "flat"))
        blob = "flat"
        if chance(c, 50):
            layers.append(layer("ReLU", "", "flat", "flat"))
    layers.append(layer("InnerProduct", "fc", blob, "fc", f"inner_product_param {{ num_output: {outputs} }}"))
    if chance(c, 50):
        layers.append(layer("Dropout", "drop", "fc", "fc"))
    layers.append(layer("InnerProduct", "last", "fc", "last", "inner_product_param { num_output: 7 }"))
    if chance(c, 50):
        layers.append(layer("Softmax", "", "last", "prob"))
    data = layer("Input", "data", "", "data", "input_param { shape { dim: 1 dim: 24 dim: 9 dim: 9 } }")
    return Draft(data + "".join(layers))


# --- Numbers ---------------------------------------------------------------------------------------------------------


def some_floats(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Numbers with full mantissas, so that another order of summing shows."""
    return np.asarray(rng.standard_normal(shape), np.float32)


def _some_blobs(rng: np.random.Generator, kind: str, shapes: Sequence[Shape]) -> tuple[np.ndarray, ...]:
    if kind.startswith("BatchNorm"):  # a variance and a sum of weights are positive
        return tuple(np.asarray(rng.uniform(0.5, 1.5, shape), np.float32) for shape in shapes)
    scale = 1 / math.sqrt(max(1, math.prod(shapes[0][1:])))
    return tuple(np.asarray(rng.standard_normal(shape) * scale, np.float32) for shape in shapes)


def some_weights(rng: np.random.Generator, network: Network) -> Weights:
    return {
        layer.name: _some_blobs(rng, layer.type, layer.weight_shapes) for layer in network.layers if layer.weight_shapes
    }


def some_network(c: Choices) -> tuple[Network, Weights] | None:
    """A net with its weights; None for a draft that is not valid."""
    try:
        network = Network.from_text((wide_net if c.integer(0, 1) else draft_net)(c).text, "net")
    except InputError:
        return None
    return network, some_weights(np.random.default_rng(c.integer(0, 1000)), network)


def some_caffemodel(c: Choices, network: Network, weights: Mapping[str, Sequence[np.ndarray]]) -> bytes:
    """A caffemodel with all layers, each blob stored in one of the ways that Caffe reads."""
    net = NetParameter(name=network.name)
    former = chance(c, 15)  # the format of before 2014, whose shapes have four axes
    for each in network.layers:
        stored = net.layers.add(name=each.name) if former else net.layer.add(name=each.name, type=each.type)
        for values in weights.get(each.name, ()) if each.weight_shapes else ():
            blob = stored.blobs.add()
            if values.ndim <= 4 and (former or chance(c, 20)):
                sizes = (*(1,) * (4 - values.ndim), *values.shape)
                blob.num, blob.channels, blob.height, blob.width = sizes
            else:
                blob.shape.dim.extend(values.shape)
            getattr(blob, pick(c, ["data", "data", "double_data"])).extend(values.ravel().tolist())
    return bytes(net.SerializeToString())
