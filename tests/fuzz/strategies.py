"""What the fuzz tests draw from: JSON, messages with one field changed, and mutated prototxts."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from ionn.model.caffemodel import BlobSpan
from ionn.model.layers import LAYER_TYPES, REASONS
from ionn.model.partial_net import Channels, NetStage, PartialNet
from ionn.protocol import messages

# The test suite has the same cases each time. `make fuzz` sets this: so many times as many, and others each time.
_TIMES = int(os.environ.get("FUZZ_TIMES", "0"))

_NUMBERS = [
    -(2**63),
    -(2**31),
    -1,
    0,
    1,
    2,
    3,
    7,
    64,
    255,
    4096,
    65536,
    2**24,
    2**31 - 1,
    2**31,
    2**63,
    10**30,
    10**400,
]

# How many cases each test of the server has.
CASES = {
    "test_any_bytes": 300,
    "test_any_message_in_a_session": 800,
    "test_any_message_of_a_stranger": 400,
    "test_any_prototxt": 1000,
    "test_any_caffemodel": 150,
    "test_any_coded_query": 1000,
    "test_any_coded_chunk": 200,
    "test_any_pieces": 100,
    "test_any_order": 80,
    "test_any_order_of_slices": 25,
}


def examples(count: int) -> settings:
    """So many cases."""
    return settings(
        max_examples=count * max(_TIMES, 1),
        derandomize=_TIMES == 0,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def cases(test: Callable[..., None]) -> Callable[..., None]:
    """Decorate a test of the server: it has as many cases as CASES says."""
    return examples(CASES[test.__name__])(test)


# Half surrogate pairs too, which JSON can hold and UTF-8 cannot.
_TEXTS = st.text(st.characters(), max_size=5)

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.sampled_from(_NUMBERS) | st.integers() | st.floats() | _TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
    max_leaves=6,
)

_NET = PartialNet(
    'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 2 } } } '
    'layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param { num_output: 2 } }',
    "data",
    (NetStage(0, 0, ("data",)), NetStage(1, 1, ("fc",))),
)
_SLICE = dataclasses.replace(_NET, stages=(NetStage(1, 1, ("fc",)),), channels=Channels(1, 3, 4))
# A slice of a net that has only an input.
_NOTHING = PartialNet(
    'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 2 } } }',
    "data",
    (NetStage(1, 0, ("data",)),),
    Channels(0, 1, 2),
)
MESSAGES = [
    messages.Hello(messages.PROTOCOL, "control"),
    messages.Hello(messages.PROTOCOL, "upload", "0" * 32),
    messages.Welcome(messages.PROTOCOL, "0" * 32, 1, 1),
    messages.PartitionHeader(0, (_NET,), (BlobSpan("fc", 0, 10, 16), BlobSpan("fc", 1, 30, 8)), 40),
    messages.PartitionHeader(0, (_SLICE,), (BlobSpan("fc", 0, 10, 16), BlobSpan("fc", 1, 30, 8)), 40),
    messages.PartitionHeader(0, (_NOTHING,), (), 1),
    messages.PartitionHeader(
        0,
        (_NET,),
        (BlobSpan("fc", 0, 10, 16), BlobSpan("fc", 1, 30, 8)),
        40,
        (
            messages.AddressedPiece("ab" * 32, ((10, 8), (30, 4)), False),
            messages.AddressedPiece("cd" * 32, ((18, 8),), True),
        ),
    ),
    messages.Have((bytes(64),)),
    messages.Holds((b"\0\1",)),
    messages.Chunk(0, 0, 0, (b"\0" * 8,)),
    messages.PartitionEnd(0, "0" * 64),
    messages.Ack(0, 0),
    messages.Ready(0),
    messages.Query(1, 1, 1, (b"\0" * 8,)),
    messages.Query(1, 1, 1, (b"\0" * 8,), ("planes",), True),
    messages.Query(1, 1, 1),
    messages.Part(1, 1, 1, True, (b"\0" * 8,)),
    messages.Part(1, 1, 1, False),
    messages.Part(1, 1, 1, False, (b"\0" * 8,), ("raw",), True),
    messages.Join(1, False, (b"\0" * 4,)),
    messages.Join(1, False, (b"\0" * 4,), ("planes",), True),
    messages.Result(1, ((1, 2),), (0.5,), (b"\0" * 8,)),
    messages.Result(1, ((1, 2),), (0.5,), (b"\0" * 8,), ("planes",)),
    messages.Error(messages.ERROR_QUERY, "no", query=1),
    messages.Error(messages.ERROR_MISSING, "no", partition=1, pieces=(0, 1)),
    messages.Ping(),
    messages.Ping((b"probe",)),
    messages.Pong(),
    messages.Bye(),
]


@st.composite
def damaged_messages(draw: st.DrawFn) -> list[bytes]:
    """The frames of a message in which something, deep down, was changed, added or removed."""
    head, *payload = draw(st.sampled_from(MESSAGES)).frames()
    body = _changed(draw, json.loads(head))
    extra = draw(st.lists(st.binary(max_size=20), max_size=2))
    return [json.dumps(body).encode(), *map(bytes, payload), *extra]


def _changed(draw: st.DrawFn, value: Any) -> Any:
    """A copy with one change, somewhere."""
    if isinstance(value, dict) and value and draw(st.integers(0, 9)):
        key = draw(st.sampled_from(sorted(value)))
        if not draw(st.integers(0, 4)):
            return {name: part for name, part in value.items() if name != key}
        return {**value, key: _changed(draw, value[key])}
    if isinstance(value, list) and value and draw(st.integers(0, 4)):
        at = draw(st.integers(0, len(value) - 1))
        new = [] if not draw(st.integers(0, 4)) else [_changed(draw, value[at])] * draw(st.integers(1, 2))
        return [*value[:at], *new, *value[at + 1 :]]
    return draw(json_values)


def _layers(*layers: str) -> str:
    data = 'name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 4 dim: 6 dim: 6 } }'
    return "\n".join(f"layer {{\n{line}\n}}" for line in (data, *layers)).replace(" { ", " {\n").replace(" }", "\n}")


# Between them they have every kind of layer: windows, products, those of several bottoms or tops, and those of shapes.
PROTOTXTS = [
    _layers(
        'name: "conv" type: "Convolution" bottom: "data" top: "conv" '
        "convolution_param { num_output: 4 kernel_size: 3 stride: 1 pad: 1 group: 2 dilation: 1 bias_term: true }",
        'name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" '
        "batch_norm_param { use_global_stats: true eps: 0.001 }",
        'name: "scale" type: "Scale" bottom: "conv" top: "conv" scale_param { axis: 1 num_axes: 1 bias_term: true }',
        'name: "relu" type: "ReLU" bottom: "conv" top: "conv" relu_param { negative_slope: 0.1 }',
        'name: "pool" type: "Pooling" bottom: "conv" top: "pool" '
        "pooling_param { pool: MAX kernel_size: 3 stride: 2 pad: 1 round_mode: FLOOR }",
        'name: "loss" type: "SoftmaxWithLoss" bottom: "pool" include { phase: TRAIN } loss_param { ignore_label: 1 }',
        'name: "fc" type: "InnerProduct" bottom: "pool" top: "fc" inner_product_param { num_output: 5 axis: 1 }',
        'name: "prob" type: "Softmax" bottom: "fc" top: "prob" softmax_param { axis: 1 }',
    ),
    _layers(
        'name: "norm" type: "LRN" bottom: "data" top: "norm" '
        "lrn_param { local_size: 3 alpha: 0.1 beta: 0.75 norm_region: ACROSS_CHANNELS k: 1 }",
        'name: "left" type: "Deconvolution" bottom: "norm" top: "left" '
        "convolution_param { num_output: 2 kernel_size: 2 stride: 2 }",
        'name: "right" type: "Convolution" bottom: "norm" top: "right" '
        "convolution_param { num_output: 2 kernel_size: 1 }",
        'name: "up" type: "Upsample" bottom: "right" top: "up" upsample_param { scale: 2 }',
        'name: "join" type: "Concat" bottom: "left" bottom: "up" top: "join" concat_param { axis: 1 }',
        'name: "cut" type: "Slice" bottom: "join" top: "a" top: "b" slice_param { axis: 1 slice_point: 1 }',
        'name: "tile" type: "Tile" bottom: "a" top: "tile" tile_param { axis: 1 tiles: 3 }',
        'name: "sum" type: "Eltwise" bottom: "tile" bottom: "b" top: "sum" '
        "eltwise_param { operation: SUM coeff: 1 coeff: -1 }",
    ),
    _layers(
        'name: "permute" type: "Permute" bottom: "data" top: "permute" '
        "permute_param { order: 0 order: 2 order: 3 order: 1 }",
        'name: "reshape" type: "Reshape" bottom: "permute" top: "reshape" '
        "reshape_param { shape { dim: 0 dim: -1 dim: 6 dim: 4 } axis: 0 num_axes: -1 }",
        'name: "pad" type: "Pad" bottom: "reshape" top: "pad" pad_param { pad_u: 1 pad_d: 1 pad_l: 1 pad_r: 1 }',
        'name: "prelu" type: "PReLU" bottom: "pad" top: "pad" prelu_param { channel_shared: false }',
        'name: "spp" type: "SPP" bottom: "pad" top: "spp" spp_param { pyramid_height: 2 pool: MAX }',
        'name: "flat" type: "Flatten" bottom: "spp" top: "flat" flatten_param { axis: 1 end_axis: -1 }',
        'name: "top" type: "ArgMax" bottom: "flat" top: "top" argmax_param { top_k: 2 out_max_val: true }',
        'name: "power" type: "Power" bottom: "top" top: "power" power_param { power: 2 scale: 0.5 shift: 1 }',
        'name: "mean" type: "Reduction" bottom: "power" top: "mean" reduction_param { operation: MEAN axis: 1 }',
    ),
]
_TYPES = sorted(LAYER_TYPES) + sorted(REASONS)


@st.composite
def prototxts(draw: st.DrawFn) -> str:
    """One of PROTOTXTS with up to four mutations of numbers, words, names and lines."""
    text = draw(st.sampled_from(PROTOTXTS))
    for _ in range(draw(st.integers(1, 4))):
        text = draw(st.sampled_from([_number, _string, _type, _line, _junk]))(draw, text)
    return text


def _replaced(draw: st.DrawFn, text: str, pattern: str, new: str) -> str:
    found = list(re.finditer(pattern, text))
    if not found:
        return text
    match = draw(st.sampled_from(found))
    return text[: match.start()] + new + text[match.end() :]


def _number(draw: st.DrawFn, text: str) -> str:
    new = str(draw(st.sampled_from(_NUMBERS) | st.integers(0, 12) | st.floats(width=32)))
    return _replaced(draw, text, r"(?<=: )-?[0-9][0-9.]*", new)


def _string(draw: st.DrawFn, text: str) -> str:
    names = sorted(set(re.findall(r'"[^"]*"', text)))
    return _replaced(draw, text, r'"[^"]*"', draw(st.sampled_from(names) | st.just('""')))


def _type(draw: st.DrawFn, text: str) -> str:
    return _replaced(draw, text, r'(?<=type: )"[^"]*"', f'"{draw(st.sampled_from(_TYPES))}"')


def _line(draw: st.DrawFn, text: str) -> str:
    lines = text.split("\n")
    at, to = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
    match draw(st.integers(0, 2)):
        case 0:
            del lines[at]
        case 1:
            lines.insert(to, lines[at])
        case 2:
            lines[at], lines[to] = lines[to], lines[at]
    return "\n".join(lines)


def _junk(draw: st.DrawFn, text: str) -> str:
    at = draw(st.integers(0, len(text)))
    return text[:at] + draw(st.text(max_size=3) | st.sampled_from(["{", "}", "layer {", "#", ":"])) + text[at:]
