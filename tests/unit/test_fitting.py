"""Fitting: it recovers known functions, stays sane where data is short, and the shipped devices are its work."""

from __future__ import annotations

import numpy as np
import pytest
from fit_devices import DEVICES, fit_device, read_profiles

from ionn.costs.fitting import TypeQuality, fit, fit_quality
from ionn.costs.loading import load_costs
from ionn.costs.models import CostModel, Profile
from ionn.errors import InputError
from ionn.model.network import Layer, Network
from tests.support.machine import PROFILES, needs_reference

DEVICE = CostModel(
    "truth",
    {
        "Convolution": {"operations": 5e-7, "weight_bytes": 2e-6, "im2col_bytes": 8e-7, "constant": 0.05},
        "Pooling": {"operations": 3e-6, "max_operations": 2e-6},
        "ReLU": {"operations": 8e-6, "constant": 0.01},
    },
    {"operations": 1e-5, "constant": 0.002},
)


@pytest.fixture(scope="module")
def networks() -> list[Network]:
    return [Network.load(name) for name in ("alexnet", "googlenet", "mobilenet")]


def samples(networks: list[Network], types: tuple[str, ...], noise: float = 0.0) -> list[tuple[Layer, float]]:
    random = np.random.default_rng(0)
    layers = [layer for network in networks for layer in network.layers if layer.type in types]
    return [(layer, DEVICE.predict(layer) * random.uniform(1 - noise, 1 + noise)) for layer in layers]


def worst_error(model: CostModel, measured: list[tuple[Layer, float]]) -> float:
    return max(abs(model.predict(layer) / ms - 1) for layer, ms in measured)


def test_fit_recovers_the_functions_behind_exact_measurements(networks: list[Network]) -> None:
    measured = samples(networks, ("Convolution", "Pooling", "ReLU"))
    model = fit(measured, "fitted")
    assert worst_error(model, measured) < 1e-6
    for type_, truth in DEVICE.layers.items():
        for feature, value in truth.items():
            assert model.layers[type_][feature] == pytest.approx(value, rel=1e-3)


def test_noise_neither_shifts_totals_nor_reaches_predictions(networks: list[Network]) -> None:
    measured = samples(networks, ("Convolution", "Pooling", "ReLU"), noise=0.3)
    model = fit(measured, "fitted")
    exact = samples(networks, ("Convolution", "Pooling", "ReLU"))
    predicted = sum(model.predict(layer) for layer, _ in exact)
    assert predicted == pytest.approx(sum(ms for _, ms in exact), rel=0.05)
    assert np.median([abs(model.predict(layer) / ms - 1) for layer, ms in exact]) < 0.05


def test_coefficients_are_never_negative(networks: list[Network]) -> None:
    relus = [layer for network in networks for layer in network.layers if layer.type == "ReLU"]
    model = fit([(layer, 1 / layer.operations) for layer in relus], "the larger the faster")
    assert all(value >= 0 for value in model.layers["ReLU"].values())


def test_few_samples_make_a_proportional_model(networks: list[Network]) -> None:
    products = [layer for layer in networks[0].layers if layer.type == "InnerProduct"]
    assert len(products) == 3
    model = fit([(layer, 1e-6 * layer.weight_bytes) for layer in products], "fitted")
    assert model.layers["InnerProduct"] == {"weight_bytes": pytest.approx(1e-6)}


def test_a_feature_that_hardly_varies_is_left_out(networks: list[Network]) -> None:
    pools = [layer for layer in networks[0].layers if layer.type == "Pooling"]
    measured = [(layer, ms) for layer in pools[:2] for ms in (1.0, 2.0, 3.0, 4.0)]
    assert set(fit(measured, "fitted").layers["Pooling"]) <= {"operations", "constant"}


def global_pooling(channels: int, size: int) -> Layer:
    network = Network.from_text(
        'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 '
        f"dim: {channels} dim: {size} dim: {size} }} }} }}"
        'layer { name: "pool" type: "Pooling" bottom: "data" top: "pool" '
        "pooling_param { pool: AVE global_pooling: true } }",
        "pooling",
    )
    return network.layers[1]


def test_a_feature_of_three_different_values_is_taken() -> None:
    """Pooling layers of equal operations whose time goes by their planes."""
    pools = [(global_pooling(planes, size), 0.01 * planes) for planes, size in ((4, 16), (16, 8), (64, 4))]
    assert fit(pools * 2, "fitted").layers["Pooling"] == {"planes": pytest.approx(0.01)}
    assert "planes" not in fit(pools[:2] * 3, "fitted").layers["Pooling"]


def test_quality_without_heavy_layers() -> None:
    relu = Network.from_text(
        'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 2 } } }'
        'layer { name: "relu" type: "ReLU" bottom: "data" top: "relu" }',
        "relu",
    )
    quality = fit_quality(Profile.of(relu, [0.0, 2.0]), [(relu, np.array([0.0, 1.0]))])
    assert quality.heavy == TypeQuality("Convolution + InnerProduct", 0, 0.0, 0.0)
    assert quality.types == (TypeQuality("Input", 1, 0.0, 0.0), TypeQuality("ReLU", 1, 1.0, 1.0))
    assert quality.networks[0].error == 1.0


