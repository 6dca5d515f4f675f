"""One session misbehaves, with messages that no client sends: it gets an error that says why; nobody else notices."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zmq

from ionn.client.connection import ping
from ionn.client.session import FAULTS, Client
from ionn.errors import InputError, ServerError, ServerUnreachableError
from ionn.model.network import Network
from ionn.model.partial_net import Channels, NetStage, PartialNet, extract
from ionn.protocol import messages
from ionn.protocol.messages import PROTOCOL, PartitionHeader
from ionn.server.limits import Limits
from tests.support.raw import Raw, upload_messages
from tests.support.world import PATIENT, SHORT, WAIT_S, Server, World, at_server, bit_equal, recover, wait_for


@pytest.fixture(scope="module")
def steady() -> Iterator[Server]:
    """A server for the tests of this module that lets sessions work as long as a busy machine needs."""
    server = Server("--sessions", "200", "--sessions-per-client", "200")
    yield server
    server.end_well()


@pytest.fixture
def raw(steady: Server) -> Iterator[Raw]:
    with Raw(steady.address) as raw:
        yield raw


def error(raw: Raw, *sent: messages.Message | list[bytes]) -> messages.Error:
    answer = raw.ask(raw.control, *sent)
    assert isinstance(answer, messages.Error), answer
    return answer


def alive(raw: Raw) -> bool:
    return isinstance(raw.ask(raw.control, messages.Ping()), messages.Pong)


def net_header(text: str) -> PartitionHeader:
    """The header of a partition that is a whole network."""
    network = Network.from_text(text, "strange")
    weights = {
        layer.name: tuple(np.zeros(shape, np.float32) for shape in layer.weight_shapes) for layer in network.layers
    }
    return upload_messages(extract(network, range(1, len(network.stages)), weights))[0]


INPUT = 'layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ {} }} }} }}'


def input_layer(*shape: int) -> str:
    return INPUT.format(" ".join(f"dim: {size}" for size in shape))


def test_another_client_takes_the_session_over(steady: Server, world: World) -> None:
    """Whoever has the token has the session. The first owner does not fight for it, but begins another one."""
    with world.client(steady.address) as (client, session):
        session.start_upload()
        wait_for(session.uploaded, "the upload")
        records = [session.query()]
        with Raw(steady.address) as thief:
            welcome = thief.ask(thief.connect(), messages.Hello(PROTOCOL, "control", client._session))
        assert isinstance(welcome, messages.Welcome)
        assert [(held.partition, held.ready) for held in welcome.held] == [(0, True), (1, True), (2, True)]
        wait_for(lambda: client._session != welcome.session, "another session")
        records += recover(session)
    assert bit_equal(records)


def test_two_clients_with_one_identity(steady: Server, world: World) -> None:
    """The identity that a client gives itself has no meaning."""
    context = zmq.Context()
    sockets = [context.socket(zmq.DEALER) for _ in range(2)]
    try:
        for socket in sockets:
            socket.linger = 0
            socket.identity = b"twin"
            socket.connect(steady.address)
            socket.send_multipart(messages.Hello(PROTOCOL, "control").frames())
        welcomes = []
        for socket in sockets:
            assert socket.poll(int(WAIT_S * 1e3))
            welcomes.append(messages.decode(socket.recv_multipart()))
        first, second = welcomes
        assert isinstance(first, messages.Welcome)
        assert isinstance(second, messages.Welcome)
        assert first.session != second.session
    finally:
        context.destroy(linger=0)
    world.check_health(steady.address)


def test_a_partition_is_taken_once(raw: Raw, world: World) -> None:
    header, chunks, end = upload_messages(world.partitions[0])
    raw.upload(world.partitions[0])
    renamed = dataclasses.replace(header, partition=7)
    assert "announced before" in error(raw, header).message
    assert "stage 1 was uploaded before" in error(raw, renamed).message
    assert "not arriving" in error(raw, chunks[0]).message
    assert "not arriving" in error(raw, end).message
    query = messages.Query(1, 1, 1, (world.input_of(1).tobytes(),))
    assert isinstance(raw.ask(raw.control, query), messages.Result)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_as_they_come(raw: Raw, world: World, value: float) -> None:
    weights = {name: tuple(blob.copy() for blob in blobs) for name, blobs in world.weights.items()}
    weights["conv1"][1][3] = value
    header, chunks, _ = upload_messages(extract(world.network, [1], weights))
    assert raw.ask(raw.control, header) == messages.Ack(0, 0)
    refused = error(raw, *chunks)
    assert refused.code == messages.ERROR_PARTITION
    assert "blob 1 of layer 'conv1' has weights that are not finite" in refused.message
    assert "not arriving" in error(raw, chunks[0]).message


def test_a_refused_partition_ends_the_upload_and_nothing_else(steady: Server, world: World) -> None:
    weights = {name: tuple(blob.copy() for blob in blobs) for name, blobs in world.weights.items()}
    weights["fc1"][0][5] = np.nan
    with world.client(steady.address) as (client, session):
        session.offloading._partitions = [
            world.partitions[0],
            extract(world.network, [2, 3, 4], weights),
            world.partitions[2],
        ]
        session.start_upload()
        wait_for(session.uploaded, "the refusal")
        assert isinstance(session.offloading.fault, ServerError)
        assert "layer 'fc1' has weights that are not finite" in str(session.offloading.fault)
        # What came before is still used.
        wait_for(lambda: at_server(session.query()), "the first partition to be used")
        wait_for(lambda: client.fault is None, "the connection to be back")


PRODUCT = """
layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param { num_output: 10000 } }
"""
LIMITS = {
    "blob": (
        input_layer(1, 3, 2000, 2000) + ' layer { name: "r" type: "ReLU" bottom: "data" top: "r" }',
        "48.0 MB; the server's --blob-mb is 32",
    ),
    "weights": (
        input_layer(1, 30_000) + PRODUCT,
        "--weights-mb is 1000",
    ),
    "memory": (
        input_layer(1, 64, 350, 350)
        + "".join(
            f' layer {{ name: "r{at}" type: "ReLU" bottom: "{"data" if at == 0 else f"r{at - 1}"}" top: "r{at}" }}'
            for at in range(70)
        ),
        "--memory-mb is 2000",
    ),
    "layers": (
        input_layer(1, 1)
        + "".join(
            f' layer {{ name: "r{at}" type: "ReLU" bottom: "{"data" if at == 0 else f"r{at - 1}"}" top: "r{at}" }}'
            for at in range(2001)
        ),
        "--layers is 2000",
    ),
    "files": (
        input_layer(1, 1)
        + 'layer { name: "w" type: "HDF5Output" bottom: "data" hdf5_output_param { file_name: "/etc/passwd" } }',
        "it reads or writes files",
    ),
    "code": (
        input_layer(1, 1) + ' layer { name: "p" type: "Python" bottom: "data" top: "p" python_param { module: "os" } }',
        "runs code",
    ),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_what_a_net_may_be_is_limited(limit: str, raw: Raw, world: World) -> None:
    text, reason = LIMITS[limit]
    good = upload_messages(world.partitions[0])[0]
    nets = (dataclasses.replace(good.nets[0], prototxt=text),)
    refused = error(raw, dataclasses.replace(good, nets=nets))
    assert refused.code == messages.ERROR_PARTITION
    assert reason in refused.message
    assert "\n" not in refused.message
    assert alive(raw)
    assert raw.ask(raw.control, good) == messages.Ack(0, 0)


def test_a_slice_of_a_net_without_layers_is_refused(raw: Raw) -> None:
    net = PartialNet(input_layer(1, 9), "data", (NetStage(1, 0, ("data",)),), Channels(0, 1, 2))
    refused = error(raw, PartitionHeader(0, (net,), (), 1))
    assert refused.code == messages.ERROR_PARTITION
    assert "stage 1: channels 0 to 1 are not what its net makes" in refused.message
    assert alive(raw)


def test_the_limits_are_the_sessions_not_the_partitions(raw: Raw) -> None:
    """Many small partitions are not more than one large one."""
    header = net_header(input_layer(1, 10_000) + PRODUCT)
    stages = header.nets[0].stages
    for index in range(2):
        cuts = tuple(dataclasses.replace(stage, index=stage.index + 10 * index) for stage in stages)
        nets = (dataclasses.replace(header.nets[0], stages=cuts),)
        assert raw.ask(raw.control, dataclasses.replace(header, partition=index, nets=nets)) == messages.Ack(index, 0)
    cuts = tuple(dataclasses.replace(stage, index=stage.index + 20) for stage in stages)
    nets = (dataclasses.replace(header.nets[0], stages=cuts),)
    assert "--weights-mb is 1000" in error(raw, dataclasses.replace(header, partition=2, nets=nets)).message


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([b" " * 1_100_000], "a header of 1100000 bytes; the server's --header-kb is 1000"),
        ([b"{}"] + [b""] * 3000, "more frames than the server's --frames 2000"),
        ([b"{}", bytes(34_000_000)], "a message of 34000002 bytes or more; the server's --blob-mb is 32"),
    ],
    ids=["header", "frames", "bytes"],
)
def test_what_a_message_may_be_is_limited(frames: list[bytes], reason: str, raw: Raw, world: World) -> None:
    """Beyond that the connection ends, and not the session."""
    header, chunks, _ = upload_messages(world.partitions[1])
    assert raw.ask(raw.control, header) == messages.Ack(0, 0)
    refused = error(raw, frames)
    assert refused.code == messages.ERROR_PROTOCOL
    assert reason in refused.message
    again = raw.connect()
    welcome = raw.ask(again, messages.Hello(PROTOCOL, "control", raw.session))
    assert isinstance(welcome, messages.Welcome)
    assert raw.ask(again, chunks[0]) == messages.Ack(0, 200_000)


def test_a_header_may_be_as_large_as_the_limit_can_be() -> None:
    most_kb = Limits.__dataclass_fields__["header_kb"].metadata["most"]
    server = Server("--header-kb", str(most_kb))
    with Raw(server.address) as raw:
        assert raw.ask(raw.control, [b'{"type": "ping"}'.ljust(int(most_kb * 1e3))]) == messages.Pong()
    server.end_well()


def test_how_much_a_chunk_may_be_is_limited(raw: Raw, world: World) -> None:
    header, chunks, _ = upload_messages(world.partitions[1])
    assert raw.ask(raw.control, header) == messages.Ack(0, 0)
    large = messages.make_chunk(0, 0, [memoryview(bytes(1_000_001))])
    assert "more than 1000000 bytes" in error(raw, large).message
    assert raw.ask(raw.control, chunks[0]) == messages.Ack(0, 200_000)


@pytest.fixture
def small() -> Iterator[Server]:
    """A server with little room, and as much patience as a busy machine needs. It has no session."""
    server = Server("--memory-mb", "100", "--sessions", "2", "--idle-s", "20")
    # The one that tried it may be ending, and a goodbye that a busy machine did not send in time is not waited for.
    wait_for(lambda: ping(server.address, timeout_s=WAIT_S).sessions == 0, "the first session to end")
    yield server
    server.end_well()


LARGE = (
    input_layer(1, 64, 310, 310)
    + ' layer { name: "norm" type: "LRN" bottom: "data" top: "norm" lrn_param { norm_region: WITHIN_CHANNEL } }'
)


def test_out_of_memory_names_the_layers_and_ends_that_session_only(small: Server) -> None:
    """LRN within channels holds four more blobs than it shows. Caffe aborts where it gets no memory."""
    with Raw(small.address) as raw:
        header, _, _ = upload_messages(extract(Network.from_text(LARGE, "large"), [1], {}))
        assert raw.ask(raw.control, header) == messages.Ack(0, 0)
        died = raw.answer(raw.control)
    assert isinstance(died, messages.Error)
    assert died.code == messages.ERROR_CRASHED
    assert "while trying layers 'norm' to 'norm'" in died.message
    assert ping(small.address, timeout_s=WAIT_S).sessions == 0


def test_a_model_that_crashes_every_session_is_given_up(small: Server) -> None:
    client = Client(small.address, timeouts=dataclasses.replace(SHORT, connect_s=WAIT_S))
    try:
        upload = client.start_upload([extract(Network.from_text(LARGE, "large"), [1], {})], time.monotonic)
        wait_for(lambda: upload.error is not None, "it to give up")
        assert isinstance(upload.error, ServerError)
        assert upload.error.code == messages.ERROR_CRASHED
        assert "'norm'" in str(upload.error)
        wait_for(lambda: client.fault is None, "the connection to be back")
        assert upload.ready == 0
    finally:
        client.close()


def test_bytes_that_are_never_right_are_given_up(steady: Server, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though queries on the partition before them go well all the while."""
    sent = 0

    def end(index: int, sha256: str) -> messages.PartitionEnd:
        nonlocal sent
        sent += index == 1
        return messages.PartitionEnd(index, "0" * 64 if index == 1 else sha256)

    monkeypatch.setattr("ionn.protocol.sender.PartitionEnd", end)
    data = world.input_of(1)
    client = Client(steady.address, timeouts=PATIENT)
    try:
        upload = client.start_upload(world.partitions, time.monotonic)

        def given_up() -> bool:
            with contextlib.suppress(*FAULTS):
                client.run(1, 1, data)
            return upload.error is not None

        wait_for(given_up, "it to give up")
        assert isinstance(upload.error, ServerError)
        assert upload.error.code == messages.ERROR_DAMAGED
        assert sent == 3
    finally:
        client.close()


