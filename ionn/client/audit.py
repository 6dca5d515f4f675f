"""Audits: some of a server's answers are computed again at the client, and compared.

When a query's answers have arrived, a draw decides whether it is audited. The probability depends on how long queries
and audits take, never on which queries were audited before, so that the past reveals nothing about the next draw. The
time of audits is also bounded: a query that is drawn when no time is left is audited later. docs/security.md has the
formula, and what it achieves.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ionn.client.evidence import keep_evidence
from ionn.errors import InputError, OtherNumericsError, WrongResultError, printable
from ionn.model.caffemodel import Floats
from ionn.model.comparison import TOLERANCE, Numerics, bit_equal, difference, unsteady_layer
from ionn.model.engine import StageNet, environment, numerics
from ionn.model.network import Network

# The part of its share of the time that a client plans to use. Draws come in clusters, so with all of it, many queries
# would have to wait.
_PLANNED = 0.5
# How many queries the time between queries is averaged over: a pause says little about the query after it.
_QUERIES = 100
# How many drawn queries may wait for their audit. Further ones are not audited, which happens in one session of a
# hundred.
_WAITING_MAX = 4


@dataclass
class Answered:
    """What a server answered to `data`, the blob before stage `first`: `outputs` of stages from there on, each with its
    stage, in order. Of a stage at both sides, they are the first channels only."""

    first: int
    data: Floats
    outputs: list[tuple[int, list[Floats]]] = field(default_factory=list)

    def add(self, stage: int, outputs: list[Floats]) -> None:
        if outputs:
            self.outputs.append((stage, outputs))


class Sampler:
    """Draws queries to be audited, so that audits take at most `share` of the time since it was made. `now_s` is a
    clock."""

    def __init__(self, share: float, now_s: Callable[[], float] = time.monotonic) -> None:
        self._share = share
        self._now_s = now_s
        self._start_s = self._counted_s = now_s()
        self._saved_s = 0.0  # the time that no draw has used yet
        self._spent_s = 0.0

    def draw(self, audit_s: float) -> bool:
        """Draw whether the query that has just been answered is audited, which would take about `audit_s`."""
        return secrets.randbits(53) < self._chance(audit_s) * 2**53

    def _chance(self, audit_s: float) -> float:
        now_s = self._now_s()
        self._saved_s += now_s - self._counted_s
        self._counted_s = now_s
        # No time is used twice, so audits are not planned for more time than there was, however unevenly queries come.
        query_s = self._saved_s / _QUERIES
        self._saved_s -= query_s
        if self._share == 1 or audit_s <= 0:
            return 1.0
        return min(1.0, _PLANNED * self._share / (1 - self._share) * query_s / audit_s)

    def has_time(self) -> bool:
        """Whether an audit may begin now."""
        return self._share == 1 or self._spent_s <= self._share * (self._now_s() - self._start_s)

    @contextlib.contextmanager
    def auditing(self) -> Iterator[None]:
        """Count the time of an audit, which is not time between queries."""
        begin_s = self._now_s()
        try:
            yield
        finally:
            audit_s = self._now_s() - begin_s
            self._spent_s += audit_s
            self._counted_s += audit_s


class Auditor:
    """Audits the answers of the server at `address` with `net`, the client's own copy of the network, for at most
    `share` of the time.

    A result is right if all its bits are those computed here; with a `tolerance` above 0, also if no value is off by
    more than that times the largest value computed here (`ionn.model.comparison.difference`).
    """

    def __init__(
        self,
        network: Network,
        net: StageNet,
        address: str,
        share: float,
        tolerance: float = 0.0,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Run the net once, to know how long its stages take. Raises InputError without a tolerance if the network has
        a layer whose last bits vary even between equal machines."""
        if not tolerance and (layer := unsteady_layer(network)) is not None:
            raise InputError(
                f"audit: layer '{layer.name}' of type '{layer.type}' has other last bits from process to process; "
                f"give an audit tolerance, such as {TOLERANCE:g}"
            )
        self._network = network
        self._net = net
        self._address = address
        self._tolerance = tolerance
        self._stage_ms = list(net.run(0, len(network.stages) - 1))  # the last time that each stage ran
        self._sampler = Sampler(share, now_s)
        self._waiting: deque[list[Answered]] = deque()

    def check_server(self, there: Numerics | None) -> None:
        """Raise OtherNumericsError without a tolerance for a server whose numerics `there` are not the client's: its
        bits may differ even if it is honest.

        A server that lies about its numerics gains nothing: it is not used, or it is audited like any other.
        """
        here = numerics()
        if not self._tolerance and there != here:
            told = "does not say with what it computes" if there is None else f"computes with {there}"
            raise OtherNumericsError(
                f"{self._address}: an audit without a tolerance compares bits, but the server {told}, and this "
                f"machine with {here}; give an audit tolerance, such as {TOLERANCE:g} (--audit-tolerance)"
            )

    def audit(self, answered: Sequence[Answered]) -> bool:
        """Perhaps audit what the server answered in a query; whether this query was audited now.

        Overwrites the blobs of the net. Raises WrongResultError if an answer in this query or an earlier one, which
        waited for its audit, was wrong.
        """
        query = [each for each in answered if each.outputs]
        if query and self._sampler.draw(self._audit_s(query)) and len(self._waiting) < _WAITING_MAX:
            self._waiting.append(query)
        audited = False
        while self._waiting and self._sampler.has_time():
            due = self._waiting.popleft()
            with self._sampler.auditing():
                try:
                    for each in due:
                        self._check(each)
                except WrongResultError:
                    self._waiting.clear()  # the server is not used any more
                    raise
            audited = due is query
        return audited

    def _audit_s(self, query: Sequence[Answered]) -> float:
        return sum(sum(self._stage_ms[each.first : each.outputs[-1][0] + 1]) for each in query) / 1e3

    def _check(self, answered: Answered) -> None:
        first = answered.first
        self._net.put(first, answered.data)
        for last, outputs in answered.outputs:
            self._stage_ms[first : last + 1] = self._net.run(first, last)
            # Of a stage at both sides, the server computed the first channels.
            pairs = zip(self._net.outputs(last), outputs, strict=True)
            computed = [output[:, : got.shape[1]] if output.shape != got.shape else output for output, got in pairs]
            if not all(map(self._right, outputs, computed)):
                raise self._wrong(answered, last, outputs, computed)
            first = last + 1

    def _right(self, got: Floats, computed: Floats) -> bool:
        return bit_equal(got, computed) or (self._tolerance > 0 and difference(got, computed) <= self._tolerance)

    def _wrong(
        self, answered: Answered, last: int, outputs: Sequence[Floats], computed: Sequence[Floats]
    ) -> WrongResultError:
        """The error to raise. The evidence is kept before."""
        pairs = list(zip(outputs, computed, strict=True))
        wrong = sum(int((got.view(np.uint32) != own.view(np.uint32)).sum()) for got, own in pairs)
        off = max(difference(got, own) for got, own in pairs)
        stages = self._network.stages[answered.first : last + 1]
        values = sum(output.size for output in outputs)
        try:
            kept = f"the evidence is {self._keep(answered, last, pairs, wrong, off)}"
        except Exception as error:  # even then, the server must not be used any more
            kept = f"the evidence is lost ({printable(str(error))})"
        return WrongResultError(
            f"{self._address}: the server gave a wrong result for stages {answered.first}..{last} "
            f"({stages[0].name} to {stages[-1].name}), so it is not used any more: {wrong} of {values} "
            f"values are not those computed here, by up to {off:.2g} of the largest; {kept}"
        )

    def _keep(
        self, answered: Answered, last: int, pairs: Sequence[tuple[Floats, Floats]], wrong: int, off: float
    ) -> Path:
        """Keep the evidence. Returns its file."""
        stages = self._network.stages[answered.first : last + 1]
        report = {
            "address": self._address,
            "model": self._network.name,
            "first_stage": answered.first,
            "last_stage": last,
            "stages": [stage.name for stage in stages],
            "outputs": list(stages[-1].outputs),
            "values": sum(got.size for got, _ in pairs),
            "wrong_values": wrong,
            "difference": off if math.isfinite(off) else None,  # JSON has no infinity
            "tolerance": self._tolerance,
            "environment": {"ionn": importlib.metadata.version("ionn"), **environment()},
        }
        arrays = {"sent": answered.data}
        for index, (got, own) in enumerate(pairs):
            arrays |= {f"answered_{index}": got, f"computed_{index}": own}
        return keep_evidence(report, arrays)
