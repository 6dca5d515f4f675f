"""What the fault tests happen to: a server, a link, a client with a session, and connections that misbehave."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil

from ionn.address import format_address, parse_address
from ionn.client.connection import ping
from ionn.client.offloading import Offloading
from ionn.client.session import Client, Timeouts
from ionn.model import engine
from ionn.model.caffemodel import CodedFrames
from ionn.model.comparison import Numerics
from ionn.model.engine import StageNet
from ionn.model.network import Network
from ionn.model.partial_net import ExtractedPartition, extract
from ionn.planning.graph import ExecutionGraph
from ionn.records import QueryRecord
from ionn.testbed.live_session import LiveSession
from tests.support.machine import reserved

Weights = dict[str, tuple[np.ndarray, ...]]
# Long enough for a busy machine; nothing waits that long where all is well.
WAIT_S = 60.0
# Short times, so that a fault is noticed at once. A busy machine may mistake a slow answer for a fault: that costs a
# local query, and no test minds.
SHORT = Timeouts(query_s=0.7, heartbeat_s=0.1, silence_s=0.7, connect_s=1.0, retry_s=0.05, retry_max_s=0.3)
# For those that do mind: nothing is taken for a fault but what is one.
PATIENT = dataclasses.replace(SHORT, query_s=WAIT_S, silence_s=WAIT_S, connect_s=WAIT_S)
# The partitions of the tiny network; the second has nearly all of its 1.2 MB.
STAGES = ([1], [2, 3, 4], [5])
# When something goes wrong.
PHASES = ("first partition", "mid-partition", "mid-query", "between")


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.005)


def freeze(process: int) -> None:
    """Stop a process, all its threads: the signal alone takes a moment."""
    os.kill(process, signal.SIGSTOP)

    def states() -> set[str]:
        found = set()
        for task in Path(f"/proc/{process}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended
                found.add((task / "stat").read_text().rpartition(")")[2].split()[0])
        return found

    wait_for(lambda: states() == {"T"}, "the process to stop")


def session_processes(server: int) -> set[int]:
    """The processes of a server's sessions: what the fork server, the parent of them all, has for children."""
    found = set()
    for child in _children(server):
        for process in _children(child.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.add(process.pid)
    return found


def _children(process: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(process).children()
    return []


class Process:
    """`ionn ARGUMENTS`, where the first line that it prints is its address. It ends with the tests, however they do."""

    def __init__(self, *arguments: str) -> None:
        self.arguments = arguments
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "ionn", *self.arguments, "--stop-at-eof"]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        # Not the process's any more, which would close it, the same as a second signal, before it waits for the end.
        self._lifeline, self._process.stdin = self._process.stdin, None
        self.pid = self._process.pid
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()
        assert self.address, self._process.stderr.read() if self._process.stderr else ""

    def strike(self, number: int) -> None:
        os.kill(self.pid, number)
        if number == signal.SIGKILL:
            self._end()

    def _end(self) -> str:
        """Wait for its end, and close its pipes; what it said."""
        _, said = self._process.communicate(timeout=WAIT_S)
        assert self._lifeline is not None
        self._lifeline.close()
        return said

    def alive(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> tuple[int, str]:
        """End it as its user does; the exit code and what it said."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)
        self._process.terminate()
        said = self._end()
        return self._process.returncode, said


def _port_of(owner: object) -> str:
    """An address on loopback that nobody else gets while the owner lives, which may end and start again there."""
    place = reserved()
    weakref.finalize(owner, place.close)
    return f"tcp://{format_address(place.getsockname())}"


class Server(Process):
    def __init__(self, *options: str) -> None:
        super().__init__("serve", "--bind", _port_of(self), "--verbose", *options)

    def start(self) -> None:
        """Return when it has served a session, which has ended."""
        from tests.support.raw import Raw  # which imports this module

        super().start()
        with Raw(self.address) as raw:
            raw.bye()

    def end_well(self) -> None:
        """Stop it: with exit code 0, and without a traceback."""
        code, said = self.stop()
        assert code == 0, said
        assert "Traceback" not in said

    def session_processes(self) -> set[int]:
        return session_processes(self.pid)

    def store_process(self) -> int:
        """The store process."""
        (found,) = (
            child.pid for child in psutil.Process(self.pid).children() if "store_process" in " ".join(child.cmdline())
        )
        return found

    def helpers(self) -> set[int]:
        """The fork server."""
        return {child.pid for child in psutil.Process(self.pid).children() if child.children()}


class Link(Process):
    def __init__(self, to: str, mbps: float) -> None:
        super().__init__("link", "--listen", _port_of(self), "--to", to, "--mbps", str(mbps))


class Wire:
    """A TCP connection's way to `to` that can be blocked, cut and slowed down."""

    def __init__(self, to: str) -> None:
        self._to = parse_address(to)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://{format_address(self._listener.getsockname())}"
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._stopped = False
        self.blocked = False
        self.delay_s = 0.0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped:
            sources = [self._listener] if self.blocked else [self._listener, *self._pairs]
            for source in select.select(sources, (), (), 0.02)[0]:
                if source is self._listener:
                    self._accept()
                elif source in self._pairs:
                    self._forward(source)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            server = socket.create_connection(self._to, 1.0)
            server.settimeout(None)
        except OSError:
            client.close()
            return
        self._pairs.update({client: server, server: client})

    def _forward(self, source: socket.socket) -> None:
        sink = self._pairs[source]
        time.sleep(self.delay_s)
        try:
            data = source.recv(65536)
            sink.sendall(data)
        except OSError:
            data = b""
        if not data:
            for end in (source, sink):
                self._pairs.pop(end, None)
                end.close()

    def reset(self) -> None:
        """Cut every connection, as a router that lost its table does."""
        for end in list(self._pairs):
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.shutdown(socket.SHUT_RDWR)

    def lose(self, client: Client | Offloading) -> None:
        """Cut every connection, and let the client have others when it was seen to have lost them."""
        self.blocked = True
        self.reset()
        wait_for(lambda: client.fault is not None, "the loss to be noticed")
        self.blocked = False

    def close(self) -> None:
        self._stopped = True
        self._thread.join()
        for end in (self._listener, *self._pairs):
            end.close()


@contextlib.contextmanager
def connected(
    address: str,
    timeouts: Timeouts | None,
    first_connect_s: float = WAIT_S,
    check: Callable[[Numerics | None], None] = lambda numerics: None,
) -> Iterator[Client]:
    """A client whose first connection has a time of its own: it is not tried again, as those after a loss are."""
    timeouts = timeouts or Timeouts(query_s=WAIT_S, silence_s=WAIT_S, connect_s=WAIT_S)
    client = Client(address, timeouts=dataclasses.replace(timeouts, connect_s=first_connect_s), check=check)
    client.timeouts = timeouts
    try:
        yield client
    finally:
        client.close()


class World:
    """The tiny network at a client that is slower than any server, and what it computes alone. Its weights go coded
    where there are `frames` of them."""

    def __init__(
        self, network: Network, weights: Weights, graph: ExecutionGraph, frames: CodedFrames | None = None
    ) -> None:
        self.network = network
        self.weights = weights
        self.graph = graph
        self.net: StageNet = engine.load_network(network, weights)
        rng = np.random.default_rng(3)
        self.inputs = [rng.standard_normal(network.input_shape).astype(np.float32) for _ in range(4)]
        self.partitions: list[ExtractedPartition] = [extract(network, stages, weights, frames) for stages in STAGES]
        self.bytes = sum(partition.caffemodel.size for partition in self.partitions)

    def input_of(self, stage: int) -> np.ndarray:
        """The blob before a stage, for the first input."""
        self.net.put(0, self.inputs[0])
        self.net.run(0, stage - 1)
        return self.net.outputs(stage - 1)[0].copy()

    def session(self, client: Client | None) -> LiveSession:
        offloading = Offloading(self.network, self.net, self.graph, client, self.partitions, STAGES)
        return LiveSession(offloading, self.net, self.inputs)

    @contextlib.contextmanager
    def client(
        self, address: str, timeouts: Timeouts = SHORT, first_connect_s: float = WAIT_S
    ) -> Iterator[tuple[Client, LiveSession]]:
        with connected(address, timeouts, first_connect_s) as client:
            yield client, self.session(client)

    def check_health(self, address: str) -> None:
        """A new client can upload everything and have it run, and what comes back is right."""
        assert ping(address, timeout_s=WAIT_S).room
        with self.client(address, Timeouts(query_s=WAIT_S, silence_s=WAIT_S, connect_s=WAIT_S)) as (_, session):
            session.start_upload()
            wait_for(session.uploaded, "the upload")
            assert session.offloading.fault is None
            record = session.query()
            assert at_server(record)
            assert record.is_right  # bit for bit, unless the server has other numerics, such as two threads


def at_server(record: QueryRecord) -> bool:
    return not record.fallback and any(segment.where == "server" for segment in record.segments)


def recover(session: LiveSession) -> list[QueryRecord]:
    """Query until the server, which is back, answers again with all partitions."""
    records: list[QueryRecord] = []

    def whole() -> bool:
        records.append(session.query())
        return session.uploaded() and at_server(records[-1])

    wait_for(whole, f"the server to be used again ({session.offloading.fault})")
    return records


def bit_equal(records: Sequence[QueryRecord]) -> bool:
    return all(record.bit_equal for record in records)


def begin(session: LiveSession, phase: str) -> list[QueryRecord]:
    """Begin an upload, as far as a phase; the queries until then."""
    session.start_upload()
    if phase == "mid-partition":
        offloading = session.offloading
        wait_for(lambda: offloading.uploaded_bytes > offloading.total_bytes / 3, "a third of the upload")
    if phase not in ("mid-query", "between"):
        return []
    wait_for(session.uploaded, "the upload")
    return [session.query()]
