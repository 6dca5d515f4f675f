"""Servers that lie about values: real ones, whose results are changed on their way to a real client."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ionn
from ionn.client.audit import Answered, Auditor
from ionn.client.offloading import Offloading
from ionn.client.session import Client
from ionn.client.sliced_stage import slice_stages
from ionn.errors import WrongResultError
from ionn.model import engine
from ionn.model.caffemodel import serialise
from ionn.model.network import Network
from ionn.model.partial_net import extract, extract_net
from ionn.model.slices import Piece, Slice
from ionn.planning.graph import ExecutionGraph
from ionn.planning.planners import PLANNERS
from ionn.planning.slice_costs import SlicePlan
from tests.malicious.hostile import GRAPH, NETWORK, PATIENT, SLICES, WEIGHTS
from tests.support.command import ionn as command
from tests.support.forward import Weights, random_weights
from tests.support.liar import SMALL_CHANGES, Liar, Lie, an_ulp, honest
from tests.support.nets import network_of
from tests.support.world import WAIT_S, Link, Server, wait_for

pytestmark = pytest.mark.usefixtures("evidence_folder")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that says it takes next to no time."""
    costs = tmp_path_factory.mktemp("costs") / "fast.json"
    costs.write_text(json.dumps({**ionn.load_costs("gtx1080ti").to_json(), "name": "fast"}))
    process = Server("--sessions", "100", "--sessions-per-client", "100", "--costs", str(costs))
    yield process.address
    process.end_well()


@pytest.fixture
def liar(server: str) -> Iterator[Liar]:
    with Liar(server) as liar:
        yield liar


# --- Lies ------------------------------------------------------------------------------------------------------------


def all_values(values: np.ndarray) -> None:
    values[:] = 1


CHANGES: dict[str, Callable[[np.ndarray], None]] = {**SMALL_CHANGES, "all values": all_values}


def lie_from(query: int, change: Callable[[np.ndarray], None] = an_ulp) -> Lie:
    """Change the first output of every result, from a query on; they are counted from 1."""

    def lie(number: int, outputs: list[np.ndarray]) -> None:
        if number >= query:
            change(outputs[0])

    return lie


def lie_in(query: int, change: Callable[[np.ndarray], None] = an_ulp) -> Lie:
    return lambda number, outputs: change(outputs[0]) if number == query else None


# --- A user's session ------------------------------------------------------------------------------------------------


def until_the_softmax(graph: ionn.ExecutionGraph) -> list[list[int]]:
    """The tiny network up to an inner product with a ReLU: of what it gives, many values are zeros."""
    return [[1], [2, 3, 4]]


# `connected` with its first three arguments given.
Connect = Callable[..., contextlib.AbstractContextManager[ionn.Session]]


@contextlib.contextmanager
def connected(
    liar: Liar, files: Path, client: str, audit: float, tolerance: float = 0.0, uploaded: bool = True
) -> Iterator[ionn.Session]:
    with ionn.connect(
        files, liar.address, client=client, mbps=80.0, algorithm=ionn.add_planner(until_the_softmax), audit=audit,
        audit_tolerance=tolerance,
    ) as session:  # fmt: skip
        if uploaded:
            wait_for(session.wait_uploaded, "the upload")
        yield session


@pytest.fixture
def connect(liar: Liar, tiny_files: Path, slow_client: str) -> Connect:
    return partial(connected, liar, tiny_files, slow_client)


@pytest.fixture
def data(tiny: Network) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.standard_normal(tiny.input_shape).astype(np.float32) for _ in range(60)]


@pytest.fixture
def truth(tiny: Network, tiny_weights: Weights, data: list[np.ndarray]) -> list[bytes]:
    net = engine.load_network(tiny, tiny_weights)
    return [engine.forward(net, each)[0].tobytes() for each in data]


def places(answer: ionn.Answer) -> list[str]:
    return [segment.where for segment in answer.segments]


def right(answer: ionn.Answer, expected: bytes) -> bool:
    return answer.outputs["prob"].tobytes() == expected


def all_right(answers: Sequence[ionn.Answer], truth: Sequence[bytes]) -> bool:
    """To the first inputs, as many as there are answers."""
    return all(right(*each) for each in zip(answers, truth[: len(answers)], strict=True))


