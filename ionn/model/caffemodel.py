"""Weights in Caffe's own file format: read in one copy, write in pieces.

A caffemodel is a serialised `NetParameter`: per layer its name and its blobs, each blob a shape and its floats in one
packed run. So a file can be indexed by walking the few bytes between the floats, and a file can be written as small
headers with the floats of existing arrays in between. Field numbers: message `NetParameter` and below in caffe.proto.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError

from ionn.arguments import path_of
from ionn.errors import InputError
from ionn.files import open_regular
from ionn.model import zoo
from ionn.model.network import Layer, Network
from ionn.model.proto import BlobProto, BlobShape, LayerParameter, NetParameter
from ionn.schema import Natural

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float32]]

# The steps of the clock by which the system dates changes of files: at most 10 ms.
_FILE_CLOCK_S = 0.02

_FILE_BYTES_MAX = 2**31 - 1  # of protobuf

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # protobuf wire types

# (layer field, its name field, its blobs field): today's layers, and those of files before 2014 ("V1").
_LAYER_FIELDS = {100: (1, 7), 2: (4, 6)}

# A layer of Caffe's first format ("V0") is in a message of its own, within one of the second.
_OLDEST_LAYER_FIELDS = (2, 1)

# The shape of a blob in files before 2014, whatever it has in axes; fields 1 to 4.
_LEGACY_SHAPE = ("num", "channels", "height", "width")


class _OldestFormat(Exception):
    """Layers of Caffe's first format, which have other types and fields."""


class _NotIndexable(Exception):
    """Valid protobuf, perhaps, but its floats are not in one packed run."""


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise IndexError("a number of more than 64 bits")


