"""Rules of layers that compute with values: products, normalisation, element-wise functions, reductions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ionn.model.layers.rule import STATEFUL, Inferred, Rule, Shape, axis_of, check_equal, need, shape_text
from ionn.model.proto import EltwiseParameter


def _inner_product(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    shape = bottoms[0]
    axis = axis_of(shape, p.axis)
    inputs, outputs = math.prod(shape[axis:]), p.num_output
    need(outputs >= 1, "num_output must be at least 1")
    weights: tuple[Shape, ...] = ((inputs, outputs) if p.transpose else (outputs, inputs),)
    operations = math.prod(shape[:axis]) * inputs * outputs
    return Inferred(((*shape[:axis], outputs),), weights + (((outputs,),) if p.bias_term else ()), operations)


def _batch_norm(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    shape = bottoms[0]
    need(len(shape) >= 2, f"takes an input of at least 2 axes, not {shape_text(shape)}")
    # Otherwise it would change its weights, by the mean and variance of each input.
    need(
        not p.HasField("use_global_stats") or p.use_global_stats,
        f"{STATEFUL}; remove use_global_stats or set it to true",
    )
    return Inferred((shape,), ((shape[1],), (shape[1],), (1,)), math.prod(shape))


def _batch_norm_kyle(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    plain = _batch_norm(p, bottoms, tops)
    affine = ((bottoms[0][1],),) * 2 if p.use_alpha_beta else ()
    return Inferred(plain.tops, plain.weights + affine, plain.operations)


def _operand(p: Any, bottoms: Sequence[Shape]) -> tuple[Shape, bool]:
    """The shape of what Scale and Bias apply, and whether it is a weight (one bottom) or the second bottom."""
    shape = bottoms[0]
    if len(bottoms) > 1 and bottoms[1] == ():  # a single number: no axis is looked at
        return (), False
    axis = axis_of(shape, p.axis)
    if len(bottoms) == 1:
        need(p.num_axes >= -1, "num_axes must be at least -1")
        end = len(shape) if p.num_axes == -1 else axis + p.num_axes
        need(end <= len(shape), f"axis {axis} and num_axes {p.num_axes} exceed an input of shape {shape_text(shape)}")
        return shape[axis:end], True
    same = shape[axis : axis + len(bottoms[1])] == bottoms[1]
    need(
        same,
        f"its second input, {shape_text(bottoms[1])}, does not match its first, {shape_text(shape)}, from axis {axis}",
    )
    return bottoms[1], False


def _scale(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    operand, is_weight = _operand(p, bottoms)
    if p.bias_term:
        axis_of(bottoms[0], p.axis)
    return Inferred((bottoms[0],), (operand,) * (is_weight + p.bias_term), math.prod(bottoms[0]))


def _bias(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    operand, is_weight = _operand(p, bottoms)
    return Inferred((bottoms[0],), (operand,) * is_weight, math.prod(bottoms[0]))


def _neuron(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    return Inferred((bottoms[0],), operations=math.prod(bottoms[0]))


def _dropout(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    need(0 <= p.dropout_ratio < 1, f"dropout_ratio must be in [0, 1), not {p.dropout_ratio:g}")
    return _neuron(p, bottoms, tops)


def _exp(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    need(p.base == -1 or 0 < p.base < math.inf, f"base must be positive, or -1 for e, not {p.base:g}")
    return _neuron(p, bottoms, tops)


def _log(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    need(p.base != 1, "base must not be 1")
    return _exp(p, bottoms, tops)


def _per_channel(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    """PReLU and Normalize: one weight per channel, or a single one."""
    shape = bottoms[0]
    need(2 <= len(shape) <= 4, f"takes an input of 2 to 4 axes, not {shape_text(shape)}")
    return Inferred((shape,), (() if p.channel_shared else (shape[1],),), math.prod(shape))


def _mvn(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    shape = bottoms[0]
    need(len(shape) <= 4, f"takes an input of at most 4 axes, not {shape_text(shape)}")
    return Inferred(((*shape, 1, 1, 1, 1)[:4],), operations=math.prod(shape))


def _softmax(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    axis_of(bottoms[0], p.axis)
    return _neuron(p, bottoms, tops)


def _eltwise(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    # The Caffe that ionn runs leaves this check out, and reads past the end of the smaller blob.
    check_equal(bottoms)
    need(len(p.coeff) in (0, len(bottoms)), f"has {len(p.coeff)} coefficients for {len(bottoms)} bottoms")
    need(not p.coeff or p.operation != EltwiseParameter.PROD, "coefficients are not for PROD")
    return Inferred((bottoms[0],), operations=math.prod(bottoms[0]) * len(bottoms))


def _reduction(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    shape = bottoms[0]
    return Inferred((shape[: axis_of(shape, p.axis)],), operations=math.prod(shape))


def _argmax(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    shape = bottoms[0]
    need(len(shape) >= 1, "takes an input of at least 1 axis")
    if p.HasField("axis"):
        axis = axis_of(shape, p.axis)
        candidates = shape[axis]
        top: Shape = (*shape[:axis], p.top_k, *shape[axis + 1 :])
    else:
        candidates = math.prod(shape[1:])
        top = (shape[0], 2 if p.out_max_val else 1, p.top_k) + (1,) * (len(shape) - 3)
    need(1 <= p.top_k <= candidates, f"top_k must be 1 to {candidates}, not {p.top_k}")
    return Inferred((top,), operations=math.prod(shape))


RULES = {
    "AbsVal": Rule(_neuron),
    "ArgMax": Rule(_argmax, "argmax_param"),
    "BNLL": Rule(_neuron, in_place=True),
    "BatchNorm": Rule(_batch_norm, "batch_norm_param", in_place=True),
    "BatchNormKyle": Rule(_batch_norm_kyle, "batch_norm_param", in_place=True),
    "Bias": Rule(_bias, "bias_param", bottoms=(1, 2), in_place=True),
    "Dropout": Rule(_dropout, "dropout_param", in_place=True),
    "ELU": Rule(_neuron, "elu_param", in_place=True),
    "Eltwise": Rule(_eltwise, "eltwise_param", bottoms=(2, math.inf)),
    "Exp": Rule(_exp, "exp_param", in_place=True),
    "HardSigmoid": Rule(_neuron, "hardsigmoid_param", in_place=True),
    "HardSwish": Rule(_neuron, in_place=True),
    "InnerProduct": Rule(_inner_product, "inner_product_param"),
    "Log": Rule(_log, "log_param", in_place=True),
    "MVN": Rule(_mvn, "mvn_param"),
    "Normalize": Rule(_per_channel, "norm_param"),
    "PReLU": Rule(_per_channel, "prelu_param", in_place=True),
    "Power": Rule(_neuron, "power_param", in_place=True),
    "ReLU": Rule(_neuron, "relu_param", in_place=True),
    "ReLU6": Rule(_neuron, "relu6_param", in_place=True),
    "Reduction": Rule(_reduction, "reduction_param"),
    "Scale": Rule(_scale, "scale_param", bottoms=(1, 2), in_place=True),
    "Sigmoid": Rule(_neuron, "sigmoid_param", in_place=True),
    "Softmax": Rule(_softmax, "softmax_param", in_place=True),
    "TanH": Rule(_neuron, "tanh_param", in_place=True),
    "Threshold": Rule(_neuron, "threshold_param", in_place=True),
}
