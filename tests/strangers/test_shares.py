"""One client takes no more than its part of the places, of what may be under way, and of the computing."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psutil
import pytest

from ionn.client.session import Client, Timeouts
from ionn.errors import ServerError
from ionn.model.network import Network
from ionn.model.partial_net import extract
from ionn.protocol import messages
from ionn.protocol.curve import client_keys, make_keys
from ionn.protocol.messages import PROTOCOL
from tests.strangers.peers import HELLO, Stranger, ask, begin_session, bye, message, send_partition, welcome
from tests.strangers.test_floods import LONG_QUERY
from tests.support.raw import upload_messages
from tests.support.world import WAIT_S, Process, Server, World, wait_for

# Ten milliseconds for a query, or a few of them; its input and its output are small.
QUERY = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 4 dim: 64 dim: 64 } } }
layer { name: "pool" type: "Pooling" bottom: "data" top: "pool" pooling_param { kernel_size: 40 stride: 1 } }
layer { name: "out" type: "ReLU" bottom: "pool" top: "out" }
"""
# An answer of 24 MB to a query of 100 bytes.
WIDE = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 1 dim: 5 dim: 5 } } }
layer { name: "wide" type: "Tile" bottom: "data" top: "wide" tile_param { tiles: 240000 } }
layer { name: "out" type: "ReLU" bottom: "wide" top: "out" }
"""
# Nothing ends or goes on because of the time.
PATIENT = ("--idle-s", "600", "--stall-s", "600", "--turn-s", "600", "--unread-s", "600")


@contextlib.contextmanager
def served(*options: str) -> Iterator[Server]:
    server = Server(*options)
    yield server
    server.end_well()


class Computing:
    """A session of a client at 127.0.0.`number` that has uploaded a net of one stage, and `pid`, its process."""

    def __init__(self, server: Server, number: int, stack: ExitStack, net: str = QUERY) -> None:
        self.control = stack.enter_context(Stranger(server.address, number))
        self.token, self.pid = begin_session(server, self.control)
        network = Network.from_text(net, "net")
        send_partition(self.control, extract(network, [1], {}))
        self.message = message(messages.Query(1, 1, 1, (np.zeros(network.input_shape, "<f4"),)))

    def query(self, count: int) -> None:
        self.control.send(self.message * count)

    def answered(self) -> None:
        assert isinstance(self.control.answer(), messages.Result)


def answers_meanwhile(polite: Stranger, count: int, others: list[Stranger]) -> int:
    """How many results the others get until one has `count`."""
    peers = {peer.socket: peer for peer in (polite, *others)}
    got = dict.fromkeys(peers.values(), 0)
    while got[polite] < count:
        for ready in select.select(list(peers), [], [], WAIT_S)[0]:
            assert isinstance(peers[ready].answer(), messages.Result)
            got[peers[ready]] += 1
    return sum(got.values()) - count


def uploading(server: Server, stack: ExitStack) -> Stranger:
    """The upload connection of a new session."""
    control, upload = (stack.enter_context(Stranger(server.address)) for _ in range(2))
    welcome(upload, welcome(control), "upload")
    return upload


def freeze(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, "a process to be frozen")


# --- Places -----------------------------------------------------------------------------------------------------------


def test_one_client_cannot_take_all_places() -> None:
    with served("--sessions", "4", "--sessions-per-client", "2", "--hello-s", "600") as server, ExitStack() as stack:

        def peer(number: int) -> Stranger:
            return stack.enter_context(Stranger(server.address, number))

        tokens = [welcome(peer(2)) for _ in range(2)]
        refused = peer(2)
        refused.shake_hands()
        answer = ask(refused, HELLO)
        assert answer.code == messages.ERROR_BUSY
        assert answer.message == "this client has 2 sessions already; the server's --sessions-per-client is 2"
        assert ask(refused, messages.Ping()) == messages.Pong(2, room=False, sandboxed=True)
        # Another one has room. Where a session goes on does not matter, it is the one's that began it.
        other = peer(3)
        other.shake_hands()
        assert ask(other, messages.Ping()) == messages.Pong(2, room=True, sandboxed=True)
        assert welcome(peer(3), tokens[0]) == tokens[0]
        assert ask(refused, HELLO).code == messages.ERROR_BUSY
        tokens += [welcome(peer(3)) for _ in range(2)]
        bye(server.address, tokens[0])
        assert isinstance(ask(refused, HELLO), messages.Welcome)


def test_a_client_is_its_key(tmp_path: Path) -> None:
    """Two of them at one address have places of their own."""
    for name in ("server", "phone", "tablet"):
        make_keys(tmp_path / name)
    allowed = [(tmp_path / f"{name}.public").read_text() for name in ("phone", "tablet")]
    (tmp_path / "allowed").write_text("".join(allowed))
    phone, tablet = (
        client_keys(tmp_path / f"{name}.secret", tmp_path / "server.public") for name in ("phone", "tablet")
    )
    waits = Timeouts(connect_s=WAIT_S)
    options = ("--key", str(tmp_path / "server.secret"), "--allow", str(tmp_path / "allowed"))
    server = Process("serve", "--bind", "tcp://127.0.0.1:0", "--sessions-per-client", "1", *options)
    clients = [Client(server.address, keys, waits) for keys in (phone, tablet)]
    for keys in (phone, tablet):
        with pytest.raises(ServerError, match="--sessions-per-client is 1"):
            Client(server.address, keys, waits)
    for client in clients:
        client.close()
    assert server.stop() == (0, "")


# --- What is under way ------------------------------------------------------------------------------------------------


def test_what_is_under_way_is_bounded_for_all_sessions_of_a_client() -> None:
    """Five sessions send 96 MB each, of which each may have 40 MB under way, and their client 20 MB and a session's
    largest message; the system holds some, too. What waits is taken when there is room."""
    options = ("--window-kb", "40000", "--window-per-client-kb", "20000", "--chunk-kb", "8000")
    with served(*PATIENT, *options) as server, ExitStack() as stack:
        chunk = message(messages.make_chunk(0, 0, [memoryview(bytes(8_000_000))]))
        peers = [uploading(server, stack) for _ in range(5)]
        processes = server.session_processes()
        for pid in processes:
            freeze(pid)
        status = Path(f"/proc/{server.pid}/status")

        def front_bytes(name: str) -> int:
            return int(status.read_text().partition(name)[2].split()[0]) * 1024

        before_bytes = front_bytes("VmRSS:")
        Path(f"/proc/{server.pid}/clear_refs").write_text("5")
        everything = memoryview(chunk * 12)
        unsent = dict.fromkeys(peers, everything)
        for peer in peers:
            peer.socket.setblocking(False)
        while ready := select.select([], [peer.socket for peer in peers if unsent[peer]], [], 1.0)[1]:
            for peer in peers:
                if peer.socket in ready:
                    unsent[peer] = unsent[peer][peer.socket.send(unsent[peer]) :]
        assert all(unsent.values())
        assert front_bytes("VmHWM:") - before_bytes < 20e6 + 42e6 + 20e6
        for pid in processes:
            os.kill(pid, signal.SIGCONT)

        def finish(peer: Stranger) -> None:
            peer.socket.settimeout(WAIT_S)
            peer.socket.sendall(unsent[peer])

        threads = [threading.Thread(target=finish, args=(peer,)) for peer in peers]
        for thread in threads:
            thread.start()
        for peer in peers:
            peer.socket.settimeout(WAIT_S)
            for _ in range(12):
                answer = peer.answer()
                assert isinstance(answer, messages.Error)
                assert answer.code == messages.ERROR_DAMAGED
        for thread in threads:
            thread.join()


def test_messages_that_have_begun_do_not_wait_for_each_other() -> None:
    """Two sessions have begun to send more than their client may have under way together: both get through."""
    with served(*PATIENT, "--window-per-client-kb", "1000") as server, ExitStack() as stack:
        peers = [uploading(server, stack) for _ in range(2)]
        sent = message([b"{}", *(bytes(400_000) for _ in range(4))])
        for half in (sent[: len(sent) // 2], sent[len(sent) // 2 :]):
            for peer in peers:
                peer.send(half)
        for peer in peers:
            answer = peer.answer()
            assert isinstance(answer, messages.Error)
            assert answer.code == messages.ERROR_PROTOCOL


def test_a_message_that_never_ends_holds_up_its_own_client_until_it_is_gone() -> None:
    with served(*PATIENT, "--window-per-client-kb", "10") as server, ExitStack() as stack:
        endless, peer = (uploading(server, stack) for _ in range(2))
        endless.send(message([b"{}", bytes(400_000)])[:200_000])
        peer.send(message([b"{}", bytes(400_000)]))
        endless.reset()
        assert isinstance(peer.answer(), messages.Error)


def test_the_least_credit_that_a_client_may_have(world: World) -> None:
    """Its sessions upload and query at the same time."""
    waits = Timeouts(query_s=WAIT_S, silence_s=WAIT_S, connect_s=WAIT_S)
    options = ("--window-per-client-kb", "10", "--blobs-per-client-mb", "0.001", "--computing", "1")
    with served(*options) as server, ExitStack() as stack:
        sessions = [stack.enter_context(world.client(server.address, waits))[1] for _ in range(3)]
        for session in sessions:
            session.start_upload()
        for session in sessions:
            wait_for(session.uploaded, "the upload")
            assert session.offloading.fault is None
            record = session.query()
            assert record.bit_equal
            assert not record.fallback


# --- Computing --------------------------------------------------------------------------------------------------------


def test_a_client_of_many_sessions_computes_no_more_than_one_of_one() -> None:
    """Both have queries that wait all the time. Without turns it is three times as many."""
    count = 100
    with served(*PATIENT, "--computing", "1") as server, ExitStack() as stack:
        greedy = [Computing(server, 2, stack) for _ in range(3)]
        polite = Computing(server, 3, stack)
        # Nobody gets a turn before everybody waits for one.
        blocker = Computing(server, 4, stack)
        freeze(blocker.pid)
        blocker.query(1)
        for session in (*greedy, polite):
            session.query(count)
        os.kill(blocker.pid, signal.SIGCONT)
        others = answers_meanwhile(polite.control, count, [session.control for session in greedy])
        assert count / 2 <= others <= 3 * count / 2


def test_queries_are_refused_where_nothing_waits_for_a_turn() -> None:
    with served() as server, ExitStack() as stack:
        session = Computing(server, 2, stack)
        upload = stack.enter_context(Stranger(server.address, 2))
        welcome(upload, session.token, "upload")
        sent = (session.message, message(messages.Part(1, 1, 1, True)), message(messages.Join(1, True, (b"",))))
        for each in sent:
            upload.send(each)
            answer = upload.answer()
            assert isinstance(answer, messages.Error)
            assert answer.code == messages.ERROR_PROTOCOL
            assert answer.message.endswith("is for the connection of role 'control'")
        session.query(1)
        session.answered()


@pytest.mark.skipif(os.nice(0) == 19, reason="no process can be nicer than these tests are")
def test_a_message_that_computes_for_long_does_not_keep_its_place() -> None:
    """It goes on beside the next ones, whose processes have a higher priority."""
    with served("--stall-s", "600", "--turn-s", "0.2", "--computing", "1") as server, ExitStack() as stack:
        polite = Computing(server, 3, stack)
        greedy = stack.enter_context(Stranger(server.address, 2))
        _, pid = begin_session(server, greedy)
        header, chunks, end = upload_messages(extract(Network.from_text(LONG_QUERY, "long"), [1], {}))
        for each in (header, *chunks, end, messages.Query(1, 1, 1, (bytes(4 * 8 * 800 * 800),))):
            greedy.send(message(each))  # it may be trying the stage already
        assert isinstance(greedy.answer(), messages.Ack)
        wait_for(lambda: psutil.Process(pid).nice() > psutil.Process(server.pid).nice(), "it to have computed")
        polite.query(1)
        polite.answered()
        assert psutil.Process(pid).status() == psutil.STATUS_RUNNING


def test_a_heartbeat_and_an_upload_do_not_wait_for_turns(world: World) -> None:
    """The only place is taken by another client's query."""
    with served(*PATIENT, "--computing", "1") as server, ExitStack() as stack:
        greedy = Computing(server, 2, stack)
        freeze(greedy.pid)
        greedy.query(1)
        control, upload = (stack.enter_context(Stranger(server.address, 3)) for _ in range(2))
        token = welcome(control)
        assert isinstance(ask(control, messages.Ping()), messages.Pong)
        welcome(upload, token, "upload")
        header, chunks, end = upload_messages(world.partitions[0])
        for each in (header, *chunks):
            assert isinstance(ask(upload, each), messages.Ack)
        assert ask(upload, end) == messages.Ready(0)
        data = world.input_of(1)
        control.send(message(messages.Query(1, 1, 1, (data.tobytes(),))))
        assert select.select([control.socket], [], [], 0.3)[0] == []
        os.kill(greedy.pid, signal.SIGCONT)
        assert isinstance(control.answer(), messages.Result)


