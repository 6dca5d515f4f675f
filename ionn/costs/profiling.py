"""Timing the layers of a network on this machine, and the coding of blobs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass

import numpy as np

from ionn import coding
from ionn.costs.models import Profile
from ionn.machine import machine
from ionn.model import engine
from ionn.model.caffemodel import Floats
from ionn.model.engine import StageNet
from ionn.model.inputs import natural_images, query_inputs
from ionn.model.network import Network

# The shape of the blobs that `time_coding` codes, which have as many numbers as a large feature map.
_SAMPLE_SHAPE = (1, 3, 320, 320)
_CODING_PASSES = 5


@dataclass(frozen=True)
class Coded:
    """The bytes of some blobs before and after coding, and the times in which this machine coded and decoded them."""

    raw_bytes: int
    wire_bytes: int
    encode_ms: float
    decode_ms: float

    @property
    def ratio(self) -> float:
        """Wire bytes per raw byte."""
        return self.wire_bytes / self.raw_bytes

    @property
    def encode_ms_per_mb(self) -> float:
        return self.encode_ms / self.raw_bytes * 1e6

    @property
    def decode_ms_per_mb(self) -> float:
        return self.decode_ms / self.raw_bytes * 1e6

    @classmethod
    def sum(cls, parts: Iterable[Coded]) -> Coded:
        return cls(*map(sum, zip(*map(astuple, parts), strict=True)))


def code(blobs: Iterable[Floats]) -> Coded:
    """Code blobs one by one in this thread, and decode them. The times are CPU times."""
    given = [blob.tobytes() for blob in blobs]
    began_s = time.thread_time()
    coded = [coding.encode(data) for data in given]
    encoded_s = time.thread_time()
    for (codec, sent), data in zip(coded, given, strict=True):
        coding.decode(codec, sent, len(data))
    ended_s = time.thread_time()
    return Coded(
        sum(map(len, given)),
        sum(len(sent) for _, sent in coded),
        (encoded_s - began_s) * 1e3,
        (ended_s - encoded_s) * 1e3,
    )


def code_fastest(blobs: Sequence[Floats]) -> Coded:
    """Code blobs several times, as `code` does, and return the fastest pass."""
    return min((code(blobs) for _ in range(_CODING_PASSES)), key=lambda coded: coded.encode_ms + coded.decode_ms)


def time_coding() -> Coded:
    """Measure how fast this machine codes blobs in general: photographs, which shrink well, and noise after a ReLU,
    which hardly shrinks."""
    photographs = natural_images(_SAMPLE_SHAPE, 2)
    noise = np.random.default_rng(0).standard_normal(photographs.shape, np.float32)
    return code_fastest([photographs, np.maximum(noise, 0)])


def profile_network(network: Network, net: StageNet, runs: int, progress: Callable[[], None] = lambda: None) -> Profile:
    """Time every layer of a network in this process, over `runs` forward passes, and code the output of each stage; the
    ratio is that of the stage's last layer."""
    data = query_inputs(network, seed=0, count=1)[0]
    layer_ms = engine.time_layers(net, runs, data, progress)
    coded = [code(outputs) for outputs in stage_outputs(net, data)]
    ratios: list[float | None] = [None] * len(network.layers)
    for stage, of_stage in zip(network.stages, coded, strict=True):
        ratios[stage.last_layer] = of_stage.ratio
    total = Coded.sum(coded)
    return Profile.of(
        network, layer_ms, output_ratios=ratios, machine=machine(),
        encode_ms_per_mb=total.encode_ms_per_mb, decode_ms_per_mb=total.decode_ms_per_mb,
    )  # fmt: skip


def stage_outputs(net: StageNet, data: Floats) -> Iterator[list[Floats]]:
    """The output blobs of each stage of a net, as views that are valid until the next stage is asked for."""
    net.put(net.first, data)
    for stage in range(net.first, net.last + 1):
        net.run(stage, stage)
        yield net.outputs(stage)
