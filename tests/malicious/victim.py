"""A client in a process of its own, whose memory can be measured: `victim.py ADDRESS LOSSES [coded]`.

It uploads and queries until it has lost the server so often, or all is uploaded and answered; then it prints the most
memory that it had, why it lost the server, and whether its outputs were right.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

from tests.malicious.hostile import CODED, GRAPH, PATIENT, session_at


def peak_mb() -> float:
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1e3


if __name__ == "__main__":
    losses = int(sys.argv[2])
    graph = CODED if "coded" in sys.argv else GRAPH
    with session_at(sys.argv[1], PATIENT, graph) as (client, session):
        session.start_upload()
        records = []
        while len(client.faults) < losses and not (session.uploaded() and client.fault is None and losses == 1000):
            records.append(session.query())
            time.sleep(0.01)
        records += [session.query() for _ in range(3)]
        faults = [str(fault) for fault in client.faults]
    right = all(record.bit_equal or record.difference < 1e-4 for record in records)
    print(json.dumps({"peak_mb": peak_mb(), "faults": faults, "right": right}))
