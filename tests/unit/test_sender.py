"""What an upload sends, and what it takes for an answer. No sockets."""

from __future__ import annotations

import hashlib
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ionn.errors import ProtocolError
from ionn.model.network import Network
from ionn.model.partial_net import ExtractedPartition, extract
from ionn.protocol import sender as module
from ionn.protocol.messages import (
    CHUNK_BYTES,
    ERROR_DAMAGED,
    PROTOCOL,
    Ack,
    Chunk,
    Error,
    Held,
    Message,
    PartitionEnd,
    PartitionHeader,
    Pong,
    Ready,
    Welcome,
)
from ionn.protocol.sender import Upload

CHUNK, WINDOW = 1000, 2500


@pytest.fixture
def partitions(tiny: Network, tiny_weights: dict[str, tuple[np.ndarray, ...]]) -> list[ExtractedPartition]:
    """The first one of a few chunks, the second one of many."""
    return [extract(tiny, stages, tiny_weights) for stages in ([1, 2], [5])]


def welcome(*held: Held, chunk: int = CHUNK, window: int = WINDOW) -> Welcome:
    return Welcome(PROTOCOL, "token", chunk, window, held=held)


def begun(partitions: list[ExtractedPartition], *held: Held, **credit: int) -> Upload:
    upload = Upload(partitions, lambda: 1.0)
    upload.begin(welcome(*held, **credit))
    return upload


def drain(upload: Upload) -> list[Message]:
    """All that can be sent now."""
    return list(iter(upload.next_message, None))


def answer(message: Message) -> Message:
    match message:
        case PartitionHeader():
            return Ack(message.partition, 0)
        case Chunk():
            return Ack(message.partition, message.offset + len(message.payload[0]))
        case PartitionEnd():
            return Ready(message.partition)
    raise AssertionError(message)


def run(upload: Upload) -> list[Message]:
    """Have all of it sent and answered; what was sent."""
    sent: list[Message] = []
    while messages := drain(upload):
        sent += messages
        for message in messages:
            upload.take(answer(message))
    return sent


def content(sent: list[Message], index: int) -> bytes:
    data = b""
    for message in sent:
        if isinstance(message, Chunk) and message.partition == index:
            assert message.offset == len(data)
            data += message.payload[0]
    return data


def test_all_is_sent_and_ready(partitions: list[ExtractedPartition]) -> None:
    upload = begun(partitions)
    sent = run(upload)
    assert upload.ready == 2
    assert upload.ended
    assert upload.sent_bytes == sum(partition.caffemodel.size for partition in partitions)
    assert [content(sent, index) for index in (0, 1)] == [p.caffemodel.tobytes() for p in partitions]


def test_what_is_under_way_never_exceeds_the_window(partitions: list[ExtractedPartition]) -> None:
    upload = begun(partitions, chunk=CHUNK, window=WINDOW)
    under_way: list[Message] = []
    while not upload.ended:
        under_way += drain(upload)
        sizes = [len(message.payload[0]) for message in under_way if isinstance(message, Chunk)]
        assert sum(sizes) <= WINDOW
        upload.take(answer(under_way.pop(0)))
    alone = begun(partitions, chunk=CHUNK, window=CHUNK)
    sent = run(alone)
    assert alone.ready == 2  # not a byte of credit was lost
    digests = [hashlib.sha256(partition.caffemodel.tobytes()).hexdigest() for partition in partitions]
    assert [message.sha256 for message in sent if isinstance(message, PartitionEnd)] == digests


def test_credit_is_not_exceeded_and_comes_back(partitions: list[ExtractedPartition]) -> None:
    upload = begun(partitions)
    header, *chunks = drain(upload)
    assert [len(chunk.payload[0]) for chunk in chunks] == [CHUNK, CHUNK]  # a third one would be beyond the window
    upload.take(answer(header))
    assert upload.next_message() is None
    upload.take(answer(chunks[0]))
    (chunk, *_) = drain(upload)
    assert isinstance(chunk, Chunk)
    assert upload.sent_bytes == CHUNK


def test_a_window_can_be_filled_to_the_last_byte(partitions: list[ExtractedPartition]) -> None:
    assert len(drain(begun(partitions, window=2 * CHUNK))) == 3