def test_who_waits_for_a_turn_is_neither_stuck_nor_silent() -> None:
    """Two that are stuck have the only place, one after the other, until they are ended."""
    options = ("--computing", "1", "--turn-s", "600", "--stall-s", "4", "--idle-s", "7")
    with served(*options) as server, ExitStack() as stack:
        sessions = [Computing(server, number, stack) for number in (2, 3, 4)]
        for session in sessions[:2]:
            freeze(session.pid)
            session.query(1)
        sessions[2].query(1)
        for session in sessions[:2]:
            ended = session.control.answer()
            assert isinstance(ended, messages.Error)
            assert "stuck for 4 s" in ended.message
        sessions[2].answered()


def test_a_client_that_does_not_read_keeps_no_place() -> None:
    with served(*PATIENT, "--computing", "1") as server, ExitStack() as stack:
        polite = Computing(server, 3, stack)
        greedy = Computing(server, 2, stack, WIDE)
        greedy.query(10)
        for _ in range(20):
            polite.query(1)
            polite.answered()


# --- Trials -----------------------------------------------------------------------------------------------------------


def announce_slow(peer: Stranger, kernel: int) -> None:
    """A net of five stages: with a kernel of 11 each takes a third of a second, with one of 101 half a minute."""
    text = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 8 dim: 800 dim: 800 } } }'
    bottom = "data"
    for at in range(5):
        text += f"""
            layer {{ name: "pool{at}" type: "Pooling" bottom: "{bottom}" top: "pool{at}"
                    pooling_param {{ kernel_size: {kernel} pad: {kernel // 2} stride: 1 }} }}"""
        bottom = f"pool{at}"
    network = Network.from_text(f'{text} layer {{ name: "out" type: "ReLU" bottom: "{bottom}" top: "out" }}', "slow")
    header, _, _ = upload_messages(extract(network, list(range(1, len(network.stages))), {}))
    peer.send(message(header))


