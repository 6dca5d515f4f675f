"""What each layer costs on a device, in ms: predicted by a cost model, or measured as a profile.

A `CostModel` predicts the layers of any network: per layer type a few non-negative coefficients over features of the
layer (Neurosurgeon's prediction functions, which section 2.1 of the paper relies on for the server). A `Profile` is
what was measured layer by layer, and fits one network only. Planning takes either: both are `Costs`.

On disk both are JSON: an object with `kind` ("cost-model" or "profile") and `schema`. Published profiles are imported
from text lines `index name ms` or from a column of a CSV.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import difflib
import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ionn.errors import InputError
from ionn.network import Layer, Network
from ionn.proto import caffe_pb2
from ionn.slicing import SMALL_PRODUCT

SCHEMA = 1

Milliseconds = NDArray[np.float64]
Coefficients = Mapping[str, float]

_DEVICES = Path(__file__).with_name("devices")
_FLOAT_BYTES = 4

# The features that the time of a layer type is fitted over, the most telling first; other types use DEFAULT_FEATURES.
#
# Caffe convolves by im2col and a matrix product per group. A product costs its operations plus a share per element of
# each matrix, since large operands are packed (copied in the order of use) and the result is written: that is why flat
# and narrow products are slow, and the many small ones of a depthwise convolution less so. A GPU is rarely filled by
# one layer; there the length of each sum (`depth`) counts, less so for the 3x3 kernels of stride 1 that have fast
# algorithms. An inner product of batch 1 is all packing, slower where the rows of its weights are whole pages apart and
# compete for the same cache lines, and where they are many. Pooling looks up its blobs anew for every plane, and max
# pooling branches on its data, least predictably where a window begins.
FEATURES: dict[str, tuple[str, ...]] = {
    "Convolution": (
        "operations",
        "weight_bytes",
        "column_bytes",
        "output_bytes",
        "im2col_bytes",
        "constant",
        "depth",
        "depth_3x3",
        "packed_bytes",
    ),
    "InnerProduct": ("weight_bytes", "constant", "packed_bytes", "page_rows_bytes", "extra_rows_bytes"),
    "Pooling": ("operations", "max_operations", "constant", "input_bytes", "planes", "max_output_bytes"),
}
DEFAULT_FEATURES = ("operations", "constant", "large_bytes")
_ALL_FEATURES = {"filters", *DEFAULT_FEATURES}.union(*FEATURES.values())

# Blobs beyond this do not stay in the caches of a small core, which slows down layers that do little per element.
_LARGE_BYTES = 512 * 1024

# Packing takes a piece of every row at a time: it misses the TLB where there are more rows, in pages of their own.
_PAGE_BYTES = 4096
_TLB_ROWS = 2048

# Features that do not shrink when only some output channels are computed: where they are the input's, unrolled or not.
_FIXED = {"Convolution": ("constant", "column_bytes", "im2col_bytes", "packed_bytes", "depth", "depth_3x3")}
_DEFAULT_FIXED = ("constant",)

# A type without coefficients of its own costs what a similar type does.
_SIMILAR = {"Deconvolution": "Convolution"}


def features(layer: Layer) -> dict[str, float]:
    """What the time of a layer is predicted from. A feature that is not in the result is 0.

    All types: `constant` (1), `operations` (as `ionn.layers` defines them), `weight_bytes`, `input_bytes`,
    `output_bytes`, and `large_bytes` (input and output bytes, where they exceed 512 KiB and the layer touches them).
    Pooling: `planes` (channels of all images) and, of max pooling, `max_operations` and `max_output_bytes`, its
    operations and output bytes. Convolution, Deconvolution and InnerProduct: `depth`, the multiply-adds per output
    element, and `packed_bytes`, the larger operand of their products unless these are small: the weights of an
    InnerProduct, the columns of a convolution. InnerProduct: `page_rows_bytes`, the same where the rows of the weights
    are whole pages of 4 KiB, and `extra_rows_bytes`, the rows after the 2048th. Convolution and Deconvolution:
    `filters` (output channels), `column_bytes` (the matrix that the weights are multiplied with), `im2col_bytes` (the
    same where Caffe has to build that matrix: not for a 1x1 kernel of stride 1 without padding), and for 3x3 kernels of
    stride 1 `depth_3x3` in place of `depth`.
    """
    blob_bytes = float(layer.input_bytes + layer.output_bytes)
    values = {
        "constant": 1.0,
        "operations": float(layer.operations),
        "weight_bytes": float(layer.weight_bytes),
        "input_bytes": float(layer.input_bytes),
        "output_bytes": float(layer.output_bytes),
        "large_bytes": blob_bytes if layer.operations and blob_bytes > _LARGE_BYTES else 0.0,
    }
    if layer.type == "Pooling":
        values["planes"] = float(math.prod(layer.bottom_shapes[0][:2]))
        if layer.param.pooling_param.pool == caffe_pb2.PoolingParameter.MAX:
            values |= {"max_operations": values["operations"], "max_output_bytes": values["output_bytes"]}
    if layer.type == "InnerProduct" and layer.operations > SMALL_PRODUCT:
        rows, length = layer.weight_shapes[0]
        values["packed_bytes"] = values["weight_bytes"]
        values["extra_rows_bytes"] = float(max(0, rows - _TLB_ROWS) * length * _FLOAT_BYTES)
        if length * _FLOAT_BYTES % _PAGE_BYTES == 0:
            values["page_rows_bytes"] = values["weight_bytes"]
    if layer.type in ("Convolution", "Deconvolution", "InnerProduct"):
        values["depth"] = layer.operations * _FLOAT_BYTES / layer.output_bytes
    if layer.type in ("Convolution", "Deconvolution"):
        values |= _convolution_features(layer, values["depth"])
    return values


def _convolution_features(layer: Layer, depth: float) -> dict[str, float]:
    p = layer.param.convolution_param
    weights = layer.weight_shapes[0]
    kernel = weights[2:]
    stride = max(1, *p.stride, p.stride_h, p.stride_w)
    pad = max(0, *p.pad, p.pad_h, p.pad_w)
    columns = layer.operations / math.prod(weights)  # of all images
    column_bytes = columns * p.group * math.prod(weights[1:]) * _FLOAT_BYTES
    needs_im2col = math.prod(kernel) > 1 or stride > 1 or pad > 0
    fast = kernel == (3, 3) and stride == 1
    small = layer.operations <= SMALL_PRODUCT * p.group * layer.bottom_shapes[0][0]
    return {
        "filters": float(p.num_output),
        "column_bytes": column_bytes,
        "packed_bytes": 0.0 if small else column_bytes,
        "im2col_bytes": column_bytes if needs_im2col else 0.0,
        "depth": 0.0 if fast else depth,
        "depth_3x3": depth if fast else 0.0,
    }


class Costs(Protocol):
    """What the layers of a network cost on a device. All methods return float64 (len(network.layers),), in ms."""

    @property
    def name(self) -> str: ...

    def layer_ms(self, network: Network) -> Milliseconds:
        """The time of each layer's forward pass. Raises InputError if these costs do not fit the network."""

    def load_ms(self, network: Network) -> Milliseconds:
        """The time to load each layer at a server once its weights have arrived; 0 where that is not known."""

    def fixed_ms(self, network: Network) -> Milliseconds:
        """The part of `layer_ms` that stays when a layer computes only some of its output channels; 0 where that is not
        known."""

    def to_json(self) -> dict[str, Any]:
        """What `costs_from_json` reads."""


