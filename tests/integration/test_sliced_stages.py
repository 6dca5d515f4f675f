"""Stages in slices, at both sides at once: real server processes, real Caffe, and every output bit for bit."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ionn.client import sliced_stage
from ionn.client.offloading import Offloading
from ionn.client.pacing import PacedResult, run_paced
from ionn.client.query import Coding, Exchange, Wanted
from ionn.client.session import Client, Timeouts
from ionn.client.sliced_stage import SlicedStage, slice_stages
from ionn.model import engine
from ionn.model.caffemodel import serialise
from ionn.model.network import Network
from ionn.model.partial_net import Channels, extract, extract_net
from ionn.model.slices import Piece, Slice
from ionn.planning.coding_costs import UP
from ionn.planning.graph import ExecutionGraph
from ionn.planning.slice_costs import SlicePlan
from ionn.protocol import messages
from ionn.records import QueryRecord
from ionn.testbed import runner
from ionn.testbed.live import Subject
from ionn.testbed.live_session import LiveSession
from ionn.testbed.trace import Trace
from tests.support.chains import coded_everywhere
from tests.support.forward import random_weights
from tests.support.nets import network_of
from tests.support.raw import Raw, upload_messages
from tests.support.runs import check_queries_after_upload, run_live
from tests.support.world import PATIENT, SHORT, WAIT_S, Server, Wire, connected, recover, wait_for

# Stages: 0 the input, 1 a convolution, 2 a pooling, 3 an inner product in slices, 4 another one, 5 the softmax.
NETWORK = network_of(
    "Convolution convolution_param { num_output: 200 kernel_size: 3 }",
    "*ReLU",
    "Pooling pooling_param { kernel_size: 2 stride: 2 }",
    "InnerProduct inner_product_param { num_output: 600 }",
    "*ReLU",
    "InnerProduct inner_product_param { num_output: 10 }",
    "Softmax",
    shape="dim: 1 dim: 32 dim: 14 dim: 14",
)
CONV, POOL, FC, LAST = 1, 2, 3, 4
ENDS = (144, 288, 432, 600)
# As small as slices are cut: smaller ones are not exact where OpenBLAS has kernels for small products.
SLICES = [Slice(FC, begin, end) for begin, end in zip((0, *ENDS), ENDS, strict=False)]
CONV_SLICES = [Slice(CONV, 0, 96), Slice(CONV, 96, 200)]
WEIGHTS = random_weights(NETWORK, scale=0.05)


def graph_of(network: Network, cuts: Sequence[SlicePlan]) -> ExecutionGraph:
    """A server that is much faster than the client, and not far away."""
    n = len(network.stages)
    return ExecutionGraph(
        stages=tuple(stage.name for stage in network.stages),
        client_ms=np.full(n, 40.0), server_ms=np.full(n, 1.0), upload_ms=np.full(n, 10.0), load_ms=np.zeros(n),
        up_ms=np.full(n + 1, 0.5), down_ms=np.full(n + 1, 0.5),
        offloadable=np.array([not stage.pinned for stage in network.stages]), cuts=cuts,
    )  # fmt: skip


GRAPH = graph_of(NETWORK, (SlicePlan(CONV, 200, 96, 0.0, 0.0, 1.0), SlicePlan(FC, 600, 144, 0.0, 0.0, 1.0)))
CODED = coded_everywhere(GRAPH, NETWORK)


@pytest.fixture(scope="module")
def net() -> engine.StageNet:
    return engine.load_network(NETWORK, WEIGHTS)


@pytest.fixture(scope="module")
def inputs() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.standard_normal(NETWORK.input_shape).astype(np.float32) for _ in range(3)]


@pytest.fixture(scope="module")
def blobs(net: engine.StageNet, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """The blob before every stage, and the output, of the first input."""
    engine.forward(net, inputs[0])
    return [inputs[0], *(net.outputs(stage)[0].copy() for stage in range(len(NETWORK.stages)))]


@pytest.fixture(scope="module")
def steady() -> Iterator[Server]:
    server = Server("--sessions", "100", "--sessions-per-client", "100")
    yield server
    server.end_well()


@pytest.fixture(scope="module")
def sliced(net: engine.StageNet) -> dict[int, SlicedStage]:
    return slice_stages(NETWORK, [CONV_SLICES, SLICES], net)


@contextlib.contextmanager
def session_of(
    address: str,
    net: engine.StageNet,
    inputs: list[np.ndarray],
    sliced: dict[int, SlicedStage],
    pieces: Sequence[Sequence[Piece]],
    timeouts: Timeouts | None = None,
    layer_ms: Sequence[float] | None = None,
    graph: ExecutionGraph = GRAPH,
) -> Iterator[LiveSession]:
    with connected(address, timeouts) as client:
        partitions = [extract(NETWORK, part, WEIGHTS) for part in pieces]
        offloading = Offloading(NETWORK, net, graph, client, partitions, pieces, sliced, layer_ms)
        yield LiveSession(offloading, net, inputs)


def where(record: QueryRecord) -> list[tuple[str, int, int]]:
    return [(segment.where, segment.first, segment.last) for segment in record.segments]


def has_ready(session: LiveSession, least: int) -> bool:
    """Whether so many partitions are ready at the server."""
    upload = session.offloading.upload
    assert upload is not None
    return upload.ready >= least


# --- Both sides at once ----------------------------------------------------------------------------------------------

# What else is uploaded, and where the stages then run; "both" stands for the slices' stage.
WAYS: dict[str, tuple[list[int], list[tuple[str, int, int]]]] = {
    "client to client": ([], [("client", 0, 2), ("both", 3, 3), ("client", 4, 5)]),
    "client to server": ([LAST], [("client", 0, 2), ("both", 3, 3), ("server", 4, 4), ("client", 5, 5)]),
    "server to client": (
        [CONV, POOL],
        [("client", 0, 0), ("server", 1, 2), ("both", 3, 3), ("client", 4, 5)],
    ),
    "server to server": (
        [CONV, POOL, LAST],
        [("client", 0, 0), ("server", 1, 2), ("both", 3, 3), ("server", 4, 4), ("client", 5, 5)],
    ),
}


def crossing_bytes(way: str, channels: int) -> int:
    """What crosses the link for a query before coding, while so many channels of the inner product are there."""
    sizes = [math.prod(stage.input_shape) for stage in NETWORK.stages]
    # Its input crosses in any case, and its output from where it is computed to where it is wanted.
    floats = sizes[FC] + (channels if way.endswith("client") else 600 - channels)
    floats += sizes[CONV] if way.startswith("server") else 0
    floats += 10 if way.endswith("server") else 0
    return 4 * floats


@pytest.mark.parametrize("graph", [GRAPH, CODED], ids=["raw", "coded"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("count", range(1, len(SLICES)))
def test_every_number_of_slices_every_way(
    graph: ExecutionGraph,
    way: str,
    count: int,
    steady: Server,
    net: engine.StageNet,
    inputs: list[np.ndarray],
    sliced: dict[int, SlicedStage],
) -> None:
    others, expected = WAYS[way]
    pieces: list[list[Piece]] = [sorted([*others, SLICES[0]], key=lambda p: p.stage if isinstance(p, Slice) else p)]
    pieces += [[piece] for piece in SLICES[1:count]]
    with session_of(steady.address, net, inputs, sliced, pieces, graph=graph) as session:
        session.start_upload()
        wait_for(session.uploaded, "the upload")
        records = [session.query() for _ in inputs]
    assert all(record.bit_equal for record in records)
    assert not any(record.fallback for record in records)
    assert where(records[0]) == expected
    for record in records:
        assert record.feature_bytes == crossing_bytes(way, ENDS[count - 1])
        assert record.feature_wire_bytes is not None
        assert (record.feature_wire_bytes < record.feature_bytes) == (graph is CODED)
    # What a stage takes at a side is known only from whole runs of it.
    assert FC not in session.offloading.executor.measured_ms("server")
    assert FC not in session.offloading.executor.measured_ms("client")


def test_all_slices_are_a_stage_of_the_server(
    steady: Server, net: engine.StageNet, inputs: list[np.ndarray], sliced: dict[int, SlicedStage]
) -> None:
    pieces: list[Sequence[Piece]] = [
        *([piece] for piece in CONV_SLICES), [POOL], *([piece] for piece in SLICES), [LAST]
    ]  # fmt: skip
    with session_of(steady.address, net, inputs, sliced, pieces) as session:
        session.start_upload()
        seen: list[QueryRecord] = []
        while not session.uploaded():
            seen.append(session.query())
        last = session.query()
    assert all(record.bit_equal and not record.fallback for record in (*seen, last))
    assert where(last) == [("client", 0, 0), ("server", 1, 4), ("client", 5, 5)]


def test_two_stages_in_part(
    steady: Server, net: engine.StageNet, inputs: list[np.ndarray], sliced: dict[int, SlicedStage]
) -> None:
    """Slices need not come stage after stage."""
    pieces: list[list[Piece]] = [[CONV_SLICES[0], SLICES[0]], [SLICES[1]], [POOL]]
    with session_of(steady.address, net, inputs, sliced, pieces) as session:
        session.start_upload()
        wait_for(session.uploaded, "the upload")
        record = session.query()
    assert record.bit_equal
    assert not record.fallback
    assert [place for place, *_ in where(record)] == ["client", "both", "server", "both", "client"]


def test_two_stages_in_part_one_after_the_other(steady: Server) -> None:
    """The first joins at the server, where the second goes on: what is between them is too large to go up."""
    network = network_of(
        "Convolution convolution_param { num_output: 192 kernel_size: 1 }",
        "Convolution convolution_param { num_output: 192 kernel_size: 1 }",
        "Softmax",
        shape="dim: 1 dim: 64 dim: 32 dim: 32",
    )
    n, weights = len(network.stages), random_weights(network, scale=0.05)
    graph = ExecutionGraph(
        stages=tuple(stage.name for stage in network.stages), client_ms=np.full(n, 200.0), server_ms=np.ones(n),
        upload_ms=np.ones(n), load_ms=np.zeros(n), up_ms=np.array([1, 1, 100, 1, 1.0]), down_ms=np.ones(n + 1),
        offloadable=np.array([False, True, True, False]),
        cuts=[SlicePlan(stage, 192, 48, 0.0, 0.0, 1.0) for stage in (1, 2)],
    )  # fmt: skip
    slices = [[Slice(1, 0, 144), Slice(2, 0, 144)], [Slice(1, 144, 192), Slice(2, 144, 192)]]
    rng = np.random.default_rng(2)
    inputs = [rng.standard_normal(network.input_shape).astype(np.float32) for _ in range(2)]
    client = Client(steady.address)
    try:
        net = engine.load_network(network, weights)
        offloading = Offloading(
            network, net, graph, client, [extract(network, slices[0], weights)], slices[:1],
            slice_stages(network, slices, net),
        )  # fmt: skip
        session = LiveSession(offloading, net, inputs)
        session.start_upload()
        wait_for(session.uploaded, "the upload")
        records = [session.query() for _ in inputs]
    finally:
        client.close()
    legs = [leg for leg in graph.legs(slices[0]) if leg.where == "both"]
    assert [leg[1:] for leg in legs] == [(1, 1, False, True), (2, 2, True, False)]
    assert where(records[0]) == [("client", 0, 0), ("both", 1, 1), ("both", 2, 2), ("client", 3, 3)]
    assert all(record.bit_equal and not record.fallback for record in records)


def test_the_clients_share_is_paced(
    steady: Server, net: engine.StageNet, inputs: list[np.ndarray], sliced: dict[int, SlicedStage]
) -> None:
    layer_ms = [0.0] * len(NETWORK.layers)
    layer_ms[NETWORK.stages[FC].first_layer] = 80.0
    with session_of(steady.address, net, inputs, sliced, [[SLICES[0]]], layer_ms=layer_ms) as session:
        session.start_upload()
        wait_for(session.uploaded, "the upload")
        record = session.query()
    (segment,) = (segment for segment in record.segments if segment.where == "both")
    assert segment.compute_ms >= 80 * (1 - 144 / 600)
    assert record.bit_equal


def test_the_clients_share_is_coded_at_its_pace(
    steady: Server,
    net: engine.StageNet,
    inputs: list[np.ndarray],
    sliced: dict[int, SlicedStage],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Encoding all channels takes 10 ms, and here the client has 456 of 600."""
    boundary = FC + 1
    (before,) = (each for each in CODED.coded if (each.boundary, each.direction) == (boundary, UP))
    slower = dataclasses.replace(before, encode_ms=10.0)
    up_ms = np.where(np.arange(len(CODED.up_ms)) == boundary, slower.total_ms, CODED.up_ms)
    graph = dataclasses.replace(CODED, up_ms=up_ms, coded=[slower if each is before else each for each in CODED.coded])
    codings = []
    join = Exchange.join

    def recorded(exchange: Exchange, others: np.ndarray, stay: bool, coding: Coding | None, wanted: Wanted) -> int:
        codings.append((others.shape[1], coding))
        return join(exchange, others, stay, coding, wanted)

    monkeypatch.setattr(Exchange, "join", recorded)
    layer_ms = [1.0] * len(NETWORK.layers)
    pieces: list[list[Piece]] = [[SLICES[0], LAST]]
    with session_of(steady.address, net, inputs, sliced, pieces, layer_ms=layer_ms, graph=graph) as session:
        session.start_upload()
        wait_for(session.uploaded, "the upload")
        assert session.query().bit_equal
    ((channels, coding),) = codings
    assert coding is not None
    assert channels == 456
    assert coding.pace_ms == pytest.approx(10 * 456 / 600, abs=1e-3)


