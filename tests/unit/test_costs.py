"""Costs: features of layers, cost models and profiles on disk, and every way to name costs on the command line."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ionn.costs.features import features
from ionn.costs.loading import costs_from_json, costs_label, device_names, load_costs, split_times
from ionn.costs.models import CostModel, LayerTime, Profile, Scaled
from ionn.errors import InputError
from ionn.model.network import Network
from tests.support.machine import PROFILES, needs_reference

TINY = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 4 dim: 8 dim: 8 } } }
layer { name: "wide" type: "Convolution" bottom: "data" top: "wide"
  convolution_param { num_output: 6 kernel_size: 3 pad: 1 group: 2 } }
layer { name: "relu" type: "ReLU" bottom: "wide" top: "wide" }
layer { name: "thin" type: "Convolution" bottom: "wide" top: "thin"
  convolution_param { num_output: 5 kernel_size: 1 } }
layer { name: "step" type: "Convolution" bottom: "thin" top: "step"
  convolution_param { num_output: 2 kernel_size: 1 stride: 2 } }
layer { name: "pool" type: "Pooling" bottom: "step" top: "pool" pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "grow" type: "Deconvolution" bottom: "pool" top: "grow"
  convolution_param { num_output: 3 kernel_size: 2 stride: 2 } }
layer { name: "fc" type: "InnerProduct" bottom: "grow" top: "fc" inner_product_param { num_output: 10 } }
"""
MODEL = CostModel(
    "toy",
    {"Convolution": {"operations": 2e-3, "constant": 0.5}, "InnerProduct": {"weight_bytes": 1e-3}},
    {"constant": 0.25},
    {"Convolution": {"filters": 0.1}},
    {"cpu": "abacus"},
)


@pytest.fixture(scope="module")
def tiny() -> Network:
    return Network.from_text(TINY, "tiny")


def save(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def refusal(spec: str, network: Network | None = None) -> str:
    with pytest.raises(InputError) as caught:
        load_costs(spec) if network is None else load_costs(spec).layer_ms(network)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- Features and cost models ---------------------------------------------------------------------------------------


def test_features_of_a_convolution_are_the_sizes_of_its_matrix_product(tiny: Network) -> None:
    wide, thin, step = (features(tiny.layers[index]) for index in (1, 3, 4))
    # Two groups, each 3 filters of 2 channels x 3 x 3 over 64 positions.
    assert wide["operations"] == 2 * 3 * (2 * 9) * 64
    assert wide["weight_bytes"] == 4 * (6 * 2 * 9 + 6)
    assert wide["column_bytes"] == wide["im2col_bytes"] == 4 * 2 * (2 * 9) * 64
    assert (wide["depth"], wide["depth_3x3"], wide["filters"]) == (0, 18, 6)
    # A 1x1 kernel multiplies its input as it lies, unless it skips positions.
    assert (thin["column_bytes"], thin["im2col_bytes"], thin["depth"]) == (4 * 6 * 64, 0, 6)
    assert thin["depth_3x3"] == 0
    assert step["im2col_bytes"] == step["column_bytes"] == 4 * 5 * 16


def test_only_3x3_kernels_of_stride_1_are_fast() -> None:
    data = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 2 dim: 9 dim: 9 } } }'
    for windows, depth, fast, copied in (
        ("kernel_size: 3", 18, True, True),
        ("kernel_size: 3 stride: 2", 18, False, True),
        ("kernel_size: 3 stride_h: 2 stride_w: 1", 18, False, True),
        ("kernel_h: 3 kernel_w: 1", 6, False, True),
        ("kernel_size: 1", 2, False, False),
        ("kernel_size: 1 pad: 1", 2, False, True),
        ("kernel_size: 1 pad_h: 1 pad_w: 0", 2, False, True),
    ):
        layer = 'layer { name: "a" type: "Convolution" bottom: "data" top: "a" convolution_param { num_output: 3 '
        found = features(Network.from_text(f"{data}{layer} {windows} }} }}", "net").layers[1])
        assert (found["depth"], found["depth_3x3"]) == ((0, depth) if fast else (depth, 0)), windows
        assert (found["im2col_bytes"] > 0) == copied, windows


