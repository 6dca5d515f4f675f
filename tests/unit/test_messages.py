from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ionn.errors import PartitionError, ProtocolError
from ionn.model.caffemodel import BlobSpan
from ionn.model.comparison import Numerics
from ionn.model.network import Network
from ionn.model.partial_net import Channels, NetStage, PartialNet, extract
from ionn.protocol import messages
from ionn.protocol.messages import AddressedPiece, Chunk, PartitionEnd, PartitionHeader, decode, make_chunk
from ionn.protocol.receiver import PartitionReceiver

NET = PartialNet("layer {}", "data", (NetStage(3, 2, ("conv",)), NetStage(4, 5, ("a", "b"))))
SLICE = PartialNet("layer {}", "data", (NetStage(3, 2, ("conv",)),), Channels(0, 48, 100))
MESSAGES = [
    messages.Hello(1, "control"),
    messages.Hello(1, "upload", "token"),
    messages.Hello(1, "control", "", ("planes", "other")),
    messages.Welcome(1, "token", 1000, 2000, {"kind": "cost-model"}, (messages.Held(0, 7, True),)),
    messages.Welcome(1, "token", 1000, 2000, numerics=Numerics("x86_64", "OpenBLAS 1", "Zen", 1, "1.0", "glibc 2")),
    PartitionHeader(0, (NET,), (BlobSpan("conv", 0, 10, 400), BlobSpan("conv", 1, 420, 4)), 500),
    PartitionHeader(0, (NET, SLICE), (BlobSpan("fc", 0, 10, 400),), 500),
    PartitionHeader(
        0, (NET,), (BlobSpan("conv", 0, 10, 400),), 500, (AddressedPiece("ab" * 32, ((10, 200), (210, 4)), True),)
    ),
    messages.Have((bytes(64),)),
    messages.Holds((b"\0\1",)),
    Chunk(2, 1000, 77, (b"abc", b"d")),
    Chunk(2, 1000, 77, (b"abc", b"d"), "planes", 4000),
    PartitionEnd(2, "ff"),
    messages.Ack(2, 12),
    messages.Ready(2),
    messages.Query(1, 2, 3, (b"\0" * 8,)),
    messages.Query(1, 2, 3, (b"\0" * 8,), ("planes",), True),
    messages.Query(1, 2, 3),
    messages.Part(1, 3, 48, True, (b"\0" * 8,)),
    messages.Part(1, 3, 48, False),
    messages.Part(1, 3, 48, False, (b"\0" * 8,), ("planes",), True),
    messages.Join(1, False, (b"\0" * 8,)),
    messages.Join(1, False, (b"\0" * 8,), ("raw",), True),
    messages.Result(1, (), (0.5,)),
    messages.Result(1, ((1, 2), (3,)), (0.5, 2.0), (b"\0" * 8, b"\1" * 12)),
    messages.Result(1, ((1, 2), (3,)), (0.5, 2.0), (b"\0" * 8, b"\1" * 3), ("raw", "planes")),
    messages.Error(messages.ERROR_QUERY, "no", query=4),
    messages.Error(messages.ERROR_MISSING, "no", partition=4, pieces=(0, 7)),
    messages.Ping(),
    messages.Pong(),
    messages.Bye(),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_survives_the_wire(message: messages.Message) -> None:
    assert decode(message.frames()) == message


def test_every_message_type_is_in_the_table() -> None:
    assert {type(message) for message in MESSAGES} == set(messages.Message.__subclasses__())


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
@settings(max_examples=40)
@given(data=st.data())
def test_anything_else_is_a_protocol_error(message: messages.Message, data: st.DataObject) -> None:
    """A mutated message decodes to a message or raises ProtocolError, never anything else."""
    head, *payload = message.frames()
    body = json.loads(head)
    name = data.draw(st.sampled_from(sorted(body)))
    junk = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=5,
    )
    if data.draw(st.booleans()):
        del body[name]
    else:
        body[name] = data.draw(junk)
    try:
        decoded = decode([json.dumps(body).encode(), *payload])
    except ProtocolError:
        return
    assert isinstance(decoded, messages.Message)


