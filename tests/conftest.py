"""A small network that has everything a plan meets: in-place layers, a Split, a wide inner product, a softmax."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings

from ionn.costs.loading import load_costs
from ionn.model import engine
from ionn.model.network import Network
from ionn.planning import planners
from ionn.planning.graph import ExecutionGraph
from tests.support.command import serving
from tests.support.forward import Weights, random_weights
from tests.support.world import World

# The test suite has the same cases each time, so that what fails is what was changed. A busy machine is slow at times;
# that says nothing about the code. A test's own settings would replace the list of checks, so it has what some of them
# need: to write all their cases into one folder, or to ask one process.
settings.register_profile(
    "ionn",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
# For `make fuzz`, which sets this: so many times as many cases, and others each time.
_TIMES = int(os.environ.get("FUZZ_TIMES", "0"))
settings.register_profile("fuzz", settings.get_profile("ionn"), derandomize=False, max_examples=100 * max(_TIMES, 1))
# For tests/mutants: a case that fails is not made smaller.
settings.register_profile(
    "mutants", settings.get_profile("ionn"), database=None, phases=(Phase.explicit, Phase.generate)
)
settings.load_profile("fuzz" if _TIMES else "ionn")

# A job in the background ignores Ctrl-C, and under nohup SIGHUP, and so does all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Some tests load Caffe by themselves, and its results are compared bit for bit with those of other processes.
engine.set_environment()

TINY = """
name: "tiny"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 24 dim: 24 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1" convolution_param { num_output: 8 kernel_size: 3
        weight_filler { type: "xavier" } } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "left" type: "Convolution" bottom: "conv1" top: "left"
        convolution_param { num_output: 6 kernel_size: 1 } }
layer { name: "right" type: "Convolution" bottom: "conv1" top: "right"
        convolution_param { num_output: 6 kernel_size: 3 pad: 1 } }
layer { name: "join" type: "Eltwise" bottom: "left" bottom: "right" top: "join" }
layer { name: "pool" type: "Pooling" bottom: "join" top: "pool" pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "fc1" type: "InnerProduct" bottom: "pool" top: "fc1" inner_product_param { num_output: 400 } }
layer { name: "relu2" type: "ReLU" bottom: "fc1" top: "fc1" }
layer { name: "fc2" type: "InnerProduct" bottom: "fc1" top: "fc2" inner_product_param { num_output: 10 } }
layer { name: "prob" type: "Softmax" bottom: "fc2" top: "prob" }
"""


@pytest.fixture(autouse=True)
def own_planners() -> Iterator[None]:
    """What a test adds to the registry of planners ends with it."""
    registry: list[dict[str, Any]] = [planners.PLANNERS, planners._ADDED, planners._DIGESTS]
    before = [dict(part) for part in registry]
    yield
    for part, entries in zip(registry, before, strict=True):
        part.clear()
        part.update(entries)


@pytest.fixture(scope="session")
def tiny() -> Network:
    return Network.from_text(TINY, "tiny")


@pytest.fixture(scope="session")
def tiny_weights(tiny: Network) -> Weights:
    return random_weights(tiny, scale=0.1)


@pytest.fixture
def tiny_files(tiny: Network, tiny_weights: Weights, tmp_path: Path) -> Path:
    """tiny.prototxt, with tiny.caffemodel beside it."""
    from ionn.model.caffemodel import serialise

    path = tmp_path / "tiny.prototxt"
    path.write_text(TINY)
    path.with_suffix(".caffemodel").write_bytes(serialise("tiny", tiny.layers, tiny_weights).tobytes())
    return path


@pytest.fixture
def evidence_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where audits keep the evidence of lies: nothing goes to the user's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "ionn" / "audit"


@pytest.fixture
def slow_client(tiny: Network, tmp_path: Path) -> str:
    """A device on which every layer takes 3 ms: offloading pays at once, stage after stage."""
    path = tmp_path / "slow.txt"
    path.write_text("".join(f"{layer.index} {layer.name} 3.0\n" for layer in tiny.layers))
    return str(path)


@pytest.fixture(scope="session")
def world(tiny: Network, tiny_weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> World:
    slow = tmp_path_factory.mktemp("costs") / "slow.txt"
    slow.write_text("".join(f"{layer.index} {layer.name} 3.0\n" for layer in tiny.layers))
    costs = load_costs(str(slow)), load_costs("gtx1080ti")
    return World(tiny, tiny_weights, ExecutionGraph.from_network(tiny, *costs, mbps=80))


@pytest.fixture
def server() -> Iterator[str]:
    """A server process of its own; its address."""
    with serving("--sessions", "3") as process:
        yield process.address
