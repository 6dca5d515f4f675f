"""Traces: what one run of the experiment recorded, as plain data on disk.

A trace is one file of JSON lines: a `run` line (the `RunInfo`), an `estimate` line for each new estimate of a client
that measures, a `partition` line per uploaded partition, a `query` line per query, a `drops` line if queries were not
answered, a `load` line per second of a live run, and an `end` line. A file without its `end` line is an interrupted
run. Times are seconds since the upload began, on the clock of the testbed. `Trace.load` divides them by the run's
dilation, so that readers see the undilated experiment; `undilated` in the `run` line says that this was done before.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ionn.arguments import path_of
from ionn.coding import NONE
from ionn.errors import InputError, printable
from ionn.files import matching, open_regular, write_file
from ionn.model.comparison import OutputCheck
from ionn.paper import SERVER
from ionn.planning.graph import ExecutionGraph, GraphDocument
from ionn.planning.plan import Plan, PlanDocument
from ionn.planning.planners import planner_digest
from ionn.records import EstimateRecord, LoadRecord, Outputs, PartitionRecord, QueryRecord
from ionn.schema import Natural, Real, Tagged
from ionn.testbed.arrivals import CLOSED, WAIT, Arrivals
from ionn.testbed.bandwidth import Bandwidth
from ionn.testbed.other_load import Disturbance, disturbance
from ionn.testbed.responses import Responses, responses_of, spans
from ionn.testbed.settings import NOT_PACED, SHARE, Settings

if TYPE_CHECKING:
    from ionn.model.network import Network

SCHEMA = 1
# The names of the traces in the folder of an algorithm.
RUNS = "run-*.jsonl"


@dataclass(frozen=True)
class RunInfo:
    """What a run was made with.

    - `settings`: its settings. `run`: its number among the runs with these settings.
    - `graph`: the costs that predict the run, undilated: those measured during a live run, or given to a virtual one.
    - `sent`: the name of the costs that a live run's server sent.
    - `environment`: a description of the machine and its software.
    - `fault`: why the run went on without its server; None if it kept it.
    - `digests`: those of the "network", the "planner", and, if weights are coded, of the sizes of "coded" ones, which
      tell them from others of the same names; not in the traces of earlier versions.
    - `bandwidth`: that of the link that the settings name, undilated; None if they name none.
    - `output_check`: how outputs were compared, and why so; None if none were.
    """

    settings: Settings
    run: int
    plan: Plan
    graph: ExecutionGraph
    sent: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)
    fault: str | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    bandwidth: Bandwidth | None = None
    output_check: OutputCheck | None = None

    @property
    def model(self) -> str:
        """The name of the network."""
        return self.plan.model

    @property
    def algorithm(self) -> str:
        """The name of the planner."""
        return self.plan.algorithm

    @property
    def server(self) -> str:
        """The name of the server's costs with which the run was planned."""
        return self.settings.server or (SERVER if self.settings.testbed == "virtual" else self.sent)


def run_digests(network: Network, algorithm: str) -> dict[str, str]:
    """Return the `RunInfo.digests` of a run of a network, planned by an algorithm."""
    return {"network": network.digest, "planner": planner_digest(algorithm)}


