"""Fitting a `CostModel` to measured layer times, and judging how well costs fit.

Each layer type is fitted by non-negative least squares over its features (`ionn.costs.features.FEATURES`). Errors are
taken relative to the prediction, by reweighting: so a layer of 0.1 ms counts as much as one of 100 ms, and the errors
of a type balance out in a network's total. (Errors relative to the measurement would favour predictions that are too
small.) Coefficients cannot be negative, so a model never predicts a negative time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from ionn.costs.features import DEFAULT_FEATURES, FEATURES, features
from ionn.costs.models import Coefficients, CostModel, Costs
from ionn.errors import InputError
from ionn.model.network import Layer, Network

# The types that make up most of any network's time. A device's model is judged by them.
HEAVY_TYPES = ("Convolution", "InnerProduct")

# If there are fewer samples per coefficient, the last features are left out; few samples leave only the first one.
_SAMPLES_PER_COEFFICIENT = 2
# A feature with fewer different values is left out, as its coefficient would be noise.
_DISTINCT_VALUES = 3
# Times below this count as this much in relative errors, as their measurement is too inexact.
_FLOOR_MS = 1e-3
_REWEIGHTINGS = 20
# A coefficient that adds less than this, a picosecond, to every sample is a rounding error, which differs between
# processors.
_NOTHING_MS = 1e-9

Sample = tuple[Layer, float]


def fit(
    samples: Sequence[Sample],
    name: str,
    *,
    loads: Mapping[str, Coefficients] | None = None,
    machine: Mapping[str, str] | None = None,
) -> CostModel:
    """Fit a device's cost model to measured layers: pairs of a layer and the ms of its forward pass.

    Each type in the samples gets coefficients. The default, for types that were not measured, is fitted to all samples
    of types without features of their own. Raises InputError if there are no samples, or if a time is negative or not
    finite.
    """
    if not samples or not all(0 <= ms < np.inf for _, ms in samples):
        raise InputError(f"{name}: cannot fit a cost model; it needs measured times, finite and not negative")
    by_type: dict[str, list[Sample]] = {}
    for layer, ms in samples:
        by_type.setdefault(layer.type, []).append((layer, ms))
    layers = {type_: _fit_type(FEATURES.get(type_, DEFAULT_FEATURES), by_type[type_]) for type_ in sorted(by_type)}
    light = [sample for sample in samples if sample[0].type not in FEATURES]
    return CostModel(name, layers, _fit_type(DEFAULT_FEATURES, light or samples), loads or {}, machine or {})


def _fit_type(names: Sequence[str], samples: Sequence[Sample]) -> Coefficients:
    rows = [features(layer) for layer, _ in samples]
    columns = {name: np.array([row.get(name, 0.0) for row in rows]) for name in names}
    present = [name for name in names if columns[name].any()]
    telling = [n for n in present if n in ("constant", present[0]) or len(np.unique(columns[n])) >= _DISTINCT_VALUES]
    telling = telling[: max(1, len(samples) // _SAMPLES_PER_COEFFICIENT)]
    matrix = np.column_stack([columns[name] for name in telling])
    scale = matrix.max(axis=0)  # the features' units differ by many orders of magnitude
    matrix /= scale
    ms = np.array([ms for _, ms in samples])
    expected = ms
    for _ in range(_REWEIGHTINGS):
        weights = 1 / np.maximum(expected, _FLOOR_MS)
        solution, _ = nnls(matrix * weights[:, None], ms * weights)
        expected = matrix @ solution
    return {
        name: float(most_ms / largest)
        for name, most_ms, largest in zip(telling, solution, scale, strict=True)
        if most_ms > _NOTHING_MS
    }


@dataclass(frozen=True)
class TypeQuality:
    """The median and 90th percentile of the relative errors |predicted / measured - 1| of a layer type."""

    type: str
    samples: int
    median_error: float
    p90_error: float


@dataclass(frozen=True)
class NetworkQuality:
    """The sum of a network's layer times, as predicted and as measured."""

    network: str
    predicted_ms: float
    measured_ms: float

    @property
    def error(self) -> float:
        """The relative error: predicted / measured - 1."""
        return self.predicted_ms / self.measured_ms - 1


@dataclass(frozen=True)
class FitQuality:
    """How well costs predict measured networks. `heavy` covers convolutions and inner products together."""

    heavy: TypeQuality
    types: tuple[TypeQuality, ...]
    networks: tuple[NetworkQuality, ...]

    def table(self) -> str:
        """The quality as text, one line per type and per network."""
        lines = [f"{'layer type':24}{'samples':>9}{'median error':>14}{'90th percentile':>17}"]
        for q in (self.heavy, *self.types):
            lines.append(f"{q.type:24}{q.samples:9d}{q.median_error:14.1%}{q.p90_error:17.1%}")
        lines += ["", f"{'network':24}{'predicted ms':>14}{'measured ms':>14}{'error':>9}"]
        for n in self.networks:
            lines.append(f"{n.network:24}{n.predicted_ms:14.2f}{n.measured_ms:14.2f}{n.error:+9.1%}")
        return "\n".join(lines)


def fit_quality(costs: Costs, measured: Sequence[tuple[Network, NDArray[np.float64]]]) -> FitQuality:
    """Compare costs with measured networks: pairs of a network and its layers' ms, of shape (len(network.layers),)."""
    networks = []
    errors: dict[str, list[float]] = {}
    for network, ms in measured:
        predicted = costs.layer_ms(network)
        networks.append(NetworkQuality(network.name, float(predicted.sum()), float(ms.sum())))
        for layer, error in zip(network.layers, np.abs(predicted - ms) / np.maximum(ms, _FLOOR_MS), strict=True):
            errors.setdefault(layer.type, []).append(float(error))
    heavy = [error for type_ in HEAVY_TYPES for error in errors.get(type_, [])]
    types = tuple(_type_quality(type_, errors[type_]) for type_ in sorted(errors))
    return FitQuality(_type_quality(" + ".join(HEAVY_TYPES), heavy), types, tuple(networks))


def _type_quality(type_: str, errors: Sequence[float]) -> TypeQuality:
    if not errors:
        return TypeQuality(type_, 0, 0.0, 0.0)
    return TypeQuality(type_, len(errors), float(np.median(errors)), float(np.quantile(errors, 0.9)))
