"""Weights that are coded ahead of any upload, in a sidecar: the file NAME.coded beside NAME.caffemodel.

The weights are divided into weight pieces (`ionn.model.weight_pieces`). A piece consists of frames, each of which
can be decoded by itself and occupies the link no longer than a chunk. A sidecar holds

    MAGIC, the coded frames in order, the index (JSON, `Index`), the size of the index, the SHA-256 of the index

and names every piece by the SHA-256 of its raw bytes. So it fits no other weights, and has the digests by which a
client asks a server's store. The index comes last, because frames are written as they are coded. Making or checking a
sidecar decodes every frame and compares it with the weights; opening one compares the digests of all pieces with the
weights. An upload only compares each frame's checksum, which takes next to no time; a damaged frame is sent raw.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np
import platformdirs

from ionn import coding
from ionn.errors import InputError
from ionn.files import FILE_BYTES_MAX, locked, open_regular, write_file
from ionn.model import zoo
from ionn.model.caffemodel import CodedFrame, CodedFrames, Floats, read_weights, weights_path
from ionn.model.network import Layer, Network
from ionn.model.weight_pieces import PIECE_BYTES, BlobRange, Layout, WeightPiece, weight_pieces
from ionn.schema import Natural, Word, read_json

MAGIC = b"ionn coded weights 2\n"
# The beginning of sidecars in the former format, by which they are told from damaged ones.
_MAGIC_FORMER = b"ionn coded weights 1\n"
# The most raw bytes of a frame: a chunk's, so that a query does not wait long for the link.
FRAME_BYTES = 128 * 1024
# Less than this is sent raw, in one chunk with its neighbours: a message of its own costs more than coding saves.
_LEAST_BYTES = 8 * 1024
# The size of the index and its SHA-256.
_TAIL = struct.Struct("<Q32s")

# The states of a sidecar that `check` returns, and BUILT, which `update` returns for one that it made.
VERIFIED = "verified"
MISSING = "missing"
DAMAGED = "damaged"
OUTDATED = "of other weights"
FORMER = "of a former format"
BUILT = "built"

Weights = Mapping[str, Sequence[Floats]]


class Frame(msgspec.Struct, frozen=True):
    """`raw_bytes` of a blob as they are sent. `crc32` is the checksum of the sent bytes. The bytes of a raw frame are
    only in the caffemodel."""

    codec: Word
    raw_bytes: Natural
    wire_bytes: Natural
    crc32: Natural


class Run(msgspec.Struct, frozen=True):
    """Bytes `begin`..`end` (not included) of a layer's blob, in frames."""

    layer: str
    blob: Natural
    begin: Natural
    end: Natural
    frames: tuple[Frame, ...]


class CodedPiece(msgspec.Struct, frozen=True):
    """A weight piece, with the SHA-256 of its raw bytes in hexadecimal."""

    runs: tuple[Run, ...]
    raw_bytes: Natural
    wire_bytes: Natural
    sha256: Word


class Index(msgspec.Struct, frozen=True):
    """The index of a sidecar. `weights` is the digest of the weights that it belongs to."""

    weights: Word
    pieces: tuple[CodedPiece, ...]


class _Damaged(Exception):
    """The file is not one that `write` can have written."""


class SidecarError(InputError):
    """A sidecar cannot be used; `state` is DAMAGED, OUTDATED or FORMER."""

    def __init__(self, path: Path, state: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}; 'ionn models --build' codes them again")
        self.state = state


def digest(network: Network, pieces: Sequence[str]) -> str:
    """The SHA-256 that stands for a network's weights: that of the layers' names, the blobs' shapes, and the digests of
    all pieces."""
    shapes = [(layer.name, layer.weight_shapes) for layer in _weighted(network)]
    return hashlib.sha256(repr((shapes, list(pieces))).encode()).hexdigest()


def piece_digest(layout: Layout, weights: Weights) -> str:
    """The SHA-256 of a weight piece, in hexadecimal."""
    found = hashlib.sha256()
    for layer, blob, begin, end in layout.ranges:
        found.update(_bytes_of(weights[layer][blob])[begin:end])
    return found.hexdigest()


def _weighted(network: Network) -> list[Layer]:
    return [layer for layer in network.layers if layer.weight_shapes]


def _bytes_of(blob: Floats) -> memoryview:
    return blob.reshape(-1).view(np.uint8).data


