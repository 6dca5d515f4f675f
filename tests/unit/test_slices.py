from __future__ import annotations

import dataclasses
import math
import os
import platform
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ionn.client.sliced_stage import SlicedStage
from ionn.costs.loading import load_costs
from ionn.costs.models import CostModel, Profile
from ionn.errors import InputError
from ionn.model import engine
from ionn.model.inputs import natural_images
from ionn.model.network import Network
from ionn.model.slices import MOST_ROWS, SMALL_PRODUCT, TILE, Slice, output_channels
from ionn.paper import MODELS
from ionn.planning.coding_costs import Transfer
from ionn.planning.graph import ExecutionGraph
from ionn.planning.slice_costs import SLICE_MS, SlicePlan, Split, slice_plans
from ionn.testbed import runner
from tests.support.chains import raw
from tests.support.machine import weights_of
from tests.support.nets import network_of


def cuts_of(network: Network) -> dict[str, tuple[int, int]]:
    """Stage name -> channels, and the least of a slice."""
    times = [0.0] * len(network.stages)
    return {network.stages[cut.stage].name: (cut.channels, cut.least) for cut in slice_plans(network, times, times)}


FC = "InnerProduct inner_product_param { num_output: 4096 }"
CONV = "Convolution convolution_param { num_output: 256 kernel_size: 3 }"
POOL = "Pooling pooling_param { kernel_size: 2 }"


def test_inner_products_and_convolutions_can_be_cut() -> None:
    assert cuts_of(network_of(FC)) == {"a": (4096, TILE)}
    assert cuts_of(network_of(CONV)) == {"a": (256, TILE)}
    everything = ("*ReLU", "*Dropout", "*TanH", "*Sigmoid", "*ELU", "*Power power_param { scale: 2 }")
    assert cuts_of(network_of(FC, *everything)) == {"a": (4096, TILE)}
    assert cuts_of(network_of(POOL, CONV, "*ReLU", POOL, FC, "Softmax")).keys() == {"b", "e"}
    assert cuts_of(network_of(CONV, "ReLU", "Softmax")).keys() == {"a"}  # the ReLU is a stage of its own


@pytest.mark.parametrize(
    "layers",
    [
        ("InnerProduct inner_product_param { num_output: 4096 transpose: true }",),
        ("InnerProduct inner_product_param { num_output: 4096 axis: 2 }",),
        ("Convolution convolution_param { num_output: 256 kernel_size: 3 group: 2 }",),
        ("Deconvolution convolution_param { num_output: 256 kernel_size: 3 }",),
        (CONV, "*BatchNorm"),  # has weights
        (CONV, "*PReLU"),
        (CONV, "*Scale"),
        (FC, "*Softmax"),  # needs all channels
        ("LRN", "Softmax"),
    ],
)
def test_other_stages_cannot_be_cut(layers: tuple[str, ...]) -> None:
    assert cuts_of(network_of(*layers)) == {}


def test_no_layers_cannot_be_cut() -> None:
    assert output_channels([]) is None


@pytest.mark.parametrize(
    ("layer", "shape", "products_per_channel"),
    [
        ("InnerProduct inner_product_param { num_output: 5000 }", "dim: 1 dim: 1024", 1024),
        ("InnerProduct inner_product_param { num_output: 5000 }", "dim: 4 dim: 256", 4 * 256),
        ("InnerProduct inner_product_param { num_output: 5000 }", "dim: 1 dim: 20 dim: 5 dim: 5", 500),
        (
            "Convolution convolution_param { num_output: 500 kernel_size: 3 pad: 1 }",
            "dim: 1 dim: 9 dim: 8 dim: 8",
            5184,
        ),
        # a product per image
        (
            "Convolution convolution_param { num_output: 500 kernel_size: 3 pad: 1 }",
            "dim: 7 dim: 9 dim: 8 dim: 8",
            5184,
        ),
    ],
)
def test_slices_are_more_than_a_small_product(layer: str, shape: str, products_per_channel: int) -> None:
    ((channels, least),) = cuts_of(network_of(layer, shape=shape)).values()
    assert least % TILE == 0
    assert (least - TILE) * products_per_channel <= SMALL_PRODUCT < least * products_per_channel
    assert channels >= 2 * least


