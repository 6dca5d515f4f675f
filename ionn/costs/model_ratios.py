"""The ratios of the bundled models: wire bytes per raw byte of their blobs between stages, and of their weights.

`bench/coding_ratios.py` measured them on the bundled photographs and with the synthetic weights, and wrote ratios/.
"""

from __future__ import annotations

import functools
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from ionn.costs.models import Costs
from ionn.model.network import Network

RATIOS = Path(__file__).with_name("ratios")


class ModelRatios(msgspec.Struct, frozen=True):
    """Wire bytes per raw byte, by the layer's name: `outputs` for the last layer of each stage, `weights` for each
    layer with weights; `weight_ratio` for all weights. `network` is the digest of the measured network; `inputs` and
    `weights_are` describe the inputs and weights.

    `weight_entropy_bits` are the entropies of the four bytes of a weight, the lowest byte first. They bound the ratio
    of any coder that looks at single bytes. The ratios of synthetic and trained weights differ (docs/coding.md).
    """

    network: str
    inputs: str
    weights_are: str
    outputs: dict[str, float]
    weights: dict[str, float]
    weight_ratio: float
    weight_entropy_bits: tuple[float, float, float, float]


@functools.cache
def model_ratios(name: str) -> ModelRatios | None:
    """The ratios of a bundled model; None for any other model."""
    known = {path.stem: path for path in RATIOS.glob("*.json")}
    return msgspec.json.decode(known[name].read_bytes(), type=ModelRatios) if name in known else None


def _ratios_of(network: Network) -> ModelRatios | None:
    found = model_ratios(network.name)
    return found if found is not None and found.network == network.digest else None


def output_ratios(network: Network, *costs: Costs) -> NDArray[np.float64]:
    """The ratio of each layer's output, (layers,), NaN if it is not known: from the first of `costs` that has it, else
    from the measured ratios of a bundled model."""
    ratios = np.full(len(network.layers), np.nan)
    for each in costs:
        ratios = np.where(np.isnan(ratios), each.output_ratios(network), ratios)
    if found := _ratios_of(network):
        measured = np.array([found.outputs.get(layer.name, np.nan) for layer in network.layers])
        ratios = np.where(np.isnan(ratios), measured, ratios)
    return ratios


def weight_ratios(network: Network) -> NDArray[np.float64]:
    """The ratio of each layer's weights, (layers,), NaN if it is not known."""
    found = _ratios_of(network)
    return np.array([found.weights.get(layer.name, np.nan) if found else np.nan for layer in network.layers])
