"""The caffemodel changes while it is used: what is uploaded is what was loaded, and reading it is safe."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import ionn
from ionn.errors import InputError
from ionn.model import engine
from ionn.model.caffemodel import open_weights, read_weights, serialise
from ionn.model.network import Network
from ionn.testbed import processes
from tests.support.forward import Weights
from tests.support.world import WAIT_S, Wire, wait_for


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with processes.process(
        "serve", "--bind", "tcp://127.0.0.1:0", "--sessions", "30", "--sessions-per-client", "30"
    ) as address:
        yield address


@pytest.fixture
def wire(server: str) -> Iterator[Wire]:
    wire = Wire(server)
    yield wire
    wire.close()


@pytest.fixture
def others(tiny: Network, tiny_weights: Weights, tmp_path: Path) -> Path:
    """Another caffemodel of the same size."""
    path = tmp_path / "other.caffemodel"
    changed = {name: tuple(-2 * blob for blob in blobs) for name, blobs in tiny_weights.items()}
    path.write_bytes(serialise("tiny", tiny.layers, changed).tobytes())
    return path


def overwritten(path: Path, others: Path) -> None:
    with path.open("r+b") as file:
        file.write(others.read_bytes())


def copied_over(path: Path, others: Path) -> None:
    shutil.copyfile(others, path)  # truncates it first, as cp does


def truncated(path: Path, others: Path) -> None:
    os.truncate(path, 0)


def half_truncated(path: Path, others: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def replaced(path: Path, others: Path) -> None:
    others.replace(path)


def removed(path: Path, others: Path) -> None:
    path.unlink()


CHANGES = [overwritten, copied_over, truncated, half_truncated, replaced, removed]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("moment", ["before the upload", "during the upload", "after the upload"])
def test_what_was_loaded_is_what_is_used(
    change: Callable[[Path, Path], None],
    moment: str,
    tiny: Network,
    tiny_files: Path,
    tiny_weights: Weights,
    others: Path,
    slow_client: str,
    wire: Wire,
) -> None:
    path = tiny_files.with_suffix(".caffemodel")
    rng = np.random.default_rng(3)
    inputs = [rng.standard_normal(tiny.input_shape).astype(np.float32) for _ in range(4)]
    oracle = engine.load_network(tiny, tiny_weights)
    wanted = [engine.forward(oracle, data)[0] for data in inputs]
    answers = []
    wire.delay_s = 0.05
    with ionn.connect(str(tiny_files), wire.address, client=slow_client, server="gtx1080ti", mbps=1000) as session:
        if moment == "before the upload":
            assert session.uploaded < 1
            change(path, others)
        elif moment == "during the upload":
            wait_for(lambda: session.uploaded, "the first bytes")
            assert session.uploaded < 1
            change(path, others)
        wire.delay_s = 0.0
        answers.append(session.query(inputs[0]))
        wait_for(session.wait_uploaded, "the upload")
        if moment == "after the upload":
            change(path, others)
        answers += [session.query(data) for data in inputs[1:]]
    for answer, output in zip(answers, wanted, strict=True):
        np.testing.assert_array_equal(answer.outputs["prob"].view(np.uint32), output.view(np.uint32))
    assert any(segment.where == "server" for segment in answers[-1].segments)


@pytest.mark.parametrize("change", [overwritten, copied_over, truncated, half_truncated])
@pytest.mark.parametrize("when", ["first", "last"])
def test_a_file_that_changes_while_it_is_read(
    change: Callable[[Path, Path], None],
    when: str,
    tiny: Network,
    tiny_files: Path,
    others: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before its bytes are read, or after them."""
    path = tiny_files.with_suffix(".caffemodel")
    os.utime(path, ns=(10**18, 10**18))  # of old
    fstat = os.fstat
    left = [False, when == "first", when == "last"]  # at which look at the file it is to change: not while it is opened

    def look(descriptor: int) -> os.stat_result:
        before = fstat(descriptor)
        if left and left.pop(0):
            left.clear()  # what changes it may look too
            change(path, others)
        return before if when == "first" else fstat(descriptor)

    monkeypatch.setattr(os, "fstat", look)
    with pytest.raises(InputError, match=r"tiny\.caffemodel: it changed while it was read; try again"):
        read_weights(path, tiny)
    assert not left


