"""An uploading plan: a planner's partitions with their names, sizes and the latency after each."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from ionn.errors import InputError
from ionn.model.slices import Piece, Slice, stage_of
from ionn.planning.graph import ExecutionGraph, checked_mbps
from ionn.planning.planners import Planner, get_planner
from ionn.planning.planners.baselines import PREINSTALLED
from ionn.schema import Natural, Real

if TYPE_CHECKING:
    from ionn.model.network import Network


@dataclass(frozen=True)
class Partition:
    """One step of a plan, uploaded as a whole.

    - `index`: its place in the upload order, from 0.
    - `pieces`: the indices of its stages, or slices of these, sorted by stage; they need not be adjacent.
    - `stage_names`, `layers`: the names of these stages and of their layers.
    - `bytes`: the raw bytes of its weights, of which `stored_bytes` are in the server's store.
    - `wire_bytes`: the bytes that cross the link for it.
    - `upload_ms`: its upload overhead: the time on the link and, where known, the server's time to load it.
    - `latency_ms`: the latency of a query once this partition and all before it have arrived.
    """

    index: int
    pieces: tuple[Piece, ...]
    stage_names: tuple[str, ...]
    layers: tuple[str, ...]
    bytes: int
    wire_bytes: int
    upload_ms: float
    latency_ms: float
    stored_bytes: int = 0

    @property
    def stages(self) -> tuple[int, ...]:
        """The indices of its stages, whether they are in it as a whole or as a slice."""
        return tuple(map(stage_of, self.pieces))

    @property
    def slices(self) -> dict[str, tuple[int, int]]:
        """The output channels (begin, end) of each stage that is in it as a slice, by the stage's name."""
        pieces = zip(self.stage_names, self.pieces, strict=True)
        return {name: (piece.begin, piece.end) for name, piece in pieces if isinstance(piece, Slice)}

    def to_json(self) -> dict[str, Any]:
        """Return the partition as JSON: with `slices` only if there are any, `wire_bytes` only if weights are coded or
        stored, and `stored_bytes` only if some are stored."""
        slices = {"slices": {name: list(channels) for name, channels in self.slices.items()}} if self.slices else {}
        wire = {"wire_bytes": self.wire_bytes} if self.wire_bytes != self.bytes else {}
        stored = {"stored_bytes": self.stored_bytes} if self.stored_bytes else {}
        return {
            "stages": list(self.stage_names),
            "layers": list(self.layers),
            "bytes": self.bytes,
            "upload_ms": self.upload_ms,
            "latency_ms": self.latency_ms,
            **slices,
            **wire,
            **stored,
        }


class PartitionDocument(msgspec.Struct):
    """A `Partition` as JSON."""

    stages: tuple[str, ...]
    layers: tuple[str, ...]
    bytes: Natural
    upload_ms: Real
    latency_ms: Real
    slices: dict[str, tuple[Natural, Natural]] = {}
    wire_bytes: Natural | None = None
    stored_bytes: Natural = 0


class PlanDocument(msgspec.Struct):
    """A `Plan` as JSON. Plans in the traces of earlier versions lack `model_bytes` and `planning_ms`."""

    model: str
    algorithm: str
    mbps: float
    local_ms: Real
    best_ms: Real
    partitions: tuple[PartitionDocument, ...]
    model_bytes: Natural | None = None
    planning_ms: Real | None = None
    held: tuple[Natural, ...] = ()


