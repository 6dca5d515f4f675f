"""What clients do to sessions, at random: partitions of any pieces in any order, queries of all that is ready, and
accidents. Every step knows the answer that it must get."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ionn.model.network import Layer, Network
from ionn.model.partial_net import ExtractedPartition, NetStage, extract
from ionn.model.slices import Piece, Slice, output_channels, runs_of, stage_of
from ionn.planning.slice_costs import slice_plans
from ionn.protocol import messages
from ionn.protocol.messages import Message, PartitionEnd, PartitionHeader, make_chunk
from tests.support.choices import Choices, chance, pick
from tests.support.oracle import Question, Tap, Truth
from tests.support.session_process import Step

Weights = dict[str, tuple[np.ndarray, ...]]
# What another order of summing may change, relative to the largest value.
TOLERANCE = 1e-4


def are_exact(layers: Sequence[Layer]) -> bool:
    """Whether Caffe computes these layers the same each time.

    OpenBLAS's sum of absolute values goes in an order that depends on where in memory they lie.
    """
    return not any(layer.type == "Normalize" or "ASUM" in str(layer.param.reduction_param) for layer in layers)


class Answers:
    """The right answers: `blob(stage, index)` is the blob before a stage for input number `index`, and `outputs` are
    those of a stage."""

    def __init__(self, network: Network, truth: Truth, inputs: Sequence[np.ndarray]) -> None:
        self.network = network
        self._taps = truth.taps
        self._outputs = truth.outputs
        self.inputs = inputs

    @staticmethod
    def question(text: str, network: Network, inputs: Sequence[np.ndarray], weights: Weights) -> Question:
        """What to ask the oracle: the outputs, and the blob after every stage but the last."""
        taps: list[Tap] = [(stage.last_layer, stage.outputs[0]) for stage in network.stages[:-1]]
        return Question(text, inputs, weights, taps)

    def exact(self, first: int, last: int) -> bool:
        """Whether Caffe computes stages `first`..`last` the same each time."""
        stages = self.network.stages
        return are_exact(self.network.layers[stages[first].first_layer : stages[last].last_layer + 1])

    def blob(self, stage: int, index: int) -> np.ndarray:
        return self._taps[index][stage - 1] if stage else self.inputs[index]

    def outputs(self, stage: int, index: int) -> list[np.ndarray]:
        if stage == len(self.network.stages) - 1:
            return [self._outputs[index][name] for name in self.network.outputs]
        return [self.blob(stage + 1, index)]


@dataclass(frozen=True)
class Expected:
    """One step: what is sent to which session, why, and what comes back: a message's type and fields, `outputs`, which
    are equal bit for bit or, `nearly`, within TOLERANCE."""

    session: int
    what: str
    message: Message | None
    answer: Message | type[Message] | None = None
    outputs: tuple[np.ndarray, ...] | None = None
    nearly: bool = False

    @property
    def step(self) -> Step:
        frames = None if self.message is None else [bytes(frame) for frame in self.message.frames()]
        return Step(self.session, frames)

    def check(self, frames: list[bytes]) -> None:
        if self.message is None:
            return
        got = messages.decode(frames)
        said = f"session {self.session}, {self.what}: {got!r:.300}"
        if isinstance(self.answer, type):
            assert isinstance(got, self.answer), said
        elif self.answer is not None:
            assert got == self.answer, said
        if self.outputs is not None:
            assert isinstance(got, messages.Result), said
            assert got.shapes == tuple(output.shape for output in self.outputs), said
            for frame, want in zip(got.payload, self.outputs, strict=True):
                values = np.frombuffer(frame, np.float32).reshape(want.shape)
                if not (values.tobytes() == want.tobytes() or (self.nearly and near(values, want))):
                    raise AssertionError(f"{said}\n  got  {values.ravel()[:8]}\n  want {want.ravel()[:8]}")


def near(values: np.ndarray, want: np.ndarray) -> bool:
    finite = np.isfinite(want)
    if not np.array_equal(finite, np.isfinite(values)):
        return False
    most = abs(want[finite]).max(initial=0)
    return bool((abs(values[finite] - want[finite]) <= TOLERANCE * most).all())


def slices_of(c: Choices, network: Network, stage: int, planned_only: bool = False) -> tuple[list[Slice], bool] | None:
    """A stage's slices, in order, and whether they are as planners cut it: then they are exact."""
    layers = network.layers[network.stages[stage].first_layer : network.stages[stage].last_layer + 1]
    channels = None if stage == 0 else output_channels(layers)
    if channels is None or channels < 2:
        return None
    fixed = [0.0] * len(network.stages)
    planned = [cut for cut in slice_plans(network, fixed, fixed) if cut.stage == stage]
    if planned and (planned_only or not chance(c, 25)):
        ends = planned[0].ends(c.integer(2, planned[0].most_slices()))
    elif planned_only:
        return None
    else:
        planned = []
        ends = sorted({*(c.integer(1, channels - 1) for _ in range(c.integer(1, 3))), channels})
    return [Slice(stage, begin, end) for begin, end in zip((0, *ends[:-1]), ends, strict=True)], bool(planned)


