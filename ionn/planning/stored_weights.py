"""Which weights of a network a server's store has, and which remain to be sent of a stage or a slice.

A store keeps weights after a session's end, in weight pieces of at most 4 MB (`ionn.model.weight_pieces`), so it may
have only a part of a stage. The server reads stored weights instead of receiving them: they take no time on the link,
and the time to read them is part of the time to load the stage. In a stage that can be cut, each weight piece belongs
to some output channels, so the costs of a slice are those of its own channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ionn.errors import InputError
from ionn.planning.grid import time_on_grid
from ionn.schema import Natural, Real


class StoredPiece(NamedTuple):
    """A weight piece of a stage that a server's store has, of `raw_bytes` bytes.

    `channels` are the output channels (begin, end) that it belongs to; None if the stage cannot be cut, and for weights
    that belong to all channels.
    """

    stage: int
    channels: tuple[int, int] | None
    raw_bytes: int


@dataclass(frozen=True)
class StoredWeights:
    """How many bytes of a stage's weights must be sent, and how long the server takes to read the others.

    `missing_bytes[i]` and `read_ms[i]` are sums over the channels before `ends[i]`; between two ends both grow evenly.
    A stage that cannot be cut counts as one channel. Raises InputError for numbers that do not ascend, and for
    sequences of different lengths.
    """

    stage: Natural
    ends: tuple[Natural, ...]
    missing_bytes: tuple[Natural, ...]
    read_ms: tuple[Real, ...]

    def __post_init__(self) -> None:
        columns: tuple[Sequence[float], ...] = (self.missing_bytes, self.read_ms)
        fits = bool(self.ends) and all(len(column) == len(self.ends) for column in columns)
        strictly = all(begin < end for begin, end in pairwise((0, *self.ends)))
        if not (fits and strictly and all(a <= b for column in columns for a, b in pairwise((0, *column)))):
            raise InputError(f"what is stored of stage {self.stage}: its numbers do not ascend, or are not as many")

    @classmethod
    def nothing(cls, stage: int, channels: int, weight_bytes: int) -> StoredWeights:
        """The value for a stage of which the store has nothing."""
        return cls(stage, (channels,), (weight_bytes,), (0.0,))

    @property
    def channels(self) -> int:
        return self.ends[-1]

    def missing_between(self, begin: int, end: int) -> float:
        """The bytes that must be sent of the channels `begin`..`end` (`end` not included)."""
        return _between(self.ends, self.missing_bytes, begin, end)

    def read_between_ms(self, begin: int, end: int) -> float:
        """How long the server takes to read what is stored of these channels, in ms."""
        return _between(self.ends, self.read_ms, begin, end)

    def with_pieces(self, pieces: Iterable[StoredPiece], ms_per_mb: float) -> StoredWeights:
        """The same when these pieces, none of which was stored before, are stored too. The server reads 10^6 bytes of
        them in `ms_per_mb`."""
        spread = [(*(piece.channels or (0, self.channels)), piece.raw_bytes) for piece in pieces]
        inner = {channel for begin, end, _ in spread for channel in (begin, end) if 0 < channel < self.channels}
        ends = sorted({*self.ends, *inner})
        missing_bytes, read_ms = [0.0], [0.0]
        for begin, end in pairwise((0, *ends)):
            there = sum(
                raw_bytes * max(0, min(end, last) - max(begin, first)) / (last - first)
                for first, last, raw_bytes in spread
            )
            here = min(there, self.missing_between(begin, end))
            missing_bytes.append(missing_bytes[-1] + self.missing_between(begin, end) - here)
            read_ms.append(read_ms[-1] + self.read_between_ms(begin, end) + here * ms_per_mb / 1e6)
        return StoredWeights(
            self.stage, tuple(ends), tuple(map(round, missing_bytes[1:])), tuple(map(time_on_grid, read_ms[1:]))
        )


def _between(ends: Sequence[int], sums: Sequence[float], begin: int, end: int) -> float:
    """The difference of two sums, one over all channels before `end`, one over all channels before `begin`."""
    until = np.interp([begin, end], (0, *ends), (0, *sums))
    return float(until[1] - until[0])
