"""Traces: what one run of the experiment recorded, as plain data on disk.

A trace is one file of JSON lines: a `run` line (who, what, with which settings), a `partition` line per upload, a
`query` line per query, and an `end` line. A file without its `end` line is an interrupted run. Times are seconds since
the upload began, on the clock of the testbed; `Trace.load` divides them by the run's dilation, so that readers see the
undilated experiment. The `run` line says whether they were divided before (`undilated`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import msgspec

from ionn.arguments import path_of
from ionn.errors import InputError
from ionn.files import write_file
from ionn.records import Natural, PartitionRecord, QueryRecord, Real
from ionn.strict import TIME_MAX_MS, parse_json

SCHEMA = 1
# A run that is slowed down a thousand times takes as many half minutes: eight hours.
DILATION_MAX = 1000.0


@dataclass(frozen=True)
class RunInfo:
    """The settings of a run. `plan` is `Plan.to_json()`. `graph` are the costs that predict the run, undilated: those
    measured during a live run, those given to a virtual one."""

    testbed: Annotated[str, msgspec.Meta(pattern="^(virtual|live)$")]
    model: str
    algorithm: str
    run: Natural
    mbps: Annotated[float, msgspec.Meta(gt=0, le=TIME_MAX_MS)]
    seed: Natural
    dilation: Annotated[float, msgspec.Meta(ge=1, le=DILATION_MAX)]
    client: str
    server: str
    plan: dict[str, Any]
    graph: dict[str, Any]
    environment: dict[str, Any] = field(default_factory=dict)


class _PlannedPartition(TypedDict):
    stages: list[str]
    bytes: Natural


class _Plan(TypedDict):
    """What readers take from `RunInfo.plan`."""

    partitions: list[_PlannedPartition]
    model_bytes: NotRequired[Natural]
    planning_ms: NotRequired[Real]


@dataclass(frozen=True)
class Trace:
    """A run. `is_undilated`: its times were divided by its dilation, which is above 1."""

    info: RunInfo
    partitions: tuple[PartitionRecord, ...]
    queries: tuple[QueryRecord, ...]
    is_undilated: bool = False

    @property
    def upload_s(self) -> float:
        """When the last partition became usable; 0 for an empty plan."""
        return max((p.ready_s for p in self.partitions), default=0.0)

    @property
    def queries_before_upload(self) -> int:
        """Queries that ended before the whole plan was uploaded (paper, section 4.3)."""
        return sum(q.end_s <= self.upload_s for q in self.queries)

    @property
    def queries_in_upload(self) -> float:
        """Like `queries_before_upload`, and the part of the query under way when the upload ended that was over."""
        parts = ((self.upload_s - q.start_s) / (q.end_s - q.start_s) for q in self.queries if q.end_s > q.start_s)
        return sum(min(max(part, 0.0), 1.0) for part in parts)

    def partitions_per_half(self) -> tuple[int, int]:
        """Partitions whose upload ends in the first and in the second half of the upload time (paper, Fig. 5)."""
        first = sum(p.end_s <= self.upload_s / 2 for p in self.partitions)
        return first, len(self.partitions) - first

    def save(self, path: Path) -> None:
        """Write the trace; the file appears under its name only when complete.

        Raises InputError where it cannot be written (disk full, no permission); nothing half-written stays behind.
        """
        lines = (json.dumps(record, allow_nan=False) + "\n" for record in self._records())
        write_file(path, "".join(lines).encode())

    def _records(self) -> Iterator[dict[str, Any]]:
        undilated = {"undilated": True} if self.is_undilated else {}
        yield {"record": "run", "schema": SCHEMA, **undilated, **dataclasses.asdict(self.info)}
        for partition in self.partitions:
            yield {"record": "partition", **dataclasses.asdict(partition)}
        for query in self.queries:
            yield {"record": "query", **dataclasses.asdict(query)}
        yield {"record": "end"}

    @classmethod
    def load(cls, path: Path) -> Trace:
        """Read a trace, with all times divided by its dilation. Raises InputError if it is not a complete trace."""
        path = path_of(path, "trace")
        info: RunInfo | None = None
        partitions: list[PartitionRecord] = []
        queries: list[QueryRecord] = []
        complete = undilated = False
        try:
            with path.open(encoding="utf-8") as lines:
                for line in lines:
                    record = parse_json(line)
                    kind = record.pop("record")
                    if kind == "run":
                        if record.pop("schema") != SCHEMA:
                            raise InputError(f"{path}: written by another version of ionn; delete it and run again")
                        undilated = record.pop("undilated", False) is True
                        info = msgspec.convert(record, RunInfo)
                        msgspec.convert(info.plan, _Plan)
                    elif kind == "partition":
                        partitions.append(msgspec.convert(record, PartitionRecord))
                    elif kind == "query":
                        queries.append(msgspec.convert(record, QueryRecord))
                    complete = kind == "end"
        except OSError as error:
            raise InputError(f"{path}: cannot read the trace: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: not a trace of ionn ({error}); delete it and run again") from error
        if info is None or not queries or not complete:
            raise InputError(f"{path}: an interrupted run; delete it and run again")
        return cls(info, tuple(partitions), tuple(queries), undilated).undilated()

    def undilated(self) -> Trace:
        """The trace with all times divided by its dilation, as `load` returns it; itself if they are."""
        k = self.info.dilation
        if k == 1 or self.is_undilated:
            return self
        partitions = tuple(
            dataclasses.replace(p, start_s=p.start_s / k, end_s=p.end_s / k, ready_s=p.ready_s / k)
            for p in self.partitions
        )
        queries = tuple(
            dataclasses.replace(
                q,
                raised_s=q.raised_s / k,
                start_s=q.start_s / k,
                end_s=q.end_s / k,
                overrun_ms=q.overrun_ms / k,
                segments=tuple(
                    dataclasses.replace(
                        s,
                        compute_ms=s.compute_ms / k,
                        total_ms=s.total_ms / k,
                        stage_ms=tuple(ms / k for ms in s.stage_ms),
                    )
                    for s in q.segments
                ),
            )
            for q in self.queries
        )
        return Trace(self.info, partitions, queries, is_undilated=True)


def trace_path(results: Path, testbed: str, model: str, algorithm: str, run: int) -> Path:
    """Where a run's trace lives: results/traces/TESTBED/MODEL/ALGORITHM/run-NN.jsonl."""
    return results / "traces" / testbed / model / algorithm / f"run-{run:02d}.jsonl"


def load_traces(results: Path) -> list[Trace]:
    """All complete traces below results/traces, in path order."""
    return [Trace.load(path) for path in sorted((results / "traces").glob("*/*/*/run-*.jsonl"))]
