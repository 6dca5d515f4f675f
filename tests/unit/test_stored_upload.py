"""Uploads to a server that has some of the weights already: what it has never crosses the link, whatever happens."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ionn.errors import ProtocolError
from ionn.model import coded_weights, slices, weight_pieces
from ionn.model.coded_weights import Sidecar, write
from ionn.model.network import Network
from ionn.model.partial_net import AddressedSpans, ExtractedPartition, extract
from ionn.model.slices import TILE, Piece, Slice, slice_sizes, stage_of
from ionn.protocol import sender, stored
from ionn.protocol.messages import (
    DIGESTS_MAX,
    ERROR_MISSING,
    PROTOCOL,
    Ack,
    Chunk,
    Error,
    Have,
    Held,
    Holds,
    Message,
    PartitionEnd,
    PartitionHeader,
    Ready,
    Welcome,
)
from ionn.protocol.sender import Upload
from ionn.protocol.stored import Stored
from ionn.server.limits import Limits
from tests.support.choices import Seeded
from tests.support.forward import random_weights
from tests.support.nets import network_of
from tests.support.scripted_store import StoreServer

CHANNELS = 5 * TILE - 7


class Subject(NamedTuple):
    """A network whose weights have addresses, and are coded."""

    network: Network
    weights: Mapping[str, Sequence[np.ndarray]]
    sidecar: Sidecar

    def extract(self, pieces: Sequence[Piece], coded: bool = False) -> ExtractedPartition:
        frames = self.sidecar.frames if coded else None
        return extract(self.network, pieces, self.weights, frames, self.sidecar.pieces)

    def content(self, digest: str) -> bytes:
        (layout,) = {piece.layout for piece in self.sidecar.pieces if piece.sha256 == digest}
        blobs = self.weights
        return b"".join(blobs[each.layer][each.blob].tobytes()[each.begin : each.end] for each in layout.ranges)

    @property
    def digests(self) -> list[str]:
        return [piece.sha256 for piece in self.sidecar.pieces]


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    """Small pieces and frames: stages of one piece, of several, and one that is cut into six tiles, of two or three
    pieces each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slices, "SMALL_PRODUCT", 1)
        patch.setattr(weight_pieces, "PIECE_BYTES", 20_000)
        patch.setattr(coded_weights, "PIECE_BYTES", 20_000)
        patch.setattr(coded_weights, "FRAME_BYTES", 3000)
        patch.setattr(coded_weights, "_LEAST_BYTES", 200)
        network = network_of(
            "Convolution convolution_param { num_output: 6 kernel_size: 3 }",
            "BatchNorm",
            f"InnerProduct inner_product_param {{ num_output: {CHANNELS} }}",
            "*ReLU",
            "InnerProduct inner_product_param { num_output: 40 }",
            "InnerProduct inner_product_param { num_output: 30 axis: 1 }",
            "Softmax",
            shape="dim: 1 dim: 3 dim: 7 dim: 7",
        )
        assert [stage.index for stage in network.stages if slice_sizes(network, stage)] == [3]
        weights = random_weights(network)
        path = tmp_path_factory.mktemp("weights") / "net.coded"
        write(path, network, weights)
        with Sidecar(path, network, weights) as sidecar:
            yield Subject(network, weights, sidecar)


