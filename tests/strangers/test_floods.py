"""Too much of everything: the front holds no more than its limits, and serves the others all the while."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from ionn.address import parse_address
from ionn.client.connection import ping
from ionn.model.network import Network
from ionn.model.partial_net import extract
from ionn.protocol import messages
from ionn.protocol.messages import PROTOCOL
from ionn.server.limits import Limits
from tests.strangers.honest import Honest, Watched, limits_bytes
from tests.strangers.peers import (
    HELLO,
    LONG,
    MORE,
    Stranger,
    ask,
    begin_session,
    bye,
    frame,
    message,
    send_partition,
    welcome,
)
from tests.support.machine import small_disk
from tests.support.raw import upload_messages
from tests.support.world import WAIT_S, Server, World, wait_for


def send_until_cut(peer: Stranger, data: bytes, times: int) -> int:
    """How often it went before the server closed the connection or took no more for two seconds."""
    peer.socket.settimeout(2)
    for sent in range(times):
        try:
            peer.socket.sendall(data)
        except (ConnectionError, TimeoutError):
            return sent
    peer.socket.settimeout(WAIT_S)
    return times


# --- Frames -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mb", [2, pytest.param(10, marks=pytest.mark.long), pytest.param(60, marks=pytest.mark.long)])
@pytest.mark.parametrize("session", [False, True], ids=["no session", "a session"])
def test_a_message_of_empty_frames(watched: Watched, session: bool, mb: int) -> None:
    """On the landed state the front answered nobody for 7, 33 and more than 60 s, and held 0.7, 3.4 and 20 GB."""
    with Stranger(watched.address) as peer, watched.honest.all_the_while():
        token = welcome(peer) if session else ""
        if not session:
            peer.shake_hands()
        block = frame(b"", MORE) * 500_000
        assert send_until_cut(peer, block, mb) < mb or peer.closed()
    if session:
        bye(watched.address, token)
    watched.end(limits_bytes(int(session)))


@pytest.mark.parametrize("session", [False, True], ids=["no session", "a session"])
def test_an_endless_message(watched: Watched, session: bool) -> None:
    """Large frames, each followed by another one."""
    with Stranger(watched.address) as peer, watched.honest.all_the_while():
        token = welcome(peer) if session else ""
        if not session:
            peer.shake_hands()
        assert send_until_cut(peer, frame(bytes(1_000_000), MORE), 500) < 100
    if session:
        bye(watched.address, token)
    watched.end(limits_bytes(int(session)))


def test_announced_frames_cost_nothing_until_they_come(watched: Watched) -> None:
    """Twenty connections of one session announce 32 MB each."""
    with contextlib.ExitStack() as opened:
        first = opened.enter_context(Stranger(watched.address))
        token = welcome(first)
        for number in range(20):
            peer = opened.enter_context(Stranger(watched.address, 2 + number % 3))
            welcome(peer, token)
            peer.send(frame(b"{}", MORE) + bytes([LONG]) + (32_000_000).to_bytes(8) + bytes(10_000))
        watched.honest.check()
    bye(watched.address, token)
    watched.end(20_000_000)


def test_small_messages_without_end(watched: Watched) -> None:
    """With a session and without one, as fast as they go."""
    with Stranger(watched.address) as inside, Stranger(watched.address, 3) as outside, watched.honest.all_the_while():
        token = welcome(inside)
        outside.shake_hands()
        for _ in range(20):
            for peer in (inside, outside):
                with contextlib.suppress(OSError):
                    peer.socket.settimeout(0.2)
                    peer.socket.sendall(message(messages.Ping()) * 1000)
    bye(watched.address, token)
    watched.end(limits_bytes(1))


# --- Credit -----------------------------------------------------------------------------------------------------------


def test_what_is_under_way_waits_in_the_client(watched: Watched) -> None:
    """Beyond the window nothing is refused or lost: it is taken when there is room."""
    with Stranger(watched.address) as control, Stranger(watched.address) as peer:
        token, process = begin_session(watched.server, control)
        welcome(peer, token, "upload")
        os.kill(process, signal.SIGSTOP)
        chunk = message(messages.make_chunk(0, 0, [memoryview(bytes(500_000))]))
        peer.socket.setblocking(False)
        sent = memoryview(chunk * 60)
        while select.select([], [peer.socket], [], 1.0)[1]:
            sent = sent[peer.socket.send(sent) :]
        assert sent, "30 MB fit where 4 MB may be under way"
        watched.honest.check()
        os.kill(process, signal.SIGCONT)
        peer.socket.setblocking(True)
        peer.socket.settimeout(WAIT_S)
        peer.socket.sendall(sent)
        for _ in range(60):
            answer = peer.answer()
            assert isinstance(answer, messages.Error)
            assert answer.code == messages.ERROR_DAMAGED
        control.send(message(messages.Bye()))
        assert isinstance(control.answer(), messages.Error)
    watched.end(limits_bytes(1))


@pytest.mark.parametrize("count", [20, pytest.param(100, marks=pytest.mark.long)])
def test_reconnections_do_not_reset_credit(watched: Watched, count: int) -> None:
    """On the landed state a hundred of them had the front hold 3.1 GB."""
    with Stranger(watched.address) as first, watched.honest.all_the_while():
        token, process = begin_session(watched.server, first)
        os.kill(process, signal.SIGSTOP)
        query = message(messages.Query(1, 1, 1, (bytes(30_000_000),)))
        for number in range(count):
            with Stranger(watched.address, 2 + number % 5) as peer:
                peer.shake_hands()
                peer.send(message(messages.Hello(PROTOCOL, "control", token)))
                peer.socket.settimeout(0.05 if number else 2)
                with contextlib.suppress(OSError):
                    peer.socket.sendall(query)
        os.kill(process, signal.SIGCONT)
    bye(watched.address, token)
    watched.end(limits_bytes(1))


WIDE = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 1 dim: 5 dim: 5 } } }
layer { name: "wide" type: "Convolution" bottom: "data" top: "wide"
        convolution_param { num_output: 240000 kernel_size: 1 } }
layer { name: "out" type: "ReLU" bottom: "wide" top: "out" }
"""