def _frame_sizes(size: int) -> list[int]:
    """Divide a run into frames of about equal size; returns their raw bytes."""
    step = 4 * math.ceil(size / (4 * math.ceil(size / FRAME_BYTES)))
    return [min(step, size - begin) for begin in range(0, size, step)]


def _encode(network: Network, weights: Weights) -> Iterator[bytes]:
    """Make the content of a sidecar, frame by frame."""
    yield MAGIC
    made = []
    for layout in weight_pieces(network):
        runs = []
        for each in layout.ranges:
            data = _bytes_of(weights[each.layer][each.blob])
            at = each.begin
            frames = []
            for size in _frame_sizes(each.size):
                raw = data[at : at + size]
                codec, coded = coding.encode(raw) if size >= _LEAST_BYTES else (coding.RAW, raw)
                frames.append(Frame(codec, size, len(coded), zlib.crc32(coded)))
                if codec != coding.RAW:
                    yield bytes(coded)
                at += size
            runs.append(Run(*each, frames=tuple(frames)))
        made.append(CodedPiece(tuple(runs), *_sizes(runs), piece_digest(layout, weights)))
    index = msgspec.json.encode(Index(digest(network, [piece.sha256 for piece in made]), tuple(made)))
    yield index
    yield _TAIL.pack(len(index), hashlib.sha256(index).digest())


def _sizes(runs: Sequence[Run]) -> tuple[int, int]:
    """The raw and the wire bytes of runs."""
    frames = [frame for run in runs for frame in run.frames]
    return sum(frame.raw_bytes for frame in frames), sum(frame.wire_bytes for frame in frames)


def write(path: Path, network: Network, weights: Weights) -> None:
    """Code weights into a sidecar. Raises InputError if it cannot be written."""
    write_file(path, _encode(network, weights))


class Sidecar:
    """An open sidecar, for use in a `with` statement. `frames` are the coded frames, and `pieces` are all weight pieces
    with their digests, which were compared with the weights.

    Raises SidecarError, one line, for a file that is damaged, of a former format, or of other weights.
    """

    def __init__(self, path: Path, network: Network, weights: Weights) -> None:
        with contextlib.ExitStack() as opened:
            try:
                self._file = opened.enter_context(open_regular(path))
                if os.pread(self._file.fileno(), len(_MAGIC_FORMER), 0) == _MAGIC_FORMER:
                    raise SidecarError(path, FORMER, "the coded weights are of a former format")
                self.index = _read_index(self._file)
                layouts = list(weight_pieces(network))
                digests = [piece_digest(layout, weights) for layout in layouts]
                if self.index.weights != digest(network, digests):
                    raise SidecarError(path, OUTDATED, "the coded weights are those of other weights")
                self.frames: CodedFrames = self._frames(network, layouts)
                if digests != [piece.sha256 for piece in self.index.pieces]:
                    raise _Damaged("its digests are not those of its pieces")
                self.pieces = tuple(map(WeightPiece, layouts, digests))
            except OSError as error:
                raise SidecarError(path, DAMAGED, f"cannot read the coded weights: {error.strerror}") from error
            except _Damaged as error:
                raise SidecarError(path, DAMAGED, f"the coded weights are damaged ({error})") from None
            opened.pop_all()

    def __enter__(self) -> Sidecar:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def wire_bytes(self) -> int:
        return sum(piece.wire_bytes for piece in self.index.pieces)

    def close(self) -> None:
        """Close the file. From now on, all frames are sent raw."""
        self._file.close()

    def _frames(self, network: Network, layouts: Sequence[Layout]) -> CodedFrames:
        """The coded frames of every blob. Each piece must be as this network has it."""
        found: dict[str, list[list[CodedFrame]]] = {
            layer.name: [[] for _ in layer.weight_shapes] for layer in _weighted(network)
        }
        at = len(MAGIC)
        ranges = [
            tuple(BlobRange(run.layer, run.blob, run.begin, run.end) for run in piece.runs)
            for piece in self.index.pieces
        ]
        if ranges != [layout.ranges for layout in layouts]:
            raise _Damaged("its pieces are not those of this network")
        for piece in self.index.pieces:
            for run in piece.runs:
                offset = run.begin
                for frame in run.frames:
                    if frame.codec != coding.RAW:
                        read = functools.partial(self._read, at, frame)
                        found[run.layer][run.blob].append(
                            CodedFrame(offset, frame.raw_bytes, frame.wire_bytes, frame.codec, read)
                        )
                        at += frame.wire_bytes
                    offset += frame.raw_bytes
        return found

    def _read(self, at: int, frame: Frame) -> bytes | None:
        try:
            data = os.pread(self._file.fileno(), frame.wire_bytes, at)
        except (OSError, ValueError):  # it has been closed, or its disk fails
            return None
        return data if len(data) == frame.wire_bytes and zlib.crc32(data) == frame.crc32 else None

    def is_right(self, weights: Weights) -> bool:
        """Decode all frames, and tell whether they are the weights."""
        return all(
            _is_right(frame, _bytes_of(blob))
            for name, blobs in self.frames.items()
            for frames, blob in zip(blobs, weights[name], strict=True)
            for frame in frames
        )


