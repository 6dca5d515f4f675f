"""Fit the bundled device models to the per-layer latencies that IONN's authors published.

    python bench/fit_devices.py [PROFILES] [--dry-run]

PROFILES is a folder of MODEL.csv files with the columns layer, type, odroid_xu4_ms and gtx1080ti_ms, which are not part
of ionn. Prints how well each model fits, also for each network with a model that was fitted to the others only, and
writes ionn/costs/devices/*.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ionn.costs.fitting import fit, fit_quality
from ionn.costs.loading import load_costs
from ionn.costs.models import Coefficients, CostModel
from ionn.model.network import Network
from ionn.paper import MODELS

ROOT = Path(__file__).resolve().parent.parent
SIGNIFICANT_DIGITS = 4


@dataclass(frozen=True)
class Device:
    """A device of the paper's testbed: the column with its latencies, the models that have them, and how fast it codes
    what crosses the link, which is assumed."""

    column: str
    models: tuple[str, ...]
    machine: Mapping[str, str]
    encode_ms_per_mb: float
    decode_ms_per_mb: float
    loads: Mapping[str, Coefficients] = field(default_factory=dict)


_SOURCE = "per-layer latencies published by the authors of IONN (ElasticDNN/IONN-client)"
_ASSUMED = "assumed, not measured: {:g} ms to encode a raw MB, {:g} ms to decode one"

DEVICES = {
    "odroid-xu4": Device(
        "odroid_xu4_ms",
        tuple(MODELS),
        {"device": "Hardkernel Odroid XU4, the paper's client", "fitted_to": _SOURCE, "coding": _ASSUMED.format(8, 8)},
        8.0,
        8.0,
    ),
    "gtx1080ti": Device(
        "gtx1080ti_ms",
        tuple(model for model in MODELS if model != "mobilenet"),
        {"device": "NVIDIA GTX 1080 Ti, the paper's server", "fitted_to": _SOURCE, "coding": _ASSUMED.format(2, 1.5)},
        2.0,
        1.5,
        # IONN's authors add the time to load a layer to its upload overhead: 0.7 ms + 0.003 ms x filters for a
        # convolution, 1.3 ms + 3e-7 ms x neurons x input bytes for an inner product. Neurons x inputs = operations.
        {
            "Convolution": {"constant": 0.7, "filters": 0.003},
            "InnerProduct": {"constant": 1.3, "operations": 3e-7 * 4},
        },
    ),
}

Measured = list[tuple[Network, NDArray[np.float64]]]


def read_profiles(profiles: Path, device: Device) -> Measured:
    networks = map(Network.load, device.models)
    return [(n, load_costs(f"{profiles / n.name}.csv:{device.column}").layer_ms(n)) for n in networks]


def fit_device(name: str, measured: Measured) -> CostModel:
    device = DEVICES[name]
    samples = [(layer, float(t)) for network, ms in measured for layer, t in zip(network.layers, ms, strict=True)]
    model = fit(samples, name)
    layers = {type_: _rounded(coefficients) for type_, coefficients in model.layers.items()}
    speeds = device.encode_ms_per_mb, device.decode_ms_per_mb
    return CostModel(name, layers, _rounded(model.default), device.loads, device.machine, *speeds)


def _rounded(coefficients: Coefficients) -> Coefficients:
    return {feature: float(f"{value:.{SIGNIFICANT_DIGITS}g}") for feature, value in coefficients.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profiles", nargs="?", type=Path, default=ROOT.parent / "shared" / "reference" / "profiles")
    parser.add_argument("--dry-run", action="store_true", help="print only, write nothing")
    arguments = parser.parse_args()
    for name, device in DEVICES.items():
        measured = read_profiles(arguments.profiles, device)
        model = fit_device(name, measured)
        print(f"{name}\n\n{fit_quality(model, measured).table()}\n")
        print("each network predicted by a model that was fitted to the others only:")
        for held_out in range(len(measured)):
            others = measured[:held_out] + measured[held_out + 1 :]
            quality = fit_quality(fit_device(name, others), [measured[held_out]])
            total, heavy = quality.networks[0], quality.heavy
            print(f"{total.network:24}total {total.error:+6.1%}   {heavy.type} {heavy.median_error:.1%}")
        print()
        if not arguments.dry_run:
            model.save(ROOT / "ionn" / "costs" / "devices" / f"{name}.json")


if __name__ == "__main__":
    main()
