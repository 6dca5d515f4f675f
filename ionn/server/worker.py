"""A session at the server: the partial nets that a client uploaded, and the queries that run on them.

Each session has a process of its own, since a net that Caffe rejects after all aborts the process, and memory is
limited per process. `SessionState` is the session without sockets; `run` connects it to the server's front process.
"""

from __future__ import annotations

import contextlib
import resource
import signal
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ionn.coding import CODECS
from ionn.errors import PartitionError, ProtocolError
from ionn.model import engine
from ionn.model.engine import StageNet
from ionn.model.partial_net import Channels, NetStage, PartialNet
from ionn.protocol.messages import (
    DIGEST_BYTES,
    DIGESTS_MAX,
    ERROR_DAMAGED,
    ERROR_MISSING,
    ERROR_PARTITION,
    ERROR_PROTOCOL,
    PROTOCOL,
    Ack,
    Bye,
    Chunk,
    Error,
    Have,
    Held,
    Hello,
    Holds,
    Join,
    Message,
    Part,
    PartitionEnd,
    PartitionHeader,
    Ping,
    Pong,
    Query,
    Ready,
    Welcome,
    decode,
)
from ionn.protocol.receiver import PartitionReceiver, decoded_bytes
from ionn.server import sandbox
from ionn.server.admission import Boundary, CheckedNet, Usage, assign_blobs, check_partition
from ionn.server.executor import Stages
from ionn.server.ipc import MORE, TRIAL, Pipe
from ionn.server.limits import Limits
from ionn.server.shared_memory import Note
from ionn.server.sliced_stage import Assembly
from ionn.server.store_access import ACCESS_BYTES, OPEN_MAX, StoreAccess

# A product large enough for OpenBLAS to use the buffer that it maps once, more than 100 MB.
_PRODUCT = PartialNet(
    """
    layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 16 dim: 18 dim: 18 } } }
    layer { name: "product" type: "Convolution" bottom: "data" top: "product"
            convolution_param { num_output: 32 kernel_size: 3 } }
    """,
    "data",
    (NetStage(0, 1, ("product",)),),
)


# The most that a net's prototxt grows when it is written for Caffe, one field per line: not much more than ten times.
_FILE_PER_HEADER = 32
# Addresses that allocators reserve and may never use.
_RESERVED_BYTES = 10**9
# Standard streams, the pipe, the note and the inbox; and one net's prototxt, which Caffe opens twice.
_FILES = 16
# The sockets to the store, and pieces that are open.
_STORE_FILES = 2 + OPEN_MAX
# How long pieces are given to the store after a Bye. The session keeps its place until its process has ended.
_FAREWELL_S = 5.0


class _Arriving:
    """A partition whose weights are arriving. `blobs` is the memory of each of the header's blobs, in its nets or, for
    a slice that is complete, in its stage's whole net; pieces may be given to the store from there even later."""

    def __init__(self, header: PartitionHeader, checked: list[CheckedNet]) -> None:
        self.nets = [(each, StageNet(each.net)) for each in checked]
        targets = [net.blob_bytes() for _, net in self.nets]
        self._places = assign_blobs(header, checked)
        self.blobs = [targets[net][layer, blob] for net, layer, blob in self._places]
        self.receiver = PartitionReceiver(header, self.blobs)
        pieces = list(zip(header.pieces, self.receiver.ranges, strict=True))
        self.stored = {number: piece for number, piece in enumerate(pieces) if piece[0].stored}
        ends = [(self.receiver.end_of(ranges), piece.sha256, ranges) for piece, ranges in pieces if not piece.stored]
        self._coming = deque(sorted(ends))

    @property
    def layers(self) -> str:
        """Return the layers' names, for messages."""
        return "; ".join(layers for each, _ in self.nets for layers in each.layers.values())

    @property
    def whole_stages(self) -> set[int]:
        return {stage for each, _ in self.nets if each.whole is None for stage in each.layers}

    def read_stored(self, store: StoreAccess | None) -> tuple[int, ...]:
        """Read the stored pieces into the nets. Returns the numbers of those that are missing or damaged."""
        if store is None:
            return tuple(self.stored)
        wanted = [
            (bytes.fromhex(piece.sha256), [self.blobs[blob][begin:end] for blob, begin, end in ranges])
            for piece, ranges in self.stored.values()
        ]
        numbers = list(self.stored)
        return tuple(numbers[at] for at in store.read(wanted))

    def keep_pieces(self, store: StoreAccess) -> None:
        """Have the pieces given to the store that have become complete since the last call."""
        while self._coming and self._coming[0][0] <= self.receiver.received:
            _, sha256, ranges = self._coming.popleft()
            store.keep(bytes.fromhex(sha256), self.blobs, ranges)

    def move_slice(self, net: int, rows: dict[tuple[str, int], memoryview]) -> None:
        """Use the `rows` in the stage's whole net as the weights of net number `net`, which may then be freed."""
        for at, (index, layer, blob) in enumerate(self._places):
            if index == net:
                self.blobs[at] = rows[layer, blob]