def _is_right(frame: CodedFrame, blob: memoryview) -> bool:
    if (data := frame.read()) is None:
        return False
    try:
        decoded = coding.decode(frame.codec, data, frame.raw_bytes)
    except ValueError:
        return False
    return bytes(decoded) == bytes(blob[frame.offset : frame.end])


def _read_index(file: BinaryIO) -> Index:
    """Read the index of a sidecar, and check the sizes of its pieces, runs and frames, and of the file."""
    size = os.fstat(file.fileno()).st_size
    if os.pread(file.fileno(), len(MAGIC), 0) != MAGIC:
        raise _Damaged("it does not begin as one")
    tail_at = size - _TAIL.size
    if tail_at < len(MAGIC):
        raise _Damaged("it is cut off")
    tail = os.pread(file.fileno(), _TAIL.size, tail_at)
    if len(tail) < _TAIL.size:  # since its size was asked for
        raise _Damaged("it is cut off")
    index_bytes, wanted = _TAIL.unpack(tail)
    if index_bytes > min(tail_at - len(MAGIC), FILE_BYTES_MAX):
        raise _Damaged("it is cut off")
    content = os.pread(file.fileno(), index_bytes, tail_at - index_bytes)
    if hashlib.sha256(content).digest() != wanted:
        raise _Damaged("its index is not what was written")
    try:
        index: Index = read_json(content, Index)
    except ValueError as error:
        raise _Damaged(str(error)) from None
    frames_bytes = 0
    for piece in index.pieces:
        for run in piece.runs:
            if run.begin + sum(frame.raw_bytes for frame in run.frames) != run.end:
                raise _Damaged("its frames do not fill a piece")
        frames = [frame for run in piece.runs for frame in run.frames]
        if any(not _is_possible(frame) for frame in frames):
            raise _Damaged("a frame of an impossible size")
        if _sizes(piece.runs) != (piece.raw_bytes, piece.wire_bytes) or piece.raw_bytes > PIECE_BYTES:
            raise _Damaged("a piece of an impossible size")
        frames_bytes += sum(frame.wire_bytes for frame in frames if frame.codec != coding.RAW)
    if len(MAGIC) + frames_bytes + index_bytes != tail_at:
        raise _Damaged("its frames do not fill it")
    return index


def _is_possible(frame: Frame) -> bool:
    if not 0 < frame.raw_bytes <= FRAME_BYTES:
        return False
    if frame.codec == coding.RAW:
        return frame.wire_bytes == frame.raw_bytes
    return frame.codec in coding.CODECS and 0 < frame.wire_bytes < frame.raw_bytes and frame.raw_bytes % 4 == 0


def sidecar_paths(weights: Path) -> tuple[Path, Path]:
    """The two places where the sidecar of a caffemodel may be: in the user's data folder, if the user cannot write to
    the folder of the caffemodel, and beside the caffemodel. Raises InputError for a path that cannot be a file's."""
    if not weights.name:
        raise InputError(f"{weights}: this is a folder; give the path of a caffemodel")
    place = hashlib.sha256(os.fsencode(os.path.realpath(weights))).hexdigest()[:16]
    of_user = platformdirs.user_data_path("ionn") / "coded" / f"{weights.stem[:40]}-{place}.coded"
    return of_user, weights.with_suffix(".coded")


