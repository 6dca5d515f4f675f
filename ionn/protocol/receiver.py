"""How a partition's chunks become the weights of nets: in order, checked, and copied straight into the nets."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import re
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ionn.coding import RAW, decode
from ionn.errors import PartitionError, ProtocolError
from ionn.protocol.messages import (
    DIGESTS_MAX,
    PIECE_BYTES_MAX,
    AddressedPiece,
    Chunk,
    PartitionEnd,
    PartitionHeader,
    make_chunk,
)

_SHA256 = re.compile("[0-9a-f]{64}")
_FLOAT_BYTES = 4


def decoded_bytes(chunk: Chunk) -> int:
    """How many bytes of the caffemodel a chunk has; of a coded one, how many it claims to have."""
    return chunk.raw_bytes if chunk.codec != RAW else sum(map(len, chunk.payload))


class TargetRange(NamedTuple):
    """Bytes `begin`..`end` (not included) of the blob with this number in a partition's header."""

    blob: int
    begin: int
    end: int


def piece_ranges(header: PartitionHeader) -> list[tuple[TargetRange, ...]]:
    """Where the bytes of each of a partition's pieces go. The header's blobs must not overlap.

    Raises ProtocolError for too many pieces, and for a piece that has no SHA-256, no bytes or too many, bytes outside
    of blobs or in another piece, or parts of floats.
    """
    if len(header.pieces) > DIGESTS_MAX:
        raise ProtocolError(f"a partition of {len(header.pieces)} pieces")
    begins = [span.offset for span in header.blobs]
    found = [_ranges(number, piece, header, begins) for number, piece in enumerate(header.pieces)]
    spans = sorted(span for piece in header.pieces for span in piece.spans)
    for (offset, size), (after, _) in itertools.pairwise(spans):
        if offset + size > after:
            raise ProtocolError(f"byte {after} of the partition is in two pieces")
    return found


def _ranges(
    number: int, piece: AddressedPiece, header: PartitionHeader, begins: Sequence[int]
) -> tuple[TargetRange, ...]:
    if not _SHA256.fullmatch(piece.sha256):
        raise ProtocolError(f"piece {number} has no SHA-256")
    if not 0 < sum(size for _, size in piece.spans) <= PIECE_BYTES_MAX:
        raise ProtocolError(f"piece {number} has no bytes, or more than {PIECE_BYTES_MAX}")
    found = []
    for offset, size in piece.spans:
        blob = bisect.bisect_right(begins, offset) - 1
        begin = offset - begins[blob] if blob >= 0 else -1
        if blob < 0 or begin + size > header.blobs[blob].size:
            raise ProtocolError(f"piece {number} is not within the partition's blobs")
        if not size or begin % _FLOAT_BYTES or size % _FLOAT_BYTES:
            raise ProtocolError(f"piece {number} has parts of floats")
        found.append(TargetRange(blob, begin, begin + size))
    return tuple(found)


class PartitionReceiver:
    """Takes the chunks of one partition in order, and puts the floats into its nets. Chunks leave out the bytes of
    stored pieces; the caller puts these there.

    `targets` holds, for each of the header's blobs, the writable bytes of that blob in its net. `ranges` is where the
    bytes of each piece go. Every method raises ProtocolError for bytes that are not the expected ones, and then leaves
    the receiver as it was; `take` raises PartitionError for weights that are not finite.

    `received` is where the next chunk begins, which is behind any stored bytes. All bytes before it have arrived or are
    stored.
    """

    def __init__(self, header: PartitionHeader, targets: Sequence[memoryview]) -> None:
        end = 0
        for span, target in zip(header.blobs, targets, strict=True):
            if span.offset < end or span.offset + span.size > header.size:
                raise ProtocolError(f"blob {span.blob} of layer '{span.layer}' lies outside the partition")
            if span.size != len(target):
                raise ProtocolError(f"blob {span.blob} of layer '{span.layer}' has the wrong size")
            end = span.offset + span.size
        self.ranges = piece_ranges(header)
        self._spans = header.blobs
        self._targets = targets
        self._next = 0
        self._digest = hashlib.sha256()
        self._size = header.size
        stored = sorted(span for piece in header.pieces if piece.stored for span in piece.spans)
        # The spans that chunks leave out, and an empty one where the caffemodel ends.
        self._left_out = deque([*stored, (header.size, 0)])
        self.received = 0
        self._skip()

    @property
    def complete(self) -> bool:
        return self.received == self._size

    def end_of(self, ranges: Sequence[TargetRange]) -> int:
        """The value of `received` from which on all bytes of a piece with these ranges have arrived."""
        return max(self._spans[blob].offset + end for blob, _, end in ranges)

    def take(self, chunk: Chunk) -> None:
        """Check the next chunk, decode it, and copy its floats into place."""
        size = decoded_bytes(chunk)
        if chunk.offset != self.received or not 0 < size <= self._left_out[0][0] - self.received:
            raise ProtocolError(f"chunk at byte {chunk.offset} (+{size}) where byte {self.received} is expected")
        sent = make_chunk(chunk.partition, chunk.offset, chunk.payload)
        if sent.crc32 != chunk.crc32:
            raise ProtocolError(f"chunk at byte {chunk.offset} is damaged")
        parts = chunk.payload
        if chunk.codec != RAW:
            try:
                parts = (memoryview(decode(chunk.codec, sent.payload[0], size)),)
            except ValueError as error:
                raise ProtocolError(f"chunk at byte {chunk.offset} cannot be decoded: {error}") from None
        for part in parts:
            self._digest.update(part)
            self._copy(part)
            self.received += len(part)
        self._skip()

    def _skip(self) -> None:
        """Skip stored bytes."""
        while self._left_out[0][0] == self.received < self._size:
            self.received += self._left_out.popleft()[1]

    def _copy(self, part: memoryview) -> None:
        begin, end = self.received, self.received + len(part)
        source = np.frombuffer(part, np.uint8)
        while self._next < len(self._spans):
            span = self._spans[self._next]
            low, high = max(begin - span.offset, 0), min(end - span.offset, span.size)  # of the blob
            if low < high:
                target = np.frombuffer(self._targets[self._next], np.uint8)
                start = span.offset + low - begin
                target[low:high] = source[start : start + high - low]
                # The floats that are complete now: checked as they arrive, so that PartitionEnd is answered at once.
                if not np.isfinite(target[low // 4 * 4 : high // 4 * 4].view("<f4")).all():
                    raise PartitionError(f"blob {span.blob} of layer {span.layer!r} has weights that are not finite")
            if end < span.offset + span.size:
                return
            self._next += 1

    def finish(self, end: PartitionEnd) -> None:
        """Check that everything has arrived and has the right digest. After a wrong digest, the receiver cannot be used
        any more."""
        if not self.complete:
            raise ProtocolError(f"the partition ends at byte {self.received} of {self._size}")
        if self._digest.hexdigest() != end.sha256:
            raise ProtocolError("the partition's digest is wrong")
