"""What a session takes of a stranger, without sockets: stages that fit each other, limits that are counted right."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
import pytest

from ionn import coding
from ionn.model.network import OUTPUTS_MAX, Network
from ionn.model.partial_net import ExtractedPartition, extract
from ionn.model.slices import Piece, Slice
from ionn.protocol import messages
from ionn.server.limits import Limits
from ionn.server.worker import SessionState
from tests.support.forward import random_weights
from tests.support.nets import network_of
from tests.support.raw import upload_messages

FC = "InnerProduct inner_product_param { num_output: %d }"


def session(**limits: float) -> SessionState:
    return SessionState("token", {}, Limits(**limits), lambda status: None)  # type: ignore[arg-type]


def send(state: SessionState, partition: ExtractedPartition, index: int, finish: bool = True) -> messages.Message:
    """Upload a partition; the first answer that is an error, or the last one."""
    header, chunks, end = upload_messages(partition, index)
    answer: messages.Message = messages.Ping()
    for message in (header, *chunks, *([end] if finish else [])):
        answer = state.handle(messages.decode([bytes(frame) for frame in message.frames()]))
        if isinstance(answer, messages.Error):
            break
    return answer


def part_of(network: Network, pieces: Sequence[Piece]) -> ExtractedPartition:
    return extract(network, pieces, random_weights(network))


def moved(partition: ExtractedPartition, by: int) -> ExtractedPartition:
    """The same stages at another place of the chain."""
    nets = tuple(
        dataclasses.replace(
            net, stages=tuple(dataclasses.replace(stage, index=stage.index + by) for stage in net.stages)
        )
        for net in partition.nets
    )
    return dataclasses.replace(partition, nets=nets)


# --- Stages that fit each other --------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [5, 1])  # numpy would raise, and would broadcast
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_what_a_stage_makes_must_be_what_the_next_one_takes(made: int, order: tuple[int, int]) -> None:
    before = part_of(network_of(FC % made, shape="dim: 1 dim: 3"), [1])
    after = moved(part_of(network_of(FC % 2, shape="dim: 1 dim: 7"), [1]), 1)
    partitions = (before, after)
    state = session()
    assert send(state, partitions[order[0]], 0) == messages.Ready(0)
    refused = send(state, partitions[order[1]], 1)
    assert isinstance(refused, messages.Error)
    assert refused.code == messages.ERROR_PARTITION
    assert f"stage 2 takes 1x7, but stage 1 makes 1x{made}" in refused.message
    # The one that was there is in use as before, and one that fits is taken.
    good = moved(part_of(network_of(FC % 2, shape=f"dim: 1 dim: {made}"), [1]), 1)
    if order[0] == 0:
        assert send(state, good, 1) == messages.Ready(1)
        result = state.handle(messages.Query(1, 1, 2, (bytes(12),)))
        assert isinstance(result, messages.Result)
        assert result.shapes == ((1, 2),)


def test_stages_must_fit_within_a_partition_too() -> None:
    before = part_of(network_of(FC % 5, shape="dim: 1 dim: 3"), [1])
    after = moved(part_of(network_of(FC % 2, shape="dim: 1 dim: 7"), [1]), 1)
    header, _, _ = upload_messages(before)
    both = dataclasses.replace(header, nets=(*before.nets, *after.nets))
    refused = session().handle(both)
    assert isinstance(refused, messages.Error)
    assert "stage 2 takes 1x7, but stage 1 makes 1x5" in refused.message


def test_a_stage_has_no_more_outputs_than_an_answer_carries() -> None:
    """A stranger may name an output over and over."""
    partition = part_of(network_of(FC % 5, shape="dim: 1 dim: 3"), [1])
    header, _, _ = upload_messages(partition)
    (net,) = header.nets
    (stage,) = net.stages
    answers = {}
    for count in (OUTPUTS_MAX, OUTPUTS_MAX + 1):
        many = dataclasses.replace(stage, outputs=stage.outputs * count)
        answers[count] = session().handle(dataclasses.replace(header, nets=(dataclasses.replace(net, stages=(many,)),)))
    assert isinstance(answers[OUTPUTS_MAX], messages.Ack)
    refused = answers[OUTPUTS_MAX + 1]
    assert isinstance(refused, messages.Error)
    assert refused.message == "stage 1 has 2000 outputs; at most 1999 are sent"


def test_a_stage_that_was_dropped_is_compared_no_more() -> None:
    state = session()
    before = part_of(network_of(FC % 5, shape="dim: 1 dim: 3"), [1])
    assert isinstance(send(state, before, 0, finish=False), messages.Ack)
    assert isinstance(state.handle(messages.PartitionEnd(0, "0" * 64)), messages.Error)
    after = moved(part_of(network_of(FC % 2, shape="dim: 1 dim: 7"), [1]), 1)
    assert send(state, after, 1) == messages.Ready(1)


def test_slices_are_compared_as_their_whole() -> None:
    before = network_of(FC % 200, shape="dim: 1 dim: 3")
    for channels, fits in ((200, True), (96, False)):
        state = session()
        assert send(state, part_of(before, [Slice(1, 0, 96)]), 0) == messages.Ready(0)
        after = moved(part_of(network_of(FC % 2, shape=f"dim: 1 dim: {channels}"), [1]), 1)
        assert isinstance(send(state, after, 1), messages.Ready if fits else messages.Error)


# --- Slices ----------------------------------------------------------------------------------------------------------

WIDE = network_of(FC % 200, FC % 4, shape="dim: 2 dim: 9")
SLICES = [Slice(1, 0, 48), Slice(1, 48, 144), Slice(1, 144, 200)]


@pytest.mark.parametrize("groups", [[[0, 1, 2]], [[0, 2], [1]], [[2, 0], [1]], [[1], [2, 0]]])
def test_a_partition_may_have_several_slices_of_a_stage(groups: list[list[int]]) -> None:
    state = session()
    for index, group in enumerate(groups):
        assert send(state, part_of(WIDE, [SLICES[piece] for piece in group]), index) == messages.Ready(index)
    whole = session()
    assert send(whole, part_of(WIDE, [1]), 0) == messages.Ready(0)
    query = messages.Query(1, 1, 1, (np.arange(18, dtype=np.float32).tobytes(),))
    first, second = (np.frombuffer(each.handle(query).frames()[1], np.float32) for each in (state, whole))
    np.testing.assert_allclose(first, second, rtol=1e-5)


def test_slices_of_a_partition_must_not_overlap() -> None:
    state = session()
    for pieces in ([Slice(1, 0, 48), Slice(1, 47, 144)], [Slice(1, 0, 48), Slice(1, 0, 48)]):
        refused = send(state, part_of(WIDE, pieces), 0)
        assert isinstance(refused, messages.Error)
        assert "stage 1 is in two nets" in refused.message
    other = part_of(network_of(FC % 201, FC % 4, shape="dim: 2 dim: 9"), [Slice(1, 48, 96)])
    header, _, _ = upload_messages(part_of(WIDE, [Slice(1, 0, 48)]))
    refused = state.handle(dataclasses.replace(header, nets=(*header.nets, *other.nets)))
    assert isinstance(refused, messages.Error)
    assert "not slices of the same stage" in refused.message
    assert send(state, part_of(WIDE, SLICES), 0) == messages.Ready(0)


# --- What counts -----------------------------------------------------------------------------------------------------


def least_memory_mb(uploads: Sequence[ExtractedPartition]) -> float:
    """The smallest --memory-mb with which all of them are taken, to 1 kB."""
    low, high = 0.0, 100.0
    while high - low > 0.001:
        middle = (low + high) / 2
        state = session(memory_mb=middle)
        taken = all(send(state, partition, index) == messages.Ready(index) for index, partition in enumerate(uploads))
        low, high = (low, middle) if taken else (middle, high)
    return high


@pytest.mark.parametrize("more", [0, 4])
def test_a_chunk_has_so_many_bytes_when_it_is_decoded(more: int) -> None:
    """Coded, these are a few dozen."""
    network = network_of(FC % 1000, shape="dim: 1 dim: 100")
    partition = extract(network, [1], {"a": (np.ones((1000, 100), np.float32), np.zeros(1000, np.float32))})
    header, *_ = upload_messages(partition)
    state = session(chunk_kb=2.0)
    assert state.handle(header) == messages.Ack(0, 0)
    raw = partition.caffemodel.tobytes()[: 2000 + more]
    codec, coded = coding.encode(raw)
    assert codec == coding.PLANES
    answer = state.handle(messages.make_chunk(0, 0, [memoryview(coded)], codec, len(raw)))
    if more:
        assert isinstance(answer, messages.Error)
        assert "a chunk of more than 2000 bytes" in answer.message
    else:
        assert answer == messages.Ack(0, 2000)


def test_slices_count_until_they_are_joined() -> None:
    """While a stage arrives in slices, they and the whole count; afterwards it is as if it had come as a whole."""
    network = network_of(FC % 2000, FC % 4, shape="dim: 1 dim: 1000")  # 8 MB and 32 kB
    last = part_of(network, [2])
    slices = [part_of(network, [piece]) for piece in (Slice(1, 0, 960), Slice(1, 960, 2000))]
    whole_mb = least_memory_mb([part_of(network, [1])])
    assert least_memory_mb(slices) == pytest.approx(2 * whole_mb, rel=0.01)
    large = part_of(network_of(FC % 1700, shape="dim: 1 dim: 1000"), [1])
    # Another stage of nearly their size fits in their place, once they are joined, and not before.
    state = session(memory_mb=2 * whole_mb + 0.1)
    assert send(state, slices[0], 0) == messages.Ready(0)
    assert send(state, last, 1) == messages.Ready(1)
    assert isinstance(send(state, moved(large, 9), 2), messages.Error)
    assert send(state, slices[1], 3) == messages.Ready(3)
    assert send(state, moved(large, 9), 4) == messages.Ready(4)
    assert isinstance(send(state, moved(large, 19), 5), messages.Error)


def test_what_a_layer_takes_to_compute_counts() -> None:
    """Caffe's LRN copies an image and adds a margin, which may be far larger than the blobs."""
    for size in (1_000_001, 10_000_001):
        network = network_of(f"LRN lrn_param {{ local_size: {size} }}", shape="dim: 4 dim: 3 dim: 1 dim: 1")
        upload = part_of(network, [1])
        assert send(session(memory_mb=size * 4.01 / 1e6), upload, 0) == messages.Ready(0)
        refused = send(session(memory_mb=size * 3.99 / 1e6), upload, 0)
        assert isinstance(refused, messages.Error)
        assert "--memory-mb" in refused.message
    within = "LRN lrn_param { local_size: 40001 norm_region: WITHIN_CHANNEL }"
    assert send(session(memory_mb=1), part_of(network_of(within, shape="dim: 1 dim: 1 dim: 1 dim: 1"), [1]), 0) == (
        messages.Ready(0)
    )


