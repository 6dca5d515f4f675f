from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ionn.caffemodel import read, read_weights, serialise
from ionn.errors import InputError
from ionn.network import Network
from ionn.proto import caffe_pb2

Weights = dict[str, tuple[np.ndarray, ...]]


def test_what_caffe_saves_is_read(tiny: Network, tiny_files: Path, tmp_path: Path) -> None:
    import caffe

    net = caffe.Net(str(tiny_files), caffe.TEST)
    for blobs in net.params.values():
        for blob in blobs:
            blob.data[...] = np.random.default_rng(1).standard_normal(blob.data.shape)
    saved = tmp_path / "saved.caffemodel"
    net.save(str(saved))

    weights = read_weights(saved, tiny)

    assert set(weights) == set(net.params)
    for name, blobs in weights.items():
        for got, wanted in zip(blobs, net.params[name], strict=True):
            np.testing.assert_array_equal(got, wanted.data)


def test_what_is_serialised_loads_in_caffe(tiny_files: Path, tiny_weights: Weights) -> None:
    import caffe

    net = caffe.Net(str(tiny_files), str(tiny_files.with_suffix(".caffemodel")), caffe.TEST)

    for name, blobs in tiny_weights.items():
        for wanted, got in zip(blobs, net.params[name], strict=True):
            np.testing.assert_array_equal(got.data, wanted)


def test_blob_spans_point_at_the_floats(tiny: Network, tiny_weights: Weights) -> None:
    model = serialise("tiny", tiny.layers, tiny_weights)
    data = model.tobytes()

    assert len(data) == model.size
    assert [(span.layer, span.blob) for span in model.blobs] == [
        (name, index) for name, blobs in tiny_weights.items() for index in range(len(blobs))
    ]
    for span in model.blobs:
        assert data[span.offset : span.offset + span.size] == tiny_weights[span.layer][span.blob].tobytes()


@pytest.mark.parametrize("chunk_bytes", [1, 997, 10**9])
def test_chunks_are_the_file_in_order(tiny: Network, tiny_weights: Weights, chunk_bytes: int) -> None:
    model = (
        serialise("tiny", [tiny.layers[1]], tiny_weights)
        if chunk_bytes == 1
        else serialise("tiny", tiny.layers, tiny_weights)
    )
    data = b""
    for offset, parts in model.chunks(chunk_bytes):
        assert offset == len(data)
        chunk = b"".join(parts)
        assert 0 < len(chunk) <= chunk_bytes
        data += chunk
    assert data == model.tobytes()


def test_unpacked_floats_doubles_and_legacy_shapes(tmp_path: Path) -> None:
    layer = caffe_pb2.LayerParameter(name="ip", type="InnerProduct")
    layer.blobs.add(num=1, channels=1, height=2, width=3, data=[1, 2, 3, 4, 5, 6])
    layer.blobs.add(shape=caffe_pb2.BlobShape(dim=[2]), double_data=[0.5, 0.25])
    path = tmp_path / "old.caffemodel"
    path.write_bytes(caffe_pb2.NetParameter(layer=[layer]).SerializeToString())
    network = Network.from_text(
        'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 } } }'
        'layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 2 } }',
        "old",
    )

    weight, bias = read_weights(path, network)["ip"]

    np.testing.assert_array_equal(weight, [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(bias, [0.5, 0.25])


def test_v1_layers_are_read(tmp_path: Path) -> None:
    layer = caffe_pb2.V1LayerParameter(name="ip")
    layer.blobs.add(shape=caffe_pb2.BlobShape(dim=[2]), data=[3, 4])
    path = tmp_path / "v1.caffemodel"
    path.write_bytes(caffe_pb2.NetParameter(layers=[layer]).SerializeToString())

    np.testing.assert_array_equal(read(path)["ip"][0], [3, 4])


def test_weights_that_do_not_fit(tiny: Network, tiny_files: Path, tiny_weights: Weights) -> None:
    path = tiny_files.with_suffix(".caffemodel")
    path.write_bytes(serialise("tiny", [la for la in tiny.layers if la.name != "fc2"], tiny_weights).tobytes())
    with pytest.raises(InputError, match=r"tiny.caffemodel: no weights for layer 'fc2'"):
        read_weights(path, tiny)
    path.write_bytes(serialise("tiny", tiny.layers, {**tiny_weights, "fc2": tiny_weights["fc1"]}).tobytes())
    with pytest.raises(InputError, match=r"layer 'fc2' have shapes .*wants"):
        read_weights(path, tiny)


def test_damaged_files(tiny: Network, tiny_files: Path) -> None:
    path = tiny_files.with_suffix(".caffemodel")
    whole = path.read_bytes()
    for data in (b"", b"\x00", b"not a model at all", whole[:-1], whole[:1000]):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"tiny\.caffemodel: "):
            read_weights(path, tiny)
    path.unlink()
    with pytest.raises(InputError, match="no such caffemodel"):
        read_weights(path, tiny)