def test_features_of_other_layers(tiny: Network) -> None:
    by_name = {layer.name: features(layer) for layer in tiny.layers}
    assert by_name["pool"]["max_operations"] == by_name["pool"]["operations"] == 2 * 2 * 2 * 4
    assert (by_name["pool"]["planes"], by_name["pool"]["max_output_bytes"]) == (2, 4 * 2 * 2 * 2)
    # A deconvolution multiplies 2 input channels at 2x2 positions into columns of 3 channels x 2 x 2.
    assert by_name["grow"]["column_bytes"] == 4 * (3 * 4) * 4
    assert by_name["fc"]["depth"] == 3 * 4 * 4
    assert "column_bytes" not in by_name["fc"]
    assert "depth" not in by_name["relu"]
    alexnet = {layer.name: features(layer)["large_bytes"] for layer in Network.load("alexnet").layers}
    assert (alexnet["relu1"], alexnet["relu5"]) == (2 * 4 * 96 * 55 * 55, 0)


@pytest.mark.parametrize(("floats", "large_bytes"), [(64 * 1024, 0), (64 * 1024 + 1, 512 * 1024 + 8)])
def test_blobs_are_large_beyond_512_kib_together(floats: int, large_bytes: int) -> None:
    network = Network.from_text(
        f'layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ dim: 1 dim: {floats} }} }} }}'
        'layer { name: "relu" type: "ReLU" bottom: "data" top: "relu" }',
        "relu",
    )
    assert features(network.layers[1])["large_bytes"] == large_bytes


def test_only_the_operands_of_large_products_are_packed() -> None:
    alexnet, mobilenet = (
        {layer.name: features(layer) for layer in Network.load(name).layers} for name in ("alexnet", "mobilenet")
    )
    assert alexnet["conv2"]["packed_bytes"] == alexnet["conv2"]["column_bytes"] == 4 * (5 * 5 * 96) * 27 * 27
    fc6 = 4 * 4096 * (9216 + 1)
    assert (alexnet["fc6"]["packed_bytes"], alexnet["fc6"]["page_rows_bytes"]) == (fc6, fc6)
    assert (alexnet["fc6"]["extra_rows_bytes"], alexnet["fc8"]["extra_rows_bytes"]) == (4 * 2048 * 9216, 0)
    # A depthwise convolution is many small products.
    assert (mobilenet["conv2_1/dw"]["packed_bytes"], mobilenet["conv2_1/sep"]["packed_bytes"]) == (0, 4 * 32 * 112**2)


def test_a_model_predicts_by_type_by_similar_type_and_by_default(tiny: Network) -> None:
    operations = [layer.operations for layer in tiny.layers]
    convolution = [2e-3 * count + 0.5 for count in operations]
    expected = [0.25, convolution[1], 0.25, convolution[3], convolution[4], 0.25, convolution[6]]
    expected.append(1e-3 * 4 * (48 * 10 + 10))
    ms = MODEL.layer_ms(tiny)
    assert ms.dtype == np.float64
    assert ms == pytest.approx(expected)
    assert MODEL.load_ms(tiny) == pytest.approx([0, 0.6, 0, 0.5, 0.2, 0, 0, 0])


@pytest.mark.parametrize("bad", [-1e-9, math.nan, math.inf, "1", None, True, 10**400])
def test_a_model_refuses_coefficients_that_are_not_non_negative_numbers(bad: object) -> None:
    with pytest.raises(InputError, match=r"toy: ReLU: operations is .*; it must be a number, finite and not negative"):
        CostModel("toy", {"ReLU": {"operations": bad}}, {})  # type: ignore[dict-item]


