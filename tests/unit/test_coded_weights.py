"""Sidecars: the same bits back, only for the weights they were made of, and nothing believed that is damaged."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import pytest

from ionn import coding, paper
from ionn.model import coded_weights
from ionn.model.caffemodel import serialise
from ionn.model.coded_weights import (
    BUILT,
    DAMAGED,
    FRAME_BYTES,
    MAGIC,
    MISSING,
    OUTDATED,
    VERIFIED,
    Found,
    Index,
    Sidecar,
    SidecarError,
    check,
    open_sidecar,
    sidecar_paths,
    stage_wire_bytes,
    update,
    write,
)
from ionn.model.network import Network
from ionn.model.slices import TILE, slice_sizes
from ionn.model.weight_pieces import PIECE_BYTES, weight_pieces
from tests.support.choices import Choices, Say, for_each_seed
from tests.support.command import ionn
from tests.support.forward import random_weights
from tests.support.generated import some_network
from tests.support.nets import layer

Weights = Mapping[str, tuple[np.ndarray, ...]]


def one_layer(inputs: int, outputs: int) -> Network:
    data = layer("Input", "data", params=f"input_param {{ shape {{ dim: 1 dim: {inputs} }} }}")
    return Network.from_text(
        data + layer("InnerProduct", "fc", "data", "fc", f"inner_product_param {{ num_output: {outputs} }}"), "net"
    )


# Three frames' worth of numbers, most of them the same, so that there are few bytes to damage.
SMALL = one_layer(32, 100)
SMALL_WEIGHTS: Weights = {
    "fc": (np.where(np.arange(3200) % 97 == 0, np.arange(3200), 1).astype(np.float32).reshape(100, 32),
           np.arange(100, dtype=np.float32)),
}  # fmt: skip


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A caffemodel with its sidecar."""
    path = tmp_path / "small.caffemodel"
    path.write_bytes(serialise("small", SMALL.layers, SMALL_WEIGHTS).tobytes())
    assert update(path, SMALL).state == BUILT
    return path


def assert_divides(network: Network) -> None:
    """Every byte of the weights is in one piece, in order, none of which has weights of two stages; slices of stages
    are sets of pieces, whose channels are those of their bytes."""
    covered: dict[tuple[str, int], int] = {}
    of_stage = {name: stage.index for stage in network.stages for name in stage.layers}
    for piece in weight_pieces(network):
        assert 0 < piece.raw_bytes == sum(each.size for each in piece.ranges) <= PIECE_BYTES
        for each in piece.ranges:
            assert of_stage[each.layer] == piece.stage
            assert covered.get((each.layer, each.blob), 0) == each.begin < each.end
            covered[each.layer, each.blob] = each.end
    assert covered == {
        (each.name, blob): 4 * int(np.prod(shape))
        for each in network.layers
        for blob, shape in enumerate(each.weight_shapes)
    }
    for stage in network.stages:
        pieces = [piece for piece in weight_pieces(network) if piece.stage == stage.index]
        if not (sizes := slice_sizes(network, stage)):
            assert all(piece.channels is None for piece in pieces)
            continue
        rows = [4 * int(np.prod(shape[1:])) for shape in network.layers[stage.first_layer].weight_shapes]
        for piece in pieces:
            assert piece.channels is not None
            begin, end = piece.channels
            assert begin % TILE == 0
            assert end == min(begin + TILE, sizes[0])
            for each in piece.ranges:
                assert begin * rows[each.blob] <= each.begin < each.end <= end * rows[each.blob]
        assert {piece.channels[0] for piece in pieces if piece.channels} == set(range(0, sizes[0], TILE))


@pytest.mark.parametrize("model", paper.MODELS)
def test_how_the_models_are_divided(model: str) -> None:
    assert_divides(Network.load(model))


@pytest.mark.parametrize(("inputs", "outputs"), [(1_100_000, 3), (30_000, 200), (10, 1), (3, 400_000)])
def test_how_large_layers_are_divided(inputs: int, outputs: int) -> None:
    """Rows that are larger than a piece, tiles that are, and neither."""
    assert_divides(one_layer(inputs, outputs))


def test_small_layers_of_a_stage_share_pieces() -> None:
    """As many as fit; those of another stage begin a piece of their own."""

    def product(name: str, bottom: str, outputs: int) -> str:
        return layer(
            "InnerProduct", name, bottom, None, f"inner_product_param {{ num_output: {outputs} bias_term: false }}"
        )

    network = Network.from_text(
        layer("Input", "data", params="input_param { shape { dim: 1 dim: 1000 } }")
        + "".join(product(name, "data", outputs) for name, outputs in zip("abcde", (600, 400, 1, 999, 1), strict=True))
        + layer("Concat", "all", "a b c d e")
        + product("small", "all", 1)
        + product("end", "small", 1),
        "net",
    )
    assert_divides(network)
    pieces = [(piece.stage, [each.layer for each in piece.ranges]) for piece in weight_pieces(network)]
    assert pieces == [(1, ["a", "b"]), (1, ["c", "d"]), (1, ["e"]), (2, ["small"]), (3, ["end"])]
    assert [piece.raw_bytes for piece in weight_pieces(network)][:2] == [PIECE_BYTES, PIECE_BYTES]


