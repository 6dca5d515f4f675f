"""Which runs are made, kept, and refused. What a live run does is in test_live.py; here it is replaced by its trace."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ionn.costs import calibration
from ionn.costs.loading import load_costs
from ionn.costs.models import CostModel
from ionn.errors import InputError
from ionn.planning.graph import ExecutionGraph
from ionn.planning.plan import make_plan
from ionn.testbed import live, processes, runner
from ionn.testbed.trace import RunInfo, Trace, load_traces, trace_path
from ionn.testbed.virtual import run_virtual

ALGORITHMS = ("original", "efficiency")


# --- Virtual runs ---------------------------------------------------------------------------------------------------


def test_virtual_runs_have_their_settings_and_are_saved(tiny_files: Path, tmp_path: Path) -> None:
    traces = runner.run_virtual_all(
        str(tiny_files), ALGORITHMS, 2, "gtx1080ti", "odroid-xu4", 40.0, 0.5, seed=3, results=tmp_path
    )
    assert [(trace.info.algorithm, trace.info.run) for trace in traces] == [
        ("original", 1), ("original", 2), ("efficiency", 1), ("efficiency", 2),
    ]  # fmt: skip
    for trace in traces:
        info = trace.info
        assert (info.testbed, info.model, info.mbps, info.seed, info.dilation) == ("virtual", "tiny", 40.0, 3, 1.0)
        assert (info.client, info.server, info.environment) == ("gtx1080ti", "odroid-xu4", {"noise": 0.5})
        assert Trace.load(trace_path(tmp_path, "virtual", "tiny", info.algorithm, info.run)) == trace
    assert len(load_traces(tmp_path)) == 4
    assert len({trace.queries[-1].latency_ms for trace in traces}) > 1
    once = runner.run_virtual_all(str(tiny_files), ["original"], results=tmp_path)
    # The second run was of other settings.
    assert [trace for trace in load_traces(tmp_path) if trace.info.algorithm == "original"] == once
    assert len(load_traces(tmp_path)) == 3


def test_nothing_is_saved_without_a_folder(tiny_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    (trace,) = runner.run_virtual_all(str(tiny_files), ["original"])
    assert trace.info.environment == {"noise": 0.0}
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("noise", [-0.001, 1.001, math.nan, math.inf])
def test_noise_is_from_0_to_1(noise: float, tiny_files: Path) -> None:
    with pytest.raises(InputError, match=r"give a number from 0 to 1$"):
        runner.run_virtual_all(str(tiny_files), ["original"], noise=noise)
    assert runner.run_virtual_all(str(tiny_files), ["original"], noise=1.0)


def test_weights_are_checked_where_they_are_given(tiny_files: Path, tmp_path: Path) -> None:
    runner.check_weights(str(tiny_files), None)
    runner.check_weights(str(tiny_files), str(tiny_files.with_suffix(".caffemodel")))
    (tmp_path / "other.caffemodel").write_bytes(b"none")
    with pytest.raises(InputError, match=r"other\.caffemodel"):
        runner.check_weights(str(tiny_files), str(tmp_path / "other.caffemodel"))


# --- Live runs ------------------------------------------------------------------------------------------------------


class StandIn:
    """What stands in for a live testbed: it writes down what it is asked for."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.fault: str | None = None
        self.running = 0

    @contextlib.contextmanager
    def start(self, mbps: float, costs: Path | None = None) -> Iterator[str]:
        self.log.append(("testbed", mbps, costs and load_costs(str(costs)).name))
        self.running += 1
        yield "tcp://127.0.0.1:1"
        self.running -= 1

    def run(
        self, subject: live.Subject, algorithm: str, link: live.Link, run: int, server: Any, seed: int, progress: Any
    ) -> Trace:
        self.log.append((algorithm, run, link.address, link.keys, server and server.name))
        graph = ExecutionGraph.from_network(subject.network, subject.client, load_costs("gtx1080ti"), link.mbps)
        plan = make_plan(subject.network, graph, algorithm, link.mbps).to_json()
        name = server.name if server else "sent"
        environment = {} if self.fault is None else {"fault": self.fault}
        info = RunInfo(
            "virtual", subject.network.name, algorithm, run, link.mbps, seed, link.dilation, subject.device, name,
            plan, graph.to_json(), environment,
        )  # fmt: skip
        trace = run_virtual(info)
        return dataclasses.replace(trace, info=dataclasses.replace(info, testbed="live"))


