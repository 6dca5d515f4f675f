"""Weights in Caffe's file format, the caffemodel: read straight into existing arrays, and written in pieces.

A caffemodel is a serialised `NetParameter`. It has, for each layer, a name and blobs, and each blob is a shape with its
floats in one packed run. So a file can be indexed by reading the few bytes between the floats; the floats can be read
into existing arrays; and a file can be written as small headers with the floats of existing arrays in between. The
field numbers are those of the message `NetParameter`, and of those in it, in caffe.proto.
"""

from __future__ import annotations

import contextlib
import itertools
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
from ionn.model.layers.rule import MAX_AXES
from ionn.model.network import Layer, Network
from ionn.model.proto import BlobProto, BlobShape, LayerParameter, NetParameter
from ionn.schema import Natural

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float32]]

# The system dates changes of files by a clock with steps of at most 10 ms; twice that is certainly a step.
_FILE_CLOCK_S = 0.02

_FILE_BYTES_MAX = 2**31 - 1  # the limit of protobuf

# How many of the bytes between the floats are read at once.
_WINDOW_BYTES = 4096

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # protobuf wire types

# (layer field, its name field, its blobs field): today's layers, and those of files before 2014 ("V1").
_LAYER_FIELDS = {100: (1, 7), 2: (4, 6)}
_TWO_FORMATS = "layers of two formats, which Caffe refuses"

# A layer of Caffe's first format ("V0") is in a message of its own, within one of the second.
_OLDEST_LAYER_FIELDS = (2, 1)

# The shape of a blob in files before 2014, whatever it has in axes; fields 1 to 4.
_LEGACY_SHAPE = ("num", "channels", "height", "width")


class _OldestFormat(Exception):
    """The file has layers of Caffe's first format, which have other types and fields."""


class _NotIndexable(Exception):
    """The floats of a blob are not in one packed run; the file may be valid protobuf all the same."""


