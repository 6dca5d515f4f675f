"""Which runs are made, kept, and refused. What a live run does is in test_live.py; here it is replaced by its trace."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from per_model import calibrate_server

from ionn.costs import calibration
from ionn.costs.loading import load_costs
from ionn.costs.models import CostModel
from ionn.errors import InputError
from ionn.evaluation.claims import Evidence
from ionn.evaluation.figures import draw_figures
from ionn.evaluation.summary import summary
from ionn.model import coded_weights, engine
from ionn.model.network import Network
from ionn.model.zoo import definitions
from ionn.planning.graph import ExecutionGraph
from ionn.planning.plan import make_plan
from ionn.planning.planners import add_planner
from ionn.testbed import live, processes, runner
from ionn.testbed.arrivals import Arrivals
from ionn.testbed.bandwidth import Bandwidth
from ionn.testbed.settings import Settings
from ionn.testbed.trace import RunInfo, Trace, load_traces, trace_path
from ionn.testbed.virtual import run_virtual
from tests.support.runs import run_live

ALGORITHMS = ("original", "efficiency")
DEVICES = Path(load_costs.__code__.co_filename).with_name("devices")


# --- Virtual runs ---------------------------------------------------------------------------------------------------


def test_virtual_runs_have_their_settings_and_are_saved(tiny_files: Path, tmp_path: Path) -> None:
    traces = runner.run_virtual_all(
        str(tiny_files), ALGORITHMS, 2,
        client="gtx1080ti", server="odroid-xu4", mbps=40.0, noise=0.5, seed=3, results=tmp_path,
    )  # fmt: skip
    assert [(trace.info.algorithm, trace.info.run) for trace in traces] == [
        ("original", 1), ("original", 2), ("efficiency", 1), ("efficiency", 2),
    ]  # fmt: skip
    settings = Settings("virtual", 40.0, client="gtx1080ti", server="odroid-xu4", seed=3, noise=0.5)
    for trace in traces:
        info = trace.info
        assert (info.settings, info.model, info.server, info.environment) == (settings, "tiny", "odroid-xu4", {})
        assert Trace.load(trace_path(tmp_path, settings, "tiny", info.algorithm, info.run)) == trace
    assert len(load_traces(tmp_path)) == 4
    assert len({trace.queries[-1].latency_ms for trace in traces}) > 1


def test_virtual_runs_of_the_same_settings_are_replaced(tiny_files: Path, tmp_path: Path) -> None:
    runner.run_virtual_all(str(tiny_files), ["original"], 3, results=tmp_path)
    once = runner.run_virtual_all(str(tiny_files), ["original"], results=tmp_path)
    assert load_traces(tmp_path) == once
    stored = Trace.load(path := trace_path(tmp_path, Settings("virtual"), "tiny", "original", 1))
    for settings in (Settings("virtual", noise=0.5), Settings("live")):
        dataclasses.replace(stored, info=dataclasses.replace(stored.info, settings=settings)).save(path)
        with pytest.raises(InputError, match=r"run-01\.jsonl: a run with other settings"):
            runner.run_virtual_all(str(tiny_files), ["original"], results=tmp_path)
        assert Trace.load(path).info.settings == settings


def test_a_results_folder_that_cannot_be_looked_into_is_named(tiny_files: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the folder: File name too long"):
        runner.run_virtual_all(str(tiny_files), ["original"], results=tmp_path / ("x" * 300))


def test_nothing_is_saved_without_a_folder(tiny_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert runner.run_virtual_all(str(tiny_files), ["original"])
    assert sorted(tmp_path.rglob("*")) == before


def test_weights_are_checked_where_they_are_given(tiny_files: Path, tmp_path: Path) -> None:
    runner.check_weights(str(tiny_files), None)
    runner.check_weights(str(tiny_files), str(tiny_files.with_suffix(".caffemodel")))
    (tmp_path / "other.caffemodel").write_bytes(b"none")
    with pytest.raises(InputError, match=r"other\.caffemodel"):
        runner.check_weights(str(tiny_files), str(tmp_path / "other.caffemodel"))


def test_a_profile_of_another_network_is_refused_before_anything_is_built(
    tiny_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "read_network", lambda *_: pytest.fail("was built"))
    (tmp_path / "other.txt").write_text("0 another 1.0\n")
    with pytest.raises(InputError, match=r"other"):
        runner.prepare_live(str(tiny_files), client=str(tmp_path / "other.txt"))


# --- Live runs ------------------------------------------------------------------------------------------------------


class StandIn:
    """What stands in for a live testbed: it writes down what it is asked for."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.fault: str | None = None
        self.running = self.started = 0
        self.link: Bandwidth | None = None

    @contextlib.contextmanager
    def start(self, settings: Settings, costs: Path | None, link: Path | None) -> Iterator[processes.Testbed]:
        self.started += 1
        self.log.append(("testbed", (settings.mbps or 0.0) / settings.dilation, costs and load_costs(str(costs)).name))
        self.running += 1
        self.link = None if link is None else Bandwidth.load(link)
        yield processes.Testbed("tcp://127.0.0.1:1", lambda: self.log.append("begin"))
        self.running -= 1

    def run(
        self, subject: live.Subject, algorithm: str, settings: Settings, address: str, run: int, server: Any, keys: Any,
        progress: Any, bandwidth: Bandwidth | None, begin: Callable[[], None],
    ) -> Trace:  # fmt: skip
        if self.link is not None:
            begin()
        self.log.append((algorithm, run, address, keys, server and server.name))
        graph = ExecutionGraph.from_network(
            subject.network, subject.client, load_costs("gtx1080ti"), settings.mbps or 80.0
        )
        plan = make_plan(subject.network, graph, algorithm, settings.mbps or 80.0)
        info = RunInfo(Settings("virtual"), run, plan, graph)
        trace = run_virtual(info)
        sent, digests = "" if server else "sent", subject.digests(algorithm, settings.coding)
        info = dataclasses.replace(
            info, settings=settings, sent=sent, fault=self.fault, digests=digests, bandwidth=bandwidth
        )
        return dataclasses.replace(trace, info=info)


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
    first = run_live(subject, ALGORITHMS, 1, results=tmp_path)
    here = ("tcp://127.0.0.1:1", None, None)
    assert testbed.log == [("testbed", 80.0, TINY_PROFILE), ("original", 1, *here), ("efficiency", 1, *here)]
    testbed.log.clear()
    traces = run_live(subject, ALGORITHMS, 3, results=tmp_path)
    turns = [("original", 2), ("efficiency", 2), ("original", 3), ("efficiency", 3)]
    assert testbed.log[1:] == [(*turn, *here) for turn in turns]
    assert traces[:2] == first
    assert [(trace.info.algorithm, trace.info.run) for trace in traces[2:]] == turns
    assert all(trace_path(tmp_path, Settings("live"), "tiny", *turn).exists() for turn in turns)
    testbed.log.clear()
    assert run_live(subject, ALGORITHMS, 3, results=tmp_path) == traces
    assert testbed.log == []  # not even a server
    assert testbed.running == 0


