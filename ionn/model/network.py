"""A Caffe model's structure: its layers exactly as `caffe.Net` lists them, and its chain of stages.

Reading a prototxt follows Caffe: legacy input fields become an Input layer, layers are filtered for phase TEST, and a
Split layer follows every top that several layers consume. `Network.layers` then equals what `caffe.Net` lists: names,
types, bottoms, tops and shapes.

A stage is the unit that a plan moves: the layers between two cut points. A layer is a cut point if it has one top, if
no later layer overwrites that top in place, and if every path from the input to an output (or to a dead end such as
Silence) passes through it. Hence a convolution with its in-place ReLU is one stage, and so is an inception module or a
residual block.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf import text_format

from ionn.arguments import name_of, path_of, text_of
from ionn.errors import InputError, did_you_mean, printable
from ionn.files import read_text
from ionn.model import zoo
from ionn.model.layers import FOREIGN, LAYER_TYPES, REASONS, Shape, essential, infer, label
from ionn.model.proto import TEST, LayerParameter, NetParameter, blank_unread

# One message carries all outputs of a stage: a header, and a frame for each. Clients accept 2000 frames.
OUTPUTS_MAX = 1999

_FLOAT_BYTES = 4


def _bytes(shapes: Iterable[Shape]) -> int:
    return sum(map(math.prod, shapes)) * _FLOAT_BYTES


@dataclass(frozen=True)
class Layer:
    """A layer as `caffe.Net` lists it. Bottoms and tops are its input and output blobs; shapes include the batch.

    - `operations`: the amount of computation, as `ionn.model.layers` defines it for each type.
    - `param`: the LayerParameter that Caffe gets: the user's, without fields that do not affect the computation
      (`ionn.model.layers.essential`). Its bottoms are the user's; `bottoms` are those that Caffe replaces them with.
    - `inserted`: whether this is a Split layer that Caffe inserts by itself.
    """

    index: int
    name: str
    type: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    bottom_shapes: tuple[Shape, ...]
    top_shapes: tuple[Shape, ...]
    weight_shapes: tuple[Shape, ...]
    operations: int
    param: Any = field(repr=False, compare=False)
    inserted: bool = False

    @cached_property
    def weight_bytes(self) -> int:
        return _bytes(self.weight_shapes)

    @cached_property
    def input_bytes(self) -> int:
        return _bytes(self.bottom_shapes)

    @cached_property
    def output_bytes(self) -> int:
        return _bytes(self.top_shapes)


@dataclass(frozen=True)
class Stage:
    """A stage of the chain: the layers `first_layer`..`last_layer` (indices into `Network.layers`, both included).

    - `name`: its output blob; for the last stage, its first output blob.
    - `input`: its input blob; for the first stage, the network's input.
    - `weight_bytes`: the size of its weights, as float32.
    - `pinned`: whether it stays at the client, as the input stage does, and a last stage without weights.
    """

    index: int
    name: str
    first_layer: int
    last_layer: int
    layers: tuple[str, ...]
    input: str
    input_shape: Shape
    outputs: tuple[str, ...]
    output_shapes: tuple[Shape, ...]
    weight_bytes: int
    pinned: bool


@dataclass(frozen=True)
class Network:
    """A model: its `layers`, its `stages`, and its `outputs`, the tops that no layer consumes, sorted by name as in
    Caffe.

    `param` is the NetParameter without the layers that Caffe inserts, and without fields that do not affect the
    computation. Give `param` to Caffe, never the text that it was read from: only what is in `param` was checked.
    """

    name: str
    layers: tuple[Layer, ...]
    stages: tuple[Stage, ...]
    input: str
    input_shape: Shape
    outputs: tuple[str, ...]
    param: Any = field(repr=False, compare=False)

    @cached_property
    def digest(self) -> str:
        """A hexadecimal digest of the network's structure. Networks with other layers have another one, whatever their
        names are."""
        nameless = NetParameter(layer=self.param.layer)
        return hashlib.sha256(text_format.MessageToString(nameless).encode()).hexdigest()[:16]

    @classmethod
    def load(cls, model: str | Path) -> Network:
        """Read a bundled model by its name, or any model from a path that ends in .prototxt.

        A model from a file is named after the file, or after its folder if the file is a deploy.prototxt, as Caffe's
        models are.

        Raises InputError if there is no such model or file, or if ionn cannot run the network.
        """
        model = name_of(model, "model")
        if model.endswith(".prototxt"):
            path = path_of(model, "model")
        else:
            known = zoo.definitions()
            if model not in known:
                names = ", ".join(known) or "none"
                hint = did_you_mean(model, known)
                raise InputError(f"unknown model {model!r}; use one of {names}, or a path that ends in .prototxt{hint}")
            path = known[model]
        return _build(read_text(path, "the model"), _name(path), str(path))

    @classmethod
    def from_text(cls, text: str, name: str) -> Network:
        """Read a model from the text of a prototxt. Raises InputError, which names `name`, if ionn cannot run it."""
        name = text_of(name, "name")
        return _build(text_of(text, name), name, name)


def _name(path: Path) -> str:
    """The name of the model in a file. Folders and files of results have it in their names."""
    name = path.name.removesuffix(".prototxt")
    if name == "deploy":
        name = path.resolve().parent.name or name
    if not name.strip("."):
        raise InputError(f"{path}: a model is named after its file; put a name before .prototxt")
    return name


def _build(text: str, name: str, source: str) -> Network:
    try:
        name.encode()
    except UnicodeEncodeError:  # a file's name may be any bytes
        raise InputError(f"{source}: a model cannot have this name, which is not UTF-8; rename it") from None
    net = _parse(text, source)
    try:
        params = _test_phase(net)
        layers = _infer_layers(_insert_splits(params))
        stages = _stages(layers)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    param = NetParameter(name=net.name or name, layer=params)
    return Network(name, layers, stages, layers[0].tops[0], layers[0].top_shapes[0], stages[-1].outputs, param)


def _parse(text: str, source: str) -> Any:
    net = NetParameter()
    # Half a surrogate pair, which is no character, would break the parser.
    encoded = blank_unread(text).encode("utf-8", "replace")
    try:
        text_format.Parse(encoded, net)
    except text_format.ParseError as error:
        if foreign := _foreign_layer(encoded):
            raise InputError(f"{source}: {label(foreign)}: {FOREIGN}") from None
        reason = printable(" ".join(str(error).partition(" : ")[2].split()))[-200:]  # it may quote a long line first
        raise InputError(f"{source}:{error.GetLine()}:{error.GetColumn()}: {reason}") from error
    if missing := net.FindInitializationErrors():
        raise InputError(f"{source}: {missing[0]} is missing")
    return net


def _foreign_layer(text: bytes) -> Any:
    """The first layer whose type no Caffe has, if there is one: the text may have fields of its type, unknown as well,
    which the error would otherwise be about."""
    net = NetParameter()
    try:
        text_format.Parse(text, net, allow_unknown_field=True)
    except (text_format.ParseError, RecursionError):  # it calls itself for each level of an unknown field
        return None
    return next((layer for layer in net.layer if layer.type and layer.type not in LAYER_TYPES | REASONS), None)


def _test_phase(net: Any) -> list[Any]:
    """The layers of a NetParameter for phase TEST, without fields that do not affect the computation."""
    if net.layers:
        raise InputError("the old 'layers' format; convert it with Caffe's upgrade_net_proto_text")
    chosen = [*_legacy_input(net), *(layer for layer in net.layer if _included(layer, set(net.state.stage)))]
    for layer in chosen:
        if layer.HasField("phase") and layer.phase != TEST:
            raise InputError(f"{label(layer)}: it has phase TRAIN; remove the phase")
        if any(layer.loss_weight):
            raise InputError(f"{label(layer)}: it has a loss_weight, which is for training; remove it")
        if layer.blobs:
            raise InputError(f"{label(layer)}: it has weights in the prototxt; move them to the caffemodel")
    _check_unshared(chosen)
    return [essential(layer) for layer in chosen]


def _check_unshared(layers: Iterable[Any]) -> None:
    """Refuse weights that layers share: Caffe would store them once, but ionn gives each layer its own."""
    owners: dict[str, Any] = {}
    for layer in layers:
        for name in (param.name for param in layer.param if param.name):
            if name in owners:
                raise InputError(
                    f"layer {owners[name].name!r} and layer {layer.name!r} share the parameter {name!r}, "
                    "which ionn would compute as two; give each weights of its own"
                )
            owners[name] = layer


def _legacy_input(net: Any) -> list[Any]:
    """The Input layer that Caffe makes of the legacy fields `input` and `input_shape` or `input_dim`."""
    if not net.input:
        return []
    if len(net.input) != 1 or (len(net.input_shape), len(net.input_dim)) not in ((1, 0), (0, 4)):
        raise InputError("give one 'input' with one 'input_shape' or four 'input_dim', or an Input layer")
    layer = LayerParameter(name="input", type="Input", top=net.input)
    layer.input_param.shape.add(dim=net.input_shape[0].dim if net.input_shape else net.input_dim)
    return [layer]


def _included(layer: Any, stages: set[str]) -> bool:
    """Tell whether Caffe's FilterNet keeps a layer for phase TEST at level 0."""
    if layer.include and layer.exclude:
        raise InputError(f"{label(layer)}: give either include or exclude rules, not both")

    def meets(rule: Any) -> bool:
        return (
            (not rule.HasField("phase") or rule.phase == TEST)
            and (not rule.HasField("min_level") or rule.min_level <= 0)
            and (not rule.HasField("max_level") or rule.max_level >= 0)
            and stages.issuperset(rule.stage)
            and stages.isdisjoint(rule.not_stage)
        )

    return any(map(meets, layer.include)) if layer.include else not any(map(meets, layer.exclude))