def test_layers_and_weights_of_slices_count_as_the_whole() -> None:
    network = network_of(FC % 2000, shape="dim: 1 dim: 1000")
    state = session(weights_mb=8.1, layers=10)
    for index, piece in enumerate((Slice(1, 0, 960), Slice(1, 960, 2000))):
        assert send(state, part_of(network, [piece]), index) == messages.Ready(index)
    # 2 of 10 layers are in use now: 4 stages more of 2 layers each.
    small = part_of(network_of("ReLU", shape="dim: 3"), [1])
    for index in range(4):
        assert send(state, moved(small, 10 + 2 * index), 10 + index) == messages.Ready(10 + index)
    refused = send(state, moved(small, 30), 30)
    assert isinstance(refused, messages.Error)
    assert "12 layers; the server's --layers is 10" in refused.message


def test_what_was_dropped_counts_no_more() -> None:
    network = network_of(FC % 2000, shape="dim: 1 dim: 1000")
    state = session(weights_mb=8.1)
    for piece in (1, Slice(1, 0, 960), 1):
        partition = part_of(network, [piece])
        assert isinstance(send(state, partition, 0, finish=False), messages.Ack)
        refused = state.handle(messages.PartitionEnd(0, hashlib.sha256(b"").hexdigest()))
        assert isinstance(refused, messages.Error)
        assert "digest" in refused.message
    assert send(state, part_of(network, [1]), 0) == messages.Ready(0)


# --- Boundaries of any shape -----------------------------------------------------------------------------------------


def test_a_first_axis_that_is_not_the_batch_is_of_any_size() -> None:
    network = network_of("Permute permute_param { order: 1 order: 0 }", FC % 3, shape="dim: 1 dim: 2000")
    state = session()
    assert send(state, part_of(network, [1, 2]), 0) == messages.Ready(0)
    result = state.handle(messages.Query(1, 2, 2, (bytes(8000),)))
    assert isinstance(result, messages.Result)
    assert result.shapes == ((2000, 3),)


def test_scalars_stay_scalars() -> None:
    network = network_of("Reduction reduction_param { axis: 0 }", "Power power_param { scale: 2 }", shape="dim: 3")
    state = session()
    assert send(state, part_of(network, [1]), 0) == messages.Ready(0)
    assert send(state, part_of(network, [2]), 1) == messages.Ready(1)
    for last, want in ((1, 6.0), (2, 12.0)):
        result = state.handle(messages.Query(1, 1, last, (np.array([1, 2, 3], np.float32).tobytes(),)))
        assert isinstance(result, messages.Result)
        assert result.shapes == ((),)
        assert np.frombuffer(result.payload[0], np.float32).tolist() == [want]
