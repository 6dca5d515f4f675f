"""A server that answers as a good one does, but for what a script makes of its answers. Real TCP, ZMTP by hand: it can
send what no ZeroMQ socket would."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import struct
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from ionn.client.offloading import Offloading
from ionn.client.session import Client, Timeouts
from ionn.client.sliced_stage import slice_stages
from ionn.coding import CODECS
from ionn.model import engine
from ionn.model.caffemodel import Floats
from ionn.model.coded_weights import piece_digest
from ionn.model.comparison import Numerics
from ionn.model.partial_net import extract
from ionn.model.slices import Piece, Slice
from ionn.model.weight_pieces import WeightPiece, weight_pieces
from ionn.planning.graph import ExecutionGraph
from ionn.planning.slice_costs import SlicePlan
from ionn.protocol import messages
from ionn.protocol.blobs import make_payload, read_payload
from ionn.protocol.sender import Upload
from ionn.testbed.live_session import LiveSession
from tests.support.chains import coded_everywhere
from tests.support.forward import random_weights
from tests.support.nets import network_of

WAIT_S = 30.0
# For servers that let their client wait.
QUICK = Timeouts(query_s=0.6, heartbeat_s=0.05, silence_s=0.6, connect_s=0.6, retry_s=0.01, retry_max_s=0.05)
# For all others: a busy machine is not to be taken for a silent server.
PATIENT = dataclasses.replace(QUICK, query_s=WAIT_S, silence_s=WAIT_S, connect_s=WAIT_S)

# Stages: 0 the input, 1 a convolution, 2 a pooling, 3 an inner product in slices, 4 another one, 5 the softmax.
NETWORK = network_of(
    "Convolution convolution_param { num_output: 48 kernel_size: 3 }",
    "Pooling pooling_param { kernel_size: 2 stride: 2 }",
    "InnerProduct inner_product_param { num_output: 96 }",
    "InnerProduct inner_product_param { num_output: 10 }",
    "Softmax",
    shape="dim: 1 dim: 3 dim: 16 dim: 16",
)
SLICES = [Slice(3, 0, 48), Slice(3, 48, 96)]
# A query is a Query, a Part, a Join and a Query then.
PIECES: list[list[Piece]] = [[1, 2, SLICES[0]], [4]]
WEIGHTS = random_weights(NETWORK, scale=0.05)
PIECES_OF_WEIGHTS = [WeightPiece(layout, piece_digest(layout, WEIGHTS)) for layout in weight_pieces(NETWORK)]
DIGESTS = [piece.sha256 for piece in PIECES_OF_WEIGHTS]
N = len(NETWORK.stages)
GRAPH = ExecutionGraph(
    stages=tuple(stage.name for stage in NETWORK.stages),
    client_ms=np.full(N, 40.0), server_ms=np.full(N, 1.0), upload_ms=np.full(N, 10.0), load_ms=np.zeros(N),
    up_ms=np.full(N + 1, 0.5), down_ms=np.full(N + 1, 0.5),
    offloadable=np.array([not stage.pinned for stage in NETWORK.stages]), cuts=(SlicePlan(3, 96, 48, 0.0, 0.0, 1.0),),
)  # fmt: skip
# The same with every blob coded.
CODED = coded_everywhere(GRAPH, NETWORK)
INPUTS = [np.random.default_rng(seed).standard_normal(NETWORK.input_shape).astype(np.float32) for seed in (1, 2)]


# --- ZMTP 3 ----------------------------------------------------------------------------------------------------------

GREETING = (b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL").ljust(64, b"\0")


def frame(body: bytes, *, more: bool = False, command: bool = False) -> bytes:
    flags = (1 if more else 0) | (4 if command else 0)
    if len(body) < 256:
        return bytes((flags, len(body))) + body
    return bytes((flags | 2,)) + struct.pack(">Q", len(body)) + body


def loose_frames(message: messages.Message) -> list[bytes]:
    """Like `message.frames`, also of what is no JSON: NaN, infinities, halves of characters."""
    fields = {each.name: getattr(message, each.name) for each in dataclasses.fields(message) if each.name != "payload"}
    head = json.dumps({"type": message.type, **fields}, default=dataclasses.asdict)
    return [head.encode(), *map(bytes, message.payload)]


def multipart(frames: Sequence[bytes]) -> bytes:
    return b"".join(frame(bytes(each), more=at + 1 < len(frames)) for at, each in enumerate(frames))


READY = frame(b"\x05READY\x0bSocket-Type\x00\x00\x00\x06ROUTER", command=True)


class Connection:
    """The server's end of one TCP connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.settimeout(WAIT_S)
        self._input = sock.makefile("rb")

    def shake_hands(self) -> None:
        self.socket.sendall(GREETING)
        self.read(64)
        self.socket.sendall(READY)

    def read(self, size: int) -> bytes:
        data = self._input.read(size)
        if len(data) < size:
            raise EOFError
        return data

    def receive(self) -> list[bytes]:
        """The next message."""
        frames: list[bytes] = []
        while True:
            (flags,) = self.read(1)
            size = struct.unpack(">Q", self.read(8))[0] if flags & 2 else self.read(1)[0]
            body = self.read(size)
            if flags & 4:
                continue
            frames.append(body)
            if not flags & 1:
                return frames

    def send(self, *said: messages.Message) -> None:
        self.raw(b"".join(multipart(loose_frames(message)) for message in said))

    def raw(self, data: bytes) -> None:
        self.socket.sendall(data)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self._input.close()
        self.socket.close()


