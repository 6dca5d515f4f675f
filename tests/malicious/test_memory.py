"""Whatever a server sends, its client needs no more than 100 MB for it. Measured: a process's high-water mark."""

from __future__ import annotations

import functools
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.malicious.hostile import FLOODS, MOMENTS, NETWORK, WAIT_S, Hostile, Script, often, pour
from tests.malicious.test_coded import recoded
from tests.support.bombs import bombs

ROOT = Path(__file__).resolve().parents[2]
EXTRA_MB = 100.0
LOSSES = 3
# Of the first result that a client of such a server waits for.
RESULT_BYTES = 4 * math.prod(NETWORK.stages[2].output_shapes[0])
OFTEN = (
    ("chunk ack", "large frames without end"),
    ("welcome control", "empty frames without end"),
    ("query", "pongs"),
)
# While a query runs, nobody pings.
MOMENTS_OF_QUERIES = [moment for moment in MOMENTS if not moment.startswith("pong")]
CASES = often(itertools.product(MOMENTS_OF_QUERIES, FLOODS), lambda *case: case in OFTEN)


def run(moment: str, script: Script | None, losses: int, *options: str) -> dict[str, Any]:
    server = Hostile(moment, script)
    try:
        command = [sys.executable, "-m", "tests.malicious.victim", server.address, str(losses), *options]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=2 * WAIT_S, check=True)
    finally:
        server.close()
    return dict(json.loads(done.stdout))


@functools.cache
def needed_mb() -> float:
    """What a client needs with a good server."""
    quiet = run("", None, losses=1000)
    assert quiet["right"]
    assert not quiet["faults"]
    return float(quiet["peak_mb"])


@pytest.mark.parametrize(("moment", "flood"), CASES)
def test_memory(moment: str, flood: str) -> None:
    done = run(moment, pour(*FLOODS[flood]), LOSSES)
    assert done["right"]
    assert len(done["faults"]) >= LOSSES
    assert done["peak_mb"] - needed_mb() < EXTRA_MB, done


def test_bombs_need_no_memory() -> None:
    """Results of a few kB that claim to be anything up to 2^62 bytes, or become more than they claim."""
    claimed = itertools.cycle(bombs(RESULT_BYTES))
    done = run("query", recoded(lambda blob, size: ([next(claimed)], ("planes",))), 2 * LOSSES, "coded")
    assert done["right"]
    assert len(done["faults"]) >= 2 * LOSSES
    assert all("does not fit its shapes" in fault for fault in done["faults"])
    assert done["peak_mb"] - needed_mb() < 5, done