@dataclass(frozen=True)
class CostModel:
    """A device's prediction functions: a layer's time is the sum of coefficient x feature, in ms.

    `layers` maps layer types to coefficients (ms per unit of a feature of `features`). A Deconvolution without its own
    is predicted as a Convolution, any other type by `default`. `loads` does the same for the time to load a layer at
    the server; types that are not in it load in no time. `machine` describes the device.

    Raises InputError for an unknown feature and for a coefficient that is negative or not finite.
    """

    name: str
    layers: Mapping[str, Coefficients]
    default: Coefficients
    loads: Mapping[str, Coefficients] = field(default_factory=dict)
    machine: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for type_, coefficients in (*self.layers.items(), ("default", self.default), *self.loads.items()):
            if not isinstance(coefficients, Mapping):
                raise InputError(f"{self.name}: {type_}: not an object of feature and coefficient")
            for feature, value in coefficients.items():
                if feature not in _ALL_FEATURES:
                    known = ", ".join(sorted(_ALL_FEATURES))
                    raise InputError(f"{self.name}: {type_}: unknown feature {feature!r}; features are {known}")
                _check_number(value, f"{self.name}: {type_}: {feature}")

    def layer_ms(self, network: Network) -> Milliseconds:
        return np.array([self.predict(layer) for layer in network.layers], dtype=np.float64)

    def load_ms(self, network: Network) -> Milliseconds:
        return np.array([_sum(self.loads.get(layer.type, {}), layer) for layer in network.layers], dtype=np.float64)

    def fixed_ms(self, network: Network) -> Milliseconds:
        return np.array([self._predict_fixed(layer) for layer in network.layers], dtype=np.float64)

    def predict(self, layer: Layer) -> float:
        """The time of one layer's forward pass, in ms."""
        return _sum(self._coefficients(layer), layer)

    def _predict_fixed(self, layer: Layer) -> float:
        fixed = _FIXED.get(layer.type, _DEFAULT_FIXED)
        return _sum({name: value for name, value in self._coefficients(layer).items() if name in fixed}, layer)

    def _coefficients(self, layer: Layer) -> Coefficients:
        similar = self.layers.get(_SIMILAR.get(layer.type, ""), self.default)
        return self.layers.get(layer.type, similar)

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": "cost-model",
            "schema": SCHEMA,
            "name": self.name,
            "machine": dict(self.machine),
            "layers": {type_: dict(coefficients) for type_, coefficients in self.layers.items()},
            "default": dict(self.default),
            "loads": {type_: dict(coefficients) for type_, coefficients in self.loads.items()},
        }

    def save(self, path: Path) -> None:
        """Write the model as JSON; the file appears only when complete. Raises InputError if it cannot be written."""
        _save(self.to_json(), path)


