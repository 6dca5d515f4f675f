"""Coding: lossless compression of what crosses the link, so that fewer bytes carry the same bits.

The numbers are float32. A number's four bytes differ in kind: the last ones of measured or trained values are noise,
the first ones, with sign and exponent, repeat. So the bytes are gathered plane by plane (all first bytes, all second
ones, and so on) before zstd looks for what repeats. What does not shrink is sent raw. Each plane begins a block of
zstd's: a block has one table of how often each byte occurs, and the noise of one plane would hide what repeats in the
next.

Every coded blob decodes by itself. Its receiver knows how many bytes it must be, and nothing else is accepted.
docs/coding.md says why this library, and what is coded where.
"""

from __future__ import annotations

import numpy as np
from backports import zstd
from numpy.typing import NDArray

from ionn.errors import InputError, did_you_mean

NONE = "none"
FEATURES = "features"
LOSSLESS = "lossless"
# What is coded: nothing, the inputs and feature maps of queries, or these and the weights.
CODINGS = (NONE, FEATURES, LOSSLESS)

RAW = "raw"
PLANES = "planes"
# What this version can decode.
CODECS = (PLANES,)

_FLOAT_BYTES = 4
# Higher levels are slower and gain next to nothing on planes of floats.
_LEVEL = 1

Bytes = bytes | bytearray | memoryview


def check_coding(coding: str, weight_ratio: float | None = None) -> None:
    """Raise InputError for a coding that is none of CODINGS, and for a ratio of weights that is none or not needed."""
    if coding not in CODINGS:
        raise InputError(f"coding {coding!r:.60}: there are {', '.join(CODINGS)}{did_you_mean(str(coding), CODINGS)}")
    if weight_ratio is not None:
        if not 0 < weight_ratio <= 1:
            raise InputError(f"weight ratio {weight_ratio:g}: give wire bytes per raw byte, above 0 and at most 1")
        if coding != LOSSLESS:
            raise InputError(f"a weight ratio is for the coding {LOSSLESS}; leave it out, or give that coding")


def encode(data: Bytes) -> tuple[str, Bytes]:
    """The codec for these bytes of float32, and the bytes as they are sent: never more than were given.

    Raises MemoryError where there is no memory for that.
    """
    raw_bytes = memoryview(data).nbytes
    if raw_bytes and raw_bytes % _FLOAT_BYTES == 0:
        floats: NDArray[np.uint8] = np.frombuffer(data, np.uint8).reshape(-1, _FLOAT_BYTES)
        try:
            coded = _encode_planes(np.ascontiguousarray(floats.T))
        except zstd.ZstdError as error:  # there is nothing else that can be wrong
            raise MemoryError(str(error)) from None
        if len(coded) < raw_bytes:
            return PLANES, coded
    return RAW, data


def _encode_planes(planes: NDArray[np.uint8]) -> bytes:
    frame = zstd.ZstdCompressor(_LEVEL)
    frame.set_pledged_input_size(planes.nbytes)
    blocks = [frame.compress(plane.data, zstd.ZstdCompressor.FLUSH_BLOCK) for plane in planes]
    return b"".join((*blocks, frame.flush(zstd.ZstdCompressor.FLUSH_FRAME)))


def decode(codec: str, data: Bytes, raw_bytes: int) -> Bytes:
    """The `raw_bytes` bytes that `encode` was given.

    Raises ValueError for what no `encode` sends for so many bytes, whoever it comes from. Allocates one and a quarter
    times as many, and what zstd needs for a window of at most as many, whatever the data claim to be.
    """
    sent_bytes = memoryview(data).nbytes
    if codec == RAW:
        if sent_bytes != raw_bytes:
            raise ValueError(f"{sent_bytes} raw bytes, not {raw_bytes}")
        return data
    if codec != PLANES:
        raise ValueError(f"unknown codec {codec!r:.40}")
    if sent_bytes >= raw_bytes or raw_bytes % _FLOAT_BYTES:
        raise ValueError(f"{sent_bytes} coded bytes for {raw_bytes}")
    try:
        return _decode_planes(data, raw_bytes)
    except zstd.ZstdError as error:
        raise ValueError(f"not coded by zstd: {error}") from None


def _decode_planes(data: Bytes, raw_bytes: int) -> memoryview:
    if zstd.get_frame_info(data).decompressed_size != raw_bytes:
        raise ValueError(f"coded data that do not claim to be {raw_bytes} bytes")
    count = raw_bytes // _FLOAT_BYTES
    floats = np.empty((count, _FLOAT_BYTES), np.uint8)
    frame = zstd.ZstdDecompressor()
    for plane in range(_FLOAT_BYTES):
        decoded = b"" if frame.eof else frame.decompress(b"" if plane else data, max_length=count)
        if len(decoded) != count:
            raise ValueError("coded data that are cut off")
        floats[:, plane] = np.frombuffer(decoded, np.uint8)
    if not frame.eof or frame.unused_data:
        raise ValueError("coded data that are cut off, or go on after their end")
    return floats.data.cast("B")