@pytest.mark.parametrize("received", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1])
def test_after_a_reconnection_it_goes_on_with_full_credit(partitions: list[ExtractedPartition], received: int) -> None:
    """From the byte that the server holds, whatever was under way before."""
    upload = begun(partitions)
    before = drain(upload)
    upload.take(answer(before[0]))
    upload.pause()
    assert upload.next_message() is None
    upload.begin(welcome(Held(0, received, False)))
    assert upload.sent_bytes == received
    chunks = drain(upload)
    assert isinstance(chunks[0], Chunk)  # no header again
    assert chunks[0].offset == received
    assert sum(len(chunk.payload[0]) for chunk in chunks if isinstance(chunk, Chunk)) > WINDOW - CHUNK
    # The answers to what was sent before do not count any more.
    with pytest.raises(ProtocolError, match="the server's answer, 'ack', is not to what it was sent"):
        upload.take(Ack(0, received))


def test_a_reconnection_finishes_what_is_left(partitions: list[ExtractedPartition]) -> None:
    first, second = (partition.caffemodel for partition in partitions)
    upload = begun(partitions, Held(0, first.size, True), Held(1, second.size - 1, False))
    assert upload.ready == 1
    assert upload.sent_bytes == first.size + second.size - 1
    sent = run(upload)
    assert [type(message) for message in sent] == [Chunk, PartitionEnd]  # a chunk of one byte, none that is empty
    assert bytes(sent[0].payload[0]) == second.tobytes()[-1:]
    assert upload.ready == 2
    upload = begun(partitions, Held(0, first.size, False), Held(1, second.size, True))
    assert upload.ready == 0
    assert [type(message) for message in run(upload)] == [PartitionEnd]
    assert upload.ready == 2


@pytest.mark.parametrize("chunk", [CHUNK, CHUNK_BYTES, 10**9])
def test_a_chunk_is_as_large_as_both_ends_like(partitions: list[ExtractedPartition], chunk: int) -> None:
    sent = run(begun(partitions, chunk=chunk, window=10**9))
    sizes = [len(message.payload[0]) for message in sent if isinstance(message, Chunk) and message.partition == 1]
    assert max(sizes) == min(chunk, CHUNK_BYTES, partitions[1].caffemodel.size)


