"""The messages of one query at the server: they may be sent without waiting, and are answered one by one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ionn.client.connection import Connection
from ionn.client.pacing import PacedResult, work_paced
from ionn.coding import PLANES, RAW
from ionn.errors import LateError, ProtocolError, ServerError
from ionn.model.caffemodel import Floats
from ionn.protocol.blobs import Payload, make_payload, read_payload
from ionn.protocol.messages import ERROR_QUERY, Join, Part, Query, Result

_Made = TypeVar("_Made")


class Coding(NamedTuple):
    """Says that a blob is to be coded, at a pace of `pace_ms` or, with None, as fast as this client can."""

    pace_ms: float | None = None


class Wanted(NamedTuple):
    """The shapes of the outputs that a message asks for, and their coding, or None for raw ones."""

    shapes: Sequence[tuple[int, ...]]
    coding: Coding | None = None


class Exchange:
    """Messages of query number `query` to the server, over a connection that nobody else uses meanwhile.

    `run`, `run_part` and `join` send a message and return its number, for which `result` waits. Without `data`, the
    stage runs on what the message before left at the server. To be used in a `with` statement, which ends when every
    message is answered, so that the connection is free for the next query. All answers together may take `timeout_s`.

    Data with a `coding` is sent coded, and outputs that are `wanted` with one come coded, where that makes them smaller
    and the server takes the codec (`codecs`). The shapes of raw outputs need not be known. `raw_bytes` and `wire_bytes`
    are what crossed the link so far, before and after coding; `up_bytes` and `down_bytes` are the wire bytes in each
    direction. `paced` has the times of a paced client's coding, and `coding_s` is the time of coding here.

    After `late_s` (time.monotonic()), if it is given, `result` raises LateError, and `drain` takes the answers when
    they come.
    """

    def __init__(
        self,
        control: Connection,
        query: int,
        timeout_s: float,
        codecs: Sequence[str] = (),
        late_s: float | None = None,
    ) -> None:
        self._control = control
        self._query = query
        self._left_s = timeout_s
        self._late_s = math.inf if late_s is None else late_s
        self._may_code = PLANES in codecs
        self.raw_bytes = self.wire_bytes = self.up_bytes = 0
        self.coding_s = 0.0
        self.paced: list[PacedResult] = []
        self._asked: list[tuple[bool, Wanted | None]] = []  # whether outputs may come coded, and which
        self._results: list[Result | None] = []  # None for an error

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None or (isinstance(error, ServerError) and error.code == ERROR_QUERY):
            while len(self._results) < len(self._asked):
                try:
                    self._receive()
                except ServerError as other:
                    if other.code != ERROR_QUERY:
                        raise

    def run(
        self,
        first: int,
        last: int,
        data: Floats | None = None,
        coding: Coding | None = None,
        wanted: Wanted | None = None,
    ) -> int:
        """Run stages `first`..`last`."""
        codecs, frames = self._encode(data, coding)
        return self._send(Query(self._query, first, last, frames, codecs, self._coded(wanted)), wanted)

    def run_part(
        self,
        stage: int,
        channels: int,
        stay: bool,
        data: Floats | None = None,
        coding: Coding | None = None,
        wanted: Wanted | None = None,
    ) -> int:
        """Run the first `channels` channels of a stage that is uploaded in slices; if they `stay`, for a `join`."""
        codecs, frames = self._encode(data, coding)
        return self._send(Part(self._query, stage, channels, stay, frames, codecs, self._coded(wanted)), wanted)

    def join(self, others: Floats, stay: bool, coding: Coding | None = None, wanted: Wanted | None = None) -> int:
        """Add the channels that `run_part` did not run, so that the next message can go on from the whole stage."""
        codecs, frames = self._encode(others, coding)
        return self._send(Join(self._query, stay, frames, codecs, self._coded(wanted)), wanted)

    def _coded(self, wanted: Wanted | None) -> bool:
        return self._may_code and wanted is not None and wanted.coding is not None

    def _send(self, message: Query | Part | Join, wanted: Wanted | None) -> int:
        # A copy: ZeroMQ sends the message later, and the server may answer before it has read all, so the net whose
        # memory the data is may run before it is sent.
        self._control.send(message, copy=True)
        self._asked.append((message.coded, wanted))
        return len(self._asked) - 1

    def _encode(self, data: Floats | None, coding: Coding | None) -> Payload:
        if data is None:
            return Payload((), ())
        blobs = [np.asarray(data, "<f4")]
        if not self._may_code:
            coding = None
        payload = self._at_pace(lambda: make_payload(blobs, coding is not None), coding)
        self._count(blobs, payload.frames)
        self.up_bytes += sum(memoryview(frame).nbytes for frame in payload.frames)
        return payload

    def _at_pace(self, work: Callable[[], _Made], coding: Coding | None) -> _Made:
        began = time.monotonic()
        try:
            if coding is None or coding.pace_ms is None:
                return work()
            made, paced = work_paced(work, coding.pace_ms)
            self.paced.append(paced)
            return made
        finally:
            self.coding_s += time.monotonic() - began

    def _count(self, blobs: Sequence[Floats], frames: Sequence[Any]) -> None:
        self.raw_bytes += sum(blob.nbytes for blob in blobs)
        self.wire_bytes += sum(memoryview(frame).nbytes for frame in frames)

    def result(self, sent: int) -> tuple[list[Floats], Result]:
        """Wait for the outputs that a message asked for, and its Result. `sent` is the message's number.

        Raises ServerError, ServerUnreachableError, ProtocolError and LateError.
        """
        while len(self._results) <= sent:
            self._receive()
        result = self._results[sent]
        assert result is not None, "the error was raised when it came"
        may_be_coded, wanted = self._asked[sent]
        if wanted is not None and result.shapes != tuple(wanted.shapes):
            raise self.violation("the server's result is not what was asked for: it has other shapes")
        is_coded = any(codec != RAW for codec in result.codecs)
        try:
            outputs = self._at_pace(
                lambda: read_payload(result.payload, result.codecs, result.shapes, may_be_coded),
                wanted.coding if wanted is not None and is_coded else None,
            )
        except (ValueError, OverflowError) as error:
            raise self.violation(f"the server's result does not fit its shapes: {error}") from error
        self._count(outputs, result.payload)
        return outputs, result

    def violation(self, what: str) -> ProtocolError:
        """The error to raise for a result that breaks the protocol."""
        return self._control.violation(what)

    @property
    def down_bytes(self) -> int:
        frames = (frame for result in self._results if result is not None for frame in result.payload)
        return sum(memoryview(frame).nbytes for frame in frames)

    @property
    def stage_ms(self) -> float:
        """Return how long the server says that it has computed so far, in ms."""
        return sum(sum(result.stage_ms) for result in self._results if result is not None)

    @property
    def failed(self) -> bool:
        """Tell whether an answer was an error."""
        return None in self._results

    def drain(self) -> bool:
        """Take the answers that have come; whether these are all. Raises what `result` raises, except LateError."""
        while len(self._results) < len(self._asked):
            try:
                if not self._take(0):
                    return False
            except ServerError as error:
                if error.code != ERROR_QUERY:
                    raise
        return True

    def _receive(self) -> None:
        """Wait for the next answer."""
        begun = time.monotonic()
        deadline = begun + self._left_s
        try:
            while (left_s := min(deadline, self._late_s) - time.monotonic()) > 0:
                if self._take(left_s):
                    return
        finally:
            self._left_s -= time.monotonic() - begun
        if self._late_s < deadline:
            raise LateError("the server has not answered a query in time")
        raise self._control.unreachable("the server has not answered a query in time")

    def _take(self, timeout_s: float) -> bool:
        """Take a message, if one comes in time; whether it is an answer. The Pong to a Ping that was sent before this
        query may come before the answers."""
        try:
            message = self._control.receive(timeout_s)
        except ServerError as error:
            if error.code == ERROR_QUERY:
                if error.query != self._query:
                    raise self.violation(f"the server failed query {error.query}, not {self._query}") from error
                self._results.append(None)
            raise
        if not isinstance(message, Result):
            return False
        if message.query != self._query:
            raise self.violation(f"the server's result is query {message.query}'s, not {self._query}'s")
        self._results.append(message)
        return True
