"""The link as users run it: a process between real sockets."""

from __future__ import annotations

import errno
import gc
import itertools
import math
import os
import random
import re
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ionn.address import Address, format_address, parse_address
from ionn.errors import InputError
from ionn.testbed.bandwidth import Bandwidth
from ionn.testbed.delay import Delay
from ionn.testbed.link import _EDGES, IN_FLIGHT_BYTES_MAX, SOCKET_BUFFER_BYTES, _Direction, _Flow, _Link, serve_link
from ionn.testbed.link_pacer import LinkPacer
from tests.support.machine import needs_ipv6, put_ipv6_first, vacant
from tests.support.world import WAIT_S, wait_for

FAST_MBPS = 2_000.0
PROGRAM = """
import signal, sys
from ionn.address import format_address, parse_address
from ionn.testbed.bandwidth import Bandwidth
from ionn.testbed.delay import Delay
from ionn.testbed.link import serve_link
listen, to, begins_s, mbps, delay_s, jitter_s = sys.argv[1:]
bandwidth = Bandwidth(tuple(map(float, begins_s.split(","))), tuple(map(float, mbps.split(","))))
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
serve_link(parse_address(listen, listen=True), parse_address(to), bandwidth,
           lambda address: print(format_address(address), flush=True),
           up=Delay(float(delay_s), float(jitter_s), "up"), down=Delay(float(delay_s), float(jitter_s), "down"))
"""


class Link:
    """A link process to `to`, or to a server socket of its own. Its bandwidth is `mbps`, or `steps` of it."""

    def __init__(
        self,
        mbps: float,
        to: Address | None = None,
        listen: Address = ("127.0.0.1", 0),
        *,
        steps: Sequence[tuple[float, float]] = (),
        delay_s: float = 0.0,
        jitter_s: float = 0.0,
    ) -> None:
        self.server = None if to else socket.create_server(("127.0.0.1", 0))
        target: Address = to or self.server.getsockname()  # type: ignore[union-attr]
        begins_s, rates = (",".join(map(str, values)) for values in zip(*(steps or [(0.0, mbps)]), strict=True))
        ends = format_address(listen), format_address(target)
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *ends, begins_s, rates, str(delay_s), str(jitter_s)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        self.address = parse_address(self.process.stdout.readline().strip())

    def client(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=WAIT_S)

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """Both ends of a connection through the link."""
        assert self.server
        client = self.client()
        server, _ = self.server.accept()
        server.settimeout(WAIT_S)
        return client, server

    def begin(self) -> float:
        """Have its bandwidth and delays begin anew; a time just before that."""
        before_s = time.monotonic()
        self.process.send_signal(signal.SIGUSR1)
        return before_s

    def stop(self) -> tuple[int, str]:
        """Exit code and what it wrote to stderr."""
        self.process.terminate()
        _, stderr = self.process.communicate(timeout=WAIT_S)
        if self.server:
            self.server.close()
        return self.process.returncode, stderr


@pytest.fixture
def start() -> Iterator[Callable[..., Link]]:
    links: list[Link] = []

    def start_link(*args: object, **kwargs: object) -> Link:
        links.append(Link(*args, **kwargs))  # type: ignore[arg-type]
        return links[-1]

    yield start_link
    for link in links:
        if link.process.poll() is None:
            link.process.kill()
            link.process.communicate()


@pytest.fixture(scope="module")
def fast() -> Iterator[Link]:
    """One link for all tests that are not about its rate."""
    link = Link(FAST_MBPS)
    yield link
    assert link.stop() == (0, "")


def receive_all(sock: socket.socket) -> bytes:
    chunks = []
    while chunk := sock.recv(1 << 16):
        chunks.append(chunk)
    return b"".join(chunks)