class _Listed(NamedTuple):
    """A layer in Caffe's list: `param` as the user wrote it, and `connected` with the bottoms that Caffe gives it."""

    param: Any
    connected: Any
    inserted: bool


def _insert_splits(params: Sequence[Any]) -> list[_Listed]:
    """Add a Split layer after every top that is consumed more than once, with the names and the order of Caffe."""
    producer: dict[str, tuple[int, int]] = {}  # blob -> the (layer, top) that wrote it last
    sources: list[list[tuple[int, int]]] = []  # per layer and bottom
    for index, param in enumerate(params):
        for blob in param.bottom:
            if blob not in producer:
                raise InputError(f"{label(param)}: no layer before it makes its bottom {blob!r}")
        sources.append([producer[blob] for blob in param.bottom])
        producer.update((blob, (index, top)) for top, blob in enumerate(param.top))
    uses = Counter(source for bottoms in sources for source in bottoms)
    taken: Counter[tuple[int, int]] = Counter()
    result = []
    for index, param in enumerate(params):
        connected = LayerParameter()
        connected.CopyFrom(param)
        for bottom, source in enumerate(sources[index]):
            if uses[source] > 1:
                connected.bottom[bottom] = f"{_split_name(params, source)}_{taken[source]}"
                taken[source] += 1
        result.append(_Listed(param, connected, False))
        for top, blob in enumerate(param.top):
            count = uses[index, top]
            if count > 1:
                name = _split_name(params, (index, top))
                tops = [f"{name}_{use}" for use in range(count)]
                split = LayerParameter(name=name, type="Split", bottom=[blob], top=tops)
                result.append(_Listed(split, split, True))
    return result


