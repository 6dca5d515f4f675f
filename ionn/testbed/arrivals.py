"""Arrivals: when queries are raised. In the paper, each is raised when the one before it is answered (a closed loop).
Other arrivals are at times of their own, whether the client is busy or not (docs/arrivals.md)."""

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
# What happens to a query that is raised while the client is busy.
WAIT, DROP = "wait", "drop"
BUSY = (WAIT, DROP)
FORMS = "closed, fps:N, poisson:N, burst:N,PERIOD, or a file with a timestamp in seconds on each line"
# The range of rates in queries per second: from one every quarter of an hour to more than any client answers.
PER_SECOND = (0.001, 1000.0)
BURST_MAX = 1000
# Periods and timestamps are at most a day, as windows are.
PERIOD_S = (0.001, 86_400.0)
TIME_MAX_S = 86_400.0
# The most arrivals of one run. So many queries fit into memory, and into a trace that can be read again.
ARRIVALS_MAX = 1_000_000

# The most characters of a file's name, which becomes part of a folder's name.
_NAME_MAX = 60


@dataclass(frozen=True)
class Arrivals:
    """When the queries of a run are raised. Arrivals with equal names are equal.

    `name` is one of these:

    - "closed": each query is raised when the one before it was answered, as in the paper;
    - "fps:N": like a camera, N queries a second at equal distances;
    - "poisson:N": N queries a second on average, independent of each other;
    - "burst:N,PERIOD": N queries at once, every PERIOD seconds;
    - the name of a file of timestamps, with their digest.

    `times_s` are the timestamps of a file, ascending, in seconds since the upload began. They are not kept in traces.

    Raises InputError for numbers out of their ranges.
    """

    name: str = CLOSED
    times_s: tuple[float, ...] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        self._parts()

    @classmethod
    def parse(cls, text: str) -> Arrivals:
        """The arrivals that a text names in one of the forms above, or, if it is the path of a file, those of the file.
        Raises InputError for any other text."""
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
        """The arrivals of a file with a timestamp in seconds on each line. Raises InputError, which names the line, for
        any other file."""
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
        # The name has no colon, as the names of the other forms have one.
        return cls(f"{printable(path.name)[:_NAME_MAX].replace(':', '_')} ({digest})", tuple(times_s))

    @property
    def closed(self) -> bool:
        """Whether each query is raised when the one before it was answered, as in the paper."""
        return self.name == CLOSED

    @property
    def per_second(self) -> float:
        """How many queries are raised per second on average; 0 for a closed loop, and for a file, which has an end."""
        kind, numbers = self._parts()
        if kind == BURST:
            return numbers[0] / numbers[1]
        return numbers[0] if numbers else 0.0

    def times(self, seed: int, run: int) -> Iterator[float]:
        """The times in seconds at which queries are raised, ascending, and without end unless they are a file's. Those
        of "poisson" are drawn from the seed and the number of the run. A closed loop has none.

        Raises InputError if a file's timestamps are not known, because a trace does not keep them.
        """
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
        # These random numbers must be independent of the virtual testbed's noise.
        draw = random.Random(f"arrivals/{seed}/{run}")
        return itertools.accumulate(draw.expovariate(numbers[0]) for _ in itertools.count())

    def _parts(self) -> tuple[str, tuple[float, ...]]:
        """The word and the numbers in the name. A closed loop and a file have no numbers."""
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
