"""Calibration: how well the fitted model predicts five networks that took no part in the fit, and why loading is free.

About 30 s: python bench/calibration.py. A server builds a partition's nets when its header arrives; this should take
less time than a 1 Gbit/s link needs for the weights. bench/install_latency.py measures what is left after the last
byte.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import support

from ionn import paper
from ionn.costs.calibration import calibrate
from ionn.model.engine import StageNet, load_caffe
from ionn.model.network import Network
from ionn.model.partial_net import extract_net

CALIBRATION_S = 60.0
TOTAL_PERCENT = 10.0
HEAVY_PERCENT = 15.0
FAST_MBPS = 1000.0


@dataclass(frozen=True)
class Build:
    """How long it takes to check and to build a stage as a net of its own."""

    model: str
    layers: int
    bytes: int
    ms: float


def rows() -> list[support.Row]:
    return [*prediction_rows(), *load_rows()]


def prediction_rows() -> list[support.Row]:
    start_s = time.perf_counter()
    result = calibrate()
    took_s = time.perf_counter() - start_s
    quality = result.quality
    support.keep("calibration", model=result.model.to_json(), table=quality.table().splitlines())
    print(f"\n{quality.table()}\n")
    return [
        ("calibration, with the measurement of five models", CALIBRATION_S, took_s, "s"),
        *(
            (f"total of {network.network}: |predicted / measured - 1|", TOTAL_PERCENT, abs(network.error) * 100, "%")
            for network in quality.networks
        ),
        (f"{quality.heavy.type}: median error", HEAVY_PERCENT, quality.heavy.median_error * 100, "%"),
    ]


def load_rows() -> list[support.Row]:
    load_caffe()
    builds = [build for model in paper.MODELS for build in measure_builds(model)]
    support.keep("building the stages' nets", stages=[vars(build) for build in builds])
    result = []
    for model in paper.MODELS:
        own = [build for build in builds if build.model == model]
        result.append((f"building the stages of {model}, one by one", link_ms(own), sum(b.ms for b in own), "ms"))
    slowest = max(builds, key=lambda build: build.ms)
    name = f"building the slowest stage ({slowest.bytes / 1e6:.0f} MB of {slowest.model})"
    return [*result, (name, link_ms([slowest]), slowest.ms, "ms")]


def link_ms(builds: list[Build]) -> float:
    """How long the weights of these stages take on a fast link."""
    return sum(build.bytes for build in builds) * 8 / FAST_MBPS / 1e3


def measure_builds(model: str) -> Iterator[Build]:
    network = Network.load(model)
    for stage in network.stages:
        if not stage.pinned:
            start_s = time.perf_counter()
            partial = extract_net(network, stage.index, stage.index)
            Network.from_text(partial.prototxt, stage.name)
            StageNet(partial)
            yield Build(model, len(stage.layers), stage.weight_bytes, (time.perf_counter() - start_s) * 1e3)


if __name__ == "__main__":
    support.main(rows)
