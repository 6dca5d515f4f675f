"""How much of the link an upload uses: of 80 Mbps, alone, coded and beside queries; and of a bandwidth that changes,
with a delay. About 70 s.

Bytes are counted behind the link by bench/tap.py. An upload's time is from its start to the READY of the last
partition, as the client sees it, and the link could have carried bytes in all of it. Features are the inputs of server
segments, of the queries that ended in that time. The client is not paced: Caffe computes all the time, which is the
hardest case for the upload thread beside it.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import support

from ionn import paper
from ionn.client.offloading import Offloading
from ionn.client.session import Client
from ionn.model import inputs
from ionn.model.caffemodel import CodedFrames
from ionn.model.coded_weights import open_sidecar
from ionn.model.partial_net import extract
from ionn.testbed import processes, runner
from ionn.testbed.bandwidth import Bandwidth
from ionn.testbed.experiment import run_experiment
from ionn.testbed.live import Subject
from ionn.testbed.live_session import LiveSession
from ionn.testbed.settings import Settings
from ionn.testbed.trace import RunInfo, Trace

IDLE_SHARE = 0.985
QUERYING_SHARE = 0.98
CHANGING_SHARE = 0.96
BYTES_PER_S = paper.MBPS * 1e6 / 8
WINDOW_S = 1.0
STEP_S = 0.05


def idle_upload_s(
    subject: Subject, address: str, frames: CodedFrames, begin: Callable[[], None] = lambda: None
) -> tuple[float, int]:
    """Upload a model while nothing else happens. Returns the time in s and the wire bytes of the weights. `begin` is
    called when the upload begins."""
    _, _, plan = support.paper_plan(subject.network.name)
    parts = [extract(subject.network, part.stages, subject.weights, frames) for part in plan.partitions]
    client = Client(address)
    try:
        begin()
        began = time.monotonic()
        uploader = client.start_upload(parts, time.monotonic)
        assert uploader.wait_ready(len(parts), timeout_s=300), uploader.error
        sent = uploader.records([part.stage_names for part in plan.partitions])
        return time.monotonic() - began, sum(record.wire_bytes or 0 for record in sent)
    finally:
        client.close()


def querying_upload(subject: Subject, address: str) -> Trace:
    """The experiment with a client that is not paced: upload while a closed loop of queries runs."""
    network, graph, plan = support.paper_plan(subject.network.name)
    stages = [part.stages for part in plan.partitions]
    parts = [extract(network, indices, subject.weights) for indices in stages]
    photographs = inputs.query_inputs(network, seed=0)
    client = Client(address)
    try:
        offloading = Offloading(network, subject.net, graph, client, parts, stages)
        session = LiveSession(offloading, subject.net, photographs)
        return run_experiment(session, RunInfo(Settings("live", paced=False), 1, plan, graph))
    finally:
        client.close()


def feature_bytes(subject: Subject, trace: Trace) -> int:
    """The bytes that the queries that ended during the upload sent to the server."""
    stages = subject.network.stages
    return sum(
        4 * math.prod(stages[segment.first].input_shape)
        for query in trace.queries
        if query.end_s <= trace.upload_s
        for segment in query.segments
        if segment.where == "server"
    )


def rates_mbps(times_s: np.ndarray, bytes_up: np.ndarray, start_s: float, end_s: float) -> np.ndarray:
    """The rates in all windows of WINDOW_S between two times, which begin every STEP_S."""
    begins = np.arange(start_s, end_s - WINDOW_S, STEP_S)
    crossed: np.ndarray = np.interp(begins + WINDOW_S, times_s, bytes_up) - np.interp(begins, times_s, bytes_up)
    return crossed * 8 / 1e6 / WINDOW_S


def measure(subject: Subject, querying: bool, frames: CodedFrames | None = None) -> list[support.Row]:
    name = f"{subject.network.name}, {'querying' if querying else 'idle'}{', coded' if frames else ''}"
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "bytes"
        with (
            processes.process("serve", "--bind", "tcp://127.0.0.1:0") as server,
            support.tap(server, output) as tapped,
            processes.process(
                "link", "--listen", "tcp://127.0.0.1:0", "--to", tapped, "--mbps", str(paper.MBPS)
            ) as link,
        ):
            if querying:
                trace = querying_upload(subject, link)
                upload_s, weights = trace.upload_s, sum(part.bytes for part in trace.partitions)
                features, limit = feature_bytes(subject, trace), QUERYING_SHARE
            else:
                upload_s, weights = idle_upload_s(subject, link, frames or {})
                features, limit = 0, IDLE_SHARE
        times_s, bytes_up = np.loadtxt(output).T
    share = (weights + features) / (BYTES_PER_S * upload_s)
    # Features that cross count as weights here, so the windows end early rather than late.
    begin, end = np.searchsorted(bytes_up, (100_000, weights))
    rates = rates_mbps(times_s, bytes_up, times_s[begin], times_s[end])
    support.keep(
        f"link use, {name}", upload_s=upload_s, weight_bytes=weights, feature_bytes=features,
        bytes_behind_the_link=int(bytes_up[-1]), window_mbps=[round(rate, 2) for rate in rates.tolist()],
    )  # fmt: skip
    carried = "weights and features" if querying else "weights"
    return [
        (f"{carried} / 80 Mbps, {name}, at least", limit, share, ""),
        (f"lowest rate in any second, {name}, at least", limit * paper.MBPS, float(rates.min()), "Mbps"),
        (f"highest rate in any second, {name}", 1.01 * paper.MBPS, float(rates.max()), "Mbps"),
    ]


def changing_link(subject: Subject) -> support.Row:
    """An upload over a link that becomes slow, breaks, and becomes fast, with a round trip of a tenth of a second."""
    bandwidth = Bandwidth((0.0, 3.0, 6.0, 7.0), (80.0, 20.0, 0.0, 160.0))
    with tempfile.TemporaryDirectory() as folder:
        (ride := Path(folder) / "ride.csv").write_text(bandwidth.csv())
        with processes.start_testbed(Settings("live", delay_ms=50.0), link=ride) as testbed:
            upload_s, weights = idle_upload_s(subject, testbed.address, {}, testbed.begin)
    # While the last bytes and the server's answer are on their way, nothing is left to cross.
    could_bytes = bandwidth.bytes_between(0.0, upload_s - 0.1)
    name = f"weights / what could cross, 80-20-0-160 Mbps, 50 ms, {subject.network.name}"
    support.keep(name, upload_s=upload_s, weight_bytes=weights, could_bytes=could_bytes)
    return f"{name}, at least", CHANGING_SHARE, weights / could_bytes, ""


def rows() -> list[support.Row]:
    resnet = runner.prepare_live("resnet")
    idle = measure(resnet, querying=False)
    assert resnet.weights_file is not None
    sidecar = open_sidecar(resnet.weights_file, resnet.network, resnet.net.weights())
    assert sidecar is not None, "no coded weights: run 'make models'"
    with sidecar:
        coded = measure(resnet, querying=False, frames=sidecar.frames)
    return [*idle, *coded, changing_link(resnet), *measure(runner.prepare_live("alexnet"), querying=True)]


if __name__ == "__main__":
    support.main(rows)