def test_what_a_message_says_that_leaves_out_what_it_may() -> None:
    assert decode([b'{"type": "pong"}']) == messages.Pong(sessions=0, room=True)
    assert decode([b'{"type": "hello", "protocol": 4, "role": "control"}']) == messages.Hello(
        4, "control", session="", codecs=()
    )
    error = decode([b'{"type": "error", "code": "query", "message": "no"}'])
    assert error == messages.Error("query", "no", query=-1, partition=-1)
    welcome = decode([b'{"type": "welcome", "protocol": 4, "session": "a", "chunk_bytes": 1, "window_bytes": 2}'])
    assert welcome == messages.Welcome(4, "a", 1, 2, costs={}, held=(), codecs=())
    query = decode([b'{"type": "query", "query": 1, "first": 2, "last": 3}', b""])
    assert query == messages.Query(1, 2, 3, (b"",), codecs=(), coded=False)


JUNK = {
    "an empty message": [],
    "truncated": [b""],
    "invalid character": [b"\xff"],
    "Expected `object`, got `array`": [b"[]"],
    "missing required field `type`": [b"{}"],
    "unknown type 'no'": [b'{"type": "no"}'],
    "Expected `str`, got `array`": [b'{"type": []}'],
    "'pong' carries no payload": [b'{"type": "pong"}', b""],
    "missing required field `partition`": [b'{"type": "ready"}'],
    "can't decode byte 0xff": [b'{"type": "error", "code": "query", "message": "\xff"}'],
}