def _sum(coefficients: Coefficients, layer: Layer) -> float:
    values = features(layer)
    return sum(value * values.get(feature, 0.0) for feature, value in coefficients.items())


@dataclass(frozen=True)
class LayerTime:
    """What was measured of one layer. `type` is "" where the source does not tell."""

    name: str
    type: str
    ms: float
    load_ms: float = 0.0


@dataclass(frozen=True)
class Profile:
    """The measured times of one network's layers, in Caffe's order. `machine` describes where they were measured.

    Raises InputError for a time that is negative or not finite, and for a profile without layers.
    """

    name: str
    layers: tuple[LayerTime, ...]
    machine: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.layers:
            raise InputError(f"{self.name}: no layers; a profile has one time per layer of its network")
        for layer in self.layers:
            _check_number(layer.ms, f"{self.name}: ms of layer {layer.name!r}")
            _check_number(layer.load_ms, f"{self.name}: load_ms of layer {layer.name!r}")

    @classmethod
    def of(
        cls,
        network: Network,
        ms: ArrayLike,
        *,
        load_ms: ArrayLike = 0.0,
        name: str = "",
        machine: Mapping[str, str] | None = None,
    ) -> Profile:
        """The profile of a network from its layers' times, of shape (len(network.layers),).

        Raises InputError for times that are negative or not finite.
        """
        columns = [np.broadcast_to(times, (len(network.layers),)).tolist() for times in (ms, load_ms)]
        rows = zip(network.layers, *columns, strict=True)
        layers = tuple(LayerTime(layer.name, layer.type, *times) for layer, *times in rows)
        return cls(name or f"profile of {network.name}", layers, machine or {})

    def layer_ms(self, network: Network) -> Milliseconds:
        self._check_fits(network)
        return np.array([layer.ms for layer in self.layers], dtype=np.float64)

    def load_ms(self, network: Network) -> Milliseconds:
        self._check_fits(network)
        return np.array([layer.load_ms for layer in self.layers], dtype=np.float64)

    def fixed_ms(self, network: Network) -> Milliseconds:
        return np.zeros(len(network.layers))

    def _check_fits(self, network: Network) -> None:
        for index, (mine, theirs) in enumerate(zip_longest(self.layers, network.layers)):
            same = mine is not None and theirs is not None and mine.name == theirs.name
            if not same or mine.type not in ("", theirs.type):
                raise InputError(
                    f"{self.name}: not a profile of {network.name}: layer {index} is {_label(mine)} in the profile "
                    f"and {_label(theirs)} in the network; choose a profile of this network"
                )

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": "profile",
            "schema": SCHEMA,
            "name": self.name,
            "machine": dict(self.machine),
            "layers": [dataclasses.asdict(layer) for layer in self.layers],
        }

    def save(self, path: Path) -> None:
        """Write the profile as JSON; the file appears only when complete. Raises InputError if it cannot be written."""
        _save(self.to_json(), path)


def _label(layer: LayerTime | Layer | None) -> str:
    return "missing" if layer is None else f"{layer.name!r} ({layer.type or 'of unknown type'})"


def _check_number(value: object, where: str) -> None:
    # The comparison is false for NaN, and exact for integers that no float can hold.
    if isinstance(value, bool) or not (isinstance(value, int | float) and 0 <= value <= sys.float_info.max):
        raise InputError(f"{where} is {value!r:.40}; it must be a number, finite and not negative")