def _split_name(params: Sequence[Any], source: tuple[int, int]) -> str:
    layer, top = source
    return f"{params[layer].top[top]}_{params[layer].name}_{top}_split"


def _infer_layers(listed: Sequence[_Listed]) -> tuple[Layer, ...]:
    """Infer the shapes, weights and operations of every layer, and check what Caffe checks when it connects them."""
    inputs = [param for param, _, _ in listed if param.type == "Input"]
    if not inputs:
        raise InputError("it has no Input layer; add one that gives the input's shape")
    if (count := sum(len(param.top) for param in inputs)) != 1:
        raise InputError(f"it has {count} inputs; ionn runs networks of one: one Input layer with one top")
    if inputs[0] is not listed[0].param:
        raise InputError(f"it must start with its Input layer; put layer {inputs[0].name!r} first")
    layers: list[Layer] = []
    names = Counter(param.name for param, _, _ in listed)
    shapes: dict[str, Shape] = {}
    for index, (param, connected, inserted) in enumerate(listed):
        bottoms, tops = tuple(connected.bottom), tuple(connected.top)
        bottom_shapes = tuple(shapes[blob] for blob in bottoms)
        result = infer(connected, bottom_shapes)
        if result.weights and names[param.name] > 1:
            raise InputError(f"{label(param)}: another layer has its name, by which its weights are found; rename it")
        for position, (blob, shape) in enumerate(zip(tops, result.tops, strict=True)):
            if blob in shapes and blob not in bottoms[position : position + 1]:
                raise InputError(f"{label(param)}: its top {blob!r} was made before, and it cannot work on it in place")
            shapes[blob] = shape
        layers.append(
            Layer(
                index,
                param.name,
                param.type,
                bottoms,
                tops,
                bottom_shapes,
                result.tops,
                result.weights,
                result.operations,
                param,
                inserted,
            )
        )
    return tuple(layers)