def test_what_a_model_says_does_not_shrink_with_the_channels(tiny: Network) -> None:
    """Here the constants: operations and weights belong to the output channels, of which some may be left out."""
    fixed_ms = dict(zip((layer.name for layer in tiny.layers), MODEL.fixed_ms(tiny).tolist(), strict=True))
    assert fixed_ms == {
        "data": 0.25, "wide": 0.5, "relu": 0.25, "thin": 0.5, "step": 0.5, "pool": 0.25, "grow": 0.5, "fc": 0.0,
    }  # fmt: skip


def test_a_model_refuses_unknown_features() -> None:
    with pytest.raises(InputError, match=r"toy: default: unknown feature 'flops'; features are .*operations"):
        CostModel("toy", {}, {"flops": 1.0})


# --- Profiles -------------------------------------------------------------------------------------------------------


def test_a_profile_returns_what_was_measured(tiny: Network) -> None:
    ms, load_ms = np.arange(8.0), np.arange(8.0) / 2
    profile = Profile.of(tiny, ms, load_ms=load_ms)
    assert profile.name == "profile of tiny"
    assert (profile.layer_ms(tiny) == ms).all()
    assert (profile.load_ms(tiny) == load_ms).all()
    assert not Profile.of(tiny, ms).load_ms(tiny).any()


def test_costs_of_a_slower_machine_are_divided(tiny: Network) -> None:
    count = len(tiny.layers)
    costs = Profile.of(tiny, np.arange(1.0, count + 1), load_ms=3.0)
    slower = Scaled(costs, 4.0)
    assert slower.name == f"{costs.name} / 4"
    assert Scaled(costs, 1.0).name == costs.name
    assert slower.layer_ms(tiny).tolist() == [(index + 1) / 4 for index in range(count)]
    assert slower.load_ms(tiny).tolist() == (costs.load_ms(tiny) / 4).tolist()
    assert slower.fixed_ms(tiny).tolist() == (costs.fixed_ms(tiny) / 4).tolist()
    assert slower.to_json() == {**costs.to_json(), "divided_by": 4.0}


def test_a_profile_of_another_network_is_refused_at_the_first_layer_that_differs(tiny: Network) -> None:
    times = Profile.of(tiny, np.ones(8)).layers
    for layers, misfit in [
        (
            (*times[:3], LayerTime("thick", "", 1.0), *times[4:]),
            "layer 3 is 'thick' (of unknown type) in the profile and 'thin' (Convolution) in the network",
        ),
        (
            (*times[:2], LayerTime("relu", "Sigmoid", 1.0), *times[3:]),
            "layer 2 is 'relu' (Sigmoid) in the profile and 'relu' (ReLU) in the network",
        ),
        (times[:6], "layer 6 is missing in the profile and 'grow' (Deconvolution) in the network"),
        ((*times, LayerTime("prob", "Softmax", 1.0)), "layer 8 is 'prob' (Softmax) in the profile and missing in"),
    ]:
        for ask in (Profile.layer_ms, Profile.load_ms):
            with pytest.raises(InputError) as caught:
                ask(Profile("mine", layers), tiny)
            assert str(caught.value).startswith(f"mine: not a profile of tiny: {misfit}")


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf])
def test_a_profile_refuses_impossible_times(tiny: Network, bad: float) -> None:
    with pytest.raises(InputError, match="layer 'pool'"):
        Profile.of(tiny, [1, 1, 1, 1, 1, bad, 1, 1])


# --- On disk --------------------------------------------------------------------------------------------------------


def test_saved_costs_load_as_they_were(tiny: Network, tmp_path: Path) -> None:
    profile = Profile.of(tiny, np.linspace(0.1, 1 / 3, 8), load_ms=0.7, machine={"cpu": "abacus"})
    for costs in (MODEL, profile):
        path = tmp_path / "new" / "costs.json"
        costs.save(path)
        assert load_costs(str(path)) == costs
        assert costs_from_json(json.loads(json.dumps(costs.to_json())), "wire") == costs
        assert [file.name for file in path.parent.iterdir()] == ["costs.json"]