# --- The server ------------------------------------------------------------------------------------------------------

# What a script does in the place of an answer, at one of the MOMENTS. It returns whether the connection goes on.
Script = Callable[[Connection, messages.Message], bool]
MOMENTS = (
    "welcome control", "welcome upload", "header ack", "chunk ack", "ready", "query", "part", "join", "pong control",
    "pong upload", "holds",
)  # fmt: skip


class Hostile:
    """A server at `address`. Until `moment` comes it is a good one; then and from then on `script` answers. Its store
    has the pieces of weights whose digests are `stored`, and it says to compute with `numerics`,
    which is called for each connection.

    `struck` is set when the script has begun. The moment "greeting" is before all: the script has the connection.
    """

    def __init__(
        self,
        moment: str = "",
        script: Script | None = None,
        costs: dict[str, Any] | None = None,
        stored: Collection[str] = (),
        numerics: Callable[[], Numerics | None] = engine.numerics,
    ) -> None:
        assert moment in ("", "greeting", *MOMENTS)
        self._moment, self._script, self._costs = moment, script, costs or {}
        self._stored = set(stored)
        self._numerics = numerics
        self._headers: dict[int, messages.PartitionHeader] = {}
        self.struck = threading.Event()
        self._net = engine.load_network(NETWORK, WEIGHTS)
        self._computing = threading.Lock()
        self._left: dict[int, Floats] = {}
        self._held: dict[int, messages.Held] = {}
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._connections: list[Connection] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join(WAIT_S)
        for connection in self._connections:
            connection.close()
        for thread in self._threads:
            thread.join(WAIT_S)
            assert not thread.is_alive()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(Connection(sock))
            self._threads.append(threading.Thread(target=self._serve, args=(self._connections[-1],), daemon=True))
            self._threads[-1].start()

    def _serve(self, connection: Connection) -> None:
        with contextlib.suppress(OSError, EOFError, ValueError):
            if self._moment == "greeting" and self._script is not None:
                self.struck.set()
                self._script(connection, messages.Bye())
                connection.close()
                return
            connection.shake_hands()
            role = ""
            while True:
                head, *payload = connection.receive()
                message = messages.decode([head, *payload])
                if isinstance(message, messages.Bye):
                    break
                if isinstance(message, messages.Hello):
                    role = message.role
                moment, answer = self._answer(message, role)
                if moment != self._moment:
                    self._hold(answer)
                if moment == self._moment and self._script is not None:
                    self.struck.set()
                    if not self._script(connection, answer):
                        break
                else:
                    connection.send(answer)
        connection.close()

    def _answer(self, message: messages.Message, role: str) -> tuple[str, messages.Message]:
        """At which moment the answer is due, and the right one."""
        match message:
            case messages.Hello():
                held = tuple(self._held.values())
                return f"welcome {role}", messages.Welcome(
                    messages.PROTOCOL, "f" * 32, 50_000, 10**6, self._costs, held, CODECS, True, 1.0, self._numerics()
                )
            case messages.Have():
                asked = b"".join(map(bytes, message.payload))
                digests = [asked[at : at + 32].hex() for at in range(0, len(asked), 32)]
                return "holds", messages.Holds((bytes(digest in self._stored for digest in digests),))
            case messages.PartitionHeader():
                self._headers[message.partition] = message
                return "header ack", messages.Ack(message.partition, self._behind_stored(message.partition, 0))
            case messages.Chunk():
                end = message.offset + sum(map(len, message.payload))
                return "chunk ack", messages.Ack(message.partition, self._behind_stored(message.partition, end))
            case messages.PartitionEnd():
                return "ready", messages.Ready(message.partition)
            case messages.Query():
                return "query", self._run(message)
            case messages.Part():
                data = self._input(message, message.stage)
                output = self._stage(message.stage, data)[0][:, : message.count]
                self._left[message.query] = output
                outputs = () if message.stay else (np.ascontiguousarray(output),)
                return "part", _result(message, outputs, 1)
            case messages.Join():
                first = self._left[message.query]
                shape = (1, SLICES[-1].end - first.shape[1])
                (others,) = read_payload(message.payload, message.codecs, [shape])
                whole = np.concatenate((first, others), axis=1)
                self._left[message.query] = whole
                outputs = () if message.stay else (whole,)
                return "join", _result(message, outputs, 0)
            case messages.Ping():
                return f"pong {role}", messages.Pong()
        raise AssertionError(message)

    def _behind_stored(self, partition: int, position: int) -> int:
        """Where the next chunk begins."""
        stored = sorted(span for piece in self._headers[partition].pieces if piece.stored for span in piece.spans)
        for offset, size in stored:
            if offset == position:
                position += size
        return position

    def _hold(self, answer: messages.Message) -> None:
        """What is told a client is told it again when it comes back."""
        if isinstance(answer, messages.Ack):
            self._held[answer.partition] = messages.Held(answer.partition, answer.received, False)
        elif isinstance(answer, messages.Ready):
            self._held[answer.partition] = messages.Held(answer.partition, self._headers[answer.partition].size, True)

    def _input(self, message: messages.Query | messages.Part, stage: int) -> Floats:
        if not message.payload:
            return self._left[message.query]
        return read_payload(message.payload, message.codecs, [NETWORK.stages[stage].input_shape])[0]

    def _stage(self, stage: int, data: Floats) -> list[Floats]:
        with self._computing:
            self._net.put(stage, data)
            self._net.run(stage, stage)
            return [output.copy() for output in self._net.outputs(stage)]

    def _run(self, query: messages.Query) -> messages.Result:
        outputs = [self._input(query, query.first)]
        for stage in range(query.first, query.last + 1):
            outputs = self._stage(stage, outputs[0])
        self._left[query.query] = outputs[0]
        return _result(query, outputs, query.last - query.first + 1)