def _stages(layers: Sequence[Layer]) -> tuple[Stage, ...]:
    """Cut the layers into the stages of the chain."""
    ends, outputs = _cut_points(layers)
    if not outputs:
        raise InputError("it has no output: a layer consumes every top")
    if len(outputs) > OUTPUTS_MAX:
        raise InputError(f"it has {len(outputs)} outputs; ionn runs networks of at most {OUTPUTS_MAX}")
    shapes = {blob: shape for layer in layers for blob, shape in zip(layer.tops, layer.top_shapes, strict=True)}
    blob = layers[0].tops[0]
    first = 0
    stages = []
    for index, last in enumerate(ends):
        final = index == len(ends) - 1
        inside = layers[first : last + 1]
        weight_bytes = sum(layer.weight_bytes for layer in inside)
        tops = outputs if final else layers[last].tops
        stages.append(
            Stage(
                index=index,
                name=tops[0],
                first_layer=first,
                last_layer=last,
                layers=tuple(layer.name for layer in inside),
                input=blob,
                input_shape=shapes[blob],
                outputs=tops,
                output_shapes=tuple(shapes[top] for top in tops),
                weight_bytes=weight_bytes,
                pinned=index == 0 or (final and weight_bytes == 0),
            )
        )
        blob, first = tops[0], last + 1
    return tuple(stages)


def _cut_points(layers: Sequence[Layer]) -> tuple[list[int], tuple[str, ...]]:
    """The indices of the stages' last layers, the network's last layer among them, and the network's outputs.

    The sink is an imaginary layer that consumes what no other layer consumes. Layers are in topological order, and each
    lies on a path from the input to the sink. So all paths pass through a layer exactly if no blob made before it is
    used after it.
    """
    sink = len(layers)
    maker: dict[str, int] = {}  # blob not consumed yet -> the layer that made it
    last_use = [sink if not layer.tops else 0 for layer in layers]
    overwritten = [False] * len(layers)
    for layer in layers:
        for position, blob in enumerate(layer.bottoms):
            made = maker.pop(blob)
            last_use[made] = max(last_use[made], layer.index)
            overwritten[made] |= blob in layer.tops[position : position + 1]
        maker.update((blob, layer.index) for blob in layer.tops)
    for made in maker.values():
        last_use[made] = sink
    ends = []
    furthest = 0
    for layer in layers:
        if furthest <= layer.index and len(layer.tops) == 1 and not overwritten[layer.index]:
            ends.append(layer.index)
        furthest = max(furthest, last_use[layer.index])
    if ends[-1:] != [sink - 1]:
        ends.append(sink - 1)
    return ends, tuple(sorted(maker))
