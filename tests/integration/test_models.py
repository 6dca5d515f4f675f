"""The five definitions against what real Caffe lists, and their synthetic weights against real forward passes."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import caffe
import numpy as np
import pytest
import write_prototxt

from ionn.errors import InputError
from ionn.model import synthetic
from ionn.model.inputs import natural_images
from ionn.model.network import Network
from tests.support.machine import PROFILES, needs_reference, weights_of

ROOT = Path(__file__).resolve().parents[2]
FINGERPRINTS = {
    "alexnet": "1f48d2d0d3459c74d21c6f26d8c38ec39bcdec51aea87e4ee9504d4238355478",
    "inception": "23302335a2efa9028331c1a72f8e0baf3a50d5beb8b1a3774269d41e12bb5498",
    "resnet": "40d448469da6e01a49b23e95336d12c8375d3a284d160500e46849043cbcbf53",
    "googlenet": "99e1dd89fac064092f1841446fde3cf6a3187c67fc12933fbf48616a4128951b",
    "mobilenet": "e8fc8c40b24064c2f3ddb50f1066d98989383d80a550ff1a90b59aa42279c16d",
}
SMALL = """
name: "small"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 48 dim: 48 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 32 kernel_size: 5 } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "conv2" type: "Convolution" bottom: "conv" top: "conv2"
        convolution_param { num_output: 64 kernel_size: 3 bias_term: false } }
