"""Coded results that lie about what they are: the client notices, goes on without that server, and does not grow."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from ionn.coding import zstd
from ionn.errors import ProtocolError
from ionn.protocol import messages
from ionn.protocol.blobs import read_payload
from tests.malicious.hostile import CODED, Connection, Script
from tests.malicious.test_malicious import meet
from tests.support.bombs import bombs

Change = Callable[[bytes, int], tuple[list[bytes], tuple[str, ...]]]


def recoded(change: Change) -> Script:
    """The answer with another payload: what `change` makes of its first blob, and of how many bytes that is."""

    def script(connection: Connection, answer: messages.Message) -> bool:
        assert isinstance(answer, messages.Result)
        if answer.payload:
            (blob, *_) = read_payload(answer.payload, answer.codecs, answer.shapes)
            frames, codecs = change(blob.tobytes(), blob.nbytes)
            answer = dataclasses.replace(answer, payload=frames, codecs=codecs)
        connection.send(answer)
        return True

    return script


def planes(blob: bytes) -> bytes:
    """A blob as it is coded, however large it becomes."""
    floats = np.frombuffer(blob, np.uint8).reshape(-1, 4)
    return zstd.compress(np.ascontiguousarray(floats.T).data, 1)


def of_other_size(by: int) -> Change:
    return lambda blob, size: ([planes(bytes(size + by))], ("planes",))


def bomb(number: int) -> Change:
    return lambda blob, size: ([bombs(size)[number]], ("planes",))


RECODED: dict[str, Change] = {
    "another codec": lambda blob, size: ([planes(blob)], ("zip",)),
    "coded, said to be raw": lambda blob, size: ([planes(bytes(size))], ("raw",)),
    "coded, nothing said": lambda blob, size: ([planes(bytes(size))], ()),
    "raw, said to be coded": lambda blob, size: ([blob], ("planes",)),
    "two codecs": lambda blob, size: ([planes(bytes(size))], ("planes", "planes")),
    "two frames": lambda blob, size: ([planes(bytes(size))] * 2, ("planes", "planes")),
    "cut off": lambda blob, size: ([planes(bytes(size))[:-1]], ("planes",)),
    "more after its end": lambda blob, size: ([planes(bytes(size)) + b"x"], ("planes",)),
    "nothing": lambda blob, size: ([b""], ("planes",)),
    **{f"{by:+} bytes": of_other_size(by) for by in (-4, 4)},
    "a GB": lambda blob, size: ([zstd.compress(b"")[:4] + b"\xe0" + (2**30).to_bytes(8, "little")], ("planes",)),
    **{f"bomb {number}": bomb(number) for number in range(0, 100, 9)},
}


@pytest.mark.parametrize("what", RECODED)
def test_a_result_that_is_not_what_its_shapes_say(what: str) -> None:
    outcome = meet("query", recoded(RECODED[what]), losses=1, graph=CODED)
    assert outcome.faults
    for fault in outcome.faults:
        assert isinstance(fault, ProtocolError)
        assert "does not fit its shapes" in str(fault)


def test_a_result_that_is_coded_where_raw_is_due() -> None:
    outcome = meet("query", recoded(lambda blob, size: ([planes(blob)], ("planes",))), losses=1)
    (fault, *_) = outcome.faults
    assert "coded frames where raw ones are due" in str(fault)
