"""Weights that go coded: what arrives is what was extracted, whatever the chunks, the window, and where it breaks."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from ionn import coding, paper
from ionn.costs.loading import load_costs
from ionn.errors import PartitionError, ProtocolError
from ionn.model import coded_weights
from ionn.model.caffemodel import CodedFrame, CodedFrames, read_weights, weights_path
from ionn.model.coded_weights import Sidecar, open_sidecar, write
from ionn.model.network import Network
from ionn.model.partial_net import ExtractedPartition, extract
from ionn.model.slices import Piece, Slice
from ionn.planning.graph import ExecutionGraph
from ionn.planning.plan import make_plan
from ionn.protocol.messages import (
    CHUNK_BYTES,
    PROTOCOL,
    Ack,
    Chunk,
    Held,
    Message,
    PartitionEnd,
    PartitionHeader,
    Ready,
    Welcome,
    decode,
    make_chunk,
)
from ionn.protocol.receiver import PartitionReceiver
from ionn.protocol.sender import Upload
from tests.support.choices import Choices, Say, Seeded, for_each_seed, pick
from tests.support.generated import some_network
from tests.support.schedules import slices_of

Weights = Mapping[str, tuple[np.ndarray, ...]]


class Server:
    """Takes partitions into blobs of its own, as a session does, within its limits."""

    def __init__(self, partitions: Sequence[ExtractedPartition], chunk_bytes: int, window_bytes: int) -> None:
        self._partitions = partitions
        self.chunk_bytes, self.window_bytes = chunk_bytes, window_bytes
        self.codecs: tuple[str, ...] = coding.CODECS
        self._arriving: dict[int, PartitionReceiver] = {}
        self._ready: dict[int, int] = {}
        self._blobs: dict[int, list[bytearray]] = {}
        self.wire_bytes = [0] * len(partitions)
        self.coded = 0

    def welcome(self) -> Welcome:
        arriving = (Held(index, receiver.received, False) for index, receiver in self._arriving.items())
        held = (*(Held(index, size, True) for index, size in self._ready.items()), *arriving)
        return Welcome(PROTOCOL, "token", self.chunk_bytes, self.window_bytes, held=held, codecs=self.codecs)

    def forget(self) -> None:
        """Be killed, and come back."""
        self._ready.clear()
        self._arriving.clear()

    def answer(self, sent: Message) -> Message:
        message = decode([bytes(frame) for frame in sent.frames()])
        match message:
            case PartitionHeader():
                self._blobs[message.partition] = [bytearray(span.size) for span in message.blobs]
                targets = [memoryview(blob) for blob in self._blobs[message.partition]]
                self._arriving[message.partition] = PartitionReceiver(message, targets)
                return Ack(message.partition, 0)
            case Chunk():
                assert max(message.raw_bytes, len(message.payload[0])) <= self.chunk_bytes
                self.wire_bytes[message.partition] += len(message.payload[0])
                self.coded += message.codec != coding.RAW
                receiver = self._arriving[message.partition]
                receiver.take(message)
                return Ack(message.partition, receiver.received)
            case PartitionEnd():
                receiver = self._arriving.pop(message.partition)
                receiver.finish(message)
                self._ready[message.partition] = receiver.received
                return Ready(message.partition)
        raise AssertionError(message)

    def check(self) -> None:
        for index, partition in enumerate(self._partitions):
            model = partition.caffemodel
            content = model.tobytes()
            for blob, span in zip(self._blobs[index], model.blobs, strict=True):
                assert blob == content[span.offset : span.offset + span.size]


def upload_all(c: Choices, partitions: Sequence[ExtractedPartition], server: Server, breaks: int) -> Upload:
    """Upload everything, answers late, with some losses of what was under way, or of all that the server had."""
    upload = Upload(partitions, lambda: 1.0)
    upload.begin(server.welcome())
    under_way: list[Message] = []
    while not upload.ended:
        while (message := upload.next_message()) is not None:
            under_way.append(message)
        credit = sum(len(sent.payload[0]) for sent in under_way if isinstance(sent, Chunk))
        assert 0 <= credit <= server.window_bytes
        for _ in range(c.integer(1, len(under_way))):
            upload.take(server.answer(under_way.pop(0)))
        if breaks and c.integer(0, 3) == 0:
            breaks -= 1
            if c.integer(0, 2) == 0:
                server.forget()
            else:
                for sent in under_way[: c.integer(0, len(under_way))]:  # these still arrive, their answers do not
                    server.answer(sent)
            under_way = []
            upload.pause()
            upload.begin(server.welcome())
    return upload


@pytest.fixture
def fine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of small nets."""
    monkeypatch.setattr(coded_weights, "FRAME_BYTES", 3000)
    monkeypatch.setattr(coded_weights, "_LEAST_BYTES", 200)