def some_plan(data: st.DataObject, network: Network) -> list[list[Piece]]:
    """Partitions that have every stage but the input once, in any order, one of them perhaps in slices."""
    tiles = data.draw(st.sets(st.integers(1, CHANNELS // TILE)), "cuts")
    ends = [*(TILE * tile for tile in sorted(tiles)), CHANNELS]
    cut = [Slice(3, begin, end) for begin, end in zip((0, *ends[:-1]), ends, strict=True)] if tiles else [3]
    stages = [stage.index for stage in network.stages if not stage.pinned and stage.index != 3]
    pieces = data.draw(st.permutations([*stages, *cut]), "order")
    breaks = data.draw(st.sets(st.integers(1, len(pieces) - 1)), "partitions")
    edges = [0, *sorted(breaks), len(pieces)]
    return [sorted(pieces[begin:end], key=stage_of) for begin, end in itertools.pairwise(edges)]


def upload_all(data: st.DataObject, upload: Upload, store: Stored, server: StoreServer) -> None:
    """Upload everything. At any message the connection may be lost, with what was under way or without, the server may
    be killed and come back, and forget pieces or keep others."""
    clock_s = 0.0
    told: set[str] = set()  # what the server said to have, and has not missed since
    under_way: list[Message] = []
    losses = 0

    def take(sent: Message, answer: Message) -> None:
        if isinstance(answer, Holds):
            assert isinstance(sent, Have)
            digests = sent.payload[0]
            told.update(digests[32 * at : 32 * at + 32].hex() for at, there in enumerate(answer.payload[0]) if there)
            store.take(answer, clock_s)
            return
        upload.take(answer)
        if isinstance(answer, Error):
            assert isinstance(sent, PartitionHeader)
            missed.update(sent.pieces[number].sha256 for number in answer.pieces)
            assert not store.pieces & {sent.pieces[number].sha256 for number in answer.pieces}

    def connect() -> None:
        welcome = server.welcome()
        if (question := store.begin(welcome)) is not None:
            told.clear()
            missed.clear()
            take(question, server.answer(question))
        upload.begin(welcome)

    missed: set[str] = set()
    connect()
    while not upload.ended:
        while (message := upload.next_message()) is not None:
            under_way.append(message)
            if isinstance(message, PartitionHeader):
                assert all(piece.stored == (piece.sha256 in told - missed) for piece in message.pieces)
        if (question := store.ask_again(clock_s, upload.wire_bytes, upload.ended)) is not None:
            under_way.append(question)
        assert under_way, "nothing is sent, and nothing is due"
        clock_s += 1
        credit = sum(len(sent.payload[0]) for sent in under_way if isinstance(sent, Chunk))
        assert 0 <= credit <= server.window_bytes
        for _ in range(data.draw(st.integers(1, len(under_way)))):
            sent = under_way.pop(0)
            take(sent, server.answer(sent))
        event = data.draw(st.sampled_from(["", "", "", "keep", "loss", "restart"]))
        if event == "keep":
            server.keep()
        elif event and losses < 5:
            losses += 1
            for lost in under_way[: data.draw(st.integers(0, len(under_way)))]:
                server.answer(lost)  # these still arrive, their answers do not
            under_way = []
            upload.pause()
            assert upload.ready == 0
            if event == "restart":
                server.restart()
            connect()


@settings(max_examples=100)
@given(data=st.data())
def test_what_is_stored_never_crosses_and_all_bytes_are_right(subject: Subject, data: st.DataObject) -> None:
    coded = data.draw(st.booleans(), "coded")
    partitions = [subject.extract(pieces, coded) for pieces in some_plan(data, subject.network)]
    digests = subject.digests
    there = {digest: subject.content(digest) for digest in data.draw(st.sets(st.sampled_from(digests)), "stored")}
    chunk_bytes = data.draw(st.sampled_from([1000, 2999, 3000, 10**6]))
    server = StoreServer(
        Seeded(data.draw(st.integers(0, 2**32))),
        partitions,
        there,
        chunk_bytes,
        data.draw(st.sampled_from([3000, 10**6])),
    )
    server.lies = data.draw(st.booleans(), "lies")
    store = Stored(digests)
    upload = Upload(partitions, lambda: 1.0, store=store)
    upload_all(data, upload, store, server)
    server.check()
    assert upload.ready == len(partitions)
    records = upload.records([()] * len(partitions))
    for index, (record, partition) in enumerate(zip(records, partitions, strict=True)):
        taken_bytes = sum(end - begin for begin, end in server.partitions[index].stored)
        assert record.bytes == sum(span.size for span in partition.caffemodel.blobs)
        assert record.stored_bytes == taken_bytes
        assert record.bytes - record.stored_bytes == server.weight_bytes[index]
        assert record.wire_bytes is not None
        assert record.wire_bytes <= server.wire_bytes[index]


# --- One thing after another ------------------------------------------------------------------------------------------


def welcome(session: str = "a", *held: Held, stores: bool = True) -> Welcome:
    return Welcome(PROTOCOL, session, 10**6, 10**9, held=held, stores=stores)


def told(digests: Sequence[str], there: Sequence[str]) -> Stored:
    """What a client knows whose server has said to have some of its pieces."""
    store = Stored(digests)
    assert store.begin(welcome("a")) == Have((b"".join(map(bytes.fromhex, digests)),))
    store.take(Holds((bytes(digest in there for digest in digests),)), 0.0)
    return store


def begun(partitions: Sequence[ExtractedPartition], store: Stored) -> Upload:
    upload = Upload(partitions, lambda: 1.0, store=store)
    upload.begin(welcome())
    return upload


def drain(upload: Upload) -> list[Message]:
    return list(iter(upload.next_message, None))


def after(message: Message | None, upload: Upload) -> list[Message]:
    """What can be sent when a header is acknowledged."""
    assert isinstance(message, PartitionHeader)
    assert upload.next_message() is None
    upload.take(Ack(message.partition, 0))
    return drain(upload)


def weights_in(sent: Sequence[Message], partition: ExtractedPartition) -> int:
    """How many bytes of weights chunks have."""
    total = 0
    for chunk in sent:
        if isinstance(chunk, Chunk):
            begin, end = chunk.offset, chunk.offset + len(chunk.payload[0])
            for span in partition.caffemodel.blobs:
                total += max(0, min(end, span.offset + span.size) - max(begin, span.offset))
    return total


def test_a_stage_of_which_all_is_stored_sends_no_weights(subject: Subject) -> None:
    partition = subject.extract([1, 2, 3, 4, 5])
    upload = begun([partition], told(subject.digests, subject.digests))
    header = upload.next_message()
    assert isinstance(header, PartitionHeader)
    assert all(piece.stored for piece in header.pieces)
    assert len(header.pieces) == len(subject.digests)
    *chunks, end = after(header, upload)
    assert isinstance(end, PartitionEnd)
    assert weights_in(chunks, partition) == 0
    assert sum(len(each.payload[0]) for each in chunks if isinstance(each, Chunk)) == (
        partition.caffemodel.size - partition.weight_bytes
    )
    upload.take(Ack(0, chunks[1].offset))  # type: ignore[attr-defined]
    assert upload.unsent()[1][0] < 1


def test_a_slice_is_a_set_of_pieces(subject: Subject) -> None:
    """Of the tiles that a slice has, those that are stored are not sent."""
    tiles = [piece for piece in subject.sidecar.pieces if piece.layout.channels is not None]
    there = [piece.sha256 for piece in tiles if piece.layout.channels == (TILE, 2 * TILE)]
    assert len(there) > 1  # a tile is larger than a piece may be
    row_bytes = 4 * (subject.weights["c"][0].shape[1] + 1)
    for begin, end, expected in ((0, 3 * TILE, 2 * TILE), (TILE, 2 * TILE, 0), (2 * TILE, 4 * TILE, 2 * TILE)):
        partition = subject.extract([Slice(3, begin, end)])
        upload = begun([partition], told(subject.digests, there))
        header = upload.next_message()
        assert isinstance(header, PartitionHeader)
        assert sum(size for piece in header.pieces for _, size in piece.spans) == (end - begin) * row_bytes
        rest = after(header, upload) if expected < end - begin else drain(upload)
        assert weights_in(rest, partition) == expected * row_bytes


def test_a_slice_has_all_coded_frames_of_its_pieces(subject: Subject) -> None:
    row_bytes = 4 * subject.weights["c"][0].shape[1]
    frames = [frame for frame in subject.sidecar.frames["c"][0] if frame.end <= TILE * row_bytes]
    coded = subject.extract([Slice(3, 0, TILE)], coded=True).caffemodel.coded
    assert frames[-1].end == TILE * row_bytes
    assert [(frame.raw_bytes, frame.codec) for frame in coded] == [(frame.raw_bytes, frame.codec) for frame in frames]


def test_channels_that_are_not_those_of_pieces_have_no_address(subject: Subject) -> None:
    """A planner of the user's own may cut anywhere: what is not a whole piece is sent."""
    partition = subject.extract([Slice(3, 7, 20)])
    (header, *rest) = drain(begun([partition], told(subject.digests, subject.digests)))
    assert isinstance(header, PartitionHeader)
    assert header.pieces == ()
    assert weights_in(rest, partition) == partition.weight_bytes


def test_the_same_piece_twice_in_a_partition() -> None:
    """Two layers with the same numbers: both are taken from the one piece that is stored."""
    network = network_of(
        "InnerProduct inner_product_param { num_output: 5 bias_term: false }",
        "InnerProduct inner_product_param { num_output: 5 bias_term: false }",
        shape="dim: 1 dim: 5",
    )
    same = np.arange(25, dtype=np.float32).reshape(5, 5)
    weights = {"a": (same,), "b": (same,)}
    pieces = [
        weight_pieces.WeightPiece(layout, coded_weights.piece_digest(layout, weights))
        for layout in weight_pieces.weight_pieces(network)
    ]
    assert len({piece.sha256 for piece in pieces}) == 1
    partition = extract(network, [1, 2], weights, None, pieces)
    store = told([pieces[0].sha256], [pieces[0].sha256])
    upload = begun([partition], store)
    header = upload.next_message()
    assert isinstance(header, PartitionHeader)
    assert [piece.stored for piece in header.pieces] == [True, True]
    assert weights_in(after(header, upload), partition) == 0


def test_a_server_without_a_store_is_told_no_addresses(subject: Subject) -> None:
    partition = subject.extract([1, 2, 3, 4, 5])
    store = Stored(subject.digests)
    assert store.begin(welcome("a", stores=False)) is None
    upload = Upload([partition], lambda: 1.0, store=store)
    upload.begin(welcome(stores=False))
    header, *rest = drain(upload)
    assert isinstance(header, PartitionHeader)
    assert header.pieces == ()
    assert weights_in(rest, partition) == partition.weight_bytes
    assert store.ask_again(1e9, 10**9, True) is None


def test_so_many_addresses_as_a_server_takes(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "_ADDRESS_BYTES", 250_000)  # so that a header has room for three
    monkeypatch.setattr(stored, "DIGESTS_MAX", 4)
    partition = subject.extract([1, 2, 3, 4, 5])
    store = Stored(subject.digests)
    question = store.begin(welcome("a"))
    assert question is not None
    assert len(question.payload[0]) == 32 * 4 < 32 * DIGESTS_MAX
    store.take(Holds((b"\1" * 4,)), 0.0)
    upload = begun([partition], store)
    header = upload.next_message()
    assert isinstance(header, PartitionHeader)
    assert [piece.stored for piece in header.pieces] == [True] * 3
    first = sum(size for piece in header.pieces for _, size in piece.spans)
    assert weights_in(after(header, upload), partition) == partition.weight_bytes - first


@pytest.mark.parametrize("spans", [1, 8])
def test_a_partition_of_more_pieces_than_a_header_has_room_for(subject: Subject, spans: int) -> None:
    """The header has what a server takes by default, and it is all that there is to wait for."""
    digests = [f"{number:064x}" for number in range(DIGESTS_MAX)]
    many = tuple(AddressedSpans(digest, ((10**9, 4 * 10**6),) * spans) for digest in digests)
    partition = replace(subject.extract([1, 2, 3, 4, 5]), addressed=many)
    store = Stored(digests)
    question = store.begin(welcome("a"))
    assert question is not None
    store.take(Holds((bytes(len(question.payload[0]) // 32),)), 0.0)
    upload = begun([partition], store)
    header = upload.next_message()
    assert isinstance(header, PartitionHeader)
    assert [piece.sha256 for piece in header.pieces] == digests[: len(header.pieces)]
    assert 850_000 < len(header.frames()[0]) < 1e3 * Limits().header_kb
    assert not upload.is_stored
    found = {piece.sha256 for piece in header.pieces}
    store._asked.append(digests)
    store.take(Holds((bytes(digest in found for digest in digests),)), 1.0)
    assert len(found) < len(digests)
    assert upload.is_stored


def test_what_is_missing_is_sent_and_not_asked_for_again(subject: Subject) -> None:
    partition = subject.extract([1, 2, 3, 4, 5])
    store = told(subject.digests, subject.digests)
    upload = begun([partition], store)
    first = upload.next_message()
    assert isinstance(first, PartitionHeader)
    upload.take(Error(ERROR_MISSING, "", partition=0, pieces=(1, 4)))
    lost = {first.pieces[number].sha256 for number in (1, 4)}
    assert store.pieces == set(subject.digests) - lost
    again = upload.next_message()
    assert isinstance(again, PartitionHeader)
    assert [number for number, piece in enumerate(again.pieces) if not piece.stored] == [1, 4]
    assert replace(again, pieces=()) == replace(first, pieces=())
    sizes = [sum(size for _, size in piece.spans) for piece in again.pieces]
    assert weights_in(after(again, upload), partition) == sizes[1] + sizes[4]
    # Whatever it says later, in this session.
    question = store.ask_again(1e9, 10**9, True)
    assert question is not None
    store.take(Holds((b"\1\1",)), 0.0)
    assert store.pieces == set(subject.digests)
    assert not any(map(store.may_be_taken, lost))
    store.begin(welcome("b"))
    store.take(Holds((b"\1" * len(subject.digests),)), 0.0)
    assert all(map(store.may_be_taken, subject.digests))


def stored_numbers(header: Message | None) -> tuple[int, ...]:
    assert isinstance(header, PartitionHeader)
    return tuple(number for number, piece in enumerate(header.pieces) if piece.stored)


def test_a_server_that_misses_what_it_must_not(subject: Subject) -> None:
    """Nothing, what was not marked, what is no piece, another partition's; and at a chunk, or the end."""
    partition = subject.extract([1, 2, 3])
    half = [piece.sha256 for piece in partition.addressed[::2]]
    wrong = [
        Error(ERROR_MISSING, "", partition=0),
        *(Error(ERROR_MISSING, "", partition=0, pieces=pieces) for pieces in ((1,), (0, 1), (99,), (2**62,))),
        *(Error(ERROR_MISSING, "", partition=number, pieces=(0,)) for number in (-1, 1, 2**62)),
    ]
    for error in wrong:
        upload = begun([partition], told(subject.digests, half))
        assert stored_numbers(upload.next_message()) == tuple(range(0, len(partition.addressed), 2))
        with pytest.raises(ProtocolError, match="misses pieces of weights that it was not to take from its store"):
            upload.take(error)
    right = Error(ERROR_MISSING, "", partition=0, pieces=(0,))
    upload = begun([partition], told(subject.digests, half))
    for message in after(upload.next_message(), upload)[:2]:
        with pytest.raises(ProtocolError, match="misses pieces"):
            upload.take(right)
        assert isinstance(message, Chunk)
    upload = begun([partition], told(subject.digests, half))
    *chunks, end = after(upload.next_message(), upload)
    assert isinstance(end, PartitionEnd)
    for before, following in itertools.pairwise([*chunks, None]):
        assert isinstance(before, Chunk)
        upload.take(Ack(0, following.offset if isinstance(following, Chunk) else partition.caffemodel.size))
    with pytest.raises(ProtocolError, match="misses pieces"):
        upload.take(right)
    with pytest.raises(ProtocolError, match="is not to what it was sent"):
        begun([], told(subject.digests, half)).take(right)


def test_a_server_that_misses_one_piece_after_another_comes_to_an_end(subject: Subject) -> None:
    partition = subject.extract([1, 2, 3, 4, 5])
    upload = begun([partition], told(subject.digests, subject.digests))
    announced = 0
    while numbers := stored_numbers(upload.next_message()):
        announced += 1
        upload.take(Error(ERROR_MISSING, "", partition=0, pieces=numbers[:1]))
    assert announced == len(subject.digests)
    assert weights_in(drain(upload), partition) == partition.weight_bytes


def test_chunks_wait_until_the_server_has_read_what_it_has(subject: Subject) -> None:
    """Of this partition, and of those that follow; one of which nothing is stored waits for nothing."""
    partitions = [subject.extract([stage]) for stage in (1, 2, 4)]
    upload = begun(partitions, told(subject.digests, [piece.sha256 for piece in partitions[1].addressed]))
    sent = drain(upload)
    kinds = [(type(message), message.partition) for message in sent]  # type: ignore[attr-defined]
    assert kinds[0] == (PartitionHeader, 0)
    assert kinds[-2:] == [(PartitionEnd, 0), (PartitionHeader, 1)]
    for message in sent[1:-1]:
        assert message.partition == 0  # type: ignore[attr-defined]
    assert upload.begun == 2
    assert upload.weights_under_way
    for message in sent:
        assert upload.next_message() is None
        received = partitions[0].caffemodel.size if isinstance(message, Chunk) else 0
        is_end = isinstance(message, PartitionEnd)
        upload.take(Ready(0) if is_end else Ack(message.partition, received))  # type: ignore[attr-defined]
        assert upload.under_way == (message is not sent[-1])
    assert not upload.weights_under_way
    *_, end = drain(upload)
    assert isinstance(end, PartitionEnd)
    assert end.partition == 2


@pytest.mark.parametrize("received", ["in it", "before it"])
def test_a_server_that_holds_a_part_of_what_is_stored(subject: Subject, received: str) -> None:
    """What it has received never ends in stored bytes, nor before some."""
    partition = subject.extract([1])
    upload = begun([partition], told(subject.digests, [partition.addressed[0].sha256]))
    assert upload.next_message() is not None
    (offset, size), *_ = partition.addressed[0].spans
    upload.pause()
    with pytest.raises(ProtocolError, match="the server holds what it was never sent"):
        upload.begin(welcome("a", Held(0, offset if received == "before it" else offset + 4, False)))
    upload.begin(welcome("a", Held(0, offset + size, False)))
    chunk = upload.next_message()
    assert isinstance(chunk, Chunk)
    assert chunk.offset == offset + size


# --- When the server is asked -----------------------------------------------------------------------------------------

DIGESTS = [f"{number:064x}" for number in range(50)]


def test_a_session_begins_with_one_question() -> None:
    store = Stored([*DIGESTS, DIGESTS[3]])
    assert store.begin(welcome("a")) == Have((b"".join(map(bytes.fromhex, DIGESTS)),))
    store.take(Holds((b"\1" + bytes(48) + b"\1",)), 0.0)
    assert store.pieces == {DIGESTS[0], DIGESTS[49]}
    assert store.begin(welcome("a")) is None  # another connection of the same session
    assert store.pieces
    assert store.begin(welcome("b")) is not None
    assert not store.pieces
    # A question that was not answered is asked again by the next connection.
    assert store.begin(welcome("b")) is not None
    assert store.begin(welcome("c", stores=False)) is None
    assert Stored().begin(welcome("a")) is None


def test_a_question_is_no_larger_than_what_a_server_takes_at_once() -> None:
    store = Stored(DIGESTS)
    question = store.begin(replace(welcome(), window_bytes=32 * 20 + 31))
    assert question is not None
    assert len(question.payload[0]) == 32 * 20
    store.take(Holds((b"\1" * 19 + b"\0",)), 0.0)
    again = store.ask_again(5.0, 10**9, False)
    assert again is not None
    assert bytes(again.payload[0]).hex() == "".join(DIGESTS[19:39])


@pytest.mark.parametrize("content", [b"", bytes(49), bytes(51), b"\2" + bytes(49), b"1" * 50, bytes(50) * 2])
def test_an_answer_that_is_none(content: bytes) -> None:
    store = Stored(DIGESTS)
    store.begin(welcome("a"))
    with pytest.raises(ProtocolError, match="asked for 50 pieces of weights, and does not say of each whether it has"):
        store.take(Holds((content[:20], content[20:])), 0.0)


def test_while_weights_go_up_questions_cost_a_two_hundredth_of_them() -> None:
    store = told(DIGESTS, DIGESTS[:10])
    asked_bytes = questions = 0
    for step in range(1, 1001):
        if (question := store.ask_again(0.1 * step, 40_000 * step, False)) is not None:
            assert store.ask_again(1e9, 10**12, False) is None  # one at a time
            asked_bytes += len(question.payload[0])
            questions += 1
            assert len(question.payload[0]) == 32 * 40
            store.take(Holds((bytes(40),)), 0.1 * step)
    assert 0.003 < asked_bytes / (40_000 * 1000) < 0.005
    exact = told(DIGESTS, ())
    assert exact.ask_again(1.0, 200 * 32 * 50 - 1, False) is None
    assert exact.ask_again(1.0, 200 * 32 * 50, False) is not None
    slow = told(DIGESTS, ())
    assert sum(slow.ask_again(0.001 * step, 10**6 * step, False) is not None for step in range(1, 1001)) == 1


def test_afterwards_it_is_asked_until_nothing_more_comes() -> None:
    store = told(DIGESTS, ())
    asked_s = []
    for tenth in range(1000):
        now_s = tenth / 10
        if (question := store.ask_again(now_s, 0, True)) is not None:
            asked_s.append(now_s)
            store.take(Holds((bytes([now_s == 3.0]) + bytes(len(question.payload[0]) // 32 - 1),)), now_s)
    assert asked_s == [0.0, 1.0, 3.0, 4.0, 6.0, 8.0, 10.0, 12.0]
    assert store.is_quiet
    assert store.pieces == {DIGESTS[0]}
    # An upload that goes on with more.
    assert store.ask_again(30.0, 10**9, False) is not None
    assert not store.is_quiet
    store.take(Holds((bytes(49),)), 30.0)
    assert store.ask_again(30.5, 10**9, True) is not None
    everything = told(DIGESTS, ())
    assert everything.ask_again(0.0, 0, True) is not None
    everything.take(Holds((b"\1" * 50,)), 0.0)
    assert everything.ask_again(5.0, 0, True) is None
