"""Rules of layers that only join, cut, move or resize their inputs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from ionn.model.layers.rule import ANY, Inferred, Rule, Shape, axis_of, four_axes, need, shape_text
from ionn.model.proto import PadParameter

# Resize scales coordinates in single precision; they stay inside of the input up to this size of its output.
MAX_RESIZED = 2**22


def _input(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    need(len(p.shape) in (1, tops), f"give one shape per top: it has {len(p.shape)} for {tops}")
    shapes = [tuple(shape.dim) for shape in p.shape]
    return Inferred(tuple(shapes if len(shapes) == tops else shapes * tops))


def _split(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    return Inferred((bottoms[0],) * tops)


def _silence(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    return Inferred(())


def _concat_axis(p: Any, shape: Shape, old_name: str) -> int:
    if not p.HasField(old_name):
        return axis_of(shape, p.axis)
    need(not p.HasField("axis"), f"give either axis or {old_name}, not both")
    return axis_of(shape, getattr(p, old_name))


def _concat(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    first = bottoms[0]
    axis = _concat_axis(p, first, "concat_dim")
    for shape in bottoms[1:]:
        same = len(shape) == len(first) and (*shape[:axis], first[axis], *shape[axis + 1 :]) == first
        need(same, f"its inputs {shape_text(first)} and {shape_text(shape)} differ on more than axis {axis}")
    top = (*first[:axis], sum(shape[axis] for shape in bottoms), *first[axis + 1 :])
    return Inferred((top,), operations=math.prod(top))


def _slice(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    shape = bottoms[0]
    axis = _concat_axis(p, shape, "slice_dim")
    size = shape[axis]
    if p.slice_point:
        need(len(p.slice_point) == tops - 1, f"takes {tops - 1} slice points for {tops} tops")
        edges = [0, *p.slice_point, size]
    else:
        need(size % tops == 0, f"cannot divide axis {axis} of size {size} into {tops} equal parts")
        edges = [part * size // tops for part in range(tops + 1)]
    sizes = [end - start for start, end in itertools.pairwise(edges)]
    need(min(sizes) >= 1, f"slice points must rise and stay below {size}")
    return Inferred(tuple((*shape[:axis], part, *shape[axis + 1 :]) for part in sizes), operations=math.prod(shape))


def _flatten(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    shape = bottoms[0]
    start, end = axis_of(shape, p.axis), axis_of(shape, p.end_axis) + 1
    need(start <= end, f"its axis {p.axis} lies behind its end_axis {p.end_axis}")
    return Inferred(((*shape[:start], math.prod(shape[start:end]), *shape[end:]),))


def _reshape(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    shape = bottoms[0]
    start = p.axis if p.axis >= 0 else len(shape) + p.axis + 1
    need(0 <= start <= len(shape), f"axis {p.axis} is out of range for an input of shape {shape_text(shape)}")
    need(p.num_axes >= -1, "num_axes must be at least -1")
    end = len(shape) if p.num_axes == -1 else start + p.num_axes
    need(end <= len(shape), f"axis {start} and num_axes {p.num_axes} exceed an input of shape {shape_text(shape)}")
    new = list(p.shape.dim)
    need(all(size >= -1 for size in new) and new.count(-1) <= 1, "its shape takes sizes, 0 to copy, and one -1")
    for index, size in enumerate(new):
        if size == 0:
            need(start + index < len(shape), f"size 0 at {index} has no input axis to copy")
            new[index] = shape[start + index]
    top = [*shape[:start], *new, *shape[end:]]
    if -1 in new:
        known = math.prod(size for size in top if size != -1)
        top[top.index(-1)] = math.prod(shape) // known
    need(
        math.prod(top) == math.prod(shape),
        f"cannot make {shape_text(tuple(p.shape.dim))} of an input {shape_text(shape)}",
    )
    return Inferred((tuple(top),))


def _crop(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    shape, wanted = bottoms
    axis = axis_of(shape, p.axis)
    axes = len(shape) - axis
    need(len(p.offset) in (0, 1, axes), f"takes 1 or {axes} offsets, not {len(p.offset)}")
    need(len(wanted) >= len(shape), f"cannot crop {shape_text(shape)} to {shape_text(wanted)}")
    offsets = list(p.offset) or [0]
    offsets = offsets * axes if len(offsets) == 1 else offsets
    sizes = wanted[axis : len(shape)]
    fits = all(o + want <= have for o, want, have in zip(offsets, sizes, shape[axis:], strict=True))
    need(fits, f"cannot crop {shape_text(sizes)} at {shape_text(tuple(offsets))} out of {shape_text(shape[axis:])}")
    top = (*shape[:axis], *sizes)
    return Inferred((top,), operations=math.prod(top))


def _tile(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    shape = bottoms[0]
    axis = axis_of(shape, p.axis)
    need(p.tiles >= 1, "tiles must be at least 1")
    top = (*shape[:axis], shape[axis] * p.tiles, *shape[axis + 1 :])
    return Inferred((top,), operations=math.prod(top))


def _permute(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    shape = bottoms[0]
    order = list(p.order)
    need(len(set(order)) == len(order), "an axis appears twice in its order")
    need(all(axis < len(shape) for axis in order), f"its order exceeds the {len(shape)} axes of its input")
    order += [axis for axis in range(len(shape)) if axis not in order]
    return Inferred((tuple(shape[axis] for axis in order),), operations=math.prod(shape))


def _unsqueeze(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    shape = bottoms[0]
    need(p.HasField("dim"), "dim is missing")
    index = p.dim if p.dim >= 0 else p.dim + len(shape) + 1
    need(0 <= index <= len(shape), f"dim {p.dim} is out of range for an input of shape {shape_text(shape)}")
    return Inferred(((*shape[:index], 1, *shape[index:]),), operations=math.prod(shape))


def _pad(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    batch, channels, height, width = four_axes(bottoms[0])
    need(min(p.pad_u, p.pad_d, p.pad_l, p.pad_r) >= 0, "its pads must be at least 0")
    if p.pad_type == PadParameter.REFLECT:
        fits = max(p.pad_u, p.pad_d) < height and max(p.pad_l, p.pad_r) < width
        need(fits, f"its pads must be smaller than its input of {height}x{width} to reflect it")
    top = (batch, channels, height + p.pad_u + p.pad_d, width + p.pad_l + p.pad_r)
    return Inferred((top,), operations=math.prod(top))


def _pixel_shuffle(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    batch, channels, height, width = four_axes(bottoms[0])
    factor = p.upscale_factor
    need(factor >= 1, "upscale_factor must be at least 1")
    need(channels % factor**2 == 0, f"its {channels} channels cannot be divided by {factor} x {factor}")
    top = (batch, channels // factor**2, height * factor, width * factor)
    return Inferred((top,), operations=math.prod(top))


def _resize(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    need(len(bottoms[0]) <= 4, f"takes an input of at most 4 axes, not {shape_text(bottoms[0])}")
    batch, channels, *_ = (*bottoms[0], 1, 1)
    need(not p.is_pyramid_test, "give height and width instead of is_pyramid_test")
    fits = 1 <= p.height <= MAX_RESIZED and 1 <= p.width <= MAX_RESIZED
    need(fits, f"height and width must be 1 to {MAX_RESIZED}")
    top = (batch, channels, p.height, p.width)
    return Inferred((top,), operations=math.prod(top))


def _upsample(p: Any, bottoms: Sequence[Shape], tops: int) -> Inferred:
    shape = bottoms[0]
    need(p.dims_num in (3, 4), f"dims_num must be 3 or 4, not {p.dims_num}")
    need(len(shape) == p.dims_num, f"takes an input of {p.dims_num} axes, not {shape_text(shape)}")
    need(p.scale >= 1, "scale must be at least 1")
    top = (*shape[:2], *(size * p.scale for size in shape[2:]))
    return Inferred((top,), operations=math.prod(top))


RULES = {
    "Concat": Rule(_concat, "concat_param", bottoms=ANY),
    "Crop": Rule(_crop, "crop_param", bottoms=(2, 2)),
    "Flatten": Rule(_flatten, "flatten_param"),
    "Input": Rule(_input, "input_param", bottoms=(0, 0), tops=ANY),
    "Pad": Rule(_pad, "pad_param"),
    "Permute": Rule(_permute, "permute_param"),
    "PixelShuffle": Rule(_pixel_shuffle, "pixelshuffle_param"),
    "Reshape": Rule(_reshape, "reshape_param"),
    "Resize": Rule(_resize, "resize_param"),
    "Silence": Rule(_silence, bottoms=ANY, tops=(0, 0)),
    "Slice": Rule(_slice, "slice_param", tops=ANY),
    "Split": Rule(_split, tops=ANY),
    "Tile": Rule(_tile, "tile_param"),
    "Unsqueeze": Rule(_unsqueeze, "unsqueeze_param"),
    "Upsample": Rule(_upsample, "upsample_param"),
}