@pytest.mark.usefixtures("fine")
def test_any_net_in_any_pieces_arrives_bit_for_bit(tmp_path: Path) -> None:
    def any_upload(c: Choices, say: Say) -> int:
        made = some_network(c)
        if made is None:
            return 0
        network, weights = made
        pieces: list[list[Piece]] = []
        for stage in range(1, len(network.stages)):
            cut = slices_of(c, network, stage) if c.integer(0, 1) else None
            pieces += [[piece] for piece in cut[0]] if cut else [[stage]]
        say(f"{network.param}\n{pieces}")
        write(tmp_path / "net.coded", network, weights)
        with Sidecar(tmp_path / "net.coded", network, weights) as sidecar:
            partitions = [extract(network, each, weights, sidecar.frames) for each in pieces]
            raw = [extract(network, each, weights).caffemodel.tobytes() for each in pieces]
            assert [partition.caffemodel.tobytes() for partition in partitions] == raw
            server = Server(partitions, pick(c, [1000, 2999, 3000, 10**6]), pick(c, [3000, 10_000, 10**6]))
            upload = upload_all(c, partitions, server, c.integer(0, 5))
        server.check()
        records = upload.records([()] * len(partitions))
        assert [record.bytes for record in records] == [partition.weight_bytes for partition in partitions]
        assert [record.wire_bytes for record in records] == server.wire_bytes
        return server.coded

    assert sum(for_each_seed(40, any_upload)) > 500


@pytest.mark.parametrize("model", paper.MODELS)
def test_the_plans_of_the_models_arrive_bit_for_bit_and_smaller(model: str) -> None:
    network, path = Network.load(model), weights_path(model, None)
    if not path.exists() or not path.with_suffix(".coded").exists():
        pytest.skip(f"needs models/{model}.coded: run 'make models'")
    weights = read_weights(path, network)
    graph = ExecutionGraph.from_network(network, load_costs(paper.CLIENT), load_costs(paper.SERVER), paper.MBPS)
    plan = make_plan(network, graph, "sliced-efficiency", paper.MBPS)
    sidecar = open_sidecar(path, network, weights)
    assert sidecar is not None
    with sidecar:
        for part in plan.partitions:  # one after another, so that they need not be here at once
            partitions = [extract(network, part.pieces, weights, sidecar.frames)]
            server = Server(partitions, CHUNK_BYTES, 4_000_000)
            (record,) = upload_all(Seeded(part.index), partitions, server, breaks=2).records([()])
            server.check()
            assert record.bytes == partitions[0].weight_bytes
            floats = sum(span.size for span in partitions[0].caffemodel.blobs)
            assert record.wire_bytes == server.wire_bytes[0]
            # Of a slice, too: its frames are its own. Blobs of less than 8 kB go raw.
            if floats > 500_000 or any(isinstance(piece, Slice) for piece in part.pieces):
                assert sum(map(len, sent_payloads(partitions[0]))) < 0.84 * floats


@pytest.fixture
def tiny_frames(tiny: Network, tiny_weights: Weights, tmp_path: Path) -> CodedFrames:
    write(tmp_path / "tiny.coded", tiny, tiny_weights)
    with Sidecar(tmp_path / "tiny.coded", tiny, tiny_weights) as sidecar:
        return reading(sidecar.frames, lambda frame: frame.read())


def reading(frames: CodedFrames, read: Callable[[CodedFrame], bytes | None]) -> CodedFrames:
    """The frames, which are read as `read` reads them now."""

    def changed(frame: CodedFrame) -> CodedFrame:
        data = read(frame)
        return dataclasses.replace(frame, read=lambda: data)

    return {name: [list(map(changed, each)) for each in blobs] for name, blobs in frames.items()}


def sent_payloads(partition: ExtractedPartition) -> list[memoryview]:
    return [chunk.payload[0] for chunk in sent_by(partition)]


def sent_by(partition: ExtractedPartition, held: int | None = None, **welcome: object) -> list[Chunk]:
    upload = Upload([partition], lambda: 1.0)
    given = () if held is None else (Held(0, held, False),)
    fields = {"codecs": coding.CODECS, **welcome}
    upload.begin(Welcome(PROTOCOL, "token", 10**6, 10**9, held=given, **fields))  # type: ignore[arg-type]
    return [message for message in iter(upload.next_message, None) if isinstance(message, Chunk)]


def test_where_the_rest_of_a_frame_goes_raw(tiny: Network, tiny_weights: Weights, tiny_frames: CodedFrames) -> None:
    """No server acknowledges a part of one; whatever it says, what follows is right."""
    partition = extract(tiny, [4], tiny_weights, tiny_frames)
    content = partition.caffemodel.tobytes()
    first, second, *_ = partition.caffemodel.coded
    for held in (first.offset, first.offset + 1, first.end - 1, first.end):
        chunk = sent_by(partition, held)[0]
        assert chunk.offset == held
        if held == first.offset:
            assert (chunk.codec, chunk.raw_bytes) == (coding.PLANES, first.raw_bytes)
        elif held == first.end:
            assert (chunk.codec, chunk.raw_bytes, chunk.offset) == (coding.PLANES, second.raw_bytes, second.offset)
        else:
            assert chunk.codec == coding.RAW
            assert bytes(chunk.payload[0]) == content[held : first.end]


