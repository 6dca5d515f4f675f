"""The front's event loop: a handler that fails costs its own source, and nothing else."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from functools import partial

import pytest

from ionn.server.loop import IN, Loop
from ionn.server.metrics import Counts


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop(Counts())
    yield loop
    loop.close()


class Pipe:
    """Bytes that a loop is told of."""

    def __init__(self) -> None:
        self.end, self.start = os.pipe()

    def close(self) -> None:
        os.close(self.end)
        os.close(self.start)


@pytest.fixture
def pipes() -> Iterator[list[Pipe]]:
    pipes = [Pipe() for _ in range(3)]
    yield pipes
    for pipe in pipes:
        pipe.close()


@pytest.mark.parametrize("outer", [False, True])
@pytest.mark.parametrize("error", [ZeroDivisionError("of nobody's"), KeyError(1), MemoryError(), RecursionError()])
def test_a_handler_that_fails_is_isolated(
    error: Exception, outer: bool, loop: Loop, pipes: list[Pipe], caplog: pytest.LogCaptureFixture
) -> None:
    """It is counted each time and logged once, its `failed` is called, and the others go on, in every turn."""
    read: list[bytes] = []
    failed: list[int] = []

    def fail(mask: int) -> None:
        raise error

    def take(pipe: Pipe, mask: int) -> None:
        read.append(os.read(pipe.end, 1))

    loop.watch(pipes[0].end, IN, fail, lambda: failed.append(len(failed)), outer)
    for pipe in pipes[1:]:
        loop.watch(pipe.end, IN, partial(take, pipe), lambda: None, outer)
    with caplog.at_level(logging.WARNING):
        for turn in range(1, 5):
            for pipe in pipes:
                os.write(pipe.start, b"x")
            while len(read) < 2 * turn:
                loop.turn(1.0)
    assert len(failed) >= 4
    assert loop._counts.unforeseen == len(failed)
    assert len(caplog.records) == 1


def test_one_whose_end_fails_too_is_isolated(loop: Loop, pipes: list[Pipe], caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: object) -> None:
        raise ValueError("again")

    loop.watch(pipes[0].end, IN, fail, fail, outer=False)
    os.write(pipes[0].start, b"x")
    loop.turn(1.0)
    loop.guard(fail)
    assert loop._counts.unforeseen == 3
    assert "again" in caplog.text
    assert "Traceback" in caplog.text