def stages_anywhere(c: Choices, network: Network) -> tuple[NetStage, ...] | None:
    """Stages that end anywhere and hand on anything, as a stranger would have them; None if one has nothing to hand
    on."""
    last = len(network.layers) - 1
    ends = sorted({*(c.integer(0, last) for _ in range(c.integer(0, 5))), last})
    stages: list[NetStage] = []
    for begin, end in zip((0, *(end + 1 for end in ends)), ends, strict=False):
        made = [blob for layer in network.layers[begin : end + 1] for blob in layer.tops]
        if not made:
            return None
        # Only the last may hand on several blobs: the one behind it would not know which.
        outputs = [pick(c, made) for _ in range(c.integer(1, 3) if end == last else 1)]
        stages.append(NetStage(len(stages), end, tuple(outputs)))
    return tuple(stages)


@dataclass
class _Upload:
    """A partition on its way: what is still to be sent of it."""

    number: int
    pieces: list[Piece]
    partition: ExtractedPartition
    chunk_bytes: int
    received: int = -1  # no header was sent
    done: bool = False

    def header(self) -> PartitionHeader:
        model = self.partition.caffemodel
        return PartitionHeader(self.number, self.partition.nets, model.blobs, model.size)


@dataclass
class _Session:
    number: int
    uploads: list[_Upload]
    slices: dict[int, tuple[list[Slice], bool]]
    ready: set[int] = field(default_factory=set)
    here: dict[int, set[Slice]] = field(default_factory=dict)
    queries: int = 0


