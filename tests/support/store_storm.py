"""Processes that use one store at the same time, and are killed at any instant. The test asks this one, because it forks.

    python -m tests.support.store_storm FOLDER TOTAL_BYTES PROCESSES KILLS SEED

prints, as JSON, the pieces of which a process was told that they are stored, by their number, and the numbers of pieces
that were read and had wrong bits.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np

from ionn.server.store import Store, StoreSettings, owner_of, read_piece

OWNERS = (owner_of(b"one"), owner_of(b"another"))
PIECES = 60
# The longest that one lives: some are killed as they start, most while they write.
LIFE_S = 0.1


def content(number: int) -> memoryview:
    """The bytes of a piece, and thereby its name: no two are the same."""
    floats = np.random.default_rng(number).standard_normal(1 + number * 997 % 30_000).astype(np.float32)
    return memoryview(floats).cast("B")


def owner(number: int) -> str:
    return OWNERS[number % len(OWNERS)]


def digest(number: int) -> bytes:
    return hashlib.sha256(content(number)).digest()


def is_right(store: Store, number: int) -> bool | None:
    """Whether what the store has of a piece is right to the last bit; None if it has nothing."""
    opened = store.open(owner(number), digest(number))
    if opened is None:
        return None
    descriptor, size = opened
    target = memoryview(bytearray(size))
    whole = read_piece(descriptor, digest(number), [target])
    os.close(descriptor)
    return whole and target == content(number)


def live(settings: StoreSettings, seed: int, told: int) -> None:
    """Store and read pieces until the end, and tell what is stored, and what is wrong."""
    chosen = random.Random(seed)
    store = Store(settings)
    while True:
        number = chosen.randrange(PIECES)
        if chosen.randrange(3):
            if store.put(owner(number), digest(number), content(number)):
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
    for kill in range(kills):
        while len(living) < processes:
            pid = os.fork()
            if not pid:
                live(settings, chosen.randrange(10**9) + kill, told)
            living.append(pid)
        time.sleep(chosen.random() * LIFE_S)
        struck = living.pop(chosen.randrange(len(living)))
        os.kill(struck, signal.SIGKILL)
        os.waitpid(struck, 0)
        try:
            said += os.read(heard, 1 << 20)
        except BlockingIOError:
            pass
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
