"""Coded blobs that are nearly right, or bombs: at a real server and at a client. `make fuzz` runs many more."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ionn import coding
from ionn.client.query import Coding, Exchange, Wanted
from ionn.coding import zstd
from ionn.errors import ProtocolError
from ionn.model.network import Network
from ionn.model.partial_net import extract
from ionn.protocol import messages
from tests.fuzz.peer import Peer
from tests.fuzz.strategies import cases, examples
from tests.support.bombs import bombs
from tests.support.raw import Raw, upload_messages
from tests.support.world import Server

SHAPE = (1, 3, 40, 40)
RAW_BYTES = 4 * 3 * 40 * 40
NETWORK = Network.from_text(
    """
    layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 40 dim: 40 } } }
    layer { name: "scale" type: "Scale" bottom: "data" top: "scale" }
    """,
    "scale",
)
PARTITION = extract(NETWORK, [1], {"scale": (np.full(3, 2.0, np.float32),)})
_rng = np.random.default_rng(0)
BLOBS = [
    _rng.integers(0, 256, SHAPE).astype("<f4").tobytes(),
    np.zeros(SHAPE, "<f4").tobytes(),
    np.maximum(_rng.standard_normal(SHAPE), 0).astype("<f4").tobytes(),
]
FRAMES = [bytes(coding.encode(blob)[1]) for blob in BLOBS]
OTHERS = [bytes(coding.encode(bytes(size))[1]) for size in (RAW_BYTES - 4, RAW_BYTES + 4, 2 * RAW_BYTES, 4)]
BOMBS = bombs(RAW_BYTES)


@st.composite
def payloads(draw: st.DrawFn) -> tuple[list[bytes], tuple[str, ...]]:
    """Frames and codecs in the place of one blob, sometimes right."""
    frame = bytearray(draw(st.sampled_from([*FRAMES, *FRAMES, *OTHERS, *BLOBS]) | st.sampled_from(BOMBS)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(frame)))
        to = at + draw(st.sampled_from([0, 1, 1, 2, 10**6]))
        frame[at:to] = draw(st.binary(max_size=3))
    frames = [bytes(frame), *draw(st.lists(st.sampled_from(FRAMES), max_size=1))][:: draw(st.sampled_from([1, -1]))]
    words = st.sampled_from(["planes", "planes", "planes", "raw", "zip", ""])
    codecs = draw(st.just(("planes",)) | st.lists(words, max_size=2).map(tuple))
    return frames, codecs


def truth(frames: Sequence[bytes], codecs: Sequence[str]) -> bytes | None:
    """What the payload is by zstd's own one-shot function, None for what it is not."""
    if len(frames) != 1 or len(codecs) > 1:
        return None
    if codecs in ((), ("raw",)):
        return frames[0] if len(frames[0]) == RAW_BYTES else None
    if codecs != ("planes",) or len(frames[0]) >= RAW_BYTES:
        return None
    try:
        if zstd.get_frame_info(frames[0]).decompressed_size != RAW_BYTES or zstd.get_frame_size(frames[0]) != len(
            frames[0]
        ):
            return None
        decoded = zstd.decompress(frames[0])
    except zstd.ZstdError:
        return None
    return np.frombuffer(decoded, np.uint8).reshape(4, -1).T.tobytes() if len(decoded) == RAW_BYTES else None


def doubled(blob: bytes) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.frombuffer(blob, "<f4") * np.float32(2)


uploaded_to: set[str] = set()


@cases
@given(payload=payloads(), asked=st.booleans())
def test_any_coded_query(peer: Peer, payload: tuple[list[bytes], tuple[str, ...]], asked: bool) -> None:
    """It is computed on what it decodes to, or refused; the session goes on in any case."""
    peer.case()
    if peer.token not in uploaded_to:
        uploaded_to.add(peer.token)
        peer.ask(messages.Hello(messages.PROTOCOL, "control", peer.token, ("planes",)))
        header, chunks, end = upload_messages(PARTITION)
        for message in (header, *chunks, end):
            assert not isinstance(peer.ask(message), messages.Error)
    frames, codecs = payload
    wanted = truth(frames, codecs)
    answer = peer.ask(messages.Query(1, 1, 1, frames, codecs, asked))
    if wanted is None:
        assert isinstance(answer, messages.Error)
        assert answer.code == messages.ERROR_QUERY
        return
    assert isinstance(answer, messages.Result), answer
    codec = answer.codecs[0] if answer.codecs else "raw"
    assert asked or codec == "raw"
    output = truth([bytes(answer.payload[0])], (codec,))
    assert output is not None
    np.testing.assert_array_equal(np.frombuffer(output, "<f4"), doubled(wanted))


class Told:
    """A connection whose other end has said one thing. `violation` is the client's."""

    def __init__(self, frames: Sequence[bytes]) -> None:
        self._frames = frames

    def send(self, message: messages.Message, copy: bool = False) -> None:
        assert isinstance(message, messages.Query)

    def receive(self, timeout_s: float) -> messages.Message:
        return messages.decode(self._frames)

    def violation(self, what: str) -> ProtocolError:
        assert what.isprintable()
        return ProtocolError(what)


@examples(1000)
@given(payload=payloads(), asked=st.booleans())
def test_any_coded_result(payload: tuple[list[bytes], tuple[str, ...]], asked: bool) -> None:
    """A client takes what the result decodes to, and what is coded only if it asked for that."""
    frames, codecs = payload
    said: Any = Told(messages.Result(1, (SHAPE,), (0.5,), frames, codecs).frames())
    exchange = Exchange(said, 1, 60.0, coding.CODECS)
    sent = exchange.run(1, 1, wanted=Wanted([SHAPE], Coding() if asked else None))
    wanted = truth(frames, codecs) if asked or "planes" not in codecs else None
    if wanted is None:
        with pytest.raises(ProtocolError, match="does not fit its shapes"):
            exchange.result(sent)
        return
    (output,), _ = exchange.result(sent)
    assert output.tobytes() == wanted
    assert (exchange.raw_bytes, exchange.wire_bytes) == (RAW_BYTES, len(frames[0]))


@pytest.fixture
def lonely() -> Iterator[Server]:
    server = Server()
    yield server
    server.end_well()


def test_bombs_do_not_make_a_session_grow(lonely: Server) -> None:
    """Measured: the most memory that its process has had, resident and in addresses."""
    with Raw(lonely.address) as raw:
        raw.upload(PARTITION)
        for _ in range(3):
            assert isinstance(raw.ask(raw.control, messages.Query(1, 1, 1, (FRAMES[0],), ("planes",))), messages.Result)
        (pid,) = lonely.session_processes()
        before_kb = peaks_kb(pid)
        for bomb in BOMBS:
            refused = raw.ask(raw.control, messages.Query(1, 1, 1, (bomb,), ("planes",)))
            assert isinstance(refused, messages.Error)
            assert refused.code == messages.ERROR_QUERY
        assert lonely.session_processes() == {pid}
        for peak_kb, former_kb in zip(peaks_kb(pid), before_kb, strict=True):
            assert peak_kb - former_kb < 2000


def peaks_kb(pid: int) -> list[int]:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return [int(kb) for kb in re.findall(r"Vm(?:HWM|Peak):\s*(\d+) kB", status)]