def test_a_run_that_lost_its_server_is_run_again(testbed: StandIn, subject: live.Subject, tmp_path: Path) -> None:
    testbed.fault = "no answer"
    run_live(subject, ["original"], 1, results=tmp_path)
    testbed.fault = None
    (trace,) = run_live(subject, ["original"], 1, results=tmp_path)
    assert trace.info.fault is None
    assert load_traces(tmp_path) == [trace]


def test_a_run_of_an_earlier_version_is_kept_whatever_its_outputs_differ_by(
    testbed: StandIn, subject: live.Subject, tmp_path: Path
) -> None:
    """It does not say by how much they may, and its server may be gone."""
    (trace,) = run_live(subject, ["original"], 1, results=tmp_path)
    queries = tuple(dataclasses.replace(query, bit_equal=False, difference=2e-6) for query in trace.queries)
    assert queries[0].tolerance is None
    earlier = dataclasses.replace(trace, queries=queries)
    earlier.save(trace_path(tmp_path, Settings("live"), "tiny", "original", 1))
    testbed.log.clear()
    assert run_live(subject, ["original"], 1, results=tmp_path) == [earlier]
    assert testbed.log == []
    runner.check_outputs([earlier])
    assert str(earlier.outputs) == "differ by 2e-06"


def test_a_dilated_run_has_its_own_folder_and_is_returned_undilated(
    testbed: StandIn, subject: live.Subject, tmp_path: Path
) -> None:
    (plain,) = run_live(subject, ["original"], 1)
    (trace,) = run_live(subject, ["original"], 1, dilation=4.0, results=tmp_path)
    assert testbed.log[2][:2] == ("testbed", 20.0)
    assert trace.queries[0].latency_ms == pytest.approx(plain.queries[0].latency_ms / 4)
    assert trace.info.settings.dilation == 4.0
    assert (tmp_path / "traces/live-dilation4/tiny/original/run-01.jsonl").exists()
    assert run_live(subject, ["original"], 1, dilation=4.0, results=tmp_path) == [trace]