def test_costs_that_cannot_be_written_leave_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="cannot write"):
        MODEL.save(tmp_path / "file" / "costs.json")
    (tmp_path / "full.json").write_text("old", encoding="utf-8")
    (tmp_path / "full.json.part").symlink_to("/dev/full")
    with pytest.raises(InputError, match="cannot write: No space left on device"):
        MODEL.save(tmp_path / "full.json")
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["file", "full.json"]
    assert (tmp_path / "full.json").read_text(encoding="utf-8") == "old"


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        ({"kind": "plan"}, "not a cost model or profile of ionn"),
        ({"schema": 2}, "another version of ionn"),
        ({"loads": []}, "Expected `object`, got `array` - at `$.loads`"),
        ({"machine": {"cpu": 3}}, "Expected `str`, got `int` - at `$.machine[...]`"),
        ({"layers": {"ReLU": 3}}, "Expected `object`, got `int` - at `$.layers[...]`"),
        ({"layers": {"ReLU": {"operations": -1}}}, "ReLU: operations is -1"),
        ({"kind": "profile"}, "Expected `array`, got `object` - at `$.layers`"),
        ({"kind": "profile", "layers": []}, "no layers"),
        ({"kind": "profile", "layers": [{"name": "a", "ms": 1}]}, "missing required field `type` - at `$.layers[0]`"),
        (
            {"kind": "profile", "layers": [{"name": "a", "type": "", "ms": "1", "load_ms": 0}]},
            "Expected `float`, got `str` - at `$.layers[0].ms`",
        ),
    ],
)
def test_malformed_json_is_refused(tmp_path: Path, edit: dict[str, object], reason: str) -> None:
    path = save(tmp_path / "costs.json", json.dumps(MODEL.to_json() | edit))
    message = refusal(path)
    assert message.startswith(f"{path}: ")
    assert reason in message


def test_json_without_a_schema_is_refused() -> None:
    document = MODEL.to_json()
    del document["schema"]
    with pytest.raises(InputError, match="wire: written by another version of ionn"):
        costs_from_json(document, "wire")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(list(MODEL.to_json())), json_values), st.sampled_from(["cost-model", "profile"]))
def test_any_document_is_costs_or_an_input_error(fields: dict[str, object], kind: str) -> None:
    with contextlib.suppress(InputError):
        costs_from_json(MODEL.to_json() | {"kind": kind} | fields, "fuzz")


# --- How fast a device codes, and by how much outputs shrink -------------------------------------------------------


def test_devices_code_as_fast_as_is_assumed_and_say_so() -> None:
    speeds = {name: load_costs(name) for name in device_names()}
    assert {name: (costs.encode_ms_per_mb, costs.decode_ms_per_mb) for name, costs in speeds.items()} == {
        "odroid-xu4": (8, 8),
        "gtx1080ti": (2, 1.5),
    }
    for costs in speeds.values():
        assert costs.to_json()["machine"]["coding"].startswith("assumed, not measured: ")


