"""Right answers, whatever is uploaded when and asked for in which order.

Every net is made up. The truth is stock pycaffe's forward pass of the whole net, in a process of its own that knows
nothing of ionn; values are compared bit for bit. IONN_NETS says how many nets there are (200).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from ionn.errors import InputError
from ionn.model.caffemodel import serialise
from ionn.model.layers import LAYER_TYPES
from ionn.model.network import Network
from ionn.model.partial_net import ExtractedPartition, NetStage, PartialNet
from ionn.model.slices import Piece, Slice
from ionn.planning.planners import PLANNERS
from ionn.protocol import messages
from tests.support.choices import Choices, Say, chance, for_each_seed, pick
from tests.support.client_process import Act, Clients, Program
from tests.support.generated import GENERATORS, Draft, draft_net, some_caffemodel, some_floats, some_weights, wide_net
from tests.support.oracle import Oracle, Question
from tests.support.raw import upload_messages
from tests.support.schedules import (
    TOLERANCE,
    Answers,
    Expected,
    Schedule,
    Weights,
    describe,
    near,
    run,
    slices_of,
    stages_anywhere,
)
from tests.support.session_process import Sessions
from tests.support.world import Server

NETS = int(os.environ.get("IONN_NETS", "200"))
INPUTS = 4

# What stock Caffe computes and ionn refuses, and why.
JUSTIFIED = {
    "ionn runs networks of one": "a chain begins with one blob, which the query brings",
    "it has no output": "there is nothing to answer",
    "it keeps state between queries": "an answer would depend on the queries before it, and on where they ran",
    "share the parameter": "a layer's weights may be at both sides, and are one layer's: its name says whose",
    "another layer has its name": "weights are found by their layer's name, in a caffemodel and in pycaffe",
    "cannot work in place": "it would read what it has overwritten; where Caffe does not check that, it is an accident",
    "does not match its first": "the Caffe that ionn runs lacks the check, and reads outside of the second input",
    "to reflect it": "Caffe reads outside of the input",
    "type 'Pad': takes an input of 4 axes": "Caffe reads and writes outside of an input of fewer",
    "type 'PixelShuffle': takes an input of 4 axes": "Caffe reads outside of an input of fewer",
}


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    with Oracle() as oracle:
        yield oracle


@pytest.fixture(scope="module")
def sessions() -> Iterator[Sessions]:
    with Sessions() as sessions:
        yield sessions


def some_numbers(network: Network, seed: int) -> tuple[Weights, list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    weights = some_weights(rng, network)
    return weights, [some_floats(rng, network.input_shape) for _ in range(INPUTS)]


def read(draft: Draft, oracle: Oracle) -> Network | None:
    """The net of a draft; None if it is refused, which it must be with reason: Caffe aborts on it."""
    try:
        return Network.from_text(draft.text, "net")
    except InputError as error:
        refused = str(error)
    if not any(reason in refused for reason in JUSTIFIED):
        assert oracle.compute(Question(draft.text, fill=True, fatal=True)) is None, f"refused: {refused}"
    return None


def check_case(c: Choices, oracle: Oracle, sessions: Sessions, say: Say, nearly: bool = False) -> Network | None:
    """One net, uploaded and queried in some way; `nearly` where the sessions' memory is not laid out as the oracle's,
    which OpenBLAS's order of summing depends on."""
    draft = wide_net(c) if chance(c, 8) else draft_net(c)
    say(draft.text)
    network = read(draft, oracle)
    if network is None:
        return None
    weights, inputs = some_numbers(network, seed=c.integer(0, 9))
    truth = oracle.compute(Answers.question(draft.text, network, inputs, weights))
    assert truth is not None
    assert truth.layers == [(layer.name, layer.type) for layer in network.layers]
    assert truth.top_shapes == [layer.top_shapes for layer in network.layers]
    assert truth.weight_shapes == [layer.weight_shapes for layer in network.layers]
    assert tuple(truth.outputs[0]) == network.outputs
    steps = Schedule(c, Answers(network, truth, inputs), weights).make()
    say("\n".join(describe(steps)))
    run(steps, sessions.answers, nearly)
    return network