def test_a_stage_that_is_tried_for_long_is_stuck() -> None:
    """It ends as a query would, though its client sends bytes of a message all the while."""
    with served("--stall-s", "5", "--turn-s", "0.3") as server, Stranger(server.address) as peer:
        welcome(peer)
        (process,) = server.session_processes()
        announce_slow(peer, 101)
        assert isinstance(peer.answer(), messages.Ack)
        unending = message([bytes(100_000)])
        peer.send(unending[:9])
        wait_for(lambda: not (peer.send(b"x") and psutil.pid_exists(process)), "the end of the session's process")


def test_a_session_is_stuck_though_connections_of_it_come_and_go() -> None:
    """Another connection's end says nothing about the process."""
    with served("--stall-s", "4") as server, Stranger(server.address) as peer:
        token = welcome(peer)
        (process,) = server.session_processes()
        announce_slow(peer, 101)
        assert isinstance(peer.answer(), messages.Ack)
        for _ in range(20):
            with Stranger(server.address) as visitor:
                visitor.shake_hands()
                visitor.send(message(messages.Hello(PROTOCOL, "upload", token)))
                time.sleep(1)
            if not psutil.pid_exists(process):
                break
        assert not psutil.pid_exists(process)


def test_a_server_that_stops_waits_for_no_trial() -> None:
    server = Server(*PATIENT, "--stop-s", "600")
    with Stranger(server.address) as peer:
        _, pid = begin_session(server, peer)
        process = psutil.Process(pid)
        busy_s = sum(process.cpu_times()[:2])
        announce_slow(peer, 101)
        wait_for(lambda: sum(process.cpu_times()[:2]) > busy_s + 0.3, "a trial")
        freeze(pid)
        server.strike(signal.SIGTERM)
        wait_for(lambda: not server.alive(), "the server to end")
    server.end_well()


def test_stages_are_tried_in_turn() -> None:
    """Beside eight sessions of one client that have only stages to try, another's query waits for few of them."""
    with served(*PATIENT, "--computing", "1") as server, ExitStack() as stack:
        polite = Computing(server, 3, stack)
        peers = [stack.enter_context(Stranger(server.address, 2)) for _ in range(8)]
        before = server.session_processes()
        for peer in peers:
            welcome(peer)
        trying = [psutil.Process(pid) for pid in server.session_processes() - before]

        def used_s() -> list[float]:
            return [sum(process.cpu_times()[:2]) for process in trying]

        for peer in peers:
            announce_slow(peer, 11)
        for peer in peers:
            assert isinstance(peer.answer(), messages.Ack)
        started_s = used_s()
        for _ in range(3):
            polite.query(1)
            polite.answered()
        # A processor's time in all: no two of them at once.
        tried = sum(now_s - then_s > 0.1 for now_s, then_s in zip(used_s(), started_s, strict=True))
        assert tried <= 4
