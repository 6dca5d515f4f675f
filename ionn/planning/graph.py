"""The NN execution graph of a chain (paper, section 2.2 and Fig. 1), its fastest paths and their latencies.

A query's data is either at the client or at the server before every stage. With the paper's node numbers, a stage's
nodes are 1 (data at the client before it), 2 (at the server before it) and 3 (at the server after it); 4 and 5 are
nodes 1 and 2 of the next stage:

    1 --client_ms--> 4        the client executes the stage
    1 --up_ms------> 2        its input goes up
    2 --server_ms--> 3        the server executes it (plus an upload overhead while it is being weighed)
    3 --down_ms----> 4        its output comes down
    3 --0----------> 5        the server goes on

Nodes 2 and 3 need no state of their own: after each stage the data is at the client (4) or at the server (3), so the
fastest path is a Viterbi search with two states per stage. A query starts and ends at the client.

A stage of which only some channels are uploaded has four more edges, on which both sides work: see
`ionn.planning.slice_costs`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ionn.errors import InputError
from ionn.model.slices import Piece, Slice, channels_of, stage_of
from ionn.planning.slice_costs import SlicePlan, Split, slice_plans
from ionn.schema import STAGE_MAX_MS, Real

if TYPE_CHECKING:
    from ionn.costs.models import Costs
    from ionn.model.network import Network

_FLOAT_BYTES = 4

# All times are multiples of 2^-24 ms (0.06 ns). Sums of such numbers are exact in float64 up to six days, so what gains
# nothing is a tie in whatever order it is summed.
_GRID_PER_MS = 2.0**24


def checked_mbps(mbps: float) -> float:
    """The bandwidth, if it is one; else InputError."""
    if not (math.isfinite(mbps) and mbps > 0):
        raise InputError(f"bandwidth {mbps} Mbps: give a positive number of megabits per second")
    return mbps


@np.errstate(over="ignore")  # what is not finite is an InputError, not a warning
def _on_grid(ms: ArrayLike) -> NDArray[np.float64]:
    return np.rint(np.asarray(ms, dtype=np.float64) * _GRID_PER_MS) / _GRID_PER_MS


class Leg(NamedTuple):
    """Stages `first`..`last`, both included, of a path that run at one place: "client", "server", or one stage at
    "both". `from_server`: their input is at the server when they start; `to_server`: their output stays there."""

    where: str
    first: int
    last: int
    from_server: bool
    to_server: bool


class GraphDocument(msgspec.Struct):
    """An `ExecutionGraph` as JSON."""

    stages: tuple[str, ...]
    client_ms: list[Real]
    server_ms: list[Real]
    upload_ms: list[Real]
    load_ms: list[Real]
    up_ms: list[Real]
    down_ms: list[Real]
    offloadable: list[bool]
    cuts: tuple[SlicePlan, ...] = ()

    def graph(self) -> ExecutionGraph:
        """Raises InputError as `ExecutionGraph` does."""
        return ExecutionGraph(**msgspec.structs.asdict(self))


@dataclass(frozen=True, eq=False)
class ExecutionGraph:
    """Costs of a chain of n stages between one client and one server. Times in ms, finite and not negative.

    `upload_ms` is the upload overhead: the weights' time on the link plus `load_ms`, the server's time to load them.
    `up_ms` and `down_ms` are the transfers of the blob at boundary i, before stage i; boundary n is the outputs.
    A stage that is not `offloadable` never runs at the server. `cuts` are the stages that can be uploaded in slices.

    Raises InputError for costs that are negative, not finite or above STAGE_MAX_MS, or of the wrong number.
    """

    stages: tuple[str, ...]  # names, (n,)
    client_ms: NDArray[np.float64]  # (n,)
    server_ms: NDArray[np.float64]  # (n,)
    upload_ms: NDArray[np.float64]  # (n,)
    load_ms: NDArray[np.float64]  # (n,)
    up_ms: NDArray[np.float64]  # (n + 1,)
    down_ms: NDArray[np.float64]  # (n + 1,)
    offloadable: NDArray[np.bool_]  # (n,)
    cuts: Sequence[SlicePlan] = ()

    def __post_init__(self) -> None:
        n = len(self.stages)
        sizes = {"client_ms": n, "server_ms": n, "upload_ms": n, "load_ms": n, "up_ms": n + 1, "down_ms": n + 1}
        arrays: dict[str, NDArray[Any]] = {name: _on_grid(getattr(self, name)) for name in sizes}
        for name, ms in arrays.items():
            if ms.shape != (sizes[name],):
                raise InputError(f"execution graph: {name} needs {sizes[name]} times for {n} stages, not {ms.shape}")
            if not np.all((ms >= 0) & (ms <= STAGE_MAX_MS)):
                raise InputError(
                    f"execution graph: {name} has a time that is negative, not finite, or above {STAGE_MAX_MS:g} ms; "
                    "check the costs"
                )
        if np.any(arrays["load_ms"] > arrays["upload_ms"]):
            raise InputError("execution graph: upload_ms includes load_ms and cannot be smaller")
        arrays["offloadable"] = np.array(self.offloadable, dtype=np.bool_)
        if arrays["offloadable"].shape != (n,):
            raise InputError(f"execution graph: offloadable needs {n} flags, not {arrays['offloadable'].shape}")
        if strange := [cut for cut in self.cuts if not 0 <= cut.stage < n]:
            raise InputError(f"execution graph: {strange[0]} is not of one of its {n} stages")
        for name, array in arrays.items():
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    @classmethod
    @np.errstate(over="ignore")
    def from_network(cls, network: Network, client: Costs, server: Costs, mbps: float) -> ExecutionGraph:
        """The graph of a network's chain over a link of `mbps` in each direction.

        Raises InputError for a bandwidth that is not positive, and for costs that do not fit the network.
        """
        bytes_per_ms = checked_mbps(mbps) * 1e6 / 8 / 1e3
        starts = [stage.first_layer for stage in network.stages]
        load_ms = np.add.reduceat(server.load_ms(network), starts)
        weight_bytes = np.array([stage.weight_bytes for stage in network.stages])
        blobs = [[stage.input_shape] for stage in network.stages] + [network.stages[-1].output_shapes]
        transfer_ms = np.array([sum(map(math.prod, shapes)) * _FLOAT_BYTES for shapes in blobs]) / bytes_per_ms
        fixed_ms = [np.add.reduceat(side.fixed_ms(network), starts).tolist() for side in (client, server)]
        return cls(
            stages=tuple(stage.name for stage in network.stages),
            client_ms=np.add.reduceat(client.layer_ms(network), starts),
            server_ms=np.add.reduceat(server.layer_ms(network), starts),
            upload_ms=_on_grid(weight_bytes / bytes_per_ms) + _on_grid(load_ms),
            load_ms=load_ms,
            up_ms=transfer_ms,
            down_ms=transfer_ms,
            offloadable=np.array([not stage.pinned for stage in network.stages]),
            cuts=slice_plans(network, *fixed_ms),
        )

    def shortest_path(self, overhead_ms: ArrayLike) -> frozenset[int]:
        """The stages at the server on the fastest path when executing there costs `overhead_ms` (n,) on top.

        Among equally fast paths, the one with the fewest stages at the server (its set is part of all the others').
        """
        return frozenset(self._fastest((self._server_ms + _on_grid(overhead_ms)).tolist())[1])

    def latency_ms(self, uploaded: Iterable[Piece]) -> float:
        """Latency of the fastest path that uses only what is `uploaded` at the server."""
        return self._fastest(*self._only(uploaded))[0]

    def route(self, uploaded: Iterable[Piece]) -> tuple[tuple[int, int], ...]:
        """The server segments (first, last), both included, of the path that `latency_ms` measures."""
        return tuple((leg.first, leg.last) for leg in self.legs(uploaded) if leg.where == "server")

    def legs(self, uploaded: Iterable[Piece]) -> tuple[Leg, ...]:
        """The path that `latency_ms` measures, from the first stage to the last."""
        _, at_server, at_both = self._fastest(*self._only(uploaded))
        places = ["client"] * len(self.stages)
        for stage in at_server:
            places[stage] = "server"
        for stage in at_both:
            places[stage] = "both"
        legs: list[Leg] = []
        first = 0
        for last, where in enumerate(places):
            if where != "both" and places[last + 1 : last + 2] == [where]:
                continue  # the leg goes on
            from_server = to_server = False
            if where == "both":
                from_server, to_server = at_both[first]
            elif where == "server":
                from_server = first - 1 in at_both and at_both[first - 1][1]
                to_server = last + 1 in at_both
            legs.append(Leg(where, first, last, from_server, to_server))
            first = last + 1
        return tuple(legs)

    def split(self, stage: int, channels: int) -> Split:
        """Return what a stage costs while `channels` of its channels, not all of them, are at the server."""
        cut = self._cut[stage]
        share = channels / cut.channels
        client_ms, server_ms = float(self.client_ms[stage]), float(self.server_ms[stage])
        # Measured times of the stage may be less than what a model predicts of them as fixed.
        client_fixed_ms = min(cut.client_fixed_ms, client_ms)
        server_fixed_ms = min(cut.server_fixed_ms, server_ms)
        times_ms = (
            client_fixed_ms + (1 - share) * (client_ms - client_fixed_ms),
            server_fixed_ms + share * (server_ms - server_fixed_ms),
            float(self.up_ms[stage]),
            float(self.down_ms[stage]),
            (1 - share) * float(self.up_ms[stage + 1]),
            share * float(self.down_ms[stage + 1]),
        )
        return Split(*(round(ms * _GRID_PER_MS) / _GRID_PER_MS for ms in times_ms))

    def share(self, piece: Piece) -> float:
        """The part of its stage's channels that a piece has: 1 for a whole stage."""
        return (piece.end - piece.begin) / self._cut[piece.stage].channels if isinstance(piece, Slice) else 1.0

    def overhead_ms(self, pieces: Iterable[Piece]) -> tuple[float, float]:
        """The upload overhead of pieces, and the part of it that is the server's time to load them."""
        upload_ms = load_ms = 0.0
        for piece in pieces:
            stage = stage_of(piece)
            extra_ms = self._cut[stage].slice_ms if isinstance(piece, Slice) else 0.0
            whole_ms = np.array([self.upload_ms[stage], self.load_ms[stage]])
            piece_upload_ms, piece_load_ms = _on_grid(self.share(piece) * whole_ms + extra_ms).tolist()
            upload_ms += piece_upload_ms
            load_ms += piece_load_ms
        return upload_ms, load_ms

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ExecutionGraph) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.stages)

    def to_json(self) -> dict[str, list[Any]]:
        arrays = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "cuts"}
        lists = {name: list(np.asarray(values).tolist()) for name, values in arrays.items()}
        return {**lists, "cuts": [asdict(cut) for cut in self.cuts]}

    @classmethod
    def from_json(cls, data: object) -> ExecutionGraph:
        """The graph that `to_json` wrote. Raises InputError for anything else."""
        try:
            document = msgspec.convert(data, GraphDocument)
        except msgspec.ValidationError as error:
            raise InputError(f"execution graph: not written by ionn ({error}); run again") from error
        return document.graph()

    @cached_property
    def has_weights(self) -> NDArray[np.bool_]:
        """Tell whether uploading a stage sends anything, (n,)."""
        return self.upload_ms > self.load_ms

    @cached_property
    def _server_ms(self) -> NDArray[np.float64]:
        return np.where(self.offloadable, self.server_ms, math.inf)

    @cached_property
    def _server_side(self) -> list[float]:
        return list(map(float, self._server_ms))

    @cached_property
    def _client_side(self) -> list[tuple[float, float, float]]:
        """(client_ms, up_ms, down_ms) of each stage and the boundary before it."""
        return list(zip(self.client_ms.tolist(), self.up_ms.tolist(), self.down_ms.tolist(), strict=False))

    @cached_property
    def _cut(self) -> dict[int, SlicePlan]:
        return {cut.stage: cut for cut in self.cuts}

    def _only(self, uploaded: Iterable[Piece]) -> tuple[list[float], dict[int, Split]]:
        """Times at the server of the uploaded stages, infinite for the others, and the stages uploaded in part."""
        pieces = list(uploaded)
        server_ms = [math.inf] * len(self.stages)
        for piece in pieces:
            if not isinstance(piece, Slice):
                server_ms[piece] = self._server_side[piece]
        splits: dict[int, Split] = {}
        for stage, count in channels_of(pieces).items():
            if count >= self._cut[stage].channels:
                server_ms[stage] = self._server_side[stage]
            elif self.offloadable[stage]:
                splits[stage] = self.split(stage, count)
        return server_ms, splits

    def _fastest(
        self, server_ms: list[float], splits: Mapping[int, Split] | None = None
    ) -> tuple[float, list[int], dict[int, tuple[bool, bool]]]:
        """The fastest path: its latency, its stages at the server (last first), and its stages at both, with where
        their input is and where their output goes (True: the server). At a tie, the data comes from the client."""
        at_client, at_server = 0.0, math.inf  # fastest ways to have the data there
        came_down: list[bool] = []
        stayed_up: list[bool] = []
        joined: set[tuple[int, bool]] = set()  # stages at both on the fastest way to have the data at the server or not
        for (client_ms, up_ms, down_ms), executed_ms in zip(self._client_side, server_ms, strict=True):
            down, up = at_server + down_ms, at_client + up_ms
            comes_down, stays_up = down < at_client, at_server < up
            here = (down if comes_down else at_client) + client_ms
            there = (at_server if stays_up else up) + executed_ms
            if splits and (stage := len(came_down)) in splits:
                split = splits[stage]
                for from_server, start in ((False, at_client), (True, at_server)):
                    if (end := split.end_ms(from_server, False, start)) < here:
                        here, comes_down = end, from_server
                        joined.add((stage, False))
                    if (end := split.end_ms(from_server, True, start)) < there:
                        there, stays_up = end, from_server
                        joined.add((stage, True))
            came_down.append(comes_down)
            stayed_up.append(stays_up)
            at_client, at_server = here, there
        down = at_server + float(self.down_ms[-1])
        up_there = down < at_client
        stages: list[int] = []
        at_both: dict[int, tuple[bool, bool]] = {}
        for stage in reversed(range(len(server_ms))):
            before = stayed_up[stage] if up_there else came_down[stage]
            if (stage, up_there) in joined:
                at_both[stage] = before, up_there
            elif up_there:
                stages.append(stage)
            up_there = before
        return min(at_client, down), stages, at_both
