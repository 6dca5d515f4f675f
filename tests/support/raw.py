"""A connection that sends what no `Client` would."""

from __future__ import annotations

import hashlib
from typing import Any

import zmq

from ionn.model.partial_net import ExtractedPartition
from ionn.protocol import messages
from ionn.protocol.curve import ClientKeys
from ionn.protocol.messages import PROTOCOL, Chunk, Message, PartitionEnd, PartitionHeader, decode, make_chunk
from tests.support.world import WAIT_S


class Raw:
    """Connections to a server; `control` has said hello and was welcomed to `session`, as `welcome` says. Use it in a
    `with` statement."""

    def __init__(self, address: str, keys: ClientKeys | None = None) -> None:
        self._context = zmq.Context()
        self._address = address
        self._keys = keys

    def __enter__(self) -> Raw:
        self.control = self.connect()
        try:
            welcome = self.ask(self.control, messages.Hello(PROTOCOL, "control"))
            assert isinstance(welcome, messages.Welcome), welcome
        except BaseException:
            self.__exit__()  # a context with open sockets waits for ever when it is freed
            raise
        self.welcome = welcome
        self.session = welcome.session
        return self

    def __exit__(self, *exception: object) -> None:
        self._context.destroy(linger=0)

    def bye(self) -> None:
        """End the session, and wait until it has ended."""
        assert isinstance(self.ask(self.control, messages.Bye()), messages.Error)

    def connect(self) -> zmq.Socket[Any]:
        socket = self._context.socket(zmq.DEALER)
        socket.linger = 0
        if self._keys is not None:
            self._keys.apply(socket)
        socket.connect(self._address)
        return socket

    def upload_connection(self) -> zmq.Socket[Any]:
        """The session's connection for uploads."""
        socket = self.connect()
        answer = self.ask(socket, messages.Hello(PROTOCOL, "upload", self.session))
        assert isinstance(answer, messages.Welcome), answer
        return socket

    def ask(self, socket: zmq.Socket[Any], *requests: Message | list[bytes]) -> Message:
        """Send requests; the next answer, to one message that is the answer to it."""
        for message in requests:
            socket.send_multipart(message.frames() if isinstance(message, Message) else message)
        return self.answer(socket)

    def upload(self, partition: ExtractedPartition, index: int = 0) -> None:
        header, chunks, end = upload_messages(partition, index)
        for message in (header, *chunks, end):
            answer = self.ask(self.control, message)
            assert not isinstance(answer, messages.Error), answer
        assert answer == messages.Ready(index)

    def answer(self, socket: zmq.Socket[Any]) -> Message:
        assert socket.poll(int(WAIT_S * 1e3)), "no answer"
        return decode(socket.recv_multipart())


def upload_messages(
    partition: ExtractedPartition, index: int = 0, chunk_bytes: int = 200_000
) -> tuple[PartitionHeader, list[Chunk], PartitionEnd]:
    model = partition.caffemodel
    return (
        PartitionHeader(index, partition.nets, model.blobs, model.size),
        [make_chunk(index, offset, parts) for offset, parts in model.chunks(chunk_bytes)],
        PartitionEnd(index, hashlib.sha256(model.tobytes()).hexdigest()),
    )