def test_a_large_layer_with_a_blob_that_has_no_channels() -> None:
    """A BatchNorm's third blob is one number for all of them."""
    data = layer("Input", "data", params="input_param { shape { dim: 1 dim: 700000 } }")
    assert_divides(Network.from_text(data + layer("BatchNorm", "norm", "data", "norm"), "net"))


def test_how_any_net_is_divided_coded_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coded_weights, "FRAME_BYTES", 1000)
    monkeypatch.setattr(coded_weights, "_LEAST_BYTES", 100)

    def any_net(c: Choices, say: Say) -> int:
        made = some_network(c)
        if made is None:
            return 0
        network, weights = made
        say(str(network.param))
        assert_divides(network)
        path = tmp_path / "net.coded"
        write(path, network, weights)
        return assert_reads(path, network, weights)

    assert sum(for_each_seed(20, any_net)) > 500


def assert_reads(path: Path, network: Network, weights: Weights) -> int:
    """Each piece has its digest, and each frame the bits of the weights; how many frames are coded."""
    count = 0
    with Sidecar(path, network, weights) as sidecar:
        for piece in sidecar.index.pieces:
            raw = b"".join(weights[run.layer][run.blob].tobytes()[run.begin : run.end] for run in piece.runs)
            assert hashlib.sha256(raw).hexdigest() == piece.sha256
            assert len(raw) == piece.raw_bytes >= piece.wire_bytes
        assert [piece.sha256 for piece in sidecar.pieces] == [piece.sha256 for piece in sidecar.index.pieces]
        assert [piece.layout for piece in sidecar.pieces] == list(weight_pieces(network))
        for name, blobs in sidecar.frames.items():
            for blob, frames in zip(weights[name], blobs, strict=True):
                content = blob.tobytes()
                for frame in frames:
                    data = frame.read()
                    assert data is not None
                    assert len(data) == frame.wire_bytes < frame.raw_bytes <= FRAME_BYTES
                    raw = content[frame.offset : frame.end]
                    assert bytes(coding.decode(frame.codec, data, frame.raw_bytes)) == raw
                    count += 1
        assert sum(stage_wire_bytes(network, sidecar.frames)) == sum(p.wire_bytes for p in sidecar.index.pieces)
    return count


def test_weights_that_do_not_shrink_are_not_in_the_file(tmp_path: Path) -> None:
    network = one_layer(100, 100)
    bits = np.random.default_rng(1).integers(0, 2**32, 10_100, np.uint32)
    weights = {"fc": (bits[:10_000].view(np.float32).reshape(100, 100), bits[10_000:].view(np.float32))}
    write(tmp_path / "net.coded", network, weights)
    assert assert_reads(tmp_path / "net.coded", network, weights) == 0
    assert (tmp_path / "net.coded").stat().st_size < 1000


def test_every_byte_that_is_damaged_is_noticed_or_of_no_effect(small: Path) -> None:
    """A bit of a zstd frame may mean nothing."""
    _, path = sidecar_paths(small)
    good = path.read_bytes()
    noticed = 0
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
        if check(small, SMALL, SMALL_WEIGHTS).state == DAMAGED:
            noticed += 1
        else:
            assert_reads(path, SMALL, SMALL_WEIGHTS)
    assert noticed > 0.98 * len(good)
    path.write_bytes(good)
    assert check(small, SMALL, SMALL_WEIGHTS).state == VERIFIED


def test_a_frame_that_is_damaged_is_not_given_out(small: Path) -> None:
    _, path = sidecar_paths(small)
    good = bytearray(path.read_bytes())
    good[len(MAGIC) + 5] ^= 1
    path.write_bytes(good)
    with Sidecar(path, SMALL, SMALL_WEIGHTS) as sidecar:
        frame = sidecar.frames["fc"][0][0]
        assert frame.read() is None
    assert frame.read() is None  # nor when the file is closed


def test_a_file_that_is_cut_off_or_goes_on(small: Path) -> None:
    _, path = sidecar_paths(small)
    good = path.read_bytes()
    for end in range(len(good)):
        path.write_bytes(good[:end])
        with pytest.raises(SidecarError, match=r"the coded weights are damaged \(.*'ionn models --build' codes them"):
            Sidecar(path, SMALL, SMALL_WEIGHTS)
    path.write_bytes(good + b"\n")
    with pytest.raises(SidecarError, match="damaged"):
        Sidecar(path, SMALL, SMALL_WEIGHTS)


