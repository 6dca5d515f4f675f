"""The messages of one query at the server: sent ahead where they need not wait, and answered one by one."""

from __future__ import annotations

import time
from types import TracebackType

import numpy as np

from ionn.client.connection import Connection
from ionn.errors import ProtocolError, ServerError
from ionn.model.caffemodel import Floats
from ionn.protocol.messages import ERROR_QUERY, Join, Message, Part, Query, Result


class Exchange:
    """Stages of query number `query`, run by the server over a connection that nobody else uses meanwhile.

    `run`, `run_part` and `join` send a message and return its ticket, for which `result` waits. Without `data`, the
    stage runs on what the message before left at the server. Used in a `with` statement, which ends when every message
    is answered, so that the connection is free for the next query. Its answers are waited for `timeout_s` in all.
    """

    def __init__(self, control: Connection, query: int, timeout_s: float) -> None:
        self._control = control
        self._query = query
        self._left_s = timeout_s
        self._sent = 0
        self._results: list[Result | None] = []  # None for an error

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None or (isinstance(error, ServerError) and error.code == ERROR_QUERY):
            while len(self._results) < self._sent:
                try:
                    self._receive()
                except ServerError as other:
                    if other.code != ERROR_QUERY:
                        raise

    def run(self, first: int, last: int, data: Floats | None = None) -> int:
        """Run stages `first`..`last`."""
        return self._send(Query(self._query, first, last, _payload(data)))

    def run_part(self, stage: int, channels: int, stay: bool, data: Floats | None = None) -> int:
        """Run the first `channels` channels of a stage that is uploaded in slices; if they `stay`, for a `join`."""
        return self._send(Part(self._query, stage, channels, stay, _payload(data)))

    def join(self, others: Floats, stay: bool) -> int:
        """Add the channels that `run_part` did not run, so that the next message can go on from the whole stage."""
        return self._send(Join(self._query, stay, _payload(others)))

    def _send(self, message: Message) -> int:
        self._control.send(message)
        self._sent += 1
        return self._sent - 1

    def result(self, sent: int) -> tuple[list[Floats], Result]:
        """The outputs that a message asked for, and what the server said of them. `sent` is what sending it returned.

        Raises ServerError, ServerUnreachableError and ProtocolError.
        """
        while len(self._results) <= sent:
            self._receive()
        result = self._results[sent]
        assert result is not None, "the error was raised when it came"
        try:
            pairs = zip(result.payload, result.shapes, strict=True)
            return [np.frombuffer(frame, "<f4").reshape(shape) for frame, shape in pairs], result
        except (ValueError, OverflowError) as error:
            raise self.violation(f"the server's result does not fit its shapes: {error}") from error

    def violation(self, what: str) -> ProtocolError:
        """The error to raise for a result that cannot be one."""
        return self._control.violation(what)

    def _receive(self) -> None:
        """The next answer. A sign of life that was asked for before this query may come before it."""
        begun = time.monotonic()
        deadline = begun + self._left_s
        try:
            while (left_s := deadline - time.monotonic()) > 0:
                message = self._control.receive(left_s)
                if isinstance(message, Result):
                    if message.query != self._query:
                        raise self.violation(f"the server's result is query {message.query}'s, not {self._query}'s")
                    self._results.append(message)
                    return
        except ServerError as error:
            if error.code == ERROR_QUERY:
                if error.query != self._query:
                    raise self.violation(f"the server failed query {error.query}, not {self._query}") from error
                self._results.append(None)
            raise
        finally:
            self._left_s -= time.monotonic() - begun
        raise self._control.unreachable("the server has not answered a query in time")


def _payload(data: Floats | None) -> tuple[Floats, ...]:
    """A copy: ZeroMQ sends it in its own time, and the server may answer before it has read all, so that the net which
    the data is of runs meanwhile."""
    return () if data is None else (np.array(data, "<f4", order="C").reshape(-1),)
