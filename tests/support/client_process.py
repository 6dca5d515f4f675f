"""A user's program, in a process of its own: `ionn.connect`, and queries while the model is uploaded."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.remote import Remote, serve

# What the program does, one after the other: raise a query on an input, wait until so many partitions are there (or
# all), or lose every connection.
Act = tuple[str, int]


@dataclass(frozen=True)
class Program:
    """`address` is None for a program without a server. Without `groups`, the pieces that are uploaded one after the
    other, `algorithm` plans. `client_ms` and `server_ms` are times of every layer, `audit` and `tolerance` those of
    `ionn.connect`. If `coded`, coding costs nothing and pays everywhere."""

    prototxt: str
    caffemodel: bytes
    inputs: Sequence[np.ndarray]
    acts: Sequence[Act]
    address: str | None = None
    algorithm: str = "generated"
    groups: Sequence[Sequence[Any]] = ()
    client_ms: Sequence[float] = ()
    server_ms: Sequence[float] = ()
    audit: float = 0.0
    tolerance: float = 0.0
    coded: bool = False


@dataclass(frozen=True)
class Got:
    """The answer to a query: on which input, its outputs, where its stages ran, and the bytes that crossed the link for
    it, before and after coding."""

    index: int
    outputs: dict[str, np.ndarray]
    places: set[str]
    fallback: bool
    audited: bool
    feature_bytes: int
    feature_wire_bytes: int


@dataclass(frozen=True)
class Report:
    """`uploaded` is what was planned, `cut_for_nothing` stages of which slices were planned, but found not exact."""

    answers: list[Got]
    uploaded: list[tuple[Any, ...]]
    cut_for_nothing: set[int]
    fault: str


class Clients(Remote):
    def __init__(self) -> None:
        super().__init__("client_process")

    def run(self, program: Program) -> Report:
        return self.ask(program)  # type: ignore[no-any-return]


MBPS = 2000.0


def _answer(program: Program) -> Report:
    import ionn
    from ionn.costs.models import Profile
    from ionn.model.slices import Slice, stage_of
    from ionn.planning.graph import ExecutionGraph
    from ionn.planning.plan import make_plan
    from ionn.planning.planners import PLANNERS
    from ionn.planning.planners.custom import checked
    from tests.support.world import WAIT_S, Wire

    # As for a user's planner, what it returns is checked.
    PLANNERS["generated"] = checked("generated", lambda graph: program.groups)
    wire = None if program.address is None else Wire(program.address)
    answers: list[Got] = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["XDG_STATE_HOME"] = folder
            path = Path(folder, "net.prototxt")
            path.write_text(program.prototxt)
            path.with_suffix(".caffemodel").write_bytes(program.caffemodel)
            network = ionn.load_network(path)
            speed_ms = 0.0 if program.coded else None
            here, there = (
                Profile.of(
                    network, np.array(ms or [1.0] * len(network.layers)), encode_ms_per_mb=speed_ms,
                    decode_ms_per_mb=speed_ms, output_ratios=[0.5] * len(network.layers),
                )
                for ms in (program.client_ms, program.server_ms)
            )  # fmt: skip
            coding = "features" if program.coded else "none"
            graph = ExecutionGraph.from_network(network, here, there, MBPS, coding)
            planned = make_plan(network, graph, program.algorithm, MBPS)
            with ionn.connect(
                str(path), None if wire is None else wire.address,
                client=here, server=there, mbps=MBPS, algorithm=program.algorithm, coding=coding,
                audit=program.audit, audit_tolerance=program.tolerance,
            ) as session:  # fmt: skip
                for what, number in program.acts:
                    if what == "query":
                        answer = session.query(program.inputs[number])
                        places = {segment.where for segment in answer.segments}
                        answers.append(
                            Got(
                                number, answer.outputs, places, answer.fallback, answer.audited,
                                answer.feature_bytes, answer.feature_wire_bytes,
                            )
                        )  # fmt: skip
                    elif what == "wait":
                        upload = session._offloading.upload
                        if upload is not None and session.fault is None:
                            upload.wait_ready(min(number, len(session.plan.partitions)), WAIT_S)
                    elif what == "reset" and wire is not None:
                        wire.reset()
                fault = str(session.fault or "")
                pieces = [part.pieces for part in session.plan.partitions]
        cut = {stage_of(piece) for part in planned.partitions for piece in part.pieces if isinstance(piece, Slice)}
        # Alone there is nothing to plan for.
        cut = cut if wire is not None else set()
        kept = {stage_of(piece) for part in pieces for piece in part if isinstance(piece, Slice)}
        return Report(answers, pieces, cut - kept, fault)
    finally:
        if wire is not None:
            wire.close()


if __name__ == "__main__":
    from tests.support import client_process

    serve(client_process._answer)
