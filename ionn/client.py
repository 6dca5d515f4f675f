"""The client's half of a session: connect, upload partitions in the background, have stages run at the server."""

from __future__ import annotations

import hashlib
import socket as sockets
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import zmq

from ionn.caffemodel import Floats
from ionn.errors import InputError, ProtocolError, ServerError, ServerUnreachableError
from ionn.link import format_address, parse_address
from ionn.partition import Partition
from ionn.trace import PartitionRecord
from ionn.wire import (
    CHUNK_BYTES,
    ERROR_VERSION,
    PROTOCOL,
    WINDOW_BYTES,
    Ack,
    Bye,
    Error,
    Hello,
    Message,
    PartitionEnd,
    PartitionHeader,
    Query,
    Ready,
    Result,
    Welcome,
    decode,
    make_chunk,
)

# A server answers a hello in milliseconds once it runs, a second where it still loads Caffe.
CONNECT_S = 10.0
# The longest that a live server stays silent while an upload or a query is under way.
SILENCE_S = 30.0


class _Channel:
    """One connection to the server. Not for use by two threads."""

    def __init__(self, context: zmq.Context[Any], address: str) -> None:
        self._address = address
        self.socket = context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.sndhwm = 0  # what is under way is bounded by credit
        self.socket.connect(address)

    def send(self, message: Message) -> None:
        self.socket.send_multipart(message.frames(), copy=False)

    def receive(self, timeout_s: float) -> Message:
        """The next message. Raises ServerUnreachableError after `timeout_s`, ServerError for an Error."""
        if not self.socket.poll(timeout_s * 1e3):
            raise ServerUnreachableError(f"{self._address}: the server has not answered for {timeout_s:.0f} s")
        message = decode(self.socket.recv_multipart(copy=False))
        if isinstance(message, Error):
            raise ServerError(message.code, f"{self._address}: {message.message}")
        return message

    def hello(self, role: str, session: str = "") -> Welcome:
        self.send(Hello(PROTOCOL, role, session))
        try:
            message = self.receive(CONNECT_S)
        except ServerError as error:
            if error.code == ERROR_VERSION:
                raise InputError(str(error)) from error
            raise
        if not isinstance(message, Welcome) or message.protocol != PROTOCOL:
            raise ProtocolError(f"{self._address}: no ionn server, it answered a hello with '{message.type}'")
        return message


class Client:
    """A session at a server.

    Raises InputError for a malformed address or a server of another protocol version, ServerUnreachableError where no
    server answers, ServerError where it refuses. Close it when done.
    """

    def __init__(self, address: str) -> None:
        host, port = parse_address(address)
        address = f"tcp://{format_address((host, port))}"
        try:
            # ZeroMQ would go on trying for ever; a plain connection says at once that nobody listens.
            sockets.create_connection((host, port), timeout=CONNECT_S).close()
        except OSError as error:
            raise ServerUnreachableError(f"{address}: no server there ({error.strerror or error})") from error
        self.address = address
        self._context: zmq.Context[Any] = zmq.Context()
        self._queries = 0
        self._uploader: Uploader | None = None
        try:
            self._channel = _Channel(self._context, address)
            welcome = self._channel.hello("control")
        except BaseException:
            self._context.destroy(linger=0)
            raise
        self._session = welcome.session
        self.costs = welcome.costs

    def start_upload(self, partitions: Sequence[Partition], now_s: Callable[[], float]) -> Uploader:
        """Upload the partitions in order, in a thread of its own; `now_s` is the clock of the records."""
        self._uploader = Uploader(self._context, self.address, self._session, partitions, now_s)
        self._uploader.start()
        return self._uploader

    def run(self, first: int, last: int, data: Floats, timeout_s: float = SILENCE_S) -> tuple[list[Floats], Result]:
        """Have the server run stages `first`..`last` on `data`: the outputs, and what the server said about them.

        Raises ServerUnreachableError, ServerError or ProtocolError; the session may then be beyond use.
        """
        self._queries += 1
        self._channel.send(Query(self._queries, first, last, (np.ascontiguousarray(data, "<f4"),)))
        while True:
            message = self._channel.receive(timeout_s)
            if isinstance(message, Result) and message.query == self._queries:
                break
        outputs = [
            np.frombuffer(frame, "<f4").reshape(shape)
            for frame, shape in zip(message.payload, message.shapes, strict=True)
        ]
        return outputs, message

    def close(self) -> None:
        """End the session; the server frees it."""
        if self._uploader is not None:
            self._uploader.stop()
        self._channel.send(Bye())
        # Long enough to say goodbye to a live server, short where it is gone.
        self._context.destroy(linger=200)


