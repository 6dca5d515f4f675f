"""What reads a stranger's bytes: a value, or one error of ours, and nothing else.

As a script it has atheris look for bytes that break this, guided by which code they reach:
`python tests/fuzz/decoders.py TARGET [libFuzzer's options]`.
"""

from __future__ import annotations

import functools
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ionn import coding
from ionn.coding import zstd
from ionn.errors import InputError, PartitionError, ProtocolError
from ionn.model.coded_weights import Sidecar, SidecarError, write
from ionn.model.network import Network
from ionn.model.partial_net import extract_net
from ionn.model.proto import NetParameter
from ionn.protocol import messages
from ionn.server.admission import Usage, check_partition
from ionn.server.limits import Limits
from tests.support import caffemodels
from tests.support.bombs import bombs

# Where the frames of a message are parted in a fuzzer's input.
SEPARATOR = b"\n"
# A layer whose weights are coded, in a frame of each kind.
CODED = Network.from_text(
    'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 32 } } }'
    'layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param { num_output: 100 } }',
    "coded",
)
CODED_WEIGHTS = {
    "fc": (np.arange(3200, dtype=np.float32).reshape(100, 32) // 7 % 5, np.arange(100, dtype=np.float32)),
}


def one_line(error: Exception) -> None:
    """What people are told does nothing to their terminal."""
    assert str(error).isprintable()


def read_message(data: bytes) -> None:
    """What is a message is written as it was read; and a partition is checked or refused."""
    try:
        message = messages.decode(data.split(SEPARATOR))
    except ProtocolError as error:
        one_line(error)
        return
    frames = message.frames()
    assert messages.decode(frames).frames() == frames
    if isinstance(message, messages.PartitionHeader):
        try:
            check_partition(message, Limits(), Usage(), {})
        except PartitionError as error:
            one_line(error)


def read_caffemodel(data: bytes) -> None:
    with open(os.memfd_create("caffemodel"), "wb") as file:
        file.write(data)
        file.flush()
        try:
            layers = caffemodels.read(Path(f"/proc/self/fd/{file.fileno()}"))
        except InputError as error:
            one_line(error)
            return
    assert all(blob.dtype == np.float32 for blobs in layers.values() for blob in blobs)


def read_prototxt(data: bytes) -> None:
    """What is a network can be cut, and what is cut out is a network."""
    try:
        network = Network.from_text(data.decode(errors="replace"), "fuzz")
    except InputError as error:
        one_line(error)
        return
    last = len(network.stages) - 1
    if last == 0:
        return
    part = Network.from_text(extract_net(network, 1, last).prototxt, "part")
    assert part.stages[-1].output_shapes == network.stages[last].output_shapes


def read_coded(data: bytes) -> None:
    """What is decoded has the size that was due, and the same bits as zstd itself makes of it."""
    raw_bytes = int.from_bytes(data[:3], "little")
    frame = data[3:]
    try:
        decoded = coding.decode(coding.PLANES, frame, raw_bytes)
    except ValueError as error:
        one_line(error)
        return
    planes = np.frombuffer(zstd.decompress(frame), np.uint8).reshape(4, -1)
    assert bytes(decoded) == planes.T.tobytes()
    assert len(decoded) == raw_bytes


def read_sidecar(data: bytes) -> None:
    """What is given out are the weights, bit for bit."""
    with open(os.memfd_create("sidecar"), "wb") as file:
        file.write(data)
        file.flush()
        try:
            sidecar = Sidecar(Path(f"/proc/self/fd/{file.fileno()}"), CODED, CODED_WEIGHTS)
        except SidecarError as error:
            one_line(error)
            return
    with sidecar:
        for blob, frames in zip(CODED_WEIGHTS["fc"], sidecar.frames["fc"], strict=True):
            for frame in frames:
                if (sent := frame.read()) is not None:
                    raw = blob.tobytes()[frame.offset : frame.end]
                    assert bytes(coding.decode(frame.codec, sent, frame.raw_bytes)) == raw


TARGETS: dict[str, Callable[[bytes], None]] = {
    "message": read_message,
    "caffemodel": read_caffemodel,
    "prototxt": read_prototxt,
    "coded": read_coded,
    "sidecar": read_sidecar,
}


def caffemodel_seeds() -> list[bytes]:
    """A caffemodel of today, one of before 2014, and one whose floats are not packed."""
    today, former, doubles = (NetParameter(name="seed") for _ in range(3))
    today.layer.add(name="fc", type="InnerProduct").blobs.add(shape={"dim": [2, 2]}, data=[1, 2, 3, 4])
    former.layers.add(name="fc").blobs.add(num=1, channels=1, height=2, width=2, data=[1, 2, 3, 4])
    doubles.layer.add(name="fc").blobs.add(shape={"dim": [2]}, double_data=[1, 2])
    return [net.SerializeToString() for net in (today, former, doubles)]


def coded_seeds() -> list[bytes]:
    """Blobs that shrink in different ways, and bombs, each after the size that is due."""
    rng = np.random.default_rng(0)
    blobs = (np.zeros(1000), rng.integers(0, 9, 500), rng.standard_normal(2000), np.arange(5))
    frames = [(4 * blob.size, coding.encode(blob.astype("<f4").tobytes())[1]) for blob in blobs]
    frames += [(40_000, bomb) for bomb in bombs(40_000)[::7]]
    return [raw_bytes.to_bytes(3, "little") + bytes(frame) for raw_bytes, frame in frames]


@functools.cache
def seeds(target: str) -> list[bytes]:
    """Inputs that a target takes."""
    from tests.fuzz.strategies import MESSAGES, PROTOTXTS

    match target:
        case "message":
            return [SEPARATOR.join(map(bytes, message.frames())) for message in MESSAGES]
        case "prototxt":
            return [text.encode() for text in PROTOTXTS]
        case "coded":
            return coded_seeds()
        case "sidecar":
            with tempfile.TemporaryDirectory() as folder:
                write(Path(folder, "seed"), CODED, CODED_WEIGHTS)
                return [Path(folder, "seed").read_bytes()]
    return caffemodel_seeds()


def main() -> None:
    import atheris

    target, *options = sys.argv[1:]
    atheris.instrument_all()
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds(target)):
            Path(corpus, str(number)).write_bytes(seed)
        atheris.Setup([sys.argv[0], *options, corpus], TARGETS[target])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