@pytest.mark.parametrize("reads", [1, 2, 3])
def test_a_file_that_is_cut_off_while_it_is_read(reads: int, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After so many reads. The first two are of its beginning."""
    _, path = sidecar_paths(small)
    done = []

    def pread(descriptor: int, count: int, offset: int) -> bytes:
        done.append(offset)
        if len(done) == reads + 1:
            os.truncate(path, len(MAGIC))
        return read(descriptor, count, offset)

    read = os.pread
    monkeypatch.setattr(os, "pread", pread)
    with pytest.raises(SidecarError) as caught:
        Sidecar(path, SMALL, SMALL_WEIGHTS)
    assert caught.value.state == DAMAGED
    assert len(done) > reads


def test_the_sidecar_of_other_weights(small: Path) -> None:
    """Of one number that is another, of another network, and of the same numbers in another order."""
    _, path = sidecar_paths(small)
    other = {"fc": (SMALL_WEIGHTS["fc"][0].copy(), SMALL_WEIGHTS["fc"][1])}
    other["fc"][0][50, 16] *= 2
    strangers: list[tuple[Network, Weights]] = [
        (SMALL, other),
        (SMALL, {"fc": (SMALL_WEIGHTS["fc"][0][::-1], SMALL_WEIGHTS["fc"][1])}),
        (one_layer(31, 100), random_weights(one_layer(31, 100))),
    ]
    for network, weights in strangers:
        with pytest.raises(SidecarError, match="those of other weights") as caught:
            Sidecar(path, network, weights)
        assert caught.value.state == OUTDATED
    small.write_bytes(serialise("small", SMALL.layers, other).tobytes())
    assert check(small, SMALL).state == OUTDATED
    assert update(small, SMALL).state == BUILT
    assert check(small, SMALL).state == update(small, SMALL).state == VERIFIED


def rewritten(path: Path, index: Index, frames: bytes | None = None) -> None:
    """A sidecar with another index, whose digest is right."""
    old = path.read_bytes()
    size = int.from_bytes(old[-40:-32], "little")
    content = msgspec.json.encode(index)
    body = old[: -40 - size] if frames is None else MAGIC + frames
    path.write_bytes(body + content + len(content).to_bytes(8, "little") + hashlib.sha256(content).digest())


LIES: dict[str, list[object]] = {
    "raw_bytes": [0, 1, -4, 10**9, FRAME_BYTES + 4],
    "wire_bytes": [0, 1, 10**9, 2**62],
    "codec": ["", "raw", "quantised", "\x1b"],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field in LIES for value in LIES[field]])
def test_an_index_that_lies_is_damaged(field: str, value: object, small: Path) -> None:
    """Somebody made it so: its digest is right."""
    _, path = sidecar_paths(small)
    with Sidecar(path, SMALL, SMALL_WEIGHTS) as sidecar:
        index = sidecar.index
    first = index.pieces[0]
    frames = (msgspec.structs.replace(first.runs[0].frames[0], **{field: value}), *first.runs[0].frames[1:])
    for end in (first.runs[0].end, sum(frame.raw_bytes for frame in frames)):
        runs = (msgspec.structs.replace(first.runs[0], frames=frames, end=end), *first.runs[1:])
        every = [frame for run in runs for frame in run.frames]
        piece = msgspec.structs.replace(
            first, runs=runs, raw_bytes=sum(f.raw_bytes for f in every), wire_bytes=sum(f.wire_bytes for f in every)
        )
        rewritten(path, msgspec.structs.replace(index, pieces=(piece, *index.pieces[1:])))
        with pytest.raises(SidecarError, match=r"^[ -~]*damaged[ -~]*$"):
            Sidecar(path, SMALL, SMALL_WEIGHTS)


def test_an_index_of_other_pieces_is_damaged(small: Path) -> None:
    _, path = sidecar_paths(small)
    with Sidecar(path, SMALL, SMALL_WEIGHTS) as sidecar:
        index = sidecar.index
    (piece,) = index.pieces
    for runs in ((piece.runs[0], piece.runs[0]), piece.runs[::-1], ()):
        every = [frame for run in runs for frame in run.frames]
        sizes = {"raw_bytes": sum(f.raw_bytes for f in every), "wire_bytes": sum(f.wire_bytes for f in every)}
        frames = bytes(sum(f.wire_bytes for f in every if f.codec != coding.RAW))
        other = msgspec.structs.replace(piece, runs=runs, **sizes)
        rewritten(path, msgspec.structs.replace(index, pieces=(other,)), frames)
        with pytest.raises(SidecarError, match="its pieces are not those of this network"):
            Sidecar(path, SMALL, SMALL_WEIGHTS)


def test_what_is_no_file(tmp_path: Path) -> None:
    weights = tmp_path / "net.caffemodel"
    assert open_sidecar(weights, SMALL, SMALL_WEIGHTS) is None
    assert check(weights, SMALL, SMALL_WEIGHTS) == Found(MISSING)
    os.mkfifo(tmp_path / "net.coded")
    with pytest.raises(SidecarError, match="cannot read the coded weights: it is not a regular file"):
        open_sidecar(weights, SMALL, SMALL_WEIGHTS)


@pytest.mark.parametrize("wrong", ["an index", "a frame"])
def test_a_folder_that_cannot_be_written_to(
    wrong: str, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then it is with the user's data, one for each place; what is beside the caffemodel counts where it is right."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    of_user, beside = sidecar_paths(small)
    assert of_user.is_relative_to(tmp_path / "home")
    assert of_user != sidecar_paths(small.with_name("other") / small.name)[0]
    assert update(small, SMALL).state == VERIFIED
    damaged = bytearray(beside.read_bytes())
    damaged[-1 if wrong == "an index" else len(MAGIC) + 5] ^= 1
    beside.write_bytes(damaged)
    assert check(small, SMALL).state == DAMAGED
    assert update(small, SMALL).state == BUILT
    assert beside.read_bytes() == damaged
    assert check(small, SMALL).state == update(small, SMALL).state == VERIFIED
    assert_reads(of_user, SMALL, SMALL_WEIGHTS)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    of_user.write_bytes(b"old")
    beside.unlink()
    assert update(small, SMALL).state == BUILT  # beside it, now that this is possible
    assert check(small, SMALL).state == VERIFIED
    assert not of_user.exists()


@pytest.mark.parametrize("name", ["n" * 200 + ".caffemodel", "n" * 244 + ".caffemodel"])
def test_a_long_name(name: str, small: Path) -> None:
    weights = small.rename(small.with_name(name))
    assert open_sidecar(weights, SMALL, SMALL_WEIGHTS) is None
    assert update(weights, SMALL).state == BUILT
    assert check(weights, SMALL).state == VERIFIED


def test_where_the_users_data_cannot_be_looked_at(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/tmp/" + "n" * 300)
    assert check(small, SMALL).state == VERIFIED
    small.with_suffix(".coded").unlink()
    assert open_sidecar(small, SMALL, SMALL_WEIGHTS) is None


@pytest.mark.parametrize("what", ["other numbers", "no frame"])
def test_frames_that_were_wrong_from_the_beginning(what: str, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes and checksums fit; only the weights do not. That is noticed, and they are coded again."""

    def encode(data: coding.Bytes) -> tuple[str, coding.Bytes]:
        codec, coded = right(bytes(reversed(bytes(data))) if what == "other numbers" else data)
        return codec, coded if what == "other numbers" else bytes(reversed(bytes(coded)))

    right = coding.encode
    _, path = sidecar_paths(small)
    with monkeypatch.context() as patch:
        patch.setattr(coding, "encode", encode)
        write(path, SMALL, SMALL_WEIGHTS)
    assert check(small, SMALL).state == DAMAGED
    assert update(small, SMALL).state == BUILT
    assert check(small, SMALL).state == VERIFIED


# `ionn` that kills itself when it has coded a hundred frames.
KILLED = """
import os, signal, sys
from ionn import coding
from ionn.__main__ import main

encode, left = coding.encode, iter(range(100))

def encode_or_die(data):
    if next(left, None) is None:
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(data)

coding.encode = encode_or_die
sys.exit(main())
"""


def test_a_process_that_is_killed_while_it_codes_leaves_nothing_that_is_believed(tmp_path: Path) -> None:
    network = one_layer(2000, 4000)
    weights = random_weights(network)
    path = tmp_path / "net.caffemodel"
    path.write_bytes(serialise("net", network.layers, weights).tobytes())
    (tmp_path / "net.prototxt").write_text(str(network.param))
    build = ["models", "--build", str(tmp_path / "net.prototxt")]
    killed = subprocess.run([sys.executable, "-c", KILLED, *build], stdout=subprocess.DEVNULL, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    part = tmp_path / "net.coded.part"
    assert part.stat().st_size > 0
    assert check(path, network, weights).state == MISSING
    assert ionn(*build).returncode == 0
    assert check(path, network, weights).state == VERIFIED
    assert not part.exists()


def test_coding_needs_no_more_memory_than_a_few_frames(tmp_path: Path) -> None:
    network = one_layer(2000, 4000)
    weights = random_weights(network)
    tracemalloc.start()
    write(tmp_path / "net.coded", network, weights)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 12 * FRAME_BYTES < sum(blob.nbytes for blob in weights["fc"]) / 10
