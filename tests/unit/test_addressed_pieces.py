"""A partition some of whose pieces are not sent: where its chunks go, and which headers are refused. No sockets."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ionn.errors import ProtocolError
from ionn.model.caffemodel import BlobSpan
from ionn.model.partial_net import NetStage, PartialNet
from ionn.protocol.messages import (
    DIGESTS_MAX,
    PIECE_BYTES_MAX,
    AddressedPiece,
    PartitionEnd,
    PartitionHeader,
    make_chunk,
)
from ionn.protocol.receiver import PartitionReceiver, TargetRange, piece_ranges

NET = PartialNet("layer {}", "data", (NetStage(1, 1, ("fc",)),))
SHA = "ab" * 32
Spans = Sequence[tuple[int, int]]


def header_of(blobs: Spans, size: int, pieces: Sequence[AddressedPiece] = ()) -> PartitionHeader:
    spans = tuple(BlobSpan("fc", number, *span) for number, span in enumerate(blobs))
    return PartitionHeader(0, (NET,), spans, size, tuple(pieces))


@st.composite
def partitions(draw: st.DrawFn) -> tuple[PartitionHeader, bytes]:
    """Blobs with anything between them, cut into parts, of which pieces are made; and a content."""
    offset, blobs, parts = 0, [], []
    for _ in range(draw(st.integers(1, 4))):
        offset += draw(st.integers(0, 7))
        floats = draw(st.integers(0, 12))
        blobs.append((offset, 4 * floats))
        cuts = [0, *sorted(draw(st.sets(st.integers(1, floats - 1), max_size=4)) if floats > 1 else []), floats]
        parts += [(offset + 4 * a, 4 * (b - a)) for a, b in itertools.pairwise(cuts) if a < b]
        offset += 4 * floats
    size = offset + draw(st.integers(0, 7))
    owners = [draw(st.integers(0, 3)) for _ in parts]  # 0: of no piece
    pieces = [
        AddressedPiece(SHA, tuple(spans), draw(st.booleans()))
        for number in range(1, 4)
        if (
            spans := draw(st.permutations([part for part, owner in zip(parts, owners, strict=True) if owner == number]))
        )
    ]
    content = (
        np.random.default_rng(draw(st.integers(0, 9))).standard_normal(size // 4 + 1).astype("<f4").tobytes()[:size]
    )
    return header_of(blobs, size, pieces), content


def finite(header: PartitionHeader, content: bytes) -> bytes:
    """The content, with finite floats where blobs are."""
    made = bytearray(content)
    for span in header.blobs:
        floats = np.arange(span.size // 4, dtype="<f4") + span.offset + 0.25
        made[span.offset : span.offset + span.size] = floats.tobytes()
    return bytes(made)


@given(given_partition=partitions(), chunk_bytes=st.integers(1, 60))
def test_all_bytes_come_but_those_of_stored_pieces(
    given_partition: tuple[PartitionHeader, bytes], chunk_bytes: int
) -> None:
    header, content = given_partition
    content = finite(header, content)
    left_out = {
        byte
        for piece in header.pieces
        if piece.stored
        for begin, size in piece.spans
        for byte in range(begin, begin + size)
    }
    targets = [memoryview(bytearray(b"\xee" * span.size)) for span in header.blobs]
    receiver = PartitionReceiver(header, targets)
    sent = b""
    while not receiver.complete:
        begin = receiver.received
        assert begin not in left_out
        end = begin
        while end < min(begin + chunk_bytes, header.size) and end not in left_out:
            end += 1
        if end < header.size:  # one more byte would be stored, or another one's
            with pytest.raises(ProtocolError, match="is expected"):
                receiver.take(make_chunk(0, begin + 1, [content[begin + 1 : end + 1]]))
        if end in left_out:
            with pytest.raises(ProtocolError, match="is expected"):
                receiver.take(make_chunk(0, begin, [content[begin : end + 1]]))
        receiver.take(make_chunk(0, begin, [content[begin:end]]))
        sent += content[begin:end]
        assert receiver.received >= end
        assert set(range(end, receiver.received)) <= left_out
    assert sent == bytes(byte for at, byte in enumerate(content) if at not in left_out)
    receiver.finish(PartitionEnd(0, hashlib.sha256(sent).hexdigest()))
    for span, target in zip(header.blobs, targets, strict=True):
        for at in range(span.size):
            assert target[at] == (0xEE if span.offset + at in left_out else content[span.offset + at])


@given(given_partition=partitions())
def test_a_piece_is_where_its_spans_are(given_partition: tuple[PartitionHeader, bytes]) -> None:
    header, content = given_partition
    blobs = [content[span.offset : span.offset + span.size] for span in header.blobs]
    receiver = PartitionReceiver(header, [memoryview(bytearray(blob)) for blob in blobs])
    assert receiver.ranges == piece_ranges(header)
    for piece, ranges in zip(header.pieces, receiver.ranges, strict=True):
        found = b"".join(blobs[blob][begin:end] for blob, begin, end in ranges)
        assert found == b"".join(content[begin : begin + size] for begin, size in piece.spans)
        assert receiver.end_of(ranges) == max(begin + size for begin, size in piece.spans)


def test_a_partition_all_of_which_is_stored_is_complete_at_once() -> None:
    header = header_of([(0, 8)], 8, [AddressedPiece(SHA, ((0, 8),), True)])
    receiver = PartitionReceiver(header, [memoryview(bytearray(8))])
    assert receiver.complete
    with pytest.raises(ProtocolError, match="is expected"):
        receiver.take(make_chunk(0, 8, [b""]))
    receiver.finish(PartitionEnd(0, hashlib.sha256().hexdigest()))


def test_what_is_left_out_at_the_end_is_there_at_the_end() -> None:
    header = header_of([(4, 16)], 20, [AddressedPiece(SHA, ((8, 12),), True)])
    receiver = PartitionReceiver(header, [memoryview(bytearray(16))])
    receiver.take(make_chunk(0, 0, [bytes(8)]))
    assert receiver.received == 20


BLOBS = [(10, 40), (60, 8)]
WRONG: list[tuple[AddressedPiece | list[AddressedPiece], str]] = [
    (AddressedPiece("", ((10, 4),), True), "piece 0 has no SHA-256"),
    (AddressedPiece("AB" * 32, ((10, 4),), True), "no SHA-256"),
    (AddressedPiece("ab" * 31, ((10, 4),), True), "no SHA-256"),
    (AddressedPiece(SHA + "\n", ((10, 4),), False), "no SHA-256"),
    (AddressedPiece("../" * 22, ((10, 4),), False), "no SHA-256"),
    (AddressedPiece(SHA, (), True), "has no bytes"),
    (AddressedPiece(SHA, ((10, 0),), True), "has no bytes"),
    (AddressedPiece(SHA, ((10, 0), (14, 4)), True), "parts of floats"),
    (AddressedPiece(SHA, ((10, PIECE_BYTES_MAX + 4),), False), f"or more than {PIECE_BYTES_MAX}"),
    (AddressedPiece(SHA, ((0, 4),), True), "not within"),
    (AddressedPiece(SHA, ((6, 8),), False), "not within"),
    (AddressedPiece(SHA, ((46, 8),), True), "not within"),
    (AddressedPiece(SHA, ((50, 4),), True), "not within"),
    (AddressedPiece(SHA, ((64, 8),), True), "not within"),
    (AddressedPiece(SHA, ((2**62, 4),), True), "not within"),
    (AddressedPiece(SHA, ((12, 4),), True), "parts of floats"),
    (AddressedPiece(SHA, ((10, 6),), False), "parts of floats"),
    (AddressedPiece(SHA, ((10, 8), (14, 8)), False), "byte 14 of the partition is in two pieces"),
    ([AddressedPiece(SHA, ((10, 8),), True), AddressedPiece(SHA, ((14, 8),), False)], "in two pieces"),
    ([AddressedPiece(SHA, ((10, 8),), True)] * 2, "in two pieces"),
    ([AddressedPiece(SHA, ((10, 4),), True)] * (DIGESTS_MAX + 1), f"a partition of {DIGESTS_MAX + 1} pieces"),
]


@pytest.mark.parametrize(("pieces", "reason"), WRONG)
def test_what_is_no_piece_of_a_partition(pieces: AddressedPiece | list[AddressedPiece], reason: str) -> None:
    given_pieces = pieces if isinstance(pieces, list) else [pieces]
    header = header_of(BLOBS, 70, given_pieces)
    with pytest.raises(ProtocolError, match=reason):
        PartitionReceiver(header, [memoryview(bytearray(40)), memoryview(bytearray(8))])


def test_pieces_may_touch_each_other_and_the_ends_of_blobs() -> None:
    pieces = [AddressedPiece(SHA, ((14, 36), (60, 8)), True), AddressedPiece(SHA, ((10, 4),), False)]
    header = header_of(BLOBS, 70, pieces)
    assert piece_ranges(header) == [(TargetRange(0, 4, 40), TargetRange(1, 0, 8)), (TargetRange(0, 0, 4),)]
    assert piece_ranges(dataclasses.replace(header, pieces=())) == []