class SessionState:
    """Answers a client's messages one by one. A message that fails leaves the session as it was, or drops its
    partition. `note` is told in words what happens, before anything that may end the process. Without a `store` nothing
    is stored."""

    def __init__(
        self,
        token: str,
        costs: dict[str, Any],
        limits: Limits,
        note: Callable[[str], None],
        store: StoreAccess | None = None,
    ) -> None:
        self._limits = limits
        self._note = note
        self._store = store
        chunk_bytes, window_bytes = int(limits.chunk_kb * 1e3), int(limits.window_kb * 1e3)
        self._welcome = Welcome(
            PROTOCOL, token, chunk_bytes, window_bytes, costs, codecs=CODECS, numerics=engine.numerics()
        )
        self._held: dict[int, Held] = {}
        self._arriving: dict[int, _Arriving] = {}
        self._usage: dict[int, Usage] = {}  # of every partition, arriving or held, without its slices
        self._boundaries: dict[int, Boundary] = {}  # of every stage, arriving or held
        self._stages = Stages(note)
        self._assemblies = self._stages.assemblies
        self._cold: deque[tuple[StageNet, int, str]] = deque()

    def handle(self, message: Message) -> Message:
        """The reply to a message. Its payload must be sent or copied before the next call of `handle` or `warm_up`,
        because the nets that run then may free its memory."""
        match message:
            case Hello():
                if message.role == "control":
                    self._stages.codecs = message.codecs
                arriving = (Held(index, part.receiver.received, False) for index, part in self._arriving.items())
                welcome = replace(self._welcome, held=(*self._held.values(), *arriving))
                if self._store is not None and self._store.alive:
                    welcome = replace(welcome, stores=True, store_ms_per_mb=self._store.ms_per_mb)
                return welcome
            case Have():
                return self._holds(message)
            case PartitionHeader() | Chunk() | PartitionEnd():
                return self._handle_partition(message)
            case Query() | Part() | Join():
                try:
                    return self._stages.handle(message)
                finally:
                    self._note_idle()
            case Ping():
                return Pong()
        return Error(ERROR_PROTOCOL, f"'{message.type}' is not for a session")

    def _holds(self, have: Have) -> Message:
        asked = b"".join(have.payload)
        if len(asked) % DIGEST_BYTES or len(asked) > DIGEST_BYTES * DIGESTS_MAX:
            return Error(ERROR_PROTOCOL, f"{len(asked)} bytes are not at most {DIGESTS_MAX} SHA-256")
        digests = [asked[at : at + DIGEST_BYTES] for at in range(0, len(asked), DIGEST_BYTES)]
        self._note("asking the store")
        found = bytes(len(digests)) if self._store is None else self._store.has(digests)
        self._note_idle()
        return Holds((found,))

    def _handle_partition(self, message: PartitionHeader | Chunk | PartitionEnd) -> Message:
        index = message.partition
        try:
            match message:
                case PartitionHeader():
                    return self._begin(message)
                case Chunk():
                    return self._take(message)
                case PartitionEnd():
                    return self._finish(message)
        except ProtocolError as error:
            return Error(ERROR_DAMAGED, str(error), partition=index)
        except PartitionError as error:
            self._drop(index)
            return Error(ERROR_PARTITION, str(error), partition=index)
        except MemoryError:
            self._drop(index)
            return Error(ERROR_PARTITION, f"no memory for partition {index}", partition=index)

    def _drop(self, index: int) -> None:
        dropped = self._arriving.pop(index, None)
        if dropped is None:
            return
        if self._store is not None:
            self._store.forget(dropped.blobs)
        del self._usage[index]
        for each, net in dropped.nets:
            self._keep_cold(net)
            if each.net.channels is not None:
                assembly = self._assemblies[each.stage]
                assembly.withdraw(each.net.channels)
                if assembly.announced:
                    continue
                self._keep_cold(assembly.net)
                del self._assemblies[each.stage]
            for stage in each.layers:
                del self._boundaries[stage]

    def _keep_cold(self, freed: StageNet) -> None:
        """Do not try a net that is no longer used."""
        self._cold = deque(cold for cold in self._cold if cold[0] is not freed)

    def _begin(self, header: PartitionHeader) -> Message:
        index = header.partition
        if index in self._arriving or index in self._held:
            raise ProtocolError(f"partition {index} was announced before")
        busy = {stage for part in self._arriving.values() for stage in part.whole_stages}
        for announced in header.nets:
            for stage in (stage.index for stage in announced.stages):
                partly = stage in self._assemblies and announced.channels is None
                if stage in self._stages or stage in busy or partly:
                    raise ProtocolError(f"stage {stage} was uploaded before")
        self._note(f"building partition {index}")
        usage = (*self._usage.values(), *(assembly.usage for assembly in self._assemblies.values()))
        used = sum(usage, Usage())
        begun = {stage: assembly.checked for stage, assembly in self._assemblies.items()}
        checked = check_partition(header, self._limits, used, self._boundaries, begun)
        wholes: dict[int, CheckedNet] = {}
        for each in checked:
            if each.stage in self._assemblies:
                self._assemblies[each.stage].check(each)
            elif each.whole is not None:
                wholes[each.stage] = each.whole
        arriving = _Arriving(header, checked)
        assemblies = {stage: Assembly(whole) for stage, whole in wholes.items()}
        if arriving.stored:
            self._note(f"reading partition {index} from the store")
            if missing := arriving.read_stored(self._store):
                self._note_idle()
                text = f"{len(missing)} pieces of partition {index} are not stored, or damaged"
                return Error(ERROR_MISSING, text, partition=index, pieces=missing)
        # All is built, and nothing below fails.
        self._assemblies.update(assemblies)
        self._cold.extend((new.net, new.stage, new.layers) for new in assemblies.values())
        for each, net in arriving.nets:
            self._cold.extend((net, stage, layers) for stage, layers in each.layers.items())
            if each.whole is not None:
                self._assemblies[each.stage].announce(each)
            self._boundaries.update(each.boundaries)
        self._arriving[index] = arriving
        self._usage[index] = sum((each.usage for each in checked if each.whole is None), Usage())
        self._note_idle()
        return Ack(index, arriving.receiver.received)

    def warm_up(self) -> bool:
        """Run a stage that has not run yet, on whatever its blobs contain; whether there was one.

        Caffe maps memory when a stage first runs, which takes about as long as its layers do. While there are no
        messages, mostly between chunks of weights, nobody waits for that; the first query would.
        """
        if not self._cold:
            return False
        net, stage, layers = self._cold.popleft()
        self._note(f"trying {layers}")
        net.run(stage, stage)
        self._note_idle()
        return True

    def _part(self, index: int) -> _Arriving:
        if index not in self._arriving:
            raise ProtocolError(f"partition {index} is not arriving")
        return self._arriving[index]

    def _take(self, chunk: Chunk) -> Message:
        part = self._part(chunk.partition)
        if decoded_bytes(chunk) > self._welcome.chunk_bytes:
            raise ProtocolError(f"a chunk of more than {self._welcome.chunk_bytes} bytes")
        part.receiver.take(chunk)
        if self._store is not None:
            part.keep_pieces(self._store)
        return Ack(chunk.partition, part.receiver.received)

    def _finish(self, end: PartitionEnd) -> Message:
        index = end.partition
        part = self._part(index)
        try:
            part.receiver.finish(end)
        except ProtocolError:
            if part.receiver.complete:
                self._drop(index)
            raise
        del self._arriving[index]
        self._held[index] = Held(index, part.receiver.received, True)
        for number, (each, net) in enumerate(part.nets):
            if each.net.channels is None:
                self._stages.add(net, each.layers)
            else:
                if self._store is not None:
                    self._store.release(part.blobs)
                self._add_slice(each.stage, each.net.channels, net)
                part.move_slice(number, self._assemblies[each.stage].rows(each.net.channels))
        self._note_idle()
        return Ready(index)

    def _add_slice(self, stage: int, channels: Channels, net: StageNet) -> None:
        assembly = self._assemblies[stage]
        assembly.add(channels, net)
        if assembly.complete:
            self._stages.add(assembly.net, {stage: assembly.layers})
            # The nets of its slices are freed.
            self._cold = deque(cold for cold in self._cold if cold[1] != stage or cold[0] is assembly.net)

    def _note_idle(self) -> None:
        waiting = ", ".join(f"receiving partition {index} ({part.layers})" for index, part in self._arriving.items())
        self._note(waiting)


