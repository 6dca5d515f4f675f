"""Processes that use one store at the same time, and are killed at any instant. A program, because it forks.

    python -m tests.support.store_storm FOLDER TOTAL_BYTES PROCESSES KILLS SEED

prints, as JSON, the pieces of which a process was told that they are stored, by their number, and the numbers of pieces
that were read and had wrong bits.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from ionn.server.store import Store, StoreSettings, owner_of, read_piece
from tests.support.stored import piece

OWNERS = (owner_of(b"one"), owner_of(b"another"))
PIECES = 60
# The longest that one lives: some are killed as they start, most while they write.
LIFE_S = 0.1
# What must have been told before the kills end.
TOLD_MIN = 60


def one_of_all(number: int) -> tuple[str, bytes, memoryview]:
    """The owner, the digest and the bytes of a piece. They have many sizes."""
    return OWNERS[number % len(OWNERS)], *piece(number, 1 + number * 997 % 30_000)


def is_right(store: Store, number: int) -> bool | None:
    """Whether what the store has of a piece is right to the last bit; None if it has nothing."""
    owner, digest, data = one_of_all(number)
    opened = store.open(owner, digest)
    if opened is None:
        return None
    descriptor, size = opened
    target = memoryview(bytearray(size))
    whole = read_piece(descriptor, digest, [target])
    os.close(descriptor)
    return whole and target == data


def live(settings: StoreSettings, seed: int, told: int) -> None:
    """Store and read pieces until the end, and tell what is stored, and what is wrong."""
    chosen = random.Random(seed)
    store = Store(settings)
    while True:
        number = chosen.randrange(PIECES)
        if chosen.randrange(3):
            if store.put(*one_of_all(number)):
                os.write(told, f"{number}\n".encode())
        elif is_right(store, number) is False:
            os.write(told, f"wrong {number}\n".encode())


def main() -> None:
    folder, total_bytes, processes, kills, seed = sys.argv[1], *map(int, sys.argv[2:])
    settings = StoreSettings(Path(folder), total_bytes, total_bytes)
    chosen = random.Random(seed)
    heard, told = os.pipe()
    living: list[int] = []
    said = b""
    os.set_blocking(heard, False)
    # On a busy machine most are killed before they have stored anything: then there are more of them.
    for kill in range(20 * kills):
        if kill >= kills and said.count(b"\n") > TOLD_MIN:
            break
        while len(living) < processes:
            pid = os.fork()
            if not pid:
                live(settings, chosen.randrange(10**9) + kill, told)
            living.append(pid)
        time.sleep(chosen.random() * LIFE_S)
        struck = living.pop(chosen.randrange(len(living)))
        os.kill(struck, signal.SIGKILL)
        os.waitpid(struck, 0)
        with contextlib.suppress(BlockingIOError):
            said += os.read(heard, 1 << 20)
    for pid in living:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    os.close(told)
    while more := os.read(heard, 1 << 20):
        said += more
    lines = said.decode().splitlines()
    wrong = [line for line in lines if line.startswith("wrong")]
    print(json.dumps({"stored": sorted({int(line) for line in lines if line not in wrong}), "wrong": wrong}))


if __name__ == "__main__":
    main()