@pytest.fixture
def testbed(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn()
    monkeypatch.setattr(processes, "start_testbed", stand_in.start)
    monkeypatch.setattr(live, "run_live", stand_in.run)
    return stand_in


@pytest.fixture
def subject(tiny_files: Path) -> live.Subject:
    return runner.prepare_live(str(tiny_files))


TINY_PROFILE = "profile of tiny"  # what a server started here sends, if nothing else is there


def test_runs_take_turns_and_finished_ones_are_kept(testbed: StandIn, subject: live.Subject, tmp_path: Path) -> None:
    first = runner.run_live_all(subject, ALGORITHMS, 1, results=tmp_path)
    here = ("tcp://127.0.0.1:1", None, None)
    assert testbed.log == [("testbed", 80.0, TINY_PROFILE), ("original", 1, *here), ("efficiency", 1, *here)]
    testbed.log.clear()
    traces = runner.run_live_all(subject, ALGORITHMS, 3, results=tmp_path)
    turns = [("original", 2), ("efficiency", 2), ("original", 3), ("efficiency", 3)]
    assert testbed.log[1:] == [(*turn, *here) for turn in turns]
    assert traces[:2] == first
    assert [(trace.info.algorithm, trace.info.run) for trace in traces[2:]] == turns
    assert all(trace_path(tmp_path, "live", "tiny", *turn).exists() for turn in turns)
    testbed.log.clear()
    assert runner.run_live_all(subject, ALGORITHMS, 3, results=tmp_path) == traces
    assert testbed.log == []  # not even a server
    assert testbed.running == 0


def test_a_run_that_lost_its_server_is_run_again(testbed: StandIn, subject: live.Subject, tmp_path: Path) -> None:
    testbed.fault = "no answer"
    runner.run_live_all(subject, ["original"], 1, results=tmp_path)
    testbed.fault = None
    (trace,) = runner.run_live_all(subject, ["original"], 1, results=tmp_path)
    assert trace.info.environment == {}
    assert load_traces(tmp_path) == [trace]


def test_a_dilated_run_has_its_own_folder_and_is_returned_undilated(
    testbed: StandIn, subject: live.Subject, tmp_path: Path
) -> None:
    (plain,) = runner.run_live_all(subject, ["original"], 1)
    (trace,) = runner.run_live_all(subject, ["original"], 1, dilation=4.0, results=tmp_path)
    assert testbed.log[2][:2] == ("testbed", 20.0)
    assert trace.queries[0].latency_ms == pytest.approx(plain.queries[0].latency_ms / 4)
    assert trace.info.dilation == 4.0
    assert trace_path(tmp_path, "live-dilation4", "tiny", "original", 1).exists()
    assert runner.run_live_all(subject, ["original"], 1, dilation=4.0, results=tmp_path) == [trace]


def test_a_server_that_runs_already_is_used(testbed: StandIn, subject: live.Subject) -> None:
    keys = object()
    runner.run_live_all(subject, ["original"], 1, connect="tcp://box:7675", keys=keys, server="gtx1080ti")  # type: ignore[arg-type]
    assert testbed.log == [("original", 1, "tcp://box:7675", keys, "gtx1080ti")]


def test_which_costs_a_server_started_here_sends(testbed: StandIn, subject: live.Subject, tmp_path: Path) -> None:
    runner.run_live_all(subject, ["original"], 1, server="gtx1080ti")
    assert testbed.log.pop(0) == ("testbed", 80.0, None)  # it plans with those
    costs = load_costs("odroid-xu4")
    assert isinstance(costs, CostModel)
    costs.save(tmp_path / runner.SERVER_COSTS)
    runner.run_live_all(subject, ["original"], 1, results=tmp_path)
    assert testbed.log[1] == ("testbed", 80.0, "odroid-xu4")
    (tmp_path / runner.SERVER_COSTS).write_text("{")
    with pytest.raises(InputError, match=r"server\.json"):
        runner.run_live_all(subject, ["original"], 2, results=tmp_path)


@pytest.mark.parametrize("dilation", [0.99, 0.0, -1.0, 1000.1, 1e308, math.inf, math.nan])
def test_dilations_are_from_1_to_1000(dilation: float, subject: live.Subject) -> None:
    with pytest.raises(InputError, match="give a number from 1 to 1000"):
        runner.run_live_all(subject, ["original"], 1, dilation=dilation)


def test_other_bad_settings_are_refused_before_anything_starts(
    testbed: StandIn, tiny_files: Path, subject: live.Subject
) -> None:
    with pytest.raises(InputError, match="bandwidth"):
        runner.run_live_all(subject, ["original"], 1, mbps=0)
    unpaced = runner.prepare_live(str(tiny_files), paced=False)
    with pytest.raises(InputError, match="--dilation slows the pace"):
        runner.run_live_all(unpaced, ["original"], 1, dilation=2)
    with pytest.raises(InputError, match="no such"):
        runner.run_live_all(subject, ["original"], 1, server="no/such.json")
    assert testbed.log == []
    assert runner.run_live_all(unpaced, ["original"], 1)[0].info.client == "odroid-xu4, not paced"


def test_a_run_with_other_settings_is_not_taken_for_this_one(
    testbed: StandIn, tiny_files: Path, subject: live.Subject, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"mbps": 80.0, "seed": 1, "server": "gtx1080ti", "results": tmp_path}
    runner.run_live_all(subject, ["original"], 1, **settings)
    assert runner.run_live_all(subject, ["original"], 1, **settings)
    assert runner.run_live_all(subject, ["original"], 1, **{**settings, "server": None})  # whatever it was
    path = trace_path(tmp_path, "live", "tiny", "original", 1)
    stored = Trace.load(path)

    def refused(used: live.Subject = subject, **changes: Any) -> None:
        with pytest.raises(
            InputError, match=r"run-01\.jsonl: a run with other settings; choose another results folder"
        ):
            runner.run_live_all(used, ["original"], 1, **{**settings, **changes})

    refused(mbps=40.0)
    refused(seed=2)
    refused(server="odroid-xu4")
    refused(runner.prepare_live(str(tiny_files), client="gtx1080ti"))
    refused(runner.prepare_live(str(tiny_files), paced=False))
    for info in (
        {"dilation": 2.0},
        {"plan": {**stored.info.plan, "model_bytes": 1}},
        {"graph": {**stored.info.graph, "stages": ["a"]}},
    ):
        dataclasses.replace(stored, info=dataclasses.replace(stored.info, **info)).save(path)
        refused()


def test_this_machine_is_calibrated_once_for_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def no_calibration(progress: Any) -> SimpleNamespace:
        calls.append(progress)
        return SimpleNamespace(model=load_costs("odroid-xu4"), quality=SimpleNamespace(table=lambda: "how well"))

    totals = []

    @contextlib.contextmanager
    def bar(total: int, unit: str, title: str) -> Iterator[Any]:
        totals.append((total, unit))
        yield SimpleNamespace(update="progress")

    monkeypatch.setattr(calibration, "calibrate", no_calibration)
    monkeypatch.setattr(runner, "bar", bar)
    for _ in range(2):
        runner.calibrate_server(tmp_path)
    assert (calls, totals) == (["progress"], [(calibration.PASSES + 1, "pass")])
    assert load_costs(str(tmp_path / "server.json")).name == "odroid-xu4"
    assert (tmp_path / "calibration.txt").read_text() == "how well\n"


class Progress:
    def __init__(self) -> None:
        self.total, self.n, self.shown = 0, 0, ""

    def update(self, more: int) -> None:
        self.n += more

    def set_postfix_str(self, text: str, refresh: bool) -> None:
        self.shown = text


def test_progress_is_what_has_been_uploaded_and_the_last_query() -> None:
    progress = Progress()
    offloading = SimpleNamespace(total_bytes=100, uploaded_bytes=30)
    session: Any = SimpleNamespace(offloading=offloading, last_query=None)
    runner._show(progress, session)
    assert (progress.total, progress.n, progress.shown) == (100, 30, "")
    offloading.uploaded_bytes = 70
    session.last_query = SimpleNamespace(latency_ms=12.4)
    runner._show(progress, session)
    assert (progress.n, progress.shown) == (70, "query 12 ms")
