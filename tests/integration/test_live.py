"""The experiment on the small network: real client, link and server processes, real Caffe."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from ionn.client.offloading import Offloading
from ionn.client.session import Client, Timeouts
from ionn.costs.loading import load_costs
from ionn.errors import IonnError
from ionn.evaluation.validation import exchange_ms, validate
from ionn.model.network import Network
from ionn.model.partial_net import extract
from ionn.planning.graph import ExecutionGraph
from ionn.protocol.messages import Chunk, Message
from ionn.protocol.sender import Upload
from ionn.protocol.yielding import BESIDE_QUERY_BYTES
from ionn.records import LoadRecord
from ionn.testbed import live, processes, runner
from ionn.testbed.arrivals import Arrivals
from ionn.testbed.bandwidth import Bandwidth
from ionn.testbed.experiment import QUERIES_AFTER_UPLOAD
from ionn.testbed.live_session import LiveSession
from ionn.testbed.other_load import recorded_load
from ionn.testbed.trace import Trace, load_traces
from tests.support.command import ionn
from tests.support.runs import check_queries_after_upload, run_live
from tests.support.world import WAIT_S, Server, wait_for

Weights = dict[str, tuple[np.ndarray, ...]]
MBPS = 8.0


@pytest.fixture
def traces(tiny_files: Path, slow_client: str, tmp_path: Path) -> list[Trace]:
    results = tmp_path / "results"
    subject = runner.prepare_live(str(tiny_files), client=slow_client)
    return run_live(subject, ["original", "recursive-efficiency"], 1, mbps=MBPS, results=results)


def test_a_live_run(traces: list[Trace], tmp_path: Path, tiny_weights: Weights) -> None:
    weight_bytes = sum(blob.nbytes for blobs in tiny_weights.values() for blob in blobs)
    for trace in traces:
        assert len(trace.partitions) == len(trace.info.plan.partitions) > 0
        assert all(query.bit_equal for query in trace.queries)
        assert not any(query.fallback for query in trace.queries)
        # The first query waits for the first partition; five more follow the upload.
        assert trace.queries[0].start_s >= trace.partitions[0].ready_s
        check_queries_after_upload(trace)
        # One after another, in the order of the plan.
        assert all(a.end_s <= b.start_s for a, b in zip(trace.queries, trace.queries[1:], strict=False))
        assert all(a.ready_s <= b.ready_s for a, b in zip(trace.partitions, trace.partitions[1:], strict=False))
        # Real bytes at a real rate: not faster than the link.
        assert trace.upload_s >= weight_bytes * 8 / (MBPS * 1e6)
        # The last queries ran at the server, all but what stays at the client.
        assert [s.where for s in trace.queries[-1].segments] == ["client", "server", "client"]
        assert trace.info.environment["blas_threads"] == "1"
        # What the machine did, from the first second to the last.
        assert trace.loads[0].start_s == 0
        assert all(one.end_s == other.start_s for one, other in pairwise(trace.loads))
        assert trace.loads[-1].end_s >= trace.queries[-1].end_s
        assert any(load.own for load in trace.loads)
    assert load_traces(tmp_path / "results") == sorted(traces, key=lambda trace: trace.info.algorithm)


def test_finished_runs_are_kept(traces: list[Trace], tiny_files: Path, slow_client: str, tmp_path: Path) -> None:
    results = tmp_path / "results"
    kept = {path: path.stat().st_mtime_ns for path in results.rglob("run-01.jsonl")}
    subject = runner.prepare_live(str(tiny_files), client=slow_client)
    more = run_live(subject, ["original"], 2, mbps=MBPS, results=results)

    assert [trace.info.run for trace in more] == [1, 2]
    assert more[0] == next(trace for trace in traces if trace.info.algorithm == "original")
    assert {path: path.stat().st_mtime_ns for path in results.rglob("run-01.jsonl")} == kept


def test_a_window_outlasts_the_upload_and_is_dilated(tiny_files: Path, slow_client: str) -> None:
    subject = runner.prepare_live(str(tiny_files), client=slow_client)
    (trace,) = run_live(subject, ["original"], 1, mbps=80.0, dilation=2.0, window_s=2.0)
    assert trace.loads[-1].end_s >= 2.0  # when the run ended; its last query may have ended a moment earlier
    assert sum(query.start_s >= trace.upload_s for query in trace.queries) >= QUERIES_AFTER_UPLOAD
    assert trace.in_window == tuple(query for query in trace.queries if query.end_s <= 2.0)
    assert all(query.bit_equal for query in trace.queries)


@pytest.mark.parametrize("upload", ["share", "yield"])
def test_a_link_with_a_bandwidth_over_time_and_a_delay(
    upload: str, tiny_files: Path, slow_client: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dilated too. Answers are the same, and no partition arrives before the link lets it."""
    ride = tmp_path / "ride.csv"
    ride.write_text("0,8\n0.05,0\n0.15,4\n")
    beside: Counter[int] = Counter()  # bytes sent during each query
    next_message = Upload.next_message

    def watched(self: Upload, query: int | None = None) -> Message | None:
        message = next_message(self, query)
        if isinstance(message, Chunk) and query is not None:
            beside[query] += sum(map(len, message.payload))
        return message

    monkeypatch.setattr(Upload, "next_message", watched)
    subject = runner.prepare_live(str(tiny_files), client=slow_client)
    given: dict[str, Any] = {"link": ride, "delay_ms": 10.0, "jitter_ms": 2.0, "upload": upload, "dilation": 2.0}
    results = tmp_path / "results"
    (trace,) = run_live(subject, ["original"], 1, results=results, **given)
    assert trace.info.fault is None
    assert all(query.bit_equal for query in trace.queries)
    assert len(trace.partitions) > 1
    sent_bytes = 0
    for partition in trace.partitions:
        sent_bytes += partition.bytes
        assert partition.end_s >= Bandwidth.load(ride).arrival_s(0, sent_bytes) + 2 * 0.008
    assert trace.queries[-1].latency_ms >= 2 * 8.0
    assert load_traces(results) == [trace]
    assert trace.info.bandwidth == Bandwidth.load(ride)
    settings = trace.info.settings
    assert (settings.delay_ms, settings.jitter_ms, settings.upload, settings.mbps) == (10.0, 2.0, upload, 80.0)
    assert settings.link.startswith("ride.csv (")
    assert run_live(subject, ["original"], 1, results=results, **given) == [trace]
    if upload == "yield":
        assert max(beside.values(), default=0) <= BESIDE_QUERY_BYTES
    # The virtual testbed knows this link from the trace.
    predicted = validate(trace).predicted
    assert predicted.info.settings.link == settings.link
    assert predicted.upload_s >= Bandwidth.load(ride).arrival_s(0, sent_bytes) + 2 * 0.008


