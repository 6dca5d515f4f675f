"""What a server's store has of a network's weights, and what is left to be sent of a stage or of a slice of it.

A store keeps weights beyond sessions, in pieces of a few megabytes (`ionn.model.weight_pieces`), so a stage may be
stored in part. What is stored is read at the server and not sent: it has no time on the link, and the time to read it
is part of the time to load the stage. Of a stage that can be cut, a piece has some output channels, so a slice costs
what its own channels cost.
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
    """A piece of a stage's weights that a server's store has: `raw_bytes` of them.

    `channels` are the output channels (begin, end) of a stage that can be cut to which they belong; None for a stage
    that cannot be cut, and for weights that belong to all of its channels.
    """

    stage: int
    channels: tuple[int, int] | None
    raw_bytes: int


@dataclass(frozen=True)
class StoredWeights:
    """What is to be sent of a stage's weights, and how long it takes to read the others, channel by channel.

    `missing_bytes[i]` and `read_ms[i]` are those of the channels from the first one to `ends[i]`, not included; between
    two ends both grow evenly. A stage that cannot be cut counts as one channel. Raises InputError for numbers that do
    not ascend, or are not as many.
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
        """Those of a stage of which a store has nothing."""
        return cls(stage, (channels,), (weight_bytes,), (0.0,))

    @property
    def channels(self) -> int:
        return self.ends[-1]

    def missing_between(self, begin: int, end: int) -> float:
        """The bytes that are to be sent of the channels `begin`..`end`, not included."""
        return _between(self.ends, self.missing_bytes, begin, end)

    def read_between_ms(self, begin: int, end: int) -> float:
        """How long it takes to read what is stored of them."""
        return _between(self.ends, self.read_ms, begin, end)

    def with_pieces(self, pieces: Iterable[StoredPiece], ms_per_mb: float) -> StoredWeights:
        """The same where these pieces are stored too, none of which was; 10^6 bytes of them are read in `ms_per_mb`."""
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
    """The difference of two sums, each of all channels up to one."""
    until = np.interp([begin, end], (0, *ends), (0, *sums))
    return float(until[1] - until[0])
