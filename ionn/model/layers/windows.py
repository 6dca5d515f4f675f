"""Rules of layers that slide a window over their input: convolutions, pooling and local normalisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ionn.model.layers.rule import (
    ANY,
    MAX_COUNT,
    Inferred,
    Rule,
    Shape,
    axis_of,
    check_equal,
    check_shape,
    four_axes,
    need,
    shape_text,
)
from ionn.model.proto import LRNParameter, PoolingParameter, SPPParameter

# Pooling divides in single precision, which is exact below this size.
MAX_POOLED = 2**24


def _per_axis(p: Any, field: str, axes: int, default: int | None) -> tuple[int, ...]:
    """A window parameter of the ConvolutionParameter per spatial axis: given once, per axis, or as _h and _w."""
    stem = field.removesuffix("_size")
    height, width = f"{stem}_h", f"{stem}_w"
    values = list(getattr(p, field))
    if stem != "dilation" and (p.HasField(height) or p.HasField(width)):
        need(axes == 2, f"{height} and {width} are for 2 spatial axes; the input has {axes}")
        need(not values, f"give either {field} or {height} and {width}, not both")
        values = [getattr(p, height), getattr(p, width)]
    elif not values and default is not None:
        values = [default]
    need(len(values) in (1, axes), f"{field} is given {len(values)} times; give it once or {axes} times")
    least = 0 if stem in ("pad", "dilation") else 1
    need(all(least <= value <= MAX_COUNT for value in values), f"{stem} must be at least {least} and below 2^31")
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
        axis = axis_of(shape, p.axis)
        axes = len(shape) - axis - 1
        kernel = _per_axis(p, "kernel_size", axes, None)
        stride = _per_axis(p, "stride", axes, 1)
        pad = _per_axis(p, "pad", axes, 0)
        dilation = _per_axis(p, "dilation", axes, 1)
        extent = tuple(d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True))
        return cls(axis, kernel, stride, pad, extent)

    def slide(self, channels: int, sizes: Shape) -> Shape:
        """How many window positions there are along each spatial axis of an input."""
        padded = [size + 2 * pad for size, pad in zip(sizes, self.pad, strict=True)]
        for extent, size, stride in zip(self.extent, padded, self.stride, strict=True):
            # C++ divides towards zero, so that there is one position for a kernel that is a bit too large. Caffe reads
            # zeros where it exceeds the input.
            fits = extent - size < stride
            need(fits, f"its kernel of {extent} is larger than its padded input of {size}, by its stride or more")
            need(size <= MAX_COUNT, f"its padded input of {size} is larger than Caffe can count")
        triples = zip(padded, self.extent, self.stride, strict=True)
        positions = tuple(max(size - extent, 0) // stride + 1 for size, extent, stride in triples)
        self._check_indices(positions, padded, channels)
        return positions

    def spread(self, channels: int, sizes: Shape) -> Shape:
        """The inverse of `slide`: the output of a deconvolution along each spatial axis."""
        spread = [s * (size - 1) + extent for size, extent, s in zip(sizes, self.extent, self.stride, strict=True)]
        self._check_indices(sizes, spread, channels)
        return tuple(size - 2 * pad for size, pad in zip(spread, self.pad, strict=True))

    def _check_indices(self, positions: Shape, padded: Sequence[int], channels: int) -> None:
        """Check that Caffe's ints hold the indices that it computes in the padded image: it adds a stride once more
        after the last window, and also numbers the elements of the padding."""
        for count, stride, extent in zip(positions, self.stride, self.extent, strict=True):
            need(count * stride + extent - 1 <= MAX_COUNT, "its windows end farther out than Caffe can count")
        check_shape((channels, *map(max, padded, self.extent)))


def _convolution(p: Any, bottoms: Sequence[Shape], tops: int, transposed: bool = False) -> Inferred:
    need(len(bottoms) == tops, f"takes as many tops as bottoms, not {tops} for {len(bottoms)}")
    check_equal(bottoms)
    shape = bottoms[0]
    windows = _Windows.of(p, shape)
    channels, outputs, group = shape[windows.axis], p.num_output, p.group
    need(outputs >= 1, "num_output must be at least 1")
    need(group >= 1, "group must be at least 1")
    need(channels % group == 0, f"its {channels} input channels cannot be divided into {group} groups")
    need(outputs % group == 0, f"num_output {outputs} cannot be divided into {group} groups")
    batch, sizes = shape[: windows.axis], shape[windows.axis + 1 :]
    if transposed:
        top = (*batch, outputs, *windows.spread(outputs, sizes))
        many, few, positions = channels, outputs, sizes
    else:
        top = (*batch, outputs, *windows.slide(channels, sizes))
        many, few, positions = outputs, channels, top[windows.axis + 1 :]
    # Caffe shapes the column buffer even where it goes unused.
    check_shape((few * math.prod(windows.kernel), *positions))
    weights: tuple[Shape, ...] = ((many, few // group, *windows.kernel),)
    operations = tops * math.prod(batch) * math.prod(positions) * math.prod(weights[0])
    return Inferred((top,) * tops, weights + (((outputs,),) if p.bias_term else ()), operations)


def _deconvolution(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    return _convolution(p, bottoms, tops, transposed=True)


def _im2col(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    shape = bottoms[0]
    windows = _Windows.of(p, shape)
    need(windows.axis + 1 < len(shape), "its input has no spatial axes")
    channels = shape[windows.axis]
    columns = channels * math.prod(windows.kernel)
    top = (*shape[: windows.axis], columns, *windows.slide(channels, shape[windows.axis + 1 :]))
    return Inferred((top,), operations=math.prod(top))


def _pooling(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    shape = four_axes(bottoms[0])
    method = PoolingParameter.PoolMethod.Name(p.pool)
    need(method != "STOCHASTIC", "STOCHASTIC pooling has no CPU implementation in Caffe")
    need(tops == 1 or method == "MAX", "only MAX pooling has a second top")
    for name in ("pad", "stride"):
        both = p.HasField(f"{name}_h") and p.HasField(f"{name}_w")
        neither = not (p.HasField(f"{name}_h") or p.HasField(f"{name}_w"))
        need(neither or (both and not p.HasField(name)), f"give either {name} or both {name}_h and {name}_w")
    pad = (p.pad_h, p.pad_w) if p.HasField("pad_h") else (p.pad, p.pad)
    stride = (p.stride_h, p.stride_w) if p.HasField("stride_h") else (p.stride, p.stride)
    need(all(1 <= s <= MAX_COUNT for s in stride), "stride must be at least 1 and below 2^31")
    square, height, width = (p.HasField(name) for name in ("kernel_size", "kernel_h", "kernel_w"))
    if p.global_pooling:
        need(not (square or height or width), "global_pooling takes no kernel size")
        need(pad == (0, 0) and stride == (1, 1), "global_pooling takes no pad and no stride")
        kernel = shape[2:]
    else:
        need(square != (height and width), "give either kernel_size or both kernel_h and kernel_w")
        kernel = (p.kernel_size, p.kernel_size) if square else (p.kernel_h, p.kernel_w)
    top = (*shape[:2], *_pooled(shape[2:], kernel, stride, pad, p.ceil_mode))
    return Inferred((top,) * tops, operations=math.prod(top) * math.prod(kernel))


def _pooled(sizes: Shape, kernel: Shape, stride: Shape, pad: Shape, ceil: bool = True) -> Shape:
    """The pooled height and width. A last window that would start in the padding is dropped, as Caffe does."""
    result, reach = [], []
    for size, k, s, p in zip(sizes, kernel, stride, pad, strict=True):
        need(k >= 1, "its kernel must be at least 1")
        need(p < k, f"its pad of {p} must be smaller than its kernel of {k}")
        need(k < MAX_POOLED and size + 2 * p < MAX_POOLED, f"its kernel and padded input must be below {MAX_POOLED}")
        free = size + 2 * p - k
        pooled = (-(-free // s) if ceil else free // s) + 1
        if any(pad) and (pooled - 1) * s >= size + p:
            pooled -= 1
        result.append(pooled)
        reach.append((pooled - 1) * s + k)
    # Caffe multiplies the sides of a window, which may lie outside of the input.
    need(math.prod(reach) <= MAX_COUNT, f"its windows reach over {shape_text(tuple(reach))}, more than Caffe can count")
    return tuple(result)


def _lrn(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    shape = four_axes(bottoms[0])
    size = p.local_size
    need(size % 2 == 1, f"local_size must be odd, not {size}")
    if p.norm_region == LRNParameter.ACROSS_CHANNELS:
        need(shape[1] + size <= MAX_COUNT, f"local_size {size} is larger than Caffe can count")
        check_shape((1, shape[1] + size - 1, *shape[2:]))  # Caffe's padded buffer
        return Inferred((shape,), operations=math.prod(shape) * size)
    _pooled(shape[2:], (size, size), (1, 1), (size // 2, size // 2))
    return Inferred((shape,), operations=math.prod(shape) * size * size)


def _spp(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    shape = four_axes(bottoms[0])
    need(p.pool != SPPParameter.STOCHASTIC, "STOCHASTIC pooling has no CPU implementation in Caffe")
    need(1 <= p.pyramid_height <= 24, "pyramid_height must be at least 1, and its bins must fit the input")
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


RULES = {
    "Convolution": Rule(_convolution, "convolution_param", bottoms=ANY, tops=ANY),
    "Deconvolution": Rule(_deconvolution, "convolution_param", bottoms=ANY, tops=ANY),
    "Im2col": Rule(_im2col, "convolution_param"),
    "LRN": Rule(_lrn, "lrn_param"),
    "Pooling": Rule(_pooling, "pooling_param", tops=(1, 2)),
    "SPP": Rule(_spp, "spp_param"),
}
