"""What a stranger may have Caffe compute: single layers with extreme parameters, shapes and numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from google.protobuf import text_format

from ionn.errors import InputError, IonnError
from ionn.model.caffemodel import serialise
from ionn.model.layers import LAYER_TYPES, Shape, essential, infer
from ionn.model.network import Layer, Network
from ionn.model.partial_net import ExtractedPartition, PartialNet
from ionn.model.proto import LayerParameter
from ionn.protocol import messages
from ionn.server.admission import Usage, check_partition
from ionn.server.limits import Limits
from tests.integration.test_layers import GOOD, make_layer
from tests.integration.test_layers import LIMITS as LIMITS_OF_LAYERS
from tests.support.choices import Choices, chance, pick
from tests.support.nets import layer
from tests.support.raw import upload_messages
from tests.support.schedules import Expected, stages_anywhere

# Sanitized code is slow: larger nets would only take longer.
LIMITS = Limits(blob_mb=2, weights_mb=20, memory_mb=200)
MOST_OPERATIONS = 10_000_000

Row = tuple[str, str, tuple[Shape, ...], int]
ROWS: dict[str, list[Row]] = {kind: [row for row in GOOD if row[0] == kind and row[2]] for kind in LAYER_TYPES}

_SIZES = [1, 1, 1, 2, 3, 4, 5, 8, 9, 17, 64, 255, 257, 65536, 65537, 200_000]
_INTEGERS = [0, 1, 2, 3, 4, 5, 7, 8, 16, 255, 256, 4096, 46341, 65536, 2**20, 2**22, 2**24 - 1, 2**30, 2**31 - 1]
_UNSIGNED = [*_INTEGERS, 2**31, 2**32 - 1]
_SIGNED = [*_INTEGERS, -1, -2, -3, -4, -5, -(2**30), -(2**31)]
# Whose squares, sums or products are next to what an int holds.
_LARGE = [46340, 46341, 65536, 2**23 - 4, 2**24 - 1, 2**30 - 5, 2**30, 2**31 - 3, 2**31 - 1]
_FLOATS = [0.0, 1.0, -1.0, 0.5, 2.0, 1e-3, 1e-45, -1e-45, 1e-38, 3e38, -3e38, math.inf, -math.inf, math.nan, 2.0**31]


# --- Layers ----------------------------------------------------------------------------------------------------------


def net_of(param: Any, shapes: tuple[Shape, ...], in_place: bool) -> str:
    """A net of one input, which is cut into the layer's bottoms; behind the layer is another."""
    sizes = [math.prod(shape) for shape in shapes]
    names = " ".join(f"flat{index}" for index in range(len(shapes)))
    points = " ".join(f"slice_point: {sum(sizes[:index])}" for index in range(1, len(shapes)))
    text = layer("Input", "data", params=f"input_param {{ shape {{ dim: {sum(sizes)} }} }}")
    text += layer("Slice", "cut", "data", names, f"slice_param {{ axis: 0 {points} }}")
    for index, shape in enumerate(shapes):
        dims = " ".join(f"dim: {size}" for size in shape)
        text += layer("Reshape", f"in{index}", f"flat{index}", None, f"reshape_param {{ shape {{ {dims} }} }}")
    own = LayerParameter()
    own.CopyFrom(param)
    if in_place:
        own.top[0] = own.bottom[0]
    text += f"layer {{ {text_format.MessageToString(own, as_one_line=True)} }}\n"
    return text + layer("AbsVal", "behind", (*own.top, own.bottom[0])[0])


def rows() -> Iterator[str]:
    """Every row of the table's tests, and in place where that is allowed."""
    for kind, some in sorted(ROWS.items()):
        for _, params, shapes, tops in some:
            param = essential(make_layer(kind, params, len(shapes), tops))
            for in_place in (False, True)[: 1 + LAYER_TYPES[kind].in_place]:
                yield net_of(param, shapes, in_place)


