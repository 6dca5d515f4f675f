"""What happens to signals while joblib starts its processes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

# Signals come when joblib asks for the first call, before it has started a process for it. A thread that does not block
# them, as numpy has, may be handed them.
_INTERRUPTED = """
import os, signal, sys, threading, time
from joblib import delayed
from ionn.testbed.workers import as_they_end, local_workers

def end(number, frame):
    raise KeyboardInterrupt(number)

number = int(sys.argv[1])
signal.signal(number, end)
threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()

def calls():
    for _ in range(3):
        os.kill(os.getpid(), number)
    deadline = time.monotonic() + 0.5
    while time.monotonic() < deadline:
        pass
    print("undisturbed", flush=True)
    yield delayed(time.sleep)(0)

try:
    with local_workers(2):
        list(as_they_end(calls(), "the test", "run it again"))
except KeyboardInterrupt as error:
    print("interrupted", *error.args, signal.getsignal(number) is end, signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_take_effect_when_the_processes_have_been_started(number: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED, str(int(number))],
        capture_output=True, text=True, timeout=120, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.stdout.splitlines() == ["undisturbed", f"interrupted {int(number)} True set()"]
    assert done.stderr == ""
    assert done.returncode == 0
