"""A planner of your own, which uploads the stages in the order of their upload times, shortest first.

    ionn plan alexnet --planner examples/cheapest_first.py:cheapest_first --plot cheapest.svg
    ionn run alexnet --planner examples/cheapest_first.py:cheapest_first --testbed virtual

A planner is a function from an execution graph to partitions in upload order, each a list of stage indices. The graph
has everything that a plan depends on: `client_ms`, `server_ms` and `upload_ms` of each stage, `up_ms` and `down_ms` of
each boundary between stages, `latency_ms` for any set of uploaded stages, and `shortest_path`.
"""

from __future__ import annotations

import numpy as np

from ionn import ExecutionGraph


def cheapest_first(graph: ExecutionGraph) -> list[list[int]]:
    """Upload one by one the stages that the fastest path uses once everything is uploaded."""
    worthwhile = graph.shortest_path(np.zeros(len(graph.stages)))
    return [[stage] for stage in sorted(worthwhile, key=lambda stage: (graph.upload_ms[stage], stage))]