def test_what_a_server_does_not_take_and_what_cannot_be_read_go_raw(
    tiny: Network, tiny_weights: Weights, tiny_frames: CodedFrames
) -> None:
    partition = extract(tiny, [4], tiny_weights, tiny_frames)
    raw = extract(tiny, [4], tiny_weights)
    assert any(chunk.codec != coding.RAW for chunk in sent_by(partition))
    content = partition.caffemodel.tobytes()
    for codecs in ((), ("quantised",)):
        chunks = sent_by(partition, codecs=codecs)
        assert chunks == sent_by(raw, codecs=codecs)  # chunk for chunk as without a sidecar
    chunks = sent_by(extract(tiny, [4], tiny_weights, reading(tiny_frames, lambda frame: None)))
    assert b"".join(bytes(chunk.payload[0]) for chunk in chunks) == content
    assert all(chunk.codec == coding.RAW for chunk in chunks)


def changed(chunk: Chunk, payload: bytes, codec: str, raw_bytes: int) -> Chunk:
    return Chunk(chunk.partition, chunk.offset, zlib.crc32(payload), (payload,), codec, raw_bytes)


def test_a_coded_chunk_that_is_not_exactly_right_changes_nothing(
    tiny: Network, tiny_weights: Weights, tiny_frames: CodedFrames
) -> None:
    partition = extract(tiny, [4], tiny_weights, tiny_frames)
    model = partition.caffemodel
    targets = [bytearray(span.size) for span in model.blobs]
    header = PartitionHeader(0, partition.nets, model.blobs, model.size)
    receiver = PartitionReceiver(header, [memoryview(target) for target in targets])
    head, coded, *rest = sent_by(partition)
    receiver.take(head)
    payload = bytes(coded.payload[0])
    other = next(bytes(chunk.payload[0]) for chunk in rest if len(chunk.payload[0]) != len(payload))
    bad = [
        *(changed(coded, payload, coding.PLANES, size) for size in (0, 4, coded.raw_bytes + 4, coded.raw_bytes - 4)),
        *(changed(coded, payload, codec, coded.raw_bytes) for codec in ("", "quantised", "planes ")),
        changed(coded, payload, coding.PLANES, model.size),
        changed(coded, payload, coding.PLANES, 2**62),
        changed(coded, payload[:-1], coding.PLANES, coded.raw_bytes),
        changed(coded, payload + b"\0", coding.PLANES, coded.raw_bytes),
        changed(coded, b"", coding.PLANES, coded.raw_bytes),
        changed(coded, other, coding.PLANES, coded.raw_bytes + 4),
        Chunk(0, coded.offset, coded.crc32 ^ 1, (payload,), coding.PLANES, coded.raw_bytes),
    ]
    for chunk in bad:
        with pytest.raises(ProtocolError, match=r"^chunk at byte \d+ [ -~]+$"):
            receiver.take(chunk)
        assert receiver.received == coded.offset
        assert not any(map(any, targets))
    half = len(payload) // 2
    receiver.take(Chunk(0, coded.offset, coded.crc32, (payload[:half], payload[half:]), coding.PLANES, coded.raw_bytes))
    for chunk in rest:
        receiver.take(chunk)
    assert [bytes(t) for t in targets] == [model.tobytes()[s.offset : s.offset + s.size] for s in model.blobs]


def test_coded_weights_that_are_not_finite_are_refused(tiny: Network, tiny_weights: Weights, tmp_path: Path) -> None:
    weights = {name: tuple(blob.copy() for blob in blobs) for name, blobs in tiny_weights.items()}
    weights["fc1"][0][0, 5] = np.nan
    write(tmp_path / "tiny.coded", tiny, weights)
    with Sidecar(tmp_path / "tiny.coded", tiny, weights) as sidecar:
        partition = extract(tiny, [4], weights, sidecar.frames)
        head, coded, *_ = sent_by(partition)
    assert coded.codec == coding.PLANES
    model = partition.caffemodel
    header = PartitionHeader(0, partition.nets, model.blobs, model.size)
    receiver = PartitionReceiver(header, [memoryview(bytearray(span.size)) for span in model.blobs])
    receiver.take(head)
    with pytest.raises(PartitionError, match="blob 0 of layer 'fc1' has weights that are not finite"):
        receiver.take(coded)


def test_the_size_of_a_raw_chunk_is_what_it_has() -> None:
    assert make_chunk(0, 0, [memoryview(b"abcd")]) == Chunk(0, 0, zlib.crc32(b"abcd"), (b"abcd",), coding.RAW, 0)
