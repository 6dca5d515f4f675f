"""One client's session at the server: the partial nets it uploaded, and the queries that run on them.

Each session lives in a process of its own, because a net that Caffe rejects aborts the whole process. `SessionState`
is the session without sockets; `run` connects it to the server's front process.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import zmq
from google.protobuf import text_format

from ionn.caffemodel import Floats
from ionn.engine import StageNet
from ionn.errors import InputError, ProtocolError
from ionn.network import Network
from ionn.wire import (
    ERROR_PARTITION,
    ERROR_PROTOCOL,
    ERROR_QUERY,
    Ack,
    Bye,
    Chunk,
    Error,
    Message,
    PartitionEnd,
    PartitionHeader,
    PartitionReceiver,
    Ping,
    Pong,
    Query,
    Ready,
    Result,
    decode,
)

# What a worker says to the front process instead of a client's identity.
TO_FRONT = b""
UP = b"up"

# How often a worker looks whether its server is still there.
_ORPHAN_CHECK_MS = 1000


class SessionState:
    """Handles a client's messages one by one; a message that fails leaves the session as it was."""

    def __init__(self) -> None:
        self._owner: dict[int, StageNet] = {}
        self._arriving: dict[int, tuple[PartitionReceiver, list[StageNet]]] = {}

    def handle(self, message: Message) -> Iterator[Message]:
        """The replies to a message."""
        match message:
            case PartitionHeader():
                yield from self._guarded(message.partition, self._begin, message)
            case Chunk():
                yield from self._guarded(message.partition, self._take, message)
            case PartitionEnd():
                yield from self._guarded(message.partition, self._finish, message)
            case Query():
                try:
                    yield self._run(message)
                except ProtocolError as error:
                    yield Error(ERROR_QUERY, str(error), query=message.query)
            case Ping():
                yield Pong()
            case _:
                yield Error(ERROR_PROTOCOL, f"'{message.type}' is not for a session")

    def _guarded(self, partition: int, step: Any, message: Message) -> Iterator[Message]:
        try:
            yield step(message)
        except (ProtocolError, InputError) as error:
            self._arriving.pop(partition, None)
            yield Error(ERROR_PARTITION, str(error), partition=partition)

    def _begin(self, header: PartitionHeader) -> Message:
        if header.partition in self._arriving:
            raise ProtocolError(f"partition {header.partition} is arriving already")
        nets: list[StageNet] = []
        for partial in header.nets:
            taken = [stage.index for stage in partial.stages if stage.index in self._owner]
            if taken:
                raise ProtocolError(f"stage {taken[0]} was uploaded before")
            # Our own reading of the net comes first: what it refuses would abort Caffe and this process.
            checked = Network.from_text(partial.prototxt, f"partition {header.partition}")
            names = {layer.name for layer in checked.layers}
            blobs = {top for layer in checked.layers for top in layer.tops}
            for stage in partial.stages:
                if stage.last_layer not in names or not stage.outputs or not blobs.issuperset(stage.outputs):
                    raise ProtocolError(f"stage {stage.index} is not in its net")
            if checked.input != partial.input:
                raise ProtocolError(f"the net's input is '{checked.input}', not '{partial.input}'")
            # And Caffe is given what was read, not the text: that may say more than was checked.
            prototxt = text_format.MessageToString(checked.param)
            nets.append(StageNet(dataclasses.replace(partial, prototxt=prototxt)))
        blobs_bytes = {key: data for net in nets for key, data in net.blob_bytes().items()}
        sent = [(span.layer, span.blob) for span in header.blobs]
        if len(sent) != len(blobs_bytes) or set(sent) != set(blobs_bytes):
            odd = next(iter(set(sent) ^ set(blobs_bytes)), sent[0] if sent else ("", 0))
            raise ProtocolError(f"blob {odd[1]} of layer '{odd[0]}' is sent and needed not once each")
        targets = [blobs_bytes[key] for key in sent]
        self._arriving[header.partition] = (PartitionReceiver(header, targets), nets)
        return Ack(header.partition, 0)

    def _receiver(self, partition: int) -> tuple[PartitionReceiver, list[StageNet]]:
        if partition not in self._arriving:
            raise ProtocolError(f"partition {partition} is not arriving")
        return self._arriving[partition]

    def _take(self, chunk: Chunk) -> Message:
        receiver, _ = self._receiver(chunk.partition)
        receiver.take(chunk)
        return Ack(chunk.partition, receiver.received)

    def _finish(self, end: PartitionEnd) -> Message:
        receiver, nets = self._receiver(end.partition)
        receiver.finish(end)
        del self._arriving[end.partition]
        for net in nets:
            for stage in range(net.first, net.last + 1):
                self._owner[stage] = net
        return Ready(end.partition)

    def _run(self, query: Query) -> Result:
        if query.last < query.first:
            raise ProtocolError(f"stages {query.first}..{query.last} are not a run")
        missing = [stage for stage in range(query.first, query.last + 1) if stage not in self._owner]
        if missing:
            raise ProtocolError(f"stage {missing[0]} is not uploaded")
        if len(query.payload) != 1:
            raise ProtocolError(f"a query has one payload frame, not {len(query.payload)}")
        shape = self._owner[query.first].input_shape(query.first)
        if len(query.payload[0]) != 4 * int(np.prod(shape)):
            raise ProtocolError(
                f"the input of stage {query.first} has {len(query.payload[0])} bytes, not {shape} floats"
            )
        outputs: list[Floats] = [np.frombuffer(query.payload[0], "<f4").reshape(shape)]
        stage_ms: tuple[float, ...] = ()
        stage = query.first
        while stage <= query.last:
            net = self._owner[stage]
            last = min(query.last, net.last)
            net.put(stage, outputs[0])
            stage_ms += net.run(stage, last)
            outputs = net.outputs(last)
            stage = last + 1
        # Copies: the socket sends later, and the next query overwrites the net's blobs.
        payload = tuple(np.array(output, "<f4", order="C") for output in outputs)
        return Result(query.query, tuple(p.shape for p in payload), stage_ms, payload)


def run(endpoint: str, name: bytes) -> None:
    """Serve one session: the body of a worker process. Ends with the client's Bye or when the server is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches every process; the server ends us
    server = multiprocessing.parent_process()  # not our parent in the system's sense: that is the fork server
    assert server is not None
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.identity = name
    socket.linger = 0
    socket.connect(endpoint)
    socket.send_multipart([TO_FRONT, UP])
    state = SessionState()
    while True:
        if not socket.poll(_ORPHAN_CHECK_MS):
            if not server.is_alive():
                break
            continue
        identity, *frames = socket.recv_multipart(copy=False)
        try:
            message = decode(frames)
        except ProtocolError as error:
            socket.send_multipart([identity, *Error(ERROR_PROTOCOL, str(error)).frames()])
            continue
        if isinstance(message, Bye):
            break
        for reply in state.handle(message):
            socket.send_multipart([identity, *reply.frames()], copy=False)
    context.destroy(linger=0)
