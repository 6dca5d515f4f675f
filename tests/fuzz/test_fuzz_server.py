"""Anything at all is sent to a server. Each time one valid answer comes, no session's process dies, and in the end the
server is as good as new. `make fuzz` runs many times as many cases."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ionn import coding
from ionn.errors import InputError
from ionn.model.network import Network
from ionn.model.partial_net import ExtractedPartition, extract
from ionn.model.slices import Slice
from ionn.protocol import messages
from ionn.protocol.messages import PartitionEnd, PartitionHeader, make_chunk
from tests.fuzz.peer import SMALL, Peer, whole_net
from tests.fuzz.strategies import cases, damaged_messages, json_values, prototxts
from tests.support import stored
from tests.support.forward import Weights, boundary_blobs
from tests.support.raw import upload_messages

# A net that passes the checks is built and run, if that takes no time.
OPERATIONS_MAX = 10**7
FLOATS_MAX = 10**6


@cases
@given(frames=st.lists(st.binary(max_size=200), min_size=1, max_size=4) | st.lists(json_values, max_size=3).map(
    lambda values: [json.dumps(value).encode() for value in values] or [b""]
))  # fmt: skip
def test_any_bytes(peer: Peer, frames: list[bytes]) -> None:
    peer.case()
    assert isinstance(peer.ask(frames), messages.Error)
    assert isinstance(peer.outside(frames), messages.Error)


@cases
@given(frames=damaged_messages())
@example(frames=[rb'{"type": "hello", "protocol": %d, "role": "control", "session": "\ud800"}' % messages.PROTOCOL])
@example(frames=[rb'{"type": "hello", "protocol": %d, "role": "\ud800"}' % messages.PROTOCOL])
def test_any_message_in_a_session(peer: Peer, frames: list[bytes]) -> None:
    peer.case()
    answer = peer.ask(frames)
    if isinstance(answer, messages.Error) and answer.code == messages.ERROR_SESSION:  # it was a goodbye
        peer.renew()


@cases
@given(frames=damaged_messages())
def test_any_message_of_a_stranger(peer: Peer, frames: list[bytes]) -> None:
    peer.case()
    peer.outside(frames)


numbers = itertools.count()


@cases
@given(text=prototxts())
def test_any_prototxt(peer: Peer, text: str) -> None:
    """What passes the checks, Caffe builds and runs."""
    index = next(numbers)
    try:
        network = Network.from_text(text, "mutated")
    except InputError:
        peer.case()
        network = Network.from_text(SMALL, "small")
        net = dataclasses.replace(whole_net(SMALL, network), prototxt=text)
        answer = peer.ask(PartitionHeader(index, (net,), (), 1))
        assert isinstance(answer, messages.Error)
        assert answer.code == messages.ERROR_PARTITION
        return
    size = sum(math.prod(shape) for layer in network.layers for shape in (*layer.weight_shapes, *layer.top_shapes))
    assume(size <= FLOATS_MAX and sum(layer.operations for layer in network.layers) <= OPERATIONS_MAX)
    peer.case()
    weights = {layer.name: tuple(np.full(s, 0.5, np.float32) for s in layer.weight_shapes) for layer in network.layers}
    net = whole_net(text, network)
    first = index * 1000  # a stage that the session does not have
    cuts = tuple(dataclasses.replace(cut, index=first + cut.index) for cut in net.stages)
    model = extract(network, range(1, len(network.stages)), weights).caffemodel
    header = PartitionHeader(index, (dataclasses.replace(net, stages=cuts),), model.blobs, model.size)
    answer = peer.ask(header)
    if isinstance(answer, messages.Error):
        assert "--" in answer.message  # a limit of the server
        return
    for offset, parts in model.chunks(100_000):
        assert isinstance(peer.ask(make_chunk(index, offset, parts)), messages.Ack)
    assert isinstance(peer.ask(PartitionEnd(index, hashlib.sha256(model.tobytes()).hexdigest())), messages.Ready)
    data = np.full(network.input_shape, 0.25, "<f4")
    result = peer.ask(messages.Query(1, first, first + len(cuts) - 1, (data.tobytes(),)))
    assert isinstance(result, messages.Result), result
    assert result.shapes == network.stages[-1].output_shapes


@pytest.fixture(scope="module")
def partitions(tiny: Network, tiny_weights: dict[str, tuple[np.ndarray, ...]]) -> list[ExtractedPartition]:
    return [extract(tiny, stages, tiny_weights) for stages in ([1], [2, 3], [5])]


@cases
@given(data=st.data())
def test_any_caffemodel(peer: Peer, partitions: list[ExtractedPartition], data: st.DataObject) -> None:
    """Bytes and spans change on the way. Nothing is accepted but what fits the layers, and is finite."""
    peer.case(fresh=True)
    partition = partitions[data.draw(st.integers(0, 2))]
    model = partition.caffemodel
    content = bytearray(model.tobytes())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
    spans = list(model.blobs)
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(spans) - 1))
        field = data.draw(st.sampled_from(["blob", "offset", "size"]))
        change = data.draw(st.sampled_from([-4, -1, 1, 4, 2**31, 2**64]))
        spans[at] = dataclasses.replace(spans[at], **{field: max(0, getattr(spans[at], field) + change)})
    intact = spans == list(model.blobs)
    size = max(0, len(content) + data.draw(st.sampled_from([0, 0, 0, -1, 1, 2**40])))
    answer = peer.ask(PartitionHeader(0, partition.nets, tuple(spans), size))
    finite = all(np.isfinite(np.frombuffer(content, "<f4", span.size // 4, span.offset)).all() for span in model.blobs)
    for offset in range(0, len(content), 50_000):
        answer = peer.ask(make_chunk(0, offset, [memoryview(content)[offset : offset + 50_000]]))
    answer = peer.ask(PartitionEnd(0, hashlib.sha256(content).hexdigest()))
    # A span may move within the partition; a client that says so fools itself only.
    if isinstance(answer, messages.Ready):
        assert size == len(content)
        assert finite or not intact
    else:
        assert isinstance(answer, messages.Error)
        assert not (intact and finite and size == len(content))


@cases
@given(data=st.data())
def test_any_pieces(
    peer: Peer, partitions: list[ExtractedPartition], tiny: Network, tiny_weights: Weights, data: st.DataObject
) -> None:
    """A partition in any pieces, stored or not, their names and spans right or not: what is taken of it is right, and
    what is missing comes."""
    peer.case(fresh=True)
    model = partitions[1].caffemodel
    content = model.tobytes()
    pieces = []
    for span in model.blobs:
        cuts = data.draw(st.lists(st.integers(0, span.size // 4), max_size=3, unique=True))
        for begin, until in itertools.pairwise(sorted({0, span.size // 4, *cuts})):
            part = (span.offset + 4 * begin, 4 * (until - begin))
            right = data.draw(st.integers(0, 9)) > 0
            sha256 = hashlib.sha256(content[part[0] : sum(part)] if right else b"another").hexdigest()
            if data.draw(st.integers(0, 29)) == 0:
                part = (max(0, part[0] + data.draw(st.sampled_from([-4, -1, 1, 4]))), part[1])
            pieces.append(messages.AddressedPiece(sha256, (part,), data.draw(st.booleans())))
    while True:
        header, chunks, end = stored.upload_messages(partitions[1], pieces, 0)
        answer = peer.ask(header)
        if isinstance(answer, messages.Ack):
            break
        assert isinstance(answer, messages.Error)
        if answer.code == messages.ERROR_DAMAGED:  # spans that are none
            pieces = []
            continue
        assert answer.code == messages.ERROR_MISSING
        assert answer.pieces
        assert all(pieces[number].stored for number in answer.pieces)
        for number in answer.pieces:
            pieces[number] = dataclasses.replace(pieces[number], stored=False)
    for message in chunks:
        answer = peer.ask(message)
        assert isinstance(answer, messages.Ack)
    assert peer.ask(end) == messages.Ready(0)
    blobs = boundary_blobs(tiny, tiny_weights, np.full(tiny.input_shape, 0.5, np.float32))
    result = peer.ask(messages.Query(9, 2, 3, (blobs[2].tobytes(),)))
    assert isinstance(result, messages.Result)
    assert bytes(result.payload[0]) == blobs[4].tobytes()


@cases
@given(data=st.data())
def test_any_coded_chunk(peer: Peer, partitions: list[ExtractedPartition], data: st.DataObject) -> None:
    """A chunk is coded, and then changed. What is not exactly right changes nothing, and the upload goes on."""
    peer.case(fresh=True)
    header, _, end = upload_messages(partitions[2])
    content = partitions[2].caffemodel.tobytes()
    floats = partitions[2].caffemodel.blobs[0]
    assert isinstance(peer.ask(header), messages.Ack)
    assert isinstance(peer.ask(make_chunk(0, 0, [memoryview(content)[: floats.offset]])), messages.Ack)
    raw = content[floats.offset : floats.offset + floats.size][:4000]
    codec, coded = coding.encode(raw)
    sent = bytearray(coded)
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(sent)))
        sent[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    size = data.draw(st.sampled_from([len(raw), len(raw), len(raw), 0, 4, len(raw) - 4, 2**20, 2**30, 2**62]))
    codec = data.draw(st.sampled_from([codec, codec, codec, "raw", "quantised", ""]))
    answer = peer.ask(make_chunk(0, floats.offset, [bytes(sent)], codec, size))
    try:
        decoded = bytes(coding.decode(codec, bytes(sent), len(sent) if codec == coding.RAW else size))
    except ValueError:
        assert isinstance(answer, messages.Error)
        assert answer.code == messages.ERROR_DAMAGED
        decoded = b""
    if isinstance(answer, messages.Error):
        if answer.code == messages.ERROR_PARTITION:
            assert not np.isfinite(np.frombuffer(decoded[: len(decoded) // 4 * 4], "<f4")).all()
            return
        received = floats.offset
    else:
        received = floats.offset + len(decoded)
        assert answer == messages.Ack(0, received)
    assert isinstance(peer.ask(make_chunk(0, received, [memoryview(content)[received:]])), messages.Ack)
    if content[floats.offset : received] == decoded[: received - floats.offset]:
        assert peer.ask(end) == messages.Ready(0)
    else:
        assert isinstance(peer.ask(end), messages.Error)


steps = st.tuples(
    st.sampled_from(["header", "chunk", "damaged", "end", "wrong end", "query", "part", "join", "hello", "ping"]),
    st.integers(0, 2),
    st.integers(0, 2),
)


@cases
@given(story=st.lists(steps, max_size=25))
def test_any_order(
    peer: Peer,
    partitions: list[ExtractedPartition],
    tiny: Network,
    tiny_weights: dict[str, tuple[np.ndarray, ...]],
    story: list[tuple[str, int, int]],
) -> None:
    """The right messages in any order, some of them damaged: afterwards the upload can be finished, and is right."""
    peer.case(fresh=True)
    _live_through(peer, partitions, story)
    blobs = boundary_blobs(tiny, tiny_weights, np.full(tiny.input_shape, 0.5, np.float32))
    result = peer.ask(messages.Query(9, 1, 3, (blobs[1].tobytes(),)))
    assert isinstance(result, messages.Result)
    assert bytes(result.payload[0]) == blobs[4].tobytes()


@cases
@given(story=st.lists(steps, max_size=25))
def test_any_order_of_slices(
    peer: Peer,
    tiny: Network,
    tiny_weights: dict[str, tuple[np.ndarray, ...]],
    story: list[tuple[str, int, int]],
) -> None:
    """The same of a stage in slices: in part and as a whole, it is right."""
    peer.case(fresh=True)
    ends = (0, 96, 240, 400)
    slices = [Slice(4, begin, end) for begin, end in itertools.pairwise(ends)]
    _live_through(peer, [extract(tiny, [piece], tiny_weights) for piece in slices], story)
    blobs = boundary_blobs(tiny, tiny_weights, np.full(tiny.input_shape, 0.5, np.float32))
    for message, wanted in (
        (messages.Query(9, 4, 4, (blobs[4].tobytes(),)), blobs[5]),
        (messages.Part(9, 4, 96, False, (blobs[4].tobytes(),)), blobs[5][:, :96]),
    ):
        result = peer.ask(message)
        assert isinstance(result, messages.Result)
        assert bytes(result.payload[0]) == np.ascontiguousarray(wanted).tobytes()


def _live_through(peer: Peer, partitions: list[ExtractedPartition], story: list[tuple[str, int, int]]) -> None:
    """Send what the story says, and then what the server has not."""
    upload = [upload_messages(each, index, each.caffemodel.size // 2) for index, each in enumerate(partitions)]
    for what, index, number in story:
        header, chunks, end = upload[index]
        chunk = chunks[number % len(chunks)]
        match what:
            case "header":
                peer.ask(header)
            case "chunk":
                peer.ask(chunk)
            case "damaged":
                assert isinstance(peer.ask(dataclasses.replace(chunk, crc32=chunk.crc32 ^ 1)), messages.Error)
            case "end":
                peer.ask(end)
            case "wrong end":
                assert isinstance(peer.ask(dataclasses.replace(end, sha256="0" * 64)), messages.Error)
            case "query":
                peer.ask(messages.Query(number, 1, 1 + index, (bytes(4),)))
            case "part":
                peer.ask(messages.Part(number, 4, (96, 240, 400)[index], index == number, (bytes(4 * 6 * 11 * 11),)))
            case "join":
                peer.ask(messages.Join(number, index == 0, (bytes(4 * (400 - 96)),)))
            case "hello":
                assert isinstance(peer.ask(messages.Hello(messages.PROTOCOL, "control", peer.token)), messages.Welcome)
            case "ping":
                assert isinstance(peer.ask(messages.Ping()), messages.Pong)
    welcome = peer.ask(messages.Hello(messages.PROTOCOL, "control", peer.token))
    assert isinstance(welcome, messages.Welcome)
    held = {each.partition: each for each in welcome.held}
    for index, (header, chunks, end) in enumerate(upload):
        if index not in held:
            assert isinstance(peer.ask(header), messages.Ack)
        elif held[index].ready:
            continue
        for chunk in chunks:
            if index not in held or chunk.offset >= held[index].received:
                assert isinstance(peer.ask(chunk), messages.Ack)
        assert peer.ask(end) == messages.Ready(index)