def test_a_link_begins_anew_with_each_run(testbed: StandIn, subject: live.Subject, tmp_path: Path) -> None:
    (ride := tmp_path / "ride.csv").write_text("0,8\n1,4\n")
    traces = run_live(subject, ["original"], 2, link=ride, delay_ms=5.0)
    assert testbed.link == Bandwidth((0.0, 1.0), (8.0, 4.0))
    assert [entry if entry == "begin" else entry[0] for entry in testbed.log] == [
        "testbed", "begin", "original", "begin", "original",
    ]  # fmt: skip
    for trace in traces:
        assert trace.info.bandwidth == testbed.link
        assert trace.info.settings.link == f"ride.csv ({testbed.link.digest})"


def test_a_link_is_what_its_file_was_when_the_run_began(
    testbed: StandIn, subject: live.Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (ride := tmp_path / "ride.csv").write_text("0,8\n1,4\n")
    time_machine = runner._server_costs

    def change_meanwhile(*given: Any) -> Path:
        ride.write_text("0,9\n")
        return time_machine(*given)

    monkeypatch.setattr(runner, "_server_costs", change_meanwhile)
    (trace,) = run_live(subject, link=ride)
    assert testbed.link == trace.info.bandwidth == Bandwidth((0.0, 1.0), (8.0, 4.0))
    assert trace.info.settings.link == f"ride.csv ({testbed.link.digest})"


def test_a_link_that_is_not_what_the_settings_say_is_refused(
    testbed: StandIn, subject: live.Subject, tmp_path: Path
) -> None:
    (ride := tmp_path / "ride.csv").write_text("0,8\n1,4\n")
    settings = runner.live_settings(subject, link=ride)
    ride.write_text("0,9\n")
    with pytest.raises(InputError, match=f"^{re.escape(str(ride))}: was changed"):
        runner.run_live_all(subject, ["original"], 1, settings, link=ride)
    assert testbed.started == 0


def test_a_link_of_other_contents_is_another(testbed: StandIn, subject: live.Subject, tmp_path: Path) -> None:
    ride, results = tmp_path / "ride.csv", tmp_path / "results"
    ride.write_text("0,8\n1,4\n")
    first = run_live(subject, results=results, link=ride)
    ride.write_text("seconds,mbps\n0.0,8\n1.0,4\n")  # the same bandwidth
    assert run_live(subject, results=results, link=ride) == first
    ride.write_text("0,8\n1,5\n")
    assert run_live(subject, results=results, link=ride) != first
    assert len(load_traces(results)) == 2


@pytest.mark.parametrize("names", [("my link.csv", "my-link.csv"), ("é.csv", "ü.csv"), ("a" * 60 + ".csv", "b" * 60)])
def test_links_of_the_same_content_are_told_apart_by_their_names(
    names: tuple[str, str], tiny_files: Path, tmp_path: Path
) -> None:
    times = tmp_path / ("t" * 60)
    times.write_text("0\n1\n")
    given: dict[str, Any] = {
        "arrivals": Arrivals.parse(str(times)),
        "busy": "drop",
        "deadline_ms": 200.125,
        "upload": "yield",
    }
    for name in names:
        (tmp_path / name).write_text("0,80\n5,2\n")
        runner.run_virtual_all(
            str(tiny_files), ["original"], link=tmp_path / name, delay_ms=12.345678, jitter_ms=1.2345678, seed=12345,
            results=tmp_path / "results", coding="lossless", **given,
        )  # fmt: skip
    assert len(list((tmp_path / "results").rglob("run-01.jsonl"))) == 2
    figures = draw_figures(tmp_path / "results", tmp_path / "figures")
    assert all(path.exists() for path in figures)


def test_a_virtual_link_is_read_once(tiny_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = iter(["0,8\n", "0,9\n"])
    monkeypatch.setattr("ionn.testbed.bandwidth.read_text", lambda path, what: next(contents))
    (trace,) = runner.run_virtual_all(str(tiny_files), ["original"], link=tmp_path / "ride.csv")
    assert trace.info.bandwidth is not None
    assert trace.info.settings.link == f"ride.csv ({trace.info.bandwidth.digest})"


def test_virtual_runs_have_a_link(tiny_files: Path, tmp_path: Path) -> None:
    (ride := tmp_path / "ride.csv").write_text("0,8\n0.05,0\n0.15,4\n")
    given: dict[str, Any] = {"link": ride, "delay_ms": 10.0, "jitter_ms": 2.0, "upload": "yield"}
    (trace,) = runner.run_virtual_all(str(tiny_files), ["original"], results=tmp_path, **given)
    (plain,) = runner.run_virtual_all(str(tiny_files), ["original"])
    sent_bytes = sum(partition.bytes for partition in trace.partitions)
    assert trace.partitions[-1].end_s >= Bandwidth.load(ride).arrival_s(0, sent_bytes) + 2 * 0.008
    assert trace.info.plan.partitions == plain.info.plan.partitions  # made for --mbps
    assert load_traces(tmp_path) == [trace]
    assert run_virtual(load_traces(tmp_path)[0].info) == trace


def test_a_server_that_runs_already_is_used(testbed: StandIn, subject: live.Subject) -> None:
    keys = object()
    run_live(subject, ["original"], 1, address="tcp://box:7675", keys=keys, server="gtx1080ti")  # type: ignore[arg-type]
    assert testbed.log == [("original", 1, "tcp://box:7675", keys, "gtx1080ti")]


def test_which_costs_a_server_started_here_sends(testbed: StandIn, subject: live.Subject, tmp_path: Path) -> None:
    run_live(subject, ["original"], 1, server="gtx1080ti")
    assert testbed.log.pop(0) == ("testbed", 80.0, None)  # it plans with those
    costs = load_costs("odroid-xu4")
    assert isinstance(costs, CostModel)
    costs.save(tmp_path / runner.SERVER_COSTS)
    run_live(subject, ["original"], 1, results=tmp_path)
    assert testbed.log[1] == ("testbed", 80.0, "odroid-xu4")
    (tmp_path / runner.SERVER_COSTS).write_text("{")
    started = testbed.started
    with pytest.raises(InputError, match=r"server\.json"):
        run_live(subject, ["original"], 2, results=tmp_path)
    assert testbed.started == started  # what is wrong with it is said before anything starts


def test_other_bad_settings_are_refused_before_anything_starts(
    testbed: StandIn, tiny_files: Path, subject: live.Subject
) -> None:
    with pytest.raises(InputError, match="bandwidth"):
        run_live(subject, ["original"], 1, mbps=0)
    unpaced = runner.prepare_live(str(tiny_files), paced=False)
    with pytest.raises(InputError, match="--dilation slows the pace"):
        run_live(unpaced, ["original"], 1, dilation=2)
    with pytest.raises(InputError, match="no such"):
        run_live(subject, ["original"], 1, server="no/such.json")
    assert testbed.log == []
    assert run_live(unpaced, ["original"], 1)[0].info.settings.device == "odroid-xu4, not paced"


def test_a_folder_that_cannot_be_written_to_is_found_out_before_anything_starts(
    testbed: StandIn, subject: live.Subject, tmp_path: Path
) -> None:
    for results in (tmp_path / "file" / "results", tmp_path / ("a" * 256)):
        (tmp_path / "file").write_text("no folder")
        with pytest.raises(InputError, match="cannot write there"):
            run_live(subject, results=results)
    assert testbed.log == []


def test_runs_of_other_settings_are_kept_apart(
    testbed: StandIn, tiny_files: Path, subject: live.Subject, tmp_path: Path
) -> None:
    """Whatever differs from the paper's: it is run, and the paper's runs stay as they were."""
    papers = run_live(subject, results=tmp_path)
    costs = tmp_path / "odroid-xu4.json"
    costs.write_text((DEVICES / "gtx1080ti.json").read_text().replace('"gtx1080ti"', '"odroid-xu4"'))  # its name only
    others: list[tuple[live.Subject, dict[str, Any]]] = [
        (subject, {"mbps": 40.0}), (subject, {"mbps": 80.00001}), (subject, {"seed": 1}), (subject, {"dilation": 2.0}),
        (subject, {"server": "gtx1080ti"}), (subject, {"server": str(costs)}), (subject, {"address": "tcp://box:7675"}),
        (subject, {"address": "tcp://box:7676"}), (subject, {"delay_ms": 5.0}), (subject, {"upload": "yield"}),
        (subject, {"delay_ms": 5.0, "jitter_ms": 1.0}),
        (runner.prepare_live(str(tiny_files), client="gtx1080ti"), {}),
        (runner.prepare_live(str(tiny_files), client=str(costs)), {}),
        (runner.prepare_live(str(tiny_files), paced=False), {}),
    ]  # fmt: skip
    traces = [run_live(used, results=tmp_path, **given) for used, given in others]
    testbed.log.clear()
    assert [run_live(used, results=tmp_path, **given) for used, given in others] == traces
    assert run_live(subject, results=tmp_path) == papers
    assert testbed.log == []
    assert len(set(tmp_path.rglob("run-01.jsonl"))) == 1 + len(others)
    assert len(summary(load_traces(tmp_path))) == 1 + len(others)


def test_a_trace_in_the_place_of_another_is_not_taken_for_it(
    testbed: StandIn, subject: live.Subject, tmp_path: Path
) -> None:
    run_live(subject, results=tmp_path)
    path = trace_path(tmp_path, Settings("live"), "tiny", "original", 1)
    info = Trace.load(path).info
    other_stages = dataclasses.replace(info.graph, stages=("a", *info.graph.stages[1:]))
    for changed in (
        dataclasses.replace(info, settings=Settings("live", dilation=2.0)),
        dataclasses.replace(info, run=2),
        dataclasses.replace(info, plan=dataclasses.replace(info.plan, model="other")),
        dataclasses.replace(info, plan=dataclasses.replace(info.plan, algorithm="efficiency")),
        dataclasses.replace(info, digests={**info.digests, "network": "0" * 16}),
        dataclasses.replace(info, digests={**info.digests, "planner": "0" * 16}),
        dataclasses.replace(info, plan=dataclasses.replace(info.plan, model_bytes=1)),
        dataclasses.replace(info, graph=other_stages, plan=dataclasses.replace(info.plan, partitions=())),
    ):
        dataclasses.replace(Trace.load(path), info=changed).save(path)
        with pytest.raises(
            InputError,
            match=r"run-01\.jsonl: a run with other settings, or of another network, planner",
        ):
            run_live(subject, results=tmp_path)
        dataclasses.replace(Trace.load(path), info=info).save(path)


NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 64 dim: 64 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 16 kernel_size: 3 stride: 1 bias_term: false } }
layer { name: "prob" type: "Softmax" bottom: "conv" top: "prob" }
"""


def test_networks_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    """Though they have the same stages of the same bytes."""
    for stride in (1, 4):
        (tmp_path / str(stride)).mkdir()
        (tmp_path / str(stride) / "net.prototxt").write_text(NET.replace("stride: 1", f"stride: {stride}"))
    (first,) = runner.run_virtual_all(tmp_path / "1" / "net.prototxt", ["original"], results=tmp_path)
    with pytest.raises(InputError, match=r"run-01\.jsonl: a run with other settings, or of another network"):
        runner.run_virtual_all(tmp_path / "4" / "net.prototxt", ["original"], results=tmp_path)
    assert load_traces(tmp_path) == [first]


def test_a_network_that_only_has_a_papers_name_is_not_judged(tmp_path: Path) -> None:
    (tmp_path / "alexnet.prototxt").write_text(NET)
    (other,) = runner.run_virtual_all(tmp_path / "alexnet.prototxt", ["original"], results=tmp_path)
    (papers,) = runner.run_virtual_all("alexnet", ["original"], results=tmp_path)
    (copy,) = runner.run_virtual_all(definitions()["alexnet"], ["original"])
    assert (copy.info.settings, copy.queries) == (papers.info.settings, papers.queries)
    assert other.info.settings != papers.info.settings == Settings("virtual")
    (evidence,) = Evidence.of(summary(load_traces(tmp_path)), {})
    assert evidence.rows["alexnet", "original"].traces == (papers,)


def test_planners_of_the_same_name_are_told_apart(testbed: StandIn, subject: live.Subject, tmp_path: Path) -> None:
    for stage in (1, 2):
        (tmp_path / f"planner{stage}.py").write_text(f"def mine(graph):\n    return [[{stage}]]\n")
    mine = add_planner(f"{tmp_path}/planner1.py:mine")
    first = run_live(subject, [mine], results=tmp_path)
    assert run_live(subject, [mine], results=tmp_path) == first
    add_planner(f"{tmp_path}/planner2.py:mine")
    with pytest.raises(InputError, match="of another network, planner or coded weights"):
        run_live(subject, [mine], results=tmp_path)


def test_runs_with_other_coded_weights_are_told_apart(testbed: StandIn, tiny: Network, tiny_files: Path) -> None:
    def run(coding: str) -> list[Trace]:
        subject = runner.prepare_live(str(tiny_files))
        return run_live(subject, coding=coding, results=tiny_files.parent / "results")

    raw, other = run("lossless"), run("features")
    assert run("lossless") == raw
    assert coded_weights.update(tiny_files.with_suffix(".caffemodel"), tiny).state == coded_weights.BUILT
    with pytest.raises(InputError, match="of another network, planner or coded weights"):
        run("lossless")
    assert run("features") == other


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
        calibrate_server(tmp_path)
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
