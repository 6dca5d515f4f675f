"""A client that measures, live: a real server over a real link, answers that are Caffe's own bit for bit."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ionn.client.measuring import Measuring
from ionn.client.offloading import Offloading, open_offloading
from ionn.client.session import Client
from ionn.costs.models import Profile
from ionn.model import engine
from ionn.model.inputs import query_inputs
from ionn.model.network import Network
from ionn.model.slices import Piece
from ionn.paper import MBPS
from ionn.planning import planners
from ionn.planning.graph import ExecutionGraph
from ionn.planning.planners.custom import checked
from ionn.records import QueryRecord
from ionn.testbed import processes, runner
from ionn.testbed.live_session import LiveSession
from ionn.testbed.trace import load_traces
from tests.support.command import ionn
from tests.support.runs import run_live
from tests.support.world import Process, Server, wait_for

Weights = dict[str, tuple[np.ndarray, ...]]
# The client takes 10 ms for each of 13 layers; what the server takes depends on this machine.
LAYER_MS = 10.0
# So slow that the server is worth it though a busy machine takes its link for a slow one, or the server is frozen.
SLOW_LAYER_MS = 50.0


@contextlib.contextmanager
def session_at(
    address: str,
    network: Network,
    weights: Weights,
    algorithm: str = "recursive-efficiency",
    layer_ms: float = LAYER_MS,
    **given: Any,
) -> Iterator[tuple[LiveSession, Offloading, Client]]:
    net = engine.load_network(network, weights)
    here = Profile.of(network, np.full(len(network.layers), layer_ms))
    there = Profile.of(network, np.full(len(network.layers), 0.1))
    with open_offloading(
        network, net, here, address, None, algorithm, there=there, paced=True, **given
    ) as offloading:  # fmt: skip
        session = LiveSession(offloading, net, query_inputs(network, 0))
        session.start_upload()
        assert offloading._client is not None
        yield session, offloading, offloading._client


def at_server(query: QueryRecord) -> bool:
    return any(segment.where == "server" for segment in query.segments)


def wait_for_a_late_answer(session: LiveSession) -> None:
    """The server is frozen. After what a busy machine had the client believe, some queries may stay at the client."""

    def late() -> bool:
        query = session.query()
        assert query.bit_equal
        return query.fallback

    wait_for(late, "a query whose answer is late")


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.end_well()


@contextlib.contextmanager
def link_to(server: Server, *options: str) -> Iterator[str]:
    with processes.process("link", "--listen", "tcp://127.0.0.1:0", "--to", server.address, *options) as address:
        yield address


@pytest.mark.parametrize("mbps", [1.0, 16.0])
@pytest.mark.parametrize("yields", [False, True])
def test_the_rate_of_a_link_is_found_out(
    mbps: float, yields: bool, server: Server, tiny: Network, tiny_weights: Weights
) -> None:
    """Far from what is believed before anything is known; how near to the link's is for this machine to say."""
    with (
        link_to(server, "--mbps", str(mbps), "--delay-ms", "5") as address,
        session_at(address, tiny, tiny_weights, yields=yields) as (session, offloading, client),
    ):
        measuring = offloading.measuring
        assert measuring is not None

        def found() -> bool:
            assert session.query().bit_equal
            return mbps / 3 < measuring.records[-1].mbps < 3 * mbps

        wait_for(found, "the rate to be found out")
        while not session.uploaded():
            assert session.query().bit_equal
        assert client.fault is None
        assert measuring.records[0].rtt_ms > 9.9
        assert offloading.plan is not None
        assert [record.stages for record in session.finish()] == [
            part.stage_names for part in offloading.plan.partitions
        ]


@pytest.mark.parametrize("algorithm", ["recursive-efficiency", "original"])
def test_queries_follow_a_link_that_changes(
    algorithm: str, server: Server, tiny: Network, tiny_weights: Weights, tmp_path: Path
) -> None:
    """16 Mbps; whenever the link begins anew, for two seconds too little for any feature; then 16 again."""
    trace = tmp_path / "trace.csv"
    trace.write_text("0,0.05\n2,16\n")
    link = Process("link", "--listen", "tcp://127.0.0.1:0", "--to", server.address, "--trace", str(trace))
    time.sleep(2)
    with session_at(link.address, tiny, tiny_weights, algorithm) as (session, offloading, client):
        measuring = offloading.measuring
        assert measuring is not None
        records: list[QueryRecord] = []

        def query() -> QueryRecord:
            records.append(session.query())
            return records[-1]

        def slow() -> bool:
            link.strike(signal.SIGUSR1)
            return query().fallback or measuring.records[-1].mbps < 1

        wait_for(lambda: at_server(query()), "a query at the server")
        wait_for(slow, "the link to be slow")
        wait_for(lambda: not client.is_late, "the late answer")
        wait_for(lambda: at_server(query()) and measuring.records[-1].mbps > 1, "the link to be found fast again")
        assert all(query.bit_equal for query in records)
        assert client.fault is None
    assert link.stop()[0] == 0


