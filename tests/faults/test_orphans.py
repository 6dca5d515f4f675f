"""Nothing that a killed process started lives on."""

from __future__ import annotations

import subprocess
import sys

import psutil
from world import WAIT_S

TESTBED = """
import time
from ionn.live import start_testbed
with start_testbed(mbps=80) as address:
    from ionn.client import Client, Patience
    client = Client(address, patience=Patience(connect_s=30))  # the session has a process too
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