def test_a_silent_session_ends() -> None:
    server = Server("--idle-s", "2")
    with Raw(server.address) as raw:
        ended = raw.answer(raw.control)
    assert isinstance(ended, messages.Error)
    assert ended.code == messages.ERROR_SESSION
    assert "nothing was heard of the client for 2 s" in ended.message
    wait_for(lambda: server.session_processes() == set(), "the session's process to be gone")
    server.end_well()


def test_a_full_server_says_so(small: Server) -> None:
    clients = [Client(small.address, timeouts=dataclasses.replace(SHORT, connect_s=WAIT_S)) for _ in range(2)]
    try:
        assert not ping(small.address, timeout_s=WAIT_S).room
        with pytest.raises(ServerError, match="2 sessions already"):
            Client(small.address)
    finally:
        for client in clients:
            client.close()


def test_no_query_begins_while_a_client_closes(steady: Server, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread raises them one after the other, and never lets the connection rest."""
    client, data = Client(steady.address), world.input_of(1)
    assert client.start_upload(world.partitions[:1], time.monotonic).wait_ready(1, WAIT_S)
    begun_s = [0.0]

    def query() -> None:
        with contextlib.suppress(*FAULTS):
            while True:
                now_s = time.monotonic()
                client.run(1, 1, data)
                begun_s.append(now_s)

    thread = threading.Thread(target=query)
    thread.start()
    wait_for(lambda: len(begun_s) > 3, "some queries")
    stop, closing_s = client._stopped.set, [math.inf]

    def stop_and_look() -> None:
        stop()
        closing_s.append(time.monotonic())

    monkeypatch.setattr(client._stopped, "set", stop_and_look)
    client.close()
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert begun_s[-1] <= closing_s[-1] < math.inf


def test_a_client_is_closed_more_than_once(steady: Server, world: World) -> None:
    """By several threads at once, and after it was left: each call ends when the client is closed."""
    for left in (False, True):
        client = Client(steady.address)
        if left:
            client.leave(ServerError(messages.ERROR_QUERY, "enough"))
        raised: list[BaseException] = []

        def close(client: Client = client, raised: list[BaseException] = raised) -> None:
            try:
                client.close()
            except BaseException as error:
                raised.append(error)

        threads = [threading.Thread(target=close) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        client.close()
        assert (raised, [thread.is_alive() for thread in threads]) == ([], [False] * 4)
        with pytest.raises(ServerUnreachableError, match="enough" if left else "the client was closed"):
            client.run(1, 1, world.input_of(1))


def test_a_session_that_is_gone_when_its_client_comes_back(small: Server, world: World) -> None:
    """The client begins anew, and the upload with it."""
    with Raw(small.address) as raw:
        raw.bye()
        wait_for(lambda: small.session_processes() == set(), "the session to end")
        answer = raw.ask(raw.connect(), messages.Hello(PROTOCOL, "control", raw.session))
    assert isinstance(answer, messages.Error)
    assert answer.code == messages.ERROR_SESSION
    with world.client(small.address) as (client, session):
        session.start_upload()
        wait_for(session.uploaded, "the upload")
        (mine,) = small.session_processes()
        os.kill(mine, signal.SIGKILL)
        assert bit_equal(recover(session))
        wait_for(lambda: client.fault is None, "the connection to be back")


def test_the_fork_server_is_replaced(world: World) -> None:
    server = Server()
    world.check_health(server.address)
    with world.client(server.address) as (_, session):
        session.start_upload()
        wait_for(session.uploaded, "the upload")
        forked = server.session_processes()
        for process in server.helpers():
            os.kill(process, signal.SIGKILL)
        records = [session.query()]

        def new_session() -> set[int]:
            records.append(session.query())
            return server.session_processes() - forked

        wait_for(new_session, "a new session")
        records += recover(session)
    wait_for(lambda: not any(map(_exists, forked)), "the orphan to be ended")
    assert bit_equal(records)
    assert server.stop()[0] == 0


def test_the_fork_server_dies_while_a_session_starts(world: World) -> None:
    server = Server()
    with Raw(server.address) as raw:
        for process in server.helpers():
            os.kill(process, signal.SIGSTOP)

        def kill() -> None:
            for process in server.helpers():
                os.kill(process, signal.SIGKILL)

        def kill_when_one_starts() -> None:
            wait_for(lambda: ping(server.address, timeout_s=WAIT_S).sessions == 2, "a session to start")
            kill()

        killer = threading.Thread(target=kill_when_one_starts)
        killer.start()
        with pytest.raises(ServerError, match="cannot start a session") as refused:
            Client(server.address, timeouts=dataclasses.replace(SHORT, connect_s=WAIT_S))
        killer.join()
        assert refused.value.code == messages.ERROR_BUSY
        world.check_health(server.address)
        ended = raw.answer(raw.control)
        assert isinstance(ended, messages.Error)
        assert "ended with the fork server" in ended.message
    assert server.stop()[0] == 0


# Python runs this at its start. As long as `path` is there, the system has no memory for another process.
NO_FORKS = """
import errno, os, pathlib

fork, refused = os.fork, pathlib.Path({path!r})

def fork_or_fail():
    if not refused.exists():
        return fork()
    with refused.open("a") as file:
        file.write(".")
    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

os.fork = fork_or_fail
"""


def test_a_client_waits_for_a_system_that_makes_no_process(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its upload is not ended, however often it tries in vain."""
    refused = tmp_path / "refused"
    (tmp_path / "sitecustomize.py").write_text(NO_FORKS.format(path=str(refused)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    server = Server()
    wait_for(lambda: ping(server.address, timeout_s=WAIT_S).sessions == 0, "the first session to end")
    with world.client(server.address, dataclasses.replace(SHORT, connect_s=WAIT_S)) as (client, session):
        session.start_upload()
        refused.touch()
        (mine,) = server.session_processes()
        os.kill(mine, signal.SIGKILL)
        wait_for(lambda: refused.stat().st_size > 5, "the client to try again and again")
        assert isinstance(client.fault, ServerError)
        assert client.fault.code == messages.ERROR_BUSY
        assert "cannot start a session: Cannot allocate memory" in str(client.fault)
        refused.unlink()
        assert bit_equal(recover(session))
    server.end_well()


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_sigterm_lets_a_running_query_finish(world: World) -> None:
    server = Server("--stop-s", "60")
    with Raw(server.address) as raw:
        raw.upload(world.partitions[0])
        (process,) = server.session_processes()
        os.kill(process, signal.SIGSTOP)
        raw.control.send_multipart(messages.Query(1, 1, 1, (world.input_of(1).tobytes(),)).frames())
        # What comes later is answered later: the server has taken the query.
        assert isinstance(raw.ask(raw.connect(), messages.Ping()), messages.Pong)
        server.strike(signal.SIGTERM)
        refused = raw.ask(raw.connect(), messages.Hello(PROTOCOL, "control"))
        assert isinstance(refused, messages.Error)
        assert refused.code == messages.ERROR_STOPPING
        assert not ping(server.address, timeout_s=WAIT_S).room
        os.kill(process, signal.SIGCONT)
        assert isinstance(raw.answer(raw.control), messages.Result)
    code, said = server.stop()
    assert code == 0
    assert "stopped" in said


def test_sigterm_ends_what_does_not_finish(world: World) -> None:
    server = Server("--stop-s", "0.5")
    with world.client(server.address) as (_, session):
        session.start_upload()
        wait_for(session.uploaded, "the upload")
        (process,) = server.session_processes()
        os.kill(process, signal.SIGSTOP)
        server.strike(signal.SIGTERM)
        records = [session.query() for _ in range(3)]
    assert server.stop()[0] == 0
    assert bit_equal(records)
    assert not _exists(process)


def test_a_server_needs_sensible_limits() -> None:
    from ionn.server.limits import Limits

    with pytest.raises(InputError, match=r"--blob-mb 0: give a number from 0.001 to 1000"):
        Limits(blob_mb=0)