def test_a_late_answer_does_not_lose_the_server(server: Server, tiny: Network, tiny_weights: Weights) -> None:
    with session_at(server.address, tiny, tiny_weights, layer_ms=SLOW_LAYER_MS) as (session, _, client):
        wait_for(session.uploaded, "the upload")
        wait_for(lambda: at_server(session.query()), "a query at the server")
        token, (process,) = client._session, server.session_processes()
        os.kill(process, signal.SIGSTOP)
        try:
            wait_for_a_late_answer(session)
            assert client.is_late
            alone = session.query()
            assert [segment.where for segment in alone.segments] == ["client"]
            assert not alone.fallback
            assert alone.bit_equal
        finally:
            os.kill(process, signal.SIGCONT)
        wait_for(lambda: not client.is_late, "the late answer")
        wait_for(lambda: at_server(session.query()), "the server to be used again")
        assert client.fault is None
        assert client._session == token


def test_a_query_that_is_broken_off_is_not_waited_for(
    server: Server, tiny: Network, tiny_weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Ctrl-C, say: its features are not on their way any more, and rates are observed as before."""
    with session_at(server.address, tiny, tiny_weights) as (session, offloading, _):
        wait_for(session.uploaded, "the upload")
        wait_for(lambda: at_server(session.query()), "a query at the server")

        def broken_off(*given: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(offloading.executor, "_exchange", broken_off)
            with pytest.raises(KeyboardInterrupt):
                session.query()
        assert offloading.measuring is not None
        assert offloading.measuring._queries == 0
        wait_for(lambda: at_server(query := session.query()) and query.bit_equal, "the server to be used again")
        assert offloading.measuring._queries == 0


def test_a_server_that_dies_with_a_late_answer_is_left(server: Server, tiny: Network, tiny_weights: Weights) -> None:
    with session_at(server.address, tiny, tiny_weights, layer_ms=SLOW_LAYER_MS) as (session, _, client):
        wait_for(session.uploaded, "the upload")
        wait_for(lambda: at_server(session.query()), "a query at the server")
        (process,) = server.session_processes()
        os.kill(process, signal.SIGSTOP)
        wait_for_a_late_answer(session)
        os.kill(process, signal.SIGKILL)
        wait_for(lambda: not client.is_late, "the loss")
        wait_for(lambda: at_server(query := session.query()) and query.bit_equal, "another session")


def test_a_server_slower_than_promised_is_found_out(server: Server, tiny: Network, tiny_weights: Weights) -> None:
    """It promises 0.1 ms a layer; whatever it takes, that is what is believed."""
    with session_at(server.address, tiny, tiny_weights) as (session, offloading, _):
        wait_for(session.uploaded, "the upload")
        wait_for(lambda: at_server(session.query()), "a query at the server")
        wait_for(lambda: offloading.measuring.records[-1].server_factor != 1, "the factor")  # type: ignore[union-attr]
        assert offloading.measuring is not None
        assert offloading.measuring.records[-1].client_factor > 0.9  # it keeps to its pace


def planner_that(then: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a planner that does something before it plans again."""
    calls = itertools.count()

    def again(graph: ExecutionGraph) -> list[list[Piece]]:
        if next(calls):
            then()
        return [list(pieces) for pieces in planners.get_planner("recursive-efficiency")(graph)]

    monkeypatch.setitem(planners.PLANNERS, "again", checked("again", again))
    return "again"


def test_queries_do_not_wait_for_a_planner_that_plans_again(
    server: Server, tiny: Network, tiny_weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def slowly() -> None:
        begun.set()
        assert may_end.wait(60)

    algorithm = planner_that(slowly, monkeypatch)
    with session_at(server.address, tiny, tiny_weights, algorithm) as (session, offloading, client):
        try:
            wait_for(lambda: session.query().bit_equal and begun.is_set(), "another estimate")
            estimate = offloading._estimate
            for _ in range(5):
                assert session.query().bit_equal
            wait_for(session.uploaded, "the upload")
            assert offloading._estimate is estimate  # the planner is still at work
        finally:
            may_end.set()
        wait_for(lambda: session.query().bit_equal and offloading._estimate is not estimate, "the planner's end")
        assert client.fault is None


def test_the_plan_stays_where_a_planner_fails_when_it_plans_again(
    server: Server,
    tiny: Network,
    tiny_weights: Weights,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    failures: list[int] = []

    def fail() -> None:
        failures.append(len(failures))
        raise ValueError(f"failure {failures[-1]}")

    algorithm = planner_that(fail, monkeypatch)
    with session_at(server.address, tiny, tiny_weights, algorithm, SLOW_LAYER_MS) as (session, offloading, client):
        plan = offloading.plan
        wait_for(lambda: session.query().bit_equal and len(failures) > 2, "some failures")
        wait_for(session.uploaded, "the upload")
        wait_for(lambda: at_server(session.query()), "a query at the server")
        assert offloading.plan is plan
        assert client.fault is None
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("ionn: planner again: ValueError: failure 0 ")
    assert said[0].endswith("; what it planned before stays")


def test_a_live_run_that_measures(
    tiny_files: Path, slow_client: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Measuring] = []

    def make(dilation: float) -> Measuring:
        made.append(Measuring(dilation))
        return made[-1]

    monkeypatch.setattr("ionn.client.offloading.Measuring", make)
    ride = tmp_path / "ride.csv"
    ride.write_text("0,16\n0.5,4\n")
    subject = runner.prepare_live(str(tiny_files), client=slow_client)
    results = tmp_path / "results"
    (trace,) = run_live(subject, ["recursive-efficiency"], 1, mbps=None, link=ride, dilation=2.0, results=results)
    assert trace.info.settings.mbps is None
    assert all(query.bit_equal for query in trace.queries)
    assert len(trace.partitions) == len(trace.info.plan.partitions)
    # How near to the link's rate they are is for this machine to say (tests/unit/test_measuring.py has a clock for it).
    assert [measuring._dilation for measuring in made] == [2.0]
    assert len({estimate.mbps for estimate in trace.estimates} - {MBPS}) > 0
    assert load_traces(results) == [trace]


def test_what_the_server_holds_is_not_planned_again(server: Server, tiny: Network, tiny_weights: Weights) -> None:
    """Another estimate has nothing uploaded once more, or besides."""
    with session_at(server.address, tiny, tiny_weights, "preinstalled", SLOW_LAYER_MS) as (session, offloading, client):
        plan, estimate = offloading.plan, offloading._estimate
        wait_for(session.uploaded, "the upload")
        wait_for(lambda: at_server(session.query()), "a query at the server")
        wait_for(lambda: session.query().bit_equal and offloading._estimate != estimate, "another estimate")
        assert offloading.plan is plan
        assert offloading.upload is not None
        assert offloading.upload.begun == len(offloading.records()) == 1
        assert client.fault is None


def test_preinstalled_stages_are_there_before_the_link_begins_anew(
    tiny: Network, tiny_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, ready = LiveSession.start_upload, []

    def watched(self: LiveSession) -> None:
        assert self.offloading.upload is not None
        ready.append(self.offloading.upload.ready)
        start(self)

    monkeypatch.setattr(LiveSession, "start_upload", watched)
    slow_client = tmp_path / "slow.txt"
    slow_client.write_text("".join(f"{layer.index} {layer.name} {SLOW_LAYER_MS}\n" for layer in tiny.layers))
    ride = tmp_path / "ride.csv"
    ride.write_text("0,16\n10,2\n")
    subject = runner.prepare_live(str(tiny_files), client=str(slow_client))
    results = tmp_path / "results"
    (trace,) = run_live(subject, ["preinstalled"], 1, mbps=None, link=ride, window_s=1.5, results=results)
    assert trace.info.plan.held
    assert (trace.partitions, trace.info.plan.partitions) == ((), ())
    assert all(query.bit_equal for query in trace.queries)
    # Whether queries use them is up to what this machine has the client believe.
    assert (ready, trace.info.fault) == ([1], None)
    assert load_traces(results) == [trace]


def test_the_command_line_measures_what_it_connects_to(tiny_files: Path, slow_client: str, server: Server) -> None:
    options = ("--connect", server.address, "--client", slow_client, "--server", "gtx1080ti", "--json")
    done = ionn("run", tiny_files, *options)
    assert done.returncode == 0, done.stderr
    run = json.loads(done.stdout)
    assert run["mbps"] is None
    assert run["runs"][0]["bit_equal"] is True
    done = ionn("run", tiny_files, *options, "--mbps", "80")
    assert json.loads(done.stdout)["mbps"] == 80
