"""The delay of a link and how it wanders."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ionn.errors import InputError
from ionn.testbed.delay import DELAY_MAX_MS, Delay, check_delay

TIMES = st.floats(0, 1e5)


def test_without_jitter_it_is_the_same_for_all() -> None:
    assert [Delay(20.0).arrival(left) for left in (0.0, 3.5, 1e6)] == [20.0, 23.5, 1e6 + 20]
    assert Delay().arrival(1 / 3) == 1 / 3


@given(TIMES, TIMES, st.sampled_from([0.1, 3.0, 20.0]), st.integers(0, 3))
def test_nothing_overtakes_and_all_take_what_they_may(one: float, other: float, jitter: float, seed: int) -> None:
    first, second = sorted((one, other))
    delay = Delay(20.0, jitter, str(seed))
    arrivals = delay.arrival(first), delay.arrival(second)
    assert arrivals[0] <= arrivals[1] + 1e-9
    for left, arrival in zip((first, second), arrivals, strict=True):
        assert 20.0 - jitter - 1e-9 <= arrival - left <= 20.0 + jitter + 1e-9


def test_it_wanders_all_over_its_range() -> None:
    delay = Delay(20.0, 5.0, "a")
    took = [delay.arrival(left) - left for left in range(0, 100_000, 7)]
    assert min(took) < 15.3
    assert max(took) > 24.7
    assert sum(took) / len(took) == pytest.approx(20.0, abs=0.1)


def test_it_heads_in_a_straight_line_for_another_value_every_two_jitters() -> None:
    def took(left: float) -> float:
        return Delay(20.0, 5.0, "a").arrival(left) - left

    corners = [took(10.0 * number) for number in range(20)]
    assert len(set(corners)) == 20
    for number, (begin, end) in enumerate(pairwise(corners)):
        for part in (0.25, 0.5, 0.999):
            assert took(10 * (number + part)) == pytest.approx(begin + part * (end - begin))


@given(st.lists(TIMES, min_size=1))
def test_it_depends_on_time_and_seed_alone(times: list[float]) -> None:
    asked = Delay(20.0, 5.0, "a")
    assert [asked.arrival(left) for left in times] == [Delay(20.0, 5.0, "a").arrival(left) for left in times]


def test_directions_and_seeds_differ_and_units_do_not() -> None:
    up, down = Delay.both(20.0, 5.0, 0)
    (other, _), (in_s, _) = Delay.both(20.0, 5.0, 1), Delay.both(0.02, 0.005, 0)
    assert len({delay.arrival(1000.0) for delay in (up, down, other)}) == 3
    assert in_s.arrival(1.0) == pytest.approx(up.arrival(1000.0) / 1e3)


@pytest.mark.parametrize(
    ("delay_ms", "jitter_ms", "reason"),
    [
        (-1.0, 0.0, "delay -1 ms: give a number from 0 to 500"),
        (DELAY_MAX_MS + 1, 0.0, "delay 501 ms"),
        (math.nan, 0.0, "delay nan ms"),
        (5.0, -1.0, "jitter -1 ms: give a number from 0 to the delay, which is 5 ms"),
        (5.0, 5.1, "jitter 5.1 ms"),
        (5.0, math.nan, "jitter nan ms"),
    ],
)
def test_what_cannot_be_is_refused(delay_ms: float, jitter_ms: float, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        check_delay(delay_ms, jitter_ms)
    for most_ms in (0.0, 0.5, DELAY_MAX_MS):
        check_delay(most_ms, 0.0)
        check_delay(most_ms, most_ms)
