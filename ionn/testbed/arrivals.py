"""When queries are raised: one after another, as in the paper, or by themselves, whether the client is busy or not."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ionn.arguments import decimal_of
from ionn.errors import InputError, did_you_mean, printable
from ionn.files import read_text

CLOSED, FPS, POISSON, BURST = "closed", "fps", "poisson", "burst"
# What becomes of a query that meets a busy client.
WAIT, DROP = "wait", "drop"
BUSY = (WAIT, DROP)
FORMS = "closed, fps:N, poisson:N, burst:N,PERIOD, or a file with a timestamp in seconds on each line"
# From a query in a quarter of an hour to more than any client answers.
PER_SECOND = (0.001, 1000.0)
BURST_MAX = 1000
# A day at most, as a window.
PERIOD_S = (0.001, 86_400.0)
TIME_MAX_S = 86_400.0
# Of one run. So many and their answers fit into memory, and into a trace that can be read again.
ARRIVALS_MAX = 1_000_000

# Characters of a file's name: it is in that of a folder.
_NAME_MAX = 60


@dataclass(frozen=True)
class Arrivals:
    """When the queries of a run are raised, in seconds since its upload began. What has equal names is equal.

    `name` is "closed" (the next query is raised when the one before is answered), "fps:N" (a camera: N a second,
    evenly), "poisson:N" (N a second on average, independent of each other), "burst:N,PERIOD" (N at once every PERIOD
    seconds), or what a file of timestamps is called, with a digest of them. `times_s` are the timestamps, ascending;
    they take the place of those that the name stands for. Those of a file are not in a trace.

    Raises InputError for numbers out of their ranges.
    """

    name: str = CLOSED
    times_s: tuple[float, ...] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        self._parts()

    @classmethod
    def parse(cls, text: str) -> Arrivals:
        """The arrivals that a user names: one of FORMS. Raises InputError for any other."""
        kind, colon, _ = text.partition(":")
        if text == CLOSED or (colon and kind in (FPS, POISSON, BURST)):
            _, numbers = cls(text)._parts()
            return cls(kind + colon + ",".join(f"{number:.12g}" for number in numbers))
        if not os.path.exists(text):
            known = did_you_mean(kind, (CLOSED, FPS, POISSON, BURST))
            raise InputError(f"arrivals {text!r}: no such file; give {FORMS}{known}")
        return cls.load(Path(text))

    @classmethod
    def load(cls, path: Path) -> Arrivals:
        """The arrivals of a file. Raises InputError, which names its line, where it is no file of timestamps."""
        times_s: list[float] = []
        for number, line in enumerate(read_text(path, "the arrivals").split("\n"), 1):
            if not line.strip():
                continue
            time_s = decimal_of(line)
            if not 0 <= time_s <= TIME_MAX_S:
                raise InputError(f"{path}:{number}: {line[:40]!r} is no timestamp; give 0 to {TIME_MAX_S:g} seconds")
            if times_s and time_s < times_s[-1]:
                raise InputError(f"{path}:{number}: {time_s:g} s comes after {times_s[-1]:g} s; sort the timestamps")
            if len(times_s) == ARRIVALS_MAX:
                raise InputError(f"{path}:{number}: there are more than {ARRIVALS_MAX} timestamps; give fewer")
            times_s.append(time_s)
        if not times_s:
            raise InputError(f"{path}: there is no timestamp; give seconds since the upload began, one on each line")
        digest = hashlib.sha256(" ".join(map(repr, times_s)).encode()).hexdigest()[:8]
        # Without a colon, which the names of the other forms have.
        return cls(f"{printable(path.name)[:_NAME_MAX].replace(':', '_')} ({digest})", tuple(times_s))

    @property
    def closed(self) -> bool:
        """Tell whether queries follow each other, as in the paper."""
        return self.name == CLOSED

    @property
    def per_second(self) -> float:
        """How many queries are raised in a second, on average and for ever; 0 in a closed loop, and for a file."""
        kind, numbers = self._parts()
        if kind == BURST:
            return numbers[0] / numbers[1]
        return numbers[0] if numbers else 0.0

    def times(self, seed: int, run: int) -> Iterator[float]:
        """When queries are raised, ascending, without end but for a file's. Those of "poisson" are drawn from the seed
        and the number of the run. Raises InputError where a file's are not known; not for a closed loop."""
        kind, numbers = self._parts()
        if self.times_s is not None:
            return iter(self.times_s)
        if not numbers:
            raise InputError(f"arrivals {self.name}: a trace does not have the file's timestamps; give the file again")
        if kind == FPS:
            return (number / numbers[0] for number in itertools.count())
        if kind == BURST:
            count, period_s = numbers
            return (burst * period_s for burst in itertools.count() for _ in range(int(count)))
        # Not the stream of the virtual testbed's noise.
        draw = random.Random(f"arrivals/{seed}/{run}")
        return itertools.accumulate(draw.expovariate(numbers[0]) for _ in itertools.count())

    def _parts(self) -> tuple[str, tuple[float, ...]]:
        """The word and the numbers in the name; there are no numbers in that of a closed loop, and of a file."""
        kind, colon, given = self.name.partition(":")
        if not colon or kind not in (FPS, POISSON, BURST):
            return self.name, ()
        numbers = tuple(map(decimal_of, given.split(",")))
        if kind == BURST:
            if len(numbers) != 2 or not (numbers[0] in range(1, BURST_MAX + 1) and _within(numbers[1], PERIOD_S)):
                ranges = f"a whole number from 1 to {BURST_MAX} and {PERIOD_S[0]:g} to {PERIOD_S[1]:g} seconds"
                raise InputError(f"arrivals {self.name[:60]}: give {ranges}, as burst:5,2.5")
        elif len(numbers) != 1 or not _within(numbers[0], PER_SECOND):
            ranges = f"{PER_SECOND[0]:g} to {PER_SECOND[1]:g} queries a second"
            raise InputError(f"arrivals {self.name[:60]}: give {ranges}, as {kind}:7.5")
        return kind, numbers


CLOSED_LOOP = Arrivals()


def _within(number: float, ends: tuple[float, float]) -> bool:
    return ends[0] <= number <= ends[1]