def send_all(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def is_read(sock: socket.socket) -> bool:
    """Whether the process at the other end of an IPv4 connection has read all that was sent to it."""
    own, peer = (f"{port:04X}" for _, port in (sock.getsockname(), sock.getpeername()))
    unread = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, queues, *_ = line.split()
        sending, receiving = (int(number, 16) for number in queues.split(":"))
        unread[local.rpartition(":")[2], remote.rpartition(":")[2]] = sending, receiving
    return unread[own, peer][0] == unread[peer, own][1] == 0


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def must_not_listen(address: Address) -> None:
    pytest.fail(f"listens at {address}")


def test_bytes_arrive_intact_both_ways_on_many_connections(fast: Link) -> None:
    data = random.Random(7)
    ups = [data.randbytes(data.choice([0, 1, 4_000, 300_000, 1_000_000])) for _ in range(24)]
    downs = [data.randbytes(len(up) // 2) for up in reversed(ups)]
    pairs = [fast.connect() for _ in ups]
    with ThreadPoolExecutor(4 * len(pairs)) as pool:
        at_servers = [pool.submit(receive_all, server) for _, server in pairs]
        at_clients = [pool.submit(receive_all, client) for client, _ in pairs]
        for (client, server), up, down in zip(pairs, ups, downs, strict=True):
            pool.submit(send_all, client, up)
            pool.submit(send_all, server, down)
        assert [future.result() for future in at_servers] == ups
        assert [future.result() for future in at_clients] == downs


def test_bytes_arrive_intact_and_then_the_end_though_their_delay_wanders(start: Callable[..., Link]) -> None:
    link = start(FAST_MBPS, delay_s=0.05, jitter_s=0.05)
    data = random.Random(9).randbytes(3_000_000)
    pairs = [link.connect() for _ in range(3)]
    with ThreadPoolExecutor(4 * len(pairs)) as pool:
        for client, server in pairs:
            pool.submit(send_all, client, data)
            pool.submit(send_all, server, data[::-1])
        received = [(pool.submit(receive_all, server), pool.submit(receive_all, client)) for client, server in pairs]
        for up, down in received:
            assert up.result() == data
            assert down.result() == data[::-1]


@pytest.mark.parametrize("upward", [True, False])
def test_a_reset_takes_its_delay_behind_the_bytes(start: Callable[..., Link], upward: bool) -> None:
    pair = start(FAST_MBPS, delay_s=0.3).connect()
    source, sink = pair if upward else pair[::-1]
    source.sendall(b"last words")
    wait_for(lambda: is_read(source), "the link to have them: a reset discards what it has not read")
    begin_s = time.monotonic()
    reset(source)
    assert sink.recv(100, socket.MSG_WAITALL) == b"last words"
    with pytest.raises(ConnectionResetError):
        sink.recv(1)
    assert time.monotonic() >= begin_s + 0.3


STEPS = [(0.0, 8.0), (0.4, 0.0), (0.8, 40.0)]


def crossed_bytes(elapsed_s: float) -> float:
    """The bytes that STEPS have let across, added up by hand."""
    mbit = 8.0 * min(elapsed_s, 0.4) + 40.0 * max(elapsed_s - 0.8, 0.0)
    return max(mbit, 0.0) * 1e6 / 8


@pytest.mark.parametrize("upward", [True, False])
@pytest.mark.parametrize(("delay_s", "jitter_s"), [(0.0, 0.0), (0.1, 0.0), (0.1, 0.05)])
def test_bytes_cross_when_the_trace_says_and_arrive_a_delay_later(
    start: Callable[..., Link], upward: bool, delay_s: float, jitter_s: float
) -> None:
    """No byte comes earlier than bandwidth and delay allow. How late they come is for this machine to say."""
    link = start(0, steps=STEPS, delay_s=delay_s, jitter_s=jitter_s)
    pair = link.connect()
    source, sink = pair if upward else pair[::-1]
    size = 3_000_000

    with ThreadPoolExecutor(1) as pool:
        begin_s = link.begin()
        # Whatever else the process has to do, it begins anew before it sends what was sent to it after that.
        pool.submit(source.sendall, bytes(size))
        received = 0
        while received < size:
            received += len(sink.recv(1 << 16))
            assert received <= crossed_bytes(time.monotonic() - begin_s - delay_s + jitter_s)


def test_a_bandwidth_begins_anew_when_it_is_told(start: Callable[..., Link]) -> None:
    link = start(0, steps=[(0.0, 80.0), (0.1, 0.0001)])  # after that, a quantum takes two minutes
    client, server = link.connect()
    time.sleep(0.2)
    data = random.Random(3).randbytes(100_000)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(client.sendall, data)
        time.sleep(0.2)  # one is crossing
        link.begin()
        received = b""
        while len(received) < len(data):
            if select.select([server], (), (), 0.05)[0]:
                received += server.recv(1 << 16)
            else:  # it was held up for so long that the fast part was over
                link.begin()
    assert received == data


def test_what_is_in_flight_is_bounded() -> None:
    """In the event loop itself: 64 MB are more than a test should have under way."""
    assert IN_FLIGHT_BYTES_MAX == 64 * 2**20
    with socket.create_server(("127.0.0.1", 0)) as listener:
        directions = [_Direction(Bandwidth.constant(80), Delay(1.0)) for _ in range(2)]
        link = _Link(listener, (socket.AF_INET, ("127.0.0.1", 1)), "nobody", *directions)
        source, sender = socket.socketpair()
        sink, _ = socket.socketpair()
        flow = _Flow(source, sink, link._up)
        flow.readable = flow.writable = True
        sender.sendall(b"more")
        flow.join()
        link._up.in_flight_bytes = IN_FLIGHT_BYTES_MAX
        link._serve(link._up, 0.0)
        assert (link._up.crossing, len(link._up.turns)) == (None, 1)
        link._up.in_flight_bytes -= 1
        link._serve(link._up, 0.0)
        assert link._up.crossing == (flow, b"more")


def test_half_close_is_passed_on_and_the_other_half_goes_on(fast: Link) -> None:
    client, server = fast.connect()
    send_all(client, b"question")
    assert receive_all(server) == b"question"
    for part in (b"long ", b"answer"):
        server.sendall(part)
        assert client.recv(len(part), socket.MSG_WAITALL) == part
    server.close()
    assert client.recv(1) == b""


@pytest.mark.parametrize("by", ["client", "server"])
def test_reset_is_passed_on(fast: Link, by: str) -> None:
    client, server = fast.connect()
    ends = {"client": client, "server": server}
    reset(ends.pop(by))
    (other,) = ends.values()
    with pytest.raises(ConnectionResetError):
        other.recv(1)


def test_bytes_for_a_server_that_has_closed_in_order_reset_the_connection(start: Callable[..., Link]) -> None:
    """The server is there, and the link does not say otherwise."""
    link = start(FAST_MBPS)
    client, server = link.connect()
    server.close()
    assert client.recv(1) == b""
    client.sendall(b"late")
    wait_for(lambda: client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EPIPE, "the reset")
    assert link.stop() == (0, "")


def test_slow_receiver_makes_its_sender_wait_and_nobody_else(fast: Link) -> None:
    stuck, unread = fast.connect()
    stuck.settimeout(0.3)
    sent = 0
    with suppress(TimeoutError):
        while sent < 64 << 20:
            sent += stuck.send(bytes(1 << 16))
    assert sent < 64 << 20
    client, server = fast.connect()
    data = random.Random(8).randbytes(2_000_000)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(send_all, client, data)
        assert receive_all(server) == data
    stuck.shutdown(socket.SHUT_WR)
    assert len(receive_all(unread)) == sent


@pytest.mark.parametrize("upward", [True, False])
def test_little_waits_inside_of_a_link(start: Callable[..., Link], upward: bool) -> None:
    """What its sockets hold is bounded by their size, which the system doubles, and does not grow with use."""
    size = 1 << 16
    link = start(FAST_MBPS)
    assert link.server
    with socket.socket() as client:
        for end in (client, link.server):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
        client.connect(link.address)
        server, _ = link.server.accept()
        source, sink = (client, server) if upward else (server, client)
        source.setblocking(False)
        sent = received = 0
        while received < 60_000_000:  # so much use
            with suppress(BlockingIOError):  # there is more under way than what was received
                sent += source.send(bytes(size))
            received += len(sink.recv(size))
        source.settimeout(0.3)
        with suppress(TimeoutError):
            while sent - received < 10_000_000:
                sent += source.send(bytes(size))
        server.close()
    assert sent - received < 4 * size + 4 * SOCKET_BUFFER_BYTES + 2 * size


@pytest.mark.parametrize("upward", [True, False])
def test_rate_is_the_cap_without_credit_for_idle_time(start: Callable[..., Link], upward: bool) -> None:
    """No byte ever comes earlier than the cap allows, counted from the first one sent."""
    bytes_per_s, size = 16e6 / 8, 1_200_000
    pair = start(16).connect()
    source, sink = pair if upward else pair[::-1]
    time.sleep(0.2)  # idle time, in which a link could save up 400 kB
    with ThreadPoolExecutor(1) as pool:
        begin_s = time.monotonic()
        pool.submit(source.sendall, bytes(size))
        received = 0
        while received < size:
            received += len(sink.recv(1 << 16))
            assert received <= bytes_per_s * (time.monotonic() - begin_s)


def test_busy_connections_share_a_direction_equally(start: Callable[..., Link]) -> None:
    size = 100_000  # so little that sockets hold it
    link = start(80)
    pairs = [link.connect() for _ in range(3)]
    link.process.send_signal(signal.SIGSTOP)  # so that all have something to send when it begins
    for client, _ in pairs:
        send_all(client, bytes(size))
    link.process.send_signal(signal.SIGCONT)
    received = {server: 0 for _, server in pairs}
    while max(received.values()) < size:
        for server in select.select(list(received), (), (), WAIT_S)[0]:
            # Little, as all may have come to it since then, and to the others too.
            received[server] += len(server.recv(1 << 12))
    assert min(received.values()) > 0.9 * size


def test_what_a_full_socket_does_not_take_is_kept_for_later() -> None:
    """The event loop's own sockets, as no link can be made to meet this: mostly a socket takes some bytes, or all."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        directions = [_Direction(Bandwidth.constant(80), Delay()) for _ in range(2)]
        link = _Link(listener, (socket.AF_INET, ("127.0.0.1", 1)), "nobody", *directions)
        source, _ = socket.socketpair()
        sink, receiver = socket.socketpair()
        sink.setblocking(False)
        sent = 0
        with suppress(BlockingIOError):
            while True:
                sent += sink.send(b"early" * 1000)
        flow = _Flow(source, sink, link._up)
        link._deliver(flow, b"late")
        assert (bytes(flow.unsent), flow.writable) == (b"late", False)
        receiver.recv(sent, socket.MSG_WAITALL)
        link._hand_over(flow)
        assert (bytes(flow.unsent), flow.writable) == (b"", True)
        assert receiver.recv(100) == b"late"


# --- How much of its rate a link uses: on a clock of its own (bench/link_use.py measures it live) ---------------------


class Ended(Exception):
    """All that was to cross has."""


class PlayedLink:
    """The event loop on a clock that moves while the loop waits, and hardly else; between sockets that have what was
    sent at once. `act` is called with the time whenever the loop looks at the clock, and ends it by raising `Ended`."""

    LOOK_S = 1e-5

    def __init__(self, bandwidth: Bandwidth, delay: Delay | None = None, connections: int = 1) -> None:
        self.now_s = 0.0
        directions = [_Direction(bandwidth, delay or Delay()) for _ in range(2)]
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._link = link = _Link(self._listener, (socket.AF_INET, ("127.0.0.1", 1)), "nobody", *directions)
        self.pairs: list[tuple[socket.socket, socket.socket]] = []
        for _ in range(connections):
            (client, near), (far, server) = socket.socketpair(), socket.socketpair()
            up, down = _Flow(near, far, link._up), _Flow(far, near, link._down)
            up.reverse, down.reverse = down, up
            for flow in (up, down):
                flow.source.setblocking(False)
                link._flows[flow.source.fileno()] = flow
                link._epoll.register(flow.source, _EDGES)
            for end in (client, server):
                end.setblocking(False)
            self.pairs.append((client, server))

    def run(self, act: Callable[[float], None]) -> None:
        def monotonic() -> float:
            self.now_s += self.LOOK_S
            act(self.now_s)
            return self.now_s

        def wait(reading: tuple[Any, ...], writing: tuple[()], failing: tuple[()], timeout_s: float) -> Any:
            if not (ready := select.select((epoll,), (), (), 0))[0]:
                self.now_s += timeout_s
            return ready

        def poll(timeout_s: float = math.inf) -> list[tuple[int, int]]:
            if timeout_s < math.inf:
                return epoll.poll(timeout_s)
            act(self.now_s)  # nothing is under way
            events = epoll.poll(0)
            assert events, "the link waits for ever"
            return events

        epoll = self._link._epoll
        with pytest.MonkeyPatch.context() as patch, suppress(Ended):
            patch.setattr("ionn.testbed.link.time", SimpleNamespace(monotonic=monotonic))
            patch.setattr("ionn.testbed.link.select", SimpleNamespace(**{**vars(select), "select": wait}))
            patch.setattr(self._link, "_epoll", SimpleNamespace(poll=poll))
            self._link.run()
        self._link.close()
        self._listener.close()
        for end in itertools.chain(*self.pairs):
            end.close()

    def carry(self, size: int, ways: Sequence[tuple[socket.socket, socket.socket]]) -> list[list[tuple[float, int]]]:
        """Send so many bytes each way at once; for each, when how many had come."""
        unsent = [size] * len(ways)
        came: list[list[tuple[float, int]]] = [[(0.0, 0)] for _ in ways]

        def act(now_s: float) -> None:
            for at, (source, sink) in enumerate(ways):
                with suppress(BlockingIOError):
                    while data := sink.recv(1 << 20):
                        came[at].append((now_s, came[at][-1][1] + len(data)))
                with suppress(BlockingIOError):
                    while unsent[at]:
                        unsent[at] -= source.send(bytes(min(unsent[at], 1 << 16)))
            if all(each[-1][1] == size for each in came):
                raise Ended

        self.run(act)
        return came


@pytest.mark.parametrize("upward", [True, False])
@pytest.mark.parametrize("delay_s", [0.0, 0.5])
def test_a_link_that_always_has_something_to_carry_uses_its_rate(upward: bool, delay_s: float) -> None:
    """All of it, behind a delay too: what is in flight is more than sockets hold."""
    link, size, bytes_per_s = PlayedLink(Bandwidth.constant(80), Delay(delay_s)), 6_000_000, 80e6 / 8
    (client, server), *_ = link.pairs
    (came,) = link.carry(size, [(client, server) if upward else (server, client)])
    for time_s, received in came[1:]:
        assert received == pytest.approx(bytes_per_s * (time_s - delay_s), abs=20_000)
    assert came[-1][1] == size


@pytest.mark.parametrize(("delay_s", "jitter_s"), [(0.0, 0.0), (0.1, 0.0), (0.1, 0.05)])
def test_a_link_uses_what_its_trace_gives_it(delay_s: float, jitter_s: float) -> None:
    begins_s, mbps = zip(*STEPS, strict=True)
    link = PlayedLink(Bandwidth(begins_s, mbps), Delay(delay_s, jitter_s, "up"))
    (came,) = link.carry(3_000_000, link.pairs)
    for time_s, received in came[1:]:
        least, most = (crossed_bytes(time_s - delay_s + late_s) for late_s in (-jitter_s, jitter_s))
        assert least - 20_000 <= received <= most


def test_both_directions_are_capped_separately() -> None:
    """Each carries as much as if the other had nothing to."""
    link, size = PlayedLink(Bandwidth.constant(8)), 400_000
    ((client, server),) = link.pairs
    for came in link.carry(size, [(client, server), (server, client)]):
        ended_s, received = came[-1]
        assert ended_s == pytest.approx(0.4, abs=0.002)
        assert received == size


def test_small_message_passes_a_bulk_upload_within_a_few_quanta() -> None:
    """Counted in bulk bytes that arrive while the message is on its way."""
    bandwidth = Bandwidth.constant(1.0)
    link = PlayedLink(bandwidth, connections=2)
    (bulk, bulk_sink), (client, server) = link.pairs
    overtaken: list[int] = []

    def act(now_s: float) -> None:
        with suppress(BlockingIOError):
            bulk.send(bytes(1 << 16))
        with suppress(BlockingIOError):
            received = len(bulk_sink.recv(1 << 16))
            if overtaken:
                overtaken[-1] += received
        with suppress(BlockingIOError):
            assert not overtaken or server.recv(100) == b"query"
            if len(overtaken) == 15:
                raise Ended
            client.send(b"query")
            overtaken.append(0)

    link.run(act)
    assert 0 < max(overtaken) <= 3 * LinkPacer(bandwidth).quantum_bytes(alone=True, now_s=0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can look at another process's timer slack")
def test_a_wait_for_an_arrival_is_as_exact_as_the_system_can(start: Callable[..., Link]) -> None:
    assert Path(f"/proc/{start(FAST_MBPS).process.pid}/timerslack_ns").read_text() == "1\n"


def test_a_target_without_a_route_closes_the_connection_and_says_so(start: Callable[..., Link]) -> None:
    """The system refuses to connect at once, not later as where nobody listens."""
    link = start(FAST_MBPS, to=("255.255.255.255", 1))
    for _ in range(2):
        with pytest.raises(ConnectionResetError), link.client() as client:
            client.recv(1)
    returncode, stderr = link.stop()
    assert returncode == 0
    assert re.fullmatch(r"cannot reach 255\.255\.255\.255:1: [A-Z][a-z ]+; is the server running\?\n", stderr)


def test_unreachable_target_closes_the_connection_and_says_so_once_each_time(start: Callable[..., Link]) -> None:
    with vacant() as target:
        link = start(FAST_MBPS, to=target)
        for _ in range(2):
            for _ in range(3):
                with pytest.raises(ConnectionResetError), link.client() as client:
                    client.recv(1)
            with socket.create_server(target) as server, link.client() as client:
                with server.accept()[0] as connection:
                    connection.sendall(b"here")
                assert client.recv(100) == b"here"
        returncode, stderr = link.stop()
    assert returncode == 0
    assert stderr == 2 * f"cannot reach {format_address(target)}: Connection refused; is the server running?\n"


def test_connections_beyond_the_limit_of_open_files_wait(start: Callable[..., Link]) -> None:
    link = start(FAST_MBPS)
    resource.prlimit(link.process.pid, resource.RLIMIT_NOFILE, (12, 12))
    clients = [link.client() for _ in range(10)]
    for client in clients:
        client.sendall(b"x")
    assert link.server
    for client in clients:
        server, _ = link.server.accept()
        server.settimeout(WAIT_S)
        assert server.recv(1) == b"x"
        server.close()
        client.close()
    returncode, stderr = link.stop()
    assert returncode == 0
    assert set(stderr.splitlines()) == {"cannot accept a connection: Too many open files"}


def test_an_exception_ends_it_cleanly(start: Callable[..., Link]) -> None:
    link = start(1.0)
    client, server = link.connect()
    client.sendall(bytes(100_000))
    server.recv(1)
    assert link.stop() == (0, "")
    with pytest.raises(ConnectionError):
        link.client()


def test_it_can_start_again_at_once_where_it_was(start: Callable[..., Link]) -> None:
    """The connections that it ended keep the port for a minute, but not from a link."""
    link = start(FAST_MBPS)
    client, _ = link.connect()
    assert link.stop() == (0, "")
    assert client.recv(1) == b""
    client.close()
    again = start(FAST_MBPS, listen=link.address)
    assert again.address == link.address


def test_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address: Address = taken.getsockname()
        text = f"{format_address(address)}: cannot listen there (Address already in use); give another port"
        gc.collect()  # what earlier tests left open is not this test's
        files = os.listdir("/proc/self/fd")
        handlers = [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)]
        with pytest.raises(InputError) as caught:
            serve_link(address, ("127.0.0.1", 1), Bandwidth.constant(80), must_not_listen)
        assert os.listdir("/proc/self/fd") == files  # while the error, with all that it holds, is at hand
        assert str(caught.value) == text
        assert [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)] == handlers


@pytest.mark.parametrize(
    ("host", "family"), [("127.0.0.1", socket.AF_INET), pytest.param("::1", socket.AF_INET6, marks=needs_ipv6)]
)
def test_cannot_forward_to_itself(host: str, family: socket.AddressFamily) -> None:
    with socket.create_server((host, 0), family=family) as unused:
        address: Address = unused.getsockname()[:2]
    with pytest.raises(InputError, match="itself"):
        serve_link(address, (host, address[1]), Bandwidth.constant(80), must_not_listen)


def test_both_ends_of_localhost_are_ipv4_as_for_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told by whether it would forward to itself."""
    put_ipv6_first(monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    for listen, to in itertools.permutations(["localhost", "127.0.0.1"]):
        with pytest.raises(InputError, match="itself"):
            serve_link((listen, port), (to, port), Bandwidth.constant(80), must_not_listen)


@pytest.mark.parametrize(
    ("listen", "to"),
    [
        ("0.0.0.0", "127.0.0.1"),
        ("127.0.0.1", "0.0.0.0"),
        pytest.param("::", "::1", marks=needs_ipv6),
        pytest.param("::", "127.0.0.1", marks=needs_ipv6),
    ],
)
def test_cannot_forward_to_itself_by_another_address(listen: str, to: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(InputError, match="itself"):
        serve_link((listen, port), (to, port), Bandwidth.constant(80), must_not_listen)


def test_may_forward_to_its_own_port_of_another_machine(start: Callable[..., Link]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    link = start(FAST_MBPS, listen=("0.0.0.0", port), to=("192.0.2.1", port))
    assert link.address == ("0.0.0.0", port)
    assert link.stop() == (0, "")


def test_it_ends_as_well_while_it_is_told_to_begin_anew(start: Callable[..., Link]) -> None:
    link = start(FAST_MBPS)
    link.process.terminate()
    deadline = time.monotonic() + WAIT_S
    while link.process.poll() is None:
        assert link.begin() < deadline
    assert link.stop() == (0, "")


@needs_ipv6
def test_its_two_ends_may_be_of_two_families(start: Callable[..., Link]) -> None:
    link = start(FAST_MBPS, listen=("::1", 0))
    assert link.address[0] == "::1"
    client, server = link.connect()
    send_all(client, b"question")
    assert receive_all(server) == b"question"


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b"])
def test_unknown_host(host: str) -> None:
    with pytest.raises(InputError, match="unknown host"):
        serve_link(("127.0.0.1", 0), (host, 80), Bandwidth.constant(80), must_not_listen)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:7676", ("127.0.0.1", 7676)),
        ("tcp://edge-server.example:1", ("edge-server.example", 1)),
        ("[::1]:65535", ("::1", 65535)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(format_address(address)) == address


def test_port_0_is_for_listening_only() -> None:
    assert parse_address("localhost:0", listen=True) == ("localhost", 0)
    with pytest.raises(InputError, match="port"):
        parse_address("localhost:0")


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "host",
        "host:",
        ":80",
        "host:port",
        "host:-1",
        "host:65536",
        "host:١٢",
        "udp://h:1",
        "h:1/x",
        "h h:1",
        "::1:80",
    ],
)
def test_garbage_addresses(text: str) -> None:
    with pytest.raises(InputError) as error:
        parse_address(text)
    assert text in str(error.value)
    assert len(str(error.value).splitlines()) == 1