class _File:
    """A caffemodel of `size` bytes that is read piece by piece. It is not mapped into memory: a file that shrinks would
    end the process, and one that is written to would change the weights.

    The file's times show whether it was written to meanwhile, except by programs that have it mapped. The system's
    clock for these times goes in steps, so a file that was changed within the last step is not read before that step is
    over.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        before = os.fstat(descriptor)
        if before.st_size > _FILE_BYTES_MAX:
            raise InputError(f"{path}: not a caffemodel, it has more than the 2 GB that Caffe reads")
        if 0 <= time.time() - before.st_ctime_ns / 1e9 < _FILE_CLOCK_S:
            time.sleep(_FILE_CLOCK_S)
        self.size, self._changed_ns = before.st_size, before.st_ctime_ns
        self._window, self._window_at = b"", 0

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """A context for reading the file. What was read is valid only if the context ends without an error. Raises
        InputError if the file has changed since it was opened, is damaged, or cannot be read."""
        try:
            try:
                yield
            except Exception:
                self._check()
                raise
            self._check()
        except _OldestFormat:
            convert = "convert it with Caffe's upgrade_net_proto_binary"
            raise InputError(f"{self.path}: a caffemodel of Caffe's oldest format; {convert}") from None
        except (IndexError, ValueError, DecodeError) as error:
            raise InputError(f"{self.path}: not a caffemodel, or damaged ({error})") from error
        except OSError as error:
            raise _cannot_read(self.path, error) from error

    def _check(self) -> None:
        after = os.fstat(self._descriptor)
        if (self.size, self._changed_ns) != (after.st_size, after.st_ctime_ns):
            raise InputError(f"{self.path}: it changed while it was read; try again when it is complete")

    def byte(self, at: int) -> int:
        """One byte. Raises IndexError if it is not there."""
        if not 0 <= at - self._window_at < len(self._window):
            self._window, self._window_at = os.pread(self._descriptor, _WINDOW_BYTES, at), at
        return self._window[at - self._window_at]

    def read_into(self, begin: int, data: memoryview) -> None:
        """Fill `data` with the bytes from `begin` on. Raises IndexError if some are not there."""
        while data:
            count = os.preadv(self._descriptor, [data], begin)
            if not count:
                raise IndexError("truncated")
            begin, data = begin + count, data[count:]


def _cannot_read(path: Path, error: OSError) -> InputError:
    return InputError(f"{path}: cannot read the caffemodel: {error.strerror}")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[_File]:
    """Open a caffemodel. Raises InputError if that is not possible."""
    with contextlib.ExitStack() as stack:
        try:
            file = _File(path, stack.enter_context(open_regular(path)).fileno())
        except FileNotFoundError:
            raise InputError(f"{path}: no such caffemodel; put it there, or say where it is") from None
        except OSError as error:
            raise _cannot_read(path, error) from error
        yield file


@dataclass(frozen=True)
class _Span:
    """Bytes `begin`..`end` (not included) of a file."""

    file: _File
    begin: int
    end: int

    def __len__(self) -> int:
        return self.end - self.begin

    def read(self) -> bytes:
        data = bytearray(len(self))
        self.file.read_into(self.begin, memoryview(data))
        return bytes(data)

    def varint(self, at: int) -> tuple[int, int]:
        """The number that begins at a place of the file, and the place where it ends."""
        value = shift = 0
        while True:
            if at == self.end:
                raise IndexError("truncated")
            byte = self.file.byte(at)
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
            shift += 7
            if shift > 63:
                raise IndexError("a number of more than 64 bits")

    def varints(self) -> Iterator[int]:
        """The numbers of a packed run."""
        at = self.begin
        while at < self.end:
            value, at = self.varint(at)
            yield value

    def fields(self) -> Iterator[tuple[int, int, int | _Span]]:
        """The fields of a message: number, wire type, and the value of a varint or the bytes of anything else."""
        at = self.begin
        while at < self.end:
            key, at = self.varint(at)
            number, wire_type = key >> 3, key & 7
            if not number:  # zeros: space that was reserved in the file and never written
                raise IndexError("field 0")
            if wire_type == _VARINT:
                value, at = self.varint(at)
                yield number, wire_type, value
                continue
            if wire_type == _BYTES:
                size, at = self.varint(at)
            elif wire_type in (_FIXED32, _FIXED64):
                size = 4 if wire_type == _FIXED32 else 8
            else:
                raise IndexError(f"wire type {wire_type}")
            if at + size > self.end:
                raise IndexError("truncated")
            yield number, wire_type, _Span(self.file, at, at + size)
            at += size


@dataclass(frozen=True)
class _StoredBlob:
    """A blob of a caffemodel: its shape, and its floats, as their place in the file, or decoded if they are not
    packed."""

    shape: tuple[int, ...]
    floats: _Span | Floats | None

    def read_into(self, array: Floats) -> None:
        """Fill a contiguous array that has as many elements."""
        flat = array.reshape(-1)
        if isinstance(self.floats, _Span):
            self.floats.file.read_into(self.floats.begin, flat.view(np.uint8).data)
        elif self.floats is not None:
            flat[...] = self.floats


def _blob(data: _Span) -> _StoredBlob:
    legacy: list[int] | None = None
    shape: list[int] = []
    floats: _Span | None = None
    for number, wire_type, value in data.fields():
        if number == 7 and isinstance(value, _Span):
            for _, dim_type, dims in value.fields():
                if isinstance(dims, int):
                    shape.append(dims)
                elif dim_type == _BYTES:
                    shape += itertools.islice(dims.varints(), MAX_AXES + 1)
                if len(shape) > MAX_AXES:
                    raise IndexError(f"a blob of more than {MAX_AXES} axes")
        elif number == 5 and wire_type == _BYTES and isinstance(value, _Span):
            if floats:
                raise _NotIndexable
            floats = value
        elif number in (5, 8):
            raise _NotIndexable
        elif 1 <= number <= 4 and isinstance(value, int):
            legacy = legacy or [0, 0, 0, 0]
            legacy[number - 1] = value
    dimensions = tuple(shape if legacy is None else legacy)  # Caffe uses the old fields if there is one of them
    if 4 * math.prod(dimensions) != len(floats or ()):
        raise IndexError("a blob's floats do not fill its shape")
    return _StoredBlob(dimensions, floats)


def _index(file: _File) -> dict[str, tuple[_StoredBlob, ...]]:
    layers: dict[str, tuple[_StoredBlob, ...]] = {}
    formats = set()
    for number, _, layer in _Span(file, 0, file.size).fields():
        if number not in _LAYER_FIELDS or not isinstance(layer, _Span):
            continue
        formats.add(number)
        if len(formats) > 1:
            raise IndexError(_TWO_FORMATS)
        name_field, blobs_field = _LAYER_FIELDS[number]
        name, blobs = "", []
        for field, _, value in layer.fields():
            if (number, field) == _OLDEST_LAYER_FIELDS:
                raise _OldestFormat
            if field == name_field and isinstance(value, _Span):
                name = value.read().decode()
            elif field == blobs_field and isinstance(value, _Span):
                blobs.append(_blob(value))
        layers[name] = tuple(blobs)
    return layers


def _decode(data: bytes) -> dict[str, tuple[_StoredBlob, ...]]:
    """Decode a whole file by protobuf: slow, and only for files whose floats are doubles or not packed."""
    net = NetParameter.FromString(data)
    if net.layers and net.layer:
        raise IndexError(_TWO_FORMATS)
    layers = {}
    for layer in net.layers or net.layer:
        blobs = []
        for blob in layer.blobs:
            with np.errstate(over="ignore"):  # a double that no float can hold becomes infinite
                values = np.array(blob.double_data if blob.double_data else blob.data, np.float32)
            legacy = any(map(blob.HasField, _LEGACY_SHAPE))
            shape = [getattr(blob, name) for name in _LEGACY_SHAPE] if legacy else list(blob.shape.dim)
            blobs.append(_StoredBlob(values.reshape(shape).shape, values))
        layers[layer.name] = tuple(blobs)
    return layers


def _layers(file: _File) -> dict[str, tuple[_StoredBlob, ...]]:
    """The blobs of every layer."""
    if not file.size:
        raise InputError(f"{file.path}: not a caffemodel, the file is empty")
    try:
        layers = _index(file)
    except _NotIndexable:
        layers = _decode(_Span(file, 0, file.size).read())
    if not layers:
        raise InputError(f"{file.path}: not a caffemodel, it holds no layers")
    return layers


def _fill(arrays: Mapping[str, Sequence[Floats]], stored: Mapping[str, Sequence[_StoredBlob]]) -> None:
    for name, blobs in stored.items():
        for blob, array in zip(blobs, arrays[name], strict=True):
            blob.read_into(array)


def _same_shape(stored: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    # Files before 2014 store every blob with four dimensions; Caffe accepts them padded with ones in front.
    return stored == wanted or (len(stored) == 4 and (1,) * (4 - len(wanted)) + wanted == stored)


def weights_path(model: str | Path, weights: str | Path | None) -> Path:
    """The path of a model's caffemodel: `weights` if given, else the file beside the .prototxt, or for a bundled model
    the one in the folder of bundled weights."""
    if weights is not None:
        return path_of(weights, "weights")
    model = str(model)
    if model.endswith(".prototxt"):
        return Path(model).with_suffix(".caffemodel")
    return zoo.weights_folder() / f"{model}.caffemodel"


@contextlib.contextmanager
def open_weights(path: Path, network: Network) -> Iterator[Callable[[Mapping[str, Sequence[Floats]]], None]]:
    """Open a caffemodel, check that it fits `network`, and return a function that reads the weights. The function fills
    arrays by layer name, contiguous and in the shapes that Caffe wants. The floats take no other memory, unless the
    file has them as doubles or not packed.

    Raises InputError if the file cannot be read or does not fit: Caffe itself would silently leave a missing layer at
    zero. The function raises it if the file has changed since it was opened.
    """
    wanted = {layer.name: layer.weight_shapes for layer in network.layers if layer.weight_shapes}
    if not wanted:
        yield lambda arrays: None
        return
    with _opened(path) as file:
        with file.reading():
            stored = _layers(file)
            for name, wanted_shapes in wanted.items():
                if (blobs := stored.get(name)) is None:
                    raise InputError(
                        f"{path}: no weights for layer '{name}' of {network.name}; give its own caffemodel"
                    )
                shapes = tuple(blob.shape for blob in blobs)
                if len(shapes) != len(wanted_shapes) or not all(map(_same_shape, shapes, wanted_shapes)):
                    raise InputError(
                        f"{path}: weights of layer '{name}' have shapes {list(shapes)}, "
                        f"{network.name} wants {list(wanted_shapes)}; give its own caffemodel"
                    )

        def read_into(arrays: Mapping[str, Sequence[Floats]]) -> None:
            with file.reading():
                _fill(arrays, {name: stored[name] for name in wanted})

        yield read_into


def read_weights(path: Path, network: Network) -> dict[str, tuple[Floats, ...]]:
    """Read the weights of `network` from a caffemodel: by layer name, blobs in the shapes that Caffe wants.

    Raises InputError as `open_weights` does.
    """
    with open_weights(path, network) as read_into:
        weights = {
            layer.name: tuple(np.empty(shape, np.float32) for shape in layer.weight_shapes)
            for layer in network.layers
            if layer.weight_shapes
        }
        read_into(weights)
    return weights


@dataclass(frozen=True)
class BlobSpan:
    """The place of the floats of a layer's blob in a serialised caffemodel, in bytes."""

    layer: str
    blob: Natural
    offset: Natural
    size: Natural


