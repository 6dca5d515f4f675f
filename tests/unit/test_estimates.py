"""What a client believes of its link and its server, by what it observed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ionn.client.estimates import FACTOR_MAX, FACTOR_MIN, MBPS_MAX, MBPS_MIN, TOLERANCE, WINDOW_S, Estimate, Estimates

POSITIVE = st.integers(-30, 30).map(lambda step: float(2 ** (step / 3)))


def test_before_anything_is_observed() -> None:
    assert Estimates(80.0).current(0.0) == Estimate(80.0, 0.0) == Estimate(80.0, 0.0, 1.0, 1.0)


@given(POSITIVE, st.lists(st.integers(1, 10**7), min_size=1, max_size=50))
def test_a_constant_link_is_believed_to_be_what_it_is(mbps: float, sizes: list[int]) -> None:
    estimates = Estimates(80.0)
    now_s = 0.0
    for size_bytes in sizes:
        seconds = size_bytes * 8 / (mbps * 1e6)
        now_s += seconds
        estimates.observe_bytes(now_s, size_bytes, seconds)
    told = estimates.current(now_s).mbps
    right = min(max(mbps, MBPS_MIN), MBPS_MAX)
    assert told == pytest.approx(right) or (told == 80.0 and 80 / TOLERANCE <= right <= 80 * TOLERANCE)


@given(POSITIVE, POSITIVE)
def test_the_link_of_the_last_two_seconds_counts(before: float, now: float) -> None:
    estimates = Estimates(1.0)
    for tenth in range(50):
        estimates.observe_bytes(tenth / 10, before * 1e5 / 8, 0.1)
    for tenth in range(50, 50 + round(WINDOW_S * 10) + 1):
        estimates.observe_bytes(tenth / 10, now * 1e5 / 8, 0.1)
    told, now = estimates.current(5.0 + WINDOW_S).mbps, max(now, MBPS_MIN)
    assert now / TOLERANCE <= told <= now * TOLERANCE


def test_an_observation_counts_for_two_seconds() -> None:
    estimates = Estimates(80.0)
    estimates.observe_bytes(1.0, 1e6, 1.0)
    estimates.observe_bytes(2.0, 2e6, 1.0)
    assert estimates.current(3.0).mbps == 12.0
    assert estimates.current(3.01).mbps == 16.0


def test_the_last_observation_counts_whenever_it_was() -> None:
    estimates = Estimates(80.0)
    estimates.observe_bytes(0.0, 1e6, 1.0)
    estimates.observe_bytes(1.0, 2e6, 1.0)
    assert estimates.current(1.0).mbps == 12.0
    assert estimates.current(1e6).mbps == 16.0


@given(st.lists(st.tuples(st.integers(0, 40), st.floats(0, 1e3), st.floats(1e-3, 1e3)), min_size=1, max_size=60))
def test_what_is_observed_within_a_twentieth_of_a_second_is_one_observation(
    observed: list[tuple[int, float, float]],
) -> None:
    """It counts from its first part on; times here are in steps of 30 ms."""
    estimates, step = Estimates(80.0), 0
    parts: list[tuple[int, float, float]] = []
    for steps, measured_ms, promised_ms in observed:
        step += steps
        if not parts or step - parts[-1][0] >= 2:
            parts.append((step, measured_ms, promised_ms))
        else:
            parts[-1] = parts[-1][0], parts[-1][1] + measured_ms, parts[-1][2] + promised_ms
        estimates.observe_client(step * 0.03, measured_ms, promised_ms)
        counting = [part for part in parts[:-1] if part[0] * 0.03 >= step * 0.03 - WINDOW_S] + parts[-1:]
        factor = sum(part[1] for part in counting) / sum(part[2] for part in counting)
        factor = min(max(factor, FACTOR_MIN), FACTOR_MAX)
        told = estimates.current(step * 0.03).client_factor
        assert factor / TOLERANCE * (1 - 1e-9) <= told <= factor * TOLERANCE * (1 + 1e-9)


def test_the_number_of_observations_is_bounded() -> None:
    """Or a query of a small network, of which there are thousands in two seconds, would take longer to be counted than
    to be computed."""
    estimates = Estimates(80.0)
    for number in range(10_000):
        estimates.observe_client(number / 1e3, 3.0, 1.0)
    assert estimates.current(10.0).client_factor == pytest.approx(3.0)
    assert len(estimates._client._observed) <= WINDOW_S / 0.05 + 2


def test_what_is_told_stays_until_it_is_off_by_more_than_the_tolerance() -> None:
    estimates = Estimates(100.0)
    estimates.observe_bytes(0.0, 104e6 / 8, 1.0)
    assert estimates.current(0.0).mbps == 100.0
    estimates.observe_bytes(10.0, 106e6 / 8, 1.0)
    assert estimates.current(10.0).mbps == 106.0
    estimates.observe_bytes(20.0, 101e6 / 8, 1.0)
    assert estimates.current(20.0).mbps == 106.0
    # By exactly so much it is not.
    for tolerated in (105.0, 100.0):
        estimates = Estimates(205.0 - tolerated)
        estimates.observe_bytes(0.0, tolerated * 1e6 / 8, 1.0)
        assert estimates.current(0.0).mbps == 205.0 - tolerated


def test_a_round_trip_is_not_counted_as_bandwidth() -> None:
    estimates = Estimates(80.0)
    estimates.observe_round_trip(0.0, 60.0)
    estimates.observe_round_trip(0.1, 40.0)
    assert estimates.current(0.1).rtt_ms == 50.0
    estimates.observe_transfers(0.2, 1e6, 0.05 + 0.1)
    assert estimates.current(0.2).mbps == pytest.approx(80.0)
    # However long the round trip, the bytes take some of the time.
    estimates.observe_transfers(10.0, 1e6, 0.02)
    assert estimates.current(10.0).mbps == pytest.approx(8 / (0.05 * 0.02))
    for round_trip_ms, told_ms in ((0.05, 0.0), (0.1, 0.1), (0.5, 0.5), (1.02, 1.02)):
        short = Estimates(80.0)
        short.observe_round_trip(0.0, round_trip_ms)
        assert short.current(0.0).rtt_ms == told_ms


def test_factors_are_by_how_much_longer_the_times_were_than_promised() -> None:
    estimates = Estimates(80.0)
    estimates.observe_server(0.0, 30.0, 10.0)
    estimates.observe_server(0.1, 10.0, 30.0)
    estimates.observe_client(0.1, 3.0, 2.0)
    estimates.observe_client(0.1, 5.0, 0.0)  # says nothing
    assert estimates.current(0.1) == Estimate(80.0, 0.0, 1.0, 1.5)
    estimates.observe_server(5.0, 1.0, 8.0)
    assert estimates.current(5.0).server_factor == 0.125
    estimates.observe_server(10.0, 1e9, 1.0)
    assert estimates.current(10.0).server_factor == FACTOR_MAX


@pytest.mark.parametrize(("mbps", "told"), [(0.001, 0.01), (0.02, 0.02), (9e4, 9e4), (1e9, 1e5)])
@pytest.mark.parametrize(("factor", "told_factor"), [(1e-6, 1e-3), (0.002, 0.002), (9e3, 9e3), (1e9, 1e4)])
def test_what_is_beyond_a_range_is_told_as_its_end(mbps: float, told: float, factor: float, told_factor: float) -> None:
    estimates = Estimates(80.0)
    estimates.observe_bytes(0.0, mbps * 1e6 / 8, 1.0)
    estimates.observe_server(0.0, factor, 1.0)
    estimates.observe_client(0.0, factor, 1.0)
    assert estimates.current(0.0) == pytest.approx(Estimate(told, 0.0, told_factor, told_factor))


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 1e9), st.floats(0, 1e4)), max_size=30))
def test_whatever_is_observed_beliefs_stay_in_their_ranges(observed: list[tuple[float, float, float]]) -> None:
    estimates = Estimates(80.0)
    now_s = 0.0
    for step_s, number, other in observed:
        now_s += step_s
        estimates.observe_transfers(now_s, number, other)
        estimates.observe_server(now_s, number, other)
        estimates.observe_round_trip(now_s, other)
        told = estimates.current(now_s)
        assert MBPS_MIN <= told.mbps <= MBPS_MAX
        assert 0 < told.server_factor <= FACTOR_MAX
        assert told.rtt_ms >= 0
