"""Stock pycaffe as the judge of every answer: a process of its own, which knows nothing of ionn.

It computes whole nets, each from the prototxt as it was written, and gives back the blobs that it is asked for.
"""

from __future__ import annotations

import os
import pickle
import resource
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.support.remote import Remote, serve

# A layer of the net as Caffe lists it, and a blob that is read right after it has run: what a later layer writes over
# a blob in place is not its value there.
Tap = tuple[int, str]


@dataclass(frozen=True)
class Question:
    """`weights` by layer name, `taps` read on every one of `inputs`. With `fill` weights are made up instead, and with
    `fatal` Caffe is expected to abort: it is asked in a process more, which costs less than another oracle."""

    prototxt: str
    inputs: Sequence[np.ndarray] = ()
    weights: Mapping[str, Sequence[np.ndarray]] = field(default_factory=dict)
    taps: Sequence[Tap] = ()
    fill: bool = False
    fatal: bool = False


@dataclass(frozen=True)
class Truth:
    """Of every input the blobs at the taps, and the outputs of a forward pass by name. `layers` are (name, type), as
    Caffe lists them, `weight_shapes` of each layer and `top_shapes` of each layer."""

    layers: list[tuple[str, str]]
    weight_shapes: list[tuple[tuple[int, ...], ...]]
    top_shapes: list[tuple[tuple[int, ...], ...]]
    taps: list[list[np.ndarray]]
    outputs: list[dict[str, np.ndarray]]


class Oracle(Remote):
    def __init__(self) -> None:
        super().__init__("oracle")

    def compute(self, question: Question) -> Truth | None:
        """None if Caffe aborts on what is expected to be fatal; raises DiedError if it does so on anything else."""
        return self.ask(question)  # type: ignore[no-any-return]


def _compute(question: Question) -> Truth:
    import caffe

    with tempfile.NamedTemporaryFile("w", suffix=".prototxt") as file:
        file.write(question.prototxt)
        file.flush()
        net = caffe.Net(file.name, caffe.TEST)
    rng = np.random.default_rng(0)
    for name, layer in zip(net._layer_names, net.layers, strict=True):
        if question.fill:
            for blob in layer.blobs:
                blob.data[...] = rng.random(blob.data.shape)
        elif len(layer.blobs):
            for blob, values in zip(layer.blobs, question.weights[name], strict=True):
                assert blob.data.shape == values.shape, (name, blob.data.shape, values.shape)
                blob.data[...] = values
    taps, outputs = [], []
    for data in question.inputs:
        net.blobs[net.inputs[0]].data[...] = data
        outputs.append({name: net.blobs[name].data.copy() for name in _forward(net)})
        net.blobs[net.inputs[0]].data[...] = data
        taps.append(_tapped(net, question.taps))
    if not question.inputs:
        net.forward()
    return Truth(
        [(name, layer.type) for name, layer in zip(net._layer_names, net.layers, strict=True)],
        [tuple(tuple(blob.data.shape) for blob in layer.blobs) for layer in net.layers],
        [tuple(tuple(net.blobs[net._blob_names[top]].data.shape) for top in net._top_ids(index))
         for index in range(len(net.layers))],
        taps, outputs,
    )  # fmt: skip


def _forward(net: Any) -> list[str]:
    net.forward()
    return list(net.outputs)


def _tapped(net: Any, taps: Sequence[Tap]) -> list[np.ndarray]:
    values: dict[Tap, np.ndarray] = {}
    for index in range(len(net.layers)):
        net._forward(index, index)
        values.update((tap, net.blobs[tap[1]].data.copy()) for tap in taps if tap[0] == index)
    return [values[tap] for tap in taps]


def _answer(question: Question) -> Truth | None:
    if not question.fatal:
        return _compute(question)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.close(read)
        with open(write, "wb") as pipe:
            pickle.dump(_compute(question), pipe)
        os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(child, 0)
    return pickle.loads(data) if status == 0 else None


if __name__ == "__main__":
    # What is sent has the classes of the module that others import.
    from tests.support import oracle

    serve(oracle._answer)