@pytest.mark.parametrize("reason", JUNK)
def test_junk_frames(reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        decode(JUNK[reason])


def test_a_header_has_its_limit() -> None:
    def header(size: int) -> bytes:
        return b'{"type": "ping"}'.ljust(size)

    for limit in (100, messages.HEADER_BYTES_MAX):
        assert decode([header(limit)], limit) == messages.Ping()
        with pytest.raises(ProtocolError, match=f"a header of {limit + 1} bytes; the limit is {limit}"):
            decode([header(limit + 1)], limit)
    assert decode([header(messages.HEADER_BYTES_MAX)]) == messages.Ping()
    with pytest.raises(ProtocolError, match="a header of"):
        decode([header(messages.HEADER_BYTES_MAX + 1)])


@pytest.mark.parametrize("token", ["0", "0.5", "3", "1e9"])
def test_times_of_stages(token: str) -> None:
    message = decode([f'{{"type": "result", "query": 1, "shapes": [], "stage_ms": [{token}]}}'.encode()])
    assert isinstance(message, messages.Result)
    assert message.stage_ms == (float(token),)
    assert type(message.stage_ms[0]) is float


@pytest.mark.parametrize("token", ["-1", "-1e-9", "1000000001", "1e308", "true", "null", '"1"', "[1]"])
def test_what_is_no_time_of_a_stage(token: str) -> None:
    with pytest.raises(ProtocolError, match="Expected `float`"):
        decode([f'{{"type": "result", "query": 1, "shapes": [], "stage_ms": [{token}]}}'.encode()])


def test_an_errors_message_is_one_line_that_can_be_shown() -> None:
    message = decode(messages.Error(messages.ERROR_QUERY, "a\x1b[31m\nb\u202e" + "x" * 2000).frames())
    assert isinstance(message, messages.Error)
    assert message.message == ("a?[31m?b?" + "x" * 2000)[:1000]


@pytest.mark.parametrize("field", ["role", "session"])
def test_words_are_short_and_can_be_shown(field: str) -> None:
    body = {"type": "hello", "protocol": 1, "role": "control", "session": "abc"}
    assert decode([json.dumps({**body, field: "x" * 100}).encode()])
    for word in ("x" * 101, "\x1b[31m", "a\nb", "\u202e"):
        with pytest.raises(ProtocolError, match="Expected `str`"):
            decode([json.dumps({**body, field: word}).encode()])


class Sent:
    """A partition of the tiny network, as messages, and the blobs it is to fill."""

    def __init__(self, network: Network, weights: dict[str, tuple[np.ndarray, ...]], chunk_bytes: int) -> None:
        partition = extract(network, [1, 2, 4], weights)
        self.model = partition.caffemodel
        self.header = PartitionHeader(0, partition.nets, self.model.blobs, self.model.size)
        self.chunk_bytes = chunk_bytes
        self.end = PartitionEnd(0, hashlib.sha256(self.model.tobytes()).hexdigest())
        self.blobs = [np.zeros_like(weights[span.layer][span.blob]) for span in self.model.blobs]
        self.wanted = [weights[span.layer][span.blob] for span in self.model.blobs]
        self.receiver = PartitionReceiver(self.header, self.targets())

    def each_chunk(self) -> Iterator[Chunk]:
        return (make_chunk(0, offset, parts) for offset, parts in self.model.chunks(self.chunk_bytes))

    @cached_property
    def chunks(self) -> list[Chunk]:
        return list(self.each_chunk())

    def targets(self) -> list[memoryview]:
        """The blobs as bytes."""
        return [blob.reshape(-1).data.cast("B") for blob in self.blobs]


@pytest.fixture(params=[997, 10**6])
def sent(request: pytest.FixtureRequest, tiny: Network, tiny_weights: dict[str, tuple[np.ndarray, ...]]) -> Sent:
    return Sent(tiny, tiny_weights, request.param)


def test_chunks_fill_the_blobs(sent: Sent) -> None:
    for chunk in sent.chunks:
        sent.receiver.take(chunk)
    sent.receiver.finish(sent.end)

    assert sent.receiver.received == sent.model.size
    for blob, wanted in zip(sent.blobs, sent.wanted, strict=True):
        np.testing.assert_array_equal(blob, wanted)


def test_bad_chunks_are_refused_and_change_nothing(sent: Sent) -> None:
    first = sent.chunks[0]
    payload = b"".join(first.payload)
    bad = [
        (dataclasses.replace(first, crc32=first.crc32 ^ 1), "is damaged"),
        (dataclasses.replace(first, payload=(payload[:-1],)), "is damaged"),
        (dataclasses.replace(first, payload=(bytes([payload[0] ^ 1]) + payload[1:],)), "is damaged"),
        (dataclasses.replace(first, offset=1), "where byte 0 is expected"),
        (make_chunk(0, 0, [memoryview(bytes(sent.model.size + 1))]), "where byte 0 is expected"),
        *((make_chunk(0, 0, [memoryview(b"")] * count), r"chunk at byte 0 \(\+0\)") for count in (0, 1, 2)),
        *((chunk, "where byte 0 is expected") for chunk in sent.chunks[1:]),
    ]
    for chunk, reason in bad:
        with pytest.raises(ProtocolError, match=reason):
            sent.receiver.take(chunk)
        assert sent.receiver.received == 0
    sent.receiver.take(first)
    with pytest.raises(ProtocolError, match="expected"):
        sent.receiver.take(first)
    too_long = bytes(sent.model.size - len(payload) + 1)
    with pytest.raises(ProtocolError, match="expected"):
        sent.receiver.take(make_chunk(0, len(payload), [memoryview(too_long)]))
    for chunk in sent.chunks[1:]:
        sent.receiver.take(chunk)
    sent.receiver.finish(sent.end)


def test_a_byte_is_a_chunk(tiny: Network, tiny_weights: dict[str, tuple[np.ndarray, ...]]) -> None:
    sent = Sent(tiny, tiny_weights, 10**6)
    data = sent.model.tobytes()[:3000]
    for offset in range(len(data)):
        sent.receiver.take(make_chunk(0, offset, [memoryview(data[offset : offset + 1])]))
        assert sent.receiver.received == offset + 1
    sent.receiver.take(make_chunk(0, len(data), [memoryview(sent.model.tobytes()[len(data) :])]))
    with pytest.raises(ProtocolError, match=r"\(\+0\) where byte"):  # nothing is left, and nothing is no chunk
        sent.receiver.take(make_chunk(0, sent.model.size, []))
    sent.receiver.finish(sent.end)
    for blob, wanted in zip(sent.blobs, sent.wanted, strict=True):
        np.testing.assert_array_equal(blob, wanted)


@pytest.mark.parametrize("chunk_bytes", [4, 6, 997, 10**6])
@pytest.mark.parametrize("position", [0, 1, -2, -1])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_refused_when_it_comes(
    value: float, position: int, chunk_bytes: int, tiny: Network, tiny_weights: dict[str, tuple[np.ndarray, ...]]
) -> None:
    """Wherever it is in a blob, and however the chunks divide it."""
    weights = {name: tuple(blob.copy() for blob in blobs) for name, blobs in tiny_weights.items()}
    first = tiny.stages[1].layers[0]
    weights[first][0].reshape(-1)[position] = value
    sent = Sent(tiny, weights, chunk_bytes)
    with pytest.raises(PartitionError, match=f"blob 0 of layer '{first}' has weights that are not finite"):  # noqa: PT012
        for chunk in sent.each_chunk():  # of which only the first are taken
            sent.receiver.take(chunk)


def test_an_incomplete_partition_does_not_finish(sent: Sent) -> None:
    for chunk in sent.chunks[:-1]:
        sent.receiver.take(chunk)
    with pytest.raises(ProtocolError, match="ends at byte"):
        sent.receiver.finish(sent.end)


def test_a_wrong_digest_does_not_finish(sent: Sent) -> None:
    for chunk in sent.chunks:
        sent.receiver.take(chunk)
    with pytest.raises(ProtocolError, match="digest"):
        sent.receiver.finish(PartitionEnd(0, "0" * 64))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"offset": 10**9}, "lies outside the partition"),
        ({"size": 4}, "has the wrong size"),
        ({"offset": 0}, "lies outside the partition"),
    ],
)
def test_blobs_must_lie_in_the_partition(sent: Sent, change: dict[str, Any], reason: str) -> None:
    spans = list(sent.header.blobs)
    spans[-1] = dataclasses.replace(spans[-1], **change)
    header = dataclasses.replace(sent.header, blobs=tuple(spans))
    with pytest.raises(ProtocolError, match=f"blob . of layer 'fc1' {reason}"):
        PartitionReceiver(header, sent.targets())


