from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ionn.model import engine
from ionn.model.network import Network
from ionn.model.partial_net import extract
from tests.support.forward import Weights, boundary_blobs


@pytest.fixture
def data() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((1, 3, 24, 24)).astype(np.float32)


def test_every_run_of_stages_is_a_net_for_stock_caffe(
    tiny: Network, tiny_weights: Weights, data: np.ndarray, tmp_path: Path
) -> None:
    import caffe

    blobs = boundary_blobs(tiny, tiny_weights, data)
    offloadable = [stage.index for stage in tiny.stages if not stage.pinned]
    for first in offloadable:
        for last in range(first, offloadable[-1] + 1):
            partition = extract(tiny, range(first, last + 1), tiny_weights)
            (partial,) = partition.nets
            (tmp_path / "p.prototxt").write_text(partial.prototxt)
            (tmp_path / "p.caffemodel").write_bytes(partition.caffemodel.tobytes())
            net = caffe.Net(str(tmp_path / "p.prototxt"), str(tmp_path / "p.caffemodel"), caffe.TEST)

            output = net.forward(**{partial.input: blobs[first]})[tiny.stages[last].outputs[0]]

            np.testing.assert_array_equal(output, blobs[last + 1])


def test_a_partition_of_several_runs_has_a_net_for_each(tiny: Network, tiny_weights: Weights) -> None:
    partition = extract(tiny, [1, 3, 4], tiny_weights)

    assert [[stage.index for stage in net.stages] for net in partition.nets] == [[1], [3, 4]]
    layers = {span.layer for span in partition.caffemodel.blobs}
    assert layers == {layer for stage in (1, 3, 4) for layer in tiny.stages[stage].layers if layer in tiny_weights}


def test_any_part_of_a_net_can_run(tiny: Network, tiny_weights: Weights, data: np.ndarray) -> None:
    blobs = boundary_blobs(tiny, tiny_weights, data)
    net = engine.load_network(tiny, tiny_weights)
    for first in range(len(tiny.stages)):
        for last in range(first, len(tiny.stages)):
            net.put(first, blobs[first])
            stage_ms = net.run(first, last)
            assert len(stage_ms) == last - first + 1
            np.testing.assert_array_equal(net.outputs(last)[0], blobs[last + 1])
