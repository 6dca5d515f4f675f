"""The codec: the same bits back, fewer bytes where that is possible, and nothing but ValueError for what it is not."""

from __future__ import annotations

import random
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ionn import coding
from ionn.coding import zstd
from ionn.errors import InputError
from ionn.model.inputs import natural_images

ROOT = Path(__file__).resolve().parents[2]
PHOTOGRAPH = natural_images((1, 3, 227, 227), 1).tobytes()
SPECIAL = np.array([0x7F800000, 0xFF800000, 0x7FC00001, 0x7F800001, 1, 0x80000000, 0x007FFFFF], np.uint32)


@st.composite
def float_bytes(draw: st.DrawFn) -> bytes:
    """Any bits of float32: random ones, few values, special ones, and mixtures."""
    count = draw(st.integers(0, 3000))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    bits = rng.integers(0, 2**32, count, np.uint32)
    few = rng.choice(SPECIAL, count)
    share = draw(st.sampled_from([0.0, 0.1, 0.9, 1.0]))
    return np.where(rng.random(count) < share, few, bits).astype(np.uint32).tobytes()


@given(float_bytes())
def test_the_same_bits_come_back_and_never_more_bytes(data: bytes) -> None:
    codec, sent = coding.encode(data)
    assert len(sent) <= len(data)
    assert (len(sent) < len(data)) == (codec == coding.PLANES)
    assert bytes(coding.decode(codec, sent, len(data))) == data


@given(st.binary(max_size=200))
def test_what_is_no_float32_goes_raw_or_comes_back(data: bytes) -> None:
    codec, sent = coding.encode(data)
    assert codec == coding.RAW or len(data) % 4 == 0
    assert bytes(coding.decode(codec, sent, len(data))) == data


def test_photographs_shrink_below_a_quarter_and_noise_does_not() -> None:
    codec, sent = coding.encode(PHOTOGRAPH)
    assert codec == coding.PLANES
    assert len(sent) < len(PHOTOGRAPH) / 4
    assert coding.encode(random.Random(1).randbytes(100_000))[0] == coding.RAW


def test_buffers_of_any_kind_are_encoded() -> None:
    image = natural_images((1, 3, 8, 8), 1)
    data = image.tobytes()
    for given_ in (bytearray(data), memoryview(data), image.reshape(-1).data.cast("B")):
        assert coding.encode(given_) == coding.encode(data)


def refuse(codec: str, data: bytes, raw_bytes: int) -> None:
    with pytest.raises(ValueError, match=r"^[ -~]+$"):
        coding.decode(codec, data, raw_bytes)


@given(float_bytes().filter(bool), st.data())
def test_what_is_cut_off_or_goes_on_is_refused(data: bytes, choose: st.DataObject) -> None:
    codec, sent = coding.encode(data)
    at = choose.draw(st.integers(0, len(sent) - 1))
    more = choose.draw(st.binary(min_size=1, max_size=20))
    refuse(codec, bytes(sent[:at]), len(data))
    refuse(codec, bytes(sent) + more, len(data))
    for other in (len(data) - 4, len(data) + 4, len(data) + 1, 2 * len(data), 0):
        refuse(codec, bytes(sent), other)


def test_two_frames_are_not_one() -> None:
    halves = [bytes(coding.encode(PHOTOGRAPH[:at])[1]) for at in (4000, 8000)]
    refuse(coding.PLANES, halves[0] * 2, 8000)
    skippable = struct.pack("<II", 0x184D2A50, 8) + bytes(8)
    refuse(coding.PLANES, skippable + halves[1], 8000)
    refuse(coding.PLANES, halves[1] + skippable, 8000)


def test_frames_of_another_size_or_of_none_are_refused() -> None:
    data = PHOTOGRAPH[:8000]
    refuse("plane", bytes(coding.encode(data)[1]), len(data))
    refuse(coding.PLANES, zlib.compress(data), len(data))
    unsized = zstd.ZstdCompressor(options={zstd.CompressionParameter.content_size_flag: 0})
    refuse(coding.PLANES, unsized.compress(data) + unsized.flush(), len(data))
    for other in (len(data) - 4, len(data) + 4, 10 * len(data)):
        refuse(coding.PLANES, zstd.compress(bytes(other)), len(data))