def test_the_window_is_limited_here_too(partitions: list[ExtractedPartition], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW_BYTES_MAX", WINDOW)
    assert len(drain(begun(partitions, window=2**62))) == 3
    monkeypatch.setattr(module, "WINDOW_BYTES_MAX", 10**9)
    monkeypatch.setattr(module, "_UNDER_WAY_MAX", 4)
    assert len(drain(begun(partitions, window=2**62))) == 4


@pytest.mark.parametrize(("chunk", "window"), [(0, WINDOW), (CHUNK, 0), (999, WINDOW), (CHUNK, 999), (0, 0)])
def test_a_credit_that_no_upload_can_use(partitions: list[ExtractedPartition], chunk: int, window: int) -> None:
    with pytest.raises(ProtocolError, match=f"takes {min(chunk, window)} bytes at a time, less than 1000"):
        begun(partitions, chunk=chunk, window=window)
    begun(partitions, chunk=1000, window=1000)


class Clock:
    """The time of an upload, which a test sets."""

    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


@pytest.fixture
def three(tiny: Network, tiny_weights: dict[str, tuple[np.ndarray, ...]]) -> list[ExtractedPartition]:
    return [extract(tiny, stages, tiny_weights) for stages in ([1], [2], [5])]


def answer_each(upload: Upload, sent: list[Message], clock: Clock) -> None:
    """A second later each time."""
    for message in sent:
        clock.s += 1
        upload.take(answer(message))


def test_when_each_partition_started_arrived_and_was_ready(three: list[ExtractedPartition]) -> None:
    """All are under way at once, but a partition starts when the link has done with the one before."""
    clock = Clock()
    upload = Upload(three, clock)
    clock.s = 1.0
    upload.begin(welcome(chunk=10**6, window=10**9))
    sent = drain(upload)
    assert len(sent) == 3 * 3 + sum(partition.caffemodel.size // CHUNK_BYTES for partition in three)
    assert upload.records([("A",), ("B",), ("C", "D")]) == []
    clock.s = 10.0
    records = []
    arrived_s, started_s = [], [1.0]
    for message in sent:
        answer_each(upload, [message], clock)
        if isinstance(message, PartitionEnd):
            arrived_s.append(clock.s - 1)
            started_s.append(clock.s - 1)
            records = upload.records([("A",), ("B",), ("C", "D")])
            assert len(records) == message.partition + 1
    assert [record.index for record in records] == [0, 1, 2]
    assert [record.stages for record in records] == [("A",), ("B",), ("C", "D")]
    assert [record.bytes for record in records] == [partition.weight_bytes for partition in three]
    assert [record.start_s for record in records] == started_s[:-1]
    assert [record.end_s for record in records] == arrived_s
    assert [record.ready_s for record in records] == [s + 1 for s in arrived_s]


def test_what_was_ready_before_a_reconnection_keeps_its_times(partitions: list[ExtractedPartition]) -> None:
    clock = Clock()
    upload = Upload(partitions, clock)
    upload.begin(welcome(window=10**6))
    first = [message for message in drain(upload) if message.partition == 0]  # type: ignore[attr-defined]
    answer_each(upload, first, clock)
    (before,) = upload.records([("A",), ("B",)])
    upload.pause()
    assert upload.ready == 0
    clock.s = 100.0
    held = [Held(index, partition.caffemodel.size, True) for index, partition in enumerate(partitions)]
    upload.begin(welcome(*held))  # the answers for the second one were lost
    assert upload.ready == 2
    again, second = upload.records([("A",), ("B",)])
    assert again == before
    assert (second.end_s, second.ready_s) == (100.0, 100.0)


def test_a_partition_that_is_whole_before_an_earlier_one_keeps_its_times(
    three: list[ExtractedPartition],
) -> None:
    """The server lost the first one, and it is sent again."""
    names: list[tuple[str, ...]] = [("A",), ("B",), ("C", "D")]
    clock = itertools.count(1.0)
    upload = Upload(three, lambda: next(clock))
    upload.begin(welcome())
    run(upload)
    _, second, third = upload.records(names)
    upload.pause()
    upload.begin(welcome(*(Held(index, three[index].caffemodel.size, True) for index in (1, 2))))
    run(upload)
    first, *others = upload.records(names)
    assert others == [second, third]
    assert third.ready_s < first.start_s < first.end_s < first.ready_s


def test_somebody_else_may_wait_for_partitions(partitions: list[ExtractedPartition]) -> None:
    upload = begun(partitions)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(upload.wait_ready, 2, 60)
        time.sleep(0.05)  # it waits by now, but need not
        assert not waiting.done()
        run(upload)
        assert waiting.result()


def test_waiting_for_partitions(partitions: list[ExtractedPartition]) -> None:
    upload = begun(partitions)
    assert upload.wait_ready(0, 0)
    assert not upload.wait_ready(1, 0)
    run(upload)
    assert upload.wait_ready(2, 0)
    assert not upload.wait_ready(3, 0)
    upload.stop()
    assert not upload.wait_ready(3, 1e6)  # it has ended: nobody waits
    assert upload.wait_ready(2, 0)


HELD = {
    "a partition that there is not": [Held(2, 0, False)],
    "more than all": [Held(0, 10**6, False)],
    "all of it, but less": [Held(0, 7, True)],
    "one twice": [Held(0, 7, False), Held(0, 7, False)],
}


@pytest.mark.parametrize("which", HELD)
def test_what_a_server_cannot_hold(partitions: list[ExtractedPartition], which: str) -> None:
    with pytest.raises(ProtocolError, match="the server holds what it was never sent, it says"):
        begun(partitions, *HELD[which])


WRONG = (Ack(0, 7), Ack(1, 1), Ack(-1, 0), Ready(0), Ready(1), Ready(2**60))


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_only_the_right_answer_is_taken(partitions: list[ExtractedPartition], wrong: Ack | Ready) -> None:
    """Whatever was answered before."""
    due = [answer(message) for message in run(begun(partitions))]
    for count in range(len(due) + 1):
        if due[count : count + 1] == [wrong]:
            continue
        upload = begun(partitions)
        for right in due[:count]:
            drain(upload)
            upload.take(Pong())  # a sign of life says nothing about an upload
            upload.take(right)
        drain(upload)
        with pytest.raises(ProtocolError, match="is not to what it was sent"):
            upload.take(wrong)


def test_an_upload_that_was_stopped_takes_anything(partitions: list[ExtractedPartition]) -> None:
    upload = begun(partitions)
    drain(upload)
    error = ProtocolError("enough")
    upload.stop(error)
    assert upload.ended
    assert upload.error is error
    assert upload.next_message() is None
    upload.take(Ready(1))
    upload.begin(welcome())
    assert not upload.under_way
    assert drain(upload) == []
    assert upload.ready == 0


@pytest.mark.parametrize("refused", [True, False])
def test_what_was_under_way_when_an_upload_stopped_is_until_it_is_answered(
    partitions: list[ExtractedPartition], refused: bool
) -> None:
    """Wherever it stops: each message has one answer, which may be an Error by then."""
    messages = len(run(begun(partitions)))
    for answered in range(messages):
        upload = begun(partitions)
        sent = drain(upload)
        for _ in range(answered):
            upload.take(answer(sent.pop(0)))
            sent += drain(upload)
        upload.stop()
        ready, sent_bytes = upload.ready, upload.sent_bytes
        assert sent
        while sent:
            assert upload.under_way
            assert upload.weights_under_way == any(isinstance(message, Chunk) for message in sent)
            message = sent.pop(0)
            upload.take(Pong())
            assert upload.take(Error(ERROR_DAMAGED, "not arriving") if refused else answer(message)) == 0
        assert not upload.under_way
        assert not upload.weights_under_way
        assert (upload.ready, upload.sent_bytes) == (ready, sent_bytes)


# --- What has not begun is replaced -----------------------------------------------------------------------------------


def test_what_has_not_begun_is_replaced(three: list[ExtractedPartition]) -> None:
    first, second, third = three
    upload = begun([first, second], window=CHUNK)
    assert upload.begun == 0
    header = upload.next_message()
    assert header is not None
    assert upload.begun == 1
    assert upload.under_way
    assert not upload.replace_rest(0, [third])
    assert upload.replace_rest(1, [third, second])
    upload.take(answer(header))
    sent = [header, *run(upload)]
    assert [content(sent, index) for index in range(3)] == [p.caffemodel.tobytes() for p in (first, third, second)]
    assert (upload.ready, upload.begun, upload.ended, upload.under_way) == (3, 3, True, False)
    assert [record.bytes for record in upload.records([("a",), ("b",), ("c",)])] == [
        partition.weight_bytes for partition in (first, third, second)
    ]


def test_an_upload_that_has_ended_goes_on_with_more(three: list[ExtractedPartition]) -> None:
    upload = begun([])
    assert upload.ended
    assert upload.next_message() is None
    assert upload.replace_rest(0, three[:1])
    assert not upload.ended
    sent = run(upload)
    assert upload.replace_rest(1, three[1:])
    sent += run(upload)
    assert [content(sent, index) for index in range(3)] == [partition.caffemodel.tobytes() for partition in three]
    upload.stop()
    assert not upload.replace_rest(3, three[:1])


def test_after_a_reconnection_what_was_carried_out_is_sent(three: list[ExtractedPartition]) -> None:
    upload = begun(three[:1], window=CHUNK)
    header = upload.next_message()
    assert upload.replace_rest(1, three[1:])
    upload.pause()
    upload.begin(welcome(Held(0, three[0].caffemodel.size, True)))
    sent = run(upload)
    assert header not in sent
    assert [content(sent, index) for index in (1, 2)] == [partition.caffemodel.tobytes() for partition in three[1:]]


def test_what_the_server_does_not_have_yet(partitions: list[ExtractedPartition]) -> None:
    upload = begun(partitions)
    assert upload.unsent() == (0, [1.0, 1.0])
    acknowledged = [upload.take(answer(message)) for message in drain(upload)]
    assert acknowledged == [0, CHUNK, CHUNK]
    size = partitions[0].caffemodel.size
    assert upload.unsent() == (0, [pytest.approx(1 - 2 * CHUNK / size), 1.0])
    run(upload)
    assert upload.unsent() == (2, [])


def test_what_follows_is_replaced_while_the_last_byte_of_a_partition_is_taken(three: list[ExtractedPartition]) -> None:
    upload = begun(three, window=CHUNK)
    replaced: list[bool] = []
    other = threading.Thread(target=lambda: replaced.append(upload.replace_rest(1, [])))

    class Counted(list[ExtractedPartition]):
        def __len__(self) -> int:
            """When the first one has begun, another thread drops the rest, or waits until it may."""
            count = super().__len__()
            if upload.begun == 1 and other.ident is None:
                other.start()
                other.join(0.2)
            return count

    upload._partitions = Counted(three)
    while (message := upload.next_message()) is not None:
        upload.take(answer(message))
        if other.ident is not None:
            other.join()
    assert replaced == [True]
    assert upload.ready == 1
