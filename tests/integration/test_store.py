"""A server that stores weights, and clients by hand: what it has is not sent again, and what comes of it is right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ionn.model.network import Network
from ionn.model.partial_net import ExtractedPartition, extract
from ionn.protocol import messages
from tests.support.command import serving
from tests.support.forward import Weights, boundary_blobs
from tests.support.raw import Raw
from tests.support.stored import addressed, digests_of, held_by, upload, wait_held

SHARED = ("--store-gb", "1", "--store-shared")


@pytest.fixture(scope="module")
def whole(tiny: Network, tiny_weights: Weights) -> ExtractedPartition:
    return extract(tiny, [stage.index for stage in tiny.stages if not stage.pinned], tiny_weights)


def check_answers(raw: Raw, network: Network, weights: Weights) -> None:
    """A query over all stages gives what the client computes by itself."""
    data = np.random.default_rng(5).standard_normal(network.input_shape).astype(np.float32)
    blobs = boundary_blobs(network, weights, data)
    last = [stage.index for stage in network.stages if not stage.pinned][-1]
    result = raw.ask(raw.control, messages.Query(1, 1, last, (blobs[1].tobytes(),)))
    assert isinstance(result, messages.Result), result
    assert bytes(result.payload[0]) == blobs[last + 1].tobytes()


def test_a_server_that_comes_back_has_what_was_uploaded(
    tmp_path: Path, tiny: Network, tiny_weights: Weights, whole: ExtractedPartition
) -> None:
    pieces = addressed(whole)
    options = ("--store", str(tmp_path / "store"), *SHARED)
    with serving(*options) as process, Raw(process.address) as raw:
        socket = raw.upload_connection()
        assert held_by(raw, socket, digests_of(pieces)) == set()
        assert upload(raw, socket, whole, pieces) == whole.caffemodel.size
        wait_held(raw, socket, digests_of(pieces))
    with serving(*options) as process, Raw(process.address) as raw:
        socket = raw.upload_connection()
        stored = held_by(raw, socket, digests_of(pieces))
        assert stored == set(digests_of(pieces))
        sent = upload(raw, socket, whole, addressed(whole, stored=stored))
        assert sent == whole.caffemodel.size - sum(span.size for span in whole.caffemodel.blobs)
        check_answers(raw, tiny, tiny_weights)