def _result(
    asked: messages.Query | messages.Part | messages.Join, outputs: Sequence[Floats], stages: int
) -> messages.Result:
    codecs, payload = make_payload(outputs, asked.coded)
    return messages.Result(asked.query, tuple(o.shape for o in outputs), (0.5,) * stages, payload, codecs)


# --- Scripts ---------------------------------------------------------------------------------------------------------


def changed(field: str, token: str | None) -> Script:
    """The answer with one field that is this JSON text, or is not there."""

    def script(connection: Connection, answer: messages.Message) -> bool:
        head, *payload = (bytes(each) for each in answer.frames())
        connection.raw(multipart([change(head, field, token), *payload]))
        return True

    return script


def change(head: bytes, field: str, token: str | None) -> bytes:
    body = json.loads(head)
    body.pop(field)
    if token is None:
        return json.dumps(body).encode()
    body[field] = "@@"
    return json.dumps(body).replace('"@@"', token).encode("utf-8", "surrogatepass")


def say(*said: messages.Message) -> Script:
    """Other messages in place of the answer."""

    def script(connection: Connection, answer: messages.Message) -> bool:
        connection.send(*said)
        return True

    return script


def pour(*pieces: bytes) -> Script:
    """These bytes, the last of them again and again until the connection breaks."""

    def script(connection: Connection, answer: messages.Message) -> bool:
        for piece in pieces[:-1]:
            connection.raw(piece)
        while True:
            connection.raw(pieces[-1])

    return script


