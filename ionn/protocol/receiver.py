"""How a partition's chunks become the weights of nets: in order, checked, and straight into place."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from ionn.coding import RAW, decode
from ionn.errors import PartitionError, ProtocolError
from ionn.protocol.messages import Chunk, PartitionEnd, PartitionHeader, make_chunk


def decoded_bytes(chunk: Chunk) -> int:
    """How many bytes of the caffemodel a chunk has, or says that it has."""
    return chunk.raw_bytes if chunk.codec != RAW else sum(map(len, chunk.payload))


class PartitionReceiver:
    """Takes the chunks of one partition in order and puts the floats where they belong.

    `targets` holds, for each of the header's blobs, the writable bytes of that blob in its net. Every method raises
    ProtocolError for bytes that are not the expected ones, and leaves the receiver as it was; `take` raises
    PartitionError for weights that no sending again makes good.
    """

    def __init__(self, header: PartitionHeader, targets: Sequence[memoryview]) -> None:
        end = 0
        for span, target in zip(header.blobs, targets, strict=True):
            if span.offset < end or span.offset + span.size > header.size:
                raise ProtocolError(f"blob {span.blob} of layer '{span.layer}' lies outside the partition")
            if span.size != len(target):
                raise ProtocolError(f"blob {span.blob} of layer '{span.layer}' has the wrong size")
            end = span.offset + span.size
        self._spans = header.blobs
        self._targets = targets
        self._next = 0
        self._digest = hashlib.sha256()
        self._size = header.size
        self.received = 0

    @property
    def complete(self) -> bool:
        return self.received == self._size

    def take(self, chunk: Chunk) -> None:
        """Check the next chunk, decode it, and copy its floats into place."""
        size = decoded_bytes(chunk)
        if chunk.offset != self.received or not 0 < size <= self._size - self.received:
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
                # The floats that are complete now. Checked as they come, nothing is left to do at the end.
                if not np.isfinite(target[low // 4 * 4 : high // 4 * 4].view("<f4")).all():
                    raise PartitionError(f"blob {span.blob} of layer {span.layer!r} has weights that are not finite")
            if end < span.offset + span.size:
                return
            self._next += 1

    def finish(self, end: PartitionEnd) -> None:
        """Check that everything arrived and is what was sent; after a wrong digest the receiver is of no more use."""
        if not self.complete:
            raise ProtocolError(f"the partition ends at byte {self.received} of {self._size}")
        if self._digest.hexdigest() != end.sha256:
            raise ProtocolError("the partition's digest is wrong")
