"""The baselines that planners are compared with.

None of them looks for a good order. They have names and are used like planners, but figures leave them out unless asked
for, because `all-at-once` and `front-to-back` may upload stages that no query ever uses, and `local` uploads nothing.
"""

from __future__ import annotations

import numpy as np

from ionn.planning.graph import ExecutionGraph

LOCAL = "local"
ALL_AT_ONCE = "all-at-once"
FRONT_TO_BACK = "front-to-back"
NEUROSURGEON = "neurosurgeon"
PREINSTALLED = "preinstalled"


def local(graph: ExecutionGraph) -> list[list[int]]:
    """Upload nothing: all queries run at the client."""
    return []


def all_at_once(graph: ExecutionGraph) -> list[list[int]]:
    """Upload all stages that can be offloaded, as one partition."""
    return _one_partition(np.flatnonzero(graph.offloadable).tolist())


def front_to_back(graph: ExecutionGraph) -> list[list[int]]:
    """Upload all stages that can be offloaded, one by one in the order of the chain, as systems do that pipeline
    loading and computing."""
    return [[stage] for stage in np.flatnonzero(graph.offloadable).tolist()]


def neurosurgeon(graph: ExecutionGraph) -> list[list[int]]:
    """Upload all stages from the best split point on, as one partition; nothing if the client alone is not slower.

    Stages before the split point run at the client, the others at the server (Kang et al., *Neurosurgeon*, ASPLOS 2017,
    for least latency). Stages at the end of the chain that must stay at the client, such as a softmax, run there on the
    server's output. Of split points of equal latency the last one is taken, which uploads the fewest stages.
    """
    if not graph.offloadable.any():
        return []
    end = int(np.flatnonzero(graph.offloadable)[-1]) + 1  # the stages after it stay at the client
    before_ms = np.concatenate([[0.0], np.cumsum(graph.client_ms)])  # at the client, for all before a boundary
    server_ms = np.where(graph.offloadable, graph.server_ms, np.inf)[:end]
    behind_ms = np.cumsum(server_ms[::-1])[::-1]  # at the server, for the stages from each one to the end
    after_ms = graph.down_ms[end] + before_ms[-1] - before_ms[end]
    latencies_ms = before_ms[:end] + graph.up_ms[:end] + behind_ms + after_ms
    split = end - 1 - int(latencies_ms[::-1].argmin())
    return [list(range(split, end))] if latencies_ms[split] < graph.local_ms else []


def preinstalled(graph: ExecutionGraph) -> list[list[int]]:
    """The stages that a server with a pre-installed model executes: those that the fastest path uses when uploading
    costs nothing.

    They are not uploaded: a plan has them as `ionn.planning.plan.Plan.held`.
    """
    return _one_partition(sorted(graph.shortest_path(np.zeros(len(graph.stages)))))


def _one_partition(stages: list[int]) -> list[list[int]]:
    return [stages] if stages else []