@pytest.mark.parametrize("change", CHANGES)
def test_the_first_lie_is_caught(
    change: str, connect: Connect, liar: Liar, data: list[np.ndarray], truth: list[bytes],
    tiny: Network, tiny_weights: Weights, evidence_folder: Path,
) -> None:  # fmt: skip
    liar.lie = lie_from(3, CHANGES[change])
    with connect(audit=1.0) as session:
        token = session._offloading._client._session  # type: ignore[union-attr]
        answers = [session.query(each) for each in data[:5]]
        fault = session.fault
        assert not session.wait_uploaded()
    assert all_right(answers, truth)
    assert [places(answer) for answer in answers] == [["client", "server", "client"]] * 2 + [["client"]] * 3
    assert [answer.audited for answer in answers] == [True, True, True, False, False]
    assert [answer.fallback for answer in answers] == [False, False, True, True, True]
    # What is kept is what was sent, what came, and what stages make of it.
    assert isinstance(fault, WrongResultError)
    (path,) = evidence_folder.iterdir()
    assert str(fault).startswith(f"{liar.address}: the server gave a wrong result for stages 1..4 (")
    assert str(fault).endswith(f"the evidence is {path}")
    assert str(fault).isprintable()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(evidence_folder.stat().st_mode) == 0o700
    assert token
    assert token.encode() not in path.read_bytes()
    _, (answered,) = liar.results[2]
    net = engine.load_network(tiny, tiny_weights)
    with np.load(path, allow_pickle=False) as kept:
        report = json.loads(str(kept["report"]))
        net.put(report["first_stage"], kept["sent"])
        net.run(report["first_stage"], report["last_stage"])
        (computed,) = net.outputs(report["last_stage"])
        assert kept["computed_0"].tobytes() == computed.tobytes() == answered.tobytes()
        CHANGES[change](answered)
        assert kept["answered_0"].tobytes() == answered.tobytes()
        assert kept["sent"].tobytes() == data[2].tobytes()
    assert report["address"] == liar.address
    assert report["environment"]["blas"] == engine.blas()


def test_a_lie_in_one_query_of_fifty(connect: Connect, liar: Liar, data: list[np.ndarray], truth: list[bytes]) -> None:
    liar.lie = lie_in(37)
    with connect(audit=1.0) as session:
        answers = []
        for each in data[:50]:
            answers.append(session.query(each))
            if session.fault is not None:
                break
        assert isinstance(session.fault, WrongResultError)
    assert len(answers) == 37
    assert all(answer.audited for answer in answers)
    assert all_right(answers, truth)


def never(bits: int) -> int:
    """More than any chance, that of every query too."""
    return 1 << bits