def upload_wide(peer: Stranger) -> None:
    """A stage that makes 24 MB of 100 bytes."""
    network = Network.from_text(WIDE, "wide")
    weights = {"wide": (np.ones((240_000, 1, 1, 1), np.float32), np.zeros(240_000, np.float32))}
    send_partition(peer, extract(network, [1], weights))


@pytest.mark.parametrize("queries", [10, pytest.param(140, marks=pytest.mark.long)])
def test_a_session_that_never_reads(watched: Watched, queries: int) -> None:
    """On the landed state 140 queries of 100 bytes had the front hold 3.4 GB."""
    with Stranger(watched.address) as peer, watched.honest.all_the_while():
        token = welcome(peer)
        upload_wide(peer)
        peer.send(message(messages.Query(1, 1, 1, (np.ones(25, "<f4"),))) * queries)
        process = max(watched.server.session_processes(), key=lambda pid: sum(psutil.Process(pid).cpu_times()[:2]))
        wait_for(lambda: psutil.Process(process).status() == psutil.STATUS_SLEEPING, "the session to be waited for")
        time.sleep(0.5)
    bye(watched.address, token)
    watched.end(limits_bytes(1))


def test_one_answer_of_many_outputs(watched: Watched) -> None:
    """A cut that has one output sixty times; on the landed state its answers had the front hold 5.7 GB."""
    network = Network.from_text(WIDE, "wide")
    weights = {"wide": (np.ones((240_000, 1, 1, 1), np.float32), np.zeros(240_000, np.float32))}
    header, chunks, end = upload_messages(extract(network, [1], weights))
    (net,) = header.nets
    (cut,) = net.stages
    cut = dataclasses.replace(cut, outputs=cut.outputs * 60)
    header = dataclasses.replace(header, nets=(dataclasses.replace(net, stages=(cut,)),))
    with Stranger(watched.address) as peer, watched.honest.all_the_while():
        token = welcome(peer)
        if not isinstance(ask(peer, header), messages.Error):  # a server may refuse it
            for each in (*chunks, end):
                assert not isinstance(ask(peer, each), messages.Error)
            peer.send(message(messages.Query(1, 1, 1, (np.ones(25, "<f4"),))) * 4)
            peer.receive(1_000_000)
            time.sleep(0.5)
    bye(watched.address, token)
    watched.end(limits_bytes(1))


# --- Connections ------------------------------------------------------------------------------------------------------