def test_what_is_not_uploaded_of_a_stage_is_one_more_slice(net: engine.StageNet, blobs: list[np.ndarray]) -> None:
    sliced = slice_stages(NETWORK, [[SLICES[0]], [SLICES[1]]], net)[FC]
    ran, _ = sliced.run(blobs[FC], ENDS[1], 600, None)
    assert ran.shape == (1, 600 - ENDS[1])
    assert sliced.exact(blobs[FC], blobs[LAST])


def test_slices_share_the_pace_of_their_channels(
    sliced: dict[int, SlicedStage], blobs: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each layer's time, in parts as large as the slices are: 144 and 168 of 312 channels. Without a pace there is
    nothing to wait for."""
    paces: list[Sequence[float]] = []

    def paced(run: Any, layers: Sequence[int], pace_ms: Sequence[float]) -> PacedResult:
        paces.append(pace_ms)
        return run_paced(run, layers, [0.0] * len(pace_ms))

    monkeypatch.setattr(sliced_stage, "run_paced", paced)
    for layer_ms in ([312.0, 31.2], None):
        sliced[FC].run(blobs[FC], 288, 600, layer_ms)
    assert paces[0] == pytest.approx([144.0, 14.4, 168.0, 16.8])
    assert paces[1] == [0.0] * 4


# --- Faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_a_server_that_dies_during_the_clients_share_costs_no_query(
    way: str,
    net: engine.StageNet,
    inputs: list[np.ndarray],
    sliced: dict[int, SlicedStage],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    others, _ = WAYS[way]
    pieces: list[Sequence[Piece]] = [*([stage] for stage in others), [SLICES[0]]]
    server = Server()
    run = SlicedStage.run

    def run_and_kill(
        self: SlicedStage, data: np.ndarray, begin: int, end: int, layer_ms: Sequence[float] | None
    ) -> tuple[np.ndarray, PacedResult]:
        if server.alive():
            server.strike(signal.SIGKILL)
        return run(self, data, begin, end, layer_ms)

    # A slow answer of a busy machine is not to be taken for the loss.
    patient = dataclasses.replace(SHORT, query_s=WAIT_S, silence_s=WAIT_S)
    with session_of(server.address, net, inputs, sliced, pieces, patient) as session:
        session.start_upload()
        wait_for(session.uploaded, "the upload")
        monkeypatch.setattr(SlicedStage, "run", run_and_kill)
        if way.startswith("client"):  # else it has a stage to run before
            server.strike(signal.SIGSTOP)  # so that it has not answered before it dies
        records = [session.query() for _ in range(2)]
    assert all(record.bit_equal for record in records)
    assert records[1].fallback
    if way.startswith("client") or records[0].fallback:
        assert records[0].fallback
        # The client's share was not computed in vain: the server's is all that it adds.
        assert ("client", FC, FC) in where(records[0])
    server.stop()


def test_an_upload_in_slices_goes_on_over_a_new_connection(
    steady: Server, net: engine.StageNet, inputs: list[np.ndarray], sliced: dict[int, SlicedStage]
) -> None:
    pieces: list[Sequence[Piece]] = [[CONV, POOL], *([piece] for piece in SLICES), [LAST]]
    link = Wire(steady.address)
    try:
        with session_of(link.address, net, inputs, sliced, pieces, SHORT) as session:
            link.delay_s = 0.01
            session.start_upload()
            for least in (2, 3):
                wait_for(partial(has_ready, session, least), "some slices")
                link.lose(session.offloading)
            link.delay_s = 0.0
            records = recover(session)

            def is_whole() -> bool:
                records.append(session.query())
                return where(records[-1]) == [("client", 0, 0), ("server", 1, 4), ("client", 5, 5)]

            wait_for(is_whole, "all slices to be used")
    finally:
        link.close()
    assert all(record.bit_equal for record in records)


def test_a_session_that_crashes_begins_anew(
    steady: Server, net: engine.StageNet, inputs: list[np.ndarray], sliced: dict[int, SlicedStage]
) -> None:
    pieces: list[Sequence[Piece]] = [[CONV, POOL], *([piece] for piece in SLICES)]
    others = steady.session_processes()
    with session_of(steady.address, net, inputs, sliced, pieces, PATIENT) as session:
        session.start_upload()
        wait_for(partial(has_ready, session, 3), "some slices")
        (mine,) = steady.session_processes() - others
        os.kill(mine, signal.SIGKILL)
        records = recover(session)
    assert all(record.bit_equal for record in records)


# --- What no client sends --------------------------------------------------------------------------------------------


@pytest.fixture
def raw(steady: Server) -> Iterator[Raw]:
    with Raw(steady.address) as raw:
        yield raw


def send(raw: Raw, pieces: Sequence[Piece], index: int) -> None:
    raw.upload(extract(NETWORK, pieces, WEIGHTS), index)


def answered(raw: Raw, message: messages.Message) -> messages.Result:
    answer = raw.ask(raw.control, message)
    assert isinstance(answer, messages.Result), answer
    return answer


def refused(raw: Raw, message: messages.Message | list[bytes]) -> messages.Error:
    answer = raw.ask(raw.control, message)
    assert isinstance(answer, messages.Error), answer
    assert isinstance(raw.ask(raw.control, messages.Ping()), messages.Pong)
    return answer


def test_what_cannot_be_run_is_told(raw: Raw, blobs: list[np.ndarray]) -> None:
    data = (blobs[FC].tobytes(),)
    assert "not uploaded in slices" in refused(raw, messages.Part(1, FC, 144, False, data)).message
    send(raw, [SLICES[0]], 0)
    send(raw, [SLICES[2]], 1)
    for channels in (0, 1, 143, 288, 432, 600, 10**9):
        answer = refused(raw, messages.Part(1, FC, channels, False, data))
        assert answer.code == messages.ERROR_QUERY
        assert f"the first {channels} channels of stage 3 are not" in answer.message
    assert "stage 3 is not uploaded" in refused(raw, messages.Query(1, FC, FC, data)).message
    assert (
        "stage 3, floats of the shape (1, 200, 6, 6): 8 raw bytes, not"
        in refused(raw, messages.Part(1, FC, 144, False, (b"abcdefgh",))).message
    )
    assert "neither sent nor was it left" in refused(raw, messages.Part(1, FC, 144, False)).message
    result = answered(raw, messages.Part(1, FC, 144, False, data))
    assert result.shapes == ((1, 144),)
    assert bytes(result.payload[0]) == blobs[LAST][:, :144].tobytes()


def test_a_join_must_fit(raw: Raw, blobs: list[np.ndarray]) -> None:
    data, others = (blobs[FC].tobytes(),), (blobs[LAST][:, 144:].tobytes(),)
    send(raw, [SLICES[0]], 0)
    send(raw, [LAST], 1)
    assert "no part of a stage was left" in refused(raw, messages.Join(1, True, others)).message
    stays = messages.Part(1, FC, 144, True, data)
    assert answered(raw, stays).shapes == ()
    assert "): 4 raw bytes, not" in refused(raw, messages.Join(1, True, (b"four",))).message
    for wrong in (messages.Join(2, True, others), messages.Join(1, True), messages.Query(1, LAST, LAST)):
        assert answered(raw, stays).shapes == ()
        assert refused(raw, wrong).code == messages.ERROR_QUERY
        # After an error nothing is left.
        assert "no part" in refused(raw, messages.Join(1, True, others)).message
    for message in (stays, messages.Join(1, True, others)):
        assert isinstance(raw.ask(raw.control, message), messages.Result)
    assert "neither" in refused(raw, messages.Query(2, LAST, LAST)).message  # of another query
    for message in (stays, messages.Join(1, True, others)):
        assert isinstance(raw.ask(raw.control, message), messages.Result)
    result = raw.ask(raw.control, messages.Query(1, LAST, LAST))
    assert bytes(result.payload[0]) == blobs[LAST + 1].tobytes()
    assert isinstance(raw.ask(raw.control, stays), messages.Result)
    assert bytes(raw.ask(raw.control, messages.Join(1, False, others)).payload[0]) == blobs[LAST].tobytes()


def test_a_complete_stage_still_answers_for_its_part(raw: Raw, blobs: list[np.ndarray]) -> None:
    """The client may not know yet that it is complete."""
    for index, piece in enumerate(reversed(SLICES)):
        send(raw, [piece], index)
    data = (blobs[FC].tobytes(),)
    for channels in (96, 144, 432):
        result = raw.ask(raw.control, messages.Part(1, FC, channels, False, data))
        assert bytes(result.payload[0]) == np.ascontiguousarray(blobs[LAST][:, :channels]).tobytes()
    assert "the first 600 channels" in refused(raw, messages.Part(1, FC, 600, False, data)).message
    assert bytes(raw.ask(raw.control, messages.Query(1, FC, FC, data)).payload[0]) == blobs[LAST].tobytes()


def header_of(pieces: Sequence[Piece], index: int) -> messages.PartitionHeader:
    return upload_messages(extract(NETWORK, pieces, WEIGHTS), index)[0]


def test_a_slice_is_taken_once(raw: Raw) -> None:
    send(raw, [SLICES[1]], 0)
    for piece in (SLICES[1], Slice(FC, 0, 192), Slice(FC, 192, 600)):
        answer = refused(raw, header_of([piece], 1))
        assert answer.code == messages.ERROR_DAMAGED
        assert "of stage 3 were uploaded before" in answer.message
    assert "stage 3 was uploaded before" in refused(raw, header_of([FC], 1)).message
    arriving = header_of([SLICES[2]], 1)
    assert raw.ask(raw.control, arriving) == messages.Ack(1, 0)
    assert "channels 288 to 432" in refused(raw, header_of([SLICES[2]], 2)).message


def test_a_slice_must_be_one(raw: Raw) -> None:
    good = header_of([SLICES[0]], 0)
    (net,) = good.nets

    def with_net(**changes: Any) -> messages.PartitionHeader:
        return dataclasses.replace(good, nets=(dataclasses.replace(net, **changes),))

    for changes, said in (
        ({"channels": Channels(0, 96, 600)}, "are not what its net makes"),
        ({"channels": Channels(0, 144, 100_000)}, "the server's --weights-mb"),
        ({"channels": Channels(0, 144, 2**31 - 1)}, "larger than Caffe can count"),
        ({"stages": (dataclasses.replace(net.stages[0], outputs=(net.input,)),)}, "are not what its net makes"),
        ({"prototxt": net.prototxt.replace('"InnerProduct"', '"Pooling"')}, "partition 0"),
        ({"prototxt": net.prototxt.replace('"ReLU"', '"Softmax"')}, "are not what its net makes"),
    ):
        assert said in refused(raw, with_net(**changes)).message, changes
    for wrong, said in (
        ({"channels": [0, 144, 2**31]}, "is not a slice"),
        ({"channels": [0, 600, 600]}, "is not a slice"),
        ({"channels": [9, 9, 600]}, "is not a slice"),
        ({"stages": [{"index": FC, "last_layer": 1, "outputs": ["a"]}] * 2}, "not adjacent"),
    ):
        head = json.loads(good.frames()[0])
        head["nets"][0] |= wrong
        assert said in refused(raw, [json.dumps(head).encode()]).message, wrong
    assert raw.ask(raw.control, good) == messages.Ack(0, 0)
    other = dataclasses.replace(header_of([SLICES[1]], 1), nets=(
        dataclasses.replace(net, channels=Channels(144, 288, 601)),
    ), blobs=good.blobs, size=good.size)  # fmt: skip
    assert "a slice of another stage 3" in refused(raw, other).message


def test_a_slice_that_is_damaged_is_sent_again(raw: Raw, blobs: list[np.ndarray]) -> None:
    header, chunks, _ = upload_messages(extract(NETWORK, [SLICES[0]], WEIGHTS), 0)
    for message in (header, *chunks):
        assert not isinstance(raw.ask(raw.control, message), messages.Error)
    assert "digest" in refused(raw, messages.PartitionEnd(0, "0" * 64)).message
    for index, piece in enumerate(SLICES):
        send(raw, [piece], index)
    result = raw.ask(raw.control, messages.Query(1, FC, FC, (blobs[FC].tobytes(),)))
    assert bytes(result.payload[0]) == blobs[LAST].tobytes()


def test_the_whole_counts_with_the_first_slice() -> None:
    """A stage of 28 MB in slices of 6 and 22 MB: nobody gets more memory by sending it in slices."""
    network = network_of("InnerProduct inner_product_param { num_output: 7000 }", shape="dim: 1 dim: 1000")
    weights = random_weights(network, scale=0.05)
    server = Server("--weights-mb", "29", "--memory-mb", "45")
    with Raw(server.address) as raw:
        small, large = (upload_messages(extract(network, [piece], weights), index) for index, piece in
                        enumerate((Slice(1, 0, 1500), Slice(1, 1500, 7000))))  # fmt: skip
        assert raw.ask(raw.control, small[0]) == messages.Ack(0, 0)
        answer = refused(raw, large[0])
        assert answer.code == messages.ERROR_PARTITION
        assert "56 memory mb; the server's --memory-mb is 45" in answer.message
    server.stop()


# --- The experiment --------------------------------------------------------------------------------------------------


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    path = tmp_path / "cut.prototxt"
    path.write_text(extract_net(NETWORK, 0, len(NETWORK.stages) - 1).prototxt)
    path.with_suffix(".caffemodel").write_bytes(serialise("cut", NETWORK.layers, WEIGHTS).tobytes())
    slow = tmp_path / "slow.txt"
    slow.write_text("".join(f"{layer.index} {layer.name} 30.0\n" for layer in NETWORK.layers))
    return runner.prepare_live(str(path), client=str(slow))


def cut(trace: Trace) -> set[str]:
    """The stages that a run uploaded in slices."""
    return {name for partition in trace.info.plan.partitions for name in partition.slices}


def test_a_live_run_in_slices(subject: Subject, tmp_path: Path) -> None:
    (trace,) = run_live(subject, ["sliced-efficiency"], 1, mbps=60.0, server="gtx1080ti", results=tmp_path)
    assert NETWORK.stages[FC].name in cut(trace)
    assert all(query.bit_equal and not query.fallback for query in trace.queries)
    assert any(segment.where == "both" for query in trace.queries for segment in query.segments)
    assert [place for place, *_ in where(trace.queries[-1])] == ["client", "server", "client"]
    check_queries_after_upload(trace)
    assert len(trace.partitions) == len(trace.info.plan.partitions)


def test_a_stage_whose_slices_are_not_exact_is_not_cut(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Played by weights that are a bit off in one stage's slices."""

    def off(part: engine.StageNet, whole: engine.StageNet, begin: int) -> None:
        factor = np.float32(1.001 if part.first == FC else 1)
        rows = {name: blobs[0].shape[0] for name, blobs in part.weights().items()}
        part.load({
            name: [factor * blob[begin : begin + rows[name]] for blob in whole.weights()[name]] for name in rows
        })  # fmt: skip

    monkeypatch.setattr(engine.StageNet, "share", off)
    (trace,) = run_live(subject, ["sliced-efficiency"], 1, mbps=60.0, server="gtx1080ti")
    assert NETWORK.stages[FC].name not in cut(trace)
    assert all(query.bit_equal for query in trace.queries)


def test_slices_are_nets_for_stock_caffe(tmp_path: Path, blobs: list[np.ndarray]) -> None:
    """A process that knows nothing of ionn builds a slice from what is sent, and gets the stage's channels."""
    partition = extract(NETWORK, [SLICES[1]], WEIGHTS)
    (tmp_path / "p.prototxt").write_text(partition.nets[0].prototxt)
    (tmp_path / "p.caffemodel").write_bytes(partition.caffemodel.tobytes())
    np.save(tmp_path / "in.npy", blobs[FC])
    code = (
        "import caffe, numpy as np; net = caffe.Net('p.prototxt', 'p.caffemodel', caffe.TEST); "
        f"np.save('out.npy', net.forward(**{{'{partition.nets[0].input}': np.load('in.npy')}})"
        f"['{NETWORK.stages[FC].outputs[0]}'])"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), blobs[LAST][:, 144:288])