@dataclass(frozen=True)
class CodedFrame:
    """Bytes from `offset` on of a blob, or of a caffemodel, that were coded ahead. `read` returns the coded bytes,
    `wire_bytes` of them, or None if they can no longer be read."""

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
    """A caffemodel of `size` bytes as the sequence `pieces`: headers, and the floats of the arrays that it was made
    from, which are not copied. `blobs` are the places of the floats; `coded` are the parts, ascending, that exist in
    coded form too."""

    pieces: tuple[memoryview, ...]
    blobs: tuple[BlobSpan, ...]
    size: int
    coded: tuple[CodedFrame, ...] = ()

    def chunks(
        self, chunk_bytes: int, ends: Iterable[int] = (), left_out: Sequence[tuple[int, int]] = ()
    ) -> Iterator[tuple[int, list[memoryview]]]:
        """Divide the caffemodel into consecutive chunks (offset, parts) of at most `chunk_bytes` bytes. A chunk ends at
        the latest at the next of `ends`, which ascend. The spans `left_out`, each (begin, end), ascending and without
        overlap, are in no chunk."""
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
    """Make a caffemodel of those given layers that have weights. The floats are not copied."""
    return serialise_blobs(name, ((layer, weights[layer.name], ()) for layer in layers if layer.weight_shapes))


def serialise_blobs(
    name: str, layers: Iterable[tuple[Layer, Sequence[Floats], Sequence[Sequence[CodedFrame]]]]
) -> Serialised:
    """Make a caffemodel of layers, each with its weights and, if there are any, the coded frames of each blob. A layer
    may come several times, each time with some of its channels. The floats are not copied."""
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
