"""When things may happen: the pacing of the link, and layers executed at the pace of a slower device.

Both keep a schedule of their own and compare it with a clock. What is late against the schedule because this machine
woke up late is made up for, so long runs keep their exact rate; what never waited (an idle link) or really took longer
(a slow layer) moves the schedule.
"""

from __future__ import annotations

import itertools
import math
import select
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

QUANTUM_S = 0.0004
"""Link time of a quantum: what a connection waits for each of the others."""

ALONE_QUANTA = 2
"""Where nobody else waits a connection sends so many quanta at once, which costs the link less CPU."""

MIN_QUANTUM_BYTES = 1_500
"""Slow links take turns packet by packet, as an Ethernet would, rather than in a few bytes."""

MAX_QUANTUM_BYTES = 256 * 1024
"""Bounds the memory of links that are faster than this machine."""

MAX_CATCH_UP_S = 0.01
"""How far a link that was held up may fall behind and still make up for it: 1 % of the bytes of any one second."""

OVERRUN_TOLERANCE_MS = 0.05
"""Overruns up to this are not counted: calling a layer costs some 10 us, more than the smallest layers may take."""

SPIN_S = 0.0001
"""The last part of a wait is polled: a sleep ends this much too late."""


class LinkPacer:
    """The schedule of one direction of a link that carries `mbps` * 10**6 bits per second, one quantum at a time.

    Times are seconds on any clock that does not go back.
    """

    def __init__(self, mbps: float) -> None:
        self._bytes_per_s = mbps * 1e6 / 8
        self._free_s = -math.inf

    def quantum_bytes(self, alone: bool) -> int:
        """How much a connection may send at its turn; `alone`: no other waits for one."""
        quantum_bytes = max(MIN_QUANTUM_BYTES, int(self._bytes_per_s * QUANTUM_S))
        return min(ALONE_QUANTA * quantum_bytes if alone else quantum_bytes, MAX_QUANTUM_BYTES)

    def transmit(self, size_bytes: int, now_s: float, waited: bool) -> float:
        """Put a quantum on the link; when its last byte has crossed.

        `waited`: it was there when the link became free, so its transmission began then, even if this call comes late
        (by MAX_CATCH_UP_S at most). Otherwise the link was idle, and the transmission begins now.
        """
        earliest_s = now_s - MAX_CATCH_UP_S if waited else now_s
        self._free_s = max(self._free_s, earliest_s) + size_bytes / self._bytes_per_s
        return self._free_s


class Clock(Protocol):
    def now_s(self) -> float: ...

    def wait_until(self, time_s: float) -> None:
        """Return at `time_s` or, by mishap, later; at once if it has passed."""


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
    """What a paced execution took.

    `overrun_ms` is by how much layers took longer than their targets, all of them; `overruns` counts those beyond
    OVERRUN_TOLERANCE_MS. `layer_ms` is the time of each layer, waits included: their sum exceeds that of the targets by
    `overrun_ms` and what the last wait was late.
    """

    overruns: int
    overrun_ms: float
    layer_ms: tuple[float, ...]


def run_paced(
    run_layer: Callable[[int], None], layers: Sequence[int], target_ms: Sequence[float], clock: Clock | None = None
) -> PacedResult:
    """Execute `layers` in order as a device would that takes `target_ms[i]` for `layers[i]`: compute, then wait out
    the remainder.

    A wait that ends late shortens the next ones. A layer whose computation alone takes longer than its target is an
    overrun, and delays all that follows: the device would not have been faster later.
    Raises ValueError if there are not as many targets as layers.
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
