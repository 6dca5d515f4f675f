from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ionn.errors import InputError
from ionn.model import caffemodel, engine
from ionn.model.caffemodel import open_weights, read_weights, serialise, serialise_blobs, weights_path
from ionn.model.network import Network
from ionn.model.proto import BlobShape, LayerParameter, NetParameter, V1LayerParameter
from tests.support.caffemodels import read

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


@pytest.mark.parametrize("before", [b"", b"\x0a\x01n"], ids=["without a name", "with a name"])
def test_the_oldest_format_is_named(before: bytes, tiny: Network, tmp_path: Path) -> None:
    """A layer of it is a message in one of the next format: there has been no Caffe for years that writes it."""
    layer = b"\x0a\x05conv1" + b"\x12\x04conv"
    layers = b"\x0a" + bytes([len(layer)]) + layer
    path = tmp_path / "old.caffemodel"
    path.write_bytes(before + b"\x12" + bytes([len(layers)]) + layers)
    with pytest.raises(InputError, match=r"old\.caffemodel: .* oldest format; .* upgrade_net_proto_binary"):
        read_weights(path, tiny)


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


def test_what_is_serialised_is_no_longer_than_protobufs_own(tiny: Network) -> None:
    """So no length is written in more bytes than it needs."""
    for floats in range(1, 40):
        made = serialise_blobs("net", [(tiny.layers[1], [np.ones(floats, np.float32)], ())])
        assert made.size == len(made.tobytes()) == NetParameter.FromString(made.tobytes()).ByteSize()


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
    layer = LayerParameter(name="ip", type="InnerProduct")
    layer.blobs.add(num=1, channels=1, height=2, width=3, data=[1, 2, 3, 4, 5, 6])
    layer.blobs.add(shape=BlobShape(dim=[2]), double_data=[0.5, 0.25])
    path = tmp_path / "old.caffemodel"
    path.write_bytes(NetParameter(layer=[layer]).SerializeToString())
    network = Network.from_text(
        'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 } } }'
        'layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 2 } }',
        "old",
    )

    weight, bias = read_weights(path, network)["ip"]

    np.testing.assert_array_equal(weight, [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(bias, [0.5, 0.25])
    for got, wanted in zip(engine.read_network(network, path).weights()["ip"], (weight, bias), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_v1_layers_are_read(tmp_path: Path) -> None:
    layer = V1LayerParameter(name="ip")
    layer.blobs.add(shape=BlobShape(dim=[2]), data=[3, 4])
    path = tmp_path / "v1.caffemodel"
    path.write_bytes(NetParameter(layers=[layer]).SerializeToString())

    np.testing.assert_array_equal(read(path)["ip"][0], [3, 4])


@pytest.mark.parametrize("kind", ["data", "double_data"])
def test_layers_of_two_formats_are_refused(tmp_path: Path, kind: str) -> None:
    """Stock Caffe ends the process where a file has both, so neither is right."""
    layers: list[Any] = [LayerParameter(name="ip"), V1LayerParameter(name="ip")]
    for layer in layers:
        layer.blobs.add(shape=BlobShape(dim=[2]), **{kind: [3, 4]})
    path = tmp_path / "both.caffemodel"
    path.write_bytes(NetParameter(layer=layers[:1], layers=layers[1:]).SerializeToString())

    with pytest.raises(InputError, match=r"both\.caffemodel: .* two formats"):
        read(path)


def test_weights_are_read_into_a_net(tiny: Network, tiny_files: Path, tiny_weights: Weights) -> None:
    weights = engine.read_network(tiny, tiny_files.with_suffix(".caffemodel")).weights()
    assert weights.keys() == tiny_weights.keys()
    for name, blobs in tiny_weights.items():
        for got, wanted in zip(weights[name], blobs, strict=True):
            np.testing.assert_array_equal(got, wanted)


def test_weights_may_come_in_pieces(
    tiny: Network, tiny_files: Path, tiny_weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system may give fewer bytes than it is asked for."""
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, buffers, at: preadv(file, [buffers[0][:1000]], at))
    weights = read_weights(tiny_files.with_suffix(".caffemodel"), tiny)
    for name, blobs in tiny_weights.items():
        for got, wanted in zip(weights[name], blobs, strict=True):
            np.testing.assert_array_equal(got, wanted)


def test_nothing_is_built_for_weights_that_do_not_fit(
    tiny: Network, tiny_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_files.with_suffix(".caffemodel")
    path.write_bytes(path.read_bytes()[:-1])
    monkeypatch.setattr(engine, "new_network", lambda network: pytest.fail("was built"))
    with pytest.raises(InputError, match=r"tiny\.caffemodel: not a caffemodel, or damaged \(truncated\)"):
        engine.read_network(tiny, path)


def test_errors_of_who_reads_are_their_own(tiny: Network, tiny_files: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"^of the reader$"),
        open_weights(tiny_files.with_suffix(".caffemodel"), tiny),
    ):
        raise ValueError("of the reader")


def test_a_network_without_weights_needs_no_file(tmp_path: Path) -> None:
    network = Network.from_text(
        'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 } } }'
        'layer { name: "prob" type: "Softmax" bottom: "data" top: "prob" }',
        "none",
    )
    assert read_weights(tmp_path / "none.caffemodel", network) == {}
    assert engine.read_network(network, tmp_path / "none.caffemodel").weights() == {}


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


INNER_PRODUCT = Network.from_text(
    'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 } } }'
    'layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" '
    "inner_product_param { num_output: 2 bias_term: false } }",
    "one",
)


def saved(path: Path, layer: Any) -> Path:
    kind = "layers" if isinstance(layer, V1LayerParameter) else "layer"
    path.write_bytes(NetParameter(**{kind: [layer]}).SerializeToString())
    return path


@pytest.mark.parametrize("kind", ["data", "double_data"])
@pytest.mark.parametrize(
    ("legacy", "fits"),
    [
        ((1, 1, 2, 3), True),
        ((2, 1, 1, 3), False),  # padded at another place
        ((1, 1, 3, 2), False),
        ((1, 2, 1, 3), False),
        ((1, 1, 1, 6), False),
        ((1, 1, 2, 4), False),  # more than there is
        ((2, 3), False),  # heights and widths of 0
    ],
)
def test_legacy_shapes_are_those_of_caffe(tmp_path: Path, legacy: tuple[int, ...], fits: bool, kind: str) -> None:
    layer = LayerParameter(name="ip")
    names = ("num", "channels", "height", "width")
    layer.blobs.add(**dict(zip(names, legacy, strict=False)), **{kind: [1, 2, 3, 4, 5, 6]})
    path = saved(tmp_path / "one.caffemodel", layer)
    if fits:
        np.testing.assert_array_equal(read_weights(path, INNER_PRODUCT)["ip"][0], [[1, 2, 3], [4, 5, 6]])
    else:
        with pytest.raises(InputError, match=r"have shapes|or damaged"):
            read_weights(path, INNER_PRODUCT)


@pytest.mark.parametrize("kind", ["data", "double_data"])
def test_a_legacy_shape_counts_where_there_are_both(tmp_path: Path, kind: str) -> None:
    layer = LayerParameter(name="ip")
    layer.blobs.add(num=1, channels=1, height=2, width=3, shape={"dim": [3, 2]}, **{kind: [1, 2, 3, 4, 5, 6]})
    (weights,) = read(saved(tmp_path / "one.caffemodel", layer))["ip"]
    assert weights.shape == (1, 1, 2, 3)


@pytest.mark.parametrize("kind", ["data", "double_data"])
@pytest.mark.parametrize("shape", [{}, {"shape": {"dim": []}}, {"num": 1, "channels": 1, "height": 1, "width": 1}])
def test_a_scalar(tmp_path: Path, shape: dict[str, Any], kind: str) -> None:
    network = Network.from_text(
        'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 3 } } }'
        'layer { name: "s" type: "Scale" bottom: "data" top: "s" scale_param { axis: 0 num_axes: 0 } }',
        "scalar",
    )
    layer = LayerParameter(name="s")
    layer.blobs.add(**shape, **{kind: [0.3]})
    (value,) = read_weights(saved(tmp_path / "s.caffemodel", layer), network)["s"]
    assert value.shape == ()
    assert value == np.float32(0.3)


def field(number: int, wire_type: int, payload: bytes) -> bytes:
    return bytes([number << 3 | wire_type]) + payload


FLOATS = b"\x2a\x18" + np.arange(6, dtype="<f4").tobytes()  # field 5, 24 bytes
SHAPE = b"\x3a\x04\x0a\x02\x02\x03"  # field 7: 2 x 3


def with_blob(blob: bytes) -> bytes:
    layer = b"\x0a\x02ip" + field(7, 2, bytes([len(blob)]) + blob)
    return b"\xa2\x06" + bytes([len(layer)]) + layer  # field 100


@pytest.mark.parametrize(
    "unknown",
    [
        field(12, 0, b"\x96\x01"),
        field(12, 1, b"\x01\x02\x03\x04\x05\x06\x07\x08"),
        field(12, 5, b"\x01\x02\x03\x04"),
        field(12, 2, b"\x02ab"),
    ],
    ids=["varint", "fixed64", "fixed32", "bytes"],
)
@pytest.mark.parametrize("place", ["before", "between", "after"])
def test_fields_that_are_not_known_are_skipped(tmp_path: Path, unknown: bytes, place: str) -> None:
    parts = {"before": (unknown, SHAPE, FLOATS), "between": (SHAPE, unknown, FLOATS), "after": (SHAPE, FLOATS, unknown)}
    path = tmp_path / "one.caffemodel"
    path.write_bytes(with_blob(b"".join(parts[place])))
    assert NetParameter.FromString(path.read_bytes()).layer[0].blobs[0].data[5] == 5
    np.testing.assert_array_equal(read_weights(path, INNER_PRODUCT)["ip"][0], [[0, 1, 2], [3, 4, 5]])
    # Its last bytes are missing, or its type is one that nobody has.
    for cut in range(1, len(unknown)):
        path.write_bytes(with_blob(SHAPE + FLOATS + unknown[:-cut]))
        with pytest.raises(InputError, match="or damaged"):
            read(path)
    path.write_bytes(with_blob(SHAPE + FLOATS + field(12, 3, b"")))
    with pytest.raises(InputError, match="wire type 3"):
        read(path)


def test_zeros_are_refused_at_their_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download that reserved its space leaves them: 2 GB of them would take half an hour."""
    path, looked = tmp_path / "zeros.caffemodel", list[int]()
    path.write_bytes(bytes(100_000))
    real = caffemodel._File.byte

    def byte(file: Any, at: int) -> int:
        looked.append(at)
        return real(file, at)

    monkeypatch.setattr(caffemodel._File, "byte", byte)
    with pytest.raises(InputError, match=r"not a caffemodel, or damaged \(field 0\)"):
        read(path)
    assert looked == [0]


@pytest.mark.parametrize("packed", [True, False])
def test_a_shape_of_more_axes_than_caffe_has_takes_no_memory(packed: bool, tmp_path: Path) -> None:
    def varint(value: int) -> bytes:
        return bytes([value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, value >> 14 & 0x7F | 0x80, value >> 21])

    dims = b"\x0a" + varint(1_000_000) + b"\1" * 1_000_000 if packed else b"\x08\1" * 500_000
    blob = b"\x3a" + varint(len(dims)) + dims
    layer = b"\x0a\x02ip" + b"\x3a" + varint(len(blob)) + blob
    path = tmp_path / "shape.caffemodel"
    path.write_bytes(b"\xa2\x06" + varint(len(layer)) + layer)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="a blob of more than 32 axes"):
            read(path)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < path.stat().st_size


def test_a_file_that_ends_early_is_damaged_wherever_it_ends(tmp_path: Path) -> None:
    path, whole = tmp_path / "one.caffemodel", with_blob(SHAPE + FLOATS)
    for end in range(1, len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(InputError, match="not a caffemodel"):
            read(path)
    path.write_bytes(whole)
    assert read(path)["ip"][0].shape == (2, 3)


@pytest.mark.parametrize("size", [0, 1, 5, 7])
def test_floats_must_fill_their_shape(tmp_path: Path, size: int) -> None:
    for kind in ("data", "double_data"):
        layer = LayerParameter(name="ip")
        layer.blobs.add(shape={"dim": [2, 3]}, **{kind: [1.0] * size})
        with pytest.raises(InputError, match="or damaged"):
            read(saved(tmp_path / "one.caffemodel", layer))


@pytest.mark.parametrize("dims", [b"\x0a\x02\x02\x03", b"\x08\x02\x08\x03", b"\x08\x02\x0a\x01\x03"])
def test_dimensions_packed_or_not(tmp_path: Path, dims: bytes) -> None:
    """Protocol Buffers allow both for any repeated number, and a mixture."""

    path = tmp_path / "dims.caffemodel"
    path.write_bytes(with_blob(field(7, 2, bytes([len(dims)]) + dims) + FLOATS))
    assert read(path)["ip"][0].tolist() == [[0, 1, 2], [3, 4, 5]]
    parsed = NetParameter.FromString(path.read_bytes())
    assert list(parsed.layer[0].blobs[0].shape.dim) == [2, 3]


def test_where_the_weights_of_a_model_are() -> None:
    assert weights_path("alexnet", "mine.caffemodel") == Path("mine.caffemodel")
    assert weights_path("nets/mine.prototxt", None) == Path("nets/mine.caffemodel")
    assert weights_path("alexnet", None).parts[-2:] == ("models", "alexnet.caffemodel")