def test_every_layer_type_is_generated() -> None:
    assert set(GENERATORS) == set(LAYER_TYPES)


@pytest.mark.nets
@pytest.mark.timeout(1200)
def test_sessions_answer_as_caffe_does(oracle: Oracle, sessions: Sessions) -> None:
    networks = for_each_seed(NETS, lambda c, say: check_case(c, oracle, sessions, say))
    accepted = [network for network in networks if network is not None]
    assert len(accepted) > NETS / 2
    if NETS >= 200:
        assert {layer.type for network in accepted for layer in network.layers} == set(LAYER_TYPES)


# --- Stages as a stranger would have them ----------------------------------------------------------------------------


def check_stranger(c: Choices, oracle: Oracle, sessions: Sessions, say: Say, nearly: bool = False) -> None:
    """A net in stages that end anywhere and hand on anything. From the first stage on, the blobs are Caffe's; from the
    middle on nobody knows, but there is an answer."""
    draft = draft_net(c)
    say(draft.text)
    network = read(draft, oracle)
    if network is None:
        return
    weights, inputs = some_numbers(network, seed=c.integer(0, 9))
    cuts = stages_anywhere(c, network)
    if cuts is None:
        return
    say(str(cuts))
    taps = [(cut.last_layer, blob) for cut in cuts for blob in cut.outputs]
    truth = oracle.compute(Question(draft.text, inputs, weights, taps))
    assert truth is not None
    exact = Answers(network, truth, inputs).exact(0, len(network.stages) - 1)
    model = serialise("stranger", network.layers, weights)
    net = PartialNet(draft.text, network.input, cuts)
    header, chunks, end_of_it = upload_messages(ExtractedPartition((net,), model))
    steps = [
        Expected(0, "header", header, messages.Ack),
        *(Expected(0, "chunk", chunk, messages.Ack) for chunk in chunks),
    ]
    steps.append(Expected(0, "end", end_of_it, messages.Ready))
    for number in range(c.integer(3, 12)):
        for _ in range(c.integer(0, 2)):
            steps.append(Expected(0, "idle", None))
        first, index = pick(c, [0, c.integer(0, len(cuts) - 1)]), c.integer(0, INPUTS - 1)
        last = c.integer(first, len(cuts) - 1)
        at = sum(len(cut.outputs) for cut in cuts[:last])
        values = truth.taps[index]
        wanted = tuple(values[at : at + len(cuts[last].outputs)])
        data = inputs[index] if first == 0 else values[sum(len(cut.outputs) for cut in cuts[: first - 1])]
        query = messages.Query(number, first, last, (data.tobytes(),))
        what = f"query {number}: stages {first}..{last} of input {index}"
        steps.append(Expected(0, what, query, messages.Result, wanted if first == 0 else None, nearly=not exact))
    say("\n".join(describe(steps)))
    run(steps, sessions.answers, nearly)


