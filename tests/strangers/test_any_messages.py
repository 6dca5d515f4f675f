"""Any messages over both connections of a session, in any pieces, some of which never end. Every answer is right."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from ionn.model.network import Network
from ionn.model.partial_net import ExtractedPartition, extract
from ionn.protocol import messages
from tests.strangers.peers import Stranger, ask, bye, message, welcome
from tests.strangers.test_shares import PATIENT, served
from tests.support.raw import upload_messages
from tests.support.world import Server, wait_for

CHANNELS = 64
# The sides of the blobs before the stages: 4.3 MB, which is more than an inbox has room for, to 2.3 KB.
SIDES = (129, 65, 33, 17, 9, 5, 3)
FEATURES = CHANNELS * SIDES[-1] ** 2
OUTPUTS = 100
PARTITIONS = ([1, 2, 3], [4], [5, 6, 7])
STEPS = 30


def halving() -> Network:
    """Stages that take every other row and column, and one that takes every other feature, whose weights are 230 KB."""
    dims = f"dim: 1 dim: {CHANNELS} dim: {SIDES[0]} dim: {SIDES[0]}"
    lines = [f'layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ {dims} }} }} }}']
    bottom = "data"
    for side in SIDES[1:]:
        lines.append(
            f'layer {{ name: "pool{side}" type: "Pooling" bottom: "{bottom}" top: "pool{side}" '
            "pooling_param { kernel_size: 1 stride: 2 } }"
        )
        bottom = f"pool{side}"
    lines.append(
        f'layer {{ name: "features" type: "InnerProduct" bottom: "{bottom}" top: "features" '
        f"inner_product_param {{ num_output: {OUTPUTS} bias_term: false }} }}"
    )
    return Network.from_text("\n".join(lines), "halving")


class Client:
    """Does at random what a client may do, with a session of its own."""

    def __init__(self, server: Server, seed: int, stack: ExitStack) -> None:
        self._address, self._stack = server.address, stack
        self._rng = np.random.default_rng(seed)
        self._sender = stack.enter_context(ThreadPoolExecutor(1))
        self._peers = {role: stack.enter_context(Stranger(server.address)) for role in ("control", "upload")}
        self.token = welcome(self._peers["control"])
        welcome(self._peers["upload"], self.token, "upload")
        network = halving()
        weights = np.eye(FEATURES, dtype=np.float32)[: 2 * OUTPUTS : 2]
        self._to_upload = [
            each
            for index, stages in enumerate(PARTITIONS)
            for each in self._upload(index, extract(network, stages, {"features": (weights,)}))
        ]
        self._uploaded = 0

    def _upload(self, index: int, partition: ExtractedPartition) -> Iterator[messages.Message]:
        header, chunks, end = upload_messages(partition, index, chunk_bytes=int(self._rng.integers(20_000, 60_000)))
        yield from (header, *chunks, end)

    def _one_of(self, *those: str) -> str:
        return those[self._rng.integers(len(those))]

    def _query(self) -> tuple[bytes, bytes]:
        """A query of stages that are uploaded, and its result."""
        last = int(self._rng.integers(1, self._uploaded + 1))
        first = int(self._rng.integers(1, last + 1))
        side = SIDES[first - 1]
        data = self._rng.standard_normal((1, CHANNELS, side, side), np.float32)
        result = data[..., :: 2 ** (min(last, 6) + 1 - first), :: 2 ** (min(last, 6) + 1 - first)]
        if last > 6:
            result = result.reshape(-1)[: 2 * OUTPUTS : 2]
        number = int(self._rng.integers(1_000_000))
        return message(messages.Query(number, first, last, (data.tobytes(),))), result.tobytes()

    def _send(self, role: str, data: bytes) -> None:
        """Send bytes in pieces, and look for a sign of life by the other connection between some of them."""
        cuts = sorted(self._rng.integers(len(data), size=self._rng.integers(6)))
        for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            self._peers[role].send(data[begin:end])
            if self._rng.random() < 0.5:
                other = self._peers["upload" if role == "control" else "control"]
                assert isinstance(ask(other, messages.Ping()), messages.Pong)

    def queries(self) -> None:
        """Several at once, before the first is answered."""
        queries = [self._query() for _ in range(self._rng.integers(1, 5))]
        sent = self._sender.submit(self._send, "control", b"".join(query for query, _ in queries))
        for _, expected in queries:
            result = self._peers["control"].answer()
            assert isinstance(result, messages.Result), result
            assert bytes(result.payload[0]) == expected
        sent.result()

    def upload(self) -> None:
        """The next message of an upload, by any connection."""
        if self._to_upload:
            role, following = self._one_of("control", "upload"), self._to_upload.pop(0)
            self._send(role, message(following))
            answer = self._peers[role].answer()
            assert isinstance(answer, messages.Ack | messages.Ready), answer
            if isinstance(answer, messages.Ready):
                self._uploaded = PARTITIONS[answer.partition][-1]

    def break_off(self) -> None:
        """In the middle of a message, and come back."""
        role = self._one_of("control", "upload")
        whole = self._query()[0] if role == "control" or not self._to_upload else message(self._to_upload[0])
        self._send(role, whole[: self._rng.integers(1, len(whole))])
        match self._one_of("closed", "reset", "taken over"):
            case "closed":
                self._peers[role].socket.close()
            case "reset":
                self._peers[role].reset()
        self._peers[role] = self._stack.enter_context(Stranger(self._address))
        assert welcome(self._peers[role], self.token, role) == self.token

    def run(self) -> None:
        while not self._uploaded:
            self.upload()
        for _ in range(STEPS):
            (self.queries, self.upload, self.break_off)[self._rng.integers(3)]()


@pytest.mark.parametrize("seed", range(4))
def test_any_messages(seed: int) -> None:
    with served(*PATIENT) as server, ExitStack() as stack:
        client = Client(server, seed, stack)
        memory = Path(f"/proc/{server.pid}/maps")
        assert "/memfd:inbox" in memory.read_text()
        client.run()
        bye(server.address, client.token)
        wait_for(lambda: "/memfd:inbox" not in memory.read_text(), "the session's inbox to be freed")
