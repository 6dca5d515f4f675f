"""Bandwidth over time, against a truth that adds up step by step in fractions; and the files that it is read from."""

from __future__ import annotations

import itertools
import math
import tempfile
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ionn.errors import InputError
from ionn.testbed import bandwidth as module
from ionn.testbed.bandwidth import Bandwidth, Steps

BYTES_PER_S = Fraction(10**6, 8)  # of 1 Mbps


@st.composite
def bandwidths(draw: st.DrawFn) -> Bandwidth:
    """Of a few steps, some of them outages; times and rates that floats have exactly."""
    spans = draw(st.lists(st.sampled_from([0.25, 0.5, 1.0, 7.0]), min_size=1, max_size=5))
    mbps = draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 8.0, 80.0]), min_size=len(spans), max_size=len(spans)))
    begins_s = tuple(sum(spans[:step]) for step in range(len(spans)))
    if draw(st.booleans()):
        mbps[draw(st.integers(0, len(mbps) - 1))] = 4.0
        return Bandwidth(begins_s, tuple(mbps), sum(spans))
    return Bandwidth(begins_s, (*mbps[:-1], 4.0))


def steps_from(bandwidth: Bandwidth, start_s: Fraction) -> list[tuple[Fraction, Fraction, Fraction]]:
    """Begin, end and bytes per second of every step after a time, for 200 repetitions or as good as for ever."""
    begins = [Fraction(begin_s) for begin_s in bandwidth.begins_s]
    rates = [Fraction(mbps) * BYTES_PER_S for mbps in bandwidth.mbps]
    if bandwidth.period_s is None:
        steps = list(zip(begins, [*begins[1:], Fraction(10**9)], rates, strict=True))
    else:
        period = Fraction(bandwidth.period_s)
        one = list(zip(begins, [*begins[1:], period], rates, strict=True))
        steps = [(lap * period + begin, lap * period + end, rate) for lap in range(200) for begin, end, rate in one]
    return [(max(begin, start_s), end, rate) for begin, end, rate in steps if end > start_s]


def slow_arrival(bandwidth: Bandwidth, start_s: float, size_bytes: int) -> Fraction:
    left, now = Fraction(size_bytes), Fraction(start_s)
    for begin, end, rate in steps_from(bandwidth, now):
        if left == 0:
            return now
        if rate and left <= rate * (end - begin):
            return begin + left / rate
        left -= rate * (end - begin)
    raise AssertionError("more than the truth looks at")


TIMES = st.integers(0, 64).map(lambda quarters: quarters / 4) | st.floats(0, 16)
SIZES = st.integers(0, 2_000_000)


@given(bandwidths(), TIMES, SIZES)
def test_arrival(bandwidth: Bandwidth, start_s: float, size_bytes: int) -> None:
    arrival_s = bandwidth.arrival_s(start_s, size_bytes)
    assert arrival_s == pytest.approx(float(slow_arrival(bandwidth, start_s, size_bytes)), abs=1e-9)


@given(bandwidths(), TIMES, TIMES)
def test_bytes_between(bandwidth: Bandwidth, start_s: float, span_s: float) -> None:
    end = Fraction(start_s) + Fraction(span_s)
    crossed = sum(
        (min(end, until) - begin) * rate
        for begin, until, rate in steps_from(bandwidth, Fraction(start_s))
        if begin < end
    )
    assert bandwidth.bytes_between(start_s, float(end)) == pytest.approx(float(crossed), abs=1e-3)


@given(bandwidths(), TIMES, SIZES, st.sampled_from([2.0, 8.0]))
def test_dilated_all_takes_so_many_times_as_long(
    bandwidth: Bandwidth, start_s: float, size_bytes: int, dilation: float
) -> None:
    slow_s = bandwidth.scaled(dilation).arrival_s(dilation * start_s, size_bytes)
    assert slow_s == pytest.approx(dilation * bandwidth.arrival_s(start_s, size_bytes), abs=1e-9)


@given(bandwidths(), TIMES, SIZES)
def test_in_ms_of_work_it_is_the_same(bandwidth: Bandwidth, start_s: float, size_bytes: int) -> None:
    work_ms = size_bytes / (20e6 / 8) * 1e3  # at 20 Mbps
    end_ms = bandwidth.work_ms(20.0).end(start_s * 1e3, work_ms)
    assert end_ms == pytest.approx(1e3 * bandwidth.arrival_s(start_s, size_bytes), abs=1e-6)


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_at_the_rate_that_is_planned_for_work_takes_its_time_exactly(start_ms: float, work_ms: float) -> None:
    assert Bandwidth.constant(33.3).work_ms(33.3).end(start_ms, work_ms) == start_ms + work_ms


