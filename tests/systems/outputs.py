"""What the five models compute on this machine: `python -m tests.systems.outputs FILE MODEL...` saves it, as .npz.

An output each, of the first input that runs have, and which kernels of OpenBLAS computed it.
"""

from __future__ import annotations

import sys

import numpy as np

from ionn.model import engine, inputs
from ionn.model.caffemodel import weights_path
from ionn.model.network import Network


def main() -> None:
    file, *models = sys.argv[1:]
    outputs = {}
    for model in models:
        network = Network.load(model)
        net = engine.read_network(network, weights_path(model, None))
        (outputs[model],) = engine.forward(net, inputs.query_inputs(network, seed=0, count=1)[0])
    np.savez(file, allow_pickle=False, blas=np.array(engine.blas()), **outputs)


if __name__ == "__main__":
    main()
