"""Servers that compute as on a processor of another kind: OpenBLAS is told to use other kernels."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator

import kernels  # bench/kernels.py
import numpy as np
import pytest

from ionn.model import engine
from tests.support.nets import network_of

# Sums of enough products that their order shows in the last bits, and the end of a tile beside whole ones.
_NETWORK = network_of("InnerProduct inner_product_param { num_output: 401 }", shape="dim: 1 dim: 999")


def digest() -> str:
    """The digest of what this process makes of a small network."""
    rng = np.random.default_rng(4)
    weights = [rng.standard_normal(shape).astype(np.float32) for shape in _NETWORK.layers[1].weight_shapes]
    net = engine.load_network(_NETWORK, {"a": weights})
    (output,) = engine.forward(net, rng.standard_normal(_NETWORK.input_shape).astype(np.float32))
    return hashlib.sha256(output.tobytes()).hexdigest()


@functools.cache
def other_kernels() -> str:
    """The name of kernels of OpenBLAS that this CPU can run, and that have other bits than those of this process.

    Skips the test where there are none: OpenBLAS was built for one kind of processor.
    """
    own = digest()
    command = [sys.executable, "-c", "from tests.support.other_kernels import digest; print(digest())"]
    for name in kernels.supported():
        environment = {**os.environ, "OPENBLAS_CORETYPE": name, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        if done.stdout.strip() != own:
            return name
    pytest.skip("this OpenBLAS has kernels for one kind of processor only")


@contextlib.contextmanager
def elsewhere() -> Iterator[None]:
    """What is started in this context computes as on a processor of another kind. This process has loaded its own."""
    engine.load_caffe()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENBLAS_CORETYPE", other_kernels())
        yield