def limits() -> Iterator[str]:
    """Layers as large as Caffe can count."""
    for kind, params, bottom, _ in LIMITS_OF_LAYERS:
        param = make_layer(kind, params, int(bottom is not None), 1)
        if bottom is not None and _is_accepted(param, [bottom]):
            yield net_of(essential(param), (bottom,), in_place=False)


def changed_rows() -> Iterator[str]:
    """Of every type every field of its parameters with every extreme value, in the first row that then is accepted, be
    it with the smallest bottoms."""
    for kind, some in sorted(ROWS.items()):
        name = LAYER_TYPES[kind].param
        blank = getattr(LayerParameter(), name) if name and some else None
        for field in blank.DESCRIPTOR.fields if blank is not None else ():
            for value in _values(field):
                yield from itertools.islice(_with(some, name, field.name, value), 1)


def _with(some: list[Row], name: str, field: str, value: Any) -> Iterator[str]:
    """The nets of those rows that are accepted with this value."""
    smallest = [
        (kind, params, tuple((1,) * len(shape) for shape in shapes), tops) for kind, params, shapes, tops in some
    ]
    for kind, params, shapes, tops in (*some, *smallest):
        param = make_layer(kind, params, len(shapes), tops)
        own = getattr(param, name)
        if _is_repeated(own, field):
            own.ClearField(field)
            getattr(own, field).append(value)
        else:
            setattr(own, field, value)
        if _is_accepted(param, shapes):
            yield net_of(essential(param), shapes, in_place=False)


def _is_accepted(param: Any, shapes: Sequence[Shape]) -> bool:
    try:
        infer(essential(param), shapes)
    except InputError:
        return False
    return True


def _is_repeated(message: Any, field: str) -> bool:
    return hasattr(getattr(message, field), "extend")


def extreme(c: Choices, kind: str) -> str | None:
    """A layer of this type with parameters and shapes that are changed at random, in a net; None if it is refused."""
    _, params, shapes, tops = pick(c, ROWS[kind])
    bottoms = list(shapes)
    large = chance(c, 40)
    if chance(c, 70):
        bottoms = _other_shapes(c, bottoms, (1, 1, 2) if large else _SIZES)
    param = make_layer(kind, params, len(bottoms), tops)
    name = LAYER_TYPES[kind].param
    for _ in range(c.integer(0, 4) if name else 0):
        _change(c, getattr(param, name), large)
    if not _is_accepted(param, bottoms):
        return None
    return net_of(essential(param), tuple(bottoms), LAYER_TYPES[kind].in_place and chance(c, 30))


def _other_shapes(c: Choices, shapes: list[Shape], sizes: Sequence[int]) -> list[Shape]:
    """All replaced by one, or one axis of one or of all changed."""
    if chance(c, 40):
        return [tuple(pick(c, sizes) for _ in range(pick(c, (4, 4, 2, 3, 1, 0, 5, 8))))] * len(shapes)
    at, axis, size, all_of_them = c.integer(0, len(shapes) - 1), c.integer(0, 31), pick(c, sizes), chance(c, 60)
    return [
        (*shape[: axis % len(shape)], size, *shape[axis % len(shape) + 1 :])
        if shape and (all_of_them or index == at)
        else shape
        for index, shape in enumerate(shapes)
    ]


def _change(c: Choices, message: Any, large: bool) -> None:
    """Give one field of a message another value, if it is a number a `large` one."""
    field = pick(c, message.DESCRIPTOR.fields)
    if field.message_type is not None:
        if field.message_type.name == "BlobShape" and message.HasField(field.name):
            _change(c, getattr(message, field.name), large)
        return
    if _is_repeated(message, field.name):
        values = [_value(c, field, large) for _ in range(pick(c, (1, 1, 2, 3, 0)))]
        old = list(getattr(message, field.name))
        if old and chance(c, 60):
            values = old
            values[c.integer(0, len(old) - 1)] = _value(c, field, large)
        message.ClearField(field.name)
        getattr(message, field.name).extend(values)
    elif chance(c, 20):
        message.ClearField(field.name)
    else:
        setattr(message, field.name, _value(c, field, large))