@dataclass(frozen=True)
class Plan:
    """An uploading plan: `partitions` in upload order.

    - `model`, `algorithm`: the names of the network and the planner.
    - `mbps`: the bandwidth that the plan was made for; if the client planned again, the last one.
    - `model_bytes`: the size of all weights of the network, uploaded or not.
    - `local_ms`, `best_ms`: the latency of a query with nothing and with everything uploaded.
    - `planning_ms`: how long the planner took, in which equal plans may differ; NaN if unknown.
    - `held`: the indices of the stages that the server holds before the upload begins (`ExecutionGraph.holding`).
    """

    model: str
    algorithm: str
    mbps: float
    model_bytes: int
    local_ms: float
    best_ms: float
    partitions: tuple[Partition, ...]
    planning_ms: float = field(compare=False)  # a NaN equals no other one
    held: tuple[int, ...] = ()

    @property
    def mean_ms(self) -> float:
        """The expected latency in ms, averaged over the time of an upload that has the link for itself; NaN if nothing
        is uploaded. Multiplied by the time of the upload, it is the area under the latency curve."""
        upload_ms = sum(partition.upload_ms for partition in self.partitions)
        latencies_ms = [self.local_ms, *(partition.latency_ms for partition in self.partitions)]
        areas = (part.upload_ms * ms for part, ms in zip(self.partitions, latencies_ms, strict=False))
        return sum(areas) / upload_ms if upload_ms else math.nan

    @property
    def uploads(self) -> list[tuple[Piece, ...]]:
        """What is uploaded to a server that holds nothing: first `held`, if there is any, then the partitions."""
        return [*([self.held] if self.held else []), *(partition.pieces for partition in self.partitions)]

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON: with `held` only if there is any, and `planning_ms` only if known."""
        planning = {} if math.isnan(self.planning_ms) else {"planning_ms": self.planning_ms}
        held = {"held": list(self.held)} if self.held else {}
        return {
            "model": self.model,
            "algorithm": self.algorithm,
            "mbps": self.mbps,
            "model_bytes": self.model_bytes,
            "local_ms": self.local_ms,
            "best_ms": self.best_ms,
            "partitions": [partition.to_json() for partition in self.partitions],
            **planning,
            **held,
        }

    @classmethod
    def from_document(cls, document: PlanDocument, graph: ExecutionGraph) -> Plan:
        """The plan that `to_json` wrote, for the chain of `graph`. Raises InputError if it is of another chain."""
        index = {name: stage for stage, name in enumerate(graph.stages)}
        channels = {cut.stage: cut.channels for cut in graph.cuts}
        partitions = []
        for at, part in enumerate(document.partitions):
            pieces: list[Piece] = []
            for name in part.stages:
                if name not in index:
                    raise InputError(f"its plan has a stage {name!r}, which its graph has not")
                stage = index[name]
                begin, end = part.slices.get(name, (0, 0))
                if name in part.slices and not begin < end <= channels.get(stage, 0):
                    raise InputError(f"its plan has a slice of stage {name!r} that its graph has not")
                pieces.append(Slice(stage, begin, end) if name in part.slices else stage)
            wire_bytes = part.bytes if part.wire_bytes is None else part.wire_bytes
            if part.stored_bytes > part.bytes:
                raise InputError("its plan has a partition of which more is stored than there is")
            sizes = part.bytes, wire_bytes, part.upload_ms, part.latency_ms, part.stored_bytes
            partitions.append(Partition(at, tuple(pieces), part.stages, part.layers, *sizes))
        if max(document.held, default=0) >= len(graph.stages):
            raise InputError(f"its plan has the server hold a stage {max(document.held)}, which its graph has not")
        total_bytes = sum(part.bytes for part in partitions)
        return cls(
            document.model,
            document.algorithm,
            document.mbps,
            total_bytes if document.model_bytes is None else document.model_bytes,
            document.local_ms,
            document.best_ms,
            tuple(partitions),
            math.nan if document.planning_ms is None else document.planning_ms,
            document.held,
        )


def empty_plan(network: Network, graph: ExecutionGraph, algorithm: str, mbps: float) -> Plan:
    """A plan without partitions, for a client that does not know a server's costs: of `graph`, only the client's costs
    are used. Raises InputError as `make_plan` does."""
    checked_mbps(mbps)
    get_planner(algorithm)
    model_bytes, local_ms = sum(stage.weight_bytes for stage in network.stages), graph.latency_ms(())
    return Plan(network.name, algorithm, mbps, model_bytes, local_ms, local_ms, (), math.nan)


def make_plan(
    network: Network, graph: ExecutionGraph, algorithm: str, mbps: float, planner: Planner | None = None
) -> Plan:
    """Plan the upload of a network whose costs over a link of `mbps` are `graph`, and time the planner.

    What the server holds by the graph is left out. The stages that the baseline `preinstalled` returns become
    `Plan.held`, and no partition. `planner` is by default the one with the name `algorithm` in this process.

    Raises InputError for an unknown algorithm, for a bandwidth that is not positive, and if the planner fails.
    """
    checked_mbps(mbps)
    planner = planner or get_planner(algorithm)
    started = time.perf_counter()
    pieces_in_order = planner(graph)
    planning_ms = (time.perf_counter() - started) * 1e3
    held: tuple[int, ...] = ()
    if algorithm == PREINSTALLED:
        held = tuple(stage_of(piece) for pieces in pieces_in_order for piece in pieces)
        pieces_in_order = []

    partitions: list[Partition] = []
    uploaded: list[Piece] = []
    for index, pieces in enumerate(graph.missing(pieces_in_order) if graph.held else pieces_in_order):
        uploaded += pieces
        stages = [network.stages[stage_of(piece)] for piece in pieces]
        weight_bytes = sum(round(graph.share(p) * stage.weight_bytes) for p, stage in zip(pieces, stages, strict=True))
        sent_bytes = sum(graph.sent_bytes(p, stage.weight_bytes) for p, stage in zip(pieces, stages, strict=True))
        partitions.append(
            Partition(
                index=index,
                pieces=tuple(pieces),
                stage_names=tuple(stage.name for stage in stages),
                layers=tuple(layer for stage in stages for layer in stage.layers),
                bytes=weight_bytes,
                wire_bytes=sum(graph.wire_bytes(p, s.weight_bytes) for p, s in zip(pieces, stages, strict=True)),
                upload_ms=graph.overhead_ms(pieces)[0],
                latency_ms=graph.latency_ms(uploaded),
                stored_bytes=weight_bytes - sent_bytes,
            )
        )
    return Plan(
        model=network.name,
        algorithm=algorithm,
        mbps=mbps,
        model_bytes=sum(stage.weight_bytes for stage in network.stages),
        local_ms=graph.local_ms,
        best_ms=graph.latency_ms(range(len(graph.stages))),
        partitions=tuple(partitions),
        planning_ms=planning_ms,
        held=held,
    )
