"""Coding: lossless compression of the blobs and weights that cross the link.

They are float32 numbers. The low bytes of measured or trained values are noise, while the high bytes, with sign and
exponent, repeat. So bytes are gathered into planes (all first bytes, all second bytes, and so on), which zstd then
compresses. Each plane begins a new block of zstd, because a block has one table of byte frequencies, in which the noise
of one plane would hide the repetitions of the next. Data that do not shrink are sent raw.

Every coded blob can be decoded by itself. Its receiver knows its raw size, and accepts no other. docs/coding.md says
why zstd was chosen, and what is coded where.
"""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

from ionn.errors import InputError, did_you_mean

if sys.version_info >= (3, 14):
    from compression import zstd as zstd
else:
    from backports import zstd as zstd  # the same module

NONE = "none"
FEATURES = "features"
LOSSLESS = "lossless"
# What is coded: nothing, the inputs and feature maps of queries, or these and the weights.
CODINGS = (NONE, FEATURES, LOSSLESS)

RAW = "raw"
PLANES = "planes"
# The codecs that this version can decode.
CODECS = (PLANES,)

_FLOAT_BYTES = 4
# Higher levels are slower, and gain next to nothing on planes of floats.
_LEVEL = 1

Bytes = bytes | bytearray | memoryview


def check_coding(coding: str, weight_ratio: float | None = None) -> None:
    """Raise InputError for a coding that is not one of CODINGS, for a weight ratio that is not above 0 and at most 1,
    and for a weight ratio with another coding than "lossless"."""
    if coding not in CODINGS:
        raise InputError(f"coding {coding!r:.60}: there are {', '.join(CODINGS)}{did_you_mean(str(coding), CODINGS)}")
    if weight_ratio is not None:
        if not 0 < weight_ratio <= 1:
            raise InputError(f"weight ratio {weight_ratio:g}: give wire bytes per raw byte, above 0 and at most 1")
        if coding != LOSSLESS:
            raise InputError(f"a weight ratio is for the coding {LOSSLESS}; leave it out, or give that coding")


def encode(data: Bytes) -> tuple[str, Bytes]:
    """Code the bytes of float32 numbers. Returns the codec and the bytes to send: `data` itself with the codec RAW if
    coding does not make it smaller. Raises MemoryError if there is too little memory."""
    raw_bytes = memoryview(data).nbytes
    if raw_bytes and raw_bytes % _FLOAT_BYTES == 0:
        floats: NDArray[np.uint8] = np.frombuffer(data, np.uint8).reshape(-1, _FLOAT_BYTES)
        try:
            coded = _encode_planes(np.ascontiguousarray(floats.T))
        except zstd.ZstdError as error:  # too little memory is the only possible cause
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
    """Decode what `encode` returned for `raw_bytes` bytes.

    The data may come from a stranger. Raises ValueError for data that `encode` cannot have returned for so many bytes.
    Whatever they claim, at most 1.25 x `raw_bytes` are allocated, and at most `raw_bytes` more for zstd's window.
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
