"""Why ionn codes with zstd over byte planes: how much and how fast libraries compress real data. A minute.

    python -m venv /tmp/codecs && /tmp/codecs/bin/pip install blosc2 lz4 zstandard
    PYTHONPATH=/tmp/codecs/lib/python3.11/site-packages python bench/coding_libraries.py

Inputs are the bundled photographs, feature maps are what GoogLeNet's stages make of two of them, and weights are the
synthetic ones of AlexNet's fc8. A library that is not installed is left out. One thread; the fastest of five passes
counts.
"""

from __future__ import annotations

import functools
import importlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ionn import coding
from ionn.costs.profiling import stage_outputs
from ionn.model.caffemodel import Floats
from ionn.model.inputs import query_inputs
from ionn.model.network import Network
from ionn.model.synthetic import load_net

PASSES = 5
MODEL, WEIGHTS_OF = "googlenet", "alexnet"
Codec = tuple[Callable[[bytes], bytes], Callable[[bytes, int], bytes]]


def planes(data: bytes) -> bytes:
    return np.ascontiguousarray(np.frombuffer(data, np.uint8).reshape(-1, 4).T).tobytes()


def floats(data: bytes) -> bytes:
    return np.ascontiguousarray(np.frombuffer(data, np.uint8).reshape(4, -1).T).tobytes()


def codecs() -> Iterator[tuple[str, Codec]]:
    def ours(data: bytes) -> bytes:
        return bytes(coding.encode(data)[1])

    def back(data: bytes, size: int) -> bytes:
        codec = coding.PLANES if len(data) < size else coding.RAW
        return bytes(coding.decode(codec, data, size))

    yield "backports.zstd 1, planes (ionn)", (ours, back)
    if zstandard := _library("zstandard"):
        one, three = (zstandard.ZstdCompressor(level) for level in (1, 3))
        decode = zstandard.ZstdDecompressor().decompress
        yield "zstandard 1, planes", (lambda data: one.compress(planes(data)), lambda data, _: floats(decode(data)))
        yield "zstandard 3, planes", (lambda data: three.compress(planes(data)), lambda data, _: floats(decode(data)))
        yield "zstandard 1, no planes", (one.compress, lambda data, _: decode(data))
    if lz4 := _library("lz4.frame"):
        yield "lz4, planes", (lambda data: lz4.compress(planes(data)), lambda data, _: floats(lz4.decompress(data)))
    if blosc2 := _library("blosc2"):
        blosc2.set_nthreads(1)
        for name, level in (("ZSTD", 1), ("LZ4", 5)):
            encode = functools.partial(blosc2.compress2, typesize=4, clevel=level, codec=getattr(blosc2.Codec, name))
            yield f"blosc2 {name} {level}", (encode, lambda data, _: blosc2.decompress2(data))


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def samples() -> dict[str, list[bytes]]:
    network = Network.load(MODEL)
    net = load_net(MODEL, None, network)
    inputs = list(query_inputs(network, seed=0))
    maps: list[Floats] = [
        blob.copy() for data in inputs[:2] for outputs in stage_outputs(net, data) for blob in outputs
    ]
    weights = load_net(WEIGHTS_OF, None, Network.load(WEIGHTS_OF)).weights()["fc8"][:1]
    return {
        "inputs": [blob.tobytes() for blob in inputs],
        "feature maps": [blob.tobytes() for blob in maps if blob.size > 10_000],
        "weights": [blob.tobytes() for blob in weights],
    }


def measure(codec: Codec, blobs: list[bytes]) -> str:
    encode, decode = codec
    encode_s, decode_s = [], []
    for _ in range(PASSES):
        began_s = time.thread_time()
        coded = [encode(data) for data in blobs]
        encoded_s = time.thread_time()
        decoded = [decode(data, len(raw)) for data, raw in zip(coded, blobs, strict=True)]
        decode_s.append(time.thread_time() - encoded_s)
        encode_s.append(encoded_s - began_s)
        assert decoded == blobs
    total = sum(map(len, blobs))
    return (
        f"1/{total / sum(map(len, coded)):.2f}, {min(encode_s) / total * 1e9:.1f} / {min(decode_s) / total * 1e9:.1f}"
    )


def main() -> None:
    data = samples()
    print("ratio, ms per MB to encode / to decode")
    print(f"{'':<32} " + " ".join(f"{what:<18}" for what in data))
    for name, codec in codecs():
        print(f"{name:<32} " + " ".join(f"{measure(codec, blobs):<18}" for blobs in data.values()), flush=True)


if __name__ == "__main__":
    main()
