"""The NN execution graph of a chain (paper, section 2.2 and Fig. 1), its fastest paths and their latencies.

Before every stage, a query's data is either at the client or at the server. With the paper's node numbers, the nodes of
a stage are 1 (the data is at the client before the stage), 2 (at the server before it) and 3 (at the server after it);
4 and 5 are nodes 1 and 2 of the next stage:

    1 --client_ms--> 4        the client executes the stage
    1 --up_ms------> 2        its input goes up
    2 --server_ms--> 3        the server executes it (planners add an upload overhead to this edge)
    3 --down_ms----> 4        its output comes down
    3 --0----------> 5        the server goes on

After each stage the data is at the client (4) or at the server (3), so the fastest path is found by dynamic programming
(a Viterbi search) with two states per stage. A query starts and ends at the client.

Beyond the paper:

- With coding (`ionn.planning.coding_costs`), `up_ms` and `down_ms` are the times of coded transfers where coding is
  faster.
- A stage of which only some channels are uploaded has four more edges, on which both sides compute
  (`ionn.planning.slice_costs`).
- `ExecutionGraph.holding` is the graph for a server that holds some stages already: they cost nothing to upload.
  `ExecutionGraph.storing` is that for a server whose store has some weights (`ionn.planning.stored_weights`): it loads
  them, but they need not be sent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ionn.coding import LOSSLESS, NONE, check_coding
from ionn.errors import InputError
from ionn.model.slices import Piece, Slice, channels_of, stage_of
from ionn.planning.coding_costs import (
    DOWN,
    UP,
    CodedTransfer,
    CodedWeights,
    Transfer,
    check_coded,
    coded_transfers,
    coded_weights,
)
from ionn.planning.grid import on_grid, time_on_grid
from ionn.planning.slice_costs import SlicePlan, Split, slice_plans
from ionn.planning.stored_weights import StoredPiece, StoredWeights
from ionn.schema import STAGE_MAX_MS, Natural, Real

if TYPE_CHECKING:
    from ionn.costs.models import Costs
    from ionn.model.network import Network

_FLOAT_BYTES = 4


def checked_mbps(mbps: float) -> float:
    """Return the bandwidth. Raises InputError unless it is finite and above 0."""
    if not (math.isfinite(mbps) and mbps > 0):
        raise InputError(f"bandwidth {mbps} Mbps: give a positive number of megabits per second")
    return mbps


class Leg(NamedTuple):
    """A part of a path: the adjacent stages `first`..`last`, both included, that run at one place.

    - `where`: "client", "server", or "both" for one stage of which each side computes some channels.
    - `from_server`: the input is at the server when the leg starts. `to_server`: the output stays there.
    """

    where: str
    first: int
    last: int
    from_server: bool
    to_server: bool


class GraphDocument(msgspec.Struct):
    """An `ExecutionGraph` as JSON. In traces of earlier versions, the fields with a default may be missing."""

    stages: tuple[str, ...]
    client_ms: list[Real]
    server_ms: list[Real]
    upload_ms: list[Real]
    load_ms: list[Real]
    up_ms: list[Real]
    down_ms: list[Real]
    offloadable: list[bool]
    cuts: tuple[SlicePlan, ...] = ()
    boundary_bytes: tuple[Natural, ...] = ()
    coded: tuple[CodedTransfer, ...] = ()
    coded_weights: tuple[CodedWeights, ...] = ()
    stored: tuple[StoredWeights, ...] = ()

    def graph(self) -> ExecutionGraph:
        """The graph itself. Raises InputError as `ExecutionGraph` does."""
        return ExecutionGraph(**msgspec.structs.asdict(self))


@dataclass(frozen=True, eq=False)
class ExecutionGraph:
    """The costs of a chain of n stages between one client and one server. Arrays have the shape (n,) unless noted;
    times are ms.

    - `stages`: the names of the stages.
    - `client_ms`, `server_ms`: the execution time of each stage at the client and at the server.
    - `load_ms`: the server's time to load the weights of a stage.
    - `upload_ms`: the upload overhead: the time of a stage's weights on the link, plus `load_ms`.
    - `up_ms`, `down_ms`, (n + 1,): the time to send blob i to the server or to the client. Blob i is the input of stage
      i, and blob n the network's outputs.
    - `offloadable`: whether a stage may run at the server.
    - `cuts`: the stages that can be uploaded in slices.
    - `boundary_bytes`, (n + 1,): the raw bytes of each blob; empty if they are not known.
    - `coded`, `coded_weights`: the transfers of blobs, and the weights of stages, that are coded. The times above are
      then those of the coded transfers.
    - `stored`: for each stage of which the server's store has some weights, what is missing (`storing`).
    - `held`: the pieces that the server holds already (`holding`); not part of the JSON.

    Raises InputError for times that are negative, not finite or above STAGE_MAX_MS, and for arrays of another shape.
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
    boundary_bytes: Sequence[int] = ()  # (n + 1,) or empty
    coded: Sequence[CodedTransfer] = ()
    coded_weights: Sequence[CodedWeights] = ()
    stored: Sequence[StoredWeights] = ()
    held: Sequence[Piece] = ()

    def __post_init__(self) -> None:
        n = len(self.stages)
        sizes = {"client_ms": n, "server_ms": n, "upload_ms": n, "load_ms": n, "up_ms": n + 1, "down_ms": n + 1}
        arrays: dict[str, NDArray[Any]] = {name: on_grid(getattr(self, name)) for name in sizes}
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
        if len(self.boundary_bytes) not in (0, n + 1):
            raise InputError(f"execution graph: boundary_bytes needs {n + 1} sizes for {n} stages")
        times = (arrays[name] for name in ("up_ms", "down_ms", "upload_ms", "load_ms"))
        check_coded(self.coded, self.coded_weights, *times)
        channels = dict.fromkeys(range(n), 1) | {cut.stage: cut.channels for cut in self.cuts}
        if wrong := [each for each in self.stored if channels.get(each.stage) != each.channels]:
            raise InputError(f"execution graph: what is stored of stage {wrong[0].stage} is not of its channels")
        if len({each.stage for each in self.stored}) < len(self.stored):
            raise InputError("execution graph: what is stored of a stage is there twice")
        for name, array in arrays.items():
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    @classmethod
    @np.errstate(over="ignore")
    def from_network(
        cls,
        network: Network,
        client: Costs,
        server: Costs,
        mbps: float,
        coding: str = NONE,
        weight_ratio: float | None = None,
        coded_bytes: Sequence[int] | None = None,
        rtt_ms: float = 0.0,
    ) -> ExecutionGraph:
        """The graph of a network's chain.

        - `client`, `server`: the costs of the layers on the two devices.
        - `mbps`: the bandwidth of the link in each direction.
        - `coding`: "none", or "features" or "lossless" (`ionn.coding`): blobs, and with "lossless" weights too, are
          coded where that is faster.
        - `weight_ratio`: wire bytes per raw byte of all weights. `coded_bytes`: instead, the wire bytes of each stage's
          weights, (n,). By default the ratios that were measured for a bundled model are used.
        - `rtt_ms`: the round-trip time; each transfer of a blob takes half of it on top of the time of its bytes.

        Raises InputError for a bandwidth that is not positive, for an unknown coding or an impossible ratio, and for
        costs that do not fit the network.
        """
        bytes_per_ms = checked_mbps(mbps) * 1e6 / 8 / 1e3
        check_coding(coding, weight_ratio)
        starts = [stage.first_layer for stage in network.stages]
        load_ms = np.add.reduceat(server.load_ms(network), starts)
        weights_ms = on_grid(np.array([stage.weight_bytes for stage in network.stages]) / bytes_per_ms)
        blobs = [[stage.input_shape] for stage in network.stages] + [network.stages[-1].output_shapes]
        boundary_bytes = [sum(map(math.prod, shapes)) * _FLOAT_BYTES for shapes in blobs]
        delay_ms = time_on_grid(rtt_ms / 2)
        transfer_ms = on_grid(np.array(boundary_bytes) / bytes_per_ms) + delay_ms
        ways_ms = {UP: transfer_ms.copy(), DOWN: transfer_ms.copy()}
        coded = (
            ()
            if coding == NONE
            else tuple(coded_transfers(network, client, server, boundary_bytes, bytes_per_ms, delay_ms))
        )
        for transfer in coded:
            ways_ms[transfer.direction][transfer.boundary] = transfer.total_ms
        stages = (
            tuple(coded_weights(network, server, bytes_per_ms, weight_ratio, coded_bytes)) if coding == LOSSLESS else ()
        )
        for stage in stages:
            weights_ms[stage.stage] = stage.total_ms
        fixed_ms = [np.add.reduceat(side.fixed_ms(network), starts).tolist() for side in (client, server)]
        return cls(
            stages=tuple(stage.name for stage in network.stages),
            client_ms=np.add.reduceat(client.layer_ms(network), starts),
            server_ms=np.add.reduceat(server.layer_ms(network), starts),
            upload_ms=weights_ms + on_grid(load_ms),
            load_ms=load_ms,
            up_ms=ways_ms[UP],
            down_ms=ways_ms[DOWN],
            offloadable=np.array([not stage.pinned for stage in network.stages]),
            cuts=slice_plans(network, *fixed_ms),
            boundary_bytes=tuple(boundary_bytes),
            coded=coded,
            coded_weights=stages,
        )

    def holding(self, pieces: Iterable[Piece]) -> ExecutionGraph:
        """The same graph for a server that also holds these pieces. Slices must be of a stage's first channels.

        Held pieces count as uploaded in every latency, and have no upload overhead. So a planner may order all stages
        as usual; `ionn.planning.plan.make_plan` leaves the held ones out.
        """
        whole: set[int] = set()
        held = dict.fromkeys(range(len(self.stages)), 0)
        for piece in (*self.held, *pieces):
            if isinstance(piece, Slice) and piece.end < self._cut[piece.stage].channels:
                held[piece.stage] = max(held[piece.stage], piece.end)
            else:
                whole.add(stage_of(piece))
        rest = {
            stage: Slice(stage, channels, self._cut[stage].channels)
            for stage, channels in held.items()
            if channels and stage not in whole
        }
        upload_ms, load_ms, sent = self.upload_ms.copy(), self.load_ms.copy(), np.ones(len(self.stages))
        sent[list(whole)] = upload_ms[list(whole)] = load_ms[list(whole)] = 0
        for stage, piece in rest.items():
            load_ms[stage], sent[stage] = self._load_ms(piece), self._sent_share(piece)
        slices = (Slice(stage, 0, piece.begin) for stage, piece in rest.items())
        return replace(
            self._sending(sent, load_ms),
            stored=tuple(each for each in self.stored if each.stage not in whole),
            held=(*sorted(whole), *slices),
        )

    def storing(self, pieces: Iterable[StoredPiece], stage_bytes: Sequence[int], ms_per_mb: float) -> ExecutionGraph:
        """The same graph for a server whose store also has these pieces. `stage_bytes` are the raw bytes of each
        stage's weights, (n,); the server reads 10^6 bytes from its store in `ms_per_mb`.

        Stored weights take no time on the link; the time to read them is added to `load_ms`, except for pieces that the
        server holds. Coded weights are taken to shrink evenly within a stage.
        """
        found: dict[int, list[StoredPiece]] = {}
        for piece in pieces:
            if piece.stage not in self.held:
                found.setdefault(piece.stage, []).append(piece)
        if not found:
            return self
        load_ms, sent, stored = self.load_ms.copy(), np.ones(len(self.stages)), dict(self._stored)
        for stage, parts in found.items():
            begin, end = self.held_channels(stage), self._channels(stage)
            before = stored.get(stage) or StoredWeights.nothing(stage, end, stage_bytes[stage])
            after = stored[stage] = before.with_pieces(parts, ms_per_mb)
            load_ms[stage] += after.read_between_ms(begin, end) - before.read_between_ms(begin, end)
            if former := before.missing_between(begin, end):
                sent[stage] = after.missing_between(begin, end) / former
        return replace(self._sending(sent, load_ms), stored=tuple(stored[stage] for stage in sorted(stored)))

    def _sending(self, sent: NDArray[np.float64], load_ms: NDArray[np.float64]) -> ExecutionGraph:
        """The same graph with only a share `sent` (n,) of each stage's transfer left, and with other `load_ms` (n,)."""
        load_ms = on_grid(load_ms)
        coded = tuple(each.part(float(sent[each.stage])) for each in self.coded_weights if sent[each.stage])
        upload_ms = load_ms + on_grid(sent * (self.upload_ms - self.load_ms))
        for each in coded:
            upload_ms[each.stage] = load_ms[each.stage] + each.total_ms
        return replace(self, upload_ms=upload_ms, load_ms=load_ms, coded_weights=coded)

    def missing(self, plan: Iterable[Iterable[Piece]]) -> list[list[Piece]]:
        """The partitions of a plan without the pieces that the server holds. Of a stage that it holds in part, the
        channels from the first missing one on remain.

        Channels that are too few for a slice become part of the stage's next slice.
        """
        whole = {piece for piece in self.held if not isinstance(piece, Slice)}
        ends = channels_of(self.held)
        partitions: list[list[Piece]] = []
        for pieces in plan:
            rest: list[Piece] = []
            for piece in pieces:
                stage = stage_of(piece)
                if stage in whole:
                    continue
                begin = ends.get(stage, 0)
                if not isinstance(piece, Slice):
                    rest.append(Slice(stage, begin, self._cut[stage].channels) if begin else stage)
                elif piece.end - begin >= self._cut[stage].least:
                    rest.append(Slice(stage, begin, piece.end))
                    ends[stage] = piece.end
            if rest:
                partitions.append(rest)
        return partitions

    def shortest_path(self, overhead_ms: ArrayLike) -> frozenset[int]:
        """The stages that run at the server on the fastest path if executing a stage there takes `overhead_ms` (n,)
        longer (paper, section 2.2).

        Of equally fast paths, it is the one with the fewest stages at the server; all others have these stages there.
        """
        return frozenset(self._fastest((self._server_ms + on_grid(overhead_ms)).tolist())[1])

    def latency_ms(self, uploaded: Iterable[Piece]) -> float:
        """The latency of the fastest path on which the server executes only what is `uploaded` or held, in ms."""
        return self._fastest(*self._only(uploaded))[0]

    def legs(self, uploaded: Iterable[Piece]) -> tuple[Leg, ...]:
        """The path whose latency `latency_ms` returns, from the first stage to the last."""
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
        """Return the costs of a stage while its first `channels` channels, not all of them, are at the server."""
        cut = self._cut[stage]
        share = channels / cut.channels
        client_ms, server_ms = float(self.client_ms[stage]), float(self.server_ms[stage])
        # The measured time of a stage may be less than the fixed part that a cost model predicts.
        client_fixed_ms = min(cut.client_fixed_ms, client_ms)
        server_fixed_ms = min(cut.server_fixed_ms, server_ms)
        return Split(
            time_on_grid(client_fixed_ms + (1 - share) * (client_ms - client_fixed_ms)),
            time_on_grid(server_fixed_ms + share * (server_ms - server_fixed_ms)),
            self.transfer(stage, UP),
            self.transfer(stage, DOWN),
            self.transfer(stage + 1, UP).part(1 - share),
            self.transfer(stage + 1, DOWN).part(share),
        )

    def is_coded(self, boundary: int, direction: str) -> bool:
        """Tell whether the blob at a boundary is coded when it is sent "up" or "down"."""
        return (boundary, direction) in self._coded

    def transfer(self, boundary: int, direction: str) -> Transfer:
        """The transfer of the blob at a boundary "up" or "down". Its bytes are 0 if they are not known."""
        raw_bytes = self.boundary_bytes[boundary] if self.boundary_bytes else 0
        if coded := self._coded.get((boundary, direction)):
            return Transfer(coded.encode_ms, coded.link_ms, coded.decode_ms, raw_bytes, coded.wire_bytes)
        link_ms = float((self.up_ms if direction == UP else self.down_ms)[boundary])
        return Transfer(0.0, link_ms, 0.0, raw_bytes, raw_bytes)

    def share(self, piece: Piece) -> float:
        """The share of its stage's channels that a piece has; 1 for a whole stage."""
        return (piece.end - piece.begin) / self._cut[piece.stage].channels if isinstance(piece, Slice) else 1.0

    def held_channels(self, stage: int) -> int:
        """How many channels of a stage the server holds as slices; 0 if it holds the whole stage."""
        return self._held_channels.get(stage, 0)

    def _channels(self, stage: int) -> int:
        """How many channels a stage has; 1 if it cannot be cut."""
        return self._cut[stage].channels if stage in self._cut else 1

    def _missing_share(self, piece: Piece) -> float:
        """The share of a piece in those channels of its stage that the server does not hold."""
        if not isinstance(piece, Slice):
            return 1.0
        held = self.held_channels(piece.stage)
        return max(0, piece.end - max(piece.begin, held)) / (self._channels(piece.stage) - held)

    def _sent_share(self, piece: Piece) -> float:
        """The share of a piece in the bytes of its stage that must be sent."""
        stored = self._stored.get(stage_of(piece))
        if not isinstance(piece, Slice) or stored is None:
            return self._missing_share(piece)
        held = self.held_channels(piece.stage)
        missing = stored.missing_between(held, stored.channels)
        return stored.missing_between(max(piece.begin, held), max(piece.end, held)) / missing if missing else 0.0

    def _load_ms(self, piece: Piece) -> float:
        """How long the server takes to load a piece, and to read the stored part of it."""
        stage, share = stage_of(piece), self._missing_share(piece)
        stored = self._stored.get(stage)
        if not isinstance(piece, Slice) or stored is None:
            return share * float(self.load_ms[stage])
        held = self.held_channels(stage)
        read_ms = stored.read_between_ms(max(piece.begin, held), max(piece.end, held))
        all_read_ms = stored.read_between_ms(held, stored.channels)
        return share * max(0.0, float(self.load_ms[stage]) - all_read_ms) + read_ms

    def overhead_ms(self, pieces: Iterable[Piece]) -> tuple[float, float]:
        """The upload overhead of some pieces in ms, and the part of it in which the server loads them."""
        upload_ms = load_ms = 0.0
        for piece in pieces:
            piece_upload_ms, piece_load_ms = self._overhead_ms(piece)
            upload_ms += piece_upload_ms
            load_ms += piece_load_ms
        return upload_ms, load_ms

    def _overhead_ms(self, piece: Piece) -> tuple[float, float]:
        stage = stage_of(piece)
        if stage in self.held or not self._missing_share(piece):
            return 0.0, 0.0
        load_ms = self._load_ms(piece) + (self._cut[stage].slice_ms if isinstance(piece, Slice) else 0.0)
        sent_ms = self._sent_share(piece) * float(self.upload_ms[stage] - self.load_ms[stage])
        return time_on_grid(load_ms + sent_ms), time_on_grid(load_ms)

    def arrival_ms(self, pieces: Iterable[Piece]) -> tuple[float, float]:
        """The time of some pieces' weights on the link, and the time in which the server decodes them meanwhile, in
        ms."""
        link_ms = decode_ms = 0.0
        for piece in pieces:
            if coded := self._coded_weights.get(stage_of(piece)):
                link_ms += time_on_grid(self._sent_share(piece) * coded.link_ms)
                decode_ms += time_on_grid(self._sent_share(piece) * coded.decode_ms)
            else:
                upload_ms, load_ms = self._overhead_ms(piece)
                link_ms += upload_ms - load_ms
        return link_ms, decode_ms

    def wire_bytes(self, piece: Piece, stage_bytes: int) -> int:
        """The bytes that cross the link for a piece of a stage whose weights have `stage_bytes`."""
        if coded := self._coded_weights.get(stage_of(piece)):
            return round(self._sent_share(piece) * coded.wire_bytes)
        return self.sent_bytes(piece, stage_bytes)

    def sent_bytes(self, piece: Piece, stage_bytes: int) -> int:
        """The raw bytes of a piece that must be sent because the server's store does not have them."""
        stored = self._stored.get(stage_of(piece))
        if stored is None:
            return round(self.share(piece) * stage_bytes)
        begin, end = piece[1:] if isinstance(piece, Slice) else (0, stored.channels)
        return round(stored.missing_between(begin, end))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ExecutionGraph) and (self.to_json(), self.held) == (other.to_json(), other.held)

    def __hash__(self) -> int:
        return hash(self.stages)

    def to_json(self) -> dict[str, list[Any]]:
        """Return the graph as JSON: a list per attribute, in the order of the stages or boundaries."""
        return {field.name: _as_json(getattr(self, field.name)) for field in fields(self) if field.name != "held"}

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
        """Whether each stage has weights that the server does not hold, (n,), whether they are sent or stored there."""
        sends: NDArray[np.bool_] = self.upload_ms > self.load_ms
        sends[list(self._stored)] = True
        return sends

    @property
    def local_ms(self) -> float:
        """The latency with all stages at the client."""
        return float(self.client_ms.sum())

    @cached_property
    def _stored(self) -> dict[int, StoredWeights]:
        return {each.stage: each for each in self.stored}

    @cached_property
    def _held_channels(self) -> dict[int, int]:
        return channels_of(self.held)

    @cached_property
    def _server_ms(self) -> NDArray[np.float64]:
        return np.where(self.offloadable, self.server_ms, math.inf)

    @cached_property
    def _server_side(self) -> list[float]:
        return list(map(float, self._server_ms))

    @cached_property
    def _client_side(self) -> list[tuple[float, float, float]]:
        """For each stage: its time at the client, and the times of its input up and down."""
        return list(zip(self.client_ms.tolist(), self.up_ms.tolist(), self.down_ms.tolist(), strict=False))

    @cached_property
    def _cut(self) -> dict[int, SlicePlan]:
        return {cut.stage: cut for cut in self.cuts}

    @cached_property
    def _coded(self) -> dict[tuple[int, str], CodedTransfer]:
        return {(each.boundary, each.direction): each for each in self.coded}

    @cached_property
    def _coded_weights(self) -> dict[int, CodedWeights]:
        return {each.stage: each for each in self.coded_weights}

    def _only(self, uploaded: Iterable[Piece]) -> tuple[list[float], dict[int, Split]]:
        """The server's time for each stage, infinite if it is not uploaded, and the costs of those uploaded in part."""
        pieces = [*self.held, *uploaded]
        server_ms = [math.inf] * len(self.stages)
        for piece in pieces:
            if not isinstance(piece, Slice):
                server_ms[piece] = self._server_side[piece]
        splits: dict[int, Split] = {}
        for stage, count in channels_of(pieces).items():
            if count >= self._cut[stage].channels:
                server_ms[stage] = self._server_side[stage]
            elif math.isinf(server_ms[stage]) and self.offloadable[stage]:
                splits[stage] = self.split(stage, count)
        return server_ms, splits

    def _fastest(
        self, server_ms: list[float], splits: Mapping[int, Split] | None = None
    ) -> tuple[float, list[int], dict[int, tuple[bool, bool]]]:
        """The fastest path: its latency, its stages at the server (last first), and its stages at both sides, with the
        places of their input and output (True: the server). Of equally fast ways to a node, the one from the client is
        taken."""
        at_client, at_server = 0.0, math.inf  # the earliest times to have the data there
        came_down: list[bool] = []
        stayed_up: list[bool] = []
        joined: set[tuple[int, bool]] = set()  # stages that run at both sides, and whether the output is at the server
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


def _as_json(values: Any) -> list[Any]:
    """A field of a graph as a list: of numbers, names or flags, or of objects."""
    parts = [asdict(value) for value in values if is_dataclass(value) and not isinstance(value, type)]
    return parts or list(np.asarray(values).tolist())