def test_inner_products_of_many_rows_cannot_be_cut() -> None:
    def inner_product(rows: int) -> Network:
        return network_of(FC, shape=f"dim: {rows} dim: 3000")

    assert cuts_of(inner_product(MOST_ROWS)) == {"a": (4096, TILE)}
    assert cuts_of(inner_product(MOST_ROWS + 1)) == {}
    assert cuts_of(network_of(CONV, shape="dim: 20 dim: 256 dim: 14 dim: 14")) == {"a": (256, TILE)}


def test_a_product_of_less_than_two_slices_cannot_be_cut() -> None:
    def inner_product(outputs: int) -> Network:
        return network_of(f"InnerProduct inner_product_param {{ num_output: {outputs} }}", shape="dim: 1 dim: 1024")

    least = 1008  # 977 channels of 1024 products are more than a million; the next multiple of 48
    assert cuts_of(inner_product(2 * least - 1)) == {}
    assert cuts_of(inner_product(2 * least)) == {"a": (2 * least, least)}


def test_stages_of_the_five_models() -> None:
    assert {model: list(cuts_of(Network.load(model))) for model in MODELS} == {
        "alexnet": ["conv1", "conv3", "fc6", "fc7", "fc8"],
        "inception": ["fc1"],
        "resnet": [],
        "googlenet": ["conv2/3x3"],
        "mobilenet": [],
    }


@given(st.integers(2, 200), st.integers(1, 20), st.integers(0, TILE - 1), st.data())
def test_slices_are_whole_tiles_and_large_enough(tiles: int, least: int, over: int, data: st.DataObject) -> None:
    channels = max(tiles, 2 * least) * TILE + over
    cut = SlicePlan(0, channels, least * TILE, 0.0, 0.0, 0.0)
    slices = data.draw(st.integers(1, cut.most_slices()))
    ends = cut.ends(slices)
    sizes = np.diff([0, *ends])
    assert len(ends) == slices
    assert ends[-1] == channels
    assert all(end % TILE == 0 for end in ends[:-1])
    assert min(sizes) >= cut.least
    assert max(sizes) - channels / slices < TILE


@pytest.mark.parametrize(
    "change",
    [
        {"channels": 4 * TILE - 1, "least": 2 * TILE},
        {"least": TILE + 1},
        {"least": 0},
        {"slice_ms": -1.0},
        {"client_fixed_ms": math.nan},
    ],
)
def test_what_is_not_a_cut_is_an_input_error(change: dict[str, Any]) -> None:
    numbers = {"stage": 0, "channels": 500, "least": TILE, "client_fixed_ms": 0.0, "server_fixed_ms": 0.0}
    with pytest.raises(InputError, match="not a cut"):
        SlicePlan(**{**numbers, "slice_ms": 0.0, **change})


# --- What a split stage takes ---------------------------------------------------------------------------------------


Tasks = dict[str, tuple[str, float, tuple[str, ...]]]


def schedule(tasks: Tasks) -> int:
    """When the last of tasks ends: name -> (what it occupies, how long, what it waits for). Ticks of 1; whatever is
    occupied works on one task at a time, the one that is first in `tasks`."""
    left = {name: ms for name, (_, ms, _) in tasks.items()}
    done: set[str] = set()
    now = 0
    while True:
        while ended := {n for n, ms in left.items() if ms == 0 and done.issuperset(tasks[n][2])} - done:
            done |= ended
        if len(done) == len(tasks):
            return now
        busy: set[str] = set()
        for name, (what, _, waits) in tasks.items():
            if left[name] > 0 and done.issuperset(waits) and what not in busy:
                busy.add(what)
                left[name] -= 1
        now += 1