def device_names() -> list[str]:
    """The devices that `load_costs` knows by name."""
    return sorted(path.stem for path in _DEVICES.glob("*.json"))


def load_costs(spec: str) -> Costs:
    """The costs that a user asks for: the name of a device; a file that was saved here; a text file of lines
    `index name ms`; or `FILE.csv:COLUMN`, a CSV with a `layer` column, that column in ms, and perhaps a `type` column.

    Raises InputError, naming the file and the line or layer, for anything else.
    """
    known = device_names()
    if spec in known:
        return _from_text(_DEVICES / f"{spec}.json")
    file, _, column = spec.rpartition(":")
    if file.lower().endswith(".csv"):
        return _from_csv(Path(file), column)
    if spec.lower().endswith(".csv"):
        raise InputError(f"{spec}: name the column that holds the times in ms, as in {spec}:COLUMN")
    if os.path.exists(spec):
        return _from_text(Path(spec))
    close = difflib.get_close_matches(spec, known, n=1, cutoff=0.4)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise InputError(f"{spec}: no such file or device; devices are {', '.join(known)}{hint}")


def costs_from_json(document: object, source: str) -> CostModel | Profile:
    """A cost model or profile from what its `to_json` made, checked: it may come from a stranger.

    Raises InputError, naming `source`.
    """
    try:
        match document:
            case {"kind": "cost-model" | "profile", **rest} if rest.get("schema") != SCHEMA:
                raise InputError("written by another version of ionn; measure again")
            case {"machine": dict(machine)} if not all(isinstance(value, str) for value in machine.values()):
                raise InputError("machine: not an object of texts")
            case {
                "kind": "cost-model",
                "name": str(name),
                "machine": dict(machine),
                "layers": dict(functions),
                "default": dict(default),
                "loads": dict(loads),
            }:
                return CostModel(name, functions, default, loads, machine)
            case {"kind": "profile", "name": str(name), "machine": dict(machine), "layers": list(layers)}:
                return Profile(name, tuple(map(_layer_time, layers)), machine)
            case {"kind": "cost-model" | "profile" as kind}:
                raise InputError(f"not a complete {kind}; measure again")
        raise InputError("not a cost model or profile of ionn")
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def _layer_time(document: object) -> LayerTime:
    match document:
        case {"name": str(name), "type": str(type_), "ms": ms, "load_ms": load_ms}:
            return LayerTime(name, type_, ms, load_ms)
    raise InputError("a layer without name, type, ms and load_ms")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot read the costs: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a file of costs: it is not UTF-8 text") from error


def _from_text(path: Path) -> CostModel | Profile:
    text = _read(path)
    if text.lstrip().startswith("{"):
        try:
            return costs_from_json(json.loads(text), str(path))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: not JSON: {error}") from error
    layers = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            index, name, ms = line.split()
            int(index)
        except ValueError:
            raise InputError(f"{path}:{number}: not a line of 'index name ms': {line.strip()[:60]!r}") from None
        layers.append(LayerTime(name, "", _parse_ms(ms, f"{path}:{number}: the time of layer {name!r}")))
    return Profile(path.name, tuple(layers))


def _from_csv(path: Path, column: str) -> Profile:
    rows = csv.DictReader(_read(path).splitlines())
    layers = []
    try:
        for needed in ("layer", column):
            if needed not in (rows.fieldnames or ()):
                raise InputError(f"{path}: no column {needed!r}; it has {', '.join(rows.fieldnames or ()) or 'none'}")
        for row in rows:
            name = row["layer"] or ""
            where = f"{path}:{rows.line_num}: the {column} of layer {name!r}"
            layers.append(LayerTime(name, row.get("type") or "", _parse_ms(row[column], where)))
    except csv.Error as error:
        raise InputError(f"{path}:{rows.line_num}: not a CSV: {error}") from error
    return Profile(f"{path.name}:{column}", tuple(layers))


def _parse_ms(text: str | None, where: str) -> float:
    try:
        ms = float(text or "")
    except ValueError:
        raise InputError(f"{where} is {text or 'empty'}; it must be a number of ms") from None
    _check_number(ms, where)
    return ms


def _save(document: Mapping[str, Any], path: Path) -> None:
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("w", encoding="utf-8") as out:
            json.dump(document, out, indent=1)
            out.write("\n")
            out.flush()
            os.fsync(out.fileno())
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise InputError(f"{path}: cannot write the costs: {error.strerror}") from error
