"""Weight pieces of a partition, and the messages that upload what a server's store does not have: a client by hand."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import zmq

from ionn.model.partial_net import ExtractedPartition
from ionn.protocol import messages
from ionn.protocol.messages import AddressedPiece, Chunk, PartitionEnd, PartitionHeader, make_chunk
from tests.support.raw import Raw

WAIT_S = 60.0
CHUNK_BYTES = 200_000


def piece(number: int, floats: int = 1000) -> tuple[bytes, memoryview]:
    """The digest and the bytes of a piece."""
    data = memoryview(np.random.default_rng(number).standard_normal(floats).astype(np.float32).tobytes())
    return hashlib.sha256(data).digest(), data


def addressed(
    partition: ExtractedPartition, piece_bytes: int = 100_000, stored: Collection[str] = ()
) -> tuple[AddressedPiece, ...]:
    """A partition's blobs in pieces of at most so many bytes each; those of `stored` are to be in the store."""
    content = partition.caffemodel.tobytes()
    pieces = []
    for span in partition.caffemodel.blobs:
        for offset in range(span.offset, span.offset + span.size, piece_bytes):
            size = min(piece_bytes, span.offset + span.size - offset)
            sha256 = hashlib.sha256(content[offset : offset + size]).hexdigest()
            pieces.append(AddressedPiece(sha256, ((offset, size),), sha256 in stored))
    return tuple(pieces)


def upload_messages(
    partition: ExtractedPartition, pieces: Sequence[AddressedPiece], index: int = 0
) -> tuple[PartitionHeader, list[Chunk], PartitionEnd]:
    """What uploads a partition, without the bytes of its stored pieces."""
    model = partition.caffemodel
    content = memoryview(model.tobytes())
    digest = hashlib.sha256()
    chunks = []
    at = 0
    for offset, size in (*sorted(span for piece in pieces if piece.stored for span in piece.spans), (model.size, 0)):
        while at < offset:
            part = content[at : min(offset, at + CHUNK_BYTES)]
            digest.update(part)
            chunks.append(make_chunk(index, at, [part]))
            at += len(part)
        at = offset + size
    header = PartitionHeader(index, partition.nets, model.blobs, model.size, tuple(pieces))
    return header, chunks, PartitionEnd(index, digest.hexdigest())


def digests_of(pieces: Iterable[AddressedPiece]) -> list[str]:
    return [piece.sha256 for piece in pieces]


def held_by(raw: Raw, socket: zmq.Socket[Any], sha256s: Iterable[str]) -> set[str]:
    """Those of these pieces that the server says to have."""
    asked = list(sha256s)
    answer = raw.ask(socket, messages.Have((b"".join(map(bytes.fromhex, asked)),)))
    assert isinstance(answer, messages.Holds), answer
    (found,) = answer.payload
    assert len(found) == len(asked)
    assert set(found) <= {0, 1}
    return {sha256 for sha256, held in zip(asked, found, strict=True) if held}


def wait_held(raw: Raw, socket: zmq.Socket[Any], sha256s: Iterable[str]) -> None:
    """Ask until the server has all these pieces."""
    wanted = set(sha256s)
    deadline = time.monotonic() + WAIT_S
    while missing := wanted - held_by(raw, socket, wanted):
        assert time.monotonic() < deadline, f"{len(missing)} of {len(wanted)} pieces are not stored"
        time.sleep(0.01)


def upload(
    raw: Raw, socket: zmq.Socket[Any], partition: ExtractedPartition, pieces: Sequence[AddressedPiece], index: int = 0
) -> int:
    """Upload a partition; the bytes that were sent. Announced anew without the pieces that the server misses."""
    header, chunks, end = upload_messages(partition, pieces, index)
    answer = raw.ask(socket, header)
    if isinstance(answer, messages.Error):
        assert answer.code == messages.ERROR_MISSING, answer
        assert answer.partition == index
        assert answer.pieces
        assert all(pieces[number].stored for number in answer.pieces)
        left = [
            dataclasses.replace(piece, stored=piece.stored and number not in answer.pieces)
            for number, piece in enumerate(pieces)
        ]
        return upload(raw, socket, partition, left, index)
    assert isinstance(answer, messages.Ack), answer
    for chunk in chunks:
        assert answer.received == chunk.offset
        answer = raw.ask(socket, chunk)
        assert isinstance(answer, messages.Ack), answer
    assert answer.received == header.size
    assert raw.ask(socket, end) == messages.Ready(index)
    return sum(len(part) for chunk in chunks for part in chunk.payload)
