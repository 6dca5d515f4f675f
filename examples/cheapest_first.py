"""A planner of one's own: the stages in the order of their weights, the smallest first.

    ionn plan alexnet --planner examples/cheapest_first.py:cheapest_first --plot cheapest.svg
    ionn run alexnet --planner examples/cheapest_first.py:cheapest_first --testbed virtual

A planner is a function from an execution graph to partitions in upload order, each a list of stages. The graph has what
planning may know: `client_ms`, `server_ms` and `upload_ms` per stage, `up_ms` and `down_ms` per boundary, `latency_ms`
of any set of uploaded stages, and `shortest_path`.
"""

from __future__ import annotations

import numpy as np

from ionn import ExecutionGraph


def cheapest_first(graph: ExecutionGraph) -> list[list[int]]:
    """One stage after another, of those that are worth it once everything is uploaded."""
    worthwhile = graph.shortest_path(np.zeros(len(graph.stages)))
    return [[stage] for stage in sorted(worthwhile, key=lambda stage: (graph.upload_ms[stage], stage))]