def test_what_is_known_of_coding_comes_back_from_disk(tiny: Network, tmp_path: Path) -> None:
    ratios = [0.25, None, 1.0, *[None] * 5]
    known: dict[str, Any] = {"encode_ms_per_mb": 2.5, "decode_ms_per_mb": 0.0}
    profile = Profile.of(tiny, 1.0, output_ratios=ratios, **known)
    saved: list[CostModel | Profile] = [profile, dataclasses.replace(MODEL, **known)]
    for number, costs in enumerate(saved):
        path = tmp_path / f"{number}.json"
        costs.save(path)
        read = load_costs(path)
        assert read == costs
        assert (read.encode_ms_per_mb, read.decode_ms_per_mb) == (2.5, 0)
    np.testing.assert_array_equal(profile.output_ratios(tiny), np.array(ratios, np.float64))
    assert np.isnan(MODEL.output_ratios(tiny)).all()
    scaled = Scaled(profile, 5.0)
    assert (scaled.encode_ms_per_mb, scaled.decode_ms_per_mb) == (0.5, 0)
    np.testing.assert_array_equal(scaled.output_ratios(tiny), profile.output_ratios(tiny))
    assert Scaled(MODEL, 5.0).encode_ms_per_mb is Scaled(MODEL, 5.0).decode_ms_per_mb is None


def test_what_is_not_known_of_coding_is_not_written(tiny: Network) -> None:
    """So that costs of earlier versions keep their digest, which names folders of traces."""
    assert set(MODEL.to_json()) == {"kind", "schema", "name", "machine", "layers", "default", "loads"}
    document = Profile.of(tiny, 1.0).to_json()
    assert set(document) == {"kind", "schema", "name", "machine", "layers"}
    assert all(set(layer) == {"name", "type", "ms", "load_ms"} for layer in document["layers"])
    read = costs_from_json(document, "wire")
    assert read.encode_ms_per_mb is read.decode_ms_per_mb is None
    assert np.isnan(read.output_ratios(tiny)).all()


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, 1e10])
@pytest.mark.parametrize("name", ["encode_ms_per_mb", "decode_ms_per_mb"])
def test_speeds_that_are_none_are_refused(name: str, value: float, tiny: Network) -> None:
    changed: Any = {name: value}
    for costs in (MODEL, Profile.of(tiny, 1.0)):
        with pytest.raises(InputError, match=f"{name} is .*; it must be a number"):
            dataclasses.replace(costs, **changed)


@pytest.mark.parametrize("ratio", [0.0, -0.5, 1.01, math.nan])
def test_ratios_that_are_none_are_refused(ratio: float, tiny: Network) -> None:
    with pytest.raises(InputError, match=r"output_ratio of layer 'data' is .*; it must be above 0 and at most 1"):
        Profile.of(tiny, 1.0, output_ratios=[ratio, *[None] * 7])


# --- What a user can name -------------------------------------------------------------------------------------------


def test_devices_by_name() -> None:
    assert device_names() == ["gtx1080ti", "odroid-xu4"]
    for name in device_names():
        assert load_costs(name).name == name
    message = refusal("odroid-xu3")
    assert "devices are gtx1080ti, odroid-xu4; did you mean odroid-xu4?" in message
    assert "did you mean" not in refusal("zzz")
    assert "no such file or device" in refusal("{" * 5000)


@pytest.mark.parametrize("factor", [0.5, 3.0, 0.359381])
def test_costs_of_a_device_that_is_so_many_times_as_fast(factor: float) -> None:
    alexnet, device, scaled = Network.load("alexnet"), load_costs("gtx1080ti"), load_costs(f"{factor}*gtx1080ti")
    for times in ("layer_ms", "load_ms", "fixed_ms"):
        here, there = getattr(device, times)(alexnet), getattr(scaled, times)(alexnet)
        assert there == pytest.approx(here / factor)
    assert scaled.encode_ms_per_mb == pytest.approx((device.encode_ms_per_mb or 0) / factor)
    assert scaled.decode_ms_per_mb == pytest.approx((device.decode_ms_per_mb or 0) / factor)
    assert scaled.name == costs_label(scaled) == f"{factor:g}*gtx1080ti"
    # What a server sends is read as it was, not as the device that it is a multiple of.
    assert costs_from_json(json.loads(json.dumps(scaled.to_json())), "sent") == scaled