class Uploader(threading.Thread):
    """Sends partitions within the server's credit.

    `ready` is the number of partitions that queries may use, `sent_bytes` the weights that arrived so far, `error` what
    ended the upload early.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        address: str,
        session: str,
        partitions: Sequence[Partition],
        now_s: Callable[[], float],
    ) -> None:
        super().__init__(name="upload", daemon=True)
        self._context = context
        self._address = address
        self._session = session
        self._partitions = partitions
        self._now_s = now_s
        self._changed = threading.Condition()
        self._stopped = False
        self._started_s = [0.0] * len(partitions)
        self._ended_s = [0.0] * len(partitions)
        self._ready_s: list[float] = []
        self._under_way = 0
        self._received = [0] * len(partitions)
        self.error: Exception | None = None

    @property
    def ready(self) -> int:
        return len(self._ready_s)

    @property
    def sent_bytes(self) -> int:
        return sum(self._received)

    def wait_ready(self, count: int, timeout_s: float) -> bool:
        """Wait until `count` partitions are ready or the upload has ended; whether they are ready."""
        with self._changed:
            self._changed.wait_for(lambda: self.ready >= count or self._stopped, timeout_s)
        return self.ready >= count

    def stop(self) -> None:
        """End the thread, wherever it is, and wait for it."""
        self._stopped = True
        self.join()

    def records(self, names: Sequence[tuple[str, ...]]) -> list[PartitionRecord]:
        """What was uploaded; `names` are the stages of each partition."""
        return [
            PartitionRecord(
                index, names[index], self._partitions[index].caffemodel.size,
                self._started_s[index], self._ended_s[index], ready_s,
            )
            for index, ready_s in enumerate(self._ready_s)
        ]  # fmt: skip

    def run(self) -> None:
        channel = _Channel(self._context, self._address)
        try:
            channel.hello("upload", self._session)
            for index, partition in enumerate(self._partitions):
                self._send(channel, index, partition)
            while self.ready < len(self._partitions) and not self._stopped:
                self._receive(channel)
        except (ServerUnreachableError, ServerError, ProtocolError, InputError, zmq.ZMQError) as error:
            self.error = error
        finally:
            channel.socket.close(linger=0)
            with self._changed:
                self._stopped = True
                self._changed.notify_all()

    def _send(self, channel: _Channel, index: int, partition: Partition) -> None:
        model = partition.caffemodel
        self._started_s[index] = self._now_s()
        channel.send(PartitionHeader(index, partition.nets, model.blobs, model.size))
        digest = hashlib.sha256()
        for offset, parts in model.chunks(CHUNK_BYTES):
            size = sum(map(len, parts))
            while self._under_way + size > WINDOW_BYTES and not self._stopped:
                self._receive(channel)
            if self._stopped:
                return
            while channel.socket.poll(0):
                self._receive(channel)
            for part in parts:
                digest.update(part)
            channel.send(make_chunk(index, offset, parts))
            self._under_way += size
        channel.send(PartitionEnd(index, digest.hexdigest()))

    def _receive(self, channel: _Channel) -> None:
        deadline = time.monotonic() + SILENCE_S
        while not channel.socket.poll(100):
            if self._stopped:
                return
            if time.monotonic() > deadline:
                raise ServerUnreachableError(f"{self._address}: the server has taken no bytes for {SILENCE_S:.0f} s")
        message = channel.receive(0)
        now_s = self._now_s()
        if isinstance(message, Ack):
            index = message.partition
            self._under_way -= message.received - self._received[index]
            self._received[index] = message.received
            if message.received == self._partitions[index].caffemodel.size:
                self._ended_s[index] = now_s
                if index + 1 < len(self._partitions):
                    # Its first chunks may have been queued long before, but the link turns to it only now.
                    self._started_s[index + 1] = max(self._started_s[index + 1], now_s)
        elif isinstance(message, Ready):
            with self._changed:
                self._ready_s.append(now_s)
                self._changed.notify_all()
