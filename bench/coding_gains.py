"""What coding gains on the paper's testbed, computed: the models' last latencies, and AlexNet's queries in equal time.

A second: python bench/coding_gains.py.

The ends code as fast as their cost models assume; by how much blobs shrink was measured (bench/coding_ratios.py). For
weights it is the ratio of a trained network: synthetic ones would shrink more.
"""

from __future__ import annotations

import dataclasses
import functools

import support

from ionn import coding, paper
from ionn.costs.loading import load_costs
from ionn.costs.models import CostModel
from ionn.model.network import Network
from ionn.planning.graph import ExecutionGraph
from ionn.planning.plan import make_plan
from ionn.testbed.settings import Settings
from ionn.testbed.trace import RunInfo, Trace
from ionn.testbed.virtual import run_virtual

TRAINED_RATIO = 0.8475  # 1/1.18
LAST_MS = {"alexnet": 23.0, "inception": 42.0, "resnet": 31.0, "googlenet": 27.0, "mobilenet": 24.0}
QUERIES = {coding.FEATURES: 3.2, coding.LOSSLESS: 5.5}
SPEEDS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


@functools.cache
def window_of(model: str) -> float:
    """The window in which a model's runs are compared: the time in which original uploads the model raw, computed, and
    rounded so that folders have short names."""
    return round(computed(model, paper.ORIGINAL, coding.NONE).upload_s, 2)


def weight_ratio(coding_: str) -> float | None:
    return TRAINED_RATIO if coding_ == coding.LOSSLESS else None


def computed(model: str, algorithm: str, coding_: str, window_s: float | None = None, speed: float = 1.0) -> Trace:
    """A virtual run with both ends coding `speed` times as fast as is assumed."""
    network, ratio = Network.load(model), weight_ratio(coding_)
    client, server = (_faster(name, speed) for name in (paper.CLIENT, paper.SERVER))
    graph = ExecutionGraph.from_network(network, client, server, paper.MBPS, coding_, ratio)
    settings = Settings("virtual", coding=coding_, weight_ratio=ratio, window_s=window_s)
    return run_virtual(RunInfo(settings, 1, make_plan(network, graph, algorithm, paper.MBPS), graph))


def _faster(device: str, speed: float) -> CostModel:
    costs = load_costs(device)
    assert isinstance(costs, CostModel)
    assert costs.encode_ms_per_mb is not None
    assert costs.decode_ms_per_mb is not None
    encode_ms, decode_ms = costs.encode_ms_per_mb / speed, costs.decode_ms_per_mb / speed
    return dataclasses.replace(costs, encode_ms_per_mb=encode_ms, decode_ms_per_mb=decode_ms)


def last_ms(model: str, speed: float = 1.0) -> float:
    """The latency of a model's last query with features coded; all is uploaded then, whatever the plan."""
    return computed(model, paper.ORIGINAL, coding.FEATURES, speed=speed).queries[-1].latency_ms


def times_as_many_queries(coding_: str, speed: float = 1.0) -> float:
    """AlexNet's queries with sliced-efficiency in the window, over those with original, raw."""
    window_s = window_of("alexnet")
    original = len(computed("alexnet", paper.ORIGINAL, coding.NONE, window_s).in_window)
    return len(computed("alexnet", paper.SLICED, coding_, window_s, speed).in_window) / original


def rows() -> list[support.Row]:
    print(__doc__)
    result = [
        (f"{paper.model_title(model)}: last latency with features coded", limit, last_ms(model), "ms")
        for model, limit in LAST_MS.items()
    ]
    for coding_, limit in QUERIES.items():
        text = f"AlexNet, sliced, {coding_}: at least so many times original's queries"
        result.append((text, limit, times_as_many_queries(coding_), ""))
    return result


if __name__ == "__main__":
    support.main(rows)
