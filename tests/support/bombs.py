"""Frames of zstd, by hand, that claim to be far more than they are, or are far more than they claim (RFC 8878)."""

from __future__ import annotations

import itertools
import struct

_MAGIC = struct.pack("<I", 0xFD2FB528)
_BLOCK_BYTES = 128 * 1024


def _block(last: bool) -> bytes:
    """A byte that is repeated 128 Ki times, in four bytes."""
    return struct.pack("<I", last | 1 << 1 | _BLOCK_BYTES << 3)[:3] + b"x"


# What they decode to: 128 MB in 4 kB, 128 kB, 13 MB and more to come.
_BODIES = (_block(False) * 1000 + _block(True), _block(True), _block(False) * 100)
# Of windows of 1 MB, 128 MB and more, up to what zstd has no name for; the last says that it is the content's size.
_HEADS = (*(b"\xc0" + bytes((window,)) for window in (0x50, 0x88, 0x98, 0xA8, 0xFF)), b"\xe0")


def bombs(raw_bytes: int) -> list[bytes]:
    """Frames for a blob of so many bytes: that claim this size, or another, up to a GB."""
    sizes = (raw_bytes - 1, raw_bytes, raw_bytes + 1, 10 * raw_bytes, 2**30, 2**62)
    return [
        _MAGIC + head + struct.pack("<Q", size) + body
        for size, head, body in itertools.product(sizes, _HEADS, _BODIES)
        if body != _block(True) or raw_bytes != _BLOCK_BYTES  # which is no bomb
    ]
