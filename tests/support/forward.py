"""A local forward pass, blob by blob, for outputs to be compared with."""

from __future__ import annotations

import numpy as np

from ionn.model import engine
from ionn.model.network import Network

Weights = dict[str, tuple[np.ndarray, ...]]


def boundary_blobs(network: Network, weights: Weights, data: np.ndarray) -> list[np.ndarray]:
    """The blob before every stage, and the output."""
    net = engine.load_network(network, weights)
    net.put(0, data)
    blobs = [data]
    for stage in range(len(network.stages)):
        net.run(stage, stage)
        blobs.append(net.outputs(stage)[0].copy())
    return blobs