layer { name: "bn" type: "BatchNorm" bottom: "conv2" top: "conv2" batch_norm_param { use_global_stats: true } }
layer { name: "scale" type: "Scale" bottom: "conv2" top: "conv2" scale_param { bias_term: true } }
layer { name: "fc" type: "InnerProduct" bottom: "conv2" top: "fc" inner_product_param { num_output: 10 } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""


def listing(net: Any) -> list[list[Any]]:
    """Name, type, bottoms, tops, shapes of the tops and weight bytes of each layer, as Caffe lists them."""

    def names(blobs: list[int]) -> list[str]:
        return [net._blob_names[blob] for blob in blobs]

    return [
        [
            name,
            layer.type,
            names(net._bottom_ids(index)),
            names(net._top_ids(index)),
            [list(net.blobs[top].data.shape) for top in names(net._top_ids(index))],
            sum(blob.data.nbytes for blob in layer.blobs),
        ]
        for index, (name, layer) in enumerate(zip(net._layer_names, net.layers, strict=True))
    ]


@pytest.mark.parametrize("model", FINGERPRINTS)
def test_definition(model: str) -> None:
    prototxt = ROOT / "prototxt" / f"{model}.prototxt"
    assert prototxt.read_text(encoding="utf-8") == write_prototxt.definition(model)
    layers = listing(caffe.Net(str(prototxt), caffe.TEST))
    assert hashlib.sha256(json.dumps(layers).encode()).hexdigest() == FINGERPRINTS[model]


@needs_reference
@pytest.mark.parametrize("model", FINGERPRINTS)
def test_definition_lists_the_published_layers(model: str) -> None:
    with (PROFILES / f"{model}.csv").open(newline="") as file:
        published = [
            [row["layer"], row["type"], row["bottoms"].split(), row["tops"].split(), row["output_shape"],
             int(row["weight_bytes"])]
            for row in csv.DictReader(file)
        ]  # fmt: skip
    layers = listing(caffe.Net(str(ROOT / "prototxt" / f"{model}.prototxt"), caffe.TEST))
    assert [[*row[:4], "x".join(map(str, row[4][0])), row[5]] for row in layers] == published


@pytest.mark.parametrize("model", FINGERPRINTS)
def test_weights_give_lively_activations_and_distinct_answers(model: str) -> None:
    net = caffe.Net(str(ROOT / "prototxt" / f"{model}.prototxt"), str(weights_of(model)), caffe.TEST)
    assert_full_mantissas(net)
    unseen = natural_images(net.blobs["data"].data.shape, 12)[8:]  # the weights are calibrated on the first eight
    net.blobs["data"].reshape(*unseen.shape)
    net.reshape()
    net.blobs["data"].data[...] = unseen
    for index, (name, layer) in enumerate(zip(net._layer_names, net.layers, strict=True)):
        net._forward(index, index)
        top = net.blobs[net.top_names[name][0]].data
        if layer.type not in ("Input", "Softmax"):
            assert 0.1 < top.std() < 8, name
            assert np.abs(top).max() < 100, name
    answers = top.reshape(len(unseen), -1)
    np.testing.assert_allclose(answers.sum(1), 1, rtol=1e-3)
    assert len(set(answers.argmax(1))) > len(unseen) / 2
    assert np.abs(answers[:, None] - answers).max(2)[np.triu_indices(len(unseen), 1)].min() > 0.01
    assert 0.02 < np.median(answers.max(1)) < 0.95  # neither uniform nor one-hot


@pytest.fixture
def small(tmp_path: Path) -> Path:
    prototxt = tmp_path / "small.prototxt"
    prototxt.write_text(SMALL)
    return prototxt


def assert_full_mantissas(net: Any) -> None:
    """Of a layer's weights, each of the 16 low bits is set in about half: sums of their products are never exact."""
    for name, layer in net.layer_dict.items():
        if layer.type in ("Convolution", "InnerProduct"):
            bits = layer.blobs[0].data.ravel().view(np.uint32)
            share_set = [np.count_nonzero(bits >> bit & 1) / bits.size for bit in range(16)]
            spread = max(0.05, 2.5 / np.sqrt(bits.size))  # five standard deviations where there are few weights
            assert all(abs(share - 0.5) < spread for share in share_set), (name, share_set)


def build(prototxt: Path, weights: Path) -> None:
    weights.write_bytes(synthetic.build(Network.load(prototxt)).tobytes())


def test_weights_have_full_mantissas(small: Path, tmp_path: Path) -> None:
    build(small, tmp_path / "small.caffemodel")
    assert_full_mantissas(caffe.Net(str(small), str(tmp_path / "small.caffemodel"), caffe.TEST))


def test_weights_depend_on_names_only(small: Path, tmp_path: Path) -> None:
    """Not on the run, the BLAS kernels, the thread count, or on layers that do not feed a layer."""
    build(small, tmp_path / "here.caffemodel")
    command = (
        "import sys, pathlib; from tests.integration.test_models import build; build(*map(pathlib.Path, sys.argv[1:]))"
    )
    subprocess.run(
        [sys.executable, "-c", command, str(small), str(tmp_path / "there.caffemodel")],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'prototxt'}", "OPENBLAS_NUM_THREADS": "2",
             "OPENBLAS_CORETYPE": "Nehalem"},
        check=True, timeout=60,
    )  # fmt: skip
    assert (tmp_path / "here.caffemodel").read_bytes() == (tmp_path / "there.caffemodel").read_bytes()

    extra = 'layer { name: "aside" type: "InnerProduct" bottom: "data" top: "x" inner_product_param { num_output: 2 } }'
    bigger = tmp_path / "bigger" / small.name
    bigger.parent.mkdir()
    bigger.write_text(SMALL.replace('layer { name: "bn"', extra + '\nlayer { name: "bn"'))
    build(bigger, tmp_path / "bigger.caffemodel")
    one = caffe.Net(str(small), str(tmp_path / "here.caffemodel"), caffe.TEST).params
    other = caffe.Net(str(bigger), str(tmp_path / "bigger.caffemodel"), caffe.TEST).params
    for name, blobs in one.items():
        assert all((a.data == b.data).all() for a, b in zip(blobs, other[name], strict=True)), name


