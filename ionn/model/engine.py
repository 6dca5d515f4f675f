"""The engine: nets that Caffe computes stage by stage, and the times of their layers. No other module uses pycaffe."""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import itertools
import os
import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ionn.errors import MissingLibraryError
from ionn.libraries import missing_library
from ionn.machine import machine
from ionn.model.caffemodel import Floats, open_weights
from ionn.model.comparison import Numerics
from ionn.model.network import Network
from ionn.model.partial_net import PartialNet, extract_net

# One thread at both ends: other numbers of threads sum in another order, so that the last bits differ, and on one
# machine the two ends would compete for its cores.
BLAS_THREADS = 1

# On Zen 4 (AMD, family 19h with AVX-512) OpenBLAS 0.3.21 takes its kernels for Intel's Cooper Lake; those for AVX2 are
# up to 20 % faster there (bench/blas.py).
_ZEN4_KERNELS = "Haswell"


def set_environment() -> None:
    """Set the environment variables that Caffe's libraries read when they are loaded, except those that the user has
    set. `load_caffe` does so, too."""
    os.environ.setdefault("GLOG_minloglevel", "2")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(BLAS_THREADS))
    if _is_zen4():
        os.environ.setdefault("OPENBLAS_CORETYPE", _ZEN4_KERNELS)


def _is_zen4() -> bool:
    if platform.machine() != "x86_64":  # programs for arm64 in qemu's user mode see the file of the machine below
        return False
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            first_cpu = itertools.takewhile(str.strip, lines)
            values = {name.strip(): value.split() for name, _, value in (line.partition(":") for line in first_cpu)}
    except OSError:
        return False
    return (
        values.get("vendor_id") == ["AuthenticAMD"]
        and values.get("cpu family") == ["25"]
        and "avx512f" in values.get("flags", ())
    )


@functools.cache
def load_caffe() -> Any:
    """Return the module of Caffe, configured for this process. The first call loads it, which takes 0.5 s.

    Raises MissingLibraryError if Caffe or a library that it is linked to is missing, or if it is not ionn's Caffe."""
    set_environment()
    try:
        import caffe
    except ImportError as error:
        raise missing_library(error) from error

    if not hasattr(caffe._caffe.Blob, "share_data"):  # which caffe-build adds
        raise MissingLibraryError(f"{caffe.__file__}: not the Caffe of this ionn; install the wheel of 'make wheels'")
    caffe.set_mode_cpu()
    return caffe


def blas() -> str:
    """Return the configuration of Caffe's OpenBLAS: its version, options and kernels."""
    library = ctypes.CDLL(load_caffe()._caffe.__file__)  # finds the symbols of the libraries it is linked to
    library.openblas_get_config.restype = ctypes.c_char_p
    return str(library.openblas_get_config().decode())


@functools.cache
def numerics() -> Numerics:
    """Return what decides the last bits of this process's results. The first call opens files."""
    library = ctypes.CDLL(load_caffe()._caffe.__file__)
    library.openblas_get_corename.restype = ctypes.c_char_p
    name, version, *_ = blas().split()
    return Numerics(
        platform.machine(), f"{name} {version}", str(library.openblas_get_corename().decode()),
        int(library.openblas_get_num_threads()), importlib.metadata.version("caffe"), " ".join(platform.libc_ver()),
    )  # fmt: skip


def blas_threads() -> str:
    """Return how many threads OpenBLAS was told to use."""
    set_environment()
    return os.environ["OPENBLAS_NUM_THREADS"]


