"""What the sandbox of a session's process costs: a session's start and a query, with it and without. About 20 s.

Two servers on this machine take turns, session by session and query by query, so that whatever changes affects both. A
start is from a client's hello to its welcome. A query runs the 40 convolutions of bench/query_overhead.py's chain. Its
time depends on where in memory a process happens to lie, so every few queries come from new sessions.
"""

from __future__ import annotations

import contextlib

import query_overhead
import support

from ionn.testbed import processes

STARTS = 60
SESSIONS, WARM_UP, QUERIES = 20, 5, 40
START_RATIO = 1.2
# A query should take no longer; two equal servers differ by so much.
QUERY_RATIO = 1.02
SERVERS = {"sandbox": "--sandbox", "no sandbox": "--no-sandbox"}


def rows() -> list[support.Row]:
    starts_ms: dict[str, list[float]] = {name: [] for name in SERVERS}
    queries_ms: dict[str, list[float]] = {name: [] for name in SERVERS}
    with contextlib.ExitStack() as stack:
        addresses = {
            name: stack.enter_context(processes.process("serve", "--bind", "tcp://127.0.0.1:0", option))
            for name, option in SERVERS.items()
        }
        for _ in range(STARTS):
            for name, address in addresses.items():
                starts_ms[name].append(support.start_ms(address))
        network = query_overhead.chain()
        for _ in range(SESSIONS):
            with contextlib.ExitStack() as each:
                sessions = {name: query_overhead.session(network, at, 1, each) for name, at in addresses.items()}
                for query in range(WARM_UP + QUERIES):
                    for name, session in sessions.items():
                        latency_ms = session.query().latency_ms
                        if query >= WARM_UP:
                            queries_ms[name].append(latency_ms)
    return [
        support.with_and_without("sandbox", "a session's start", starts_ms, START_RATIO),
        support.with_and_without("sandbox", "a query", queries_ms, QUERY_RATIO),
    ]


if __name__ == "__main__":
    support.main(rows)