def test_files_are_kept_only_if_they_fit_their_record(small: Path, tmp_path: Path) -> None:
    weights, record = tmp_path / "new" / "small.caffemodel", tmp_path / "new" / "small.json"
    assert synthetic.update(small, weights) == "missing"
    good = weights.read_bytes()
    written = weights.stat().st_mtime_ns
    assert synthetic.check(small, weights) == synthetic.update(small, weights) == "verified"
    assert weights.stat().st_mtime_ns == written

    damaged = bytearray(good)
    damaged[len(good) // 2] ^= 1
    for content in (bytes(damaged), good[:-1], b""):
        weights.write_bytes(content)
        assert synthetic.check(small, weights) == synthetic.update(small, weights) == "damaged"
        assert weights.read_bytes() == good
    for text in ("", "[]", "{}"):
        record.write_text(text)
        assert synthetic.update(small, weights) == "damaged"
        assert synthetic.check(small, weights) == "verified"
    small.write_text(SMALL.replace("num_output: 10", "num_output: 11"))
    assert synthetic.update(small, weights) == "outdated"
    assert weights.read_bytes() != good
    assert sorted(path.name for path in weights.parent.iterdir()) == ["small.caffemodel", "small.json"]

    record.unlink()
    weights.write_bytes(b"trained elsewhere")
    assert synthetic.update(small, weights) == "not built by ionn"
    assert weights.read_bytes() == b"trained elsewhere"


def test_an_interrupted_build_leaves_the_old_file(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "small.caffemodel"
    synthetic.update(small, weights)
    good = weights.read_bytes()
    small.write_text(SMALL + "# changed")

    def interrupted(network: Network) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "build", interrupted)
        with pytest.raises(KeyboardInterrupt):
            synthetic.update(small, weights)
    assert weights.read_bytes() == good
    assert synthetic.update(small, weights) == "outdated"


def test_a_full_disk_is_the_users_error_and_leaves_nothing(small: Path, tmp_path: Path) -> None:
    """A small limit on file size stands in for it: the record fits, the weights do not."""
    weights = tmp_path / "full" / "small.caffemodel"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"small\.caffemodel: cannot write"):
            synthetic.update(small, weights)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert synthetic.check(small, weights) == "missing"
    assert [path.name for path in weights.parent.iterdir()] == ["small.json"]


def test_a_folder_of_weights_that_cannot_be_looked_at_is_the_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is too long stands in for a folder that this user may not read, as root may read any."""
    monkeypatch.setattr("ionn.model.zoo.weights_folder", lambda: Path("n" * 300))
    with pytest.raises(InputError, match="cannot make this folder: File name too long"):
        synthetic.load_net("mobilenet", None, Network.load("mobilenet"))
    assert synthetic.check(Path("mobilenet.prototxt"), Path("n" * 300, "mobilenet.caffemodel")) == "missing"


def test_a_record_that_is_nested_deeply_is_damaged(small: Path, tmp_path: Path) -> None:
    (tmp_path / "small.caffemodel").touch()
    (tmp_path / "small.json").write_text("[" * 100_000)
    assert synthetic.check(small, tmp_path / "small.caffemodel") == "damaged"


def test_processes_that_want_the_same_weights_build_them_once(small: Path, tmp_path: Path) -> None:
    code = "from ionn.model.synthetic import update; print(update(*map(pathlib.Path, sys.argv[1:])))"
    command = [sys.executable, "-c", f"import pathlib, sys; {code}", str(small), str(tmp_path / "small.caffemodel")]
    builders = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(3)]
    said = [builder.communicate(timeout=60)[0].strip() for builder in builders]
    assert sorted(said) == ["missing", "verified", "verified"]


def test_natural_images() -> None:
    images = natural_images((1, 3, 40, 60), 11)
    assert images.shape == (11, 3, 40, 60)
    assert images.dtype == np.float32
    assert (natural_images((5, 3, 40, 60), 3) == images[:3]).all()
    assert len({image.tobytes() for image in images}) == 11
    assert -123 <= images.min() < -50 < 50 < images.max() <= 255 - 104
    assert images.std((1, 2, 3)).min() > 10
    rocket = images[3]  # a blue evening sky
    assert rocket[0].mean() + 104 > rocket[2].mean() + 123

    np.testing.assert_allclose(natural_images((1, 1, 40, 60), 1)[0, 0], images[0].mean(0), rtol=1e-5)
    five = natural_images((1, 5, 40, 60), 1)[0]
    assert (five == images[0][[0, 1, 2, 0, 1]]).all()
    for shape in [(1, 784), (1, 3, 0, 4), ()]:
        with pytest.raises(InputError, match="not an image"):
            natural_images(shape, 1)


def test_images_need_no_engine() -> None:
    code = "import sys, ionn.model.inputs; sys.exit(bool({'caffe', 'skimage'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
