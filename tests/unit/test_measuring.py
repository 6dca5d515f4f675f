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
    alone = seen.asked()
    assert alone
    clock.cross(600_000)
    seen.acknowledged(CHUNK_BYTES)  # the first; the query is still at the server
    seen.answered(alone, 600_000, 4_000, 0.604)
    for _ in range(3):
        clock.cross(CHUNK_BYTES)
        seen.acknowledged(CHUNK_BYTES)
    assert seen.current().mbps == pytest.approx(8.0, rel=0.01)


def test_features_beside_which_an_upload_began_had_not_the_link_for_themselves(clock: Clock) -> None:
    seen = Measuring()
    seen.probed(64_000, 0.064)
    alone = seen.asked()
    clock.cross(2 * 600_000)  # half of it weights
    seen.acknowledged(CHUNK_BYTES)
    seen.answered(alone, 600_000, 0, 1.2)
    assert seen.current().mbps == pytest.approx(8.0, rel=0.06)


def test_features_beside_weights_count_with_them(clock: Clock) -> None:
    seen = Measuring()
    seen.acknowledged(CHUNK_BYTES)
    assert seen.uploading
    for _ in range(3):
        assert not seen.asked()
        clock.cross(300_000)
        seen.acknowledged(100_000)
        seen.answered(False, 200_000, 0, 0.3)
    clock.cross(CHUNK_BYTES)
    seen.acknowledged(CHUNK_BYTES)
    assert seen.current().mbps == pytest.approx(8.0, rel=0.01)


def test_what_was_broken_off_tells_nothing_and_keeps_nothing_up(clock: Clock) -> None:
    seen = Measuring()
    seen.acknowledged(CHUNK_BYTES)
    seen.asked()
    clock.cross(50_000)
    seen.failed()
    assert seen.uploading
    for _ in range(3):
        clock.cross(CHUNK_BYTES)
        seen.acknowledged(CHUNK_BYTES)
    assert seen.current().mbps == pytest.approx(8.0, rel=0.01)
    seen.idle()
    assert not seen.uploading
    assert seen.asked()


def test_what_a_server_acknowledges_after_it_has_computed_crossed_before(clock: Clock) -> None:
    seen = Measuring()
    alone = seen.asked()
    seen.acknowledged(CHUNK_BYTES)
    clock.cross(3 * CHUNK_BYTES)  # while it computes
    seen.answered(alone, 1_000, 0, 0.4)
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
    for _ in range(4):
        by_weights.acknowledged(CHUNK_BYTES)
        clock.cross(CHUNK_BYTES)
    by_probe.round_trip(0.02)
    by_probe.probed(64_000, 0.064 + 0.02)
    by_query.answered(by_query.asked(), 60_000, 4_000, 0.064)
    for seen in (by_weights, by_probe, by_query):
        assert seen.current().mbps == pytest.approx(16.0)
        seen.computed("server", 6.0, 1.0)
        seen.computed("client", 4.0, 1.0)
        assert seen.current()[2:] == pytest.approx((3.0, 2.0))
    assert by_probe.current().rtt_ms == pytest.approx(10.0)