class _RunDocument(msgspec.Struct):
    """A `RunInfo` as JSON. `server_given` is whether a live run was planned with costs that the user named. The noise
    of a virtual run and the fault of a live one are in `environment`. A closed loop has no `arrivals`, `busy` and
    `deadline_ms`."""

    schema: Natural
    testbed: str
    model: str
    algorithm: str
    run: Natural
    mbps: float | None
    seed: Natural
    dilation: float
    client: str
    server: str
    plan: PlanDocument
    graph: GraphDocument
    environment: dict[str, Any] = {}
    server_given: bool = False
    connect: str = ""
    network: str = ""
    digests: dict[str, str] = {}
    coding: str = NONE
    weight_ratio: float | None = None
    window_s: float | None = None
    undilated: bool = False
    link: str = ""
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    upload: str = SHARE
    bandwidth: Bandwidth | None = None
    arrivals: str = CLOSED
    busy: str = WAIT
    deadline_ms: float | None = None
    output_check: OutputCheck | None = None

    def info(self) -> RunInfo:
        """The `RunInfo` itself. Raises InputError for values that cannot be those of a run."""
        if self.schema != SCHEMA:
            raise InputError("written by another version")
        environment = {printable(name): _shown(value) for name, value in self.environment.items()}
        noise = msgspec.convert(environment.pop("noise", 0.0), float)
        fault = msgspec.convert(environment.pop("fault", None), str | None)
        given = self.server_given if self.testbed == "live" else self.server != SERVER
        paced = not self.client.endswith(NOT_PACED)
        settings = Settings(
            self.testbed, self.mbps, self.dilation, printable(self.client.removesuffix(NOT_PACED)),
            printable(self.server) if given else "", self.seed, noise, paced, printable(self.connect), self.network,
            self.coding, self.weight_ratio, self.window_s, printable(self.link), self.delay_ms, self.jitter_ms,
            self.upload, Arrivals(printable(self.arrivals)), self.busy, self.deadline_ms,
        )  # fmt: skip
        graph = self.graph.graph()
        sent = "" if given or self.testbed == "virtual" else printable(self.server)
        plan = Plan.from_document(self.plan, graph)
        _check_name(plan.model)
        _check_name(plan.algorithm)
        if bool(self.link) != (self.bandwidth is not None):
            raise InputError("its link has a name or a bandwidth, but not both")
        return RunInfo(
            settings, self.run, plan, graph, sent, environment, fault, self.digests, self.bandwidth, self.output_check
        )


def _shown(value: Any) -> Any:
    return printable(value) if isinstance(value, str) else value


def _check_name(name: str) -> None:
    """Raise InputError for a name that cannot be that of a folder, or cannot be shown."""
    if not name or name in (".", "..") or "/" in name or len(name.encode()) > 200 or printable(name) != name:
        raise InputError(f"{printable(name[:60])!r} cannot be the name of a model or planner in a trace; rename it")


def _check_stages(queries: Sequence[QueryRecord], graph: ExecutionGraph) -> None:
    """Raise InputError for a query that was executed at stages that are none of the graph's."""
    for segment in (each for query in queries for each in query.segments):
        if not segment.first <= segment.last < len(graph.stages):
            raise InputError(f"a query has stages {segment.first} to {segment.last}, which its graph has not")


def _check_order(loads: Sequence[LoadRecord]) -> None:
    """Raise InputError unless each of these ends after it begins, and no later than the next one begins."""
    times_s = [time_s for each in loads for time_s in (each.start_s, each.end_s)]
    if times_s != sorted(times_s) or any(each.start_s == each.end_s for each in loads):
        raise InputError("its loads are not in the order of time")


def _run_json(info: RunInfo) -> dict[str, Any]:
    """Return the fields of `_RunDocument`, except the schema."""
    settings = info.settings
    noise = {"noise": settings.noise} if settings.testbed == "virtual" else {}
    fault = {} if info.fault is None else {"fault": info.fault}
    arrivals = {"arrivals": settings.arrivals.name, "busy": settings.busy, "deadline_ms": settings.deadline_ms}
    return {
        "testbed": settings.testbed,
        "model": info.model,
        "algorithm": info.algorithm,
        "run": info.run,
        "mbps": settings.mbps,
        "seed": settings.seed,
        "dilation": settings.dilation,
        "client": settings.device,
        "server": info.server,
        "server_given": settings.server != "",
        "connect": settings.connect,
        "network": settings.network,
        "digests": dict(info.digests),
        "coding": settings.coding,
        "weight_ratio": settings.weight_ratio,
        "window_s": settings.window_s,
        "link": settings.link,
        "delay_ms": settings.delay_ms,
        "jitter_ms": settings.jitter_ms,
        "upload": settings.upload,
        "bandwidth": None if info.bandwidth is None else dataclasses.asdict(info.bandwidth),
        "output_check": None if info.output_check is None else dataclasses.asdict(info.output_check),
        **({} if settings.arrivals.closed else arrivals),
        "plan": info.plan.to_json(),
        "graph": info.graph.to_json(),
        "environment": {**info.environment, **noise, **fault},
    }


class _Drops(msgspec.Struct):
    """When the queries were raised that were never answered."""

    raised_s: tuple[Real, ...]


class _End(msgspec.Struct):
    """The last line."""


_LINES = Tagged(
    "record",
    {
        "run": _RunDocument,
        "estimate": EstimateRecord,
        "partition": PartitionRecord,
        "query": QueryRecord,
        "drops": _Drops,
        "load": LoadRecord,
        "end": _End,
    },
)


