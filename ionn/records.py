"""What a trace records of each upload, each query and each estimate, on either testbed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import msgspec

from ionn.schema import TIME_MAX_MS, Natural, Real

# A time in a live run, in seconds: eleven days at most.
_LiveS = Annotated[float, msgspec.Meta(ge=0, le=TIME_MAX_MS / 1e3)]
# A share of the processors' time. It may be more than 1, as the system counts some ticks late, but never so much.
_Share = Annotated[float, msgspec.Meta(ge=0, le=1000)]


@dataclass(frozen=True)
class PartitionRecord:
    """The upload of one partition. Times are seconds since the upload of the model began.

    - `start_s`, `end_s`, `ready_s`: its upload began, its last byte arrived, and queries could use it.
    - `bytes`: its weights before coding, of which the server took `stored_bytes` from its store.
    - `wire_bytes`: the bytes that crossed the link for it, in all attempts, as far as the server acknowledged them;
      None in traces of earlier versions.
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
    """What a client that measures estimated from `time_s` on: the link's bandwidth and round-trip time, and the factors
    by which the times of the server and of the client itself are longer than their costs predict."""

    time_s: Real
    mbps: Real
    rtt_ms: Real
    server_factor: Real
    client_factor: Real


@dataclass(frozen=True)
class LoadRecord:
    """How busy the machine's processors were from `start_s` to `end_s`, as shares of their time: `busy` with anything,
    and busy with the run's `own` processes."""

    start_s: _LiveS
    end_s: _LiveS
    busy: _Share
    own: _Share

    @property
    def other(self) -> float:
        """The share of the processors that other load used."""
        return max(self.busy - self.own, 0.0)


@dataclass(frozen=True)
class Segment:
    """The adjacent stages `first`..`last` (indices, both included) of a query that one side executed.

    - `where`: "client", "server", or "both" for one stage of which each side computed some channels.
    - `compute_ms`: the time that the layers took, with the waits of a paced client; at "both", on the slower side.
    - `total_ms`: the same with the transfers to and from the server.
    - `stage_ms`: `compute_ms` stage by stage; empty if that was not measured.
    """

    where: Annotated[str, msgspec.Meta(pattern="^(client|server|both)$")]
    first: Natural
    last: Natural
    compute_ms: Real
    total_ms: Real
    stage_ms: tuple[Real, ...] = ()


@dataclass(frozen=True)
class QueryRecord:
    """One query. Times are seconds since the upload of the model began.

    - `raised_s`, `start_s`, `end_s`: it was raised, its execution began, and it was answered. In a closed loop, the
      first query waits for the first partition (paper, section 4.1); with other arrivals, a query waits while the
      client is busy.
    - `segments`: which stages ran where.
    - `overruns`, `overrun_ms`: how many layers and codings took longer than the pace of the client's device allows, and
      by how much in total.
    - `bit_equal`: whether the output equals that of a local forward pass bit for bit; None if nothing was computed.
    - `difference`: the largest difference of any value, relative to the output's largest value.
    - `tolerance`: the largest `difference` that is right; 0 if no bit may differ, None if it was not recorded (traces
      of earlier versions).
    - `fallback`: the server failed or was late, and the client completed the query.
    - `feature_bytes`, `feature_wire_bytes`: the bytes of the inputs and feature maps that crossed the link, before and
      after coding; None if they were not counted.
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
        """Whether the output is right; None if nothing was computed, or if no tolerance was recorded."""
        if self.bit_equal or self.bit_equal is None:
            return self.bit_equal
        return None if self.tolerance is None else 0 < self.tolerance >= self.difference

    @property
    def latency_ms(self) -> float:
        """The time from the beginning of the query's execution to its answer."""
        return (self.end_s - self.start_s) * 1e3

    @property
    def response_ms(self) -> float:
        """The time from when the query was raised to its answer: its wait and its latency."""
        return (self.end_s - self.raised_s) * 1e3


@dataclass(frozen=True)
class Outputs:
    """The outputs of some queries: how many were `computed`, how many of these were `equal` to those of a local forward
    pass bit for bit, and how many were `wrong`. `difference` is the largest among the wrong ones, or among all if none
    is wrong; `tolerance` is the largest that applied, None if it was not recorded."""

    computed: int
    equal: int
    wrong: int
    difference: float
    tolerance: float | None

    @classmethod
    def of(cls, queries: Iterable[QueryRecord]) -> Outputs:
        """Count the outputs of these queries."""
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
