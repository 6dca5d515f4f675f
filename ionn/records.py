"""What is recorded of an upload and of a query, wherever they ran: the lines of a trace."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import msgspec

from ionn.schema import Natural, Real


@dataclass(frozen=True)
class PartitionRecord:
    """One upload. `start_s`: the link turned to it; `end_s`: its last byte arrived; `ready_s`: queries may use it.

    `bytes` are weights as they are decoded, and `stored_bytes` those of them that the server took from its store.
    `wire_bytes` is what crossed the link for them, in every attempt, as far as the server acknowledged it; None in
    earlier traces.
    """

    index: Natural
    stages: tuple[str, ...]
    bytes: Natural
    start_s: Real
    end_s: Real
    ready_s: Real
    wire_bytes: Natural | None = None
    stored_bytes: Natural = 0


@dataclass(frozen=True)
class EstimateRecord:
    """What a client that measures believed from `time_s` on: the link's rate and its round-trip time, and by which
    factors the server's and its own times are longer than their costs promise."""

    time_s: Real
    mbps: Real
    rtt_ms: Real
    server_factor: Real
    client_factor: Real


@dataclass(frozen=True)
class LoadRecord:
    """How busy the machine's processors were from `start_s` to `end_s`, as a share of all of them: with anything, and
    with the run's `own` processes."""

    start_s: Real
    end_s: Real
    busy: Real
    own: Real

    @property
    def other(self) -> float:
        """The share of the processors that was used by what is not the run's."""
        return max(self.busy - self.own, 0.0)


@dataclass(frozen=True)
class Segment:
    """A run of stages `first`..`last` (indices, both included) that one side executed in one go.

    `compute_ms` is the time its layers took there (a paced client's waits included), `total_ms` includes the transfers
    to and from a server. `stage_ms` is `compute_ms` stage by stage, where it was measured. One stage may run at "both",
    some of its channels at each; `compute_ms` is then that of the side that took longer.
    """

    where: Annotated[str, msgspec.Meta(pattern="^(client|server|both)$")]
    first: Natural
    last: Natural
    compute_ms: Real
    total_ms: Real
    stage_ms: tuple[Real, ...] = ()


@dataclass(frozen=True)
class QueryRecord:
    """One query. `raised_s` <= `start_s`: in a closed loop, the first query waits for the first partition before it
    executes; else, any that meets a busy client waits for it.

    `overruns` counts layers, and codings, that took longer than the pace allows, `overrun_ms` is by how much in total.
    `bit_equal`: the output equals the local forward bit for bit (None where nothing was computed). `difference` is by
    how much it does not: the largest of any value, relative to the output's largest value. Processors of another kind
    add in another order, so that a difference of up to `tolerance` may be right; it is 0 where no bit may differ, and
    None where that was not recorded, as in traces of earlier versions.
    `fallback`: the server failed meanwhile, or was late, and the client completed it. `feature_bytes` are inputs and
    feature maps as they are decoded, `feature_wire_bytes` what of them crossed the link; None where they were not
    counted.
    """

    index: Natural
    raised_s: Real
    start_s: Real
    end_s: Real
    segments: tuple[Segment, ...]
    overruns: Natural = 0
    overrun_ms: Real = 0.0
    bit_equal: bool | None = None
    fallback: bool = False
    difference: Real = 0.0
    feature_bytes: Natural | None = None
    feature_wire_bytes: Natural | None = None
    tolerance: Real | None = None

    @property
    def is_right(self) -> bool | None:
        """Whether the output is what it has to be; None where nothing was computed, or that cannot be told."""
        if self.bit_equal or self.bit_equal is None:
            return self.bit_equal
        return None if self.tolerance is None else 0 < self.tolerance >= self.difference

    @property
    def latency_ms(self) -> float:
        """The time from when the query's execution began to its answer."""
        return (self.end_s - self.start_s) * 1e3

    @property
    def response_ms(self) -> float:
        """The time from its arrival to its answer: its latency, and what it waited before."""
        return (self.end_s - self.raised_s) * 1e3


@dataclass(frozen=True)
class Outputs:
    """What the outputs of some queries were: how many were `computed`, how many of these were `equal` to the local
    forward bit for bit, and how many `wrong`. `difference` is the largest of those that are wrong, or of all where none
    is, and `tolerance` the largest that applied, None where it was not recorded."""

    computed: int
    equal: int
    wrong: int
    difference: float
    tolerance: float | None

    @classmethod
    def of(cls, queries: Iterable[QueryRecord]) -> Outputs:
        """What those of these queries were."""
        computed = [query for query in queries if query.bit_equal is not None]
        wrong = [query for query in computed if query.is_right is False]
        tolerances = [query.tolerance for query in computed if query.tolerance is not None]
        return cls(
            len(computed),
            sum(query.bit_equal is True for query in computed),
            len(wrong),
            max((query.difference for query in wrong or computed), default=0.0),
            max(tolerances) if len(tolerances) == len(computed) > 0 else None,
        )

    def __str__(self) -> str:
        if not self.computed:
            return "not computed"
        if self.equal == self.computed:
            return "bit-equal"
        said = "WRONG, off by" if self.wrong else "differ by" if self.tolerance is None else "within"
        return f"{said} {self.difference:.0e}"