def _value(c: Choices, field: Any, large: bool) -> Any:
    values = _values(field)
    if values not in (_UNSIGNED, _SIGNED):
        return pick(c, values)
    # Mostly such as may be accepted.
    return pick(c, _LARGE) if large else c.integer(0, 6) if chance(c, 50) else pick(c, values)


def _values(field: Any) -> list[Any]:
    """Extreme values for a field, none for a message."""
    if field.enum_type is not None:
        return [value.number for value in field.enum_type.values]
    match field.cpp_type:
        case field.CPPTYPE_MESSAGE | field.CPPTYPE_STRING:
            return []
        case field.CPPTYPE_BOOL:
            return [False, True]
        case field.CPPTYPE_FLOAT | field.CPPTYPE_DOUBLE:
            return _FLOATS
        case field.CPPTYPE_UINT32 | field.CPPTYPE_UINT64:
            return _UNSIGNED
    return _SIGNED


# --- Numbers ---------------------------------------------------------------------------------------------------------


def _numbers(rng: np.random.Generator, shape: Shape, finite: bool) -> np.ndarray:
    """Floats as a stranger may choose them: usual, huge, tiny, like indices, or any of these."""
    usual = rng.standard_normal(shape)
    indices = rng.choice([-1.0, 0, 1, 2, 5, 1e9, 2.0**31, -(2.0**31), 1e19], shape)
    special = [0.0, -0.0, 1e-45, -1e-42, 3.4e38, -3.4e38, 1.0, -1.0] + ([] if finite else [np.nan, np.inf, -np.inf])
    kinds = [usual, usual * 1e38, usual * 1e-42, np.zeros(shape), -abs(usual), indices, rng.choice(special, shape)]
    with np.errstate(over="ignore"):
        values = np.asarray(kinds[rng.integers(len(kinds))], np.float32)
    return np.nan_to_num(values) if finite else values


def _operations(layer: Layer) -> int:
    if layer.type != "Pooling":
        return layer.operations
    # Caffe cuts a window to the input before it looks at its elements.
    return min(layer.operations, math.prod(layer.top_shapes[0]) * math.prod(layer.bottom_shapes[0]))


def steps(c: Choices, text: str) -> tuple[Network, list[Expected]] | None:
    """What a stranger sends of a net, in any stages, with any numbers; None if the net is refused or large."""
    try:
        network = Network.from_text(text, "net")
    except IonnError:
        return None
    stages = stages_anywhere(c, network)
    if stages is None or sum(map(_operations, network.layers)) > MOST_OPERATIONS:
        return None
    rng = np.random.default_rng(c.integer(0, 2**31))
    weights = {
        each.name: tuple(_numbers(rng, shape, finite=True) for shape in each.weight_shapes)
        for each in network.layers
        if each.weight_shapes
    }
    net = PartialNet(text, network.input, stages)
    header, chunks, end = upload_messages(ExtractedPartition((net,), serialise("net", network.layers, weights)))
    try:
        (checked,) = check_partition(header, LIMITS, Usage(), {})
    except IonnError:
        return None
    made: list[Expected] = [Expected(0, "header", header, messages.Ack)]
    made += [Expected(0, "idle", None)] * c.integer(0, len(stages))
    made += [Expected(0, "chunk", chunk, messages.Ack) for chunk in chunks]
    made += [Expected(0, "end", end, messages.Ready)]
    taken = [checked.boundaries[stage.index].input for stage in stages]
    for number in range(c.integer(3, 6)):
        first = pick(c, [0, c.integer(0, len(stages) - 1)])
        last = pick(c, [len(stages) - 1, c.integer(first, len(stages) - 1)])
        data = _numbers(rng, taken[first], finite=False)
        query = messages.Query(number, first, last, (data.tobytes(),))
        made.append(Expected(0, f"query {number}: stages {first}..{last}", query, messages.Result))
    return network, made