def test_the_links_time_begins_with_the_runs_clock(
    tiny_files: Path, slow_client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not before: what arrives would have had more time than the trace says."""
    clocks: list[Callable[[], float]] = []
    begun: list[list[float]] = []

    def recorded(now_s: Callable[[], float]) -> AbstractContextManager[list[LoadRecord]]:
        clocks.append(now_s)
        return recorded_load(now_s)

    monkeypatch.setattr(live, "recorded_load", recorded)
    subject = runner.prepare_live(str(tiny_files), client=slow_client)
    server = load_costs("gtx1080ti")
    settings = runner.live_settings(subject, server, mbps=80.0)
    with processes.process("serve", "--bind", "tcp://127.0.0.1:0") as address:
        live.run_live(
            subject, "original", settings, address, server=server,
            begin=lambda: begun.append([now_s() for now_s in clocks]),
        )  # fmt: skip
    before, (at_s,) = begun
    assert before == []
    assert at_s > 0


@pytest.mark.parametrize("busy", ["wait", "drop"])
def test_queries_arrive_by_themselves(busy: str, tiny_files: Path, slow_client: str, tmp_path: Path) -> None:
    """In a dilated run, three at once every half second: those that meet a busy client wait, or are dropped."""
    subject = runner.prepare_live(str(tiny_files), client=slow_client)
    (trace,) = run_live(
        subject, ["original"], 1, mbps=80.0, dilation=2.0, window_s=2.0, arrivals=Arrivals("burst:3,0.5"), busy=busy,
        results=tmp_path,
    )  # fmt: skip
    raised_s = sorted([*(query.raised_s for query in trace.queries), *trace.dropped_s])
    assert len(raised_s) >= 12
    assert raised_s == pytest.approx([0.5 * (number // 3) for number in range(len(raised_s))], abs=1e-9)
    assert all(query.raised_s <= query.start_s for query in trace.queries)
    assert all(a.end_s <= b.start_s for a, b in zip(trace.queries, trace.queries[1:], strict=False))
    assert all(query.bit_equal for query in trace.queries)
    assert sum(query.start_s >= trace.upload_s for query in trace.queries) >= QUERIES_AFTER_UPLOAD
    if busy == "drop":
        # Whatever was dropped met a query that was raised before its answer.
        for time_s in trace.dropped_s:
            assert any(query.raised_s <= time_s < query.end_s for query in trace.queries)
        assert len(trace.dropped_s) >= 2 * 4
    else:
        # The third of a burst waited for two others.
        third = trace.queries[2]
        assert third.response_ms >= sum(query.latency_ms for query in trace.queries[:3]) > third.latency_ms
        # What still waited when the run ended.
        last = trace.queries[-1]
        assert all(time_s >= last.raised_s and last.end_s >= 2.0 for time_s in trace.dropped_s)
    assert load_traces(tmp_path) == [trace]
    assert {query.raised_s for query in validate(trace).predicted.queries} <= set(raised_s)


@pytest.mark.parametrize(("upload", "busy"), [("share", "wait"), ("yield", "drop")])
def test_queries_arrive_over_a_link_with_an_outage_and_a_delay(
    upload: str, busy: str, tiny_files: Path, slow_client: str, tmp_path: Path
) -> None:
    """From the command line, dilated: arrivals, bandwidth and delay are those of the undilated run."""
    ride = tmp_path / "ride.csv"
    ride.write_text("0,8\n0.05,0\n0.15,4\n")
    done = ionn(
        "run", tiny_files, "--client", slow_client, "--algorithm", "original", "--dilation", "2",
        "--mbps", "8", "--link", ride, "--delay-ms", "10", "--upload", upload,
        "--arrivals", "burst:2,0.1", "--busy", busy, "--deadline-ms", "60", "--results", tmp_path, "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["link"].startswith("ride.csv (")
    assert (result["delay_ms"], result["upload"]) == (10, upload)
    assert (result["arrivals"], result["busy"], result["deadline_ms"]) == ("burst:2,0.1", busy, 60)
    (run,) = result["runs"]
    assert run["bit_equal"]
    (trace,) = load_traces(tmp_path)
    raised_s = sorted([*(query.raised_s for query in trace.queries), *trace.dropped_s])
    assert raised_s == pytest.approx([0.1 * (number // 2) for number in range(len(raised_s))], abs=1e-9)
    assert run["responses"]["raised"] == len(raised_s) >= 2 * QUERIES_AFTER_UPLOAD - 1
    # The upload began with the arrivals, and so did the link: its outage is where it belongs.
    sent_bytes = 0
    for partition in trace.partitions:
        sent_bytes += partition.bytes
        assert partition.end_s >= Bandwidth.load(ride).arrival_s(0, sent_bytes) + 2 * 0.010
    # What ended before the first partition came ran here; what was at the server paid for the way.
    wheres = [{segment.where for segment in query.segments} for query in trace.queries]
    first_s = trace.partitions[0].ready_s
    assert all(where == {"client"} for q, where in zip(trace.queries, wheres, strict=True) if q.end_s <= first_s)
    assert wheres[-1] == {"client", "server"}
    assert all(q.latency_ms >= 20 for q, where in zip(trace.queries, wheres, strict=True) if "server" in where)
    predicted = validate(trace).predicted
    assert predicted.info.settings == dataclasses.replace(
        trace.info.settings, testbed="virtual", dilation=1.0, server=predicted.info.settings.server
    )
    assert {query.raised_s for query in predicted.queries} <= set(raised_s)
    assert predicted.upload_s >= Bandwidth.load(ride).arrival_s(0, sent_bytes) + 2 * 0.010


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_that_dies_costs_no_query(
    number: int, tiny: Network, tiny_files: Path, tiny_weights: Weights, slow_client: str
) -> None:
    subject = runner.prepare_live(str(tiny_files), client=slow_client)
    stages = [[1], [2, 3], [4]]
    graph = ExecutionGraph.from_network(tiny, subject.client, load_costs("gtx1080ti"), MBPS)
    server = Server()

    def kill_after_two(session: LiveSession) -> None:
        if session.last_query is not None and session.last_query.index == 1:
            server.strike(number)
            wait_for(lambda: not server.alive(), "its end")

    patient = Timeouts(query_s=WAIT_S, silence_s=WAIT_S, connect_s=WAIT_S)
    client = Client(server.address, timeouts=patient)
    offloading = Offloading(
        tiny, subject.net, graph, client, [extract(tiny, s, tiny_weights) for s in stages], stages,
        layer_ms=[0.0] * len(tiny.layers),
    )  # fmt: skip
    session = LiveSession(offloading, subject.net, harness_inputs(tiny), kill_after_two)
    try:
        session.start_upload()
        wait_for(session.uploaded, "the upload")
        records = [session.query() for _ in range(6)]
    finally:
        client.close()
        server.stop()

    assert all(record.bit_equal for record in records)
    assert [record.fallback for record in records] == [False, False, True, True, True, True]
    assert session.offloading.fault is not None


def harness_inputs(network: Network) -> list[np.ndarray]:
    rng = np.random.default_rng(11)
    return [rng.standard_normal(network.input_shape).astype(np.float32) for _ in range(3)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_however_often_keeps_finished_runs_and_leaves_nothing_running(
    number: signal.Signals, tiny_files: Path, slow_client: str, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    command = [
        sys.executable, "-m", "ionn", "run", str(tiny_files), "--algorithm", "original", "--runs", "50",
        "--client", slow_client, "--mbps", str(MBPS), "--results", str(results),
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        wait_for(lambda: list(results.rglob("run-*.jsonl")), "the first run")
        children = psutil.Process(process.pid).children(recursive=True)
        deadline = time.monotonic() + WAIT_S
        while process.poll() is None:
            assert time.monotonic() < deadline
            os.killpg(process.pid, number)
        _, stderr = process.communicate(timeout=WAIT_S)
    finally:
        process.kill()

    assert process.returncode == 130
    # Python itself may then report a signal that a thread of OpenBLAS took.
    assert stderr.strip().startswith("ionn: interrupted")
    assert children
    _, alive = psutil.wait_procs(children, timeout=WAIT_S)
    assert not alive
    assert load_traces(results)
    assert not list(results.rglob("*.part"))


def test_a_process_that_does_not_say_where_it_listens_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_START_S", 0.0)
    with (
        pytest.raises(IonnError, match=r"^'ionn serve --bind tcp://127\.0\.0\.1:0' was not ready within 0 s$"),
        processes.process("serve", "--bind", "tcp://127.0.0.1:0"),
    ):
        pass


def test_ctrl_c_while_a_process_is_being_started(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[str]] = []

    class Interrupted(subprocess.Popen[str]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt), processes.process("serve", "--bind", "tcp://127.0.0.1:0"):
        pass
    (process,) = started
    assert process.returncode is not None


def test_without_a_server_queries_run_at_the_client(tiny_files: Path, slow_client: str) -> None:
    command = [
        sys.executable, "-m", "ionn", "run", str(tiny_files), "--client", slow_client, "--json",
        "--connect", "tcp://127.0.0.1:1",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "tcp://127.0.0.1:1: no server there" in done.stderr
    assert "ran at the client" in done.stderr
    (run,) = json.loads(done.stdout)["runs"]
    assert run["connected"] is False
    assert run["queries"] == QUERIES_AFTER_UPLOAD
    assert run["bit_equal"] is True


def test_an_empty_plan_runs_locally(tiny_files: Path, tmp_path: Path, tiny: Network) -> None:
    fast = tmp_path / "fast.txt"
    fast.write_text("".join(f"{layer.index} {layer.name} 0.01\n" for layer in tiny.layers))
    subject = runner.prepare_live(str(tiny_files), client=str(fast))

    (trace,) = run_live(subject, ["recursive-efficiency"], 1, mbps=MBPS, server="odroid-xu4")

    assert trace.partitions == ()
    assert trace.queries_before_upload == 0
    assert len(trace.queries) == QUERIES_AFTER_UPLOAD
    assert {s.where for q in trace.queries for s in q.segments} == {"client"}
    assert all(query.bit_equal for query in trace.queries)


def test_preinstalled_stages_are_there_before_the_clock_runs(
    tiny_files: Path, slow_client: str, tmp_path: Path
) -> None:
    """They are really uploaded, over the link, and the run has no partition and no time for that."""
    subject = runner.prepare_live(str(tiny_files), client=slow_client)
    results = tmp_path / "results"
    (trace,) = run_live(subject, ["preinstalled"], 1, mbps=MBPS, results=results)
    held = trace.info.plan.held
    assert held == (1, 2, 3, 4, 5)
    assert (trace.partitions, trace.info.plan.partitions, trace.upload_s) == ((), (), 0.0)
    assert len(trace.queries) == QUERIES_AFTER_UPLOAD
    for query in trace.queries:
        assert [(s.where, s.first, s.last) for s in query.segments] == [
            ("client", 0, 0), ("server", held[0], held[-1]), ("client", 6, 6)
        ]  # fmt: skip
        assert query.bit_equal
        assert not query.fallback
    assert load_traces(results) == [trace]
    # By what was measured, which on a busy machine is more than was planned.
    latency_ms = trace.info.graph.holding(held).latency_ms(()) + exchange_ms(trace)
    predicted = validate(trace).predicted
    assert [query.latency_ms for query in predicted.queries] == pytest.approx([latency_ms] * QUERIES_AFTER_UPLOAD)
    assert predicted.queries[0].start_s == 0


def test_preinstalled_without_a_server_runs_at_the_client(tiny_files: Path, slow_client: str) -> None:
    subject = runner.prepare_live(str(tiny_files), client=slow_client)
    (trace,) = run_live(
        subject, ["preinstalled"], 1, mbps=MBPS, server="odroid-xu4", address="tcp://127.0.0.1:9"
    )  # fmt: skip
    assert trace.info.fault
    assert {s.where for q in trace.queries for s in q.segments} == {"client"}
