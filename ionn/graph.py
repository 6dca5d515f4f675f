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
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ionn.errors import InputError

if TYPE_CHECKING:
    from ionn.costs import Costs
    from ionn.network import Network

_FLOAT_BYTES = 4

# All times are multiples of 2^-24 ms (0.06 ns). Sums of such numbers are exact in float64 up to six days, so what gains
# nothing is a tie in whatever order it is summed.
_GRID_PER_MS = 2.0**24


def checked_mbps(mbps: float) -> float:
    """The bandwidth, if it is one; else InputError."""
    if not (math.isfinite(mbps) and mbps > 0):
        raise InputError(f"bandwidth {mbps} Mbps: give a positive number of megabits per second")
    return mbps


def runs_of(stages: Iterable[int]) -> list[tuple[int, int]]:
    """The maximal runs of adjacent stages, as (first, last), both included, in chain order."""
    runs: list[tuple[int, int]] = []
    for stage in sorted(stages):
        if runs and runs[-1][1] == stage - 1:
            runs[-1] = (runs[-1][0], stage)
        else:
            runs.append((stage, stage))
    return runs


@np.errstate(over="ignore")  # what is not finite is an InputError, not a warning
def _on_grid(ms: ArrayLike) -> NDArray[np.float64]:
    return np.rint(np.asarray(ms, dtype=np.float64) * _GRID_PER_MS) / _GRID_PER_MS


@dataclass(frozen=True, eq=False)
class ExecutionGraph:
    """Costs of a chain of n stages between one client and one server. Times in ms, finite and not negative.

    `upload_ms` is the upload overhead: the weights' time on the link plus `load_ms`, the server's time to load them.
    `up_ms` and `down_ms` are the transfers of the blob at boundary i, before stage i; boundary n is the outputs.
    A stage that is not `offloadable` never runs at the server.

    Raises InputError for costs that are negative, not finite, or of the wrong number.
    """

    stages: tuple[str, ...]  # names, (n,)
    client_ms: NDArray[np.float64]  # (n,)
    server_ms: NDArray[np.float64]  # (n,)
    upload_ms: NDArray[np.float64]  # (n,)
    load_ms: NDArray[np.float64]  # (n,)
    up_ms: NDArray[np.float64]  # (n + 1,)
    down_ms: NDArray[np.float64]  # (n + 1,)
    offloadable: NDArray[np.bool_]  # (n,)

    def __post_init__(self) -> None:
        n = len(self.stages)
        sizes = {"client_ms": n, "server_ms": n, "upload_ms": n, "load_ms": n, "up_ms": n + 1, "down_ms": n + 1}
        arrays: dict[str, NDArray[Any]] = {name: _on_grid(getattr(self, name)) for name in sizes}
        for name, ms in arrays.items():
            if ms.shape != (sizes[name],):
                raise InputError(f"execution graph: {name} needs {sizes[name]} times for {n} stages, not {ms.shape}")
            if not np.all(np.isfinite(ms) & (ms >= 0)):
                raise InputError(f"execution graph: {name} has a time that is negative or not finite; check the costs")
        if np.any(arrays["load_ms"] > arrays["upload_ms"]):
            raise InputError("execution graph: upload_ms includes load_ms and cannot be smaller")
        arrays["offloadable"] = np.array(self.offloadable, dtype=np.bool_)
        if arrays["offloadable"].shape != (n,):
            raise InputError(f"execution graph: offloadable needs {n} flags, not {arrays['offloadable'].shape}")
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
        return cls(
            stages=tuple(stage.name for stage in network.stages),
            client_ms=np.add.reduceat(client.layer_ms(network), starts),
            server_ms=np.add.reduceat(server.layer_ms(network), starts),
            upload_ms=_on_grid(weight_bytes / bytes_per_ms) + _on_grid(load_ms),
            load_ms=load_ms,
            up_ms=transfer_ms,
            down_ms=transfer_ms,
            offloadable=np.array([not stage.pinned for stage in network.stages]),
        )

    def shortest_path(self, overhead_ms: ArrayLike) -> frozenset[int]:
        """The stages at the server on the fastest path when executing there costs `overhead_ms` (n,) on top.

        Among equally fast paths, the one with the fewest stages at the server (its set is part of all the others').
        """
        _, at_server = self._fastest((self._server_ms + _on_grid(overhead_ms)).tolist())
        return frozenset(at_server)

    def latency_ms(self, uploaded: Iterable[int]) -> float:
        """Latency of the fastest path that uses only `uploaded` stages at the server."""
        return self._fastest(self._only(uploaded))[0]

    def route(self, uploaded: Iterable[int]) -> tuple[tuple[int, int], ...]:
        """The server segments (first, last), both included, of the path that `latency_ms` measures."""
        return tuple(runs_of(self._fastest(self._only(uploaded))[1]))

    def forced_ms(self, at_server: Iterable[int]) -> float:
        """Latency with exactly these stages at the server; infinite if one of them is not offloadable."""
        chosen = set(at_server)
        stages_ms = sum(self._server_ms[i] if i in chosen else self.client_ms[i] for i in range(len(self.stages)))
        transfers_ms = sum(self.up_ms[first] + self.down_ms[last + 1] for first, last in runs_of(chosen))
        return float(stages_ms + transfers_ms)

    def to_json(self) -> dict[str, list[Any]]:
        return {field.name: list(np.asarray(getattr(self, field.name)).tolist()) for field in fields(self)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ExecutionGraph:
        """The graph that `to_json` wrote. Raises InputError for anything else."""
        try:
            return cls(**{**data, "stages": tuple(data["stages"])})
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"execution graph: not written by ionn ({error}); run again") from error

    @cached_property
    def _server_ms(self) -> NDArray[np.float64]:
        return np.where(self.offloadable, self.server_ms, math.inf)

    @cached_property
    def _client_side(self) -> list[tuple[float, float, float]]:
        """(client_ms, up_ms, down_ms) of each stage and the boundary before it."""
        return list(zip(self.client_ms.tolist(), self.up_ms.tolist(), self.down_ms.tolist(), strict=False))

    def _only(self, uploaded: Iterable[int]) -> list[float]:
        server_ms = [math.inf] * len(self.stages)
        for stage in uploaded:
            server_ms[stage] = float(self._server_ms[stage])
        return server_ms

    def _fastest(self, server_ms: list[float]) -> tuple[float, list[int]]:
        """Latency and server stages (last first) of the fastest path; at a tie, the data comes from the client."""
        at_client, at_server = 0.0, math.inf  # fastest ways to have the data there
        came_down: list[bool] = []
        stayed_up: list[bool] = []
        for (client_ms, up_ms, down_ms), executed_ms in zip(self._client_side, server_ms, strict=True):
            down, up = at_server + down_ms, at_client + up_ms
            comes_down, stays_up = down < at_client, at_server < up
            came_down.append(comes_down)
            stayed_up.append(stays_up)
            at_client = (down if comes_down else at_client) + client_ms
            at_server = (at_server if stays_up else up) + executed_ms
        down = at_server + float(self.down_ms[-1])
        here = down < at_client
        stages: list[int] = []
        for stage in reversed(range(len(server_ms))):
            if here:
                stages.append(stage)
                here = stayed_up[stage]
            else:
                here = came_down[stage]
        return min(at_client, down), stages
