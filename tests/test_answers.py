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
from generated import (
    GENERATORS, Choices, Draft, Drawn, Seeded, chance, draft_net, some_floats, some_weights, wide_net,
)  # fmt: skip
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st
from oracle import Oracle, Question
from remote import DiedError
from schedules import Answers, Schedule, Weights, describe, run
from session_process import Sessions

from ionn.errors import InputError
from ionn.layers import LAYER_TYPES
from ionn.network import Network

NETS = int(os.environ.get("IONN_NETS", "200"))
INPUTS = 4

# What stock Caffe computes and ionn refuses, and why.
JUSTIFIED = {
    "it must start with its only Input layer": "a chain begins with one blob, which the query brings",
    "it has no output": "there is nothing to answer",
    "another layer has its name": "weights are found by their layer's name, in a caffemodel and in pycaffe",
    "cannot work in place": "it would read what it has overwritten; where Caffe does not check that, it is an accident",
    "does not match its first": "Caffe's check is left out of its sources: it reads outside of the second input",
    "to reflect it": "Caffe reads outside of the input",
    "takes an input of 4 axes": "Pad and PixelShuffle read and write outside of an input of fewer axes",
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
    weights = {
        layer.name: some_weights(rng, layer.type, layer.weight_shapes) for layer in network.layers if layer.weight_shapes
    }
    return weights, [some_floats(rng, network.input_shape) for _ in range(INPUTS)]


def read(draft: Draft, oracle: Oracle) -> Network | None:
    """The net of a draft; None if it is refused, which it must be with reason: Caffe aborts on it."""
    try:
        return Network.from_text(draft.text, "net")
    except InputError as error:
        if not any(reason in str(error) for reason in JUSTIFIED):
            assert oracle.compute(Question(draft.text, fill=True, fatal=True)) is None, f"refused: {error}"
        return None


def check_case(c: Choices, oracle: Oracle, sessions: Sessions, say=note) -> Network | None:
    """One net, uploaded and queried in some way."""
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
    run(steps, sessions.answers)
    return network


def test_every_layer_type_is_generated() -> None:
    assert set(GENERATORS) == set(LAYER_TYPES)


@settings(
    max_examples=NETS, derandomize=NETS <= 1000, database=None, deadline=None, print_blob=True,
    suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink],
)  # fmt: skip
@given(st.data())
@pytest.mark.timeout(0)
def test_sessions_answer_as_caffe_does(data: st.DataObject, oracle: Oracle, sessions: Sessions) -> None:
    check_case(Drawn(data.draw), oracle, sessions)
