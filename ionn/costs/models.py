"""The time that each layer takes on a device, in ms: predicted by a cost model, or measured as a profile.

A `CostModel` predicts the layers of any network. It has, for each layer type, a few non-negative coefficients over
features of the layer: the prediction functions of Neurosurgeon, which the paper uses for the server (section 2.1). A
`Profile` was measured layer by layer (the paper uses it for the client), and fits one network only. Both are `Costs`,
which is what planning takes.

Both may also have the device's speed of coding (`ionn.coding`), in ms per raw MB (10^6 bytes), and a profile may have
the ratios by which the outputs of its layers shrink.

On disk, both are a JSON object with `kind` ("cost-model" or "profile") and `schema`; `ionn.costs.loading` reads them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ionn.costs.features import ALL_FEATURES, features
from ionn.errors import InputError
from ionn.files import write_file
from ionn.model.network import Layer, Network
from ionn.schema import TIME_MAX_MS

SCHEMA = 1

Milliseconds = NDArray[np.float64]
Coefficients = Mapping[str, float]

# Features that stay the same when only some output channels are computed, as they are those of the input.
_FIXED = {"Convolution": ("constant", "column_bytes", "im2col_bytes", "packed_bytes", "depth", "depth_3x3")}
_DEFAULT_FIXED = ("constant",)

# A layer type without coefficients of its own takes those of a similar type.
_SIMILAR = {"Deconvolution": "Convolution"}


@runtime_checkable
class Costs(Protocol):
    """The costs of a network's layers on a device. All methods but `to_json` return one float64 per layer, in the shape
    (len(network.layers),); those whose names end in `_ms` return ms."""

    @property
    def name(self) -> str:
        """The name of the device in output and traces."""

    @property
    def encode_ms_per_mb(self) -> float | None:
        """The time to code a raw MB (10^6 bytes), in ms; None if that is not known."""

    @property
    def decode_ms_per_mb(self) -> float | None:
        """The time to decode what was a raw MB before coding, in ms; None if that is not known."""

    def layer_ms(self, network: Network) -> Milliseconds:
        """The time of each layer's forward pass. Raises InputError if the costs are not for this network."""

    def load_ms(self, network: Network) -> Milliseconds:
        """The time in which a server loads each layer when its weights have arrived; 0 if that is not known."""

    def fixed_ms(self, network: Network) -> Milliseconds:
        """The part of `layer_ms` that does not shrink when a layer computes only some of its output channels; 0 if that
        is not known."""

    def output_ratios(self, network: Network) -> NDArray[np.float64]:
        """The bytes of each layer's output after coding per byte before; NaN if that is not known."""

    def to_json(self) -> dict[str, Any]:
        """Return the costs as JSON, which `ionn.costs.loading.costs_from_json` reads."""


@dataclass(frozen=True)
class CostModel:
    """The prediction functions of a device: the time of a layer is the sum of coefficient x feature, in ms.

    - `name`: the device.
    - `layers`: for each layer type, its coefficients: ms per unit of a feature (`ionn.costs.features`).
    - `default`: the coefficients of all other types. A Deconvolution takes those of a Convolution, if there are any.
    - `loads`: likewise for the time in which the server loads a layer; types that are not in it load in no time.
    - `machine`: a description of the device.
    - `encode_ms_per_mb`, `decode_ms_per_mb`: the speed of coding; None if not known.
    - `base`: for the result of `times_as_fast`, the original costs.

    Raises InputError for an unknown feature, and for a coefficient that is negative or not finite.
    """

    name: str
    layers: Mapping[str, Coefficients]
    default: Coefficients
    loads: Mapping[str, Coefficients] = field(default_factory=dict)
    machine: Mapping[str, str] = field(default_factory=dict)
    encode_ms_per_mb: float | None = None
    decode_ms_per_mb: float | None = None
    base: CostModel | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        _check_speeds(self)
        for type_, coefficients in (*self.layers.items(), ("default", self.default), *self.loads.items()):
            if not isinstance(coefficients, Mapping):
                raise InputError(f"{self.name}: {type_}: not an object of feature and coefficient")
            for feature, value in coefficients.items():
                if feature not in ALL_FEATURES:
                    known = ", ".join(sorted(ALL_FEATURES))
                    raise InputError(f"{self.name}: {type_}: unknown feature {feature!r}; features are {known}")
                check_number(value, f"{self.name}: {type_}: {feature}")

    def layer_ms(self, network: Network) -> Milliseconds:
        return np.array([self.predict(layer) for layer in network.layers], dtype=np.float64)

    def load_ms(self, network: Network) -> Milliseconds:
        return np.array([_sum(self.loads.get(layer.type, {}), layer) for layer in network.layers], dtype=np.float64)

    def fixed_ms(self, network: Network) -> Milliseconds:
        return np.array([self._predict_fixed(layer) for layer in network.layers], dtype=np.float64)

    def output_ratios(self, network: Network) -> NDArray[np.float64]:
        return np.full(len(network.layers), np.nan)

    def predict(self, layer: Layer) -> float:
        """The predicted time of one layer's forward pass, in ms."""
        return _sum(self._coefficients(layer), layer)

    def times_as_fast(self, factor: float) -> CostModel:
        """The costs of a device that is so many times as fast, under a name that says so."""

        def divided(coefficients: Coefficients) -> Coefficients:
            return {feature: value / factor for feature, value in coefficients.items()}

        layers, loads = (
            {type_: divided(coefficients) for type_, coefficients in functions.items()}
            for functions in (self.layers, self.loads)
        )
        return dataclasses.replace(
            self, name=_times(factor, self.name), layers=layers, default=divided(self.default), loads=loads,
            base=self, **_divided_speeds(self, factor),
        )  # fmt: skip

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
            **_speeds(self),
        }

    def save(self, path: Path) -> None:
        """Write the model as JSON; the file appears only when complete. Raises InputError if it cannot be written."""
        _save(self, path)


