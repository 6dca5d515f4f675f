"""Audits: how much of a client's time they take, and what they cost queries that are not audited. About 25 s.

Of the chain of bench/query_overhead.py, 40 of 41 convolutions run at a server on loopback. A session with audits and
one without take turns, query by query. The time of an audit is the latency of an audited query less the median of the
others.
"""

from __future__ import annotations

import contextlib
import time

import numpy as np
import query_overhead
import support

from ionn.testbed import processes
from ionn.testbed.live_session import LiveSession

SHARES = (0.02, 0.1)
SECONDS = 10.0


def asked(session: LiveSession, data: np.ndarray) -> tuple[float, bool]:
    """The latency of a query in ms, and whether it was audited."""
    start_s = time.perf_counter()
    done = session.offloading.executor.execute(data)
    latency_ms = (time.perf_counter() - start_s) * 1e3
    assert [segment.where for segment in done.segments] == ["client", "server", "client"], session.offloading.fault
    return latency_ms, done.audited


def rows() -> list[support.Row]:
    network = query_overhead.chain()
    data = np.random.default_rng(1).standard_normal(network.input_shape).astype(np.float32)
    result: list[support.Row] = []
    for share in SHARES:
        with contextlib.ExitStack() as stack:
            address = stack.enter_context(processes.process("serve", "--bind", "tcp://127.0.0.1:0"))
            without = query_overhead.session(network, address, 1, stack)
            audited = query_overhead.session(network, address, 1, stack, share)
            latencies: dict[bool, list[float]] = {True: [], False: []}
            plain_ms: list[float] = []
            start_s = time.monotonic()
            while time.monotonic() < start_s + SECONDS:
                plain_ms.append(asked(without, data)[0])
                latency_ms, was = asked(audited, data)
                latencies[was].append(latency_ms)
            took_ms = (time.monotonic() - start_s) * 1e3
        usual_ms = float(np.median(latencies[False]))
        audits_ms = [ms - usual_ms for ms in latencies[True]]
        support.keep(f"audits, share {share:g}", audits_ms=audits_ms, took_ms=took_ms, usual_ms=usual_ms)
        result += [
            (f"audits, of the share {share:g} of the time", 1.0, sum(audits_ms) / took_ms / share, ""),
            (f"a query not audited, share {share:g}, of one without audits, median", 1.1,
             usual_ms / float(np.median(plain_ms)), ""),
        ]  # fmt: skip
    return result


if __name__ == "__main__":
    support.main(rows)