def _fields(data: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """The fields of a message: number, wire type, and the value of a varint or the bytes of anything else."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire_type = key >> 3, key & 7
        if wire_type == _VARINT:
            value, at = _varint(data, at)
            yield number, wire_type, value
            continue
        if wire_type == _BYTES:
            size, at = _varint(data, at)
        elif wire_type in (_FIXED32, _FIXED64):
            size = 4 if wire_type == _FIXED32 else 8
        else:
            raise IndexError(f"wire type {wire_type}")
        if at + size > len(data):
            raise IndexError("truncated")
        yield number, wire_type, data[at : at + size]
        at += size


def _blob(data: memoryview) -> Floats:
    legacy: list[int] | None = None
    shape: list[int] = []
    floats = np.zeros(0, np.float32)
    for number, wire_type, value in _fields(data):
        if number == 7 and isinstance(value, memoryview):
            for _, dim_type, dims in _fields(value):
                if isinstance(dims, memoryview) and dim_type == _BYTES:
                    at = 0
                    while at < len(dims):
                        dim, at = _varint(dims, at)
                        shape.append(dim)
                elif isinstance(dims, int):
                    shape.append(dims)
        elif number == 5 and wire_type == _BYTES and isinstance(value, memoryview):
            if floats.size:
                raise _NotIndexable
            floats = np.frombuffer(value, np.dtype("<f4"))
        elif number in (5, 8):
            raise _NotIndexable
        elif 1 <= number <= 4 and isinstance(value, int):
            legacy = legacy or [0, 0, 0, 0]
            legacy[number - 1] = value
    dimensions = tuple(shape if legacy is None else legacy)  # Caffe goes by the old fields wherever there is one
    if math.prod(dimensions) != floats.size:
        raise IndexError("a blob's floats do not fill its shape")
    return floats.reshape(dimensions)


def _index(data: memoryview) -> dict[str, tuple[Floats, ...]]:
    layers: dict[str, tuple[Floats, ...]] = {}
    for number, _, layer in _fields(data):
        if number not in _LAYER_FIELDS or not isinstance(layer, memoryview):
            continue
        name_field, blobs_field = _LAYER_FIELDS[number]
        name, blobs = "", []
        for field, _, value in _fields(layer):
            if (number, field) == _OLDEST_LAYER_FIELDS:
                raise _OldestFormat
            if field == name_field and isinstance(value, memoryview):
                name = bytes(value).decode()
            elif field == blobs_field and isinstance(value, memoryview):
                blobs.append(_blob(value))
        layers[name] = tuple(blobs)
    return layers


def _decode(data: bytes) -> dict[str, tuple[Floats, ...]]:
    """The slow way, for files whose floats are doubles or not packed."""
    net = NetParameter.FromString(data)
    layers = {}
    for layer in [*net.layers, *net.layer]:
        blobs = []
        for blob in layer.blobs:
            with np.errstate(over="ignore"):  # a double that no float can hold becomes infinite
                values = np.array(blob.double_data if blob.double_data else blob.data, np.float32)
            legacy = any(map(blob.HasField, _LEGACY_SHAPE))
            shape = [getattr(blob, name) for name in _LEGACY_SHAPE] if legacy else list(blob.shape.dim)
            blobs.append(values.reshape(shape))
        layers[layer.name] = tuple(blobs)
    return layers


def _content(path: Path) -> bytes:
    """All of a file. It is not mapped: a file that shrinks would end the process, and one that is written to would
    change the weights.

    Whether it was written to meanwhile shows in its times, other than by programs that have it mapped. The system's
    clock for these goes in steps: what was changed within the last step is left alone until that is over.
    """
    try:
        with open_regular(path) as file:
            before = os.fstat(file.fileno())
            if before.st_size > _FILE_BYTES_MAX:
                raise InputError(f"{path}: not a caffemodel, it has more than the 2 GB that Caffe reads")
            if 0 <= time.time() - before.st_ctime_ns / 1e9 < _FILE_CLOCK_S:
                time.sleep(_FILE_CLOCK_S)
            data = file.read()
            after = os.fstat(file.fileno())
    except FileNotFoundError:
        raise InputError(f"{path}: no such caffemodel; put it there, or say where it is") from None
    except OSError as error:
        raise InputError(f"{path}: cannot read the caffemodel: {error.strerror}") from error
    if (before.st_size, before.st_ctime_ns) != (after.st_size, after.st_ctime_ns) or len(data) != after.st_size:
        raise InputError(f"{path}: it changed while it was read; try again when it is complete")
    if not data:
        raise InputError(f"{path}: not a caffemodel, the file is empty")
    return data


def read(path: Path) -> dict[str, tuple[Floats, ...]]:
    """The blobs of every layer in a caffemodel, as float32 arrays. They are views of one copy of the file: whatever
    becomes of that later, they stay.

    Raises InputError if the file cannot be read, changes while it is read, or is not a caffemodel.
    """
    data = memoryview(_content(path))
    try:
        try:
            layers = _index(data)
        except _NotIndexable:
            layers = _decode(bytes(data))
    except _OldestFormat:
        convert = "convert it with Caffe's upgrade_net_proto_binary"
        raise InputError(f"{path}: a caffemodel of Caffe's oldest format; {convert}") from None
    except (IndexError, ValueError, DecodeError) as error:
        raise InputError(f"{path}: not a caffemodel, or damaged ({error})") from error
    if not layers:
        raise InputError(f"{path}: not a caffemodel, it holds no layers")
    return layers


def _same_shape(stored: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    # Files before 2014 store every blob with four dimensions; Caffe accepts them padded with ones in front.
    return stored == wanted or (len(stored) == 4 and (1,) * (4 - len(wanted)) + wanted == stored)


def weights_path(model: str | Path, weights: str | Path | None) -> Path:
    """Where a model's caffemodel is: as given, else beside its .prototxt, else with those that come along."""
    if weights is not None:
        return path_of(weights, "weights")
    model = str(model)
    if model.endswith(".prototxt"):
        return Path(model).with_suffix(".caffemodel")
    return zoo.weights_folder() / f"{model}.caffemodel"


def read_weights(path: Path, network: Network) -> dict[str, tuple[Floats, ...]]:
    """The weights of `network` from a caffemodel: layer name -> blobs in the shapes that Caffe wants.

    Raises InputError where the file does not fit: Caffe itself would leave a missing layer at zero and say nothing.
    """
    if not any(layer.weight_shapes for layer in network.layers):
        return {}
    stored = read(path)
    weights = {}
    for layer in network.layers:
        if not layer.weight_shapes:
            continue
        blobs = stored.get(layer.name)
        if blobs is None:
            raise InputError(f"{path}: no weights for layer '{layer.name}' of {network.name}; give its own caffemodel")
        shapes = tuple(blob.shape for blob in blobs)
        if len(shapes) != len(layer.weight_shapes) or not all(map(_same_shape, shapes, layer.weight_shapes)):
            raise InputError(
                f"{path}: weights of layer '{layer.name}' have shapes {list(shapes)}, "
                f"{network.name} wants {list(layer.weight_shapes)}; give its own caffemodel"
            )
        weights[layer.name] = tuple(blob.reshape(shape) for blob, shape in zip(blobs, layer.weight_shapes, strict=True))
    return weights


@dataclass(frozen=True)
class BlobSpan:
    """Where the floats of a layer's blob lie in a serialised caffemodel, in bytes."""

    layer: str
    blob: Natural
    offset: Natural
    size: Natural


@dataclass(frozen=True)
class CodedFrame:
    """Bytes `offset`.. of a blob, or of a caffemodel, that were coded before. `read` gets their `wire_bytes`, or None
    where these cannot be had any more."""

    offset: int
    raw_bytes: int
    wire_bytes: int
    codec: str
    read: Callable[[], bytes | None]

    @property
    def end(self) -> int:
        return self.offset + self.raw_bytes


# By a layer's name, and for each of its blobs.
CodedFrames = Mapping[str, Sequence[Sequence[CodedFrame]]]


@dataclass(frozen=True)
class Serialised:
    """A caffemodel as pieces that follow one another: headers, and the floats of the arrays it was made from. `coded`
    are bytes of it, ascending, that are there in coded form too."""

    pieces: tuple[memoryview, ...]
    blobs: tuple[BlobSpan, ...]
    size: int
    coded: tuple[CodedFrame, ...] = ()

    def chunks(
        self, chunk_bytes: int, ends: Iterable[int] = (), left_out: Sequence[tuple[int, int]] = ()
    ) -> Iterator[tuple[int, list[memoryview]]]:
        """Consecutive (offset, parts) of at most `chunk_bytes` bytes. None goes on beyond one of `ends`, which ascend.
        The bytes of the spans `left_out`, each (begin, end), ascending and apart, are in none."""
        remaining_ends = iter(ends)
        end = next(remaining_ends, self.size)
        parts: list[memoryview] = []
        first = filled = 0
        for offset, part in self._without(left_out):
            while len(part):
                if parts and (filled == chunk_bytes or end <= offset):
                    yield first, parts
                    parts, filled = [], 0
                while end <= offset and end < self.size:
                    end = next(remaining_ends, self.size)
                taken = part[: min(chunk_bytes - filled, end - offset)]
                if not parts:
                    first = offset
                parts.append(taken)
                filled += len(taken)
                offset += len(taken)
                part = part[len(taken) :]
        if parts:
            yield first, parts

    def _without(self, left_out: Sequence[tuple[int, int]]) -> Iterator[tuple[int, memoryview]]:
        """All bytes but those of some spans, each part with its offset."""
        spans = iter(left_out)
        begin, end = next(spans, (self.size, self.size))
        offset = 0
        for piece in self.pieces:
            while len(piece):
                if end <= offset < self.size:
                    begin, end = next(spans, (self.size, self.size))
                part = piece[: (begin if offset < begin else end) - offset]
                if offset < begin:
                    yield offset, part
                offset += len(part)
                piece = piece[len(part) :]

    def tobytes(self) -> bytes:
        return b"".join(self.pieces)


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _prefix(number: int, size: int) -> bytes:
    return _encode_varint(number << 3 | _BYTES) + _encode_varint(size)


def serialise(name: str, layers: Iterable[Layer], weights: Mapping[str, Sequence[Floats]]) -> Serialised:
    """A caffemodel of those of the given layers that have weights. The floats are not copied."""
    return serialise_blobs(name, ((layer, weights[layer.name], ()) for layer in layers if layer.weight_shapes))


def serialise_blobs(
    name: str, layers: Iterable[tuple[Layer, Sequence[Floats], Sequence[Sequence[CodedFrame]]]]
) -> Serialised:
    """A caffemodel of layers, each with its weights and the coded frames of each blob, if there are any; a layer may
    come twice, with some of its channels each time. The floats are not copied."""
    pieces: list[memoryview] = []
    blobs: list[BlobSpan] = []
    coded: list[CodedFrame] = []
    size = 0

    def put(data: bytes | memoryview) -> None:
        nonlocal size
        pieces.append(memoryview(data))
        size += len(data)

    put(NetParameter(name=name).SerializeToString())
    for layer, blobs_of_layer, frames in layers:
        heads, arrays = [], []
        for array in blobs_of_layer:
            shape = BlobProto(shape=BlobShape(dim=array.shape)).SerializeToString()
            head = shape + _prefix(5, array.nbytes)
            heads.append(_prefix(7, len(head) + array.nbytes) + head)
            arrays.append(array)
        label = LayerParameter(name=layer.name, type=layer.type).SerializeToString()
        put(_prefix(100, len(label) + sum(len(h) + a.nbytes for h, a in zip(heads, arrays, strict=True))) + label)
        for index, (head, array) in enumerate(zip(heads, arrays, strict=True)):
            put(head)
            blobs.append(BlobSpan(layer.name, index, size, array.nbytes))
            if frames:
                coded += [replace(frame, offset=size + frame.offset) for frame in frames[index]]
            put(array.reshape(-1).view(np.uint8).data)
    return Serialised(tuple(pieces), tuple(blobs), size, tuple(coded))