def _sum(coefficients: Coefficients, layer: Layer) -> float:
    values = features(layer)
    return sum(value * values.get(feature, 0.0) for feature, value in coefficients.items())


@dataclass(frozen=True)
class LayerTime:
    """The measurements of one layer: its name and type ("" if not known), the times of its forward pass and of loading
    it at a server in ms, and the bytes of its output after coding per byte before (None if not measured)."""

    name: str
    type: str
    ms: float
    load_ms: float = 0.0
    output_ratio: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the measurements as JSON, without the unknown ones."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Profile:
    """The measured times of one network's layers, in Caffe's order.

    - `name`: the name in output and traces. `machine`: a description of the device.
    - `encode_ms_per_mb`, `decode_ms_per_mb`: the speed of coding; None if not known.
    - `base`: for the result of `times_as_fast`, the original costs.

    Raises InputError for a time that is negative or not finite, for a ratio that is not above 0 and at most 1, and for
    a profile without layers.
    """

    name: str
    layers: tuple[LayerTime, ...]
    machine: Mapping[str, str] = field(default_factory=dict)
    encode_ms_per_mb: float | None = None
    decode_ms_per_mb: float | None = None
    base: Profile | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        _check_speeds(self)
        if not self.layers:
            raise InputError(f"{self.name}: no layers; a profile has one time per layer of its network")
        for layer in self.layers:
            check_number(layer.ms, f"{self.name}: ms of layer {layer.name!r}")
            check_number(layer.load_ms, f"{self.name}: load_ms of layer {layer.name!r}")
            if layer.output_ratio is not None and not 0 < layer.output_ratio <= 1:
                raise InputError(
                    f"{self.name}: output_ratio of layer {layer.name!r} is {layer.output_ratio:g}; it must be above 0 "
                    "and at most 1"
                )

    @classmethod
    def of(
        cls,
        network: Network,
        ms: ArrayLike,
        *,
        load_ms: ArrayLike = 0.0,
        name: str = "",
        machine: Mapping[str, str] | None = None,
        output_ratios: Sequence[float | None] | None = None,
        encode_ms_per_mb: float | None = None,
        decode_ms_per_mb: float | None = None,
    ) -> Profile:
        """Make the profile of a network from one value per layer, (len(network.layers),): the times `ms` of the forward
        pass, those of loading (`load_ms`), and the ratios of the outputs.

        Raises InputError as `Profile` does.
        """
        columns = [np.broadcast_to(times, (len(network.layers),)).tolist() for times in (ms, load_ms)]
        columns.append([None] * len(network.layers) if output_ratios is None else list(output_ratios))
        rows = zip(network.layers, *columns, strict=True)
        layers = tuple(LayerTime(layer.name, layer.type, *values) for layer, *values in rows)
        title = name or f"profile of {network.name}"
        return cls(title, layers, machine or {}, encode_ms_per_mb, decode_ms_per_mb)

    def layer_ms(self, network: Network) -> Milliseconds:
        self._check_fits(network)
        return np.array([layer.ms for layer in self.layers], dtype=np.float64)

    def load_ms(self, network: Network) -> Milliseconds:
        self._check_fits(network)
        return np.array([layer.load_ms for layer in self.layers], dtype=np.float64)

    def fixed_ms(self, network: Network) -> Milliseconds:
        return np.zeros(len(network.layers))

    def output_ratios(self, network: Network) -> NDArray[np.float64]:
        self._check_fits(network)
        return np.array([layer.output_ratio for layer in self.layers], dtype=np.float64)  # None becomes NaN

    def times_as_fast(self, factor: float) -> Profile:
        """The costs of a device that is so many times as fast, under a name that says so."""
        layers = (
            dataclasses.replace(layer, ms=layer.ms / factor, load_ms=layer.load_ms / factor) for layer in self.layers
        )
        return dataclasses.replace(
            self, name=_times(factor, self.name), layers=tuple(layers), base=self, **_divided_speeds(self, factor)
        )

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
            "layers": [layer.to_json() for layer in self.layers],
            **_speeds(self),
        }

    def save(self, path: Path) -> None:
        """Write the profile as JSON; the file appears only when complete. Raises InputError if it cannot be written."""
        _save(self, path)