class StageNet:
    """A `caffe.Net` of the stages `first`..`last`, both included, that can execute any run of them.

    If several threads use it, the one that executes something must hold `lock`.
    """

    def __init__(self, partial: PartialNet) -> None:
        """Build the net, with weights of zero. A net that Caffe rejects ends the process, so it must be checked
        before."""
        caffe = load_caffe()
        self.lock = threading.Lock()
        # Caffe takes a path. A file in memory needs no folder, and nothing of it stays if Caffe aborts. Python's file
        # objects ask for a file's status, which a server's sandbox denies.
        file = os.memfd_create("prototxt")
        try:
            text = memoryview(partial.prototxt.encode())
            while text:
                text = text[os.write(file, text) :]
            self._net = caffe.Net(f"/proc/self/fd/{file}", caffe.TEST)
        finally:
            os.close(file)
        ends = [stage.last_layer for stage in partial.stages]
        begins = [0, *(end + 1 for end in ends[:-1])]
        self.first, self.last = partial.stages[0].index, partial.stages[-1].index
        self._layers = {
            stage.index: range(begin, end + 1) for stage, begin, end in zip(partial.stages, begins, ends, strict=True)
        }
        # Blobs, never views of their memory: Caffe's layers give a blob other memory when they run (Split, Flatten,
        # Reshape, and Permute, Concat and Slice at times), and free what it had. A view costs 0.3 us.
        self._outputs = {stage.index: [self._net.blobs[name] for name in stage.outputs] for stage in partial.stages}
        self._inputs = {stage + 1: blobs[0] for stage, blobs in self._outputs.items()}
        self._inputs[self.first] = self._net.blobs[partial.input]
        self._input_shapes: dict[int, tuple[int, ...]] = {}

    def blob_bytes(self) -> dict[tuple[str, int], memoryview]:
        """The writable bytes of every weight blob, by layer name and the blob's number in that layer."""
        return {
            (name, index): memoryview(blob.data.reshape(-1)).cast("B")
            for name, blobs in self._net.params.items()
            for index, blob in enumerate(blobs)
        }

    def weights(self) -> dict[str, tuple[Floats, ...]]:
        """The weights of every layer that has some, as views of the net's own memory, which stays as long as a view."""
        return {name: tuple(blob.data for blob in blobs) for name, blobs in self._net.params.items()}

    def blob(self, name: str) -> Floats:
        """A blob by its name, for reading or writing: a view that is valid until a layer that writes the blob runs."""
        view: Floats = self._net.blobs[name].data
        return view

    def load(self, weights: Mapping[str, Sequence[Floats]]) -> None:
        """Copy the weights of every layer that has some."""
        for name, blobs in self._net.params.items():
            for blob, values in zip(blobs, weights[name], strict=True):
                blob.data[...] = values

    def share(self, whole: StageNet, begin: int) -> None:
        """Share the weights of a slice's net with its stage in `whole`, from channel `begin` on. Both nets then use the
        same memory, which stays as long as either net does. Earlier views of this net's weights become invalid."""
        for name, blobs in self._net.params.items():
            for blob, rows in zip(blobs, whole._net.params[name], strict=True):
                blob.share_data(rows, begin * (rows.count // rows.shape[0]))

    def input_shape(self, stage: int) -> tuple[int, ...]:
        """The shape of the blob before a stage."""
        if stage not in self._input_shapes:  # kept, because asking Caffe for each query would take too long
            self._input_shapes[stage] = tuple(self._inputs[stage].shape)
        return self._input_shapes[stage]

    def put(self, stage: int, data: Floats) -> None:
        """Set the blob before a stage. Raises ValueError for data of another shape, which numpy would broadcast."""
        view = self._inputs[stage].data
        if data.shape != view.shape:
            raise ValueError(f"data of shape {data.shape} for stage {stage}, which takes {view.shape}")
        view[...] = data

    def follow(self, before: StageNet) -> None:
        """Set the blob before the first stage to the output of `before`, the net of the stages before, as `put` does,
        but without copying it: both blobs share its memory from then on. They must have the same shape."""
        self._inputs[self.first].share_data(before._outputs[before.last][0], 0)

    def layers(self, first: int, last: int) -> range:
        """The indices of the layers of stages `first`..`last` in this net."""
        return range(self._layers[first].start, self._layers[last].stop)

    def run_layer(self, layer: int) -> None:
        """Run one layer, by its index in this net."""
        self._net._forward(layer, layer)

    def run(self, first: int, last: int, before: Callable[[int], None] = lambda stage: None) -> tuple[float, ...]:
        """Run stages `first`..`last` on the data that `put` set before `first`. Returns the time of each in ms.
        `before` is called with the index of each stage just before it runs."""
        stage_ms = []
        for stage in range(first, last + 1):
            layers = self._layers[stage]
            before(stage)
            start = time.perf_counter()
            self._net._forward(layers.start, layers.stop - 1)
            stage_ms.append((time.perf_counter() - start) * 1e3)
        return tuple(stage_ms)

    def outputs(self, stage: int) -> list[Floats]:
        """The output blobs of a stage. They are views: the next run of this net overwrites them or frees their memory,
        so copy them to keep them."""
        return [blob.data for blob in self._outputs[stage]]


def new_network(network: Network) -> StageNet:
    """The whole network with weights of zero."""
    return StageNet(extract_net(network, 0, len(network.stages) - 1))


def load_network(network: Network, weights: Mapping[str, Sequence[Floats]]) -> StageNet:
    """The whole network with its weights."""
    net = new_network(network)
    net.load(weights)
    return net


def read_network(network: Network, path: Path) -> StageNet:
    """The whole network with its weights from a caffemodel, which are read straight into the net's own memory. Raises
    InputError as `open_weights` does, before anything is built if the file does not fit."""
    with open_weights(path, network) as read_into:
        net = new_network(network)
        read_into(net.weights())
    return net


def forward(net: StageNet, data: Floats) -> list[Floats]:
    """The outputs of the whole net for one input, as copies."""
    net.put(net.first, data)
    net.run(net.first, net.last)
    return [output.copy() for output in net.outputs(net.last)]


def time_pass(net: StageNet, clock: Callable[[], float] = time.perf_counter) -> NDArray[np.float64]:
    """The time of every layer in one forward pass, in ms by a `clock` of seconds, shape (layers,)."""
    elapsed = []
    for layer in net.layers(net.first, net.last):
        start = clock()
        net.run_layer(layer)
        elapsed.append((clock() - start) * 1e3)
    return np.array(elapsed)


def time_layers(net: StageNet, runs: int, data: Floats, progress: Callable[[], None]) -> NDArray[np.float64]:
    """The mean time of every layer over `runs` forward passes on `data` (after one more to warm up), in ms, shape
    (layers,)."""
    net.put(net.first, data)
    passes = []
    for _ in range(runs + 1):
        passes.append(time_pass(net))
        progress()
    mean_ms: NDArray[np.float64] = np.mean(passes[1:], axis=0)
    return mean_ms


def environment() -> dict[str, str]:
    """The host, the versions of software and the BLAS, which every trace records."""
    versions = {name: importlib.metadata.version(name) for name in ("caffe", "numpy", "protobuf", "pyzmq")}
    return {**machine(), **versions, "blas": blas(), "blas_threads": blas_threads()}
