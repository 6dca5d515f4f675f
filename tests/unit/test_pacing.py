from __future__ import annotations

import select
import time
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import ionn.client.pacing
from ionn.client.pacing import PacedResult, WallClock, run_paced
from ionn.testbed.bandwidth import Bandwidth
from ionn.testbed.link_pacer import LinkPacer

BYTES_PER_S = 10_000_000  # 80 Mbps


def test_idle_link_gives_no_credit() -> None:
    pacer = LinkPacer(Bandwidth.constant(80))
    assert pacer.transmit(4_000, now_s=5.0, waited=False) == pytest.approx(5.0004)
    assert pacer.transmit(1_000, now_s=9.0, waited=False) == pytest.approx(9.0001)


def test_busy_link_makes_up_for_late_wakes() -> None:
    pacer = LinkPacer(Bandwidth.constant(80))
    arrival_s = pacer.transmit(4_000, now_s=0.0, waited=False)
    for _ in range(1_000):
        arrival_s = pacer.transmit(4_000, now_s=arrival_s + 0.003, waited=True)
    assert arrival_s == pytest.approx(1_001 * 4_000 / BYTES_PER_S)


def test_long_stall_is_made_up_for_in_part_only() -> None:
    pacer = LinkPacer(Bandwidth.constant(80))
    pacer.transmit(4_000, now_s=0.0, waited=False)
    assert pacer.transmit(4_000, now_s=7.0, waited=True) == pytest.approx(7.0 - 0.01 + 0.0004)


def test_bytes_that_came_while_the_link_was_busy_wait() -> None:
    pacer = LinkPacer(Bandwidth.constant(80))
    pacer.transmit(4_000, now_s=0.0, waited=False)
    assert pacer.transmit(1_000, now_s=0.0001, waited=False) == pytest.approx(0.0005)


@given(st.lists(st.tuples(st.integers(1, 8_000), st.floats(0, 0.05), st.booleans()), min_size=1, max_size=200))
@example([(8_000, 2.0, True), *[(8_000, 0.0, True)] * 20])  # held up for two seconds
def test_never_one_percent_over_the_cap_in_any_second(wakes: list[tuple[int, float, bool]]) -> None:
    """Whatever the sizes, and however late or idle the link: a second delivers at most 1 % too many bytes."""
    pacer = LinkPacer(Bandwidth.constant(0.8))  # so slow that the wakes span many seconds
    now_s, delivered = 0.0, []
    for size_bytes, delay_s, waited in wakes:
        now_s = max(now_s, pacer.transmit(size_bytes, now_s, waited)) + delay_s
        delivered.append((now_s, size_bytes))
    for begin_s, first_bytes in delivered:
        window = [size for time_s, size in delivered if begin_s <= time_s <= begin_s + 1]
        assert sum(window) - first_bytes <= 1.01 * 100_000 + 1


@pytest.mark.parametrize(
    ("mbps", "alone", "expected_bytes"),
    [
        (80, False, 4_000),
        (80, True, 8_000),
        (1, False, 1_500),
        (1_000, False, 50_000),
        (1e12, True, 262_144),
    ],
)
def test_quantum(mbps: float, alone: bool, expected_bytes: int) -> None:
    assert LinkPacer(Bandwidth.constant(mbps)).quantum_bytes(alone, now_s=1e5) == expected_bytes


STEPS = Bandwidth((0.0, 1.0, 2.0), (80.0, 0.0, 8.0))


def test_a_quantum_is_what_crosses_from_now_on() -> None:
    pacer = LinkPacer(STEPS)
    pacer.begin(100.0)
    sizes = [pacer.quantum_bytes(False, now_s) for now_s in (100.0, 100.9997, 101.5, 107.0)]
    assert sizes == [4_000, 3_000, 1_500, 1_500]
    assert pacer.quantum_bytes(True, now_s=102.0) == 3_000


def test_what_does_not_cross_before_an_outage_crosses_after_it() -> None:
    pacer = LinkPacer(STEPS)
    pacer.begin(100.0)
    assert pacer.transmit(5_000_000, 100.0, waited=False) == pytest.approx(100.5)
    assert pacer.transmit(6_000_000, 100.5, waited=True) == pytest.approx(103.0)
    assert pacer.transmit(1_000_000, 105.0, waited=False) == pytest.approx(106.0)


def test_a_bandwidth_begins_anew() -> None:
    pacer = LinkPacer(STEPS)
    assert pacer.transmit(1_000_000, 5.0, waited=False) == pytest.approx(6.0)
    pacer.begin(5.5)
    assert pacer.transmit(1_000_000, 5.5, waited=True) == pytest.approx(5.6)  # the one before is forgotten


def test_the_last_of_a_wait_is_polled(monkeypatch: pytest.MonkeyPatch) -> None:
    polls = []
    poll = select.select

    def watched(*arguments: Any) -> Any:
        polls.append(arguments)
        return poll(*arguments)

    monkeypatch.setattr(select, "select", watched)
    clock = WallClock()
    clock.wait_until(end_s := clock.now_s() + 0.002)
    assert clock.now_s() >= end_s
    assert set(polls) <= {((), (), (), 0)}


