"""Calibration: what the design spans, and that a quick one on this machine yields a usable model."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ionn.coding import zstd
from ionn.costs import calibration, fitting
from ionn.costs.loading import load_costs
from ionn.costs.profiling import profile_network
from ionn.errors import InputError
from ionn.model import engine
from ionn.model.inputs import query_inputs
from ionn.model.layers import essential
from ionn.model.network import Layer, Network
from ionn.paper import MODELS

DESIGN = "8255b94ad987f9c1885b8fe2d55abe65aba595bb6e1eab2a8b68e5ffb79edb95"
ONE_LAYER = """
layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ dim: 1 dim: 64 dim: 20 dim: 20 }} }} }}
layer {{ name: "layer" bottom: "data" top: "layer" {} }}
"""


def layers(networks: list[Network]) -> Iterator[Layer]:
    return (layer for network in networks for layer in network.layers)


@pytest.fixture(scope="module")
def design() -> list[Network]:
    return calibration.design(calibration.BLOCKS)


@pytest.fixture(scope="module")
def models() -> list[Network]:
    return [Network.load(model) for model in MODELS]


@pytest.fixture(scope="module")
def quick() -> calibration.Calibration:
    return calibration.calibrate((), blocks=20, passes=1)


# --- The design -----------------------------------------------------------------------------------------------------


def test_the_design_is_always_the_same(design: list[Network]) -> None:
    """On any machine: cost models are fitted to the same layers everywhere. A new design has a new digest here."""
    text = "".join(network.param.SerializeToString(deterministic=True).hex() for network in design)
    assert hashlib.sha256(text.encode()).hexdigest() == DESIGN


def test_every_layer_type_of_the_models_is_timed(design: list[Network], models: list[Network]) -> None:
    wanted = {layer.type for layer in layers(models)}
    assert wanted <= {layer.type for layer in layers(design)}
    assert wanted <= {layer.type for layer in layers(calibration.design(20))}


def test_no_layer_of_the_models_is_a_sample(design: list[Network], models: list[Network]) -> None:
    def shape(layer: Layer) -> Any:
        param = essential(layer.param)
        for name in ("name", "bottom", "top"):
            param.ClearField(name)
        return param.SerializeToString(deterministic=True), layer.bottom_shapes, layer.weight_shapes

    # Before the second layer there is the input, and what warms it; neither says anything about a model.
    samples = {shape(layer) for layer in layers(design) if layer.index >= 2}
    assert not samples & {shape(layer) for layer in layers(models)}


def test_the_design_spans_what_cnns_have(design: list[Network], models: list[Network]) -> None:
    def span(networks: list[Network], type_: str, size: str) -> tuple[int, int]:
        sizes = [getattr(layer, size) for layer in layers(networks) if layer.type == type_]
        return min(sizes), max(sizes)

    for type_, size, reach in (
        ("InnerProduct", "weight_bytes", 1.5),
        ("Convolution", "operations", 3.0),
        ("Convolution", "weight_bytes", 1.5),
        ("ReLU", "operations", 1.5),
        ("Pooling", "output_bytes", 1.5),
    ):
        (least, most), (low, high) = span(design, type_, size), span(models, type_, size)
        assert least < low * reach, f"{type_}: {size}"
        assert most > high / reach, f"{type_}: {size}"
    convolutions = [layer for layer in layers(design) if layer.type == "Convolution"]
    assert {layer.weight_shapes[0][2] for layer in convolutions} == {1, 3, 5, 7, 11}
    assert any(layer.param.convolution_param.group == layer.bottom_shapes[0][1] for layer in convolutions)
    assert any(1 < layer.param.convolution_param.group < layer.bottom_shapes[0][1] for layer in convolutions)


# --- A quick calibration --------------------------------------------------------------------------------------------


def test_every_layer_of_the_models_gets_a_time(quick: calibration.Calibration, models: list[Network]) -> None:
    for network in models:
        ms = quick.model.layer_ms(network)
        assert (ms > 0).all()
        assert ms.sum() < 60_000
        assert not quick.model.load_ms(network).any()


@pytest.mark.parametrize(
    "layer",
    [
        'type: "Convolution" convolution_param {{ kernel_size: 3 num_output: {} }}',
        'type: "Convolution" convolution_param {{ kernel_size: 1 num_output: {} }}',
        'type: "InnerProduct" inner_product_param {{ num_output: {} }}',
    ],
)
def test_more_operations_take_more_time(quick: calibration.Calibration, layer: str) -> None:
    networks = [Network.from_text(ONE_LAYER.format(layer.format(outputs)), "one") for outputs in (64, 256, 1024)]
    times = [quick.model.layer_ms(network)[1] for network in networks]
    assert 0 < times[0] < times[1] < times[2]


def test_the_model_describes_the_machine_and_survives_a_file(quick: calibration.Calibration, tmp_path: Path) -> None:
    assert {"cpu", "caffe", "blas_threads"} <= quick.model.machine.keys()
    quick.model.save(tmp_path / "server.json")
    assert load_costs(str(tmp_path / "server.json")) == quick.model


def test_the_machine_codes_at_a_speed_that_is_measured(quick: calibration.Calibration) -> None:
    model = quick.model
    assert model.encode_ms_per_mb is not None
    assert model.decode_ms_per_mb is not None
    assert 0.1 < model.encode_ms_per_mb < 1000
    assert 0.1 < model.decode_ms_per_mb < 1000


def test_a_profile_has_the_ratio_of_what_each_stage_gives(
    tiny: Network, tiny_weights: dict[str, tuple[np.ndarray, ...]]
) -> None:
    """Compared with what zstd makes of the same blobs, whose planes are gathered by slicing and begin a block each."""
    net = engine.load_network(tiny, tiny_weights)
    ratios = profile_network(tiny, net, runs=1).output_ratios(tiny)
    ends = [stage.last_layer for stage in tiny.stages]
    assert np.flatnonzero(~np.isnan(ratios)).tolist() == ends
    data = query_inputs(tiny, seed=0, count=1)[0]
    net.put(0, data)
    for stage in tiny.stages:
        net.run(stage.index, stage.index)
        raw = net.blob(stage.outputs[0]).tobytes()
        frame = zstd.ZstdCompressor(1)
        frame.set_pledged_input_size(len(raw))
        coded = sum(len(frame.compress(raw[plane::4], frame.FLUSH_BLOCK)) for plane in range(4)) + len(frame.flush())
        assert ratios[stage.last_layer] == min(coded, len(raw)) / len(raw)


def test_a_network_is_measured_beside_and_compared(tiny: Network, tiny_files: Path) -> None:
    calls: list[None] = []
    result = calibration.calibrate([str(tiny_files)], lambda: calls.append(None), blocks=3, passes=1)
    (compared,) = result.quality.networks
    assert (compared.network, result.quality.heavy.samples) == ("tiny", 5)
    assert compared.predicted_ms == pytest.approx(result.model.layer_ms(tiny).sum())
    assert compared.measured_ms > 0
    assert len(calls) == 2


def test_of_several_passes_the_lower_quartile_counts_without_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    passes_ms = iter([900.0, 5.0, 1.0, 4.0, 2.0, 3.0])
    monkeypatch.setattr(engine, "time_pass", lambda net, clock: np.array([next(passes_ms), 7.0]))
    calls: list[None] = []
    (layer_ms,) = calibration._time([None], 5, math.inf, lambda: calls.append(None))  # type: ignore[list-item]
    assert layer_ms.tolist() == [2.0, 7.0]
    assert len(calls) == 6


def test_activations_with_random_weights_are_of_size_one(design: list[Network]) -> None:
    for network in design[:20]:
        net = engine.load_network(network, calibration._random_weights(network))
        net.put(net.first, calibration._noise(network.input_shape))
        net.run(net.first, net.last)
        for stage in network.stages[1:]:
            if network.layers[stage.first_layer].type in ("Convolution", "InnerProduct"):
                assert 0.1 < np.abs(net.outputs(stage.index)[0]).mean() < 10, network.layers[stage.first_layer]


def test_every_layer_of_the_design_but_those_that_warm_is_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Any] = []

    def fit(samples: Any, *arguments: Any, **options: Any) -> Any:
        taken.extend(samples)
        return fitting.fit(samples, *arguments, **options)

    monkeypatch.setattr(calibration, "fit", fit)
    calibration.calibrate((), blocks=3, passes=1)
    wanted = [layer for network in calibration.design(3) for layer in network.layers if layer.name != "ReLU data"]
    assert [layer.name for layer, _ in taken] == [layer.name for layer in wanted]
    assert all(ms >= 0 for _, ms in taken)


def test_a_slow_machine_makes_fewer_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_BUDGET_S", 0.0)
    calls: list[None] = []
    calibration.calibrate((), lambda: calls.append(None), blocks=3, passes=50)
    assert len(calls) == 4


def test_an_unknown_model_is_refused_before_anything_is_timed() -> None:
    with pytest.raises(InputError, match="unknown model 'alexnett'"):
        calibration.calibrate(["alexnett"], lambda: pytest.fail("a pass was made"))


def test_a_pass_times_every_layer_by_the_clock_it_is_given(
    tiny: Network, tiny_weights: dict[str, tuple[np.ndarray, ...]]
) -> None:
    ms = engine.time_pass(engine.load_network(tiny, tiny_weights), itertools.count().__next__)
    assert ms.tolist() == [1000.0] * len(tiny.layers)
