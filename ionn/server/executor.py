"""The stages of a session that are at the server, whole or in slices, and the queries that run on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ionn.coding import PLANES
from ionn.errors import ProtocolError
from ionn.model.caffemodel import Floats
from ionn.model.engine import StageNet
from ionn.protocol.blobs import make_payload, read_payload
from ionn.protocol.messages import ERROR_QUERY, Error, Join, Part, Query, Result
from ionn.server.sliced_stage import Assembly


class _Left(NamedTuple):
    """What a message of a query left for the next one: a stage's output, or only its first channels (`partial`)."""

    query: int
    stage: int
    output: Floats
    partial: bool = False


class Stages:
    """The stages of a session, and what runs them. `assemblies` are the stages that are uploaded in slices, complete or
    not. `codecs` are those that the client takes in results. `note` is told what runs."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._nets: dict[int, StageNet] = {}
        self._notes: dict[int, str] = {}
        self._left: _Left | None = None
        self.assemblies: dict[int, Assembly] = {}
        self.codecs: Sequence[str] = ()

    def __contains__(self, stage: int) -> bool:
        """Tell whether the whole stage is ready."""
        return stage in self._nets

    def add(self, net: StageNet, layers: Mapping[int, str]) -> None:
        """Run the stages of `layers`, which has the names of their layers, on `net` from now on."""
        self._nets.update(dict.fromkeys(layers, net))
        self._notes.update({stage: f"running a query, {names}" for stage, names in layers.items()})

    def handle(self, message: Query | Part | Join) -> Result | Error:
        """The reply to a message of a query. Its payload is valid until the next call. After an error, nothing is left
        for the next message."""
        try:
            match message:
                case Query():
                    return self._run(message)
                case Part():
                    return self._run_part(message)
                case Join():
                    return self._join(message)
        except ProtocolError as error:
            self._left = None
            return Error(ERROR_QUERY, str(error), query=message.query)
        except MemoryError:
            self._left = None
            return Error(ERROR_QUERY, "no memory for the query", query=message.query)

    def _input(self, message: Query | Part, stage: int, net: StageNet) -> Floats:
        """Return the input of a stage: the message's payload, or what the message before left."""
        if message.payload:
            return _floats(message, net.input_shape(stage), f"the input of stage {stage}")
        if message.codecs:
            raise ProtocolError("codecs of no frames")
        left = self._left
        if left is None or left.partial or (left.query, left.stage + 1) != (message.query, stage):
            raise ProtocolError(f"the input of stage {stage} is neither sent nor was it left by the message before")
        return left.output

    def _note_stage(self, stage: int) -> None:
        self._note(self._notes[stage])

    def _run(self, query: Query) -> Result:
        if query.last < query.first:
            raise ProtocolError(f"stages {query.first}..{query.last} are not a run")
        missing = next((at for at in range(query.first, query.last + 1) if at not in self._nets), None)
        if missing is not None:
            raise ProtocolError(f"stage {missing} is not uploaded")
        net = self._nets[query.first]
        net.put(query.first, self._input(query, query.first, net))
        stage_ms = net.run(query.first, min(query.last, net.last), self._note_stage)
        while net.last < query.last:
            before, net = net, self._nets[net.last + 1]
            net.follow(before)
            stage_ms += net.run(net.first, min(query.last, net.last), self._note_stage)
        outputs = net.outputs(query.last)
        # Only a stage in slices continues from here. A copy, because stages may be tried before the next message.
        self._left = _Left(query.query, query.last, outputs[0].copy()) if query.last + 1 in self.assemblies else None
        return self._result(query, outputs, stage_ms)

    def _run_part(self, part: Part) -> Result:
        if part.stage not in self.assemblies:
            raise ProtocolError(f"stage {part.stage} is not uploaded in slices")
        assembly = self.assemblies[part.stage]
        data = self._input(part, part.stage, assembly.net)
        self._note(f"running a query, {assembly.layers}")
        ms, output = assembly.run(part.count, data)
        self._left = _Left(part.query, part.stage, output, partial=True) if part.stay else None
        return self._result(part, () if part.stay else (output,), (ms,))

    def _join(self, join: Join) -> Result:
        left = self._left
        if left is None or not left.partial or left.query != join.query:
            raise ProtocolError("no part of a stage was left to be joined")
        images, channels, *rest = self.assemblies[left.stage].output_shape
        shape = (images, channels - left.output.shape[1], *rest)
        others = _floats(join, shape, f"the other channels of stage {left.stage}")
        output = np.concatenate((left.output, others), axis=1)
        self._left = _Left(join.query, left.stage, output)
        return self._result(join, () if join.stay else (output,), ())

    def _result(self, asked: Query | Part | Join, outputs: Sequence[Floats], stage_ms: Sequence[float]) -> Result:
        codecs, payload = make_payload(outputs, asked.coded and PLANES in self.codecs)
        shapes = tuple(output.shape for output in outputs)
        return Result(asked.query, shapes, tuple(stage_ms), payload, codecs)


def _floats(message: Query | Part | Join, shape: tuple[int, ...], what: str) -> Floats:
    """The one blob that a message carries. Raises ProtocolError, which names it as `what`, unless it has this shape."""
    try:
        return read_payload(message.payload, message.codecs, (shape,))[0]
    except ValueError as error:
        raise ProtocolError(f"{what}, floats of the shape {shape}: {error}") from error