def test_a_profile_is_scaled_and_told_from_others_by_its_numbers(tiny: Network, tmp_path: Path) -> None:
    path = tmp_path / "phone.json"
    phone = Profile.of(tiny, np.arange(1.0, len(tiny.layers) + 1), load_ms=6.0, name="phone", decode_ms_per_mb=9.0)
    phone.save(path)
    scaled = load_costs(f"1.5*{path}")
    assert scaled.layer_ms(tiny).tolist() == [ms / 1.5 for ms in phone.layer_ms(tiny).tolist()]
    assert (scaled.load_ms(tiny) == 4).all()
    assert (scaled.encode_ms_per_mb, scaled.decode_ms_per_mb) == (None, 6)
    assert costs_label(scaled) == f"1.5*{costs_label(phone)}"
    assert split_times(costs_label(scaled)) == (1.5, costs_label(phone))
    assert load_costs("1.5*phone.json", tmp_path) == scaled


def test_one_time_as_fast_is_as_fast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_costs("1*gtx1080ti") == load_costs("gtx1080ti")
    monkeypatch.chdir(tmp_path)
    save(Path("2*mine"), "0 data 4")  # a file of that name is what is meant
    assert load_costs("2*mine").name == "2*mine"
    assert load_costs("0.5*2*mine").name == "0.5*2*mine"


@pytest.mark.parametrize("name", ["e*x", "0*x", "2*x", "0.5*gtx1080ti", "2*gtx1080ti", "a\rb\nc", "\u2028x", "\udcff"])
def test_files_of_any_name_are_told_from_multiples(name: str, tmp_path: Path) -> None:
    save(tmp_path / name, "0 data 4")
    save(tmp_path / "x", "0 data 9")
    label = costs_label(load_costs(name, tmp_path))
    assert label.isprintable()
    assert split_times(label) == (1, label)
    assert label.endswith(")")
    times = costs_label(load_costs(f"3*{name}", tmp_path))
    assert split_times(times) == (3, label)


def test_columns_of_files_of_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, ms in (("2*y.csv", 7), ("y.csv", 1)):
        save(tmp_path / name, f"layer,ms\ndata,{ms}")
    for folder in (tmp_path, None):
        assert [layer.ms for layer in load_costs("2*y.csv:ms", folder).layers] == [7]  # type: ignore[union-attr]
        monkeypatch.chdir(tmp_path)


def test_one_number_is_enough() -> None:
    for spec in ("2*3*gtx1080ti", "1*" * 5000 + "gtx1080ti"):
        assert "give one number in N*COSTS" in refusal(spec)


@pytest.mark.parametrize("factor", ["0", "-1", "nan", "inf", "1e4", "1e-4", "fast", "1_0"])
def test_a_factor_that_is_none_is_refused(factor: str) -> None:
    assert "how many times as fast; give a number from 0.001 to 1000" in refusal(f"{factor}*gtx1080ti")


def test_what_is_scaled_must_exist() -> None:
    assert "did you mean gtx1080ti?" in refusal("2*gtx1080t")


def test_server_load_times_of_the_gtx1080ti() -> None:
    network = Network.load("alexnet")
    load_ms = dict(zip((layer.name for layer in network.layers), load_costs("gtx1080ti").load_ms(network), strict=True))
    assert load_ms["conv1"] == pytest.approx(0.7 + 0.003 * 96)
    assert load_ms["fc6"] == pytest.approx(1.3 + 3e-7 * 4096 * (256 * 6 * 6 * 4))
    assert load_ms["relu1"] == 0
    assert not load_costs("odroid-xu4").load_ms(network).any()


def test_text_of_index_name_ms(tiny: Network, tmp_path: Path) -> None:
    lines = "".join(f"{index}\t{layer.name}  {index / 4}\n" for index, layer in enumerate(tiny.layers))
    costs = load_costs(save(tmp_path / "tiny.txt", f"{lines}\n"))
    assert costs.name == "tiny.txt"
    assert (costs.layer_ms(tiny) == np.arange(8) / 4).all()


