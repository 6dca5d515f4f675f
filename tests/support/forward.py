"""Weights at random, and a local forward pass with them, blob by blob, for outputs to be compared with."""

from __future__ import annotations

import numpy as np

from ionn.model import engine
from ionn.model.network import Network

Weights = dict[str, tuple[np.ndarray, ...]]


def random_weights(network: Network, scale: float = 1.0) -> Weights:
    """Of a normal distribution with the standard deviation `scale`."""
    rng = np.random.default_rng(7)
    return {
        layer.name: tuple(rng.standard_normal(shape).astype(np.float32) * scale for shape in layer.weight_shapes)
        for layer in network.layers
        if layer.weight_shapes
    }


def boundary_blobs(network: Network, weights: Weights, data: np.ndarray) -> list[np.ndarray]:
    """The blob before every stage, and the output."""
    net = engine.load_network(network, weights)
    net.put(0, data)
    blobs = [data]
    for stage in range(len(network.stages)):
        net.run(stage, stage)
        blobs.append(net.outputs(stage)[0].copy())
    return blobs
