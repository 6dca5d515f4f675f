"""Queries that come slowly, or never end, or faster than they are computed."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pytest

from ionn.model.network import Network
from ionn.model.partial_net import extract
from ionn.protocol import messages
from tests.strangers.peers import Stranger, ask, begin_session, message, send_partition, welcome
from tests.strangers.test_shares import PATIENT, served
from tests.support.world import Server

RELU = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 224 dim: 224 } } }
layer { name: "relu" type: "ReLU" bottom: "data" top: "relu" }
"""
PIECES = 20


class Slow:
    """A session that has uploaded a ReLU, and a query of it that comes in pieces."""

    def __init__(self, server: Server, stack: ExitStack) -> None:
        network = Network.from_text(RELU, "relu")
        self._server, self._stack = server, stack
        self.control, self.upload = (stack.enter_context(Stranger(server.address)) for _ in range(2))
        self.token, _ = begin_session(server, self.control)
        welcome(self.upload, self.token, "upload")
        send_partition(self.upload, extract(network, [1], {}))
        self._shape = network.input_shape

    def query(self, number: int) -> tuple[list[bytes], np.ndarray]:
        """The pieces of a query, and its result."""
        data = np.random.default_rng(number).standard_normal(self._shape).astype("<f4")
        sent = message(messages.Query(number, 1, 1, (data.tobytes(),)))
        size = len(sent) // PIECES + 1
        return [sent[at : at + size] for at in range(0, len(sent), size)], np.maximum(data, 0)

    def send(self, pieces: list[bytes]) -> None:
        """Send pieces, and ask for a sign of life by the other connection after each."""
        for piece in pieces:
            self.control.send(piece)
            assert isinstance(ask(self.upload, messages.Ping()), messages.Pong)

    def check(self, number: int) -> None:
        pieces, expected = self.query(number)
        self.send(pieces)
        self.expect(expected)

    def expect(self, expected: np.ndarray) -> None:
        result = self.control.answer()
        assert isinstance(result, messages.Result), result
        assert bytes(result.payload[0]) == expected.tobytes()

    def come_back(self) -> None:
        self.control = self._stack.enter_context(Stranger(self._server.address))
        assert welcome(self.control, self.token) == self.token


def test_queries_that_come_at_once_are_all_answered_rightly() -> None:
    """The session's inbox has one of them."""
    with served(*PATIENT) as server, ExitStack() as stack:
        slow = Slow(server, stack)
        queries = [slow.query(number) for number in range(1, 8)]
        slow.control.send(b"".join(piece for pieces, _ in queries for piece in pieces))
        for _, expected in queries:
            slow.expect(expected)


def test_uploads_do_not_wait_for_a_query_that_comes_slowly() -> None:
    with served(*PATIENT) as server, ExitStack() as stack:
        slow = Slow(server, stack)
        for number in (1, 2):
            slow.check(number)


@pytest.mark.parametrize("how", ["closed", "reset", "taken over"])
def test_a_query_that_never_ends_is_forgotten(how: str) -> None:
    """Its connection is gone, or another one takes its place."""
    with served(*PATIENT) as server, ExitStack() as stack:
        slow = Slow(server, stack)
        for number in range(1, 6, 2):
            pieces, _ = slow.query(number)
            slow.send(pieces[: PIECES - number])
            if how == "closed":
                slow.control.socket.close()
            elif how == "reset":
                slow.control.reset()
            slow.come_back()
            slow.check(number + 1)