def tasks_of(split: Split, from_server: bool, to_server: bool) -> Tasks:
    """What is coded is coded and decoded by the side that sends and the one that gets it, before it computes on, or
    after."""
    (sender, receiver), (way, back) = ("client", "server"), ("uplink", "downlink")
    if from_server:
        (sender, receiver), (way, back) = (receiver, sender), (back, way)
    computes_ms = {"client": split.client_ms, "server": split.server_ms}
    there, output = split.transfers(from_server, to_server)
    giver, taker = ("client", "server") if to_server else ("server", "client")
    return {
        "encode input": (sender, there.encode_ms, ()),
        "input": (way, there.link_ms, ("encode input",)),
        "decode input": (receiver, there.decode_ms, ("input",)),
        sender: (sender, computes_ms[sender], ("encode input",)),
        receiver: (receiver, computes_ms[receiver], ("decode input",)),
        "encode output": (giver, output.encode_ms, (giver,)),
        "output": ("uplink" if to_server else "downlink", output.link_ms, ("encode output",)),
        "decode output": (taker, output.decode_ms, ("output", taker)),
    }


WAYS = [(False, False), (False, True), (True, False), (True, True)]
TRANSFERS = st.builds(Transfer, *[st.integers(0, 9)] * 3, st.just(0), st.just(0))
SPLITS = st.builds(Split, *[st.integers(0, 9)] * 2, *[TRANSFERS] * 4)


@given(SPLITS, st.sampled_from(WAYS))
def test_the_four_ways_equal_a_simulation_in_ticks(split: Split, way: tuple[bool, bool]) -> None:
    assert split.end_ms(*way) == schedule(tasks_of(split, *way))
    assert split.end_ms(*way, start_ms=100) == 100 + split.end_ms(*way)


def test_the_four_ways_by_hand() -> None:
    split = Split(10, 2, raw(5), raw(3), raw(4), raw(6))
    assert split.end_ms(False, False) == 5 + 2 + 6
    assert split.end_ms(False, True) == 10 + 4
    assert split.end_ms(True, False) == 3 + 10
    assert split.end_ms(True, True) == 3 + 10 + 4
    idle = dataclasses.replace(split, client_ms=0, server_ms=0)
    assert idle.end_ms(False, True) == 5 + 4  # the uplink is not free before
    assert idle.end_ms(True, False) == 3 + 6


def test_the_four_ways_with_coding_by_hand() -> None:
    coded = [Transfer(1.0, ms, 2.0, 0, 0) for ms in (5.0, 3.0, 4.0, 6.0)]
    split = Split(10, 2, *coded)
    assert split.end_ms(False, False) == (1 + 5 + 2) + 2 + (1 + 6 + 2)
    assert split.end_ms(False, True) == (1 + 10) + (1 + 4 + 2)
    assert split.end_ms(True, False) == (1 + 3 + 2) + 10 + 2  # and decodes the server's channels
    assert split.end_ms(True, True) == (1 + 3 + 2) + 10 + (1 + 4 + 2)