@pytest.mark.parametrize("change", [overwritten, copied_over, truncated, half_truncated])
def test_a_file_that_changes_while_the_net_for_it_is_built(
    change: Callable[[Path, Path], None], tiny: Network, tiny_files: Path, others: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After it was found to fit, before its floats are read."""
    path = tiny_files.with_suffix(".caffemodel")
    new_network = engine.new_network

    def built(network: Network) -> engine.StageNet:
        change(path, others)
        return new_network(network)

    monkeypatch.setattr(engine, "new_network", built)
    with pytest.raises(InputError, match=r"tiny\.caffemodel: it changed while it was read; try again"):
        engine.read_network(tiny, path)


@pytest.mark.parametrize("change", [replaced, removed])
def test_a_file_that_is_gone_when_its_floats_are_read(
    change: Callable[[Path, Path], None], tiny: Network, tiny_files: Path, tiny_weights: Weights, others: Path
) -> None:
    """That is a change too: of how many names it has."""
    path = tiny_files.with_suffix(".caffemodel")
    with open_weights(path, tiny) as read_into:
        change(path, others)
        with pytest.raises(InputError, match=r"tiny\.caffemodel: it changed while it was read; try again"):
            read_into({name: tuple(map(np.empty_like, blobs)) for name, blobs in tiny_weights.items()})


def test_what_is_no_file_is_not_read(tiny: Network, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="/dev/zero: cannot read the caffemodel: it is not a regular file"):
        read_weights(Path("/dev/zero"), tiny)
    with pytest.raises(InputError, match="cannot read the caffemodel: Is a directory"):
        read_weights(tmp_path, tiny)


def test_weights_are_those_of_the_net(tiny: Network, tiny_weights: Weights) -> None:
    weights = engine.load_network(tiny, tiny_weights).weights()  # the net itself is not referred to any more
    assert weights.keys() == tiny_weights.keys()
    for name, blobs in tiny_weights.items():
        for blob, wanted in zip(weights[name], blobs, strict=True):
            np.testing.assert_array_equal(blob, wanted)


# It tells which of its turns took longer than the reader waits: it was interrupted, and the file stood still meanwhile.
WRITER = """
import itertools, os, sys, time
path, stop, *versions = sys.argv[1:]
contents = [open(version, "rb").read() for version in versions]
for turn, content in zip(range(5000), itertools.cycle(contents)):
    began = time.monotonic()
    with open(path, "r+b", buffering=0) as file:
        for at in range(0, len(content), 65536):
            file.write(content[at : at + 65536])
    if time.monotonic() - began > 0.015:
        print(began, time.monotonic())
    if os.path.exists(stop):
        break
    time.sleep(0.003 if turn % 10 else 0.1)
"""


WIDE = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 1000 } } }
layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc"
        inner_product_param { num_output: 2000 bias_term: false } }
"""


def test_a_file_that_is_read_while_it_is_overwritten_is_never_a_mixture(tmp_path: Path) -> None:
    """Whole pieces of 64 kB are written, also within one step of the clock that dates them.

    Only a writer that was interrupted half-way for longer than that may have left a mixture: nobody can tell.
    """
    network = Network.from_text(WIDE, "wide")
    path, stop, *versions = (tmp_path / name for name in ("used", "stop", "ones", "twos"))
    for value, version in enumerate(versions, 1):
        weights = {"fc": (np.full((2000, 1000), value, np.float32),)}
        version.write_bytes(serialise("wide", network.layers, weights).tobytes())
    shutil.copyfile(versions[0], path)
    whole = refused = 0
    mixtures = []  # when they were read
    writer = subprocess.Popen([sys.executable, "-c", WRITER, path, stop, *versions], stdout=subprocess.PIPE, text=True)
    try:
        while refused < 100:
            assert writer.poll() is None
            began = time.monotonic()
            try:
                (loaded,) = read_weights(path, network)["fc"]
            except InputError:
                refused += 1
                continue
            if loaded.min() == loaded.max():
                whole += 1
            else:
                mixtures.append((began, time.monotonic()))
        assert whole
        stop.touch()
        told, _ = writer.communicate(timeout=WAIT_S)
    finally:
        writer.kill()
        writer.wait()
    interrupted = [tuple(map(float, line.split())) for line in told.splitlines()]
    for began, ended in mixtures:
        assert any(first < ended and began < last for first, last in interrupted)