@dataclass(frozen=True)
class Trace:
    """The record of a run.

    - `partitions`, `queries`: what was uploaded, and the queries that were answered.
    - `is_undilated`: whether the times of a run with a dilation have been divided by it.
    - `dropped_s`: when the queries were raised that were never answered. They met a busy client and were dropped, or
      still waited for it when the run ended.
    - `estimates`: those of a client that measures.
    - `loads`: how busy a live run's machine was, second by second; traces of earlier versions have none.
    """

    info: RunInfo
    partitions: tuple[PartitionRecord, ...]
    queries: tuple[QueryRecord, ...]
    is_undilated: bool = False
    dropped_s: tuple[float, ...] = ()
    estimates: tuple[EstimateRecord, ...] = ()
    loads: tuple[LoadRecord, ...] = ()

    @cached_property  # asked for query by query
    def upload_s(self) -> float:
        """Return when the last partition became usable; 0 for an empty plan."""
        return max((p.ready_s for p in self.partitions), default=0.0)

    @property
    def queries_before_upload(self) -> int:
        """Queries that ended before the whole plan was uploaded (paper, section 4.3)."""
        return sum(q.end_s <= self.upload_s for q in self.queries)

    @property
    def queries_in_upload(self) -> float:
        """The number of queries as in `queries_before_upload`, plus the completed part of the query that was under way
        when the upload ended."""
        parts = ((self.upload_s - q.start_s) / (q.end_s - q.start_s) for q in self.queries if q.end_s > q.start_s)
        return sum(min(max(part, 0.0), 1.0) for part in parts)

    @property
    def in_upload(self) -> tuple[QueryRecord, ...]:
        """The queries that started before the whole plan was uploaded, whose latencies depend on the upload order."""
        return tuple(q for q in self.queries if q.start_s < self.upload_s)

    @property
    def mean_ms_in_upload(self) -> float:
        """The mean latency of the queries `in_upload`; NaN if there are none."""
        return _mean_ms(self.in_upload)

    @property
    def in_window(self) -> tuple[QueryRecord, ...]:
        """The queries that ended within the run's window; none without one."""
        window_s = self.info.settings.window_s
        return () if window_s is None else tuple(q for q in self.queries if q.end_s <= window_s)

    @property
    def mean_ms_in_window(self) -> float:
        """The mean latency of the queries `in_window`; NaN if there are none."""
        return _mean_ms(self.in_window)

    @property
    def last_raised_s(self) -> float:
        """When the last query was raised, answered or not."""
        return max([self.queries[-1].raised_s, *self.dropped_s[-1:]])

    @property
    def responses(self) -> Responses:
        """The response times of all queries."""
        return self.responses_between(0.0, math.inf)

    @property
    def responses_over_time(self) -> tuple[Responses, ...]:
        """The response times of the queries that were raised in each span of the run; at most `responses.SPANS_MAX`."""
        return tuple(self.responses_between(start_s, end_s) for start_s, end_s in spans(self.last_raised_s))

    def responses_between(self, start_s: float, end_s: float) -> Responses:
        """The response times of the queries that were raised from `start_s` on, and before `end_s`."""
        return responses_of(self.queries, self.dropped_s, self.info.settings.deadline_ms, start_s, end_s)

    @property
    def outputs(self) -> Outputs:
        """The outputs of all queries, counted."""
        return Outputs.of(self.queries)

    @property
    def disturbance(self) -> Disturbance | None:
        """The other load that disturbed the run; None if none did, or none was recorded."""
        return disturbance(self.loads)

    @property
    def weight_bytes(self) -> tuple[int | None, int | None]:
        """The raw bytes and the wire bytes of all partitions' weights; None if they were not counted."""
        return _sum(p.bytes for p in self.partitions), _sum(p.wire_bytes for p in self.partitions)

    @property
    def weight_bytes_held(self) -> int:
        """The raw bytes of all partitions' weights that the server had in its store; the others were sent."""
        return sum(p.stored_bytes for p in self.partitions)

    @property
    def feature_bytes(self) -> tuple[int | None, int | None]:
        """The raw bytes and the wire bytes of all queries' inputs and feature maps; None if they were not counted."""
        return _sum(q.feature_bytes for q in self.queries), _sum(q.feature_wire_bytes for q in self.queries)

    def partitions_per_half(self) -> tuple[int, int]:
        """Partitions whose upload ends in the first and in the second half of the upload time (paper, Fig. 5)."""
        first = sum(p.end_s <= self.upload_s / 2 for p in self.partitions)
        return first, len(self.partitions) - first

    def save(self, path: Path) -> None:
        """Write the trace; the file appears under its name only when complete. Raises InputError if it cannot be
        written, and leaves nothing half-written then."""
        lines = (json.dumps(record, allow_nan=False) + "\n" for record in self._records())
        write_file(path, "".join(lines).encode())

    def _records(self) -> Iterator[dict[str, Any]]:
        undilated = {"undilated": True} if self.is_undilated else {}
        yield {"record": "run", "schema": SCHEMA, **undilated, **_run_json(self.info)}
        for estimate in self.estimates:
            yield {"record": "estimate", **dataclasses.asdict(estimate)}
        for partition in self.partitions:
            yield {"record": "partition", **dataclasses.asdict(partition)}
        for query in self.queries:
            yield {"record": "query", **dataclasses.asdict(query)}
        if self.dropped_s:
            yield {"record": "drops", "raised_s": self.dropped_s}
        for load in self.loads:
            yield {"record": "load", **dataclasses.asdict(load)}
        yield {"record": "end"}

    @classmethod
    def load(cls, path: Path) -> Trace:
        """Read a trace, with all times divided by its dilation. Raises InputError if it is not a complete trace."""
        path = path_of(path, "trace")
        try:
            with open_regular(path) as lines:
                records = [_LINES.read(line) for line in lines]
            runs = [record for record in records if isinstance(record, _RunDocument)]
            info = runs[-1].info() if runs else None
            queries = tuple(record for record in records if isinstance(record, QueryRecord))
            if info is not None:
                _check_stages(queries, info.graph)
            loads = tuple(record for record in records if isinstance(record, LoadRecord))
            _check_order(loads)
        except OSError as error:
            raise InputError(f"{path}: cannot read the trace: {error.strerror}") from error
        except (ValueError, InputError) as error:
            raise InputError(f"{path}: not a trace of ionn ({error}); delete it and run again") from error
        partitions = tuple(record for record in records if isinstance(record, PartitionRecord))
        if info is None or not queries or not isinstance(records[-1], _End):
            raise InputError(f"{path}: an interrupted run; delete it and run again")
        dropped_s = next((record.raised_s for record in records if isinstance(record, _Drops)), ())
        estimates = tuple(record for record in records if isinstance(record, EstimateRecord))
        return cls(info, partitions, queries, runs[-1].undilated, dropped_s, estimates, loads).undilated()

    def undilated(self) -> Trace:
        """The trace with all times divided by its dilation, as `load` returns it; the trace itself if they are."""
        k = self.info.settings.dilation
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
        dropped_s = tuple(time_s / k for time_s in self.dropped_s)
        # The client itself records its estimates undilated, all but their times.
        estimates = tuple(dataclasses.replace(each, time_s=each.time_s / k) for each in self.estimates)
        loads = tuple(dataclasses.replace(each, start_s=each.start_s / k, end_s=each.end_s / k) for each in self.loads)
        return Trace(self.info, partitions, queries, True, dropped_s, estimates, loads)


def _mean_ms(queries: Sequence[QueryRecord]) -> float:
    latencies_ms = [query.latency_ms for query in queries]
    return sum(latencies_ms) / len(latencies_ms) if latencies_ms else math.nan


def _sum(sizes: Iterable[int | None]) -> int | None:
    """The sum; None if a size is None."""
    given = list(sizes)
    counted = [size for size in given if size is not None]
    return sum(counted) if len(counted) == len(given) else None


def trace_path(results: Path, settings: Settings, model: str, algorithm: str, run: int) -> Path:
    """Return the path of a run's trace: results/traces/SETTINGS/MODEL/ALGORITHM/run-NN.jsonl. Raises InputError for
    names that cannot be those of folders."""
    _check_name(model)
    _check_name(algorithm)
    return results / "traces" / settings.slug / model / algorithm / f"run-{run:02d}.jsonl"


def load_traces(results: Path) -> list[Trace]:
    """All traces below results/traces, in the order of their paths. Raises InputError if one is not complete, and for
    folders that cannot be read."""
    paths = [results / "traces"]
    for pattern in ("*", "*", "*", RUNS):
        paths = [path for folder in paths for path in matching(folder, pattern)]
    return [Trace.load(path) for path in paths]