@pytest.mark.nets
@pytest.mark.timeout(1200)
def test_strangers_get_what_caffe_computes_too(oracle: Oracle, sessions: Sessions) -> None:
    for_each_seed(NETS // 2, lambda c, say: check_stranger(c, oracle, sessions, say))


# --- Nets in a row ---------------------------------------------------------------------------------------------------

# Layers for blobs with any axes: their type, their parameters, and whether they may work in place. Some of the others
# only give their input another shape, in the same memory.
IN_A_ROW = (
    ("Scale", "", True),
    ("ReLU", "", True),
    ("Power", "power_param { shift: 0.5 scale: -1 }", True),
    ("Softmax", "", True),
    ("Flatten", "", False),
    ("Reshape", "reshape_param { shape { dim: 0 dim: -1 dim: 2 dim: 1 } }", False),
    ("Concat", "", False),
    ("AbsVal", "", False),
)


def check_row(c: Choices, oracle: Oracle, sessions: Sessions, say: Say) -> None:
    """Nets in a row, of one or more layers, whose first may work in place: at the server, the output of one is in the
    same memory as the input of the next."""

    def begin(shape: tuple[int, ...]) -> str:
        dims = " ".join(f"dim: {size}" for size in shape)
        return f'layer {{ name: "data" type: "Input" top: "{bottom}" input_param {{ shape {{ {dims} }} }} }}\n'

    bottom = "b0"
    shape: tuple[int, ...] = (c.integer(1, 2), 4, 6, 6)
    whole = begin(shape)
    nets: list[tuple[str, str, list[NetStage]]] = []  # the text, the input and the stages of each
    for index in range(c.integer(2, 8)):
        if not nets or chance(c, 70):
            nets.append((begin(shape), bottom, []))
        kind, parameters, in_place = IN_A_ROW[0] if index == 0 else pick(c, IN_A_ROW)
        top = bottom if in_place and chance(c, 70) else f"b{index + 1}"
        layer = f'layer {{ name: "l{index}" type: "{kind}" bottom: "{bottom}" top: "{top}" {parameters} }}\n'
        text, first, stages = nets[-1]
        nets[-1] = text + layer, first, [*stages, NetStage(index, len(stages) + 1, (top,))]
        whole, bottom = whole + layer, top
        network = Network.from_text(whole, "row")
        shape = network.layers[-1].top_shapes[0]
    say("\n".join(text for text, _, _ in nets))
    weights, inputs = some_numbers(network, seed=c.integer(0, 9))
    outputs = [stage.outputs[0] for _, _, stages in nets for stage in stages]
    truth = oracle.compute(Question(whole, inputs, weights, list(enumerate(outputs, start=1))))
    assert truth is not None
    partials = tuple(PartialNet(text, first, tuple(stages)) for text, first, stages in nets)
    header, chunks, end = upload_messages(ExtractedPartition(partials, serialise("row", network.layers, weights)))
    steps = [
        Expected(0, "header", header, messages.Ack),
        *(Expected(0, "chunk", chunk, messages.Ack) for chunk in chunks),
        Expected(0, "end", end, messages.Ready),
    ]
    for number in range(c.integer(3, 12)):
        steps.extend(Expected(0, "idle", None) for _ in range(c.integer(0, 2)))
        first_stage, which = pick(c, [0, c.integer(0, len(outputs) - 1)]), c.integer(0, INPUTS - 1)
        last_stage = c.integer(first_stage, len(outputs) - 1)
        values = truth.taps[which]
        data = values[first_stage - 1] if first_stage else inputs[which]
        query = messages.Query(number, first_stage, last_stage, (data.tobytes(),))
        what = f"query {number}: stages {first_stage}..{last_stage} of input {which}"
        steps.append(Expected(0, what, query, messages.Result, (values[last_stage],)))
    say("\n".join(describe(steps)))
    run(steps, sessions.answers)


@pytest.mark.nets
@pytest.mark.timeout(1200)
def test_nets_in_a_row_hand_on_what_caffe_computes(oracle: Oracle, sessions: Sessions) -> None:
    for_each_seed(NETS // 4, lambda c, say: check_row(c, oracle, sessions, say))


# --- By way of a server ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server("--sessions", "100", "--sessions-per-client", "100")
    yield server
    server.end_well()


@pytest.fixture(scope="module")
def clients() -> Iterator[Clients]:
    with Clients() as clients:
        yield clients


def some_groups(c: Choices, network: Network) -> list[list[Piece]]:
    """Any partitions of what may be uploaded; the slices of a stage come in the order of its channels."""
    pieces: list[Piece] = []
    for stage in network.stages:
        if stage.pinned or chance(c, 20):
            continue
        cut = slices_of(c, network, stage.index, planned_only=True) if chance(c, 60) else None
        new: list[Piece] = [stage.index] if cut is None else list(cut[0])
        if len(new) > 1 and chance(c, 40):
            new.pop()  # a stage that never is there as a whole
        elif chance(c, 5) and cut is not None:
            new = [Slice(stage.index, 0, cut[0][-1].end)]
        at = 0
        for piece in new:
            at = c.integer(at, len(pieces))
            pieces.insert(at, piece)
            at += 1
    groups: list[list[Piece]] = []
    for piece in pieces:
        if groups and chance(c, 50):
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return [sorted(group, key=lambda piece: piece if isinstance(piece, tuple) else (piece, 0, 0)) for group in groups]


def check_program(c: Choices, oracle: Oracle, server: Server, clients: Clients, say: Say) -> Counter[str]:
    """A user's program with one net; where its stages ran, and whether coding saved bytes."""
    draft = wide_net(c) if chance(c, 35) else draft_net(c)
    say(draft.text)
    network = read(draft, oracle)
    if network is None:
        return Counter()
    weights, inputs = some_numbers(network, seed=c.integer(0, 9))
    truth = oracle.compute(Answers.question(draft.text, network, inputs, weights))
    assert truth is not None
    answers = Answers(network, truth, inputs)
    acts: list[Act] = []
    for _ in range(c.integer(2, 8)):
        acts.append(pick(c, [("query", c.integer(0, INPUTS - 1)), ("wait", c.integer(1, 9))]))
    if chance(c, 15):
        acts.append(("reset", 0))
    # Longer than an idle moment of the server takes: its warm-up is over.
    acts += [("query", 0), ("wait", 99), *(("query", index) for index in range(INPUTS)), ("query", 0)]
    algorithm = "generated" if chance(c, 60) else pick(c, ["sliced-efficiency", *sorted(PLANNERS)])
    client_ms = [pick(c, (20.0, 5.0, 0.5)) for _ in network.layers]
    groups = some_groups(c, network)
    last = len(network.stages) - 1
    exact = answers.exact(0, last)
    audit, tolerance = float(chance(c, 50)), 0.0 if exact else TOLERANCE
    program = Program(
        draft.text, some_caffemodel(c, network, weights), inputs, acts, server.address if not chance(c, 15) else None,
        algorithm, groups, client_ms, [0.01 for _ in network.layers], audit, tolerance, chance(c, 50),
    )  # fmt: skip
    say(f"{algorithm}, {groups}, {acts}, {'alone' if program.address is None else 'with a server'}, {program.coded}")
    report = clients.run(program)
    assert not report.cut_for_nothing
    assert "wrong result" not in report.fault
    for got in report.answers:
        want = truth.outputs[got.index]
        assert list(got.outputs) == list(want)
        assert got.audited == (audit == 1 and got.places != {"client"}) or got.fallback
        assert (got.feature_bytes > 0) == (got.places != {"client"}) or got.fallback
        assert got.feature_wire_bytes <= got.feature_bytes
        assert program.coded or got.feature_wire_bytes == got.feature_bytes
        for name, output in got.outputs.items():
            assert output.shape == want[name].shape, (name, output.shape)
            same = output.tobytes() == want[name].tobytes()
            assert same or (not exact and near(output, want[name])), (got.index, name, output, want[name])
    if ("reset", 0) not in acts:
        assert not report.fault
        assert not any(got.fallback for got in report.answers)
    places = Counter(place for got in report.answers for place in got.places)
    places["saved"] += sum(got.feature_wire_bytes < got.feature_bytes for got in report.answers)
    return +places


@pytest.mark.nets
@pytest.mark.timeout(1200)
def test_users_get_what_caffe_computes(oracle: Oracle, server: Server, clients: Clients) -> None:
    places = for_each_seed(max(5, NETS // 8), lambda c, say: check_program(c, oracle, server, clients, say))
    assert set(sum(places, Counter())) == {"client", "server", "both", "saved"}
