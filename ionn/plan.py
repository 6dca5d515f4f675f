"""An uploading plan: a planner's partitions with their names, sizes and the latency after each."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ionn.graph import ExecutionGraph, checked_mbps
from ionn.planners import get_planner

if TYPE_CHECKING:
    from ionn.network import Network


@dataclass(frozen=True)
class Partition:
    """One upload: `stages` of the chain (sorted; several runs are possible) with the `layers` they consist of.

    `bytes` are weights, `upload_ms` is their upload overhead; `latency_ms` is a query's when this partition and all
    before it are usable.
    """

    index: int
    stages: tuple[int, ...]
    stage_names: tuple[str, ...]
    layers: tuple[str, ...]
    bytes: int
    upload_ms: float
    latency_ms: float


@dataclass(frozen=True)
class Plan:
    """Partitions in upload order.

    `model_bytes` are all weights of the network, uploaded or not. `local_ms` and `best_ms`: latency with nothing and
    with everything uploaded.
    """

    model: str
    algorithm: str
    mbps: float
    model_bytes: int
    local_ms: float
    best_ms: float
    partitions: tuple[Partition, ...]
    planning_ms: float

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "algorithm": self.algorithm,
            "mbps": self.mbps,
            "model_bytes": self.model_bytes,
            "local_ms": self.local_ms,
            "best_ms": self.best_ms,
            "partitions": [
                {
                    "stages": list(partition.stage_names),
                    "layers": list(partition.layers),
                    "bytes": partition.bytes,
                    "upload_ms": partition.upload_ms,
                    "latency_ms": partition.latency_ms,
                }
                for partition in self.partitions
            ],
            "planning_ms": self.planning_ms,
        }


def make_plan(network: Network, graph: ExecutionGraph, algorithm: str, mbps: float) -> Plan:
    """Plan a network whose costs over a link of `mbps` are `graph`, and time the planner (`planning_ms`).

    Raises InputError for an unknown algorithm and for a bandwidth that is not positive.
    """
    checked_mbps(mbps)
    planner = get_planner(algorithm)
    started = time.perf_counter()
    stages_in_order = planner(graph)
    planning_ms = (time.perf_counter() - started) * 1e3

    partitions: list[Partition] = []
    uploaded: set[int] = set()
    for index, indices in enumerate(stages_in_order):
        uploaded.update(indices)
        stages = [network.stages[i] for i in indices]
        partitions.append(
            Partition(
                index=index,
                stages=tuple(indices),
                stage_names=tuple(stage.name for stage in stages),
                layers=tuple(layer for stage in stages for layer in stage.layers),
                bytes=sum(stage.weight_bytes for stage in stages),
                upload_ms=float(graph.upload_ms[indices].sum()),
                latency_ms=graph.latency_ms(uploaded),
            )
        )
    return Plan(
        model=network.name,
        algorithm=algorithm,
        mbps=mbps,
        model_bytes=sum(stage.weight_bytes for stage in network.stages),
        local_ms=graph.latency_ms(()),
        best_ms=graph.latency_ms(range(len(graph.stages))),
        partitions=tuple(partitions),
        planning_ms=planning_ms,
    )
