"""The layer types that ionn can run, as a table from layer type to rule.

A rule derives the shapes of the top and weight blobs, and the operation count, from the layer's parameters and the
shapes of its bottom blobs, exactly as Caffe's LayerSetUp and Reshape do. It refuses whatever Caffe would answer with a
failed CHECK (which aborts the process), a division by zero or a read outside of a blob: a server runs strangers' nets
only after this table has accepted them.

The table is an allow-list. Its layers compute from their bottoms and weights alone, and write to neither: no files, no
code, no randomness, no state, and no memory access that depends on the values of a blob.

Operations count the multiply-adds of Convolution, Deconvolution and InnerProduct. For other layers they count the
elements read: output elements times window (Pooling, LRN) or times bottoms (Eltwise), input elements times levels
(SPP), input elements of reductions, and output elements of the rest. Layers that only share their bottom's memory
(Split, Flatten, Reshape), Input and Silence have none. The batch is included everywhere.

The rows are in `windows`, `arithmetic` and `shaping`; `rule` is what they are made of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ionn.errors import InputError
from ionn.model.layers import arithmetic, shaping, windows
from ionn.model.layers.rule import STATEFUL, Inferred, Refused, Rule, Shape, check_shape, shape_text
from ionn.model.proto import LayerParameter, PoolingParameter

__all__ = [
    "FOREIGN",
    "LAYER_TYPES",
    "REASONS",
    "Inferred",
    "Rule",
    "Shape",
    "essential",
    "infer",
    "label",
    "shape_text",
]

LAYER_TYPES: dict[str, Rule] = windows.RULES | arithmetic.RULES | shaping.RULES

# The reasons why other layer types, of ionn's Caffe or of BVLC's, are not in the table.
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
        STATEFUL: "LSTM LSTMUnit RNN",
        "the values of its input decide how large its output is or which memory it reads": (
            "BatchReindex Embed Filter MaxUnPool PSROIPooling Proposal"
        ),
        "Caffe's implementation reads outside of its input for some sizes": "BilinearInterpolate",
        "it only serves layers that read files; end the deploy prototxt before it": "PriorBox",
        "BVLC's Caffe has this type, the Caffe that ionn runs has not; docs/caffe.md says what to use": "Clip Swish",
    }.items()
    for name in names.split()
}
FOREIGN = "Caffe has no such layer type"


def infer(layer: Any, bottom_shapes: Sequence[Shape]) -> Inferred:
    """The shapes of a `LayerParameter`'s tops and weights, and its operations, for the shapes of its bottoms.

    Raises InputError, which names the layer, its type and the reason, if the type is not in the table or if Caffe could
    not run the layer.
    """
    try:
        rule = LAYER_TYPES.get(layer.type)
        if rule is None:
            raise Refused(REASONS.get(layer.type, FOREIGN))
        _check_blobs(rule, layer)
        result = rule.infer(getattr(layer, rule.param, None), bottom_shapes, len(layer.top))
        for shape in result.tops + result.weights:
            check_shape(shape)
    except Refused as refused:
        raise InputError(f"{label(layer)}: {refused}") from None
    return result


def label(layer: Any) -> str:
    """The name of a layer in messages: quoted, because a stranger may have chosen it."""
    return f"layer {layer.name!r} of type {layer.type!r}"


def essential(layer: Any) -> Any:
    """A copy of a `LayerParameter` with only the fields that affect the computation: name, type, bottoms, tops and the
    type's own parameters.

    It lacks training settings, fillers (weights come from a caffemodel; filling costs time, and a bad filler aborts
    Caffe) and the choice of an engine (Caffe built for CPUs aborts on CUDNN).
    """
    copy = LayerParameter(name=layer.name, type=layer.type, bottom=layer.bottom, top=layer.top)
    rule = LAYER_TYPES.get(layer.type)
    if rule and rule.param and layer.HasField(rule.param):
        own = getattr(copy, rule.param)
        own.CopyFrom(getattr(layer, rule.param))
        for field, _ in own.ListFields():
            if field.name == "engine" or (field.message_type and field.message_type.name == "FillerParameter"):
                own.ClearField(field.name)
        if layer.type == "Pooling":
            _set_ceil_mode(layer, own)
    return copy


def _set_ceil_mode(layer: Any, pooling: Any) -> None:
    """Translate `round_mode`, a field of BVLC's Caffe, into `ceil_mode`, which ionn's Caffe has in its place."""
    if not pooling.HasField("round_mode"):
        return
    ceil = pooling.round_mode == PoolingParameter.CEIL
    if pooling.HasField("ceil_mode") and pooling.ceil_mode != ceil:
        raise InputError(f"{label(layer)}: its round_mode and its ceil_mode contradict each other; give one of them")
    pooling.ceil_mode = ceil
    pooling.ClearField("round_mode")


def _check_blobs(rule: Rule, layer: Any) -> None:
    for kind, names, (least, most) in (("bottom", layer.bottom, rule.bottoms), ("top", layer.top, rule.tops)):
        if not least <= len(names) <= most:
            wanted = f"{least}" if least == most else f"at least {least}" if most == math.inf else f"{least} to {most}"
            raise Refused(f"takes {wanted} {kind} blobs, not {len(names)}")
    in_place = [top for bottom, top in zip(layer.bottom, layer.top, strict=False) if bottom == top]
    if in_place and not rule.in_place:
        reason = f"cannot work in place on {in_place[0]!r}, where it may read what it has overwritten"
        raise Refused(f"{reason}; give its top a name of its own")
