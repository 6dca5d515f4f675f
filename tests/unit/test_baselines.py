"""What planners are compared with: what each uploads, and that it is used by name wherever a planner is."""

from __future__ import annotations

import json
import math
from pathlib import Path

import click
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ionn.cli.options import complete_algorithm
from ionn.costs.loading import load_costs
from ionn.errors import InputError
from ionn.evaluation.figures import draw_figures
from ionn.evaluation.report import make_report
from ionn.evaluation.summary import summary
from ionn.evaluation.validation import predict
from ionn.model.network import Network
from ionn.model.slices import stage_of
from ionn.paper import MODELS
from ionn.planning.graph import ExecutionGraph
from ionn.planning.plan import Plan, PlanDocument, make_plan
from ionn.planning.planners import BASELINES, PLANNERS, add_planner, get_planner
from ionn.schema import read_json
from ionn.testbed.arrivals import Arrivals
from ionn.testbed.runner import run_virtual_all
from ionn.testbed.settings import Settings
from ionn.testbed.trace import RunInfo, load_traces
from ionn.testbed.virtual import run_virtual
from tests.support.chains import DECIMALS, SMALL_INTEGERS, WORKED_EXAMPLE, chain, chains, forced_ms
from tests.support.command import ionn

A, B, C, D = range(4)
GRAPHS = chains(7, SMALL_INTEGERS, loads=True) | chains(7, DECIMALS, loads=True)


def baseline(name: str, graph: ExecutionGraph) -> list[list[int]]:
    return [list(map(stage_of, pieces)) for pieces in BASELINES[name](graph)]


def offloadable(graph: ExecutionGraph) -> list[int]:
    return [stage for stage, may in enumerate(graph.offloadable) if may]


@pytest.mark.parametrize(
    ("name", "plan"),
    [
        ("local", []),
        ("all-at-once", [[A, B, C, D]]),
        ("front-to-back", [[A], [B], [C], [D]]),
        ("neurosurgeon", [[A, B, C, D]]),
        ("preinstalled", [[A, B, C, D]]),
    ],
)
def test_worked_example(name: str, plan: list[list[int]]) -> None:
    assert baseline(name, WORKED_EXAMPLE) == plan
    assert get_planner(name) is BASELINES[name]


@given(GRAPHS)
def test_what_each_uploads(graph: ExecutionGraph) -> None:
    stages = offloadable(graph)
    assert baseline("local", graph) == []
    assert baseline("all-at-once", graph) == ([stages] if stages else [])
    in_order = [stage for partition in baseline("front-to-back", graph) for stage in partition]
    assert in_order == stages
    best = sorted(graph.shortest_path([0.0] * len(graph.stages)))
    assert baseline("preinstalled", graph) == ([best] if best else [])


def test_front_to_back_has_no_partition_without_weights() -> None:
    graph = chain([9] * 4, [1] * 4, [0, 3, 0, 2], [0] * 5)
    assert baseline("front-to-back", graph) == [[0, 1, 2], [3]]


@given(GRAPHS)
@example(chain([5, 5, 1], [1, 1, 1], [1, 1, 1], [9, 1, 1, 1], pinned=[0, 2]))  # between an input and a softmax
@example(chain([1, 1], [1, 1], [1, 1], [0, 0, 0]))  # no slower at the client alone
@example(chain([5, 1, 5], [1, 1, 1], [1, 1, 1], [0, 0, 0, 0], pinned=[1]))  # what stays at the client is before it
def test_neurosurgeon_has_the_best_of_all_split_points(graph: ExecutionGraph) -> None:
    n = len(graph.stages)
    end = max(offloadable(graph), default=-1) + 1  # what follows must stay at the client
    latencies_ms = {split: forced_ms(graph, range(split, end)) for split in range(end)}
    least_ms = min([graph.local_ms, *latencies_ms.values()])
    plan = baseline("neurosurgeon", graph)
    if least_ms == graph.local_ms:
        assert plan == []
    else:
        latest = max(split for split, ms in latencies_ms.items() if ms == least_ms)
        assert plan == [list(range(latest, end))]
        assert forced_ms(graph, plan[0]) == least_ms
    assert n >= end


