"""Traces that a test can follow by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ionn.records import PartitionRecord, QueryRecord, Segment
from ionn.testbed.trace import RunInfo, Trace

FIVE_FAST = (100.0,) * 5


def make_trace(
    algorithm: str = "original",
    latencies_ms: Sequence[float] = (1000.0, 1000.0, 500.0, 500.0, *FIVE_FAST),
    ends_s: Sequence[float] = (1.0, 4.0),
    sizes: Sequence[int] = (1_000, 3_000),
    *,
    bit_equal: bool | None = None,
    graph: dict[str, Any] | None = None,
    **info: Any,
) -> Trace:
    """A run whose partitions arrive at `ends_s` and whose queries follow each other from the first arrival on.

    By default: 4 queries end before the upload does, at 4 s.
    """
    partitions = tuple(
        PartitionRecord(i, (f"stage{i}",), size, ([0.0, *ends_s])[i], end_s, end_s)
        for i, (size, end_s) in enumerate(zip(sizes, ends_s, strict=True))
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
                segments=(Segment("client", 0, 1, ms, ms),),
                overruns=1,
                bit_equal=bit_equal,
            )
        )
        now_s += ms / 1e3
    settings = {
        "testbed": "virtual",
        "model": "alexnet",
        "run": 1,
        "mbps": 80.0,
        "seed": 0,
        "dilation": 1.0,
        "client": "odroid-xu4",
        "server": "gtx1080ti",
        **info,
    }
    plan = {
        "model": settings["model"],
        "algorithm": algorithm,
        "planning_ms": 0.5,
        "partitions": [{"stages": list(part.stages), "bytes": part.bytes} for part in partitions],
    }
    return Trace(
        RunInfo(algorithm=algorithm, **{"plan": plan, "graph": graph or {}, **settings}), partitions, tuple(queries)
    )
