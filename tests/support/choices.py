"""Random choices, spread evenly, and a failing case made small.

Hypothesis draws the same simple nets again and again: in 200 of its nets, a quarter of the layer types did not occur.
So choices come from seeds here. They are recorded, and where a case fails, its record is made shorter and its numbers
smaller for as long as it goes on failing: the least of what can be chosen is the simplest.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")
Say = Callable[[str], None]

# Cases that are tried to make a failing one smaller.
ATTEMPTS = 400


class Choices(Protocol):
    def integer(self, least: int, most: int) -> int: ...


class Seeded:
    """`record` has what was chosen, each above the least that could be."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.record: list[int] = []

    def integer(self, least: int, most: int) -> int:
        self.record.append(self._random.randint(0, most - least))
        return least + self.record[-1]


class Replayed:
    """The choices of a record, as far as they can be chosen; after its end the simplest."""

    def __init__(self, record: Sequence[int]) -> None:
        self._left = list(record)[::-1]
        self.record: list[int] = []

    def integer(self, least: int, most: int) -> int:
        self.record.append(min(self._left.pop(), most - least) if self._left else 0)
        return least + self.record[-1]


def pick(c: Choices, values: Sequence[T]) -> T:
    return values[c.integer(0, len(values) - 1)]


def chance(c: Choices, percent: int) -> bool:
    return c.integer(0, 99) >= 100 - percent


def for_each_seed(count: int, check: Callable[[Choices, Say], T]) -> list[T]:
    """What `check` returns for each of `count` cases; it is given a function that is told what the case is.

    A failure is told with a small case that fails in the same way. Up to 1,000 cases are the same each time, more are
    others each time.
    """
    first = 0 if count <= 1000 else int.from_bytes(os.urandom(4))
    results = []
    for seed in range(first, first + count):
        choices = Seeded(seed)
        try:
            results.append(check(choices, lambda text: None))
        except Exception as error:
            record = _simplest(choices.record, type(error), check)
            raise AssertionError(_told(seed, record, check)) from error
    return results


def _error(record: Sequence[int], check: Callable[[Choices, Say], object]) -> tuple[Exception | None, list[int]]:
    choices = Replayed(record)
    try:
        check(choices, lambda text: None)
    except Exception as error:
        return error, choices.record
    return None, choices.record


def _simplest(record: list[int], kind: type[Exception], check: Callable[[Choices, Say], object]) -> list[int]:
    attempts = 0

    def fails(candidate: list[int]) -> bool:
        nonlocal record, attempts
        if candidate == record or attempts >= ATTEMPTS:
            return False
        attempts += 1
        error, used = _error(candidate, check)
        # What was not used, and zeros at the end, are nothing.
        while used and not used[-1]:
            used.pop()
        if type(error) is not kind or (len(used), used) >= (len(record), record):
            return False
        record = used
        return True

    progress = True
    while progress and attempts < ATTEMPTS:
        progress = False
        for size in (64, 16, 4, 1):
            at = len(record) - size
            while at >= 0:
                # Without these choices, and with the simplest in their place.
                progress |= fails(record[:at] + record[at + size :]) or fails(
                    record[:at] + [0] * len(record[at : at + size]) + record[at + size :]
                )
                at = min(at, len(record)) - size
        for at in range(len(record)):
            if at < len(record) and record[at] > 1:
                progress |= fails([*record[:at], record[at] // 2, *record[at + 1 :]])
    return record


def _told(seed: int, record: Sequence[int], check: Callable[[Choices, Say], object]) -> str:
    lines: list[str] = []
    try:
        check(Replayed(record), lines.append)
    except Exception as error:
        lines.append(f"{type(error).__name__}: {error}")
    return "\n".join([f"seed {seed}, made smaller:", *lines])