@given(SPLITS, TRANSFERS, TRANSFERS, st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_to_come_or_to_go_by_way_of_the_other_side_is_never_faster(
    split: Split, up: Transfer, down: Transfer, share: float
) -> None:
    """Why the fastest path starts a split stage where its input is, and joins it where its output is wanted."""
    split = dataclasses.replace(split, output_up=up.part(1 - share), output_down=down.part(share))
    for to_server in (False, True):
        assert split.end_ms(False, to_server) <= split.input_up.total_ms + split.end_ms(True, to_server)
        assert split.end_ms(True, to_server) <= split.input_down.total_ms + split.end_ms(False, to_server)
    for from_server in (False, True):
        assert split.end_ms(from_server, False) <= split.end_ms(from_server, True) + down.total_ms
        assert split.end_ms(from_server, True) <= split.end_ms(from_server, False) + up.total_ms


# --- What the sides need in full ------------------------------------------------------------------------------------


def test_fixed_times_are_those_of_features_without_channels() -> None:
    device = CostModel(
        "device",
        {"Convolution": {"operations": 1e-6, "im2col_bytes": 1e-5, "constant": 3.0}, "InnerProduct": {"constant": 1.0}},
        {"operations": 1e-6, "constant": 0.5},
    )
    network = network_of(CONV, "*ReLU", FC)
    columns = 256 * 9 * 12 * 12 * 4
    assert device.fixed_ms(network).tolist() == pytest.approx([0.5, columns * 1e-5 + 3, 0.5, 1])
    assert Profile.of(network, np.ones(4)).fixed_ms(network).tolist() == [0, 0, 0, 0]
    graph = ExecutionGraph.from_network(network, device, Profile.of(network, np.arange(4)), 80.0)
    conv, fc = graph.cuts
    assert conv.client_fixed_ms == pytest.approx(columns * 1e-5 + 3.5)
    assert (conv.server_fixed_ms, conv.slice_ms, fc.client_fixed_ms) == (0, SLICE_MS, 1)
    # The halves of a device's cost model are what it predicts for a layer with half of the channels.
    half = network_of(CONV.replace("256", "128"), "*ReLU", FC)
    split = graph.split(conv.stage, 128)
    assert split.client_ms == pytest.approx(device.layer_ms(half)[1:3].sum())


def test_halves_of_the_papers_devices_equal_their_prediction() -> None:
    whole, half = network_of(CONV, "*ReLU"), network_of(CONV.replace("256", "128"), "*ReLU")
    client, server = load_costs("odroid-xu4"), load_costs("gtx1080ti")
    split = ExecutionGraph.from_network(whole, client, server, 80.0).split(1, 128)
    halves = ExecutionGraph.from_network(half, client, server, 80.0)
    assert split.client_ms == pytest.approx(halves.client_ms[1], rel=0.01)
    assert split.server_ms == pytest.approx(halves.server_ms[1], rel=0.01)
    assert split.output_up == split.output_down
    assert split.output_up.total_ms == pytest.approx(halves.up_ms[2])


# --- Exactness, with Caffe ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        ("InnerProduct inner_product_param { num_output: 2100 }", "dim: 1 dim: 1024"),
        ("InnerProduct inner_product_param { num_output: 1200 }", f"dim: {MOST_ROWS} dim: 1500"),
        ("InnerProduct inner_product_param { num_output: 300 bias_term: false }", "dim: 2 dim: 64 dim: 9 dim: 9"),
        ("Convolution convolution_param { num_output: 200 kernel_size: 3 pad: 1 }", "dim: 2 dim: 32 dim: 12 dim: 12"),
        ("Convolution convolution_param { num_output: 100 kernel_size: 1 }", "dim: 1 dim: 96 dim: 28 dim: 28"),
        ("Convolution convolution_param { num_output: 500 kernel_size: 5 }", "dim: 1 dim: 64 dim: 7 dim: 8"),
    ],
)
def test_slices_concatenate_to_the_stage_bit_for_bit(layer: str, shape: str) -> None:
    network = network_of(layer, "*ReLU", "*Dropout", shape=shape)
    (cut,) = slice_plans(network, [0.0] * 2, [0.0] * 2)
    rng = np.random.default_rng(5)
    blobs = [rng.standard_normal(shape).astype(np.float32) for shape in network.layers[1].weight_shapes]
    data = rng.standard_normal(network.input_shape).astype(np.float32)
    (whole,) = engine.forward(engine.load_network(network, {"a": blobs}), data)
    parts, begin = [], 0
    for end in cut.ends(cut.most_slices()):
        part = network_of(layer.replace(f": {cut.channels} ", f": {end - begin} "), "*ReLU", "*Dropout", shape=shape)
        net = engine.load_network(part, {"a": [blob[begin:end] for blob in blobs]})
        parts += engine.forward(net, data)
        begin = end
    assert len(parts) > 1
    assert np.array_equal(np.concatenate(parts, axis=1).view(np.uint32), whole.view(np.uint32))