def test_the_ninetieth_percentile_and_the_median_of_errors(networks: list[Network]) -> None:
    layers = [layer for layer in networks[2].layers if layer.type == "ReLU"][:11]
    ms = np.ones(len(networks[2].layers))
    predicted = ms.copy()
    for number, layer in enumerate(layers):
        predicted[layer.index] = 1 + number / 10
    others = [layer for layer in networks[2].layers if layer.type == "ReLU"][11:]
    for layer in others:
        predicted[layer.index] = 1.5
    quality = fit_quality(Profile.of(networks[2], predicted), [(networks[2], ms)])
    (relus,) = (each for each in quality.types if each.type == "ReLU")
    errors = [number / 10 for number in range(11)] + [0.5] * len(others)
    assert relus.samples == len(errors)
    assert (relus.median_error, relus.p90_error) == pytest.approx((np.median(errors), np.quantile(errors, 0.9)))


def test_layers_that_do_nothing_cost_a_constant_and_zero_times_are_accepted(networks: list[Network]) -> None:
    splits = [layer for layer in networks[1].layers if layer.type == "Split"]
    inputs = [network.layers[0] for network in networks]
    model = fit([(layer, 0.004) for layer in splits] + [(layer, 0.0) for layer in inputs], "fitted")
    assert model.layers["Split"] == {"constant": pytest.approx(0.004)}
    assert model.layers["Input"] == {}


def test_types_that_were_not_measured_cost_what_light_layers_do(networks: list[Network]) -> None:
    measured = samples(networks, ("Convolution", "ReLU"))
    model = fit(measured, "fitted")
    norm = next(layer for layer in networks[2].layers if layer.type == "BatchNorm")
    assert model.predict(norm) == pytest.approx(8e-6 * norm.operations + 0.01, rel=1e-3)


@pytest.mark.parametrize("times", [[], [-1.0], [float("nan")], [float("inf")]])
def test_impossible_measurements_are_refused(networks: list[Network], times: list[float]) -> None:
    with pytest.raises(InputError, match="fitted: cannot fit a cost model"):
        fit([(networks[0].layers[1], ms) for ms in times], "fitted")


def test_quality_counts_relative_errors_by_type_and_totals_by_network(networks: list[Network]) -> None:
    network = networks[0]
    ms = DEVICE.layer_ms(network)
    predicted = ms * np.where([layer.type == "Convolution" for layer in network.layers], 1.1, 1.0)
    quality = fit_quality(Profile.of(network, predicted), [(network, ms)])
    assert {q.type: q.samples for q in quality.types}["ReLU"] == 7
    by_type = {q.type: q.median_error for q in quality.types}
    assert by_type["Convolution"] == pytest.approx(0.1)
    assert by_type["Pooling"] == 0
    # 5 convolutions and 3 inner products together.
    assert quality.heavy.samples == 8
    assert quality.heavy.median_error == pytest.approx(0.1)
    assert quality.networks[0].error == pytest.approx(predicted.sum() / ms.sum() - 1)
    assert "Convolution + InnerProduct        8         10.0%" in quality.table()


# --- The devices that ship with ionn --------------------------------------------------------------------------------


@needs_reference
@pytest.mark.parametrize("name", DEVICES)
def test_shipped_coefficients_are_what_the_fit_gives(name: str) -> None:
    measured = read_profiles(PROFILES, DEVICES[name])
    fitted, shipped = fit_device(name, measured), load_costs(name)
    for network, _ in measured:
        np.testing.assert_allclose(shipped.layer_ms(network), fitted.layer_ms(network), rtol=1e-3)
        np.testing.assert_allclose(shipped.load_ms(network), fitted.load_ms(network))


@needs_reference
def test_odroid_fits_the_published_latencies() -> None:
    quality = fit_quality(load_costs("odroid-xu4"), read_profiles(PROFILES, DEVICES["odroid-xu4"]))
    assert quality.heavy.samples == 218
    assert quality.heavy.median_error < 0.05
    assert all(abs(network.error) < 0.05 for network in quality.networks)


@needs_reference
def test_gtx1080ti_fits_the_published_latencies() -> None:
    quality = fit_quality(load_costs("gtx1080ti"), read_profiles(PROFILES, DEVICES["gtx1080ti"]))
    assert quality.heavy.median_error < 0.10
    assert all(abs(network.error) < 0.05 for network in quality.networks)


def test_shipped_devices_price_every_layer(networks: list[Network]) -> None:
    for name in DEVICES:
        for network in networks:
            ms = load_costs(name).layer_ms(network)
            assert (ms > 0).all()
            assert np.isfinite(ms).all()


def test_more_filters_never_cost_less() -> None:
    text = """
    layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 32 dim: 20 dim: 20 } } }
    layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
      convolution_param { num_output: FILTERS kernel_size: 5 } }
    """
    networks = [Network.from_text(text.replace("FILTERS", str(filters)), "one") for filters in (8, 16, 64)]
    for name in DEVICES:
        times = [load_costs(name).layer_ms(network)[1] for network in networks]
        assert times[0] < times[1] < times[2]
