"""Bytes that are nearly right, to everything that reads a stranger's bytes. `make fuzz` has atheris make them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ionn.model.proto import NetParameter
from tests.fuzz.decoders import TARGETS, seeds
from tests.fuzz.strategies import examples


@st.composite
def mutants(draw: st.DrawFn, target: str) -> bytes:
    """A seed of a target with some bytes changed, put in or left out."""
    content = bytearray(draw(st.sampled_from(seeds(target))))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        to = at + draw(st.integers(0, 3))
        content[at:to] = draw(st.binary(max_size=4))
    return bytes(content)


CODED = ("coded", "sidecar")


@pytest.mark.parametrize("target", [target for target in TARGETS if target not in CODED])
@examples(300)
@given(data=st.data())
def test_nearly_right(target: str, data: st.DataObject) -> None:
    TARGETS[target](data.draw(mutants(target)))


@pytest.mark.parametrize("target", CODED)
@examples(1000)
@given(data=st.data())
def test_coded_nearly_right(target: str, data: st.DataObject) -> None:
    TARGETS[target](data.draw(mutants(target)))


# Found by fuzzing: each broke something.
FOUND = {
    "a control character in the error": ("prototxt", b'layer { name: "data"\n\x7f'),
    "half a surrogate pair": ("message", b'{"type": "hello", "protocol": 2, "role": "control", "session": "\\ud800"}'),
    "an integer that no float can hold": (
        "message",
        b'{"type": "result", "query": 1, "shapes": [], "stage_ms": [1%s]}' % (b"0" * 400),
    ),
    "a number without an end": ("caffemodel", b"\xff" * 2_000_000),
    "a double that no float can hold": (
        "caffemodel",
        NetParameter(
            layer=[{"name": "fc", "blobs": [{"shape": {"dim": [1]}, "double_data": [1e300]}]}]
        ).SerializeToString(),
    ),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("target", "found"), FOUND.values(), ids=FOUND)
def test_found(target: str, found: bytes) -> None:
    TARGETS[target](found)