def _label(layer: LayerTime | Layer | None) -> str:
    return "missing" if layer is None else f"{layer.name!r} ({layer.type or 'of unknown type'})"


def check_number(value: object, where: str) -> None:
    """Raise InputError, which says `where` the value is, unless it is a time in ms, or in ms per unit of a feature."""
    # The comparison is false for NaN, and exact for integers that are too large for a float.
    if isinstance(value, bool) or not (isinstance(value, int | float) and 0 <= value <= TIME_MAX_MS):
        most = f"finite and not negative, and at most {TIME_MAX_MS:g}"
        raise InputError(f"{where} is {value!r:.40}; it must be a number, {most}")


def _speeds(costs: CostModel | Profile) -> dict[str, float]:
    """The speed of a device's coding, as JSON, without what is not known."""
    speeds = {"encode_ms_per_mb": costs.encode_ms_per_mb, "decode_ms_per_mb": costs.decode_ms_per_mb}
    return {name: ms for name, ms in speeds.items() if ms is not None}


def _divided_speeds(costs: CostModel | Profile, factor: float) -> dict[str, Any]:
    """The speed of coding of a device that is so many times as fast, as fields."""
    return {name: ms / factor for name, ms in _speeds(costs).items()}


def _times(factor: float, name: str) -> str:
    """The name of the costs of a device that is so many times as fast as the one named."""
    short = f"{factor:g}"
    return f"{short if float(short) == factor else repr(factor)}*{name}"


def _check_speeds(costs: CostModel | Profile) -> None:
    for name, ms in _speeds(costs).items():
        check_number(ms, f"{costs.name}: {name}")


def _save(costs: Costs, path: Path) -> None:
    write_file(path, (json.dumps(costs.to_json(), indent=1) + "\n").encode())


@dataclass(frozen=True)
class Scaled:
    """Costs divided by a factor: those of a machine that is not paced, in a dilated run, and those that a measuring
    client estimates."""

    costs: Costs
    factor: float

    @property
    def name(self) -> str:
        return self.costs.name if self.factor == 1 else f"{self.costs.name} / {self.factor:g}"

    def layer_ms(self, network: Network) -> Milliseconds:
        return self.costs.layer_ms(network) / self.factor

    def load_ms(self, network: Network) -> Milliseconds:
        return self.costs.load_ms(network) / self.factor

    def fixed_ms(self, network: Network) -> Milliseconds:
        return self.costs.fixed_ms(network) / self.factor

    @property
    def encode_ms_per_mb(self) -> float | None:
        return self._divided(self.costs.encode_ms_per_mb)

    @property
    def decode_ms_per_mb(self) -> float | None:
        return self._divided(self.costs.decode_ms_per_mb)

    def _divided(self, ms: float | None) -> float | None:
        return None if ms is None else ms / self.factor

    def output_ratios(self, network: Network) -> NDArray[np.float64]:
        return self.costs.output_ratios(network)

    def to_json(self) -> dict[str, Any]:
        return {**self.costs.to_json(), "divided_by": self.factor}