@pytest.mark.parametrize("line", ["1 relu", "1 relu 2 ms", "one relu 2", "1 relu 2,5", "1 relu -2", "1 relu nan"])
def test_text_lines_that_do_not_parse_are_named(tmp_path: Path, line: str) -> None:
    path = save(tmp_path / "bad.txt", f"0 data 0.1\n{line}\n")
    assert refusal(path).startswith(f"{path}:2: ")


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe\x00", b"{", b"{}", b"[" * 9, b'{"a":' * 100_000])
def test_files_that_are_no_costs_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "odd").write_bytes(content)
    assert "odd" in refusal(str(tmp_path / "odd"))


def test_a_directory_is_refused(tmp_path: Path) -> None:
    assert "cannot read the costs: Is a directory" in refusal(str(tmp_path))


def test_csv_column(tiny: Network, tmp_path: Path) -> None:
    rows = "".join(f"{layer.name},{layer.type},{index}\n" for index, layer in enumerate(tiny.layers))
    path = save(tmp_path / "tiny.csv", f"layer,type,phone_ms\n{rows}")
    costs = load_costs(f"{path}:phone_ms")
    assert costs.name == "tiny.csv:phone_ms"
    assert (costs.layer_ms(tiny) == np.arange(8)).all()
    assert "no column 'watch_ms'; it has layer, type, phone_ms" in refusal(f"{path}:watch_ms")
    assert f"{path}:COLUMN" in refusal(path)
    assert "No such file" in refusal(f"{tmp_path / 'none.csv'}:phone_ms")


@pytest.mark.parametrize("value", ["", "-1", "nan", "fast"])
def test_csv_values_that_are_no_time_are_named(tmp_path: Path, value: str) -> None:
    path = save(tmp_path / "bad.csv", f"layer,phone_ms\ndata,0\nconv1,{value}\n")
    assert refusal(f"{path}:phone_ms").startswith(f"{path}:3: the phone_ms of layer 'conv1' is ")


def test_what_the_csv_reader_refuses_is_named_with_its_line(tmp_path: Path) -> None:
    path = save(tmp_path / "long.csv", f"layer,ms\ndata,0\n{'x' * 200_000},1\n")
    assert f"{path}:2: not a CSV: field larger than field limit" in refusal(f"{path}:ms")


def test_csv_without_layers_is_refused(tmp_path: Path) -> None:
    assert "no column 'layer'" in refusal(save(tmp_path / "a.csv", "name,ms\nconv1,1\n") + ":ms")
    assert "no column 'layer'" in refusal(save(tmp_path / "b.csv", "") + ":ms")
    assert "no layers" in refusal(save(tmp_path / "c.csv", "layer,ms\n") + ":ms")


@needs_reference
def test_published_profiles() -> None:
    alexnet = Network.load("alexnet")
    assert load_costs(f"{PROFILES}/alexnet.csv:odroid_xu4_ms").layer_ms(alexnet).sum() == pytest.approx(821.7, abs=0.1)
    assert "layer 0 is 'data' (Input)" in refusal(f"{PROFILES}/alexnet.csv:odroid_xu4_ms", Network.load("googlenet"))
    assert "gtx1080ti_ms of layer 'input' is empty" in refusal(f"{PROFILES}/mobilenet.csv:gtx1080ti_ms")


def test_layers_without_a_name_or_with_spaces_in_it(tmp_path: Path) -> None:
    """As `ionn profile` prints them."""
    text = (
        'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 } } }'
        'layer { type: "ReLU" bottom: "data" top: "a" }'
        'layer { name: "tan h" type: "TanH" bottom: "a" top: "b" }'
    )
    path = tmp_path / "printed.txt"
    path.write_text("   0 data 0.5\n   1  0.25\n   2 tan h 2\n")
    assert load_costs(str(path)).layer_ms(Network.from_text(text, "net")).tolist() == [0.5, 0.25, 2]