def connect_many(address: str, count: int, sources: int) -> list[socket.socket]:
    """Connections that say nothing, as fast as they go."""
    to = parse_address(address)
    opened = []
    for number in range(count):
        peer = socket.socket()
        peer.setblocking(False)
        peer.bind((f"127.0.0.{2 + number % sources}", 0))
        code = peer.connect_ex(to)
        assert code in (0, errno.EINPROGRESS), os.strerror(code)
        opened.append(peer)
    return opened


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 6000
    if resource.RLIM_INFINITY != hard < wanted:
        pytest.skip(f"the system allows {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(("count", "sources"), [(1000, 1), (1500, 20), pytest.param(5000, 20, marks=pytest.mark.long)])
def test_many_connections_at_once(watched: Watched, many_descriptors: None, count: int, sources: int) -> None:
    """On the landed state the server ended when its descriptors did. An honest newcomer finds its place."""
    limits = Limits()
    opened = []
    try:
        with watched.honest.all_the_while():
            opened = connect_many(watched.address, count, sources)
            newcomer = Honest(watched.address, watched.world)
            newcomer.check()
            most = min(limits.pending, sources * limits.pending_per_address)
            assert watched.connections() <= most + 2 * 2 + 1
            newcomer.close()
    finally:
        for peer in opened:
            peer.close()
    watched.end(limits_bytes(1))


def test_a_flood_of_one_address_evicts_nobody_else(own: Callable[..., Watched]) -> None:
    """Not one that has no session either, as long as its time to begin one is not up."""
    watched = own("--hello-s", "600")
    with Stranger(watched.address, 9) as patient:
        patient.shake_hands()
        assert isinstance(ask(patient, messages.Ping()), messages.Pong)
        opened = connect_many(watched.address, 400, 1)
        wait_for(lambda: watched.connections() <= 128 + 2, "the oldest ones to be closed")
        assert isinstance(ask(patient, messages.Ping()), messages.Pong)
        for peer in opened:
            peer.close()
    watched.end(limits_bytes(0))


@pytest.mark.parametrize("option", ["--pending", "--pending-per-address"])
def test_a_client_comes_back_where_only_one_stranger_may_connect(own: Callable[..., Watched], option: str) -> None:
    """Its former connection has that place then."""
    watched = own(option, "1")
    with Stranger(watched.address) as former:
        token = welcome(former)
        with Stranger(watched.address) as again:
            assert welcome(again, token) == token
            taken = former.answer()
            assert isinstance(taken, messages.Error)
            assert taken.code == messages.ERROR_TAKEN
            assert isinstance(ask(again, messages.Ping()), messages.Pong)
    bye(watched.address, token)
    watched.end(limits_bytes(1))


def test_no_descriptors_left(watched: Watched) -> None:
    """Another part of the process has them. Who is connected stays so, others wait, and no processor is burnt."""
    front = watched.server.pid
    process = psutil.Process(front)
    limits = resource.prlimit(front, resource.RLIMIT_NOFILE)
    resource.prlimit(front, resource.RLIMIT_NOFILE, (process.num_fds(), limits[1]))
    opened = []
    try:
        opened = connect_many(watched.address, 50, 2)
        before_s, began_s = sum(process.cpu_times()[:2]), time.monotonic()
        while time.monotonic() < began_s + 1:
            watched.honest.check()
            time.sleep(0.05)
        assert sum(process.cpu_times()[:2]) - before_s < 0.5
    finally:
        resource.prlimit(front, resource.RLIMIT_NOFILE, limits)
        for peer in opened:
            peer.close()
    watched.end()


def test_limits_that_the_system_does_not_allow() -> None:
    command = ["prlimit", "--nofile=300:300", sys.executable, "-m", "ionn", "serve", "--bind", "tcp://127.0.0.1:0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 2
    assert "--pending 512 and --sessions 16 need 704 open files, and the system allows 300" in done.stderr
    assert done.stderr.count("\n") == 1


# --- No memory, no space, no time -------------------------------------------------------------------------------------


@pytest.fixture
def own(world: World) -> Iterator[Callable[..., Watched]]:
    """Makes servers with options of their own."""
    made: list[Watched] = []

    def make(*options: str) -> Watched:
        made.append(Watched(Server(*options), world))
        made[-1].begin()
        return made[-1]

    yield make
    for watched in made:
        watched.honest.close()
        code, said = watched.server.stop()
        assert code == 0, said


def test_no_memory(own: Callable[..., Watched]) -> None:
    """Who wants more than there is loses its connection, and nobody else."""
    watched = own()
    front = watched.server.pid
    data_bytes = watched._status("VmData")
    unlimited = resource.prlimit(front, resource.RLIMIT_DATA)
    with Stranger(watched.address) as peer:
        token = welcome(peer)
        resource.prlimit(front, resource.RLIMIT_DATA, (data_bytes + 8_000_000, unlimited[1]))
        try:
            peer.send(message(messages.Query(1, 1, 1, (bytes(30_000_000),))))
            assert peer.closed()
            watched.honest.check()
        finally:
            resource.prlimit(front, resource.RLIMIT_DATA, unlimited)
    bye(watched.address, token)
    watched.end(limits_bytes(1))


@pytest.fixture
def full_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder for temporary files on a file system without space."""
    with small_disk(tmp_path / "full", "64k") as folder:
        with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
        yield folder


def test_no_space_for_temporary_files(full_folder: Path, own: Callable[..., Watched]) -> None:
    """Sessions need none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(full_folder))
        watched = own()
    watched.honest.check()
    watched.end()


@pytest.mark.long
def test_a_client_that_does_not_read_is_gone_but_its_session_is_not(own: Callable[..., Watched]) -> None:
    """Its process waits for it and is not stuck, and it is not silent while it has answers to read."""
    watched = own("--unread-s", "6", "--stall-s", "4", "--idle-s", "5")
    with Stranger(watched.address) as peer, watched.honest.all_the_while():
        token = welcome(peer)
        upload_wide(peer)
        peer.send(message(messages.Query(1, 1, 1, (np.ones(25, "<f4"),))) * 4)
        wait_for(lambda: watched.connections() == 1, "the connection to be closed")
        with Stranger(watched.address) as again:
            assert welcome(again, token) == token
            assert isinstance(ask(again, messages.Ping()), messages.Pong)
            again.send(message(messages.Bye()))
            assert isinstance(again.answer(), messages.Error)
    watched.end(limits_bytes(1))


def test_a_frozen_fork_server_holds_up_nobody(own: Callable[..., Watched]) -> None:
    """Sessions begin later; those that are ended are not waited for."""
    watched = own("--sessions", "4", "--hello-s", "600")
    (forker,) = watched.server.helpers()
    with Stranger(watched.address) as victim, Stranger(watched.address) as newcomer:
        _, process = begin_session(watched.server, victim)
        os.kill(forker, signal.SIGSTOP)
        try:
            newcomer.shake_hands()
            newcomer.send(message(HELLO))
            watched.honest.check()
            os.kill(process, signal.SIGKILL)
            ended = victim.answer()
            assert isinstance(ended, messages.Error)
            assert ended.code == messages.ERROR_CRASHED
            watched.honest.check()
            assert ping(watched.address, timeout_s=WAIT_S).sessions == 2
        finally:
            os.kill(forker, signal.SIGCONT)
        assert isinstance(newcomer.answer(), messages.Welcome)
        newcomer.send(message(messages.Bye()))
        assert isinstance(newcomer.answer(), messages.Error)
    watched.end()


# Caffe's pooling looks at every element under its kernel: a minute for one query, and no memory.
LONG_QUERY = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 8 dim: 800 dim: 800 } } }
layer { name: "pool" type: "Pooling" bottom: "data" top: "pool" pooling_param { kernel_size: 200 stride: 1 } }
layer { name: "out" type: "ReLU" bottom: "pool" top: "out" }
"""


def test_nothing_outlives_a_front_that_is_killed_while_a_session_computes() -> None:
    """On the landed state the session's process and the fork server burnt a processor until they were found."""
    server = Server("--stall-s", "600")
    header, chunks, end = upload_messages(extract(Network.from_text(LONG_QUERY, "long"), [1], {}))
    with Stranger(server.address) as peer:
        welcome(peer)
        assert ask(peer, header) == messages.Ack(0, 0)
        (session,) = server.session_processes()
        started = psutil.Process(server.pid).children(recursive=True)
        process = psutil.Process(session)
        busy_s = sum(process.cpu_times()[:2])
        # It may be trying the stage already.
        for each in (*chunks, end, messages.Query(1, 1, 1, (bytes(4 * 8 * 800 * 800),))):
            peer.send(message(each))
        wait_for(lambda: sum(process.cpu_times()[:2]) > busy_s + 0.3, "the session to compute")
        server.strike(signal.SIGKILL)
    assert len(started) >= 2
    _, alive = psutil.wait_procs(started, WAIT_S)
    for orphan in alive:
        orphan.kill()
    assert alive == []