@pytest.mark.parametrize("mbps", [0, -1, math.nan, math.inf])
def test_a_constant_rate_must_be_finite_and_above_zero(mbps: float) -> None:
    with pytest.raises(InputError, match="Mbps: a link needs a finite rate above 0"):
        Bandwidth.constant(mbps)


@pytest.mark.parametrize(
    ("begins_s", "mbps", "period_s", "reason"),
    [
        ((), (), None, "as many times"),
        ((0.0, 1.0), (1.0,), None, "as many times"),
        ((1.0,), (1.0,), None, "the first of them 0 s"),
        ((0.0, 2.0, 2.0), (1.0, 1.0, 1.0), None, "do not ascend"),
        ((0.0, math.nan), (1.0, 1.0), None, "do not ascend"),
        ((0.0, math.inf), (1.0, 1.0), None, "do not ascend"),
        ((0.0, 2.0), (1.0, 1.0), 2.0, "do not ascend"),
        ((0.0,), (1.0,), math.inf, "do not ascend"),
        ((0.0, 1.0), (-1.0, 1.0), None, "not negative"),
        ((0.0, 1.0), (math.nan, 1.0), None, "not negative"),
        ((0.0, 1.0), (math.inf, 1.0), None, "not negative"),
        ((0.0, 1.0), (1.0, 0.0), None, "for ever"),
        ((0.0, 1.0), (0.0, 0.0), 2.0, "for ever"),
    ],
)
def test_what_is_no_bandwidth_is_refused(
    begins_s: tuple[float, ...], mbps: tuple[float, ...], period_s: float | None, reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        Bandwidth(begins_s, mbps, period_s)


# --- Files ----------------------------------------------------------------------------------------------------------


def file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "trace"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "text",
    ["0,8\n1.5,0\n2,40.25\n", "seconds,mbps\n0,8\n1.5,0\n2,40.25", "Seconds, Mbps\r\n0 , 8\r\n\r\n1.5,0\r\n2,40.25"],
)
def test_csv(text: str, tmp_path: Path) -> None:
    bandwidth = Bandwidth.load(file(tmp_path, text))
    assert bandwidth == Bandwidth((0.0, 1.5, 2.0), (8.0, 0.0, 40.25))
    assert Bandwidth.load(file(tmp_path, bandwidth.csv())) == bandwidth


def loaded(times_ms: list[int]) -> Bandwidth:
    with tempfile.NamedTemporaryFile("w") as packets:
        packets.write("".join(f"{time_ms}\n" for time_ms in times_ms))
        packets.flush()
        return Bandwidth.load(Path(packets.name))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=60).map(sorted).filter(lambda times: times[-1] > 0))
def test_mahimahi_has_a_packet_for_each_line_again_and_again(times_ms: list[int]) -> None:
    bandwidth = loaded(times_ms)
    period_ms = times_ms[-1]
    assert bandwidth.period_s == period_ms / 1e3
    for now_ms in range(1, 3 * period_ms + 1):
        laps, rest_ms = divmod(now_ms, period_ms)
        count = laps * len(times_ms) + (sum(time_ms <= rest_ms for time_ms in times_ms) if rest_ms else 0)
        assert bandwidth.bytes_between(0, now_ms / 1e3) == pytest.approx(1500 * count, abs=1e-3)


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=60).map(sorted), st.integers(0, 200))
def test_mahimahi_lets_a_packet_cross_at_its_time(times_ms: list[int], packet: int) -> None:
    """Not at the one after it, which may be far away, because sums of floats are not exact."""
    bandwidth = loaded(times_ms)
    laps, which = divmod(packet, len(times_ms))
    expected_ms = laps * times_ms[-1] + times_ms[which]
    # Those of one ms cross one after another within it.
    arrival_ms = 1e3 * bandwidth.arrival_s(0.0, 1500 * (packet + 1))
    assert expected_ms - 1 - 1e-6 <= arrival_ms <= expected_ms + 1e-6


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has no line with a rate"),
        ("\n \n", "has no line with a rate"),
        ("seconds,mbps\n", "has no line with a rate"),
        ("hello\n", ":1: 'hello' is neither a Mahimahi timestamp, in ms, nor 'seconds,mbps'"),
        ("1\n2.5\n", ":2: '2.5' is neither"),
        ("-1\n", ":1: '-1' is neither"),
        ("1\n٣\n", ":2: '٣' is neither"),
        ("5\n\n3\n", ":3: 3 ms is before 5 ms; a Mahimahi trace ascends"),
        ("0\n0\n", ":2: the last timestamp is 0 ms; give one above 0"),
        ("86400001\n", ":1: the last timestamp is 86400001 ms"),
        ("9" * 19, ":1: the last timestamp is 9999999999999999999 ms"),
        ("9" * 20, ":1: '99999999999999999999' is neither"),
        ("0,5\nx\n", ":2: 'x' is not two numbers, seconds and Mbps, such as '12.5,40'"),
        ("0,1_0\n", ":1: '0,1_0' is not two numbers"),
        ("0,\u0665\n", ":1: '0,\u0665' is not two numbers"),
        ("seconds,mbps\nseconds,mbps\n", ":2: 'seconds,mbps' is not two numbers"),
        ("0,5\n1,nan\n", ":2: '1,nan' is not two numbers"),
        ("0,5,6\n", ":1: '0,5,6' is not two numbers"),
        ("0,5,1\n", ":1: '0,5,1' is not"),
        ("1,5\n", ":1: the first rate is from 1 s on; let it be 0"),
        ("nan,5\n", ":1: 'nan,5' is not two numbers"),
        ("0,5\n3,5\n3,6\n", ":3: 3 s is not after 3 s; times must ascend"),
        ("0,5\nnan,5\n", ":2: 'nan,5' is not two numbers"),
        ("0,5\n1e9,5\n", ":2: 1e\\+09 s is above 86400"),
        ("0,-1\n", ":1: -1 Mbps; give 0, or a rate from 0.001 to 1e\\+06"),
        ("0,0.0001\n", ":1: 0.0001 Mbps; give 0"),
        ("0,nan\n", ":1: '0,nan' is not two numbers"),
        ("0,5\n1,inf\n", ":2: inf Mbps; give 0"),
        ("0,5\n1,0\n", ":2: ends in an outage for ever; add a line with the rate that follows it"),
    ],
)
def test_a_bad_file_is_one_line_that_names_the_line(text: str, reason: str, tmp_path: Path) -> None:
    path = file(tmp_path, text)
    with pytest.raises(InputError, match=f"{path}.*{reason}") as caught:
        Bandwidth.load(path)
    assert len(str(caught.value).splitlines()) == 1


