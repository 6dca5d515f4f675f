"""Layers executed at the pace of a slower device.

They follow a schedule. A wait that ends late, because this machine woke up late, is made up for, so that long runs keep
their exact rate; a layer whose computation takes longer than it should delays the schedule.
"""

from __future__ import annotations

import itertools
import select
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

OVERRUN_TOLERANCE_MS = 0.05
"""Overruns up to this are not counted, because calling a layer takes some 10 us, more than the smallest layers may."""

SPIN_S = 0.0001
"""The last part of a wait, which is polled, because a sleep may end so much too late."""

_Made = TypeVar("_Made")


class Clock(Protocol):
    def now_s(self) -> float: ...

    def wait_until(self, time_s: float) -> None:
        """Return at `time_s`, or a little later; at once if it has passed."""


class WallClock:
    """The time of this machine."""

    def now_s(self) -> float:
        return time.monotonic()

    def wait_until(self, time_s: float) -> None:
        if (remaining_s := time_s - time.monotonic()) > SPIN_S:
            time.sleep(remaining_s - SPIN_S)
        while time.monotonic() < time_s:
            select.select((), (), (), 0)  # lets other threads run, and unlike time.sleep(0) returns at once


@dataclass(frozen=True)
class PacedResult:
    """The times of a paced execution.

    `overrun_ms` is the sum of the times by which layers exceeded their targets; `overruns` counts those that exceeded
    them by more than OVERRUN_TOLERANCE_MS. `layer_ms` is the time of each layer with its wait. Their sum exceeds that
    of the targets by `overrun_ms` and by how late the last wait ended.
    """

    overruns: int
    overrun_ms: float
    layer_ms: tuple[float, ...]


def run_paced(
    run_layer: Callable[[int], None], layers: Sequence[int], target_ms: Sequence[float], clock: Clock | None = None
) -> PacedResult:
    """Execute `layers` in order, as a device would that takes `target_ms[i]` for `layers[i]`: compute each, then wait
    for the rest of its target.

    A wait that ends late shortens the next ones. A layer whose computation takes longer than its target is an overrun,
    and delays all that follow. Raises ValueError if there are not as many targets as layers.
    """
    clock = clock or WallClock()
    overruns, overrun_s = 0, 0.0
    deadline_s = clock.now_s()
    end_s = [deadline_s]
    for layer, layer_target_ms in zip(layers, target_ms, strict=True):
        target_s = layer_target_ms / 1e3
        begin_s = clock.now_s()
        run_layer(layer)
        layer_s = clock.now_s() - begin_s
        late_s = max(layer_s - target_s, 0.0)
        overrun_s += late_s
        overruns += late_s * 1e3 > OVERRUN_TOLERANCE_MS
        deadline_s += target_s + late_s
        clock.wait_until(deadline_s)
        end_s.append(clock.now_s())
    layer_ms = tuple((end - begin) * 1e3 for begin, end in itertools.pairwise(end_s))
    return PacedResult(overruns, overrun_s * 1e3, layer_ms)


def work_paced(work: Callable[[], _Made], target_ms: float) -> tuple[_Made, PacedResult]:
    """Do `work` as `run_paced` runs a layer. Returns what it returns, and the times."""
    made: list[_Made] = []
    paced = run_paced(lambda _: made.append(work()), (0,), (target_ms,))
    return made[0], paced