def often(cases: Iterable[tuple[Any, ...]], kept: Callable[..., bool]) -> list[Any]:
    """Cases of a test; those that are not `kept` take part in the long run only."""
    return [pytest.param(*case, marks=() if kept(*case) else pytest.mark.long) for case in cases]


# --- The client ------------------------------------------------------------------------------------------------------


class Watched(Client):
    """A client that remembers why it lost its server."""

    def __init__(self, address: str, timeouts: Timeouts) -> None:
        self.faults: list[Exception] = []
        super().__init__(address, timeouts=timeouts, may_be_lost=True, digests=DIGESTS)
        if self.fault is not None:
            self.faults.insert(0, self.fault)

    def _lose(self, connections: Any, error: Exception) -> None:
        if self._connections is connections:
            self.faults.append(error)
        super()._lose(connections, error)


@contextlib.contextmanager
def session_at(
    address: str, timeouts: Timeouts = PATIENT, graph: ExecutionGraph = GRAPH
) -> Iterator[tuple[Watched, LiveSession]]:
    client = Watched(address, timeouts)
    try:
        net = engine.load_network(NETWORK, WEIGHTS)
        sliced = slice_stages(NETWORK, [SLICES], net)
        partitions = [extract(NETWORK, pieces, WEIGHTS, None, PIECES_OF_WEIGHTS) for pieces in PIECES]
        yield client, LiveSession(Offloading(NETWORK, net, graph, client, partitions, PIECES, sliced), net, INPUTS)
    finally:
        client.close()


def chunks_under_way(upload: Upload | None) -> int:
    """How many chunks the client has sent that have no answer yet."""
    return sum(each.size > 0 for each in list(upload._awaited)) if upload is not None else 0


# --- Floods ----------------------------------------------------------------------------------------------------------

BIG = bytes(1024 * 1024)
FLOODS: dict[str, tuple[bytes, ...]] = {
    "pongs": (multipart([bytes(f) for f in messages.Pong().frames()]) * 1000,),
    "results": (multipart([bytes(f) for f in messages.Result(7, ((1,),), (), (b"1234",)).frames()]) * 1000,),
    "acks": (multipart([bytes(f) for f in messages.Ack(0, 0).frames()]) * 1000,),
    "errors": (multipart([bytes(f) for f in messages.Error(messages.ERROR_QUERY, "no", 99).frames()]) * 1000,),
    "empty messages": (frame(b"") * 10_000,),
    "empty frames without end": (frame(b"", more=True) * 100_000,),
    "frames without end": (frame(b"x" * 1000, more=True) * 1000,),
    "large frames without end": (frame(BIG, more=True),),
    "large messages": (frame(BIG) * 8,),
    "a message of many frames": (frame(b"", more=True) * 2500 + frame(b""),),
    "a frame that never ends": (b"\2" + (60 * 2**20).to_bytes(8), BIG),
    "a frame of 2^62 bytes": (b"\2" + (2**62).to_bytes(8), BIG),
    "commands": (frame(b"\x04PING\x00\x00" + b"x" * 16, command=True) * 1000,),
    "junk": (bytes(range(256)) * 1000,),
}