def _restrain(limits: Limits, sandboxed: bool, store: StoreAccess | None) -> None:
    """Have the system hold this process to its limits and, if `sandboxed`, put it into its sandbox. Also ignore the
    signals that tell the server to stop, which then ends this process."""
    for number in (signal.SIGINT, signal.SIGTERM):  # they may be sent to the whole process group
        signal.signal(number, signal.SIG_IGN)
    with open("/proc/self/statm", encoding="ascii") as statm:
        if sandboxed:
            sandbox.deny_files()
        # Before the memory is limited, because OpenBLAS tries for ever to get its buffer.
        StageNet(_PRODUCT).run(0, 0)
        pages = [int(count) for count in statm.read().split()]
    all_bytes, data_bytes = (pages[at] * resource.getpagesize() + int(limits.memory_mb * 1e6) for at in (0, 5))
    for limit, most in (
        (resource.RLIMIT_DATA, data_bytes if store is None else data_bytes + ACCESS_BYTES),
        # All addresses, with those that allocators reserve and RLIMIT_DATA does not count.
        (resource.RLIMIT_AS, all_bytes + _RESERVED_BYTES),
        # Files in memory, which RLIMIT_DATA does not count either: one for each net that is being built.
        (resource.RLIMIT_FSIZE, _FILE_PER_HEADER * int(limits.header_kb * 1e3)),
        (resource.RLIMIT_NOFILE, _FILES if store is None else _FILES + _STORE_FILES),
        # A core file of a dying session would delay the news of its death.
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(limit)
        if hard != resource.RLIM_INFINITY:
            most = min(most, hard)
        resource.setrlimit(limit, (most, most))
    if sandboxed:
        sandbox.filter_calls(None if store is None else store.descriptor)


def _answer(state: SessionState, role: str, frames: Sequence[Any]) -> Message | None:
    """The reply to a client's message by its connection of this role; None to a Bye."""
    try:
        message = decode(frames)
    except ProtocolError as error:
        return Error(ERROR_PROTOCOL, str(error))
    if role == "upload" and isinstance(message, Query | Part | Join):  # the front did not have it wait for a turn
        return Error(ERROR_PROTOCOL, f"'{message.type}' is for the connection of role 'control'")
    return None if isinstance(message, Bye) else state.handle(message)


def run(
    pipe: Pipe,
    token: str,
    costs: dict[str, Any],
    limits: Limits,
    sandboxed: bool,
    note: Note,
    store: StoreAccess | None = None,
) -> None:
    """Serve one session: the body of a worker process. Ends with the client's Bye or when the server has ended.

    `pipe` leads to the server's front process, which reads the `note` if the worker dies. Every message has one answer,
    in order. While there are no messages, the front has stages tried, and the `store` is given the pieces that have
    arrived.
    """
    _restrain(limits, sandboxed, store)
    state = SessionState(token, costs, limits, note.write, store)
    with contextlib.suppress(EOFError):  # the server has ended
        while True:
            if store is not None:
                store.give(pipe.fileno())
            role, frames = pipe.receive()
            if role == TRIAL:
                pipe.send([MORE if state.warm_up() else b"none"])
                continue
            reply = _answer(state, role, frames)
            if reply is None:
                if store is not None:
                    store.finish(_FAREWELL_S)
                break
            pipe.send(reply.frames())