def open_sidecar(weights_file: Path, network: Network, weights: Weights) -> Sidecar | None:
    """Open the sidecar of a caffemodel; None if there is none. `weights` were loaded from the caffemodel.

    Raises SidecarError if there are files, but none that can be used.
    """
    errors = []
    for path in sidecar_paths(weights_file):
        if os.path.exists(path):  # unlike Path.exists, this returns False where access is denied
            try:
                return Sidecar(path, network, weights)
            except SidecarError as error:
                errors.append(error)
    if errors:
        raise errors[0]
    return None


def own_wire_bytes(model: str | Path, weights: str | Path | None, network: Network) -> list[int] | None:
    """The wire bytes of each stage's weights by the model's sidecar. None if there is no usable sidecar, and for a
    bundled model, whose ratios are known without its weights.

    Raises InputError if there is a sidecar, but the caffemodel cannot be read.
    """
    path = weights_path(model, weights)
    if (weights is None and str(model) in zoo.definitions()) or not has_sidecar(path):
        return None
    return wire_bytes(path, network, read_weights(path, network))


def wire_bytes(weights_file: Path, network: Network, weights: Weights) -> list[int] | None:
    """The wire bytes of each stage's weights by the sidecar of a caffemodel; None if there is no usable sidecar.
    `weights` were loaded from the caffemodel."""
    try:
        sidecar = open_sidecar(weights_file, network, weights)
    except SidecarError:
        return None
    if sidecar is None:
        return None
    with sidecar:
        return stage_wire_bytes(network, sidecar.frames)


def sizes_digest(stage_bytes: Sequence[int]) -> str:
    """A hexadecimal digest of the wire bytes of each stage's weights."""
    return hashlib.sha256(repr(list(stage_bytes)).encode()).hexdigest()[:16]


def has_sidecar(weights_file: Path) -> bool:
    """Tell whether there is a sidecar of a caffemodel, valid or not."""
    return any(map(os.path.exists, sidecar_paths(weights_file)))


@dataclass(frozen=True)
class Found:
    """The state of a caffemodel's sidecar, and the wire bytes of the weights if there is one."""

    state: str
    wire_bytes: int | None = None


def check(weights_file: Path, network: Network, weights: Weights | None = None) -> Found:
    """Check the sidecar of a caffemodel: VERIFIED, MISSING, DAMAGED, OUTDATED or FORMER. Every frame is decoded and
    compared.

    Raises InputError if the caffemodel cannot be read.
    """
    weights = read_weights(weights_file, network) if weights is None else weights
    try:
        sidecar = open_sidecar(weights_file, network, weights)
    except SidecarError as error:
        return Found(error.state)
    if sidecar is None:
        return Found(MISSING)
    with sidecar:
        return Found(VERIFIED, sidecar.wire_bytes) if sidecar.is_right(weights) else Found(DAMAGED)


def update(weights_file: Path, network: Network) -> Found:
    """Code the weights of a caffemodel into its sidecar, which is then BUILT, unless there is one that is VERIFIED.

    The sidecar is written beside the caffemodel, or, if that folder is not writable, into the user's data folder.
    Raises InputError if the caffemodel cannot be read, or if the sidecar cannot be written or would replace the
    caffemodel.
    """
    weights = read_weights(weights_file, network)
    of_user, beside = sidecar_paths(weights_file)
    path = beside if os.access(beside.parent, os.W_OK) else of_user
    if all(map(os.path.exists, (path, weights_file))) and os.path.samefile(path, weights_file):
        raise InputError(f"{weights_file}: its coded weights would be {path}, the same file; rename it")
    with locked(path.parent):
        found = check(weights_file, network, weights)
        if found.state == VERIFIED:
            return found
        write(path, network, weights)
        if path == beside:
            with contextlib.suppress(OSError):  # an old one there would be opened instead
                of_user.unlink()
        made = check(weights_file, network, weights)
    if made.state != VERIFIED:
        raise InputError(
            f"{path}: the coded weights are {made.state} just after they were written; check disk and memory"
        )
    return Found(BUILT, made.wire_bytes)


def stage_wire_bytes(network: Network, frames: CodedFrames) -> list[int]:
    """The wire bytes of each stage's coded weights."""
    saved = {name: sum(f.raw_bytes - f.wire_bytes for blob in blobs for f in blob) for name, blobs in frames.items()}
    return [stage.weight_bytes - sum(saved.get(name, 0) for name in stage.layers) for stage in network.stages]
