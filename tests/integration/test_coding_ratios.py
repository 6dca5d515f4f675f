"""The ratios of the models that come along are what `bench/coding_ratios.py` measures."""

from __future__ import annotations

import math
from collections import Counter

import coding_ratios
import numpy as np
import pytest

from ionn.costs.loading import load_costs
from ionn.costs.model_ratios import model_ratios, output_ratios, weight_ratios
from ionn.costs.models import Profile
from ionn.model.network import Network
from ionn.paper import CLIENT, MODELS


def test_measuring_again_gives_what_is_recorded() -> None:
    again, recorded = coding_ratios.measure("mobilenet"), model_ratios("mobilenet")
    assert recorded is not None
    assert (again.network, again.weights_are) == (recorded.network, "synthetic")
    # Another version of zstd may find other matches.
    assert again.outputs == pytest.approx(recorded.outputs, rel=0.03)
    assert again.weights == pytest.approx(recorded.weights, rel=0.03)
    assert again.weight_ratio == pytest.approx(recorded.weight_ratio, rel=0.03)
    assert again.weight_entropy_bits == pytest.approx(recorded.weight_entropy_bits, abs=0.01)


def test_entropies_are_those_of_counted_bytes() -> None:
    blob = np.array([1.0, 2.0, 2.0, -3.5, 0.1], np.float32)
    raw = blob.tobytes()
    for plane, bits in enumerate(coding_ratios.entropy_bits([blob])):
        shares = [count / 5 for count in Counter(raw[plane::4]).values()]
        assert bits == pytest.approx(-sum(share * math.log2(share) for share in shares), abs=0.005)


@pytest.mark.parametrize("model", MODELS)
def test_every_boundary_and_every_weight_of_the_models_has_a_ratio(model: str) -> None:
    network = Network.load(model)
    outputs, weights = output_ratios(network, load_costs(CLIENT)), weight_ratios(network)
    assert np.flatnonzero(outputs <= 1).tolist() == [stage.last_layer for stage in network.stages]
    assert 1 / 5 < outputs[0] < 1 / 4
    assert np.flatnonzero(weights <= 1).tolist() == [la.index for la in network.layers if la.weight_bytes]


@pytest.mark.parametrize("name", ["n" * 300, "../devices/odroid-xu4", "\0", ""])
def test_a_network_of_any_name_that_is_not_of_the_models_has_no_ratios(name: str, tiny: Network) -> None:
    assert np.isnan(output_ratios(Network.from_text(str(tiny.param), name))).all()


def test_a_profile_knows_better_and_another_network_of_that_name_is_not_known(tiny: Network) -> None:
    alexnet = Network.load("alexnet")
    measured: list[float | None] = [0.125, *[None] * (len(alexnet.layers) - 1)]
    profile = Profile.of(alexnet, 1.0, output_ratios=measured)
    known = output_ratios(alexnet, load_costs(CLIENT), profile)
    assert known[0] == 0.125
    np.testing.assert_array_equal(known[1:], output_ratios(alexnet)[1:])
    assert np.isnan(output_ratios(tiny)).all()
    impostor = Network.from_text(str(tiny.param), "alexnet")
    assert np.isnan(output_ratios(impostor)).all()
    assert np.isnan(weight_ratios(impostor)).all()
