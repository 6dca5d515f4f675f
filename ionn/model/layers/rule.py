"""The rows of the table of layer types, and the checks that they share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Shape = tuple[int, ...]

# Caffe counts the elements of a blob in an int, and has at most 32 axes (blob.hpp).
MAX_COUNT = 2**31 - 1
MAX_AXES = 32

ANY = (1, math.inf)  # of bottoms or tops

# The reason for refusing a layer that computes from more than its bottoms and loaded weights.
STATEFUL = "it keeps state between queries"


@dataclass(frozen=True)
class Inferred:
    """What follows from a layer's bottoms: shapes of its tops and weights, and its operations (`ionn.model.layers`)."""

    tops: tuple[Shape, ...]
    weights: tuple[Shape, ...] = ()
    operations: int = 0


@dataclass(frozen=True)
class Rule:
    """One row of the table. `infer(param, bottom_shapes, number_of_tops)` raises `Refused` with the reason.

    `param` is the field of LayerParameter that holds the type's own parameters ("" for none); `bottoms` and `tops` are
    the least and the greatest number allowed; `in_place` says whether the first top may be the first bottom.
    """

    infer: Callable[[Any, Sequence[Shape], int], Inferred]
    param: str = ""
    bottoms: tuple[int, float] = (1, 1)
    tops: tuple[int, float] = (1, 1)
    in_place: bool = False


class Refused(Exception):
    """The reason why a layer cannot be used."""


def check_shape(shape: Shape) -> None:
    need(len(shape) <= MAX_AXES, f"a blob of {len(shape)} axes; Caffe has at most {MAX_AXES}")
    need(all(size >= 1 for size in shape), f"a blob of shape {shape_text(shape)}; every size must be at least 1")
    need(math.prod(shape) <= MAX_COUNT, f"a blob of shape {shape_text(shape)} is larger than Caffe can count")


def need(condition: bool, reason: str) -> None:
    if not condition:
        raise Refused(reason)


def shape_text(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "()"


def axis_of(shape: Shape, axis: int) -> int:
    """The index of an axis that may count from the end."""
    need(-len(shape) <= axis < len(shape), f"axis {axis} is out of range for an input of shape {shape_text(shape)}")
    return axis % len(shape)


def four_axes(shape: Shape) -> Shape:
    need(len(shape) == 4, f"takes an input of 4 axes, not {shape_text(shape)}")
    return shape


def check_equal(shapes: Sequence[Shape]) -> None:
    for shape in shapes[1:]:
        need(shape == shapes[0], f"its inputs have different shapes, {shape_text(shapes[0])} and {shape_text(shape)}")
