"""What each layer costs on a device, in ms: predicted by a cost model, or measured as a profile.

A `CostModel` predicts the layers of any network: per layer type a few non-negative coefficients over features of the
layer (Neurosurgeon's prediction functions, which section 2.1 of the paper relies on for the server). A `Profile` is
what was measured layer by layer, and fits one network only. Planning takes either: both are `Costs`.

Both may say how long the device takes to code what crosses the link (`ionn.coding`), in ms per raw MB (10^6 bytes); a
profile may also say by how much the outputs of its layers shrink.

On disk both are JSON: an object with `kind` ("cost-model" or "profile") and `schema`. `ionn.costs.loading` reads them.
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

# Features that do not shrink when only some output channels are computed: where they are the input's, unrolled or not.
_FIXED = {"Convolution": ("constant", "column_bytes", "im2col_bytes", "packed_bytes", "depth", "depth_3x3")}
_DEFAULT_FIXED = ("constant",)

# A type without coefficients of its own costs what a similar type does.
_SIMILAR = {"Deconvolution": "Convolution"}


@runtime_checkable
class Costs(Protocol):
    """What the layers of a network cost on a device. All methods but `to_json` return float64 (len(network.layers),),
    those whose names end in `_ms` in ms."""

    @property
    def name(self) -> str:
        """The device, as it is named in output and traces."""

    @property
    def encode_ms_per_mb(self) -> float | None:
        """How long it takes to code a raw MB; None where that is not known."""

    @property
    def decode_ms_per_mb(self) -> float | None:
        """How long it takes to decode what a raw MB became; None where that is not known."""

    def layer_ms(self, network: Network) -> Milliseconds:
        """The time of each layer's forward pass. Raises InputError if these costs do not fit the network."""

    def load_ms(self, network: Network) -> Milliseconds:
        """The time to load each layer at a server once its weights have arrived; 0 where that is not known."""

    def fixed_ms(self, network: Network) -> Milliseconds:
        """The part of `layer_ms` that stays when a layer computes only some of its output channels; 0 where that is not
        known."""

    def output_ratios(self, network: Network) -> NDArray[np.float64]:
        """Wire bytes per raw byte of what each layer gives when it is coded; NaN where that is not known."""

    def to_json(self) -> dict[str, Any]:
        """Return what `ionn.costs.loading.costs_from_json` reads."""


@dataclass(frozen=True)
class CostModel:
    """A device's prediction functions: a layer's time is the sum of coefficient x feature, in ms.

    `layers` maps layer types to coefficients (ms per unit of a feature of `features`). A Deconvolution without its own
    is predicted as a Convolution, any other type by `default`. `loads` does the same for the time to load a layer at
    the server; types that are not in it load in no time. `machine` describes the device. `encode_ms_per_mb` and
    `decode_ms_per_mb` are None where they are not known. `base` are the costs of which these are `times_as_fast`, as
    far as this process knows.

    Raises InputError for an unknown feature and for a coefficient that is negative or not finite.
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
        """The time of one layer's forward pass, in ms."""
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
    """What was measured of one layer. `type` is "" where the source does not tell. `output_ratio` is wire bytes per raw
    byte of its outputs when they are coded, None where that was not measured."""

    name: str
    type: str
    ms: float
    load_ms: float = 0.0
    output_ratio: float | None = None

    def to_json(self) -> dict[str, Any]:
        """What is not known is left out."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Profile:
    """The measured times of one network's layers, in Caffe's order. `machine` describes where they were measured.
    `encode_ms_per_mb` and `decode_ms_per_mb` are None where they are not known.

    Raises InputError for a time that is negative or not finite, for a ratio that is none, and for a profile without
    layers.
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
        """The profile of a network from its layers' times and ratios, of shape (len(network.layers),).

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
    """Raise InputError, which says `where` it is, for what is no time in ms (per unit of a feature, or in all)."""
    # The comparison is false for NaN, and exact for integers that no float can hold.
    if isinstance(value, bool) or not (isinstance(value, int | float) and 0 <= value <= TIME_MAX_MS):
        most = f"finite and not negative, and at most {TIME_MAX_MS:g}"
        raise InputError(f"{where} is {value!r:.40}; it must be a number, {most}")


def _speeds(costs: CostModel | Profile) -> dict[str, float]:
    """How fast a device codes, as JSON: what is not known is left out."""
    speeds = {"encode_ms_per_mb": costs.encode_ms_per_mb, "decode_ms_per_mb": costs.decode_ms_per_mb}
    return {name: ms for name, ms in speeds.items() if ms is not None}


def _divided_speeds(costs: CostModel | Profile, factor: float) -> dict[str, Any]:
    """The fields that say how fast a device codes that is so many times as fast."""
    return {name: ms / factor for name, ms in _speeds(costs).items()}


def _times(factor: float, name: str) -> str:
    """The name of costs that are so many times as fast as those of a name."""
    short = f"{factor:g}"
    return f"{short if float(short) == factor else repr(factor)}*{name}"


def _check_speeds(costs: CostModel | Profile) -> None:
    for name, ms in _speeds(costs).items():
        check_number(ms, f"{costs.name}: {name}")


def _save(costs: Costs, path: Path) -> None:
    write_file(path, (json.dumps(costs.to_json(), indent=1) + "\n").encode())


@dataclass(frozen=True)
class Scaled:
    """Costs divided by a factor: what a dilated testbed makes of a machine that is not paced, and what a client that
    measures believes."""

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