CPU_FLAGS = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
KERNELS = {
    "x86_64": {"Nehalem": "sse4_2", "Sandybridge": "avx", "Haswell": "avx2", "SkylakeX": "avx512vl"},
    "aarch64": dict.fromkeys(("ARMV8", "CORTEXA53", "CORTEXA57", "CORTEXA72", "NEOVERSEN1", "THUNDERX2T99"), ""),
}[platform.machine()]
"""OpenBLAS's, and a flag of the CPUs that have them, if not all of this architecture do."""


@pytest.mark.parametrize(
    "kernels", [pytest.param(name, marks=[] if name == "Haswell" else pytest.mark.long) for name in KERNELS]
)
def test_slices_are_exact_with_other_kernels(kernels: str) -> None:
    if KERNELS[kernels] and KERNELS[kernels] not in CPU_FLAGS:
        pytest.skip(f"this CPU has no {KERNELS[kernels]}")
    chosen = "concatenate or (slices_of_the_models and googlenet)"
    tests = ["-k", chosen, "-o", "addopts=", "-p", "no:cacheprovider", "--timeout", "0", __file__]
    environment = {**os.environ, "OPENBLAS_CORETYPE": kernels}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *tests], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("model", ["alexnet", "inception", "googlenet"])
def test_slices_of_the_models_are_exact(model: str) -> None:
    network = Network.load(model)
    whole = engine.read_network(network, weights_of(model))
    whole.put(0, natural_images(network.input_shape, 1))
    cuts = {cut.stage: cut for cut in slice_plans(network, *[[0.0] * len(network.stages)] * 2)}
    assert cuts
    for stage in range(max(cuts) + 1):
        if cut := cuts.get(stage):
            data = whole.outputs(stage - 1)[0].copy()
            whole.run(stage, stage)
            ends = cut.ends(cut.most_slices())
            slices = [Slice(stage, begin, end) for begin, end in zip([0, *ends], ends, strict=False)]
            assert SlicedStage(network, slices, whole).exact(data, whole.outputs(stage)[0]), network.stages[stage]
        else:
            whole.run(stage, stage)


# --- What docs/slicing.md states ------------------------------------------------------------------------------------


def traces_of(model: str) -> dict[str, tuple[int, float]]:
    """Algorithm -> queries before the upload ended, and the largest partition's share of the model."""
    algorithms = ("original", "recursive-efficiency", "sliced-efficiency")
    rows = {}
    for trace in runner.run_virtual_all(model, algorithms):
        largest = max(partition.bytes for partition in trace.partitions)
        rows[trace.info.algorithm] = trace.queries_before_upload, largest / trace.info.plan.model_bytes
    return rows


def test_alexnet_completes_twice_as_many_queries_as_with_original() -> None:
    rows = traces_of("alexnet")
    assert rows["sliced-efficiency"][0] >= 2 * rows["original"][0]
    assert rows["sliced-efficiency"][1] <= 0.1


def test_inception_completes_a_third_more_queries_than_with_recursive_efficiency() -> None:
    rows = traces_of("inception")
    assert rows["sliced-efficiency"][0] >= Fraction(135, 100) * rows["recursive-efficiency"][0]
    assert rows["sliced-efficiency"][1] <= 0.1


@pytest.mark.parametrize("model", MODELS)
def test_no_model_completes_fewer_queries(model: str) -> None:
    rows = traces_of(model)
    assert rows["sliced-efficiency"][0] >= rows["recursive-efficiency"][0]
