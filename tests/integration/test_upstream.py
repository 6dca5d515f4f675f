"""What is written for BVLC's Caffe: the Caffe that ionn runs computes it, or a line names the difference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ionn.errors import InputError
from ionn.model.engine import StageNet
from ionn.model.layers import Shape
from ionn.model.network import Network
from ionn.model.partial_net import extract_net
from ionn.protocol.messages import PartitionHeader
from ionn.server.admission import Usage, check_partition
from ionn.server.limits import Limits
from tests.support.oracle import Oracle, Question

pytest.importorskip("caffe")

SQUARE = (1, 1, 5, 5)


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    with Oracle() as oracle:
        yield oracle


def net(shape: Shape, *layers: str) -> str:
    """A net of an Input layer with the top "x", and the layers."""
    dims = " ".join(f"dim: {size}" for size in shape)
    source = f'layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ {dims} }} }} }}'
    return "\n".join([source, *(f"layer {{ {layer} }}" for layer in layers)])


def pooled(shape: Shape, params: str) -> str:
    return net(shape, f'name: "y" type: "Pooling" bottom: "x" top: "y" pooling_param {{ {params} }}')


def numbers(shape: Shape) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


def run(text: str, data: np.ndarray) -> np.ndarray:
    """What Caffe computes of a net as ionn gives it to it."""
    network = Network.from_text(text, "net")
    staged = StageNet(extract_net(network, 0, len(network.stages) - 1))
    staged.put(0, data)
    staged.run(0, len(network.stages) - 1)
    (output,) = staged.outputs(len(network.stages) - 1)
    assert output.shape == network.stages[-1].output_shapes[0]
    return output.copy()


def windows(data: np.ndarray, floor: bool) -> Iterator[tuple[int, int, np.ndarray]]:
    """The places and values of windows of 2x2 and stride 2 in a square image, as BVLC's pooling counts them."""
    size = data.shape[-1]
    places = range(size // 2 if floor else -(-size // 2))
    for row in places:
        for column in places:
            yield row, column, data[0, 0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]


@pytest.mark.parametrize(("round_mode", "size"), [("FLOOR", 2), ("CEIL", 3), ("1", 2)])
@pytest.mark.parametrize(("pool", "reduce"), [("MAX", np.max), ("AVE", np.mean)])
def test_round_mode(round_mode: str, size: int, pool: str, reduce: Callable[[np.ndarray], Any]) -> None:
    data = numbers(SQUARE)
    output = run(pooled(SQUARE, f"kernel_size: 2 stride: 2 pool: {pool} round_mode: {round_mode}"), data)
    assert output.shape == (1, 1, size, size)
    for row, column, window in windows(data, floor=size == 2):
        assert output[0, 0, row, column] == pytest.approx(reduce(window), rel=1e-6)


@settings(max_examples=150)
@given(
    sizes=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    kernel=st.integers(0, 5),
    stride=st.integers(1, 5),
    pad=st.integers(0, 3),
    pool=st.sampled_from(["MAX", "AVE"]),
    floor=st.booleans(),
)
def test_round_mode_is_what_caffe_makes_of_its_ceil_mode(
    sizes: tuple[int, int], kernel: int, stride: int, pad: int, pool: str, floor: bool, oracle: Oracle
) -> None:
    shape = (2, 3, *sizes)
    window = f"kernel_size: {kernel} stride: {stride} pad: {pad} pool: {pool}"
    text = pooled(shape, f"{window} round_mode: {'FLOOR' if floor else 'CEIL'}")
    as_caffe = pooled(shape, f"{window} ceil_mode: {'false' if floor else 'true'}")
    data = numbers(shape)
    try:
        output = run(text, data)
    except InputError:
        assert oracle.compute(Question(as_caffe, fatal=True)) is None
        return
    truth = oracle.compute(Question(as_caffe, [data]))
    assert truth is not None
    np.testing.assert_array_equal(output, truth.outputs[0]["y"])


def test_a_server_gives_no_round_mode_to_caffe_which_would_abort() -> None:
    """A client of ours sends `ceil_mode` already; a stranger may send the text that a user wrote."""
    text = pooled(SQUARE, "kernel_size: 2 stride: 2 round_mode: FLOOR")
    partial = extract_net(Network.from_text(text, "net"), 0, 1)
    assert "ceil_mode: false" in partial.prototxt
    for sent in (partial.prototxt, text):
        header = PartitionHeader(0, (replace(partial, prototxt=sent),), (), 0)
        (checked,) = check_partition(header, Limits(), Usage(0, 0, 0), {})
        assert "ceil_mode: false" in checked.net.prototxt
        assert "round_mode" not in checked.net.prototxt


@pytest.mark.parametrize(("round_mode", "ceil_mode"), [("FLOOR", "true"), ("CEIL", "false")])
def test_round_mode_and_ceil_mode_contradict(round_mode: str, ceil_mode: str) -> None:
    text = pooled(SQUARE, f"kernel_size: 2 round_mode: {round_mode} ceil_mode: {ceil_mode}")
    with pytest.raises(InputError) as caught:
        Network.from_text(text, "net")
    assert str(caught.value) == (
        "net: layer 'y' of type 'Pooling': its round_mode and its ceil_mode contradict each other; give one of them"
    )


@pytest.mark.parametrize(("round_mode", "ceil_mode", "size"), [("FLOOR", "false", 2), ("CEIL", "true", 3)])
def test_round_mode_and_ceil_mode_agree(round_mode: str, ceil_mode: str, size: int) -> None:
    text = pooled(SQUARE, f"kernel_size: 2 stride: 2 round_mode: {round_mode} ceil_mode: {ceil_mode}")
    assert run(text, numbers(SQUARE)).shape == (1, 1, size, size)


@pytest.mark.parametrize(
    "layer", ['type: "Clip" clip_param { min: 0 max: 6 }', 'type: "Swish" swish_param { beta: 2 }']
)
def test_types_that_only_bvlcs_caffe_has(layer: str) -> None:
    with pytest.raises(
        InputError, match=r"^net: layer 'y' of type '(Clip|Swish)': BVLC's Caffe has this type.*caffe\.md"
    ):
        Network.from_text(net(SQUARE, f'name: "y" {layer} bottom: "x" top: "y"'), "net")


def test_what_docs_caffe_md_says_to_use_for_clip_and_swish() -> None:
    data = 5 * numbers(SQUARE)
    clip = net(
        SQUARE,
        'name: "down" type: "Power" bottom: "x" top: "y" power_param { shift: 1.5 }',
        'name: "cut" type: "ReLU6" bottom: "y" top: "y" relu6_param { threshold: 3.75 }',
        'name: "up" type: "Power" bottom: "y" top: "y" power_param { shift: -1.5 }',
    )
    np.testing.assert_allclose(run(clip, data), np.clip(data, -1.5, 2.25), atol=1e-6)
    swish = net(
        SQUARE,
        'name: "scale" type: "Power" bottom: "x" top: "s" power_param { scale: 2 }',
        'name: "gate" type: "Sigmoid" bottom: "s" top: "s"',
        'name: "product" type: "Eltwise" bottom: "x" bottom: "s" top: "y" eltwise_param { operation: PROD }',
    )
    np.testing.assert_allclose(run(swish, data), data / (1 + np.exp(-2 * data)), rtol=1e-5)


def test_a_stride_of_one_axis_only() -> None:
    """BVLC's Caffe aborts on it: its other stride is 0 then."""
    params = "convolution_param { num_output: 2 kernel_size: 1 stride_h: 2 }"
    text = net(SQUARE, f'name: "y" type: "Convolution" bottom: "x" top: "y" {params}')
    assert run(text, numbers(SQUARE)).shape == (1, 2, 3, 5)


def test_what_has_other_last_bits(oracle: Oracle) -> None:
    """Of the formulas that BVLC's Caffe has for them, in double precision."""
    data = 5 * numbers(SQUARE)
    sigmoid = run(net(SQUARE, 'name: "y" type: "Sigmoid" bottom: "x" top: "y"'), data)
    np.testing.assert_allclose(sigmoid, 0.5 * np.tanh(0.5 * data.astype(float)) + 0.5, rtol=1e-6)
    shape = (1, 9, 2, 2)
    data = numbers(shape)
    mean, variance = numbers((2, 9)) ** 2
    weights = {"y": [mean, variance, np.ones(1, np.float32)]}
    text = net(shape, 'name: "y" type: "BatchNorm" bottom: "x" top: "y"')
    truth = oracle.compute(Question(text, [data], weights))
    assert truth is not None
    wanted = (data - mean[:, None, None]) / np.sqrt(variance.astype(float) + 1e-5)[:, None, None]
    np.testing.assert_allclose(truth.outputs[0]["y"], wanted, rtol=1e-6)
