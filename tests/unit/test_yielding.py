"""How much an upload that yields keeps under way, and what it sends beside a query."""

from __future__ import annotations

import heapq

import numpy as np
import pytest

from ionn.model.network import Network
from ionn.model.partial_net import extract
from ionn.protocol.messages import CHUNK_BYTES, PROTOCOL, Chunk, Welcome
from ionn.protocol.sender import Upload
from ionn.protocol.yielding import BESIDE_QUERY_BYTES, YieldingWindow


def carried(bytes_per_s: float, round_trip_s: float) -> tuple[float, float]:
    """Send chunks over a link for 20 s, as many as the window lets: the share of its rate that is used in the second
    half, and the most bytes that wait in front of it then."""
    window, now_s, free_s, under_way = YieldingWindow(), 0.0, 0.0, 0
    answers: list[tuple[float, float, int]] = []
    crossed, queue = 0, 0.0
    while now_s < 20:
        while under_way + CHUNK_BYTES <= window.bytes:
            under_way += CHUNK_BYTES
            free_s = max(free_s, now_s) + CHUNK_BYTES / bytes_per_s
            heapq.heappush(answers, (free_s + round_trip_s, now_s, under_way))
            if now_s > 10:
                crossed += CHUNK_BYTES
                queue = max(queue, (free_s - now_s) * bytes_per_s)
        now_s, sent_s, with_it = heapq.heappop(answers)
        under_way -= CHUNK_BYTES
        window.acknowledged(with_it, now_s - sent_s)
    return crossed / (bytes_per_s * 10), queue


@pytest.mark.parametrize(("mbps", "round_trip_s"), [(2, 0.0), (2, 0.2), (80, 0.0), (80, 0.04), (80, 0.2), (1000, 0.02)])
def test_the_link_is_busy_and_its_queue_is_short(mbps: float, round_trip_s: float) -> None:
    used, queue = carried(mbps * 1e6 / 8, round_trip_s)
    assert used > 0.95
    assert queue <= BESIDE_QUERY_BYTES + 2 * CHUNK_BYTES


def test_beside_a_query_it_sends_two_chunks_with_what_was_under_way(
    tiny: Network, tiny_weights: dict[str, tuple[np.ndarray, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 1000
    monkeypatch.setattr("ionn.protocol.sender.BESIDE_QUERY_BYTES", 2 * size)
    monkeypatch.setattr("ionn.protocol.yielding.BESIDE_QUERY_BYTES", 4 * size)
    for yields in (True, False):
        upload = Upload([extract(tiny, [1, 2, 5], tiny_weights)], lambda: 1.0, yields)
        upload.begin(Welcome(PROTOCOL, "token", size, 5 * size))

        def chunks(query: int | None, upload: Upload = upload) -> int:
            """How many chunks are sent until it waits."""
            sent = list(iter(lambda: upload.next_message(query), None))
            return sum(isinstance(message, Chunk) for message in sent)

        def answered(upload: Upload = upload) -> None:
            while upload._awaited:
                upload.take(upload._awaited[0].answer)

        counts = [chunks(1)]
        answered()
        counts += [chunks(1), chunks(2)]
        answered()
        counts.append(chunks(None))
        counts.append(chunks(3))
        answered()
        counts.append(chunks(3))
        assert BESIDE_QUERY_BYTES == 2 * CHUNK_BYTES
        if yields:  # the fourth time there is no query; the last two times, all that may be was under way
            assert counts[:3] == [2, 0, 2]
            assert counts[3] >= 4
            assert counts[4:] == [0, 0]
        else:
            assert counts == [5, 5, 0, 5, 0, 5]
