"""Builds synthetic weights for the models in prototxt/: models/MODEL.caffemodel.

    python models/build_models.py [MODEL ...]

Every weight is drawn from a generator seeded by model and layer name. The layers are then calibrated in order, on a
batch of photographs that real Caffe runs through the network: weights are scaled and biases shifted so that each
layer's outputs have unit deviation around a mean near zero, and a BatchNorm layer gets the statistics that it sees.
Calibration has coarse weights, so that its sums are exact on every machine; the low bits are drawn after it.
Beside each file, MODEL.json records the file's digest and that of its recipe. A file that fits its record is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

# One thread leaves the other cores free; the weights are the same with any number.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("GLOG_minloglevel", "2")

import caffe
import numpy as np
from tqdm import tqdm

from ionn.errors import InputError
from ionn.model import inputs

ROOT = Path(__file__).resolve().parent.parent
MODELS = sorted(path.stem for path in (ROOT / "prototxt").glob("*.prototxt"))
CALIBRATION_IMAGES = 8
LOGIT_DEVIATION = 4.0  # makes the softmax favour a few of the thousands of classes, without being one-hot
VERIFIED = "verified"
FOREIGN = "not built here (no record beside it), kept"


def update(prototxt: Path, weights: Path) -> str:
    """Build the weights unless the file is there and fits its record; returns what was found and done.

    A file without a record was not built here, and is never touched. Raises InputError if the disk is full.
    """
    key = hashlib.sha256(b"".join(path.read_bytes() for path in (prototxt, Path(__file__), Path(inputs.__file__))))
    record = weights.with_suffix(".json")
    found = _check(weights, record, key.hexdigest())
    if found in (VERIFIED, FOREIGN):
        return found
    part = weights.with_suffix(".part")
    try:
        build(prototxt, part)
        # The record goes first: if the second step is cut off, the file does not fit it and is built again.
        record.write_text(json.dumps({"key": key.hexdigest(), "sha256": _digest(part)}))
        part.replace(weights)
    finally:
        part.unlink(missing_ok=True)
    return f"{found}, built"


def _check(weights: Path, record: Path, key: str) -> str:
    if not weights.exists():
        return "missing"
    if not record.exists():
        return FOREIGN
    try:
        recorded = json.loads(record.read_text())
        recorded_key, recorded_digest = recorded["key"], recorded["sha256"]
    except (ValueError, KeyError, TypeError):
        return f"damaged record {record.name}"
    if recorded_key != key:
        return "outdated"
    return VERIFIED if recorded_digest == _digest(weights) else "damaged"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def build(prototxt: Path, weights: Path) -> None:
    """Draw and calibrate the weights of a network with one image input, and write them as a caffemodel.

    Raises InputError if the disk is too full: Caffe itself would end the process.
    """
    net = caffe.Net(str(prototxt), caffe.TEST)
    needed = 1.01 * sum(blob.data.nbytes for blobs in net.params.values() for blob in blobs) + 1e6
    if shutil.disk_usage(weights.parent).free < needed:
        raise InputError(f"{weights.parent}: no room for {needed / 1e6:.0f} MB of weights; free some disk space")
    shape = tuple(net.blobs[net.inputs[0]].data.shape)
    net.blobs[net.inputs[0]].reshape(CALIBRATION_IMAGES, *shape[1:])
    net.reshape()
    net.blobs[net.inputs[0]].data[...] = inputs.natural_images(shape, CALIBRATION_IMAGES)
    layers = net.layer_dict
    logits = {net.bottom_names[name][0] for name, layer in layers.items() if layer.type == "Softmax"}
    for index, (name, layer) in enumerate(tqdm(layers.items(), desc=prototxt.stem, unit="layer", disable=None)):
        blobs = [blob.data for blob in layer.blobs]
        rng = np.random.default_rng(list(f"{prototxt.stem}/{name}".encode()))
        match layer.type:
            case "Convolution" | "InnerProduct":
                blobs[0][...] = _coarse(rng.standard_normal(blobs[0].shape, np.float32))
                net._forward(index, index)
                top = net.top_names[name][0]
                deviation = LOGIT_DEVIATION if top in logits else 1.0
                means, variances = _statistics(net.blobs[top].data)
                scale = 2.0 ** np.round(np.log2(deviation / np.sqrt(variances.mean())))
                blobs[0] *= np.float32(scale)
                for bias in blobs[1:]:
                    bias[...] = deviation * rng.uniform(-0.2, 0.2, bias.shape) - means * scale
            case "BatchNorm":
                blobs[0][...], blobs[1][...] = _statistics(net.blobs[net.bottom_names[name][0]].data)
                blobs[2][...] = 1  # what the other two are divided by
            case "Scale":
                blobs[0][...] = rng.uniform(0.8, 1.2, blobs[0].shape)
                blobs[1][...] = rng.uniform(-0.2, 0.2, blobs[1].shape)
        net._forward(index, index)
        for top in net.top_names[name]:
            net.blobs[top].data[...] = _coarse(net.blobs[top].data)
        if layer.type in ("Convolution", "InnerProduct"):
            blobs[0] += np.float32(scale / 64) * _low_bits(rng, blobs[0].shape)
    net.save(str(weights))


def _coarse(values: Any) -> Any:
    """Rounded to 1/64. Sums of products of such numbers are exact in float32 (below 2**12), so every BLAS, in any order
    and with any number of threads, computes the same statistics from them, and so the same weights."""
    return np.rint(values * 64) / 64


def _low_bits(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    """Numbers within 1/16 of zero, to 24 bits: too small to matter to what was calibrated, but no sum of products is
    exact with them, so that it shows when one is computed in another order."""
    return rng.integers(-(2**20), 2**20, shape, np.int32).astype(np.float32) / np.float32(2**24)


def _statistics(data: Any) -> tuple[Any, Any]:
    """Mean and variance per channel (axis 1)."""
    axes = (0, *range(2, data.ndim))
    return data.mean(axes, dtype=np.float64), data.var(axes, dtype=np.float64)


def main(arguments: list[str]) -> int:
    for model in arguments:
        if model not in MODELS:
            print(f"{model}: not a model of this project; choose from {', '.join(MODELS)}", file=sys.stderr)
            return 2
    for model in arguments or MODELS:
        weights = ROOT / "models" / f"{model}.caffemodel"
        try:
            done = update(ROOT / "prototxt" / f"{model}.prototxt", weights)
        except InputError as error:
            print(error, file=sys.stderr)
            return 2
        print(f"{weights.relative_to(ROOT)}: {done}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