def test_nothing_outlives_a_fork_server_that_is_killed(own: Callable[..., Watched]) -> None:
    watched = own("--stall-s", "600")
    (forker,) = watched.server.helpers()
    sessions = [psutil.Process(pid) for pid in watched.server.session_processes()]
    os.kill(forker, signal.SIGSTOP)
    for session in sessions:
        session.suspend()
    os.kill(forker, signal.SIGKILL)
    _, alive = psutil.wait_procs(sessions, WAIT_S)
    assert alive == []
    watched.honest = Honest(watched.address, watched.world)


def test_the_fork_server_is_replaced_beside_many_connections(
    own: Callable[..., Watched], many_descriptors: None
) -> None:
    """Its socket has a descriptor of more than ten bits then."""
    watched = own("--pending", "1200", "--pending-per-address", "1200", "--hello-s", "600")
    (forker,) = watched.server.helpers()
    opened = connect_many(watched.address, 1100, 1)
    wait_for(lambda: watched.connections() > 1100, "the connections")
    os.kill(forker, signal.SIGKILL)
    wait_for(lambda: ping(watched.address, timeout_s=WAIT_S).sessions == 0, "the sessions to end")
    watched.honest = Honest(watched.address, watched.world)
    watched.honest.check()
    for peer in opened:
        peer.close()
