"""Walks on the virtual testbed: a client that goes from server to server.

At each server, the client has a session of `ionn.testbed.virtual_adaptive`: it connects, asks what the server's store
has, plans, and uploads while it raises queries. Queries run at the client while it is out of reach of any server, and
while it connects. A query that is at a server when the client leaves is completed at the client.

When the client leaves a server that has a store, the weight pieces that it has sent as a whole are in that store. When
the client is told of the next server, it sends ahead the weight pieces that are missing in that server's store, in the
order of a plan for that server, after what it still uploads to the present one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

from ionn.errors import InputError
from ionn.model.slices import Piece, Slice, stage_of
from ionn.model.weight_pieces import Layout, weight_pieces
from ionn.paper import MBPS
from ionn.planning.graph import ExecutionGraph
from ionn.planning.plan import Partition, empty_plan, make_plan
from ionn.planning.stored_weights import StoredPiece
from ionn.records import QueryRecord, Segment
from ionn.testbed.settings import Settings
from ionn.testbed.trace import RunInfo
from ionn.testbed.virtual import QUERIES_MAX
from ionn.testbed.virtual_adaptive import BYTES_PER_MS, AdaptiveSession
from ionn.testbed.walks import Server, Stretch, Visit, Walk

# The compared variants: without stores; with stores; with stores and weights sent ahead; the whole model everywhere.
NO_STORE, STORE, AHEAD, EVERYWHERE = "no store", "store", "store, sent ahead", "everything everywhere"
VARIANTS = (NO_STORE, STORE, AHEAD, EVERYWHERE)
# Shares of the model's weights that may be sent ahead.
SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)


class Store:
    """A server's store of one client's weight pieces, by their numbers, with a largest size in bytes. The pieces that
    were used longest ago are removed first."""

    def __init__(self, most_bytes: float, piece_bytes: Sequence[int]) -> None:
        self._most_bytes, self._piece_bytes = most_bytes, piece_bytes
        self._numbers: dict[int, None] = {}  # the piece that was used longest ago comes first

    @property
    def numbers(self) -> frozenset[int]:
        return frozenset(self._numbers)

    @property
    def size_bytes(self) -> int:
        return sum(self._piece_bytes[number] for number in self._numbers)

    def use(self, number: int) -> None:
        """Store a piece, or note that it is used now."""
        self._numbers.pop(number, None)
        self._numbers[number] = None
        while self.size_bytes > self._most_bytes:
            del self._numbers[next(iter(self._numbers))]


@dataclass(frozen=True)
class Stay:
    """A stay of the client at a server, which is given by its number. Of the plan's weights, `sent_bytes` crossed the
    link, and `held_bytes` were taken from the server's store; `ahead_bytes` were sent ahead to other servers.
    `uploaded_s` is the time at which the whole plan was usable, None if it never was."""

    server: int
    begin_s: float
    end_s: float
    sent_bytes: int
    held_bytes: int
    ahead_bytes: int
    uploaded_s: float | None


@dataclass(frozen=True)
class Walked:
    """The result of a walk: all queries, one after another, and the stays at servers. Times are seconds since the walk
    began."""

    name: str
    local_ms: float
    queries: tuple[QueryRecord, ...]
    stays: tuple[Stay, ...]

    @property
    def mean_ms(self) -> float:
        """The mean latency over time: each query counts for the time until the next one begins."""
        until_s = [*(query.start_s for query in self.queries[1:]), self.queries[-1].end_s]
        spans_s = [end_s - query.start_s for query, end_s in zip(self.queries, until_s, strict=True)]
        products = (query.latency_ms * span_s for query, span_s in zip(self.queries, spans_s, strict=True))
        return math.fsum(products) / math.fsum(spans_s)

    @property
    def longest_ms(self) -> float:
        return max(query.latency_ms for query in self.queries)

    @property
    def fallbacks(self) -> int:
        """The number of queries that were sent to a server and completed at the client."""
        return sum(query.fallback for query in self.queries)

    @property
    def sent_bytes(self) -> int:
        return sum(stay.sent_bytes for stay in self.stays)

    @property
    def held_bytes(self) -> int:
        return sum(stay.held_bytes for stay in self.stays)

    @property
    def ahead_bytes(self) -> int:
        return sum(stay.ahead_bytes for stay in self.stays)


class Gain(NamedTuple):
    """The gain if at most a `share` of the model may be sent ahead each time. `ahead_bytes` were sent ahead in all, and
    the mean latency over time was `mean_ms`. `gain` is the reduction of the mean latency, as a share of the reduction
    if every server has the whole model; NaN if that one is not positive."""

    share: float
    ahead_bytes: int
    mean_ms: float
    gain: float


def compare(walk: Walk) -> tuple[Walked, ...]:
    """Compute a walk in all VARIANTS. Raises InputError as `run_walk` does."""
    return tuple(run_walk(walk, variant) for variant in VARIANTS)


def gains(walk: Walk) -> tuple[Gain, ...]:
    """Compute the gain for each of SHARES; none if nothing can be sent ahead. Raises InputError as `run_walk` does."""
    most = run_walk(walk, AHEAD, SHARES[-1])
    if not most.ahead_bytes:
        return ()
    runs = [*((share, run_walk(walk, AHEAD, share)) for share in SHARES[:-1]), (SHARES[-1], most)]
    store_ms, everywhere_ms = (run_walk(walk, variant).mean_ms for variant in (STORE, EVERYWHERE))
    most_ms = store_ms - everywhere_ms
    return tuple(
        Gain(share, run.ahead_bytes, run.mean_ms, (store_ms - run.mean_ms) / most_ms if most_ms > 0 else math.nan)
        for share, run in runs
    )


def run_walk(walk: Walk, variant: str, ahead: float | None = None) -> Walked:
    """Compute a walk in one of VARIANTS. Equal arguments give equal results. `ahead` is the share of the model that may
    be sent ahead, by default the walk's own.

    Raises InputError if queries take no time, or nearly none, since the walk would never end.
    """
    return _Walking(walk, variant, walk.ahead if ahead is None else ahead).walked()


class _WalkSession(AdaptiveSession):
    """A session at one server, which may send weights ahead to others when it has uploaded its plan."""

    _ahead: Sequence[Partition] = ()

    def start_upload(self) -> None:
        """Connect, which takes a round trip and a probe, then plan and begin to upload. If the server goes out of reach
        before, nothing is planned."""
        link = self._link
        link.advance(link.arrived_down_ms(link.arrived_up_ms(0.0)))
        self._observed.observe_round_trip(self.now_s(), self._now_ms)
        self._late = self._probe(math.inf)
        if self._late.back_ms is None or self._late.back_ms > link.reach_ms:
            link.advance(max(link.reach_ms, self._now_ms))
            return
        link.advance(self._late.back_ms)
        self._look_around()

    def send_ahead(self, sizes_bytes: Iterable[int]) -> None:
        """Send weight pieces of these sizes ahead, after everything else."""
        new = [Partition(0, (), (), (), size, size, 0.0, 0.0) for size in sizes_bytes]
        self._ahead = [*self._ahead, *new]
        rest = [*self._partitions[self._link.begun :], *new]
        self._upload_rest(rest, self._router.graph(self._believed))

    def _after_plan(self) -> Sequence[Partition]:
        begun = sum(not part.pieces for part in self._partitions[: self._link.begun])
        return self._ahead[begun:]

    @property
    def connected(self) -> bool:
        return bool(self.estimates)

    @property
    def believed_mbps(self) -> float:
        return self._believed.mbps

    @property
    def uploaded_s(self) -> float | None:
        """The time at which the whole plan was usable; None if it never was."""
        planned = sum(bool(part.pieces) for part in self._partitions)
        if not self.connected or len(self._uploaded) < planned:
            return None
        last_ms = max((float(each.ready_ms) for each in self._uploaded[:planned]), default=0.0)
        return last_ms / 1e3 if last_ms <= self._link.reach_ms else None

    def begun(self) -> Iterator[tuple[Partition, float]]:
        """The partitions that have begun, and how many bytes of each have left the client. Those without stages are the
        weight pieces that are sent ahead."""
        link = self._link
        for part, unsent_ms in zip(self._partitions, [0.0] * len(link.left_ms) + link.unsent_ms(), strict=True):
            if link.begun == part.index:
                break
            yield part, part.wire_bytes - unsent_ms * BYTES_PER_MS


class _Walking:
    """One walk, as one variant."""

    def __init__(self, walk: Walk, variant: str, ahead: float) -> None:
        self._walk, self._variant = walk, variant
        self._layouts = list(weight_pieces(walk.network))
        self._sizes = [layout.raw_bytes for layout in self._layouts]
        self._stage_bytes = [stage.weight_bytes for stage in walk.network.stages]
        self._ahead_bytes = ahead * sum(self._sizes) if variant == AHEAD else 0.0
        self._stores = [self._store(server) for server in walk.servers]
        self._graphs = [
            ExecutionGraph.from_network(walk.network, walk.client, server.costs, MBPS) for server in walk.servers
        ]
        self._local_ms = float(walk.client.layer_ms(walk.network).sum())
        self._told: set[Visit] = set()
        self._now_s = 0.0
        self._queries: list[QueryRecord] = []

    def _store(self, server: Server) -> Store | None:
        most_bytes = float(sum(self._sizes)) if self._variant == EVERYWHERE else server.store_bytes
        if most_bytes is None or self._variant == NO_STORE:
            return None
        store = Store(most_bytes, self._sizes)
        if server.has_model or self._variant == EVERYWHERE:
            for number in range(len(self._sizes)):
                store.use(number)
        return store

    def walked(self) -> Walked:
        stays = [self._stay(stretch) for stretch in self._walk.stretches()]
        self._run_here(self._walk.seconds)
        at_servers = tuple(stay for stay in stays if stay is not None)
        return Walked(self._variant, self._local_ms, tuple(self._queries), at_servers)

    def _run_here(self, until_s: float) -> None:
        """Raise queries at the client until a time."""
        while self._now_s < until_s:
            end_s = self._now_s + self._local_ms / 1e3
            if end_s == self._now_s:
                raise InputError(f"a query of {self._local_ms:g} ms is so fast that the walk would not end")
            everything = Segment("client", 0, len(self._stage_bytes) - 1, self._local_ms, self._local_ms)
            self._keep(QueryRecord(0, self._now_s, self._now_s, end_s, (everything,)))

    def _keep(self, query: QueryRecord) -> None:
        """Keep a query, and set the clock to the time at which the next one is raised."""
        if len(self._queries) == QUERIES_MAX:
            raise InputError(f"the walk has more than {QUERIES_MAX} queries; give it fewer seconds")
        self._queries.append(dataclasses.replace(query, index=len(self._queries)))
        self._now_s = max(query.end_s, query.start_s + self._walk.every_s)

    def _stay(self, stretch: Stretch) -> Stay | None:
        if stretch.server is None:
            self._run_here(stretch.end_s)
            return None
        store, begin_s, length_s = self._stores[stretch.server], stretch.begin_s, stretch.end_s - stretch.begin_s
        had = frozenset[int]() if store is None else store.numbers
        session = self._session(stretch.server, had, length_s)
        session.start_upload()
        self._run_here(min(begin_s + session.now_s(), stretch.end_s))
        session.wait_until(self._now_s - begin_s)
        sent: list[tuple[int, list[int]]] = []  # the pieces that are sent ahead, and to which server
        while session.connected and session.now_s() < length_s:
            self._send_ahead(session, stretch, sent)
            query = session.query()
            times = {name: begin_s + getattr(query, name) for name in ("raised_s", "start_s", "end_s")}
            self._keep(dataclasses.replace(query, **times))
            session.wait_until(self._now_s - begin_s)
        session.uploaded()  # has the session follow the upload up to now
        return self._settled(session, stretch, had, sent)

    def _session(self, server: int, had: Iterable[int], length_s: float) -> _WalkSession:
        walk, there, graph = self._walk, self._walk.servers[server], self._graphs[server]
        settings = Settings("virtual", None, delay_ms=there.delay_ms, window_s=length_s, link=there.name)
        plan = empty_plan(walk.network, graph, walk.algorithm, MBPS)
        return _WalkSession(
            RunInfo(settings, 1, plan, graph, bandwidth=there.bandwidth), walk.network, walk.client, there.costs,
            stored=self._stored(had), store_ms_per_mb=there.store_ms_per_mb, reach_ms=length_s * 1e3,
        )  # fmt: skip

    def _stored(self, numbers: Iterable[int]) -> list[StoredPiece]:
        layouts = (self._layouts[number] for number in numbers)
        return [StoredPiece(layout.stage, layout.channels, layout.raw_bytes) for layout in layouts]

    def _send_ahead(self, session: _WalkSession, stretch: Stretch, sent: list[tuple[int, list[int]]]) -> None:
        """Send weights ahead to the servers that the client has been told of since the last query, except for those
        that are `sent` to them already in this stretch. What is sent is added to `sent`."""
        for visit in self._walk.visits:
            told = visit.told_s is not None and visit.told_s <= self._now_s < visit.from_s
            if told and visit not in self._told and visit.server != stretch.server:
                self._told.add(visit)
                queued = {number for server, numbers in sent if server == visit.server for number in numbers}
                numbers = self._most_valuable(visit.server, session.believed_mbps, queued)
                session.send_ahead(self._sizes[number] for number in numbers)
                sent.append((visit.server, numbers))

    def _most_valuable(self, server: int, mbps: float, queued: Set[int]) -> list[int]:
        """The weight pieces to send ahead to a server: those that its store lacks and that are not `queued` already, in
        the order of a plan for that server at that rate, as many as may be sent ahead."""
        store, walk, there = self._stores[server], self._walk, self._walk.servers[server]
        if store is None:
            return []
        there_then = store.numbers | queued
        graph = ExecutionGraph.from_network(walk.network, walk.client, there.costs, mbps)
        graph = graph.storing(self._stored(there_then), self._stage_bytes, there.store_ms_per_mb)
        plan = make_plan(walk.network, graph, walk.algorithm, mbps)
        numbers: list[int] = []
        left_bytes = self._ahead_bytes
        for number in (each for part in plan.partitions for each in self._numbers(part.pieces)):
            if number not in there_then:
                left_bytes -= self._sizes[number]
                if left_bytes < 0:
                    break
                numbers.append(number)
        return numbers

    def _numbers(self, pieces: Sequence[Piece]) -> Iterator[int]:
        """The weight pieces of a partition, in order."""
        for piece in pieces:
            for number, layout in enumerate(self._layouts):
                if layout.stage == stage_of(piece) and _is_in(layout, piece):
                    yield number

    def _settled(
        self, session: _WalkSession, stretch: Stretch, had: frozenset[int], sent: list[tuple[int, list[int]]]
    ) -> Stay:
        """Put the weight pieces that have left the client into the stores, and sum up the stay."""
        assert stretch.server is not None
        store = self._stores[stretch.server]
        to_others = iter([(server, number) for server, numbers in sent for number in numbers])
        sent_bytes = held_bytes = ahead_bytes = 0.0
        for part, left_bytes in session.begun():
            if not part.pieces:
                server, number = next(to_others)
                other = self._stores[server]
                ahead_bytes += left_bytes
                if other is not None and left_bytes == part.bytes:
                    other.use(number)
                continue
            sent_bytes += left_bytes
            held_bytes += part.stored_bytes
            if store is None:
                continue
            for number in self._numbers(part.pieces):
                if number not in had:
                    left_bytes -= self._sizes[number]
                if left_bytes < 0:
                    break
                store.use(number)
        return Stay(
            stretch.server,
            stretch.begin_s,
            stretch.end_s,
            round(sent_bytes),
            round(held_bytes),
            round(ahead_bytes),
            session.uploaded_s,
        )


def _is_in(layout: Layout, piece: Piece) -> bool:
    """Tell whether a weight piece of the same stage is in a plan's piece."""
    if not isinstance(piece, Slice) or layout.channels is None:
        return True
    return piece.begin <= layout.channels[0] < piece.end