def test_the_query_that_is_drawn_is_audited(
    connect: Connect, liar: Liar, data: list[np.ndarray], truth: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which the server does not know when it answers: until then its lies are believed."""
    monkeypatch.setattr(secrets, "randbits", never)
    liar.lie = lie_from(2, all_values)
    with connect(audit=0.02) as session:
        answers = [session.query(each) for each in data[:4]]
        assert session.fault is None
        # What it answers depends on nothing that is drawn afterwards.
        monkeypatch.setattr(secrets, "randbits", lambda bits: 0)
        answers.append(session.query(data[4]))
        assert isinstance(session.fault, WrongResultError)
    assert [answer.audited for answer in answers] == [False] * 4 + [True]
    assert [right(*each) for each in zip(answers, truth, strict=False)] == [True, False, False, False, True]


def test_a_draw_comes_after_the_answer(
    connect: Connect, liar: Liar, data: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []

    def lie(number: int, outputs: list[np.ndarray]) -> None:
        order.append("answer")

    def drawn(bits: int) -> int:
        order.append("draw")
        return never(bits)

    with connect(audit=0.02) as session:
        liar.lie = lie
        monkeypatch.setattr(secrets, "randbits", drawn)
        for each in data[:3]:
            session.query(each)
    assert order == ["answer", "draw"] * 3


def test_a_lie_that_there_was_no_time_for_is_found_later(
    connect: Connect, liar: Liar, data: list[np.ndarray], truth: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "randbits", never)
    with connect(audit=0.02) as session:
        monkeypatch.setattr(secrets, "randbits", lambda bits: 0)
        sampler = session._offloading.executor._auditor._sampler  # type: ignore[union-attr]
        first = session.query(data[0])
        assert first.audited
        sampler._spent_s += 3600.0
        liar.lie = lie_in(2, all_values)
        second = session.query(data[1])
        assert not second.audited
        assert not right(second, truth[1])
        monkeypatch.setattr(secrets, "randbits", never)
        third = session.query(data[2])
        assert session.fault is None
        sampler._spent_s -= 3600.0
        wait_for(lambda: session.query(data[3]).audited, "the audit")
        assert isinstance(session.fault, WrongResultError)
        assert right(third, truth[2])
        assert right(session.query(data[3]), truth[3])


def test_a_tolerance_is_the_clients(connect: Connect, liar: Liar, data: list[np.ndarray]) -> None:
    def lie(off: float, number: int, outputs: list[np.ndarray]) -> None:
        outputs[0][7] += np.float32(off) * abs(outputs[0]).max()

    with connect(audit=1.0, tolerance=1e-3) as session:
        for off in (0.0, 0.9e-3, -0.9e-3):
            liar.lie = partial(lie, off)
            assert session.query(data[0]).audited
            assert session.fault is None
        liar.lie = partial(lie, 1.1e-3)
        session.query(data[0])
        assert isinstance(session.fault, WrongResultError)


def test_a_server_that_lied_is_left_for_good(
    connect: Connect, liar: Liar, data: list[np.ndarray], truth: list[bytes], evidence_folder: Path
) -> None:
    liar.lie = lie_from(1)
    with connect(audit=1.0) as session:
        session.query(data[0])
        fault = session.fault
        keeper = session._offloading._client._keeper  # type: ignore[union-attr]
        wait_for(lambda: not keeper.is_alive(), "the end of the thread that connects")
        connections = liar.connections
        answers = [session.query(each) for each in data[:5]]
        assert session.fault is fault
        assert session._offloading.upload is not None
        assert session._offloading.upload.ended
    assert connections == liar.connections
    assert len(liar.results) == 1
    assert all_right(answers, truth)
    assert len(list(evidence_folder.iterdir())) == 1


@pytest.mark.parametrize("found", ["before it is connected to again", "after that"])
def test_a_server_that_lied_and_broke_off_is_left_too(
    found: str,
    connect: Connect,
    liar: Liar,
    data: list[np.ndarray],
    truth: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the thread that connects is doing when the lie is found."""
    with connect(audit=1.0) as session:
        client = session._offloading._client
        assert client is not None
        check = Auditor._check

        def check_late(self: Auditor, answered: Answered) -> None:
            liar.reset()
            wait_for(lambda: client.fault is not None, "the loss")
            if found == "after that":
                wait_for(lambda: client.fault is None, "another connection")
            check(self, answered)

        monkeypatch.setattr(Auditor, "_check", check_late)
        # So long that the loss is seen before the client is back.
        client.timeouts = dataclasses.replace(client.timeouts, retry_s=2.0, retry_max_s=2.0)
        liar.lie = lie_from(1)
        answers = [session.query(data[0])]
        wait_for(lambda: not client._keeper.is_alive(), "the end of the thread that connects")
        connections = liar.connections
        answers.append(session.query(data[1]))
        assert isinstance(session.fault, WrongResultError)
    assert connections == liar.connections
    assert all_right(answers, truth)


def test_a_lie_ends_the_upload(
    server: str, tiny_files: Path, slow_client: str, data: list[np.ndarray], truth: list[bytes]
) -> None:
    link = Link(server, mbps=4)
    try:
        with (
            Liar(link.address, lie_from(1)) as liar,
            connected(liar, tiny_files, slow_client, audit=1.0, uploaded=False) as session,
        ):
            wait_for(lambda: session.query(data[0]).audited, "a partition")
            assert isinstance(session.fault, WrongResultError)
            assert session._offloading.uploaded()
            assert session.uploaded < 1
            assert right(session.query(data[1]), truth[1])
    finally:
        link.stop()


def test_a_lie_before_the_server_breaks_off_is_caught_too(
    server: str, tiny_files: Path, slow_client: str, data: list[np.ndarray], truth: list[bytes]
) -> None:
    """Two groups of stages: the server lies in the first, and is gone when it is asked for the second."""

    def apart(graph: ionn.ExecutionGraph) -> list[list[int]]:
        return [[1], [4]]

    costs = ionn.load_costs(slow_client)
    with Liar(server) as liar:

        def lie(number: int, outputs: list[np.ndarray]) -> None:
            if len(liar.results) % 2:
                an_ulp(outputs[0])
            else:
                raise EOFError

        liar.lie = lie
        with ionn.connect(
            tiny_files, liar.address, client=costs, server="gtx1080ti", mbps=1e4,
            algorithm=ionn.add_planner(apart), audit=1.0,
        ) as session:  # fmt: skip
            wait_for(session.wait_uploaded, "the upload")
            answer = session.query(data[0])
            assert isinstance(session.fault, WrongResultError)
            assert "stages 1..1 " in str(session.fault)
    assert len(liar.results) == 2
    assert answer.audited
    assert right(answer, truth[0])


def test_no_evidence_costs_no_query(
    connect: Connect, liar: Liar, data: list[np.ndarray], truth: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/dev/null/state")
    liar.lie = lie_from(1)
    with connect(audit=1.0) as session:
        assert right(session.query(data[0]), truth[0])
        assert "the evidence is lost (/dev/null/state/ionn/audit: " in str(session.fault)


def test_a_lie_that_is_found_when_the_session_is_closed(
    connect: Connect, liar: Liar, data: list[np.ndarray], truth: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread's query is answered, and nothing is written to a descriptor that is another's by now."""
    begun, closed = threading.Event(), threading.Event()
    check = Auditor._check

    def check_late(self: Auditor, answered: Answered) -> None:
        begun.set()
        assert closed.wait(WAIT_S)
        check(self, answered)

    monkeypatch.setattr(Auditor, "_check", check_late)
    liar.lie = lie_from(1)
    with ThreadPoolExecutor(1) as thread:
        with connect(audit=1.0) as session:
            query = thread.submit(session.query, data[0])
            assert begun.wait(WAIT_S)
        pipes = [os.pipe() for _ in range(30)]
        closed.set()
        assert right(query.result(WAIT_S), truth[0])
    assert isinstance(session.fault, WrongResultError)
    for reader, writer in pipes:
        os.close(writer)
        assert os.read(reader, 8) == b""
        os.close(reader)


def test_a_session_can_be_closed_during_a_query(
    connect: Connect, liar: Liar, data: list[np.ndarray], truth: list[bytes]
) -> None:
    """Another thread's query ends first, and those that follow run without a server."""
    asked, go_on = threading.Event(), threading.Event()

    def wait(number: int, outputs: list[np.ndarray]) -> None:
        asked.set()
        go_on.wait(WAIT_S)

    liar.lie = wait
    with ThreadPoolExecutor(1) as thread:
        with connect(audit=0.0) as session:
            query = thread.submit(session.query, data[0])
            assert asked.wait(WAIT_S)
            threading.Timer(0.2, go_on.set).start()
        assert right(query.result(WAIT_S), truth[0])
        assert right(session.query(data[1]), truth[1])


def test_one_lie_is_enough(
    connect: Connect, liar: Liar, data: list[np.ndarray], truth: list[bytes], evidence_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Of lies that waited for an audit, one is evidence enough; what follows is not audited."""
    with connect(audit=0.5) as session:
        auditor = session._offloading.executor._auditor
        assert auditor is not None
        has_time = False
        monkeypatch.setattr(auditor._sampler, "has_time", lambda: has_time)
        monkeypatch.setattr(secrets, "randbits", lambda bits: 0)
        liar.lie = lie_from(1)
        for each in data[:3]:
            assert not session.query(each).audited
        assert session.fault is None
        has_time = True
        answers = [session.query(each) for each in data]
        assert isinstance(session.fault, WrongResultError)
    assert len(list(evidence_folder.iterdir())) == 1
    assert [answer.audited for answer in answers] == [True] + [False] * (len(data) - 1)
    assert all_right(answers, truth)


# --- Every way that stages go to a server and back -------------------------------------------------------------------

JOINED = network_of(
    "Convolution convolution_param { num_output: 192 kernel_size: 1 }",
    "Convolution convolution_param { num_output: 192 kernel_size: 1 }",
    "Softmax",
    shape="dim: 1 dim: 64 dim: 32 dim: 32",
)
JOINED_WEIGHTS = random_weights(JOINED, scale=0.05)
JOINED_GRAPH = ExecutionGraph(
    stages=tuple(stage.name for stage in JOINED.stages), client_ms=np.full(4, 200.0), server_ms=np.ones(4),
    upload_ms=np.ones(4), load_ms=np.zeros(4), up_ms=np.array([1, 1, 100, 1, 1.0]), down_ms=np.ones(5),
    offloadable=np.array([False, True, True, False]),
    cuts=[SlicePlan(stage, 192, 48, 0.0, 0.0, 1.0) for stage in (1, 2)],
)  # fmt: skip

# What is uploaded, and after which stages the server's results come down in a query, in their order.
WAYS: dict[str, tuple[list[Piece], list[int]]] = {
    "whole stages": ([1, 2, 4], [2, 4]),
    "a part": ([SLICES[0]], [3]),
    "a part that is joined": ([SLICES[0], 4], [4]),
    "a part of what stayed": ([1, 2, SLICES[0]], [2, 3]),
    "both": ([1, 2, SLICES[0], 4], [2, 4]),
    "two parts, one after the other": ([Slice(1, 0, 144), Slice(2, 0, 144)], [1, 2]),
}


class Way:
    """A session in which stages go that way, its input, and what the network makes of it."""

    def __init__(self, offloading: Offloading, net: engine.StageNet, data: np.ndarray) -> None:
        self.offloading = offloading
        self._data = data
        self._truth = [output.tobytes() for output in engine.forward(net, data)]

    def ask(self) -> tuple[bool, bool]:
        """Query: whether a server took part, and whether it was audited. The outputs are right in any case."""
        done = self.offloading.executor.execute(self._data)
        assert [output.tobytes() for output in done.outputs] == self._truth
        return any(segment.where != "client" for segment in done.segments), done.audited


@contextlib.contextmanager
def session_of(way: str, address: str) -> Iterator[Way]:
    joined = way.startswith("two")
    network, weights, graph = (JOINED, JOINED_WEIGHTS, JOINED_GRAPH) if joined else (NETWORK, WEIGHTS, GRAPH)
    pieces = WAYS[way][0]
    net = engine.load_network(network, weights)
    client = Client(address, timeouts=PATIENT)
    try:
        offloading = Offloading(
            network, net, graph, client, [extract(network, pieces, weights)], [pieces],
            slice_stages(network, [pieces], net), auditor=Auditor(network, net, address, 1.0),
        )  # fmt: skip
        offloading.start_upload()
        wait_for(offloading.uploaded, "the upload")
        yield Way(offloading, net, np.random.default_rng(2).standard_normal(network.input_shape).astype(np.float32))
    finally:
        client.close()


@pytest.mark.parametrize("way", WAYS)
def test_an_honest_server_is_not_accused(way: str, liar: Liar) -> None:
    with session_of(way, liar.address) as session:
        assert [session.ask() for _ in range(4)] == [(True, True)] * 4
        assert session.offloading.fault is None
    assert len(liar.results) == 4 * len(WAYS[way][1])


@pytest.mark.parametrize(("way", "which"), [(way, which) for way in WAYS for which in range(len(WAYS[way][1]))])
def test_a_lie_is_caught_wherever_it_is(way: str, which: int, liar: Liar) -> None:
    """One value by one ulp, in one of the second query's results: of whole stages, in the middle and at the end, of
    some channels, of a stage that was joined."""
    stages = WAYS[way][1]

    def lie(number: int, outputs: list[np.ndarray]) -> None:
        if len(liar.results) == len(stages) + which + 1:
            an_ulp(outputs[0])

    liar.lie = lie
    with session_of(way, liar.address) as session:
        assert [session.ask() for _ in range(3)] == [(True, True), (False, True), (False, False)]
        fault = session.offloading.fault
    assert isinstance(fault, WrongResultError)
    assert f"..{stages[which]} (" in str(fault)
    assert "1 of " in str(fault)


@pytest.fixture(scope="module")
def sliceable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like AlexNet, and small: its planners cut it."""
    network = network_of(
        "Convolution convolution_param { num_output: 200 kernel_size: 3 }",
        "*ReLU",
        "LRN lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 }",
        "Pooling pooling_param { kernel_size: 2 stride: 2 }",
        "InnerProduct inner_product_param { num_output: 600 }",
        "*ReLU",
        "InnerProduct inner_product_param { num_output: 10 }",
        "Softmax",
        shape="dim: 1 dim: 32 dim: 14 dim: 14",
    )
    weights = random_weights(network, scale=0.05)
    folder = tmp_path_factory.mktemp("sliceable")
    path = folder / "net.prototxt"
    path.write_text(extract_net(network, 0, len(network.stages) - 1).prototxt)
    path.with_suffix(".caffemodel").write_bytes(serialise("net", network.layers, weights).tobytes())
    (folder / "slow.txt").write_text("".join(f"{layer.index} {layer.name} 30.0\n" for layer in network.layers))
    return path


@pytest.mark.parametrize("algorithm", sorted(PLANNERS))
def test_no_plan_of_an_honest_server_is_accused(algorithm: str, sliceable: Path, server: str) -> None:
    """While it is uploaded, too: stages of every state."""
    network = ionn.load_network(sliceable)
    rng = np.random.default_rng(3)
    link = Link(server, mbps=60)
    seen: set[str] = set()
    try:
        with ionn.connect(
            sliceable, link.address, client=sliceable.with_name("slow.txt"), mbps=60, algorithm=algorithm, audit=1.0
        ) as session:
            ended = False
            while not ended:
                ended = session._offloading.uploaded()
                answer = session.query(rng.standard_normal(network.input_shape, np.float32))
                seen |= set(places(answer))
                assert session.fault is None
                assert answer.audited == (set(places(answer)) != {"client"})
    finally:
        link.stop()
    assert seen == {"client", "server", "both"} if algorithm.startswith("sliced") else {"client", "server"}


# --- The command -----------------------------------------------------------------------------------------------------


def classify(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return command("classify", "coffee", *arguments)


def test_classify(liar: Liar, tiny_files: Path, slow_client: str, tmp_path: Path, evidence_folder: Path) -> None:
    alone: dict[str, Any] = json.loads(classify("--model", tiny_files, "--json").stdout)
    connected = ("--connect", liar.address, "--client", slow_client, "--mbps", "80")
    options = ("--model", tiny_files, *connected, "--audit", "1")
    good = classify(*options)
    assert good.returncode == 0, good.stderr
    assert ", 100% of the plan uploaded, audited\n" in good.stdout
    assert not evidence_folder.parents[1].exists()
    liar.lie = lie_from(1)
    bad = classify(*options, "--json")
    assert bad.returncode == 1
    shown = json.loads(bad.stdout)
    assert shown["audited"]
    assert shown["classes"] == alone["classes"]
    (path,) = evidence_folder.iterdir()
    assert bad.stderr.startswith(f"ionn: {liar.address}: the server gave a wrong result for stages 1..")
    assert bad.stderr.endswith(f"; the evidence is {path}\n")
    assert bad.stderr.count("\n") == 1
    assert classify(*options, "--audit-tolerance", "0.001").returncode == 0
    labels = tmp_path / "labels.txt"
    labels.write_text("a\nb\n")
    mistaken = classify(*options, "--labels", labels)
    assert (mistaken.returncode, mistaken.stdout) == (2, "")
    assert mistaken.stderr == "ionn: 2 labels for the 10 classes of tiny; give one a line\n"
    assert len(list(evidence_folder.iterdir())) == 1  # it was not asked
    liar.lie = honest
    unaudited = classify("--model", tiny_files, "--audit", "1")
    assert (unaudited.returncode, unaudited.stdout) == (2, "")
    assert "--audit" in unaudited.stderr
