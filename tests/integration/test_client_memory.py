"""What memory a client takes while it uploads and answers queries: its weights are in it once. Real processes."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ionn.errors import MissingLibraryError
from ionn.model import engine, zoo
from ionn.model.caffemodel import serialise
from ionn.model.network import Network
from ionn.model.partial_net import extract_slice
from ionn.model.slices import Slice
from ionn.testbed import runner
from tests.support.command import Serving, serving
from tests.support.forward import Weights, random_weights
from tests.support.machine import weights_of
from tests.support.runs import run_live

ALGORITHMS = ["recursive-efficiency", "sliced-efficiency"]
# What a client may take: so many times its caffemodel, and so much beside it.
CAFFEMODELS, BESIDE_BYTES = 1.6, 150e6

# 96 MB of weights, nearly all in one stage that can be cut; and the same with hardly any.
NET = """
layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ dim: 1 dim: {inputs} }} }} }}
layer {{ name: "fc1" type: "InnerProduct" bottom: "data" top: "fc1" inner_product_param {{ num_output: {outputs} }} }}
layer {{ name: "relu" type: "ReLU" bottom: "fc1" top: "fc1" }}
layer {{ name: "fc2" type: "InnerProduct" bottom: "fc1" top: "fc2" inner_product_param {{ num_output: 10 }} }}
layer {{ name: "prob" type: "Softmax" bottom: "fc2" top: "prob" }}
"""
LARGE, SMALL = {"inputs": 4000, "outputs": 6000}, {"inputs": 40, "outputs": 60}

CONNECT = """
import sys
import numpy as np
import ionn

model, address, algorithm = sys.argv[1:]
data = np.zeros(ionn.load_network(model).input_shape, np.float32)
with ionn.connect(
    model, address, client="odroid-xu4", server="gtx1080ti", mbps=80.0, algorithm=algorithm
) as session:
    while not session.wait_uploaded(0):
        assert session.fault is None, session.fault
        session.query(data)
    session.query(data)
    print(len(session.plan.partitions), "partitions: bit-equal")
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving("--sessions", "20", "--sessions-per-client", "20") as served:
        yield served


def save(folder: Path, sizes: dict[str, int]) -> Path:
    """A model of these sizes; its prototxt."""
    path = folder / f"fc{sizes['outputs']}.prototxt"
    path.write_text(NET.format(**sizes))
    network = Network.load(path)
    path.with_suffix(".caffemodel").write_bytes(
        serialise(network.name, network.layers, random_weights(network, scale=0.01)).tobytes()
    )
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    return save(folder, SMALL), save(folder, LARGE)


def peak_bytes(way: str, model: str | Path, address: str, algorithm: str) -> int:
    """The most that a client ever had resident, but for its last moments, in a run that went well."""
    command = {
        "run": [
            "-m", "ionn", "run", str(model), "--connect", address, "--algorithm", algorithm, "--mbps", "80",
            "--server", "gtx1080ti",
        ],
        "connect": ["-c", CONNECT, str(model), address, algorithm],
    }[way]  # fmt: skip
    peak = 0
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            # A process that has just ended has none.
            peak = max([peak, *(1024 * int(li.split()[1]) for li in status.splitlines() if li.startswith("VmHWM:"))])
            time.sleep(0.01)
        assert process.stdout is not None
        said = process.stdout.read()
    assert process.returncode == 0
    assert "bit-equal" in said
    assert peak
    return peak


@pytest.mark.parametrize("way", ["run", "connect"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_weights_are_in_a_client_once(algorithm: str, way: str, models: tuple[Path, Path], server: Serving) -> None:
    small, large = models
    size = large.with_suffix(".caffemodel").stat().st_size
    without = peak_bytes(way, small, server.address, algorithm)
    peak = peak_bytes(way, large, server.address, algorithm)
    assert peak <= CAFFEMODELS * size + BESIDE_BYTES
    # Twice would be 2; what is under way to the server counts too. Without them, the peak may be of another moment.
    assert 0.8 * size <= peak - without <= CAFFEMODELS * size


@pytest.mark.long
@pytest.mark.parametrize("way", ["run", "connect"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_alexnet_fits_on_a_board(algorithm: str, way: str, server: Serving) -> None:
    path = weights_of("alexnet")
    assert path.parent == zoo.weights_folder()
    peak = peak_bytes(way, "alexnet", server.address, algorithm)
    assert peak <= CAFFEMODELS * path.stat().st_size + BESIDE_BYTES


# --- A slice's net that shares the whole one's memory -----------------------------------------------------------------


@pytest.fixture
def network() -> Network:
    return Network.from_text(NET.format(inputs=300, outputs=600), "fc")


@pytest.fixture
def weights(network: Network) -> Weights:
    return random_weights(network)


def test_a_slice_has_the_memory_of_the_whole(network: Network, weights: Weights) -> None:
    whole = engine.load_network(network, weights)
    for begin, end in ((0, 48), (96, 240), (480, 600)):
        part = engine.StageNet(extract_slice(network, Slice(1, begin, end)))
        part.share(whole, begin)
        (rows, bias), (all_rows, all_bias) = part.weights()["fc1"], whole.weights()["fc1"]
        np.testing.assert_array_equal(rows, weights["fc1"][0][begin:end])
        np.testing.assert_array_equal(bias, weights["fc1"][1][begin:end])
        assert rows.ctypes.data == all_rows[begin:].ctypes.data
        assert bias.ctypes.data == all_bias[begin:].ctypes.data


def test_shared_memory_outlives_the_whole(network: Network, weights: Weights) -> None:
    """Also where nothing but a view of the slice is left, and what was freed is used again."""
    whole = engine.load_network(network, weights)
    part = engine.StageNet(extract_slice(network, Slice(1, 96, 240)))
    part.share(whole, 96)
    (rows, _) = part.weights()["fc1"]
    del whole, part
    others = [engine.new_network(network) for _ in range(20)]
    np.testing.assert_array_equal(rows, weights["fc1"][0][96:240])
    del others


def test_another_caffe_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    caffe = engine.load_caffe()
    monkeypatch.setattr(caffe._caffe, "Blob", object)
    with pytest.raises(MissingLibraryError, match=r"caffe/__init__\.py: not the Caffe of this ionn; install the wheel"):
        engine.load_caffe.__wrapped__()


def test_no_memory_beyond_the_whole_is_shared(network: Network, weights: Weights) -> None:
    whole = engine.load_network(network, weights)
    part = engine.StageNet(extract_slice(network, Slice(1, 96, 240)))
    for begin in (-1, 457, 10**6):
        with pytest.raises(IndexError, match="no such elements"):
            part.share(whole, begin)
    part.share(whole, 456)  # the last ones


def test_runs_do_not_keep_each_others_sessions(
    server: Serving, tiny_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's collector does not come by itself here: it would only now and then."""
    sessions: list[weakref.ref[Any]] = []
    kept = []

    def show(progress: object, session: object) -> None:
        if not sessions or sessions[-1]() is not session:
            kept.append(sum(former() is not None for former in sessions))
            sessions.append(weakref.ref(session))

    monkeypatch.setattr(runner, "_show", show)
    gc.disable()
    try:
        subject = runner.prepare_live(tiny_files, paced=False)
        run_live(subject, runs=3, server="gtx1080ti", address=server.address)
    finally:
        gc.enable()
    assert kept == [0, 0, 0]
