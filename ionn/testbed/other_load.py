"""The load of this machine's processors during a live run: how long they are busy, and how long with the run itself,
that is with this process and all that it has started, such as a server and a link.

The difference is other load, whoever causes it: other users' processes, also those of a low priority, the kernel, and
other virtual machines on the same processors (steal). A server on this machine that the run did not start is other
load, too.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ionn.records import LoadRecord

# A run is disturbed where other load has more than this share of the processors on average over the run.
DISTURBED_SHARE = 0.1
# A shorter run has too few ticks to judge by.
_JUDGED_S = 1.0
# The system counts processors' time in ticks of 10 ms, so shorter steps would be inaccurate.
_STEP_S = 1.0
_STAT = "/proc/stat"
# The fields of a processor's line there in which it is busy: user (with guests), nice, system, irq, softirq, steal.
_BUSY = (1, 2, 3, 6, 7, 8)
# The fields behind the name in a process's stat: its time in user and kernel mode, and that of children that ended.
_TIMES = slice(11, 15)


@dataclass(frozen=True)
class Disturbance:
    """Other load that disturbed a run: its mean share of the processors from the first to the last second in which its
    share was above DISTURBED_SHARE."""

    share: float
    start_s: float
    end_s: float

    def __str__(self) -> str:
        when = f"from second {self.start_s:.0f} to {self.end_s:.0f}"
        return f"other processes used {self.share:.0%} of the processors {when}"


def mean_other(loads: Sequence[LoadRecord]) -> float:
    """The mean share of other load over time, from 0 to 1; NaN if nothing is recorded.

    The system counts the ticks of processors and of processes differently: they may differ by 5 % in a second, which
    evens out over a run.
    """
    seconds = [each.end_s - each.start_s for each in loads]
    over = sum((each.busy - each.own) * length_s for each, length_s in zip(loads, seconds, strict=True))
    return min(max(over / sum(seconds), 0.0), 1.0) if any(seconds) else math.nan


def disturbance(loads: Sequence[LoadRecord]) -> Disturbance | None:
    """The other load that disturbed a run; None if none did, or none was recorded, or the run took under a second."""
    if not loads or loads[-1].end_s - loads[0].start_s < _JUDGED_S:
        return None
    above = [number for number, each in enumerate(loads) if each.other > DISTURBED_SHARE]
    if not above or not mean_other(loads) > DISTURBED_SHARE:
        return None
    during = loads[above[0] : above[-1] + 1]
    return Disturbance(mean_other(during), during[0].start_s, during[-1].end_s)


@dataclass(frozen=True)
class _Sample:
    """How many ticks each processor that this process may use had been busy until `time_s`, and how many ticks the run
    itself had computed. `busy` is empty if the system does not tell."""

    time_s: float
    busy: Mapping[str, int]
    own: int

    @classmethod
    def at(cls, time_s: float) -> _Sample:
        return cls(time_s, _busy(), _own())


@contextlib.contextmanager
def recorded_load(now_s: Callable[[], float]) -> Iterator[list[LoadRecord]]:
    """Record the load while the context lasts, second by second on this clock. The list is filled when the context
    ends; it stays empty if the system does not tell. A thread looks once a second, so that no query waits for it."""
    records: list[LoadRecord] = []
    samples = [_Sample.at(now_s())]
    if not samples[0].busy or not os.path.exists(f"/proc/self/task/{os.getpid()}/children"):
        yield records
        return
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(_STEP_S):
            samples.append(_Sample.at(now_s()))

    watcher = threading.Thread(target=watch, name="load", daemon=True)
    watcher.start()
    try:
        yield records
    finally:
        is_over.set()
        watcher.join()
    records += _records([each for each in (*samples, _Sample.at(now_s())) if each.busy])


def _records(samples: list[_Sample]) -> list[LoadRecord]:
    """The load between samples. A last step of less than half a second is joined to the one before."""
    *earlier, last = samples
    if len(earlier) > 1 and last.time_s - earlier[-1].time_s < _STEP_S / 2:
        earlier.pop()
    pairs = pairwise([*earlier, last])
    return [_between(*pair) for pair in pairs if pair[0].time_s < pair[1].time_s and _processors(*pair)]


def _processors(start: _Sample, end: _Sample) -> set[str]:
    """The processors in both samples: those that this process may use can change meanwhile."""
    return start.busy.keys() & end.busy.keys()


def _between(start: _Sample, end: _Sample) -> LoadRecord:
    processors = _processors(start, end)
    ticks = (end.time_s - start.time_s) * os.sysconf("SC_CLK_TCK") * len(processors)
    busy = sum(end.busy[name] - start.busy[name] for name in processors)
    return LoadRecord(start.time_s, end.time_s, max(busy, 0) / ticks, max(end.own - start.own, 0) / ticks)


def _busy() -> dict[str, int]:
    """How many ticks each processor that this process may use has been busy since the system started. Empty unless the
    system tells that of all of them: in some containers, the processors have other numbers."""
    names = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    lines = (line.split() for line in _read(_STAT).splitlines())
    found = {
        fields[0]: sum(int(fields[column]) for column in _BUSY) for fields in lines if fields[:1] and fields[0] in names
    }
    return found if len(found) == len(names) else {}


def _own() -> int:
    """The ticks of this process, of those that it has started, of those that these have started, and so on."""
    ticks, processes = 0, [str(os.getpid())]
    while processes:
        folder = f"/proc/{processes.pop()}"
        ticks += sum(map(int, _read(f"{folder}/stat").rpartition(")")[2].split()[_TIMES]))
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"{folder}/task"):
                processes += _read(f"{folder}/task/{thread}/children").split()
    return ticks


def _read(path: str) -> str:
    """A file of /proc; "" if its process or thread has ended, whose time its parent has then."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
