"""What planners are compared with: uploads that weigh nothing against anything, and the ends of what is possible.

No planner of these looks for a good order. They have names as planners have, and are used in the same way, but figures
and tests of planners in general leave them out: `all-at-once`, `front-to-back` and `local` may upload what no query
ever uses, or nothing at all.
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
    """Upload all stages that can be offloaded as one partition, then offload."""
    return _one_partition(np.flatnonzero(graph.offloadable).tolist())


def front_to_back(graph: ExecutionGraph) -> list[list[int]]:
    """Upload all stages that can be offloaded one by one in the order of the chain, as systems that pipeline loading
    and computing do."""
    return [[stage] for stage in np.flatnonzero(graph.offloadable).tolist()]


def neurosurgeon(graph: ExecutionGraph) -> list[list[int]]:
    """Upload what lies behind the one best split point, as one partition; nothing if the client alone is no slower.

    Before the split point stages run at the client, from there on at the server (Kang et al., *Neurosurgeon*, ASPLOS
    2017, its criterion of latency). Stages at the end of the chain that must stay at the client, such as a softmax, run
    there on the server's output. Of split points of equal latency the latest is taken, which uploads the fewest stages.
    """
    if not graph.offloadable.any():
        return []
    end = int(np.flatnonzero(graph.offloadable)[-1]) + 1  # what follows stays at the client
    before_ms = np.concatenate([[0.0], np.cumsum(graph.client_ms)])  # at the client, of the stages before each boundary
    server_ms = np.where(graph.offloadable, graph.server_ms, np.inf)[:end]
    behind_ms = np.cumsum(server_ms[::-1])[::-1]  # at the server, of the stages from each one to the end
    after_ms = graph.down_ms[end] + before_ms[-1] - before_ms[end]
    latencies_ms = before_ms[:end] + graph.up_ms[:end] + behind_ms + after_ms
    split = end - 1 - int(latencies_ms[::-1].argmin())
    return [list(range(split, end))] if latencies_ms[split] < graph.local_ms else []


def preinstalled(graph: ExecutionGraph) -> list[list[int]]:
    """The stages that the fastest path uses once uploading costs nothing: what a server holds that has the model.

    They are what a plan calls held (`ionn.planning.plan.Plan.held`), and not uploaded.
    """
    return _one_partition(sorted(graph.shortest_path(np.zeros(len(graph.stages)))))


def _one_partition(stages: list[int]) -> list[list[int]]:
    return [stages] if stages else []
