"""How busy the machine is, by whose processes, and when that disturbs a run. Other tests may run beside these: they can
only add to the other load, so that nothing here has an upper limit to it."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ionn.records import LoadRecord
from ionn.testbed import other_load
from ionn.testbed.other_load import DISTURBED_SHARE, Disturbance, disturbance, mean_other, recorded_load
from tests.support.world import wait_for

LOOP = "while True: pass"
# Enough that ticks are not what is measured.
TICKS = 50


@contextlib.contextmanager
def stranger() -> Iterator[int]:
    """A busy loop that is nobody's child: its parent has ended."""
    code = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {LOOP!r}], stdout=2).pid)"
    started = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    try:
        yield int(started.stdout)
    finally:
        os.kill(int(started.stdout), signal.SIGKILL)


@contextlib.contextmanager
def grandchild() -> Iterator[int]:
    """A busy loop that a child has started, and waits for."""
    code = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {LOOP!r}]); print(p.pid); p.wait()"
    with subprocess.Popen([sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        pid = int(child.stdout.readline())
        try:
            yield pid
        finally:
            os.kill(pid, signal.SIGKILL)


def ticks_of(process: int) -> int:
    return sum(map(int, Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]))


def test_the_time_of_a_process_that_the_run_did_not_start_is_other_load() -> None:
    with stranger() as process:
        before, start = ticks_of(process), other_load._Sample.at(0.0)
        wait_for(lambda: ticks_of(process) >= before + TICKS, "a busy loop")
        end = other_load._Sample.at(1.0)
        took = end.own - start.own
    # The system counts what a processor does by looking at it now and then.
    assert sum(end.busy.values()) - sum(start.busy.values()) - took >= TICKS / 2


def test_the_time_of_what_the_run_started_is_its_own() -> None:
    start = other_load._own()
    with grandchild() as process:
        wait_for(lambda: ticks_of(process) >= TICKS, "a busy loop")
        assert other_load._own() - start >= TICKS
    # Those that ended and were waited for, too.
    assert other_load._own() - start >= TICKS


def test_other_load_is_a_share_of_all_processors() -> None:
    second = os.sysconf("SC_CLK_TCK")

    def sample(time_s: float, busy: int, own: int) -> other_load._Sample:
        return other_load._Sample(time_s, {"cpu0": 1000, "cpu1": busy}, own)

    start, end = sample(2.0, 1000, 70), sample(4.0, 1000 + 2 * second, 70 + second)
    assert other_load._between(start, end) == LoadRecord(2.0, 4.0, 0.5, 0.25)
    assert other_load._between(start, end).other == 0.25
    # Ticks of a process and of a processor are not counted at the same time.
    assert other_load._between(start, sample(3.0, 1000, 75)).other == 0
    assert other_load._between(start, sample(3.0, 999, 69)) == LoadRecord(2.0, 3.0, 0, 0)


def test_a_run_is_watched_while_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_load, "_STEP_S", 0.01)
    clock, looked = itertools.count(), threading.Event()

    def now_s() -> float:
        time_s = next(clock)
        if time_s == 3:
            looked.set()
        return float(time_s)

    with recorded_load(now_s) as records:
        assert looked.wait(60)
        assert records == []
    assert records[0].start_s == 0
    assert len(records) >= 3
    assert all(one.end_s == other.start_s for one, other in itertools.pairwise(records))
    assert records[-1].end_s == next(clock) - 1
    assert "load" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize(
    ("times_s", "ends_s"),
    [
        ([0.0, 1.0, 2.0, 2.5], [1.0, 2.0, 2.5]),
        ([0.0, 1.0, 2.0, 2.4], [1.0, 2.4]),
        ([0.0, 1.0, 1.4], [1.4]),
        ([0.0, 0.4], [0.4]),
        ([0.0, 0.0], []),
    ],
)
def test_no_step_is_so_short_that_ticks_would_tell_nothing(times_s: list[float], ends_s: list[float]) -> None:
    """But that of a run that is."""
    records = other_load._records([other_load._Sample(time_s, {"cpu0": 0}, 0) for time_s in times_s])
    assert [each.end_s for each in records] == ends_s
    assert [each.start_s for each in records] == [0.0, *ends_s][:-1]


def test_where_the_system_does_not_tell_nothing_is_recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(other_load, "_STAT", str(tmp_path / "none"))
    with recorded_load(lambda: 0.0) as records:
        pass
    assert records == []


def test_steps_compare_the_same_processors_and_skip_what_was_not_read() -> None:
    samples = [
        other_load._Sample(0.0, {"cpu0": 1000}, 0),
        other_load._Sample(1.0, {"cpu0": 1050, "cpu1": 900_000}, 10),  # it may use another one from now on
        other_load._Sample(2.0, {"cpu0": 1100, "cpu1": 900_100}, 20),
        other_load._Sample(3.0, {"cpu2": 5}, 30),
    ]
    per_second = os.sysconf("SC_CLK_TCK")
    assert other_load._records(samples) == [
        LoadRecord(0.0, 1.0, 50 / per_second, 10 / per_second),
        LoadRecord(1.0, 2.0, 150 / (2 * per_second), 10 / (2 * per_second)),
    ]


def test_processors_of_other_names_are_not_idle_ones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "stat").write_text("cpu 9 9 9 9 9 9 9 9\ncpu1000000 9 9 9 9 9 9 9 9\n\n")
    monkeypatch.setattr(other_load, "_STAT", str(tmp_path / "stat"))
    with recorded_load(lambda: 0.0) as records:
        pass
    assert records == []


def loads(*others: float) -> list[LoadRecord]:
    """A second each with so much other load."""
    return [LoadRecord(float(second), second + 1.0, 0.25 + other, 0.25) for second, other in enumerate(others)]


def test_a_run_is_disturbed_by_its_mean_other_load() -> None:
    assert disturbance([]) is None
    assert disturbance(loads(*[DISTURBED_SHARE] * 10)) is None
    assert disturbance(loads(0.5, *[0.0] * 5)) is None
    assert disturbance([LoadRecord(0.0, 0.9, 1.0, 0.0)]) is None
    assert disturbance([LoadRecord(0.0, 1.0, 1.25, 0.0)]) == Disturbance(1.0, 0.0, 1.0)
    found = disturbance(loads(0.0, 0.05, 0.75, 0.0, 0.5, 0.05))
    assert found == Disturbance(pytest.approx((0.75 + 0.5) / 3), 2.0, 5.0)  # type: ignore[arg-type]
    assert str(found) == "other processes used 42% of the processors from second 2 to 5"


def test_the_mean_is_over_time() -> None:
    long = LoadRecord(1.0, 4.0, 1.0, 0.0)
    assert mean_other([*loads(0.5), long]) == pytest.approx((0.5 + 3 * 1.0) / 4)


def test_what_ticks_are_counted_too_late_is_made_up_for_over_the_run() -> None:
    assert mean_other(loads(-0.0625, 0.125)) == pytest.approx(0.03125)
    assert mean_other(loads(-0.0625, 0.0)) == 0
    assert mean_other(loads(1.125)) == 1
