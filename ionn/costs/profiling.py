"""Time the layers of a network on this machine, and the coding of what crosses the link."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ionn import coding
from ionn.costs.models import Profile
from ionn.machine import machine
from ionn.model import engine
from ionn.model.caffemodel import Floats
from ionn.model.engine import StageNet
from ionn.model.inputs import natural_images, query_inputs
from ionn.model.network import Network

# What `coding_speed` codes unless it is told: as many numbers as a large feature map has.
_SAMPLE_SHAPE = (1, 3, 320, 320)
_CODING_PASSES = 5


@dataclass(frozen=True)
class CodingSpeed:
    """How long this machine takes to code a raw MB, and to decode what it became."""

    encode_ms_per_mb: float
    decode_ms_per_mb: float


def profile_network(network: Network, net: StageNet, runs: int, progress: Callable[[], None] = lambda: None) -> Profile:
    """Time every layer of a network in this process, and code what each stage gives: its last layer gets the ratio."""
    data = query_inputs(network, seed=0, count=1)[0]
    layer_ms = engine.time_layers(net, runs, data, progress)
    blobs = list(stage_outputs(net, data))
    ratios: list[float | None] = [None] * len(network.layers)
    for stage, outputs in zip(network.stages, blobs, strict=True):
        ratios[stage.last_layer] = coded_ratio(outputs)
    speed = coding_speed([blob for outputs in blobs for blob in outputs], passes=1)
    return Profile.of(
        network, layer_ms, output_ratios=ratios, machine=machine(),
        encode_ms_per_mb=speed.encode_ms_per_mb, decode_ms_per_mb=speed.decode_ms_per_mb,
    )  # fmt: skip


def stage_outputs(net: StageNet, data: Floats) -> Iterator[list[Floats]]:
    """What each stage of a net hands on, as copies."""
    net.put(net.first, data)
    for stage in range(net.first, net.last + 1):
        net.run(stage, stage)
        yield [output.copy() for output in net.outputs(stage)]


def coded_ratio(blobs: Iterable[Floats]) -> float:
    """Wire bytes per raw byte of some blobs, each coded by itself."""
    raw_bytes = wire_bytes = 0
    for blob in blobs:
        raw_bytes += blob.nbytes
        wire_bytes += len(coding.encode(blob.tobytes())[1])
    return wire_bytes / raw_bytes


def sample_blobs() -> list[Floats]:
    """Blobs like those of any network: photographs, which shrink well, and noise after a ReLU, which hardly does."""
    photographs = natural_images(_SAMPLE_SHAPE, 2)
    noise = np.random.default_rng(0).standard_normal(photographs.shape, np.float32)
    return [photographs, np.maximum(noise, 0)]


def coding_speed(blobs: Sequence[Floats] | None = None, passes: int = _CODING_PASSES) -> CodingSpeed:
    """Code blobs, by default `sample_blobs`, in the one thread that computes. The fastest of several passes counts."""
    given = [blob.tobytes() for blob in (sample_blobs() if blobs is None else blobs)]
    encode_s, decode_s = [], []
    for _ in range(passes):
        began_s = time.thread_time()
        coded = [coding.encode(data) for data in given]
        encoded_s = time.thread_time()
        for (codec, sent), data in zip(coded, given, strict=True):
            coding.decode(codec, sent, len(data))
        encode_s.append(encoded_s - began_s)
        decode_s.append(time.thread_time() - encoded_s)
    ms_per_mb = 1e9 / sum(map(len, given))
    return CodingSpeed(min(encode_s) * ms_per_mb, min(decode_s) * ms_per_mb)