def test_neurosurgeon_splits_where_little_is_sent() -> None:
    # The input is large, and so is the output of B; after A there is little to send.
    graph = chain([1, 50, 50], [1, 2, 2], [5, 5, 5], [90, 3, 90, 1])
    assert baseline("neurosurgeon", graph) == [[B, C]]


# --- By name --------------------------------------------------------------------------------------------------------


def test_baselines_are_found_by_name_and_no_planners() -> None:
    assert BASELINES.keys().isdisjoint(PLANNERS)
    with pytest.raises(InputError, match=r"known are original, .*, local, .*; did you mean neurosurgeon\?"):
        get_planner("neurosurgen")
    context, parameter = click.Context(click.Command("x")), click.Option(["--algorithm"])
    assert complete_algorithm(context, parameter, "pre") == ["preinstalled"]
    assert set(complete_algorithm(context, parameter, "")) == {*PLANNERS, *BASELINES}


@pytest.mark.parametrize("name", ["local", "neurosurgeon", "preinstalled"])
def test_no_planner_of_the_users_takes_a_baseline_s_name(name: str) -> None:
    def planner(graph: ExecutionGraph) -> list[list[int]]:
        return []

    planner.__name__ = name
    with pytest.raises(InputError, match=f"{name} is one of ionn's own planners"):
        add_planner(planner)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("local", "nothing is uploaded"),
        ("preinstalled", "the server holds from the beginning: conv1 .. fc8 "),
        ("neurosurgeon", "1 partition, latency"),
        ("densest", "ms on average during the upload"),
    ],
)
def test_the_command_plans(name: str, said: str) -> None:
    assert said in ionn("plan", "alexnet", "--algorithm", name).stdout
    shown = json.loads(ionn("plan", "alexnet", "--algorithm", name, "--json").stdout)
    assert ("held" in shown) == (name == "preinstalled")
    assert (shown["mean_ms"] is None) == (shown["partitions"] == [])


# --- A server that holds something before the run begins ------------------------------------------------------------


def papers_graph(model: str) -> tuple[Network, ExecutionGraph]:
    network = Network.load(model)
    return network, ExecutionGraph.from_network(network, load_costs("odroid-xu4"), load_costs("gtx1080ti"), 80.0)


def test_only_preinstalled_has_the_server_hold_something() -> None:
    network, graph = papers_graph("googlenet")
    for name in [*BASELINES, *PLANNERS]:
        if name not in ("optimal", "original-0.0001"):
            plan = make_plan(network, graph, name, 80.0)
            assert bool(plan.held) == ("held" in plan.to_json()) == (name == "preinstalled")
            assert Plan.from_document(read_json(json.dumps(plan.to_json()), PlanDocument), graph) == plan
    held = make_plan(network, graph, "preinstalled", 80.0)
    assert set(held.held) == graph.shortest_path([0.0] * len(graph.stages))
    assert (held.partitions, held.uploads) == ((), [held.held])
    assert math.isnan(held.mean_ms)
    assert graph.holding(held.held).latency_ms([]) == held.best_ms < held.local_ms


def test_a_plan_cannot_hold_what_the_graph_has_not() -> None:
    network, graph = papers_graph("alexnet")
    document = make_plan(network, graph, "preinstalled", 80.0).to_json()
    for held in ([0, len(graph.stages)], [10**6]):
        with pytest.raises(InputError, match="hold a stage"):
            Plan.from_document(read_json(json.dumps({**document, "held": held}), PlanDocument), graph)
    for wrong in ('["conv1"]', "[-1]", "[1.5]", "3"):
        text = json.dumps({**document, "held": "HELD"}).replace('"HELD"', wrong)
        with pytest.raises(ValueError):  # noqa: PT011 - of msgspec
            read_json(text, PlanDocument)