class Schedule:
    """Steps for a net that is uploaded to some sessions and queried all the while."""

    def __init__(self, c: Choices, answers: Answers, weights: Weights) -> None:
        self._c = c
        self._answers = answers
        self._network = answers.network
        self._weights = weights
        self.steps: list[Expected] = []

    def make(self) -> list[Expected]:
        c = self._c
        sessions = [self._session(number) for number in range(pick(c, [1, 1, 2]))]
        for session in sessions:
            self._send(session, "hello", messages.Hello(messages.PROTOCOL, "control"), messages.Welcome)
        while waiting := [session for session in sessions if any(not upload.done for upload in session.uploads)]:
            session = pick(c, waiting)
            self._go_on(session)
            for _ in range(c.integer(0, 2)):
                self._meanwhile(pick(c, sessions))
        for session in sessions:
            for _ in range(3):
                self._meanwhile(session)
            for stage in sorted(session.ready):
                self._query(session, stage, stage)
            for _ in range(2 * len(self._network.stages)):
                self._warm_up(session)
            for first, last in runs_of(session.ready):
                self._query(session, first, last)
                self._query(session, first, last)
        return self.steps

    def _session(self, number: int) -> _Session:
        c, network = self._c, self._network
        pieces: list[Piece] = []
        slices: dict[int, tuple[list[Slice], bool]] = {}
        for stage in range(len(network.stages)):
            if chance(c, 90 if stage == 0 else 15):
                continue
            cut = slices_of(c, network, stage) if chance(c, 50) else None
            if cut is None:
                pieces.append(stage)
            else:
                slices[stage] = cut
                pieces += cut[0]
        for at in range(len(pieces) - 1, 0, -1):  # any order
            if chance(c, 50):
                other = c.integer(0, at)
                pieces[at], pieces[other] = pieces[other], pieces[at]
        groups: list[list[Piece]] = []
        for piece in pieces:
            if groups and chance(c, 50):
                groups[-1].append(piece)
            else:
                groups.append([piece])
        uploads = []
        for index, group in enumerate(groups):
            stages = {stage for stage in map(stage_of, group) if stage in slices}
            # All of a stage's slices in one partition are that stage, to a planner.
            assert all(isinstance(piece, Slice) or piece not in stages for piece in group)
            partition = extract(
                network,
                sorted(group, key=lambda piece: (stage_of(piece), piece)) if not stages else group,
                self._weights,
            )
            uploads.append(_Upload(3 * index, group, partition, pick(c, [10**6, 1000, 37])))
        return _Session(number, uploads, slices)

    def _send(
        self, session: _Session, what: str, message: Message | None, answer: Message | type[Message] | None = None,
        outputs: Sequence[np.ndarray] | None = None, nearly: bool = False,
    ) -> None:  # fmt: skip
        self.steps.append(
            Expected(session.number, what, message, answer, None if outputs is None else tuple(outputs), nearly)
        )

    # --- Uploads ----------------------------------------------------------------------------------------------------

    def _go_on(self, session: _Session) -> None:
        c = self._c
        waiting = [upload for upload in session.uploads if not upload.done]
        upload = pick(c, waiting[:3])
        model, number = upload.partition.caffemodel, upload.number
        if upload.received < 0:
            self._send(session, f"header {upload.pieces}", upload.header(), messages.Ack(number, 0))
            upload.received = 0
            return
        if chance(c, 4):
            self._send(session, "header again", upload.header(), messages.Error)
        if upload.received < model.size:
            chunks = list(model.chunks(min(10**6, max(upload.chunk_bytes, model.size // 12))))
            for offset, parts in chunks:
                if offset < upload.received:
                    continue
                chunk = make_chunk(number, offset, parts)
                upload.received += sum(map(len, parts))
                self._send(
                    session, f"chunk at {offset} of {upload.pieces}", chunk, messages.Ack(number, upload.received)
                )
                if chance(c, 3):
                    self._send(session, "the same again", chunk, messages.Error)
                if chance(c, 40):
                    return
            return
        if chance(c, 5):
            self._send(session, f"wrong end {upload.pieces}", PartitionEnd(number, "0" * 64), messages.Error)
            upload.received = -1
            return
        digest = hashlib.sha256(model.tobytes()).hexdigest()
        self._send(session, f"end of {upload.pieces}", PartitionEnd(number, digest), messages.Ready(number))
        upload.done = True
        for piece in upload.pieces:
            if isinstance(piece, Slice):
                here = session.here.setdefault(piece.stage, set())
                here.add(piece)
                if len(here) == len(session.slices[piece.stage][0]):
                    session.ready.add(piece.stage)
            else:
                session.ready.add(piece)

    # --- Meanwhile --------------------------------------------------------------------------------------------------

    def _meanwhile(self, session: _Session) -> None:
        c = self._c
        kind = pick(c, ["warm up", "query", "query", "query", "part", "hello", "not ready"])
        if kind == "warm up":
            for _ in range(c.integer(1, 4)):
                self._warm_up(session)
        elif kind == "query" and session.ready:
            first = pick(c, sorted(session.ready))
            last = first
            while last + 1 in session.ready and chance(c, 70):
                last += 1
            for _ in range(c.integer(1, 2)):
                self._query(session, first, last)
        elif kind == "part" and session.here:
            self._part(session, pick(c, sorted(session.here)))
        elif kind == "hello":
            self._hello(session)
        elif kind == "not ready":
            missing = [stage for stage in range(len(self._network.stages) + 1) if stage not in session.ready]
            stage = pick(c, missing)
            data = self._answers.inputs[0]
            session.queries += 1
            self._send(
                session,
                f"stage {stage}, not ready",
                messages.Query(session.queries, stage, stage, (data.tobytes(),)),
                messages.Error,
            )

    def _warm_up(self, session: _Session) -> None:
        self._send(session, "idle", None)

    def _hello(self, session: _Session) -> None:
        """A connection anew: the session says what it has."""
        held = [messages.Held(u.number, u.partition.caffemodel.size, True) for u in session.uploads if u.done]
        arriving = [
            messages.Held(u.number, u.received, False) for u in session.uploads if not u.done and u.received >= 0
        ]
        self._send(session, "hello again", messages.Hello(messages.PROTOCOL, "upload", "token"), messages.Welcome)
        self.steps[-1] = Reconnection(session.number, "hello again", self.steps[-1].message, held=(*held, *arriving))

    def _query(self, session: _Session, first: int, last: int) -> None:
        index = self._c.integer(0, len(self._answers.inputs) - 1)
        session.queries += 1
        data = self._answers.blob(first, index)
        self._send(
            session, f"query {session.queries}: stages {first}..{last} of input {index}",
            messages.Query(session.queries, first, last, (data.tobytes(),)),
            messages.Result, self._answers.outputs(last, index), nearly=not self._answers.exact(first, last),
        )  # fmt: skip

    def _part(self, session: _Session, stage: int) -> None:
        """The first slices of a stage, and perhaps the others from the client, and the stages after it."""
        c, (slices, exact) = self._c, session.slices[stage]
        counts = []
        for piece in slices[:-1]:
            if piece not in session.here[stage]:
                break
            counts.append(piece.end)
        if not counts:
            return
        count, index, stay = pick(c, counts), c.integer(0, len(self._answers.inputs) - 1), chance(c, 60)
        session.queries += 1
        number, data, (whole,) = session.queries, self._answers.blob(stage, index), self._answers.outputs(stage, index)
        what = f"query {number}: channels 0..{count} of stage {stage} of input {index}"
        outputs = [] if stay else [np.ascontiguousarray(whole[:, :count])]
        part = messages.Part(number, stage, count, stay, (data.tobytes(),))
        self._send(session, what, part, messages.Result, outputs, nearly=not exact)
        if stay:
            others = np.ascontiguousarray(whole[:, count:]).tobytes()
            goes_on = stage + 1 in session.ready and chance(c, 60)
            join = messages.Join(number, goes_on, (others,))
            self._send(session, f"join, {what}", join, messages.Result, [] if goes_on else [whole], nearly=not exact)
            if goes_on:
                following = messages.Query(number, stage + 1, stage + 1)
                # After channels that are nearly right, nobody knows how near the next stage's output is.
                exact_too = exact and self._answers.exact(stage + 1, stage + 1)
                expected = self._answers.outputs(stage + 1, index) if exact else None
                self._send(session, f"from there, {what}", following, messages.Result, expected, nearly=not exact_too)


@dataclass(frozen=True)
class Reconnection(Expected):
    """A hello: the answer tells what the session holds, in any order."""

    held: tuple[messages.Held, ...] = ()

    def check(self, frames: list[bytes]) -> None:
        got = messages.decode(frames)
        assert isinstance(got, messages.Welcome), got
        assert sorted(got.held, key=lambda held: held.partition) == sorted(self.held, key=lambda held: held.partition)


def run(steps: Sequence[Expected], answer: Callable[[Sequence[Step]], list[list[bytes]]], nearly: bool = False) -> None:
    """Take all steps, and compare every answer, with `nearly` within TOLERANCE only. One that ends the process fails by
    name: it is looked for by taking fewer steps."""
    answers = answer([step.step for step in steps])
    for step, frames in zip(steps, answers, strict=True):
        (replace(step, nearly=True) if nearly else step).check(frames)


def describe(steps: Sequence[Expected]) -> Iterator[str]:
    for step in steps:
        yield f"  session {step.session}: {step.what}"