def test_what_is_as_large_coded_goes_raw_and_is_taken_raw_only() -> None:
    rng = random.Random(2)
    frames = {}
    for _ in range(400):
        least = rng.randrange(256)
        data = bytes(max(byte - least, 0) for byte in rng.randbytes(160))
        encoder = zstd.ZstdCompressor(1)
        encoder.set_pledged_input_size(len(data))
        blocks = [encoder.compress(data[plane::4], zstd.ZstdCompressor.FLUSH_BLOCK) for plane in range(4)]
        frames[data] = b"".join((*blocks, encoder.flush(zstd.ZstdCompressor.FLUSH_FRAME)))
    # Some are smaller than what they code, some as large, and some larger.
    longer = {len(frame) - len(data) for data, frame in frames.items()}
    assert min(longer) < 0 < max(longer)
    assert 0 in longer
    for data, frame in frames.items():
        assert coding.encode(data)[0] == (coding.PLANES if len(frame) < len(data) else coding.RAW)
        if len(frame) >= len(data):
            refuse(coding.PLANES, frame, len(data))


def test_frames_of_no_whole_numbers_are_refused() -> None:
    for size in (401, 402, 403):
        refuse(coding.PLANES, zstd.compress(bytes(size)), size)


@pytest.mark.parametrize("floats", [0, 1, 2, 2.9, 3, 3.98])
def test_frames_that_end_early_are_said_to_be_cut_off(floats: float) -> None:
    """Wherever that is: a block of raw bytes that would be the first planes, and no more."""
    count, size = 1000, 4000
    given_ = int(floats * count)
    head = struct.pack("<I", 0xFD2FB528) + b"\xe0" + struct.pack("<Q", size)
    block = struct.pack("<I", given_ << 3)[:3] + PHOTOGRAPH[:given_]
    assert len(head + block) < size
    with pytest.raises(ValueError, match="coded data that are cut off"):
        coding.decode(coding.PLANES, head + block, size)


@given(st.data())
def test_mutated_frames_decode_to_that_many_bytes_or_are_refused(choose: st.DataObject) -> None:
    data = PHOTOGRAPH[: choose.draw(st.sampled_from([400, 4000, 40_000]))]
    sent = bytearray(coding.encode(data)[1])
    for _ in range(choose.draw(st.integers(1, 4))):
        sent[choose.draw(st.integers(0, len(sent) - 1))] = choose.draw(st.integers(0, 255))
    try:
        decoded = coding.decode(coding.PLANES, sent, len(data))
    except ValueError:
        return
    assert len(decoded) == len(data)


BOMBS = f"""
from ionn import coding
from tests.support.bombs import bombs

def peak_kb():
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("VmPeak")).split()[1])

coding.decode(*coding.encode(bytes(40_000)), 40_000)  # what any decoding takes is there now
before = peak_kb()
refused = 0
frames = bombs(40_000)
for frame in frames:
    try:
        coding.decode({coding.PLANES!r}, frame, 40_000)
    except ValueError:
        refused += 1
print(refused, len(frames), peak_kb() - before)
"""


def test_a_bomb_allocates_no_more_than_it_may_decode_to() -> None:
    """Whatever its header claims: sizes beyond the frame's, windows of up to 2 GB. In a process of its own."""
    done = subprocess.run([sys.executable, "-c", BOMBS], capture_output=True, text=True, check=True, cwd=ROOT)
    refused, count, grown_kb = map(int, done.stdout.split())
    assert refused == count > 100
    assert grown_kb < 1000


@pytest.mark.parametrize(
    ("coding_", "ratio", "reason"),
    [
        ("loseless", None, "'loseless': there are none, features, lossless; did you mean lossless?"),
        ("", None, "'': there are none, features, lossless"),
        ("lossless", 0.0, "weight ratio 0: give wire bytes per raw byte, above 0 and at most 1"),
        ("lossless", 1.5, "weight ratio 1.5: give wire bytes per raw byte"),
        ("lossless", float("nan"), "weight ratio nan: give wire bytes per raw byte"),
        ("features", 0.5, "a weight ratio is for the coding lossless; leave it out"),
        ("none", 0.5, "a weight ratio is for the coding lossless; leave it out"),
    ],
)
def test_codings_and_ratios_that_are_none_are_refused(coding_: str, ratio: float | None, reason: str) -> None:
    with pytest.raises(InputError, match=re.escape(reason)):
        coding.check_coding(coding_, ratio)


def test_codings_and_ratios_that_are_some() -> None:
    for name in coding.CODINGS:
        coding.check_coding(name)
    for ratio in (1e-9, 1.0):
        coding.check_coding(coding.LOSSLESS, ratio)
