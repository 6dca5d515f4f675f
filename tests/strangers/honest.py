"""An honest session beside strangers, and what of the server must be back to where it was when they have gone."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import zmq

from ionn.client.connection import ping
from ionn.protocol import messages
from ionn.protocol.messages import PROTOCOL
from ionn.protocol.zmtp import FRAME_COST
from ionn.server.limits import Limits
from tests.support.raw import upload_messages
from tests.support.world import WAIT_S, Server, World, wait_for

# What a front may grow beyond the sum of its limits.
SLACK_BYTES = 50_000_000
# And what it may have kept when they have gone: not all that is freed is whole pages.
LEFT_BYTES = 5_000_000
# Answers that one client has not read, and what a connection without a session may have.
UNREAD_BYTES = 1_300_000
PENDING_BYTES = 30_000


def limits_bytes(sessions: int) -> int:
    """What the front may hold for so many sessions and all connections without one."""
    limits = Limits()
    cost = limits.blob_mb * 1e6 + limits.window_kb * 1e3 + 2 * (limits.header_kb * 1e3 + limits.frames * FRAME_COST)
    return int(sessions * (cost + 2 * UNREAD_BYTES) + limits.pending * PENDING_BYTES)


class Honest:
    """A session by a stock DEALER that never loses its connection, and whose every answer is right."""

    def __init__(self, address: str, world: World, keys: Any = None) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        if keys is not None:
            keys.apply(self._socket)
        self._socket.connect(address)
        welcome = self.ask(messages.Hello(PROTOCOL, "control"))
        assert isinstance(welcome, messages.Welcome), welcome
        self.token = welcome.session
        header, chunks, end = upload_messages(world.partitions[0])
        for message in (header, *chunks, end):
            assert not isinstance(self.ask(message), messages.Error)
        self._data = world.input_of(1)
        self._expected = world.input_of(2).tobytes()
        self._queries = 0

    def ask(self, message: messages.Message) -> messages.Message:
        self._socket.send_multipart(message.frames())
        assert self._socket.poll(int(WAIT_S * 1e3)), "an honest client gets no answer"
        return messages.decode(self._socket.recv_multipart())

    def check(self) -> None:
        """It is answered, rightly, over the connection that it always had."""
        self._queries += 1
        result = self.ask(messages.Query(self._queries, 1, 1, (self._data.tobytes(),)))
        assert isinstance(result, messages.Result), result
        assert result.query == self._queries
        assert bytes(result.payload[0]) == self._expected
        assert isinstance(self.ask(messages.Ping()), messages.Pong)

    @contextlib.contextmanager
    def all_the_while(self) -> Iterator[None]:
        """Ask and check without a pause, in a thread of its own."""
        ended = threading.Event()
        failures: list[BaseException] = []

        def work() -> None:
            try:
                while not ended.is_set():
                    self.check()
            except BaseException as failure:
                failures.append(failure)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
        if failures:
            raise failures[0]

    def close(self) -> None:
        self._socket.send_multipart(messages.Bye().frames())
        self._socket.close(1000)
        self._context.term()


class Watched:
    """A server with an honest session, and what its front had when it was alone with it."""

    def __init__(self, server: Server, world: World) -> None:
        self.server = server
        self.address = server.address
        self.world = world
        self.honest = Honest(server.address, world)
        self.honest.check()
        self.sessions = {self.honest.token}

    def _status(self, name: str) -> int:
        (line,) = (
            line for line in Path(f"/proc/{self.server.pid}/status").read_text().splitlines() if line.startswith(name)
        )
        return int(line.split()[1]) * 1024

    def memory_bytes(self) -> int:
        return self._status("VmRSS")

    def begin(self) -> None:
        """Remember what there is, and measure the peak from now on."""
        wait_for(lambda: self.connections() == 1, "nobody but the honest client to be connected")
        Path(f"/proc/{self.server.pid}/clear_refs").write_text("5")
        self._memory_bytes = self.memory_bytes()
        self._descriptors = self.descriptors()
        self._processes = self.processes()

    @property
    def peak_bytes(self) -> int:
        """By how much the front has grown at its peak."""
        return self._status("VmHWM") - self._memory_bytes

    def descriptors(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for descriptor in Path(f"/proc/{self.server.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found[descriptor.readlink().name.partition(":")[0]] += 1
        return found

    def connections(self) -> int:
        front = psutil.Process(self.server.pid)
        return sum(each.status != psutil.CONN_LISTEN for each in front.net_connections("tcp"))

    def processes(self) -> set[int]:
        return {child.pid for child in psutil.Process(self.server.pid).children(recursive=True)}

    def end(self, most_bytes: int = 0) -> None:
        """All is as it was before the strangers came. `most_bytes` is the sum of the limits of what they had."""
        assert self.peak_bytes <= most_bytes + SLACK_BYTES, f"the front grew by {self.peak_bytes / 1e6:.0f} MB"
        self.honest.check()
        assert ping(self.address, timeout_s=WAIT_S).room
        wait_for(lambda: ping(self.address, timeout_s=WAIT_S).sessions == 1, "their sessions to end")
        wait_for(lambda: self.processes() == self._processes, "their processes to be gone")
        self._wait_for_descriptors()
        wait_for(lambda: self.memory_bytes() <= self._memory_bytes + LEFT_BYTES, "the front to be as small as it was")
        another = Honest(self.address, self.world)
        another.check()
        another.close()
        wait_for(lambda: self.processes() == self._processes, "a newcomer's process to be gone")
        self._wait_for_descriptors()

    def _wait_for_descriptors(self) -> None:
        wait_for(lambda: self.descriptors() == self._descriptors, f"{self.descriptors()} to be {self._descriptors}")


def random_bytes(seed: int, count: int) -> bytes:
    return np.random.default_rng(seed).bytes(count)
