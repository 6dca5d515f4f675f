"""Nothing that a killed process started lives on."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.world import WAIT_S, wait_for

TESTBED = """
import time
from ionn.testbed.processes import start_testbed
from ionn.testbed.settings import Settings
with start_testbed(Settings("live")) as testbed:
    address = testbed.address
    from ionn.client.session import Client, Timeouts
    client = Client(address, timeouts=Timeouts(connect_s=30))  # the session has a process too
    print(address, flush=True)
    time.sleep(60)
"""


def test_a_killed_testbed_leaves_no_process() -> None:
    with subprocess.Popen([sys.executable, "-c", TESTBED], stdout=subprocess.PIPE, text=True) as testbed:
        assert testbed.stdout is not None
        assert testbed.stdout.readline()
        started = psutil.Process(testbed.pid).children(recursive=True)
        assert len(started) >= 4  # server, fork server, session, link
        testbed.kill()
    _, alive = psutil.wait_procs(started, WAIT_S)
    assert alive == []


# A name that a server passes on to its sessions.
MARK = "PYTHON_TEST_RUN"


def marked(name: str) -> list[psutil.Process]:
    """All processes that a run started, whoever their parent is now."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == name and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@pytest.mark.parametrize("count", [2, 4, 6], ids=lambda count: f"{count} processes")
def test_a_killed_run_leaves_no_process(count: int, tiny_files: Path, slow_client: str, tmp_path: Path) -> None:
    """With its first process just started, with some of them, and while all of them work: it, the server, the fork
    server, a session, the link."""
    command = [
        sys.executable, "-m", "ionn", "run", str(tiny_files), "--runs", "50", "--client", slow_client, "--mbps", "8",
        "--results", str(tmp_path / "results"),
    ]  # fmt: skip
    name = str(tmp_path)
    with subprocess.Popen(command, env={**os.environ, MARK: name}, stdout=subprocess.DEVNULL) as run:
        try:
            wait_for(lambda: len(marked(name)) >= min(count, 5), f"{count} processes")
            if count > 5:
                wait_for(lambda: list((tmp_path / "results").rglob("run-*.jsonl")), "a finished run")
        finally:
            run.kill()
    wait_for(lambda: marked(name) == [], "its processes to be gone")


ORPHAN = """
import os, sys
from ionn.server.orphans import end_with
parent = os.getpid()
if os.fork() == 0:
    while os.getppid() == parent:
        pass
    end_with(parent)
    print("lives on", flush=True)
"""


def test_a_parent_that_has_ended_before() -> None:
    done = subprocess.run([sys.executable, "-c", ORPHAN], capture_output=True, text=True, timeout=WAIT_S)
    assert done.stdout == ""
    assert done.stderr == ""


@pytest.mark.parametrize("frozen", [False, True])
def test_a_child_ends_with_its_parent(frozen: bool) -> None:
    code = (
        "import os, signal; from ionn.server.orphans import end_with; parent = os.getpid(); child = os.fork()\n"
        "if child == 0: end_with(parent); print(os.getpid(), flush=True); signal.pause()\n"
        "signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        if frozen:
            os.kill(child.pid, signal.SIGSTOP)
        parent.kill()
    _, alive = psutil.wait_procs([child], WAIT_S)
    assert alive == []
