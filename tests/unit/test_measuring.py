"""What a live client makes of the bytes that it sees crossing: rates that a link has."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ionn.client.measuring import Measuring

BYTES_PER_S = 1e6  # of a link of 8 Mbps
CHUNK_BYTES = 131_072


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        monkeypatch.setattr("ionn.client.measuring.time", SimpleNamespace(monotonic=lambda: self.now_s))

    def cross(self, size_bytes: int) -> None:
        self.now_s += size_bytes / BYTES_PER_S


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_features_that_crossed_before_the_upload_do_not_count_for_it(clock: Clock) -> None:
    seen = Measuring()
    seen.asked()
    clock.cross(600_000)
    seen.under_way(True)
    seen.acknowledged(CHUNK_BYTES)  # the first; the query is still at the server
    seen.answered(600_000, 4_000, 0.604)
    for _ in range(3):
        clock.cross(CHUNK_BYTES)
        seen.acknowledged(CHUNK_BYTES)
    assert seen.current().mbps == pytest.approx(8.0, rel=0.01)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("acknowledged", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_features_beside_weights_have_not_the_link_for_themselves(
    clock: Clock, before: bool, acknowledged: bool, after: bool
) -> None:
    """Whether weights were under way before, or still are after them, and whether a server acknowledges any."""
    seen = Measuring()
    seen.probed(64_000, 0.064)
    seen.under_way(before)
    seen.asked()
    seen.under_way(True)
    clock.cross(2 * 600_000)  # half of it weights
    if acknowledged:
        seen.acknowledged(CHUNK_BYTES)
    seen.under_way(after)
    seen.answered(600_000, 0, 1.2)
    assert seen.current().mbps == pytest.approx(8.0, rel=0.06)
    # The next ones tell the rate again.
    seen.under_way(False)
    for _ in range(20):
        seen.asked()
        clock.now_s += 1.2  # the link has half its rate now
        seen.answered(600_000, 0, 1.2)
    assert seen.current().mbps == pytest.approx(4.0, rel=0.06)


def test_features_beside_weights_count_with_them(clock: Clock) -> None:
    seen = Measuring()
    seen.under_way(True)
    seen.acknowledged(CHUNK_BYTES)
    for _ in range(3):
        seen.asked()
        clock.cross(300_000)
        seen.acknowledged(100_000)
        seen.answered(200_000, 0, 0.3)
    clock.cross(CHUNK_BYTES)
    seen.acknowledged(CHUNK_BYTES)
    assert seen.current().mbps == pytest.approx(8.0, rel=0.01)


def test_what_was_broken_off_tells_nothing_and_keeps_nothing_up(clock: Clock) -> None:
    seen = Measuring()
    seen.under_way(True)
    seen.acknowledged(CHUNK_BYTES)
    seen.asked()
    clock.cross(50_000)
    seen.failed()
    assert seen.uploading
    for _ in range(3):
        clock.cross(CHUNK_BYTES)
        seen.acknowledged(CHUNK_BYTES)
    assert seen.current().mbps == pytest.approx(8.0, rel=0.01)
    seen.under_way(False)
    assert not seen.uploading


def test_what_a_server_acknowledges_after_it_has_computed_crossed_before(clock: Clock) -> None:
    seen = Measuring()
    seen.asked()
    seen.under_way(True)
    seen.acknowledged(CHUNK_BYTES)
    clock.cross(3 * CHUNK_BYTES)  # while it computes
    seen.answered(1_000, 0, 0.4)
    for _ in range(3):
        clock.now_s += 0.001
        seen.acknowledged(CHUNK_BYTES)
    for _ in range(3):
        clock.cross(CHUNK_BYTES)
        seen.acknowledged(CHUNK_BYTES)
    assert seen.current().mbps == pytest.approx(8.0, rel=0.06)


def test_what_is_told_is_undilated(clock: Clock) -> None:
    """On the wall all takes twice as long, whatever it was told by."""
    by_weights, by_probe, by_query = (Measuring(2.0) for _ in range(3))
    by_weights.under_way(True)
    for _ in range(4):
        by_weights.acknowledged(CHUNK_BYTES)
        clock.cross(CHUNK_BYTES)
    by_probe.round_trip(0.02)
    by_probe.probed(64_000, 0.064 + 0.02)
    by_query.asked()
    by_query.answered(60_000, 4_000, 0.064)
    for seen in (by_weights, by_probe, by_query):
        assert seen.current().mbps == pytest.approx(16.0)
        seen.computed("server", 6.0, 1.0)
        seen.computed("client", 4.0, 1.0)
        assert seen.current()[2:] == pytest.approx((3.0, 2.0))
    assert by_probe.current().rtt_ms == pytest.approx(10.0)
