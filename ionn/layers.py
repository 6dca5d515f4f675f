"""The layer types that ionn offloads, and what each makes of its inputs: one table, layer type -> rule.

A rule derives the shapes of the top and weight blobs, and the operation count, from the layer's parameters and the
shapes of its bottom blobs, exactly as Caffe's LayerSetUp and Reshape do. It refuses whatever Caffe would answer with a
failed CHECK (which aborts the process), a division by zero or a read outside of a blob: a server runs strangers' nets
only after this table has accepted them.

The table is an allow-list. Its layers compute from their bottoms alone: no files, no code, no randomness, no state, and
no memory access that depends on the values of a blob.

Operations count the multiply-adds of Convolution, Deconvolution and InnerProduct. For other layers they count the
elements read: output elements times window (Pooling, LRN) or times bottoms (Eltwise), input elements of reductions,
and output elements of the rest. Layers that only share their bottom's memory (Split, Flatten, Reshape), Input and
Silence have none. The batch is included everywhere.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ionn.errors import InputError
from ionn.proto import caffe_pb2

Shape = tuple[int, ...]

# Caffe counts the elements of a blob in an int, and has at most 32 axes (blob.hpp).
MAX_COUNT = 2**31 - 1
MAX_AXES = 32
# Pooling divides in single precision, which is exact below this size.
_MAX_POOLED = 2**24
# Resize scales coordinates in single precision; they stay inside of the input up to this size of its output.
_MAX_RESIZED = 2**22


@dataclass(frozen=True)
class Inferred:
    """What a layer makes of its bottoms: shapes of its tops and weights, and its operations (see the module)."""

    tops: tuple[Shape, ...]
    weights: tuple[Shape, ...] = ()
    operations: int = 0


@dataclass(frozen=True)
class Rule:
    """One row of the table. `infer(param, bottom_shapes, number_of_tops)` raises `_Refused` with the reason.

    `param` is the field of LayerParameter that holds the type's own parameters ("" for none); `bottoms` and `tops` are
    the least and the greatest number allowed; `in_place` says whether the first top may be the first bottom.
    """

    infer: Callable[[Any, Sequence[Shape], int], Inferred]
    param: str = ""
    bottoms: tuple[int, float] = (1, 1)
    tops: tuple[int, float] = (1, 1)
    in_place: bool = False


class _Refused(Exception):
    """The reason why a layer cannot be used."""


def infer(layer: Any, bottom_shapes: Sequence[Shape]) -> Inferred:
    """Shapes of the tops and weights of a `LayerParameter` and its operations, for the shapes of its bottoms.

    Raises InputError, naming the layer, its type and the reason, if the type is not in the table or if Caffe could not
    run the layer.
    """
    try:
        rule = LAYER_TYPES.get(layer.type)
        if rule is None:
            raise _Refused(REASONS.get(layer.type, "Caffe has no such layer type"))
        _check_blobs(rule, layer)
        result = rule.infer(getattr(layer, rule.param, None), bottom_shapes, len(layer.top))
        for shape in result.tops + result.weights:
            _check_shape(shape)
    except _Refused as refused:
        raise InputError(f"{label(layer)}: {refused}") from None
    return result


def label(layer: Any) -> str:
    """How messages name a layer: quoted, because a stranger chose the name."""
    return f"layer {layer.name!r} of type {layer.type!r}"


def essential(layer: Any) -> Any:
    """A copy of a `LayerParameter` with only what computes: name, type, bottoms, tops and the type's own parameters.

    Gone are training settings, fillers (weights come from a caffemodel; filling costs time, and a bad filler aborts
    Caffe) and the choice of an engine (Caffe built for CPUs aborts on CUDNN).
    """
    copy = caffe_pb2.LayerParameter(name=layer.name, type=layer.type, bottom=layer.bottom, top=layer.top)
    rule = LAYER_TYPES.get(layer.type)
    if rule and rule.param and layer.HasField(rule.param):
        own = getattr(copy, rule.param)
        own.CopyFrom(getattr(layer, rule.param))
        for field, _ in own.ListFields():
            if field.name == "engine" or (field.message_type and field.message_type.name == "FillerParameter"):
                own.ClearField(field.name)
    return copy


def _check_blobs(rule: Rule, layer: Any) -> None:
    for kind, names, (least, most) in (("bottom", layer.bottom, rule.bottoms), ("top", layer.top, rule.tops)):
        if not least <= len(names) <= most:
            wanted = f"{least}" if least == most else f"at least {least}" if most == math.inf else f"{least} to {most}"
            raise _Refused(f"takes {wanted} {kind} blobs, not {len(names)}")
    in_place = [top for bottom, top in zip(layer.bottom, layer.top, strict=False) if bottom == top]
    if in_place and not rule.in_place:
        raise _Refused(f"cannot work in place on {in_place[0]!r}; give its top a name of its own")


def _check_shape(shape: Shape) -> None:
    _need(len(shape) <= MAX_AXES, f"a blob of {len(shape)} axes; Caffe has at most {MAX_AXES}")
    _need(all(size >= 1 for size in shape), f"a blob of shape {_text(shape)}; every size must be at least 1")
    _need(math.prod(shape) <= MAX_COUNT, f"a blob of shape {_text(shape)} is larger than Caffe can count")


def _need(condition: bool, reason: str) -> None:
    if not condition:
        raise _Refused(reason)


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "()"


def _axis(shape: Shape, axis: int) -> int:
    """The index of an axis that may count from the end."""
    _need(-len(shape) <= axis < len(shape), f"axis {axis} is out of range for an input of shape {_text(shape)}")
    return axis % len(shape)


def _four_axes(shape: Shape) -> Shape:
    _need(len(shape) == 4, f"takes an input of 4 axes, not {_text(shape)}")
    return shape


def _equal(shapes: Sequence[Shape]) -> None:
    for shape in shapes[1:]:
        _need(shape == shapes[0], f"its inputs have different shapes, {_text(shapes[0])} and {_text(shape)}")


# --- Windows: convolutions and pooling ------------------------------------------------------------------------------


def _per_axis(p: Any, field: str, axes: int, default: int | None) -> tuple[int, ...]:
    """A window parameter of the ConvolutionParameter per spatial axis: given once, per axis, or as _h and _w."""
    stem = field.removesuffix("_size")
    height, width = f"{stem}_h", f"{stem}_w"
    values = list(getattr(p, field))
    if stem != "dilation" and (p.HasField(height) or p.HasField(width)):
        _need(axes == 2, f"{height} and {width} are for 2 spatial axes; the input has {axes}")
        _need(not values, f"give either {field} or {height} and {width}, not both")
        values = [getattr(p, height), getattr(p, width)]
    elif not values and default is not None:
        values = [default]
    _need(len(values) in (1, axes), f"{field} is given {len(values)} times; give it once or {axes} times")
    least = 0 if stem == "pad" else 1
    _need(all(least <= value <= MAX_COUNT for value in values), f"{stem} must be at least {least} and below 2^31")
    return tuple(values * axes if len(values) == 1 else values)


@dataclass(frozen=True)
class _Windows:
    """The windows of a convolution: sizes per spatial axis. `extent` is the size of a dilated kernel."""

    axis: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    pad: tuple[int, ...]
    extent: tuple[int, ...]

    @classmethod
    def of(cls, p: Any, shape: Shape) -> _Windows:
        axis = _axis(shape, p.axis)
        axes = len(shape) - axis - 1
        kernel = _per_axis(p, "kernel_size", axes, None)
        stride = _per_axis(p, "stride", axes, 1)
        pad = _per_axis(p, "pad", axes, 0)
        dilation = _per_axis(p, "dilation", axes, 1)
        extent = tuple(d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True))
        return cls(axis, kernel, stride, pad, extent)

    def slide(self, sizes: Shape) -> Shape:
        """How many window positions there are along each spatial axis of an input."""
        padded = [size + 2 * pad for size, pad in zip(sizes, self.pad, strict=True)]
        for extent, size in zip(self.extent, padded, strict=True):
            _need(extent <= size, f"its kernel of {extent} is larger than its padded input of {size}")
            _need(size <= MAX_COUNT, f"its padded input of {size} is larger than Caffe can count")
        triples = zip(padded, self.extent, self.stride, strict=True)
        return tuple((size - extent) // stride + 1 for size, extent, stride in triples)

    def spread(self, sizes: Shape) -> Shape:
        """The inverse of `slide`: the output of a deconvolution along each spatial axis."""
        spread = [s * (size - 1) + extent for size, extent, s in zip(sizes, self.extent, self.stride, strict=True)]
        _need(all(size <= MAX_COUNT for size in spread), "its output is larger than Caffe can count")
        return tuple(size - 2 * pad for size, pad in zip(spread, self.pad, strict=True))


def _convolution(p: Any, bottoms: Sequence[Shape], tops: int, transposed: bool = False) -> Inferred:
    _need(len(bottoms) == tops, f"takes as many tops as bottoms, not {tops} for {len(bottoms)}")
    _equal(bottoms)
    shape = bottoms[0]
    windows = _Windows.of(p, shape)
    channels, outputs, group = shape[windows.axis], p.num_output, p.group
    _need(outputs >= 1, "num_output must be at least 1")
    _need(group >= 1, "group must be at least 1")
    _need(channels % group == 0, f"its {channels} input channels cannot be divided into {group} groups")
    _need(outputs % group == 0, f"num_output {outputs} cannot be divided into {group} groups")
    batch, sizes = shape[: windows.axis], shape[windows.axis + 1 :]
    if transposed:
        top = (*batch, outputs, *windows.spread(sizes))
        many, few, positions = channels, outputs, sizes
    else:
        top = (*batch, outputs, *windows.slide(sizes))
        many, few, positions = outputs, channels, top[windows.axis + 1 :]
    # Caffe shapes the column buffer even where it goes unused.
    _check_shape((few * math.prod(windows.kernel), *positions))
    weights: tuple[Shape, ...] = ((many, few // group, *windows.kernel),)
    operations = tops * math.prod(batch) * math.prod(positions) * math.prod(weights[0])
    return Inferred((top,) * tops, weights + (((outputs,),) if p.bias_term else ()), operations)


def _deconvolution(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    return _convolution(p, bottoms, tops, transposed=True)


def _im2col(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    shape = bottoms[0]
    windows = _Windows.of(p, shape)
    _need(windows.axis + 1 < len(shape), "its input has no spatial axes")
    columns = shape[windows.axis] * math.prod(windows.kernel)
    top = (*shape[: windows.axis], columns, *windows.slide(shape[windows.axis + 1 :]))
    return Inferred((top,), operations=math.prod(top))


def _pooling(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    shape = _four_axes(bottoms[0])
    method = caffe_pb2.PoolingParameter.PoolMethod.Name(p.pool)
    _need(method != "STOCHASTIC", "STOCHASTIC pooling has no CPU implementation in Caffe")
    _need(tops == 1 or method == "MAX", "only MAX pooling has a second top")
    for name in ("pad", "stride"):
        both = p.HasField(f"{name}_h") and p.HasField(f"{name}_w")
        neither = not (p.HasField(f"{name}_h") or p.HasField(f"{name}_w"))
        _need(neither or (both and not p.HasField(name)), f"give either {name} or both {name}_h and {name}_w")
    pad = (p.pad_h, p.pad_w) if p.HasField("pad_h") else (p.pad, p.pad)
    stride = (p.stride_h, p.stride_w) if p.HasField("stride_h") else (p.stride, p.stride)
    _need(all(1 <= s <= MAX_COUNT for s in stride), "stride must be at least 1 and below 2^31")
    square, height, width = (p.HasField(name) for name in ("kernel_size", "kernel_h", "kernel_w"))
    if p.global_pooling:
        _need(not (square or height or width), "global_pooling takes no kernel size")
        _need(pad == (0, 0) and stride == (1, 1), "global_pooling takes no pad and no stride")
        kernel = shape[2:]
    else:
        _need(square != (height and width), "give either kernel_size or both kernel_h and kernel_w")
        kernel = (p.kernel_size, p.kernel_size) if square else (p.kernel_h, p.kernel_w)
    top = (*shape[:2], *_pooled(shape[2:], kernel, stride, pad, p.ceil_mode))
    return Inferred((top,) * tops, operations=math.prod(top) * math.prod(kernel))


def _pooled(sizes: Shape, kernel: Shape, stride: Shape, pad: Shape, ceil: bool = True) -> Shape:
    """The pooled height and width. A last window that would start in the padding is dropped, as Caffe does."""
    result = []
    for size, k, s, p in zip(sizes, kernel, stride, pad, strict=True):
        _need(k >= 1, "its kernel must be at least 1")
        _need(p < k, f"its pad of {p} must be smaller than its kernel of {k}")
        _need(
            k < _MAX_POOLED and size + 2 * p < _MAX_POOLED, f"its kernel and padded input must be below {_MAX_POOLED}"
        )
        free = size + 2 * p - k
        pooled = (-(-free // s) if ceil else free // s) + 1
        if any(pad) and (pooled - 1) * s >= size + p:
            pooled -= 1
        result.append(pooled)
    return tuple(result)


def _lrn(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    shape = _four_axes(bottoms[0])
    size = p.local_size
    _need(size % 2 == 1, f"local_size must be odd, not {size}")
    if p.norm_region == caffe_pb2.LRNParameter.ACROSS_CHANNELS:
        _check_shape((1, shape[1] + size - 1, *shape[2:]))  # Caffe's padded buffer
        return Inferred((shape,), operations=math.prod(shape) * size)
    _pooled(shape[2:], (size, size), (1, 1), (size // 2, size // 2))
    return Inferred((shape,), operations=math.prod(shape) * size * size)


def _spp(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    shape = _four_axes(bottoms[0])
    _need(p.pool != caffe_pb2.SPPParameter.STOCHASTIC, "STOCHASTIC pooling has no CPU implementation in Caffe")
    _need(1 <= p.pyramid_height <= 24, "pyramid_height must be at least 1, and its bins must fit the input")
    bins_of_levels = []
    for level in range(p.pyramid_height):
        bins = 2**level
        kernel = tuple(-(-size // bins) for size in shape[2:])
        pad = tuple((k * bins - size + 1) // 2 for k, size in zip(kernel, shape[2:], strict=True))
        bins_of_levels.append(_pooled(shape[2:], kernel, kernel, pad))
    if p.pyramid_height == 1:
        top: Shape = (*shape[:2], *bins_of_levels[0])
    else:
        top = (shape[0], shape[1] * sum(map(math.prod, bins_of_levels)))
    return Inferred((top,), operations=math.prod(shape) * p.pyramid_height)


# --- Products, normalisation, element by element --------------------------------------------------------------------


def _inner_product(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    shape = bottoms[0]
    axis = _axis(shape, p.axis)
    inputs, outputs = math.prod(shape[axis:]), p.num_output
    _need(outputs >= 1, "num_output must be at least 1")
    weights: tuple[Shape, ...] = ((inputs, outputs) if p.transpose else (outputs, inputs),)
    operations = math.prod(shape[:axis]) * inputs * outputs
    return Inferred(((*shape[:axis], outputs),), weights + (((outputs,),) if p.bias_term else ()), operations)


def _batch_norm(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    shape = bottoms[0]
    _need(len(shape) >= 2, f"takes an input of at least 2 axes, not {_text(shape)}")
    return Inferred((shape,), ((shape[1],), (shape[1],), (1,)), math.prod(shape))


def _batch_norm_kyle(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    plain = _batch_norm(p, bottoms, tops)
    affine = ((bottoms[0][1],),) * 2 if p.use_alpha_beta else ()
    return Inferred(plain.tops, plain.weights + affine, plain.operations)


def _operand(p: Any, bottoms: Sequence[Shape]) -> tuple[Shape, bool]:
    """The shape of what Scale and Bias apply, and whether it is a weight (one bottom) or the second bottom."""
    shape = bottoms[0]
    axis = _axis(shape, p.axis)
    if len(bottoms) == 1:
        _need(p.num_axes >= -1, "num_axes must be at least -1")
        end = len(shape) if p.num_axes == -1 else axis + p.num_axes
        _need(end <= len(shape), f"axis {axis} and num_axes {p.num_axes} exceed an input of shape {_text(shape)}")
        return shape[axis:end], True
    same = shape[axis : axis + len(bottoms[1])] == bottoms[1]
    _need(same, f"its second input, {_text(bottoms[1])}, does not match its first, {_text(shape)}, from axis {axis}")
    return bottoms[1], False


def _scale(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    operand, is_weight = _operand(p, bottoms)
    return Inferred((bottoms[0],), (operand,) * (is_weight + p.bias_term), math.prod(bottoms[0]))


def _bias(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    operand, is_weight = _operand(p, bottoms)
    return Inferred((bottoms[0],), (operand,) * is_weight, math.prod(bottoms[0]))


def _neuron(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    return Inferred((bottoms[0],), operations=math.prod(bottoms[0]))


def _dropout(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    _need(0 <= p.dropout_ratio < 1, f"dropout_ratio must be in [0, 1), not {p.dropout_ratio:g}")
    return _neuron(p, bottoms, tops)


def _exp(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    _need(p.base == -1 or 0 < p.base < math.inf, f"base must be positive, or -1 for e, not {p.base:g}")
    return _neuron(p, bottoms, tops)


def _log(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    _need(p.base != 1, "base must not be 1")
    return _exp(p, bottoms, tops)


def _per_channel(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    """PReLU and Normalize: one weight per channel, or a single one."""
    shape = bottoms[0]
    _need(2 <= len(shape) <= 4, f"takes an input of 2 to 4 axes, not {_text(shape)}")
    return Inferred((shape,), (() if p.channel_shared else (shape[1],),), math.prod(shape))


def _mvn(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    shape = bottoms[0]
    _need(len(shape) <= 4, f"takes an input of at most 4 axes, not {_text(shape)}")
    return Inferred(((*shape, 1, 1, 1, 1)[:4],), operations=math.prod(shape))


def _softmax(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    _axis(bottoms[0], p.axis)
    return _neuron(p, bottoms, tops)


def _eltwise(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    # The Caffe we build leaves this check out, and reads past the end of the smaller blob.
    _equal(bottoms)
    _need(len(p.coeff) in (0, len(bottoms)), f"has {len(p.coeff)} coefficients for {len(bottoms)} bottoms")
    _need(not p.coeff or p.operation != caffe_pb2.EltwiseParameter.PROD, "coefficients are not for PROD")
    return Inferred((bottoms[0],), operations=math.prod(bottoms[0]) * len(bottoms))


def _reduction(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    shape = bottoms[0]
    return Inferred((shape[: _axis(shape, p.axis)],), operations=math.prod(shape))


def _argmax(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    shape = bottoms[0]
    _need(len(shape) >= 1, "takes an input of at least 1 axis")
    if p.HasField("axis"):
        axis = _axis(shape, p.axis)
        candidates = shape[axis]
        top: Shape = (*shape[:axis], p.top_k, *shape[axis + 1 :])
    else:
        candidates = math.prod(shape[1:])
        top = (shape[0], 2 if p.out_max_val else 1, p.top_k) + (1,) * (len(shape) - 3)
    _need(1 <= p.top_k <= candidates, f"top_k must be 1 to {candidates}, not {p.top_k}")
    return Inferred((top,), operations=math.prod(shape))


# --- Shapes only: join, cut, move -----------------------------------------------------------------------------------


def _input(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    _need(len(p.shape) in (1, tops), f"give one shape per top: it has {len(p.shape)} for {tops}")
    shapes = [tuple(shape.dim) for shape in p.shape]
    return Inferred(tuple(shapes if len(shapes) == tops else shapes * tops))


def _split(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    return Inferred((bottoms[0],) * tops)


def _silence(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    return Inferred(())


def _concat_axis(p: Any, shape: Shape, old_name: str) -> int:
    if not p.HasField(old_name):
        return _axis(shape, p.axis)
    _need(not p.HasField("axis"), f"give either axis or {old_name}, not both")
    return _axis(shape, getattr(p, old_name))


def _concat(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    first = bottoms[0]
    axis = _concat_axis(p, first, "concat_dim")
    for shape in bottoms[1:]:
        same = len(shape) == len(first) and (*shape[:axis], first[axis], *shape[axis + 1 :]) == first
        _need(same, f"its inputs {_text(first)} and {_text(shape)} differ on more than axis {axis}")
    top = (*first[:axis], sum(shape[axis] for shape in bottoms), *first[axis + 1 :])
    return Inferred((top,), operations=math.prod(top))


def _slice(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    shape = bottoms[0]
    axis = _concat_axis(p, shape, "slice_dim")
    size = shape[axis]
    if p.slice_point:
        _need(len(p.slice_point) == tops - 1, f"takes {tops - 1} slice points for {tops} tops")
        edges = [0, *p.slice_point, size]
    else:
        _need(size % tops == 0, f"cannot divide axis {axis} of size {size} into {tops} equal parts")
        edges = [part * size // tops for part in range(tops + 1)]
    sizes = [end - start for start, end in itertools.pairwise(edges)]
    _need(min(sizes) >= 1, f"slice points must rise and stay below {size}")
    return Inferred(tuple((*shape[:axis], part, *shape[axis + 1 :]) for part in sizes), operations=math.prod(shape))


def _flatten(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    shape = bottoms[0]
    start, end = _axis(shape, p.axis), _axis(shape, p.end_axis) + 1
    _need(start <= end, f"its axis {p.axis} lies behind its end_axis {p.end_axis}")
    return Inferred(((*shape[:start], math.prod(shape[start:end]), *shape[end:]),))


def _reshape(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    shape = bottoms[0]
    start = p.axis if p.axis >= 0 else len(shape) + p.axis + 1
    _need(0 <= start <= len(shape), f"axis {p.axis} is out of range for an input of shape {_text(shape)}")
    _need(p.num_axes >= -1, "num_axes must be at least -1")
    end = len(shape) if p.num_axes == -1 else start + p.num_axes
    _need(end <= len(shape), f"axis {start} and num_axes {p.num_axes} exceed an input of shape {_text(shape)}")
    new = list(p.shape.dim)
    _need(all(size >= -1 for size in new) and new.count(-1) <= 1, "its shape takes sizes, 0 to copy, and one -1")
    for index, size in enumerate(new):
        if size == 0:
            _need(start + index < len(shape), f"size 0 at {index} has no input axis to copy")
            new[index] = shape[start + index]
    top = [*shape[:start], *new, *shape[end:]]
    if -1 in new:
        known = math.prod(size for size in top if size != -1)
        top[top.index(-1)] = math.prod(shape) // known
    _need(math.prod(top) == math.prod(shape), f"cannot make {_text(tuple(p.shape.dim))} of an input {_text(shape)}")
    return Inferred((tuple(top),))


def _crop(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    shape, wanted = bottoms
    axis = _axis(shape, p.axis)
    axes = len(shape) - axis
    _need(len(p.offset) in (0, 1, axes), f"takes 1 or {axes} offsets, not {len(p.offset)}")
    _need(len(wanted) >= len(shape), f"cannot crop {_text(shape)} to {_text(wanted)}")
    offsets = list(p.offset) or [0]
    offsets = offsets * axes if len(offsets) == 1 else offsets
    sizes = wanted[axis : len(shape)]
    fits = all(o + want <= have for o, want, have in zip(offsets, sizes, shape[axis:], strict=True))
    _need(fits, f"cannot crop {_text(sizes)} at {_text(tuple(offsets))} out of {_text(shape[axis:])}")
    top = (*shape[:axis], *sizes)
    return Inferred((top,), operations=math.prod(top))


def _tile(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    shape = bottoms[0]
    axis = _axis(shape, p.axis)
    _need(p.tiles >= 1, "tiles must be at least 1")
    top = (*shape[:axis], shape[axis] * p.tiles, *shape[axis + 1 :])
    return Inferred((top,), operations=math.prod(top))


def _permute(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    shape = bottoms[0]
    order = list(p.order)
    _need(len(set(order)) == len(order), "an axis appears twice in its order")
    _need(all(axis < len(shape) for axis in order), f"its order exceeds the {len(shape)} axes of its input")
    order += [axis for axis in range(len(shape)) if axis not in order]
    return Inferred((tuple(shape[axis] for axis in order),), operations=math.prod(shape))


def _unsqueeze(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    shape = bottoms[0]
    _need(p.HasField("dim"), "dim is missing")
    index = p.dim if p.dim >= 0 else p.dim + len(shape) + 1
    _need(0 <= index <= len(shape), f"dim {p.dim} is out of range for an input of shape {_text(shape)}")
    return Inferred(((*shape[:index], 1, *shape[index:]),), operations=math.prod(shape))


def _pad(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    batch, channels, height, width = _four_axes(bottoms[0])
    _need(min(p.pad_u, p.pad_d, p.pad_l, p.pad_r) >= 0, "its pads must be at least 0")
    if p.pad_type == caffe_pb2.PadParameter.REFLECT:
        fits = max(p.pad_u, p.pad_d) < height and max(p.pad_l, p.pad_r) < width
        _need(fits, f"its pads must be smaller than its input of {height}x{width} to reflect it")
    top = (batch, channels, height + p.pad_u + p.pad_d, width + p.pad_l + p.pad_r)
    return Inferred((top,), operations=math.prod(top))


def _pixel_shuffle(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    batch, channels, height, width = _four_axes(bottoms[0])
    factor = p.upscale_factor
    _need(factor >= 1, "upscale_factor must be at least 1")
    _need(channels % factor**2 == 0, f"its {channels} channels cannot be divided by {factor} x {factor}")
    top = (batch, channels // factor**2, height * factor, width * factor)
    return Inferred((top,), operations=math.prod(top))


def _resize(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    batch, channels, _, _ = _four_axes(bottoms[0])
    _need(not p.is_pyramid_test, "give height and width instead of is_pyramid_test")
    fits = 1 <= p.height <= _MAX_RESIZED and 1 <= p.width <= _MAX_RESIZED
    _need(fits, f"height and width must be 1 to {_MAX_RESIZED}")
    top = (batch, channels, p.height, p.width)
    return Inferred((top,), operations=math.prod(top))


def _upsample(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    shape = bottoms[0]
    _need(p.dims_num in (3, 4), f"dims_num must be 3 or 4, not {p.dims_num}")
    _need(len(shape) == p.dims_num, f"takes an input of {p.dims_num} axes, not {_text(shape)}")
    _need(p.scale >= 1, "scale must be at least 1")
    top = (*shape[:2], *(size * p.scale for size in shape[2:]))
    return Inferred((top,), operations=math.prod(top))


_ANY = (1, math.inf)

LAYER_TYPES: dict[str, Rule] = {
    "AbsVal": Rule(_neuron),
    "ArgMax": Rule(_argmax, "argmax_param"),
    "BNLL": Rule(_neuron, in_place=True),
    "BatchNorm": Rule(_batch_norm, "batch_norm_param", in_place=True),
    "BatchNormKyle": Rule(_batch_norm_kyle, "batch_norm_param", in_place=True),
    "Bias": Rule(_bias, "bias_param", bottoms=(1, 2), in_place=True),
    "Concat": Rule(_concat, "concat_param", bottoms=_ANY),
    "Convolution": Rule(_convolution, "convolution_param", bottoms=_ANY, tops=_ANY),
    "Crop": Rule(_crop, "crop_param", bottoms=(2, 2)),
    "Deconvolution": Rule(_deconvolution, "convolution_param", bottoms=_ANY, tops=_ANY),
    "Dropout": Rule(_dropout, "dropout_param", in_place=True),
    "ELU": Rule(_neuron, "elu_param", in_place=True),
    "Eltwise": Rule(_eltwise, "eltwise_param", bottoms=(2, math.inf)),
    "Exp": Rule(_exp, "exp_param", in_place=True),
    "Flatten": Rule(_flatten, "flatten_param"),
    "HardSigmoid": Rule(_neuron, "hardsigmoid_param", in_place=True),
    "HardSwish": Rule(_neuron, in_place=True),
    "Im2col": Rule(_im2col, "convolution_param"),
    "InnerProduct": Rule(_inner_product, "inner_product_param"),
    "Input": Rule(_input, "input_param", bottoms=(0, 0), tops=_ANY),
    "LRN": Rule(_lrn, "lrn_param"),
    "Log": Rule(_log, "log_param", in_place=True),
    "MVN": Rule(_mvn, "mvn_param"),
    "Normalize": Rule(_per_channel, "norm_param"),
    "PReLU": Rule(_per_channel, "prelu_param", in_place=True),
    "Pad": Rule(_pad, "pad_param"),
    "Permute": Rule(_permute, "permute_param"),
    "PixelShuffle": Rule(_pixel_shuffle, "pixelshuffle_param"),
    "Pooling": Rule(_pooling, "pooling_param", tops=(1, 2)),
    "Power": Rule(_neuron, "power_param", in_place=True),
    "ReLU": Rule(_neuron, "relu_param", in_place=True),
    "ReLU6": Rule(_neuron, "relu6_param", in_place=True),
    "Reduction": Rule(_reduction, "reduction_param"),
    "Reshape": Rule(_reshape, "reshape_param"),
    "Resize": Rule(_resize, "resize_param"),
    "SPP": Rule(_spp, "spp_param"),
    "Scale": Rule(_scale, "scale_param", bottoms=(1, 2), in_place=True),
    "Sigmoid": Rule(_neuron, "sigmoid_param", in_place=True),
    "Silence": Rule(_silence, bottoms=_ANY, tops=(0, 0)),
    "Slice": Rule(_slice, "slice_param", tops=_ANY),
    "Softmax": Rule(_softmax, "softmax_param", in_place=True),
    "Split": Rule(_split, tops=_ANY),
    "TanH": Rule(_neuron, "tanh_param", in_place=True),
    "Threshold": Rule(_neuron, "threshold_param", in_place=True),
    "Tile": Rule(_tile, "tile_param"),
    "Unsqueeze": Rule(_unsqueeze, "unsqueeze_param"),
    "Upsample": Rule(_upsample, "upsample_param"),
}

# Why Caffe's other layer types are not in the table.
REASONS = {
    name: reason
    for reason, names in {
        "it reads or writes files; remove it from the deploy prototxt": (
            "AnnotatedData Data DetectionEvaluate DetectionOutput HDF5Data HDF5Output ImageData VideoData WindowData"
        ),
        "it runs code from outside of the model": "Python",
        "it is for training; remove it from the deploy prototxt": (
            "Accuracy ContrastiveLoss EuclideanLoss HingeLoss InfogainLoss MultiBoxLoss MultinomialLogisticLoss "
            "SigmoidCrossEntropyLoss SmoothL1Loss SoftmaxWithLoss"
        ),
        "it makes its output from nothing; use an Input layer": "DummyData MemoryData Parameter",
        "it keeps state between queries": "LSTM LSTMUnit RNN",
        "the values of its input decide how large its output is or which memory it reads": (
            "BatchReindex Embed Filter MaxUnPool PSROIPooling Proposal"
        ),
        "Caffe's implementation reads outside of its input for some sizes": "BilinearInterpolate",
        "it only serves layers that read files; end the deploy prototxt before it": "PriorBox",
    }.items()
    for name in names.split()
}
