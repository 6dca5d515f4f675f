"""The messages of a query, on their way through ZeroMQ."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import zmq

from ionn.client.query import Exchange
from ionn.protocol.messages import Message, decode


class Waiting:
    """A connection to a peer that is not there yet: what is sent waits in ZeroMQ."""

    def __init__(self, context: zmq.Context[Any]) -> None:
        self._socket = context.socket(zmq.DEALER)
        self._socket.connect("inproc://server")

    def send(self, message: Message, copy: bool = False) -> None:
        self._socket.send_multipart(message.frames(), copy=copy)


@pytest.mark.parametrize("what", ["run", "part", "join"])
def test_what_is_sent_is_what_was_given(what: str) -> None:
    """Whatever becomes of the net that it is a view of: a server may answer before it has read the query."""
    data = np.arange(100_000, dtype=np.float32).reshape(1, 10, 100, 100)
    given = data.copy()
    context: zmq.Context[Any] = zmq.Context()
    try:
        with context.socket(zmq.ROUTER) as server:
            control: Any = Waiting(context)
            exchange = Exchange(control, 1, 1.0)
            if what == "run":
                exchange.run(1, 1, data)
            elif what == "part":
                exchange.run_part(1, 5, False, data)
            else:
                exchange.join(data, False)
            data[:] = -1
            server.bind("inproc://server")
            assert server.poll(30_000)
            message: Any = decode(server.recv_multipart()[1:])
            assert bytes(message.payload[0]) == given.tobytes()
    finally:
        context.destroy(linger=0)