class FakeClock:
    """A clock that only moves when told to; every wait ends `overshoot_ms` too late."""

    def __init__(self, overshoot_ms: float = 0.0) -> None:
        self.time_s = 100.0
        self.overshoot_s = overshoot_ms / 1e3

    def now_s(self) -> float:
        return self.time_s

    def wait_until(self, time_s: float) -> None:
        if time_s > self.time_s:
            self.time_s = time_s + self.overshoot_s


def run(compute_ms: list[float], target_ms: list[float], overshoot_ms: float = 0.0) -> tuple[PacedResult, list[float]]:
    """The result, and when each layer began, in ms."""
    clock = FakeClock(overshoot_ms)
    begins_ms = []

    def run_layer(layer: int) -> None:
        begins_ms.append(round((clock.time_s - 100) * 1e3, 6))
        clock.time_s += compute_ms[layer] / 1e3

    return run_paced(run_layer, range(len(compute_ms)), target_ms, clock), begins_ms


def approx(overruns: int, overrun_ms: float, layer_ms: list[float]) -> PacedResult:
    """Equal to a result with such times."""
    return PacedResult(
        overruns,
        cast(float, pytest.approx(overrun_ms, abs=1e-6)),
        cast(tuple[float, ...], pytest.approx(tuple(layer_ms), abs=1e-6)),
    )


def test_layers_take_their_targets() -> None:
    result, begins_ms = run([1, 2, 0.5], target_ms=[5, 2, 3])
    assert begins_ms == [0, 5, 7]
    assert result == approx(overruns=0, overrun_ms=0, layer_ms=[5, 2, 3])


def test_late_waits_do_not_add_up() -> None:
    result, begins_ms = run([1, 1, 1], target_ms=[2, 2, 2], overshoot_ms=0.3)
    assert begins_ms == [0, 2.3, 4.3]
    assert result == approx(overruns=0, overrun_ms=0, layer_ms=[2.3, 2, 2])


def test_overrun_is_recorded_and_delays_what_follows() -> None:
    result, begins_ms = run([1, 5, 1], target_ms=[2, 3, 2])
    assert begins_ms == [0, 2, 7]
    assert result == approx(overruns=1, overrun_ms=2, layer_ms=[2, 5, 2])


def test_late_wait_before_an_overrun_is_made_up_for_after_it() -> None:
    result, begins_ms = run([1, 5, 1], target_ms=[2, 3, 2], overshoot_ms=0.3)
    assert begins_ms == [0, 2.3, 7.3]
    assert result == approx(overruns=1, overrun_ms=2, layer_ms=[2.3, 5, 2])


def test_overruns_of_tiny_layers_are_recorded_but_not_counted() -> None:
    for late_ms, counted in ((0.049, 0), (0.051, 100)):
        layer_ms = [0.001 + late_ms] * 100
        result, _ = run(layer_ms, target_ms=[0.001] * 100)
        assert result == approx(overruns=counted, overrun_ms=100 * late_ms, layer_ms=layer_ms)


def test_no_layers() -> None:
    assert run([], []) == (approx(0, 0, []), [])


def test_runs_the_given_layers_in_order() -> None:
    ran: list[int] = []
    run_paced(ran.append, [7, 3, 5], [0, 0, 0], FakeClock())
    assert ran == [7, 3, 5]


def test_as_many_targets_as_layers() -> None:
    with pytest.raises(ValueError, match="shorter"):
        run_paced(lambda layer: None, [1, 2], [1.0], FakeClock())


@pytest.mark.parametrize("wait_s", [-1, 0, 0.00005, 0.003])
def test_wall_clock_never_returns_early(wait_s: float) -> None:
    clock = WallClock()
    time_s = clock.now_s() + wait_s
    clock.wait_until(time_s)
    assert clock.now_s() >= time_s
    assert abs(clock.now_s() - time.monotonic()) < 60  # the clock that traces are recorded with


class Machine:
    """What `WallClock` takes from `time` and `select`: a sleep ends 30 us late, a poll takes 10 us."""

    def __init__(self) -> None:
        self.now_s, self.polls = 50.0, 0
        self.slept_s: list[float] = []

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, wait_s: float) -> None:
        self.slept_s.append(wait_s)
        self.now_s += wait_s + 30e-6

    def select(self, *arguments: object) -> None:
        self.polls += 1
        self.now_s += 10e-6


@pytest.mark.parametrize(
    ("wait_s", "slept_s", "polls"),
    [(0.2, [0.1999], 7), (0.000101, [0.000001], 7), (0.00009, [], 9), (0, [], 0), (-1, [], 0)],
)
def test_the_wall_clock_sleeps_and_polls_only_the_end_of_a_wait(
    wait_s: float, slept_s: list[float], polls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine()
    monkeypatch.setattr(ionn.client.pacing, "time", machine)
    monkeypatch.setattr(ionn.client.pacing, "select", machine)
    WallClock().wait_until(50.0 + wait_s)
    assert machine.slept_s == pytest.approx(slept_s)
    assert abs(machine.polls - polls) <= 1  # of rounding
    assert 50.0 + wait_s <= machine.now_s
