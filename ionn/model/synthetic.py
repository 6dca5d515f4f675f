"""Synthetic weights for the bundled models, built at their first use.

Every weight is drawn from a random generator that is seeded by the names of model and layer. Then the layers are
calibrated in order, on a batch of photographs that Caffe runs through the network: weights are scaled by a power of two
and biases shifted, so that each layer's outputs have a deviation near one (logits: near four) and a mean near zero; a
BatchNorm layer gets the statistics of its input. The weights are coarse during calibration, so that its sums are exact
on every machine; their low bits are drawn afterwards. Beside each file, MODEL.json records the digests of the file and
of its recipe. A file that fits its record is kept.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format

from ionn.files import locked, write_file
from ionn.model import engine, inputs, zoo
from ionn.model.caffemodel import Serialised, serialise, weights_path
from ionn.model.engine import StageNet
from ionn.model.network import Network
from ionn.schema import read_json

CALIBRATION_IMAGES = 8
LOGIT_DEVIATION = 4.0  # the softmax then favours a few of a thousand classes, without being one-hot

# The states of a file that `check` returns.
VERIFIED = "verified"
MISSING = "missing"
DAMAGED = "damaged"
OUTDATED = "outdated"
FOREIGN = "not built by ionn"


def load_net(model: str | Path, weights: str | Path | None, network: Network) -> StageNet:
    """Load the network with its weights, from the given caffemodel or the one that `weights_path` finds. If a bundled
    model's weights are missing, they are built first.

    Raises InputError if the file is missing or does not fit, and MissingLibraryError if Caffe is missing.
    """
    path = weights_path(model, weights)
    prototxt = None if weights is not None else zoo.definitions().get(str(model))
    if prototxt is not None and not os.path.exists(path):
        update(prototxt, path)
    return engine.read_network(network, path)


def update(prototxt: Path, weights: Path) -> str:
    """Build the weights of a definition, unless the file exists and is as `build` makes it. Returns what `check` found.

    A file without a record was not built by ionn, and is never changed. Processes that build the same file wait for one
    another. Raises InputError if the file cannot be written, and MissingLibraryError if Caffe is missing.
    """
    with locked(weights.parent):
        found = check(prototxt, weights)
        if found not in (VERIFIED, FOREIGN):
            engine.load_caffe()
            print(f"ionn: building {weights}, which takes some seconds, once", file=sys.stderr)
            content = build(Network.load(prototxt)).tobytes()
            # The record is written first: if writing the file is interrupted, it does not fit, and is built again.
            record = {"key": _key(prototxt), "sha256": hashlib.sha256(content).hexdigest()}
            write_file(_record(weights), json.dumps(record).encode())
            write_file(weights, content)
    return found


def check(prototxt: Path, weights: Path) -> str:
    """The state of a file: VERIFIED, MISSING, DAMAGED, OUTDATED (built by another recipe) or FOREIGN (without a
    record)."""
    if not os.path.exists(weights):  # unlike Path.exists, this returns False where access is denied
        return MISSING
    try:
        recorded = read_json(_record(weights).read_bytes())
        key, digest = recorded["key"], recorded["sha256"]
    except FileNotFoundError:
        return FOREIGN
    except (ValueError, KeyError, TypeError):
        return DAMAGED
    if key != _key(prototxt):
        return OUTDATED
    with weights.open("rb") as file:
        return VERIFIED if digest == hashlib.file_digest(file, "sha256").hexdigest() else DAMAGED


def _record(weights: Path) -> Path:
    return weights.with_suffix(".json")


def _key(prototxt: Path) -> str:
    """The digest of the recipe: of the definition, and of the code that decides the weights."""
    recipe = (prototxt, Path(__file__), Path(inputs.__file__))
    return hashlib.sha256(b"".join(path.read_bytes() for path in recipe)).hexdigest()


def build(network: Network) -> Serialised:
    """Draw and calibrate the weights of a network with one image as its input."""
    param = copy.deepcopy(network.param)
    param.layer[0].input_param.shape[0].dim[0] = CALIBRATION_IMAGES
    batch = Network.from_text(text_format.MessageToString(param), network.name)
    net = engine.new_network(batch)
    net.put(net.first, inputs.natural_images(network.input_shape, CALIBRATION_IMAGES))
    weights = net.weights()
    logits = {layer.bottoms[0] for layer in batch.layers if layer.type == "Softmax"}
    for layer in batch.layers:
        blobs = weights.get(layer.name, ())
        rng = np.random.default_rng(list(f"{network.name}/{layer.name}".encode()))
        match layer.type:
            case "Convolution" | "InnerProduct":
                blobs[0][...] = _coarse(rng.standard_normal(blobs[0].shape, np.float32))
                net.run_layer(layer.index)
                deviation = LOGIT_DEVIATION if layer.tops[0] in logits else 1.0
                means, variances = _statistics(net.blob(layer.tops[0]))
                scale = 2.0 ** np.round(np.log2(deviation / np.sqrt(variances.mean())))
                blobs[0][...] *= np.float32(scale)
                for bias in blobs[1:]:
                    bias[...] = deviation * rng.uniform(-0.2, 0.2, bias.shape) - means * scale
            case "BatchNorm":
                blobs[0][...], blobs[1][...] = _statistics(net.blob(layer.bottoms[0]))
                blobs[2][...] = 1  # what the other two are divided by
            case "Scale":
                blobs[0][...] = rng.uniform(0.8, 1.2, blobs[0].shape)
                blobs[1][...] = rng.uniform(-0.2, 0.2, blobs[1].shape)
        net.run_layer(layer.index)
        for top in layer.tops:
            net.blob(top)[...] = _coarse(net.blob(top))
        if layer.type in ("Convolution", "InnerProduct"):
            blobs[0][...] += np.float32(scale / 64) * _low_bits(rng, blobs[0].shape)
    return serialise(network.name, network.layers, weights)


def _coarse(values: Any) -> Any:
    """The values rounded to 1/64. Sums of products of such numbers are exact in float32 (below 2**12), so every BLAS,
    in any order and with any number of threads, computes the same statistics from them, and so the same weights."""
    return np.rint(values * 64) / 64


def _low_bits(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    """Multiples of 2^-24 within 1/16 of zero: too small to affect the calibration, but with them sums of products are
    not exact, so that tests notice when one is computed in another order."""
    return rng.integers(-(2**20), 2**20, shape, np.int32).astype(np.float32) / np.float32(2**24)


def _statistics(data: Any) -> tuple[Any, Any]:
    """Mean and variance per channel (axis 1)."""
    axes = (0, *range(2, data.ndim))
    return data.mean(axes, dtype=np.float64), data.var(axes, dtype=np.float64)