def test_the_last_blob_ends_with_the_partition_at_the_latest(sent: Sent) -> None:
    header = dataclasses.replace(sent.header, size=sent.header.size - 1)
    with pytest.raises(ProtocolError, match="blob 1 of layer 'fc1' lies outside the partition"):
        PartitionReceiver(header, sent.targets())


def header_of(**net: object) -> list[bytes]:
    """A message with one net, SLICE but for what is given."""
    return [
        json.dumps(
            {"type": "partition", "partition": 0, "blobs": [], "size": 5, "nets": [{**SLICE_JSON, **net}]}
        ).encode()
    ]


SLICE_JSON = json.loads(PartitionHeader(0, (SLICE,), (), 5).frames()[0])["nets"][0]


@pytest.mark.parametrize(
    "channels",
    [[48, 48, 100], [49, 48, 100], [0, 100, 100], [48, 101, 100], [0, 1, 2**31], [-1, 48, 100], [0, 48], [0, 1, 2, 3]],
)
def test_channels_that_are_no_slice_are_refused(channels: list[int]) -> None:
    with pytest.raises(ProtocolError, match=r"is not a slice|Expected `array` of length 3"):
        decode(header_of(channels=channels))


STAGE = {"index": 3, "last_layer": 2, "outputs": ["conv"]}


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        ({"stages": []}, "a net without stages"),
        ({"stages": [], "channels": None}, "a net without stages"),
        ({"stages": [STAGE, {**STAGE, "index": 5}], "channels": None}, "stages are not adjacent"),
        ({"stages": [STAGE, {**STAGE, "index": 3}], "channels": None}, "stages are not adjacent"),
        ({"stages": [STAGE, {**STAGE, "index": 4}]}, "a slice of several stages"),
        ({"stages": [{**STAGE, "index": -1}]}, "Expected `int` >= 0"),
        ({"stages": [{**STAGE, "last_layer": -1}]}, "Expected `int` >= 0"),
        ({"stages": [{**STAGE, "outputs": [3]}]}, "Expected `str`, got `int`"),
    ],
)
def test_what_is_no_net_is_refused(net: dict[str, object], reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        decode(header_of(**net))


@pytest.mark.parametrize("channels", [(0, 99, 100), (1, 100, 100), (0, 1, 2), (0, 1, 2**31 - 1)])
def test_channels_that_are_a_slice_are_taken(channels: tuple[int, int, int]) -> None:
    net = dataclasses.replace(SLICE, channels=Channels(*channels))
    message = decode(PartitionHeader(0, (net,), (), 500).frames())
    assert isinstance(message, PartitionHeader)
    assert message.nets == (net,)