def test_times_are_up_to_a_day(tmp_path: Path) -> None:
    assert Bandwidth.load(file(tmp_path, "0,5\n86400,6\n")).begins_s == (0.0, 86_400.0)
    assert Bandwidth.load(file(tmp_path, "86400000\n")).period_s == 86_400.0


def test_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.LINES_MAX == 1_000_000
    monkeypatch.setattr(module, "LINES_MAX", 3)
    assert Bandwidth.load(file(tmp_path, "1\n2\n3")).period_s == 0.003
    with pytest.raises(InputError, match="has more than 3 lines; give a shorter part of it"):
        Bandwidth.load(file(tmp_path, "1\n2\n3\n4"))
    with pytest.raises(InputError, match="cannot read the bandwidth: No such file"):
        Bandwidth.load(tmp_path / "none")


def test_a_digest_is_the_contents(tmp_path: Path) -> None:
    same = {Bandwidth.load(file(tmp_path, text)).digest for text in ("0,8\n1,4", "seconds,mbps\n0.0,8.0\n1.0,4.0\n")}
    assert len(same) == 1
    others = [
        Bandwidth((0.0, 1.0), (8.0, 5.0)),
        Bandwidth((0.0, 2.0), (8.0, 4.0)),
        Bandwidth((0.0, 1.0), (8.0, 4.0), 3),
    ]
    assert len(same | {other.digest for other in others}) == 4
    assert {len(digest) for digest in same} == {12}


@given(
    st.lists(st.tuples(st.integers(1, 10**6), st.sampled_from([0.0, 0.5, 1.0, 1000.0])), min_size=1, max_size=6),
    st.booleans(),
    st.floats(0, 1),
    st.sampled_from([1e-9, 5e-5, 1.0, 400.0, 1e6]),
)
def test_nothing_has_passed_before_it_began(
    spans: list[tuple[int, float]], again: bool, at: float, amount: float
) -> None:
    """However little it is, and however much has passed before."""
    begins = [0.0, *itertools.accumulate(float(span) for span, _ in spans)]
    rates = [rate for _, rate in spans]
    steps = Steps(begins[:-1], rates, begins[-1]) if again and any(rates) else Steps(begins, [*rates, 1.0])
    begin = at * 2 * begins[-1]
    end = steps.end(begin, amount)
    assert end >= begin
    # An outage is waited out: where it ends is known.
    if steps.amount(begin, begin + 0.001) == 0:
        assert steps.amount(end, end + 0.001) > 0
        assert steps.amount(begin, end) == pytest.approx(amount, rel=1e-6, abs=1e-6)


def test_little_that_is_sent_late_in_an_outage_waits_for_its_end() -> None:
    assert Steps([0.0, 100.0], [1000.0, 0.0], 200.0).end(150.0, 5e-5) == pytest.approx(200.0)
    assert Bandwidth((0.0, 3600.0, 3660.0), (1000.0, 0.0, 1000.0)).arrival_s(3630.0, 400.0) == pytest.approx(3660.0)
