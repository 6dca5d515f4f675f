"""A client for the fuzz tests: it sends anything, and knows what every answer must be like."""

from __future__ import annotations

import hashlib
from typing import Any, Self

import numpy as np
import zmq

from ionn.model.network import Network
from ionn.model.partial_net import PartialNet, extract, net_stages
from ionn.protocol import messages
from ionn.protocol.messages import PROTOCOL, Message, PartitionEnd, PartitionHeader, decode, make_chunk

WAIT_S = 60.0
# A batch. Others are looked after when it ends, and what it left in the session is left behind.
CASES_PER_SESSION = 100

SMALL = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 2 dim: 2 } } }
layer { name: "scale" type: "Scale" bottom: "data" top: "scale" }
layer { name: "out" type: "ReLU" bottom: "scale" top: "out" }
"""


class Session:
    """A session and its `control` connection. `ask` is the invariant: whatever is sent, one valid answer comes, and the
    session's process did not die of it."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._context = zmq.Context()

    def __enter__(self) -> Self:
        self._begin()
        return self

    def __exit__(self, *exception: object) -> None:
        self._socket.send_multipart(messages.Bye().frames())
        self._socket.close(1000)
        self._context.term()

    def _begin(self) -> None:
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.connect(self._address)
        answer = self.ask(messages.Hello(PROTOCOL, "control"))
        assert isinstance(answer, messages.Welcome), answer
        self.token = answer.session

    def ask(self, message: Message | list[bytes]) -> Message:
        return _ask(self._socket, message)


def _ask(socket: zmq.Socket[Any], message: Message | list[bytes]) -> Message:
    socket.send_multipart(message.frames() if isinstance(message, Message) else message)
    assert socket.poll(int(WAIT_S * 1e3)), "no answer"
    answer = decode(socket.recv_multipart())
    if isinstance(answer, messages.Error):
        assert answer.code != messages.ERROR_CRASHED, answer.message
        assert answer.message.isprintable()
    return answer


class Bystander(Session):
    """Minds its own business, and notices if the server does not."""

    def _begin(self) -> None:
        super()._begin()
        network = Network.from_text(SMALL, "small")
        partition = extract(network, [1], {"scale": (np.full(3, 2.0, np.float32),)})
        model = partition.caffemodel
        self.ask(PartitionHeader(0, partition.nets, model.blobs, model.size))
        for offset, parts in model.chunks(50):
            self.ask(make_chunk(0, offset, parts))
        assert self.ask(PartitionEnd(0, hashlib.sha256(model.tobytes()).hexdigest())) == messages.Ready(0)
        self._queries = 0

    def check(self) -> None:
        self._queries += 1
        data = np.arange(12, dtype=np.float32).reshape(1, 3, 2, 2) + self._queries
        result = self.ask(messages.Query(self._queries, 1, 1, (data.tobytes(),)))
        assert isinstance(result, messages.Result), result
        assert result.query == self._queries
        assert bytes(result.payload[0]) == (data * 2).tobytes()


class Peer(Session):
    """Sends anything. Call `case` once per case."""

    def __init__(self, address: str, bystander: Bystander) -> None:
        super().__init__(address)
        self._bystander = bystander
        self.cases = 0

    def case(self, fresh: bool = False) -> None:
        """Begin a case: in the session so far, or in a new one if it must be `fresh`."""
        if self.cases and self.cases % CASES_PER_SESSION == 0:
            self._bystander.check()
            fresh = True
        self.cases += 1
        if fresh:
            self.renew()

    def renew(self) -> None:
        """Leave the session for another one."""
        self._socket.send_multipart(messages.Bye().frames())
        self._socket.close(1000)
        self._begin()

    def outside(self, frames: list[bytes]) -> Message:
        """The answer to a connection's first message."""
        with self._context.socket(zmq.DEALER) as socket:
            socket.linger = 1000
            socket.connect(self._address)
            answer = _ask(socket, frames)
            if isinstance(answer, messages.Welcome):
                assert answer.session != self.token
                socket.send_multipart(messages.Bye().frames())
            return answer


def whole_net(text: str, network: Network) -> PartialNet:
    """A net of all stages, in the text's own words."""
    return PartialNet(text, network.input, net_stages(network, 0, len(network.stages) - 1))