@given(GRAPHS, st.sampled_from([None, 0.05]))
def test_preinstalled_queries_run_at_best(graph: ExecutionGraph, window_s: float | None) -> None:
    held = tuple(sorted(graph.shortest_path([0.0] * len(graph.stages))))
    best_ms = graph.latency_ms(range(len(graph.stages)))
    plan = Plan("chain", "preinstalled", 80.0, 0, graph.local_ms, best_ms, (), 0.0, held)
    info = RunInfo(Settings("virtual", window_s=window_s), 1, plan, graph)
    if best_ms == 0:
        return  # no run ends
    trace = run_virtual(info)
    assert [query.latency_ms for query in trace.queries] == pytest.approx([best_ms] * len(trace.queries), abs=1e-6)
    assert (trace.partitions, trace.upload_s, trace.queries[0].start_s) == ((), 0.0, 0.0)


@pytest.mark.parametrize("model", MODELS)
def test_preinstalled_is_as_fast_as_any_after_its_upload(model: str, tmp_path: Path) -> None:
    at_best, uploaded = run_virtual_all(model, ["preinstalled", "recursive-efficiency"], results=tmp_path)
    assert at_best.queries[0].latency_ms == pytest.approx(uploaded.queries[-1].latency_ms)
    assert at_best.info.graph == uploaded.info.graph  # the server holds by plan, not by costs
    assert load_traces(tmp_path) == [at_best, uploaded]
    assert predict(at_best).queries == at_best.queries


def test_preinstalled_by_a_client_that_measures(tmp_path: Path) -> None:
    (tmp_path / "link.csv").write_text("0,80\n1,2\n")
    (trace,) = run_virtual_all(
        "alexnet", ["preinstalled"], mbps=None, link=tmp_path / "link.csv", window_s=10.0, results=tmp_path
    )
    assert trace.partitions == ()
    assert trace.info.plan.held == tuple(range(1, 14))
    wheres = [{segment.where for segment in query.segments} for query in trace.queries]
    assert "server" in wheres[0]
    assert len(trace.estimates) > 1
    assert trace.queries[-1].latency_ms > 2 * trace.queries[0].latency_ms  # the link has become slow
    assert load_traces(tmp_path) == [trace]


def test_baselines_with_queries_that_arrive_by_themselves() -> None:
    for name in BASELINES:
        (trace,) = run_virtual_all("googlenet", [name], arrivals=Arrivals.parse("fps:2"), busy="drop")
        assert trace.queries
    (row,) = summary([trace])
    assert row.p90_ms.mean == pytest.approx(trace.info.plan.best_ms)


# --- Figures and report ---------------------------------------------------------------------------------------------


def test_figures_have_baselines_on_request(tmp_path: Path) -> None:
    run_virtual_all("googlenet", [*BASELINES, "original"], results=tmp_path)
    drawn = ionn("figures", "--results", str(tmp_path), "--out", str(tmp_path / "one")).stdout.splitlines()
    asked = ["--algorithm", "preinstalled", "--algorithm", "local"]
    named = ionn("figures", "--results", str(tmp_path), "--out", str(tmp_path / "two"), *asked).stdout.splitlines()
    assert len(drawn) == len(named) > 1
    pdfs = [(tmp_path / folder / "fig7-virtual-googlenet.pdf").read_bytes() for folder in ("one", "two")]
    assert pdfs[0] != pdfs[1]
    run_virtual_all("googlenet", ["original"], results=tmp_path / "alone")
    draw_figures(tmp_path / "alone", tmp_path / "three")
    assert (tmp_path / "three" / "fig7-virtual-googlenet.pdf").read_bytes() == pdfs[0]
    refused = ionn("figures", "--results", str(tmp_path), "--algorithm", "preinstaled")
    assert refused.returncode == 2
    assert "no runs of algorithm 'preinstaled'" in refused.stderr
    assert "did you mean preinstalled?" in refused.stderr


def test_the_report_copes_with_runs_without_an_upload(tmp_path: Path) -> None:
    run_virtual_all("googlenet", [*BASELINES, "original"], results=tmp_path)
    report = make_report(load_traces(tmp_path)).text()
    assert "nan" not in report
    changes = report.partition("Change against original")[2].partition("Planning time")[0]
    assert "all-at-once" in changes
    assert "preinstalled" not in changes
    lines = [line.split() for line in report.splitlines() if line.startswith("GoogLeNet")]
    assert {name for line in lines for name in line if name in BASELINES} == set(BASELINES)
