"""The blobs of a query as the payload of a message: a frame for each blob, raw or coded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ionn.coding import RAW, decode, encode
from ionn.model.caffemodel import Floats

_FLOAT_BYTES = 4


class Payload(NamedTuple):
    """The frames, and the codec of each; no codecs if all frames are raw."""

    codecs: tuple[str, ...]
    frames: tuple[Any, ...]


def make_payload(blobs: Sequence[Floats], coded: bool) -> Payload:
    """The payload for blobs, as float32 in little endian. If `coded`, those that shrink are coded. Raw frames may be
    the blobs' own memory. Raises MemoryError if there is too little memory."""
    # Flat, because `ascontiguousarray` makes a scalar an array of one axis.
    flat = [np.ascontiguousarray(blob, "<f4").reshape(-1) for blob in blobs]
    if not coded:
        return Payload((), tuple(flat))
    pairs = [encode(blob.view(np.uint8).data) for blob in flat]
    return Payload(tuple(codec for codec, _ in pairs), tuple(frame for _, frame in pairs))


def read_payload(
    frames: Sequence[Any], codecs: Sequence[str], shapes: Sequence[tuple[int, ...]], coded: bool = True
) -> list[Floats]:
    """The blobs in the frames, which must have these shapes. Raw blobs are the frames' own memory. Unless `coded`, only
    raw frames are accepted. Raises ValueError for any other payload.

    However much a stranger's frames claim to be, memory is allocated by the shapes only (`ionn.coding.decode`).
    """
    codecs = codecs or [RAW] * len(frames)
    if not len(frames) == len(codecs) == len(shapes):
        raise ValueError(f"{len(frames)} frames with {len(codecs)} codecs for {len(shapes)} blobs")
    if not coded and any(codec != RAW for codec in codecs):
        raise ValueError("coded frames where raw ones are due")
    sizes = [_FLOAT_BYTES * math.prod(shape) for shape in shapes]
    blobs = [decode(*given) for given in zip(codecs, frames, sizes, strict=True)]
    return [np.frombuffer(blob, "<f4").reshape(shape) for blob, shape in zip(blobs, shapes, strict=True)]
