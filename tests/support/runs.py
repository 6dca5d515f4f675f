"""Traces that a test can follow by hand, and live runs by their settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ionn.costs.loading import load_costs
from ionn.model.slices import Piece, stage_of
from ionn.planning.graph import ExecutionGraph
from ionn.planning.plan import Partition, Plan
from ionn.protocol.curve import ClientKeys
from ionn.records import PartitionRecord, QueryRecord, Segment
from ionn.testbed import live, runner
from ionn.testbed.experiment import QUERIES_AFTER_UPLOAD
from ionn.testbed.settings import Settings
from ionn.testbed.trace import RunInfo, Trace
from tests.support.chains import chain

FIVE_FAST = (100.0,) * 5


def plan_of(
    graph: ExecutionGraph,
    parts: Sequence[Sequence[Piece]],
    sizes: Sequence[int],
    model: str = "alexnet",
    algorithm: str = "original",
) -> Plan:
    """A plan that uploads `parts` of the chain, of so many bytes; its latencies are not known."""
    partitions = tuple(
        Partition(index, tuple(part), tuple(graph.stages[stage_of(piece)] for piece in part), (), size, size, 0.0, 0.0)
        for index, (part, size) in enumerate(zip(parts, sizes, strict=True))
    )
    return Plan(model, algorithm, 80.0, sum(sizes), 0.0, 0.0, partitions, 0.5)


def make_trace(
    algorithm: str = "original",
    latencies_ms: Sequence[float] = (1000.0, 1000.0, 500.0, 500.0, *FIVE_FAST),
    ends_s: Sequence[float] = (1.0, 4.0),
    sizes: Sequence[int] = (1_000, 3_000),
    *,
    model: str = "alexnet",
    run: int = 1,
    bit_equal: bool | None = None,
    difference: float = 0.0,
    tolerance: float | None = 0.0,
    graph: ExecutionGraph | None = None,
    environment: dict[str, Any] | None = None,
    fault: str | None = None,
    testbed: str = "virtual",
    **settings: Any,
) -> Trace:
    """A run whose partitions arrive at `ends_s` and whose queries follow each other from the first arrival on.

    By default: 4 queries end before the upload does, at 4 s.
    """
    n = len(sizes)
    graph = graph or chain([1.0] * max(n, 1), [1.0] * max(n, 1), [1.0] * max(n, 1), [1.0] * (max(n, 1) + 1))
    plan = plan_of(graph, [[stage] for stage in range(n)], sizes, model, algorithm)
    partitions = tuple(
        PartitionRecord(part.index, part.stage_names, part.bytes, ([0.0, *ends_s])[part.index], end_s, end_s)
        for part, end_s in zip(plan.partitions, ends_s, strict=True)
    )
    queries = []
    now_s = ends_s[0] if ends_s else 0.0
    for index, ms in enumerate(latencies_ms):
        queries.append(
            QueryRecord(
                index,
                raised_s=now_s if index else 0.0,
                start_s=now_s,
                end_s=now_s + ms / 1e3,
                segments=(Segment("client", 0, len(graph.stages) - 1, ms, ms),),
                overruns=1,
                bit_equal=bit_equal,
                difference=difference,
                tolerance=tolerance,
            )
        )
        now_s += ms / 1e3
    info = RunInfo(Settings(testbed, **settings), run, plan, graph, "", environment or {}, fault)
    return Trace(info, partitions, tuple(queries))


def runs_with_queries(counts: Mapping[str, int], **info: Any) -> list[Trace]:
    """Runs that complete so many queries before the upload ends, 3 s after the first arrival."""
    return [
        make_trace(name, (*[3000.0 / (count + 0.5)] * (count + 1), *FIVE_FAST), **info)
        for name, count in counts.items()
    ]


def run_live(
    subject: live.Subject,
    algorithms: Sequence[str] = ("original",),
    runs: int = 1,
    *,
    server: str | None = None,
    results: Path | None = None,
    address: str = "",
    keys: ClientKeys | None = None,
    link: Path | None = None,
    **settings: Any,
) -> list[Trace]:
    """`runner.run_live_all` with the settings that follow from what it is given, as `ionn run` calls it."""
    costs = None if server is None else load_costs(server)
    made = runner.live_settings(subject, costs, connect=address, link=link, **settings)
    return runner.run_live_all(subject, algorithms, runs, made, server=costs, results=results, keys=keys, link=link)


def check_queries_after_upload(trace: Trace) -> None:
    """Five follow the upload; the one before them may have begun in the moment in which it ended."""
    after = [query.start_s >= trace.upload_s for query in trace.queries]
    assert all(after[-QUERIES_AFTER_UPLOAD:])
    assert not any(after[: -QUERIES_AFTER_UPLOAD - 1])
