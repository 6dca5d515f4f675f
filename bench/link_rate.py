"""What the link process does to traffic and what it costs. Takes about 15 s: python bench/link_rate.py [--mbps 80]

The link runs in a process of its own; bytes are timed where they arrive. Rates are to be within 1 % of their limit over
every window of a second, the other measures below theirs.
"""

from __future__ import annotations

import argparse
import bisect
import multiprocessing
import os
import socket
import statistics
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from ionn.address import Address
from ionn.testbed.bandwidth import Bandwidth
from ionn.testbed.link import serve_link
from ionn.testbed.link_pacer import LinkPacer

MBPS = 80.0
FAST_MBPS = 1000.0
BULK_S = 4.0
WINDOW_S = 1.0
CPU_LIMIT_PERCENT = 12.0
PINGS = 100
PING_EVERY_S = 0.02
PING_BYTES = 128

Pair = tuple[socket.socket, socket.socket]
Arrivals = list[tuple[float, int]]  # (time in seconds, bytes so far)


def run_link(to: Address, mbps: float, channel: Connection) -> None:
    serve_link(("127.0.0.1", 0), to, Bandwidth.constant(mbps), channel.send)


class Bed:
    """A link process, and connections through it of which both ends are here."""

    def __init__(self, mbps: float) -> None:
        context = multiprocessing.get_context("spawn")
        self._server = socket.create_server(("127.0.0.1", 0))
        here, there = context.Pipe()
        self._process = context.Process(target=run_link, args=(self._server.getsockname(), mbps, there))
        self._process.start()
        self._address: Address = here.recv()

    def connect(self) -> Pair:
        client = socket.create_connection(self._address)
        server, _ = self._server.accept()
        for sock in (client, server):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client, server

    def cpu_s(self) -> float:
        """CPU time of the link process so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        self._process.terminate()
        self._process.join()
        self._server.close()


@contextmanager
def link(mbps: float) -> Iterator[Bed]:
    bed = Bed(mbps)
    try:
        yield bed
    finally:
        bed.close()


def pour(source: socket.socket, duration_s: float) -> None:
    """Send as much as the socket takes, then end the stream."""
    end_s = time.monotonic() + duration_s
    while time.monotonic() < end_s:
        source.sendall(bytes(1 << 16))
    source.shutdown(socket.SHUT_WR)


def collect(sink: socket.socket) -> Arrivals:
    arrivals: Arrivals = []
    total = 0
    while data := sink.recv(1 << 18):
        total += len(data)
        arrivals.append((time.monotonic(), total))
    return arrivals


def bulk(bed: Bed, pairs: list[Pair], duration_s: float = BULK_S) -> tuple[list[Arrivals], float]:
    """Pour into the first socket of each pair: what arrives at the second ones, and the link's CPU use in percent."""
    with ThreadPoolExecutor(2 * len(pairs)) as pool:
        begin_s, begin_cpu_s = time.monotonic(), bed.cpu_s()
        sinks = [pool.submit(collect, sink) for _, sink in pairs]
        for source, _ in pairs:
            pool.submit(pour, source, duration_s)
        arrivals = [sink.result() for sink in sinks]
        return arrivals, 100 * (bed.cpu_s() - begin_cpu_s) / (time.monotonic() - begin_s)


def window_mbps(arrivals: Arrivals) -> list[float]:
    """The rate over every window of WINDOW_S that begins with an arrival."""
    times = [time_s for time_s, _ in arrivals]
    rates: list[float] = []
    for time_s, total in arrivals:
        if time_s + WINDOW_S > times[-1]:
            return rates
        last = bisect.bisect_right(times, time_s + WINDOW_S) - 1
        rates.append((arrivals[last][1] - total) * 8 / WINDOW_S / 1e6)
    return rates


def receive_pings(sink: socket.socket) -> list[float]:
    """The time in ms that each message took; it begins with when it was sent."""
    delays_ms = []
    while message := sink.recv(PING_BYTES, socket.MSG_WAITALL):
        delays_ms.append((time.monotonic() - struct.unpack_from("d", message)[0]) * 1e3)
    return delays_ms


def send_pings(source: socket.socket) -> None:
    for _ in range(PINGS):
        source.sendall(struct.pack("d", time.monotonic()).ljust(PING_BYTES))
        time.sleep(PING_EVERY_S)
    source.shutdown(socket.SHUT_WR)


def ping(pair: Pair) -> list[float]:
    with ThreadPoolExecutor(2) as pool:
        delays_ms = pool.submit(receive_pings, pair[1])
        pool.submit(send_pings, pair[0])
        return delays_ms.result()


def row(measure: str, unit: str, limit: float, ours: float) -> None:
    print(f"{measure:56} | {limit:8.2f} {unit:4} | {ours:8.2f} {unit:4} | {ours / limit:6.3f}", flush=True)


def rate_rows(name: str, mbps: float, arrivals: Arrivals) -> None:
    rates = window_mbps(arrivals)
    row(f"{name}, slowest of {len(rates)} windows", "Mbps", mbps, min(rates))
    row(f"{name}, fastest", "Mbps", mbps, max(rates))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mbps", type=float, default=MBPS)
    mbps: float = parser.parse_args().mbps
    print(f"{'measure':56} | {'limit':13} | {'ours':13} | ratio")
    with link(mbps) as bed:
        (up,), cpu_percent = bulk(bed, [bed.connect()])
        rate_rows("uplink", mbps, up)
        row("CPU of the link process, uplink busy", "%", CPU_LIMIT_PERCENT, cpu_percent)

        (up, down), cpu_percent = bulk(bed, [bed.connect(), bed.connect()[::-1]])
        rate_rows("uplink, both directions busy", mbps, up)
        rate_rows("downlink, both directions busy", mbps, down)
        row("CPU of the link process, both directions busy", "%", 2 * CPU_LIMIT_PERCENT, cpu_percent)

        with ThreadPoolExecutor(1) as pool:
            first, second = bed.connect(), bed.connect()
            pings = pool.submit(ping, bed.connect())
            shares, _ = bulk(bed, [first, second], PINGS * PING_EVERY_S)
            rate_rows("one of two uploads", mbps / 2, shares[0])
            # Two quanta may be ahead of it, the link may wake up late by another one, and its own bytes cross.
            quantum_bytes = LinkPacer(Bandwidth.constant(mbps)).quantum_bytes(alone=False, now_s=0)
            limit_ms = (3 * quantum_bytes + PING_BYTES) * 8 / mbps / 1e3
            row(f"{PING_BYTES} bytes next to two uploads, median", "ms", limit_ms, statistics.median(pings.result()))
            row(
                f"{PING_BYTES} bytes next to two uploads, 95 %",
                "ms",
                limit_ms,
                sorted(pings.result())[PINGS * 95 // 100],
            )
    with link(FAST_MBPS) as bed:
        (up,), cpu_percent = bulk(bed, [bed.connect()], BULK_S / 2)
        rate_rows(f"uplink at {FAST_MBPS:.0f} Mbps", FAST_MBPS, up)
        row("CPU of the link process, uplink busy", "%", 100, cpu_percent)


if __name__ == "__main__":
    main()
